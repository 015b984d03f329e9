"""Ports of this machine, which other tests, and other test runs, take at the same time."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

LOCAL = "127.0.0.1"


def reserved_port() -> int:
    """Return a port for a server that binds it itself (with SO_REUSEADDR, as servers do).

    A connection that was closed on it makes the kernel give it to nobody who asks for any port, for
    a minute.
    """
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((LOCAL, 0))
        listening.listen(1)
        with socket.create_connection(listening.getsockname()) as client:
            accepted, _ = listening.accept()
            accepted.close()
            client.recv(1)
        return int(listening.getsockname()[1])


@contextmanager
def refusing_port() -> Iterator[int]:
    """Hold a port where nobody listens: connections to it are refused."""
    with socket.socket() as bound:
        bound.bind((LOCAL, 0))
        yield int(bound.getsockname()[1])
