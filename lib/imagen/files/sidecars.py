"""Sidecars: the record beside each image, and which image it belongs to."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import disk
from ..errors import Refused
from ..records.record import parse

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "gif": ".gif", "avif": ".avif"}
_MAX_SIDECAR = 2**25  # bytes; a record line has 16 MiB at most


def file_beside(path: Path, record: Mapping[str, Any]) -> Path:
    """Return the path, in the folder of `path`, of the file that a record names; else `path`."""
    name = Path(str(record.get("file") or path)).name
    return path.with_name(name) if name not in ("", "..") and "\0" not in name else path


def sidecars(folder: Path, stem: str) -> Iterator[dict[str, Any]]:
    """Yield the records in the sidecars of a name and of those numbered after it."""
    for path in sorted(folder.glob(f"{glob.escape(stem)}*.json")):
        record = sidecar_in(path)
        if isinstance(record.get("file"), str):
            names = {"file": str(file_beside(path, record)), "sidecar": str(path)}
            yield {**record, **names}


def is_intact(record: Mapping[str, Any]) -> bool:
    """Whether a record's file is there, with the very bytes that it had when it was written."""
    path, length = record.get("file"), record.get("bytes")
    with contextlib.suppress(OSError, ValueError):
        if not isinstance(path, str):
            return False
        with disk.open_regular(path) as stream:
            if length is not None and os.fstat(stream.fileno()).st_size != length:
                return False
            return hashlib.file_digest(stream, "sha256").hexdigest() == record.get("sha256")
    return False


def sidecar_in(path: Path) -> dict[str, Any]:
    """Return the record of a sidecar; an empty one when it cannot be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(disk.read_regular(path, most=_MAX_SIDECAR))
        return content if isinstance(content, dict) else {}
    return {}


def images_in(folder: Path) -> list[Path]:
    """Give the images in a folder and those in it, by name; what begins with a dot is left out.

    What has such a name and is no regular file is left out too.
    """
    ends = {*SUFFIXES.values(), ".jpeg"}
    found = [path for path in folder.rglob("*") if path.suffix.lower() in ends and path.is_file()]
    inside = (path.relative_to(folder).parts for path in found)
    shown = (not any(part.startswith(".") for part in parts) for parts in inside)
    return sorted(path for path, is_shown in zip(found, shown, strict=True) if is_shown)


def record_of(image: Path) -> dict[str, Any]:
    """Give an image's record from its sidecar; one of its own when it has none that can be read.

    Where the sidecar is that of another file with the same stem, its id is its whole name.
    """
    path = image.absolute()
    sidecar = path.with_suffix(".json")
    record: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError, Refused):
        record = parse(disk.read_regular(sidecar, most=_MAX_SIDECAR))
    if not isinstance(record, dict) or "error" in record:
        return {"id": path.stem, "file": str(path)}
    if not belongs(record, path):
        return {"id": path.name, "file": str(path)}
    return {**record, "file": str(path)}


def belongs(record: Mapping[str, Any], image: Path) -> bool:
    """Whether a sidecar's record is this image's: by the file's name in it, else by its bytes."""
    named = record.get("file")
    if not isinstance(named, str) or Path(named).name == image.name:
        return True
    if isinstance(record.get("sha256"), str):
        return is_intact({**record, "file": str(image)})
    return not os.path.lexists(file_beside(image, record))
