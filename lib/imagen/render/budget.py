"""Spend caps: whether one more submit may be paid. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import Refused
from ..ledger.spending import Reservation, Spent

CAPS = ("per_render", "per_day", "per_month", "per_caller")
SETTLE = "imagen-usage --settle ID --billed yes|no"


class OverBudget(Refused):
    """The budget does not allow it"""

    code = "over_budget"
    hint = "raise budget in the configuration, or wait"


class Unpriced(Refused):
    """Nobody knows what it costs, and a budget is set"""

    code = "unpriced"
    hint = "give its price under prices in the configuration (docs/reference/ledger.md)"


@dataclass(frozen=True, slots=True)
class Caps:
    """USD, None for no cap: of one submit, of a day and a month (UTC), of one caller a day.

    `file` is the configuration file that they stand in.
    """

    per_render: float | None = None
    per_day: float | None = None
    per_month: float | None = None
    per_caller: float | None = None
    file: str = "the configuration"

    @classmethod
    def of(cls, config: Mapping[str, float | None], file: Path | None = None) -> Caps:
        """Read them from the configuration's values by dotted key."""
        render, day, month, caller = (config[f"budget.{name}"] for name in CAPS)
        return cls(render, day, month, caller, str(file) if file else cls().file)

    @property
    def any(self) -> bool:
        """Whether there is a cap at all."""
        return any(getattr(self, name) is not None for name in CAPS)


class Window(NamedTuple):
    """A cap on the sum of a time: its key, its sum so far, when the sum begins anew (UTC)."""

    key: str
    name: str
    cap: float
    total: float
    reserved: tuple[Reservation, ...]
    opens: datetime

    @property
    def reserved_usd(self) -> float:
        """Return how much of the sum is reserved by submits that are not resolved."""
        return math.fsum(one.usd for one in self.reserved)


def windows(caps: Caps, spent: Spent) -> Iterator[Window]:
    """Yield the caps on the sums of a day and a month, with what counts against each."""
    now = datetime.fromtimestamp(spent.now, UTC)
    rows: tuple[tuple[str, str, float, tuple[Reservation, ...], Reset], ...] = (
        ("per_day", "day", spent.day, spent.reserved, _tomorrow),
        ("per_caller", "caller's day", spent.caller, spent.of_caller, _tomorrow),
        ("per_month", "month", spent.month, spent.reserved, _next_month),
    )
    for key, name, amount, reserved, reset in rows:
        cap = getattr(caps, key)
        if cap is not None:
            yield Window(key, name, cap, amount, reserved, reset(now))


def rows(caps: Caps, spent: Spent, caller: str) -> Iterator[dict[str, Any]]:
    """Yield what is spent, reserved and left of each cap, as imagen-usage --budget prints it."""
    if caps.per_render is not None:
        cap = float(caps.per_render)
        row = {"cap": "per_render", "limit_usd": cap, "left_usd": cap}
        yield {name: row.get(name) for name in COLUMNS}
    for window in windows(caps, spent):
        reserved = window.reserved_usd
        oldest = window.reserved[0].since if window.reserved else None
        row = {
            "cap": window.key,
            "caller": caller if window.key == "per_caller" else None,
            "limit_usd": float(window.cap),
            "spent_usd": round(max(window.total - reserved, 0.0), 9),
            "reserved_usd": round(reserved, 9),
            "left_usd": round(max(window.cap - window.total, 0.0), 9),
            "resets_at": _time(window.opens.timestamp()),
            "reserved_since": None if oldest is None else _time(oldest),
        }
        yield {name: row.get(name) for name in COLUMNS}


COLUMNS = (
    *("cap", "caller", "limit_usd", "spent_usd", "reserved_usd", "left_usd"),
    *("resets_at", "reserved_since"),
)


def _time(at: float) -> str:
    text = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
    return text.replace("+00:00", "Z")


