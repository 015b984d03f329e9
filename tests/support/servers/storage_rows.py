"""The rows of the Storage look-alike: in storage.objects of a database, or in memory.

With a database every question is asked in a transaction with the role and the claims of who asks,
as the real Storage does: the policies decide. In memory only the service role gets in.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from queue import Empty, LifoQueue
from typing import Any, NamedTuple, Protocol

import psycopg2
from psycopg2 import errors
from psycopg2.extras import Json, RealDictCursor

Claims = dict[str, Any]
SERVICE: Claims = {"role": "service_role"}
ROLES = ("anon", "authenticated", "service_role")
UNKNOWN_ROLE = "22023"  # invalid_parameter_value, which `set role` says


class Denied(Exception):
    """The policies do not let this one write this."""


class Exists(Exception):
    """There is one of that name."""


class Trouble(Exception):
    """The database fails; the message is its code, empty when it cannot be reached."""


class Row(NamedTuple):
    """An object as storage.objects has it; times are aware."""

    id: str
    bucket_id: str
    name: str
    owner_id: str | None
    metadata: dict[str, Any] | None
    user_metadata: dict[str, Any] | None
    created_at: datetime
    updated_at: datetime
    last_accessed_at: datetime


class Rows(Protocol):
    """Who may see and write what; claims are those of a token."""

    def buckets(self, claims: Claims) -> list[dict[str, Any]]:
        """Give the buckets that may be seen, by name."""

    def add_bucket(self, claims: Claims, one: dict[str, Any]) -> None:
        """Make a bucket; Exists, Denied."""

    def drop_bucket(self, claims: Claims, name: str) -> None:
        """Drop a bucket."""

    def find(self, claims: Claims, bucket: str, name: str) -> Row | None:
        """Give an object that may be seen."""

    def within(self, claims: Claims, bucket: str, start: str) -> list[Row]:
        """Give the objects that may be seen and whose names start so."""

    def may_put(self, claims: Claims, bucket: str, name: str, upsert: bool) -> None:
        """Ask whether an object may be put there; Denied, Exists. Nothing is written."""

    def put(
        self, bucket: str, name: str, owner: str | None, about: Claims, user: Claims | None
    ) -> Row:
        """Write the row of an object that is there now, over one that was."""

    def delete(self, claims: Claims, bucket: str, names: list[str]) -> list[Row]:
        """Delete the objects that may be deleted; give them."""

    def close(self) -> None:
        """Let go of what is held."""


class Table:
    """storage.buckets and storage.objects of a database."""

    def __init__(self, dsn: str) -> None:
        """Take its address as the role `authenticator`, which may become those of tokens."""
        self._dsn = dsn
        self._idle: LifoQueue[Any] = LifoQueue()

    @contextmanager
    def _as(self, claims: Claims, keep: bool = True) -> Iterator[Any]:
        """Give a cursor of a transaction as the one with these claims."""
        role = "select set_config('role', %s, true), set_config('request.jwt.claims', %s, true)"
        connection = None
        try:
            connection = self._connection()
            with connection.cursor(cursor_factory=RealDictCursor) as cursor:
                cursor.execute(role, [claims.get("role") or "anon", json.dumps(claims)])
                yield cursor
            connection.commit() if keep else connection.rollback()
        except errors.InsufficientPrivilege as error:
            raise Denied from error
        except errors.UniqueViolation as error:
            raise Exists from error
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            if connection is not None:
                connection.close()
            self.close()  # the others are as old
            raise Trouble(getattr(error, "pgcode", None) or "") from error
        except psycopg2.Error as error:
            raise Trouble(error.pgcode or "") from error
        finally:
            if connection is not None:
                self._give_back(connection)

    def _connection(self) -> Any:
        try:
            return self._idle.get_nowait()
        except Empty:
            return psycopg2.connect(self._dsn, connect_timeout=10, application_name="storage")

    def _give_back(self, connection: Any) -> None:
        if connection.closed:
            return
        connection.rollback()
        self._idle.put(connection)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while True:
            try:
                self._idle.get_nowait().close()
            except Empty:
                return

    def buckets(self, claims: Claims) -> list[dict[str, Any]]:
        with self._as(claims) as cursor:
            cursor.execute("select * from storage.buckets order by name")
            return [dict(one) for one in cursor.fetchall()]

    def add_bucket(self, claims: Claims, one: dict[str, Any]) -> None:
        with self._as(claims) as cursor:
            cursor.execute(
                "insert into storage.buckets"
                " (id, name, public, file_size_limit, allowed_mime_types, owner_id)"
                " values (%s, %s, %s, %s, %s, %s)",
                list(_bucket(one, claims).values()),
            )

    def drop_bucket(self, claims: Claims, name: str) -> None:
        with self._as(claims) as cursor:
            cursor.execute("delete from storage.buckets where id = %s", [name])

    def find(self, claims: Claims, bucket: str, name: str) -> Row | None:
        with self._as(claims) as cursor:
            where = "bucket_id = %s and name = %s"
            cursor.execute(f"select {COLUMNS} from storage.objects where {where}", [bucket, name])
            return next((Row(**one) for one in cursor.fetchall()), None)

    def within(self, claims: Claims, bucket: str, start: str) -> list[Row]:
        with self._as(claims) as cursor:
            where = "bucket_id = %s and starts_with(name, %s)"
            cursor.execute(f"select {COLUMNS} from storage.objects where {where}", [bucket, start])
            return [Row(**one) for one in cursor.fetchall()]

    def may_put(self, claims: Claims, bucket: str, name: str, upsert: bool) -> None:
        with self._as(claims, keep=False) as cursor:
            values = [bucket, name, claims.get("sub"), None, None]
            cursor.execute(INSERT + (OVER if upsert else ""), values)

    def put(
        self, bucket: str, name: str, owner: str | None, about: Claims, user: Claims | None
    ) -> Row:
        with self._as(SERVICE) as cursor:
            values = [bucket, name, owner, Json(about), user and Json(user)]
            cursor.execute(f"{INSERT}{OVER} returning {COLUMNS}", values)
            return Row(**cursor.fetchone())

    def delete(self, claims: Claims, bucket: str, names: list[str]) -> list[Row]:
        with self._as(claims) as cursor:
            cursor.execute(
                "delete from storage.objects where bucket_id = %s and name = any (%s)"
                f" returning {COLUMNS}",
                [bucket, names],
            )
            return [Row(**one) for one in cursor.fetchall()]


COLUMNS = ", ".join("id::text" if name == "id" else name for name in Row._fields)
INSERT = (
    "insert into storage.objects (bucket_id, name, owner_id, metadata, user_metadata)"
    " values (%s, %s, %s, %s, %s)"
)
OVER = (
    " on conflict (bucket_id, name) do update set metadata = excluded.metadata,"
    " owner_id = excluded.owner_id, user_metadata = excluded.user_metadata, updated_at = now()"
)


def _bucket(one: dict[str, Any], claims: Claims) -> dict[str, Any]:
    names = ("id", "name", "public", "file_size_limit", "allowed_mime_types")
    given = {name: one.get(name) for name in names}
    return {**given, "public": bool(given["public"]), "owner_id": claims.get("sub")}


class Memory:
    """Rows without a database: the service role may do all, others nothing."""

    def __init__(self) -> None:
        self._buckets: dict[str, dict[str, Any]] = {}
        self._objects: dict[tuple[str, str], Row] = {}

    def _sees(self, claims: Claims) -> bool:
        role = claims.get("role") or "anon"
        if role not in ROLES:
            raise Trouble(UNKNOWN_ROLE)
        return role == "service_role"

    def buckets(self, claims: Claims) -> list[dict[str, Any]]:
        return [one for _, one in sorted(self._buckets.items())] if self._sees(claims) else []

    def add_bucket(self, claims: Claims, one: dict[str, Any]) -> None:
        if not self._sees(claims):
            raise Denied
        if one["id"] in self._buckets:
            raise Exists
        times = dict.fromkeys(("created_at", "updated_at"), datetime.now(UTC))
        self._buckets[one["id"]] = {**_bucket(one, claims), **times}

    def drop_bucket(self, claims: Claims, name: str) -> None:
        if self._sees(claims):
            self._buckets.pop(name, None)

    def find(self, claims: Claims, bucket: str, name: str) -> Row | None:
        return self._objects.get((bucket, name)) if self._sees(claims) else None

    def within(self, claims: Claims, bucket: str, start: str) -> list[Row]:
        rows = list(self._objects.values()) if self._sees(claims) else []
        return [row for row in rows if row.bucket_id == bucket and row.name.startswith(start)]

    def may_put(self, claims: Claims, bucket: str, name: str, upsert: bool) -> None:
        if not self._sees(claims):
            raise Denied
        if not upsert and (bucket, name) in self._objects:
            raise Exists

    def put(
        self, bucket: str, name: str, owner: str | None, about: Claims, user: Claims | None
    ) -> Row:
        now, before = datetime.now(UTC), self._objects.get((bucket, name))
        kept = (before.id, before.created_at, before.last_accessed_at) if before else None
        id_, created, accessed = kept or (str(uuid.uuid4()), now, now)
        row = Row(id_, bucket, name, owner, about, user, created, now, accessed)
        self._objects[bucket, name] = row
        return row

    def delete(self, claims: Claims, bucket: str, names: list[str]) -> list[Row]:
        if not self._sees(claims):
            return []
        gone = [self._objects.pop((bucket, name), None) for name in names]
        return [row for row in gone if row]

    def close(self) -> None:
        """Nothing is held."""
