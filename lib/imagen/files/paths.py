"""Slugs, dated names, exclusive reservation and atomic writes. A final name is a finished file."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count
from pathlib import Path
from typing import IO, Any, NamedTuple

from .. import disk, signals
from ..disk import make_folder, sync_folder
from ..errors import OutputTaken, Refused
from ..records.record import is_unicode, parse

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "gif": ".gif", "avif": ".avif"}
_EMPTY_S = 60  # seconds that a reservation may be empty before its writer counts as dead
_MAX_SIDECAR = 2**25  # bytes; a record line has 16 MiB at most
_FEW = 8  # names that are tried one by one before a free one is searched for

Content = bytes | Callable[[IO[bytes]], object]
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
    names = _names(stem, lambda name: _is_in_use(folder, name), every=owner.again)
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
    record = _sidecar_in(sidecar)
    if record.get("render_id") != render_id:
        return False
    file = _file_beside(sidecar, record)
    return (
        not os.path.lexists(file)
        or (died and _is_empty(file))
        or is_intact({**record, "file": str(file)})
    )


def _is_empty(path: Path) -> bool:
    """Whether a file only reserves its name: its writer died where there are no hard links."""
    about = path.lstat()
    return stat.S_ISREG(about.st_mode) and about.st_size == 0


def _file_beside(path: Path, record: Mapping[str, Any]) -> Path:
    """Return the path, in the folder of `path`, of the file that a record names; else `path`."""
    name = Path(str(record.get("file") or path)).name
    return path.with_name(name) if name not in ("", "..") and "\0" not in name else path


def sidecars(folder: Path, stem: str) -> Iterator[dict[str, Any]]:
    """Yield the records in the sidecars of a name and of those numbered after it."""
    for path in sorted(folder.glob(f"{glob.escape(stem)}*.json")):
        record = _sidecar_in(path)
        if isinstance(record.get("file"), str):
            names = {"file": str(_file_beside(path, record)), "sidecar": str(path)}
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


def _sidecar_in(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(disk.read_regular(path, most=_MAX_SIDECAR))
        return content if isinstance(content, dict) else {}
    return {}


def keep_raw(folder: Path, stem: str, data: bytes, suffix: str) -> Path:
    """Write a file that is no image beside where one would be; return its path, the old one's if
    the same bytes stand there already.
    """
    make_folder(folder)
    for name in _names(f"{stem}.raw", lambda name: os.path.lexists(folder / f"{name}{suffix}")):
        path = folder / f"{name}{suffix}"
        try:
            publish(path, data)
        except FileExistsError:
            if not _has_bytes(path, data):
                continue
        sync_folder(folder)
        return path
    raise AssertionError("names never end")


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
    record = _sidecar_in(place.sidecar)
    if record.get("sidecar") != str(place.sidecar):
        raise OutputTaken(f"not a sidecar, so not replaced: {place.sidecar}", hint="another name")
    image = _file_beside(place.image, record)
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
    for one in _names(name, lambda name: os.path.lexists(folder / date / name)):
        with contextlib.suppress(FileExistsError):
            (folder / date / one).mkdir()
            sync_folder(folder / date)
            return folder / date / one
    raise AssertionError("names never end")


def _names(stem: str, in_use: Callable[[str], bool], every: bool = False) -> Iterator[str]:
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
    return str(_sidecar_in(Path(sidecar)).get("render_id"))


def _is_in_use(folder: Path, name: str) -> bool:
    return os.path.lexists(folder / f".{name}.reserved") or bool(_taken(folder, name))


def _has_bytes(path: Path, data: bytes) -> bool:
    with contextlib.suppress(OSError):
        return disk.read_regular(path, most=len(data)) == data
    return False


def _taken(folder: Path, stem: str) -> list[str]:
    """Give the suffixes under which something stands there."""
    ends = [".json", *SUFFIXES.values()]
    return [end for end in ends if os.path.lexists(folder / f"{stem}{end}")]


def _claimed(reservation: Path, render_id: str, take_over: TakeOver) -> str | None:
    """Reserve a name: "new", or "dead" when a dead render held it (an earlier try of ours too)."""
    try:
        publish(reservation, render_id.encode(), durable=False)
        return "new"
    except FileExistsError:
        owner = _owner(reservation)
    if owner is None:
        return None
    if owner != render_id:
        with take_over(owner) as ours:
            if not ours or _owner(reservation) != owner:
                return None
            publish(reservation, render_id.encode(), replace=True, durable=False)
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


def store(place: Place, record: Mapping[str, Any], image: Content) -> dict[str, Any]:
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
    with signals.held(), _temporary(place.image, image) as whole:
        if place.replace:
            _exchange(place, made, whole, sidecar.encode())
        else:
            publish(place.sidecar, sidecar.encode(), replace=place.orphaned)
            _move_or_withdraw(place, whole)
        sync_folder(place.folder)
    return made


def _exchange(place: Place, made: Mapping[str, Any], whole: Path, sidecar: bytes) -> None:
    """Replace an image and its sidecar so that no two stand together that do not belong together.

    Of another image the sidecar goes first, then comes the image, then the new sidecar. This very
    image's own sidecar stays where a second run looks for it: its image goes first. Where the bytes
    are the same, only the sidecar changes.
    """
    before = _sidecar_in(place.sidecar)
    old = _file_beside(place.image, before)
    if made.get("sha256") and old == place.image and is_intact({**made, "file": str(old)}):
        publish(place.sidecar, sidecar, replace=True)
    elif before and before.get("render_id") == made.get("render_id"):
        _unlink_durably(old)
        publish(place.sidecar, sidecar, replace=True)
        _move_or_withdraw(place, whole)
    else:
        _unlink_durably(place.sidecar)
        _move(whole, place.image, replace=True)
        sync_folder(place.folder)
        publish(place.sidecar, sidecar, replace=True)


def _move_or_withdraw(place: Place, whole: Path) -> None:
    """Give a new image its name; its sidecar goes again when that fails."""
    try:
        _move(whole, place.image, replace=False)
    except BaseException:
        place.sidecar.unlink(missing_ok=True)
        raise


def _unlink_durably(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync_folder(path.parent)


def publish(
    path: Path,
    data: Content,
    *,
    replace: bool = False,
    durable: bool = True,
) -> None:
    """Write a file that is whole or not there; FileExistsError unless `replace`.

    The bytes, given or written by a function, stand in a dot-file without the final suffix first;
    `durable` syncs them to disk.
    """
    with signals.held(), _temporary(path, data, durable) as whole:
        _move(whole, path, replace)


def promote(whole: Path, path: Path) -> None:
    """Give a finished file its final name, and make that last; FileExistsError when it is taken."""
    with whole.open("rb") as stream:
        os.fsync(stream.fileno())
    with signals.held():
        _move_new(whole, path)
        sync_folder(path.parent)
        whole.unlink(missing_ok=True)


@contextlib.contextmanager
def _temporary(path: Path, data: Content, durable: bool = True) -> Iterator[Path]:
    """Write the bytes beside their final place; what is not moved there by the end is gone.

    Where the file system can, they have no name until then: a process that is killed leaves none.
    """
    with _nameless(path.parent) as stream:
        if stream is not None:
            _fill(stream, data, durable)
            yield Path(f"/proc/self/fd/{stream.fileno()}")
            return
    whole = _dot_file(path)
    try:
        with whole.open("xb") as stream:
            _fill(stream, data, durable)
        yield whole
    finally:
        whole.unlink(missing_ok=True)


@contextlib.contextmanager
def _nameless(folder: Path) -> Iterator[IO[bytes] | None]:
    """Open a file without a name (Linux, most of its file systems); None where there is none."""
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except (AttributeError, OSError):
        yield None
        return
    with open(descriptor, "w+b") as stream:  # noqa: PTH123 - a descriptor
        yield stream if os.path.exists(f"/proc/self/fd/{descriptor}") else None  # noqa: PTH110


def _fill(stream: IO[bytes], data: Content, durable: bool) -> None:
    if callable(data):
        data(stream)
    else:
        stream.write(data)
    stream.flush()
    if durable:
        os.fsync(stream.fileno())


def _dot_file(path: Path) -> Path:
    return path.with_name(f".{path.stem.lstrip('.')[:100]}.{os.urandom(6).hex()}.tmp")


def _move(whole: Path, path: Path, replace: bool) -> None:
    if not replace:
        _move_new(whole, path)
    elif whole.parent == path.parent:
        whole.replace(path)
    else:
        named = _named(whole, path)  # only a file that has a name can take another's place
        try:
            named.replace(path)
        finally:
            named.unlink(missing_ok=True)


def _move_new(temporary: Path, path: Path) -> None:
    """Give the file its final name unless that exists; a link is the one call that does both."""
    try:
        _link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: an empty file reserves the name
        named = temporary if temporary.parent == path.parent else _named(temporary, path)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(path, flags, 0o666))
            named.replace(path)
        finally:
            if named != temporary:
                named.unlink(missing_ok=True)


def _named(whole: Path, path: Path) -> Path:
    """Give a file without a name a dot-file's beside `path`: a link, or a copy that is synced."""
    named = _dot_file(path)
    try:
        _link(whole, named)
    except OSError:
        with whole.open("rb") as source, named.open("xb") as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
    return named


def _link(whole: Path, path: Path) -> None:
    """Link; given a folder, which an absolute path makes no use of, Python follows /proc's link."""
    os.link(whole, path, src_dir_fd=-1)


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
    return not os.path.lexists(_file_beside(image, record))
