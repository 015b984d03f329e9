"""imagen-log-usage: one row of the cost log for each submit, and the record passed on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from ..cli.tool import Common, tool
from ..errors import TEMPORARY, ImagenError, UsageFault

if TYPE_CHECKING:
    from ..config.loader import Config
    from ..ledger import Ledger
    from ..records.record import Record
    from ..usage.cost_log import Row
    from ..usage.outbox import Outbox

EXAMPLES = """
Examples:
  imagen-render 'a cat in a fishbowl' | imagen-log-usage | imagen-preview
  jq -c . ~/Pictures/imagen/2026-11-23/*.json | imagen-log-usage > /dev/null
  imagen-log-usage --sink both < /dev/null
"""
MANY = 500  # rows: so many are sent even while more records wait


@tool("log-usage", epilog=EXAMPLES)
@click.option(
    "--sink",
    type=click.Choice(["local", "supabase", "both"]),
    help="Where rows go, over usage.sink of the configuration.",
)
@click.option("--best-effort", is_flag=True, help="Only warn when something fails.")
def main(common: Common, sink: str | None, best_effort: bool) -> int:
    """Records in, the same records out with usage_id. A row has the sha256 of the prompt, never the
    prompt. What cannot be sent to Supabase is kept in the ledger and sent by the next run.
    """
    from ..cli import pipe
    from ..config import loader

    values = loader.load(common.config_file)
    if not pipe.stdin_waits():
        raise UsageFault("no records", hint="imagen-render 'a cat' | imagen-log-usage")
    log = Log(common, values, sink or values["usage.sink"], best_effort)
    try:
        common.pipe.each(pipe.read(sys.stdin.buffer, idle=log.idle), log.step)
        log.send()
    finally:
        log.close()
    return common.pipe.status


class Log:
    """Writes rows where they go; what fails is said, and the record goes on."""

    def __init__(self, common: Common, values: Config, sink: str, best_effort: bool) -> None:
        """Take where the rows go; nothing is opened yet."""
        self._common = common
        self._values = values
        self._keeps, self._sends = sink != "supabase", sink != "local"
        self._best_effort = best_effort
        self._ledger: Ledger | None = None
        self._outbox: Outbox | None = None
        self._waits = 1 if self._sends else 0  # an earlier run may have left some

    def step(self, record: Record) -> Iterable[Record] | None:
        """Log what a record cost; it gets the id of the row."""
        from ..cli import caller, pipe
        from ..usage import cost_log

        try:
            row = cost_log.row_of(record, caller.caller, datetime.now(UTC))
            if row is None:
                return None
            self._opened().usage.add(row, self._keeps, self._sends)
        except ImagenError as fault:
            if not self._best_effort and "error" not in record:
                raise
            self._failed(pipe.name_of(record, ""), fault)
            return None
        return self._passed_on(record, row)

    def _passed_on(self, record: Record, row: Row) -> Iterable[Record]:
        yield {**record, "usage_id": row["usage_id"]}
        self._waits += self._sends
        if self._waits >= MANY:
            self.send()

    def idle(self) -> float | None:
        """Send what waits; gives the seconds after which it is worth while again."""
        self.send()
        return max(self._outbox.rests_s, 1.0) if self._outbox and self._waits else None

    def send(self) -> None:
        """Send the rows that wait, when there are some; a failure leaves them in the ledger."""
        if not self._waits or (self._outbox and self._outbox.rests_s):
            return
        self._waits = 0
        try:
            fault = self._box().send()
        except ImagenError as broken:  # the ledger itself
            fault = broken
        if fault:
            self._waits = int(fault.exit_status == TEMPORARY)
            fault.hint = fault.hint or "imagen-log-usage < /dev/null sends it"
            self._failed("not sent, kept for the next run", fault)

    def _failed(self, where: str, fault: ImagenError) -> None:
        say: Callable[[str, ImagenError], None] = self._common.pipe.failed
        if self._best_effort:
            say = self._common.report.fault
        say(where, fault)

    def _opened(self) -> Ledger:
        from .. import ledger
        from ..config import loader

        if self._ledger is None:
            self._ledger = ledger.required(loader.ledger_path())
        return self._ledger

    def _box(self) -> Outbox:
        from ..cloud.supabase import USAGE_SCHEMA, Project, Tables
        from ..config import loader
        from ..usage import outbox

        def connect() -> Tables:
            name = self._values["supabase.service_key_env"]
            url, key = self._values["supabase.url"], loader.secret(name)
            return Tables(Project(url, key, name, outbox.PATIENCE_S), USAGE_SCHEMA)

        if self._outbox is None:
            self._outbox = outbox.Outbox(self._opened().usage, connect)
        return self._outbox

    def close(self) -> None:
        """Close what was opened."""
        if self._outbox:
            self._outbox.close()
        if self._ledger:
            self._ledger.close()


if __name__ == "__main__":
    main()
