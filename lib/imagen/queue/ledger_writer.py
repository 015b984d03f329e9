"""This machine's ledger as a worker uses it: a thread writes, and nobody waits for it.

Another process may hold the ledger for long, and a worker's loop has leases to renew.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from ..errors import ImagenError, from_os
from ..files import locks
from ..ledger import Ledger, required

ANSWER_S = 2.0  # for the thread to answer, and at the end for it to write what is left


class MachineLedger:
    """The ledger at a path, if there is one; `tell` says what cannot be written."""

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        """Take the path and who is told; nothing is opened yet."""
        self.run = str(uuid.uuid4())  # by which renders name the program that delivers them
        self._path = path
        self._tell = tell
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @contextmanager
    def lives(self) -> Iterator[None]:
        """Hold the lock of this run, where there is a place for locks."""
        with ExitStack() as stack:
            if self._path.parent.is_dir():
                with suppress(OSError, locks.NoLocks):
                    stack.enter_context(locks.lock(self._path.parent / "locks", self.run))
            yield

    def delivered(self, render_id: str) -> None:
        """Journal that the records of a render have reached the queue, if it is in this ledger."""
        self._do(lambda: self._write(render_id))

    def fault(self) -> ImagenError | None:
        """Return why the ledger cannot be used, None when it can or when that takes too long."""
        faults: SimpleQueue[ImagenError | None] = SimpleQueue()
        self._do(lambda: faults.put(self._check()))
        try:
            return faults.get(timeout=ANSWER_S)
        except Empty:
            return None

    def close(self) -> None:
        """Let the thread write what is left, but not for long."""
        if self._thread:
            done = threading.Event()
            self._tasks.put(done.set)
            done.wait(ANSWER_S)

    def _do(self, task: Callable[[], None]) -> None:
        self._tasks.put(task)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            self._tasks.get()()

    def _write(self, render_id: str) -> None:
        try:
            if self._path.exists():
                ledger = Ledger(self._path)
                try:
                    ledger.journal.delivered(render_id)
                finally:
                    ledger.close()
        except (ImagenError, OSError) as error:
            fault = error if isinstance(error, ImagenError) else from_os(error, "no ledger")
            self._tell(f"{render_id}: its delivery was not journaled: {fault.as_line()}")

    def _check(self) -> ImagenError | None:
        try:
            required(self._path).close()
        except ImagenError as fault:
            return fault
        return None
