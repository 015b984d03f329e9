"""Workers, pipelines, connections, the server itself: each job is done once, and paid once.

50 jobs, or $IMAGEN_SOAK of them. The seed is fixed: $IMAGEN_CHAOS_SEED makes other random choices.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import uuid
from collections import Counter
from contextlib import contextmanager

import pytest

from chaos import FAULTS, KILLS, Chaos
from imagen.cloud import upload
from real import missing
from servers import postgres
from servers.replicate import SCHNELL, TOKEN, Replicate
from uploads import belongs, rows

JOBS = int(os.environ.get("IMAGEN_SOAK", "50"))
SEED = int(os.environ.get("IMAGEN_CHAOS_SEED", "6"))
STRIKES = max(12, JOBS // 5)
LIMIT_S = 90 + 3 * JOBS
WORKERS = 3
LONGEST_S = 20  # 15 are promised; a loaded machine takes its time to start what goes on
RENDER_S = 0.4  # so that there is somebody to strike, however fast the machine is


def piped(*names):
    return " | ".join(f"{sys.executable} -P -m imagen {name}" for name in names)


@contextmanager
def paid_by(configure, monkeypatch, more=""):
    """A Replicate look-alike, and a configuration in which jobs may use it."""
    monkeypatch.setenv("REPLICATE_API_TOKEN", TOKEN)
    # a create whose answer was lost is looked for when these seconds are over
    keys = "connect_s: 1, read_s: 3, poll_s: 0.05, settle_s: 0.2, retry_s: 0.05"
    with Replicate() as server:
        server.seconds = RENDER_S
        rep = f"{{type: replicate, model: '{SCHNELL}', base_url: '{server.url}', {keys}}}"
        text = f"default_backend: rep\nbackends:\n  rep: {rep}\nworker: {{backends: [rep]}}\n"
        configure(text + more)
        yield server


def machine(folder, **more):
    return {"XDG_STATE_HOME": str(folder), "IMAGEN_OUT_DIR": str(folder / "out"), **more}


def queued(place, owner, size=512):
    with place.cursor("migrator") as cursor:
        cursor.execute(
            "insert into imagen.jobs (owner_user_id, prompt, params)"
            " select %s, 'cat ' || n, %s from generate_series(1, %s) n",
            (owner, json.dumps({"width": size, "height": size}), JOBS),
        )


def all_done(chaos):
    found = chaos.sql("select status, count(*), max(error) from imagen.jobs group by 1, error")
    assert [row[:2] for row in found] == [("done", JOBS)], found


def all_paid_once(server):
    asked = Counter(one["input"]["prompt"] for one in server.predictions)
    assert asked == Counter(f"cat {number + 1}" for number in range(JOBS))


def said(chaos, what, began, capsys):
    with capsys.disabled():
        took = time.monotonic() - began
        told = f"\n{what}: {JOBS} jobs in {took:.0f} s, seed {SEED}: {chaos.report()}"
        print(told, file=sys.stderr)  # stdout is xdist's own
    kinds = {*KILLS, *(FAULTS if chaos.cloud else ())}
    assert {what for what, number in chaos.hurt.items() if number > 0} == kinds
    assert max(chaos.worst.values()) <= LONGEST_S


def test_each_job_is_done_once_and_paid_once(
    tool, database, configure, capsys, tmp_path, monkeypatch
):
    """Three workers of one machine, and so with one ledger."""
    began, env = time.monotonic(), machine(tmp_path / "machine")
    with paid_by(configure, monkeypatch) as server:
        queued(database, uuid.uuid4().hex)
        chaos = Chaos(tool, database, piped("render", "log-usage"), [env] * WORKERS, SEED)
        chaos.run(STRIKES, LIMIT_S)
        all_done(chaos)
        chaos.close()
        all_paid_once(server)
    said(chaos, "one ledger", began, capsys)


@pytest.fixture
def own_place():
    """A database whose server may be restarted. What it says is done has to stay so."""
    try:
        cluster = postgres.started(settings={"synchronous_commit": "on"})
    except postgres.NoPostgres as none:
        missing(str(none))
    try:
        postgres.prepare(cluster)
        yield postgres.Place(cluster, postgres.MIGRATED)
    finally:
        cluster.let_go()


def test_each_image_is_in_the_cloud_once_though_the_server_and_uploads_fail(
    tool, own_place, serve_cloud, configure, capsys, tmp_path, monkeypatch
):
    """Three machines, each with a ledger of its own."""
    began = time.monotonic()
    with (
        serve_cloud(own_place) as cloud,
        paid_by(configure, monkeypatch, "usage: {sink: both}\n") as server,
    ):
        owner, other = cloud.new_user(), cloud.new_user()
        queued(own_place, owner)
        env = cloud.environment(other)
        machines = [machine(tmp_path / f"machine-{n}", **env) for n in range(WORKERS)]
        pipeline = piped("render", "upload", "log-usage")
        chaos = Chaos(tool, own_place, pipeline, machines, SEED, cloud)
        chaos.run(STRIKES, LIMIT_S)
        all_done(chaos)
        chaos.close()
        all_paid_once(server)
        all_in_the_cloud_once(cloud, server, owner, tmp_path)
    said(chaos, "three ledgers, a cloud", began, capsys)


def all_in_the_cloud_once(cloud, server, owner, folder):
    """Hold the sides to each other: jobs, images, objects, costs, and what is on the disks."""
    with cloud.database.cursor() as cursor:
        cursor.execute("select id::text, image_id::text from imagen.jobs")
        jobs = dict(cursor.fetchall())
        cursor.execute("select render_id::text, caller, submit from mai.imagen_usage")
        costs = cursor.fetchall()
    assert jobs == {name: upload.image_id(name) for name in jobs}
    images = rows(cloud, "job_id::text, id::text, owner_user_id::text")
    assert sorted(images) == sorted((job, image, owner) for job, image in jobs.items())
    assert belongs(cloud)
    assert len(cloud.storage.objects()) == JOBS
    paid = [one["id"] for one in server.predictions]
    assert sorted(submit for *_, submit in costs) == sorted(paid)
    assert sorted(cost[:2] for cost in costs) == sorted((job, f"job:{owner}") for job in jobs)
    made = {hashlib.sha256(one.read_bytes()).hexdigest() for one in folder.glob("*/out/*/*.[!j]*")}
    assert made >= {sha256 for _, sha256 in rows(cloud)}
