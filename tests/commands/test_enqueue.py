"""imagen-enqueue: request lines become rows of imagen.jobs, once; and are followed to their end."""

from __future__ import annotations

import json
import signal
import socket
import uuid

import pytest

OWNER, OTHER = str(uuid.UUID(int=10)), str(uuid.UUID(int=11))
JOB = str(uuid.UUID(int=0xABC))
CAT = {"prompt": "a cat", "id": "cat"}


@pytest.fixture
def enqueue(tool, database, monkeypatch):
    """Run imagen-enqueue for an owner, on the test's database."""
    monkeypatch.setenv("IMAGEN_DATABASE_URL", database.dsn("migrator"))
    monkeypatch.setenv("IMAGEN_OWNER_USER_ID", OWNER)
    return lambda lines, *args, **more: tool("enqueue", *args, stdin=lines, **more)


@pytest.fixture
def rows(database):
    """What is queued, in the order of a claim."""

    def read(columns="prompt"):
        order = "order by priority desc, run_after, id"
        with database.cursor() as cursor:
            cursor.execute(f"select {columns} from imagen.jobs {order}")
            return cursor.fetchall()

    return read


def change(database, what, *values):
    with database.cursor() as cursor:
        cursor.execute(f"update imagen.jobs set {what}", values)


# -- what is queued --------------------------------------------------------------------------------


def test_a_request_becomes_a_row_and_keeps_what_only_its_line_knows(enqueue, rows):
    line = {
        **CAT,
        **{"backend": "mock", "seed": 2**64 - 1, "width": 64, "height": 64, "cfg": 1.5},
        **{"style": "ink", "options": {"a": [1]}, "mine": {"x": 1}, "caller": "me"},
    }
    ran = enqueue([line])
    assert ran.status == 0
    job_id = ran.record["job"]["id"]
    assert ran.record == {**line, "job": {"id": job_id}}
    ((row,),) = rows("to_jsonb(jobs)")
    assert {name: row[name] for name in ("id", "owner_user_id", "prompt", "backend")} == {
        **{"id": job_id, "owner_user_id": OWNER, "prompt": "a cat", "backend": "mock"},
    }
    assert row["params"] == {
        **{"seed": 2**64 - 1, "width": 64, "height": 64, "cfg": 1.5},
        **{"style": "ink", "options": {"a": [1]}},
    }
    assert (row["status"], row["request"]) == ("pending", None)


def test_lines_are_claimed_in_their_order(enqueue, rows):
    enqueue([{"prompt": f"cat {n}"} for n in range(700)])
    assert rows() == [(f"cat {n}",) for n in range(700)]


def test_what_nobody_said_is_left_to_the_worker(enqueue, rows):
    assert "seed" not in enqueue([CAT]).record
    assert rows("backend, params, priority") == [(None, {}, 0)]


def test_the_same_id_is_queued_once(enqueue, rows):
    one, two = enqueue([CAT]), enqueue([CAT, CAT])
    assert [line["job"] for line in two.records] == [one.record["job"]] * 2
    assert two.status == 0
    assert len(rows()) == 1


def test_an_id_that_is_a_uuid_is_the_jobs_id(enqueue, rows):
    assert enqueue([{**CAT, "id": JOB.upper()}]).record["job"] == {"id": JOB}
    assert rows("id::text") == [(JOB,)]


def test_another_request_of_that_id_is_refused(enqueue, rows):
    enqueue([CAT])
    ran = enqueue([{**CAT, "prompt": "a dog"}, {"prompt": "a bird"}])
    assert ran.status == 2
    assert ran.records[0]["error"]["code"] == "id_taken"
    assert ran.err.startswith("imagen-enqueue: cat: this id belongs to another job (hint: ")
    assert rows() == [("a cat",), ("a bird",)]


