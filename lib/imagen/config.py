"""The configuration: flag over environment over file over default; secrets stay where they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from .errors import ConfigFault
from .settings import (
    KEYS,
    SECRET,
    Key,
    Place,
    Tree,
    check,
    expanded,
    faults,
    hide_password,
    resolved,
)

SAMPLE = Path(__file__).parent / "data" / "sample.yaml"


@dataclass(slots=True)
class Config:
    """What is in force: values by dotted key, and where each came from."""

    path: Path | None
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    backends: dict[str, Tree] = field(default_factory=dict)
    styles: dict[str, Tree] = field(default_factory=dict)
    prices: dict[str, Tree] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        """Give the value in force, None when there is none."""
        return self.values[key]


def load(flag: str | None) -> Config:
    """Read what is in force; ConfigFault names the first thing wrong with the file."""
    path = find(flag)
    parsed = parse(path) if path else Parsed({}, {}, [])
    for twice in parsed.twice:  # YAML would keep the last one, and a cap of the first is gone
        raise stands_twice(path, twice, parsed.lines)
    tree = parsed.tree
    found = list(faults(tree))
    if found:
        place = ".".join(found[0].place)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ConfigFault(
            f"{path}: {place}: {found[0].message}{more}",
            hint=found[0].hint or "imagen-config validate",
        )
    config = Config(path, styles=tree.get("styles") or {}, prices=tree.get("prices") or {})
    for section in ("backends", "styles", "prices"):
        config.sources |= {f"{section}.{name}": "file" for name in tree.get(section) or {}}
    config.backends = {"mock": {"type": "mock"}, **(tree.get("backends") or {})}
    for name, key, value, source in _effective(tree):
        config.values[name] = resolved(key.kind, value)
        config.sources[name] = source
    return config


def find(flag: str | None) -> Path | None:
    """Give the path of the file in force; None when there is none and none was named."""
    named = flag or os.environ.get("IMAGEN_CONFIG")
    path = expanded(named) if named else default_path()
    if path.exists():
        return path.absolute()
    if named:
        who = "" if flag else "$IMAGEN_CONFIG names "
        raise ConfigFault(f"{who}a configuration file that is not there: {path}")
    return None


def default_path() -> Path:
    """Give the path where a configuration file is looked for when none is named."""
    return _xdg("XDG_CONFIG_HOME", "~/.config") / "config.yaml"


def ledger_path() -> Path:
    """Give the path of the ledger: $IMAGEN_LEDGER, else in the XDG state folder."""
    named = os.environ.get("IMAGEN_LEDGER")
    return expanded(named) if named else _xdg("XDG_STATE_HOME", "~/.local/state") / "ledger.sqlite3"


def _xdg(variable: str, otherwise: str) -> Path:
    folder = os.environ.get(variable, "")  # the XDG rule: a relative path counts as not set
    return expanded(folder if folder.startswith("/") else otherwise) / "imagen"


class Parsed(NamedTuple):
    """A configuration file as a tree, the line of each place in it, and keys that stand twice."""

    tree: Tree
    lines: dict[Place, int]
    twice: list[Place]


def stands_twice(path: Path | None, place: Place, lines: Mapping[Place, int]) -> ConfigFault:
    """Return the error for a key that stands twice in a file, at its second line."""
    where = f"{path}:{line_of(place, lines)}: {'.'.join(place)}"
    return ConfigFault(f"{where}: stands twice", hint="keep only one of them")


def parse(path: Path) -> Parsed:
    """Read a YAML file with the line of every key; ConfigFault when it is none."""
    import yaml

    loader_class: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        loader = loader_class(path.read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            lines: dict[Place, int] = {(): 1}
            twice: list[Place] = []
            _mark(node, (), lines, twice, set())
            tree = loader.construct_document(node) if node else {}
        finally:
            loader.dispose()
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigFault(
            f"{path}{where}: not YAML: {getattr(fault, 'problem', None) or fault}"
        ) from None
    except (RecursionError, ValueError) as fault:
        why = fault if isinstance(fault, UnicodeDecodeError) else "it cannot be read as YAML"
        if type(fault) is ValueError:  # of a date that is none
            why = f"{why}: {fault}"
        raise ConfigFault(f"{path}: {why}") from None
    except OSError as fault:
        raise ConfigFault(f"cannot read {path}: {fault.strerror}") from None
    if not isinstance(tree, dict):
        raise ConfigFault(
            f"{path}: the file must hold keys and values", hint="imagen-config sample"
        )
    return Parsed(tree, lines, twice)


def _mark(
    node: Any, place: Place, lines: dict[Place, int], twice: list[Place], seen: set[int]
) -> None:
    import yaml

    if isinstance(node, yaml.MappingNode) and id(node) not in seen:
        seen.add(id(node))  # an alias is the same node again: once is enough
        for key, value in node.value:
            inner = (*place, str(key.value))
            if inner in lines:
                if key.value != "<<":
                    twice.append(inner)
                for old in [place for place in lines if place[: len(inner)] == inner]:
                    del lines[old]
            lines[inner] = key.start_mark.line + 1
            _mark(value, inner, lines, twice, seen)
    elif isinstance(node, yaml.SequenceNode) and id(node) not in seen:
        seen.add(id(node))
        for number, value in enumerate(node.value):
            _mark(value, (*place, str(number)), lines, twice, seen)


def _effective(tree: Tree) -> Iterator[tuple[str, Key, Any, str]]:
    """Each key with its value in force and its source; ConfigFault when a variable is wrong."""
    for section, keys in KEYS.items():
        for name, key in keys.items():
            dotted = f"{section}.{name}" if section else name
            inside = (tree.get(section) or {}) if section else tree
            said = os.environ.get(key.env or "", "")
            if said:
                for fault in check((f"${key.env}",), key.kind, said):
                    raise ConfigFault(f"${key.env} {fault.message}", hint=fault.hint)
                yield dotted, key, said, f"${key.env}"
            elif inside.get(name) is not None:
                yield dotted, key, inside[name], "file"
            else:
                yield dotted, key, key.default, "default"


def shown(name: str, value: Any) -> Any:
    """Give a value as it may be printed: what looks like a secret is replaced."""
    last = name.rpartition(".")[2]
    if value and not last.endswith("_env") and re.search(r"token|secret|password|key$", last):
        return SECRET
    if isinstance(value, dict) and last != "headers_env":
        return {key: shown(str(key), inner) for key, inner in value.items()}
    return hide_password(value) if isinstance(value, str) else value


def secret(variable: str) -> str | None:
    """Give a secret, None when there is none; never print what this returns.

    It is the variable's value, else what the file holds that <variable>_FILE names. ConfigFault
    when that file cannot be read, or when others than its owner may read it too.
    """
    named = os.environ.get(f"{variable}_FILE")
    if os.environ.get(variable) or not named:
        return os.environ.get(variable) or None
    path = expanded(named)
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigFault(
                f"others may read the file that ${variable}_FILE names: {path}",
                hint=f"chmod 600 {path}",
            )
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as fault:
        why = getattr(fault, "strerror", None) or "not UTF-8"
        raise ConfigFault(
            f"cannot read the file that ${variable}_FILE names: {path}: {why}"
        ) from None


def variable(name: str) -> str | None:
    """Give what an environment variable that is no secret says, None when it is not set."""
    return os.environ.get(name) or None


def line_of(place: Place, lines: Mapping[Place, int]) -> int:
    """Give the line of a place in the file, or of the nearest key around it."""
    while place not in lines and place:
        place = place[:-1]
    return lines.get(place, 1)


def all_values(config: Config) -> Iterator[tuple[str, Any, str]]:
    """Yield every dotted key with its value in force and where that came from."""
    for key, value in config.values.items():
        yield key, str(value) if isinstance(value, Path) else value, config.sources[key]
    for section in ("backends", "styles", "prices"):
        for name, settings in getattr(config, section).items():
            for key, value in settings.items():
                source = config.sources.get(f"{section}.{name}", "default")
                shown_as = str(value) if isinstance(value, date) else value
                yield f"{section}.{name}.{key}", shown_as, source
