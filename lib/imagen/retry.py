"""The one set of retry policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from .errors import AnswerLost, ImagenError, ServerFault, Unreachable

T = TypeVar("T")

TRANSIENT: tuple[type[ImagenError], ...] = (Unreachable, AnswerLost, ServerFault)


def once_more(call: Callable[[], T], wait_s: float = 0.3) -> T:
    """Call, and after a transient fault (5xx, network) once more; only for what may be sent twice."""
    return _trying(call, wait_s, attempts=2)


def for_a_while(call: Callable[[], T], patience_s: float, wait_s: float = 0.3) -> T:
    """Call until it works or transient faults have lasted for `patience_s`; for reads."""
    return _trying(call, wait_s, patience_s=patience_s)


def _trying(
    call: Callable[[], T], wait_s: float, attempts: int = 0, patience_s: float = 0
) -> T:
    import tenacity

    stop: tenacity.stop.stop_base
    stop = tenacity.stop_after_attempt(attempts) if attempts else tenacity.stop_after_delay(patience_s)
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TRANSIENT),
        stop=stop,
        wait=tenacity.wait_fixed(wait_s),
        reraise=True,
    )(call)
