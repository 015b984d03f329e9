"""A configuration file as YAML: its tree, the line of every key, and what YAML reads otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..disk import open_named
from ..errors import ConfigFault
from .settings import QUOTES, Fault, Place, Tree, faults

MAX_DEPTH = 100  # levels, as in the params of a job
MAX_NODES = 100_000  # with every alias counted as what it stands for
_TAG = "tag:yaml.org,2002:"
_SURPRISING = re.compile(r"[-+]?0[0-7_]+|[^:]+(:[^:]+)+")  # octal, and numbers to the base of 60
_BOMS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32"} | dict.fromkeys(
    (b"\xff\xfe", b"\xfe\xff"), "UTF-16"
)


class Parsed(NamedTuple):
    """A configuration file as a tree, the line of each place in it, and keys that stand twice.

    `plain` holds the texts of values and keys that YAML does not read as text, `misread` the faults
    of numbers that it reads as others than they look.
    """

    tree: Tree
    lines: dict[Place, int]
    twice: list[Place]
    plain: Mapping[Place, str] = {}
    misread: tuple[Fault, ...] = ()

    def faults(self) -> list[Fault]:
        """Return everything wrong with the tree, but for what only a backend can judge."""
        listed = [self._with_text(fault) for fault in faults(self.tree)]
        places = {fault.place for fault in listed}
        return listed + [fault for fault in self.misread if fault.place not in places]

    def _with_text(self, fault: Fault) -> Fault:
        """Return the fault with what is to be put in quotes, as it stands in the file."""
        if fault.hint != QUOTES:
            return fault
        inside = len(fault.place) + 1
        texts = [
            text
            for place, text in self.plain.items()
            if len(place) <= inside and place[: inside - 1] == fault.place
        ]
        return fault._replace(hint=f'{QUOTES}: "{texts[0][:80]}"') if texts else fault


def stands_twice(path: Path | None, place: Place, lines: Mapping[Place, int]) -> ConfigFault:
    """Return the error for a key that stands twice in a file, at its second line."""
    where = f"{path}:{line_of(place, lines)}: {'.'.join(place)}"
    return ConfigFault(f"{where}: stands twice", hint="keep only one of them")


def line_of(place: Place, lines: Mapping[Place, int]) -> int:
    """Give the line of a place in the file, or of the nearest key around it."""
    while place not in lines and place:
        place = place[:-1]
    return lines.get(place, 1)


def parse(path: Path) -> Parsed:
    """Read a YAML file with the line of every key; ConfigFault when it is none."""
    import yaml

    loader_class: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        loader = loader_class(read_text(path))
        try:
            node = loader.get_single_node()
            survey = _Survey(path, loader)
            if node:
                survey.check(node)
                survey.mark(node, ())
            tree = loader.construct_document(node) if node else {}
        finally:
            loader.dispose()
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigFault(
            f"{path}{where}: not YAML: {getattr(fault, 'problem', None) or fault}"
        ) from None
    except RecursionError:
        raise ConfigFault(f"{path}: nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as fault:  # of a date that is none
        raise ConfigFault(f"{path}: it cannot be read as YAML: {fault}") from None
    except OSError as fault:
        raise ConfigFault(f"cannot read {path}: {fault.strerror}") from None
    if not isinstance(tree, dict):
        raise ConfigFault(
            f"{path}: the file must hold keys and values", hint="imagen-config sample"
        )
    return Parsed(tree, survey.lines, survey.twice, survey.plain, tuple(survey.misread))


def read_text(path: Path) -> str:
    """Read a file of UTF-8 text, with or without a byte-order mark; ConfigFault names another."""
    with open_named(path) as stream:
        data = stream.read()
    encoding = next((name for mark, name in _BOMS.items() if data.startswith(mark)), None)
    if encoding is None and b"\0" in data[:2]:
        encoding = "UTF-16"
    if encoding:
        hint = f"save it as UTF-8: iconv -f {encoding} -t UTF-8"
        raise ConfigFault(f"{path}: the file is {encoding}", hint=hint)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        raise ConfigFault(
            f"{path}: line {line}: not UTF-8, perhaps Latin-1: the byte 0x{data[fault.start]:02x}",
            hint="save it as UTF-8: iconv -f LATIN1 -t UTF-8",
        ) from None


class _Survey:
    """Walks the nodes of a file, and notes what their values do not tell."""

    def __init__(self, path: Path, loader: Any) -> None:
        self._path = path
        self._loader = loader
        self._marked: set[int] = set()
        self.lines: dict[Place, int] = {(): 1}
        self.twice: list[Place] = []
        self.plain: dict[Place, str] = {}
        self.misread: list[Fault] = []

    def check(self, root: Any) -> None:
        """Raise ConfigFault for a tree that is endless, too large, too deep, or holds bytes."""
        sizes: dict[int, int] = {}  # by node, 0 while inside it

        def size_of(node: Any, depth: int) -> int:
            if sizes.get(id(node)) == 0:
                raise self._fault(node, "an alias stands inside itself")
            if depth > MAX_DEPTH:
                raise self._fault(node, f"nested deeper than {MAX_DEPTH} levels")
            if node.tag == f"{_TAG}binary":
                raise self._fault(node, "bytes (!!binary) have no place here")
            if id(node) not in sizes:
                sizes[id(node)] = 0
                size = 1 + sum(size_of(inner, depth + 1) for inner in _inner(node))
                if size > MAX_NODES:
                    raise self._fault(node, "its aliases stand for too many values")
                sizes[id(node)] = size
            return sizes[id(node)]

        size_of(root, 0)

    def _fault(self, node: Any, reason: str) -> ConfigFault:
        return ConfigFault(f"{self._path}: line {node.start_mark.line + 1}: {reason}")

    def mark(self, node: Any, place: Place) -> None:
        """Note lines, keys that stand twice, and scalars that are no text."""
        import yaml

        if isinstance(node, yaml.ScalarNode):
            self._note_scalar(node, place)
            return
        if id(node) in self._marked:
            return  # an alias is the same node again: once is enough
        self._marked.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                self.mark(value, (*place, str(number)))
            return
        for key, value in node.value:
            self._mark_pair(key, value, (*place, str(key.value)))

    def _mark_pair(self, key: Any, value: Any, inner: Place) -> None:
        import yaml

        if inner in self.lines:
            if key.value != "<<":
                self.twice.append(inner)
            for old in [place for place in self.lines if place[: len(inner)] == inner]:
                del self.lines[old]
        self.lines[inner] = key.start_mark.line + 1
        self.mark(value, inner)
        if isinstance(key, yaml.ScalarNode) and not _is_text(key):
            as_read = (*inner[:-1], str(self._loader.construct_object(key)))
            self.lines.setdefault(as_read, self.lines[inner])
            self.plain[as_read] = key.value

    def _note_scalar(self, node: Any, place: Place) -> None:
        if _is_text(node):
            return
        text = self.plain[place] = node.value
        if node.tag not in (f"{_TAG}int", f"{_TAG}float") or not _SURPRISING.fullmatch(text):
            return
        value = self._loader.construct_object(node)
        meant = text.lstrip("+-").replace("_", "").lstrip("0") or "0"
        meant = f"-{meant}" if text.startswith("-") else meant
        if meant in (str(value), "-0"):
            return  # as 07, which everybody reads alike
        number = value if ":" in text else f"{meant} or {value}"
        hint = f"write {number}, or put it in quotes"
        self.misread.append(Fault(place, f"YAML reads {text} as {value}", hint))


def _inner(node: Any) -> list[Any]:
    """Return the nodes inside a node."""
    if isinstance(node.value, str):
        return []
    return [each for item in node.value for each in (item if isinstance(item, tuple) else [item])]


def _is_text(node: Any) -> bool:
    return node.tag in (f"{_TAG}str", f"{_TAG}merge", f"{_TAG}null")
