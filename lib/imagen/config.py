"""The configuration: flag over environment over file over default; secrets stay where they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .errors import ConfigFault, suggest
from .record import canonical_uuid

SECRET = "***"
Tree = dict[str, Any]
Place = tuple[str, ...]


class Key(NamedTuple):
    """One key: what kind of value, what when nobody says, and the variable that goes over it."""

    kind: str
    default: Any = None
    env: str | None = None


MODES = "auto|on|off"
KEYS: dict[str, dict[str, Key]] = {
    "": {"default_backend": Key("string", "mock", "IMAGEN_BACKEND")},
    "output": {
        "dir": Key("path", "~/Pictures/imagen", "IMAGEN_OUT_DIR"),
        "preview": Key(MODES, "auto", "IMAGEN_PREVIEW"),
        "cloud_sync": Key(MODES, "auto", "IMAGEN_CLOUD_SYNC"),
    },
    "supabase": {
        "url": Key("url", None, "SUPABASE_URL"),
        "service_key_env": Key("string", "SUPABASE_SERVICE_ROLE_KEY"),
        "bucket": Key("string", "imagen-generated"),
        "schema": Key("string", "imagen"),
        "owner_user_id": Key("uuid", None, "IMAGEN_OWNER_USER_ID"),
    },
    "usage": {"sink": Key("local|supabase|both", "local")},
    "budget": {
        "per_render": Key("amount"),
        "per_day": Key("amount"),
        "per_month": Key("amount"),
        "per_caller": Key("amount"),
    },
    "worker": {
        "backends": Key("strings"),
        "options": Key("strings"),
        "jobs": Key("count", 1),
        "poll_s": Key("seconds", 5),
        "job_timeout_s": Key("seconds"),
    },
}
STYLE_KEYS = {name: Key("string") for name in ("prefix", "suffix", "template", "negative")}


class Fault(NamedTuple):
    """One thing wrong with the configuration file: where it stands, and what it is."""

    place: Place
    message: str
    hint: str | None = None


@dataclass(slots=True)
class Config:
    """What is in force: values by dotted key, and where each came from."""

    path: Path | None
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    backends: dict[str, Tree] = field(default_factory=dict)
    styles: dict[str, Tree] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        """Give the value in force, None when there is none."""
        return self.values[key]


def load(flag: str | None) -> Config:
    """Read what is in force; ConfigFault names the first thing wrong with the file."""
    path = find(flag)
    tree = parse(path).tree if path else {}
    found = list(faults(tree))
    if found:
        place = ".".join(found[0].place)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ConfigFault(
            f"{path}: {place}: {found[0].message}{more}",
            hint=found[0].hint or "imagen-config validate",
        )
    config = Config(path, styles=tree.get("styles") or {})
    config.backends = {"mock": {"type": "mock"}, **(tree.get("backends") or {})}
    for name, key, value, source in _effective(tree):
        config.values[name] = resolved(key.kind, value)
        config.sources[name] = source
    return config


def find(flag: str | None) -> Path | None:
    """Give the path of the file in force; None when there is none and none was named."""
    named = flag or os.environ.get("IMAGEN_CONFIG")
    path = Path(named).expanduser() if named else default_path()
    if path.exists():
        return path.absolute()
    if named:
        who = "--config" if flag else "$IMAGEN_CONFIG"
        raise ConfigFault(f"{who} names a file that is not there: {path}")
    return None


def default_path() -> Path:
    """Give the path where a configuration file is looked for when none is named."""
    return _xdg("XDG_CONFIG_HOME", "~/.config") / "config.yaml"


def ledger_path() -> Path:
    """Give the path of the ledger: $IMAGEN_LEDGER, else in the XDG state folder."""
    named = os.environ.get("IMAGEN_LEDGER")
    return (
        Path(named).expanduser()
        if named
        else _xdg("XDG_STATE_HOME", "~/.local/state") / "ledger.sqlite3"
    )


def _xdg(variable: str, otherwise: str) -> Path:
    folder = os.environ.get(variable, "")  # the XDG rule: a relative path counts as not set
    return Path(folder if folder.startswith("/") else otherwise).expanduser() / "imagen"


class Parsed(NamedTuple):
    """A configuration file as a tree, the line of each place in it, and keys that stand twice."""

    tree: Tree
    lines: dict[Place, int]
    twice: list[Place]


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
            _mark(node, (), lines, twice)
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
        raise ConfigFault(f"{path}: {why}") from None
    except OSError as fault:
        raise ConfigFault(f"cannot read {path}: {fault.strerror}") from None
    if not isinstance(tree, dict):
        raise ConfigFault(
            f"{path}: the file must hold keys and values", hint="imagen-config sample"
        )
    return Parsed(tree, lines, twice)


def _mark(node: Any, place: Place, lines: dict[Place, int], twice: list[Place]) -> None:
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, str(key.value))
            if inner in lines and key.value != "<<":
                twice.append(inner)
            lines[inner] = key.start_mark.line + 1
            _mark(value, inner, lines, twice)


def faults(tree: Tree) -> Iterator[Fault]:
    """Yield everything wrong with the tree, but for what only a backend can judge."""
    sections = {"backends", "styles", *KEYS} - {""}
    for name, value in tree.items():
        if name in KEYS[""]:
            yield from _check((name,), KEYS[""][name].kind, value)
        elif name not in sections:
            yield Fault((str(name),), "unknown key", suggest(str(name), {*sections, *KEYS[""]}))
        elif value is None:
            continue
        elif not isinstance(value, dict):
            yield Fault((name,), "must hold keys and values")
        elif name == "backends":
            for instance, settings in value.items():
                yield from _check_instance(str(instance), settings)
        elif name == "styles":
            for style, settings in value.items():
                yield from check_keys(("styles", str(style)), STYLE_KEYS, settings)
        else:
            yield from check_keys((name,), KEYS[name], value)
    yield from _check_default(tree)


def _check_default(tree: Tree) -> Iterator[Fault]:
    named = tree.get("default_backend")
    instances = tree.get("backends") or {}
    if isinstance(named, str) and isinstance(instances, dict) and named not in {"mock", *instances}:
        yield Fault(
            ("default_backend",), f"no backend {named!r}", suggest(named, map(str, instances))
        )


def _check_instance(name: str, settings: Any) -> Iterator[Fault]:
    place = ("backends", name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        yield Fault(place, "a backend's name has letters, digits, dots, - and _ only")
    if not isinstance(settings, dict):
        yield Fault(place, "must hold keys and values")
    elif not isinstance(settings.get("type"), str):
        yield Fault(place, "no type", "type: comfyui, replicate or mock")


def check_keys(place: Place, keys: Mapping[str, Key], settings: Any) -> Iterator[Fault]:
    """Yield the faults of one mapping: unknown keys, and values of the wrong kind."""
    if not isinstance(settings, dict):
        yield Fault(place, "must hold keys and values")
        return
    for name, value in settings.items():
        if name not in keys:
            yield Fault((*place, str(name)), "unknown key", suggest(str(name), keys))
        else:
            yield from _check((*place, name), keys[name].kind, value)


def _check(place: Place, kind: str, value: Any) -> Iterator[Fault]:
    if value is None:
        return
    if "|" in kind:
        if _switch(value) not in kind.split("|"):
            yield Fault(place, f"must be {kind.replace('|', ', ')}, not {value!r}")
        return
    types, says, good = _KINDS[kind]
    if (isinstance(value, bool) and bool not in types) or not isinstance(value, types):
        yield Fault(place, f"must be {says}, not {value!r}")
    elif not good(value):
        yield Fault(place, f"must be {says}, not {hide_password(str(value))!r}")


def _always(_value: Any) -> bool:
    return True


def _is_url(value: str) -> bool:
    return re.match(r"https?://[^/\s]+", value) is not None


def _positive(value: float) -> bool:
    return 0 < value < float("inf")


_KINDS: dict[str, tuple[tuple[type, ...], str, Any]] = {
    "string": ((str,), "text", len),
    "path": ((str,), "a path", len),
    "url": ((str,), "a URL that starts with http:// or https://", _is_url),
    "uuid": ((str,), "a UUID", lambda value: not value or canonical_uuid(value)),
    "count": ((int,), "a whole number from 1", lambda value: value >= 1),
    "number": ((int, float), "a number", _always),
    "seconds": ((int, float), "a number of seconds", _positive),
    "amount": ((int, float), "an amount in USD", lambda value: 0 <= value < float("inf")),
    "strings": ((list,), "a list of words", lambda value: all(isinstance(x, str) for x in value)),
    "mapping": ((dict,), "keys and values", _always),
    "any": ((object,), "a value", _always),
    "environment": (
        (dict,),
        "names of headers, each with the name of an environment variable",
        lambda value: all(isinstance(x, str) for pair in value.items() for x in pair),
    ),
    "faults": ((list, str), "a list of faults or the path of a YAML file with one", _always),
}


def _switch(value: Any) -> Any:
    """Read YAML's own idea of on and off back as the words that were meant."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def resolved(kind: str, value: Any) -> Any:
    """Give a value as the code wants it: switches as words, paths absolute."""
    if value is not None and kind == "path":
        return Path(value).expanduser().absolute()
    return _switch(value) if "|" in kind else (value or None) if kind == "uuid" else value


