"""What every measurement shares: interleaved runs, CPU and peak memory of a child, a table."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

BIN = Path(sys.executable).parent
# compiled modules are kept between runs, as they are wherever nobody asks for the contrary
_ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


class Run(NamedTuple):
    """One run of a command: seconds of CPU and of the clock, peak memory in MiB."""

    cpu: float
    wall: float
    mib: float


def run(command: list[str], stdin: bytes = b"", **environment: str) -> Run:
    with tempfile.TemporaryFile() as source:
        source.write(stdin)
        source.seek(0)
        began = time.perf_counter()
        child = subprocess.Popen(
            command,
            stdin=source,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**_ENVIRONMENT, **environment},
        )
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{command} ended with {child.returncode}")
    return Run(used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024)


def interleaved(commands: dict[str, list[str]], rounds: int, **environment: str) -> dict[str, Run]:
    """Run all commands round after round, so that noise meets them alike; medians."""
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for command in commands.values():
        run(command, **environment)
    for _ in range(rounds):
        for name, command in commands.items():
            runs[name].append(run(command, **environment))
    return {
        name: Run(*(statistics.median(column) for column in zip(*found, strict=True)))
        for name, found in runs.items()
    }


def show(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n### {title}\n")
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
