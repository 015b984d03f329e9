"""One file from its source to its final name: resumed, checked, whole or not there."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from .. import disk, http, retry
from ..config.settings import hide_password
from ..errors import (
    AnswerLost,
    FileFault,
    ImagenError,
    Refused,
    Rejected,
    ServerFault,
    Throttled,
    Unreachable,
)
from ..files import atomic, locks
from ..workflows.template import Model
from . import files as model_files
from .files import Tell, WrongFile
from .source import Hub, Offer, offer

_GAIN = 2**20  # bytes that count as one: from then on the patience begins anew
Note = Callable[[str], None]
_FAULTS = (Unreachable, AnswerLost, ServerFault, Throttled)


class Sought(NamedTuple):
    """A file at one of its sources."""

    url: str
    model: Model


class Part:
    """The bytes of a file that is not whole yet, and beside them what they are of.

    What is said of them is changed only while there are none: so it never is of other bytes.
    """

    def __init__(self, path: Path) -> None:
        """Open what an earlier run left, or a new one."""
        self.path = model_files.part_of(path)
        self._about = self.path.with_name(f"{self.path.name}.json")
        self._file = io.FileIO(self.path, "a+b", opener=_no_link)
        self.size = self._file.seek(0, os.SEEK_END)
        self._sha = hashlib.sha256()
        self.about = self._read_about()

    def _read_about(self) -> dict[str, Any]:
        with suppress(OSError, ValueError, RecursionError):
            found = json.loads(disk.read_regular(self._about, follow=False, most=2**20))
            return found if isinstance(found, dict) else {}
        return {}

    def hash(self, tell: Tell, total: int | None) -> None:
        """Read what is there already."""
        done = self._file.seek(0)
        while data := self._file.read(2**20):
            self._sha.update(data)
            done += len(data)
            tell(done, total)

    def begin(self, about: dict[str, Any]) -> None:
        """Say what the bytes to come are of; what was there is gone before."""
        self._file.truncate(0)
        os.fsync(self._file.fileno())
        self.size, self._sha = 0, hashlib.sha256()
        atomic.publish(self._about, json.dumps(about).encode(), replace=True)
        self.about = about

    def add(self, data: bytes) -> None:
        """Write bytes; what is written and what is counted are the same, also when a disk fills."""
        view = memoryview(data)
        while view:
            done = self._file.write(view)
            self._sha.update(view[:done])
            self.size += done
            view = view[done:]

    def sha256(self) -> str:
        """Give the sha256 of all that is there."""
        return self._sha.hexdigest()

    def remove(self) -> None:
        """Take it away."""
        self.path.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)

    def remove_if_empty(self) -> None:
        """Take it away when nothing is there; the file tells, also when a signal came between."""
        if not os.fstat(self._file.fileno()).st_size:
            self.remove()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def fetch(model: Model, path: Path, hub: Hub, tell: Tell, note: Note) -> str | None:
    """Bring a file to its path; give the address it came from, None when it is there already.

    Two at once do it once. WrongFile when its bytes are not the known ones, Refused when nobody
    knows a source, and a transient fault when the patience is over: then the part stays.
    """
    check_source(model, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path, note):
            return _fetched(model, path, hub, tell, note)
    except OSError as fault:
        raise model_files.of_the_disk(fault, f"cannot write {path}") from None


def check_source(model: Model, path: Path) -> None:
    """Raise Refused when nobody knows where a file comes from."""
    if not model.sources:
        says = f"no source is known for {model.file}"
        raise Refused(says, code="no_source", hint=f"put it at {path}")


@contextmanager
def _alone(path: Path, note: Note) -> Iterator[None]:
    """Hold the file's lock; who waits for it says so."""
    lock = path.with_name(f".{path.name}.lock")
    with locks.lock_file(lock, wait=False) as ours:
        if ours:
            yield
            return
    note(f"{path.name}: another process fetches it; waiting")
    with locks.lock_file(lock):
        yield


def _fetched(model: Model, path: Path, hub: Hub, tell: Tell, note: Note) -> str | None:
    part = Part(path)
    try:
        if os.path.lexists(path):  # by another process meanwhile, or by us before we were killed
            there = model_files.standing(path, model.size)
            if there.state != model_files.PRESENT:
                raise model_files.in_the_way(there, model)
            part.remove()
            return None
        part.hash(tell, part.about.get("size"))
        for source in model.sources:
            try:
                _fill_right(part, Sought(hub.address(source), model), hub, tell, note)
                break
            except ImagenError as fault:
                if isinstance(fault, FileFault) or source == model.sources[-1]:
                    raise
                note(f"{model.file}: {fault.message}; trying the next source")
        atomic.promote(part.path, path)
        part.remove()
        return hub.address(source)
    finally:
        part.remove_if_empty()
        part.close()


