"""What a line asks for, judged before anything is done. Pure, but for drawing ids and seeds."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import IdTaken, Refused
from . import naming, record
from .record import DRAWN_SEEDS, MAX_SEED, REQUEST, Record

TOOL = "imagen-render"
Fate = Literal["pass", "collect", "retry", "new"]


@dataclass(slots=True)
class Told:
    """What the command line said, for every line alike."""

    defaults: Record = field(default_factory=dict)
    overrides: Record = field(default_factory=dict)
    default_backend: str | None = None
    seed: int | None = None
    count: int | None = None
    again: bool = False
    out_dir: Path = Path()
    output: str | None = None
    force: bool = False
    strict: bool = False
    timeout_s: float | None = None
    wait_s: float | None = None
    new: bool = False


ASKED = (
    *("prompt", "negative_prompt", "style", "backend", "width", "height", "seed", "steps", "cfg"),
    *("sampler", "scheduler", "options"),
)


class Request(dict[str, Any]):
    """A request as resolved: a record that knows which of its fields nobody said (`drawn`)."""

    def __init__(self, fields: Mapping[str, Any], drawn: Collection[str] = ()) -> None:
        """Take the fields, and which of `id`, `seed` and `backend` were drawn or defaulted."""
        super().__init__(fields)
        self.drawn = frozenset(drawn)

    @property
    def asked(self) -> Record:
        """What was asked, before anything was drawn or defaulted."""
        return {name: self[name] for name in ASKED if name in self and name not in self.drawn}

    @property
    def key(self) -> str:
        """The sha256 of that: the same request has the same."""
        text = json.dumps(self.asked, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()

    def is_of(self, known: str, resolved: Mapping[str, Any]) -> bool:
        """Whether it is the request of that key, or what became of that when it was resolved."""
        became = {name: resolved[name] for name in ASKED if name in resolved}
        return self.key == known or self.asked == became

    def check_same(self, known: str, resolved: Mapping[str, Any]) -> None:
        """Raise IdTaken unless it is that request; a seed that was rounded on the way is named."""
        if self.is_of(known, resolved):
            return
        exact, seed = resolved.get("seed"), self.get("seed")
        request = Request({**self, "seed": exact}, self.drawn)
        if record.is_rounded(seed, exact) and request.is_of(known, resolved):
            raise rounded(seed, exact)
        raise IdTaken(f"the id {self['id']} belongs to another request")


def rounded(seed: Any, exact: Any) -> IdTaken:
    """Return the error for a line whose seed was rounded since its id was first used."""
    says = f"the seed {seed} of the line is rounded: this id was begun with {exact}"
    return IdTaken(says, hint=record.ROUNDED)


def fate(line: Mapping[str, Any], told: Told) -> Fate:
    """Judge what happens to a line: pass it on, collect it, try it again, or make it new."""
    if line.get("members") is not None:
        return "pass"
    if told.again:
        return "new"
    if line.get("pending") is not None and line.get("file") is None:
        return "collect"
    if line.get("file") is not None:
        return "new" if told.count is not None or told.seed is not None else "pass"
    error = line.get("error")
    if error is None:
        return "new"
    ours = isinstance(error, dict) and error.get("tool") == TOOL
    if not ours or error.get("retry") not in ("safe", "after"):
        return "pass"
    changed = any(line.get(name) != value for name, value in told.overrides.items())
    return "new" if changed else "retry"  # another request must not find the old one's render


def requests_of(line: Record, told: Told) -> list[Request]:
    """Give the sound requests that a line stands for: one, or `--count` of them.

    Options fill what the line does not say, and go over what it says with `--again`; `--set` always
    does. Ids and seeds that nobody gave are drawn. A line to be tried again stays the one request
    that it is.
    """
    what = fate(line, told)
    line = {name: value for name, value in line.items() if value is not None or name in REQUEST}
    made = told.again or (what == "new" and ("file" in line or "error" in line))
    asked = record.asked(line, () if made else (*GIVEN, *(_OF_TRIES if what == "retry" else ())))
    if made:
        asked = _anew(asked, told)
    if what != "retry":  # what was tried before is tried again, whatever the options say now
        backend = {"backend": told.default_backend} if told.default_backend else {}
        asked = record.sized(asked)
        if told.again:  # the command line wins
            asked = record.changed(asked, told.defaults)
        asked = record.with_defaults(asked, {**backend, **told.defaults})
    asked = record.checked(record.overridden(asked, told.overrides))
    check_names(asked)
    drawn = {name for name in ("id", "seed") if name not in asked}
    drawn |= {"backend"} - {*_said(line), *told.defaults, *told.overrides}
    base = asked.pop("id", None) or str(uuid.uuid4())
    if told.count is None or what == "retry":
        return [Request({**asked, "id": base, "seed": _seed(asked, 1)}, drawn)]
    first = _seed(asked, told.count)
    if not made:
        asked["request"] = base
    longest = record.FIELDS["id"].schema["maxLength"] - len(f"-{told.count}")
    if len(base) > longest:
        raise Refused(f"id has {len(base)} characters; with --count at most {longest} fit")
    names = (str(uuid.uuid4()) if made else f"{base}-{n + 1}" for n in range(told.count))
    return [Request({**asked, "id": one, "seed": first + n}, drawn) for n, one in enumerate(names)]


def _said(line: Mapping[str, Any]) -> set[str]:
    return {name for name, value in line.items() if value is not None}


GIVEN = ("id", "job", "date", "slug", "request")
_OF_TRIES = ("attempts", "started_at", "error", "render_id", "fidelity")


def _anew(asked: Record, told: Told) -> Record:
    """Turn a finished record's request fields into a new request: the old id becomes `request`."""
    asked = dict(asked)
    if told.seed is not None:
        asked["seed"] = told.seed
    elif told.count is not None:
        asked.pop("seed", None)
    return asked


def _seed(asked: Mapping[str, Any], count: int) -> int:
    drawn = 1 + int.from_bytes(os.urandom(8)) % (DRAWN_SEEDS - count)  # 0 draws at Replicate
    first = int(asked.get("seed", drawn))
    if first + count - 1 > MAX_SEED:
        raise Refused(f"seed {first} and {count - 1} more pass the largest, {MAX_SEED}")
    return first


def check_names(asked: Mapping[str, Any]) -> None:
    """A line may bring the date and slug of its file name; they must be that and nothing else."""
    date, slug = asked.get("date"), asked.get("slug")
    if not isinstance(asked.get("request", ""), str):
        raise Refused("request must be a string")
    if slug is not None and not (isinstance(slug, str) and naming.is_slug(slug)):
        raise Refused("slug must be [a-z0-9-], at most 100 characters")
    if date is not None and not (isinstance(date, str) and naming.is_date(date)):
        raise Refused("date must be YYYY-MM-DD")
