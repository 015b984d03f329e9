"""Find the render that an earlier run of the very same request began and could not hand out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NoReturn

from ..errors import InDoubt
from ..ledger import Entry, Ledger
from ..ledger.journal import Asker
from ..records.request import Request
from .lock_wait import LockWait

NOTICE_S = 1.0  # how long a run may take to notice that it was abandoned, once for each of ours
LOOK_S = 0.05
_ASK_AGAIN_S = 5.0
_LEAST_S = 1.0  # for a run that may be over in a moment, however short our wait is


class StillRunning(Exception):
    """Another run still makes it, and we may not wait longer; `record` is the pending one."""

    def __init__(self, record: dict[str, object]) -> None:
        """Take the record to hand out."""
        self.record = record
        super().__init__()


class EarlierRuns:
    """The renders that earlier runs left, and that living ones are busy with."""

    def __init__(
        self,
        ledger: Ledger,
        seen: set[str],
        wait_s: float | None,
        note: Callable[[str], None],
        tell: Callable[[float, str], None],
    ) -> None:
        """Take the renders that this run has seen to already, and how long it may wait."""
        self._ledger = ledger
        self._journal = ledger.journal
        self._seen = seen
        self._wait_s = wait_s
        self._note = note
        self._tell = tell
        self._patience_s = NOTICE_S
        self._has_warned = False
        self.waited_s = 0.0  # by the last request, for others

    def claim(self, render_id: str, request: Mapping[str, Any], stack: ExitStack) -> None:
        """Hold the lock of a render until the stack ends, as soon as no other run has it.

        StillRunning or InDoubt when that takes longer than we may wait.
        """
        name = str(request.get("id", render_id))
        wait = LockWait(self._ledger, render_id, f"another run of {name}", self._note, self._tell)
        is_held = wait.hold(stack, self._at_least(_LEAST_S))
        self.waited_s = wait.seconds
        if not is_held:
            _stop_waiting(self._journal.entry(render_id), wait, request)

    def take_up(self, request: Request, asker: Asker, stack: ExitStack) -> Entry | None:
        """Claim what an earlier run left, until the stack ends; None when there is nothing.

        A run that was abandoned is waited for. One that lives may not have noticed yet that it
        was, so it is looked at again, for a second in all; then it is left alone.
        """
        waits: dict[str, LockWait] = {}
        while True:
            living = []
            for render_id in self._journal.undelivered(asker):
                if render_id in self._seen:
                    continue
                if entry := self._claimed(render_id, request, stack):
                    self._note(
                        f"{entry.id}: taken up where an earlier run left it (--new declines)"
                    )
                    return entry
                if entry := self._unfinished(render_id, request):  # in the hands of another process
                    living.append(entry)
            if not living or not self._may_wait(living, waits):
                return None
            time.sleep(LOOK_S)

    def _at_least(self, seconds: float) -> float | None:
        return None if self._wait_s is None else max(self._wait_s, seconds)

    def is_in_hands(self, entry: Entry) -> bool:
        """Whether an outer program that lives is about to write its records to the caller."""
        run = entry.delivered_by
        handed_over = entry.state == "done" and run is not None and entry.abandoned_at is None
        return handed_over and self._ledger.is_locked(str(run))

    def _claimed(self, render_id: str, request: Request, stack: ExitStack) -> Entry | None:
        with ExitStack() as attempt:
            if not attempt.enter_context(self._ledger.lock(render_id, wait=False)):
                return None
            entry = self._unfinished(render_id, request)
            if entry is None or self.is_in_hands(entry):
                return None
            self._seen.add(render_id)
            self._ledger.deliveries.take_up(render_id)
            stack.push(attempt.pop_all())
            return entry

    def _unfinished(self, render_id: str, request: Request) -> Entry | None:
        entry = self._journal.entry(render_id)
        if entry is None or entry.id == request.get("request"):
            return None
        return entry if entry.is_in_doubt or not entry.is_over else None

    def _may_wait(self, living: list[Entry], waits: dict[str, LockWait]) -> bool:
        """Whether to look again: for an abandoned run always, for another one only so long."""
        abandoned = next((one for one in living if one.abandoned_at is not None), None)
        if abandoned is not None:
            what = "an earlier run that was abandoned, --new declines"
            wait = waits.setdefault(
                abandoned.render_id,
                LockWait(self._ledger, abandoned.render_id, what, self._note, self._tell),
            )
            if wait.is_over(self._at_least(_LEAST_S * (abandoned.state == "done"))):
                _stop_waiting(abandoned, wait, abandoned.request)
            self.waited_s = wait.seconds
            return True
        self._patience_s -= LOOK_S
        if self._patience_s > 0:
            return True
        if not self._has_warned:
            self._has_warned = True
            self._note(
                f"another run of this request is under way ({living[0].id});"
                " this one makes a second image (hint: give both runs the same --id)"
            )
        return False


def _stop_waiting(entry: Entry | None, wait: LockWait, request: Mapping[str, Any]) -> NoReturn:
    """Raise StillRunning with the pending record, or InDoubt where no handle is known yet."""
    if entry and entry.pending:
        raise StillRunning(entry.pending)
    if "pending" in request:
        raise StillRunning({**request})
    state = entry.state if entry else "open"
    says = {
        "open": "is still sending it",
        "done": "is about to hand it out",
        "failed": "is about to say how it ended",
    }
    record = {**entry.request, "attempts": entry.number} if entry else {**request}
    raise InDoubt(
        f"another run {says[state]} ({wait.holder})",
        billed="no" if entry and entry.plan.get("cost_usd") == 0 else "unknown",
        retry_after_s=_ASK_AGAIN_S,
        hint=wait.hint if wait.is_stopped else None,
        record=record,
    )
