"""Which options of a command line have no effect on the lines of a run. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..records import record as records

if TYPE_CHECKING:
    from ..records.record import Record
    from ..records.request import Fate, Told

AGAIN = "--again makes new images, and then the command line wins over the lines"
_ID = "--again --set id=ID names the new image"
_NAMES = {
    "backend": "--backend",
    "width": "--size",
    "height": "--size",
    "seed": "--seed",
    "steps": "--steps",
    "cfg": "--cfg",
    "sampler": "--sampler",
    "scheduler": "--scheduler",
    "negative_prompt": "--negative",
    "style": "--style",
    "options": "--option",
}


Rule = Callable[["Record", "Fate"], bool]  # whether a line uses an option


class OptionEffects:
    """Looks at each line of a run; at its end it knows the options that none of them used.

    An option that asks for what a line has already counts as used.
    """

    def __init__(self, options: Mapping[str, Any], told: Told) -> None:
        """Take the options as click gives them, and what they were read as."""
        self._unused = dict(_rules(options, told))
        self._has_lines = self._has_work = False

    def look_at(self, line: Record, what: Fate) -> None:
        """Note which options a line uses; a sheet's line is passed on whatever the options say."""
        if not self._unused or line.get("members") is not None:
            return
        line = records.sized(line) if "size" in line else line
        self._has_lines = True
        self._has_work = self._has_work or what != "pass"
        for option, is_used in [*self._unused.items()]:
            if is_used(line, what):
                del self._unused[option]

    def unused(self) -> list[tuple[str, str]]:
        """Return the options without an effect, each with its hint."""
        if not self._has_lines:
            return []
        return [(option, _ID if option == "--id" else AGAIN) for option in self._unused]

    @property
    def are_refused(self) -> bool:
        """Whether options were given for lines that were all passed on."""
        return bool(self.unused()) and not self._has_work


def _rules(options: Mapping[str, Any], told: Told) -> Iterator[tuple[str, Rule]]:
    for option in dict.fromkeys(_NAMES[name] for name in told.defaults):
        values = {name: told.defaults[name] for name in told.defaults if _NAMES[name] == option}
        yield option, partial(_fills, values, told.again)
    for text in options.get("sets") or ():
        name = text.partition("=")[0]
        fields = ("width", "height") if name == "size" else (name,)
        yield f"--set {name}", partial(_sets, {one: told.overrides[one] for one in fields})
    if (given_id := options.get("id")) is not None:
        yield "--id", lambda line, _: line.get("id") in (None, given_id)
    if told.count is not None:
        yield "--count", lambda _, what: what == "new"
    for name in ("out_dir", "output"):
        if options.get(name) is not None:
            yield f"--{name.replace('_', '-')}", lambda _, what: what != "pass"


def _fills(values: Record, again: bool, line: Record, what: Fate) -> bool:
    if again or _has(line, values):
        return True
    if what != "new":
        return False
    if "seed" in values and line.get("file") is not None:
        return True  # made anew with it
    if isinstance(own := line.get("options"), dict) and "options" in values:
        return any(name not in own for name in values["options"])
    return any(line.get(name) is None for name in values)


def _sets(values: Record, line: Record, what: Fate) -> bool:
    return what in ("new", "retry") or _has(line, values)


def _has(line: Record, values: Record) -> bool:
    """Whether a line says the same already."""
    own = line.get("options")
    if "options" in values and isinstance(own, dict):
        return {**own, **values["options"]} == own
    return all(line.get(name) == value for name, value in values.items())
