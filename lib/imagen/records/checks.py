"""What a line that is about to be rendered says in words that are not the record's. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from ..errors import BadLine
from . import record as records

_CLOSE = 0.8  # of difflib: widht is width, album is nothing
_OTHER_NAMES = {
    "negative": "negative_prompt",
    "num_inference_steps": "steps",
    "inference_steps": "steps",
    "guidance": "cfg",
    "guidance_scale": "cfg",
    "cfg_scale": "cfg",
    "sampler_name": "sampler",
}


def check_equal_keys(raw: bytes) -> None:
    """Raise BadLine when an object of the line has a key twice: one of the values would be lost."""
    json.loads(raw, object_pairs_hook=_checked_object, parse_int=str, parse_float=str)


def _checked_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in values if names.count(name) > 1)
        raise BadLine(f"the key {twice[:60]!r} stands twice in one object")
    return values


class UnknownKeys:
    """Finds keys that look like a request's fields and are not, each once a run."""

    def __init__(self) -> None:
        """Begin a run."""
        self._seen: set[str] = set()

    def notes(self, line: Mapping[str, Any]) -> Iterator[str]:
        """Yield a text for people about each such key of a line that is new."""
        for name in line:
            if name not in self._seen and (hint := _hint(name, line)):
                self._seen.add(name)
                yield f"the key {name!r} has no effect (hint: {hint})"


def _hint(name: str, line: Mapping[str, Any]) -> str | None:
    if name == "model":
        is_made = line.get("render_id") is not None or line.get("file") is not None
        return None if is_made else "backend names the instance that has the model"
    if name in records.FIELDS:
        return None
    if name == "size":
        return None if records.sized(line) != line else "width and height, or size as WxH"
    if other := _OTHER_NAMES.get(name):
        return f"it is called {other}"
    close = get_close_matches(name[:100], records.REQUEST, n=1, cutoff=_CLOSE)
    return f"did you mean {close[0]}?" if close else None
