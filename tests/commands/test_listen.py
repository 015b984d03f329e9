"""imagen-listen on a real PostgreSQL: jobs in, images out, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from imagen import db
from imagen.queue.jobs import MOST_CLAIMS
from imagen.queue.pool import LOST_S
from processes import children_of, descendants, is_alive
from servers.comfyui import ComfyUI
from servers.replicate import (
    NO_CREDIT,
    NOT_FOUND,
    SCHNELL,
    TOKEN,
    Answer,
    Replicate,
    problem,
    throttled,
)

# a record of some render for each job, whose ledger is not looked at
MAKES_NOTHING = 'while read -r line; do echo "$line" | jq -c \'.file="f" | .render_id=.id\'; done'
RENDER_ONLY = "imagen-render | imagen-log-usage"
OWNER = "5c1f0d2e-1111-4222-8333-0123456789ab"


class Queue:
    """The jobs of one database, as a person with psql sees them."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._connection = psycopg2.connect(dsn)
        self._connection.autocommit = True

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(query, values or None)
            return cursor.fetchall() if cursor.description else []

    def add(self, prompt: str = "a cat", backend: str | None = None, **params: Any) -> str:
        small = {"width": 64, "height": 64, **params}
        ((found,),) = self.sql(
            "insert into imagen.jobs (owner_user_id, prompt, backend, params)"
            " values (%s, %s, %s, %s) returning id::text",
            *(OWNER, prompt, backend, json.dumps(small)),
        )
        return str(found)

    def job(self, name: str) -> dict[str, Any]:
        ((found,),) = self.sql("select to_jsonb(jobs) from imagen.jobs where id = %s", name)
        return found

    def status(self, name: str) -> str:
        return str(self.job(name)["status"])

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def queue(database) -> Iterator[Queue]:
    with closing(Queue(database.dsn("migrator"))) as found:
        yield found


@pytest.fixture
def listen(tool, queue) -> Callable[..., Any]:
    """Start a worker; its pipeline is rendering and the cost log, unless told otherwise."""

    def start(*args: object, pipeline: str | None = None, **more: Any) -> Any:
        env = {db.VARIABLE: queue.dsn, "PATH": f"{BIN}:{os.environ['PATH']}", **more}
        rest = ("--", pipeline) if pipeline else ()
        said = tool.folder / f"worker-{uuid.uuid4().hex[:6]}.err"
        with said.open("wb") as err:
            child = tool.start("listen", *args, *rest, env=env, stderr=err)
        child.said = said  # type: ignore[attr-defined]
        return child

    return start


BIN = Path(sys.executable).parent


def test_a_job_becomes_an_image(queue, listen, until):
    worker = listen()
    name = queue.add("a lighthouse")
    until(lambda: queue.status(name) == "done")
    job = queue.job(name)
    assert (job["attempts"], job["error"]) == (1, None)
    assert job["request"]["id"] == name
    assert job["request"]["caller"] == f"job:{OWNER}"
    assert job["request"]["slug"] == f"a-lighthouse-{name[:8]}"
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0


def test_a_page_that_knows_the_id_of_a_job_has_its_record_when_it_is_done(queue, listen, tool):
    name = queue.add("a lighthouse")
    assert listen("--drain").wait(30) == 0
    record = queue.job(name)["record"]
    assert (record["id"], record["prompt"], record["width"]) == (name, "a lighthouse", 64)
    assert Path(record["file"]).is_file()
    assert json.loads(Path(record["sidecar"]).read_text())["sha256"] == record["sha256"]
    assert record["usage_id"]
    shown = tool("jobs", "show", name, env={db.VARIABLE: queue.dsn}, check_records=False)
    assert shown.record["record"] == record


def test_a_queue_that_lacks_a_migration_ends_the_worker_at_once_and_is_told(queue, listen):
    queue.sql("alter table imagen.jobs drop column record cascade")
    worker = listen()
    assert worker.wait(20) == 2
    says = worker.said.read_text()
    assert "an old one" in says
    assert '"record" does not exist' in says
    assert "imagen-migrate" in says


