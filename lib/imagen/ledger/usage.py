"""The cost log: one row for each submit, and which rows are still to be sent to Supabase."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from .database import Database

COLUMNS = (
    *("usage_id", "created_at", "backend", "model", "seed", "prompt_hash", "latency_ms"),
    *("cost_usd_estimate", "caller", "render_id", "submit"),
)


def usage_id(backend: str, submit: str) -> str:
    """Give the id of a submit's row, the same on every machine."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"imagen usage {backend} {submit}"))


class Usage:
    """The rows; a seed is a text of digits here, and a number everywhere else."""

    def __init__(self, database: Database) -> None:
        """Take the ledger's database."""
        self._db = database

    def add(self, row: Mapping[str, Any], to_send: bool) -> bool:
        """Keep a row; gives whether it is new. A submit has one, its cost the largest told."""
        values = [_stored(name, row.get(name)) for name in COLUMNS]
        with self._db.transaction():
            known = self._db.row(
                "select 1 from usage where backend = ? and submit = ?",
                row["backend"],
                row["submit"],
            )
            self._db.write(
                f"insert into usage ({', '.join(COLUMNS)}, sent)"
                f" values ({', '.join('?' * (len(COLUMNS) + 1))})"
                " on conflict (backend, submit) do update set"
                " cost_usd_estimate = max(coalesce(cost_usd_estimate, excluded.cost_usd_estimate),"
                " coalesce(excluded.cost_usd_estimate, cost_usd_estimate)),"
                " sent = min(sent, excluded.sent)",
                *(*values, int(not to_send)),
            )
        return known is None

    def unsent(self) -> list[dict[str, Any]]:
        """Give the rows that are still to be sent, oldest first."""
        return self._read("where sent = 0", ())

    def sent(self, ids: Iterable[str]) -> None:
        """Note that rows have arrived."""
        with self._db.transaction():
            for one in ids:
                self._db.write("update usage set sent = 1 where usage_id = ?", one)

    def rows(self, since: str = "", until: str = "9999") -> list[dict[str, Any]]:
        """Give the rows of a time, ISO 8601 in UTC, from `since` and before `until`."""
        return self._read("where created_at >= ? and created_at < ?", (since, until))

    def _read(self, where: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
        query = f"select {', '.join(COLUMNS)} from usage {where} order by created_at, usage_id"
        return [_read(dict(row)) for row in self._db.rows(query, *values)]


def _stored(name: str, value: Any) -> Any:
    return None if value is None else str(value) if name == "seed" else value


def _read(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "seed": None if row["seed"] is None else int(row["seed"])}
