"""Objects without rows, rows without objects: what is found apart, and mended from files here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ..errors import ImagenError, Refused
from ..files import sidecars
from ..records.record import Record
from . import upload
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


def differences(target: Target, folder: Path, now: datetime) -> Iterator[Difference]:
    """Yield what is apart; `folder` is where the images of this machine stand.

    Rows are read first: whose row comes in later has an object that is younger than _UNDER_WAY.
    """
    rows: dict[str, Record] = {}
    pathless: list[tuple[str, Record]] = []
    for row in target.tables.rows("images", "id,storage_path,sha256,bytes"):
        path = row.get("storage_path")
        if isinstance(path, str):
            rows[path] = row
        else:
            pathless.append((repr(path), row))
    for path, entry in target.bucket.objects():
        size = _size(entry)
        its_row = rows.pop(path, None)
        if its_row is None:
            if now - _moment(entry.get("updated_at")) > _UNDER_WAY:
                yield Difference("object_without_row", path, None, _of_object(folder, path, size))
        elif size not in (None, its_row.get("bytes")):
            yield Difference("object_differs", path, its_row["id"], _of_row(folder, path, its_row))
    for path, row in [*rows.items(), *pathless]:
        yield Difference("row_without_object", path, row["id"], _of_row(folder, path, row))


def mend(found: Difference, target: Target, owner: str | None) -> None:
    """Bring up what is lacking, when the file for it is here; says why when it is not."""
    if found.file is None:
        found.why = "no such image on this machine"
        return
    try:
        image = upload.judged(sidecars.record_of(found.file), owner)
        if found.image_id not in (None, image.image_id):
            raise Refused("the file here is of another render")
        with upload.opened(image) as stream:
            path = upload.upload(image, stream, target)["path"]
    except ImagenError as fault:
        found.why = fault.message
        return
    found.mended = path == found.path
    if not found.mended:
        found.why = f"the image here stands at {path}"


def _of_row(folder: Path, path: str, row: Mapping[str, Any]) -> Path | None:
    """Give the local file that a row is of."""
    return _local(folder, path, lambda record: record.get("sha256") == row.get("sha256"))


def _of_object(folder: Path, path: str, size: int | None) -> Path | None:
    """Give the local file that an object is of, as far as its name and its length tell."""
    return _local(folder, path, lambda record: record.get("bytes") == size)


def _local(folder: Path, path: str, fits: Any) -> Path | None:
    """Give the local image of a path; a name that is none of ours is looked for nowhere."""
    if not upload.is_path(path):
        return None
    places = [path]
    if taken := _TAKEN.fullmatch(path):  # the name that it got where another had the first one
        places.append(taken[1] + taken[2])
    for place in places:
        for file in (folder / place, (folder / place).with_suffix(".jpeg")):
            record = sidecars.record_of(file) if file.is_file() else {}
            if "render_id" in record and fits(record):
                return file
    return None


_TAKEN = re.compile(r"(.+)-[0-9a-f]{8}(\.\w+)")


def _size(entry: Mapping[str, Any]) -> int | None:
    metadata = entry.get("metadata")
    size = metadata.get("size") if isinstance(metadata, dict) else None
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _moment(text: Any) -> datetime:
    """Read a time of the server; what is none is long ago, so that it is not passed over."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