def test_an_answer_that_a_filter_has_indented_closes_its_job(queue, listen, needs):
    needs("jq", "jq")
    names = [queue.add(f"cat {n}") for n in range(2)]
    worker = listen("--drain", pipeline="imagen-render | jq --unbuffered .")
    assert worker.wait(60) == 0
    assert {queue.status(name) for name in names} == {"done"}


def test_a_worker_says_that_the_mock_makes_the_jobs_that_name_no_backend(listen):
    worker = listen("--drain", IMAGEN_BACKEND="")
    assert worker.wait(60) == 0
    assert "jobs without a backend: no default_backend is configured" in worker.said.read_text()
    worker = listen("--drain", "-q", IMAGEN_BACKEND="")
    assert worker.wait(60) == 0
    assert "no default_backend" not in worker.said.read_text()


def test_what_was_queued_before_is_done_and_drain_ends_when_nothing_is_due(queue, listen):
    names = [queue.add(f"cat {n}") for n in range(5)]
    assert listen("--drain").wait(30) == 0
    assert {queue.status(name) for name in names} == {"done"}


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"id": "mine"}, "'id'"),
        ({"output": "/etc/passwd"}, "'output'"),
        ({"options": {"faults": "hang"}}, "'faults'"),
        ({"width": 10**9}, "width must be from 16"),
        ({"seed": -1}, "seed must be from 0"),
        ({"style": "no such"}, "style"),
    ],
)
def test_a_hostile_row_fails_that_job_alone_with_a_message(queue, listen, params, says):
    bad = queue.add(**params)
    good = queue.add("a good one")
    assert listen("--drain").wait(30) == 0
    job = queue.job(bad)
    assert job["status"] == "failed"
    assert says in job["error"]
    assert queue.status(good) == "done"


def test_params_that_cannot_be_read_fail_that_job_alone_with_a_message(queue, listen):
    ((bad,),) = queue.sql(
        "insert into imagen.jobs (owner_user_id, prompt, params) values (%s, 'x', %s)"
        " returning id::text",
        *(OWNER, f'{{"seed": 1{"0" * 5000}}}'),
    )
    good = queue.add("a good one")
    assert listen("--drain").wait(60) == 0
    ((status, error),) = queue.sql("select status, error from imagen.jobs where id = %s", bad)
    assert (status, queue.status(good)) == ("failed", "done")
    assert "params cannot be read: not JSON: a number has too many digits" in error


def test_a_job_for_a_backend_that_is_not_allowed_fails_with_a_message(queue, listen, configure):
    configure("backends: {rep: {type: replicate, model: black-forest-labs/flux-schnell}}\n")
    paid, free = queue.add(backend="rep"), queue.add()
    assert listen("--drain").wait(30) == 0
    assert (queue.status(paid), queue.status(free)) == ("failed", "done")
    assert "jobs may not use the backend 'rep'" in queue.job(paid)["error"]


def test_a_worker_for_named_backends_leaves_all_other_jobs_to_others(queue, listen, configure):
    configure("backends: {other: {type: mock}}\n")
    others, ours = queue.add(backend="other"), queue.add(backend="mock")
    unknown = queue.add(backend="nobody's")
    assert listen("--drain", "--backend", "mock").wait(30) == 0
    assert [queue.status(one) for one in (others, ours, unknown)] == ["pending", "done", "pending"]


def test_a_job_whose_pipeline_is_killed_is_done_all_the_same(queue, listen, until, tool):
    worker = listen()
    until(lambda: b"waiting for jobs" in worker.said.read_bytes())
    name = queue.add("slow", options=None)
    until(lambda: queue.status(name) in ("running", "done"))
    for child in children_of(worker.pid):
        os.kill(child, signal.SIGKILL)
    until(lambda: queue.status(name) == "done")
    assert queue.job(name)["attempts"] == 1, "a killed pipeline costs no attempt"


def test_a_tool_that_dies_with_the_record_in_its_hands_is_noticed(queue, listen, until):
    """The tool before it waits for its next line, which cannot come before this one's answer."""
    once = "[ -e died ] && exec cat; read -r line; touch died; kill -KILL $$"
    listen(pipeline=f"imagen-render | sh -c '{once}' | imagen-log-usage")
    name = queue.add()
    until(lambda: queue.status(name) == "done")
    assert queue.job(name)["attempts"] == 1


