"""What was spent: the sum over resolved submits, and what those still open may cost."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from .database import Database


class Reservation(NamedTuple):
    """A paid submit that is not resolved: its render, and what it may cost."""

    id: str
    render_id: str
    backend: str
    caller: str
    since: float  # unix time of its intent
    usd: float


class Spent(NamedTuple):
    """USD of today, of this month, and of one caller today; days and months in UTC.

    Each sum includes the reservations, oldest first: they count until they are resolved, on
    whatever day they were made. `of_caller` are those of the caller.
    """

    day: float
    month: float
    caller: float
    now: float
    reserved: tuple[Reservation, ...] = ()
    of_caller: tuple[Reservation, ...] = ()


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
        " coalesce(sum(iif(caller = ? and (open or intended_at >= ?), usd, 0)), 0) as caller,"
        " coalesce(sum(open), 0) as reservations"
        " from (select billed is null as open, intended_at, caller,"
        "   coalesce(cost_usd, estimate_usd) as usd from submits"
        "   where estimate_usd > 0 and billed is not 'no' and refused_at is null"
        "   and (billed is null or intended_at >= ?))",
        *(day, caller, day, month),
    )
    assert row is not None
    reserved = _reservations(db) if row["reservations"] else ()
    own = tuple(one for one in reserved if one.caller == caller)
    return Spent(row["day"], row["month"], row["caller"], now, reserved, own)


def _reservations(db: Database) -> tuple[Reservation, ...]:
    rows = db.rows(
        "select id, render_id, s.backend, s.caller, intended_at as since, estimate_usd as usd"
        " from submits s join renders using (render_id)"
        " where estimate_usd > 0 and billed is null and refused_at is null"
        " order by intended_at, render_id, number"
    )
    return tuple(Reservation(*row) for row in rows)
