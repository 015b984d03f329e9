"""A real PgBouncer in front of a database, in transaction mode, as Supabase has at port 6543."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2

from .ports import reserved_port
from .postgres import Place

LONGEST_S = 10


@contextmanager
def pooling(place: Place, program: str) -> Iterator[str]:
    """Give the pooler's address of the database, for as long as the block runs."""
    port = reserved_port()
    parts = place.cluster.parts
    settings = (
        f"[databases]\n{place.name} = host={parts['host']} port={parts['port']} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\npool_mode = transaction\n"
    )
    who: dict[str, Any] = {}
    if os.geteuid() == 0:  # which it refuses
        who = {"user": "nobody", "extra_groups": []}
    with tempfile.NamedTemporaryFile("w", suffix=".ini") as file:
        file.write(settings)
        file.flush()
        Path(file.name).chmod(0o644)
        child = subprocess.Popen([program, "-q", file.name], stderr=subprocess.PIPE, **who)
        try:
            dsn = f"postgresql://postgres@127.0.0.1:{port}/{place.name}"
            _wait_for(dsn, child)
            yield dsn
        finally:
            child.terminate()
            child.communicate()


def _wait_for(dsn: str, child: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + LONGEST_S
    while True:
        try:
            psycopg2.connect(dsn).close()
            return
        except psycopg2.OperationalError as fault:
            assert child.poll() is None, child.stderr and child.stderr.read()
            assert time.monotonic() < end, fault
            time.sleep(0.01)
