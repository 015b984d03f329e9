"""The queue: one suite for the real one and the fake, and what only a real PostgreSQL can show."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg2
import pytest
import requests

import docs_sync
from fake_queue import FakeQueue
from imagen import db
from imagen.db import Database, DatabaseFault, Ear, Notify, migrations
from imagen.db.prepared import named
from imagen.queue import jobs
from imagen.queue.jobs import MOST_CLAIMS, Queue

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
            for name in ("lease", "run_after", "intended_at", "released_at")
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
        name, 0, 0, 5, 1, OWNER, "a cat", "flux", params, None, None, None
    )
    assert found.first
    assert found.fence > 0
    assert both.of(name)["status"] == "running"
    assert both.of(name)["worker"] == "w"


LOSSES = {
    "rescued": lambda both, _: (both.skip(11), both.queue.rescue()),
    "put back without an answer": lambda both, found: both.queue.put_back(found.id, found.fence),
}


@pytest.mark.parametrize("lost", LOSSES)
def test_who_claims_a_job_that_was_lost_knows_since_when_nobody_has_it(both, lost):
    both.add()
    found = both.queue.claim("one", None, "mock")
    both.queue.intend(found.id, found.fence, {"prompt": "a cat"})
    LOSSES[lost](both, found)
    both.skip(3)
    again = both.queue.claim("two", None, "mock")
    assert again.released_age_s == pytest.approx(3, abs=1.5)
    assert again.intended_age_s >= again.released_age_s


def test_after_an_answer_nothing_is_on_its_way(both):
    both.add()
    found = both.queue.claim("one", None, "mock")
    both.queue.intend(found.id, found.fence, {"prompt": "a cat"})
    both.skip(11)
    both.queue.rescue()
    again = both.queue.claim("two", None, "mock")
    assert again.released_age_s is not None
    assert both.queue.put_back(again.id, again.fence, 0, answered=True)
    assert both.queue.claim("three", None, "mock").released_age_s is None


LEAVES_UNDER_WAY = {
    "put back": lambda queue, job: queue.put_back(
        job.id, job.fence, 0, True, "no ledger", DETAIL, under_way=True
    ),
    "retry": lambda queue, job: queue.retry(
        job.id, job.fence, 0, "too late", DETAIL, under_way=True
    ),
}


@pytest.mark.parametrize("leave", LEAVES_UNDER_WAY)
def test_what_may_still_be_accepted_is_released_by_an_answer_and_never_poisonous(both, leave):
    name = both.add(max_attempts=99)
    for _ in range(jobs.MOST_CLAIMS - 1):  # any answer lets claims count anew
        lost = both.queue.claim("one", None, "mock")
        both.queue.put_back(lost.id, lost.fence)
    for _ in range(jobs.MOST_CLAIMS + 2):
        found = both.queue.claim("one", None, "mock")
        both.queue.intend(found.id, found.fence, {"prompt": "a cat"})
        assert LEAVES_UNDER_WAY[leave](both.queue, found)
        both.skip(3)
    row = both.of(name)
    assert (row["status"], row["claims"], row["error_detail"]) == ("pending", 1, DETAIL)
    again = both.queue.claim("two", None, "mock")
    assert again.released_age_s == pytest.approx(3, abs=1.5)
    assert both.queue.rescue(0) == []
    both.skip(11)
    assert both.queue.rescue() == [name]
    assert both.of(name)["claims"] == 2, "a claim without an answer counts"


def test_a_job_that_nobody_has_sent_was_not_released(both):
    both.add()
    found = both.queue.claim("one", None, "mock")
    both.queue.put_back(found.id, found.fence)
    assert both.queue.claim("two", None, "mock").released_age_s is None


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


def test_done_and_the_next_in_one_call(both):
    found, later = claimed(both, priority=1), both.add("another")
    image_id, who = None, ("w", ["mock"], "mock")
    ours, after = both.queue.done_and_next(found.id, found.fence, image_id, None, *who)
    assert (ours, after.id, after.prompt, after.first) == (True, later, "another", True)
    row = both.of(found.id)
    assert (row["status"], row["attempts"], row["claims"]) == ("done", 1, 0)
    assert (both.of(later)["status"], both.of(later)["worker"]) == ("running", "w")
    assert both.queue.done_and_next(found.id, found.fence, image_id, None, *who) == (True, None)
    assert both.of(found.id)["attempts"] == 1


RECORD = {**LINE, "file": "/x/a-cat.png", "cost_usd": 0.003, "cloud": {"image_id": None}}
RECORDED = {
    "done": lambda queue, found: queue.done(found.id, found.fence, None, RECORD),
    "done, with the next": lambda queue, found: queue.done_and_next(
        found.id, found.fence, None, RECORD, "w", None, "mock"
    ),
    "failed": lambda queue, found: queue.failed(found.id, found.fence, "e", DETAIL, RECORD),
}


@pytest.mark.parametrize("end", RECORDED)
def test_a_job_that_is_over_keeps_its_record(both, end):
    found = claimed(both)
    RECORDED[end](both.queue, found)
    assert both.of(found.id)["record"] == RECORD
    assert both.of(both.add("another"))["record"] is None


def test_who_lost_a_job_closes_it_not_and_has_the_next_all_the_same(both):
    found, later = claimed(both, priority=1), both.add()
    both.skip(11)
    both.queue.rescue()
    other = both.queue.claim("other", None, "mock")
    assert other.id == found.id
    ours, after = both.queue.done_and_next(found.id, found.fence, None, None, "w", None, "mock")
    assert (ours, after.id) == (False, later)
    assert both.of(found.id)["status"] == "running"


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


def test_what_waits_says_why_until_it_is_done(both):
    found = claimed(both)
    both.queue.put_back(found.id, found.fence, 0, True, "over the budget", {"code": "over_budget"})
    row = both.of(found.id)
    assert (row["status"], row["attempts"], row["error"]) == ("pending", 0, "over the budget")
    again = both.queue.claim("w", None, "mock")
    both.queue.put_back(again.id, again.fence, 0, True)
    assert both.of(found.id)["error"] == "over the budget"
    again = both.queue.claim("w", None, "mock")
    both.queue.done(again.id, again.fence, None)
    assert both.of(found.id)["error"] is None


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


# -- the real one: what a claim costs --------------------------------------------------------------

FINISHED = 1_000_000 if os.environ.get("IMAGEN_SOAK") else 100_000
INDEXES = {
    "job_claim": "jobs_pending",
    "job_next": "jobs_pending",
    "job_rescue": "jobs_running",
    "job_waiting": "jobs_pending",
    "job_counts": "jobs_running",
    **dict.fromkeys(  # by the key, or by the few that run: either is one row
        ("job_renew", "job_cancelled", "job_leave", "job_intend"), "Index Scan using jobs_"
    ),
}
VALUES = {
    "job_claim": ("w", ["mock"], "mock", ["mock"]),
    "job_next": (None, None, OWNER, 1, "w", ["mock"], "mock", ["mock"]),
    "job_rescue": ("e", "{}", 0, None),
    "job_waiting": (["mock"], "mock", ["mock"]),
    "job_counts": (),
    "job_renew": ([OWNER], [1], "w"),
    "job_cancelled": ([OWNER], [1]),
    "job_leave": (OWNER, 1, "done", 1, True, False, 0, None, None, None, None),
    "job_intend": ("{}", OWNER, 1),
}


@pytest.fixture(scope="module")
def full(cluster):
    """A database with very many finished jobs, some that wait and some that run."""
    with cluster.database() as place:
        with place.cursor() as cursor:
            cursor.execute("alter table imagen.jobs disable trigger user")
            cursor.execute(
                "insert into imagen.jobs (owner_user_id, prompt, status, finished_at)"
                f" select '{OWNER}', 'p', 'done', now() from generate_series(1, {FINISHED})"
            )
            cursor.execute(
                "insert into imagen.jobs (owner_user_id, prompt)"
                f" select '{OWNER}', 'p' from generate_series(1, 1000)"
            )
            cursor.execute(
                "insert into imagen.jobs (owner_user_id, prompt, status, worker, lease)"
                f" select '{OWNER}', 'p', 'running', 'w', now() from generate_series(1, 10)"
            )
            cursor.execute("alter table imagen.jobs enable trigger user")
        yield place


@pytest.mark.parametrize("statistics", ["unknown", "known"])
@pytest.mark.parametrize("name", INDEXES)
def test_finished_jobs_are_not_looked_at(name, statistics, full):
    """Whatever the planner knows of the table; and a claim reads in order, without sorting."""
    with full.cursor() as cursor:
        if statistics == "known":
            cursor.execute("analyze imagen.jobs")
        cursor.execute("begin")
        for setting, value in (jobs.IN_ORDER if name in ("job_claim", "job_next") else {}).items():
            cursor.execute(f"set local {setting} = {value}")
        cursor.execute(f"explain (analyze, costs off) {db.queries()[name]}", VALUES[name] or None)
        plan = "\n".join(line for (line,) in cursor.fetchall())
        cursor.execute("rollback")
    assert INDEXES[name] in plan, plan
    assert "Seq Scan on jobs" not in plan, plan
    assert "Sort" not in plan, plan


@pytest.mark.parametrize("name", ["job_claim", "job_next"])
def test_a_plan_that_is_kept_from_an_empty_table_is_right_for_a_full_one(name, cluster):
    with cluster.database() as place, connected(place) as database:
        with database.transaction() as step:
            step.rows("set plan_cache_mode = force_generic_plan")
        said = {"settings": jobs.IN_ORDER, "kept": True}
        database.run(name, *VALUES[name], **said)
        with place.cursor() as cursor:
            cursor.execute(
                "insert into imagen.jobs (owner_user_id, prompt)"
                f" select '{OWNER}', 'p' from generate_series(1, 5000)"
            )
        marks = named(db.queries()[name])[2]
        with database.transaction() as step:  # planned anew where statistics have come meanwhile
            for setting, value in jobs.IN_ORDER.items():
                step.rows(f"set local {setting} = {value}")
            lines = step.rows(f"explain (costs off) {marks}", *VALUES[name])
    plan = "\n".join(line for (line,) in lines)
    assert "jobs_pending" in plan and "$" in plan, plan
    assert "Seq Scan on jobs" not in plan and "Sort" not in plan, plan


# -- the real one: many at once --------------------------------------------------------------------


def test_ten_workers_never_share_a_job(place, real):
    real.queue.enqueue(job(n) for n in range(200))
    start = threading.Barrier(10)
    claims: list[str] = []

    def work(number):
        with connected(place) as database:
            queue = Queue(database)
            start.wait()
            while found := queue.claim(f"w{number}", None, "mock"):
                claims.append(found.id)
                assert queue.done(found.id, found.fence, None)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(10)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert sorted(claims) == sorted(str(uuid.UUID(int=n)) for n in range(200))
    real.cursor.execute("select count(*) from imagen.jobs where status = 'done' and attempts = 1")
    assert real.cursor.fetchone() == (200,)


def job(number, **more):
    row = {"id": str(uuid.UUID(int=number)), "owner_user_id": OWNER, "prompt": f"p{number}"}
    return {**row, **more}


def test_a_job_that_another_is_claiming_is_passed_over(place, real):
    locked, free = real.add(), real.add()
    with place.cursor() as other:
        other.execute("begin")
        other.execute("select from imagen.jobs where id = %s for update", [locked])
        assert real.queue.claim("w", None, "mock").id == free
        assert real.queue.claim("w", None, "mock") is None
        other.execute("rollback")


def test_a_fence_that_a_crash_forgot_is_not_given_again(real):
    """A first claim is not flushed: after a crash the row may be as it was before."""
    found = claimed(real)
    real.cursor.execute(
        "update imagen.jobs set status = 'pending', fence = 0, claims = 0, lease = null"
    )
    again = real.queue.claim("other", None, "mock")
    assert again.fence > found.fence
    assert not real.queue.done(found.id, found.fence, None)


def test_a_fence_rises_also_where_the_clock_is_behind_it(real):
    """The server's clock was set back, or another server's was ahead."""
    name = real.add(fence=2**62)
    assert real.queue.claim("w", None, "mock").fence == 2**62 + 1
    real.skip(11)
    assert real.queue.rescue() == [name]
    assert real.queue.claim("w", None, "mock").fence == 2**62 + 2


def test_two_who_rescue_at_once_do_not_wait_for_each_other_and_each_job_is_rescued_once(
    place, real
):
    ours, theirs = real.add(), real.add()
    for _ in range(2):
        real.queue.claim("gone", None, "mock")
    real.skip(11)
    with place.cursor() as other:
        other.execute("begin")
        other.execute("select from imagen.jobs where id = %s for update", [theirs])
        with ThreadPoolExecutor(1) as pool:
            rescued = pool.submit(real.queue.rescue)
            try:
                assert rescued.result(20) == [ours]
            finally:
                other.execute("rollback")
    assert real.queue.rescue() == [theirs]
    assert real.queue.rescue() == []


def test_what_is_put_back_without_an_error_keeps_the_earlier_one_with_its_detail(both):
    found = claimed(both)
    both.queue.retry(found.id, found.fence, 0, "not reached", DETAIL)
    both.skip(1)
    again = both.queue.claim("w", None, "mock")
    both.queue.put_back(again.id, again.fence)
    row = both.of(found.id)
    assert (row["error"], row["error_detail"]) == ("not reached", DETAIL)
    assert both.queue.claim("w", None, "mock").id == found.id, "it is due at once"


@pytest.mark.parametrize("call", ["job_claim", "job_next"])
@pytest.mark.parametrize(("request_", "waits"), [(None, "off"), ('{"a": 1}', "on")])
def test_only_a_first_claim_is_not_waited_for(request_, waits, call, real):
    """Nor what is said in one breath with it: the line of the claim is waited for."""
    before = claimed(real)
    real.add(request=request_)
    made = (None, None, before.id, before.fence) if call == "job_next" else ()
    real.cursor.execute("set synchronous_commit = on")
    real.cursor.execute("begin")
    real.cursor.execute(db.queries()[call], (*made, "w", None, "mock", None))
    real.cursor.execute("show synchronous_commit")
    assert real.cursor.fetchone() == (waits,)
    real.cursor.execute("rollback")


def test_where_nothing_is_next_the_end_of_a_job_is_waited_for(real):
    found = claimed(real)
    real.cursor.execute("set synchronous_commit = on")
    real.cursor.execute("begin")
    values = (None, None, found.id, found.fence, "w", None, "mock", None)
    real.cursor.execute(db.queries()["job_next"], values)
    assert real.cursor.fetchone()[:2] == (True, None)
    real.cursor.execute("show synchronous_commit")
    assert real.cursor.fetchone() == ("on",)
    real.cursor.execute("rollback")


def test_nothing_stays_open_between_two_calls(place, real):
    claimed(real)
    real.queue.waiting()
    real.cursor.execute(
        "select state, xact_start is null, query like '%%imagen.jobs%%' from pg_stat_activity"
        " where application_name = 'imagen-test' and datname = current_database()"
    )
    assert real.cursor.fetchall() == [("idle", True, True)]


def test_a_name_is_held_by_one_connection_as_long_as_it_lives(place, real):
    with connected(place) as first:
        assert Queue(first).name_lock("machine")
        assert Queue(first).name_lock("machine")
        assert not real.queue.name_lock("machine")
        assert real.queue.name_lock("another")
    with place.cursor() as cursor:
        cursor.execute("select pg_sleep(0.05)")
    assert real.queue.name_lock("machine")


# -- the real one: what comes in and out -----------------------------------------------------------


def test_a_prompt_and_an_owner_are_enough(real):
    real.cursor.execute(
        "insert into imagen.jobs (owner_user_id, prompt) values (%s, 'a cat')", [OWNER]
    )
    found = real.queue.claim("w", None, "mock")
    assert (found.prompt, found.params, found.max_attempts) == ("a cat", {}, 5)


HOSTILE = {
    "sql": {"negative_prompt": "'; drop table imagen.jobs; --", "$(reboot)": "%s %(x)s"},
    "keys": {"__proto__": {"x": 1}, "id": "other", "": None},
    "text": {"style": "\x1b[2J\u202e\U0001f600\x7f", "list": [[[]], {}]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_params_come_back_as_data(name, real):
    real.queue.enqueue([job(1, params=HOSTILE[name], prompt="\\'; -- %s")])
    found = real.queue.claim("w", None, "mock")
    assert (found.params, found.prompt, found.broken) == (HOSTILE[name], "\\'; -- %s", None)


def test_params_that_python_cannot_read_break_nothing(real):
    real.cursor.execute(
        "insert into imagen.jobs (owner_user_id, prompt, params) values (%s, 'x', %s)",
        [OWNER, f'{{"seed": 1{"0" * 5000}}}'],
    )
    found = real.queue.claim("w", None, "mock")
    assert found.params == {}
    assert found.broken == "params cannot be read: not JSON: a number has too many digits"


REFUSED = {
    "prompt": ["", " \n ", "x" * 100_001],
    "params": [
        "[]",
        "null",
        '"x"',
        '{"a":' * 101 + "1" + "}" * 101,
        '{"x": "' + "y" * 2**20 + '"}',
    ],
    "backend": ["", "x" * 201],
    "status": ["lost"],
    "max_attempts": [0],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in REFUSED for v in REFUSED[n]], ids=repr)
def test_what_no_job_is(name, value, real):
    with pytest.raises(psycopg2.errors.CheckViolation):
        real.add(**{name: value})


def test_an_error_keeps_what_postgres_can_keep(real):
    found = claimed(real)
    detail = {"message": "a\0b", "list": ["\ud800"], "\0": 1}
    assert real.queue.failed(found.id, found.fence, "a\0b\ud800", detail)
    row = real.of(found.id)
    assert row["error"] == "a\ufffdb?"
    assert row["error_detail"] == {"message": "a\ufffdb", "list": ["?"], "\ufffd": 1}


def test_an_image_that_is_deleted_leaves_the_job(real):
    image = str(uuid.uuid4())
    real.cursor.execute(
        "insert into imagen.images (id, owner_user_id, backend, prompt, width, height, bytes,"
        " sha256, storage_path) values (%s, %s, 'mock', 'x', 1, 1, 1, repeat('0', 64), %s)",
        [image, OWNER, image],
    )
    found = claimed(real)
    assert real.queue.done(found.id, found.fence, image)
    assert real.of(found.id)["image_id"] == image
    real.cursor.execute("delete from imagen.images where id = %s", [image])
    assert real.of(found.id)["image_id"] is None
    assert real.of(found.id)["status"] == "done"


def test_an_image_that_is_not_there_is_no_ones(real):
    found = claimed(real)
    with pytest.raises(DatabaseFault, match="23503"):
        real.queue.done(found.id, found.fence, str(uuid.uuid4()))
    assert real.of(found.id)["status"] == "running"


def test_nothing_is_claimed_with_an_end_that_is_refused(real):
    found, later = claimed(real, priority=1), real.add()
    with pytest.raises(DatabaseFault, match="23503"):
        image = str(uuid.uuid4())
        real.queue.done_and_next(found.id, found.fence, image, None, "w", None, "mock")
    assert real.of(found.id)["status"] == "running"
    assert real.of(later)["status"] == "pending"


def test_a_job_that_is_queued_again_has_no_record_whichever_release_queues_it(real):
    found = claimed(real)
    real.queue.failed(found.id, found.fence, "e", DETAIL, RECORD)
    assert real.queue.again(found.id)
    assert real.of(found.id)["record"] is None
    again = real.queue.claim("w", None, "mock")
    real.cursor.execute("update imagen.jobs set record = '{}' where id = %s", [found.id])
    assert real.queue.put_back(again.id, again.fence)
    assert real.of(found.id)["record"] is None


def test_a_record_that_is_too_large_for_a_row_is_refused_and_the_job_stays_ours(real):
    found = claimed(real)
    with pytest.raises(DatabaseFault, match="23514"):
        real.queue.done(found.id, found.fence, None, {"numbers": [1e300] * 10_000})
    assert real.of(found.id)["status"] == "running"


def test_a_queue_without_a_column_that_workers_need_is_told_by_its_name(real):
    real.queue.check()
    real.cursor.execute("alter table imagen.jobs drop column record cascade")
    try:
        with pytest.raises(DatabaseFault, match="record") as caught:
            real.queue.check()
        assert caught.value.sqlstate == "42703"
        assert real.of(real.add())["record"] is None, "who only looks needs no migration"
    finally:
        real.cursor.execute(
            next(one.sql for one in migrations.read() if one.name.startswith("009"))
        )


def test_jobs_are_queued_once_and_in_order(real):
    assert len(real.queue.enqueue([job(1), job(2), job(1)])) == 2
    assert real.queue.enqueue([job(2, prompt="another"), job(3)]) == [job(3)["id"]]
    assert [real.queue.claim("w", None, "m").prompt for _ in range(3)] == ["p1", "p2", "p3"]


def test_what_failed_is_tried_again_with_all_its_attempts(real):
    found = claimed(real)
    real.queue.intend(found.id, found.fence, LINE)
    assert not real.queue.again(found.id)
    real.queue.failed(found.id, found.fence, "e", DETAIL)
    assert real.queue.again(found.id)
    again = real.queue.claim("w", None, "mock")
    assert (again.attempts, again.claims, again.request) == (0, 1, LINE)
    assert not real.queue.done(found.id, found.fence, None)


def test_jobs_are_listed_the_newest_first(real):
    old = real.add(created_at="2026-01-01")
    new = claimed(real, priority=1)
    assert [row["id"] for row in real.queue.listed()] == [new.id, old]
    assert [row["id"] for row in real.queue.listed(["running"])] == [new.id]
    assert [row["id"] for row in real.queue.listed(since="2026-02-01T00:00:00Z")] == [new.id]
    assert real.queue.status_of([old, new.id, OTHER]) == {old: "pending", new.id: "running"}


# -- the real one: who may do what -----------------------------------------------------------------


@pytest.fixture
def as_user(real):
    """Give the cursor of a signed-in user: `as_user(OWNER)`."""

    def become(user, role="authenticated"):
        real.cursor.execute(f"set role {role}")
        claims = json.dumps({"role": role, "sub": user})
        real.cursor.execute("select set_config('request.jwt.claims', %s, false)", [claims])
        return real.cursor

    yield become
    real.cursor.execute("reset role")


def test_a_user_queues_jobs_of_their_own_and_nothing_else_about_them(as_user, real):
    cursor = as_user(OWNER)
    cursor.execute("insert into imagen.jobs (prompt, backend, params) values ('x', 'mock', '{}')")
    cursor.execute("select owner_user_id::text, status from imagen.jobs")
    assert cursor.fetchall() == [(OWNER, "pending")]
    for wrong in (OTHER, None):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="row-level security"):
            cursor.execute(
                "insert into imagen.jobs (prompt, owner_user_id) values ('x', %s)", [wrong or OTHER]
            )


@pytest.mark.parametrize(
    "column",
    [
        *("id", "status", "priority", "run_after", "request", "intended_at", "image_id", "fence"),
        *("attempts", "max_attempts", "claims", "worker", "lease", "error", "created_at"),
    ],
)
def test_a_user_sets_nothing_that_is_the_workers(column, as_user):
    with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="permission denied"):
        as_user(OWNER).execute(f"insert into imagen.jobs (prompt, {column}) values ('x', default)")


@pytest.mark.parametrize("what", ["update imagen.jobs set prompt = 'x'", "delete from imagen.jobs"])
def test_a_user_changes_no_job(what, as_user, real):
    real.add()
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        as_user(OWNER).execute(what)


def cancel(cursor, job_id):
    cursor.execute("select imagen.cancel_job(%s)", [job_id])
    return cursor.fetchone()[0]


def test_an_owner_cancels_what_is_not_over(as_user, real):
    pending, running = real.add(), claimed(real, priority=1).id
    assert cancel(as_user(OWNER), pending)
    assert cancel(as_user(OWNER), running)
    assert not cancel(as_user(OWNER), running)
    assert {real.of(name)["status"] for name in (pending, running)} == {"cancelled"}


def test_nobody_else_cancels_it(as_user, real):
    name = real.add()
    assert not cancel(as_user(OTHER), name)
    assert not cancel(as_user(OWNER), OTHER)
    for role in ("anon", "service_role"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cancel(as_user(OWNER, role), name)
    real.cursor.execute("reset role")
    assert real.of(name)["status"] == "pending"


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
def test_nobody_calls_what_the_triggers_call(role, as_user):
    with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="permission denied"):
        as_user(OWNER, role).execute("select imagen.jobs_inserted()")


# -- the real one: who is told ---------------------------------------------------------------------


@pytest.fixture
def ear(place):
    with closing(Ear(db.address(place.dsn("migrator")), "imagen-ear")) as ear:
        ear.listen(jobs.WAKE)
        ear.listen(jobs.DONE)
        yield ear


def heard(ear):
    ear.alive()
    return ear.poll()


def test_an_insert_wakes_once_however_many_rows(real, ear):
    real.queue.enqueue(job(n) for n in range(100))
    assert heard(ear) == [Notify("imagen_jobs", "")]
    real.queue.enqueue([job(1)])  # nothing is inserted, and statements are told of
    assert len(heard(ear)) == 1


def test_what_happens_to_a_job_is_told(real, ear):
    found = claimed(real)
    real.queue.intend(found.id, found.fence, LINE)
    real.queue.renew("w", {found.id: found.fence})
    assert heard(ear) == [Notify("imagen_jobs", "")], "only the insert"
    real.queue.retry(found.id, found.fence, 0, "e", None)
    assert heard(ear) == [Notify("imagen_jobs", "")], "it may be claimed"
    found = real.queue.claim("w", None, "mock")
    real.queue.cancel(found.id)
    told = [Notify("imagen_jobs_done", found.id), Notify("imagen_jobs", f"cancelled {found.id}")]
    assert heard(ear) == told
    real.queue.again(found.id)
    found = real.queue.claim("w", None, "mock")
    heard(ear)
    real.queue.done(found.id, found.fence, None)
    assert heard(ear) == [Notify("imagen_jobs_done", found.id)]


def test_a_pending_job_that_is_cancelled_interrupts_nobody(real, ear):
    name = real.add()
    heard(ear)
    real.queue.cancel(name)
    assert heard(ear) == [Notify("imagen_jobs_done", name)]


# -- the real one: as a web page sees it -----------------------------------------------------------


def test_a_page_queues_reads_and_cancels_through_postgrest(database, rest):
    def call(user, what, method="GET", **body):
        return requests.request(
            method,
            f"{rest.url}/rest/v1/{what}",
            headers={
                "apikey": "x",
                "Authorization": f"Bearer {rest.key('authenticated', sub=user)}",
                **{"Accept-Profile": "imagen", "Content-Profile": "imagen"},
                "Prefer": "return=representation",
            },
            json=body or None,
            timeout=10,
        )

    made = call(OWNER, "jobs", "POST", prompt="a cat", params={"width": 64})
    assert made.status_code == 201, made.text
    (row,) = made.json()
    assert (row["owner_user_id"], row["status"]) == (OWNER, "pending")
    assert call(OWNER, "jobs", "POST", prompt="x", priority=9).status_code == 403
    assert call(OWNER, "jobs", "POST", prompt="x", owner_user_id=OTHER).status_code == 403
    assert call(OWNER, "jobs", "PATCH", prompt="x").status_code == 403
    assert call(OTHER, "jobs").json() == []
    assert call(OTHER, "rpc/cancel_job", "POST", id=row["id"]).json() is False
    assert call(OWNER, "rpc/cancel_job", "POST", id=row["id"]).json() is True
    assert [one["status"] for one in call(OWNER, "jobs").json()] == ["cancelled"]


def test_the_pages_curl_lines_queue_and_cancel(database, rest, needs, tmp_path):
    needs("curl", "curl")
    page = (docs_sync.TOP / "docs/tools/imagen-enqueue.md").read_text()
    insert, cancel, look = re.findall(r"^curl (?:.*\\\n)*.*", page, re.MULTILINE)
    token = rest.key("authenticated", sub=OWNER)
    (tmp_path / "headers").write_text(f"apikey: x\nAuthorization: Bearer {token}\n")

    def answer(line, **values):
        env = {**os.environ, "SUPABASE_URL": rest.url, **values}
        ran = subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, env=env, capture_output=True, timeout=20, check=True
        )
        return json.loads(ran.stdout)

    (row,) = answer(insert)
    assert (row["prompt"], row["owner_user_id"], row["status"]) == ("a cat", OWNER, "pending")
    assert answer(cancel, id=row["id"]) is True
    assert answer(cancel, id=row["id"]) is False
    assert answer(look, id=row["id"]) == [{"status": "cancelled", "image_id": None, "record": None}]


def test_an_owner_reads_the_record_of_a_job_and_nobody_else_does(database, rest):
    with connected(database) as connection, database.cursor() as cursor:
        made = Real(Queue(connection), cursor)
        found = claimed(made)
        made.queue.done(found.id, found.fence, None, RECORD)

    def call(user, method="GET", **body):
        headers = {
            "apikey": "x",
            "Authorization": f"Bearer {rest.key('authenticated', sub=user)}",
            **{"Accept-Profile": "imagen", "Content-Profile": "imagen"},
        }
        where = f"{rest.url}/rest/v1/jobs?id=eq.{found.id}&select=record"
        return requests.request(method, where, headers=headers, json=body or None, timeout=20)

    assert call(OWNER).json() == [{"record": RECORD}]
    assert call(OTHER).json() == []
    assert call(OWNER, "PATCH", record={}).status_code == 403
    assert call(OWNER, "POST", prompt="a cat", record={}).status_code == 403


# -- rows that nobody expects ----------------------------------------------------------------------


def test_a_job_whose_time_is_infinite_is_parked_and_holds_nobody_up(real):
    parked = real.add("parked", run_after="infinity", priority=9)
    assert real.queue.claim("w", None, "mock") is None
    assert real.queue.waiting(None, "mock") == float("inf")
    row = next(row for row in real.queue.listed() if row["id"] == parked)
    assert (row["status"], row["run_after"]) == ("pending", "infinity")
    due = real.add("due")
    assert real.queue.claim("w", None, "mock").id == due


@pytest.mark.parametrize(
    "columns",
    [
        {"intended_at": "infinity", "request": LINE},
        {"intended_at": "-infinity", "request": LINE},
        {"intended_at": "now", "released_at": "-infinity", "request": LINE},
        {"intended_at": "now", "request": '{"a": ' + "9" * 5000 + "}"},
        {"intended_at": "now", "request": '{"a": ' + "[" * 5000 + "]" * 5000 + "}"},
        {"params": '{"seed": ' + "9" * 5000 + "}"},
    ],
    ids=lambda columns: str(columns)[:60],
)
def test_a_row_that_cannot_be_read_is_claimed_as_broken_and_does_not_block(real, columns):
    broken = real.add("broken", **columns)
    behind = real.add("behind")
    one = real.queue.claim("w", None, "mock")
    assert one.id == broken
    assert one.broken
    assert real.queue.failed(one.id, one.fence, one.broken, {"code": "bad_request"})
    assert real.queue.claim("w", None, "mock").id == behind
    assert len(real.queue.listed()) == 2


@pytest.fixture
def no_room(real):
    real.cursor.execute(
        "create function imagen.no_room() returns trigger language plpgsql as"
        " $$ begin raise 'too many notifications' using errcode = '54000'; end $$;"
        "create trigger no_room before insert on imagen.jobs"
        " for each statement execute function imagen.no_room()"
    )
    yield real
    real.cursor.execute("drop function imagen.no_room() cascade")


ROW = {"id": str(uuid.UUID(int=7)), "owner_user_id": OWNER, "prompt": "a", "params": {}}


def test_a_full_queue_of_notifications_is_drained_and_then_temporary(no_room, monkeypatch):
    usage = db.queries()
    monkeypatch.setitem(usage, "notifications_drained", "select 1.0::float8;")
    with pytest.raises(db.DatabaseBusy, match="queue of notifications is 100% full") as caught:
        no_room.queue.enqueue([ROW])
    assert caught.value.exit_status == 75


def test_another_limit_of_a_statement_is_its_own_fault(no_room):
    with pytest.raises(DatabaseFault, match="54000") as caught:
        no_room.queue.enqueue([ROW])
    assert caught.value.exit_status == 1


def test_a_dead_peer_frees_its_name_and_its_connection_within_a_minute(place):
    where = db.address(place.tcp("migrator", place.cluster.password))
    names = ("idle", "interval", "count")
    asks = ", ".join(f"current_setting('tcp_keepalives_{name}')::int" for name in names)
    with closing(Database(where, "t")) as database, closing(Ear(where, "t")) as ear:
        assert Queue(database).name_lock("somebody")
        with database.transaction() as step:
            ((idle, interval, count),) = step.rows(f"select {asks}")
        assert idle + interval * count < 60
        with ear._connection.cursor() as cursor:
            cursor.execute(f"select {asks}")
            assert cursor.fetchone() == (idle, interval, count)
