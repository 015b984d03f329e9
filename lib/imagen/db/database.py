"""The one importer of psycopg2: connect, transactions with time-outs, named queries, our errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UsageFault
from .connection import Address, DatabaseBusy, DatabaseFault, address, connected, refused
from .prepared import Kept

SQL = Path(__file__).parents[1] / "data" / "sql"
GRACE_S = 5  # that an answer may come after its statement's time-out, before we stop waiting
_LIMIT = "54000"  # SQLSTATE program_limit_exceeded
_FULL = 0.5  # of the queue of notifications: then it may be what is full
Row = tuple[Any, ...]


VARIABLE = "IMAGEN_DATABASE_URL"


def chosen(said: str | None, secret: str | None) -> Address:
    """Give the address that an option said, else the environment's; UsageFault without one.

    An option must not hold a password.
    """
    if not (said or secret):
        raise UsageFault("no database", hint=f"set ${VARIABLE}, or give --database-url")
    where = address(said or secret or "")
    if said and where.has_password:
        raise UsageFault(
            "a password on the command line is seen by every user of this machine",
            hint=f"put the address into ${VARIABLE}, or the password into ~/.pgpass",
        )
    return where


class Database:
    """One connection. Every statement runs in a transaction."""

    def __init__(
        self, where: Address, application: str, must_hurry: Callable[[], bool] | None = None
    ) -> None:
        """Connect; Unreachable when nobody answers, ConfigFault when we are turned away.

        Once `must_hurry` says so, no answer is waited for longer than two seconds.
        """
        self.where = where
        self._connection = connected(where, application, must_hurry)
        self._kept = Kept()

    @contextmanager
    def transaction(self, statement_s: float = 60, lock_s: float = 10) -> Iterator[Transaction]:
        """Run statements that take hold together or not at all; both time-outs are in seconds.

        The time-outs are set inside, since a pooler refuses them at the connection's start.
        """
        import psycopg2

        try:
            self._connection.patience_s = statement_s + GRACE_S
            with self._connection, self._connection.cursor() as cursor:
                cursor.execute(
                    "select set_config('statement_timeout', %s, true),"
                    " set_config('lock_timeout', %s, true)",
                    [f"{statement_s * 1000:.0f}", f"{lock_s * 1000:.0f}"],
                )
                yield Transaction(cursor)
        except psycopg2.Error as fault:
            raise refused(fault, self.where) from None

    def run(
        self,
        name: str,
        *values: Any,
        statement_s: float = 10,
        settings: Mapping[str, str] | None = None,
        kept: bool = False,
    ) -> list[Row]:
        """Run a named query in a transaction of its own, in one round trip, and give its rows.

        What is sent in one message is one transaction, with the server's settings for it and the
        time-out, pooler or not. The plan of one that is `kept` is made once: see IN_ORDER of jobs.
        """
        try:
            return self._run(name, *values, statement_s=statement_s, settings=settings, kept=kept)
        except DatabaseFault as fault:
            if fault.sqlstate != _LIMIT:
                raise
            return self._run_drained(name, *values, statement_s=statement_s, first=fault)

    def _run_drained(self, name: str, *values: Any, statement_s: float, first: Any) -> list[Row]:
        """Run it again once the queue of notifications has let go of what was heard.

        Another limit than that queue's is the statement's own fault. DatabaseBusy when it is full.
        """
        ((usage,),) = self._run("notifications_drained")
        try:
            return self._run(name, *values, statement_s=statement_s)
        except DatabaseFault as fault:
            if fault.sqlstate != _LIMIT or usage < _FULL:
                raise
        raise DatabaseBusy(
            f"{first.message}: the queue of notifications is {usage:.0%} full",
            sqlstate=_LIMIT,
            hint="a session that listens keeps a transaction open: look into pg_stat_activity",
        )

    def _run(
        self,
        name: str,
        *values: Any,
        statement_s: float = 10,
        settings: Mapping[str, str] | None = None,
        kept: bool = False,
    ) -> list[Row]:
        import psycopg2

        ours = {"statement_timeout": f"{statement_s * 1000:.0f}", "lock_timeout": "5s"}
        pairs = {**ours, **(settings or {})}.items()
        calls = [f"set_config('{one}', '{value}', true)" for one, value in pairs]
        limits = f"select {', '.join(calls)};"
        try:
            self._connection.patience_s = statement_s + GRACE_S
            self._connection.autocommit = True
            try:
                with self._connection.cursor() as cursor:
                    self._execute(cursor, limits, queries()[name], values, kept)
                    return list(cursor.fetchall()) if cursor.description else []
            finally:
                if not self._connection.closed:
                    self._connection.autocommit = False
        except psycopg2.Error as fault:
            raise refused(fault, self.where) from None

    def _execute(self, cursor: Any, limits: str, sql: str, values: Row, kept: bool) -> None:
        import psycopg2

        while True:
            try:
                asked = self._kept.asked(sql) if kept else sql
                cursor.execute(f"{limits}\n{asked}", values or None)
                break
            except psycopg2.Error as fault:
                if not (kept and self._kept.is_missed(sql, fault.pgcode or "")):
                    raise
        if kept:
            self._kept.answered(sql)

    def notices(self) -> list[tuple[str, str]]:
        """Give what the server said beside its answers since the last call: level and text."""
        said = [line.strip().partition(":") for line in self._connection.notices]
        del self._connection.notices[:]
        return [(level, text.strip()) for level, _, text in said]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Transaction:
    """What can be done while a transaction is open."""

    def __init__(self, cursor: Any) -> None:
        """Take psycopg2's cursor."""
        self._cursor = cursor

    def rows(self, sql: str, *values: Any) -> list[Row]:
        """Run SQL, each %s a value, and give the rows of its answer, none when it has none."""
        self._cursor.execute(sql, values or None)  # with None a % stands for itself
        found: Sequence[Row] = self._cursor.fetchall() if self._cursor.description else []
        return list(found)

    def named(self, name: str, *values: Any) -> list[Row]:
        """Run the query of that name in sql/queries.sql."""
        return self.rows(queries()[name], *values)


@cache
def queries() -> dict[str, str]:
    """Give the named queries of sql/queries.sql."""
    return parse_queries((SQL / "queries.sql").read_text(encoding="utf-8"))


def parse_queries(text: str) -> dict[str, str]:
    """Take text apart into its `-- name:` blocks; ValueError when a name stands twice.

    A line `:name` in a block stands for the block of that name, without its `;`.
    """
    found: dict[str, str] = {}
    for block in re.split(r"^-- name:", text, flags=re.MULTILINE)[1:]:
        name, _, sql = block.partition("\n")
        if name.strip() in found:
            raise ValueError(f"two queries named {name.strip()}")
        found[name.strip()] = sql.strip()
    return {name: _put_together(sql, found) for name, sql in found.items()}


def _put_together(sql: str, blocks: Mapping[str, str]) -> str:
    def block(meant: re.Match[str]) -> str:
        return blocks[meant[1]].rstrip(";")

    return re.sub(r"^ *:(\w+)$", block, sql, flags=re.MULTILINE)
