"""End a doubt by hand: somebody says whether a submit was billed, where no program can tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ImagenError, Refused
from ..ledger import Ledger
from ..ledger.journal import Submit

COLUMNS = ("id", "render_id", "backend", "submit", "since", "billed", "cost_usd")
TOOL = "imagen-usage"
_SAYS = {
    "no": "Settled by hand: it was not billed; the same id may be rendered again",
    "yes": "Settled by hand: it was billed, and no image came of it",
}


class Settled(ImagenError):
    """Settled by hand with imagen-usage --settle"""

    code = "settled"


class NotToSettle(Refused):
    """There is nothing to settle"""

    code = "not_to_settle"


def settle(ledger: Ledger, name: str, billed: str) -> list[dict[str, Any]]:
    """Settle the submits of a render, by its id, its render_id or a provider's handle.

    Returns a row for each. NotToSettle when there is none in doubt, or a process is at work on it.
    """
    render_id = _render_of(ledger, name)
    with ledger.lock(render_id, wait=False) as is_free:
        if not is_free:
            raise NotToSettle(
                f"another process is working on {name}", hint="wait for it, or end that process"
            )
        submits = [one for one in _submits(ledger, name) if one.render_id == render_id]
        chosen = [one for one in submits if one.handle == name] or submits
        doubtful = [one for one in chosen if not one.is_settled]
        if not doubtful:
            _check_same(chosen[-1], billed)
        entry = ledger.journal.entry(render_id)
        for one in doubtful:
            ledger.journal.settle(one, billed, _error(billed, entry.error if entry else None))
    return [_row(one, billed) for one in doubtful or chosen[-1:]]


def _render_of(ledger: Ledger, name: str) -> str:
    ids = {one.render_id for one in _submits(ledger, name)}
    if not ids:
        raise NotToSettle(
            f"the ledger knows no submit of {name}",
            hint="imagen-render --resume --dry-run lists what is not settled",
        )
    if len(ids) > 1:
        raise NotToSettle(
            f"{len(ids)} renders are called {name}", hint=f"name one: {', '.join(sorted(ids))}"
        )
    return ids.pop()


def _submits(ledger: Ledger, name: str) -> list[Submit]:
    return ledger.journal.submits(name, ledger.render_id(name))


def _check_same(submit: Submit, billed: str) -> None:
    """Refuse to change what is settled; to say the same once more is no fault."""
    if submit.last and submit.state == "done":
        raise NotToSettle(f"{submit.id} is done, nothing of it is in doubt")
    if submit.billed != billed:
        raise NotToSettle(f"{submit.id} is settled already, as billed: {submit.billed}")


def _error(billed: str, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the error of a render that was settled: why it had failed stays readable."""
    facts = {"billed": billed, "retry": "safe" if billed == "no" else "never"}
    hint = None if billed == "no" else "--again pays for a new one"
    says = _SAYS[billed]
    if before:
        says = f"{before['message']}; {says[0].lower()}{says[1:]}"
    return Settled(says, hint=hint, **facts).as_record(TOOL)


def _row(submit: Submit, billed: str) -> dict[str, Any]:
    cost = submit.estimate_usd if billed == "yes" else 0.0
    values = (submit.id, submit.render_id, submit.backend, submit.handle, submit.since)
    return dict(zip(COLUMNS, (*values, billed, cost), strict=True))
