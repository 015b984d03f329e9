"""What a provider says it ran, compared with the ledger. Pure."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ..backends import Ran
from ..ledger.journal import Paid, Submit

COLUMNS = (
    *("problem", "backend", "submit", "created_at", "status", "model", "id", "prompt_hash"),
    *("since", "estimate_usd", "hint"),
)
Problem = dict[str, Any]


class Known(NamedTuple):
    """What is known here.

    The journal's submits by handle, the handles that the cost log has, backend instances by model;
    `is_there` asks for a file, `is_at_work` for the process of a render.
    """

    paid: Mapping[str, Paid]
    logged: Collection[str]
    models: Mapping[str, str]
    is_there: Callable[[str], bool]
    is_at_work: Callable[[str], bool]


def problems(ran: Iterable[Ran], known: Known) -> Iterator[Problem]:
    """Yield what ran and is not recorded, and what was paid and has no file.

    What still runs, and what was never billed, is passed over.
    """
    for one in ran:
        if not one.ended or one.billed == "no":
            continue
        paid = known.paid.get(one.handle)
        if paid is None and one.handle not in known.logged:
            yield _problem("not_recorded", one, {"backend": known.models.get(one.model or "")})
        elif paid and one.billed == "yes" and _lacks_file(paid, known):
            yield _problem("no_file", one, {"backend": paid.backend, "id": paid.id})


def doubts(submits: Iterable[Submit], is_at_work: Callable[[str], bool]) -> Iterator[Problem]:
    """Yield the submits of which nobody knows whether they were billed, with what ends each."""
    for one in submits:
        if one.billed is None and is_at_work(one.render_id):
            continue
        problem = {
            "problem": "in_doubt",
            "backend": one.backend,
            "submit": one.handle,
            "id": one.id,
            "since": one.since,
            "estimate_usd": one.estimate_usd,
            "hint": f"imagen-usage --settle {shlex.quote(one.id)} --billed yes|no",
        }
        yield {name: value for name, value in problem.items() if value is not None}


def _lacks_file(paid: Paid, known: Known) -> bool:
    if not paid.last or paid.state == "failed":
        return True
    if paid.state == "open":
        return not known.is_at_work(paid.render_id)
    files = [one["file"] for one in paid.records if "file" in one]  # what went to stdout has none
    return not all(known.is_there(file) for file in files)


def _problem(problem: str, one: Ran, ours: Mapping[str, str | None]) -> Problem:
    found = {
        "problem": problem,
        "backend": ours["backend"],
        "submit": one.handle,
        "created_at": None if one.created is None else _text(one.created),
        "status": one.status,
        "model": one.model,
        "id": ours.get("id"),
        "prompt_hash": one.prompt and hashlib.sha256(one.prompt.encode()).hexdigest(),
    }
    return {name: value for name, value in found.items() if value is not None}


def _text(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
