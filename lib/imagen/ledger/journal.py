"""The journal: each render from its intent to its result, written before and after it costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, count
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import clock
from ..clock import Instant
from .database import Database
from .spending import Spent, spent

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
    attempt_at: float | None
    attempt_boot: str | None
    attempt_clock: float | None
    attempt_limit_s: float | None
    server_date: float | None
    abandoned_at: float | None
    delivered_by: str | None
    refused_at: float | None

    @property
    def is_refused(self) -> bool:
        """Whether its last attempt was refused for certain, and no other one has begun."""
        return self.state == "open" and self.handle is None and self.refused_at is not None

    @property
    def attempt(self) -> Attempt | None:
        """The last attempt to send its last submit; None where an older release made the entry."""
        if self.attempt_at is None or self.attempt_clock is None:
            return None
        began = Instant(self.attempt_at, self.attempt_boot, self.attempt_clock)
        return Attempt(began, self.attempt_limit_s or 0.0, self.server_date)

    @property
    def is_over(self) -> bool:
        """Whether its records were handed out, or there will be none."""
        return self.state == "failed" or (self.state == "done" and self.delivered)

    @property
    def is_in_doubt(self) -> bool:
        """Whether it is closed, and nobody can tell whether it was paid for."""
        doubt = self.error is not None and self.error.get("retry") == "reconcile"
        return self.state == "failed" and doubt

    @property
    def may_be_found(self) -> bool:
        """Whether its provider did not know it, and may be asked again: by another token, say."""
        return self.is_in_doubt and self.handle is not None

    @property
    def failed(self) -> dict[str, Any]:
        """The record of the image that never came: the first that is not among those that did."""
        names = {one["id"] for one in self.records}
        numbered = (f"{self.id}.{number}" for number in count(2))
        name = next(one for one in chain([self.id], numbered) if one not in names)
        submit = {"submit": self.handle} if self.handle else {}
        whose = {} if name == self.id else {"request": self.id}
        meta = (self.error or {}).get("backend_meta")
        also = {"backend_meta": meta} if meta else {}
        return {**self.request, **submit, **also, **whose, "id": name}

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


class Attempt(NamedTuple):
    """One attempt to send a submit: when it began, how long it can take, the server's time before.

    `began` is the latest moment at which it can have begun, `server_date` unix time.
    """

    began: Instant
    limit_s: float
    server_date: float | None


class Intent(NamedTuple):
    """A submit about to be sent: the request as resolved, its names, and the exact plan.

    `attempt` is its first attempt where it is paid for; `absent` the number of an earlier submit of
    it that is proven not to have arrived.
    """

    render_id: str
    number: int
    request: Mapping[str, Any]
    place: Mapping[str, Any]
    plan: Mapping[str, Any]
    handle: str | None = None
    attempt: Attempt | None = None
    absent: int | None = None


class Paid(NamedTuple):
    """A submit that has a handle: its render, whether it was the last one, and what came of it."""

    backend: str
    handle: str
    render_id: str
    id: str
    state: str
    last: bool
    records: list[dict[str, Any]]


class Submit(NamedTuple):
    """A submit as somebody settles it: whose it is, and what is known of its bill."""

    render_id: str
    number: int
    last: bool
    id: str
    state: str
    backend: str
    handle: str | None
    intended_at: float
    billed: str | None
    estimate_usd: float | None

    @property
    def is_settled(self) -> bool:
        """Whether it is known to have been billed, or not to have been."""
        return self.billed in ("yes", "no")

    @property
    def since(self) -> str:
        """Return when it was intended, ISO 8601 in UTC."""
        at = datetime.fromtimestamp(self.intended_at, UTC).isoformat(timespec="seconds")
        return at.replace("+00:00", "Z")


_SUBMITS = (
    "select render_id, number, number ="
    " (select max(number) from submits where render_id = s.render_id) as last,"
    " id, state, s.backend, handle, intended_at, billed, estimate_usd"
    " from submits s join renders using (render_id)"
)


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
        """Return the renders of this very request whose records were not yet handed out.

        Also those in doubt: they may have been paid. A paid one is as old as the uptime says, for
        the wall clock may have been set.
        """
        at = clock.now()
        where = (
            "asked = ? and r.caller = ? and given = 0 and (created_at > ?"
            " or exists (select 1 from submits s where s.render_id = r.render_id"
            " and attempt_boot = ? and attempt_clock > ?))"
        )
        rows = self._db.rows(
            "select render_id from (select render_id, created_at, rowid as n from renders r where"
            f" {where} and delivered = 0 and state <> 'failed' union all"
            f" select render_id, created_at, rowid from renders r where {where}"
            " and state = 'failed' and json_extract(error, '$.retry') = 'reconcile')"
            " order by created_at, n",
            *(asker.asked, asker.caller, at.wall - FRESH_S, at.boot, at.uptime - FRESH_S) * 2,
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
            self._db.write(
                "delete from submits"
                " where render_id = ? and refused_at is not null and handle is null",
                intent.render_id,
            )
            if intent.absent is not None:
                self._db.write(
                    "update submits set billed = 'no'"
                    " where render_id = ? and number = ? and billed is null",
                    *(intent.render_id, intent.absent),
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
            if intent.attempt:
                self._attempt(intent.render_id, intent.number, intent.attempt)
        return now

    def attempt(self, render_id: str, number: int, attempt: Attempt, synced: bool = False) -> None:
        """Write that an attempt to send begins; one before it, if any, was refused for certain.

        After a power loss the uptime is counted, and the attempt is older than that. So it need not
        be synced, unless the refusal before it was written: that must not be what is left.
        """
        with self._db.transaction(synced):
            self._attempt(render_id, number, attempt)

    def _attempt(self, render_id: str, number: int, attempt: Attempt) -> None:
        self._db.write(
            "update submits set attempt_at = ?, attempt_boot = ?, attempt_clock = ?,"
            " attempt_limit_s = ?, server_date = ?, refused_at = null"
            " where render_id = ? and number = ?",
            *(*attempt.began, attempt.limit_s, attempt.server_date, render_id, number),
        )

    def refused(self, render_id: str, number: int) -> None:
        """Write that the last attempt to send was refused for certain; another may follow."""
        with self._db.transaction(synced=False):
            self._db.write(
                "update submits set refused_at = ? where render_id = ? and number = ?",
                *(time.time(), render_id, number),
            )

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
        """Write what came of it, once its files are on the disk; also a handle that is missing."""
        made = list(records)
        with self._db.transaction(synced=False):
            self._keep_handle(render_id, number, made[0].get("submit") if made else None)
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
        handle: str | None = None,
    ) -> None:
        """Write why it ended without its image, the images that it did bring, and its handle."""
        with self._db.transaction(synced=False):
            self._keep_handle(render_id, number, handle)
            self._db.write(
                "update renders set state = 'failed', error = ?, records = ? where render_id = ?",
                *(_json(error), _json([*records]), render_id),
            )
            self._settle(render_id, number, error["billed"], None)

    def _keep_handle(self, render_id: str, number: int, handle: str | None) -> None:
        """Write a handle that could not be written when it came, unless it is another's by now."""
        if handle is not None:
            self._db.write(
                "update or ignore submits set handle = ?"
                " where render_id = ? and number = ? and handle is null",
                *(handle, render_id, number),
            )

    def delivered(self, render_id: str) -> None:
        """Write that its records have left us."""
        with self._db.transaction(synced=False):
            self._db.write("update renders set delivered = 1 where render_id = ?", render_id)

    def spent(self, caller: str) -> Spent:
        """Sum up what counts against a budget now."""
        return spent(self._db, caller, time.time())

    def submits(self, name: str, render_id: str) -> list[Submit]:
        """Return the submits of a render by its id, or the one of a provider's handle."""
        where = "where render_id = ? or id = ? or handle = ? order by intended_at, number"
        rows = self._db.rows(f"{_SUBMITS} {where}", render_id, name, name)
        return [Submit(*row) for row in rows]

    def doubts(self, since: float) -> list[Submit]:
        """Return the paid submits of which nobody knows whether they were billed, oldest first.

        Those that are open and have no handle, of whatever day, for they count on every day; and
        since a time (unix) those that are over.
        """
        rows = self._db.rows(
            f"{_SUBMITS} where coalesce(estimate_usd, 1) > 0 and refused_at is null"
            " and (billed is null and handle is null"
            " or billed = 'unknown' and intended_at >= ?) order by intended_at, number",
            since,
        )
        return [Submit(*row) for row in rows]

    def settle(self, submit: Submit, billed: str, error: Mapping[str, Any]) -> None:
        """Write what somebody says of a submit's bill; a render that waits for it is over by it."""
        with self._db.transaction():
            self._settle(submit.render_id, submit.number, billed, None)
            if submit.last:
                self._db.write(
                    "update renders set state = 'failed', error = ?"
                    " where render_id = ? and state <> 'done'",
                    *(_json(error), submit.render_id),
                )

    def _settle(self, render_id: str, number: int, billed: str, cost: float | None) -> None:
        self._db.write(
            "update submits set billed = ?, cost_usd = ? where render_id = ? and number = ?",
            *(billed, cost, render_id, number),
        )


def _entry(row: sqlite3.Row) -> Entry:
    values = {name: row[name] for name in Entry.__slots__}
    for name in ("request", "place", "records", "error", "plan"):
        values[name] = json.loads(values[name]) if values[name] else None
    attempt_at = values["attempt_at"]
    if values["handle"] is None and attempt_at is not None and attempt_at > values["intended_at"]:
        values["request"]["started_at"] = clock.iso(attempt_at)  # as the record says it
    return Entry(**values)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
