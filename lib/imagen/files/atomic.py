"""Write files that are whole or not there. A final name is a finished file."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from .. import signals
from ..disk import sync_folder

Content = bytes | Callable[[IO[bytes]], object]


def unlink_durably(path: Path) -> None:
    """Remove a file, if it is there, so that it stays away through a power loss."""
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
    with signals.held(), temporary(path, data, durable) as whole:
        move(whole, path, replace)


def promote(whole: Path, path: Path) -> None:
    """Give a finished file its final name, and make that last; FileExistsError when it is taken."""
    with whole.open("rb") as stream:
        os.fsync(stream.fileno())
    with signals.held():
        _move_new(whole, path)
        sync_folder(path.parent)
        whole.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary(path: Path, data: Content, durable: bool = True) -> Iterator[Path]:
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


def move(whole: Path, path: Path, replace: bool) -> None:
    """Give a file that is whole its final name; FileExistsError unless `replace`."""
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
