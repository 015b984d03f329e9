"""imagen-usage: what was rendered, what it cost, what the budget has left, what is in doubt."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..cli.tool import Common, tool
from ..errors import DONE, FAILED, ImagenError, UsageFault, worse

if TYPE_CHECKING:
    from ..backends import Account, Ran
    from ..config.loader import Config
    from ..ledger import Ledger
    from ..usage.cost_log import Row

EXAMPLES = """
Examples:
  imagen-usage --since 7d --by day,model
  imagen-usage --since 2026-11-01 --until 2026-12-01 --format csv > november.csv
  imagen-usage --budget
  imagen-usage --reconcile --since 24h
  imagen-usage --settle cat --billed no
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
@click.option("--budget", is_flag=True, help="Print what is spent, reserved and left of each cap.")
@click.option("--settle", metavar="ID", help="Record whether a render in doubt was billed.")
@click.option(
    "--billed", type=click.Choice(["yes", "no"]), help="For --settle: whether it was billed."
)
def main(common: Common, **said: Any) -> int:
    """Sums of the renders of this machine, or their rows. A submit without a known price is counted
    as unpriced and is not part of cost_usd. Days are UTC. --reconcile exits 1 when something
    differs.
    """
    from .. import ledger
    from ..config import loader
    from ..usage import cost_log

    _check(said)
    values = loader.load(common.config_file)
    keys, span = cost_log.asked_keys(said["by"]), _span(said["since"], said["until"])
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    form = said["form"] or ("table" if on_terminal else "json")
    if said["reconcile"]:
        return _reconciled(common, values, ledger.required(loader.ledger_path()), span, form)
    if said["budget"]:
        return _budget(common, values, ledger.required(loader.ledger_path()), form)
    if said["settle"] is not None:
        return _settle(common, said["settle"], said["billed"], form)
    source = said["source"] or ("supabase" if values["usage.sink"] == "supabase" else "local")
    rows = _rows(common, values, source, span)
    if said["raw"]:
        _write(common, _columns(source), list(rows) if form == "table" else rows, form)
        return DONE
    sums, total = cost_log.groups(rows, keys)
    last = {**dict.fromkeys(keys, ""), **total}
    if keys:
        last[keys[0]] = "total"
    _write(
        common, [*keys, *cost_log.SUMS], [*sums, last] if form == "table" and keys else sums, form
    )
    return DONE


def _check(said: dict[str, Any]) -> None:
    """Refuse options that do not go together."""
    modes = [name for name in ("reconcile", "budget", "settle") if said[name]]
    if modes and (said["raw"] or said["source"]):
        raise UsageFault(f"--{modes[0]} goes with neither --raw nor --source")
    if len(modes) > 1:
        raise UsageFault(f"--{modes[0]} does not go with --{modes[1]}")
    if modes and modes != ["reconcile"] and (said["since"] or said["until"]):
        raise UsageFault(f"--{modes[0]} goes with neither --since nor --until")
    if (said["settle"] is None) != (said["billed"] is None):
        hint = "imagen-usage --settle ID --billed yes, or no"
        raise UsageFault("--settle and --billed go together", hint=hint)


def _span(since: str | None, until: str | None) -> Span:
    from ..usage import cost_log

    now = datetime.now(UTC)
    first = cost_log.asked_time("--since", since, now)
    last = cost_log.asked_time("--until", until, now)
    if first and last and first >= last:
        raise UsageFault(f"--until {until} is not after --since {since}")
    return Span(first or "", last or "")


def _columns(source: str) -> Sequence[str]:
    from ..ledger.usage import COLUMNS

    return (*COLUMNS, "billed") if source == "local" else COLUMNS


def _rows(common: Common, values: Config, source: str, span: Span) -> Iterable[Row]:
    from .. import ledger
    from ..cloud import supabase
    from ..config import loader
    from ..usage import cost_log

    if source == "local":
        book = ledger.required(loader.ledger_path())
        limits = {name: said for name, said in span._asdict().items() if said}
        rows = book.usage.complete(**limits)
        _note_doubts(common, book, rows)
        return rows
    name = values["supabase.service_key_env"]
    url, key = values["supabase.url"], loader.secret(name)
    tables = supabase.Tables(supabase.Project(url, key, name), supabase.USAGE_SCHEMA)
    found = supabase.usage_rows(tables, span.since or None, span.until or None)
    return (cost_log.of_supabase(row, _columns(source)) for row in found)


