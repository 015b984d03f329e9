"""A fair comparison: who is asked what, what came of it, and the page that shows it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import RenderFailed, UsageFault
from ..records.record import Record
from .layout import PRIVATE

PAGE = Path(__file__).parents[1] / "data" / "compare.html"
LABEL = "backend,seed,model,latency_ms,cost_usd,fidelity"


class Turn(NamedTuple):
    """One render of a comparison: the backend, the seed, its id, and its file's name."""

    backend: str
    seed: int
    id: str
    file: str


def turns(name: str, backends: Sequence[str], seeds: Sequence[int]) -> Iterator[Turn]:
    """Yield the turns: all seeds of a backend before the next one, so that models load once."""
    for backend in backends:
        for seed in seeds:
            yield Turn(backend, seed, f"{name}-{backend}-{seed}", f"{backend}-{seed}.png")


def words(text: str, option: str) -> list[str]:
    """Give the words of an option that takes several, a,b,c; each once."""
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found or len(set(found)) != len(found):
        raise UsageFault(f"{option} takes names, each once: a,b,c, not {text[:60]!r}")
    return found


def unanswered(turn: Turn, request: Record, status: int) -> Record:
    """Give the record of a turn whose render ended without one: killed, or refused to start."""
    fault = RenderFailed(f"imagen-render ended with {status} and gave no record", billed="unknown")
    return {**member(turn, request), "error": fault.as_record("imagen-compare")}


def member(turn: Turn, request: Record) -> Record:
    """Return the request that a turn sends."""
    return {**request, "id": turn.id, "backend": turn.backend, "seed": turn.seed}


def summary(
    name: str, request: Record, asked: Sequence[Turn], made: Sequence[Record]
) -> dict[str, Any]:
    """Give what compare.json holds: the request, each member's record or error, and totals.

    Times are ms; `cost_usd` is the sum of the known prices, `unpriced` counts the others.
    """
    done = [one for one in made if "file" in one and "error" not in one]
    return {
        "id": name,
        "request": request,
        "backends": list(dict.fromkeys(turn.backend for turn in asked)),
        "seeds": list(dict.fromkeys(turn.seed for turn in asked)),
        "members": list(made),
        "totals": {
            "asked": len(asked),
            "done": len(done),
            "failed": sum("error" in one for one in made),
            "latency_ms": sum(one.get("latency_ms", 0) for one in done),
            "queue_ms": sum(one.get("queue_ms", 0) for one in done),
            **prices(done),
        },
    }


def prices(made: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Give the sum of the known prices, and how many have none."""
    known = [one["cost_usd"] for one in made if isinstance(one.get("cost_usd"), (int, float))]
    return {"cost_usd": round(sum(known), 6), "unpriced": len(made) - len(known)}


def page(found: Mapping[str, Any]) -> bytes:
    """Give compare.html: the template with the summary as data, which no text in it can leave.

    Seeds are text there: JavaScript rounds numbers from 2^53. What is private is left out: a page
    is made to be shown.
    """
    members = [{**_public(one), "seed": str(one.get("seed"))} for one in found["members"]]
    for one in members:
        if "file" in one:
            one["file"] = Path(one["file"]).name
    shown = {
        **found,
        "request": _public(found["request"]),
        "seeds": [str(seed) for seed in found["seeds"]],
        "members": members,
    }
    data = json.dumps(shown, ensure_ascii=True)
    safe = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return PAGE.read_bytes().replace(b'"DATA"', safe.encode())


def _public(one: Mapping[str, Any]) -> Record:
    return {name: value for name, value in one.items() if name not in (*PRIVATE, "cloud")}
