"""A real HTTP proxy on this machine: it forwards requests, opens tunnels, and cuts where told.

Both kinds are served on one port: a request for an absolute http address is forwarded, and CONNECT
opens a tunnel. Names are those of `names` only, which no resolver knows: what arrives came through
here. `forwarded` counts the requests, and the tunnels that carried one, whose bytes went on.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

HOW = ("cut", "reset", "silence")  # closed in good order, with a RST, or left open without a word
STAGES = (
    "connect",  # CONNECT was read, no answer was given
    "handshake",  # the tunnel stands, the first bytes of TLS were read and go nowhere
    "before",  # the request was read (its first bytes in a tunnel) and goes nowhere
    "after",  # the request went on, nothing of its answer comes back
    "head",  # a few bytes of the answer come back
    "body",  # its head comes back, and a few bytes of its body (in a tunnel: one record and a half)
)
REFUSALS = {
    "refuse 502": b"HTTP/1.1 502 Bad Gateway\r\n",
    "refuse 407": b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n",
    "refuse 403": b"HTTP/1.1 403 Forbidden\r\n",
}
_HTML = b"<html><body><h1>This is the proxy</h1></body></html>"
_QUIET_S = 0.15  # that a client says nothing more for before its request is taken to be whole
_HANDSHAKE, _DATA = 22, 23  # types of TLS records


class Cut(Exception):
    """The connection ends here."""


class Proxy:
    """Serve until the block ends.

    `cut` is "HOW STAGE" or one of REFUSALS. It concerns the first `times` exchanges that reach the
    stage (None: all of them) and, where requests can be read, only those of the method `only`.
    """

    def __init__(
        self,
        names: Mapping[str, tuple[str, int]],
        cut: str | None = None,
        times: int | None = None,
        only: str | None = None,
    ) -> None:
        how, _, stage = (cut or "").partition(" ")
        assert cut is None or cut in REFUSALS or (how in HOW and stage in STAGES), cut
        self.names, self.cut, self.times, self.only = names, cut, times, only
        self.forwarded = 0
        self.targets: list[str] = []  # "name:port" of each request and each CONNECT
        self.opened = 0  # connections of clients
        self.credentials: list[str] = []  # values of Proxy-Authorization
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._methods: dict[socket.socket, str] = {}  # of the last request of each client
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in list(self._sockets):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.opened += 1
            self._sockets.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        origins: dict[str, socket.socket] = {}
        try:
            while head := _head(client):
                self._exchange(client, head, origins)
        except (Cut, OSError):
            pass
        finally:
            for each in (client, *origins.values()):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def _exchange(
        self, client: socket.socket, head: bytes, origins: dict[str, socket.socket]
    ) -> None:
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        if credentials := _header(head, b"proxy-authorization"):
            self.credentials.append(credentials)
        if method == "CONNECT":
            self.targets.append(target)
            self._reach(client, "connect")
            self._refuse(client, None)
            origin = self._dial(client, target)
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            _Tunnel(self, client, origin).run()
            raise Cut
        self._forward(client, head, origins)

    def _forward(
        self, client: socket.socket, head: bytes, origins: dict[str, socket.socket]
    ) -> None:
        line, rest = head.split(b"\r\n", 1)
        method, target, _ = line.decode().split(" ", 2)
        url = urlsplit(target)
        place = f"{url.hostname}:{url.port or 80}"
        self.targets.append(place)
        body = _exactly(client, int(_header(head, b"content-length") or 0))
        self._refuse(client, method)
        self._reach(client, "before", method)
        self._methods[client] = method
        if place not in origins:
            origins[place] = self._dial(client, place)
            sockets = (origins[place], client)
            threading.Thread(target=self._answers, args=sockets, daemon=True).start()
        path = target[len(f"{url.scheme}://{url.netloc}") :] or "/"
        self.forwarded += 1
        origins[place].sendall(f"{method} {path} HTTP/1.1\r\n".encode() + rest + body)

    def _answers(self, origin: socket.socket, client: socket.socket) -> None:
        """Carry what the origin answers back, as it comes."""
        with suppress(Cut, OSError):
            while part := _receive(origin, 65536):
                method = self._methods[client]
                self._reach(client, "after", method)
                if self._applies("head", method):
                    client.sendall(part[:12])
                    self._reach(client, "head", method)
                if self._applies("body", method):
                    while not part.partition(b"\r\n\r\n")[2]:
                        part += _receive(origin, 65536)
                    client.sendall(part[: part.index(b"\r\n\r\n") + 5])
                    self._reach(client, "body", method)
                client.sendall(part)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _dial(self, client: socket.socket, place: str) -> socket.socket:
        address = self.names.get(place.rpartition(":")[0])
        try:
            if address is None:
                raise OSError("no such name")
            origin = socket.create_connection(address, 10)
        except OSError:
            client.sendall(_page(b"HTTP/1.1 502 Bad Gateway\r\n"))
            raise Cut from None
        origin.settimeout(None)
        self._sockets.append(origin)
        return origin

    # -- faults ----------------------------------------------------------------------------------

    def _applies(self, stage: str, method: str | None = None) -> bool:
        if self.cut is None or self.times == 0 or (self.cut.partition(" ")[2] != stage):
            return False
        return method is None or self.only in (None, method)

    def _reach(self, client: socket.socket, stage: str, method: str | None = None) -> None:
        """End the connection when it is to end at this stage."""
        with self._lock:
            if not self._applies(stage, method):
                return
            if self.times is not None:
                self.times -= 1
        how = str(self.cut).partition(" ")[0]
        if how == "silence":
            self._closing.wait(60)
        elif how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        raise Cut

    def _refuse(self, client: socket.socket, method: str | None) -> None:
        """Answer instead of the origin when that is what is to happen."""
        with self._lock:
            if self.cut not in REFUSALS or self.times == 0:
                return
            if method is not None and self.only not in (None, method):
                return
            if self.times is not None:
                self.times -= 1
        client.sendall(_page(REFUSALS[str(self.cut)]))
        raise Cut


class _Tunnel:
    """Two directions of bytes; it reads the types of TLS records to see the request begin."""

    def __init__(self, proxy: Proxy, client: socket.socket, origin: socket.socket) -> None:
        self._proxy, self._client, self._origin = proxy, client, origin
        self._requested = threading.Event()
        self._client_at = time.monotonic()

    def run(self) -> None:
        back = threading.Thread(target=self._back, daemon=True)
        back.start()
        try:
            self._forth()
        except Cut:
            raise
        except OSError:
            pass
        finally:
            with suppress(OSError):
                self._origin.shutdown(socket.SHUT_RDWR)
            back.join(1)
            self._origin.close()

    def _forth(self) -> None:
        """Carry the client's records; the request begins at its first or second one of data.

        TLS 1.3 hides the client's last record of the handshake in one of data, TLS 1.2 does not.
        """
        handshakes = data = 0
        while record := _record(self._client):
            self._client_at = time.monotonic()
            handshakes += record[0] == _HANDSHAKE
            data += record[0] == _DATA
            if handshakes == 1 and not data:
                self._proxy._reach(self._client, "handshake")
            is_request = record[0] == _DATA and data > (1 if handshakes < 3 else 0)
            if is_request and not self._requested.is_set():
                self._proxy._reach(self._client, "before")
                self._proxy.forwarded += 1
                self._requested.set()
            self._origin.sendall(record)

    def _back(self) -> None:
        """Carry the origin's records; those of data, once the request has begun, are its answer."""
        answers, client = 0, self._client
        with suppress(Cut, OSError):
            while record := _record(self._origin):
                if record[0] == _DATA and self._requested.is_set():
                    answers += 1
                    self._act(record, answers)
                client.sendall(record)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _act(self, record: bytes, answers: int) -> None:
        proxy, client = self._proxy, self._client
        if any(proxy._applies(stage) for stage in ("after", "head", "body")):
            self._wait_for_the_whole_request()
        proxy._reach(client, "after")
        stage = {1: "head", 2: "body"}.get(answers)
        if stage and proxy._applies(stage):
            client.sendall(record[: len(record) // 2])
            proxy._reach(client, stage)

    def _wait_for_the_whole_request(self) -> None:
        while time.monotonic() - self._client_at < _QUIET_S:
            time.sleep(0.02)


def _receive(source: socket.socket, size: int) -> bytes:
    """Receive, and never block in it: a socket that another thread resets must be free for it."""
    try:
        while not select.select([source], [], [], 0.05)[0]:
            pass
        return source.recv(size)
    except ValueError:  # closed meanwhile
        raise Cut from None


def _head(client: socket.socket) -> bytes:
    """Read a request's head, byte by byte so that nothing behind it is taken."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = _receive(client, 1)
        if not byte:
            return b""
        head += byte
    return head


def _header(head: bytes, name: bytes) -> str:
    """Return a header's value, "" when it is not there."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip().decode()
    return ""


def _exactly(source: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = _receive(source, min(65536, size - len(parts)))
        if not part:
            raise Cut
        parts += part
    return parts


def _record(source: socket.socket) -> bytes:
    """Read one TLS record; b"" at the end."""
    first = _receive(source, 1)
    if not first:
        return b""
    try:
        head = first + _exactly(source, 4)
        return head + _exactly(source, int.from_bytes(head[3:5], "big"))
    except Cut:
        return b""


def _page(head: bytes) -> bytes:
    """Return a refusal of the proxy's own, a page of HTML."""
    more = b"Content-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    return head + more % len(_HTML) + _HTML
