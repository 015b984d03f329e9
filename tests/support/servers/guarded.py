"""Servers that end with whoever uses them: start one behind a guard, or join one that runs."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

GUARD = Path(__file__).with_name("guard.py")


class DidNotStart(Exception):
    """The server ended or did not answer; the message has what it said."""


class Guarded:
    """Our share in a server: it lives until the last share is let go of."""

    def __init__(self, folder: Path) -> None:
        """Take a share; FileNotFoundError when the server is ending or gone."""
        self.folder = folder
        self._users = (folder / "users").open()
        try:
            fcntl.flock(self._users, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self._users.close()
            raise FileNotFoundError(folder) from None
        if not (folder / "users").exists():
            self._users.close()
            raise FileNotFoundError(folder)

    def run(
        self,
        command: list[str],
        ready: Callable[[], bool],
        user: str = "",
        ends_by: int = 15,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start the server behind its guard and wait until it is `ready`."""
        guard = [sys.executable, "-I", "-S", str(GUARD), str(self.folder), user, str(ends_by)]
        subprocess.run([*guard, *command], env={**os.environ, **(env or {})}, check=True)
        end = time.monotonic() + 30
        while not (self.folder / "pid").exists():
            self._check(end, born=False)
        while not ready():
            self._check(end, born=True)

    def again(self, number: int, ready: Callable[[], bool], away_s: float = 0) -> None:
        """End the server with a signal, start it again later, and wait until it is `ready`."""
        before = self.pid
        (self.folder / "again").write_text(str(away_s))
        os.kill(before, number)
        end = time.monotonic() + away_s + 30
        while (self.folder / "again").exists() or self.pid == before:
            self._check(end, born=True)
        while not ready():
            self._check(end, born=True)

    def _check(self, end: float, born: bool) -> None:
        log = (self.folder / "log").read_text() if (self.folder / "log").exists() else ""
        died = born and not (self.folder / "pid").exists()
        if died or time.monotonic() > end:
            raise DidNotStart(log[-2000:] or "it says nothing")
        time.sleep(0.01)

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return int((self.folder / "pid").read_text())

    def let_go(self) -> None:
        """Give our share back; when it was the last, wait until nothing is left."""
        self._users.close()
        end = time.monotonic() + 20
        while time.monotonic() < end and not self._shared_by_others():
            time.sleep(0.005)

    def _shared_by_others(self) -> bool:
        """Whether others have a share; True also when nothing is left."""
        try:
            with (self.folder / "users").open() as users:
                if _locks(users, fcntl.LOCK_EX):
                    return False  # nobody, and the guard is about to notice
                return _locks(users, fcntl.LOCK_SH)  # else it is the guard that holds it
        except FileNotFoundError:
            return not self.folder.exists()


def _locks(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def new_folder(name: str) -> Path:
    """Make a folder of a server's own, with a short path: it holds a socket."""
    folder = Path(tempfile.mkdtemp(prefix=f"imagen-{name}-"))
    (folder / "users").touch()
    return folder
