"""The one importer of psycopg2: connect, transactions with time-outs, named queries, our errors."""

from __future__ import annotations

import re
import secrets
import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from .errors import AnswerLost, ConfigFault, ImagenError, Refused, Unreachable

SQL = Path(__file__).parent / "data" / "sql"
CONNECT_S = 10
GRACE_S = 5  # that an answer may come after its statement's time-out, before we stop waiting
_TCP = {  # a network that was cut is noticed within 15 s
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
Row = tuple[Any, ...]


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


class Database:
    """One connection. Every statement runs in a transaction."""

    def __init__(self, where: Address, application: str) -> None:
        """Connect; Unreachable when nobody answers, ConfigFault when we are turned away."""
        self.where = where
        self._connection = _connected(where, application)

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
            raise _refused(fault, self.where) from None

    def run(self, name: str, *values: Any, statement_s: float = 10, lock_s: float = 5) -> list[Row]:
        """Run a named query in a transaction of its own, in one round trip, and give its rows.

        What is sent in one message is one transaction, time-outs included, pooler or not.
        """
        import psycopg2

        limits = (
            f"select set_config('statement_timeout', '{statement_s * 1000:.0f}', true),"
            f" set_config('lock_timeout', '{lock_s * 1000:.0f}', true);"
        )
        try:
            self._connection.patience_s = statement_s + GRACE_S
            self._connection.autocommit = True
            try:
                with self._connection.cursor() as cursor:
                    cursor.execute(f"{limits}\n{queries()[name]}", values or None)
                    return list(cursor.fetchall()) if cursor.description else []
            finally:
                if not self._connection.closed:
                    self._connection.autocommit = False
        except psycopg2.Error as fault:
            raise _refused(fault, self.where) from None

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


class Notify(NamedTuple):
    """What somebody said on a channel."""

    channel: str
    payload: str


class Ear:
    """A connection that only listens. Whoever waits for `fileno` to be readable calls `poll`."""

    def __init__(self, where: Address, application: str) -> None:
        """Connect, as Database does, and listen to a channel of our own."""
        self.where = where
        self.own = f"imagen_ear_{secrets.token_hex(8)}"
        self._heard: list[Notify] = []
        self._connection = _connected(where, application)
        self._connection.autocommit = True  # else LISTEN waits for a commit
        self.listen(self.own)

    def listen(self, channel: str) -> None:
        """Listen to one more channel, a plain name."""
        self._execute(f'listen "{channel}"')

    def fileno(self) -> int:
        """Give the descriptor to wait for; -1 when the connection is gone."""
        return -1 if self._connection.closed else int(self._connection.fileno())

    def poll(self) -> list[Notify]:
        """Give what was said since the last call, at once; AnswerLost when the connection is gone.

        After the server has ended it, psycopg2's first poll() says nothing and the second one
        raises: so it is asked until nothing is left to read.
        """
        with self._ours():
            while _readable(self.fileno(), 0):
                self._connection.poll()
            self._keep()
        heard, self._heard = self._heard, []
        return [one for one in heard if one.channel != self.own]

    def alive(self) -> None:
        """Ask the server for something; AnswerLost when nothing comes, as in a cut network."""
        self._execute(queries()["alive"])

    def round_trip(self, say: Callable[[str, str], None], within_s: float = 2) -> float | None:
        """Give the seconds that a notification takes from another connection to here, or None.

        `say` sends a payload to a channel, by another connection than ours: a transaction pooler
        forgets who listened as soon as the statement is over, and hands on what is said within
        one. What else is heard meanwhile is for the next `poll`.
        """
        token, begun = secrets.token_hex(8), time.monotonic()
        say(self.own, token)
        with self._ours():
            while Notify(self.own, token) not in self._heard:
                left = begun + within_s - time.monotonic()
                if left <= 0 or not _readable(self.fileno(), left):
                    return None
                self._connection.poll()
                self._keep()
        self._heard = [one for one in self._heard if one.channel != self.own]
        return time.monotonic() - begun

    def close(self) -> None:
        """Close the connection; the server forgets what it listened to."""
        self._connection.close()

    def _execute(self, sql: str) -> None:
        with self._ours(), self._connection.cursor() as cursor:
            cursor.execute(sql)
            self._keep()

    def _keep(self) -> None:
        said = self._connection.notifies
        self._heard += [Notify(one.channel, one.payload) for one in said]
        del said[:]

    @contextmanager
    def _ours(self) -> Iterator[None]:
        import psycopg2

        try:
            if self._connection.closed:
                raise psycopg2.InterfaceError("connection already closed")
            yield
        except psycopg2.Error as fault:
            raise _refused(fault, self.where) from None


def _readable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()  # select() knows no descriptor above 1023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _connected(where: Address, application: str) -> Any:
    """Connect; whatever is asked of the connection later ends after its `patience_s`."""
    import psycopg2
    from psycopg2 import extensions

    class Connection(extensions.connection):
        patience_s: float = CONNECT_S

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
    while (state := connection.poll()) != POLL_OK:
        left = end - time.monotonic()
        if left <= 0:
            raise OperationalError("timed out")
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN if state == POLL_READ else select.POLLOUT)
        poll.poll(None if left == float("inf") else left * 1000)


@cache
def queries() -> dict[str, str]:
    """Give the named queries of sql/queries.sql."""
    return parse_queries((SQL / "queries.sql").read_text(encoding="utf-8"))


def parse_queries(text: str) -> dict[str, str]:
    """Take text apart into its `-- name:` blocks; ValueError when a name stands twice."""
    found: dict[str, str] = {}
    for block in re.split(r"^-- name:", text, flags=re.MULTILINE)[1:]:
        name, _, sql = block.partition("\n")
        if name.strip() in found:
            raise ValueError(f"two queries named {name.strip()}")
        found[name.strip()] = sql.strip()
    return found


_PASSING = (
    *("starting up", "shutting down", "recovery mode", "not currently accepting"),
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


def _refused(fault: Any, where: Address) -> ImagenError:
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
