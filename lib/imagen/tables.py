"""Rows for people and for spreadsheets: an aligned table, and CSV. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Shown = Callable[[str], str]
_FORMULA = ("=", "+", "-", "@")  # a spreadsheet computes a cell that begins so


def aligned(columns: Sequence[str], rows: Sequence[Row], shown: Shown) -> str:
    """Give rows as columns of text, numbers to the right; `shown` makes hostile text harmless."""
    texts = [list(columns), *(["" for _ in columns] for _ in rows)]
    right = []
    for at, name in enumerate(columns):
        values = [row.get(name) for row in rows]
        places = max([2, *(_places(one) for one in values if isinstance(one, float))])
        right.append(any(isinstance(one, (int, float)) for one in values))
        for line, value in enumerate(values, 1):
            texts[line][at] = _cell(value, places, shown)
    widths = [max(len(line[at]) for line in texts) for at in range(len(columns))]
    return "".join(_line(line, widths, right) for line in texts)


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    placed = [
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    ]
    return "  ".join(placed).rstrip() + "\n"


def _cell(value: Any, places: int, shown: Shown) -> str:
    if isinstance(value, float):
        return f"{value:.{places}f}"
    return "-" if value is None else shown(str(value))


def _places(value: float) -> int:
    return len(_plain(value).partition(".")[2])


def _plain(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def csv_lines(columns: Sequence[str], rows: Iterable[Row], shown: Shown) -> Iterator[str]:
    """Yield rows as lines of CSV, the names first.

    A text that a spreadsheet would compute gets a ' before it.
    """
    yield _csv(columns)
    for row in rows:
        yield _csv([_value(row.get(name), shown) for name in columns])


def _value(value: Any, shown: Shown) -> str:
    if isinstance(value, float):
        return _plain(value)
    if not isinstance(value, str):
        return "" if value is None else str(value)
    text = shown(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def _csv(cells: Iterable[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()
