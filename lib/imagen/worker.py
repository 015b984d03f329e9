"""The worker: jobs from the queue through pipelines that keep running, and their answers back.

One thread does the work, in one loop that waits for whatever comes first: a notice, an answer, a
signal, a deadline. A second one does nothing but kill the pipelines when the lease may be lost.
Times here are CLOCK_BOOTTIME, which goes on while a machine sleeps.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from . import joblines, record
from .errors import ImagenError, Refused
from .joblines import Rules, Verdict
from .jobs import QueueLike
from .notify import notify, watchdog_s
from .pipeline import Pipeline
from .record import DRAWN_SEEDS, Record

RENEW_S = 3.0  # a lease lasts 10 s on the database's clock
LOST_S = 7.0  # since the last renewal was sent: from then on nothing may be submitted
FRESH_S = 5.0  # so soon after its first claim nobody else can have had a job
RESCUE_S = 5.0
SETTLE_S = 5.0  # after a new connection, before others' jobs are taken for dead
_DEAF_S = 1.0  # between polls when no notice arrives
_HEAR_S = 30.0  # between proofs that notices arrive
_END_S = 10.0  # for a pipeline that was told to end


class Said(NamedTuple):
    """What the command line and the configuration say."""

    name: str
    pipeline: str
    rules: Rules
    backends: list[str]
    jobs: int = 1
    poll_s: float = 5.0
    job_timeout_s: float | None = None
    grace_s: float | None = None
    drain: bool = False


class EarLike(Protocol):
    """What the worker needs of the connection that listens."""

    def fileno(self) -> int:
        """Give the descriptor to wait on."""

    def poll(self) -> Sequence[Any]:
        """Give the notices that have come; a fault of db.py when the connection is dead."""



class Connected(NamedTuple):
    """The queue and the ear, each with a connection of its own; `close` ends both.

    `prove` sends a notice from one to the other and gives the seconds that it took, None when it
    did not arrive.
    """

    queue: QueueLike
    ear: EarLike
    prove: Callable[[], float | None]
    close: Callable[[], None]


@dataclass(slots=True)
class Slot:
    """A place for one pipeline, and for the one job that it has."""

    pipeline: Pipeline | None = None
    job: Any = None
    request: Record | None = None
    intended_at: float | None = None  # unix time, our clock
    claimed: float = 0.0
    deadline: float | None = None
    told: signal.Signals | None = None  # what its group was sent, and until when we wait for it
    patience: float = 0.0
    cancelled: bool = False
    late: bool = False
    verdict: Verdict | None = None  # what the queue could not yet be told
    crashes: int = 0
    restart: float = 0.0

    def forget(self) -> None:
        """Have no job any more."""
        self.job = self.request = self.intended_at = self.deadline = self.verdict = None
        self.cancelled = self.late = False


def boottime() -> float:
    """Give seconds since the machine started, those asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Worker:
    """One worker process."""

    def __init__(
        self, said: Said, connect: Callable[[], Connected], tell: Callable[[str], None]
    ) -> None:
        """Take what is said, how to connect, and who is told what happens."""
        self._said = said
        self._connect = connect
        self._tell = tell
        self._slots = [Slot() for _ in range(said.jobs)]
        self._db: Connected | None = None
        self._retry_at, self._failures = 0.0, 0
        self._renewed = self._next_renewal = self._next_rescue = self._next_proof = 0.0
        self._deaf = False
        self._lock = threading.Lock()
        self._frozen = False
        self._stops = 0
        self._grace_ends: float | None = None
        self._counts = {"done": 0, "failed": 0, "again": 0}
        self._beat_at = 0.0
        self._ready = False
        self._idle = False
        self._next_due: float | None = None

    # -- the loop --------------------------------------------------------------------------------

    def run(self, stops: Callable[[], int], wakes: int) -> int:
        """Work until told to stop (`stops` counts signals, `wakes` is readable after one)."""
        watcher = threading.Thread(target=self._watch_lease, daemon=True)
        watcher.start()
        try:
            while not self._is_over():
                self._turn()
                self._wait(wakes)
                self._stops = stops()
            return 0
        finally:
            self._close()

    def _turn(self) -> None:
        """Do what is due."""
        now = boottime()
        self._stop_well(now)
        for slot in self._slots:
            self._tend(slot, now)
        try:
            self._attend_queue(now)
        except ImagenError as fault:
            self._lose_queue(fault, now)
        self._beat(now)

    def _attend_queue(self, now: float) -> None:
        if not self._reconnected(now):
            return
        queue = self._known()
        if now >= self._next_renewal:
            self._renew(queue, now)
        for slot in self._slots:
            if slot.verdict:
                self._close_job(slot, queue)
        if now >= self._next_rescue:
            self._next_rescue = now + RESCUE_S
            for one in queue.rescue():
                self._tell(f"{one}: its worker is gone; it is in the queue again")
        self._prove(now)
        self._claim(queue)

    def _claim(self, queue: QueueLike) -> None:
        """Fill the free slots from the backlog."""
        self._idle, self._next_due = False, None
        for slot in self._slots:
            while self._may_claim(slot):
                now = boottime()
                job = queue.claim(self._said.name, self._said.backends, self._default)
                if job is None:
                    self._idle = True
                    later = queue.waiting(self._said.backends, self._default)
                    self._next_due = None if later is None else now + later
                    return
                if not self._held():
                    self._renewed = now
                self._begin(slot, job, queue, now)

    def _may_claim(self, slot: Slot) -> bool:
        free = slot.job is None and not self._stops and not self._frozen
        return free and self._started(slot)

    @property
    def _default(self) -> str:
        return self._said.rules.default_backend

    def _begin(self, slot: Slot, job: Any, queue: QueueLike, now: float) -> None:
        """Work out the line of a claimed job, store it, send it."""
        slot.job, slot.claimed = job, now
        try:
            if job.broken:
                raise Refused(f"params cannot be read: {job.broken}")
            request = job.request or joblines.request_of(
                job, self._said.rules, datetime.now(UTC), 1 + random.randrange(DRAWN_SEEDS - 1)
            )
        except Refused as fault:
            detail = fault.as_record("imagen-listen")
            slot.verdict = Verdict("failed", error=fault.as_line(), detail=detail)
            self._close_job(slot, queue)
            return
        age = job.intended_age_s
        if job.request is None and not queue.intend(job.id, job.fence, request):
            slot.forget()
            return
        slot.request = request
        slot.intended_at = time.time() - (age or 0.0)
        self._send(slot, again=job.request is not None)

    def _send(self, slot: Slot, again: bool) -> None:
        """Send a job's line, if the lease certainly holds."""
        now = boottime()
        again = again or now - slot.claimed >= FRESH_S
        attempt = slot.job.attempts + 1
        line = joblines.line_of(slot.request or {}, attempt, slot.intended_at if again else None)
        if self._said.job_timeout_s:
            slot.deadline = now + self._said.job_timeout_s
        with self._lock:
            if self._frozen or now - self._renewed >= LOST_S or slot.pipeline is None:
                return  # the next renewal decides
            sent = slot.pipeline.send(record.line(line))
        if not sent:
            self._crashed(slot, now)

    # -- pipelines -------------------------------------------------------------------------------

    def _started(self, slot: Slot) -> bool:
        """Whether the slot has a pipeline; one is started when none was too short ago."""
        if slot.pipeline is None and boottime() >= slot.restart:
            slot.pipeline = Pipeline(self._said.pipeline)
            slot.told = None
        return slot.pipeline is not None

    def _tend(self, slot: Slot, now: float) -> None:
        """Read a pipeline's answers; look after its death and its deadlines."""
        if slot.pipeline is None:
            if slot.job is not None and slot.verdict is None and not self._frozen:
                self._crashed(slot, now)
            return
        lines, open_ = slot.pipeline.lines()
        for line in lines:
            self._answered(slot, line)
        if not open_ or not slot.pipeline.is_alive():
            self._crashed(slot, now)
        elif slot.told and now >= slot.patience:
            self._tell("a pipeline did not end when told to: killed")
            self._crashed(slot, now)
        elif slot.deadline and now >= slot.deadline and slot.told is None:
            slot.late = True
            self._end(slot, signal.SIGTERM, now)

    def _answered(self, slot: Slot, line: bytes) -> None:
        made = _parsed(line)
        if slot.job is None or made.get("id") != slot.job.id or slot.verdict:
            return
        found = joblines.verdict(made, slot.job.attempts, slot.job.max_attempts)
        if found.kind in ("retry", "failed") and (self._ending or slot.told):
            found = found._replace(kind="back")  # we ended it: that is no attempt of the job's
        slot.verdict = found
        slot.crashes = 0
        slot.deadline = None

    def _crashed(self, slot: Slot, now: float) -> None:
        """Clear away a pipeline that has ended; its job goes back, its claim still counts."""
        if slot.pipeline:
            with self._lock:
                slot.pipeline.kill()
                slot.pipeline = None
        if slot.told is None:
            slot.restart = now + min(0.1 * 4.0**slot.crashes, 30.0) if slot.crashes else now
            slot.crashes += 1
            if not self._ending:
                self._tell("a pipeline has ended; it is started again")
        slot.told = None
        if slot.job is not None and slot.verdict is None:
            slot.verdict = self._unanswered(slot)

    def _unanswered(self, slot: Slot) -> Verdict:
        """Judge a job whose pipeline ended without its answer."""
        if not slot.late:
            return Verdict("back", after_s=0.5)
        limit = self._said.job_timeout_s or 0
        error = {"code": "job_timeout", "message": f"not done in {limit:g} s", "retry": "safe"}
        return joblines.verdict(
            {"error": {"tool": "imagen-listen", "billed": "unknown", **error}},
            *(slot.job.attempts, slot.job.max_attempts),
        )

    def _end(self, slot: Slot, number: signal.Signals, now: float) -> None:
        """Tell a pipeline to end, all of it; it is killed when it does not."""
        if slot.pipeline and slot.told is None:
            slot.told, slot.patience = number, now + _END_S
            slot.pipeline.signal(number)

    # -- the queue -------------------------------------------------------------------------------

    def _close_job(self, slot: Slot, queue: QueueLike) -> None:
        """Tell the queue what became of a job; the fence keeps it from what is no longer ours."""
        job, found = slot.job, slot.verdict
        assert job is not None and found is not None
        detail, text = found.detail or {}, found.error or ""
        if slot.cancelled:
            ours = True
        elif found.kind == "done":
            ours = queue.done(job.id, job.fence, found.image_id)
        elif found.kind == "failed":
            ours = queue.failed(job.id, job.fence, text, detail)
        elif found.kind == "retry":
            ours = queue.retry(job.id, job.fence, found.after_s, text, detail)
        else:
            answered = found.error is not None or found.after_s >= joblines.PENDING_S
            ours = queue.put_back(job.id, job.fence, found.after_s, answered=answered)
        became = {"back": "again", "retry": "again"}.get(found.kind, found.kind)
        self._counts[became] += 1
        said = f": {found.error}" if found.error else ""
        self._tell(f"{job.id}: {'cancelled' if slot.cancelled else found.kind}{said}")
        if not ours:
            self._tell(f"{job.id}: another worker has it now, or it was cancelled")
        slot.forget()

    def _held(self) -> dict[str, int]:
        return {slot.job.id: slot.job.fence for slot in self._slots if slot.job is not None}

    def _renew(self, queue: QueueLike, now: float) -> None:
        """Renew our leases; what is no longer ours is ended, what was frozen goes on."""
        held = self._held()
        sent = boottime()
        ours = queue.renew(self._said.name, held) if held else set()
        gone = queue.cancelled(held) if len(ours) < len(held) else set()
        was_frozen = self._frozen
        with self._lock:
            self._renewed, self._frozen = sent, False
        self._next_renewal = now + RENEW_S
        for slot in self._slots:
            if slot.job is None or slot.verdict:
                continue
            if slot.job.id not in ours:
                slot.cancelled = True
                why = "cancelled" if slot.job.id in gone else "another worker has it now"
                self._tell(f"{slot.job.id}: {why}")
                self._end(slot, signal.SIGINT, now)
            elif was_frozen and self._started(slot):
                self._send(slot, again=True)

    def _reconnected(self, now: float) -> bool:
        if self._db is not None:
            return True
        if now < self._retry_at:
            return False
        self._db, self._failures = self._connect(), 0
        queue = self._db.queue
        if queue.name_lock(self._said.name) and not self._held():
            queue.take_back(self._said.name)
        self._next_renewal = self._next_proof = now
        self._next_rescue = now + (SETTLE_S if self._ready else 0)
        return True

    def _known(self) -> QueueLike:
        assert self._db is not None
        return self._db.queue

    def _lose_queue(self, fault: ImagenError, now: float) -> None:
        """Connect again, later each time; while it cannot be, the lease decides over pipelines."""
        if self._db is not None:
            self._db.close()
        self._db = None
        if fault.exit_status == 2 and not self._ready:
            raise fault
        self._retry_at = now + min(0.25 * 2.0**self._failures, 10.0) * random.uniform(0.5, 1.0)
        self._failures += 1
        self._tell(f"the queue is lost: {fault.as_line()}")

    def _watch_lease(self) -> None:
        """Kill all pipelines when the last renewal is old: no submit may follow a lost lease."""
        while True:
            time.sleep(0.2)
            with self._lock:
                late = boottime() - self._renewed >= LOST_S
                if late and self._held() and not self._frozen:
                    self._frozen = True
                    for slot in self._slots:
                        if slot.pipeline and slot.job is not None:
                            slot.pipeline.signal(signal.SIGKILL)

    def _prove(self, now: float) -> None:
        """See whether notices arrive; behind a transaction pooler they do not."""
        if now < self._next_proof:
            return
        self._next_proof = now + _HEAR_S
        assert self._db is not None
        took = self._db.prove()
        if took is None and not self._deaf:
            self._tell(
                "notices do not arrive: polling every second (hint: LISTEN needs a session; behind"
                " Supabase's pooler use port 5432, not 6543)"
            )
        self._deaf = took is None
        if not self._ready:
            self._ready = True
            notify("READY=1", "STATUS=waiting for jobs")
            self._tell(f"{self._said.name}: waiting for jobs")

    # -- waiting and ending ----------------------------------------------------------------------

    def _wait(self, wakes: int) -> None:
        """Wait for a notice, an answer, a signal, or until something is due."""
        poll = select.poll()
        poll.register(wakes, select.POLLIN)
        if self._db is not None:
            poll.register(self._db.ear.fileno(), select.POLLIN)
        for slot in self._slots:
            if slot.pipeline:
                poll.register(slot.pipeline.fileno(), select.POLLIN)
        ready = {found for found, _events in poll.poll(max(self._pause() * 1000, 0))}
        if wakes in ready:
            os.read(wakes, 4096)
        if self._db is not None and self._db.ear.fileno() in ready:
            try:
                if self._db.ear.poll():
                    self._next_renewal = 0.0  # a notice may be of a cancelled job
            except ImagenError as fault:
                self._lose_queue(fault, boottime())

    def _pause(self) -> float:
        """Give the seconds until something is due, whether or not anything comes."""
        now = boottime()
        if self._db is None:
            return min(max(self._retry_at - now, 0.01), 0.5)
        due = [now + (_DEAF_S if self._deaf else self._said.poll_s), self._next_rescue]
        if self._held():
            due.append(self._next_renewal)
        due += [slot.deadline for slot in self._slots if slot.deadline]
        due += [slot.patience for slot in self._slots if slot.told]
        due += [
            slot.restart for slot in self._slots if slot.pipeline is None and slot.restart > now
        ]
        if (
            self._idle
            and (later := self._known().waiting(self._said.backends, self._default)) is not None
        ):
            due.append(now + max(later, 0.01))
        if self._grace_ends:
            due.append(self._grace_ends)
        if any(slot.verdict for slot in self._slots):
            due.append(now)
        return min(due) - now

    @property
    def _ending(self) -> bool:
        return self._stops > 1 or (self._grace_ends is not None and boottime() >= self._grace_ends)

    def _stop_well(self, now: float) -> None:
        """No new job after the first signal; after the second, or the grace, no job at all."""
        if self._stops and self._grace_ends is None:
            notify("STOPPING=1")
            self._tell("stopping: what is running is finished first")
            patience = self._said.grace_s
            self._grace_ends = now + (10**9 if patience is None else patience)
        if self._stops and self._ending:
            for slot in self._slots:
                if slot.job is not None and slot.verdict is None:
                    self._end(slot, signal.SIGINT, now)

    def _is_over(self) -> bool:
        if self._held():
            return False
        return bool(self._stops) or (self._said.drain and self._idle and self._ready)

    def _beat(self, now: float) -> None:
        every = watchdog_s()
        if self._ready and self._db is not None and now >= self._beat_at:
            self._beat_at = now + (every / 3 if every else 5.0)
            running = len(self._held())
            counts = ", ".join(f"{number} {name}" for name, number in self._counts.items())
            notify("WATCHDOG=1", f"STATUS={running} running; {counts}")

    def _close(self) -> None:
        """End the pipelines: with their input, then with force."""
        for slot in self._slots:
            if slot.pipeline:
                slot.pipeline.end_input()
        ends = boottime() + _END_S
        for slot in self._slots:
            while slot.pipeline and slot.pipeline.is_alive() and boottime() < ends:
                time.sleep(0.02)
            if slot.pipeline:
                slot.pipeline.kill()
        if self._db is not None:
            self._db.close()


def _parsed(line: bytes) -> Record:
    """Read an answer; what is none has no id of a job."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
