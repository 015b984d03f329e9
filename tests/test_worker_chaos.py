"""Workers, pipelines and connections are killed at random: each job is done once, and paid once.

50 jobs, or $IMAGEN_SOAK of them. The seed is fixed: $IMAGEN_CHAOS_SEED makes other random choices.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psycopg2
import pytest

from imagen import db
from servers.replicate import SCHNELL, TOKEN, Replicate

JOBS = int(os.environ.get("IMAGEN_SOAK", "50"))
SEED = int(os.environ.get("IMAGEN_CHAOS_SEED", "6"))
OWNER = "5c1f0d2e-1111-4222-8333-0123456789ab"
WORKERS = 3
PIPELINE = f"{sys.executable} -P -m imagen render | {sys.executable} -P -m imagen log-usage"
LONGEST_S = 15


class Chaos:
    """Three workers, and what befalls them."""

    def __init__(self, tool, dsn, env):
        self.tool, self.dsn, self.env = tool, dsn, env
        self.random = random.Random(SEED)
        self.connection = psycopg2.connect(dsn)
        self.connection.autocommit = True
        self.workers = [self.start(number) for number in range(WORKERS)]
        self.orphans = {}  # job: its fence, and when its worker was killed
        self.worst = 0.0
        self.done = dict.fromkeys(("worker", "pipeline", "connections"), 0)

    def sql(self, query, *values):
        with self.connection.cursor() as cursor:
            cursor.execute(query, values or None)
            return cursor.fetchall() if cursor.description else []

    def start(self, number):
        env = {db.VARIABLE: self.dsn, **self.env(number)}
        with (self.tool.folder / f"worker-{number}.err").open("ab") as err:
            return self.tool.start("listen", "--", PIPELINE, env=env, stderr=err)

    def strike(self):
        """Kill something; what was running when it died must run again soon."""
        number = self.random.randrange(WORKERS)
        what = self.random.choice(["worker", "pipeline", "pipeline", "connections"])
        self.done[what] += 1
        if what == "worker":
            self.workers[number].kill()
            self.workers[number].wait()
            rows = self.sql(
                "select id::text, fence from imagen.jobs"
                " where status = 'running' and worker like %s",
                f"%-{self.workers[number].pid}-%",
            )
            self.orphans |= {name: (fence, time.monotonic()) for name, fence in rows}
            self.workers[number] = self.start(number)
        elif what == "pipeline":
            victims = descendants(self.workers[number].pid)
            if victims:
                with suppress(ProcessLookupError):
                    os.kill(self.random.choice(sorted(victims)), signal.SIGKILL)
        else:
            self.sql(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name like 'imagen-listen%%' and random() < 0.4"
                " and datname = current_database()"
            )

    def look(self):
        """Note how long it took until what ran under a killed worker ran again."""
        now = time.monotonic()
        for name, (fence, since) in [*self.orphans.items()]:
            ((there, over),) = self.sql(
                "select fence, finished_at is not null from imagen.jobs where id = %s", name
            )
            self.worst = max(self.worst, now - since)
            if there != fence or over:
                del self.orphans[name]

    def left(self):
        return self.sql("select count(*) from imagen.jobs where finished_at is null")[0][0]

    def run(self, strikes, limit_s):
        """Strike at random times, then let them finish."""
        rest, ends = strikes, time.monotonic() + limit_s
        following = time.monotonic() + 1
        while self.left() or self.orphans:
            assert time.monotonic() < ends, self.sql(
                "select status, count(*), max(error) from imagen.jobs group by 1"
            )
            if rest and time.monotonic() > following:
                self.strike()
                rest -= 1
                following = time.monotonic() + self.random.uniform(0.2, 0.8)
            self.look()
            time.sleep(0.05)

    def close(self):
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            assert worker.wait(30) == 0
        self.connection.close()


def descendants(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(path.parent.name))
    return found + [one for child in found for one in descendants(child)]


def queued(database, number, size):
    with database.cursor("migrator") as cursor:
        cursor.execute(
            "insert into imagen.jobs (owner_user_id, prompt, params)"
            " select %s, 'cat ' || n, %s from generate_series(1, %s) n",
            (OWNER, json.dumps({"width": size, "height": size}), number),
        )


def all_done(chaos):
    rows = chaos.sql("select status, count(*), max(error) from imagen.jobs group by 1, error")
    assert [(row[0], row[1]) for row in rows] == [("done", JOBS)], rows


def report(chaos, what, capsys):
    with capsys.disabled():
        struck = ", ".join(f"{n} {name}" for name, n in chaos.done.items())
        print(f"\n{what}: {JOBS} jobs; killed: {struck}; worst recovery {chaos.worst:.1f} s")


@pytest.mark.parametrize("ledgers", ["shared", "apart"])
def test_each_job_is_done_once_and_paid_once(
    ledgers, tool, database, configure, capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("REPLICATE_API_TOKEN", TOKEN)

    def env(number):
        own = f"machine-{number}" if ledgers == "apart" else "machine"
        return {"XDG_STATE_HOME": str(tmp_path / own), "IMAGEN_OUT_DIR": str(tmp_path / own)}

    with Replicate() as server:
        keys = "poll_s: 0.05, settle_s: 0.2, retry_s: 0.05"
        rep = f"{{type: replicate, model: '{SCHNELL}', base_url: '{server.url}', {keys}}}"
        configure(f"default_backend: rep\nbackends:\n  rep: {rep}\nworker: {{backends: [rep]}}\n")
        queued(database, JOBS, 512)
        chaos = Chaos(tool, database.dsn("migrator"), env)
        chaos.run(strikes=max(10, JOBS // 5), limit_s=60 + 2 * JOBS)
        all_done(chaos)
        chaos.close()
        report(chaos, f"ledgers {ledgers}", capsys)
        assert server.creates == JOBS
    assert chaos.worst <= LONGEST_S
