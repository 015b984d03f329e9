"""A Supabase project, and its tables through PostgREST: put rows in once, read all of them."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import quote, urlencode

from .. import retry
from ..errors import (
    AnswerLost,
    ConfigFault,
    ImagenError,
    Rejected,
    ServerFault,
    Throttled,
    Unauthorized,
    Unreachable,
)
from ..http import CONNECT_S, OF_THE_SETUP, TEMPORARY, Answer, Server, excerpt

PATIENCE_S = 20  # all retries of one request end within it
READ_S = 10
PAGE = 1000  # rows; the server may give fewer (db-max-rows) and does not say so
USAGE_SCHEMA, USAGE_TABLE = "mai", "imagen_usage"
Row = dict[str, Any]
_IGNORING = "return=representation,resolution=ignore-duplicates,missing=default"


class KeyRefused(Unauthorized, Rejected):
    """The server does not take the key"""


class Conflict(Rejected):
    """A row clashes with what is in the database"""

    state = ""  # SQLSTATE
    columns = ""  # of a unique index, as the database names them

    @classmethod
    def of(cls, message: str, entry: Mapping[str, Any], **facts: Any) -> Conflict:
        """Return it with what PostgREST says of it; its details are read, and not kept."""
        key = re.match(r"Key \(([\w, ]+)\)=", str(entry.get("details") or ""))
        name = re.search(r'unique constraint "([^"]+)"', str(entry.get("message") or ""))
        columns = key[1] if key else _UNIQUE.get(name[1], "") if name else ""
        return cls(message, state=str(entry.get("code") or ""), columns=columns, **facts)


_UNIQUE = {"images_pkey": "id", "images_storage_path_key": "storage_path"}  # sql/001


class Project:
    """A Supabase project, spoken to as its service role: row level security does not bind it."""

    def __init__(
        self,
        url: str | None,
        key: str | None,
        key_name: str,
        patience_s: float | None = None,
    ) -> None:
        """Take supabase.url and the service key; `key_name` is the variable that holds the key.

        `patience_s` goes over PATIENCE_S. ConfigFault when one of them is missing, or is no
        secret key. A new one (sb_secret_…) is no JWT, so it is sent as `apikey` only.
        """
        if not url:
            raise ConfigFault(
                "no supabase.url", hint="set it in the configuration or $SUPABASE_URL"
            )
        if not key:
            raise ConfigFault("no key for Supabase", hint=f"set ${key_name}, or ${key_name}_FILE")
        if public := _public_key(key):
            raise ConfigFault(
                f"${key_name} holds {public}, which may write nothing",
                hint="it must hold a secret key (sb_secret_…) or the legacy service_role key",
            )
        self.key_name = key_name
        self._patience_s = patience_s
        self._is_down = False
        headers = {"apikey": key}  # the hosted gateway wants this one
        if not key.startswith("sb_secret_"):
            headers["Authorization"] = f"Bearer {key}"  # and the servers behind it this one
        self.server = Server(url, headers, who="Supabase")

    def ask(self, ask: Callable[[Server], Answer], sends_s: float = 0) -> Answer:
        """Ask until there is an answer, no longer than PATIENCE_S; for what may be asked again.

        `sends_s` is what a body may take beside that, each time; no try begins after PATIENCE_S.
        Where the last question got no answer, this one is asked once: a server that is down is
        not waited for again and again.
        """

        def once(left_s: float) -> Answer:
            self.server.read_s = min(READ_S, left_s - CONNECT_S)
            self.server.until = time.monotonic() + left_s + sends_s
            try:
                return ask(self.server)
            except (Rejected, ServerFault, Throttled) as fault:
                raise self._said(fault) from None

        patience_s = self._patience_s or PATIENCE_S  # as it is now, not when this was read
        least_s = patience_s if self._is_down else CONNECT_S + 1
        try:
            answer = retry.in_time(once, patience_s, least_s=least_s)
        except (Unreachable, AnswerLost, ServerFault, Throttled):
            self._is_down = True
            raise
        except ImagenError:
            self._is_down = False
            raise
        self._is_down = False
        return answer

    def _said(self, fault: Any) -> ImagenError:
        """Say again what the server said, without details: they may hold a whole row."""
        if not getattr(fault, "status", 0):
            return cast(ImagenError, fault)  # no answer came to its end
        found = parsed(fault.body)
        found = found if isinstance(found, dict) else {}
        status = meant(fault.status, found)
        code, said = str(found.get("code") or ""), str(found.get("message") or "")
        what = excerpt(f"{code} {said}".strip().encode())
        message = f"Supabase at {self.server.url} answered {status}: {what}"
        facts = {"status": status, "body": b"", "retry_after_s": fault.retry_after_s}
        if status == 401 or (status == 403 and code in _BAD_KEY):
            hint = f"${self.key_name} must hold this project's service key"
            return KeyRefused(message, **facts, hint=hint)
        if status == 409:
            return Conflict.of(message, found, **facts, hint=_hint(code, status))
        kind: type[ImagenError] = type(fault)
        if status == 429 or status >= 500 or status in TEMPORARY:
            kind = Throttled if status == 429 else ServerFault
        is_setup = code in _OF_THE_SETUP or status in OF_THE_SETUP or status < 400
        return kind(message, **facts, hint=_hint(code, status), scope="setup" if is_setup else None)

    def stranger(self, service: str = "Supabase") -> Rejected:
        """Return the error for an answer that the service cannot have given."""
        message = f"the server at {self.server.url} does not answer as {service} does"
        return Rejected(message, hint="look at supabase.url, and what stands before it")

    def close(self) -> None:
        """Close the connections."""
        self.server.close()


class Tables:
    """The tables of one schema."""

    def __init__(self, project: Project, schema: str) -> None:
        """Take the project, and the schema that PostgREST is to look in."""
        self._project = project
        self._headers = {"Accept-Profile": schema, "Content-Profile": schema}

    def close(self) -> None:
        """Close the project's connections."""
        self._project.close()

    def insert_ignoring(self, table: str, rows: Sequence[Row], on_conflict: str) -> list[Row]:
        """Put rows in, leaving out those whose unique `on_conflict` columns are there already.

        A column that a row does not have gets its default. Gives the rows that are new, whole.
        May be done again: twice is once.
        """
        if not rows:
            return []
        columns = ",".join(f'"{name}"' for name in sorted({name for row in rows for name in row}))
        path = f"{_path(table)}?on_conflict={quote(on_conflict)}&columns={quote(columns)}"
        headers = {**self._headers, "Prefer": _IGNORING}
        return self._rows(lambda server: server.post(path, list(rows), headers))

    def some(self, table: str, select: str, **filters: str) -> list[Row]:
        """Give the rows that PostgREST's filters leave, in one request: for those that are few."""
        path = f"{_path(table)}?{urlencode({'select': select, **filters})}"
        return self._rows(lambda server: server.get(path, headers=self._headers))

    def rows(
        self, table: str, select: str = "*", key: str = "id", **filters: Sequence[str] | str
    ) -> Iterator[Row]:
        """Yield all rows in the order of the unique column `key`, which must be among `select`.

        Filters are PostgREST's: `caller="eq.m"`, `created_at=["gte.…Z", "lt.…Z"]`. Pages are asked
        for until one is empty: a short one need not be the last, the server has its own limit.
        """
        after: Any = None
        earlier: set[Any] = set()
        while page := self._page(table, select, key, after, filters):
            keys = {row.get(key) for row in page if isinstance(row.get(key), (str, int))}
            if len(keys) < len(page) or keys & earlier:  # it does not keep to order and filter
                raise self._project.stranger()
            yield from page
            after, earlier = page[-1][key], keys

    def _page(
        self, table: str, select: str, key: str, after: Any, filters: Mapping[str, Any]
    ) -> list[Row]:
        asked = [("select", select), ("order", key), ("limit", str(PAGE))]
        for name, said in filters.items():
            asked += [(name, one) for one in ([said] if isinstance(said, str) else said)]
        if after is not None:
            asked.append((key, f"gt.{after}"))
        path = f"{_path(table)}?{urlencode(asked)}"
        return self._rows(lambda server: server.get(path, headers=self._headers))

    def _rows(self, ask: Callable[[Server], Answer]) -> list[Row]:
        found = parsed(self._project.ask(ask).body)
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise self._project.stranger()
        return found


