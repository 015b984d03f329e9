"""JSON that spans lines: objects that are indented, or that stand in a list. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import BadLine
from . import record as records
from .record import Record

HINT = "jq -c . writes one object a line"
HINT_OF_A_LIST = "jq -c '.[]' writes one object a line"
_TOKEN = re.compile(rb'"(?:[^"\\\n]++|\\.)*+"?|[{}\[\]]')
_LINE_BREAK = re.compile(rb"[ \t\r]*\n[ \t\r\n]*")  # never inside a string: JSON forbids it there


class Document(NamedTuple):
    """One object: the line it begins on, its bytes as one line, its record, or why it has none."""

    number: int
    raw: bytes
    record: Record | None = None
    fault: BadLine | None = None


class Documents:
    """Splits text into the objects that it holds, by their brackets, as its lines arrive."""

    def __init__(self) -> None:
        """Begin outside any object."""
        self._parts: list[bytes] = []  # of the object that has not ended
        self._size = 0
        self._depth = 0
        self._outside = 0  # the depth between objects: 1 in a list
        self._number = 0  # of the line on which the object begins
        self._list_number = 0
        self._skips = False

    def feed(self, number: int, line: bytes) -> Iterator[Document]:
        """Yield the objects that end on this line.

        A line that begins with `{` and is a whole object gives up the object before it, when that
        has not ended.
        """
        if (self._parts or self._skips) and line.startswith(b"{") and _is_object(line):
            if self._parts:
                yield self._give_up("the object that begins here does not end", HINT)
            self._skips = False
        if not self._skips:
            yield from self._split(number, line)
            if max(self._size, len(line)) > records.MAX_LINE:
                yield self._give_up(f"longer than {records.MAX_LINE // 2**20} MiB")
                self._skips = True

    def end(self) -> Iterator[Document]:
        """Yield the error of an object or a list that has not ended."""
        if self._parts:
            yield self._give_up("the object that begins here does not end", HINT)
        elif self._outside:
            fault = BadLine("not JSON: the list that begins here does not end")
            yield Document(self._list_number, b"", fault=fault)

    def _give_up(self, reason: str, hint: str | None = None) -> Document:
        raw = b"".join(self._parts)
        self._parts, self._size, self._depth, self._outside = [], 0, 0, 0
        message = reason if hint is None else f"not JSON: {reason}"
        return Document(self._number, raw, fault=BadLine(message, hint=hint))

    def _split(self, number: int, line: bytes) -> Iterator[Document]:
        start = 0  # of the object, or of what stands between objects
        for token in _TOKEN.finditer(line):
            sign = token[0]
            if sign not in (b"{", b"[", b"}", b"]"):
                continue
            opens, between = sign in (b"{", b"["), self._depth == self._outside
            if between and self._turns_list(sign):
                yield from _stray(number, line[start : token.start()])
                self._list_number = number
                start = token.end()
            elif opens:
                if between:
                    yield from _stray(number, line[start : token.start()])
                    self._number, start = number, token.start()
                self._depth += 1
            elif not between:
                self._depth -= 1
                if self._depth == self._outside:
                    self._parts.append(line[start : token.end()])
                    yield self._document()
                    start = token.end()
        if self._depth > self._outside:
            self._parts.append(line[start:])
            self._size += len(line) - start
        else:
            yield from _stray(number, line[start:])

    def _turns_list(self, sign: bytes) -> bool:
        """Go into the list that holds the objects, or out of it."""
        if sign != (b"]" if self._outside else b"["):
            return False
        self._outside = self._depth = 1 - self._outside
        return True

    def _document(self) -> Document:
        raw = b"".join(self._parts)
        self._parts, self._size = [], 0
        return _parsed(self._number, raw)


def is_unfinished(line: bytes) -> bool:
    """Whether more brackets open on this line than close."""
    signs = [token[0] for token in _TOKEN.finditer(line)]
    return sum(sign in (b"{", b"[") for sign in signs) > sum(sign in (b"}", b"]") for sign in signs)


def _is_object(line: bytes) -> bool:
    try:
        records.parse(line)
    except BadLine:
        return False
    return True


def _parsed(number: int, raw: bytes) -> Document:
    try:
        return Document(number, _LINE_BREAK.sub(b"", raw) + b"\n", records.parse(raw))
    except BadLine as fault:
        return Document(number, raw, fault=fault)


def _stray(number: int, text: bytes) -> Iterator[Document]:
    """Yield the error of text between objects; commas may stand there."""
    if text := text.strip(b", \t\r\n"):
        yield _parsed(number, text)
