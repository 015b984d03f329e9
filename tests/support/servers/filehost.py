"""A small host of large files: ranges, tags, a login, a redirect, and faults where a test says so.

It answers as the hosts of model files do (RFC 9110): `Range` with 206 and `Content-Range`,
`If-Range` with the whole file when it has changed, 416 beyond the end.
"""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

from .connections import CuttableServer


class Fault(NamedTuple):
    """What happens to one request: another status, or a body that ends, lies or waits."""

    status: int = 0
    headers: Mapping[str, str] = {}
    cut_after: int | None = None  # bytes of the body; then the connection is reset
    length: int | None = None  # what Content-Length says
    total: int | None = None  # what Content-Range says
    start: int | None = None  # from which byte on a range is answered, and said to be
    silent_s: float = 0


class FileHost:
    """Serves `files` by path on a port of 127.0.0.1."""

    def __init__(self, name: str = "127.0.0.1") -> None:
        self.files: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}  # in place of a file's own, which is made of its bytes
        self.asked: list[tuple[str, Message]] = []
        self.faults: list[Fault] = []  # of the next requests that are no redirect
        self.ranges = self.lengths = True
        self.token: str | None = None  # that it wants
        self.elsewhere: str | None = None  # where it sends whoever asks
        self.rate: float | None = None  # bytes a second
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"host": self})
        self._http = CuttableServer(("127.0.0.1", 0), handler)
        self.url = f"http://{name}:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> FileHost:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def put(self, path: str, data: bytes) -> str:
        """Hold a file; give its address."""
        self.files[path] = data
        return self.url + path

    def ranges_asked(self) -> list[str | None]:
        """Give the `Range` of every request, in order."""
        return [headers["Range"] for _path, headers in self.asked]

    def next_fault(self) -> Fault:
        """Take what is to happen to this request."""
        with self._lock:
            return self.faults.pop(0) if self.faults else Fault()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    host: FileHost

    def do_GET(self) -> None:
        host = self.host
        host.asked.append((self.path, self.headers))
        if host.token and self.headers["Authorization"] != f"Bearer {host.token}":
            return self._say(401, {"X-Error-Code": "GatedRepo"}, b"Access is restricted")
        if host.elsewhere:
            return self._say(302, {"Location": f"{host.elsewhere}{self.path}?signed=yes"})
        fault = host.next_fault()
        time.sleep(fault.silent_s)
        if fault.status:
            return self._say(fault.status, fault.headers, b"as the test says")
        data = host.files.get(self.path.partition("?")[0])
        if data is None:
            return self._say(404, {}, b"Entry not found")
        with suppress(OSError):
            self._send(data, fault)
        return None

    def _say(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _send(self, data: bytes, fault: Fault) -> None:
        path = self.path.partition("?")[0]
        tag = self.host.tags.get(path, f'"{hashlib.sha256(data).hexdigest()[:16]}"')
        start = self._start(tag) if fault.start is None else fault.start
        if start is not None and start >= len(data):
            return self._say(416, {"Content-Range": f"bytes */{len(data)}"})
        body = data[start or 0 :]
        headers = {"ETag": tag} if tag else {}
        if start is not None:
            total = fault.total or len(data)
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{total}"
        length = len(body) if fault.length is None else fault.length
        headers |= (
            {"Content-Length": str(length)}
            if self.host.lengths
            else {"Transfer-Encoding": "chunked"}
        )
        self.send_response(200 if start is None else 206)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        return self._pour(body, fault)

    def _start(self, tag: str) -> int | None:
        """Give where an answer begins that is a part; None for the whole."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        unchanged = self.headers["If-Range"] in (None, tag)
        return int(asked[1]) if asked and unchanged and self.host.ranges else None

    def _pour(self, body: bytes, fault: Fault) -> None:
        sent = body if fault.cut_after is None else body[: fault.cut_after]
        size = 2**16 if self.host.rate is None else max(int(self.host.rate / 100), 1)
        for at in range(0, len(sent), size):
            self._write(sent[at : at + size])
            if self.host.rate:
                time.sleep(size / self.host.rate)
        if fault.cut_after is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif not self.host.lengths:
            self.wfile.write(b"0\r\n\r\n")
        elif fault.length is not None:
            self.close_connection = True

    def _write(self, part: bytes) -> None:
        chunk = b"%x\r\n%b\r\n" % (len(part), part)
        self.wfile.write(part if self.host.lengths else chunk)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
