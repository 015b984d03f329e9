"""The ledger: what this machine asked, paid and made. The one importer of sqlite3.

Beside the file stand the locks that tell a living render from a dead one.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..files import locks
from ..records.record import canonical_uuid
from .comparisons import Comparisons
from .database import Database, LedgerFault
from .deliveries import Deliveries
from .journal import Journal
from .uploads import Uploads
from .usage import Usage


def opened(path: Path, note: Callable[[str], None]) -> Ledger:
    """Open the ledger, or go on without one and say so when there is no place for it."""
    try:
        return Ledger(path)
    except OSError as fault:
        why = f"{fault.strerror}: {fault.filename}"
        note(f"no ledger ({why}): ids are global for this run only (hint: set $IMAGEN_LEDGER)")
        return Ledger(None)


def required(path: Path) -> Ledger:
    """Open the ledger; LedgerFault when that cannot be, before anything is paid."""
    try:
        return Ledger(path)
    except OSError as fault:
        why = f"{fault.strerror}: {fault.filename}"
        raise LedgerFault(f"the ledger {path} cannot be used: {why}") from None


class Ledger:
    """The ledger at a path, or none: then it ends with this process, and nothing is locked."""

    def __init__(self, path: Path | None) -> None:
        """Open or create it; OSError when there is no place for it, LedgerFault when it is none."""
        self.path = path
        database = Database(path)
        self.close = database.close
        row = database.row("select id from ledger")
        self.id = str(row["id"]) if row else str(uuid.uuid4())
        self.journal = Journal(database)
        self.deliveries = Deliveries(database)
        self.comparisons = Comparisons(database)
        self.usage = Usage(database)
        self.uploads = Uploads(database)

    def render_id(self, name: str) -> str:
        """Give an id as a global one: itself if a UUID, else made of it and the ledger's own."""
        return canonical_uuid(name) or str(uuid.uuid5(uuid.UUID(self.id), name))

    @contextmanager
    def lock(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of a render (or of another name) while it works.

        Gives whether we have it: False only when not waiting and another holds it. Without a
        ledger nobody can be asked, so only a lock that may wait is given.
        """
        if self.path is None:
            yield wait
            return
        with ExitStack() as stack:
            try:
                is_ours = stack.enter_context(locks.lock(self.path.parent / "locks", name, wait))
            except locks.NoLocks as fault:
                says = f"the ledger {self.path} cannot be used: no lock beside it: {fault}"
                raise LedgerFault(says) from None
            yield is_ours

    def holder(self, name: str) -> int | None:
        """Return the id of the process that holds the lock of that name, where it is known."""
        return locks.holder(self.path.parent / "locks", name) if self.path else None

    def is_locked(self, name: str) -> bool:
        """Whether another process holds the lock of that name."""
        with self.lock(name, wait=False) as ours:
            return not ours

    @contextmanager
    def take_over(self, render_id: str) -> Iterator[bool]:
        """Hold the lock of a render that is dead and over; False when it lives or can go on."""
        with self.lock(render_id, wait=False) as is_ours:
            yield is_ours and not self.journal.is_open(render_id)
