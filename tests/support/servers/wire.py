"""Answers that no HTTP server should give: bytes as they are, and how the connection ends.

Every look-alike takes a `Broken` where it takes an answer, so that one list of faults serves all.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from typing import NamedTuple


class Broken(NamedTuple):
    """Bytes instead of an answer; silence for `hold_s`; then the end, a reset if asked for.

    The bytes {target} stand for what the request was for.
    """

    raw: bytes = b""
    pace_s: float = 0.0  # between two bytes
    hold_s: float = 0.0  # ends early when the client goes
    reset: bool = False


_FOREVER_S = 600.0
_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>\r\n"
CUT = Broken()
RESET = Broken(reset=True)
SILENCE = Broken(hold_s=_FOREVER_S)
TRICKLE = Broken(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"s" * 10_000, pace_s=0.05)
MALFORMED = Broken(b"HTTP/1.1 HANDSHAKE_FAILURE\r\n\r\n")
TWO_LENGTHS = Broken(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 20\r\n\r\n{}")
HALF_A_BODY = Broken(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b'{"id": "')
MOVED = Broken(
    b"HTTP/1.1 301 Moved Permanently\r\nLocation: {target}\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


def page(status: str) -> Broken:
    """Answer with the page of a proxy."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(_PAGE)}\r\n"
    return Broken(head.encode() + b"Connection: close\r\n\r\n" + _PAGE)


def send(connection: socket.socket, broken: Broken, target: str) -> None:
    """Write it and end the connection; `target` is what the request was for."""
    raw = broken.raw.replace(b"{target}", target.encode())
    if broken.pace_s:
        for byte in raw:
            connection.sendall(bytes([byte]))
            time.sleep(broken.pace_s)
    else:
        connection.sendall(raw)
    if broken.hold_s:
        select.select([connection], [], [], broken.hold_s)  # readable too when the client goes
    if broken.reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(connection.detach())
    else:
        connection.shutdown(socket.SHUT_RDWR)
