"""A comparison in the ledger: begun, taken up where an earlier run left it, finished."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from ..errors import InDoubt, Interrupted
from ..ledger import Comparison, Ledger
from ..ledger.journal import Asker
from ..records.record import Record
from ..records.request import Request
from .attach import LOOK_S, NOTICE_S
from .lock_wait import LockWait

_ASK_AGAIN_S = 5.0
_CHOSEN = ("seed", "backend", "id")  # by --seeds, --backends and --id


class Question(NamedTuple):
    """What is to be compared: the id, if somebody gave one, the digest, and what was drawn."""

    id: str | None
    asker: Asker
    seeds: list[int]
    new_folder: Callable[[int], Path]  # for the first seed


def digest(request: Request, backends: Sequence[str], seeds: Sequence[int] | None) -> str:
    """Return the sha256 of what was asked, before anything was drawn."""
    fields = {name: value for name, value in request.asked.items() if name not in _CHOSEN}
    text = json.dumps([fields, list(backends), seeds and list(seeds)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Comparisons:
    """Begins comparisons, or goes on with those that earlier runs left unfinished."""

    def __init__(
        self, ledger: Ledger, note: Callable[[str], None], wait_s: float | None = None
    ) -> None:
        """Take the ledger, who is told what is taken up, and how long another run is waited for."""
        self._ledger = ledger
        self._rows = ledger.comparisons
        self._note = note
        self._wait_s = wait_s

    def claim(self, question: Question, new: bool, stack: ExitStack) -> tuple[Comparison, bool]:
        """Hold a comparison until the stack ends; gives it, and whether it was taken up."""
        seeds = question.seeds
        if question.id is not None:
            earlier = self._rows.with_id(question.id, question.asker.asked)
            if earlier and (unfinished := self._lock(earlier, stack, self._wait_for(earlier))):
                return unfinished, True
            seeds = earlier.seeds if earlier else seeds
        elif not new and (unfinished := self._take_up_unfinished(question.asker, stack)):
            return unfinished, True
        return self._begin(question, seeds, stack), False

    def _begin(self, question: Question, seeds: list[int], stack: ExitStack) -> Comparison:
        run, name = str(uuid.uuid4()), question.id or str(uuid.uuid4())
        stack.enter_context(self._ledger.lock(run))
        comparison = Comparison(run, name, seeds, str(question.new_folder(seeds[0]).absolute()))
        self._rows.begin(comparison, question.asker)
        return comparison

    def _take_up_unfinished(self, asker: Asker, stack: ExitStack) -> Comparison | None:
        """Claim what an earlier run left; as `EarlierRuns` does it for one render."""
        patience_s = NOTICE_S
        waits: dict[str, LockWait] = {}
        while True:
            living = self._rows.unfinished(asker)
            for one in living:
                if unfinished := self._lock(one, stack):
                    self._note(f"{one.id}: taken up where an earlier run left it (--new declines)")
                    return unfinished
            if not living:
                return None
            if abandoned := next((one for one in living if one.abandoned_at is not None), None):
                wait = waits.setdefault(abandoned.run, self._wait_for(abandoned))
                if wait.is_over(self._wait_s):
                    raise _still_running(wait)
            else:
                patience_s -= LOOK_S
                if patience_s <= 0:
                    break
            time.sleep(LOOK_S)
        self._note(
            f"another run of this comparison is under way ({living[0].id});"
            " this one starts a second comparison (hint: give both runs the same --id)"
        )
        return None

    def _wait_for(self, comparison: Comparison) -> LockWait:
        what = f"another run of the comparison {comparison.id}"
        return LockWait(self._ledger, comparison.run, what, self._note)

    def _lock(
        self, comparison: Comparison, stack: ExitStack, wait: LockWait | None = None
    ) -> Comparison | None:
        with ExitStack() as attempt:
            if wait and not wait.hold(attempt, self._wait_s):
                raise _still_running(wait)
            if wait or attempt.enter_context(self._ledger.lock(comparison.run, wait=False)):
                unfinished = self._rows.entry(comparison.run)
                if unfinished and not unfinished.finished:
                    self._rows.take_up(comparison.run)
                    stack.push(attempt.pop_all())
                    return unfinished
        return None

    def is_open(self, member: str) -> bool:
        """Whether a member's render may still be going on."""
        return self._ledger.journal.is_open(self._ledger.render_id(member))

    def record_of(self, member: Record) -> Record:
        """Return the record of a member whose render was interrupted and gave none."""
        entry = self._ledger.journal.entry(self._ledger.render_id(member["id"]))
        if entry and entry.state == "done" and entry.records:
            return entry.records[0]
        if entry and entry.pending:
            return entry.pending
        billed = "unknown" if entry else "no"
        fault = Interrupted("interrupted; run it again to finish it", billed=billed)
        return {**member, "error": fault.as_record("imagen-compare")}

    def finish(self, run: str) -> None:
        """Journal that all members were written to the caller."""
        self._rows.finish(run)


def _still_running(wait: LockWait) -> InDoubt:
    hint = wait.hint if wait.is_stopped else "run the same command again later"
    says = f"another run is making this comparison ({wait.holder}); nothing was sent"
    return InDoubt(says, retry_after_s=_ASK_AGAIN_S, hint=hint)