def judge(caps: Caps, estimate: float | None, model: str, spent: Spent) -> None:
    """Raise OverBudget, or Unpriced, when a submit of this estimate may not be paid."""
    if not caps.any or estimate == 0:
        return
    if estimate is None:
        raise Unpriced(f"the price of {model} is not known, and a budget is set")
    if caps.per_render is not None and _over(estimate, caps.per_render):
        raise OverBudget(
            f"over the budget of one render: it costs {usd(estimate)},"
            f" the cap is {usd(caps.per_render)}",
            hint=f"raise budget.per_render in {caps.file}, or ask for less",
        )
    over = [
        _refusal(window, estimate, caps.file, spent.now)
        for window in windows(caps, spent)
        if _over(window.total + estimate, window.cap)
    ]
    if over:  # the one that lets it through last
        raise max(over, key=lambda fault: fault.retry_after_s or math.inf)


def _refusal(window: Window, estimate: float, file: str, now: float) -> OverBudget:
    """Say what fills the cap, when there is room again, and what to do about it."""
    message = (
        f"over the budget of the {window.name}: {usd(window.total)} of {usd(window.cap)} are spent"
        f" or reserved, this costs {usd(estimate)}"
    )
    hint = f"raise budget.{window.key} in {file}"
    if _over(estimate, window.cap):
        return OverBudget(message, hint=f"{hint}, or ask for less")
    wait = window.opens.timestamp() - now
    day = "" if window.key != "per_month" else f"on {window.opens:%Y-%m-%d} "
    opens = f"it opens again {day}at 00:00 UTC, in {lasting(wait)}"
    if window.reserved:
        message += f"; {usd(window.reserved_usd)} of it is reserved by {unfinished(window, now)}"
        settle = f"imagen-render --resume finishes what is reserved, {SETTLE} ends it by hand"
        hint = f"{settle}; or {hint}"
        if _over(window.reserved_usd + estimate, window.cap):
            opens = "it opens again once that is settled"
    else:
        hint = f"{hint}, or wait"
    facts = {"retry": "after", "retry_after_s": float(math.ceil(wait))}
    return OverBudget(f"{message}; {opens}", hint=hint, **facts)


def unfinished(window: Window, now: float) -> str:
    """Name the renders that reserve a part of a cap, by id those begun on an earlier day."""
    many = len(window.reserved)
    text = f"{many} unfinished render{'s' if many > 1 else ''}"
    old = stale(window.reserved, now)
    if not old:
        return text
    names = ", ".join(f"{one.id} of {lasting(now - one.since)} ago" for one in old[:_NAMED])
    more = f" and {len(old) - _NAMED} more" if len(old) > _NAMED else ""
    return f"{text} ({names}{more})"


def stale(reserved: Sequence[Reservation], now: float) -> list[Reservation]:
    """Return the reservations of earlier days, which fill the caps of each day."""
    today = datetime.fromtimestamp(now, UTC).date()
    return [one for one in reserved if datetime.fromtimestamp(one.since, UTC).date() < today]


def lasting(seconds: float) -> str:
    """Return a time in its two largest units: 24 min, 12 h 24 min, 7 d 12 h."""
    minutes = max(math.ceil(seconds / 60), 1)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    units = [(days, "d"), (hours, "h"), (minutes, "min")]
    first = next(at for at, (amount, _) in enumerate(units) if amount)
    return " ".join(f"{amount} {unit}" for amount, unit in units[first : first + 2] if amount)


def usd(amount: float) -> str:
    """Return an amount for people, to a billionth of a dollar, with two places at least."""
    return f"${amount:.9f}".rstrip("0").ljust(len(f"${amount:.2f}"), "0")


_NAMED = 3  # renders in one message
Reset = Callable[[datetime], datetime]


def _over(amount: float, cap: float) -> bool:
    return amount > cap + 1e-9  # sums of cents are not exact


def _tomorrow(now: datetime) -> datetime:
    return now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def _next_month(now: datetime) -> datetime:
    first = _tomorrow(now.replace(day=1))  # the second day, at midnight
    return (first + timedelta(days=31)).replace(day=1)
