"""Read, each, write: the one loop over JSON lines that every filter shares."""

from __future__ import annotations

import io
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from itertools import chain
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from .. import signals
from ..errors import (
    DONE,
    NO_UTF_8,
    TEMPORARY,
    BadLine,
    Fault,
    ImagenError,
    Interrupted,
    OutputFault,
    ReaderGone,
    as_unicode,
    from_os,
    worse,
)
from ..records import record as records
from ..records.record import Record
from .reader import Reader

if TYPE_CHECKING:
    from ..records.documents import Document

Step = Callable[[Record], Iterable[Record] | None]
Idle = Callable[[], float | None]
_ONE_LINE = "IMAGEN_ONE_LINE"
DELIVERED_BY = "IMAGEN_DELIVERED_BY"
_READER = "IMAGEN_READER"


class Line(NamedTuple):
    """One line of input: its bytes, its record, or why it has none."""

    where: str
    raw: bytes = b""
    record: Record | None = None
    fault: ImagenError | None = None


def read(
    stream: IO[bytes],
    plain: str | None = None,
    idle: Idle = lambda: None,
    plain_beside_json: bool = False,
) -> Iterator[Line]:
    """Read JSON lines as they arrive; blank ones are skipped, bad ones come with their fault.

    When the first line is the beginning of an indented object or of a list, each object is a line.
    `plain` is the hint for input that looks like no JSON at all, or also for such a line beside
    JSON lines. `idle` is called when the next line has to be waited for, and again after as many
    seconds as it gives.
    """
    is_first = True
    lines = _raw_lines(_interruptible(stream, idle))
    for number, raw in lines:
        line = _line(number, raw)
        if line is None:
            continue
        looks_like_json = line.record is not None or _looks_like_json(line.raw)
        if is_first and line.fault and looks_like_json:
            yield from _read_documents(chain([(number, line.raw)], lines))
            return
        if looks_like_json and not plain_beside_json:
            plain = None
        if line.fault:
            line.fault.hint = line.fault.hint or _hint(line.raw, plain)
        is_first = False
        yield line


def _read_documents(lines: Iterable[tuple[int, bytes]]) -> Iterator[Line]:
    """Read objects that span lines."""
    from ..records.documents import Documents

    documents = Documents()
    for number, raw in lines:
        yield from map(_of_document, documents.feed(number, records.without_mark(raw)))
    yield from map(_of_document, documents.end())


