"""Wait for a lock that another process holds, for a limited time, and tell people whom for."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ..ledger import Ledger

LOOK_S = 0.05
WARN_S = 3.0  # a wait that takes longer is noted, not only shown as progress
STOPPED_S = 60.0  # a process that is stopped is not waited for any longer, whatever --wait says
_MANY = 10  # looks at a lock between two at its holder


class LockWait:
    """One wait: for a lock, or for what the process that holds it does."""

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        what: str,
        note: Callable[[str], None],
        tell: Callable[[float, str], None] = lambda seconds, text: None,
    ) -> None:
        """Take the lock's name, what is waited for, and who is told of it."""
        self._ledger = ledger
        self._name = name
        self._what = what
        self._note = note
        self._tell = tell
        self._began = time.monotonic()
        self._looks = 0
        self._stopped_at: float | None = None  # since when its holder is stopped
        self._noted: set[bool] = set()
        self.pid: int | None = None

    def hold(self, stack: ExitStack, wait_s: float | None) -> bool:
        """Hold the lock until the stack ends; False when the wait is over first."""
        if self._ledger.path is None:
            return True
        while True:
            with ExitStack() as attempt:
                if attempt.enter_context(self._ledger.lock(self._name, wait=False)):
                    stack.push(attempt.pop_all())
                    return True
            if self.is_over(wait_s):
                return False
            time.sleep(LOOK_S)

    def is_over(self, wait_s: float | None) -> bool:
        """Whether it has been waited for long enough; tells people whom for."""
        now = time.monotonic()
        if self._looks % _MANY == 0:
            self._look(now)
        self._looks += 1
        waited_s, stopped = now - self._began, self._stopped_at
        self._tell(waited_s, f"waiting for {self._what} ({self.holder})")
        if waited_s >= WARN_S and self.is_stopped not in self._noted:
            self._noted.add(self.is_stopped)
            self._note(f"waiting for {self._what} ({self.holder}; hint: {self.hint})")
        is_stuck = stopped is not None and now - stopped >= STOPPED_S
        return is_stuck or (wait_s is not None and waited_s >= wait_s)

    def _look(self, now: float) -> None:
        self.pid = self._ledger.holder(self._name)
        stopped = self.pid is not None and _is_stopped(self.pid)
        self._stopped_at = (self._stopped_at or now) if stopped else None

    @property
    def is_stopped(self) -> bool:
        """Whether its holder is stopped (SIGSTOP, Ctrl-Z)."""
        return self._stopped_at is not None

    @property
    def holder(self) -> str:
        """Name the process that holds it, for people."""
        if self.pid is None:
            return "another process"
        return f"process {self.pid}{', which is stopped' if self.is_stopped else ''}"

    @property
    def hint(self) -> str:
        """Return what can be done about it."""
        return f"kill -CONT {self.pid} continues it" if self.is_stopped else "--wait S limits that"

    @property
    def seconds(self) -> float:
        """Return how long it has taken so far."""
        return time.monotonic() - self._began


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped; False where the system does not tell."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in (b"T", b"t")
