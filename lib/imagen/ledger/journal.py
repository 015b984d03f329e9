"""The journal: each render from its intent to its result, written before and after it costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from .database import Database
from .spend import Spent, spent

if TYPE_CHECKING:
    import sqlite3

FRESH_S = 3600  # how long a request without an id finds the render that an earlier run began
_OPEN = "(state = 'open' or (state = 'done' and delivered = 0))"


class Asker(NamedTuple):
    """What tells one request from another, and who asks: `given` when somebody gave the id."""

    given: bool
    asked: str
    caller: str


@dataclass(slots=True)
class Entry:
    """What the journal knows of a render, and of its last submit."""

    render_id: str
    id: str
    asked: str
    caller: str
    backend: str
    state: str
    request: dict[str, Any]
    place: dict[str, Any]
    records: list[dict[str, Any]]
    error: dict[str, Any] | None
    number: int
    plan: dict[str, Any]
    handle: str | None
    intended_at: float
    delivered: bool
    abandoned_at: float | None
    delivered_by: str | None

    @property
    def is_over(self) -> bool:
        """Whether its records were handed out, or there will be none."""
        return self.state == "failed" or (self.state == "done" and self.delivered)

    @property
    def failed(self) -> dict[str, Any]:
        """The record of the image that never came: the first, or the one after those that did."""
        number = len(self.records) + 1
        name = self.id if number == 1 else f"{self.id}.{number}"
        submit = {"submit": self.handle} if self.handle else {}
        return {**self.request, **submit, "id": name}

    @property
    def pending(self) -> dict[str, Any] | None:
        """The record of a render that may go on at its backend; None without a handle."""
        if self.state != "open" or not self.handle:
            return None
        where = {
            "backend": self.backend,
            "handle": self.handle,
            "since": self.request["started_at"],
        }
        return {**self.request, "attempts": self.number, "pending": where}

    def about(self) -> dict[str, Any]:
        """Give what `--resume` says of it."""
        since = datetime.fromtimestamp(self.intended_at, UTC).isoformat(timespec="seconds")
        submitted = "submitted" if self.handle else "intended"
        return {
            "id": self.id,
            "render_id": self.render_id,
            "prompt": self.request["prompt"],
            "backend": self.backend,
            "state": submitted if self.state == "open" else self.state,
            "submit": self.handle,
            "since": since.replace("+00:00", "Z"),
        }


class Intent(NamedTuple):
    """A submit about to be sent: the request as resolved, its names, and the exact plan."""

    render_id: str
    number: int
    request: Mapping[str, Any]
    place: Mapping[str, Any]
    plan: Mapping[str, Any]
    handle: str | None = None


class Paid(NamedTuple):
    """A submit that has a handle: its render, whether it was the last one, and what came of it."""

    backend: str
    handle: str
    render_id: str
    id: str
    state: str
    last: bool
    records: list[dict[str, Any]]


class Journal:
    """What became of each render; every method is one transaction."""

    def __init__(self, database: Database) -> None:
        """Take the ledger's database."""
        self._db = database

    def entry(self, render_id: str) -> Entry | None:
        """Give what is known of a render, None when nothing is."""
        row = self._db.row(
            "select * from renders join submits using (render_id)"
            " where render_id = ? order by number desc limit 1",
            render_id,
        )
        return _entry(row) if row else None

    def undelivered(self, asker: Asker) -> list[str]:
        """Give the renders of this very request whose records were not yet handed out."""
        rows = self._db.rows(
            "select render_id from renders where asked = ? and caller = ? and created_at > ?"
            " and delivered = 0 and given = 0 and state <> 'failed' order by created_at, rowid",
            *(asker.asked, asker.caller, time.time() - FRESH_S),
        )
        return [row["render_id"] for row in rows]

    def unfinished(self) -> list[str]:
        """Give the renders that are open, or done and not handed out, oldest first."""
        query = f"select render_id from renders where {_OPEN} order by created_at, rowid"
        return [row["render_id"] for row in self._db.rows(query)]

    def is_open(self, render_id: str) -> bool:
        """Whether a render may still be going on at its backend."""
        query = "select 1 from renders where render_id = ? and state = 'open'"
        return self._db.row(query, render_id) is not None

    def owners(self, handle: str) -> set[tuple[str, int]]:
        """Give the render and the number of each submit that a provider's handle belongs to.

        That is one, of whatever instance of the account, but for what another ledger's line says.
        """
        rows = self._db.rows("select render_id, number from submits where handle = ?", handle)
        return {(row["render_id"], row["number"]) for row in rows}

    def handles(self, since: float) -> dict[str, Paid]:
        """Give the submits intended since a time (unix) that have a handle, by that."""
        rows = self._db.rows(
            "select s.backend, handle, render_id, id, state, records, number ="
            " (select max(number) from submits where render_id = s.render_id) as last"
            " from submits s join renders using (render_id)"
            " where handle is not null and intended_at >= ?",
            since,
        )
        found = {}
        for row in rows:
            values = {name: row[name] for name in Paid._fields}
            values |= {"records": json.loads(row["records"]), "last": bool(row["last"])}
            found[row["handle"]] = Paid(**values)
        return found

    def intend(
        self, intent: Intent, asker: Asker, judge: Callable[[Spent], None] = lambda _spent: None
    ) -> float:
        """Write that a submit is about to be sent, unless `judge` refuses; gives when (unix time).

        What was spent is summed and the estimate added in the same transaction: no two processes
        can both take the last cent of a budget.
        """
        now = time.time()
        backend = intent.request["backend"]
        with self._db.transaction():
            self._db.write(  # what went before is known to be over, and not to be billed
                "update submits set billed = 'no' where render_id = ? and billed is null",
                intent.render_id,
            )
            judge(spent(self._db, asker.caller, now))
            self._db.write(
                "insert into renders (render_id, id, given, asked, caller, backend, state, request,"
                " place, created_at) values (?, ?, ?, ?, ?, ?, 'open', ?, ?, ?)"
                " on conflict (render_id) do update set state = 'open', delivered = 0,"
                " request = excluded.request, place = excluded.place",
                *(intent.render_id, intent.request["id"], asker.given, asker.asked, asker.caller),
                *(backend, _json(intent.request), _json(intent.place), now),
            )
            self._db.write(
                "insert into submits (render_id, number, backend, plan, handle, caller,"
                " intended_at, estimate_usd) values (?, ?, ?, ?, ?, ?, ?, ?)",
                *(intent.render_id, intent.number, backend, _json(intent.plan), intent.handle),
                *(asker.caller, now, intent.plan.get("cost_usd")),
            )
        return now

    def adopt(self, intent: Intent, asker: Asker) -> bool:
        """Write what another ledger's line says was submitted; False if its handle is another's."""
        import sqlite3

        try:
            self.intend(intent, asker)
        except sqlite3.IntegrityError:
            return False
        return True

    def withdraw(self, render_id: str, number: int) -> None:
        """Take an intent back: it certainly was not accepted."""
        with self._db.transaction():
            self._db.write(
                "delete from submits where render_id = ? and number = ?", render_id, number
            )
            self._db.write(
                "delete from renders where render_id = ?"
                " and not exists (select 1 from submits where submits.render_id = ?)",
                *(render_id, render_id),
            )
            self._db.write(  # an earlier submit ended badly: that is what is left of it
                "update renders set state = 'failed' where render_id = ?", render_id
            )

    def submitted(self, render_id: str, number: int, handle: str, synced: bool = True) -> bool:
        """Write the provider's handle; gives whether it was free to take: False if another's."""
        import sqlite3

        try:
            with self._db.transaction(synced):
                self._db.write(
                    "update submits set handle = ? where render_id = ? and number = ?",
                    *(handle, render_id, number),
                )
        except sqlite3.IntegrityError:
            return False
        return True

    def done(
        self, render_id: str, number: int, records: Iterable[Mapping[str, Any]], paid: bool
    ) -> None:
        """Write what came of it, once its files are on the disk."""
        made = list(records)
        with self._db.transaction(synced=False):
            self._db.write(
                "update renders set state = 'done', records = ?, error = null where render_id = ?",
                *(_json(made), render_id),
            )
            cost = made[0].get("cost_usd") if made else None
            self._settle(render_id, number, "yes" if paid else "no", cost)

    def failed(
        self,
        render_id: str,
        number: int,
        error: Mapping[str, Any],
        records: Iterable[Mapping[str, Any]],
    ) -> None:
        """Write why it ended without its image, and the images that it did bring."""
        with self._db.transaction(synced=False):
            self._db.write(
                "update renders set state = 'failed', error = ?, records = ? where render_id = ?",
                *(_json(error), _json([*records]), render_id),
            )
            self._settle(render_id, number, error["billed"], None)

    def delivered(self, render_id: str) -> None:
        """Write that its records have left us."""
        with self._db.transaction(synced=False):
            self._db.write("update renders set delivered = 1 where render_id = ?", render_id)

    def _settle(self, render_id: str, number: int, billed: str, cost: float | None) -> None:
        self._db.write(
            "update submits set billed = ?, cost_usd = ? where render_id = ? and number = ?",
            *(billed, cost, render_id, number),
        )


def _entry(row: sqlite3.Row) -> Entry:
    values = {name: row[name] for name in Entry.__slots__}
    for name in ("request", "place", "records", "error", "plan"):
        values[name] = json.loads(values[name]) if values[name] else None
    return Entry(**values)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