def test_all_of_the_pipeline_dies_within_a_second_of_its_worker(queue, listen, until):
    worker = listen(pipeline="sleep 1000 | cat")
    until(lambda: b"waiting for jobs" in worker.said.read_bytes())
    queue.add()
    until(lambda: queue.sql("select 1 from imagen.jobs where status = 'running'"))
    group = until(lambda: descendants(worker.pid))
    worker.kill()
    worker.wait()
    until(lambda: not any(is_alive(one) for one in group), 5)


def test_a_killed_workers_job_runs_again_within_15_seconds(queue, listen, until):
    first = listen(pipeline="sleep 1000 | cat")
    name = queue.add()
    until(lambda: queue.status(name) == "running")
    first.kill()
    began = time.monotonic()
    listen()
    until(lambda: queue.status(name) == "done")
    assert time.monotonic() - began < 15
    assert queue.job(name)["attempts"] == 1


def test_term_lets_the_running_image_finish(queue, listen, until):
    pipeline = "while read -r line; do sleep 1; printf '%s\\n' \"$line\" | imagen-render; done"
    worker = listen(pipeline=pipeline)
    name, other = queue.add(), None
    until(lambda: queue.status(name) == "running")
    worker.send_signal(signal.SIGTERM)
    other = queue.add("too late")
    assert worker.wait(20) == 0
    assert (queue.status(name), queue.status(other)) == ("done", "pending")


def test_a_second_signal_puts_the_job_back_at_no_cost(queue, listen, until):
    worker = listen(pipeline="sleep 1000")
    name = queue.add()
    until(lambda: queue.status(name) == "running")
    worker.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    job = queue.job(name)
    assert (job["status"], job["attempts"]) == ("pending", 0)


def test_five_claims_without_an_answer_fail_a_job_as_poisonous(queue, listen, until):
    name = queue.add()
    queue.sql("update imagen.jobs set claims = %s where id = %s", MOST_CLAIMS - 1, name)
    listen(pipeline="read -r line; kill -KILL $$")
    until(lambda: queue.status(name) == "failed", 60)
    assert queue.job(name)["error_detail"]["code"] == "poisonous"
    assert queue.job(name)["claims"] == MOST_CLAIMS, "the claim that was left was made"


def test_the_database_may_end_all_our_connections(queue, listen, until):
    worker = listen()
    until(lambda: b"waiting for jobs" in worker.said.read_bytes())
    queue.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name like 'imagen-listen%' and datname = current_database()"
    )
    name = queue.add("after that")
    until(lambda: queue.status(name) == "done")
    assert worker.poll() is None


def test_behind_a_transaction_pooler_it_says_so_and_works_all_the_same(
    queue, listen, until, pooled
):
    worker = listen(**{db.VARIABLE: pooled})
    until(lambda: b"waiting for jobs" in worker.said.read_bytes())
    assert b"port 5432, not 6543" in worker.said.read_bytes()
    name = queue.add()
    until(lambda: queue.status(name) == "done")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0


def test_two_of_one_name_leave_each_others_jobs_alone(queue, listen, until):
    first = listen("--name", "mriver", pipeline="sleep 1000 | cat")
    name = queue.add()
    until(lambda: queue.status(name) == "running")
    fence = queue.job(name)["fence"]
    second = listen("--name", "mriver")
    until(lambda: b"another worker is called mriver" in second.said.read_bytes())
    other = queue.add("for whoever is free")
    until(lambda: queue.status(other) == "done")
    assert (queue.status(name), queue.job(name)["fence"]) == ("running", fence)
    assert first.poll() is None


def test_a_worker_that_is_started_again_by_its_name_goes_on_at_once(queue, listen, until):
    first = listen("--name", "mriver", pipeline="sleep 1000 | cat")
    name = queue.add()
    until(lambda: queue.status(name) == "running")
    first.kill()
    first.wait()
    queue.sql("update imagen.jobs set lease = now() + interval '1 hour'")  # it is not waited for
    second = listen("--name", "mriver")
    until(lambda: queue.status(name) == "done")
    assert b"taken back" in second.said.read_bytes()


