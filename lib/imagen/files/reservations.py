"""Names of images: reserved by one render for image and sidecar together, and given back."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

from .. import disk
from ..disk import make_folder, sync_folder
from ..errors import OutputTaken, Refused
from ..records.record import is_unicode
from . import atomic
from .sidecars import SUFFIXES, file_beside, is_intact, sidecar_in

_EMPTY_S = 60  # seconds that a reservation may be empty before its writer counts as dead
_FEW = 8  # names that are tried one by one before a free one is searched for
TakeOver = Callable[[str], contextlib.AbstractContextManager[bool]]


@dataclass(slots=True)
class Place:
    """Where an image and its sidecar go.

    `asked_for` when a person gave the name, `replace` when files of that name may be replaced,
    `orphaned` when a sidecar stands there whose writer died before its image did.
    """

    folder: Path
    stem: str
    suffix: str = ".png"
    replace: bool = False
    asked_for: bool = False
    orphaned: bool = False
    reservation: Path | None = None

    @property
    def image(self) -> Path:
        """The image's final path."""
        return self.folder / f"{self.stem}{self.suffix}"

    @property
    def sidecar(self) -> Path:
        """The sidecar's final path."""
        return self.folder / f"{self.stem}.json"

    def release(self) -> None:
        """Give the reservation back."""
        if self.reservation:
            self.reservation.unlink(missing_ok=True)
            self.reservation = None


class Owner(NamedTuple):
    """Whose a name is: the render that holds the reservation, and the image that is to stand there.

    The image's own render_id is its render's, but for the second and later images of one submit.
    `again` when an earlier run may have written it.
    """

    render_id: str
    image: str
    again: bool = False


def reserve(
    folder: Path, stem: str, owner: Owner, take_over: TakeOver, held: Collection[str] = ()
) -> Place:
    """Reserve `stem` in `folder` for image and sidecar together; a taken one gets -2, -3, ….

    `take_over(render_id)` locks the owner of a reservation and tells whether that worked: then the
    owner is dead, and the name is ours. Files that are this very image's, of an earlier try, are
    in nobody's way. `held` are stems that this render has reserved already.
    """
    _check_name(folder)
    make_folder(folder)
    names = numbered_names(stem, lambda name: _is_in_use(folder, name), every=owner.again)
    for name in (name for name in names if name not in held):
        reservation = folder / f".{name}.reserved"
        if not os.path.lexists(reservation):
            in_use = _is_anothers if owner.again else _is_taken
            if in_use(folder, name, owner.image):
                continue
        claim = _claimed(reservation, owner.render_id, take_over)
        if claim is not None:
            ends = _taken(folder, name)
            before = bool(ends) and (claim == "dead" or owner.again)
            ours = before and may_replace(
                folder / f"{name}.json", owner.image, died=claim == "dead"
            )
            orphaned = claim == "dead" and ends == [".json"]
            if not ends or orphaned or ours:
                return Place(folder, name, replace=ours, orphaned=orphaned, reservation=reservation)
            reservation.unlink(missing_ok=True)
    raise AssertionError("names never end")


def release(folder: Path, stem: str, render_id: str) -> None:
    """Remove the reservations of this render, of a name and those that are numbered after it."""
    for reservation in folder.glob(f".{glob.escape(stem)}*.reserved"):
        with contextlib.suppress(OSError):
            if _owner(reservation) == render_id:
                _remove_temporaries(reservation)
                reservation.unlink(missing_ok=True)


def may_replace(sidecar: Path, render_id: str, died: bool = False) -> bool:
    """Whether a sidecar is of this very image, whose file is as it was written, or not there.

    Where its writer `died` an empty file counts as not there.
    """
    record = sidecar_in(sidecar)
    if record.get("render_id") != render_id:
        return False
    file = file_beside(sidecar, record)
    return (
        not os.path.lexists(file)
        or (died and _is_empty(file))
        or is_intact({**record, "file": str(file)})
    )


def _is_empty(path: Path) -> bool:
    """Whether a file only reserves its name: its writer died where there are no hard links."""
    about = path.lstat()
    return stat.S_ISREG(about.st_mode) and about.st_size == 0


def check_exactly(path: Path, force: bool) -> Place:
    """Give the place of the very name that was asked for; OutputTaken when it is not free."""
    place = Place(path.parent, path.stem, path.suffix, replace=force, asked_for=True)
    if path.suffix == ".json" or not path.stem.strip("."):
        raise Refused(f"no name for an image: {path.name!r}", hint="like cat.png")
    _check_name(path)
    for final in (place.image, place.sidecar):
        check_free(final, force)
    if place.sidecar.exists():
        _check_sidecar(place)
    return place


def _check_name(path: Path) -> None:
    """Raise Refused for a path that no record can hold."""
    if not is_unicode(str(path.absolute())):
        says = f"no record can name a path that is not UTF-8: {path.absolute()}"
        raise Refused(says, code="file", hint="choose another place with --out-dir or --output")


def _check_sidecar(place: Place) -> None:
    """Raise OutputTaken when the sidecar's name holds another file, or another image's sidecar."""
    record = sidecar_in(place.sidecar)
    if record.get("sidecar") != str(place.sidecar):
        raise OutputTaken(f"not a sidecar, so not replaced: {place.sidecar}", hint="another name")
    image = file_beside(place.image, record)
    if image != place.image and os.path.lexists(image):
        says = f"{place.sidecar} is the sidecar of {image.name}, so not replaced"
        raise OutputTaken(says, hint="another name")


