"""INT and TERM become exceptions, put off while a line or a file is being finished."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import Stopped

_AGAIN_S = 0.05  # after an exception that was lost, until it is raised again
_holds = 0
_waiting: int | None = None  # the exit status of a signal that is put off
_lost = 0  # the exit status of a signal whose exception was lost
_woken: int | None = None  # where a byte arrives with each signal


class _Raised(Stopped):
    """A Stopped that is raised again when it is lost before anybody heeds it.

    C code clears what a handler raises in it: `open` does, where CPython asks a new file for its
    position (`_buffered_init`). Then the exception goes away, and the signal with it.
    """

    def __del__(self) -> None:
        global _lost  # noqa: PLW0603 - see _on
        if not self.heeded and signal.getsignal(signal.SIGALRM) is _again:
            _lost = self.status
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)


def install() -> None:
    """Raise Stopped on INT and TERM, unless we were started with the signal ignored (nohup, &)."""
    global _woken
    if _woken is None:
        _woken, wakes = os.pipe()
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on)
    signal.signal(signal.SIGALRM, _again)


def end() -> None:
    """Raise nothing again: the process is ending because of a signal, or for another reason."""
    signal.signal(signal.SIGALRM, signal.SIG_IGN)


def _on(number: int, _frame: FrameType | None) -> None:
    _raise(128 + number)


def _again(_number: int, _frame: FrameType | None) -> None:
    _raise(_lost)


def _raise(status: int) -> None:
    global _waiting  # noqa: PLW0603 - a handler has no other place for it
    if _holds:
        _waiting = status
    else:
        raise _Raised(status)


def counted() -> tuple[Callable[[], int], int]:
    """Count INT and TERM from now on instead of raising; gives the count, and what wakes then.

    One that we were started to ignore is not counted, and yet has a handler: what we start would
    inherit that it is ignored, and could not be ended by it.
    """
    install()
    seen: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        ignored = signal.getsignal(number) is signal.SIG_IGN
        signal.signal(number, _nothing if ignored else lambda number, _frame: seen.append(number))
    assert _woken is not None
    return lambda: len(seen), _woken


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Stand for what is ignored here, and here only."""


def wait_readable(
    descriptor: int, seconds: float | None = None, writes_to: int | None = None
) -> bool:
    """Wait until there is something to read, or a signal raises; False when `seconds` are over.

    BrokenPipeError when nobody reads `writes_to` any more. A plain read would miss a signal that
    comes just before it blocks, and go on waiting.
    """
    end = None if seconds is None else time.monotonic() + seconds
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if _woken is not None:
        poll.register(_woken, select.POLLIN)
    if writes_to is not None:
        poll.register(writes_to, 0)
    while True:
        left = None if end is None else max(end - time.monotonic(), 0) * 1000
        ready = [found for found, _events in poll.poll(left)]
        if _woken in ready:
            os.read(_woken, 4096)  # and the handler runs
        if descriptor in ready:
            return True
        if writes_to in ready:
            raise BrokenPipeError
        if not ready and end is not None:
            return False


def is_readable(descriptor: int) -> bool:
    """Whether a read would not wait."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


@contextmanager
def held() -> Iterator[None]:
    """Put off a signal until the block is done."""
    global _holds  # noqa: PLW0603 - see above
    _holds += 1
    try:
        yield
    finally:
        if status := _release():
            raise _Raised(status)


@contextmanager
def dropped() -> Iterator[None]:
    """Drop a signal that comes in the block, which reports an earlier one."""
    global _holds  # noqa: PLW0603 - see above
    _holds += 1
    try:
        yield
    finally:
        _release()


def _release() -> int | None:
    """End a block; after the outermost one return the status of a signal that came meanwhile."""
    global _holds, _waiting  # noqa: PLW0603 - see above
    _holds -= 1
    if _holds:
        return None
    status, _waiting = _waiting, None
    return status