def test_a_seed_that_was_rounded_on_the_way_is_named(enqueue, rows):
    enqueue([{**CAT, "seed": 12345678901234567890}])
    ran = enqueue([{**CAT, "seed": 12345678901234567000}])
    assert (ran.status, ran.record["error"]["code"], len(rows())) == (2, "id_taken", 1)
    assert "is rounded: this id was begun with 12345678901234567890" in ran.err
    assert "another job" in enqueue([{**CAT, "seed": 12345678901234560000}]).err


def test_count_makes_jobs_with_seeds_counting_up(enqueue, rows):
    ran = enqueue([CAT], "--count", 3, "--seed", 7)
    assert [line["id"] for line in ran.records] == ["cat-1", "cat-2", "cat-3"]
    assert [line["request"] for line in ran.records] == ["cat"] * 3
    assert rows("(params ->> 'seed')::int") == [(7,), (8,), (9,)]
    enqueue([CAT], "--count", 3)
    assert len(rows()) == 3


def test_options_fill_what_a_line_does_not_say(enqueue, rows):
    enqueue([CAT], "--size", "64x32", "--option", "a=1", "--priority", 5, "--backend", "mock")
    assert rows("params, priority, backend") == [
        ({"width": 64, "height": 32, "options": {"a": 1}}, 5, "mock")
    ]


def test_whose_it_is(enqueue, rows, tool, monkeypatch):
    enqueue([{**CAT, "owner_user_id": OTHER}])
    enqueue([{"prompt": "b", "owner_user_id": OWNER}], "--owner", OTHER.upper())
    assert rows("owner_user_id::text") == [(OTHER,), (OTHER,)]
    monkeypatch.delenv("IMAGEN_OWNER_USER_ID")
    ran = enqueue([CAT])
    assert ran.status == 2
    assert "no owner_user_id" in ran.err
    assert enqueue([CAT], "--owner", "me").status == 2


def test_hostile_text_is_data(enqueue, rows):
    prompt = '\'; drop table imagen.jobs; -- %s {"\\u0000"} \x1b[2J'
    options = {"'); drop table x; --": ["$(reboot)", "${HOME}", "%(x)s", "\u202e"]}
    enqueue([{"prompt": prompt, "options": options, "negative_prompt": "\\'"}])
    assert rows("prompt, params") == [(prompt, {"negative_prompt": "\\'", "options": options})]


# -- what is not -----------------------------------------------------------------------------------


def test_finished_and_pending_lines_and_failed_ones_are_passed_on(enqueue, rows):
    pending = {"backend": "x", "handle": "h", "since": "2026-01-01T00:00:00Z"}
    error = {"tool": "imagen-upload", "code": "x", "message": "m", "billed": "no", "retry": "safe"}
    lines = [
        {**CAT, "file": "/a.png"},
        {**CAT, "pending": pending},
        {**CAT, "error": error},
        {"file": "/s.png", "members": []},
    ]
    ran = enqueue(lines)
    assert (ran.status, ran.records, rows()) == (0, lines, [])


def test_one_bad_line_does_not_stop_the_others(enqueue, rows):
    ran = enqueue(b'{"prompt":"a"}\nnonsense\n{"prompt":""}\n{"prompt":"b"}\n')
    assert ran.status == 2
    assert rows() == [("a",), ("b",)]
    assert [line.get("error", {}).get("code") for line in ran.records].count("bad_request") == 1
    assert "(hint: of plain text: jq -cR '{prompt: .}' | imagen-enqueue)" in ran.err


def test_a_prompt_on_the_command_line_is_told_how_it_is_queued(enqueue):
    ran = enqueue([], "a cat")
    assert (ran.status, ran.out) == (2, b"")
    assert """(hint: echo '{"prompt": "a cat"}' | imagen-enqueue)""" in ran.err


def test_a_row_that_the_database_refuses_does_not_stop_the_others(enqueue, rows):
    """PostgreSQL's limit for all params, in one statement with rows that are sound."""
    many = {"options": {"x": "y" * 2**20}}
    ran = enqueue([{"prompt": "a"}, {"prompt": "b", **many}, {"prompt": "c"}])
    assert ran.status == 1
    assert [line.get("error", {}).get("code") for line in ran.records] == [None, "database", None]
    assert rows() == [("a",), ("c",)]


