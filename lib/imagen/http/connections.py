"""urllib3's connections, watched: whether the request has left, and how long each step may take.

Imported late: it takes urllib3 and requests along. Every connection of a `Server` is one of these,
through proxies too. What is known of an exchange is kept in `exchange.Exchange`.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator, Mapping
from email.errors import FirstHeaderLineIsContinuationDefect, MissingHeaderBodySeparatorDefect
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import NewConnectionError
from urllib3.poolmanager import pool_classes_by_scheme

from ..clock import boottime
from ..errors import Rejected
from . import addresses
from .exchange import BrokenAnswer, Exchange, Stage, current

if TYPE_CHECKING:
    from urllib3.connection import HTTPConnection as _Connection

    _Pool = HTTPConnectionPool
else:
    _Connection = _Pool = object

FRESH_S = 1  # that a connection may have been idle for a request that must not meet a stale one
_BLOCK = 2**18  # bytes sent at once: each must be gone within `read_s`


class _Timed(io.RawIOBase):
    """What comes from a socket; each read may block no longer than the exchange allows."""

    def __init__(self, source: Any, sock: Any, exchange: Exchange) -> None:
        self._source, self._sock, self._exchange = source, sock, exchange
        self.has_ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._exchange.left_s())
        size: int = self._source.readinto(buffer)
        if not size:
            self.has_ended = True
        elif self._exchange.stage is Stage.AWAITING:
            self._exchange.stage = Stage.ANSWERING
        return size

    def close(self) -> None:
        self._source.close()
        super().close()


class _Response(HTTPResponse):
    """An answer whose every read ends in time, and whose head must be whole."""

    def __init__(self, sock: Any, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        exchange = current()
        if exchange.stage is Stage.SENDING:
            exchange.stage = Stage.AWAITING
        self._timed = _Timed(self.fp.detach(), sock, exchange)
        self.fp = io.BufferedReader(self._timed)

    def begin(self) -> None:
        """Read the head, over all that only announces it. Raise BrokenAnswer when it is none."""
        super().begin()
        while 101 < self.status < 200:  # http.client does so after 100 alone
            setattr(self, "headers", None)  # noqa: B010 (else it takes the head for read)
            super().begin()
        if self._timed.has_ended:
            raise BrokenAnswer("it was cut short")
        defects = (FirstHeaderLineIsContinuationDefect, MissingHeaderBodySeparatorDefect)
        if self.status < 200 or any(isinstance(each, defects) for each in self.headers.defects):
            raise BrokenAnswer("its head is malformed")


class _Watched(_Connection):
    """A connection that tells its exchange how far it has come."""

    response_class = _Response
    idle_since = 0.0

    def connect(self) -> None:
        """Open it: up to here no byte of the request has left."""
        exchange = current()
        if self.proxy is not None:
            exchange.proxy = f"{self.proxy.host}:{self.proxy.port}"
        super().connect()

    def _tunnel(self) -> None:
        exchange = current()
        exchange.stage = Stage.TUNNEL
        super()._tunnel()
        exchange.stage = Stage.HANDSHAKE
        self.sock.settimeout(exchange.left_s())

    def send(self, data: Any) -> None:
        """Send in blocks that each must be gone in time; note that the request leaves now."""
        exchange = current()
        if self.sock is None:
            self.connect()
        if exchange.stage is not Stage.TUNNEL:
            exchange.stage = Stage.SENDING
        for block in _blocks(data):
            self.sock.settimeout(exchange.left_s())
            super().send(block)


class _Dialled(_Watched):
    """One that we open ourselves: the address that was judged is the one that is connected to."""

    def _new_conn(self) -> socket.socket:
        exchange = current()
        try:
            sock = self._open(exchange)
        except OSError as fault:  # urllib3 swallows some of them
            raise NewConnectionError(self, "no connection") from fault
        exchange.stage = Stage.HANDSHAKE
        return sock

    def _open(self, exchange: Exchange) -> socket.socket:
        """Try a host's addresses in turn; the last one may take all the time that is left."""
        host = str(self._dns_host)
        rows = addresses.look_up(host, int(self.port), exchange.left_s())
        if exchange.public_only and self.proxy is None:
            _check_public(host, [str(row[4][0]) for row in rows])
        for index, row in enumerate(rows, 1):
            left_s = exchange.left_s()
            try:
                sock = self._dial(row, left_s if index == len(rows) else left_s / 2)
                sock.settimeout(exchange.left_s())
                return sock
            except OSError:
                if index == len(rows):
                    raise
        raise OSError("no address")

    def _dial(self, row: addresses.AddressInfo, timeout_s: float) -> socket.socket:
        family, kind, protocol, _name, address = row
        sock = socket.socket(family, kind, protocol)
        try:
            for option in self.socket_options or ():
                sock.setsockopt(*option)
            sock.settimeout(timeout_s)
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock


class _WatchedPool(_Pool):
    """A pool that knows since when its connections are idle."""

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection: Any = super()._get_conn(timeout)
        if current().needs_fresh and boottime() - connection.idle_since > FRESH_S:
            connection.close()  # it is opened again
        return connection

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.idle_since = boottime()
        super()._put_conn(conn)


class Adapter(HTTPAdapter):
    """Sends over watched connections, and never a second time."""

    def __init__(self) -> None:
        """Let nothing be repeated, whatever the answer says."""
        super().__init__(max_retries=False)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make the pools of direct connections."""
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _DIALLED

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Make the pools of a proxy's connections; those of SOCKS open theirs themselves."""
        manager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = _DIALLED
        elif not issubclass(manager.pool_classes_by_scheme["http"], _WatchedPool):
            manager.pool_classes_by_scheme = _watched(manager.pool_classes_by_scheme, _Watched)
        return manager

    def send(self, request: Any, *args: Any, **options: Any) -> Any:
        """Send it; from now on the connections tell how far it has come."""
        current().stage = Stage.CONNECTING
        return super().send(request, *args, **options)


def _watched(pools: Mapping[str, Any], connection: type) -> dict[str, Any]:
    """Return a set of pools, by scheme, whose connections are watched."""

    def derived(pool: Any) -> Any:
        kind = type(f"_{pool.__name__}Connection", (connection, pool.ConnectionCls), {})
        return type(f"_{pool.__name__}", (_WatchedPool, pool), {"ConnectionCls": kind})

    return {scheme: derived(pool) for scheme, pool in pools.items()}


def _check_public(host: str, texts: list[str]) -> None:
    """Raise Rejected when one of a host's addresses is none of the internet."""
    private = next((address for address in texts if not addresses.is_public(address)), None)
    if private is not None:
        raise Rejected(f"the server names a file at {host[:100]}: {private} is not on the internet")


def _blocks(data: Any) -> Iterator[Any]:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        yield data
        return
    view = memoryview(data)
    for start in range(0, len(view), _BLOCK):
        yield view[start : start + _BLOCK]


_DIALLED = _watched(pool_classes_by_scheme, _Dialled)
