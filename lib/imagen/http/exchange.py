"""One exchange: how far it has come, and how long it may take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum


class BrokenAnswer(Exception):
    """What came is no whole answer; its text says why, in our words."""


class Stage(IntEnum):
    """How far an exchange has come. Up to HANDSHAKE no byte of the request has left."""

    PREPARED = 0
    """The request is being put together."""
    CONNECTING = 1
    """A connection is taken from the pool, or its name is looked up and it is opened."""
    TUNNEL = 2
    """A proxy is asked for a tunnel: CONNECT was sent, the request was not."""
    HANDSHAKE = 3
    """The connection is open; TLS is agreed on where it is spoken."""
    HANDED_OVER = 4
    """Somebody else sends it, as tests do: nothing is known, so it counts as sent."""
    SENDING = 5
    """The first byte of the request was handed to the socket, perhaps all of them."""
    AWAITING = 6
    """All of the request was handed to the socket."""
    ANSWERING = 7
    """A byte of the answer has come."""


@dataclass
class Exchange:
    """The limits and the state of one request and its answer. Times are of time.monotonic()."""

    connect_until: float  # name, connection, tunnel and TLS
    read_s: float  # that the server may be silent, and a part of the body may take to be sent
    until: float  # the whole, or what is waited for now
    needs_fresh: bool = False  # an idle connection is not used
    public_only: bool = False  # no address of this machine or of a private network is connected to
    stage: Stage = Stage.PREPARED
    proxy: str | None = None  # "host:port"

    @property
    def was_sent(self) -> bool:
        """Whether a byte of the request may have left."""
        return self.stage > Stage.HANDSHAKE

    @property
    def is_late(self) -> bool:
        """Whether the time of the whole exchange is over."""
        return time.monotonic() >= self.until

    def left_s(self) -> float:
        """Return how long the next step may block. Raise TimeoutError when there is no time."""
        until = self.until if self.was_sent else min(self.connect_until, self.until)
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        return min(left_s, self.read_s) if self.was_sent else left_s


_current: ContextVar[Exchange] = ContextVar("exchange")
current = _current.get


@contextmanager
def use(exchange: Exchange) -> Iterator[None]:
    """Make it the exchange of the connections that are used in the block."""
    token = _current.set(exchange)
    try:
        yield
    finally:
        _current.reset(token)
