"""Objects without rows, rows without objects: what is found apart, and mended from files here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from . import files, upload
from .errors import ImagenError
from .record import Record
from .upload import Target

_UNDER_WAY = timedelta(minutes=5)  # an object so young may be waiting for its row


@dataclass(slots=True)
class Difference:
    """One path at which object and row do not belong together, and the local file for it."""

    problem: str
    path: str
    image_id: str | None
    file: Path | None
    mended: bool = False
    why: str | None = None

    def as_record(self) -> Record:
        """Give it as a line."""
        found = {
            "problem": self.problem,
            "path": self.path,
            "image_id": self.image_id,
            "file": str(self.file) if self.file else None,
            "mended": self.mended,
            "why": self.why,
        }
        return {name: one for name, one in found.items() if one is not None}


def differences(target: Target, folder: Path) -> Iterator[Difference]:
    """Yield what is apart; `folder` is where the images of this machine stand."""
    rows = {
        row["storage_path"]: row
        for row in target.tables.rows("images", "id,storage_path,sha256,bytes")
    }
    old = datetime.now(UTC) - _UNDER_WAY
    for path, entry in target.bucket.objects():
        row = rows.pop(path, None)
        if row is None:
            if _moment(entry.get("updated_at")) < old:
                yield Difference("object_without_row", path, None, _local(folder, path))
        elif _size(entry) not in (None, row["bytes"]):
            yield Difference("object_differs", path, row["id"], _local(folder, path, row))
    for path, row in rows.items():
        yield Difference("row_without_object", path, row["id"], _local(folder, path, row))


def mend(found: Difference, target: Target) -> None:
    """Bring up what is lacking, when the file for it is here; says why when it is not."""
    if found.file is None:
        found.why = "no such image on this machine"
        return
    try:
        image = upload.judged(files.record_of(found.file), target.owner)
        if found.problem == "object_without_row" and image.path != found.path:
            found.why = f"the file here belongs at {image.path}"
            return
        upload.upload(image, target)
        found.mended = True
    except ImagenError as fault:
        found.why = fault.message


def _local(folder: Path, path: str, row: Any = None) -> Path | None:
    """Give the local image of a path, if it is one that imagen made (and the row's own)."""
    file = folder / path
    if not file.is_file():
        return None
    record = files.record_of(file)
    if "render_id" not in record or (row and record.get("sha256") != row["sha256"]):
        return None
    return file


def _size(entry: Any) -> int | None:
    size = (entry.get("metadata") or {}).get("size")
    return size if isinstance(size, int) else None


def _moment(text: Any) -> datetime:
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return datetime.now(UTC)
