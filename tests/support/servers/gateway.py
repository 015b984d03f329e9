"""HTTP in front of a test's servers: it keeps what was asked, and fails where a test says so.

`Front` serves any function from request to answer. `Gateway` is the one URL of a hosted Supabase
project: /rest/v1/… goes to a PostgREST, /storage/v1/… to the look-alike of Storage.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple, Protocol

from .connections import CuttableServer

OPEN = ("GET /object/sign/", "PUT /object/upload/sign/", "GET /object/public/")  # need no key
JSON = {"content-type": "application/json; charset=utf-8"}


class Request(NamedTuple):
    """What was asked; the target is path and query as they came."""

    method: str
    target: str
    headers: Message
    body: bytes


class Answer(NamedTuple):
    """What goes back."""

    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes = b""


TROUBLE = Answer(500, JSON, b'{"message":"Internal server error"}')
AS_IT_IS = Answer(0)  # the answer that the server has
NO_KEY = Answer(401, JSON, b'{"message":"No API key found in request"}')
NO_ROUTE = Answer(404, JSON, b'{"message":"no Route matched with those values"}')


class Fault(NamedTuple):
    """What happens to the next request that starts so."""

    start: str
    answer: Answer | None
    after: bool
    wait_s: float
    unread: bool


class Front:
    """Serves `respond` on a port of 127.0.0.1."""

    def __init__(self, respond: Callable[[Request], Answer], port: int = 0) -> None:
        self.respond = respond
        self.asked: list[tuple[str, str]] = []  # method and target of every request, as it came in
        self.asked_over: set[tuple[str, int]] = set()  # the clients' ends of their connections
        self.instead: list[tuple[int, dict[str, str], bytes]] = []  # answers to the next ones
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._http = CuttableServer(
            ("127.0.0.1", port), type("Handler", (_Handler,), {"front": self})
        )
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def fail(
        self,
        request: str,
        answer: Answer | None = TROUBLE,
        *,
        times: int = 1,
        after: bool = False,
        wait_s: float = 0.0,
        unread: bool = False,
    ) -> None:
        """Answer the next requests that start so ("PUT /storage/v1") with this; None cuts them off.

        With `after` they are obeyed all the same; with `unread` their body is left unread. AS_IT_IS
        with `wait_s` is a slow server.
        """
        self._faults += [Fault(request, answer, after, wait_s, unread)] * times

    @property
    def outstanding(self) -> list[Answer | None]:
        """The answers of the faults that have not come up yet."""
        return [fault.answer for fault in self._faults]

    def asks(self, request: str = "") -> int:
        """Count the requests that start so."""
        return sum(f"{method} {target}".startswith(request) for method, target in self.asked)

    def forget(self) -> None:
        """Forget what was asked, and all faults that did not come up."""
        del self.asked[:], self.instead[:], self._faults[:]
        self.asked_over.clear()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._http.connections)

    def next_fault(self, method: str, target: str, client: tuple[str, int]) -> Fault | None:
        """Note a request and who sent it; give what is to happen to it."""
        with self._lock:
            self.asked.append((method, target))
            self.asked_over.add(client)
            if self.instead:
                return Fault("", Answer(*self.instead.pop(0)), False, 0.0, False)
            for number, fault in enumerate(self._faults):
                if f"{method} {target}".startswith(fault.start):
                    return self._faults.pop(number)
        return None

    def outcome(self, request: Request, fault: Fault | None) -> Answer | None:
        """Obey a request unless a fault forbids it; give what is sent, None to cut it off."""
        if fault is None:
            return self.respond(request)
        time.sleep(fault.wait_s)
        if fault.after or fault.answer is AS_IT_IS:
            answer = self.respond(request)
            return answer if fault.answer is AS_IT_IS else fault.answer
        return fault.answer

    def stop(self) -> None:
        """Cut all connections and close the port."""
        self._http.cut()


class Responds(Protocol):
    """Storage, or what stands in for it."""

    def respond(self, request: Request) -> Answer:
        """Answer a request; its target has no /storage/v1."""


class Gateway(Front):
    """The one URL of a project; where it is hosted, the gateway asks for the apikey header."""

    def __init__(self, upstream: str, storage: Responds | None = None, port: int = 0) -> None:
        """Take the path of PostgREST's socket."""
        self.upstream = upstream
        self.storage = storage
        super().__init__(self._route, port)

    def _route(self, request: Request) -> Answer:
        service, target = _service(request.target)
        inner = request._replace(target=target)
        needs_no_key = service == "storage" and f"{request.method} {target}".startswith(OPEN)
        if not needs_no_key and "apikey" not in request.headers:
            return NO_KEY
        if service == "storage" and self.storage:
            return self.storage.respond(inner)
        return forward(self.upstream, inner) if service == "rest" else NO_ROUTE


def _service(target: str) -> tuple[str, str]:
    for service in ("rest", "storage"):
        if target.startswith(f"/{service}/v1/"):
            return service, target.removeprefix(f"/{service}/v1")
    return "", target


def forward(upstream: str, request: Request) -> Answer:
    """Hand a request on to a server on a socket of the file system."""
    connection = Unix(upstream, timeout=60)
    drop = ("host", "connection", "transfer-encoding", "content-length")
    kept = {k: v for k, v in request.headers.items() if k.lower() not in drop}
    try:
        connection.request(request.method, request.target, request.body or None, kept)
        answer = connection.getresponse()
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in drop}
        return Answer(answer.status, headers, answer.read())
    except OSError:
        return Answer(502, JSON, b'{"message":"upstream"}')
    finally:
        connection.close()


class Unix(http.client.HTTPConnection):
    """A connection to a server on a socket of the file system."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave together
    front: Front

    def _serve(self) -> None:
        fault = self.front.next_fault(self.command, self.path, self.client_address)
        unread = fault is not None and fault.unread
        body = b"" if unread else self._body()
        if body is None:  # the client went away in the middle: as if it had never come
            self.close_connection = True
            return
        request = Request(self.command, self.path, self.headers, body)
        answer = self.front.outcome(request, fault)
        self.close_connection = self.close_connection or unread
        if answer is None:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(answer)

    def _body(self) -> bytes | None:
        """Read the body; None when it ends before it should."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return self._chunks()
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        return body if len(body) == length else None

    def _chunks(self) -> bytes | None:
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0].strip() or b"-1", 16):
            chunk = self.rfile.read(size) if size > 0 else b""
            if len(chunk) != size or self.rfile.read(2) != b"\r\n":
                return None
            body += chunk
        self.rfile.readline()
        return body

    def _answer(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)


for _method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
    setattr(_Handler, f"do_{_method}", _Handler._serve)
