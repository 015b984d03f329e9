"""Contact sheets of photo-like PNGs of 1024², 256 px a cell, beside montage and pyvips."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image

from measure import BIN, interleaved, run, show

DECODE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from PIL import PngImagePlugin
def decode(path):
    with PngImagePlugin.PngImageFile(path) as image:
        image.load()
with ThreadPoolExecutor(2) as pool:
    list(pool.map(decode, sorted(Path(sys.argv[1]).glob("*.png"))))
"""
VIPS = """
import math, sys
from pathlib import Path
import pyvips
names = sorted(map(str, Path(sys.argv[1]).glob("*.png")))
cells = [pyvips.Image.thumbnail(name, 256, height=256).copy_memory() for name in names]
across = math.ceil(math.sqrt(len(cells)))
pyvips.Image.arrayjoin(cells, across=across, shim=8).write_to_file(sys.argv[2])
"""


def photos(folder: Path, count: int, side: int) -> None:
    """Make photo-like pictures: blurred noise over gradients, four of them again and again."""
    from PIL import ImageFilter

    folder.mkdir()
    ramp = Image.linear_gradient("L").resize((side, side))
    noise = [
        Image.effect_noise((side, side), 60).filter(ImageFilter.GaussianBlur(1.2)) for _ in range(3)
    ]
    bands = [Image.blend(one, ramp.rotate(90 * n), 0.6) for n, one in enumerate(noise)]
    picture = Image.merge("RGB", bands)
    for number in range(4):
        picture.rotate(90 * number).save(folder / f"{number:04}.png", compress_level=1)
    for number in range(4, count):
        shutil.copy(folder / f"{number % 4:04}.png", folder / f"{number:04}.png")


def main(state: str, rounds: int = 3, few: int = 100, many: int = 1000, side: int = 1024) -> None:
    folders = Path(state) / "few", Path(state) / "many"
    for folder, count in zip(folders, (few, many), strict=True):
        photos(folder, count, side)
    _beside_peers(state, rounds, folders[0])
    _memory(state, *folders)


def _beside_peers(state: str, rounds: int, few: Path) -> None:
    ours = _ours(state, 256)
    python = str(BIN / "python")
    commands = {
        "imagen-sheet": [*ours, str(few)],
        "decoding alone": [python, "-c", DECODE, str(few)],
    }
    if montage := shutil.which("montage"):
        names = sorted(map(str, few.glob("*.png")))
        commands["montage -geometry (peer)"] = [
            montage,
            *names,
            "-geometry",
            "256x256+4+4",
            f"{state}/m.png",
        ]
    try:
        import pyvips  # noqa: F401

        commands["pyvips (peer)"] = [python, "-c", VIPS, str(few), f"{state}/v.png"]
    except (ImportError, OSError) as fault:
        print(f"no pyvips: {fault}", file=sys.stderr)
    found = interleaved(commands, rounds, IMAGEN_LEDGER=f"{state}/ledger.sqlite3")
    own = found["imagen-sheet"]
    show(
        f"A sheet of {len([*few.iterdir()])}"
        " (asked: ≤ 0.3 × CPU and ≤ 0.1 × memory of montage, ≤ 1.5 × decoding)",
        ["command", "CPU s", "peak MiB", "ours / its CPU", "ours / its memory"],
        [
            [
                name,
                f"{it.cpu:.1f}",
                f"{it.mib:.0f}",
                f"{own.cpu / it.cpu:.2f}",
                f"{own.mib / it.mib:.2f}",
            ]
            for name, it in found.items()
        ],
    )


def _ours(state: str, cell: int) -> list[str]:
    command = [str(BIN / "imagen-sheet"), "--force", "--cell", str(cell)]
    return [*command, "--output", f"{state}/sheet.png"]


def _memory(state: str, few: Path, many: Path) -> None:
    rows = []
    for folder, cell in ((few, 256), (many, 81), (many, 256)):
        command = [*_ours(state, cell), str(folder)]
        used = run(command, IMAGEN_LEDGER=f"{state}/ledger.sqlite3")
        with Image.open(f"{state}/sheet.png") as sheet:
            raw = sheet.width * sheet.height * 3 / 2**20
        count = len(list(folder.iterdir()))
        rows.append([f"{count} at {cell} px", f"{used.cpu:.0f}", f"{used.mib:.0f}", f"{raw:.0f}"])
    show(
        "Memory (asked: 1,000 finish, and it does not grow with their number beyond the sheet)",
        ["imagen-sheet", "CPU s", "peak MiB", "the sheet itself, MiB"],
        rows,
    )
