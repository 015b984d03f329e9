"""From a signed-in user's INSERT to the image in the cloud, through a real imagen-listen.

Always against the project of tests/support/servers. With IMAGEN_WORKER_INTEGRATION=1 against the
one that the environment names as well (docs/guide/operate.md says how); what it makes there it
takes away again.
"""

from __future__ import annotations

import hashlib
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2
import pytest
import requests

from imagen import db
from imagen.cloud import upload
from servers.gateway import JSON, Answer
from servers.supabase import BUCKET
from uploads import NOT_SET_UP, belongs, rows

NAMES = ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", db.VARIABLE, "IMAGEN_OWNER_USER_ID")
GIVEN = {name: os.environ.get(name, "") for name in (*NAMES, "SUPABASE_USER_KEY")}
WANTED = os.environ.get("IMAGEN_WORKER_INTEGRATION") == "1"
AWAY = Answer(503, {**JSON, "Retry-After": "60"}, b'{"message":"busy"}')


@dataclass
class Project:
    """A Supabase project, seen by a web page and by whoever looks after it."""

    url: str
    service_key: str
    user_key: str
    owner: str
    dsn: str
    backend: str = field(default_factory=lambda: f"check-{uuid.uuid4().hex[:12]}")
    jobs: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, key: str, **more: Any) -> requests.Response:
        heads = {"apikey": self.service_key, "Authorization": f"Bearer {key}"}
        heads |= {"Accept-Profile": "imagen", "Content-Profile": "imagen"}
        heads |= {"Prefer": "return=representation"}
        return requests.request(method, self.url + path, headers=heads, timeout=20, **more)

    def insert(self, **row: Any) -> str:
        """Queue a job as the user; the backend is one that no other worker has."""
        about = {"owner_user_id": self.owner, "backend": self.backend, **row}
        made = self.ask("POST", "/rest/v1/jobs", self.user_key, json=about)
        assert made.status_code == 201, made.text
        self.jobs.append(made.json()[0]["id"])
        return self.jobs[-1]

    def seen(self, job: str) -> dict[str, Any]:
        """Give the job as the user sees it."""
        (row,) = self.ask("GET", f"/rest/v1/jobs?id=eq.{job}", self.user_key).json()
        return dict(row)

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with (
            closing(psycopg2.connect(self.dsn)) as connection,
            connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(query, values)
            return cursor.fetchall() if cursor.description else []

    def object(self, path: str, method: str = "GET") -> requests.Response:
        where = f"/storage/v1/object/{BUCKET}/{quote(path)}"
        return self.ask(method, where, self.service_key)

    def environment(self) -> dict[str, str]:
        """What a worker here has in its environment; whom it names is not the jobs' owner."""
        keys = [self.url, self.service_key, self.dsn, str(uuid.uuid4())]
        return dict(zip(NAMES, keys, strict=True))

    def clear(self) -> None:
        """Take away what the jobs of this test left in a project that is somebody's."""
        images = "select storage_path from imagen.images where job_id = any (%s::uuid[])"
        for (path,) in self.sql(images, self.jobs):
            self.object(path, "DELETE")
        self.sql("delete from mai.imagen_usage where render_id = any (%s::uuid[])", self.jobs)
        self.sql("delete from imagen.images where job_id = any (%s::uuid[])", self.jobs)
        self.sql("delete from imagen.jobs where id = any (%s::uuid[])", self.jobs)


@pytest.fixture(params=["embedded", "real"])
def project(request: pytest.FixtureRequest) -> Iterator[Project]:
    if request.param == "real":
        yield from named_by_the_environment()
        return
    cloud = request.getfixturevalue("cloud")
    owner = cloud.new_user()
    yield Project(cloud.url, cloud.service_key, cloud.user_key(owner), owner, cloud.dsn)


def named_by_the_environment() -> Iterator[Project]:
    if not WANTED:
        pytest.skip("IMAGEN_WORKER_INTEGRATION=1 runs it against the project of the environment")
    if lacking := [name for name in NAMES if not GIVEN[name]]:
        pytest.fail(f"IMAGEN_WORKER_INTEGRATION=1, but no {', '.join(lacking)}")
    url, key, dsn, owner = (GIVEN[name] for name in NAMES)
    found = Project(url.rstrip("/"), key, GIVEN["SUPABASE_USER_KEY"] or key, owner, dsn)
    try:
        yield found
    finally:
        found.clear()


@pytest.fixture
def worker(tool, configure, project, until) -> Callable[[], Any]:
    """Start a worker with its own pipeline: render, upload, log-usage."""
    mock = f"{project.backend}: {{type: mock, faults: [{{fault: fewer_images, match: poor}}]}}"
    allowed = f"worker: {{backends: [{project.backend}]}}"
    configure(f"usage: {{sink: both}}\nbackends:\n  {mock}\n{allowed}\n")

    def start() -> Any:
        said = tool.folder / "worker.err"
        with said.open("wb") as err:
            only = ("--backend", project.backend)  # a real project's other jobs are not ours
            child = tool.start("listen", *only, env=project.environment(), stderr=err)
        until(lambda: b"waiting for jobs" in said.read_bytes(), 30)
        return child

    return start


def test_what_a_user_inserts_becomes_an_image_of_theirs_in_the_cloud(
    project, worker, until, out_dir
):
    child = worker()
    job = project.insert(prompt="a lighthouse at dusk", params={"width": 64, "height": 48})
    until(lambda: project.seen(job)["status"] not in ("pending", "running"), 30)
    seen = project.seen(job)
    assert (seen["status"], seen["attempts"], seen["error"]) == ("done", 1, None)
    assert seen["image_id"] == upload.image_id(job)

    (image,) = project.sql(
        "select owner_user_id::text, storage_path, sha256, prompt, job_id::text"
        " from imagen.images where id = %s",
        seen["image_id"],
    )
    owner, path, sha256, prompt, job_id = image
    assert (owner, prompt, job_id) == (project.owner, "a lighthouse at dusk", job)
    data = project.object(path).content
    assert hashlib.sha256(data).hexdigest() == sha256
    assert (out_dir / path).read_bytes() == data

    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 0
    costs = "select caller, backend from mai.imagen_usage where render_id = %s"
    assert project.sql(costs, job) == [(f"job:{project.owner}", project.backend)]


def test_a_user_reads_why_a_job_failed(project, worker, until, out_dir):
    child = worker()
    hostile = project.insert(prompt="a cat", params={"output": "/etc/passwd"})
    poor = project.insert(prompt="a poor cat", params={"width": 64, "height": 64})
    until(lambda: {project.seen(job)["status"] for job in (hostile, poor)} == {"failed"}, 30)
    assert "'output'" in project.seen(hostile)["error"]
    seen = project.seen(poor)
    assert "0 of 1 images" in seen["error"]
    assert "\n" not in seen["error"]
    assert (seen["error_detail"]["code"], seen["attempts"]) == ("too_few_images", 1)
    assert seen["image_id"] is None
    made = "select 1 from imagen.images where job_id = any (%s::uuid[])"
    assert project.sql(made, [hostile, poor]) == []
    assert [*out_dir.glob("*/*")] == []
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 0


# -- an upload that failed does not render again ---------------------------------------------------


@pytest.mark.parametrize("second", ["the same machine", "another machine"])
@pytest.mark.parametrize("fails", ["PUT /storage/v1/object", "POST /rest/v1/images"])
def test_an_upload_that_failed_does_not_render_again(second, fails, cloud, paid, tmp_path):
    """Another machine asks the provider what became of it, and fetches that."""
    paid.configure("worker: {backends: [rep]}")
    owner, machines = cloud.new_user(), ["the same machine", second]
    with cloud.database.cursor() as cursor:
        cursor.execute(
            "insert into imagen.jobs (owner_user_id, prompt, params)"
            """ values (%s, 'a cat', '{"width": 512, "height": 512}')""",
            [owner],
        )
        cloud.gateway.fail(fails, AWAY)
        drained(paid.tool, cloud, tmp_path / machines[0])
        cursor.execute("select status, attempts, error is not null, image_id from imagen.jobs")
        assert cursor.fetchall() == [("pending", 1, True, None)]
        asked = len(paid.server.requests)

        cursor.execute("update imagen.jobs set run_after = now()")
        drained(paid.tool, cloud, tmp_path / machines[1])
        cursor.execute("select status, attempts, error, image_id::text from imagen.jobs")
        ((status, attempts, error, image_id),) = cursor.fetchall()
    assert (status, attempts, error) == ("done", 2, None)
    assert paid.creates == 1
    assert (len(paid.server.requests) > asked) == (second == "another machine")
    assert belongs(cloud)
    assert rows(cloud, "id::text, owner_user_id::text") == [(image_id, owner)]
    ((path, _),) = rows(cloud)
    assert (tmp_path / machines[1] / "out" / path).exists()


@pytest.mark.parametrize("key", ["wrong", ""])
def test_a_worker_without_the_right_key_fails_no_job_and_renders_it_once(
    key, cloud, paid, tmp_path
):
    paid.configure("worker: {backends: [rep]}")
    with cloud.database.cursor() as cursor:
        cursor.execute(
            "insert into imagen.jobs (owner_user_id, prompt, params)"
            """ values (%s, 'a cat', '{"width": 512, "height": 512}')""",
            [cloud.new_user()],
        )
        drained(paid.tool, cloud, tmp_path / "machine", SUPABASE_SERVICE_ROLE_KEY=key)
        cursor.execute("select status, attempts, error_detail ->> 'hint' from imagen.jobs")
        ((status, attempts, hint),) = cursor.fetchall()
        assert (status, attempts) == ("pending", 0)
        assert "$SUPABASE_SERVICE_ROLE_KEY" in hint
        cursor.execute("update imagen.jobs set run_after = now()")
        drained(paid.tool, cloud, tmp_path / "machine")
        cursor.execute("select status, attempts, error from imagen.jobs")
        assert cursor.fetchall() == [("done", 1, None)]
    assert paid.creates == 1
    assert belongs(cloud)


@pytest.mark.parametrize(("fails", "answer"), [NOT_SET_UP[0], NOT_SET_UP[-1]])
def test_a_project_that_is_not_set_up_fails_no_job_and_it_is_rendered_once(
    fails, answer, cloud, paid, tmp_path
):
    """commands/test_upload has the other answers."""
    paid.configure("worker: {backends: [rep]}")
    with cloud.database.cursor() as cursor:
        cursor.execute(
            "insert into imagen.jobs (owner_user_id, prompt, params)"
            """ values (%s, 'a cat', '{"width": 512, "height": 512}')""",
            [cloud.new_user()],
        )
        cloud.gateway.fail(fails, answer, times=9)
        drained(paid.tool, cloud, tmp_path / "machine")
        cursor.execute(
            "select status, attempts, run_after > now(), error_detail ->> 'scope' from imagen.jobs"
        )
        assert cursor.fetchall() == [("pending", 0, True, "setup")]
        cloud.gateway.forget()
        cursor.execute("update imagen.jobs set run_after = now()")
        drained(paid.tool, cloud, tmp_path / "machine")
        cursor.execute("select status, attempts, error from imagen.jobs")
        assert cursor.fetchall() == [("done", 1, None)]
    assert paid.creates == 1
    assert belongs(cloud)


def drained(tool: Any, cloud: Any, folder: Path, **more: str) -> None:
    """Let a worker of a machine of its own do all that is due."""
    state = {"XDG_STATE_HOME": str(folder), "IMAGEN_OUT_DIR": str(folder / "out")}
    env = {**cloud.environment(cloud.new_user()), db.VARIABLE: cloud.dsn, **state, **more}
    with suppress(FileExistsError):
        folder.mkdir()
    ran = tool("listen", "--drain", env=env, timeout=60)
    assert ran.status == 0, ran.err
