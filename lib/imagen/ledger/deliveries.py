"""Who has the records of a render: written to the caller, in an outer program's hands, abandoned.

An outer program (imagen-generate, imagen-compare) runs imagen-render behind it and writes the
records itself. Its run has a name, and a lock of that name while it lives.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from .database import Database


class Deliveries:
    """Where the records of renders are on their way to the caller."""

    def __init__(self, database: Database) -> None:
        """Take the ledger's database."""
        self._db = database

    def hand_over(self, render_id: str, run: str) -> None:
        """Write that the records of a render go to an outer program, which delivers them."""
        with self._db.transaction(synced=False):
            self._db.write(
                "update renders set delivered_by = ?, abandoned_at = null where render_id = ?",
                *(run, render_id),
            )

    def written(self, record: Mapping[str, Any]) -> None:
        """Note that an outer program wrote a record; with its last one a render is delivered."""
        row = self._db.row(
            "select render_id, records from renders where render_id = ? or render_id in"
            " (select render_id from submits where backend = ? and handle = ?)"
            " order by render_id = ? limit 1",  # the images of one submit stand in its first entry
            *(record.get("render_id"), record.get("backend"), record.get("submit")),
            record.get("render_id"),
        )
        records = json.loads(row["records"]) if row else []
        if row and records and records[-1]["id"] == record.get("id"):
            with self._db.transaction(synced=False):
                self._db.write(
                    "update renders set delivered = 1 where render_id = ?", row["render_id"]
                )

    def abandon(self, render_id: str) -> None:
        """Write that nobody waits for the records of a render."""
        with self._db.transaction(synced=False):
            self._db.write(
                "update renders set abandoned_at = ?"
                " where render_id = ? and abandoned_at is null and delivered = 0",
                *(time.time(), render_id),
            )

    def abandon_run(self, run: str) -> None:
        """Write that nobody waits for what an outer program still has to deliver."""
        now = time.time()
        with self._db.transaction(synced=False):
            self._db.write(
                "update renders set abandoned_at = ?"
                " where delivered_by = ? and abandoned_at is null and delivered = 0",
                *(now, run),
            )
            self._db.write(
                "update comparisons set abandoned_at = ?"
                " where run = ? and abandoned_at is null and finished = 0",
                *(now, run),
            )

    def take_up(self, render_id: str) -> None:
        """Write that a run goes on with a render that an earlier one left."""
        with self._db.transaction(synced=False):
            self._db.write(
                "update renders set abandoned_at = null, delivered_by = null where render_id = ?",
                render_id,
            )