def test_a_job_over_its_owners_budget_waits_and_says_so(
    queue, listen, configure, until, monkeypatch
):
    monkeypatch.setenv("REPLICATE_API_TOKEN", TOKEN)
    with Replicate() as server:
        keys = "poll_s: 0.01, settle_s: 0.05, retry_s: 0.01, connect_s: 1, read_s: 5"
        rep = f"{{type: replicate, model: '{SCHNELL}', base_url: '{server.url}', {keys}}}"
        configure(
            f"default_backend: rep\nbackends: {{rep: {rep}}}\nworker: {{backends: [rep]}}\n"
            "budget: {per_caller: 0.004}\n"
        )
        first = queue.add(width=512, height=512)
        second = queue.add(width=512, height=512)
        assert listen("--drain").wait(30) == 0
        assert queue.status(first) == "done"
        assert server.creates == 1
    job = queue.job(second)
    assert (job["status"], job["attempts"]) == ("pending", 0)
    assert "budget" in job["error"]
    assert job["error_detail"]["code"] == "over_budget"
    ((waits,),) = queue.sql("select run_after > now() from imagen.jobs where id = %s", second)
    assert waits


@pytest.fixture
def comfy(configure) -> Iterator[ComfyUI]:
    """A ComfyUI whose renders end when they are released; jobs go there."""
    with ComfyUI() as server:
        server.held = True
        configure(
            "default_backend: comfy\nbackends:\n"
            f"  comfy: {{type: comfyui, url: '{server.url}', workflow: flux1-schnell}}\n"
        )
        yield server


def test_a_job_that_is_cancelled_while_it_runs_is_interrupted_at_its_server(
    queue, listen, until, comfy
):
    worker = listen()
    name, other = queue.add(), None
    prompt_id = until(lambda: comfy.queue()[0])
    queue.sql(
        "update imagen.jobs set status = 'cancelled', finished_at = now() where id = %s", name
    )
    until(lambda: comfy.ending(prompt_id) == "execution_interrupted")
    other = queue.add("the next one")
    comfy.release()
    until(lambda: queue.status(other) == "done")
    assert queue.status(name) == "cancelled"
    assert worker.poll() is None


def test_a_job_that_goes_back_at_the_end_of_the_grace_leaves_its_server_free(
    queue, listen, until, comfy
):
    worker = listen("--grace", "0.2")
    name = queue.add()
    prompt_id = until(lambda: comfy.queue()[0])
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert comfy.ending(prompt_id) == "execution_interrupted"
    job = queue.job(name)
    assert (job["status"], job["attempts"]) == ("pending", 0)
    comfy.release()
    listen()
    until(lambda: queue.status(name) == "done")
    assert len(comfy.submits) == 2


def test_a_ledger_that_cannot_be_used_puts_the_job_back(queue, listen, until, tmp_path):
    ledger = tmp_path / "ledger"
    ledger.write_text("no database")
    worker = listen(IMAGEN_LEDGER=str(ledger))
    name = queue.add()
    until(lambda: queue.job(name)["error"])
    job = queue.job(name)
    ended_without_an_answer = ("pending", 0, 1)  # whatever it sent may be on its way
    assert (job["status"], job["attempts"], job["claims"]) == ended_without_an_answer
    assert job["error_detail"]["code"] == "ledger"
    assert "file is not a database" in job["error"]
    until(lambda: worker.said.read_bytes().count(b"put back: the ledger") == 1)
    worker.terminate()
    assert worker.wait(20) == 0
    ledger.unlink()
    queue.sql("update imagen.jobs set run_after = now()")
    assert listen("--drain", IMAGEN_LEDGER=str(ledger)).wait(30) == 0
    assert (queue.status(name), queue.job(name)["error"]) == ("done", None)


def delivered(ledger: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(ledger)) as connection:
        return connection.execute("select render_id, delivered from renders").fetchall()


def test_a_render_is_delivered_when_the_queue_has_been_told(queue, listen, until, tmp_path):
    ledger = tmp_path / "ledger"
    name = queue.add()
    assert listen("--drain", IMAGEN_LEDGER=str(ledger)).wait(30) == 0
    assert delivered(ledger) == [(name, 1)]


