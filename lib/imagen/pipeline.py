"""A pipeline that keeps running: one shell command in a process group of its own, and its guard.

The guard is the group's leader. It holds one end of a pipe from us: when we die, however that is,
it reads the end of it and kills the group.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

# it outlives what is sent to its group to end the others well
_GUARD = "trap '' INT TERM HUP QUIT PIPE; read -r _; kill -KILL 0"
_PART = 2**16
MOST = 16 * 2**20  # bytes of a line that has not ended


class Pipeline:
    """One running pipeline: lines in, lines out."""

    def __init__(self, command: str) -> None:
        """Start `command` with sh -c; OSError when no process can be had."""
        held, self._held = os.pipe()  # ours ends with us: it is closed on exec, and in no child
        try:
            self._guard = subprocess.Popen(
                ["sh", "-c", _GUARD],
                stdin=held,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
        finally:
            os.close(held)
        try:
            self._child = subprocess.Popen(
                ["sh", "-c", command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=self._guard.pid,
            )
        except BaseException:
            self.kill()
            raise
        assert self._child.stdin and self._child.stdout
        self._in, self._out = self._child.stdin, self._child.stdout
        os.set_blocking(self._out.fileno(), False)
        self._rest = b""

    def fileno(self) -> int:
        """Give the descriptor to wait on for lines."""
        return self._out.fileno()

    def send(self, line: bytes) -> bool:
        """Send a line; False when the pipeline takes none any more."""
        try:
            self._in.write(line)
            self._in.flush()
        except (BrokenPipeError, ValueError):
            return False
        return True

    def lines(self) -> tuple[list[bytes], bool]:
        """Give the lines that have come, and whether more can come."""
        open_ = True
        while open_:
            try:
                part = os.read(self._out.fileno(), _PART)
            except BlockingIOError:
                break
            self._rest += part
            open_ = bool(part) and len(self._rest) < MOST
        *whole, self._rest = self._rest.split(b"\n")
        return whole, open_

    def is_alive(self) -> bool:
        """Whether its shell and its guard both run."""
        return self._child.poll() is None and self._guard.poll() is None

    def end_input(self) -> None:
        """Let it finish what it has, then end."""
        with suppress(BrokenPipeError):
            self._in.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._guard.pid, number)

    def kill(self) -> None:
        """Kill all of it, and forget it."""
        self.signal(signal.SIGKILL)
        for child in (self._guard, getattr(self, "_child", None)):
            if child is not None:
                child.wait()
        with suppress(OSError):
            os.close(self._held)
        for stream in (getattr(self, "_in", None), getattr(self, "_out", None)):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
