"""Tell people that a server has been silent for a while, while a request of ours is under way.

A request blocks whoever makes it. So a thread of its own looks at the clock; what both say goes
through one lock, and the thread is over before the block ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

_TICK_S = 1.0
_NORMAL_S = 2.0  # a server may take so long without a word about it


class Silence:
    """Watches requests: `with Silence(tell) as silence: …`, and `silence.heard` on every answer."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Take what shows a text to people."""
        self._tell = tell
        self._heard_at = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="silence", daemon=True)

    def __enter__(self) -> Silence:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End; nothing is told any more."""
        self._over.set()
        self._thread.join(_TICK_S)

    def heard(self, text: str) -> None:
        """Show what an answer says."""
        with self._lock:
            self._heard_at = time.monotonic()
            self._tell(text)

    def _watch(self) -> None:
        while not self._over.wait(_TICK_S):
            with self._lock, suppress(OSError, ValueError):  # the terminal may have gone
                silent_s = time.monotonic() - self._heard_at
                if silent_s >= _NORMAL_S and not self._over.is_set():
                    self._tell(f"no answer from the server for {silent_s:.0f} s")