def test_a_render_whose_job_was_not_closed_is_not_delivered(queue, listen, until, tmp_path):
    """Its record was on its way through the pipeline."""
    ledger = tmp_path / "ledger"
    keeps = f"sh -c 'read -r line; touch {tmp_path}/made; while :; do sleep 0.05; done'"
    worker = listen(pipeline=f"imagen-render | {keeps}", IMAGEN_LEDGER=str(ledger))
    name = queue.add()
    until((tmp_path / "made").exists)
    time.sleep(0.5)
    worker.kill()
    worker.wait()
    assert delivered(ledger) == [(name, 0)]
    queue.sql("update imagen.jobs set lease = now() - interval '1 minute'")
    assert listen("--drain", IMAGEN_LEDGER=str(ledger)).wait(30) == 0
    assert (queue.status(name), delivered(ledger)) == ("done", [(name, 1)])


def test_a_ledger_that_is_held_delays_neither_jobs_nor_leases(queue, listen, until, tmp_path):
    ledger = tmp_path / "ledger"
    assert listen("--drain", IMAGEN_LEDGER=str(ledger)).wait(30) == 0
    worker = listen(pipeline=MAKES_NOTHING, IMAGEN_LEDGER=str(ledger))
    first = queue.add()
    until(lambda: queue.status(first) == "done")
    with closing(sqlite3.connect(ledger, isolation_level=None)) as connection:
        connection.execute("begin immediate")
        names = [queue.add() for _ in range(3)]
        began = time.monotonic()
        until(lambda: {queue.status(one) for one in names} == {"done"})
        assert time.monotonic() - began < 5
        worker.terminate()
        assert worker.wait(60) == 0


# -- a database that is gone -----------------------------------------------------------------------


class Relay:
    """A way to a TCP port that can fall silent or be cut."""

    def __init__(self, port: int) -> None:
        self._target, self._silent, self._sockets = port, False, list[socket.socket]()
        self._front = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._front.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._front.accept()
                self._sockets.append(near)
                if self._silent:
                    continue
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets.append(far)
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not self._silent:
                    target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def fall_silent(self) -> None:
        """Accept everything and answer nothing."""
        self._silent = True

    def cut(self) -> None:
        """Close everything; nobody listens any more."""
        self._front.shutdown(socket.SHUT_RDWR)
        self._front.close()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.fixture
def relay(database) -> Iterator[Relay]:
    port = psycopg2.extensions.parse_dsn(database.dsn())["port"]
    running = Relay(int(port))
    yield running
    with suppress(OSError):
        running.cut()


GONE = {"silent": Relay.fall_silent, "gone": Relay.cut}


@pytest.mark.parametrize(
    ("how", "after_s", "options"),
    [("silent", 0, ()), ("silent", 9, ()), ("gone", 0, ("--grace", "300")), ("gone", 3, ())],
)
def test_one_term_ends_a_worker_whose_database_is_gone(
    queue, listen, until, relay, tmp_path, how, after_s, options
):
    dsn = psycopg2.extensions.make_dsn(queue.dsn, host="127.0.0.1", port=relay.port)
    env = {db.VARIABLE: dsn}
    deaf = f"trap '' TERM; read -r line; touch {tmp_path}/sent; sleep 1000 | cat"
    worker = listen(*options, pipeline=deaf, **env)
    name = queue.add()
    until((tmp_path / "sent").exists)
    GONE[how](relay)
    time.sleep(after_s)
    worker.terminate()
    began = time.monotonic()
    assert worker.wait(30) == 0
    assert time.monotonic() - began < 15
    assert name.encode() in worker.said.read_bytes()
    assert queue.status(name) == "running", "its lease ends by itself"


def test_one_term_ends_a_worker_whose_database_never_answered(listen, until):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        worker = listen(**{db.VARIABLE: f"postgresql://user@127.0.0.1:{port}/db"})
        with silent.accept()[0] as connection:
            connection.recv(1)
            worker.terminate()
            began = time.monotonic()
            assert worker.wait(30) == 0
            assert time.monotonic() - began < 5


# -- a worker that stands still, and pipelines that leave their group ------------------------------


