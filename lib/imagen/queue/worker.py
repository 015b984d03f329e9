"""The worker: jobs from the queue through pipelines that keep running, and their answers back.

One thread does the work, in one loop that waits for whatever comes first: a notice, an answer, a
signal, a deadline. A second one does nothing but kill the pipelines when the lease may be lost.
Times here are CLOCK_BOOTTIME, which goes on while a machine sleeps.
"""

from __future__ import annotations

import os
import random
import select
import signal
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from ..clock import boottime
from ..db import DatabaseFault
from ..errors import ConfigFault, ImagenError, Refused
from ..records.record import DRAWN_SEEDS
from . import verdict as verdicts
from .jobs import Claimed, QueueLike, Stored
from .pool import END_S, LOST_S, Lease, Pipelines, Slot
from .systemd import notify, watchdog_s
from .verdict import Rules, Verdict

RENEW_S = 3.0  # a lease lasts 10 s on the database's clock
RESCUE_S = 2.0  # with the lease less than the 15 s in which a dead worker's job runs again
SETTLE_S = 5.0  # after a new connection, before others' jobs are taken for dead
REPEAT_S = 60.0  # between two lines that say the same of a queue that cannot be reached
GONE_S = 5.0  # after a signal, until we end without a queue that could be told
DEAF_S = 1.0  # between polls when no notice arrives
HEAR_S = 30.0  # between proofs that notices arrive
_SOON_S = 1.0  # --drain waits for what is due so soon
_NO_IMAGE = "23503"  # SQLSTATE of a foreign key: the image's row is not there
_OF_A_VALUE = ("22", "23")  # SQLSTATE classes that a row's values cause, not the connection


class Said(NamedTuple):
    """What the command line and the configuration say."""

    name: str
    pipeline: str
    rules: Rules
    backends: list[str] | None  # whose jobs are claimed; None: anybody's, within the rules
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


class LedgerLike(Protocol):
    """What the worker needs of this machine's ledger; no call waits for long."""

    def delivered(self, render_id: str) -> None:
        """Journal that the records of a render have reached the queue."""

    def fault(self) -> ImagenError | None:
        """Return why the ledger cannot be used; None when it can."""

    def close(self) -> None:
        """Write what is left."""


class Connected(NamedTuple):
    """The queue and the ear, each with a connection of its own; `close` ends both.

    `prove` sends a notice from one to the other and gives the seconds that it took, None when it
    did not arrive.
    """

    queue: QueueLike
    ear: EarLike
    prove: Callable[[], float | None]
    close: Callable[[], None]


