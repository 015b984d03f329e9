"""Start-up: --help of each tool and one mock render from the shell, × `python -c pass`."""

from __future__ import annotations

import shutil

from imagen.cli.tools import TOOLS
from measure import BIN, interleaved, show


def main(state: str, rounds: int = 15) -> None:
    commands = {"python -c pass": [str(BIN / "python"), "-c", "pass"]}
    commands |= {f"imagen-{name} --help": [str(BIN / f"imagen-{name}"), "--help"] for name in TOOLS}
    for peer in ("csvlook", "sqlite-utils"):
        if found := shutil.which(peer, path=str(BIN)):
            commands[f"{peer} --help (peer)"] = [found, "--help"]
    render = [str(BIN / "imagen-render"), "a cat", "--out-dir", f"{state}/images"]
    commands["a mock render of 1024×1024"] = render
    found = interleaved(commands, rounds, IMAGEN_LEDGER=f"{state}/ledger.sqlite3")
    base, own = found["python -c pass"].cpu, found["imagen-render --help"].cpu
    show(
        "Start-up (CPU; asked: --help ≤ 5.5 × `python -c pass`, a mock render ≤ 2.5 × --help)",
        ["command", "ms", "× python -c pass", "× imagen-render --help"],
        [
            [name, f"{1000 * used.cpu:.0f}", f"{used.cpu / base:.1f}", f"{used.cpu / own:.2f}"]
            for name, used in found.items()
        ],
    )
