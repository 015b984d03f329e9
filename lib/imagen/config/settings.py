"""What the configuration may hold: every key, its kind and its default, and the checks. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..errors import ConfigFault, suggest
from ..records.record import canonical_uuid

SECRET = "***"
QUOTES = "put it in quotes"
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
        "url": Key("server", None, "SUPABASE_URL"),
        "service_key_env": Key("variable", "SUPABASE_SERVICE_ROLE_KEY"),
        "bucket": Key("string", "imagen-generated"),
        "schema": Key("string", "imagen"),
        "owner_user_id": Key("uuid", None, "IMAGEN_OWNER_USER_ID"),
    },
    "models": {
        "dir": Key("path", None, "IMAGEN_MODELS_DIR"),
        "url": Key("server", "https://huggingface.co", "HF_ENDPOINT"),
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
PRICE_KEYS = {
    "amount": Key("amount"),
    "unit": Key("image|megapixel|second"),
    "as_of": Key("date"),
    "source": Key("string"),
}
STYLE_KEYS = {name: Key("string") for name in ("prefix", "suffix", "template", "negative")}


class Fault(NamedTuple):
    """One thing wrong with the configuration file: where it stands, and what it is."""

    place: Place
    message: str
    hint: str | None = None


def faults(tree: Tree) -> Iterator[Fault]:
    """Yield everything wrong with the tree, but for what only a backend can judge."""
    sections = {"backends", "styles", "prices", *KEYS} - {""}
    for name, value in tree.items():
        if name in KEYS[""]:
            yield from check((name,), KEYS[""][name].kind, value)
        elif name not in sections:
            yield Fault((str(name),), "unknown key", suggest(str(name), {*sections, *KEYS[""]}))
        elif value is None:
            continue
        elif not isinstance(value, dict):
            yield Fault((name,), "must hold keys and values")
        elif name == "prices":
            yield from check_prices((name,), value)
        elif name in ("backends", "styles"):
            for inner, settings in value.items():
                yield from _check_named(name, inner, settings)
        else:
            yield from check_keys((name,), KEYS[name], value)
    yield from _check_names(tree)


def _check_names(tree: Tree) -> Iterator[Fault]:
    """Yield the names of backends that stand for none."""
    instances, worker = tree.get("backends") or {}, tree.get("worker")
    if not isinstance(instances, dict):
        return
    listed = worker.get("backends") if isinstance(worker, dict) else None
    named = [(("worker", "backends"), one) for one in listed] if isinstance(listed, list) else []
    known = {"mock", *map(str, instances)}
    for place, name in [(("default_backend",), tree.get("default_backend")), *named]:
        if isinstance(name, str) and name not in known:
            yield Fault(place, f"no backend {name!r}", suggest(name, known))


def _check_named(section: str, name: Any, settings: Any) -> Iterator[Fault]:
    if not isinstance(name, str):
        yield Fault((section, str(name)), f"the name must be text, not {name!r}", QUOTES)
    elif section == "styles":
        yield from check_keys((section, name), STYLE_KEYS, settings)
    else:
        yield from _check_instance(name, settings)


def check_prices(place: Place, tree: Any) -> Iterator[Fault]:
    """Yield the faults of a price list: models, each with an amount and its unit."""
    if not isinstance(tree, dict):
        yield Fault(place, "must hold models, each with its price", _PRICE)
        return
    for model, price in tree.items():
        inner = (*place, str(model))
        if not isinstance(model, str) or not MODEL.fullmatch(model):
            yield Fault(inner, "no model of the form owner/name or owner/name:version")
            continue
        yield from check_keys(inner, PRICE_KEYS, price)
        if isinstance(price, dict):
            for name in ("amount", "unit"):
                if price.get(name) is None:
                    yield Fault(inner, f"no {name}", _PRICE)


MODEL = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[A-Za-z0-9]+)?", re.ASCII)
_PRICE = "owner/name: {amount: 0.003, unit: image}"


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
            yield from check((*place, name), keys[name].kind, value)


def check(place: Place, kind: str, value: Any) -> Iterator[Fault]:
    """Yield what is wrong with one value; null is always right, and means the default."""
    if value is None:
        return
    if "|" in kind:
        if _switch(value) not in kind.split("|"):
            yield Fault(place, f"must be {kind.replace('|', ', ')}, not {value!r}")
        return
    types, says, good = _KINDS[kind]
    wrong = (isinstance(value, bool) and bool not in types) or not isinstance(value, types)
    if wrong or not good(value):
        said = "" if kind in _SECRETIVE else f", not {hide_password(str(value))[:80]!r}"
        yield Fault(place, f"must be {says}{said}", _hint(kind, value))


def _hint(kind: str, value: Any) -> str | None:
    """Return how a value of the wrong kind becomes a right one, where that is known."""
    if kind in _TEXTS:
        values = value if isinstance(value, list) and kind == "strings" else [value]
        if any(isinstance(each, (bool, int, float, date)) for each in values):
            return QUOTES
    if kind in ("any", "mapping") and isinstance(value, date):
        return QUOTES
    if not isinstance(value, str):
        return None
    if kind == "path":
        return (
            "no shell reads this file: ~ stands for your home"
            if "$" in value or "%" in value
            else "write it with slashes, such as ~/pictures"
        )
    if kind == "server" and _is_url(value):
        return "leave out what follows the ? or #; headers_env sends a token"
    return None


def _is_path(value: str) -> bool:
    """Tell whether a path needs no shell, and no Windows, to be read as it is meant."""
    return bool(value) and not _FOREIGN.search(value)


_FOREIGN = re.compile(r"(^|/)\$[A-Za-z_]|\$\{|(^|/)%\w+%|^[A-Za-z]:[\\/]|^\\\\")
_TEXTS = ("string", "path", "strings")


def _is_server(value: str) -> bool:
    """Tell whether a URL is a server's address: what follows a ? or # would never be sent."""
    return _is_url(value) and "?" not in value and "#" not in value


