"""How much time has passed since a moment that may lie in another process or before a reboot.

The wall clock can be set at any time, so an age is measured with CLOCK_BOOTTIME, which runs on
while a machine sleeps and starts anew with each boot; the boot id tells one boot from another.
Where there is no boot id (macOS), or the two clocks disagree, an exact age is not known.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

AGREE_S = 60  # how far the wall clock's age may be from the other's; clocks are slewed a little


class Instant(NamedTuple):
    """A moment on two clocks: unix time, and seconds since the boot of that id."""

    wall: float
    boot: str | None
    uptime: float


def boottime() -> float:
    """Return the seconds since the machine started, those asleep included."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def now() -> Instant:
    """Return this moment."""
    return Instant(time.time(), boot_id(), boottime())


@cache
def boot_id() -> str | None:
    """Return what tells this boot of the machine from others; None where the system has no id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def iso(wall: float) -> str:
    """Return unix time as records have it: ISO 8601 in UTC, with milliseconds."""
    text = datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def before(seconds: float) -> Instant:
    """Return the moment so many seconds ago; at a negative age, this moment."""
    age_s, instant = max(seconds, 0.0), now()
    return Instant(instant.wall - age_s, instant.boot, instant.uptime - age_s)


def age(then: Instant, at: Instant) -> float | None:
    """Return the seconds from one moment to another; None where they cannot be known exactly."""
    if then.boot is None or then.boot != at.boot:
        return None
    seconds = at.uptime - then.uptime
    agree = abs(at.wall - then.wall - seconds) <= AGREE_S
    return seconds if seconds >= 0 and agree else None


def least_age(then: Instant, at: Instant) -> float:
    """Return the seconds that have passed at the least, whatever became of the wall clock.

    After a reboot that is the time since it: the moment lies before.
    """
    if then.boot is not None and at.boot is not None and then.boot != at.boot:
        return at.uptime
    seconds = at.uptime - then.uptime
    return seconds if seconds >= 0 else at.uptime
