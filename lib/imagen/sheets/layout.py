"""Contact sheets: addresses, layout, labels and the map that makes a sheet traceable. Pure."""

from __future__ import annotations

import json
import math
import os.path
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BadImage, BadLine, Refused
from ..records import record as records
from ..records.record import Record

PRIVATE = ("owner_user_id", "caller")
KEY = "imagen:"  # the text chunks of a sheet: "imagen:B3" holds the record of the cell B3
MAX_PIXELS = 160_000_000  # of a sheet: 640 MB while it is drawn, and other programs open it
MAX_TEXT = 32 * 2**20  # bytes of the records in a sheet
MAX_RECORD = 16 * 2**20 - 2**10  # of one of them: Pillow's limit for a chunk is ours, 16 MiB
_MOST_VALUES = 200_000  # that a member's record may hold: each takes far more memory than its text
_DIFFER = ("backend", "model", "prompt", "style", "width", "height", "seed", "steps", "cfg")
_ALSO = ("sampler", "scheduler", "negative_prompt")


def address(column: int, row: int) -> str:
    """Give the address of a cell as in a spreadsheet, both counted from 0.

    >>> address(0, 0), address(1, 2), address(26, 11)
    ('A1', 'B3', 'AA12')
    """
    letters = ""
    left = column + 1
    while left:
        left, digit = divmod(left - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return f"{letters}{row + 1}"


def known_address(text: str) -> str:
    """Give an address as it is written on the sheet; Refused when it is none.

    >>> known_address(" b3")
    'B3'
    """
    found = re.fullmatch(r"([A-Za-z]{1,4})([1-9][0-9]{0,6})", text.strip(), re.ASCII)
    if not found:
        raise Refused(f"no address of a cell: {text[:20]!r}", hint="like B3: column B, row 3")
    return found[0].upper()


class Grid(NamedTuple):
    """Where everything stands, in pixels: square cells, each with a label below, a title above."""

    cells: int
    columns: int
    cell: int
    label: int
    title: int
    gap: int

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return math.ceil(self.cells / self.columns)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        width = self.gap + self.columns * (self.cell + self.gap)
        return width, self.title + self.gap + self.rows * (self.cell + self.label + self.gap)

    def box(self, number: int) -> tuple[int, int, int, int]:
        """Give left, top, width and height of the cell of a member, counted from 0."""
        row, column = divmod(number, self.columns)
        left = self.gap + column * (self.cell + self.gap)
        top = self.title + self.gap + row * (self.cell + self.label + self.gap)
        return left, top, self.cell, self.cell

    def address(self, number: int) -> str:
        """Give the address of a member, counted from 0."""
        row, column = divmod(number, self.columns)
        return address(column, row)


def grid(count: int, columns: int | None, cell: int, lines: int, titled: bool) -> Grid:
    """Lay out `count` cells of `cell` pixels with `lines` lines of label; about square.

    There is always one line, for the address.
    """
    text = text_size(cell)
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    label = max(lines, 1) * line_height(text)
    return Grid(count, columns, cell, label, titled * text * 3, max(cell // 32, 2))


def most_cells(cell: int) -> int:
    """Give a number of cells of that size that no sheet can hold, whatever its layout."""
    return MAX_PIXELS // cell**2 + 1


def check_size(layout: Grid) -> None:
    """Raise Refused when a sheet would be too large to be drawn."""
    width, height = layout.size
    if width * height > MAX_PIXELS:
        says = f"a sheet of {layout.cells} cells has {width}×{height} pixels"
        raise Refused(f"{says}; at most {MAX_PIXELS} fit", hint=_SMALLER)


_SMALLER = "a smaller --cell, or several sheets"


def check_texts(texts: Mapping[str, str]) -> None:
    """Raise Refused when a reader of the sheet would refuse the members' records."""
    for place, text in texts.items():
        if why := _too_much(text):
            raise Refused(f"the record of {place} {why}", hint="leave it out")
    if _size(texts) > MAX_TEXT:
        says = f"the records hold more than {MAX_TEXT // 2**20} MiB: no sheet holds so much"
        raise Refused(says, hint="several sheets")


def _size(texts: Mapping[str, str]) -> int:
    return sum(len(text.encode()) for text in texts.values())


def _too_much(text: str) -> str | None:
    """Say why a record has no place in a sheet; None when it has."""
    if len(text.encode()) > MAX_RECORD:
        return f"is longer than {MAX_RECORD} bytes"
    if sum(map(text.count, ",[{")) > _MOST_VALUES:
        return f"holds more than {_MOST_VALUES} values"
    return None


def text_size(cell: int) -> int:
    """Give the size of the label's text for a cell."""
    return max(cell // 18, 8)


def line_height(text: int) -> int:
    """Give the height of a line of text of that size."""
    return text * 4 // 3


def labels(
    members: Sequence[Record], fields: Sequence[str] | None, differing: bool
) -> list[list[str]]:
    """Give the lines of each label: the fields asked for, or those in which members differ.

    Without either it is prompt and seed, and the file's name where there are none of these.
    """
    if differing:
        fields = [name for name in (*_DIFFER, *_ALSO) if _differs(name, members)]
    elif fields is None:
        return [
            _lines(member, ("prompt", "seed")) or _lines(member, ["file"]) for member in members
        ]
    return [_lines(member, fields) for member in members]


def _lines(member: Record, fields: Sequence[str]) -> list[str]:
    return [_shown(name, member) for name in fields if name in member]


def _differs(name: str, members: Sequence[Record]) -> bool:
    return len({json.dumps(member.get(name), sort_keys=True) for member in members}) > 1


def _shown(name: str, member: Record) -> str:
    """Give a field as a person would write it."""
    value = member[name]
    if name == "latency_ms":
        queued = member.get("queue_ms")
        return _seconds(value) + (f" ({_seconds(queued)} of it queued)" if queued else "")
    if name == "cost_usd":
        return f"${value:g}" if isinstance(value, (int, float)) else str(value)
    if name == "fidelity" and isinstance(value, dict):
        return "; ".join(_changes(value))
    if name in ("prompt", "backend", "model", "file"):
        return Path(value).name if name == "file" and isinstance(value, str) else str(value)
    text = value if isinstance(value, (str, int, float)) else json.dumps(value, ensure_ascii=False)
    return f"{name} {text}"


def _seconds(value: Any) -> str:
    return f"{value / 1000:.1f} s" if isinstance(value, (int, float)) else str(value)


def _changes(fidelity: Mapping[str, Any]) -> list[str]:
    met = [
        f"{one.get('field')} {one.get('got')} for {one.get('asked')}"
        for one in _objects(fidelity.get("approximated"))
    ]
    return met + [f"{one.get('field')} dropped" for one in _objects(fidelity.get("dropped"))]


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def shown(member: Record) -> tuple[Path | None, str]:
    """Give the path of a member's image, or None and why there is none to show."""
    if isinstance(member.get("error"), dict):
        error = member["error"]
        return None, f"{error.get('tool', '?')}: {error.get('message', error.get('code', '?'))}"
    if isinstance(member.get("file"), str):
        return Path(member["file"]), ""
    return None, "not done yet" if "pending" in member else "this record has no file"


def record(name: str, members: Sequence[Record], layout: Grid, title: str) -> Record:
    """Give the sheet's own record, but for what its file says."""
    ids = [str(member.get("id", layout.address(n))) for n, member in enumerate(members)]
    made: Record = {"id": name, "members": ids, "cells": cells(members, layout), "format": "png"}
    made |= {"width": layout.size[0], "height": layout.size[1]}
    return made | ({"title": title} if title else {})


def cells(members: Sequence[Record], layout: Grid) -> list[dict[str, Any]]:
    """Give the record's map: address, id, file and pixel box (left, top, width, height) of each."""
    found = []
    for number, member in enumerate(members):
        cell = {
            "address": layout.address(number),
            "id": member.get("id"),
            "file": member.get("file"),
        }
        kept = {name: value for name, value in cell.items() if isinstance(value, str)}
        found.append({**kept, "box": list(layout.box(number))})
    return found


def embedded(member: Record, folder: Path) -> str:
    """Give a member's record as it travels in the sheet: nothing private, paths relative."""
    kept = {name: value for name, value in member.items() if name not in PRIVATE}
    if isinstance(kept.get("cloud"), dict):
        kept["cloud"] = {
            name: value for name, value in kept["cloud"].items() if name != "signed_url"
        }
    for name in ("file", "sidecar"):
        if kept.get(name) and isinstance(kept[name], str):
            kept[name] = os.path.relpath(kept[name], folder)
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":"))


def texts_of(text: Mapping[str, str], sheet: Path) -> dict[str, str]:
    """Give the members' texts of a sheet by address; BadImage when it has none, or too much."""
    texts = {key.removeprefix(KEY): one for key, one in text.items() if key.startswith(KEY)}
    if not texts:
        raise BadImage(f"no sheet of imagen: {sheet}", hint="imagen-sheet makes one", retry="never")
    if _size(texts) > MAX_TEXT:
        limit = f"more than {MAX_TEXT // 2**20} MiB of records in it"
        raise BadImage(f"no sheet of imagen: {sheet}: {limit}", retry="never")
    return texts


def member(place: str, text: str, sheet: Path) -> Record:
    """Read the record of a sheet's cell; BadImage when it is broken."""
    try:
        if why := _too_much(text):
            raise BadLine(f"it {why}")
        member = records.parse(text.encode())
    except BadLine as fault:
        why = f"{sheet}: the record of {place} is broken: {fault.message}"
        raise BadImage(why, retry="never") from None
    for name in ("file", "sidecar"):
        if member.get(name) and isinstance(member[name], str):
            # links are not followed: they were not when it was written
            member[name] = os.path.normpath(sheet.parent / member[name])
    return member
