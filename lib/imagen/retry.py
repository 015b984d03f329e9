"""The one set of retry policies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, repeat
from typing import NoReturn, TypeVar

from .errors import AnswerLost, ImagenError, ServerFault, Throttled, Unreachable

T = TypeVar("T")

TRANSIENT: tuple[type[ImagenError], ...] = (Unreachable, AnswerLost, ServerFault)
_OF_READS: tuple[type[ImagenError], ...] = (*TRANSIENT, Throttled)


def once_more(call: Callable[[], T], wait_s: float = 0.3) -> T:
    """Call, and after a transient fault (5xx, network) once more; for what may be sent twice."""
    return _trying(call, wait_s, TRANSIENT, attempts=2)


def for_a_while(call: Callable[[], T], patience_s: float, wait_s: float = 0.3) -> T:
    """Call until it works or transient faults have lasted for `patience_s`; for reads."""
    return _trying(call, wait_s, _OF_READS, patience_s=patience_s)


def as_told(
    call: Callable[[float], T], patience_s: float, least_s: float = 1, wait_s: float = 0.3
) -> T:
    """Call with the seconds that are left until it works; for what may be sent again and again.

    Waits as long as the server says (Retry-After), at least `wait_s` and twice as long each time.
    The last fault is raised as soon as a wait would leave less than `least_s`, so that everything
    ends within the patience when the call keeps to its seconds.
    """
    end = time.monotonic() + patience_s

    def once() -> T:
        return call(end - time.monotonic())

    try:
        return once()
    except _OF_READS as fault:
        first = fault
    import tenacity  # only now, as in _trying

    def pause(state: tenacity.RetryCallState) -> float:
        fault = state.outcome and state.outcome.exception()
        said = getattr(fault, "retry_after_s", None) or 0
        return max(float(said), wait_s * 2.0 ** (state.attempt_number - 1))

    tries: Iterator[Callable[[], T]] = chain([partial(_raise, first)], repeat(once))

    def again() -> T:
        return next(tries)()

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_OF_READS),
        stop=lambda state: time.monotonic() + pause(state) + least_s > end,
        wait=pause,
        reraise=True,
    )(again)


def _trying(
    call: Callable[[], T],
    wait_s: float,
    when: tuple[type[ImagenError], ...],
    attempts: int = 0,
    patience_s: float = 0,
) -> T:
    try:
        return call()
    except when as fault:
        first = fault
    import tenacity  # only now: most calls work at once, and it costs as much as click to import

    tries: Iterator[Callable[[], T]] = chain([partial(_raise, first)], repeat(call))
    stop = tenacity.stop_after_delay(patience_s)

    def once() -> T:
        return next(tries)()

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(when),
        stop=tenacity.stop_after_attempt(attempts) if attempts else stop,
        wait=tenacity.wait_fixed(wait_s),
        reraise=True,
    )(once)


def _raise(fault: ImagenError) -> NoReturn:
    raise fault
