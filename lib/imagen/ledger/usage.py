"""The cost log: one row for each submit, and which rows are still to be sent to Supabase.

A submit that is over has a row also when nobody logged it: it is made of the journal.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from .database import Database

COLUMNS = (
    *("usage_id", "created_at", "backend", "model", "seed", "prompt_hash", "latency_ms"),
    *("cost_usd_estimate", "caller", "render_id", "submit"),
)
_PASSING, _UNSENT, _KEPT = -1, 0, 1  # of `sent`: to be sent, then gone; to be sent; only kept
_ADD = (
    f"insert into usage ({', '.join(COLUMNS)}, sent)"
    f" values ({', '.join('?' * (len(COLUMNS) + 1))})"
    " on conflict (backend, submit) do update set"
    " cost_usd_estimate = max(coalesce(cost_usd_estimate, excluded.cost_usd_estimate),"
    " coalesce(excluded.cost_usd_estimate, cost_usd_estimate)),"
    " latency_ms = coalesce(latency_ms, excluded.latency_ms),"
    # whoever wants it kept and whoever wants it sent both have their way
    f" sent = case when sent = excluded.sent then sent else {_UNSENT} end"
)


def usage_id(backend: str, submit: str) -> str:
    """Give the id of a submit's row, the same on every machine."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"imagen usage {backend} {submit}"))


class Usage:
    """The rows; a seed is a text of digits here, and a number everywhere else."""

    def __init__(self, database: Database) -> None:
        """Take the ledger's database."""
        self._db = database

    def add(self, row: Mapping[str, Any], keep: bool = True, send: bool = False) -> bool:
        """Keep a row, or hold it until it is sent; gives whether it is new.

        A submit has one row, its cost the largest told: only the first of its images has it.
        """
        values = [_stored(name, row.get(name)) for name in COLUMNS]
        with self._db.transaction():
            known = self._db.row(
                "select 1 from usage where backend = ? and submit = ?",
                *(row["backend"], row["submit"]),
            )
            self._db.write(_ADD, *values, _KEPT if not send else _UNSENT if keep else _PASSING)
        return known is None

    def unsent(self, limit: int = -1) -> list[dict[str, Any]]:
        """Give the rows that are still to be sent, oldest first."""
        return self._read("where sent < 1", (), limit)

    def sent(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Note that rows have arrived; those that were held for that alone are gone then."""
        with self._db.transaction():
            for row in rows:
                one = row["usage_id"]
                self._db.write("delete from usage where usage_id = ? and sent = ?", one, _PASSING)
                self._db.write("update usage set sent = ? where usage_id = ?", _KEPT, one)

    def rows(self, since: str = "", until: str = "9999") -> list[dict[str, Any]]:
        """Give the rows of a time, ISO 8601 in UTC, from `since` and before `until`."""
        return self._read("where created_at >= ? and created_at < ?", (since, until))

    def complete(self, since: str = "", until: str = "9999") -> list[dict[str, Any]]:
        """Return the rows of a time and those of the journal's submits that nobody logged.

        Each has `billed` besides, as the journal has it. What was logged without a cost has the
        journal's. A submit that is not over has no row, nor has one that certainly never arrived.
        """
        rows = [*self._logged(since, until), *self._journaled(since, until)]
        return sorted(rows, key=lambda row: (row["created_at"], row["usage_id"]))

    def _logged(self, since: str, until: str) -> Iterator[dict[str, Any]]:
        columns = ", ".join(f"u.{name}" for name in COLUMNS)
        query = (
            f"select {columns}, s.billed, s.cost_usd, s.estimate_usd from usage u"
            " left join submits s on s.backend = u.backend and s.handle = u.submit"
            " where u.created_at >= ? and u.created_at < ?"
        )
        for row in self._db.rows(query, since, until):
            entry = _read({name: row[name] for name in COLUMNS})
            if entry["cost_usd_estimate"] is None:
                entry["cost_usd_estimate"] = _cost(row)
            yield {**entry, "billed": row["billed"]}

    def _journaled(self, since: str, until: str) -> Iterator[dict[str, Any]]:
        rows = self._db.rows(
            "select s.*, request, number = (select max(number) from submits"
            "  where render_id = s.render_id) as last,"
            " json_extract(records, '$[0]') as first_record"
            " from submits s join renders using (render_id)"
            " where billed is not null and (billed <> 'no' or handle is not null)"
            " and intended_at >= ? and intended_at < ? and not exists"
            " (select 1 from usage u where u.backend = s.backend and u.submit = s.handle)",
            *(_unix(since, -math.inf), _unix(until, math.inf)),
        )
        for row in rows:
            yield _of_submit(row)

    def submits(self) -> set[str]:
        """Give the handles of all submits that have a row."""
        return {row["submit"] for row in self._db.rows("select submit from usage")}

    def _read(self, where: str, values: tuple[Any, ...], limit: int = -1) -> list[dict[str, Any]]:
        query = (
            f"select {', '.join(COLUMNS)} from usage {where} order by created_at, usage_id limit ?"
        )
        return [_read(dict(row)) for row in self._db.rows(query, *values, limit)]


def _of_submit(row: Any) -> dict[str, Any]:
    request = json.loads(row["request"])
    record = {**request, **json.loads(row["first_record"] or "{}")} if row["last"] else request
    at = datetime.fromtimestamp(row["intended_at"], UTC).isoformat(timespec="milliseconds")
    submit = row["handle"] or f"{row['render_id']} {row['number']}"  # it has none: it is its own
    return {
        "usage_id": usage_id(row["backend"], submit),
        "created_at": at.replace("+00:00", "Z"),
        "backend": row["backend"],
        "model": record.get("model"),
        "seed": record.get("seed"),
        "prompt_hash": hashlib.sha256(request["prompt"].encode()).hexdigest(),
        "latency_ms": record.get("latency_ms"),
        "cost_usd_estimate": _cost(row),
        "caller": row["caller"],
        "render_id": row["render_id"],
        "submit": row["handle"],
        "billed": row["billed"],
    }


def _cost(row: Any) -> float | None:
    """Return what counts against a budget; None when nobody knows, or it is not over."""
    if row["billed"] is None:
        return None
    otherwise = 0.0 if row["billed"] == "no" else row["estimate_usd"]
    cost = otherwise if row["cost_usd"] is None else row["cost_usd"]
    return None if cost is None else float(cost)


def _unix(time: str, otherwise: float) -> float:
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return otherwise


def _stored(name: str, value: Any) -> Any:
    return None if value is None else str(value) if name == "seed" else value


def _read(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "seed": None if row["seed"] is None else int(row["seed"])}
