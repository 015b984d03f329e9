"""Follow jobs to their end: listening, and looking now and then in case nothing is heard."""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Iterator
from typing import Any

from .. import retry
from ..db import Address, Database, Ear
from ..errors import AnswerLost, Unreachable
from . import jobs

LOOK_S = 5  # between two looks at everything
PATIENCE_S = 60  # with a database that is away
OVER = ("done", "failed", "cancelled")


class Follower:
    """Waits for jobs to end, through lost connections."""

    def __init__(self, where: Address, application: str) -> None:
        """Take where the queue is; nothing is opened yet."""
        self._where = where
        self._application = application
        self._open: tuple[Ear, Database] | None = None

    def ended(self, ids: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield the row of each job as it ends; of one that was deleted, its id and `gone`."""
        left = {*ids}
        asked = set(left)
        while left:
            rows = retry.for_a_while(lambda asked=asked: self._look(asked), PATIENCE_S, 1)  # type: ignore[misc]
            for row in rows:
                left.discard(row["id"])
                yield row
            asked = self._wait(left) if left else set()

    def _look(self, ids: set[str]) -> list[dict[str, Any]]:
        try:
            if not self._open:
                ear = Ear(self._where, self._application)
                self._open = ear, Database(self._where, self._application)
                ear.listen(jobs.DONE)  # before the look, so that nothing is missed between
            queue = jobs.Queue(self._open[1])
            found = queue.status_of(ids)
            over = [name for name, status in found.items() if status in OVER]
            gone = [{"id": name, "status": "gone"} for name in ids - {*found}]
            return [*queue.rows_of(over).values(), *gone]
        except (Unreachable, AnswerLost):
            self.close()
            raise

    def _wait(self, left: set[str]) -> set[str]:
        """Give those that are said to be over; all of them when nothing was said for long."""
        assert self._open
        ear, _ = self._open
        end = time.monotonic() + LOOK_S
        try:
            while (seconds := end - time.monotonic()) > 0:
                poll = select.poll()
                poll.register(ear.fileno(), select.POLLIN)
                poll.poll(seconds * 1000)
                if heard := {one.payload for one in ear.poll()} & left:
                    return heard
        except AnswerLost:
            self.close()
        return set(left)

    def close(self) -> None:
        """Close what was opened."""
        for one in self._open or ():
            one.close()
        self._open = None
