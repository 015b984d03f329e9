"""imagen-jobs: what is queued, running and stuck; try again, cancel."""

from __future__ import annotations

import re
import sys
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..cli.tool import Common, tool
from ..errors import DONE, Refused, UsageFault

if TYPE_CHECKING:
    from ..queue.jobs import Queue

EXAMPLES = """
Examples:
  imagen-jobs
  imagen-jobs --status failed --since 24h | jq -r .error
  imagen-jobs show 3f2a9c1e | jq .record
  imagen-jobs retry 3f2a9c1e
  imagen-jobs retry --status failed --code out_of_credit --since 24h
  imagen-jobs cancel --status pending
"""
SHOWN = ("id", "status", "for", "backend", "worker", "attempts", "prompt", "error")


@tool("jobs", epilog=EXAMPLES)
@click.argument("action", required=False, metavar="[show|retry|cancel")
@click.argument("ids", nargs=-1, metavar="ID...]")
@click.option(
    "--status",
    type=click.Choice(["pending", "running", "stuck", "done", "failed", "cancelled", "all"]),
    help="Only these; default: pending and running.",
)
@click.option("--since", metavar="TIME", help="Queued since this day, time or age: 7d, 24h.")
@click.option("--code", metavar="CODE", help="Only those whose error has this code.")
@click.option("--even-paid", is_flag=True, help="Also retry jobs that may have been paid.")
@click.option("--database-url", metavar="URL", help="Database address, over $IMAGEN_DATABASE_URL.")
def main(
    common: Common, action: str | None, ids: tuple[str, ...], database_url: str | None, **said: Any
) -> int:
    """A table on a terminal, JSON lines in a pipe: the newest first. A job is stuck when its worker
    has not been heard of for 10 s. `show` writes jobs whole, each with its record. `retry` queues
    failed or cancelled jobs again, by their ids or all that --status, --since and --code choose; an
    ID is the whole id, its beginning, or the id that imagen-enqueue was given.
    """
    from .. import db
    from ..config import loader
    from ..queue import jobs
    from ..usage import cost_log

    choice = Choice(said["status"], said["since"], said["code"], said["even_paid"])
    _check(action, ids, choice)
    from_time = cost_log.asked_time("--since", choice.since, datetime.now(UTC))
    loader.load(common.config_file)
    where = db.chosen(database_url, loader.secret(db.VARIABLE))
    with closing(db.Database(where, "imagen-jobs")) as database:
        queue = jobs.Queue(database)
        if action == "show":
            return _show_each(common, queue, ids)
        if action and ids:
            return _change_each(common, queue, action, ids, choice.even_paid)
        rows = queue.listed(_STATUSES.get(choice.status or "", (choice.status,)), from_time)
        if choice.status == "stuck":
            rows = [row for row in rows if row["stuck"]]
        if choice.code:
            rows = [row for row in rows if row["code"] == choice.code]
        if action:
            return _change_all(common, queue, action, [row["id"] for row in rows], choice)
    _write(common, rows, _nothing(choice))
    return DONE


class Choice(NamedTuple):
    """Which jobs are meant where no ids are given."""

    status: str | None
    since: str | None
    code: str | None
    even_paid: bool


_CHANGES = {"retry": ("failed", "cancelled"), "cancel": ("pending", "running", "stuck")}


def _check(action: str | None, ids: tuple[str, ...], choice: Choice) -> None:
    """Raise UsageFault where what is meant cannot be told."""
    if action is not None and action not in ("show", *_CHANGES):
        hint = "imagen-jobs alone lists; --status and --since choose"
        raise UsageFault(f"{action!r} is none of show, retry and cancel", hint=hint)
    if choice.even_paid and action != "retry":
        raise UsageFault("--even-paid is for retry")
    if action is None:
        return
    if action == "show":
        if not ids or choice.status or choice.since or choice.code:
            raise UsageFault("show takes the ids of jobs", hint="imagen-jobs alone lists them")
        return
    if ids and (choice.status or choice.since or choice.code):
        raise UsageFault(f"{action} takes ids, or --status with --since and --code, not both")
    if not ids and choice.status not in _CHANGES[action]:
        names = " or ".join(f"--status {name}" for name in _CHANGES[action])
        raise UsageFault(f"{action} takes the ids of jobs, or {names}")


_STATUSES: dict[str, Any] = {
    "": ("pending", "running"),
    "stuck": ("running",),
    "all": ("pending", "running", "done", "failed", "cancelled"),
}


