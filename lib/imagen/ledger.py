"""The ledger: what this machine knows about its renders. The one importer of sqlite3.

For now it holds one thing, the random id that makes this ledger's ids global, and beside it the
locks that tell a living render from a dead one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from .errors import Refused
from .record import canonical_uuid

_BUSY_S = 10


class LedgerFault(Refused):
    """The ledger cannot be used"""

    code = "ledger"
    hint = "move the file away, or name another one in $IMAGEN_LEDGER"


def opened(path: Path, note: Callable[[str], None]) -> Ledger:
    """Open the ledger, or go on without one and say so when there is no place for it."""
    try:
        return Ledger(path)
    except OSError as fault:
        why = f"{fault.strerror}: {fault.filename}"
        note(f"no ledger ({why}): ids are global for this run only (hint: set $IMAGEN_LEDGER)")
        return Ledger(None)


class Ledger:
    """The ledger at a path, or none: then its id is drawn for this run, and nothing is locked."""

    def __init__(self, path: Path | None) -> None:
        """Open or create it; OSError when there is no place for it, LedgerFault when it is none."""
        self.path = path
        self.id = _id_of(path) if path else str(uuid.uuid4())

    def render_id(self, name: str) -> str:
        """Give an id as a global one: itself if a UUID, else made of it and the ledger's own."""
        return canonical_uuid(name) or str(uuid.uuid5(uuid.UUID(self.id), name))

    @contextmanager
    def lock(self, render_id: str, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of a render while it works; the kernel frees it at our death.

        Gives whether we have it: False only when not waiting and another holds it. Without a
        ledger nobody can be asked, so only a lock that may wait is given.
        """
        if self.path is None:
            yield wait
            return
        folder = self.path.parent / "locks"
        folder.mkdir(mode=0o700, exist_ok=True)
        name = folder / hashlib.sha256(render_id.encode()).hexdigest()
        descriptor = _locked(name, wait)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                name.unlink(missing_ok=True)  # only ever removed while held
                os.close(descriptor)


def _locked(name: Path, wait: bool) -> int | None:
    """Lock the file of that name: after locking, the name must still be this file's."""
    while True:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):
                if name.stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _id_of(path: Path) -> str:
    import sqlite3

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)) as db:
            if db.execute("pragma user_version").fetchone()[0] == 0:
                _create(db)
            return str(db.execute("select id from ledger").fetchone()[0])
    except sqlite3.Error as fault:
        raise LedgerFault(f"the ledger {path} cannot be used: {fault}") from None


def _create(db: object) -> None:
    import sqlite3

    assert isinstance(db, sqlite3.Connection)
    db.execute("pragma journal_mode = wal")
    db.execute("begin immediate")
    db.execute("create table if not exists ledger (id text not null)")
    if db.execute("select count(*) from ledger").fetchone()[0] == 0:
        db.execute("insert into ledger values (?)", (str(uuid.uuid4()),))
    db.execute("pragma user_version = 1")
    db.execute("commit")
