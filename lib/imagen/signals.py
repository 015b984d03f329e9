"""INT and TERM become exceptions, put off while a line or a file is being finished."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import Stopped

_holds = 0
_waiting: Stopped | None = None


def install() -> None:
    """Raise Stopped on INT and TERM, unless we were started with the signal ignored (nohup, &)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on)


def _on(number: int, _frame: FrameType | None) -> None:
    global _waiting  # noqa: PLW0603 - a handler has no other place for it
    stopped = Stopped(128 + number)
    if _holds:
        _waiting = stopped
    else:
        raise stopped


@contextmanager
def held() -> Iterator[None]:
    """Put off a signal until the block is done."""
    global _holds, _waiting  # noqa: PLW0603 - see above
    _holds += 1
    try:
        yield
    finally:
        _holds -= 1
        if not _holds and _waiting:
            stopped, _waiting = _waiting, None
            raise stopped
