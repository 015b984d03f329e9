"""A command whose processes all end with this one, also when it is killed, stopped or escaped from.

guard_program.py does the work, in a process group that it leads. It is waited for only when all is
over, so that its number, which is the group's, is nobody else's before.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .guard_program import KILL_S, boottime, guarded, processes, send

GONE_S = KILL_S + 1.0  # from kill() until what is left cannot be ended
_FORCE_S = 1.0  # for the guard to begin what it was told
_PROGRAM = Path(__file__).with_name("guard_program.py")


class ProcessTree:
    """A running command, all processes below it, and their guard. Only `end` waits."""

    def __init__(self, command: Sequence[str], stdin: int, stdout: int) -> None:
        """Start the command with these descriptors; OSError when no process can be had."""
        self.mark = secrets.token_hex(8)
        self._text, self._reported = b"", set[int]()
        self._has_first = self._has_any = True
        self._killed_at: float | None = None
        self._open: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start([*command], stdin, stdout)
        except BaseException:
            self.discard()
            raise

    def _start(self, command: list[str], stdin: int, stdout: int) -> None:
        orders, self._orders = self.pipe()
        self._reports, reports = self.pipe()
        self._lifetime, lifetime = self.pipe()  # every process of the command has its writing end
        source, sink = _copy(stdin), _copy(stdout)
        self._open += [source, sink]
        streams = (source, sink, lifetime)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PROGRAM), self.mark, *map(str, streams), *command],
            stdin=orders,
            stdout=reports,
            process_group=0,
            pass_fds=streams,
        )
        for descriptor in (orders, reports, *streams):
            self.close(descriptor)
        os.set_blocking(self._orders, False)
        os.set_blocking(self._reports, False)

    def pipe(self) -> tuple[int, int]:
        """Make a pipe that `discard` closes; its descriptors are no standard streams."""
        ends = os.pipe()
        copies = [_copy(descriptor) for descriptor in ends]
        for descriptor in ends:
            os.close(descriptor)
        self._open += copies
        return copies[0], copies[1]

    def close(self, descriptor: int) -> None:
        """Close an end of such a pipe, once."""
        if descriptor in self._open:
            self._open.remove(descriptor)
            os.close(descriptor)

    @property
    def group(self) -> int:
        """The process group."""
        assert self._process is not None
        return self._process.pid

    def waits(self) -> list[tuple[int, int]]:
        """Return the descriptors to wait on, each with the events of poll()."""
        descriptor = self._reports if self._reports in self._open else self._lifetime
        return [(descriptor, select.POLLIN)]

    def allow_until(self, deadline: float) -> None:
        """Let it work until a time of boottime(), if this process says nothing more; inf: always.

        What is stopped, or asleep, longer than that finds it ended.
        """
        self._order(f"until {deadline:.3f}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes; KILL is what `kill` does."""
        if number == signal.SIGKILL:
            self.kill()
            return
        with suppress(OSError):
            os.killpg(self.group, number)
        self._order(f"signal {number:d}")

    def kill(self) -> None:
        """Begin to kill all its processes; `is_gone` says when that is done."""
        if self._killed_at is None:
            self._killed_at = boottime()
            self._order("kill")

    def is_alive(self) -> bool:
        """Return whether the command's own process and the guard both run."""
        self._listen()
        return self._has_first and self._guards

    def is_gone(self) -> bool:
        """Return whether all processes but the guard have ended.

        After `kill` it is asked until then: it also does what the guard no longer can.
        """
        self._listen()
        if self._guards and not self._is_late():
            return not self._has_any and self._killed_at is None and _has_ended(self._lifetime)
        if self._killed_at is not None:
            self._force()
        return not self._guards and not self.survivors() and _has_ended(self._lifetime)

    def survivors(self) -> list[int]:
        """Return the processes that live although they were killed, as far as they can be found."""
        living = processes()
        return sorted((self._reported & {*living}) | (guarded(self.mark) - {self.group}))

    def end(self, seconds: float = GONE_S) -> bool:
        """Kill all of it, wait so long at the most, and forget it; True when it is gone."""
        self.kill()
        ends = boottime() + seconds
        while not (gone := self.is_gone()) and boottime() < ends:
            select.select([], [], [], 0.005)
        self.discard()
        return gone

    def discard(self) -> None:
        """Forget it: close what is open. Processes that were not killed yet are, by the guard."""
        was_killed = self._killed_at is not None
        is_over = self._process is not None and (was_killed or self.is_gone())
        for descriptor in [*self._open]:
            self.close(descriptor)
        if self._process is not None:
            if is_over:  # the guard has nothing to do any more
                self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GONE_S)

    @property
    def _guards(self) -> bool:
        """Whether the guard runs, by the pipe that it alone writes to."""
        return self._reports in self._open

    def _is_late(self) -> bool:
        return self._killed_at is not None and boottime() > self._killed_at + _FORCE_S

    def _order(self, text: str) -> None:
        if self._orders in self._open:
            with suppress(OSError):  # it is gone, or has stopped itself: `is_gone` looks after it
                os.write(self._orders, f"{text}\n".encode())

    def _listen(self) -> None:
        while self._reports in self._open:
            try:
                part = os.read(self._reports, 4096)
            except BlockingIOError:
                return
            if not part:
                self.close(self._reports)
            *lines, self._text = (self._text + part).split(b"\n")
            for line in lines:
                word, *values = line.split()
                self._has_first &= word not in (b"first", b"all")
                self._has_any &= word != b"all"
                self._reported |= {int(value) for value in values}

    def _force(self) -> None:
        """Kill the group and what has the mark: the guard is gone, or does not do it."""
        with suppress(OSError):
            os.killpg(self.group, signal.SIGKILL)
        for pid in guarded(self.mark):
            send(pid, signal.SIGKILL)


def _copy(descriptor: int) -> int:
    """Duplicate a descriptor to a number that is no standard stream's."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)


def _has_ended(descriptor: int) -> bool:
    """Return whether nobody holds the other end of a pipe that nothing is written to."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
