"""Pay once: the intent is journaled before a submit, its handle after it, and what is lost sought.

Between any two lines here the process may die: the next one finds the journal as it was left, and
goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial

from . import budget, retry
from .backends import Ask, Lost, Plan, Sought
from .errors import AnswerLost, ImagenError, RenderFailed, RenderLost, ServerFault
from .ledger import Ledger, LedgerBusy, LedgerFault
from .ledger.journal import Intent
from .outcome import Job, place_of, told_before

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

    def submit(self, job: Job) -> str:
        """Send it; after a fault, look for it before sending it once more."""
        job.began = time.monotonic()
        handle = retry.once_more(lambda: self._look_then_send(job), job.backend.retry_s)
        if job.backend.paid and not job.asker.given:  # its drawn id is how to find it again
            self._note(f"{job.record['id']}: a paid render at {job.asked['backend']}")
        return handle

    def adopt(self, job: Job) -> None:
        """Take a render into the journal that a line says was submitted: by another machine."""
        handle = str(job.handle)
        plan = asdict(job.plan) if job.plan else {}
        place = place_of(job.places)
        intent = Intent(job.render_id, job.attempts, job.record, place, plan, handle)
        if self._journal.adopt(intent, job.asker):
            return
        raise RenderFailed(f"{handle} is another id's render", code="handle_taken")

    def _look_then_send(self, job: Job) -> str:
        with self._alone(job):
            return (job.may_have_arrived and self._found(job)) or self._sent(job)

    def _alone(self, job: Job) -> AbstractContextManager[bool]:
        """Let no other submit or search of the same input come between, where they look alike."""
        plan = known(job.plan)
        if plan.handle is not None:
            return nullcontext(True)  # we choose the handle ourselves: it tells them apart
        text = json.dumps(plan.payload, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return self._ledger.lock(f"submit {digest}")  # instances may be of one account

    def _found(self, job: Job) -> str | None:
        """Look for a submit whose answer was lost; None when it is certainly absent."""
        lost = Lost(job.sent_at, partial(self._is_of_another, job))
        for _ in range(_TAKEN):
            try:
                found = job.backend.find(known(job.plan), lost)
            except retry.TRANSIENT as fault:
                fault.billed = "unknown" if job.backend.paid else "no"
                raise
            if found is Sought.ABSENT:
                return None
            if isinstance(found, str) and self._take(job, found):
                return found
            if found is Sought.UNKNOWN:
                break
        billed = "unknown" if job.backend.paid else "no"
        raise AnswerLost(
            "whether the render arrived cannot be told", retry="reconcile", billed=billed
        )

    def _is_of_another(self, job: Job, handle: str) -> bool:
        return bool(self._journal.owners(handle) - {(job.render_id, job.attempts)})

    def _sent(self, job: Job) -> str:
        """Write the intent, send, write the handle."""
        self._before_submit()
        before, number = dict(job.record), job.attempts
        plan_submit(job, number + 1)
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        job.record |= {"attempts": number + 1, "started_at": now}
        job.attempts = number + 1
        try:
            self._intend(job)
        except ImagenError:  # nothing was sent, so there is nothing to look for
            job.attempts, job.record = number, before
            raise
        job.may_have_arrived = True
        try:
            handle = job.backend.submit(known(job.plan))
        except (AnswerLost, ServerFault) as fault:
            fault.billed = "unknown" if job.backend.paid else "no"
            raise
        except ImagenError:  # it was not accepted, so it was no submit
            self._journal.withdraw(job.render_id, job.attempts)
            job.may_have_arrived, job.attempts, job.record = False, number, before
            raise
        if not self._take(job, handle):
            raise RenderFailed(f"the backend gave the handle of another render: {handle}")
        return handle

    def _intend(self, job: Job) -> None:
        plan, backend = known(job.plan), job.backend
        model = str(plan.resolved.get("model", job.asked["backend"]))
        if backend.paid:
            judge = partial(budget.judge, self._caps, plan.cost_usd, model)
            job.sent_at = self._journal.intend(self._intent(job), job.asker, judge)
        else:
            job.sent_at = self._journal.intend(self._intent(job), job.asker)

    def _intent(self, job: Job) -> Intent:
        plan = known(job.plan)
        place = place_of(job.places)
        return Intent(job.render_id, job.attempts, job.record, place, asdict(plan))

    def _take(self, job: Job, handle: str) -> bool:
        """Write the handle; what was paid goes on even when that cannot be written."""
        drawn = known(job.plan).handle != handle  # ours stands in the intent already
        try:
            return self._journal.submitted(job.render_id, job.attempts, handle, synced=drawn)
        except (LedgerFault, LedgerBusy) as fault:
            self._note(f"{fault.message}; the render goes on")
            return True


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


def known(plan: Plan | None) -> Plan:
    """Give the plan; RenderLost when there is none any more."""
    if plan is None:
        raise RenderLost("the render cannot be planned again")
    return plan
