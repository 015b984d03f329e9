"""Peers of imagen-listen: procrastinate and pgqueuer, each as its own documentation runs it.

As a program: `peers.py NAME DSN PIPE` is a worker whose task only says when it was called: a line
with the job's id and the time, into the named pipe. `peers.py imagen - PIPE` does the same as the
pipeline of imagen-listen.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

Stamp = Callable[[object], None]


class Peer(NamedTuple):
    """How a queue is set up, how a job is put in, how a worker runs, and what its rows say.

    `inserted` and `finished` give each job's id and a time of the database.
    """

    install: Callable[[str], None]
    adds: Callable[[str], Callable[[], Any]]
    work: Callable[[str, Stamp], None]
    inserted: str
    finished: str


def main(name: str, dsn: str, pipe: str) -> None:
    out = os.open(pipe, os.O_WRONLY)

    def stamp(job: object) -> None:
        os.write(out, f"{job} {time.time()}\n".encode())

    if name == "imagen":
        _answer(stamp)
    else:
        PEERS[name].work(dsn, stamp)


def _answer(stamp: Stamp) -> None:
    for line in sys.stdin.buffer:
        now = json.loads(line)["id"]
        stamp(now)
        sys.stdout.write(json.dumps({"id": now, "file": "/dev/null"}) + "\n")
        sys.stdout.flush()


# -- procrastinate ---------------------------------------------------------------------------------


def _app(connector: Any) -> Any:
    from procrastinate import App

    return App(connector=connector)


def _install_procrastinate(dsn: str) -> None:
    from procrastinate import SyncPsycopgConnector

    with _app(SyncPsycopgConnector(conninfo=dsn)).open() as app:
        app.schema_manager.apply_schema()


def _adds_procrastinate(dsn: str) -> Callable[[], Any]:
    from procrastinate import SyncPsycopgConnector

    app = _app(SyncPsycopgConnector(conninfo=dsn))
    app.open()
    return app.configure_task("stamp").defer


def _work_procrastinate(dsn: str, stamp: Stamp) -> None:
    from procrastinate import PsycopgConnector

    app = _app(PsycopgConnector(conninfo=dsn))

    @app.task(name="stamp", pass_context=True)
    async def called(context: Any) -> None:
        stamp(context.job.id)

    async def run() -> None:
        async with app.open_async():
            await app.run_worker_async(concurrency=1, install_signal_handlers=False)

    asyncio.run(run())


# -- pgqueuer --------------------------------------------------------------------------------------


async def _connected(dsn: str) -> Any:
    import asyncpg
    from pgqueuer.db import AsyncpgDriver
    from psycopg2.extensions import parse_dsn

    parts = parse_dsn(dsn)
    said = {name: parts[name] for name in ("host", "port", "user")}
    return AsyncpgDriver(await asyncpg.connect(**said, database=parts["dbname"]))


def _install_pgqueuer(dsn: str) -> None:
    from pgqueuer.queries import Queries

    async def install() -> None:
        await Queries(await _connected(dsn)).install()

    asyncio.run(install())


def _adds_pgqueuer(dsn: str) -> Callable[[], Any]:
    import psycopg
    from pgqueuer.db import SyncPsycopgDriver
    from pgqueuer.queries import SyncQueries

    queries = SyncQueries(SyncPsycopgDriver(psycopg.connect(dsn, autocommit=True)))
    return lambda: queries.enqueue("stamp", None)[0]


def _work_pgqueuer(dsn: str, stamp: Stamp) -> None:
    import uvloop  # as its own command line does
    from pgqueuer.qm import QueueManager
    from pgqueuer.queries import Queries

    async def run() -> None:
        manager = QueueManager(Queries(await _connected(dsn)))

        @manager.entrypoint("stamp")
        async def called(job: Any) -> None:
            stamp(job.id)

        await manager.run(batch_size=1)

    uvloop.run(run())


PEERS = {
    "procrastinate": Peer(
        *(_install_procrastinate, _adds_procrastinate, _work_procrastinate),
        inserted="select job_id, at from procrastinate_events where type = 'deferred'",
        finished="select job_id, at from procrastinate_events where type = 'succeeded'",
    ),
    "pgqueuer": Peer(
        *(_install_pgqueuer, _adds_pgqueuer, _work_pgqueuer),
        inserted="select job_id, created from pgqueuer_log where status = 'queued'",
        finished="select job_id, created from pgqueuer_log where status = 'successful'",
    ),
}

if __name__ == "__main__":
    main(*sys.argv[1:])
