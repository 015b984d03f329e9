"""Uploads: one process, one kept connection, beside the official Supabase client doing the same.

Both check the sha256 of each image, look for its row by id and by path, send the object and insert
the row. The server is `make dev-cloud` in processes of its own, whose CPU is not counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measure import BIN, Run, run, show

TOP = Path(__file__).resolve().parents[1]
OFFICIAL = TOP / ".venv-official" / "bin" / "python"
COUNT, FEW, SIZE = 200, 20, 1_500_000

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
        assert not table().select(columns).eq("id", record["render_id"]).execute().data
        assert not table().select(columns).eq("storage_path", path).execute().data
        file.seek(0)
        bucket.upload(path, file, {"content-type": "image/png", "upsert": "true"})
    alike = ("backend", "model", "prompt", "seed", "width", "height", "bytes", "sha256")
    row = {name: record[name] for name in alike}
    row |= {"id": record["render_id"], "owner_user_id": os.environ["IMAGEN_OWNER_USER_ID"]}
    row |= {"storage_path": path, "sidecar": record}
    assert table().upsert(row, on_conflict="id", ignore_duplicates=True).execute().data
    print(json.dumps(record), flush=True)
"""


def main(state: str) -> None:
    with served() as environment:
        rows = [["imagen-upload", *measured(state, "ours", environment)]]
        if OFFICIAL.exists():
            rows.append(["supabase 2.34.1", *measured(state, "official", environment)])
            rows.append(["ratio", *_ratios(rows), "", ""])
        else:
            print("\nuploads: no official client beside it: `make official` installs it")
    show(
        f"{COUNT} uploads of {SIZE / 1e6} MB (asked: ≤ 0.6 × the official CPU, memory flat)",
        ["", "CPU s", "of it, ms an upload", f"peak MiB of {FEW}", f"peak MiB of {COUNT}"],
        rows,
    )


def measured(state: str, who: str, environment: dict[str, str]) -> list[str]:
    few, many = (_run(state, f"{who}-{count}", who, count, environment) for count in (FEW, COUNT))
    each = (many.cpu - few.cpu) / (COUNT - FEW)
    return [f"{many.cpu:.2f}", f"{1000 * each:.1f}", f"{few.mib:.0f}", f"{many.mib:.0f}"]


def _ratios(rows: list[list[str]]) -> list[str]:
    ours, theirs = (row[1:3] for row in rows)
    return [f"{float(one) / float(other):.2f}" for one, other in zip(ours, theirs, strict=True)]


def _run(state: str, name: str, who: str, count: int, environment: dict[str, str]) -> Run:
    command = [str(BIN / "imagen-upload")] if who == "ours" else [str(OFFICIAL), "-c", SAME]
    lines = b"".join(json.dumps(one).encode() + b"\n" for one in _records(Path(state), name, count))
    ledger = f"{state}/{name}.sqlite3"
    return run(command, lines, **environment, IMAGEN_LEDGER=ledger)


def _records(state: Path, name: str, count: int) -> Iterator[dict[str, object]]:
    """Make so many images, which share their bytes on the disk."""
    folder = state / name / "2026-11-23"
    folder.mkdir(parents=True)
    data = state / "image.bin"
    if not data.exists():
        data.write_bytes(os.urandom(SIZE))
    sha256 = hashlib.sha256(data.read_bytes()).hexdigest()
    for seed in range(count):
        file = folder / f"{name}-{seed}.png"
        file.hardlink_to(data)
        yield {
            **{"prompt": "a cat in a fishbowl", "backend": "mock", "model": "mock", "seed": seed},
            **{"id": f"{name}-{seed}", "render_id": str(uuid.uuid4()), "format": "png"},
            **{"width": 1024, "height": 1024, "bytes": SIZE, "sha256": sha256, "slug": name},
            **{"date": "2026-11-23", "file": str(file)},
        }


@contextmanager
def served() -> Iterator[dict[str, str]]:
    """Serve a throw-away project; give the variables that point there."""
    path = os.pathsep.join([str(TOP / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
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
