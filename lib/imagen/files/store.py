"""An image and its sidecar written under a reserved name, or in place of an older pair."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import disk, signals
from ..disk import make_folder, sync_folder
from . import atomic
from .reservations import Place, numbered_names
from .sidecars import SUFFIXES, file_beside, is_intact, sidecar_in


def keep_raw(folder: Path, stem: str, data: bytes, suffix: str) -> Path:
    """Write a file that is no image beside where one would be; return its path, the old one's if
    the same bytes stand there already.
    """
    make_folder(folder)
    for name in numbered_names(
        f"{stem}.raw", lambda name: os.path.lexists(folder / f"{name}{suffix}")
    ):
        path = folder / f"{name}{suffix}"
        try:
            atomic.publish(path, data)
        except FileExistsError:
            if not _has_bytes(path, data):
                continue
        sync_folder(folder)
        return path
    raise AssertionError("names never end")


def _has_bytes(path: Path, data: bytes) -> bool:
    with contextlib.suppress(OSError):
        return disk.read_regular(path, most=len(data)) == data
    return False


def store(place: Place, record: Mapping[str, Any], image: atomic.Content) -> dict[str, Any]:
    """Write an image and its record as its sidecar; gives the record with their paths.

    A new name gets its sidecar first, so that an image under its final name is complete;
    `_exchange` says how files are replaced. A name that was asked for keeps its suffix, with a
    warning if the format is another. FileExistsError when a stranger has taken the name meanwhile.
    """
    made, suffix = dict(record), SUFFIXES[record["format"]]
    if not place.asked_for:
        place.suffix = suffix
    elif place.suffix.lower().replace(".jpeg", ".jpg") != suffix:
        made["warnings"] = [*made.get("warnings", []), "extension"]
    made |= {"file": str(place.image), "sidecar": str(place.sidecar)}
    sidecar = json.dumps(made, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    with signals.held(), atomic.temporary(place.image, image) as whole:
        if place.replace:
            _exchange(place, made, whole, sidecar.encode())
        else:
            atomic.publish(place.sidecar, sidecar.encode(), replace=place.orphaned)
            _move_or_withdraw(place, whole)
        sync_folder(place.folder)
    return made


def _exchange(place: Place, made: Mapping[str, Any], whole: Path, sidecar: bytes) -> None:
    """Replace an image and its sidecar so that no two stand together that do not belong together.

    Of another image the sidecar goes first, then comes the image, then the new sidecar. This very
    image's own sidecar stays where a second run looks for it: its image goes first. Where the bytes
    are the same, only the sidecar changes.
    """
    before = sidecar_in(place.sidecar)
    old = file_beside(place.image, before)
    if made.get("sha256") and old == place.image and is_intact({**made, "file": str(old)}):
        atomic.publish(place.sidecar, sidecar, replace=True)
    elif before and before.get("render_id") == made.get("render_id"):
        atomic.unlink_durably(old)
        atomic.publish(place.sidecar, sidecar, replace=True)
        _move_or_withdraw(place, whole)
    else:
        atomic.unlink_durably(place.sidecar)
        atomic.move(whole, place.image, replace=True)
        sync_folder(place.folder)
        atomic.publish(place.sidecar, sidecar, replace=True)


def _move_or_withdraw(place: Place, whole: Path) -> None:
    """Give a new image its name; its sidecar goes again when that fails."""
    try:
        atomic.move(whole, place.image, replace=False)
    except BaseException:
        place.sidecar.unlink(missing_ok=True)
        raise
