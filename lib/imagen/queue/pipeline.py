"""A pipeline that keeps running: one shell command, lines in and lines out."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress

from .process_tree import ProcessTree

_PART = 2**16
_AT_ONCE = 2**20  # bytes that are read before something else gets its turn
MOST = 16 * 2**20  # bytes of a line that has not ended


class Pipeline:
    """One running pipeline: lines in, lines out. No call waits for it, but for `end`."""

    def __init__(self, command: str) -> None:
        """Start `command` with sh -c; OSError when no process can be had."""
        self._unsent = self._rest = b""
        self.is_open = True
        stdin, self._in = os.pipe()
        self._out, stdout = os.pipe()
        self._open = [self._in, self._out]
        try:
            self.tree = ProcessTree(["sh", "-c", command], stdin, stdout)
        except BaseException:
            self._close()
            raise
        finally:
            os.close(stdin)
            os.close(stdout)
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)

    def waits(self) -> list[tuple[int, int]]:
        """Give the descriptors to wait on, each with the events of poll()."""
        descriptors = self.tree.waits()
        if self.is_open:
            descriptors.append((self._out, select.POLLIN))
        if self._unsent:
            descriptors.append((self._in, select.POLLOUT))
        return descriptors

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
        return self.tree.is_alive()

    def is_gone(self) -> bool:
        """Whether all its processes but the guard have ended."""
        return self.tree.is_gone()

    def end_input(self) -> None:
        """Let it finish what it has, then end."""
        if self._in in self._open:
            self._open.remove(self._in)
            os.close(self._in)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of it; after KILL `is_gone` says when it has ended."""
        self.tree.signal(number)

    def end(self) -> list[int]:
        """Kill all of it and forget it; gives the processes that could not be ended."""
        survivors = [] if self.tree.end() else self.tree.survivors()
        self._close()
        return survivors

    def forget(self) -> None:
        """Close what is open."""
        self.tree.discard()
        self._close()

    def _close(self) -> None:
        for descriptor in self._open:
            with suppress(OSError):
                os.close(descriptor)
        self._open = []
