"""imagen-jobs: what is queued, running and stuck; try again, cancel."""

from __future__ import annotations

import json
import os
import pty
import uuid

import pytest

OWNER = str(uuid.UUID(int=10))


@pytest.fixture
def jobs(tool, database, monkeypatch):
    """Run imagen-jobs on the test's database."""
    monkeypatch.setenv("IMAGEN_DATABASE_URL", database.dsn("migrator"))
    return lambda *args, **more: tool("jobs", *args, **more)


@pytest.fixture
def add(database):
    """Insert a job in some state; give its id."""

    def insert(prompt, status="pending", **columns):
        row = {"owner_user_id": OWNER, "prompt": prompt, "status": status, **columns}
        if status == "running":
            row = {"worker": "w", "lease": "now", "started_at": "now", **row}
        if status in ("done", "failed", "cancelled"):
            row = {"finished_at": "now", **row}
        names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
        with database.cursor() as cursor:
            cursor.execute(
                f"insert into imagen.jobs ({names}) values ({marks}) returning id::text",
                [*row.values()],
            )
            return cursor.fetchone()[0]

    return insert


@pytest.fixture
def five(add):
    return {
        "waits": add("waits", run_after="tomorrow"),
        "due": add("due"),
        "stuck": add("stuck", "running", lease="2026-01-01", started_at="2026-01-01"),
        "works": add("works", "running", lease="tomorrow", backend="mock"),
        "failed": add("failed", "failed", error="no model", attempts=2),
    }


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        ([], {"waits", "due", "stuck", "works"}),
        (["--status", "pending"], {"waits", "due"}),
        (["--status", "running"], {"stuck", "works"}),
        (["--status", "stuck"], {"stuck"}),
        (["--status", "failed"], {"failed"}),
        (["--status", "all"], {"waits", "due", "stuck", "works", "failed"}),
        (["--status", "done"], set()),
    ],
)
def test_jobs_are_listed_by_their_status(args, shown, jobs, five):
    ran = jobs(*args)
    assert ran.status == 0
    assert {line["prompt"]: line["id"] for line in ran.records} == {one: five[one] for one in shown}


def test_how_long_and_whether_it_is_stuck(jobs, five):
    lines = {line["prompt"]: line for line in jobs("--status", "all").records}
    assert lines["stuck"]["stuck"]
    assert lines["stuck"]["for_s"] > 1e6
    assert 0 <= lines["works"]["for_s"] < 60
    assert not lines["works"]["stuck"]
    assert lines["failed"]["error"] == "no model"


def test_only_those_since_a_time(jobs, add):
    add("old", created_at="2026-01-01")
    add("new")
    assert [line["prompt"] for line in jobs("--since", "1h").records] == ["new"]


def test_a_table_for_people_obeys_no_prompt(jobs, add, tool):
    add("a\x1b[2Jcat " + "x" * 100, backend="mock")
    leader, follower = pty.openpty()
    child = tool.start("jobs", stdout=follower)
    os.close(follower)
    said = os.read(leader, 65536).decode()
    child.wait()
    os.close(leader)
    head, row = said.splitlines()
    assert head.split() == [
        "id",
        "status",
        "for",
        "backend",
        "worker",
        "attempts",
        "prompt",
        "error",
    ]
    assert "\x1b" not in row
    assert row.rstrip().endswith("…")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "nothing is queued or running (--status all shows the rest)"),
        (["--status", "failed"], "no job is failed (--status all shows the rest)"),
        (["--status", "all", "--since", "1h"], "there are no jobs, with --since 1h"),
    ],
)
def test_for_people_nothing_is_said_to_be_nothing(args, says, jobs, tool):
    leader, follower = pty.openpty()
    ran = tool.ended(tool.start("jobs", *args, stdout=follower))
    os.close(follower)
    os.close(leader)
    assert (ran.status, ran.err) == (0, f"imagen-jobs: {says}\n")


def test_a_failed_job_is_tried_again_with_its_line(jobs, five, database):
    with database.cursor() as cursor:
        cursor.execute("update imagen.jobs set request = '{\"a\": 1}' where prompt = 'failed'")
        assert jobs("retry", five["failed"]).record["status"] == "pending"
        cursor.execute(
            "select status, attempts, error, finished_at, request from imagen.jobs where id = %s",
            [five["failed"]],
        )
        assert cursor.fetchall() == [("pending", 0, None, None, {"a": 1})]


def test_a_job_is_shown_whole_with_its_record(jobs, add):
    record = {"file": "/x/a-cat.png", "cost_usd": 0.003, "seed": 2**64 - 1, "mine": "\u00fc"}
    name = add("a" * 300, "done", record=json.dumps(record))
    row = jobs("show", name[:8], check_records=False).record
    assert (row["id"], row["prompt"], row["record"]) == (name, "a" * 300, record)
    waits = add("waits")
    first, second = jobs("show", waits, name, check_records=False).records
    assert (first["id"], second["id"]) == (waits, name)
    assert "record" not in first
    assert "record" not in jobs("--status", "all").records[0], "a list stays short"


