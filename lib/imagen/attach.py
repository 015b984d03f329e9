"""Find the render that an earlier run of the very same request began and could not hand out."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

from .errors import InDoubt
from .ledger import Entry, Ledger
from .ledger.journal import Asker
from .request import Request

NOTICE_S = 1.0  # how long a run may take to notice that it was abandoned, once for each of ours
LOOK_S = 0.05
_ASK_AGAIN_S = 5.0


class StillRunning(Exception):
    """An abandoned run still makes it, and we may not wait longer; `record` is the pending one."""

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

    def take_up(self, request: Request, asker: Asker, stack: ExitStack) -> Entry | None:
        """Claim what an earlier run left, until the stack ends; None when there is nothing.

        A run that was abandoned is waited for. One that lives may not have noticed yet that it
        was, so it is looked at again, for a second in all; then it is left alone.
        """
        began = time.monotonic()
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
            if not living or not self._may_wait(living, time.monotonic() - began):
                return None
            time.sleep(LOOK_S)

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

    def _may_wait(self, living: list[Entry], waited_s: float) -> bool:
        """Whether to look again: for an abandoned run always, for another one only so long."""
        abandoned = next((one for one in living if one.abandoned_at is not None), None)
        if abandoned is not None:
            self._tell(waited_s, "waiting for an earlier run that was abandoned (--new declines)")
            if self._wait_s is not None and waited_s >= self._wait_s:
                _stop_waiting(abandoned)
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


def _stop_waiting(abandoned: Entry) -> None:
    """Raise StillRunning, or InDoubt where no handle is known yet; what is done ends soon."""
    if abandoned.pending:
        raise StillRunning(abandoned.pending)
    if abandoned.state == "open":
        says = "an earlier run that was abandoned is still sending it"
        request = {**abandoned.request, "attempts": abandoned.number}
        raise InDoubt(says, retry_after_s=_ASK_AGAIN_S, record=request)