def _note_doubts(common: Common, book: Ledger, rows: list[Row]) -> None:
    """Say what these sums hold that is not certain, and what may still come to them."""
    from ..cli import caller
    from ..render import budget

    doubtful = sum(row["billed"] == "unknown" for row in rows)
    if doubtful:
        says = "counted with their estimate: whether they were billed is not known"
        common.report.note(f"{doubtful} {says} (hint: imagen-usage --raw, billed: unknown)")
    if reserved := book.journal.spent(caller.caller()).reserved:
        amount = budget.usd(sum(one.usd for one in reserved))
        says = f"{amount} more is reserved by unfinished renders: {len(reserved)}"
        common.report.note(f"{says} (hint: imagen-render --resume)")


def _write(common: Common, columns: Sequence[str], rows: Iterable[Row], form: str) -> None:
    from .. import tables as text_tables
    from ..cli.pipe import visible, write_out

    if form == "json":
        for row in rows:
            common.pipe.write(row)
    elif form == "csv":
        for line in text_tables.csv_lines(columns, rows, visible):
            write_out(line.encode())
    else:
        write_out(text_tables.aligned(columns, [*rows], visible).encode())


# -- the budget, and what is settled by hand -------------------------------------------------------


def _budget(common: Common, values: Config, ledger: Ledger, form: str) -> int:
    from ..cli import caller
    from ..render import budget

    caps = budget.Caps.of(values.values, values.path)
    spent = ledger.journal.spent(caller.caller())
    if caps.any:
        _write(common, budget.COLUMNS, budget.rows(caps, spent, caller.caller()), form)
    else:
        common.report.say("no budget is configured (hint: docs/reference/ledger.md, Spend caps)")
    for one in budget.stale(spent.reserved, spent.now):
        age = budget.lasting(spent.now - one.since)
        ends = f"imagen-render --resume, or imagen-usage --settle {one.id} --billed yes|no"
        reserves = f"reserves {budget.usd(one.usd)} at {one.backend} since {age}"
        common.report.say(f"{one.id}: {reserves} (hint: {ends})")
    return DONE


def _settle(common: Common, name: str, billed: str, form: str) -> int:
    from .. import ledger
    from ..config import loader
    from ..usage import settle

    rows = settle.settle(ledger.required(loader.ledger_path()), name, billed)
    _write(common, settle.COLUMNS, rows, form)
    return DONE


# -- compared with the provider --------------------------------------------------------------------


def _reconciled(common: Common, values: Config, ledger: Ledger, span: Span, form: str) -> int:
    from pathlib import Path

    from ..cli.pipe import run_again
    from ..usage import reconcile

    since = datetime.now(UTC).timestamp() - _RECENT_S
    since = datetime.fromisoformat(span.since).timestamp() if span.since else since
    until = datetime.fromisoformat(span.until).timestamp() if span.until else math.inf
    accounts, models = _accounts(values)
    ran, fault = _read_accounts(accounts, since, until)

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
    named = {one["submit"] for one in problems}
    doubts = [one for one in ledger.journal.doubts(since) if one.intended_at < until]
    found = reconcile.doubts(doubts, is_at_work)
    problems += [one for one in found if one.get("submit") not in named]
    if fault and not ran and not problems:
        raise fault
    if problems or form != "table":
        _write(common, reconcile.COLUMNS, problems, form)
    common.report.note(f"{len(ran)} looked at, {len(problems)} differ")
    status = FAILED if problems else DONE
    if fault:
        common.report.fault("the list was not read to its end", fault, run_again(fault))
        return worse(status, fault.exit_status)
    return status


def _read_accounts(
    accounts: list[Account], since: float, until: float
) -> tuple[list[Ran], ImagenError | None]:
    """Read what the accounts ran, each once, as far as it can be read."""
    ran: dict[str, Ran] = {}
    fault = None
    for account in accounts:
        try:
            for one in account.ran(since):
                if (one.created or 0) < until:
                    ran.setdefault(one.handle, one)
        except ImagenError as broken:
            fault = broken
    return [*ran.values()], fault


_RECENT_S = 7 * 24 * 3600
_MARGIN_S = 24 * 3600  # our clock and the provider's are compared


def _accounts(values: Config) -> tuple[list[Account], dict[str, str]]:
    """Give a backend for each account that lists what it ran, and the instances by model."""
    from .. import backends
    from ..config import loader

    accounts: dict[str, Account] = {}
    models: dict[str, str] = {}
    for name, settings in values.backends.items():
        if settings.get("type") == "replicate":
            backend: Any = backends.open_backend(name, values, loader.ledger_path().parent)
            accounts.setdefault(backend.account(), backend)
            models.setdefault(backend.about()["model"].partition(":")[0], name)
    if not accounts:
        raise UsageFault("no backend of type replicate is configured: nothing to compare with")
    return [*accounts.values()], models


if __name__ == "__main__":
    main()
