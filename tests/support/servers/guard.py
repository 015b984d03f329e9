"""Run a server for as long as somebody uses it, and leave nothing behind.

    python guard.py FOLDER USER SIGNAL COMMAND…

Who uses the server holds a shared lock on FOLDER/users. The kernel lets go of it when they end,
however they end; then the guard gets the exclusive one, ends the server and removes the folder. It
is a process in a session of its own, so that what kills a test run does not reach it. While the
server lives, FOLDER/pid is there; what it says is in FOLDER/log. A server that ends while
FOLDER/again is there is started again, after as many seconds as that says.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


class Called(BaseException):
    """A signal came: CHLD when the server ended by itself, else we were told to end."""


def main(folder: Path, user: str, number: int, command: list[str]) -> None:
    """Start the command, detached, and wait for the lock; `number` is the signal that ends it."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    server = None
    with (folder / "users").open() as users, (folder / "log").open("ab") as log:
        try:
            for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(one, _called)
            while True:
                server = _start(folder, user, number, command, log)
                _tell(folder, server.pid)
                try:
                    fcntl.flock(users, fcntl.LOCK_EX)
                    break
                except Called as called:
                    if called.args != (signal.SIGCHLD,) or not (folder / "again").exists():
                        raise
                    server.wait()
                    time.sleep(float((folder / "again").read_text()))
                    (folder / "again").unlink()
        except Called as called:
            _put_off()
            (folder / "pid").unlink(missing_ok=True)
            if called.args == (signal.SIGCHLD,):
                fcntl.flock(users, fcntl.LOCK_EX)  # its log may still be read
        _put_off()
        if server:
            _end(server, number)
        shutil.rmtree(folder, ignore_errors=True)


def _tell(folder: Path, pid: int) -> None:
    """Say which process it is; nobody reads half a number."""
    (folder / "pid.new").write_text(str(pid))
    (folder / "pid.new").rename(folder / "pid")


def _called(number: int, _frame: Any) -> None:
    raise Called(number)


def _put_off() -> None:
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _start(
    folder: Path, user: str, number: int, command: list[str], log: Any
) -> subprocess.Popen[bytes]:
    who: dict[str, Any] = {}
    if user:
        who = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=folder,
        preexec_fn=lambda: _die_with_parent(number),  # noqa: PLW1509 - there are no threads
        **who,
    )


def _die_with_parent(number: int) -> None:
    """Should somebody kill the guard, the server ends too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


def _end(server: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        server.send_signal(number)
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
