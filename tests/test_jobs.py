"""The queue: one suite for the real one and the fake, and what only a real PostgreSQL can show."""

from __future__ import annotations

import json
import uuid
from contextlib import closing

import pytest

from fake_queue import FakeQueue
from imagen import db, jobs
from imagen.db import Database
from imagen.jobs import MOST_CLAIMS, Queue

OWNER, OTHER = str(uuid.UUID(int=10)), str(uuid.UUID(int=11))
LINE = {"prompt": "a cat", "id": "x", "seed": 2**64 - 1, "cfg": 1.5, "job": {"id": "x"}}
DETAIL = {"tool": "imagen-render", "code": "unreachable", "message": "m", "retry": "safe"}


def connected(place, user="migrator"):
    return closing(Database(db.address(place.dsn(user)), "imagen-test"))


class Real:
    """The real queue, and a test's own way into its rows."""

    def __init__(self, queue, cursor):
        self.queue = queue
        self.cursor = cursor

    def add(self, prompt="a cat", **columns):
        row = {"prompt": prompt, "owner_user_id": OWNER, **columns}
        names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
        values = [json.dumps(one) if isinstance(one, dict) else one for one in row.values()]
        sql = f"insert into imagen.jobs ({names}) values ({marks}) returning id::text"
        self.cursor.execute(sql, values)
        return self.cursor.fetchone()[0]

    def skip(self, seconds):
        changes = [
            f"{name} = {name} - {seconds} * interval '1 s'"
            for name in ("lease", "run_after", "intended_at")
        ]
        self.cursor.execute(f"update imagen.jobs set {', '.join(changes)}")

    def cancel(self, job_id):
        return self.queue.cancel(job_id)

    def of(self, job_id):
        return self.queue.rows_of([job_id])[job_id]


class Fake:
    """The fake, seen in the same way."""

    def __init__(self):
        self.queue = FakeQueue()
        self.add, self.skip, self.cancel = self.queue.add, self.queue.skip, self.queue.cancel

    def of(self, job_id):
        return vars(self.queue.jobs[job_id])


@pytest.fixture(scope="module")
def place(cluster):
    with cluster.database() as place:
        yield place


@pytest.fixture
def real(place):
    with connected(place) as database, place.cursor() as cursor:
        cursor.execute("truncate imagen.jobs")
        yield Real(Queue(database), cursor)


@pytest.fixture(params=["real", "fake"])
def both(request):
    return request.getfixturevalue("real") if request.param == "real" else Fake()


def claimed(made, worker="w", **columns):
    """A job, running."""
    name = made.add(**columns)
    found = made.queue.claim(worker, None, "mock")
    assert found.id == name
    return found


# -- for both: claiming ----------------------------------------------------------------------------


def test_what_is_claimed_is_the_row(both):
    params = {"width": 64, "options": {"x": [1, "ü"]}}
    name = both.add("a cat", backend="flux", params=params)
    found = both.queue.claim("w", None, "mock")
    assert found._replace(fence=0) == jobs.Claimed(
        name, 0, 0, 5, 1, OWNER, "a cat", "flux", params, None, None
    )
    assert found.first
    assert found.fence > 0
    assert both.of(name)["status"] == "running"
    assert both.of(name)["worker"] == "w"


def test_a_job_is_claimed_once(both):
    both.add()
    assert both.queue.claim("one", None, "mock")
    assert both.queue.claim("two", None, "mock") is None


def test_the_first_comes_first_and_the_more_urgent_before(both):
    names = [both.add("one"), both.add("two"), both.add("urgent", priority=1)]
    order = [both.queue.claim("w", None, "mock").id for _ in names]
    assert order == [names[2], names[0], names[1]]


def test_only_jobs_for_our_backends_are_claimed(both):
    paid, ours = both.add(backend="flux"), both.add()
    assert both.queue.claim("w", ["mock"], "flux") is None
    assert both.queue.claim("w", ["mock"], "mock").id == ours
    assert both.queue.claim("w", ["mock"], "mock") is None
    assert both.queue.claim("w", ["mock", "flux"], "mock").id == paid


