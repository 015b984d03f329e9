"""imagen-listen: jobs from the queue, through a pipeline that keeps running."""

from __future__ import annotations

import os
import secrets
import shlex
from typing import TYPE_CHECKING, Any

import click

from ..cli.tool import Common, tool
from ..errors import ImagenError, UsageFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config.loader import Config
    from ..queue.verdict import Rules
    from ..queue.worker import Connected

EXAMPLES = """
Examples:
  imagen-listen
  imagen-listen --jobs 2 -- 'imagen-render | imagen-upload'
  imagen-listen --drain --backend mock
"""


@tool("listen", epilog=EXAMPLES, any_bytes=("pipeline",))
@click.argument("pipeline", nargs=-1, metavar="[-- PIPELINE]")
@click.option("--database-url", metavar="URL", help="The queue's database, over the environment.")
@click.option("--backend", "names", multiple=True, metavar="NAME", help="Only jobs for this one.")
@click.option("--jobs", type=click.IntRange(1, 64), metavar="N", help="Pipelines at once.")
@click.option(
    "--poll", type=click.FloatRange(0.05), metavar="S", help="Look at the queue at least so often."
)
@click.option(
    "--job-timeout", type=click.FloatRange(0.1), metavar="S", help="End a job that takes longer."
)
@click.option(
    "--grace", type=click.FloatRange(0), metavar="S", help="After TERM, let a job run so long."
)
@click.option("--name", metavar="NAME", help="This worker's name; unique by default.")
@click.option("--drain", is_flag=True, help="End when nothing is due any more.")
def main(common: Common, pipeline: tuple[str, ...], drain: bool, **said: Any) -> int:
    """Each job becomes a request line on the PIPELINE's stdin; the record that comes out closes it.
    PIPELINE is run by sh -c and kept running. TERM lets the running image finish; a second one puts
    it back.
    """
    from .. import db, signals
    from ..cli import pipe
    from ..config import loader
    from ..queue import ledger_writer, worker

    values = loader.load(common.config_file)
    rules = _rules(values)
    if unknown := [name for name in said["names"] if name not in rules.backends]:
        raise UsageFault(f"jobs may not use the backend {unknown[0]!r}", hint="worker.backends")
    about = worker.Said(
        name=said["name"] or f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(3)}",
        pipeline=" ".join(pipeline) or _default_pipeline(values),
        rules=rules,
        backends=list(said["names"]) or None,
        jobs=said["jobs"] or values["worker.jobs"],
        poll_s=said["poll"] or values["worker.poll_s"],
        job_timeout_s=said["job_timeout"] or values["worker.job_timeout_s"],
        grace_s=said["grace"],
        drain=drain,
    )
    if loader.is_only_the_mock(values) and not said["names"]:
        common.report.note(f"jobs without a backend: {loader.ONLY_THE_MOCK}")
    where = db.chosen(said["database_url"], loader.secret(db.VARIABLE))
    pipe.one_line_at_a_time()
    stops, wakes = signals.counted()
    tell = common.report.say
    ledger = ledger_writer.MachineLedger(loader.ledger_path(), tell)
    os.environ[pipe.DELIVERED_BY] = ledger.run
    with ledger.lives():
        return worker.Worker(about, lambda: _connected(where, stops), tell, ledger).run(
            stops, wakes
        )


def _connected(where: Any, stops: Callable[[], int]) -> Connected:
    from .. import db
    from ..queue import jobs
    from ..queue.worker import Connected

    def must_hurry() -> bool:
        return stops() > 0

    database = db.Database(where, "imagen-listen", must_hurry)
    queue = jobs.Queue(database)
    try:
        queue.check()
        ear = db.Ear(where, "imagen-listen ear", must_hurry)
        ear.listen(jobs.WAKE)
    except BaseException:
        database.close()
        raise

    def close() -> None:
        database.close()
        ear.close()

    return Connected(queue, ear, lambda: ear.round_trip(queue.ping), close)


def _rules(values: Config) -> Rules:
    """Give what jobs may use: what worker.backends lists, else every instance that is free."""
    from ..queue.verdict import Rules

    listed = values["worker.backends"]
    names = listed if listed is not None else [one for one in values.backends if _free(one, values)]
    return Rules(names, values["worker.options"] or [], values["default_backend"])


def _free(name: str, values: Config) -> bool:
    from .. import backends
    from ..config import loader

    try:
        return not backends.open_backend(name, values, loader.ledger_path().parent).paid
    except ImagenError:
        return False


def _default_pipeline(values: Config) -> str:
    """Give the pipeline that a person would type, without upload where there is no cloud."""
    from ..cli import processes

    shared = ["--config", str(values.path)] if values.path else []
    tools = ["imagen-render", *(["imagen-upload"] if values["supabase.url"] else [])]
    return " | ".join(
        shlex.join(processes.argv(one, *shared)) for one in [*tools, "imagen-log-usage"]
    )


if __name__ == "__main__":
    main()