def _raw_lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines with their numbers; one that is too long is cut after MAX_LINE + 1 bytes."""
    number = 0
    while raw := stream.readline(records.MAX_LINE + 1):
        number += 1
        rest = raw if len(raw) > records.MAX_LINE else b""
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(records.MAX_LINE)
        yield number, raw


def _line(number: int, raw: bytes) -> Line | None:
    """Return the line as read; None for a blank one."""
    where = f"line {number}"
    if len(raw) > records.MAX_LINE:
        limit = records.MAX_LINE // 2**20
        return Line(where, fault=BadLine(f"longer than {limit} MiB"))
    try:
        return None if raw.isspace() else Line(where, raw, records.parse(raw))
    except BadLine as fault:
        if records.is_blank(raw):
            return None
        if (unmarked := records.without_mark(raw)) != raw:
            return _line(number, unmarked)
        return Line(where, raw, fault=fault)


def _of_document(document: Document) -> Line:
    return Line(f"line {document.number}", document.raw, document.record, document.fault)


def _looks_like_json(raw: bytes) -> bool:
    """Whether text begins like JSON, in UTF-8 or UTF-16: nobody means it as a prompt."""
    return raw.lstrip(b" \t\r\n\0\xff\xfe").startswith((b"{", b"["))


def _hint(raw: bytes, plain: str | None) -> str | None:
    """Return what to do about a line that is no JSON object."""
    from ..records.documents import HINT, HINT_OF_A_LIST, is_unfinished

    if not _looks_like_json(raw):
        return plain
    if raw.lstrip().startswith(b"["):
        return HINT_OF_A_LIST
    return HINT if is_unfinished(raw) else None


def read_prompts(stream: IO[bytes]) -> Iterator[Line]:
    """Read plain text, one prompt a line."""
    stream = _interruptible(stream)
    for number, raw in enumerate(iter(partial(stream.readline, records.MAX_LINE), b""), 1):
        if not records.is_blank(raw):
            text = records.without_mark(raw).decode(errors="surrogateescape").rstrip("\r\n")
            yield line_of(f"line {number}", text)


class _Interruptible(io.RawIOBase):
    """A descriptor whose reads never miss a signal."""

    def __init__(self, descriptor: int, idle: Idle) -> None:
        self._descriptor = descriptor
        self._idle = idle
        ends = sys.stdout is not None and _ONE_LINE in os.environ
        self._writes_to = sys.stdout.fileno() if ends else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        seconds = None if signals.is_readable(self._descriptor) else self._idle()
        try:
            while not signals.wait_readable(self._descriptor, seconds, self._writes_to):
                seconds = self._idle()
        except BrokenPipeError:
            raise ReaderGone from None
        return os.readv(self._descriptor, [buffer])


def _interruptible(stream: IO[bytes], idle: Idle = lambda: None) -> IO[bytes]:
    try:
        return io.BufferedReader(_Interruptible(stream.fileno(), idle), 2**16)
    except OSError:  # of a test: no descriptor
        return stream


def line_of(where: str, prompt: str) -> Line:
    """Give a prompt as the line it stands for; bytes that were no UTF-8 make it a bad one."""
    if records.is_unicode(prompt):
        return Line(where, record={"prompt": prompt})
    return Line(where, fault=BadLine("the prompt is not UTF-8"))


def line_of_file(name: str, record: Record) -> Line:
    """Return the line of a file that an argument names; a bad one when no record can hold it."""
    if records.is_unicode(str(record.get("file", ""))):
        return Line(name, record=record)
    return Line(as_unicode(name), fault=BadLine(NO_UTF_8))


class Report:
    """What a tool says to people: on stderr, one line at a time, progress on a terminal only."""

    def __init__(self, tool: str, quiet: bool = False, verbose: bool = False) -> None:
        """Take the tool's name, which starts every line."""
        self.tool = tool
        self.quiet = quiet
        self.verbose = verbose
        self.shows = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._shown = ""
        self._writes = threading.RLock()  # progress comes from a thread of its own too

    def say(self, text: str) -> None:
        """Print one line for people; control characters of hostile text are shown, not obeyed."""
        line = f"{self.tool}: {visible(text)}\n"
        with self._writes:
            self.clear()
            if sys.stderr is None:
                return
            try:
                sys.stderr.buffer.write(line.encode(errors="backslashreplace"))
                sys.stderr.flush()
            except OSError:  # people cannot be told, but the records still can be made
                _drop(sys.stderr)

    def note(self, text: str) -> None:
        """Print one line unless told to be quiet."""
        if not self.quiet:
            self.say(text)

    def detail(self, text: str) -> None:
        """Print one line when told to be verbose."""
        if self.verbose:
            self.say(text)

    def fault(self, where: str, fault: ImagenError, hint: str | None = None) -> None:
        """Print what failed, on which record, and one thing to do: the fault's hint or this."""
        line = f"{fault.message} (hint: {hint})" if hint else fault.as_line()
        self.say(f"{where}: {line}" if where else line)

    def progress(self, elapsed: float, text: str) -> None:
        """Show what a wait of more than a second waits for, over the last such line."""
        if not self.shows or elapsed < 1:
            return
        width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        start, end = ("", "") if os.environ.get("NO_COLOR") else ("\x1b[2m", "\x1b[0m")
        with self._writes:
            self._shown = visible(f"{elapsed:.0f} s  {text}")[: max(width - 1, 10)]
            sys.stderr.write(f"\r{start}{self._shown}{end}\x1b[K")
            sys.stderr.flush()

    def clear(self) -> None:
        """Take the progress line away."""
        with self._writes:
            if self._shown:
                self._shown = ""
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()


def visible(text: str) -> str:
    """Give text with its control characters shown, not obeyed by a terminal."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def name_of(record: Record | None, where: str) -> str:
    """Give a record's name for people: its id, a UUID cut short, else where it came from."""
    name = (record or {}).get("id")
    if not isinstance(name, str) or not name:
        return where
    if records.canonical_uuid(name[:36]):  # with what --count and imagen-compare put behind it
        name = name[:8] + "…" + name[36:]
    return name if len(name) <= 40 else name[:39] + "…"


def run_again(fault: ImagenError) -> str | None:
    """Return the hint of a fault; status 75 has one always: run the same command again."""
    if fault.hint or fault.exit_status != TEMPORARY:
        return fault.hint
    return f"run the same command again{soon(fault)}"


def soon(fault: ImagenError) -> str:
    """Return after how long it may be run again, when that is known."""
    seconds = fault.retry_after_s
    return f", in {math.ceil(seconds)} s" if seconds else ""


