"""What is still to be brought into the cloud, and why it was not."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from .database import Database


class Uploads:
    """The images whose upload has begun and is not known to have ended well."""

    def __init__(self, database: Database) -> None:
        """Take the ledger's database."""
        self._db = database

    def keep(self, record: Mapping[str, Any], error: Mapping[str, Any] | None = None) -> None:
        """Keep an image to be tried again, with the error of the last try.

        Without an error it is about to be tried: whoever is killed meanwhile leaves it here.
        """
        why = error or {"code": "unfinished"}
        with self._db.transaction(synced=error is not None):
            self._db.write(
                "insert into uploads (render_id, record, error, created_at) values (?, ?, ?, ?)"
                " on conflict (render_id) do update set record = excluded.record,"
                " error = excluded.error",
                *(record["render_id"], json.dumps(record), json.dumps(why), time.time()),
            )

    def forget(self, render_id: str) -> None:
        """Forget an image: it is in the cloud, or can never be."""
        with self._db.transaction(synced=False):
            self._db.write("delete from uploads where render_id = ?", render_id)

    def kept(self) -> list[dict[str, Any]]:
        """Give the records of all that is kept, oldest first."""
        rows = self._db.rows("select record from uploads order by created_at, render_id")
        return [json.loads(row["record"]) for row in rows]