def _fill_right(part: Part, sought: Sought, hub: Hub, tell: Tell, note: Note) -> None:
    """Fill a part with all that the source has; WrongFile when that is not what is known."""
    resumed = part.size > 0  # and then a crash of the machine may have spoiled what is there
    while True:
        _fill(part, sought, hub, tell, note)
        found, known = part.sha256(), sought.model.sha256
        if known in (None, found):
            return
        part.begin({})
        if not resumed:
            who = hide_password(sought.url)
            says = f"what {who} sends has the sha256 {found}, not {known}: thrown away"
            raise WrongFile(says, hint=_OTHER)
        resumed = False


_OTHER = "the source holds another file now: get the known one by hand"


def _fill(part: Part, sought: Sought, hub: Hub, tell: Tell, note: Note) -> None:
    """Ask until all is there; transient faults end it only when nothing has come for a while."""
    most, said = part.size, False

    def once(left: float) -> bool:
        nonlocal most, said
        try:
            _ask(part, sought, hub, tell)
        except _FAULTS as fault:
            gained = part.size - most >= _GAIN
            if left > 1 and not (said or gained):
                note(f"{sought.model.file}: {fault.message}; trying again")
            said = not gained
            if not gained:
                raise
            most = part.size
            return False
        return True

    try:
        while not _is_whole(part, sought) and not retry.in_time(once, hub.patience_s(sought.url)):
            pass
        hub.note(sought.url, is_down=False)
    except _FAULTS as fault:
        hub.note(sought.url, is_down=True)
        fault.hint = model_files.GO_ON
        raise
    except Rejected as fault:
        fault.hint = fault.hint or f"its source is {hide_password(sought.url)}"
        raise


def _is_whole(part: Part, sought: Sought) -> bool:
    """Whether all bytes are there, of this source or to be compared with the known sha256."""
    is_its = part.about.get("source") == sought.url or sought.model.sha256
    return bool(is_its) and part.size > 0 and part.size == _total(part, sought.model)


def _total(part: Part, model: Model) -> int | None:
    total = model.size or part.about.get("size")
    return total if type(total) is int else None


def _ask(part: Part, sought: Sought, hub: Hub, tell: Tell) -> None:
    """Ask for what is missing, or for all where that cannot be told apart from another file."""
    for _ in range(2):
        with ExitStack() as stack:
            try:
                flow = hub.open(stack, sought.url, _asked(part, sought))
            except Rejected as fault:
                if fault.status != 416 or not part.size:
                    raise
                part.begin({})
                continue
            found = offer(flow)
            _check(found, sought.model)
            if found.start == 0:
                part.begin({"source": sought.url, "tag": found.tag, "size": found.total})
            elif not goes_on(part, found, sought):
                part.begin({})
                continue
            _pour(flow, part, found.total or _total(part, sought.model), tell)
            return
    raise Rejected("the source answers with another part than it was asked for")


def _asked(part: Part, sought: Sought) -> dict[str, str]:
    """Give the headers that ask for the rest; none when it must begin anew."""
    rest = {"Range": f"bytes={part.size}-"}
    tag = part.about.get("tag")
    if not part.size:
        return {}
    if part.about.get("source") == sought.url and isinstance(tag, str):
        return {**rest, "If-Range": tag}
    return rest if sought.model.sha256 else {}


def goes_on(part: Part, found: Offer, sought: Sought) -> bool:
    """Whether an offer is the rest of the very file that a part is of.

    The source's tag tells; another source, or one without tags, is believed where the sha256 of
    the whole will be compared.
    """
    size, tag = part.about.get("size"), part.about.get("tag")
    if found.start != part.size or (size and found.total and size != found.total):
        return False
    if part.about.get("source") == sought.url and tag and found.tag:
        return bool(tag == found.tag)
    return sought.model.sha256 is not None


def _check(found: Offer, model: Model) -> None:
    if model.size and found.total and model.size != found.total:
        says = f"the source has a file of {found.total} bytes, not {model.size}"
        raise WrongFile(says, hint=_OTHER)
    if not (found.total or model.size or model.sha256):
        raise Rejected("the source does not say how large the file is")


def _pour(flow: http.Flow, part: Part, total: int | None, tell: Tell) -> None:
    if total:
        model_files.check_room([(part.path, total - part.size)])
    for data in flow.parts:
        if total and part.size + len(data) > total:
            raise WrongFile(f"the source sends more than {total} bytes", hint=_OTHER)
        part.add(data)
        tell(part.size, total)
    if total and part.size < total:
        raise AnswerLost(f"the source sent {part.size} of {total} bytes")
