"""imagen-backends: which backends there are, and whether they can be used."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..command import Common, tool
from ..errors import DONE, FAILED, ConfigFault, Refused

if TYPE_CHECKING:
    from ..config import Config

EXAMPLES = """
Examples:
  imagen-backends --check
  imagen-backends --check mock && imagen-render --backend mock 'a cat'
"""


@tool("backends", epilog=EXAMPLES)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--check", is_flag=True, help="Ask the servers; exit 1 when one is not ok.")
def main(common: Common, names: tuple[str, ...], check: bool) -> int:
    """One line for each instance: a table on a terminal, JSON lines in a pipe."""
    from .. import config
    from ..pipe import write_out

    values = config.load(common.config_file)
    as_table = sys.stdout is not None and sys.stdout.isatty()
    rows = []
    for row in _rows(values, list(names) or list(values.backends), check):
        rows.append(row)
        if not as_table:
            common.pipe.write(row)
    if as_table:
        write_out(_table(rows).encode())
    return FAILED if check and any(row["status"] != "ok" for row in rows) else DONE


def _rows(values: Config, names: list[str], check: bool) -> Iterator[dict[str, Any]]:
    from .. import backends, config

    for name in names:
        if name not in values.backends:
            backends.open_backend(name, values, config.ledger_path().parent)
        row: dict[str, Any] = {"name": name, "type": values.backends[name]["type"]}
        try:
            backend = backends.open_backend(name, values, config.ledger_path().parent)
            found = backend.status(check)
            told = {"status": str(found), "checked": check, **found.lacks}
            yield {**row, **backend.about(), **told}
        except (ConfigFault, Refused) as fault:
            yield {
                **row,
                "status": str(backends.Status("not configured", fault.as_line())),
                "checked": check,
            }


def _table(rows: list[dict[str, Any]]) -> str:
    """Lay the rows out in columns; the status is green or red where colour is welcome."""
    from ..pipe import visible

    names = ["name", "type", "model", "workflow", "status"]
    cells = [names, *([visible(str(row.get(name, ""))) for name in names] for row in rows)]
    widths = [max(len(line[n]) for line in cells) for n in range(len(names))]
    coloured = not os.environ.get("NO_COLOR")
    lines = []
    for number, line in enumerate(cells):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=False))
        status = line[-1]
        if coloured and number:
            status = f"\x1b[{32 if status == 'ok' else 31}m{status}\x1b[0m"
        lines.append(f"{text}  {status}\n")
    return "".join(lines)


if __name__ == "__main__":
    main()
