"""The configuration: flag over environment over file over default; secrets stay where they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from ..disk import open_named
from ..errors import ConfigFault, as_unicode
from .settings import KEYS, SECRET, Key, Tree, check, expanded, hide_password, resolved
from .yaml_file import Parsed, line_of, parse, stands_twice

__all__ = [
    "ONLY_THE_MOCK",
    "SAMPLE",
    "Config",
    "Parsed",
    "all_values",
    "chosen_path",
    "default_path",
    "find",
    "is_only_the_mock",
    "ledger_path",
    "line_of",
    "load",
    "parse",
    "secret",
    "shown",
    "stands_twice",
    "variable",
]

SAMPLE = Path(__file__).parents[1] / "data" / "sample.yaml"


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
    faults = parsed.faults()
    if faults:
        place = ".".join(faults[0].place)
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ConfigFault(
            f"{path}: {place}: {faults[0].message}{more}",
            hint=faults[0].hint or "imagen-config validate",
        )
    config = Config(path, styles=tree.get("styles") or {}, prices=tree.get("prices") or {})
    for section in ("backends", "styles", "prices"):
        config.sources |= {f"{section}.{name}": "file" for name in tree.get(section) or {}}
    config.backends = {"mock": {"type": "mock"}, **(tree.get("backends") or {})}
    for name, key, value, source in _effective(tree):
        config.values[name] = resolved(key.kind, value)
        config.sources[name] = source
    return config


ONLY_THE_MOCK = (
    "no default_backend is configured, so the mock draws: test images, no real pictures"
    " (hint: docs/reference/backends.md shows how to get real ones)"
)


def is_only_the_mock(config: Config) -> bool:
    """Whether the mock is the default backend only because nobody named another."""
    if config.sources["default_backend"] != "default":
        return False
    return bool(config.backends[config["default_backend"]]["type"] == "mock")


def find(flag: str | None) -> Path | None:
    """Give the path of the file in force; None when there is none and none was named."""
    named = flag or os.environ.get("IMAGEN_CONFIG")
    path = chosen_path(flag)
    if path.exists():
        return path.absolute()
    if named:
        who = "" if flag else "$IMAGEN_CONFIG names "
        raise ConfigFault(f"{who}a configuration file that is not there: {path}")
    return None


def chosen_path(flag: str | None) -> Path:
    """Give the path of the file that is named, else the default one, whether it is there or not."""
    named = flag or os.environ.get("IMAGEN_CONFIG")
    return expanded(named) if named else default_path()


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


def _effective(tree: Tree) -> Iterator[tuple[str, Key, Any, str]]:
    """Each key with its value in force and its source; ConfigFault when a variable is wrong."""
    for section, keys in KEYS.items():
        for name, key in keys.items():
            dotted = f"{section}.{name}" if section else name
            inside = (tree.get(section) or {}) if section else tree
            said = os.environ.get(key.env or "", "")
            if said:
                if (shown_as := as_unicode(said)) != said:
                    raise ConfigFault(f"${key.env} is not valid UTF-8: '{shown_as}'")
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
    if (value := os.environ.get(variable)) or not named:
        if value and as_unicode(value) != value:
            raise ConfigFault(f"${variable} is not valid UTF-8")
        return value or None
    path = expanded(named)
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigFault(
                f"others may read the file that ${variable}_FILE names: {path}",
                hint=f"chmod 600 {path}",
            )
        with open_named(path) as stream:
            return stream.read().decode().strip() or None
    except (OSError, UnicodeDecodeError) as fault:
        why = getattr(fault, "strerror", None) or "not UTF-8"
        raise ConfigFault(
            f"cannot read the file that ${variable}_FILE names: {path}: {why}"
        ) from None


def variable(name: str) -> str | None:
    """Give what an environment variable that is no secret says, None when it is not set."""
    return os.environ.get(name) or None


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
