"""Memory: the peak of a batch of mock renders does not grow with its length."""

from __future__ import annotations

from measure import BIN, run, show


def main(state: str, counts: tuple[int, ...] = (10, 100, 1000)) -> None:
    rows = []
    for count in counts:
        command = [str(BIN / "imagen-render"), "a cat", "--count", str(count), "--size", "512x512"]
        used = run(
            [*command, "--out-dir", f"{state}/batch"], IMAGEN_LEDGER=f"{state}/ledger.sqlite3"
        )
        rows.append([str(count), f"{used.mib:.0f}", f"{1000 * used.wall / count:.0f}"])
    show(
        "Peak memory of a batch of mock renders of 512×512 (asked: flat)",
        ["renders", "peak MiB", "ms a render"],
        rows,
    )
