"""What comes of a render, as its record says it: made, pending, compared with the plan. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from ..backends import Backend, Collected, Plan
from ..errors import Refused
from ..files import reservations
from ..images import codec
from ..ledger.journal import Asker
from ..records import record, styles
from ..records.record import Record
from .settling import Sending, read_time


@dataclass(slots=True)
class Job:
    """A render under way: what was asked, and what is known so far.

    `attempts` is the number of the last submit, `sending` when that may have been sent;
    `is_handle_written` is false where the journal could not be written when the handle came;
    `taken_up` says that an earlier run began it, `was_made` that one made it; `places` are the
    names reserved for its images.
    """

    asked: Record
    record: Record
    backend: Backend
    render_id: str
    prompts: styles.Prompts
    asker: Asker
    attempts: int = 0
    plan: Plan | None = None
    handle: str | None = None
    places: list[reservations.Place] = field(default_factory=list)
    made: list[Record] = field(default_factory=list)
    may_have_arrived: bool = False
    taken_up: bool = False
    was_made: bool = False
    finished: bool = False
    is_handle_written: bool = True
    sending: Sending | None = None
    began: float = field(default_factory=time.monotonic)


def most_pixels(plan: Plan | None) -> int:
    """An image may be upscaled, but not without end: it is decoded in memory."""
    planned = plan.resolved if plan else {}
    return max(16 * int(planned.get("width", 0)) * int(planned.get("height", 0)), 2**26)


def checked_pending(pending: Any) -> Record:
    """Give a line's `pending` when it names what can be collected; Refused otherwise."""
    names = ("backend", "handle", "since")
    if not isinstance(pending, dict) or not all(isinstance(pending.get(n), str) for n in names):
        raise Refused("pending must hold the strings backend, handle and since")
    return pending


def told_before(asked: Mapping[str, Any]) -> Record:
    """Give what a line that comes back soundly says of its plan; settings may have changed."""
    told = {name: asked[name] for name in _TOLD if isinstance(asked.get(name), str)}
    if read_time(told.get("started_at")) is None:
        told.pop("started_at", None)
    fidelity = asked.get("fidelity")
    if isinstance(fidelity, dict) and fidelity and all(_is_sound(*one) for one in fidelity.items()):
        told["fidelity"] = fidelity
    return told


def sound(asked: Mapping[str, Any]) -> Record:
    """Give a line with only what is sound of that."""
    rest = {name: value for name, value in asked.items() if name not in (*_TOLD, "fidelity")}
    return rest | told_before(asked)


_TOLD = ("model", "workflow", "started_at")
_CHANGE = {"approximated": ("asked", "got"), "dropped": ("asked",)}


def _is_sound(kind: str, changes: Any) -> bool:
    """Whether it is what fidelity may hold under this name: objects with field, why and more."""
    if kind not in _CHANGE or not isinstance(changes, list):
        return False
    return all(
        isinstance(one, dict)
        and all(isinstance(one.get(name), str) for name in ("field", "why"))
        and all(name in one for name in _CHANGE[kind])
        for one in changes
    )


def prompts_sent(line: Mapping[str, Any]) -> styles.Prompts:
    """Give the prompts as they were sent: the style may have changed, or gone, since."""
    sent, negative = line.get("sent_prompt"), line.get("sent_negative_prompt")
    return styles.Prompts(
        sent if isinstance(sent, str) else line["prompt"],
        negative if isinstance(negative, str) else line.get("negative_prompt"),
    )


def attempts(line: Mapping[str, Any]) -> int:
    """Give how often a line that comes back was submitted; 0 when it does not soundly say."""
    said = line.get("attempts")
    return said if isinstance(said, int) and 0 < said < 1000 else 0


def changes(fidelity: Mapping[str, Any]) -> str:
    """Give what is approximated and dropped, for people; nothing when all is met."""
    met = fidelity.get("approximated", [])
    texts = [f"{one['field']} {one['got']} for {one['asked']} ({one['why']})" for one in met]
    lost = fidelity.get("dropped", [])
    return "; ".join([*texts, *(f"{one['field']} is dropped ({one['why']})" for one in lost)])


