"""imagen-usage: what was rendered and what it cost, from the cost log."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..command import Common, tool
from ..errors import DONE, FAILED, UsageFault

if TYPE_CHECKING:
    from ..backends import Account
    from ..config import Config
    from ..ledger import Ledger
    from ..usage import Row

EXAMPLES = """
Examples:
  imagen-usage --since 7d --by day,model
  imagen-usage --since 2026-11-01 --until 2026-12-01 --format csv > november.csv
  imagen-usage --reconcile --since 24h
"""


class Span(NamedTuple):
    """From a time to before another, as the cost log writes times."""

    since: str
    until: str


@tool("usage", epilog=EXAMPLES)
@click.option("--since", metavar="TIME", help="From this day or time, or this age: 7d, 24h, 2w.")
@click.option("--until", metavar="TIME", help="Before this day, time or age.")
@click.option(
    "--by",
    metavar="KEYS",
    default="backend,model",
    help="Sums for each of: backend, model, caller, day.  [default: backend,model]",
)
@click.option("--raw", is_flag=True, help="The rows themselves, one for each submit.")
@click.option(
    "--source",
    type=click.Choice(["local", "supabase"]),
    help="Whose rows; default: where usage.sink sends them, local first.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv"]),
    help="Default: a table on a terminal, JSON lines in a pipe.",
)
@click.option("--reconcile", is_flag=True, help="Compare the ledger with what Replicate ran.")
def main(
    common: Common,
    since: str | None,
    until: str | None,
    by: str,
    raw: bool,
    source: str | None,
    form: str | None,
    reconcile: bool,
) -> int:
    """Sums of the cost log, or its rows. A submit that nobody knows the price of is counted as
    unpriced, and no part of cost_usd. Days are UTC. --reconcile exits 1 when something differs.
    """
    from .. import config, ledger, usage

    values = config.load(common.config_file)
    keys, span = usage.asked_keys(by), _span(since, until)
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    form = form or ("table" if on_terminal else "json")
    if reconcile:
        if raw or source:
            raise UsageFault("--reconcile goes with neither --raw nor --source")
        return _reconciled(common, values, ledger.required(config.ledger_path()), span, form)
    rows = _rows(values, source, span)
    if raw:
        _write(common, _columns(), list(rows) if form == "table" else rows, form)
        return DONE
    sums, total = usage.groups(rows, keys)
    last = {**dict.fromkeys(keys, ""), **total}
    if keys:
        last[keys[0]] = "total"
    _write(common, [*keys, *usage.SUMS], [*sums, last] if form == "table" and keys else sums, form)
    return DONE


def _span(since: str | None, until: str | None) -> Span:
    from .. import usage

    now = datetime.now(UTC)
    first = usage.asked_time("--since", since, now)
    last = usage.asked_time("--until", until, now)
    if first and last and first >= last:
        raise UsageFault(f"--until {until} is not after --since {since}")
    return Span(first or "", last or "")


def _columns() -> Sequence[str]:
    from ..ledger.usage import COLUMNS

    return COLUMNS


def _rows(values: Config, source: str | None, span: Span) -> Iterable[Row]:
    from .. import config, ledger, supabase, usage

    source = source or ("supabase" if values["usage.sink"] == "supabase" else "local")
    if source == "local":
        rows = ledger.required(config.ledger_path()).usage
        return rows.rows(**{name: said for name, said in span._asdict().items() if said})
    name = values["supabase.service_key_env"]
    url, key = values["supabase.url"], config.secret(name)
    tables = supabase.Tables(supabase.Project(url, key, name), supabase.USAGE_SCHEMA)
    found = supabase.usage_rows(tables, span.since or None, span.until or None)
    return (usage.of_supabase(row, _columns()) for row in found)


def _write(common: Common, columns: Sequence[str], rows: Iterable[Row], form: str) -> None:
    from .. import table
    from ..pipe import visible, write_out

    if form == "json":
        for row in rows:
            common.pipe.write(row)
    elif form == "csv":
        for line in table.csv_lines(columns, rows, visible):
            write_out(line.encode())
    else:
        write_out(table.aligned(columns, [*rows], visible).encode())


# -- compared with the provider --------------------------------------------------------------------


def _reconciled(common: Common, values: Config, ledger: Ledger, span: Span, form: str) -> int:
    from pathlib import Path

    from .. import reconcile

    since = datetime.now(UTC).timestamp() - _RECENT_S
    since = datetime.fromisoformat(span.since).timestamp() if span.since else since
    until = datetime.fromisoformat(span.until).timestamp() if span.until else math.inf
    accounts, models = _accounts(values)
    ran = [one for account in accounts for one in account.ran(since) if (one.created or 0) < until]

    def is_at_work(render_id: str) -> bool:
        with ledger.lock(render_id, wait=False) as free:
            return not (free and ledger.journal.is_open(render_id))

    found = reconcile.problems(  # the journal is read after the list: what it learns is not missed
        ran,
        reconcile.Known(
            ledger.journal.handles(since - _MARGIN_S),
            ledger.usage.submits(),
            models,
            lambda path: Path(path).is_file(),
            is_at_work,
        ),
    )
    problems = list(found)
    if problems or form != "table":
        _write(common, reconcile.COLUMNS, problems, form)
    common.report.note(f"{len(ran)} looked at, {len(problems)} differ")
    return FAILED if problems else DONE


_RECENT_S = 7 * 24 * 3600
_MARGIN_S = 24 * 3600  # our clock and the provider's are compared


def _accounts(values: Config) -> tuple[list[Account], dict[str, str]]:
    """Give a backend for each account that lists what it ran, and the instances by model."""
    from .. import backends, config

    accounts: dict[str, Account] = {}
    models: dict[str, str] = {}
    for name, settings in values.backends.items():
        if settings.get("type") == "replicate":
            backend: Any = backends.open_backend(name, values, config.ledger_path().parent)
            accounts.setdefault(backend.account(), backend)
            models.setdefault(backend.about()["model"].partition(":")[0], name)
    if not accounts:
        raise UsageFault("no backend of type replicate is configured: nothing to compare with")
    return [*accounts.values()], models


if __name__ == "__main__":
    main()
