"""A worker's places: in each one pipeline and the one job that it has. The queue is not asked here.

Times are CLOCK_BOOTTIME, which goes on while a machine sleeps.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from subprocess import SubprocessError

from ..clock import boottime
from ..records import record
from ..records.record import Record
from . import verdict as verdicts
from .jobs import Claimed
from .pipeline import Pipeline
from .process_tree import GONE_S
from .verdict import Verdict

LOST_S = 7.0  # since the last renewal was sent: from then on nothing may be submitted
FRESH_S = 5.0  # so soon after its first claim nobody else can have had a job
END_S = 10.0  # for a pipeline that was told to end
BROKEN_S = 2.0  # for the rest of one of which a part has ended
HURRY_S = 1.0  # for each of these when the queue is gone and this process ends
LIVES_S = 1.0  # a pipeline that was started again must live so long before it gets a job
GUARD_S = 0.5  # after LOST_S, a pipeline's guard ends it by itself: this process stands still
_LOOK_S = 0.2


@dataclass(slots=True)
class Slot:
    """A place for one pipeline, and for the one job that it has.

    `intended_at` and `released_at` are unix time by our clock; `told` is what the pipeline's group
    was sent to end it, and `patience` until when it may take; `lost` says why the job is no longer
    ours; `killed` is set when the lease was over, and the pipeline with it; `verdict` is what the
    queue has not yet been told.
    """

    pipeline: Pipeline | None = None
    answers: verdicts.Answers = field(default_factory=verdicts.Answers)
    job: Claimed | None = None
    request: Record | None = None
    intended_at: float = 0.0
    released_at: float | None = None
    claimed: float = 0.0
    stored: bool = False
    sent: bool = False
    deadline: float | None = None
    told: signal.Signals | None = None
    patience: float = 0.0
    lost: str | None = None
    late: bool = False
    killed: bool = False
    verdict: Verdict | None = None
    crashes: int = 0
    restart: float = 0.0

    def take(self, job: Claimed, now: float) -> None:
        """Have a job."""
        self.forget()
        self.job, self.claimed, self.stored = job, now, job.request is not None
        self.intended_at = time.time()

    def forget(self) -> None:
        """Have no job any more."""
        self.job = self.request = self.deadline = self.verdict = self.lost = None
        self.late = self.stored = self.sent = False

    @property
    def is_free(self) -> bool:
        """Whether a job may come."""
        return self.job is None and self.told is None and not self.killed

    @property
    def is_under_way(self) -> bool:
        """Whether there is a job whose end is not known."""
        return self.job is not None and self.verdict is None


class Lease:
    """Until when what we hold is certainly ours. `lock` is held while something is sent."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        """Take the slots whose pipelines end with it."""
        self.lock = threading.Lock()
        self.renewed = 0.0
        self._slots = slots

    def holds(self) -> bool:
        """Whether the last renewal was sent so short ago that nobody can have taken over."""
        return boottime() - self.renewed < LOST_S

    def renew(self, sent: float, ours: Collection[str]) -> None:
        """Note a renewal that was sent at `sent`; the guards of these jobs' pipelines are told."""
        with self.lock:
            self.renewed = sent
            for slot in self._slots:
                job = slot.job if slot.is_under_way and slot.sent else None
                if slot.pipeline and job and job.id in ours:
                    self.tell(slot.pipeline)

    def tell(self, pipeline: Pipeline) -> None:
        """Let a pipeline work as long as the lease holds, whatever becomes of this process."""
        pipeline.tree.allow_until(self.renewed + LOST_S + GUARD_S)

    def watch(self) -> None:
        """Kill, from a thread, what works on after the lease: no submit may follow it."""
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            self.enforce()

    def enforce(self) -> None:
        """Kill what works after the lease."""
        with self.lock:
            if self.holds():
                return
            for slot in self._slots:
                if slot.pipeline and slot.sent and not slot.killed:
                    slot.killed = True
                    slot.patience = boottime() + GONE_S
                    slot.pipeline.signal(signal.SIGKILL)


