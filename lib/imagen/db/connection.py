"""Connecting to Postgres: addresses, patience, and what its refusals mean to us."""

from __future__ import annotations

import re
import select
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import AnswerLost, ConfigFault, ImagenError, Refused, Unreachable
from .hosts import targets

CONNECT_S = 10
HURRY_S = 2  # for any answer while whoever asks must end soon
_LOOK_S = 0.2  # how often it is asked whether that is so
_LEAST_S = 1.0  # that the hosts that are left have together
_MOST_TEXT = 300  # characters of what the server says
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

    if re.search(r"[\r\n\t]", dsn):
        raise _unreadable(_ONE_LINE)  # libpq would take it for a part of the name
    authority, _, rest = re.sub(r"^\w+://", "", dsn).partition("/")
    if "://" in dsn and (authority.count("@") > 1 or "@" in rest.partition("?")[0]):
        raise _unreadable(
            _hint(dsn)
        )  # libpq would take a piece of the password for the host, and show it
    try:
        parts = parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        raise _unreadable(_hint(dsn)) from None
    host = parts.get("host") or parts.get("hostaddr") or "local socket"
    port = f":{parts['port']}" if "port" in parts else ""
    name = f"/{parts['dbname']}" if "dbname" in parts else ""
    return Address(dsn, f"{host}{port}{name}", bool({"password", "sslpassword"} & {*parts}))


_FORM = "postgresql://user@host:port/name; in a password write @ as %40 and / as %2F"
_ONE_LINE = "on one line, without blanks or line breaks"
_OTHERS_OPTIONS = ("pgbouncer", "supa", "schema", "connection_limit", "pool_timeout")


def _unreadable(hint: str | None = None) -> ConfigFault:
    return ConfigFault("the database address cannot be read", hint=hint or _FORM)


def _hint(dsn: str) -> str | None:
    """Return what to change in an address that libpq does not read."""
    if dsn[:1] in "\"'" or dsn[-1:] in "\"'":
        return "without the quotes around it"
    if re.search(r"\s", dsn.strip()) and "://" in dsn:
        return _ONE_LINE
    options = re.findall(r"[?&](\w+)=", dsn.rpartition("@")[2])
    if others := [name for name in options if name in _OTHERS_OPTIONS or name.startswith("supa")]:
        return f"leave out ?{others[0]}=…: it is for other clients, PostgreSQL does not know it"
    return None


def connected(
    where: Address, application: str, must_hurry: Callable[[], bool] | None = None
) -> Any:
    """Connect; whatever is asked of the connection later ends after its `patience_s`.

    Of several hosts or addresses each gets its share of the time. Once `must_hurry` says so, no
    answer is waited for longer than HURRY_S. ConfigFault when the database is not UTF8.
    """
    import psycopg2
    from psycopg2 import extensions

    said = extensions.parse_dsn(where.dsn)
    total_s = max(float(said.get("connect_timeout", 0)), 0) or CONNECT_S
    more: dict[str, Any] = {name: value for name, value in _TCP.items() if name not in said}
    more |= {"application_name": application, "client_encoding": "UTF8"}
    extensions.set_wait_callback(_wait)
    ends, first = time.monotonic() + total_s, None
    places = targets(said)
    for number, target in enumerate(places):
        share_s = max(ends - time.monotonic(), _LEAST_S) / (len(places) - number)
        kind = _kind(share_s, must_hurry)
        try:
            connection: Any = psycopg2.connect(
                where.dsn, connection_factory=kind, **{**more, **target}
            )
        except psycopg2.Error as fault:
            first = first or _turned_away(str(fault), where, said.get("password"))
            if isinstance(first, ConfigFault):
                raise first from None
            continue
        connection.patience_s = total_s
        return _checked(connection, where)
    raise first or Unreachable(f"cannot reach the database at {where.shown}: no such host")


def _kind(share_s: float, must_hurry: Callable[[], bool] | None) -> Any:
    """Return the class of a connection that has so long to come about."""
    from psycopg2 import extensions

    class Connection(extensions.connection):
        patience_s: float = share_s
        hurries = must_hurry and staticmethod(must_hurry)

    return Connection


def _checked(connection: Any, where: Address) -> Any:
    """Return it; ConfigFault when its database has another encoding, which lacks characters."""
    encoding = connection.get_parameter_status("server_encoding")
    if encoding in (None, "UTF8"):
        return connection
    name = connection.info.dbname
    connection.close()
    raise ConfigFault(
        f"the database {name} at {where.shown} has the encoding {encoding}, not UTF8",
        hint="createdb --encoding UTF8 --template template0 makes one that holds every text",
    )


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


# SQLSTATE classes 28 and 3D: what the server says of them, by which alone libpq lets them be told.
# Everything else may pass: a full pooler, a failover, a server that starts.
_LASTING = {
    "password authentication failed": "the password is wrong, or the user is not there",
    "no password supplied": "it wants a password: $IMAGEN_DATABASE_URL or ~/.pgpass may hold one",
    "no pg_hba.conf entry": "it lets nobody in from here",
    "pg_hba.conf rejects": "it lets nobody in from here",
    "authentication failed for user": "the user is not let in",
    "is not permitted to log in": "the user is not let in",
    "invalid port": "the port is none",
}
_NOT_REACHED = {
    "server does not support SSL": "it does not speak TLS",
    "certificate": "its certificate is not trusted",
    "onnection refused": "connection refused",
    "timeout expired": "timed out",
    "timed out": "timed out",
    "could not translate host": "no such host",
    "No such file": "no socket there",
    "closed the connection": "the connection was closed",
}


def _turned_away(said: str, where: Address, password: str | None = None) -> ImagenError:
    """Judge a failed connection by what libpq said; the server's own sentence alone is shown."""
    sentence = re.search(r"(?:FATAL|ERROR):  (.*)", said)
    text = sentence[1].strip()[:_MOST_TEXT] if sentence else ""
    if password:
        text = text.replace(password, "***")
    signs = _LASTING.items()
    if re.match(r"(role|user|database) .* does not exist", text):
        signs = {"": "there is no such user or database"}.items()
    for sign, why in signs:
        if sign in (text or said):
            says = f"{why}: {text}" if text else why
            return ConfigFault(f"cannot use the database at {where.shown}: {says}")
    if not text and "\nFATAL" not in said and not said.startswith("FATAL"):
        text = next((w for sign, w in _NOT_REACHED.items() if sign in said), "no connection")
        return Unreachable(f"cannot reach the database at {where.shown}: {text}")
    return Unreachable(f"the database at {where.shown} turns us away for now: {text}")


def refused(fault: Any, where: Address) -> ImagenError:
    """Name what a statement failed of by its SQLSTATE; never DETAIL, which may hold a whole row."""
    state = fault.pgcode or ""
    said = f"the database at {where.shown}: {fault.diag.message_primary or type(fault).__name__}"
    lost = isinstance(fault, _lost_kinds()) and not state
    if lost or state.startswith(("08", "57P")):
        return AnswerLost(f"lost the connection to the database at {where.shown}")
    if state in _BUSY or state.startswith(("40", "53", "57")):
        return DatabaseBusy(f"{said} ({state})", sqlstate=state)
    if state == "42501":
        return Refused(said, code="not_permitted", hint="connect as a role that may do this")
    return DatabaseFault(f"{said} ({state})", sqlstate=state)


# a lock, a server that became a standby by a failover, what poolers say of their own troubles
_BUSY = ("55P03", "25006", "XX000")


def _lost_kinds() -> tuple[type[Exception], ...]:
    import psycopg2

    return (psycopg2.OperationalError, psycopg2.InterfaceError)