def check_free(path: Path, force: bool) -> None:
    """Raise OutputTaken unless a file may be written there; `force` lets it replace a file."""
    if not path.parent.is_dir():
        raise OutputTaken(f"no folder {path.parent}", hint="make it first")
    if path.exists() and not path.is_file():
        raise OutputTaken(f"the output file is no file: {path}", hint="name a file in a folder")
    if not force and os.path.lexists(path):
        raise OutputTaken(f"the output file exists: {path}")


def reserve_exactly(path: Path, render_id: str, force: bool, take_over: TakeOver) -> Place:
    """Reserve the very name that was asked for (`--output`); OutputTaken when it is not free."""
    place = check_exactly(path, force)
    reservation = path.parent / f".{path.stem}.reserved"
    if _claimed(reservation, render_id, take_over) is None:
        if os.path.lexists(reservation) and not reservation.is_file():
            raise OutputTaken(f"not a reservation of imagen: {reservation}", hint="remove it")
        raise OutputTaken(f"another render is writing {place.image}", hint="give another name")
    place.reservation = reservation
    return place


def new_folder(folder: Path, date: str, name: str) -> Path:
    """Make a folder of its own under the date's; a taken name gets -2, -3, …."""
    _check_name(folder)
    make_folder(folder / date)
    for one in numbered_names(name, lambda name: os.path.lexists(folder / date / name)):
        with contextlib.suppress(FileExistsError):
            (folder / date / one).mkdir()
            sync_folder(folder / date)
            return folder / date / one
    raise AssertionError("names never end")


def numbered_names(stem: str, in_use: Callable[[str], bool], every: bool = False) -> Iterator[str]:
    """Yield a name and those numbered after it: the first few, then from a free one on.

    However many are in use, that one takes some twenty looks. `every` leaves out none of them.
    """
    numbers: Iterator[int] = count(1)
    if not every:
        numbers = chain(range(1, _FEW + 1), _numbers_from_free(stem, in_use))
    for number in numbers:
        yield _numbered(stem, number)


def _numbers_from_free(stem: str, in_use: Callable[[str], bool]) -> Iterator[int]:
    """Yield the numbers from a free one on: doubled until one is free, then halved towards it."""
    last, free = _FEW, 2 * _FEW
    while in_use(_numbered(stem, free)):
        last, free = free, 2 * free
    while free - last > 1:
        middle = (last + free) // 2
        last, free = (middle, free) if in_use(_numbered(stem, middle)) else (last, middle)
    yield from count(free)


def _numbered(stem: str, number: int) -> str:
    return stem if number == 1 else f"{stem}-{number}"


def _is_taken(folder: Path, name: str, _image: str) -> bool:
    return bool(_taken(folder, name))


def _is_anothers(folder: Path, name: str, image: str) -> bool:
    """Whether the sidecar of a name is another image's. Of many equal names each is read once."""
    sidecar = f"{folder}/{name}.json"
    try:
        about = os.lstat(sidecar)
    except OSError:
        return False
    return _render_id_in(sidecar, about.st_ino, about.st_mtime_ns, about.st_size) != image


@lru_cache(maxsize=2**14)
def _render_id_in(sidecar: str, *_version: int) -> str:
    """Return the render_id that a sidecar names, for as long as the file is the same."""
    return str(sidecar_in(Path(sidecar)).get("render_id"))


def _is_in_use(folder: Path, name: str) -> bool:
    return os.path.lexists(folder / f".{name}.reserved") or bool(_taken(folder, name))


def _taken(folder: Path, stem: str) -> list[str]:
    """Give the suffixes under which something stands there."""
    ends = [".json", *SUFFIXES.values()]
    return [end for end in ends if os.path.lexists(folder / f"{stem}{end}")]


def _claimed(reservation: Path, render_id: str, take_over: TakeOver) -> str | None:
    """Reserve a name: "new", or "dead" when a dead render held it (an earlier try of ours too)."""
    try:
        atomic.publish(reservation, render_id.encode(), durable=False)
        return "new"
    except FileExistsError:
        owner = _owner(reservation)
    if owner is None:
        return None
    if owner != render_id:
        with take_over(owner) as ours:
            if not ours or _owner(reservation) != owner:
                return None
            atomic.publish(reservation, render_id.encode(), replace=True, durable=False)
    _remove_temporaries(reservation)
    return "dead"


def _remove_temporaries(reservation: Path) -> None:
    for temporary in reservation.parent.glob(f".{glob.escape(reservation.stem[1:])}.*.tmp"):
        temporary.unlink(missing_ok=True)


def _owner(reservation: Path) -> str | None:
    """Read who holds a reservation; None when it is gone, being written, or not one of ours."""
    try:
        with disk.open_regular(reservation, follow=False) as stream:
            text = stream.read(200).decode(errors="replace")
            if not text and abs(time.time() - os.fstat(stream.fileno()).st_mtime) < _EMPTY_S:
                return None  # without hard links it is empty for a moment
            return text
    except OSError as fault:
        if fault.errno in (errno.ENOENT, errno.EACCES, errno.ELOOP, errno.EINVAL, errno.EFBIG):
            return None
        raise
