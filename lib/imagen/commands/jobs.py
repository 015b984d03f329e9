"""imagen-jobs: what is queued, running and stuck; try again, cancel."""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ..command import Common, tool
from ..errors import DONE, Refused, UsageFault

if TYPE_CHECKING:
    from ..jobs import Queue

EXAMPLES = """
Examples:
  imagen-jobs
  imagen-jobs --status failed --since 24h | jq -r .error
  imagen-jobs retry 3f2a9c1e-…
"""
SHOWN = ("id", "status", "for", "backend", "worker", "attempts", "prompt", "error")


@tool("jobs", epilog=EXAMPLES)
@click.argument("action", required=False, metavar="[retry|cancel")
@click.argument("ids", nargs=-1, metavar="ID...]")
@click.option(
    "--status",
    type=click.Choice(["pending", "running", "stuck", "done", "failed", "cancelled", "all"]),
    help="Only these; default: pending and running.",
)
@click.option("--since", metavar="TIME", help="Queued since this day, time or age: 7d, 24h.")
@click.option("--database-url", metavar="URL", help="Database address, over $IMAGEN_DATABASE_URL.")
def main(
    common: Common,
    action: str | None,
    ids: tuple[str, ...],
    status: str | None,
    since: str | None,
    database_url: str | None,
) -> int:
    """A table on a terminal, JSON lines in a pipe: the newest first. A job is stuck when its worker
    has not been heard of for 10 s. `retry` queues failed or cancelled jobs again.
    """
    from .. import config, db, jobs, usage

    if action not in (None, "retry", "cancel"):
        hint = "imagen-jobs alone lists; --status and --since choose"
        raise UsageFault(f"{action!r} is neither retry nor cancel", hint=hint)
    if action and (status or since or not ids):
        raise UsageFault(f"{action} takes the ids of jobs, and no --status or --since")
    from_time = usage.asked_time("--since", since, datetime.now(UTC))
    config.load(common.config_file)
    where = db.chosen(database_url, config.secret(db.VARIABLE))
    with closing(db.Database(where, "imagen-jobs")) as database:
        queue = jobs.Queue(database)
        if action:
            return _acted(common, queue, action, ids)
        rows = queue.listed(_STATUSES.get(status or "", (status,)), from_time)
    if status == "stuck":
        rows = [row for row in rows if row["stuck"]]
    _write(common, rows, _nothing(status, since))
    return DONE


_STATUSES: dict[str, Any] = {
    "": ("pending", "running"),
    "stuck": ("running",),
    "all": ("pending", "running", "done", "failed", "cancelled"),
}


def _acted(common: Common, queue: Queue, action: str, ids: tuple[str, ...]) -> int:
    """Retry or cancel each; write the jobs that it was done with."""
    from ..record import canonical_uuid

    for one in ids:
        job_id = canonical_uuid(one)
        if not job_id:
            hint = (
                f"the whole id: imagen-jobs{' --status failed' * (action == 'retry')} | jq -r .id"
            )
            common.pipe.failed("", Refused(f"an id is a UUID, not {one[:40]!r}", hint=hint))
            continue
        acted = queue.again(job_id) if action == "retry" else queue.cancel(job_id)
        row = queue.rows_of([job_id]).get(job_id)
        if acted and row:
            common.pipe.write({"id": job_id, "status": row["status"], "prompt": row["prompt"]})
            continue
        why = f"it is {row['status']}: nothing to {action}" if row else "there is no such job"
        common.pipe.failed(job_id, Refused(why, code="no_such_job"))
    return common.pipe.status


def _nothing(status: str | None, since: str | None) -> str:
    """Say for people that no job is as they asked for."""
    what = {None: "nothing is queued or running", "all": "there are no jobs"}
    says = what.get(status, f"no job is {status}") + (f", with --since {since}" if since else "")
    return says if status == "all" else f"{says} (--status all shows the rest)"


def _write(common: Common, rows: list[dict[str, Any]], nothing: str) -> None:
    from .. import table
    from ..pipe import visible, write_out

    if sys.stdout is None or not sys.stdout.isatty():
        for row in rows:
            common.pipe.write({name: value for name, value in row.items() if value is not None})
    elif rows:
        write_out(table.aligned(SHOWN, [_for_people(row) for row in rows], visible).encode())
    else:
        common.report.note(nothing)


def _for_people(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "status": "stuck" if row["stuck"] else "waits" if row["run_after"] else row["status"],
        "for": _age(row["for_s"]),
        "attempts": f"{row['attempts']}/{row['max_attempts']}",
        "prompt": _short(row["prompt"]),
        "error": _short(row["error"] or ""),
    }


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    main()
