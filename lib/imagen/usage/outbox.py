"""The way of the cost log to Supabase: what could not be sent is kept, and sent later."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..cloud import supabase
from ..cloud.supabase import Tables
from ..errors import ImagenError, Rejected
from ..ledger import Usage
from . import cost_log
from .cost_log import Row

BATCH = 500  # rows in one request
PATIENCE_S = 10  # that a run waits for Supabase: its rows are safe already
REST_S = 60  # after a failure nothing is sent for so long


class Outbox:
    """Sends the rows of the ledger that are still to be sent, many in one request."""

    def __init__(self, rows: Usage, connect: Callable[[], Tables]) -> None:
        """Take the ledger's rows, and what gives the tables when they are needed first."""
        self._rows = rows
        self._connect = connect
        self._tables: Tables | None = None
        self._rests_until = 0.0
        self._refused = 0

    @property
    def rests_s(self) -> float:
        """Give the seconds until it sends again, 0 when it would now."""
        return max(self._rests_until - time.monotonic(), 0.0)

    def send(self) -> ImagenError | None:
        """Send what waits; gives why something could not be sent. It is kept in the ledger then.

        After a failure it rests for a while, so that a server that is down holds nothing up.
        """
        if self.rests_s:
            return None
        fault = None
        while waiting := self._rows.unsent(BATCH):
            self._refused = 0
            fault = self._sent(waiting)
            if fault is None and len(waiting) < BATCH:
                break
            if fault and self._rows.unsent(BATCH) == waiting:
                self._rests_until = time.monotonic() + REST_S
                break
        return fault

    def _sent(self, rows: list[Row], again: bool = False) -> ImagenError | None:
        """Send a batch; of one that is refused, the rows that are not at fault."""
        try:
            self._tables = self._tables or self._connect()
            supabase.send_usage(self._tables, [cost_log.for_supabase(row) for row in rows])
        except Rejected as fault:
            if fault.status == _CONFLICT and not again:  # another process just put a row of it in
                return self._sent(rows, again=True)
            return self._halved(rows, fault)
        except ImagenError as fault:
            return fault
        self._rows.sent(rows)
        return None

    def _halved(self, rows: list[Row], fault: Rejected) -> ImagenError | None:
        self._refused += len(rows) == 1
        if fault.status not in _OF_A_ROW or len(rows) == 1 or self._refused >= _MOST_REFUSED:
            return fault
        middle = len(rows) // 2
        first, second = self._sent(rows[:middle]), self._sent(rows[middle:])
        return first or second

    def close(self) -> None:
        """Close the connection."""
        if self._tables:
            self._tables.close()


_CONFLICT = 409
_OF_A_ROW = (400, _CONFLICT, 413)
_MOST_REFUSED = 5  # rows, then it is not for the rows' sake