def test_a_job_that_waits_is_not_claimed_before_its_time(both):
    found = claimed(both)
    assert both.queue.put_back(found.id, found.fence, 60, answered=True)
    assert both.queue.claim("w", None, "mock") is None
    assert 50 < both.queue.waiting() <= 60
    both.skip(61)
    assert both.queue.waiting() == 0
    assert both.queue.claim("w", None, "mock").id == found.id


def test_nothing_waits_when_there_is_nothing_for_us(both):
    assert both.queue.waiting() is None
    both.add(backend="flux")
    assert both.queue.waiting(["mock"], "mock") is None
    assert both.queue.waiting(["flux"], "mock") == 0


def test_jobs_are_counted(both):
    both.add()
    late = claimed(both, priority=1)
    both.queue.retry(late.id, late.fence, 60, "e", None)
    claimed(both, priority=2)
    assert both.queue.counts() == {"pending": 2, "due": 1, "running": 1, "stuck": 0}
    both.skip(11)
    assert both.queue.counts()["stuck"] == 1


# -- for both: the line that is sent ---------------------------------------------------------------


def test_the_first_line_is_what_every_later_claim_gets(both):
    found = claimed(both)
    assert both.queue.intend(found.id, found.fence, LINE)
    assert both.queue.intend(found.id, found.fence, {"prompt": "another"})
    both.skip(11)
    assert both.queue.rescue() == [found.id]
    later = both.queue.claim("other", None, "mock")
    assert later.request == LINE
    assert not later.first
    assert 11 <= later.intended_age_s < 30


def test_who_lost_the_job_stores_no_line(both):
    found = claimed(both)
    both.skip(11)
    both.queue.rescue()
    assert not both.queue.intend(found.id, found.fence, LINE)
    assert both.queue.claim("other", None, "mock").first


# -- for both: the end of a job --------------------------------------------------------------------


def test_done(both):
    found = claimed(both)
    assert both.queue.done(found.id, found.fence, None)
    row = both.of(found.id)
    assert (row["status"], row["attempts"], row["claims"]) == ("done", 1, 0)
    assert row["lease"] is None


def test_failed(both):
    found = claimed(both)
    assert both.queue.failed(found.id, found.fence, "no model", DETAIL)
    row = both.of(found.id)
    assert (row["status"], row["attempts"], row["claims"]) == ("failed", 1, 0)
    assert (row["error"], row["error_detail"]) == ("no model", DETAIL)


def test_a_retry_counts_an_attempt_and_waits(both):
    found = claimed(both)
    assert both.queue.retry(found.id, found.fence, 5, "not reached", DETAIL)
    row = both.of(found.id)
    assert (row["status"], row["attempts"], row["claims"]) == ("pending", 1, 0)
    assert row["error"] == "not reached"
    assert 0 < both.queue.waiting() <= 5
    both.skip(6)
    again = both.queue.claim("w", None, "mock")
    assert again.attempts == 1
    assert again.fence > found.fence
    both.queue.done(again.id, again.fence, None)
    assert both.of(found.id)["error"] is None


def test_what_is_put_back_costs_nothing_and_keeps_its_place(both):
    found = claimed(both)
    both.add("later")
    assert both.queue.put_back(found.id, found.fence)
    row = both.of(found.id)
    assert (row["status"], row["attempts"], row["claims"]) == ("pending", 0, 1)
    assert both.queue.claim("w", None, "mock").id == found.id


def test_an_answer_forgets_the_claims_though_it_is_put_back(both):
    found = claimed(both)
    both.queue.put_back(found.id, found.fence, answered=True)
    assert both.of(found.id)["claims"] == 0


ENDS = {
    "done": lambda queue, name, fence: queue.done(name, fence, None),
    "failed": lambda queue, name, fence: queue.failed(name, fence, "e", None),
    "retry": lambda queue, name, fence: queue.retry(name, fence, 1, "e", None),
    "put_back": lambda queue, name, fence: queue.put_back(name, fence),
}


