"""Connecting to Postgres: addresses, patience, and what its refusals mean to us."""

from __future__ import annotations

import re
import select
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import AnswerLost, ConfigFault, ImagenError, Refused, Unreachable

CONNECT_S = 10
HURRY_S = 2  # for any answer while whoever asks must end soon
_LOOK_S = 0.2  # how often it is asked whether that is so
_TCP = {  # a network that was cut is noticed within 15 s
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


class DatabaseFault(ImagenError):
    """The database refused a statement"""

    code = "database"
    sqlstate = ""


class DatabaseBusy(DatabaseFault):
    """The database did not get to it in time; it may later"""

    code = "database_busy"
    retry = "safe"


class Address(NamedTuple):
    """Where a database is: for libpq, for people, and whether it holds a password."""

    dsn: str
    shown: str
    has_password: bool


def address(dsn: str) -> Address:
    """Read a URL or key=value address; ConfigFault, which does not show it, when it is none."""
    import psycopg2
    from psycopg2.extensions import parse_dsn

    authority, _, rest = re.sub(r"^\w+://", "", dsn).partition("/")
    if "://" in dsn and (authority.count("@") > 1 or "@" in rest.partition("?")[0]):
        raise _unreadable()  # libpq would take a piece of the password for the host, and show it
    try:
        parts = parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        raise _unreadable() from None
    host = parts.get("host") or parts.get("hostaddr") or "local socket"
    port = f":{parts['port']}" if "port" in parts else ""
    name = f"/{parts['dbname']}" if "dbname" in parts else ""
    return Address(dsn, f"{host}{port}{name}", bool({"password", "sslpassword"} & {*parts}))


def _unreadable() -> ConfigFault:
    return ConfigFault(
        "the database address cannot be read",
        hint="postgresql://user@host:port/name; in a password write @ as %40 and / as %2F",
    )


def connected(
    where: Address, application: str, must_hurry: Callable[[], bool] | None = None
) -> Any:
    """Connect; whatever is asked of the connection later ends after its `patience_s`.

    Once `must_hurry` says so, no answer is waited for longer than HURRY_S.
    """
    import psycopg2
    from psycopg2 import extensions

    class Connection(extensions.connection):
        patience_s: float = CONNECT_S
        hurries = must_hurry and staticmethod(must_hurry)

    said = extensions.parse_dsn(where.dsn)
    if "connect_timeout" in said:
        Connection.patience_s = max(float(said["connect_timeout"]), 0) or CONNECT_S
    more: dict[str, Any] = {name: value for name, value in _TCP.items() if name not in said}
    extensions.set_wait_callback(_wait)
    try:
        return psycopg2.connect(
            where.dsn, connection_factory=Connection, application_name=application, **more
        )
    except psycopg2.Error as fault:
        raise _turned_away(str(fault), where) from None


def _wait(connection: Any) -> None:
    """Wait for what was asked of the server; after too long the connection is given up.

    libpq itself would wait for ever for a server that is there and says nothing. psycopg2 closes
    the connection when this raises.
    """
    from psycopg2 import OperationalError
    from psycopg2.extensions import POLL_OK, POLL_READ

    end = time.monotonic() + getattr(connection, "patience_s", float("inf"))
    hurries, is_hurried = getattr(connection, "hurries", None), False
    while (state := connection.poll()) != POLL_OK:
        if hurries and not is_hurried and hurries():
            end, is_hurried = min(end, time.monotonic() + HURRY_S), True
        remaining_s = end - time.monotonic()
        if remaining_s <= 0:
            raise OperationalError("timed out")
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN if state == POLL_READ else select.POLLOUT)
        remaining_s = min(remaining_s, _LOOK_S) if hurries and not is_hurried else remaining_s
        poll.poll(None if remaining_s == float("inf") else remaining_s * 1000)


_PASSING = (
    *("starting up", "shutting down", "recovery mode", "terminating connection"),
    *("not currently accepting", "not yet accepting"),
    *("too many", "connection slots", "no more connections"),
)
_TURNED_AWAY = {
    "password authentication failed": "the password is wrong, or the user is not there",
    "no password supplied": "it wants a password: $IMAGEN_DATABASE_URL or ~/.pgpass may hold one",
    "no pg_hba.conf entry": "it lets nobody in from here",
    "does not exist": "there is no such user or database",
    "permission denied for database": "this user may not connect",
    "invalid port": "the port is none",
    "server does not support SSL": "it does not speak TLS",
    "certificate": "its certificate is not trusted",
    "FATAL": "the server turned us away; its log says why",  # or said so in another language
}
_NOT_REACHED = {
    "onnection refused": "connection refused",
    "timeout expired": "timed out",
    "timed out": "timed out",
    "could not translate host": "no such host",
    "No such file": "no socket there",
    "closed the connection": "the connection was closed",
}


def _turned_away(said: str, where: Address) -> ImagenError:
    """Judge a failed connection by what libpq said, which is not shown: it may hold anything."""
    passing = next((f"the database is busy ({s})" for s in _PASSING if s in said), None)
    if not passing:
        for sign, why in _TURNED_AWAY.items():
            if sign in said:
                return ConfigFault(f"cannot use the database at {where.shown}: {why}")
    why = passing or next((w for sign, w in _NOT_REACHED.items() if sign in said), "no connection")
    return Unreachable(f"cannot reach the database at {where.shown}: {why}")


def refused(fault: Any, where: Address) -> ImagenError:
    """Name what a statement failed of by its SQLSTATE; never DETAIL, which may hold a whole row."""
    state = fault.pgcode or ""
    said = f"the database at {where.shown}: {fault.diag.message_primary or type(fault).__name__}"
    lost = isinstance(fault, _lost_kinds()) and not state
    if lost or state.startswith(("08", "57P")):
        return AnswerLost(f"lost the connection to the database at {where.shown}")
    if state in ("55P03", "57014") or state.startswith(("40", "53")):
        return DatabaseBusy(said, sqlstate=state)
    if state == "42501":
        return Refused(said, code="not_permitted", hint="connect as a role that may do this")
    return DatabaseFault(f"{said} ({state})", sqlstate=state)


def _lost_kinds() -> tuple[type[Exception], ...]:
    import psycopg2

    return (psycopg2.OperationalError, psycopg2.InterfaceError)