class Pipelines:
    """Starts the pipelines of the slots, feeds them, reads them, and ends them."""

    def __init__(
        self, command: str, timeout_s: float | None, lease: Lease, tell: Callable[[str], None]
    ) -> None:
        """Take the command, how long a job may take, the lease, and who is told what happens."""
        self._command = command
        self._timeout_s = timeout_s
        self._lease = lease
        self._tell = tell
        self.ending = False  # whether what ends now ends because of us

    def started(self, slot: Slot) -> bool:
        """Whether the slot has a pipeline to send to; starts one, unless it is too soon."""
        now = boottime()
        if slot.pipeline is None and now >= slot.restart:
            try:
                slot.pipeline, slot.told = Pipeline(self._command), None
                slot.answers = verdicts.Answers()
            except (OSError, SubprocessError) as fault:
                self._tell(f"a pipeline cannot be started: {fault}")
                slot.crashes += 1
                self._put_off(slot, now)
                return False
            slot.restart = now + LIVES_S if slot.crashes else now
        return slot.pipeline is not None and now >= slot.restart

    def send(self, slot: Slot) -> None:
        """Send a job's line if the lease certainly holds; else a later turn does."""
        job = slot.job
        if job is None or slot.request is None or slot.told or not self.started(slot):
            return
        with self._lease.lock:
            if slot.pipeline is None or slot.killed or not self._lease.holds():
                return
            now = boottime()
            first = job.first and now - slot.claimed < FRESH_S and slot.released_at is None
            since = None if first else slot.intended_at
            line = verdicts.line_of(slot.request, job.attempts + 1, since, slot.released_at)
            slot.sent, slot.deadline = True, now + self._timeout_s if self._timeout_s else None
            self._lease.tell(slot.pipeline)  # before the line: nothing is done without a limit
            slot.pipeline.send(record.line(line))

    def tend(self, slot: Slot, now: float) -> None:
        """Read a pipeline's answers; look after its deadlines and its end."""
        pipeline = slot.pipeline
        if pipeline is None:
            return
        pipeline.flush()
        self._read(slot)
        if not pipeline.is_alive() and slot.sent:
            self._lease.enforce()  # its guard was first, while this process stood still
        if slot.killed:
            if now >= slot.patience or pipeline.is_gone():
                self._killed(slot, now)
        elif slot.told:
            self._tend_end(slot, now)
        elif not pipeline.is_open or not pipeline.is_alive():
            self.end(slot, signal.SIGTERM, BROKEN_S)
            slot.crashes += 1
        elif slot.deadline and now >= slot.deadline:
            slot.late = True
            self.end(slot, signal.SIGTERM)

    def _read(self, slot: Slot) -> None:
        """Read what a pipeline has answered so far."""
        if slot.pipeline:
            for line in slot.pipeline.lines():
                for answer in slot.answers.read(line):
                    self._answered(slot, answer)

    def _killed(self, slot: Slot, now: float) -> None:
        """Clear away a pipeline that ended with the lease; a job that stays ours is sent again."""
        self._read(slot)  # what it said between our last look and its end
        slot.killed = False
        if slot.told:
            self._ended(slot, now)
        else:
            self._clear(slot)
            if slot.sent:  # in its create perhaps
                slot.released_at = time.time()
            slot.sent = False  # when the line is sent again, its time begins anew

    def _tend_end(self, slot: Slot, now: float) -> None:
        """Look after a pipeline that was told to end; KILL comes when its time is over."""
        is_late = now >= slot.patience
        is_over = is_late and slot.told == signal.SIGKILL
        if is_over or (slot.pipeline and slot.pipeline.is_gone()):
            self._ended(slot, now)
        elif is_late:
            self._tell("a pipeline did not end when told to: killing it")
            self._send_end(slot, signal.SIGKILL, GONE_S)

    def end(self, slot: Slot, number: signal.Signals, patience_s: float = END_S) -> None:
        """Tell a pipeline to end, all of it; it is killed when it does not."""
        if slot.told is None:
            self._send_end(slot, number, GONE_S if number == signal.SIGKILL else patience_s)

    def _send_end(self, slot: Slot, number: signal.Signals, patience_s: float) -> None:
        if slot.pipeline:
            slot.told, slot.patience = number, boottime() + patience_s
            slot.pipeline.signal(number)

    def close(self, slots: Sequence[Slot], hurry: bool = False) -> None:
        """End them all: with their input, with TERM, with KILL."""
        for slot in slots:
            if slot.pipeline:
                slot.pipeline.end_input()
        waits = ((signal.SIGTERM, END_S), (signal.SIGKILL, BROKEN_S), (None, GONE_S))
        for number, patience_s in waits:
            ends = boottime() + (min(patience_s, HURRY_S) if hurry and number else patience_s)
            for slot in slots:
                while slot.pipeline and not slot.pipeline.is_gone() and boottime() < ends:
                    slot.pipeline.lines()  # so that nothing waits for us to read it
                    time.sleep(0.01)
                if slot.pipeline and number:
                    slot.pipeline.signal(number)
        for slot in slots:
            self._clear(slot)

    def _answered(self, slot: Slot, made: Record) -> None:
        if slot.job is None or slot.verdict or made.get("id") != slot.job.id:
            return
        attempts, under_way = slot.job.attempts, slot.released_at is not None
        verdict = verdicts.verdict(made, attempts, slot.job.max_attempts, under_way)
        slot.verdict = verdict
        if verdict.kind in ("retry", "failed"):
            if slot.late:
                slot.verdict = self._late(slot.job)
            elif self.ending or slot.told:
                slot.verdict = Verdict("back")  # we ended it: that is no attempt of the job's
        elif slot.told and not slot.late and "pending" in made:
            slot.verdict = verdict._replace(after_s=0)  # it stopped waiting because we said so
        slot.crashes, slot.deadline = 0, None
        if slot.pipeline:
            slot.pipeline.tree.allow_until(float("inf"))  # what waits for a job sends nothing

    def _ended(self, slot: Slot, now: float) -> None:
        """Clear away a pipeline that was told to end; its job, when unanswered, goes back."""
        self._read(slot)  # what it said between our last look and its end
        self._clear(slot)
        slot.told = None
        if slot.crashes and not self.ending:
            self._put_off(slot, now)
        if slot.is_under_way and slot.job is not None:
            late = slot.late and not (self.ending or slot.lost)
            slot.verdict = self._late(slot.job) if late else Verdict("back")  # to its old place

    def _put_off(self, slot: Slot, now: float) -> None:
        """Let a pipeline rest before it is started again, longer each time."""
        wait_s = 0.0 if slot.crashes == 1 else min(0.1 * 4.0 ** min(slot.crashes, 9), 30.0)
        slot.restart = now + wait_s
        again = f"in {wait_s:.0f} s" if wait_s >= 1 else "at once"
        self._tell(f"a pipeline has ended; it is started again {again}")

    def _clear(self, slot: Slot) -> None:
        """Forget a pipeline that has ended, or cannot be ended: what lives on is named."""
        with self._lease.lock:
            pipeline, slot.pipeline, slot.deadline = slot.pipeline, None, None
        if pipeline is None:
            return
        if not pipeline.is_gone():
            pids = ", ".join(map(str, pipeline.tree.survivors()))
            self._tell(
                f"a pipeline's processes could not be ended: {pids}"
                if pids
                else "a pipeline has left a process behind that cannot be found"
            )
        pipeline.forget()

    def _late(self, job: Claimed) -> Verdict:
        limit = self._timeout_s or 0
        error = {"code": "job_timeout", "message": f"not done in {limit:g} s", "retry": "safe"}
        made = {"error": {"tool": "imagen-listen", "billed": "unknown", **error}}
        return verdicts.verdict(made, job.attempts, job.max_attempts)