class Pipe:
    """The way out: records as JSON lines on stdout, each flushed as soon as it is done."""

    def __init__(self, report: Report) -> None:
        """Take the report that names what failed; `status` is the worst so far."""
        self.report = report
        self.status = DONE
        self.to_stderr = False  # when stdout carries an image itself (`--output -`)
        self.goes_on = False  # without a reader too: the work was asked for, not its records
        self.hint = run_again  # what to do about a fault

    def each(self, lines: Iterable[Line], step: Step) -> int:
        """Work on each line and write what comes of it; give the worst exit status.

        `step` gives the records made of one, or None to pass the line on untouched. One bad
        record or line never stops the others.
        """
        try:
            for line in lines:
                for made in self._made(line, step):
                    self._write_if_read(made)
        except ReaderGone:
            drop_stdout()
        return self.status

    def _made(self, line: Line, step: Step) -> Iterator[Record | bytes]:
        """What one line comes to: its bytes, its records, or the record that says why not."""
        try:
            if line.fault or line.record is None:
                raise line.fault or BadLine()
            made = step(line.record)
            if made is None:
                yield _whole(line.raw) if line.raw else line.record
                return
            for one in made:
                if "pending" in one and "error" not in one:
                    self.status = worse(self.status, TEMPORARY)
                yield one
        except ImagenError as fault:
            yield from self._failed(line, fault)
        except OSError as fault:
            yield from self._failed(line, from_os(fault, "a file failed"))
        except Exception as fault:
            if os.environ.get("IMAGEN_TRACEBACK"):
                raise
            yield from self._failed(line, Fault.of(fault))

    def _failed(self, line: Line, fault: ImagenError) -> Iterator[Record]:
        base = fault.record or line.record
        stopped = fault.stopped if isinstance(fault, Interrupted) else None
        with signals.dropped() if stopped else nullcontext():
            self.failed(name_of(base, line.where), fault)
            if base is not None:
                yield {**base, "error": fault.as_record(self.report.tool)}
        if stopped:
            raise stopped

    def failed(self, where: str, fault: ImagenError) -> None:
        """Say what failed and remember the worst."""
        self.status = worse(self.status, fault.exit_status)
        self.report.fault(where, fault, self.hint(fault))

    def _write_if_read(self, made: Record | bytes) -> None:
        try:
            self.write(made)
        except ReaderGone:
            if not self.goes_on:
                raise
            drop_stdout()

    def write(self, made: Record | bytes) -> None:
        """Write one line and flush it; ReaderGone when nobody reads."""
        line = made if isinstance(made, bytes) else self._line(made)
        self.report.clear()
        with signals.held():
            if self.to_stderr:
                sys.stderr.buffer.write(line)
                sys.stderr.flush()
            else:
                write_out(line)

    def _line(self, made: Record) -> bytes:
        try:
            return records.line(made)
        except (ValueError, RecursionError) as fault:  # what cannot be written must not be lost
            broken = Fault.of(fault)
            self.failed(name_of(made, ""), broken)
            kept = {name: made[name] for name in ("id", "file") if isinstance(made.get(name), str)}
            return records.line({**kept, "error": broken.as_record(self.report.tool)})


def write_out(data: bytes) -> None:
    """Write bytes to stdout and flush them; ReaderGone when nobody reads."""
    if sys.stdout is None:
        raise ReaderGone
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as fault:
        drop_stdout()
        raise OutputFault(f"cannot write to stdout: {fault.strerror}") from None


def _whole(raw: bytes) -> bytes:
    return raw if raw.endswith(b"\n") else raw + b"\n"


def check_reader(of_records: Reader | None = None) -> None:
    """Raise ReaderGone when nobody waits for our records any more; asked before each submit."""
    if sys.stdout is None or (of_records or reader()).is_gone():
        raise ReaderGone


def reader() -> Reader:
    """Return who reads our stdout."""
    return Reader(*([] if sys.stdout is None else [sys.stdout.fileno()]))


def render_environment(run: str, descriptor: int) -> dict[str, str]:
    """Return the variables that let imagen-render know of an outer program's run."""
    return {DELIVERED_BY: run, _READER: str(descriptor)}


def outer_program() -> tuple[str | None, Reader]:
    """Return the run of the program that delivers our records, if any, and who reads them.

    imagen-generate and imagen-compare name their run in the environment, and a descriptor that
    hangs up when nobody waits for their own output any more. Both are meant for us alone.
    """
    run = os.environ.pop(DELIVERED_BY, None)
    descriptor = os.environ.pop(_READER, "")
    descriptors = [int(descriptor)] if descriptor.isdecimal() else []
    if sys.stdout is not None:
        descriptors.append(sys.stdout.fileno())
    return run, Reader(*descriptors)


def one_line_at_a_time() -> None:
    """Let the tools that we start know that no line comes before the last one's answer was read.

    So one that waits for a line ends when its reader has gone: nothing can be lost that is on its
    way, and nothing else would come.
    """
    os.environ[_ONE_LINE] = "1"


def drop_stdout() -> None:
    """Send what Python would still flush at its end to nowhere: its complaint helps nobody."""
    _drop(sys.stdout)


def _drop(stream: IO[str]) -> None:
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def stdin_waits() -> bool:
    """Whether somebody pipes lines into us: stdin is open and no terminal."""
    return sys.stdin is not None and not sys.stdin.isatty()
