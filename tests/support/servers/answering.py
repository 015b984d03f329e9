"""An HTTP server that answers as a test says, and remembers what it was asked."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SO_LINGER, SOL_SOCKET, socket
from types import SimpleNamespace
from typing import Any, Self

from .tls import Certificate

Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says."""

    protocol_version = "HTTP/1.1"
    reply: Reply
    seen: list[SimpleNamespace]

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.seen.append(SimpleNamespace(path=self.path, headers=dict(self.headers), body=body))
        type(self).reply(self)

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def send_raw(self, text: bytes) -> None:
        """Send bytes as they are, and close."""
        self.wfile.write(text)
        self.close_connection = True

    def cut(self) -> None:
        """Reset the connection without a word."""
        self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
        self.wfile = SimpleNamespace(flush=lambda: None, close=lambda: None, closed=False)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class _Listening(ThreadingHTTPServer):
    daemon_threads = True
    connections = 0

    def get_request(self) -> tuple[socket, Any]:
        accepted = super().get_request()
        self.connections += 1
        return accepted

    def handle_error(self, *_: Any) -> None:
        """Say nothing."""


class Answering:
    """Serves on 127.0.0.1 until the block ends; `seen` holds the requests."""

    def __init__(self, reply: Reply, certificate: Certificate | None = None) -> None:
        self.seen: list[SimpleNamespace] = []
        handler = type("Ours", (Handler,), {"reply": staticmethod(reply), "seen": self.seen})
        self._server = _Listening(("127.0.0.1", 0), handler)
        if certificate:
            certificate.wrap(self._server)
        self.port = self._server.server_port
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections were accepted."""
        return self._server.connections

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