@pytest.fixture
def replicate(configure, monkeypatch) -> Iterator[Replicate]:
    """A paid backend, to which jobs go."""
    monkeypatch.setenv("REPLICATE_API_TOKEN", TOKEN)
    keys = "poll_s: 0.01, settle_s: 0.05, retry_s: 0.01, connect_s: 1, read_s: 5"
    with Replicate() as server:
        rep = f"{{type: replicate, model: '{SCHNELL}', base_url: '{server.url}', {keys}}}"
        configure(f"default_backend: rep\nbackends: {{rep: {rep}}}\nworker: {{backends: [rep]}}\n")
        yield server


@pytest.mark.parametrize(
    ("answer", "says"),
    [(NO_CREDIT, "out of credit"), (NOT_FOUND, "404"), (Answer(405, b"{}"), "405")],
)
def test_a_fault_of_the_setup_keeps_the_whole_queue_and_one_bad_job_fails_alone(
    queue, listen, replicate, answer, says
):
    names = [queue.add(f"cat {n}", width=512, height=512) for n in range(3)]
    bad = queue.add(seed=-1)
    replicate.fail("POST /v1/models", answer, times=9)
    worker = listen("--drain", pipeline=RENDER_ONLY)
    assert worker.wait(60) == 0
    jobs = [queue.job(name) for name in names]
    assert {(job["status"], job["attempts"]) for job in jobs} == {("pending", 0)}
    assert all(says in job["error"] for job in jobs)
    ((waits,),) = queue.sql(
        "select extract(epoch from min(run_after) - now()) from imagen.jobs where status='pending'"
    )
    assert 20 < waits < 61
    assert queue.status(bad) == "failed"
    assert worker.said.read_bytes().count(b"put back") == 1

    replicate.forgive()
    queue.sql("update imagen.jobs set run_after = now() where status = 'pending'")
    assert listen("--drain", pipeline=RENDER_ONLY).wait(60) == 0
    assert {queue.status(name) for name in names} == {"done"}
    assert replicate.creates == 3


def test_a_request_that_the_provider_refuses_fails_alone(queue, listen, replicate):
    bad, good = (queue.add(name, width=512, height=512) for name in ("bad", "good"))
    replicate.fail("POST /v1/models", problem(422, "input.prompt: is too long"))
    assert listen("--drain", pipeline=RENDER_ONLY).wait(60) == 0
    assert (queue.status(bad), queue.status(good)) == ("failed", "done")


def machine(folder: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(folder), "IMAGEN_OUT_DIR": str(folder / "out")}


def test_a_worker_that_is_stopped_pays_for_nothing_that_another_took_over(
    queue, listen, until, replicate, tmp_path
):
    """Its pipelines, in groups of their own, would go on: one waits out a 429 meanwhile."""
    replicate.fail("POST /v1/models", throttled(20))
    first = listen(pipeline=RENDER_ONLY, **machine(tmp_path / "first"))
    name = queue.add(width=512, height=512)
    until(lambda: replicate.asks("POST /v1/models"))
    throttled_at = time.monotonic()
    first.send_signal(signal.SIGSTOP)
    second = listen(pipeline=RENDER_ONLY, **machine(tmp_path / "second"))
    until(lambda: queue.status(name) == "done", 60)
    time.sleep(max(throttled_at + 23 - time.monotonic(), 0))  # the first one's wait is over
    assert replicate.creates == 1

    second.terminate()
    assert second.wait(20) == 0
    first.send_signal(signal.SIGCONT)
    other = queue.add("the next one", width=512, height=512)
    until(lambda: queue.status(other) == "done", 30)
    assert f"-{first.pid}-" in queue.job(other)["worker"]
    assert replicate.creates == 2
    assert first.poll() is None


def kill_renders(worker: Any) -> None:
    """Kill the imagen-render of each of a worker's pipelines."""
    for pid in descendants(worker.pid):
        with suppress(OSError):
            if b"imagen-render" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1]:
                os.kill(pid, signal.SIGKILL)


def end(worker: Any) -> None:
    worker.terminate()
    assert worker.wait(30) == 0


