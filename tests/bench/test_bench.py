"""`make bench` runs: each of its measurements in its smallest size, on its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
TABLES = {
    "startup": ["a mock render of 1024×1024"],
    "pipes": ["imagen-render"],
    "memory": ["1", "2"],
    "lateness": ["imagen-render, verified, with sidecar, synced"],
    "sheets": ["imagen-sheet", "decoding alone", "4 at 256 px", "5 at 81 px", "5 at 256 px"],
    "uploads": ["imagen-upload"],
    "jobs": ["imagen-listen", "render, upload, log-usage", "10 finished rows"],
}


def test_every_measurement_has_a_test():
    begins = re.compile(r"^def main\(\s*state: str", re.MULTILINE)
    parts = {path.stem for path in BENCH.glob("*.py") if begins.search(path.read_text())}
    assert parts == {*TABLES}


@pytest.mark.parametrize("part", TABLES)
def test_it_measures_and_prints_its_tables(part, request):
    if part in ("uploads", "jobs"):  # skipped, or failed, where those servers are missing
        request.getfixturevalue("cluster")
        request.getfixturevalue("serve")
    ran = subprocess.run(
        [sys.executable, BENCH / "run.py", "--smallest", part],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    first = [line.split(" | ")[0].removeprefix("| ") for line in ran.stdout.splitlines()]
    assert [name for name in TABLES[part] if name not in first] == [], ran.stdout
