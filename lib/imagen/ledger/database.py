"""The ledger's SQLite file: opened, brought to the present version, and its transactions."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import retry
from ..disk import make_folder
from ..errors import TEMPORARY, ImagenError, Refused
from ..files import locks

if TYPE_CHECKING:
    import sqlite3

BUSY_S = 10


# Files that this process has connections to. To open and close one of them by ourselves would drop
# the locks of those connections (POSIX), and another process would take the journal away from them.
_open_here: set[Path] = set()


class LedgerFault(Refused):
    """The ledger cannot be used"""

    code = "ledger"
    hint = "name another file in $IMAGEN_LEDGER, or go on without one with --no-ledger"


class LedgerBusy(ImagenError):
    """Another process holds the ledger"""

    code = "ledger_busy"
    retry = "safe"


# Append only: the nth entry brings a file from version n to n + 1. A file of a higher version locks
# out older releases, so only a change that breaks them belongs here.
_VERSIONS = [
    "create table ledger (id text not null);",
    """
    create table renders (
        render_id  text primary key,
        id         text not null,
        given      integer not null,  -- whether somebody gave the id
        asked      text not null,     -- sha256 of what was asked, before anything was drawn
        caller     text not null,
        backend    text not null,
        state      text not null check (state in ('open', 'done', 'failed')),
        request    text not null,     -- JSON: the record as resolved when the intent was written
        place      text not null,     -- JSON: the names reserved for it
        records    text not null default '[]',  -- JSON: what came of it
        error      text,              -- JSON: why it failed
        delivered  integer not null default 0,  -- whether its records left us
        created_at real not null      -- unix time, as all times here
    );
    create index renders_open on renders (created_at) where state = 'open';
    create index renders_undelivered on renders (asked, caller, created_at)
        where delivered = 0 and given = 0 and state <> 'failed';
    create table submits (
        render_id    text not null references renders on delete cascade,
        number       integer not null,
        backend      text not null,
        plan         text not null,   -- JSON: the exact payload, and what is known beforehand
        handle       text,            -- the provider's, as soon as it is known
        caller       text not null,
        intended_at  real not null,
        estimate_usd real,            -- null: nobody knows the price
        billed       text check (billed in ('no', 'yes', 'unknown')),  -- null: not resolved yet
        cost_usd     real,            -- what it did cost, once it is resolved and known
        primary key (render_id, number)
    );
    create unique index submits_handle on submits (backend, handle) where handle is not null;
    create index submits_paid on submits (intended_at) where estimate_usd > 0;
    create table usage (
        usage_id    text primary key,
        created_at  text not null,    -- ISO 8601, UTC
        backend     text not null,
        model       text,
        seed        text,             -- digits: up to 2^64-1 is more than an integer here holds
        prompt_hash text not null,
        latency_ms  integer,
        cost_usd_estimate real,
        caller      text not null,
        render_id   text,
        submit      text not null,
        sent        integer not null default 1,  -- 0: still to be sent to Supabase
        unique (backend, submit)
    );
    create index usage_created on usage (created_at);
    create index usage_unsent on usage (created_at) where sent < 1;
    """,
    """
    create table uploads (
        render_id  text primary key,
        record     text not null,     -- JSON: what is still to be brought into the cloud
        error      text not null,     -- JSON: why it was not
        created_at real not null
    );
    """,
]
# Append only: added tables and nullable columns, which an older release does not look at. The table
# `additions` counts those that a file has, beside its version.
_ADDITIONS = [
    """
    -- the last attempt to send it: when that began (unix time; CLOCK_BOOTTIME, with its
    -- boot id), the longest it can take, and the server's Date of an answer before it
    alter table submits add column attempt_at real;
    alter table submits add column attempt_boot text;
    alter table submits add column attempt_clock real;
    alter table submits add column attempt_limit_s real;
    alter table submits add column server_date real;
    -- since when its run has had no reader or no parent
    alter table renders add column abandoned_at real;
    create index renders_in_doubt on renders (asked, caller, created_at)
        where given = 0 and state = 'failed';
    """,
    """
    -- the run of imagen-generate or imagen-compare that writes its records to the caller
    alter table renders add column delivered_by text;
    create table comparisons (
        run          text primary key, -- its lock is held while it runs
        id           text not null,    -- the ids of its members begin with it
        given        integer not null, -- whether somebody gave the id
        asked        text not null,    -- sha256 of the request, the backends and the seeds
        caller       text not null,
        seeds        text not null,    -- JSON
        folder       text not null,
        created_at   real not null,    -- unix time
        boot         text,             -- the same moment as seconds since the boot of that id
        uptime       real not null,
        abandoned_at real,
        finished     integer not null default 0
    );
    create index comparisons_asked on comparisons (asked, created_at);
    """,
    """
    -- when the last attempt was refused for certain; null again once another one begins
    alter table submits add column refused_at real;
    """,
]


class Database:
    """One connection to the ledger, or to one in memory that ends with this process."""

    def __init__(self, path: Path | None) -> None:
        """Open or create it; OSError when there is no place for it, LedgerFault when it is none."""
        import sqlite3

        self.path = path
        if path:
            make_folder(path.parent, mode=0o700)
            if path not in _open_here or not path.exists():
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            _open_here.add(path)
        with self._guarded():
            self._db = sqlite3.connect(path or ":memory:", timeout=BUSY_S, isolation_level=None)
            try:
                self._db.row_factory = sqlite3.Row
                with self._alone():
                    self._prepare()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def _alone(self) -> AbstractContextManager[object]:
        """Let nobody else prepare it: a change of the journal's mode does not wait for others."""
        return locks.lock(self.path.parent / "locks", "ledger") if self.path else nullcontext()

    def _prepare(self) -> None:
        if not self._is_ours():
            raise self._fault("it is the database of something else")
        if self._version() < len(_VERSIONS):
            # the one statement that does not wait by itself while another process has it open
            retry.for_a_while(self._write_ahead, BUSY_S, 0.02, when=(LedgerBusy,))
            with self.transaction():
                self._upgrade()
        if self._version() > len(_VERSIONS):
            raise self._fault("a newer imagen made it")
        if self._additions() < len(_ADDITIONS):
            with self.transaction():
                self._add()
        self._db.execute("pragma foreign_keys = on")

    def _write_ahead(self) -> None:
        with self._guarded():
            mode = self._db.execute("pragma journal_mode = wal").fetchone()[0]
        if self.path and mode != "wal":
            raise self._fault("write-ahead logging cannot be had there (a network folder?)")

    def _is_ours(self) -> bool:
        """Whether it is empty or a ledger, seen at one moment: another process may be making it."""
        new, tables, ours = self._db.execute(
            "select user_version = 0, (select count(*) from sqlite_master),"
            " exists (select 1 from sqlite_master where name = 'ledger') from pragma_user_version"
        ).fetchone()
        return not tables if new else bool(ours)

    def _upgrade(self) -> None:
        version = self._version()
        for statements in _VERSIONS[version:]:
            for statement in statements.split(";\n"):
                self._db.execute(statement)
        if version == 0:
            self._db.execute("insert into ledger values (?)", (str(uuid.uuid4()),))
        self._db.execute(f"pragma user_version = {len(_VERSIONS)}")

    def _add(self) -> None:
        for statements in _ADDITIONS[self._additions() :]:
            for statement in statements.split(";\n"):
                self._db.execute(statement)
        self._db.execute("create table if not exists additions (number integer not null)")
        self._db.execute("delete from additions")
        self._db.execute("insert into additions values (?)", (len(_ADDITIONS),))

    def _additions(self) -> int:
        """Return how many of the additions the file has."""
        there = "select 1 from sqlite_master where name = 'additions'"
        if self._db.execute(there).fetchone() is None:
            return 0
        return int(self._db.execute("select number from additions").fetchone()[0])

    def _version(self) -> int:
        return int(self._db.execute("pragma user_version").fetchone()[0])

    @contextmanager
    def transaction(self, synced: bool = True) -> Iterator[None]:
        """Write in one transaction; `synced` ones are on the disk when it ends.

        The others are as whole, but the last of them may be gone after a power loss.
        """
        with self._guarded():
            self._db.execute(f"pragma synchronous = {'full' if synced else 'normal'}")
            self._db.execute("begin immediate")
            try:
                yield
                self._db.execute("commit")
            except BaseException:
                with suppress(Exception):
                    self._db.execute("rollback")
                raise

    def write(self, statement: str, *values: Any) -> None:
        """Run one statement, inside a transaction."""
        self._db.execute(statement, values)

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Give the rows of a query."""
        with self._guarded():
            return self._db.execute(query, values).fetchall()

    def row(self, query: str, *values: Any) -> sqlite3.Row | None:
        """Give the first row of a query."""
        return next(iter(self.rows(query, *values)), None)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        import sqlite3

        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except locks.NoLocks as fault:
            raise self._fault(f"no lock beside it: {fault}") from None
        except sqlite3.Error as fault:
            kind = getattr(fault, "sqlite_errorcode", 0) & 0xFF
            if kind in (5, 6):  # BUSY, LOCKED
                raise LedgerBusy(f"another process holds the ledger {self.path}") from None
            raise self._fault(str(fault), **(_LATER if kind == 13 else {})) from None  # FULL

    def _fault(self, why: str, **facts: Any) -> LedgerFault:
        return LedgerFault(f"the ledger {self.path} cannot be used: {why}", **facts)


_LATER = {
    "retry": "safe",
    "exit_status": TEMPORARY,
    "hint": f"free some space, then run it again; or {LedgerFault.hint}",
}