def test_without_a_database_nothing_is_read(enqueue, monkeypatch):
    monkeypatch.delenv("IMAGEN_DATABASE_URL")
    ran = enqueue([CAT])
    assert (ran.status, ran.out) == (2, b"")
    assert "no database (hint: set $IMAGEN_DATABASE_URL" in ran.err


def test_a_database_that_is_away_is_temporary(enqueue):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"postgresql://m@127.0.0.1:{taken.getsockname()[1]}/x"
        ran = enqueue([CAT], "--database-url", url)
    assert (ran.status, ran.out) == (75, b"")


def test_a_database_that_became_read_only_by_a_failover_is_temporary(enqueue, database):
    with database.cursor() as cursor:
        cursor.execute(f"alter database {database.name} set default_transaction_read_only = on")
    ran = enqueue([CAT])
    assert ran.status == 75
    assert "(25006)" in ran.err
    assert ran.record["error"]["retry"] == "safe"


def test_a_server_that_turns_us_away_for_now_is_temporary_and_says_why(enqueue, database):
    with database.cluster.cursor() as cursor:
        cursor.execute(f"alter database {database.name} with allow_connections false")
    ran = enqueue([CAT])
    assert (ran.status, ran.out) == (75, b"")
    assert "is not currently accepting connections" in ran.err


def test_a_password_on_the_command_line_is_refused(enqueue):
    ran = enqueue([CAT], "--database-url", "postgresql://m:hunter2@db.example.net/x")
    assert ran.status == 2
    assert "hunter2" not in ran.err


# -- followed to the end ---------------------------------------------------------------------------


@pytest.fixture
def following(tool, database, enqueue, rows, until):
    """Start imagen-enqueue --wait, and wait until its jobs are there."""

    def start(lines):
        child = tool.start("enqueue", "--wait")
        child.stdin.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        child.stdin.close()
        child.stdin = None
        until(lambda: len(rows()) == len(lines))
        return child

    return start


def test_wait_prints_each_record_as_it_ends(following, database, tool):
    child = following([{**CAT, "mine": 1}, {"prompt": "a dog", "id": "dog"}])
    sent = {"prompt": "a dog", "id": JOB, "seed": 7, "slug": "a-dog", "backend": "mock"}
    image = str(uuid.uuid4())
    with database.cursor() as cursor:
        cursor.execute(
            "insert into imagen.images (id, owner_user_id, backend, prompt, width, height, bytes,"
            " sha256, storage_path) values (%s, %s, 'mock', 'x', 1, 1, 1, repeat('0', 64), 'x')",
            [image, OWNER],
        )
        cursor.execute(
            "update imagen.jobs set status = 'done', finished_at = now(), request = %s,"
            " image_id = %s, attempts = 1 where prompt = 'a dog'",
            [json.dumps(sent), image],
        )
        first = json.loads(child.stdout.readline())
        assert first == {
            **{"prompt": "a dog", "id": "dog", "seed": 7, "slug": "a-dog", "backend": "mock"},
            "job": {"id": first["render_id"], "attempt": 1},
            "render_id": first["render_id"],
            "cloud": {"image_id": image},
        }
        error = {
            **{"tool": "imagen-render", "code": "missing_model", "message": "no model"},
            **{"billed": "no", "retry": "safe"},
        }
        cursor.execute(
            "update imagen.jobs set status = 'failed', finished_at = now(), error = 'no model',"
            " error_detail = %s where prompt = 'a cat'",
            [json.dumps(error)],
        )
    ran = tool.ended(child)
    assert ran.status == 1, "the same job would be found again, and it failed"
    assert ran.record["error"] == error
    assert ran.record["mine"] == 1
    waits = "imagen-enqueue: 2 queued, waiting for their end (imagen-jobs shows them)\n"
    assert ran.err == waits + "imagen-enqueue: cat: no model\n"


