"""Deliveries: who journals them, and what becomes of a run that nobody waits for any more.

A render is delivered when the program whose stdout the caller reads has flushed its last record.
Inside imagen-generate and imagen-compare that is the outer program (`Delivery`). `RenderWatch` is
for imagen-render itself: it journals that the render under way was abandoned.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import ImagenError
from ..files import locks
from ..ledger import Ledger
from .reader import Reader


class RenderWatch:
    """Journals that the render under way was abandoned, while imagen-render itself is busy."""

    def __init__(self, path: Path | None, reader: Reader) -> None:
        """Take the ledger's path and who reads the records; nothing is watched yet."""
        self._path = path
        self._reader = reader
        self._render_id: str | None = None
        self._ledger: Ledger | None = None  # of the thread: a connection belongs to one
        self._runs = False

    def is_abandoned(self) -> bool:
        """Whether nobody waits for our records any more."""
        return self._reader.is_gone()

    @contextmanager
    def over(self, render_id: str) -> Iterator[None]:
        """Watch while this render is made; the first one starts the thread."""
        self._render_id = render_id
        if self._path is not None and not self._runs:
            self._runs = True
            self._reader.watch(self._abandon)
        try:
            yield
        finally:
            self._render_id = None

    def _abandon(self) -> None:
        render_id = self._render_id
        if render_id is not None:
            with suppress(ImagenError, OSError):  # the next look tries again
                self._ledger = self._ledger or Ledger(self._path)
                self._ledger.deliveries.abandon(render_id)


class Delivery:
    """What an outer program does about the records that imagen-render hands to it."""

    def __init__(
        self, path: Path, reader: Reader, note: Callable[[str], None], run: str | None = None
    ) -> None:
        """Take the ledger's path, who reads our records, and who is told of faults.

        `run` is the name of a run whose lock is held already.
        """
        self.run = run or str(uuid.uuid4())
        self._is_locked = run is not None
        self._path = path
        self._reader = reader
        self._note = note
        self._ledger: Ledger | None = None
        self._watching_ledger: Ledger | None = None
        self._hangs_up: int | None = None

    @contextmanager
    def running(self) -> Iterator[int]:
        """Hold the lock of the run; gives the descriptor that hangs up when nobody waits for us."""
        with ExitStack() as stack:
            if not self._is_locked:
                with suppress(OSError, locks.NoLocks):  # imagen-render says what is wrong there
                    self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    stack.enter_context(locks.lock(self._path.parent / "locks", self.run))
            descriptor, self._hangs_up = os.pipe()
            stack.callback(os.close, descriptor)
            stack.callback(self._hang_up)
            self._reader.watch(self._abandon)
            yield descriptor

    def is_abandoned(self) -> bool:
        """Whether nobody waits for our records any more."""
        return self._reader.is_gone()

    def written(self, record: Mapping[str, Any]) -> None:
        """Journal that a record was written to the caller and flushed."""
        if "file" not in record or self.is_abandoned():
            return
        try:
            self._ledger = self._ledger or Ledger(self._path)
            self._ledger.deliveries.written(record)
        except OSError as fault:
            self._note(f"the ledger {self._path} cannot be used: {fault.strerror}")
        except ImagenError as fault:
            self._note(f"{fault.message}; the record goes out all the same")

    def _abandon(self) -> None:
        """Let imagen-render know, and journal what it has handed to us; called in a thread."""
        self._hang_up()
        with suppress(ImagenError, OSError):  # the next look tries again
            self._watching_ledger = self._watching_ledger or Ledger(self._path)
            self._watching_ledger.deliveries.abandon_run(self.run)

    def _hang_up(self) -> None:
        descriptor, self._hangs_up = self._hangs_up, None
        if descriptor is not None:
            os.close(descriptor)