@pytest.fixture
def finish_elsewhere(queue, listen, until, tmp_path):
    """Let a worker on a second machine finish a job, and end it."""

    def finish(name: str) -> None:
        worker = listen(pipeline="exec imagen-render", **machine(tmp_path / "second"))
        until(lambda: queue.status(name) == "done", 40)
        end(worker)

    return finish


def test_a_create_whose_pipeline_died_with_its_ledger_is_not_paid_again_by_another_worker(
    queue, listen, until, replicate, tmp_path, finish_elsewhere
):
    """The put-back says why it waits; yet its create is still on its way."""
    replicate.fail("POST /v1/models", None, after=True, late_s=5)
    first = listen(pipeline="exec imagen-render", **machine(tmp_path / "first"))
    name = queue.add(width=512, height=512)
    until(lambda: replicate.asks("POST /v1/models"), 20)
    for path in (tmp_path / "first" / "imagen").glob("ledger.sqlite3*"):
        path.unlink()
    (tmp_path / "first" / "imagen" / "ledger.sqlite3").write_text("no database")
    kill_renders(first)
    until(lambda: queue.job(name)["error"], 20)
    job = queue.job(name)
    assert (job["status"], job["attempts"]) == ("pending", 0)
    assert job["error_detail"]["code"] == "ledger"
    assert job["released_at"] is not None
    end(first)
    queue.sql("update imagen.jobs set run_after = now()")
    finish_elsewhere(name)
    assert (replicate.creates, replicate.asks("POST /v1/models")) == (1, 1)


def test_a_job_that_was_ended_in_its_create_by_the_time_limit_is_not_paid_again_elsewhere(
    queue, listen, until, replicate, tmp_path, finish_elsewhere
):
    replicate.fail("POST /v1/models", None, after=True, late_s=6)
    first = listen(
        "--job-timeout=1.5", pipeline="exec imagen-render", **machine(tmp_path / "first")
    )
    name = queue.add(width=512, height=512)
    until(lambda: queue.job(name)["error"], 20)
    job = queue.job(name)
    assert (job["status"], job["attempts"]) == ("pending", 1)
    assert job["error_detail"]["code"] == "job_timeout"
    assert job["released_at"] is not None
    end(first)
    queue.sql("update imagen.jobs set run_after = now()")
    finish_elsewhere(name)
    assert (replicate.creates, replicate.asks("POST /v1/models")) == (1, 1)


def test_what_a_worker_hands_back_unfinished_is_not_paid_again_while_the_list_lags(
    queue, listen, until, replicate, configure, tmp_path, finish_elsewhere
):
    keys = "poll_s: 0.01, settle_s: 4, retry_s: 0.01, connect_s: 1, read_s: 5"
    rep = f"{{type: replicate, model: '{SCHNELL}', base_url: '{replicate.url}', {keys}}}"
    configure(f"default_backend: rep\nbackends: {{rep: {rep}}}\nworker: {{backends: [rep]}}\n")
    replicate.held, replicate.lag_s = True, 3.5
    first = listen("--grace=0", pipeline="exec imagen-render", **machine(tmp_path / "first"))
    name = queue.add(width=512, height=512)
    until(lambda: replicate.asks("GET /v1/predictions/"), 20)
    end(first)
    assert (queue.status(name), queue.job(name)["attempts"]) == ("pending", 0)
    replicate.held = False
    finish_elsewhere(name)
    assert (replicate.creates, replicate.asks("POST /v1/models")) == (1, 1)


def test_an_answer_of_a_worker_that_never_looked_leaves_a_create_in_doubt(
    queue, listen, until, replicate, tmp_path
):
    """The second worker has no token; the third one must wait as if it were the second."""
    replicate.fail("POST /v1/models", None, after=True, late_s=20)
    first = listen(pipeline="exec imagen-render", **machine(tmp_path / "first"))
    name = queue.add(width=512, height=512)
    until(lambda: replicate.asks("POST /v1/models"), 20)
    first.kill()
    first.wait()
    queue.sql("update imagen.jobs set lease = now() - interval '1 minute'")
    second = listen(
        pipeline="exec imagen-render", REPLICATE_API_TOKEN=None, **machine(tmp_path / "second")
    )
    until(lambda: queue.job(name)["error"], 30)
    job = queue.job(name)
    assert (job["status"], job["error_detail"]["code"]) == ("pending", "config")
    assert job["released_at"] is not None
    end(second)


