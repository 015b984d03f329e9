"""Jobs: from an INSERT to the task, one after the other, and through the whole pipeline.

Beside it run procrastinate and pgqueuer, each with its own worker and database of the same server,
a real PostgreSQL with a disk that it waits for. All times are of one clock: the server's now() of
the INSERT, the task's own at its first line, the server's now() when the job is closed.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from measure import BIN, show
from peers import PEERS

TOP = Path(__file__).resolve().parents[1]
sys.path.append(str(TOP / "tests/support"))

from servers import postgres  # noqa: E402
from servers.postgrest import NoPostgrest  # noqa: E402
from servers.supabase import serving  # noqa: E402

OWNER = "5c1f0d2e-1111-4222-8333-0123456789ab"
LASTING = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "autovacuum": "on"}
ADD = "insert into imagen.jobs (owner_user_id, prompt) values (%s, 'a cat') returning id::text"
SMALL = """
insert into imagen.jobs (owner_user_id, prompt, params)
values (%s, 'a cat in a fishbowl', '{"width": 256, "height": 256}') returning id::text
"""
OURS = "imagen-listen"
INSERTED = "select id::text, created_at from imagen.jobs"
FINISHED = "select id::text, finished_at from imagen.jobs where status = 'done'"


def main(
    state: str,
    picked: int = 300,
    drained: int = 500,
    drains_rounds: int = 3,
    made: int = 60,
    finished: int = 1_000_000,
    claimed: int = 200,
) -> None:
    postgres.SETTINGS |= LASTING
    try:
        cluster = postgres.started()
    except postgres.NoPostgres as none:
        print(f"\njobs: {none}")
        return
    try:
        postgres.prepare(cluster)
        if lacking := [name for name in PEERS if not _is_here(name)]:
            print(f"\njobs: without {', '.join(lacking)}")
        pickups(cluster, state, picked)
        drains(cluster, state, drained, drains_rounds)
        try:
            whole(cluster, state, made)
        except NoPostgrest as none:
            print(f"\njobs: {none}")
        claims(cluster, finished, claimed)
    finally:
        cluster.let_go()


# -- from the INSERT to the task -------------------------------------------------------------------


def pickups(cluster: Any, state: str, rounds: int) -> None:
    with ExitStack() as stack:
        places = {name: stack.enter_context(cluster.database(_template(name))) for name in _all()}
        pipe = stack.enter_context(_pipe(Path(state)))
        adds = {name: _adds(name, place) for name, place in places.items()}
        for name, place in places.items():
            stack.enter_context(_working(name, place, state, pipe.path))
        called: dict[str, dict[str, float]] = {name: {} for name in places}
        for number in range(rounds + 5):
            for name in random.sample([*places], len(places)):
                job = str(adds[name]())
                at = pipe.wait_for(job)
                time.sleep(random.uniform(0.02, 0.06))  # it is closed, and the worker waits again
                if number >= 5:
                    called[name][job] = at
        took = {
            name: [1000 * (at - inserted[job]) for job, at in called[name].items()]
            for name, place in places.items()
            for inserted in [_times(place, _inserted(name))]
        }
    rows = [[name, *(f"{one:.1f}" for one in _quantiles(ms))] for name, ms in took.items()]
    if "pgqueuer" in took:
        ours, theirs = _quantiles(took[OURS]), _quantiles(took["pgqueuer"])
        rows.append(["× pgqueuer", *(f"{a / b:.2f}" for a, b in zip(ours, theirs, strict=True))])
    _show(
        f"{rounds} jobs, from the INSERT to the task (asked: p50 ≤ pgqueuer's, p99 ≤ 20 ms)",
        ["worker", "p50 ms", "p90 ms", "p99 ms"],
        rows,
    )


def _show(title: str, head: list[str], rows: list[list[str]]) -> None:
    show(f"{title}; load {os.getloadavg()[0]:.1f} of {os.cpu_count()}", head, rows)


def _quantiles(found: list[float]) -> list[float]:
    cut = statistics.quantiles(found, n=100)
    return [cut[49], cut[89], cut[98]]


# -- one after the other ---------------------------------------------------------------------------


def drains(cluster: Any, state: str, count: int, rounds: int) -> None:
    rates: dict[str, list[float]] = {name: [] for name in _all()}
    for _ in range(rounds):
        for name, found in rates.items():
            with cluster.database(_template(name)) as place, _pipe(Path(state)) as pipe:
                add = _adds(name, place)
                for _number in range(count):
                    add()
                with _working(name, place, state, pipe.path, drains=True):
                    pipe.drain(lambda place=place, name=name: _count(place, name) >= count)
                times = sorted(_times(place, _finished(name)).values())
                found.append((len(times) - 1) / (times[-1] - times[0]))
    median = {name: statistics.median(found) for name, found in rates.items()}
    rows = [
        [name, f"{rate:.0f}", f"{rate / median.get('pgqueuer', rate):.2f}"]
        for name, rate in median.items()
    ]
    _show(
        f"{count} empty jobs that wait, one by one (asked: ≥ pgqueuer's)",
        ["worker", "jobs a second", "× pgqueuer"],
        rows,
    )


# -- the whole job ---------------------------------------------------------------------------------


def whole(cluster: Any, state: str, count: int) -> None:
    with cluster.database() as place, serving(place) as cloud, place.cursor() as cursor:
        cursor.execute("listen imagen_jobs_done")
        with _working(OURS, place, state, None, cloud.environment(cloud.new_user())):
            for _ in range(count + 5):
                cursor.execute(SMALL, [OWNER])
                ((job,),) = cursor.fetchall()
                _wait_until_over(cursor.connection, job)
                time.sleep(random.uniform(0.02, 0.06))
        cursor.execute(
            "select extract(epoch from finished_at - created_at)::float8 * 1000 from imagen.jobs"
            " where image_id is not null order by created_at offset 5"
        )
        took = [ms for (ms,) in cursor.fetchall()]
        if len(took) != count:
            raise SystemExit(f"{count - len(took)} of {count} jobs have no image")
    p50, p90, p99 = _quantiles(took)
    _show(
        f"{count} jobs of the mock at 256×256, from the INSERT to done: image, sidecar, object,"
        " rows (asked: ≤ 74 ms median)",
        ["", "p50 ms", "p90 ms", "p99 ms"],
        [["render, upload, log-usage", f"{p50:.0f}", f"{p90:.0f}", f"{p99:.0f}"]],
    )


def _wait_until_over(connection: Any, job: str) -> None:
    while select.select([connection], [], [], 30)[0]:
        connection.poll()
        told = [one.payload for one in connection.notifies]
        del connection.notifies[:]
        if job in told:
            return
    raise SystemExit(f"the job {job} is not over in 30 s")


# -- what a claim costs ----------------------------------------------------------------------------


def claims(cluster: Any, finished: int, rounds: int) -> None:
    with cluster.database() as empty, cluster.database() as full:
        for place, rows in ((empty, 0), (full, finished)):
            with place.cursor() as cursor:
                _fill(cursor, rows)
        took: dict[str, list[float]] = {"an empty table": [], f"{finished:,} finished rows": []}
        with empty.cursor() as one, full.cursor() as other:
            for _ in range(rounds):
                for found, cursor in zip(took.values(), (one, other), strict=True):
                    found.append(_claim_ms(cursor))
    median = {name: statistics.median(found) for name, found in took.items()}
    base = next(iter(median.values()))
    _show(
        "A claim with 1,000 jobs that wait (asked: ≤ 2.5 × an empty table's)",
        ["beside", "ms in the server", "×"],
        [[name, f"{ms:.3f}", f"{ms / base:.2f}"] for name, ms in median.items()],
    )


def _fill(cursor: Any, finished: int) -> None:
    cursor.execute("set synchronous_commit = off")
    cursor.execute("alter table imagen.jobs disable trigger user")
    cursor.execute(
        "insert into imagen.jobs (owner_user_id, prompt, status, finished_at)"
        " select %s, 'p', 'done', now() from generate_series(1, %s)",
        [OWNER, finished],
    )
    waiting = "insert into imagen.jobs (owner_user_id, prompt) select %s, 'p'"
    cursor.execute(f"{waiting} from generate_series(1, 1000)", [OWNER])
    cursor.execute("vacuum analyze imagen.jobs")


def _claim_ms(cursor: Any) -> float:
    """The server's own time for a claim that is taken back."""
    from imagen import db
    from imagen.queue import jobs

    cursor.execute("begin")
    for setting, value in jobs.IN_ORDER.items():
        cursor.execute(f"set local {setting} = {value}")
    values = ("w", ["mock"], "mock", ["mock"])
    cursor.execute(f"explain (analyze, timing off) {db.queries()['job_claim']}", values)
    said = [line for (line,) in cursor.fetchall()]
    cursor.execute("rollback")
    return sum(float(line.split()[2]) for line in said if line.startswith("Execution Time"))


