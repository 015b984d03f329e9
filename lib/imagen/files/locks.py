"""Exclusive locks by name: the kernel frees them at our death, however we die."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


class NoLocks(Exception):
    """There is no place for locks; says why."""


@contextmanager
def lock(folder: Path, name: str, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of that name; gives False only when not waiting and another holds it.

    NoLocks when there is no place for it.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            path = folder / hashlib.sha256(name.encode()).hexdigest()
            held = stack.enter_context(lock_file(path, wait))
        except OSError as fault:
            raise NoLocks(f"{fault.strerror}: {fault.filename or folder}") from None
        yield held


@contextmanager
def lock_file(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock as a file of its own, which is not there while nobody does; else as `lock`.

    OSError when there is no place for it.
    """
    descriptor = _locked(path, wait)
    try:
        if descriptor is not None:
            _sign(descriptor)
        yield descriptor is not None
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)  # only ever removed while held
            os.close(descriptor)


def _sign(descriptor: int) -> None:
    """Write who we are, for people; a disk that is full needs no name."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)


def holder(folder: Path, name: str) -> int | None:
    """Return the id of the process that holds the lock of that name; None where that is not told.

    What a dead process or an older release left tells nothing.
    """
    path = folder / hashlib.sha256(name.encode()).hexdigest()
    try:
        pid = int(path.read_bytes()[:20])
        if pid > 0:
            os.kill(pid, 0)
    except PermissionError:
        return pid
    except (OSError, ValueError, OverflowError):
        return None
    return pid if pid > 0 else None


def _locked(path: Path, wait: bool) -> int | None:
    """Lock the file of that name: after locking, the name must still be this file's."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