def _effective(tree: Tree) -> Iterator[tuple[str, Key, Any, str]]:
    """Each key with its value in force and its source; ConfigFault when a variable is wrong."""
    for section, keys in KEYS.items():
        for name, key in keys.items():
            dotted = f"{section}.{name}" if section else name
            inside = (tree.get(section) or {}) if section else tree
            said = os.environ.get(key.env or "", "")
            if said:
                for fault in _check((f"${key.env}",), key.kind, said):
                    raise ConfigFault(f"${key.env} {fault.message}", hint=fault.hint)
                yield dotted, key, said, f"${key.env}"
            elif inside.get(name) is not None:
                yield dotted, key, inside[name], "file"
            else:
                yield dotted, key, key.default, "default"


def hide_password(url: str) -> str:
    """Give a URL with the password in it, if any, replaced."""
    return re.sub(r"(://[^/@:\s]*):[^/@\s]*@", rf"\1:{SECRET}@", url)


def shown(name: str, value: Any) -> Any:
    """Give a value as it may be printed: what looks like a secret is replaced."""
    last = name.rpartition(".")[2]
    if value and not last.endswith("_env") and re.search(r"token|secret|password|key$", last):
        return SECRET
    if isinstance(value, dict) and last != "headers_env":
        return {key: shown(str(key), inner) for key, inner in value.items()}
    return hide_password(value) if isinstance(value, str) else value


def secret(variable: str) -> str | None:
    """Give a secret from the environment, None when not set; never print what this returns."""
    return os.environ.get(variable) or None


def line_of(place: Place, lines: Mapping[Place, int]) -> int:
    """Give the line of a place in the file, or of the nearest key around it."""
    while place not in lines and place:
        place = place[:-1]
    return lines.get(place, 1)


def all_values(config: Config) -> Iterator[tuple[str, Any, str]]:
    """Yield every dotted key with its value in force and where that came from."""
    for key, value in config.values.items():
        yield key, str(value) if isinstance(value, Path) else value, config.sources[key]
    for section, named in (("backends", config.backends), ("styles", config.styles)):
        for name, settings in named.items():
            for key, value in settings.items():
                builtin = section == "backends" and name == "mock" and settings == {"type": "mock"}
                yield f"{section}.{name}.{key}", value, "default" if builtin else "file"
