"""A Supabase project's tables, through PostgREST: put rows in once, read all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import quote, urlencode

from . import retry
from .errors import ConfigFault, ImagenError, Rejected, ServerFault, Throttled
from .http import CONNECT_S, Answer, Server, excerpt

PATIENCE_S = 20  # all retries of one request end within it
READ_S = 10
PAGE = 1000  # rows; the server may give fewer (db-max-rows) and does not say so
USAGE_SCHEMA, USAGE_TABLE = "mai", "imagen_usage"
Row = dict[str, Any]
_IGNORING = "return=representation,resolution=ignore-duplicates,missing=default"


class Unauthorized(Rejected):
    """The server does not take the key"""

    code = "unauthorized"


class Tables:
    """The tables of one schema.

    Rows are sent and read as the service role: it is not bound by row level security.
    """

    def __init__(
        self,
        url: str | None,
        key: str | None,
        key_name: str,
        schema: str,
        patience_s: float | None = None,
    ) -> None:
        """Take supabase.url and the service key; `key_name` is the variable that holds the key.

        `patience_s` goes over PATIENCE_S. ConfigFault when one of them is missing.
        """
        if not url:
            raise ConfigFault(
                "no supabase.url", hint="set it in the configuration or $SUPABASE_URL"
            )
        if not key:
            raise ConfigFault("no key for Supabase", hint=f"set ${key_name}, or ${key_name}_FILE")
        self.key_name = key_name
        self._patience_s = patience_s
        self._server = Server(
            url,
            {
                "apikey": key,  # the hosted gateway wants this one, PostgREST the other
                "Authorization": f"Bearer {key}",
            },
            who="Supabase",
            plain_headers={"Accept-Profile": schema, "Content-Profile": schema},
        )

    def insert_ignoring(self, table: str, rows: Sequence[Row], on_conflict: str) -> list[Row]:
        """Put rows in, leaving out those whose unique `on_conflict` columns are there already.

        A column that a row does not have gets its default. Gives the rows that are new, whole.
        May be done again: twice is once.
        """
        if not rows:
            return []
        columns = ",".join(f'"{name}"' for name in sorted({name for row in rows for name in row}))
        path = f"{_path(table)}?on_conflict={quote(on_conflict)}&columns={quote(columns)}"
        return self._asked(lambda: self._server.post(path, list(rows), {"Prefer": _IGNORING}))

    def rows(
        self, table: str, select: str = "*", key: str = "id", **filters: Sequence[str] | str
    ) -> Iterator[Row]:
        """Yield all rows in the order of the unique column `key`, which must be among `select`.

        Filters are PostgREST's: `caller="eq.m"`, `created_at=["gte.…Z", "lt.…Z"]`. Pages are asked
        for until one is empty: a short one need not be the last, the server has its own limit.
        """
        after: Any = None
        while page := self._page(table, select, key, after, filters):
            yield from page
            after = page[-1][key]

    def _page(
        self, table: str, select: str, key: str, after: Any, filters: Mapping[str, Any]
    ) -> list[Row]:
        asked = [("select", select), ("order", key), ("limit", str(PAGE))]
        for name, said in filters.items():
            asked += [(name, one) for one in ([said] if isinstance(said, str) else said)]
        if after is not None:
            asked.append((key, f"gt.{after}"))
        path = f"{_path(table)}?{urlencode(asked)}"
        return self._asked(lambda: self._server.get(path))

    def _asked(self, ask: Callable[[], Answer]) -> list[Row]:
        """Ask until there is an answer, no longer than the patience, and read it as rows."""

        def once(left_s: float) -> Answer:
            self._server.read_s = min(READ_S, left_s - CONNECT_S)
            self._server.until = time.monotonic() + left_s
            try:
                return ask()
            except (Rejected, ServerFault, Throttled) as fault:
                raise self._said(fault) from None

        patience_s = self._patience_s or PATIENCE_S
        found = _parsed(retry.in_time(once, patience_s, least_s=CONNECT_S + 1).body)
        if not isinstance(found, list):
            raise Rejected(
                f"the server at {self._server.url} does not answer as Supabase does",
                hint="look at supabase.url",
            )
        return found

    def _said(self, fault: Any) -> ImagenError:
        """Say again what the server said, without details: they may hold a whole row."""
        status = getattr(fault, "status", 0)
        if not status:
            return cast(ImagenError, fault)  # no answer came to its end
        found = _parsed(fault.body)
        found = found if isinstance(found, dict) else {}
        code, said = str(found.get("code") or ""), str(found.get("message") or "")
        what = excerpt(f"{code} {said}".strip().encode())
        message = f"Supabase at {self._server.url} answered {status}: {what}"
        facts = {"status": status, "body": b"", "retry_after_s": fault.retry_after_s}
        if status == 401:
            hint = f"${self.key_name} must hold this project's service key"
            return Unauthorized(message, **facts, hint=hint)
        kind: type[ImagenError] = type(fault)
        return kind(message, **facts, hint=_hint(code, status))

    def close(self) -> None:
        """Close the connections."""
        self._server.close()


def send_usage(tables: Tables, rows: Sequence[Row]) -> list[Row]:
    """Put rows of the cost log into mai.imagen_usage, one for each submit; gives the new ones."""
    return tables.insert_ignoring(USAGE_TABLE, rows, "backend,submit")


def usage_rows(tables: Tables, since: str | None, until: str | None) -> Iterator[Row]:
    """Yield the rows of the cost log from `since` to before `until` (ISO 8601), in any order."""
    limits = [f"gte.{since}"] if since else []
    limits += [f"lt.{until}"] if until else []
    return tables.rows(USAGE_TABLE, created_at=limits)


def _path(table: str) -> str:
    return f"/rest/v1/{quote(table)}"


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _hint(code: str, status: int) -> str | None:
    if code in ("PGRST106", "PGRST205", "42P01") or status == 404:
        return "imagen-migrate makes the tables and has PostgREST serve them"
    if code == "42501":
        return "the key must be the service role's"
    return None
