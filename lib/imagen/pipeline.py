"""A pipeline that keeps running: one shell command in a process group of its own, and its guard."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from contextlib import suppress

from . import guard

_PART = 2**16
_AT_ONCE = 2**20  # bytes that are read before something else gets its turn
MOST = 16 * 2**20  # bytes of a line that has not ended


class Pipeline:
    """One running pipeline: lines in, lines out. No call waits for it."""

    def __init__(self, command: str) -> None:
        """Start `command` with sh -c; OSError when no process can be had."""
        self._open: list[int] = []
        self._children: list[subprocess.Popen[bytes]] = []
        self._unsent = self._rest = b""
        self.is_open = True
        try:
            self._start(command)
        except BaseException:
            self.kill()
            raise

    def _start(self, command: str) -> None:
        held = self._pipe()  # (theirs, ours): ours is closed on exec, and so in no child
        guard_out, guard_in = self._pipe()
        lives_out, lives_in = self._pipe()  # every process of the command has its writing end
        given, self._in = self._pipe()
        self._out, taken = self._pipe()
        self._guard_end, self._end = guard_out, lives_out
        leader = guard.start(held[0], guard_in)
        self._children.append(leader)
        child = subprocess.Popen(
            ["sh", "-c", command],
            stdin=given,
            stdout=taken,
            process_group=leader.pid,
            pass_fds=(lives_in,),
        )
        self._children.append(child)
        for theirs in (held[0], guard_in, lives_in, given, taken):
            os.close(theirs)
            self._open.remove(theirs)
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._open += ends
        return ends

    def waits(self) -> list[tuple[int, int]]:
        """Give the descriptors to wait on, each with the events of poll()."""
        found = [(self._end, select.POLLIN)]
        if self.is_open:
            found.append((self._out, select.POLLIN))
        if self._unsent:
            found.append((self._in, select.POLLOUT))
        return found

    def send(self, line: bytes) -> None:
        """Send a line, as far as it is taken; `flush` sends the rest."""
        self._unsent += line
        self.flush()

    def flush(self) -> None:
        """Send on what was not taken before; what nobody can read any more is forgotten."""
        while self._unsent:
            try:
                self._unsent = self._unsent[os.write(self._in, self._unsent[:_PART]) :]
            except BlockingIOError:
                return
            except OSError:
                self._unsent = b""

    def lines(self) -> list[bytes]:
        """Give the lines that have come; `is_open` says whether more can come."""
        parts = [self._rest]
        while self.is_open and sum(map(len, parts[1:])) < _AT_ONCE:
            try:
                part = os.read(self._out, _PART)
            except BlockingIOError:
                break
            parts.append(part)
            self.is_open = bool(part)
        *whole, self._rest = b"".join(parts).split(b"\n")
        if len(self._rest) > MOST:
            self._rest, self.is_open = b"", False
        return whole

    def is_alive(self) -> bool:
        """Whether its shell and its guard both run."""
        return self._children[1].poll() is None and not _has_ended(self._guard_end)

    def is_gone(self) -> bool:
        """Whether all its processes but the guard have ended."""
        return _has_ended(self._end)

    def end_input(self) -> None:
        """Let it finish what it has, then end."""
        if self._in in self._open:
            self._open.remove(self._in)
            os.close(self._in)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of it."""
        if self._children:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._children[0].pid, number)

    def kill(self) -> None:
        """Kill all of it, and forget it."""
        self.signal(signal.SIGKILL)
        for child in self._children:
            child.wait()
        self._children = []
        for one in self._open:
            with suppress(OSError):
                os.close(one)
        self._open = []


def _has_ended(descriptor: int) -> bool:
    """Whether nobody holds the other end of a pipe that nothing is written to."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
