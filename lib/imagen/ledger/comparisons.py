"""Comparisons: what was asked of which backends, its folder, and whether it was finished."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from .. import clock
from .database import Database
from .journal import FRESH_S, Asker


class Comparison(NamedTuple):
    """One comparison; `run` is the name of the lock that its process holds."""

    run: str
    id: str
    seeds: list[int]
    folder: str
    abandoned_at: float | None = None
    finished: bool = False


class Comparisons:
    """The comparisons that this machine was asked for."""

    def __init__(self, database: Database) -> None:
        """Take the ledger's database."""
        self._db = database

    def begin(self, comparison: Comparison, asker: Asker) -> None:
        """Write a comparison before its first member is sent."""
        with self._db.transaction():
            self._db.write(
                "insert into comparisons (run, id, given, asked, caller, seeds, folder,"
                " created_at, boot, uptime) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                *(comparison.run, comparison.id, asker.given, asker.asked, asker.caller),
                *(json.dumps(comparison.seeds), comparison.folder, *clock.now()),
            )

    def entry(self, run: str) -> Comparison | None:
        """Return a comparison by its run."""
        row = self._db.row("select * from comparisons where run = ?", run)
        return _comparison(row) if row else None

    def with_id(self, name: str, digest: str) -> Comparison | None:
        """Return the last comparison of a given id that asked the same."""
        row = self._db.row(
            "select * from comparisons where id = ? and asked = ? and given = 1"
            " order by created_at desc, rowid desc limit 1",
            *(name, digest),
        )
        return _comparison(row) if row else None

    def unfinished(self, asker: Asker) -> list[Comparison]:
        """Return the unfinished comparisons of this very request, oldest first.

        They are as old as the uptime says: the wall clock may have been set.
        """
        at = clock.now()
        rows = self._db.rows(
            "select * from comparisons where asked = ? and caller = ?"
            " and (created_at > ? or (boot = ? and uptime > ?))"
            " and finished = 0 and given = 0 order by created_at, rowid",
            *(asker.asked, asker.caller, at.wall - FRESH_S, at.boot, at.uptime - FRESH_S),
        )
        return [_comparison(row) for row in rows]

    def take_up(self, run: str) -> None:
        """Write that a process goes on with a comparison that was abandoned."""
        with self._db.transaction(synced=False):
            self._db.write("update comparisons set abandoned_at = null where run = ?", run)

    def finish(self, run: str) -> None:
        """Write that all of its members were written to the caller."""
        with self._db.transaction(synced=False):
            self._db.write("update comparisons set finished = 1 where run = ?", run)


def _comparison(row: Any) -> Comparison:
    return Comparison(
        row["run"],
        row["id"],
        json.loads(row["seeds"]),
        row["folder"],
        row["abandoned_at"],
        bool(row["finished"]),
    )
