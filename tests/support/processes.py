"""Processes as /proc shows them: the members of a group, what runs below a process, who lives."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def _states() -> Iterator[tuple[int, str, int, int]]:
    """Yield the id of every process, its state, its parent and its process group."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent, group = path.read_text().rpartition(")")[2].split()[:3]
            yield int(path.parent.name), state, int(parent), int(group)


def group_members(group: int) -> list[int]:
    """Return the living processes of a group."""
    return [pid for pid, state, _parent, other in _states() if other == group and state != "Z"]


def children_of(pid: int) -> list[int]:
    """Return the children of a process."""
    return [child for child, _state, parent, _group in _states() if parent == pid]


def descendants(pid: int) -> list[int]:
    """Return the processes below one, its children first."""
    children = children_of(pid)
    return children + [one for child in children for one in descendants(child)]


def is_alive(pid: int) -> bool:
    """Whether a process runs: a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_tree(child: subprocess.Popen[bytes]) -> None:
    """Kill a process and what it started, all at once."""
    for pid in [child.pid, *descendants(child.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.wait()


def kill_alone(child: subprocess.Popen[bytes]) -> None:
    """Kill a process; what it started is left to its guard."""
    child.kill()
    child.wait()