def _always(_value: Any) -> bool:
    return True


def _is_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and " " not in value
    except ValueError:
        return False


def _is_json(value: Any) -> bool:
    """Whether a value can be sent: YAML also knows dates, sets and numbers that are none."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _is_variable(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) is not None


def _is_date(value: str | date) -> bool:
    """Whether it is a day or a month of ISO 8601; YAML reads a day as a date."""
    if isinstance(value, date):
        return True
    try:
        date.fromisoformat(f"{value}-01" if len(value) == 7 else value)
    except ValueError:
        return False
    return len(value) in (7, 10)


def _positive(value: float) -> bool:
    return 0 < value < float("inf")


_SECRETIVE = ("variable", "environment")  # a secret may stand where its variable's name belongs
_KINDS: dict[str, tuple[tuple[type, ...], str, Any]] = {
    "string": ((str,), "text", len),
    "path": ((str,), "a path", _is_path),
    "url": ((str,), "a URL that starts with http:// or https://", _is_url),
    "server": ((str,), "a URL that starts with http:// or https://, without ? and #", _is_server),
    "uuid": ((str,), "a UUID", lambda value: not value or canonical_uuid(value)),
    "count": ((int,), "a whole number from 1", lambda value: value >= 1),
    "number": ((int, float), "a number", _always),
    "seconds": ((int, float), "a number of seconds", _positive),
    "amount": ((int, float), "an amount in USD", lambda value: 0 <= value < float("inf")),
    "strings": ((list,), "a list of words", lambda value: all(isinstance(x, str) for x in value)),
    "mapping": ((dict,), "keys and values that JSON can hold", _is_json),
    "any": ((object, bool), "a value that JSON can hold", _is_json),
    "date": ((str, date), "a date like 2026-05-31 or 2026-05", _is_date),
    "variable": ((str,), "the name of an environment variable", _is_variable),
    "environment": (
        (dict,),
        "names of headers, each with the name of an environment variable",
        lambda value: all(isinstance(k, str) and _is_variable(v) for k, v in value.items()),
    ),
    "faults": ((list, str), "a list of faults or the path of a YAML file with one", _always),
}


def _switch(value: Any) -> Any:
    """Read YAML's own idea of on and off back as the words that were meant."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def expanded(text: str) -> Path:
    """Give a path with ~ expanded; ConfigFault when it has no home, or needs a shell."""
    if text and not _is_path(text):
        raise ConfigFault(f"no path for this machine: {text[:80]!r}", hint=_hint("path", text))
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigFault(f"no home for {text!r}", hint="write the path out") from None


def resolved(kind: str, value: Any) -> Any:
    """Give a value as the code wants it: switches as words, paths absolute."""
    if value is not None and kind == "path":
        return expanded(value).absolute()
    return _switch(value) if "|" in kind else (value or None) if kind == "uuid" else value


def hide_password(url: str) -> str:
    """Give a URL with whoever stands before its @ and what follows its ? or # replaced."""
    without = re.sub(r"(://)[^/\s]*@", rf"\1{SECRET}@", url)
    return re.sub(r"(://[^?#\s]*[?#]).*", rf"\1{SECRET}", without)