class Worker:
    """One worker process."""

    def __init__(
        self,
        said: Said,
        connect: Callable[[], Connected],
        tell: Callable[[str], None],
        ledger: LedgerLike | None = None,
    ) -> None:
        """Take what is said, how to connect, who is told what happens, and the ledger."""
        self._said = said
        self._connect = connect
        self._tell = tell
        self._ledger = ledger
        self._slots = [Slot() for _ in range(said.jobs)]
        self._lease = Lease(self._slots)
        self._pipelines = Pipelines(said.pipeline, said.job_timeout_s, self._lease, tell)
        self._db: Connected | None = None
        self._retry_at, self._failures = 0.0, 0
        self._said_last, self._said_at = "", 0.0
        self._next_renewal = self._next_rescue = self._next_proof = self._next_feed = 0.0
        self._noticed = self._deaf = self._ready = self._idle = self._named = False
        self._stops = 0
        self._stopped_at = 0.0
        self._gone_at: float | None = None  # since when the queue cannot be reached
        self._stops_at: float | None = None  # when what runs is ended too
        self._counts = {"done": 0, "failed": 0, "again": 0, "cancelled": 0}
        self._next_due: float | None = None
        self._reasons: dict[str, float] = {}  # for which jobs went back, and when it was said

    # -- the loop --------------------------------------------------------------------------------

    def run(self, stops: Callable[[], int], wakes: int) -> int:
        """Work until told to stop (`stops` counts signals, `wakes` is readable after one)."""
        self._lease.watch()
        try:
            while not self._is_over():
                self._turn()
                if not self._is_over():
                    self._wait(wakes)
                self._stops = stops()
                if self._stops and not self._stopped_at:
                    self._stopped_at = boottime()
            if job_ids := ", ".join(self._held()):
                self._tell(
                    f"the queue cannot be reached; these leases expire by themselves: {job_ids}"
                )
            self._tell("ended")
            return 0
        finally:
            self._pipelines.close(self._slots, hurry=self._gone_at is not None)
            if self._db is not None:
                self._db.close()
            if self._ledger is not None:
                self._ledger.close()

    def _turn(self) -> None:
        """Do what is due."""
        self._feed_watchdog()
        now = boottime()
        self._stop_well(now)
        for slot in self._slots:
            self._pipelines.tend(slot, now)
        try:
            self._attend_queue(now)
        except ImagenError as fault:
            self._lose_queue(fault)

    def _attend_queue(self, now: float) -> None:
        if self._db is None and now < self._retry_at:
            return
        queue = (self._db or self._connected(now)).queue
        if now >= self._next_renewal:
            self._renew(queue)
        elif self._noticed:
            self._let_go(queue.cancelled(self._held()) if self._held() else set(), "cancelled")
        self._noticed = False
        if not self._ready:
            self._prove(queue)  # which takes back what is our name's: before anything is
        for slot in self._slots:
            self._advance(slot, queue)
        self._claim(queue)  # before what can wait
        if now >= self._next_rescue:
            self._next_rescue = now + RESCUE_S
            self._rescue(queue)
        if now >= self._next_proof:
            self._prove(queue)
        self._gone_at = None

    def _wait(self, wakes: int) -> None:
        """Wait for a notice, an answer, a signal, or until something is due."""
        poll = select.poll()
        poll.register(wakes, select.POLLIN)
        ear = self._db.ear.fileno() if self._db else -1
        if ear >= 0:
            poll.register(ear, select.POLLIN)
        for slot in self._slots:
            for descriptor, events in slot.pipeline.waits() if slot.pipeline else []:
                poll.register(descriptor, events)
        ready = {found for found, _events in poll.poll(self._pause() * 1000)}
        if wakes in ready:
            os.read(wakes, 4096)
        if self._db is not None and (ear in ready or ear < 0):
            try:
                self._noticed = bool(self._db.ear.poll()) or self._noticed
            except ImagenError as fault:
                self._lose_queue(fault)

    def _feed_watchdog(self) -> None:
        """Tell systemd that the loop turns, whether or not the database is there."""
        every, now = watchdog_s(), boottime()
        if every is None or not self._ready or now < self._next_feed:
            return
        self._next_feed = now + every / 4
        away = [f"STATUS=database away; {len(self._held())} running here"] if not self._db else []
        notify("WATCHDOG=1", *away)

    def _pause(self) -> float:
        """Give the seconds until something is due, whether or not anything comes."""
        now = boottime()
        due = [now + (DEAF_S if self._deaf else self._said.poll_s)]
        due += [self._next_feed] if self._ready and watchdog_s() else []
        due += [slot.deadline for slot in self._slots if slot.deadline and slot.told is None]
        due += [slot.patience for slot in self._slots if slot.told or slot.killed]
        due += [slot.restart for slot in self._slots if slot.restart > now]
        if self._db is None:
            due.append(self._retry_at)
            if self._stops and self._gone_at is not None:
                due.append(max(self._stopped_at, self._gone_at) + GONE_S)
        else:
            due += [self._next_rescue, self._next_proof]
            due += [self._next_renewal] if self._held() else []
            due += [self._next_due] if self._next_due and not self._stops else []
            due += [now for slot in self._slots if slot.verdict]
        if self._stops_at and self._stops_at > now:
            due.append(self._stops_at)
        return min(max(min(due) - now, 0.0), 60.0)

    # -- jobs ------------------------------------------------------------------------------------

    def _held(self) -> dict[str, int]:
        return {slot.job.id: slot.job.fence for slot in self._slots if slot.job is not None}

    def _claim(self, queue: QueueLike) -> None:
        """Fill the free slots from the backlog, each once: a turn must end, whatever is queued."""
        self._idle, self._next_due = False, None
        for slot in self._slots:
            if not self._may_claim(slot):
                continue
            now = boottime()
            job = queue.claim(*self._who)
            if job is None:
                later = queue.waiting(*self._who[1:])
                self._next_due = None if later is None else now + max(later, 0.01)
                self._idle = True
                return
            self._begin(slot, job, now)
            self._advance(slot, queue)
            if slot.is_free:  # that job failed at once
                self._next_due = now

    def _may_claim(self, slot: Slot) -> bool:
        sure = self._lease.holds() or not self._held()
        return slot.is_free and sure and not self._stops and self._pipelines.started(slot)

    def _may_go_on(self, slot: Slot) -> bool:
        """Whether a slot whose job is made may take the next in the same breath."""
        fit = slot.told is None and not slot.killed and self._lease.holds()
        return fit and not self._stops and self._pipelines.started(slot)

    @property
    def _who(self) -> tuple[str, list[str] | None, str]:
        """Give who asks for jobs, as the queue wants it."""
        return self._said.name, self._said.backends, self._said.rules.default_backend

    def _begin(self, slot: Slot, job: Claimed, now: float) -> None:
        """Work out the line of a job for which was asked at `now`."""
        slot.forget()
        if not self._held():
            self._lease.renewed = now
        slot.take(job, now)
        claimed_at = slot.intended_at - (boottime() - now)
        slot.intended_at = claimed_at - (job.intended_age_s or 0.0)
        age_s = job.released_age_s
        slot.released_at = None if age_s is None else claimed_at - age_s
        try:
            if job.broken:
                raise Refused(job.broken)
            seed = 1 + random.randrange(DRAWN_SEEDS - 1)
            slot.request = job.request or verdicts.request_of(
                job, self._said.rules, datetime.now(UTC), seed
            )
        except Refused as fault:
            detail = fault.as_record("imagen-listen")
            slot.verdict = Verdict("failed", error=fault.as_line(), detail=detail)

    def _advance(self, slot: Slot, queue: QueueLike) -> None:
        """Do the next step of a job; each may be done again after the connection was lost."""
        try:
            if slot.verdict:
                self._close_job(slot, queue)
            if slot.is_under_way and slot.job and slot.request and not slot.stored:
                slot.stored = queue.intend(slot.job.id, slot.job.fence, slot.request)
                if not slot.stored:
                    self._let_go({slot.job.id}, "another worker has it now, or it was cancelled")
            if slot.is_under_way and slot.stored and not slot.sent and not slot.lost:
                self._pipelines.send(slot)
        except DatabaseFault as fault:
            if not fault.sqlstate.startswith(_OF_A_VALUE):
                raise
            self._cannot_keep(slot, fault)

    def _cannot_keep(self, slot: Slot, fault: DatabaseFault) -> None:
        """Let a job whose values the database refuses fail alone."""
        before, detail = slot.verdict, fault.as_record("imagen-listen")
        self._tell(f"{slot.job.id if slot.job else ''}: {fault.as_line()}")
        if before and before.record and fault.sqlstate != _NO_IMAGE:
            slot.verdict = before._replace(record=None)
        elif before and before.kind == "done" and before.image_id:
            slot.verdict = before._replace(image_id=None)
        elif before and before.kind == "failed" and before.detail is None:
            slot.forget()  # its lease ends
        elif before and before.kind == "failed":
            slot.verdict = Verdict("failed", error="its error cannot be kept")
        else:
            slot.verdict = Verdict("failed", error=fault.as_line(), detail=detail)

    def _close_job(self, slot: Slot, queue: QueueLike) -> None:
        """Tell the queue what became of a job; the fence keeps it from what is no longer ours."""
        job, verdict = slot.job, self._explained(slot)
        assert job is not None and verdict is not None
        ours, after, now = True, None, boottime()
        if verdict.kind == "done" and not slot.lost and self._may_go_on(slot):
            ours, after = queue.done_and_next(job.id, job.fence, *_image(verdict), *self._who)
        elif not slot.lost:
            ours = _told(queue, job, verdict)
        if not slot.lost:
            self._say(job, verdict)
        if ours and verdict.render_id and self._ledger is not None and not slot.lost:
            self._ledger.delivered(verdict.render_id)
        if not ours:
            self._tell(f"{job.id}: another worker has it now, or it was cancelled")
        slot.forget()
        if after:
            self._begin(slot, after, now)

    def _explained(self, slot: Slot) -> Verdict | None:
        """Return a slot's verdict; a pipeline that cannot use the ledger ends without an answer.

        What it has sent may still be accepted.
        """
        verdict, job = slot.verdict, slot.job
        crashed = slot.crashes and not (slot.lost or self._pipelines.ending)
        if verdict is not None and verdict.kind == "back" and not verdict.answered and crashed:
            fault = self._ledger.fault() if self._ledger is not None else None
            if fault is not None and job is not None:
                record = {"error": fault.as_record("imagen-listen")}
                verdict = verdicts.verdict(record, job.attempts, job.max_attempts, True)
                slot.verdict = verdict
        return verdict

    def _say(self, job: Claimed, verdict: Verdict) -> None:
        """Say what became of a job; a reason for which jobs go back is said once a minute."""
        kind = {"back": "again", "retry": "again"}.get(verdict.kind, verdict.kind)
        self._counts[kind] += 1
        why = f": {verdict.error}" if verdict.error else ""
        if verdict.kind == "back" and why:
            now = boottime()
            if now - self._reasons.get(why, float("-inf")) < REPEAT_S:
                return
            recent = {text: at for text, at in self._reasons.items() if now - at < REPEAT_S}
            self._reasons = {**recent, why: now}
        self._tell(f"{job.id}: {kind if kind != 'again' else 'put back'}{why}")

    # -- the queue -------------------------------------------------------------------------------

    def _renew(self, queue: QueueLike) -> None:
        """Renew our leases; what is no longer ours is ended."""
        held, sent = self._held(), boottime()
        ours = queue.renew(self._said.name, held) if held else set()
        gone = queue.cancelled(held) if len(ours) < len(held) else set()
        self._lease.renew(sent, ours)
        self._next_renewal = sent + RENEW_S
        self._let_go(gone, "cancelled")
        self._let_go({*held} - ours - gone, "another worker has it now")

    def _let_go(self, ids: set[str], why: str) -> None:
        """End what is not ours any more; INT cancels it at its server, unless another goes on."""
        for slot in self._slots:
            if slot.job is None or slot.job.id not in ids or slot.lost:
                continue
            slot.lost = why
            self._counts["cancelled"] += why == "cancelled"
            self._tell(f"{slot.job.id}: {why}")
            if slot.sent and not slot.verdict and slot.pipeline:
                number = signal.SIGINT if why == "cancelled" else signal.SIGKILL
                self._pipelines.end(slot, number)
            else:
                slot.verdict = Verdict("back")

    def _rescue(self, queue: QueueLike) -> None:
        """Free the jobs of workers that are gone, and take what we can of them."""
        freed = queue.rescue()
        for one in freed:
            self._tell(f"{one}: its worker is gone; it is in the queue again")
        if freed:
            self._claim(queue)

    def _connected(self, now: float) -> Connected:
        """Connect; renew our own before others' jobs may be taken for dead."""
        self._db = found = self._connect()
        self._failures = 0
        self._named = False
        self._next_renewal = self._next_proof = now
        self._next_rescue = now + (SETTLE_S if self._ready else 0)
        return found

    def _lose_queue(self, fault: ImagenError) -> None:
        """Connect again, later each time; while it cannot be, the lease decides over pipelines."""
        if self._db is not None:
            self._db.close()
        self._db, self._idle = None, False
        if not self._ready:
            _raise_if_lasting(fault)
        wait_s = min(0.25 * 2.0**self._failures, 2.0) * random.uniform(0.5, 1.0)
        self._retry_at = boottime() + wait_s
        self._gone_at = self._gone_at or boottime()
        self._failures = min(self._failures + 1, 10)
        said = f"the queue is {'lost' if self._ready else 'not there yet'}: {fault.as_line()}"
        if said != self._said_last or boottime() - self._said_at > REPEAT_S:
            self._said_last, self._said_at = said, boottime()
            self._tell(f"{said}; trying again")

    def _prove(self, queue: QueueLike) -> None:
        """See whether notices arrive, and tell systemd; behind a transaction pooler they do not."""
        every = watchdog_s()
        self._next_proof = boottime() + min(HEAR_S, every / 3 if every else HEAR_S)
        assert self._db is not None
        took = self._db.prove()
        if took is None and not self._deaf:
            self._tell(
                "notices do not arrive: polling every second (hint: LISTEN needs a session; behind"
                " Supabase's pooler use port 5432, not 6543)"
            )
        self._deaf = took is None
        if not self._deaf and not self._named:
            self._take_name(queue)
        there = queue.counts()
        ours = ", ".join(f"{number} {name}" for name, number in self._counts.items())
        status = f"STATUS={len(self._held())} running here, {there['pending']} waiting; {ours}"
        notify(*([] if self._ready else ["READY=1"]), "WATCHDOG=1", status)
        if not self._ready:
            self._ready = True
            self._tell(f"{self._said.name}: waiting for jobs")

    def _take_name(self, queue: QueueLike) -> None:
        """Hold our name as long as the connection lives; at the start, free what it had before.

        Behind a transaction pooler a lock is no connection's, so there nothing is taken back.
        """
        self._named, name = True, self._said.name
        mine = queue.name_lock(name)
        if self._ready:
            return
        if not mine:
            self._tell(f"another worker is called {name}: what it has is left alone")
            return
        for one in queue.take_back(name):
            self._tell(f"{one}: taken back from an earlier worker of this name")

    # -- ending ----------------------------------------------------------------------------------

    def _stop_well(self, now: float) -> None:
        """No new job after the first signal; after the second, or the grace, no job at all."""
        if self._stops and self._stops_at is None:
            notify("STOPPING=1")
            self._tell("stopping: what is running is finished first")
            patience = self._said.grace_s
            self._stops_at = float("inf") if patience is None else now + patience
        if self._stops > 1 and self._stops_at is not None:
            self._stops_at = min(self._stops_at, now)
        if self._stops_at is None or now < self._stops_at:
            return
        self._pipelines.ending = True
        for slot in self._slots:
            if slot.is_under_way and slot.sent and slot.pipeline:
                self._pipelines.end(slot, signal.SIGINT)
            elif slot.is_under_way:
                slot.verdict = Verdict("back")

    def _is_over(self) -> bool:
        if self._stops_at is not None and boottime() > self._stops_at + END_S + LOST_S:
            return True  # the queue cannot be reached: leases expire by themselves
        if self._stops and self._gone_at is not None:
            return boottime() > max(self._stopped_at, self._gone_at) + GONE_S or not self._held()
        if self._held():
            return False
        if self._stops:
            return True
        soon = self._next_due is not None and self._next_due < boottime() + _SOON_S
        return self._said.drain and self._ready and self._idle and not soon


def _told(queue: QueueLike, job: Claimed, found: Verdict) -> bool:
    """Tell the queue; False when the job is no longer ours."""
    text, detail = found.error or "", found.detail or {}
    match found.kind:
        case "done":
            return queue.done(job.id, job.fence, *_image(found))
        case "failed":
            return queue.failed(job.id, job.fence, text, detail, found.record)
        case "retry":
            return queue.retry(job.id, job.fence, found.after_s, text, detail, found.under_way)
    why = (found.error, found.detail) if found.answered else (None, None)
    return queue.put_back(job.id, job.fence, found.after_s, found.answered, *why, found.under_way)


def _image(verdict: Verdict) -> tuple[str | None, Stored]:
    """Return what the queue keeps of an image that is made: its id in the cloud, its record."""
    return verdict.image_id, verdict.record


def _raise_if_lasting(fault: ImagenError) -> None:
    """At the start, end with what another try does not help."""
    if isinstance(fault, ConfigFault):
        raise fault
    if isinstance(fault, DatabaseFault) and fault.sqlstate in ("42P01", "42703", "3F000", "42883"):
        raise ConfigFault(
            f"the database has no queue, or an old one: {fault.message}",
            hint="imagen-migrate sets it up",
        )
