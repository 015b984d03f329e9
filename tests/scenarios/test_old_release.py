"""The release before the journal of attempts and today's, side by side: one ledger, one queue."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import time
import uuid
from collections import Counter
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from imagen import db
from real import LIB, missing
from servers.replicate import TOKEN

OLD = "0902fa2"  # the last commit whose ledger has no additions
HERE = Path(__file__).parents[2]
JOBS = 12


@pytest.fixture
def old(tmp_path, needs) -> dict[str, str]:
    """Give what makes the tools of the older release run instead of today's."""
    git = needs("git", "git")
    archive = [git, "-C", str(HERE), "archive", OLD, "lib", "sql"]
    done = subprocess.run(archive, capture_output=True, check=False)
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip()
        if (HERE / ".git").exists():
            missing(f"no commit {OLD} here (a shallow clone?): {why}")
        pytest.skip(f"no git history here (an sdist?): {why}")
    folder = tmp_path / "old-release"
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as files:
        files.extractall(folder, filter="data")
    return {"PYTHONPATH": str(folder / "lib")}


def test_the_archive_is_what_runs(old, tool):
    script = "import imagen, sys; sys.stdout.write(imagen.__file__)"
    imported = tool("", argv=[sys.executable, "-P", "-c", script], env=old, check_records=False)
    assert Path(imported.out.decode()).is_relative_to(old["PYTHONPATH"])
    assert not Path(imported.out.decode()).is_relative_to(LIB)


def test_either_release_hands_out_what_the_other_paid(old, paid):
    first = paid("a cat", "--id", "old", env=old)
    assert first.status == 0, first.err
    assert paid("a cat", "--id", "old").out == first.out
    second = paid("a dog", "--id", "new")
    assert second.status == 0, second.err
    again = paid("a dog", "--id", "new", env=old)
    assert (again.status, again.record["file"]) == (0, second.record["file"]), again.err
    third = paid("a bird", "--id", "old again", env=old)
    assert third.status == 0, third.err
    assert paid("a bird", "--id", "old again").record["file"] == third.record["file"]
    assert paid.creates == 3
    assert [row[0] for row in paid.sql("select billed from submits")] == ["yes"] * 3


def test_what_one_release_left_unfinished_the_other_collects(old, paid):
    paid.server.held = True
    for number, (one, other) in enumerate([(old, {}), ({}, old)], 1):
        words = ("a slow cat", "--id", f"k{number}", "--wait", 0)
        begun = paid(*words, env=one, check_records=False)  # an old one has no word for 75
        assert begun.status == 75, begun.err
        paid.server.held = False
        second_run = paid("a slow cat", "--id", f"k{number}", env=other)
        assert second_run.status == 0, second_run.err
        assert paid.creates == number
        paid.server.held = True


def test_a_create_whose_answer_one_release_lost_the_other_finds(old, paid):
    for number, (one, other) in enumerate([(old, {}), ({}, old)], 1):
        paid.server.fail("POST", None, after=True)
        paid.server.fail("GET /v1/predictions", times=20)
        lost = paid("a cat", "--id", f"k{number}", env=one)
        assert lost.record["error"]["billed"] == "unknown", lost.err
        paid.server.forgive()
        second_run = paid("a cat", "--id", f"k{number}", env=other)
        while (
            second_run.status == 75 and number == 1
        ):  # nothing tells today's when the old one sent it
            time.sleep(second_run.record["error"]["retry_after_s"] + 0.1)
            second_run = paid("a cat", "--id", f"k{number}", env=other)
        assert second_run.status == 0, second_run.err
        assert paid.creates == number


def test_workers_of_both_releases_drain_one_queue_and_each_job_is_done_once(
    old, paid, tool, database
):
    paid.configure("worker: {backends: [rep]}")
    paid.server.seconds = 0.2
    with closing(psycopg2.connect(database.dsn("migrator"))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(
                "insert into imagen.jobs (owner_user_id, prompt, params)"
                """ select %s, 'cat ' || n, '{"width": 512, "height": 512}'"""
                " from generate_series(1, %s) n",
                (str(uuid.uuid4()), JOBS),
            )
            workers = drained_by(tool, database, {"old": old, "new": {}})
            cursor.execute("select status, attempts, error from imagen.jobs")
            assert cursor.fetchall() == [("done", 1, None)] * JOBS, workers
            cursor.execute("select distinct split_part(worker, '-', 1) from imagen.jobs")
            assert {name for (name,) in cursor.fetchall()} == {"old", "new"}, "one did it all"
    prompts = Counter(one["input"]["prompt"] for one in paid.server.predictions)
    assert prompts == Counter(f"cat {number + 1}" for number in range(JOBS))
    assert [row[0] for row in paid.sql("select billed from submits")] == ["yes"] * JOBS


def drained_by(tool, database, releases):
    """Let a worker of each release drain the queue, both at once; give what they say."""
    started = {}
    for name, more in releases.items():
        env = {db.VARIABLE: database.dsn("migrator"), "REPLICATE_API_TOKEN": TOKEN, **more}
        pipeline = f"{sys.executable} -P -m imagen render | {sys.executable} -P -m imagen log-usage"
        started[name] = tool.start(
            "listen", "--drain", "--name", f"{name}-release", "--", pipeline, env=env
        )
    ended = {name: tool.ended(child) for name, child in started.items()}
    assert {ran.status for ran in ended.values()} == {0}, ended
    return {name: ran.err for name, ran in ended.items()}
