"""Spend caps: whether one more submit may be paid. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from .errors import Refused
from .ledger.spend import Spent


class OverBudget(Refused):
    """The budget does not allow it"""

    code = "over_budget"
    hint = "raise budget in the configuration, or wait"


class Unpriced(Refused):
    """Nobody knows what it costs, and a budget is set"""

    code = "unpriced"
    hint = "give its price under prices in the configuration (docs/ledger.md)"


class Caps(NamedTuple):
    """USD, None for no cap: of one submit, of a day and a month (UTC), of one caller a day."""

    per_render: float | None = None
    per_day: float | None = None
    per_month: float | None = None
    per_caller: float | None = None

    @classmethod
    def of(cls, config: Mapping[str, float | None]) -> Caps:
        """Read them from the configuration's values by dotted key."""
        return cls(*(config[f"budget.{name}"] for name in cls._fields))

    @property
    def any(self) -> bool:
        """Whether there is a cap at all."""
        return any(cap is not None for cap in self)


def judge(caps: Caps, estimate: float | None, model: str, spent: Spent) -> None:
    """Raise OverBudget, or Unpriced, when a submit of this estimate may not be paid."""
    if not caps.any or estimate == 0:
        return
    if estimate is None:
        raise Unpriced(f"the price of {model} is not known, and a budget is set")
    if caps.per_render is not None and _over(estimate, caps.per_render):
        raise OverBudget(
            f"over the budget of one render: it costs {_usd(estimate)},"
            f" the cap is {_usd(caps.per_render)}",
            hint="raise budget.per_render in the configuration, or ask for less",
        )
    windows = (
        ("day", caps.per_day, spent.day, _tomorrow),
        ("caller's day", caps.per_caller, spent.caller, _tomorrow),
        ("month", caps.per_month, spent.month, _next_month),
    )
    over = [
        OverBudget(
            f"over the budget of the {name}: {_usd(gone)} of {_usd(cap)} are spent or reserved,"
            f" this costs {_usd(estimate)}",
            retry="never" if _over(estimate, cap) else "after",
            retry_after_s=None if _over(estimate, cap) else _until(reset, spent.now),
        )
        for name, cap, gone, reset in windows
        if cap is not None and _over(gone + estimate, cap)
    ]
    if over:  # the one that lets it through last
        raise max(over, key=lambda fault: fault.retry_after_s or math.inf)


def _over(amount: float, cap: float) -> bool:
    return amount > cap + 1e-9  # sums of cents are not exact


def _usd(amount: float) -> str:
    return f"${amount:.9f}".rstrip("0").ljust(len(f"${amount:.2f}"), "0")


def _tomorrow(now: datetime) -> datetime:
    return now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def _next_month(now: datetime) -> datetime:
    first = _tomorrow(now.replace(day=1))  # the second day, at midnight
    return (first + timedelta(days=31)).replace(day=1)


def _until(reset: Callable[[datetime], datetime], now: float) -> float:
    moment = datetime.fromtimestamp(now, UTC)
    return float(math.ceil((reset(moment) - moment).total_seconds()))