def _public_key(key: str) -> str | None:
    """Return what a key is called if it is one for browsers; None if it may be a secret one."""
    if key.startswith("sb_publishable_"):
        return "a publishable key (sb_publishable_…)"
    return "the legacy anon key" if _role_of(key) == "anon" else None


def _role_of(key: str) -> Any:
    """Return the role that a key names if it is a JWT; None if it is none."""
    payload = key.split(".")[1:2]
    try:
        claims = json.loads(base64.urlsafe_b64decode(f"{payload[0]}===")) if payload else None
    except (ValueError, RecursionError):
        return None
    return claims.get("role") if isinstance(claims, dict) else None


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


def parsed(body: bytes) -> Any:
    """Give a body as JSON, None when it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def meant(status: int, said: Mapping[str, Any]) -> int:
    """Give the status that is meant: Storage answers 400 to most, with the real one in its body."""
    real = str(said.get("statusCode", ""))
    return int(real) if status == 400 and real.isdecimal() and len(real) == 3 else status


# Codes of PostgREST, Storage and Postgres for what no row of ours can cause: a schema that is not
# served, a column or table that is not there, a role that may not, a bucket that is not there.
_OF_THE_SETUP = (
    *("PGRST106", "PGRST202", "PGRST204", "PGRST205", "42P01", "42703", "3F000", "42501"),
    "NoSuchBucket",
)
_BAD_KEY = ("AccessDenied", "InvalidJWT")


def _hint(code: str, status: int) -> str | None:
    if code == "NoSuchBucket":
        return "imagen-migrate makes the bucket; supabase.bucket names it"
    if code == "EntityTooLarge":
        return "the bucket's file_size_limit is smaller than the image"
    if code == "InvalidMimeType":
        return "the bucket's allowed_mime_types leave it out"
    if code in ("PGRST106", "PGRST205", "42P01") or status == 404:
        return "imagen-migrate makes the tables and has PostgREST serve them"
    if code == "42501":
        return "the key must be the service role's"
    return None
