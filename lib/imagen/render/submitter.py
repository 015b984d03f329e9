"""Pay once: the intent is journaled before a submit, its handle after it, and what is lost sought.

Between any two lines here the process may die: the next one finds the journal as it was left, and
goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial

from .. import clock, retry
from ..backends import Ask, PaidBackend, Plan, Sought, as_paid
from ..errors import (
    AnswerLost,
    ConfigFault,
    ImagenError,
    InDoubt,
    PaidFileGone,
    Refused,
    RenderFailed,
    RenderLost,
    ServerFault,
    Stopped,
    Unreachable,
)
from ..ledger import Ledger, LedgerBusy, LedgerFault
from ..ledger.journal import Attempt, Intent
from . import budget, settling
from .lock_wait import LockWait
from .result import Job, place_of, told_before
from .settling import Sending

_LATER = "run the same command again then: it looks for the render, and sends it if it is absent"
_ASK_AGAIN_S = 5.0  # after a provider that could not be asked
_EARLY_S = 0.1  # before the end of a wait an answer that is lost counts as given up by us
_TAKEN = 20  # times that what was found may have become another's before it could be taken


class Submitter:
    """Sends renders to their backends."""

    def __init__(
        self,
        ledger: Ledger,
        caps: budget.Caps,
        before_submit: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        """Take the ledger, the budget, what may raise to stop a submit, and who is told of it."""
        self._ledger = ledger
        self._journal = ledger.journal
        self._caps = caps
        self._before_submit = before_submit
        self._note = note

    def submit(self, job: Job, until: float = math.inf) -> str:
        """Send it; after a fault, look for it before sending it once more.

        Nothing is waited for beyond `until` (monotonic). InDoubt where only a later look can tell.
        """
        job.began, paid = time.monotonic(), as_paid(job.backend)
        try:
            outcome = retry.once_more(
                lambda: self._look_then_send(job, until), job.backend.retry_s, until=until
            )
        except (AnswerLost, ServerFault) as fault:
            if paid:
                wait_s = _rounded(self.wait_s(job, paid))
                fault.billed, fault.retry = "unknown", "after"
                fault.retry_after_s = max(fault.retry_after_s or 0, wait_s)
            raise
        if isinstance(outcome, InDoubt):
            raise outcome
        if paid and not job.asker.given:  # its drawn id is how to find it again
            self._note(f"{job.record['id']}: a paid render at {job.asked['backend']}")
        return outcome

    def adopt(self, job: Job) -> None:
        """Take a render into the journal that a line says was submitted: by another machine."""
        if not self._adopt(job, str(job.handle)):
            raise RenderFailed(f"{job.handle} is another id's render", code="handle_taken")

    def _adopt(self, job: Job, handle: str) -> bool:
        plan = asdict(job.plan) if job.plan else {}
        place = place_of(job.places)
        intent = Intent(job.render_id, job.attempts, job.record, place, plan, handle)
        return self._journal.adopt(intent, job.asker)

    def wait_s(self, job: Job, paid: PaidBackend) -> float:
        """Return the seconds until a look proves that the last attempt did not arrive."""
        return job.sending.wait_s(paid.settle_s) if job.sending else 0.0

    def _look_then_send(self, job: Job, until: float) -> str | InDoubt:
        """Return the handle; a doubt, which another try at once would not end, is returned too."""
        with ExitStack() as stack:
            try:
                self._be_alone(job, until, stack)
                if job.may_have_arrived and (handle := self._found(job, until)):
                    return handle
                if job.was_made and job.backend.paid:
                    says = "it was paid; its file is gone, and the provider no longer lists it"
                    raise PaidFileGone(says, ends=False)  # the account may be the wrong one
                return self._sent(job, until)
            except InDoubt as doubt:
                return doubt

    def _be_alone(self, job: Job, until: float, stack: ExitStack) -> None:
        """Let no other submit or search of the same input come between, where they look alike.

        InDoubt where another process holds the lock for too long; nothing was sent by us then.
        """
        plan = known(job.plan)
        if plan.handle is not None:
            return  # we choose the handle ourselves: it tells them apart
        text = json.dumps(plan.payload, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        name = f"submit {digest}"  # instances may be of one account
        what = f"another run that sends the input of {job.record['id']}"
        wait = LockWait(self._ledger, name, what, self._note)
        if not wait.hold(stack, until - time.monotonic()):
            says = f"another run is sending the same input ({wait.holder})"
            billed = "unknown" if job.may_have_arrived else "no"
            hint = wait.hint if wait.is_stopped else None
            raise InDoubt(says, billed=billed, retry_after_s=_ASK_AGAIN_S, hint=hint)

    def _found(self, job: Job, until: float) -> str | None:
        """Look for a submit whose answer was lost; None when it is certainly absent.

        A look that finds nothing is proof only where it began late enough. That is waited for when
        it is not longer than a list may lag. Until then, what perhaps is ours ends nothing either:
        what certainly is may still come.
        """
        paid = as_paid(job.backend)
        for _ in range(_TAKEN):
            wait_s = self.wait_s(job, paid) if paid else 0.0
            result = self._look(job, until, wait_s)
            if isinstance(result, str):
                if self._take(job, result):
                    return result
            elif wait_s <= 0 and result is Sought.UNKNOWN:
                break
            elif wait_s <= 0:
                return None
            elif not paid or wait_s > paid.settle_s or time.monotonic() + wait_s > until:
                says = "the answer was lost; it is not known yet whether the render was accepted"
                raise InDoubt(says, retry_after_s=_rounded(wait_s), hint=_LATER)
            else:
                time.sleep(wait_s)
        if paid is None:
            raise AnswerLost("it is not known whether the render was accepted", retry="reconcile")
        raise InDoubt(retry="reconcile", ends=True)

    def _look(self, job: Job, until: float, wait_s: float) -> str | Sought:
        """Look once; a paid one that cannot be looked for now stays in doubt until it can."""
        sending = job.sending or Sending(None, None, time.time(), 0.0)
        lost = sending.lost(partial(self._is_of_another, job))
        try:
            return job.backend.find(known(job.plan), lost, until)
        except ConfigFault:
            raise
        except ImagenError as fault:
            if not job.backend.paid:
                fault.billed = "no"
                raise
            says = f"the answer was lost, and the provider cannot be asked now: {fault.message}"
            after_s = max(fault.retry_after_s or 0, wait_s, _ASK_AGAIN_S)
            raise InDoubt(says, retry_after_s=_rounded(after_s), hint=fault.hint) from None

    def _is_of_another(self, job: Job, handle: str) -> bool:
        return bool(self._journal.owners(handle) - {(job.render_id, job.attempts)})

    def _sent(self, job: Job, until: float) -> str:
        """Write the intent, send, write the handle."""
        self._before_submit()
        before, number = dict(job.record), job.attempts
        plan_submit(job, number + 1)
        job.record |= {"attempts": number + 1, "started_at": clock.iso(time.time())}
        job.attempts = number + 1
        try:
            self._intend(job)
        except ImagenError:  # nothing was sent, so there is nothing to look for
            job.attempts, job.record = number, before
            raise
        job.may_have_arrived = True
        try:
            handle = self._send(job, until)
        except (ImagenError, Stopped) as fault:
            if not self._is_refused(job, fault):
                _note_start(job)
                if isinstance(fault, ImagenError):
                    self._end(job, until)
                raise
            self._withdraw(job, fault)
            job.may_have_arrived, job.attempts, job.record = False, number, before
            raise
        if self._is_of_another(job, handle) or not self._take(job, handle):
            _note_start(job)
            self._end(job, until)
            raise AnswerLost(f"the backend gave the handle of another render: {handle}")
        return handle

    def _withdraw(self, job: Job, fault: ImagenError | Stopped) -> None:
        """Take the intent out again: a refusal is no submit."""
        try:
            self._journal.withdraw(job.render_id, job.attempts)
        except (LedgerFault, LedgerBusy):
            if not isinstance(fault, Stopped):  # else the refusal is journaled: we end
                raise

    def _send(self, job: Job, until: float) -> str:
        plan, begin = known(job.plan), partial(self._begin, job)
        if paid := as_paid(job.backend):
            return paid.submit(plan, until, begin, partial(self._note_refusal, job))
        return job.backend.submit(plan, until, begin)

    def _is_refused(self, job: Job, fault: ImagenError | Stopped) -> bool:
        """Whether nothing was accepted for certain: a fault proves it, or nothing was under way."""
        if isinstance(fault, (AnswerLost, ServerFault)):
            return False
        paid = as_paid(job.backend)
        if paid and job.sending and job.sending.latest is None:
            return True
        if isinstance(fault, Stopped):
            return False
        if paid is None or isinstance(fault, (Unreachable, Refused)):
            return True
        from ..http.responses import proves_refusal  # only now: most submits are not refused

        status, body = getattr(fault, "status", 0), getattr(fault, "body", b"")
        return proves_refusal(status, body, paid.refusals.statuses, paid.refusals.speaks_json)

    def _begin(self, job: Job) -> None:
        """Note that an attempt begins: one before it was refused for certain."""
        if attempt := _attempt(job):
            was_refused = job.sending is not None and job.sending.latest is None
            sending = settling.of_attempt(attempt)
            job.sending = sending._replace(latest=None)  # it does not begin if this fails
            self._journal.attempt(job.render_id, job.attempts, attempt, synced=was_refused)
            job.sending = sending

    def _note_refusal(self, job: Job) -> None:
        """Note that the last attempt was refused: nothing is under way until the next one."""
        if job.sending:
            job.sending = job.sending._replace(latest=None)
        with suppress(LedgerFault, LedgerBusy):
            self._journal.refused(job.render_id, job.attempts)

    def _end(self, job: Job, until: float) -> None:
        """Note that an attempt has ended without a handle: it takes no longer than it took.

        Where we gave up waiting (`until`, or a signal), the server may still accept it: nothing is
        noted, and its limits stay.
        """
        if (
            job.sending is None
            or job.sending.latest is None
            or time.monotonic() >= until - _EARLY_S
        ):
            return
        took_s = clock.least_age(job.sending.latest, clock.now())
        job.sending = job.sending._replace(limit_s=took_s, ended=time.monotonic())
        with suppress(LedgerFault, LedgerBusy):
            self._journal.attempt(job.render_id, job.attempts, job.sending.as_attempt())

    def _intend(self, job: Job) -> None:
        plan, backend = known(job.plan), job.backend
        model = str(plan.resolved.get("model", job.asked["backend"]))
        intent = Intent(
            job.render_id,
            job.attempts,
            job.record,
            place_of(job.places),
            asdict(plan),
            attempt=_attempt(job),
            absent=job.attempts - 1 or None,
        )
        if backend.paid:
            judge = partial(budget.judge, self._caps, plan.cost_usd, model)
            self._journal.intend(intent, job.asker, judge)
        else:
            self._journal.intend(intent, job.asker)
        if intent.attempt:
            job.sending = settling.of_attempt(intent.attempt)

    def _take(self, job: Job, handle: str) -> bool:
        """Write the handle; what was paid goes on even when that cannot be written."""
        try:
            return self._journal_handle(job, handle)
        except (LedgerFault, LedgerBusy) as fault:
            self._note(f"{fault.message}; the render goes on")
            job.is_handle_written = False
            return True

    def write_handle(self, job: Job) -> None:
        """Write the handle once more where that was not possible when it came."""
        if job.handle is not None and not job.is_handle_written:
            job.is_handle_written = self._journal_handle(job, job.handle)

    def _journal_handle(self, job: Job, handle: str) -> bool:
        if self._journal.entry(job.render_id) is None:  # another ledger has sent it
            began = job.sending.started_at if job.sending else time.time()
            job.record.setdefault("started_at", clock.iso(began))
            return self._adopt(job, handle)
        drawn = known(job.plan).handle != handle  # ours stands in the intent already
        return self._journal.submitted(job.render_id, job.attempts, handle, synced=drawn)


def plan_submit(job: Job, number: int) -> None:
    """Plan the submit of that number, and put into the record what it resolves."""
    submit_id = str(uuid.uuid5(uuid.UUID(job.render_id), str(number)))
    job.plan = job.backend.plan(Ask(job.asked, *job.prompts, submit_id))
    for stale in ("sent_prompt", "sent_negative_prompt"):
        job.record.pop(stale, None)
    job.record |= {
        "render_id": job.render_id,
        **job.plan.resolved,
        **told_before(job.asked),
    }
    if job.prompts.prompt != job.asked["prompt"]:
        job.record["sent_prompt"] = job.prompts.prompt
    if job.prompts.negative != job.asked.get("negative_prompt"):
        job.record["sent_negative_prompt"] = job.prompts.negative
    if job.plan.fidelity and "fidelity" not in job.asked:
        job.record["fidelity"] = job.plan.fidelity


def _attempt(job: Job) -> Attempt | None:
    """Return the attempt that begins now; None at a free backend, which may be asked twice."""
    paid = as_paid(job.backend)
    return Attempt(clock.now(), paid.create_s, paid.server_date) if paid else None


def _note_start(job: Job) -> None:
    """Put into the record when the last attempt began: what became of it is not known."""
    if job.sending and job.sending.latest:
        job.record["started_at"] = clock.iso(job.sending.latest.wall)


def _rounded(seconds: float) -> float:
    """Return seconds rounded up to a tenth: who waits so long has waited long enough."""
    return math.ceil(seconds * 10) / 10


def known(plan: Plan | None) -> Plan:
    """Give the plan; RenderLost when there is none any more."""
    if plan is None:
        raise RenderLost("the render cannot be planned again")
    return plan
