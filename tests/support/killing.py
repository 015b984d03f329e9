"""Runs imagen-render and kills it with SIGKILL at the nth step it takes, thousands of times.

Run as a program it reads rounds as JSON lines on stdin and answers each with how it ended: every
round is a fork, so that nothing is imported twice. `Rounds` is that program's other end.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple


class Ended(NamedTuple):
    """How a round ended: its exit status (-9 when killed), its records, and the steps it took."""

    status: int
    records: list[dict[str, Any]]
    err: str
    steps: list[str]


class Rounds:
    """Runs rounds in a folder of a test's own."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._child = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"SUBMITS": str(folder / "submits"), **env},
            cwd=folder,
            text=True,
        )

    def run(self, *args: object, kill_at: int | None = None, **env: str) -> Ended:
        """Run imagen-render to its end, or to its step of that number."""
        assert self._child.stdin and self._child.stdout
        round_ = {"args": [str(one) for one in args], "kill_at": kill_at, "env": env}
        self._child.stdin.write(json.dumps(round_) + "\n")
        self._child.stdin.flush()
        status = json.loads(self._child.stdout.readline())
        out = (self.folder / "round.out").read_text()
        records = [json.loads(line) for line in out.splitlines(keepends=True) if line[-1] == "\n"]
        err = (self.folder / "round.err").read_text()
        return Ended(
            status, records, err, (self.folder / "round.steps").read_text().split("\n")[:-1]
        )

    def close(self) -> None:
        """End the program."""
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            if stream:
                stream.close()


# -- the program -----------------------------------------------------------------------------------


def _steps() -> list[tuple[Any, str]]:
    """Every function that leaves something behind, on the disk, at a server or in a pipe."""
    from imagen import http
    from imagen.backends import mock
    from imagen.cli import pipe
    from imagen.files import atomic, locks, reservations, store
    from imagen.ledger.database import Database
    from imagen.ledger.journal import Journal

    return [
        *((Journal, name) for name in ("intend", "withdraw", "submitted", "done", "failed")),
        (Journal, "delivered"),
        (Database, "write"),
        *((atomic, name) for name in ("publish", "move", "unlink_durably")),
        *((module, "sync_folder") for module in (atomic, reservations, store)),
        (store, "store"),
        (reservations, "_claimed"),
        (reservations.Place, "release"),
        (locks, "_locked"),
        (mock.Mock, "_accept"),
        (mock.Mock, "collect"),
        (http.Server, "_ask"),
        (pipe, "write_out"),
    ]


def _install(kill_at: int | None, trace: int, count: Path) -> None:
    """Count the steps, before and after each; die at the one that was asked for."""
    taken = 0

    def step(name: str) -> None:
        nonlocal taken
        os.write(trace, f"{name}\n".encode())
        if taken == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        taken += 1

    def around(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def stepping(*args: Any, **more: Any) -> Any:
            step(f"before {name}")
            found = function(*args, **more)
            if name == "atomic.move" and args[1].parent.name == "mock":  # the mock has taken it on
                with count.open("a") as stream:
                    stream.write(f"{args[1]}\n")
            step(f"after {name}")
            return found

        return stepping

    for owner, name in _steps():
        named = f"{getattr(owner, '__name__', owner).rpartition('.')[2]}.{name}"
        setattr(owner, name, around(named, getattr(owner, name)))


def _no_links(*_args: object, **_more: object) -> None:
    """Stand in for a file system without hard links."""
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def _round(said: Mapping[str, Any]) -> None:
    os.environ.update(said["env"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "round.out"), (2, "round.err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    if "NO_LINKS" in os.environ:
        os.link = _no_links
    trace = os.open("round.steps", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    _install(said["kill_at"], trace, Path(os.environ["SUBMITS"]))
    from imagen.commands import render

    render.main(said["args"])


def _serve() -> None:
    from preloaded import load  # beside this file

    load()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123
            status = 99
            try:
                _round(json.loads(line))
            except SystemExit as ended:
                status = int(ended.code or 0)
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, code = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(code)), flush=True)


if __name__ == "__main__":
    _serve()
