"""The queue in Postgres: claim, renew, finish, rescue. Each call is one statement, then it is over.

Who holds a job holds its `fence`, a number that each claim raises: every call about a running job
names it, and changes nothing when somebody has claimed the job since. Times are the database's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..errors import BadLine
from ..records import record

if TYPE_CHECKING:
    from ..db import Database, Row

Stored = Mapping[str, Any] | None  # an object of a row, or null
LEASE_S = 10  # of sql/queries.sql: job_claim, job_renew
_LONGEST_S = 1e10  # since a time in a row, or until it
_AT_ONCE = 500  # jobs that are cancelled or queued again in one statement
MOST_CLAIMS = 5  # of job_rescue: without an answer
WAKE, DONE = "imagen_jobs", "imagen_jobs_done"  # the channels of sql/006_imagen_jobs.sql
# A claim reads its index in order; with old statistics the planner would sort all that waits. Its
# plan is kept: one that was made for a small table must not read all of it when it has grown.
IN_ORDER = {"enable_sort": "off", "enable_seqscan": "off"}
STATUSES = ("pending", "running", "done", "failed", "cancelled")
POISONOUS = {
    "tool": "imagen-listen",
    "code": "poisonous",
    "message": f"{MOST_CLAIMS} workers took it and none of them answered",
    "hint": "look into the worker's log; imagen-jobs retry --even-paid tries it again",
    "billed": "unknown",
    "retry": "never",
}


class Claimed(NamedTuple):
    """A job that is ours until its lease is over."""

    id: str
    fence: int
    attempts: int  # that had an answer so far
    max_attempts: int
    claims: int  # since the last answer, this one included
    owner_user_id: str
    prompt: str
    backend: str | None  # None: the worker's default
    params: dict[str, Any]  # as the web user wrote them
    request: dict[str, Any] | None  # the line that was sent before, to be sent again
    intended_age_s: float | None  # how long ago, by the database's clock, that was stored
    released_age_s: float | None  # how long ago who had it lost it; None: nothing is on its way
    broken: str | None = None  # why the row cannot be read; the job fails alone

    @property
    def first(self) -> bool:
        """Whether nobody can have sent anything for it."""
        return self.request is None


class QueueLike(Protocol):
    """What a worker needs of a queue. Errors are those of db: Unreachable, AnswerLost, …"""

    def claim(
        self, worker: str, backends: Sequence[str] | None, default_backend: str
    ) -> Claimed | None:
        """Take the next job that is due and for one of `backends` (None: for any)."""

    def intend(self, job_id: str, fence: int, request: Mapping[str, Any]) -> bool:
        """Store the line before it is sent; the first one stays. False: it is no longer ours."""

    def renew(self, worker: str, held: Mapping[str, int]) -> set[str]:
        """Renew the leases of these fences by id; give the ids that are still ours."""

    def cancelled(self, held: Mapping[str, int]) -> set[str]:
        """Give those of these fences by id that were cancelled while we held them."""

    def done(self, job_id: str, fence: int, image_id: str | None, record: Stored = None) -> bool:
        """It is made. As all that ends a hold: True too when said again, False when it is lost."""

    def done_and_next(
        self, job_id: str, fence: int, image_id: str | None, record: Stored, *who: Any
    ) -> tuple[bool, Claimed | None]:
        """Say `done`, and `claim` for `who` (claim's arguments), in one round trip."""

    def failed(
        self, job_id: str, fence: int, error: str, detail: Stored, record: Stored = None
    ) -> bool:
        """It is given up: a line for people, the record's error object, and the record."""

    def retry(
        self,
        job_id: str,
        fence: int,
        after_s: float,
        error: str,
        detail: Mapping[str, Any] | None,
        under_way: bool = False,
    ) -> bool:
        """An attempt failed, the next one may start in `after_s` seconds.

        With `under_way` what was sent may still be accepted: the next claim says since when
        nobody has it, as after a `put_back` without an answer.
        """

    def put_back(
        self,
        job_id: str,
        fence: int,
        after_s: float = 0,
        answered: bool = False,
        error: str | None = None,
        detail: Mapping[str, Any] | None = None,
        under_way: bool = False,
    ) -> bool:
        """Give it back at no cost of an attempt; at its old place when `after_s` is 0.

        Its claims count on unless something `answered`, by `error` why it waits: the fifth claim
        without an answer fails it as POISONOUS. `under_way` as in `retry`.
        """

    def rescue(self, grace_s: float = 0) -> list[str]:
        """Free the jobs whose lease ended more than `grace_s` ago; give their ids.

        At no cost of an attempt; one that was claimed MOST_CLAIMS times without an answer fails as
        POISONOUS, and its id is given too.
        """

    def take_back(self, worker: str) -> list[str]:
        """Free what runs under this name; only for who holds its name_lock, and has nothing."""

    def name_lock(self, worker: str) -> bool:
        """Take the name for as long as the connection lives; False when another has it."""

    def waiting(
        self, backends: Sequence[str] | None = None, default_backend: str = ""
    ) -> float | None:
        """Seconds until a job that we may claim is due, 0 when one is; None when there is none."""

    def counts(self) -> dict[str, int]:
        """How many are pending, due (of these), running and stuck (of these)."""


class Queue:
    """The queue in imagen.jobs (QueueLike), and what enqueue and jobs do with it."""

    def __init__(self, database: Database) -> None:
        """Take a connection that nobody else uses meanwhile."""
        self._database = database

    def check(self) -> None:
        """Raise DatabaseFault where the table of jobs is not as a worker needs it."""
        self._database.run("job_columns")

    def claim(
        self, worker: str, backends: Sequence[str] | None, default_backend: str
    ) -> Claimed | None:
        """See QueueLike."""
        values = _asker(worker, backends, default_backend)
        rows = self._database.run("job_claim", *values, settings=IN_ORDER, kept=True)
        return _claimed(rows[0]) if rows else None

    def intend(self, job_id: str, fence: int, request: Mapping[str, Any]) -> bool:
        """See QueueLike."""
        values = (as_json(request), job_id, fence)
        return bool(self._database.run("job_intend", *values, settings=IN_ORDER, kept=True))

    def renew(self, worker: str, held: Mapping[str, int]) -> set[str]:
        """See QueueLike."""
        return self._of_held("job_renew", held, worker) if held else set()

    def cancelled(self, held: Mapping[str, int]) -> set[str]:
        """See QueueLike."""
        return self._of_held("job_cancelled", held) if held else set()

    def _of_held(self, name: str, held: Mapping[str, int], *more: str) -> set[str]:
        return {row[0] for row in self._database.run(name, [*held], [*held.values()], *more)}

    def done(self, job_id: str, fence: int, image_id: str | None, record: Stored = None) -> bool:
        """See QueueLike."""
        return self._leave(job_id, fence, "done", image_id=image_id, record=record)

    def done_and_next(
        self, job_id: str, fence: int, image_id: str | None, record: Stored, *who: Any
    ) -> tuple[bool, Claimed | None]:
        """See QueueLike."""
        values = (image_id, _json_or_null(record), job_id, fence, *_asker(*who))
        ((held, *row),) = self._database.run("job_next", *values, settings=IN_ORDER, kept=True)
        ours = held or self.done(job_id, fence, image_id, record)  # it may have been said before
        return ours, None if row[0] is None else _claimed(tuple(row))

    def failed(
        self, job_id: str, fence: int, error: str, detail: Stored, record: Stored = None
    ) -> bool:
        """See QueueLike."""
        return self._leave(job_id, fence, "failed", error=error, detail=detail, record=record)

    def retry(
        self,
        job_id: str,
        fence: int,
        after_s: float,
        error: str,
        detail: Mapping[str, Any] | None,
        under_way: bool = False,
    ) -> bool:
        """See QueueLike."""
        values = {"after_s": after_s, "under_way": under_way}
        return self._leave(job_id, fence, "pending", **values, error=error, detail=detail)

    def put_back(
        self,
        job_id: str,
        fence: int,
        after_s: float = 0,
        answered: bool = False,
        error: str | None = None,
        detail: Mapping[str, Any] | None = None,
        under_way: bool = False,
    ) -> bool:
        """See QueueLike."""
        if not answered:  # what is said when it is given up by this
            error, detail = str(POISONOUS["message"]), POISONOUS
        values = {"attempt": 0, "answered": answered, "after_s": after_s, "under_way": under_way}
        return self._leave(job_id, fence, "pending", **values, error=error, detail=detail)

    def _leave(self, job_id: str, fence: int, status: str, **said: Any) -> bool:
        error = said.get("error")
        ((held,),) = self._database.run(
            "job_leave",
            *(job_id, fence, status, said.get("attempt", 1), said.get("answered", True)),
            *(said.get("under_way", False), said.get("after_s", 0), said.get("image_id")),
            None if error is None else storable(error),
            _json_or_null(said.get("detail")),
            _json_or_null(said.get("record")),
        )
        return bool(held)

    def rescue(self, grace_s: float = 0) -> list[str]:
        """See QueueLike."""
        return self._freed(grace_s, None)

    def take_back(self, worker: str) -> list[str]:
        """See QueueLike."""
        return self._freed(None, worker)

    def _freed(self, grace_s: float | None, worker: str | None) -> list[str]:
        error, detail = POISONOUS["message"], as_json(POISONOUS)
        rows = self._database.run("job_rescue", error, detail, grace_s, worker)
        return [row[0] for row in rows]

    def name_lock(self, worker: str) -> bool:
        """See QueueLike."""
        ((held, *_),) = self._database.run("job_name_lock", lock_number(worker))
        return bool(held)

    def waiting(
        self, backends: Sequence[str] | None = None, default_backend: str = ""
    ) -> float | None:
        """See QueueLike."""
        names = None if backends is None else list(backends)
        ((seconds,),) = self._database.run("job_waiting", names, default_backend, names)
        return None if seconds is None else max(0.0, seconds)

    def counts(self) -> dict[str, int]:
        """See QueueLike."""
        (row,) = self._database.run("job_counts")
        return dict(zip(("pending", "due", "running", "stuck"), row, strict=True))

    def ping(self, channel: str, token: str) -> None:
        """Notify a channel, to see whether an Ear hears it."""
        self._database.run("notify", channel, token)

    # -- for whoever asks for images -----------------------------------------------------------

    def enqueue(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """Insert jobs (id, owner_user_id, prompt, backend, params, priority); give the new ids."""
        text = json.dumps([*rows], allow_nan=False)
        return [row[0] for row in self._database.run("job_enqueue", text, statement_s=20)]

    def rows_of(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Give the jobs of these ids as objects, by id; what is not there is left out."""
        found = self._database.run("job_rows", [*ids], statement_s=60)
        return {row["id"]: row for row in (json.loads(text) for (text,) in found)}

    def status_of(self, ids: Iterable[str]) -> dict[str, str]:
        """Give the status of each of these ids that is there."""
        rows = self._database.run("job_status", [*ids], statement_s=60)
        return dict(rows)

    def cancel(self, job_id: str) -> bool:
        """Cancel a job that is not over; False when it is, or there is none."""
        return bool(self.cancel_all([job_id]))

    def cancel_all(self, ids: Sequence[str]) -> list[dict[str, str]]:
        """Cancel those that are not over; give their id, status and prompt."""
        return self._changed("job_cancel", ids)

    def again(self, job_id: str) -> bool:
        """Queue a failed or cancelled job again; False when it is neither, or there is none."""
        return bool(self.again_all([job_id], even_paid=True))

    def again_all(self, ids: Sequence[str], even_paid: bool = False) -> list[dict[str, str]]:
        """Queue those that failed or were cancelled again; give their id, status and prompt.

        Unless `even_paid`, what may have been paid stays: `billed` yes or unknown, or reconcile.
        """
        return self._changed("job_again", ids, even_paid)

    def _changed(self, name: str, ids: Sequence[str], *more: Any) -> list[dict[str, str]]:
        changed: list[dict[str, str]] = []
        for start in range(0, len(ids), _AT_ONCE):
            some = [*ids[start : start + _AT_ONCE]]
            rows = self._database.run(name, some, *more, statement_s=60)
            changed += [dict(zip(("id", "status", "prompt"), row, strict=True)) for row in rows]
        return changed

    def ids_from(self, start: str) -> list[str]:
        """Give up to three ids that begin with these hexadecimal digits and dashes."""
        digits = start.replace("-", "")
        ends = (digits.ljust(32, digit) for digit in "0f")
        return [row[0] for row in self._database.run("job_between", *ends)]

    def listed(
        self, statuses: Sequence[str] = STATUSES, since: str | None = None
    ) -> list[dict[str, Any]]:
        """Give the jobs of these statuses, inserted since an ISO time, the newest first."""
        rows = self._database.run("job_list", list(statuses), since, since, statement_s=60)
        return [json.loads(text) for (text,) in rows]


def _asker(
    worker: str, backends: Sequence[str] | None, default_backend: str
) -> tuple[str, list[str] | None, str, list[str] | None]:
    """Give the values of job_claim."""
    names = None if backends is None else list(backends)
    return worker, names, default_backend, names


def _claimed(row: Row) -> Claimed:
    params, request, *ages_s = row[8:12]
    broken, sent = None, None
    try:
        read = record.parse(params.encode())
    except BadLine as fault:  # Postgres keeps numbers and depths that Python does not read
        read, broken = {}, f"params cannot be read: {fault.message}"
    try:
        sent = record.parse(request.encode()) if request else None
    except BadLine as fault:
        broken = f"request cannot be read: {fault.message}"
    if not all(age_s is None or abs(age_s) < _LONGEST_S for age_s in ages_s):
        ages_s, broken = [None, None], "intended_at or released_at is no time"
    return Claimed._make((*row[:8], read, sent, *ages_s, broken))


def lock_number(worker: str) -> int:
    """Give the number that stands for a worker's name in an advisory lock: a signed 32-bit one."""
    digest = hashlib.sha256(worker.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:4], signed=True)


def _json_or_null(value: Stored) -> str | None:
    return None if value is None else as_json(value)


def storable(text: str) -> str:
    """Give text as Postgres can keep it: no NUL, no half of a surrogate pair."""
    return text.encode(errors="replace").decode().replace("\0", "�")


def as_json(value: Mapping[str, Any]) -> str:
    """Give an object as JSON that Postgres can keep."""
    return json.dumps(_storable(value), ensure_ascii=False, allow_nan=False)


def _storable(value: Any) -> Any:
    match value:
        case str():
            return storable(value)
        case Mapping():
            return {storable(key): _storable(one) for key, one in value.items()}
        case list() | tuple():
            return [_storable(one) for one in value]
    return value
