"""The cost log: what a record's submit cost, times of asking, and sums. Pure."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from ..errors import Refused, UsageFault
from ..ledger.usage import usage_id
from ..records.record import FIELDS, MAX_SEED, Record, canonical_uuid

RENDER = "imagen-render"
KEYS = ("backend", "model", "caller", "day")
SUMS = ("renders", "cost_usd", "unpriced", "latency_p50_ms")
Row = dict[str, Any]
_MOST_USD = 10**6  # what numeric(12, 6) holds
_MOST_MS = 2**63 - 1
_MOST_TEXT = 1000

# -- a record's row --------------------------------------------------------------------------------


def row_of(record: Record, caller: Callable[[], str], now: datetime) -> Row | None:
    """Give the row of the submit that a record came of; None when there is none to be logged.

    Refused when it cannot be told whose cost it is, or what it cost.
    """
    if not _is_over(record):
        return None
    backend, submit = _named(record, "backend"), _named(record, "submit")
    prompt = record.get("prompt")
    if not isinstance(prompt, str):
        raise Refused("no prompt, whose hash the cost log holds")
    return {
        "usage_id": usage_id(backend, submit),
        "created_at": _moment(record.get("started_at")) or stamp(now),
        "backend": backend,
        "model": _text(record.get("model")),
        "seed": _whole(record.get("seed"), MAX_SEED),
        "prompt_hash": hashlib.sha256(prompt.encode()).hexdigest(),
        "latency_ms": _whole(record.get("latency_ms"), _MOST_MS),
        "cost_usd_estimate": _cost(record),
        "caller": _text(record.get("caller")) or caller(),
        "render_id": canonical_uuid(str(record.get("render_id"))),
        "submit": submit,
    }


def _is_over(record: Record) -> bool:
    """Whether it was submitted, and its cost will not change.

    An error of render after which the same submit is collected by the next run is not the end.
    """
    if record.get("submit") is None or record.get("members") is not None:
        return False
    if record.get("file") is not None:
        return True
    error = record.get("error")
    if isinstance(error, dict) and error.get("tool") == RENDER:
        return error.get("billed") == "no" or error.get("retry") not in ("safe", "after")
    made = isinstance(record.get("sha256"), str)  # an image that went to stdout is in no file
    return made and error is None and record.get("pending") is None


def _named(record: Record, name: str) -> str:
    value, most = record.get(name), FIELDS[name].schema["maxLength"]
    if value is None:
        raise Refused(f"no {name}: whose cost it is cannot be told")
    if not isinstance(value, str) or not 0 < len(value) <= most or "\0" in value:
        raise Refused(f"{name} must be a text of 1 to {most} characters, without NUL")
    return value


def _text(value: Any) -> str | None:
    sound = isinstance(value, str) and value and "\0" not in value
    return str(value)[:_MOST_TEXT] if sound else None


def _whole(value: Any, most: int) -> int | None:
    sound = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
    return value if sound else None


def _cost(record: Record) -> float | None:
    """Give what it cost; None when nobody knows, 0 when it failed and was not billed."""
    cost = record.get("cost_usd")
    if cost is None:
        error = record.get("error")
        unbilled = record.get("file") is None and isinstance(error, dict)
        return 0.0 if unbilled and error and error.get("billed") == "no" else None
    if isinstance(cost, bool) or not isinstance(cost, (int, float)) or not 0 <= cost < _MOST_USD:
        raise Refused(f"cost_usd must be a number from 0 to {_MOST_USD}, not {str(cost)[:40]}")
    return float(cost)


# -- rows of Supabase ------------------------------------------------------------------------------


def for_supabase(row: Row) -> Row:
    """Give a row as its table names the columns."""
    return {"id" if name == "usage_id" else name: value for name, value in row.items()}


def of_supabase(row: Row, columns: Sequence[str]) -> Row:
    """Give a row of the table as the ledger has it; its time in our form."""
    cost = row.get("cost_usd_estimate")
    found = {
        **row,
        "usage_id": row.get("id"),
        "created_at": _moment(row.get("created_at")),
        "cost_usd_estimate": None if cost is None else float(cost),
    }
    return {name: found.get(name) for name in columns}


# -- times -----------------------------------------------------------------------------------------


def stamp(at: datetime) -> str:
    """Give a time as the cost log has it: ISO 8601 in UTC with milliseconds, comparable as text."""
    text = at.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def asked_time(option: str, said: str | None, now: datetime) -> str | None:
    """Read a day, a time or an age (7d, 24h, 2w); what names no zone is in UTC."""
    if said is None:
        return None
    age = re.fullmatch(r"(\d{1,7})([hdw])", said, re.ASCII)
    try:
        if age:
            return stamp(now - timedelta(hours=int(age[1]) * _HOURS[age[2]]))
        found = datetime.fromisoformat(said)
        return stamp(found if found.tzinfo else found.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise UsageFault(
            f"{option}: no time: {said[:40]!r}",
            hint="2026-11-23, 2026-11-23T18:00, or an age: 24h, 7d, 2w",
        ) from None


_HOURS = {"h": 1, "d": 24, "w": 7 * 24}


def _moment(text: Any) -> str | None:
    try:
        found = datetime.fromisoformat(text)
        return stamp(found if found.tzinfo else found.replace(tzinfo=UTC))
    except (TypeError, ValueError, OverflowError):
        return None


# -- sums ------------------------------------------------------------------------------------------


def asked_keys(said: str) -> list[str]:
    """Read the keys to group by; UsageFault names one that is none."""
    keys = [one.strip() for one in said.split(",") if one.strip()]
    for one in keys:
        if one not in KEYS:
            raise UsageFault(f"--by: no key {one[:40]!r}", hint=f"known: {', '.join(KEYS)}")
    return list(dict.fromkeys(keys))


class Tally:
    """Sums of some rows; what nobody priced is counted, and no part of the sum."""

    def __init__(self) -> None:
        """Begin with none."""
        self.renders = self.unpriced = 0
        self._costs: list[float] = []
        self._latencies: list[int] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row."""
        cost, latency = row["cost_usd_estimate"], row["latency_ms"]
        self.renders += 1
        self.unpriced += cost is None
        if cost is not None:
            self._costs.append(cost)
        if latency is not None:
            self._latencies.append(latency)

    def sums(self) -> Row:
        """Give them; the cost is None when none of it is known."""
        known = self._costs or not self.renders
        return {
            "renders": self.renders,
            "cost_usd": round(math.fsum(self._costs), 6) if known else None,
            "unpriced": self.unpriced,
            "latency_p50_ms": _middle(self._latencies),
        }


def _middle(values: Sequence[int]) -> int | None:
    return sorted(values)[(len(values) - 1) // 2] if values else None


def groups(rows: Iterable[Row], by: Sequence[str]) -> tuple[list[Row], Row]:
    """Sum rows up by keys; gives the groups in order of their keys, and the sums of all."""
    found: dict[tuple[Any, ...], Tally] = {}
    total = Tally()
    for row in rows:
        key = tuple(str(row["created_at"])[:10] if one == "day" else row[one] for one in by)
        found.setdefault(key, Tally()).add(row)
        total.add(row)
    ordered = sorted(found, key=lambda key: [(one is None, str(one)) for one in key])
    made = [{**dict(zip(by, key, strict=True)), **found[key].sums()} for key in ordered]
    return made, total.sums()