def test_jobs_are_cancelled(jobs, five):
    ran = jobs("cancel", five["works"], five["due"].upper())
    assert [line["status"] for line in ran.records] == ["cancelled"] * 2
    again = jobs("cancel", five["works"])
    assert again.status == 2
    assert "it is cancelled: nothing to cancel" in again.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["retry"], "takes the ids of jobs, or --status failed or --status cancelled"),
        (["retry", "--status", "done"], "takes the ids of jobs, or --status failed"),
        (["retry", "--code", "poisonous"], "takes the ids of jobs"),
        (["retry", "--status", "failed", "x"], "not both"),
        (["cancel", "--status", "failed"], "--status pending or --status running"),
        (["cancel", "--status", "pending", "--even-paid"], "--even-paid is for retry"),
        (["remove", "x"], "none of show, retry and cancel"),
        (["show"], "show takes the ids of jobs"),
        (["show", "--status", "done", "x"], "show takes the ids of jobs"),
        (["show", "x"], "there is no such job"),
        (["show", str(uuid.UUID(int=1))], "there is no such job"),
        (["list"], "(hint: imagen-jobs alone lists"),
        (["cancel", "x"], "there is no such job: 'x' (hint: imagen-jobs --status all | jq -r .id"),
        (["retry", "12ba70e4"], "imagen-jobs --status all | jq -r .id"),
        (["cancel", str(uuid.UUID(int=1))], "there is no such job"),
        (["--status", "lost"], "--status"),
        (["--since", "soon"], "--since"),
    ],
)
def test_what_cannot_be_meant_is_refused(args, said, jobs):
    ran = jobs(*args)
    assert (ran.status, ran.out) == (2, b"")
    assert said in ran.err


# -- many at once, and short ids -------------------------------------------------------------------


def failed(add, prompt, **detail):
    return add(prompt, "failed", error="e", error_detail=json.dumps(detail))


def prompts(ran):
    return {line["prompt"] for line in ran.records}


@pytest.fixture
def many(add):
    credit = {"code": "out_of_credit", "billed": "no", "retry": "never"}
    return {
        "poor": failed(add, "poor", **credit),
        "old": add("old", "failed", error_detail=json.dumps(credit), created_at="2026-01-01"),
        "bad": failed(add, "bad", code="bad_request", billed="no", retry="never"),
        "bare": add("bare", "failed"),
        "paid": failed(add, "paid", code="out_of_credit", billed="yes", retry="never"),
        "doubt": failed(add, "doubt", code="poisonous", billed="unknown", retry="never"),
        "look": failed(add, "look", code="answer_lost", billed="no", retry="reconcile"),
        "done": add("done", "done"),
        "stopped": add("stopped", "cancelled"),
    }


@pytest.mark.parametrize(
    ("args", "changed", "left"),
    [
        (["--status", "failed"], {"poor", "old", "bad", "bare"}, "3 jobs are left alone"),
        (["--status", "failed", "--code", "out_of_credit"], {"poor", "old"}, "1 job is left"),
        (["--status", "failed", "--since", "1h", "--code", "out_of_credit"], {"poor"}, "1 job is"),
        (["--status", "cancelled"], {"stopped"}, ""),
        (
            ["--status", "failed", "--even-paid"],
            {"poor", "old", "bad", "bare", "paid", "doubt", "look"},
            "",
        ),
        (["--status", "failed", "--code", "no_such"], set(), "no job is failed, with --code"),
    ],
)
def test_failed_jobs_are_retried_in_bulk_but_not_what_may_be_paid(args, changed, left, jobs, many):
    ran = jobs("retry", *args)
    assert ran.status == 0
    assert prompts(ran) == changed
    assert {line["status"] for line in ran.records} <= {"pending"}
    assert left in ran.err
    assert prompts(jobs("--status", "pending")) == changed


def test_a_retry_never_forgets_since_when_its_line_may_have_been_sent(jobs, add, database):
    one = add("a", "failed", request='{"a": 1}', intended_at="2026-01-01T00:00:00Z")
    assert jobs("retry", "--status", "failed").record["id"] == one
    with database.cursor() as cursor:
        cursor.execute("select intended_at = '2026-01-01T00:00:00Z', request from imagen.jobs")
        assert cursor.fetchall() == [(True, {"a": 1})]


@pytest.mark.parametrize("name", ["paid", "doubt", "look"])
def test_what_may_be_paid_is_retried_only_where_that_is_said(name, jobs, many):
    ran = jobs("retry", many[name])
    assert (ran.status, ran.out) == (2, b"")
    assert "it may have been paid (hint: imagen-usage --reconcile looks; --even-paid" in ran.err
    assert prompts(jobs("retry", "--even-paid", many[name])) == {name}


def test_jobs_are_cancelled_in_bulk(jobs, five):
    assert prompts(jobs("cancel", "--status", "stuck")) == {"stuck"}
    assert prompts(jobs("cancel", "--status", "pending")) == {"waits", "due"}
    assert prompts(jobs("cancel", "--status", "running")) == {"works"}
    assert prompts(jobs("--status", "failed")) == {"failed"}


def test_more_jobs_than_go_into_one_statement(jobs, database):
    with database.cursor() as cursor:
        cursor.execute(
            "insert into imagen.jobs (owner_user_id, prompt)"
            " select %s, 'cat ' || n from generate_series(1, 1201) as n",
            [OWNER],
        )
    assert len(jobs("cancel", "--status", "pending").records) == 1201


def test_an_id_may_be_its_beginning_or_what_was_given(jobs, add, tool):
    one = add("one", id="3f2a9c1e-1111-4222-8333-0123456789ab")
    add("two", id="3f2a9c1f-1111-4222-8333-0123456789ab")
    ran = jobs("cancel", "3F2A9C1")
    assert ran.status == 2
    assert f"several jobs begin so (hint: more of it: {one}, 3f2a9c1f-" in ran.err
    assert jobs("cancel", "3F2A9C1E-11").record["id"] == one
    assert "there is no such job" in jobs("cancel", "3f2").err
    queued = tool("enqueue", "--owner", OWNER, stdin=[{"prompt": "a tower", "id": "tower"}])
    assert jobs("cancel", "tower").record["id"] == queued.record["job"]["id"]
