"""Run measurements once and print their tables: ratios of one run on one machine.

`run.py` runs all; `run.py startup pipes` some. `--smallest` only shows that they still work: what
it prints means nothing.
"""

from __future__ import annotations

import argparse
import pipes
import tempfile
from typing import Any

import jobs
import lateness
import memory
import sheets
import startup
import uploads

PARTS = (startup, pipes, memory, lateness, sheets, uploads, jobs)
SMALLEST: dict[str, dict[str, Any]] = {
    "startup": {"rounds": 1},
    "pipes": {"count": 10, "rounds": 1},
    "memory": {"counts": (1, 2)},
    "lateness": {"rounds": 1, "script_rounds": 1},
    "sheets": {"rounds": 1, "few": 4, "many": 5, "side": 64},
    "uploads": {"rounds": 1, "few": 1, "count": 3, "size": 1000},
    "jobs": {
        "picked": 2,
        "drained": 3,
        "drains_rounds": 1,
        "made": 2,
        "finished": 10,
        "claimed": 2,
    },
}


def main() -> None:
    names = {part.__name__: part for part in PARTS}
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", metavar="PART", default=[], help=", ".join(names))
    parser.add_argument("--smallest", action="store_true", help="only show that they work")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as state:
        for name in options.parts or names:
            names[name].main(state, **(SMALLEST[name] if options.smallest else {}))


if __name__ == "__main__":
    main()
