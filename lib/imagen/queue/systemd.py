"""Tell systemd how a service fares (sd_notify): READY=1, STATUS=…, WATCHDOG=1, STOPPING=1."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(*said: str) -> None:
    """Send assignments to $NOTIFY_SOCKET; without one, nothing."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect(address)
        out.sendall("\n".join(said).encode())


def watchdog_s() -> float | None:
    """Give how often systemd wants to hear from us at the least, None when it does not."""
    said = os.environ.get("WATCHDOG_USEC", "")
    ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(said) / 1e6 if said.isdecimal() and ours else None
