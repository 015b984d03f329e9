"""Listening to Postgres: what was said, whether the connection lives, and whether it hears."""

from __future__ import annotations

import secrets
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .connection import Address, connected, refused

# when the other end is dead without having said so, the server lets go of the connection in 40 s
_DEAD_PEERS = """select set_config('tcp_keepalives_idle', '20', false),
  set_config('tcp_keepalives_interval', '5', false),
  set_config('tcp_keepalives_count', '4', false),
  set_config('tcp_user_timeout', '40000', false)"""


class Notify(NamedTuple):
    """What somebody said on a channel."""

    channel: str
    payload: str


class Ear:
    """A connection that only listens. Whoever waits for `fileno` to be readable calls `poll`."""

    def __init__(
        self, where: Address, application: str, must_hurry: Callable[[], bool] | None = None
    ) -> None:
        """Connect, as Database does, and listen to a channel of our own."""
        self.where = where
        self.own = f"imagen_ear_{secrets.token_hex(8)}"
        self._heard: list[Notify] = []
        self._connection = connected(where, application, must_hurry)
        self._connection.autocommit = True  # else LISTEN waits for a commit
        self._execute(_DEAD_PEERS)
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
        self._execute("select 1")

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
            raise refused(fault, self.where) from None


def _readable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()  # select() knows no descriptor above 1023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
