"""When a list that does not show a submit proves that the submit never arrived. Pure.

A create whose answer was lost may be accepted until its own limits are over, and a list may lag
behind what was accepted. Only a look that begins after both is proof; before that it is doubt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

from .. import clock
from ..backends import Lost
from ..clock import Instant
from ..ledger.journal import Attempt, Entry


class Sending(NamedTuple):
    """When the last attempt to send a submit began, and how long it can take.

    `earliest` is None where only `started_at`, a wall clock's time, is known; `latest` is None
    where nothing can be under way any more. `ended` is the time.monotonic() at which the attempt
    ended in this process, None where another process made it.
    """

    earliest: Instant | None
    latest: Instant | None
    started_at: float
    limit_s: float
    server_date: float | None = None
    ended: float | None = None

    def wait_s(self, settle_s: float) -> float:
        """Return the seconds until a look that begins then is proof; 0 when it is one now."""
        if self.ended is not None:
            return max(settle_s - (time.monotonic() - self.ended), 0.0)
        if self.latest is None:
            return 0.0
        return max(self.limit_s + settle_s - clock.least_age(self.latest, clock.now()), 0.0)

    def as_attempt(self) -> Attempt:
        """Return it as the journal keeps it: the wall clock's time is the earliest."""
        latest = self.latest or clock.now()
        return Attempt(latest._replace(wall=self.started_at), self.limit_s, self.server_date)

    def lost(self, owned: Callable[[str], bool]) -> Lost:
        """Return what a backend needs to look for it."""
        age_s = clock.age(self.earliest, clock.now()) if self.earliest else None
        return Lost(age_s, self.server_date, self.started_at, owned)


def of_attempt(attempt: Attempt) -> Sending:
    """Return what the journal or this process knows of an attempt."""
    began = attempt.began
    return Sending(began, began, began.wall, attempt.limit_s, attempt.server_date)


def of_entry(entry: Entry, limit_s: float) -> Sending:
    """Return what the journal knows of an entry's last submit.

    An older release writes no attempt: then all that is known is that it is not in the future. The
    caller journals that moment as the attempt, so that the doubt ends.
    """
    if entry.attempt:
        return of_attempt(entry.attempt)._replace(started_at=entry.intended_at)
    return Sending(None, clock.now(), entry.intended_at, limit_s)


def of_line(line: Mapping[str, Any], limit_s: float) -> Sending:
    """Return what a line says of a submit that this ledger does not know.

    A queued job's line says since when it may have been sent, and until when somebody else may have
    sent it (`released_at`, absent where nothing can be under way). A failed line says when it was
    submitted. These are wall clock times.
    """
    job = line.get("job")
    if isinstance(job, dict) and (intended := read_time(job.get("intended_at"))) is not None:
        released = read_time(job.get("released_at"))
        latest = None if released is None else clock.before(time.time() - released)
        return Sending(clock.before(time.time() - intended), latest, intended, limit_s)
    started = read_time(line.get("started_at"))
    started = time.time() if started is None else started
    return Sending(None, clock.before(time.time() - started), started, limit_s)


def is_taken_over(line: Mapping[str, Any]) -> bool:
    """Whether a queued job's line may have been sent before, by whichever machine."""
    job = line.get("job")
    return isinstance(job, dict) and read_time(job.get("intended_at")) is not None


def read_time(text: Any) -> float | None:
    """Return a time of ISO 8601 as unix time; None for anything else."""
    with suppress(TypeError, ValueError):
        return datetime.fromisoformat(text).timestamp()
    return None
