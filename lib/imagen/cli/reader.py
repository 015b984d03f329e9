"""Notice that nobody waits for our records any more: the run is abandoned.

A pipe or socket that nobody reads, and a terminal that hung up, say so by themselves. Behind a pipe
a shell may be gone while something still holds its reading end, so there the parent counts too. A
regular file can be read at any time: a run that writes to one is never abandoned.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable

_LEAVING = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR)
LOOK_S = 0.1  # between two looks at the parent
_parent: int | None = None


def remember_parent() -> None:
    """Remember under which process we started; as early as possible."""
    global _parent  # noqa: PLW0603 - a process has one
    _parent = os.getppid()


class Reader:
    """Whoever reads what we write to some descriptors."""

    def __init__(self, *descriptors: int) -> None:
        """Take the descriptors; those of files, and closed ones, are left out."""
        modes = {one: _mode(one) for one in descriptors}
        self._leaving = [one for one, mode in modes.items() if mode in _LEAVING]
        self.can_leave = bool(self._leaving)
        self._parent = _parent if stat.S_IFIFO in modes.values() else None

    def is_gone(self) -> bool:
        """Whether nobody waits for what we write."""
        if self._parent is not None and os.getppid() != self._parent:
            return True
        poll = select.poll()  # its own: two threads may ask
        for one in self._leaving:
            poll.register(one, 0)  # POLLERR and POLLHUP come unasked
        return bool(poll.poll(0))

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Call `on_gone` in a thread once nobody waits, and again and again from then on."""
        import threading

        if self.can_leave:
            threading.Thread(target=self._look, args=(on_gone,), daemon=True).start()

    def _look(self, on_gone: Callable[[], None]) -> None:
        import time

        while True:
            if self.is_gone():
                on_gone()
            time.sleep(LOOK_S)


def _mode(descriptor: int) -> int:
    try:
        return stat.S_IFMT(os.fstat(descriptor).st_mode)
    except OSError:
        return 0
