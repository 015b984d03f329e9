"""Pipes: finished records passed on a second, start-up excluded, beside jq and cat."""

from __future__ import annotations

import json
import shutil
import statistics

from measure import BIN, run, show


def main(state: str, count: int = 10_000, rounds: int = 5) -> None:
    made = {
        "prompt": "a cat in a fishbowl, studio light",
        "id": "3a1b184a-59bc-45b0-8c44-4e9e121ff554",
        "seed": 3895226186,
        "file": "/images/2026-11-23/a-cat-3895226186.png",
        "sha256": "48017bc933560deab538ab464a1edc515541773e7fc8ccf3225a77ab7a9cfe43",
        "backend_meta": {"seed_used": 3895226186},
        "cost_usd": 0.0,
    }
    line = json.dumps(made).encode() + b"\n"
    commands = {"imagen-render": [str(BIN / "imagen-render")]}
    if found := shutil.which("jq"):
        commands["jq -c --unbuffered . (peer)"] = [found, "-c", "--unbuffered", "."]
    rows = []
    for name, command in commands.items():
        took = []
        for _ in range(rounds):
            short = run(command, line, IMAGEN_LEDGER=f"{state}/ledger.sqlite3").wall
            took.append(
                run(command, line * count, IMAGEN_LEDGER=f"{state}/ledger.sqlite3").wall - short
            )
        rows.append([name, f"{count / statistics.median(took):,.0f}"])
    show(
        f"{count:,} finished records passed on (asked: ≥ 20,000 a second)",
        ["command", "records a second"],
        rows,
    )
