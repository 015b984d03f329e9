"""The suite itself: any order, with one process or many, and nothing that reaches another test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
LONG_AND_SHORT = ("test_clock.py", "render/test_budget.py", "scenarios/test_killed.py")


def collected(*options: str, seed: str = "1") -> list[str]:
    """Give the names of the tests of some files, in the order in which they would run."""
    command = [sys.executable, "-m", "pytest", "--collect-only", *options]
    command += [str(HERE / name) for name in LONG_AND_SHORT]
    ran = subprocess.run(
        command,
        cwd=HERE.parent,
        env={**os.environ, "IMAGEN_SEED": seed},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"IMAGEN_SEED={seed} " in ran.stdout, "the seed is not printed"
    return [line for line in ran.stdout.splitlines() if "::" in line]


def test_a_seed_gives_the_same_order_again_and_another_seed_another():
    order = collected()
    assert collected() == order
    other = collected(seed="2")
    assert other != order
    assert sorted(other) == sorted(order)


def test_the_long_files_come_first_in_any_order():
    files = [name.partition("::")[0] for name in collected()]
    assert set(files[: files.count("tests/scenarios/test_killed.py")]) == {
        "tests/scenarios/test_killed.py"
    }


@pytest.mark.parametrize("plugin", ["xdist", "randomly"])
def test_it_can_be_run_without(plugin):
    assert collected("-p", f"no:{plugin}")


def test_who_ends_connections_names_the_database_that_they_are_of():
    """Other tests share the server, and so does what another test run calls by the same name."""
    reaching = [
        f"{path.name}: {query}"
        for path in sorted(HERE.rglob("*.py"))
        for query in re.findall(r"from pg_stat_activity[^)]*", path.read_text())
        if path.name != "test_suite.py" and "datname" not in query and "pid =" not in query
    ]
    assert reaching == []
