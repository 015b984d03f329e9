"""Open files that somebody else may have put there, and make names in folders durable."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

MAX_BYTES = 2**32  # no image, sidecar or sheet is larger


def open_regular(path: str | Path, *, follow: bool = True) -> BufferedReader:
    """Open a regular file for reading; OSError for a pipe, a device or a folder.

    It never waits for another process. Without `follow` a symbolic link is refused too: for names
    that only imagen writes. A file that the kernel makes up (/proc/kmsg) is refused by its size:
    its bytes may never end, and reading them may take them away from others.
    """
    _check_regular(Path(path).stat(follow_symlinks=follow), path)  # a device may act on an open
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    try:
        _check_regular(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


_IS_OPEN = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


def open_named(path: str | Path) -> BufferedReader:
    """Open a file that a person named, for reading; OSError for a pipe, a device or a folder.

    What a shell opened for us is read as it is: /dev/stdin, <(command), and /dev/null.
    """
    if str(path) == os.devnull or str(path).startswith(_IS_OPEN):
        return Path(path).open("rb")
    return open_regular(path)


def _check_regular(about: os.stat_result, path: str | Path) -> None:
    if not stat.S_ISREG(about.st_mode) or (about.st_size == 0 and _is_made_up(path)):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    if about.st_size > MAX_BYTES:
        raise OSError(errno.EFBIG, "the file is too large", str(path))


def _is_made_up(path: str | Path) -> bool:
    """Whether a file of size 0 stands on the kernel's own file systems."""
    return os.path.realpath(path).startswith(("/proc/", "/sys/"))


def read_regular(path: str | Path, *, follow: bool = True, most: int = MAX_BYTES) -> bytes:
    """Read a regular file; OSError also when it has more than `most` bytes."""
    with open_regular(path, follow=follow) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, "the file is too large", str(path))
    return data


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it, each lasting through a power loss, unless it is there.

    `mode` is the innermost folder's.
    """
    missing = []
    above = folder
    while not above.is_dir() and above != above.parent:
        missing.append(above)
        above = above.parent
    for path in reversed(missing):
        path.mkdir(mode=mode if path == folder else 0o777, exist_ok=True)
        with contextlib.suppress(PermissionError):  # a folder that may be written and not listed
            sync_folder(path.parent)
    if not missing:
        folder.mkdir(mode=mode, exist_ok=True)  # it may be gone again, or be no folder


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