# -- workers and queues ----------------------------------------------------------------------------


def _is_here(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def _all() -> list[str]:
    return [OURS, *filter(_is_here, PEERS)]


def _template(name: str) -> str:
    return postgres.MIGRATED if name == OURS else postgres.BARE


def _adds(name: str, place: Any) -> Callable[[], Any]:
    if name in PEERS:
        PEERS[name].install(place.dsn())
        return PEERS[name].adds(place.dsn())
    import psycopg2

    connection = psycopg2.connect(place.dsn())
    connection.autocommit = True
    cursor = connection.cursor()

    def add() -> Any:
        cursor.execute(ADD, [OWNER])
        return cursor.fetchone()[0]

    return add


@contextmanager
def _working(
    name: str,
    place: Any,
    state: str,
    pipe: Path | None,
    environment: dict[str, str] | None = None,
    drains: bool = False,
) -> Iterator[None]:
    """Run a worker; ours with a pipeline that only stamps, or the usual one without a pipe."""
    peers = [sys.executable, str(Path(__file__).with_name("peers.py"))]
    env = {**os.environ, "IMAGEN_LEDGER": f"{state}/jobs.sqlite3", **(environment or {})}
    env |= {"IMAGEN_OUT_DIR": f"{state}/jobs", "IMAGEN_CONFIG": f"{state}/jobs.yaml"}
    Path(env["IMAGEN_CONFIG"]).write_text("usage: {sink: both}\n")
    if name in PEERS:
        command = [*peers, name, place.dsn(), str(pipe)]
    else:
        env |= {"IMAGEN_DATABASE_URL": place.dsn("migrator"), "PATH": f"{BIN}:{env['PATH']}"}
        stamps = " ".join([*peers, "imagen", "-", str(pipe)])
        empty = "jq -c --unbuffered '.file=\"/dev/null\"'" if shutil.which("jq") else stamps
        pipeline = ["--", empty if drains else stamps] if pipe else []
        command = [str(BIN / OURS), *pipeline]
    child = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    try:
        time.sleep(0 if drains else 2)
        yield
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _inserted(name: str) -> str:
    return PEERS[name].inserted if name in PEERS else INSERTED


def _finished(name: str) -> str:
    return PEERS[name].finished if name in PEERS else FINISHED


def _times(place: Any, query: str) -> dict[str, float]:
    with place.cursor() as cursor:
        cursor.execute(
            f"select id::text, extract(epoch from at)::float8 from ({query}) as x(id, at)"
        )
        return dict(cursor.fetchall())


def _count(place: Any, name: str) -> int:
    return len(_times(place, _finished(name)))


class _Pipe(NamedTuple):
    """The named pipe that tasks write to when they are called."""

    path: Path
    file: Any

    def wait_for(self, job: str) -> float:
        """Give the time at which a job's task was called."""
        while select.select([self.file], [], [], 30)[0]:
            found, at = self.file.readline().split()
            if found.decode() == job:
                return float(at)
        raise SystemExit(f"the job {job} was not picked up in 30 s")

    def drain(self, is_over: Callable[[], bool]) -> None:
        """Read what is written until all is over."""
        end = time.monotonic() + 120
        while not is_over():
            if time.monotonic() > end:
                raise SystemExit("the jobs are not done in 120 s")
            if select.select([self.file], [], [], 0.5)[0]:
                os.read(self.file.fileno(), 2**16)
                time.sleep(0.5)


@contextmanager
def _pipe(folder: Path) -> Iterator[_Pipe]:
    path = folder / f"called-{random.randrange(10**9)}"
    os.mkfifo(path)
    with closing(os.fdopen(os.open(path, os.O_RDWR), "rb", buffering=0)) as file:
        yield _Pipe(path, file)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        main(folder)
