"""The record of a finished job as its row keeps it: without secrets, and of bounded size. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..records.record import FIELDS, Record, depth

MOST_BYTES = 2**18  # of JSON; the row's own limit (sql/009) is larger, as Postgres adds blanks
_DEEPEST = 100  # levels that every reader of JSON can read
_MOST_NAMES, _NAME_LENGTH = 20, 60  # of `left_out`


def for_row(made: Mapping[str, Any]) -> Record:
    """Return what a job's row keeps of its record.

    A traceback is left out, and the address at which anybody may fetch the image. So is what
    Postgres cannot hold, and of a record that is too large its largest fields, unknown ones before
    ours. `left_out` names those, for the reader to know.
    """
    shown = {name: value for name, value in made.items() if name != "left_out"}
    for name, secret in (("cloud", "signed_url"), ("error", "traceback")):
        if isinstance(shown.get(name), dict):
            shown[name] = {key: value for key, value in shown[name].items() if key != secret}
    sizes = {name: _size(name, value) for name, value in shown.items()}
    left_out = {name: None for name, size in sizes.items() if size is None}  # in this order
    total = sum(size for size in sizes.values() if size is not None)
    sizes_by_rank = [
        (name in FIELDS, -size, name) for name, size in sizes.items() if size is not None
    ]
    for _, negative_size, name in sorted(sizes_by_rank):
        if total <= MOST_BYTES:
            break
        left_out[name] = None
        total += negative_size
    if not left_out:
        return shown
    kept = {name: value for name, value in shown.items() if name not in left_out}
    return {**kept, "left_out": [name[:_NAME_LENGTH] for name in [*left_out][:_MOST_NAMES]]}


def _size(name: str, value: Any) -> int | None:
    """Return the bytes that a field takes as JSON; None if Postgres cannot hold it."""
    try:
        if depth(value) >= _DEEPEST:
            return None
        text = json.dumps({name: value}, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):  # NaN, an infinity, an integer of thousands of digits
        return None
    return len(text.encode(errors="replace"))