def pending(job: Job, handle: str) -> Record:
    """Give the record of a render that we stopped waiting for."""
    before = job.record.get("pending", {})
    since = before.get("since") or job.record["started_at"]
    where = {"backend": job.asked["backend"], "handle": handle, "since": since}
    return {**job.record, "attempts": job.attempts or 1, "pending": where}


def place_of(places: Sequence[reservations.Place]) -> Record:
    """Give the place of the first image as the journal keeps it; nothing when it goes nowhere."""
    if not places:
        return {}
    place = places[0]
    kept = {"stem": place.stem, "suffix": place.suffix, "asked_for": place.asked_for}
    return {"folder": str(place.folder), **kept}


def brought(line: Mapping[str, Any]) -> Record:
    """Give what a line that comes back adds to what is known of its render."""
    ours = {"job", "owner_user_id"}
    return {name: one for name, one in line.items() if name not in record.FIELDS or name in ours}


def name(job: Job, number: int) -> str:
    """Return the id of the nth image of a submit: id, id.2, id.3, …."""
    return str(job.asked["id"]) if number == 1 else f"{job.asked['id']}.{number}"


def part_of(line: Mapping[str, Any], render: str) -> int | None:
    """Return which image of a render a line is about, from 2 on; None when it is the render's."""
    name = str(line.get("id"))
    number = name.removeprefix(f"{render}.")
    if name == number or not re.fullmatch("[1-9][0-9]{0,5}", number, re.ASCII):
        return None
    return int(number) if int(number) > 1 else None


def number_of(line: Mapping[str, Any], render: str) -> int:
    """Return which image of a render a record is about, from 1 on."""
    return part_of(line, render) or 1


def submit_of(records: Sequence[Mapping[str, Any]], number: int) -> str | None:
    """Return the handle of a render's submit of that number, of which these are images."""
    handles = (one.get("submit") for one in records if one.get("attempts") == number)
    return next((one for one in handles if isinstance(one, str)), None)


def first_missing(job: Job, records: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of the first image of the submit that is not among these records."""
    names = {one["id"] for one in records}
    return next(number for number in count(1) if name(job, number) not in names)


def made(job: Job, collected: Collected, number: int, total: int) -> Record:
    """Give the record of one image, but for what its bytes say."""
    waited = job.taken_up or job.record.get("pending") is not None
    found = {key: value for key, value in job.record.items() if key not in ("pending", "error")}
    found |= {"id": name(job, number), "submit": job.handle}
    run_ms = collected.run_ms
    latency = run_ms if waited else total  # how long a pending one lay about is not the backend's
    if latency is not None:
        found["latency_ms"] = latency
    if run_ms is not None and not waited:
        found["queue_ms"] = max(total - run_ms, 0)
    cost = job.plan.cost_usd if job.plan else None
    cost = cost if collected.cost_usd is None else collected.cost_usd
    if cost is not None:
        found["cost_usd"] = cost if number == _number_with_cost(collected) else 0
    found["attempts"] = job.attempts or 1
    found["backend_meta"] = {"seed_used": found["seed"], **collected.meta}
    if isinstance(used := collected.meta.get("seed_used"), int):
        found["seed"] = used
    return found


def _number_with_cost(collected: Collected) -> int:
    """Return the number of the image whose record has the cost: the first that can still be had."""
    comes = collected.fault is not None and not collected.fault.ends
    return 1 if comes else min(collected.numbers, default=1)


def compare(made: Record, picture: codec.Picture, plan: Plan | None) -> None:
    """Put the real size into the record, and say where it is not the planned one."""
    changes = []
    for name, got in (("width", picture.width), ("height", picture.height)):
        planned = plan.resolved.get(name) if plan else None
        if planned not in (None, got):
            changes.append(
                {"field": name, "asked": planned, "got": got, "why": "the image came back so"}
            )
        made[name] = got
    if changes:
        before = made.get("fidelity", {})
        made["fidelity"] = {**before, "approximated": [*before.get("approximated", []), *changes]}
    if picture.flat:
        made["warnings"] = ["flat"]
