"""Model files in ComfyUI's models folder: where each belongs, and whether it is there and right."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ..disk import open_regular
from ..errors import FileFault, ImagenError, Refused, from_os
from ..workflows.template import Model, is_inside, slashed

ABSENT, PARTIAL, PRESENT, WRONG_SIZE = "absent", "partial", "present", "wrong size"
_NAMES = {  # a folder's name, and the one that it has in older or newer versions of ComfyUI
    "diffusion_models": "unet",
    "unet": "diffusion_models",
    "text_encoders": "clip",
    "clip": "text_encoders",
}
_READ = 2**20  # bytes at once

Tell = Callable[[int, int | None], None]  # bytes that are done, and of how many, where known


class WrongFile(ImagenError):
    """The file is not the one that is known"""

    code = "wrong_file"
    state = "wrong"  # or missing


class Place(NamedTuple):
    """Where a model file stands, or will: its state, its final path, and the bytes that are there.

    The state is absent, partial (some of it beside the final path), present, or wrong size.
    """

    state: str
    path: Path
    bytes: int = 0


def look(folder: Path, model: Model) -> Place:
    """Look for a file in its folder of `folder`, and in the one that other ComfyUIs read.

    Refused when the workflow does not say where it belongs.
    """
    places = [one / slashed(model.file) for one in _folders(folder, model)]
    found = [standing(path, model.size) for path in places if os.path.lexists(path)]
    if found:
        return next((one for one in found if one.state == PRESENT), found[0])
    path = next((path for path in places if path.parent.is_dir()), places[0])
    begun = part_of(path)
    size = begun.stat().st_size if begun.is_file() else 0
    return Place(PARTIAL if size else ABSENT, path, size)


def _folders(folder: Path, model: Model) -> list[Path]:
    is_file = is_inside(slashed(model.file))
    if not (is_file and is_inside(model.folder)):
        says = "no folder for it" if is_file else "no name of a file"
        raise Refused(
            f"the workflow says {says}: {model.file!r}",
            hint="file and folder in _imagen.models",
            code="no_source",
        )
    first, *rest = model.folder.split("/")
    names = [first, *([_NAMES[first]] if first in _NAMES else [])]
    return [folder.joinpath(name, *rest) for name in names]


def standing(path: Path, size: int | None) -> Place:
    """Judge what stands under a final name by its size, where that is known."""
    there = path.stat().st_size if path.is_file() else -1
    is_right = there >= 0 and size in (None, there)
    return Place(PRESENT if is_right else WRONG_SIZE, path, max(there, 0))


def part_of(path: Path) -> Path:
    """Give where the bytes of a file stand until it is whole."""
    return path.with_name(f".{path.name}.part")


def in_the_way(place: Place, model: Model) -> WrongFile:
    """Give the error of a file of another size under the final name."""
    if not place.path.is_file():
        return WrongFile(f"no file stands at {place.path}", hint="move it out of the way")
    says = f"{place.path} has {place.bytes} bytes, not {model.size}: it is not touched"
    return WrongFile(says, hint=f"if it is not needed: rm {place.path}; then run this again")


def digest(path: Path, tell: Tell = lambda _done, _of: None) -> str:
    """Give the sha256 of a file's bytes."""
    found, done, size = hashlib.sha256(), 0, path.stat().st_size
    with open_regular(path) as stream:
        while part := stream.read(_READ):
            found.update(part)
            done += len(part)
            tell(done, size)
    return found.hexdigest()


def check_digest(found: str, path: Path, model: Model) -> None:
    """Raise WrongFile when a sha256 is not the known one."""
    if model.sha256 and found != model.sha256:
        says = f"{path}: its sha256 is {found}, not {model.sha256}"
        raise WrongFile(says, hint=f"rm {path}, then imagen-models fetch")


def check_room(missing: Iterable[tuple[Path, int]]) -> None:
    """Raise FileFault when the file systems have no room for these bytes at these paths."""
    wanted: dict[int, tuple[Path, int]] = {}
    for path, size in missing:
        there = next(one for one in path.parents if one.is_dir())
        device = there.stat().st_dev
        wanted[device] = (there, wanted.get(device, (there, 0))[1] + size)
    for folder, size in wanted.values():
        free = shutil.disk_usage(folder).free
        if size > free:
            says = f"no room in {folder}: {readable(size)} are to come, {readable(free)} are free"
            raise FileFault(says, hint="free some space, or name another --models-dir")


def readable(size: int) -> str:
    """Give a number of bytes for people, in units of 1000."""
    power = next((n for n in range(4) if size < 999.5 * 1000**n), 4)
    return f"{size / 1000**power:.{1 if power > 2 else 0}f} {_UNITS[power]}"


_UNITS = ("B", "kB", "MB", "GB", "TB")
GO_ON = "run it again: it goes on where it stopped"


def of_the_disk(fault: OSError, doing: str) -> ImagenError:
    """Turn the operating system's error into ours, saying what we were `doing`."""
    found = from_os(fault, doing)
    if isinstance(found, FileFault):
        found.hint = f"free some space and {GO_ON}"
    elif fault.errno == errno.EFBIG:
        found.hint = "the file system or a limit (ulimit -f) has no place for a file so large"
    else:
        found.hint = "name a folder that you may read and write with --models-dir"
    return found