def _change_all(common: Common, queue: Queue, action: str, ids: list[str], choice: Choice) -> int:
    """Retry or cancel all of these; write those that were changed, and count the others."""
    is_retry = action == "retry"
    changed = queue.again_all(ids, choice.even_paid) if is_retry else queue.cancel_all(ids)
    for row in changed:
        common.pipe.write(row)
    if not ids:
        common.report.note(_nothing(choice))
    elif number := len(ids) - len(changed):
        jobs = "1 job is" if number == 1 else f"{number} jobs are"
        why = f"may have been paid (hint: {_PAID})" if is_retry else "over meanwhile"
        common.report.note(f"{jobs} left alone: {why}")
    return common.pipe.status


_PAID = "imagen-usage --reconcile looks; --even-paid retries all the same"


def _show_each(common: Common, queue: Queue, ids: tuple[str, ...]) -> int:
    """Write each job whole, with its record; say of the others that they are not there."""
    for text in ids:
        try:
            job_id = _job_id(queue, text)
            row = queue.rows_of([job_id]).get(job_id)
            if row is None:
                raise _no_such_job()
            common.pipe.write({name: value for name, value in row.items() if value is not None})
        except Refused as fault:
            common.pipe.failed(text, fault)
    return common.pipe.status


def _no_such_job() -> Refused:
    return Refused("there is no such job", code="no_such_job")


def _change_each(
    common: Common, queue: Queue, action: str, ids: tuple[str, ...], even_paid: bool
) -> int:
    """Retry or cancel each; write the jobs that were changed, and say of the others why not."""
    for text in ids:
        try:
            job_id = _job_id(queue, text)
            is_retry = action == "retry"
            changed = (
                queue.again_all([job_id], even_paid) if is_retry else queue.cancel_all([job_id])
            )
            if not changed:
                raise _unchanged(queue, action, job_id)
            common.pipe.write(changed[0])
        except Refused as fault:
            common.pipe.failed(text, fault)
    return common.pipe.status


def _unchanged(queue: Queue, action: str, job_id: str) -> Refused:
    row = queue.rows_of([job_id]).get(job_id)
    if row is None:
        return _no_such_job()
    if action == "retry" and row["status"] in _CHANGES[action]:
        return Refused("it may have been paid", code="may_be_paid", hint=_PAID)
    return Refused(f"it is {row['status']}: nothing to {action}", code="no_such_job")


def _job_id(queue: Queue, text: str) -> str:
    """Return the id of the job that is meant: by its id, its beginning, or the id that was given.

    Raise Refused if that is none, or more than one.
    """
    from ..config import loader
    from ..ledger import required
    from ..records.record import canonical_uuid

    if whole := canonical_uuid(text):
        return whole
    candidates = []
    if re.fullmatch(r"[0-9a-f]{4}[0-9a-f-]*", text.lower()) and len(text.replace("-", "")) < 32:
        candidates = queue.ids_from(text.lower())
    with closing(required(loader.ledger_path())) as ledger:
        candidates += queue.status_of([ledger.render_id(text)])
    if len(candidates) > 1:
        hint = f"more of it: {candidates[0]}, {candidates[1]}"
        raise Refused("several jobs begin so", code="no_such_job", hint=hint)
    if not candidates:
        hint = "imagen-jobs --status all | jq -r .id; at least 4 digits, or the id that was queued"
        raise Refused(f"there is no such job: {text[:40]!r}", code="no_such_job", hint=hint)
    return candidates[0]


def _nothing(choice: Choice) -> str:
    """Say for people that no job is as they asked for."""
    nothing = {None: "nothing is queued or running", "all": "there are no jobs"}
    says = nothing.get(choice.status, f"no job is {choice.status}")
    says += f", with --since {choice.since}" if choice.since else ""
    says += f", with --code {choice.code}" if choice.code else ""
    return says if choice.status == "all" else f"{says} (--status all shows the rest)"


def _write(common: Common, rows: list[dict[str, Any]], nothing: str) -> None:
    from .. import tables
    from ..cli.pipe import visible, write_out

    if sys.stdout is None or not sys.stdout.isatty():
        for row in rows:
            common.pipe.write({name: value for name, value in row.items() if value is not None})
    elif rows:
        write_out(tables.aligned(SHOWN, [_for_people(row) for row in rows], visible).encode())
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