def test_a_worker_that_is_stopped_while_it_waits_for_jobs_keeps_its_pipeline(queue, listen, until):
    worker = listen()
    name = queue.add()
    until(lambda: queue.status(name) == "done")
    family = descendants(worker.pid)
    worker.send_signal(signal.SIGSTOP)
    time.sleep(LOST_S + 2)
    assert all(is_alive(pid) for pid in family)
    worker.send_signal(signal.SIGCONT)
    other = queue.add("the next one")
    until(lambda: queue.status(other) == "done")
    assert {*family} <= {*descendants(worker.pid)}


LEAVING = {
    "the shell": "exec setsid imagen-render",
    "a tool": "setsid imagen-render | cat",
    "a tool in the background": "setsid -f imagen-render <&0 | cat",
}


@pytest.fixture(params=LEAVING)
def leaving(request) -> str:
    return LEAVING[request.param]


def test_a_pipeline_that_leaves_its_group_makes_its_image(queue, listen, until, leaving):
    worker = listen(pipeline=leaving)
    name = queue.add()
    until(lambda: queue.status(name) == "done")
    family = descendants(worker.pid)
    worker.terminate()
    assert worker.wait(20) == 0
    assert not any(is_alive(pid) for pid in family)


def test_a_cancelled_job_whose_pipeline_left_its_group_is_interrupted(
    queue, listen, until, comfy, leaving
):
    worker = listen(pipeline=leaving)
    name = queue.add()
    prompt_id = until(lambda: comfy.queue()[0])
    family = descendants(worker.pid)
    queue.sql(
        "update imagen.jobs set status = 'cancelled', finished_at = now() where id = %s", name
    )
    until(lambda: comfy.ending(prompt_id) == "execution_interrupted")
    until(lambda: not any(is_alive(pid) for pid in family))
    comfy.release()
    other = queue.add("the next one")
    until(lambda: queue.status(other) == "done")
    assert worker.poll() is None


def test_a_worker_that_is_told_to_end_ends_what_left_its_group(
    queue, listen, until, comfy, leaving
):
    worker = listen("--grace", "0.2", pipeline=leaving)
    name = queue.add()
    prompt_id = until(lambda: comfy.queue()[0])
    family = descendants(worker.pid)
    worker.terminate()
    assert worker.wait(20) == 0
    assert not any(is_alive(pid) for pid in family)
    assert comfy.ending(prompt_id) == "execution_interrupted"
    assert (queue.status(name), queue.job(name)["attempts"]) == ("pending", 0)
    assert b"killed" not in worker.said.read_bytes()


def test_a_worker_that_is_killed_takes_what_left_its_group_with_it(
    queue, listen, until, comfy, leaving
):
    worker = listen(pipeline=leaving)
    queue.add()
    until(lambda: comfy.queue()[0])
    family = descendants(worker.pid)
    worker.kill()
    worker.wait()
    until(lambda: not any(is_alive(pid) for pid in family), 10)


def test_a_pipeline_that_heeds_no_signal_and_left_its_group_holds_nobody_up(queue, listen, until):
    deaf = "trap '' INT TERM; exec setsid sh -c 'trap \"\" INT TERM; while :; do sleep 1; done'"
    worker = listen("--job-timeout", "0.5", pipeline=deaf)
    name = queue.add()
    until(lambda: queue.job(name)["attempts"] == 1, 30)
    assert b"did not end when told to: killing it" in worker.said.read_bytes()
    assert b"could not be ended" not in worker.said.read_bytes()


def test_a_temporary_error_is_tried_again_and_a_lasting_one_is_not(queue, listen, until, configure):
    configure("backends: {mock: {type: mock, faults: [{fault: fewer_images, match: poor}]}}\n")
    poor = queue.add("poor")
    assert listen("--drain").wait(30) == 0
    job = queue.job(poor)
    assert (job["status"], job["attempts"]) == ("failed", 1)
    assert job["error_detail"]["code"] == "too_few_images"