@pytest.mark.parametrize("end", ENDS)
def test_said_again_it_is_done_once(end, both):
    """An answer may be lost though the database did it."""
    found = claimed(both)
    assert ENDS[end](both.queue, found.id, found.fence)
    before = dict(both.of(found.id))
    assert ENDS[end](both.queue, found.id, found.fence)
    assert both.of(found.id) == before


@pytest.mark.parametrize("end", ENDS)
def test_a_stale_fence_changes_nothing(end, both):
    old = claimed(both)
    both.skip(11)
    both.queue.rescue()
    new = both.queue.claim("other", None, "mock")
    before = dict(both.of(old.id))
    assert new.fence > old.fence
    assert not ENDS[end](both.queue, old.id, old.fence)
    assert not both.queue.intend(old.id, old.fence, LINE)
    assert both.queue.renew("w", {old.id: old.fence}) == set()
    assert both.of(old.id) == before


@pytest.mark.parametrize("end", ["done", "failed"])
def test_what_was_rescued_meanwhile_is_no_longer_ours_to_end(end, both):
    found = claimed(both)
    both.skip(11)
    both.queue.rescue()
    assert not ENDS[end](both.queue, found.id, found.fence)
    assert both.of(found.id)["status"] == "pending"


# -- for both: leases ------------------------------------------------------------------------------


def test_a_lease_that_is_renewed_does_not_end(both):
    found = claimed(both)
    both.skip(9)
    assert both.queue.renew("w", {found.id: found.fence}) == {found.id}
    both.skip(9)
    assert both.queue.rescue() == []
    both.skip(2)
    assert both.queue.rescue(grace_s=5) == []
    assert both.queue.rescue() == [found.id]
    assert both.queue.renew("w", {found.id: found.fence}) == set()


def test_nobody_renews_what_is_anothers(both):
    found = claimed(both, worker="one")
    assert both.queue.renew("two", {found.id: found.fence}) == set()
    assert both.queue.renew("one", {}) == set()


def test_who_holds_a_cancelled_job_is_told(both):
    found, kept = claimed(both), claimed(both)
    held = {found.id: found.fence, kept.id: kept.fence}
    assert both.queue.cancelled(held) == set()
    assert both.cancel(found.id)
    assert both.queue.cancelled(held) == {found.id}
    assert both.queue.cancelled({}) == set()
    assert both.queue.renew("w", held) == {kept.id}
    assert not both.queue.done(found.id, found.fence, None)
    assert both.of(found.id)["status"] == "cancelled"
    assert not both.cancel(found.id)


def test_a_rescue_costs_no_attempt(both):
    found = claimed(both)
    both.skip(11)
    assert both.queue.rescue() == [found.id]
    assert both.queue.rescue() == []
    row = both.of(found.id)
    assert (row["status"], row["attempts"], row["claims"]) == ("pending", 0, 1)


def test_old_rows_of_a_name_are_taken_back_at_once(both):
    found = claimed(both, worker="one")
    assert both.queue.take_back("two") == []
    assert both.queue.take_back("one") == [found.id]
    assert both.of(found.id)["status"] == "pending"


FREE = {
    "rescued": lambda both, _: (both.skip(11), both.queue.rescue()),
    "taken back": lambda both, _: both.queue.take_back("w"),
    "put back": lambda both, found: both.queue.put_back(found.id, found.fence),
}


@pytest.mark.parametrize("how", FREE)
def test_five_claims_without_an_answer_are_enough(how, both):
    name = both.add()
    for _ in range(MOST_CLAIMS):
        assert both.of(name)["status"] == "pending"
        FREE[how](both, both.queue.claim("w", None, "mock"))
    row = both.of(name)
    assert (row["status"], row["attempts"]) == ("failed", 0)
    assert row["error_detail"]["code"] == "poisonous"
    assert both.queue.claim("w", None, "mock") is None


def test_answers_between_make_claims_harmless(both):
    name = both.add(max_attempts=99)
    for _ in range(MOST_CLAIMS + 1):
        found = both.queue.claim("w", None, "mock")
        both.queue.retry(found.id, found.fence, 0, "e", None)
    assert both.of(name)["status"] == "pending"
    assert both.of(name)["attempts"] == MOST_CLAIMS + 1
