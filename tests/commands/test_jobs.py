"""imagen-jobs: what is queued, running and stuck; try again, cancel."""

from __future__ import annotations

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


def test_jobs_are_cancelled(jobs, five):
    ran = jobs("cancel", five["works"], five["due"].upper())
    assert [line["status"] for line in ran.records] == ["cancelled"] * 2
    again = jobs("cancel", five["works"])
    assert again.status == 2
    assert "it is cancelled: nothing to cancel" in again.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["retry"], "takes the ids of jobs"),
        (["retry", "--status", "failed", "x"], "no --status"),
        (["remove", "x"], "neither retry nor cancel"),
        (["list"], "(hint: imagen-jobs alone lists"),
        (["cancel", "x"], "an id is a UUID, not 'x' (hint: the whole id: imagen-jobs | jq -r .id)"),
        (["retry", "12ba70e4"], "imagen-jobs --status failed | jq -r .id)"),
        (["cancel", str(uuid.UUID(int=1))], "there is no such job"),
        (["--status", "lost"], "--status"),
        (["--since", "soon"], "--since"),
    ],
)
def test_what_cannot_be_meant_is_refused(args, said, jobs):
    ran = jobs(*args)
    assert (ran.status, ran.out) == (2, b"")
    assert said in ran.err
