"""imagen-enqueue: request lines in, queued jobs out."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..cli import render_options as request_options
from ..cli.tool import Common, tool
from ..errors import TEMPORARY, AnswerLost, ImagenError, Refused, Unreachable, UsageFault

if TYPE_CHECKING:
    from ..cli.option_effects import OptionEffects
    from ..cli.pipe import Line
    from ..config.loader import Config
    from ..db import Address
    from ..ledger import Ledger
    from ..queue.job_request import Row
    from ..records.record import Record
    from ..records.request import Request, Told

EXAMPLES = """
Examples:
  imagen-enqueue < requests.jsonl > queued.jsonl
  echo '{"prompt":"a lighthouse","id":"tower"}' | imagen-enqueue --count 4 --priority 5
  imagen-enqueue --wait < requests.jsonl | jq -c '[.id, .cloud.image_id, .error.code]'
"""
PLAIN = "of plain text: jq -cR '{prompt: .}' | imagen-enqueue"
MANY = 500  # rows of one statement
NOT_HERE = (  # of render's options: what is up to the worker, or to what reads our output
    *("id", "out_dir", "output", "force", "timeout", "wait", "strict"),
    *("dry_run", "new", "no_ledger"),
)


@tool("enqueue", epilog=EXAMPLES, any_bytes=("prompts",))
@click.argument("prompts", nargs=-1, metavar="")
@click.option("--wait", "follows", is_flag=True, help="Wait for the end of each; print records.")
@click.option(
    "--priority",
    type=click.IntRange(-(2**31), 2**31 - 1),
    default=0,
    metavar="N",
    help="The higher, the earlier.  [default: 0]",
)
@click.option("--owner", metavar="UUID", help="Whose images these are, whatever a line says.")
@click.option("--database-url", metavar="URL", help="Database address, over $IMAGEN_DATABASE_URL.")
@request_options.render_options(*NOT_HERE)
def main(
    common: Common,
    prompts: tuple[str, ...],
    follows: bool,
    priority: int,
    owner: str | None,
    database_url: str | None,
    **said: Any,
) -> int:
    """Each request becomes a row of imagen.jobs, which a worker makes into an image. The same id is
    queued once. Finished and pending lines are passed on.
    """
    from .. import db
    from ..cli import pipe
    from ..cli.option_effects import OptionEffects
    from ..config import loader
    from ..ledger import required
    from ..records import record

    if prompts:
        request_options.check_prompts("imagen-enqueue", prompts)
        hint = """echo '{"prompt": "a cat"}' | imagen-enqueue"""
        raise UsageFault("requests are lines of stdin", hint=hint)
    values = loader.load(common.config_file)
    told = request_options.told(said, values)
    told.default_backend = None  # the worker's own
    if owner is not None and record.canonical_uuid(owner) is None:
        raise UsageFault(f"--owner takes a UUID, not {owner[:40]!r}")
    if not pipe.stdin_waits():
        raise UsageFault("no requests", hint="imagen-enqueue < requests.jsonl")
    where = db.chosen(database_url, loader.secret(db.VARIABLE))
    effects = OptionEffects(said, told)
    asked = Asked(told, owner, values, priority, follows, effects)
    enqueue = Enqueue(common, where, required(loader.ledger_path()), asked)
    common.pipe.hint = _hint
    try:
        lines = pipe.read(sys.stdin.buffer, PLAIN, enqueue.send, plain_beside_json=True)
        common.pipe.each(_checked(lines, told, common), enqueue.step)
        enqueue.send()
        enqueue.follow()
    finally:
        enqueue.close()
    return request_options.tell_unused(common.pipe, effects)


def _checked(lines: Iterable[Line], told: Told, common: Common) -> Iterator[Line]:
    """Look into the lines that are to be queued: each key once, and none that only looks right."""
    from ..records.checks import UnknownKeys, check_equal_keys
    from ..records.request import fate

    unknown = UnknownKeys()
    for line in lines:
        if line.record is not None and fate(line.record, told) in ("new", "retry"):
            try:
                check_equal_keys(line.raw)
            except ImagenError as fault:
                yield line._replace(fault=fault)
                continue
            for text in unknown.notes(line.record):
                common.report.note(text)
        yield line


def _hint(fault: ImagenError) -> str | None:
    """Return what to do about a fault: the id in its line keeps it from being queued twice."""
    back = "pipe its line of stdout back into imagen-enqueue"
    return fault.hint or (back if fault.exit_status == TEMPORARY else None)


class Asked(NamedTuple):
    """What the command line said."""

    told: Told
    owner: str | None
    values: Config
    priority: int
    follows: bool
    effects: OptionEffects


class Enqueue:
    """Collects requests while lines come without a pause, and inserts them together."""

    def __init__(self, common: Common, where: Address, ledger: Ledger, asked: Asked) -> None:
        """Connect; Unreachable before any line is read."""
        self._common = common
        self._where = where
        self._ledger = ledger
        self._asked = asked
        self._waiting: list[tuple[Request, Row]] = []
        self._followed: dict[str, list[Record]] = {}
        self._connect()

    def _connect(self) -> None:
        from ..db import Database
        from ..queue.jobs import Queue

        self._database = Database(self._where, "imagen-enqueue")
        self._queue = Queue(self._database)

    def close(self) -> None:
        """Close what was opened."""
        self._database.close()
        self._ledger.close()

    def step(self, line: Record) -> Iterable[Record] | None:
        """Take a line's requests; what has its image or its error is passed on."""
        from ..queue import job_request
        from ..records.request import fate, requests_of

        if job_request.is_tried_again(line.get("error")):
            line = {name: value for name, value in line.items() if name != "error"}
        what = fate(line, self._asked.told)
        self._asked.effects.look_at(line, what)
        if what in ("pass", "collect"):
            self.send()
            return None
        for request in requests_of(line, self._asked.told):
            self._waiting.append((request, self._row(request)))
        if len(self._waiting) >= MANY:
            self.send()
        return ()

    def _row(self, request: Request) -> Row:
        from ..queue import job_request

        told, owner, values, priority, *_ = self._asked
        owner = owner or request.get("owner_user_id") or values["supabase.owner_user_id"]
        if not owner:
            hint = "--owner, or supabase.owner_user_id of the configuration"
            raise Refused("no owner_user_id: nobody could see the image", hint=hint)
        job_id = self._ledger.render_id(request["id"])
        return job_request.row_of(request, job_id, owner.lower(), priority, told.count is not None)

    def send(self) -> None:
        """Insert what waits, and write its lines; a signal waits for both."""
        from .. import signals

        if self._waiting:
            with signals.held():
                self._send()

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            there = self._inserted([row for _, row in waiting])
        except ImagenError as fault:
            self._not_sent(waiting, fault)
            return
        for request, row in waiting:
            self._said(request, row, there.get(row["id"]))

    def _inserted(self, rows: list[Row]) -> dict[str, dict[str, Any]]:
        """Insert; give the rows that were there before. A lost answer is asked for once more."""
        from .. import retry

        def insert() -> dict[str, dict[str, Any]]:
            try:
                new = {*self._queue.enqueue(rows)}
                old = [row["id"] for row in rows if row["id"] not in new]
                return self._queue.rows_of(old) if old else {}
            except (Unreachable, AnswerLost):
                self._connect()
                raise

        return retry.once_more(insert)

    def _not_sent(self, waiting: list[tuple[Request, Row]], fault: ImagenError) -> None:
        from ..db import DatabaseBusy, DatabaseFault

        if (
            len(waiting) > 1
            and isinstance(fault, DatabaseFault)
            and type(fault) is not DatabaseBusy
        ):
            for one in waiting:  # one of them is at fault
                self._waiting = [one]
                self._send()
            return
        for request, _ in waiting:
            self._failed(dict(request), fault)

    def _failed(self, line: Record, fault: ImagenError) -> None:
        from ..cli import pipe

        self._common.pipe.failed(pipe.name_of(line, ""), fault)
        self._common.pipe.write({**line, "error": fault.as_record("imagen-enqueue")})

    def _said(self, request: Request, row: Row, there: dict[str, Any] | None) -> None:
        from ..queue import job_request

        line = job_request.line_of(request, row)
        try:
            if there:
                job_request.check_same(row, there, request)
        except ImagenError as fault:
            self._failed(dict(request), fault)
            return
        if self._asked.follows:
            if "id" in request.drawn:
                text = f"the id of {request['prompt'][:40]!r}, to wait for it again"
                self._common.report.note(f"{request['id']}: {text}")
            self._followed.setdefault(row["id"], []).append(line)
        else:
            self._common.pipe.write(line)

    def follow(self) -> None:
        """Wait for what was queued, and write the record of each as it ends."""
        from ..queue.watch import Follower

        if self._followed:
            says = "queued, waiting for their end (imagen-jobs shows them)"
            self._common.report.note(f"{len(self._followed)} {says}")
        follower = Follower(self._where, "imagen-enqueue")
        try:
            for row in follower.ended(self._followed):
                for line in self._followed.pop(row["id"]):
                    self._ended(line, row)
        except ImagenError as fault:  # the database stays away
            for line in [one for lines in self._followed.values() for one in lines]:
                self._failed(line, fault)
        finally:
            follower.close()

    def _ended(self, line: Record, row: dict[str, Any]) -> None:
        from ..cli import pipe
        from ..queue import job_request

        made = job_request.record_of(line, row)
        if "error" in made:  # to run the same again would find the same job, and it failed
            fault = ImagenError.of_record({**made["error"], "retry": "never"}, made)
            self._common.pipe.failed(pipe.name_of(made, ""), fault)
        self._common.pipe.write(made)


if __name__ == "__main__":
    main()
