"""Uploads: one process, one kept connection, beside the official Supabase client doing the same.

Both check the sha256 of each image, look for its row by id and by path, send the object and insert
the row. The server is `make dev-cloud` in processes of its own, whose CPU is not counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from measure import BIN, Run, run, show

TOP = Path(__file__).resolve().parents[1]
OFFICIAL = TOP / ".venv-official" / "bin" / "python"


SAME = """
import hashlib, json, os, sys
from supabase import create_client

client = create_client(os.environ["SUPABASE_URL"], os.environ["SUPABASE_SERVICE_ROLE_KEY"])
table = lambda: client.schema("imagen").table("images")
bucket = client.storage.from_("imagen-generated")
for line in sys.stdin:
    record = json.loads(line)
    with open(record["file"], "rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == record["sha256"]
        path = f"{record['date']}/{record['slug']}-{record['seed']}.png"
        columns = "id,sha256,storage_path"
        either = f"id.eq.{record['render_id']},storage_path.eq.{path}"
        assert not table().select(columns).or_(either).execute().data
        file.seek(0)
        bucket.upload(path, file, {"content-type": "image/png", "upsert": "true"})
    alike = ("backend", "model", "prompt", "seed", "width", "height", "bytes", "sha256")
    row = {name: record[name] for name in alike}
    row |= {"id": record["render_id"], "owner_user_id": os.environ["IMAGEN_OWNER_USER_ID"]}
    row |= {"storage_path": path, "sidecar": record}
    assert table().upsert(row, on_conflict="id", ignore_duplicates=True).execute().data
    print(json.dumps(record), flush=True)
"""


class Sizes(NamedTuple):
    """How often, how many uploads in a long and a short run, and of how many bytes."""

    rounds: int
    count: int
    few: int
    size: int


def main(
    state: str, rounds: int = 5, count: int = 200, few: int = 20, size: int = 1_500_000
) -> None:
    sizes = Sizes(rounds, count, few, size)
    commands = {"imagen-upload": [str(BIN / "imagen-upload")]}
    if OFFICIAL.exists():
        commands["supabase 2.34.1"] = [str(OFFICIAL), "-c", SAME]
    else:
        print("\nuploads: no official client beside it: `make official` installs it")
    with served() as environment:
        found = measured(state, commands, environment, sizes)
    rows = [[name, *(f"{value:.1f}" for value in values)] for name, values in found.items()]
    if len(found) > 1:
        ours, theirs = found.values()
        rows.append(["ratio", *(f"{a / b:.2f}" for a, b in zip(ours, theirs, strict=True))])
    show(
        f"{count} uploads of {size / 1e6} MB (asked: ≤ 0.6 × the official CPU, memory flat)",
        ["", "CPU s", "CPU ms an upload", f"peak MiB of {few}", f"peak MiB of {count}"],
        rows,
    )


def measured(
    state: str, commands: dict[str, list[str]], environment: dict[str, str], sizes: Sizes
) -> dict[str, list[float]]:
    """Give the CPU in s, of one more upload in ms, and the peaks: medians of interleaved rounds."""
    runs: dict[str, list[list[float]]] = {name: [] for name in commands}
    for number in range(sizes.rounds):
        for name, command in commands.items():
            few, many = (
                _run(
                    state, f"{name[:1]}-{number}-{count}", command, environment, (count, sizes.size)
                )
                for count in (sizes.few, sizes.count)
            )
            each = 1000 * (many.cpu - few.cpu) / (sizes.count - sizes.few)
            runs[name].append([many.cpu, each, few.mib, many.mib])
    return {
        name: [statistics.median(column) for column in zip(*found, strict=True)]
        for name, found in runs.items()
    }


def _run(
    state: str,
    name: str,
    command: list[str],
    environment: dict[str, str],
    images: tuple[int, int],
) -> Run:
    records = _records(Path(state), name, *images)
    lines = b"".join(json.dumps(one).encode() + b"\n" for one in records)
    return run(command, lines, **environment, IMAGEN_LEDGER=f"{state}/{name}.sqlite3")


def _records(state: Path, name: str, count: int, size: int) -> Iterator[dict[str, object]]:
    """Make so many images, which share their bytes on the disk."""
    folder = state / name / "2026-11-23"
    folder.mkdir(parents=True)
    data = state / "image.bin"
    if not data.exists():
        data.write_bytes(os.urandom(size))
    sha256 = hashlib.sha256(data.read_bytes()).hexdigest()
    for seed in range(count):
        file = folder / f"{name}-{seed}.png"
        file.hardlink_to(data)
        yield {
            **{"prompt": "a cat in a fishbowl", "backend": "mock", "model": "mock", "seed": seed},
            **{"id": f"{name}-{seed}", "render_id": str(uuid.uuid4()), "format": "png"},
            **{"width": 1024, "height": 1024, "bytes": size, "sha256": sha256, "slug": name},
            **{"date": "2026-11-23", "file": str(file)},
        }


@contextmanager
def served() -> Iterator[dict[str, str]]:
    """Serve a throw-away project; give the variables that point there."""
    path = os.pathsep.join(
        [str(TOP / "tests/support"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    child = subprocess.Popen(
        [sys.executable, "-m", "servers.supabase"],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout
    try:
        said = [shlex.split(child.stdout.readline())[1:] for _ in range(6)]
        yield dict(one[0].split("=", 1) for one in said)
    finally:
        child.terminate()
        child.wait()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        main(folder)
