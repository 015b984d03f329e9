"""imagen-backends: which backends there are, and whether they can be used."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from ..cli.tool import Common, tool
from ..errors import DONE, FAILED, ConfigFault, Refused

if TYPE_CHECKING:
    from ..config.loader import Config

_CHECK_S = 4.0  # that the requests of a check may take
_MARGIN_S = 0.5  # after which whoever still has no answer is given up
EXAMPLES = """
Examples:
  imagen-backends --check
  imagen-backends --check mock && imagen-render --backend mock 'a cat'
"""


@tool("backends", epilog=EXAMPLES)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--check", is_flag=True, help="Ask the servers for 5 s; exit 1 if one is not ok.")
def main(common: Common, names: tuple[str, ...], check: bool) -> int:
    """One line for each instance: a table on a terminal, JSON lines in a pipe."""
    from ..cli.pipe import write_out
    from ..config import loader

    values = loader.load(common.config_file)
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
    """Yield a line for each instance, in their order; with `check` all are asked at once."""
    from .. import backends
    from ..config import loader

    until = time.monotonic() + _CHECK_S
    lines: list[tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = []
    for name in names:
        if name not in values.backends:
            backends.open_backend(name, values, loader.ledger_path().parent)
        row: dict[str, Any] = {"name": name, "type": values.backends[name]["type"]}

        def look(name: str = name) -> dict[str, Any]:
            backend = backends.open_backend(name, values, loader.ledger_path().parent)
            status = backend.status(check, until)
            return {**backend.about(), "status": str(status), "checked": check, **status.lacks}

        lines.append((row, _in_thread(look, until) if check else look))
    for row, answer in lines:
        try:
            yield {**row, **answer()}
        except (ConfigFault, Refused) as fault:
            status = backends.Status("not configured", fault.as_line())
            yield {**row, "status": str(status), "checked": check}


def _in_thread(look: Callable[[], dict[str, Any]], until: float) -> Callable[[], dict[str, Any]]:
    """Begin to look; give what waits for the answer, and says so when none comes in time.

    The thread is left behind then: a look-up of a name, for one, cannot be cut short.
    """
    import threading

    from ..backends import Status

    status = Status("unreachable", f"no answer within {_CHECK_S + _MARGIN_S:g} s")
    answers: list[dict[str, Any]] = [{"status": str(status), "checked": True}]
    faults: list[Exception] = []

    def run() -> None:
        try:
            answers.append(look())
        except Exception as fault:  # noqa: BLE001 - raised again where the line is written
            faults.append(fault)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def answer() -> dict[str, Any]:
        thread.join(max(until + _MARGIN_S - time.monotonic(), 0))
        if faults:
            raise faults[0]
        return answers[-1]

    return answer


def _table(rows: list[dict[str, Any]]) -> str:
    """Lay the rows out in columns; the status is green or red where colour is welcome."""
    from ..cli.pipe import visible

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