def test_wait_gives_what_the_worker_keeps_of_the_record(following, database, tool):
    child = following([{**CAT, "mine": 1}])
    record = {"id": "theirs", "file": "/x/a-cat.png", "cost_usd": 0.003, "seed": 7}
    record |= {"job": {"id": "x"}, "cloud": {"path": "p"}}
    with database.cursor() as cursor:
        cursor.execute(
            "update imagen.jobs set status = 'done', finished_at = now(), attempts = 1,"
            " record = %s",
            [json.dumps(record)],
        )
    line = tool.ended(child).record
    assert (line["id"], line["mine"], line["job"]["attempt"]) == ("cat", 1, 1)
    assert (line["file"], line["cost_usd"], line["seed"]) == ("/x/a-cat.png", 0.003, 7)
    assert line["cloud"] == {"path": "p"}
    assert line["job"]["id"] == line["render_id"] != "x"


def test_wait_ends_with_a_job_that_somebody_deletes(following, database, tool):
    child = following([CAT])
    with database.cursor() as cursor:
        cursor.execute("delete from imagen.jobs")
    ran = tool.ended(child)
    assert (ran.status, ran.record["error"]["code"]) == (1, "job_gone")


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("update imagen.jobs set status = 'cancelled', finished_at = now()", "job_cancelled"),
        (
            "update imagen.jobs set status = 'failed', finished_at = now(), error = 'no'",
            "job_failed",
        ),
    ],
)
def test_wait_ends_with_every_end(how, code, following, database, tool):
    child = following([CAT])
    with database.cursor() as cursor:
        cursor.execute(how)
    ran = tool.ended(child)
    assert (ran.status, ran.record["error"]["code"]) == (1, code)


def test_wait_survives_lost_connections_and_finds_what_it_did_not_hear(following, database, tool):
    child = following([CAT])
    with database.cursor() as cursor:
        cursor.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where application_name = 'imagen-enqueue' and datname = current_database()"
        )
        cursor.execute("update imagen.jobs set status = 'done', finished_at = now()")
    ran = tool.ended(child)
    assert (ran.status, ran.record["job"]["attempt"]) == (0, 0)


def test_wait_for_what_is_over_ends_at_once(enqueue, database):
    enqueue([CAT])
    change(database, "status = 'done', finished_at = now()")
    ran = enqueue([CAT, CAT], "--wait")
    assert [line["id"] for line in ran.records] == ["cat", "cat"]


@pytest.mark.parametrize("count", [(), ("--count", 2)])
def test_a_drawn_id_is_said_so_that_the_same_job_can_be_waited_for_again(
    count, enqueue, rows, database, tool, until
):
    child = tool.start("enqueue", "--wait", *count)
    child.stdin.write(b'{"prompt":"a cat"}\n')
    child.stdin.close()
    child.stdin = None
    said = [child.stderr.readline().decode() for _ in until(rows)]
    child.send_signal(signal.SIGINT)
    assert tool.ended(child).status == 130
    ids = [line.split(": ")[1] for line in said]
    assert said == [
        f"imagen-enqueue: {one}: the id of 'a cat', to wait for it again\n" for one in ids
    ]
    change(database, "status = 'done', finished_at = now()")
    lines = [{"prompt": "a cat", "id": one} for one in ids]
    ran = enqueue(lines, "--wait", "--quiet")
    assert (ran.status, ran.err) == (0, "")
    assert {line["id"] for line in ran.records} == {*ids}
    assert len(rows()) == len(ids)


def test_an_option_for_lines_that_are_all_passed_on_is_refused(enqueue, rows):
    line = {**CAT, "file": "/f.png"}
    ran = enqueue([line], "--size", "48x32")
    assert (ran.status, ran.records, rows()) == (2, [line], [])
    assert "--size has no effect on these lines (hint: --again " in ran.err
