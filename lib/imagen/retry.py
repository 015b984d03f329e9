"""The one set of retry policies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, repeat
from typing import Any, NoReturn, TypeVar

from .errors import AnswerLost, ImagenError, ServerFault, Throttled, Unreachable

T = TypeVar("T")

Faults = tuple[type[ImagenError], ...]

TRANSIENT: Faults = (Unreachable, AnswerLost, ServerFault)
_OF_READS: Faults = (*TRANSIENT, Throttled)
LONGEST_WAIT_S = 60  # that a server may ask for: beyond, whoever asks is told and not kept waiting


def once_more(
    call: Callable[[], T],
    wait_s: float = 0.3,
    when: Faults = TRANSIENT,
    until: float = math.inf,
) -> T:
    """Call, and after a transient fault (5xx, network) once more; for what may be sent twice.

    Beyond `until`, a time of time.monotonic(), there is no second call.
    """
    return _trying(call, wait_s, when, attempts=2, until=until)


def for_a_while(
    call: Callable[[], T],
    patience_s: float,
    wait_s: float = 0.3,
    when: Faults = _OF_READS,
    until: float = math.inf,
) -> T:
    """Call until it works or transient faults have lasted for `patience_s`; for reads.

    Beyond `until`, a time of time.monotonic(), it is not called again.
    """
    return _trying(call, wait_s, when, patience_s=patience_s, until=until)


def as_told(
    call: Callable[[], T], backoff_s: float = 1.0, retries: int = 3, until: float = math.inf
) -> T:
    """Call, and when the server asks to wait, wait so long and call again.

    For requests that it certainly has not accepted then. Where it does not say how long, each wait
    is twice the one before, from `backoff_s` on. A longer wait than LONGEST_WAIT_S, or one beyond
    `until`, a time of time.monotonic(), is not waited.
    """

    def bearable() -> T:
        try:
            return call()
        except Throttled as fault:
            wait_s = fault.retry_after_s or 0
            if wait_s > LONGEST_WAIT_S or time.monotonic() + wait_s > until:
                raise _TooLong(fault) from None
            raise

    try:
        return _trying(
            bearable, backoff_s, (Throttled,), attempts=1 + retries, factor=2, until=until
        )
    except _TooLong as end:
        raise end.fault from None


class _TooLong(Exception):
    """A wait that is not waited."""

    def __init__(self, fault: Throttled) -> None:
        self.fault = fault
        super().__init__()


def in_time(
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
    when: Faults,
    attempts: int = 0,
    patience_s: float = 0,
    factor: float = 1,
    until: float = math.inf,
) -> T:
    try:
        return call()
    except when as fault:
        if time.monotonic() >= until:
            raise
        first = fault
    import tenacity  # only now: most calls work at once, and it costs as much as click to import

    tries: Iterator[Callable[[], T]] = chain([partial(_raise, first)], repeat(call))

    def once() -> T:
        return next(tries)()

    def pause(state: tenacity.RetryCallState) -> float:
        fault = state.outcome.exception() if state.outcome else None
        told = fault.retry_after_s if isinstance(fault, Throttled) else None
        if told is not None:
            return told if attempts else min(told, patience_s)
        return wait_s * factor ** (state.attempt_number - 1)

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(when),
        stop=_stop(attempts, patience_s, lambda state: time.monotonic() + pause(state) >= until),
        wait=pause,
        reraise=True,
    )(once)


def _stop(attempts: int, patience_s: float, too_late: Callable[[Any], bool]) -> Any:
    import tenacity

    bound = tenacity.stop_after_attempt(attempts) if attempts else None
    stop = bound or tenacity.stop_after_delay(patience_s)
    return lambda state: stop(state) or too_late(state)


def _raise(fault: ImagenError) -> NoReturn:
    raise fault
