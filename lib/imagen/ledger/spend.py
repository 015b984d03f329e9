"""What was spent: the sum over resolved submits, and what those still open may cost."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from .database import Database


class Spent(NamedTuple):
    """USD of today, of this month, and of one caller today; days and months in UTC."""

    day: float
    month: float
    caller: float
    now: float


def spent(db: Database, caller: str, now: float) -> Spent:
    """Sum up what counts against a budget at `now` (unix time).

    A submit counts from its intent: until it is resolved with its estimate, on whatever day that
    was; then with its cost, and not at all when it was not billed.
    """
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    day, month = today.timestamp(), today.replace(day=1).timestamp()
    row = db.row(
        "select"
        " coalesce(sum(iif(open or intended_at >= ?, usd, 0)), 0) as day,"
        " coalesce(sum(usd), 0) as month,"
        " coalesce(sum(iif(caller = ? and (open or intended_at >= ?), usd, 0)), 0) as caller"
        " from (select billed is null as open, intended_at, caller,"
        "   coalesce(cost_usd, estimate_usd) as usd from submits"
        "   where estimate_usd > 0 and billed is not 'no'"
        "   and (billed is null or intended_at >= ?))",
        *(day, caller, day, month),
    )
    assert row is not None
    return Spent(row["day"], row["month"], row["caller"], now)
