"""The record: one JSON object a line, and what its fields may hold. Pure.

`FIELDS` is the one place where a field is defined: the checks, the JSON Schema and the table in
docs/reference/record.md all come from it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import BadLine, Refused, suggest

Record = dict[str, Any]

MAX_LINE = 16 * 2**20  # bytes
MAX_SEED = 2**64 - 1  # what ComfyUI accepts; only the low 32 bits change its picture
DRAWN_SEEDS = 2**32
_TEXT = {"type": "string", "minLength": 1, "maxLength": 200}
_UUID = {"type": "string", "format": "uuid"}
_STRING = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_SIZE = {"type": "integer", "minimum": 16, "maximum": 16384}
_LOOSE = {"type": "object"}


class Field(NamedTuple):
    """One field of the record: who writes it, its JSON Schema, and what it says."""

    by: str
    schema: dict[str, Any]
    says: str


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


_ERROR = _object(
    ["tool", "code", "message", "billed", "retry"],
    tool=_TEXT,
    code=_TEXT,
    message={"type": "string"},
    hint={"type": "string"},
    billed={"enum": ["no", "yes", "unknown"]},
    retry={"enum": ["safe", "after", "never", "reconcile"]},
    retry_after_s={"type": "number", "minimum": 0},
    scope={"enum": ["setup"]},
)
_CHANGE = {"field": _TEXT, "asked": {}, "got": {}, "why": {"type": "string"}}
_FIDELITY = _object(
    [],
    approximated={"type": "array", "items": _object(["field", "asked", "got", "why"], **_CHANGE)},
    dropped={"type": "array", "items": _object(["field", "asked", "why"], **_CHANGE)},
)
_PENDING = _object(
    ["backend", "handle", "since"],
    backend=_TEXT,
    handle={"type": "string", "minLength": 1},
    since={"type": "string", "format": "date-time"},
)
_ASK, _RENDER = "whoever asks", "render"

FIELDS: dict[str, Field] = {
    "prompt": Field(
        _ASK,
        {"type": "string", "minLength": 1, "maxLength": 100_000, "pattern": "\\S"},
        "what to make; the only field a request needs",
    ),
    "id": Field(_ASK, _TEXT, "the name of this one image; a fresh UUID when not given"),
    "negative_prompt": Field(
        _ASK, {"type": "string", "maxLength": 100_000}, "what to keep out of the picture"
    ),
    "style": Field(_ASK, _TEXT, "the name of a style of the configuration"),
    "backend": Field(_ASK, _TEXT, "the name of a backend instance"),
    "width": Field(_ASK, _SIZE, "pixels; in a finished record, as it came out"),
    "height": Field(_ASK, _SIZE, "pixels; in a finished record, as it came out"),
    "seed": Field(
        _ASK,
        {"type": "integer", "minimum": 0, "maximum": MAX_SEED},
        "drawn from 1..2³²−1 when not given; in a finished record, the used one",
    ),
    "steps": Field(_ASK, {"type": "integer", "minimum": 1, "maximum": 10_000}, "sampling steps"),
    "cfg": Field(_ASK, {"type": "number", "minimum": 0, "maximum": 100}, "guidance scale"),
    "sampler": Field(_ASK, _TEXT, "the backend's name of a sampler"),
    "scheduler": Field(_ASK, _TEXT, "the backend's name of a scheduler"),
    "options": Field(_ASK, _LOOSE, "passed to the backend as it is"),
    "caller": Field(_ASK, _TEXT, "who asked; render fills it in when nobody says"),
    "owner_user_id": Field(_ASK, _UUID, "whose image it is in the cloud"),
    "job": Field(
        "listen",
        _object(["id"], id=_TEXT, attempt=_COUNT, intended_at=_STRING, released_at=_STRING),
        "the queued job that this line answers",
    ),
    "render_id": Field(_RENDER, _UUID, "the id, made globally unique"),
    "request": Field(_RENDER, _TEXT, "the id of the request that this one was made from"),
    "file": Field(_RENDER, {"type": "string"}, "absolute path of the image"),
    "sidecar": Field(_RENDER, {"type": "string"}, "absolute path of this record beside the image"),
    "sha256": Field(
        _RENDER, {"type": "string", "pattern": "^[0-9a-f]{64}$"}, "of the image's bytes"
    ),
    "bytes": Field(_RENDER, _COUNT, "length of the image file"),
    "format": Field(
        _RENDER,
        {"enum": ["png", "jpeg", "webp", "gif", "avif"]},
        "told by the bytes themselves, which are kept as they came",
    ),
    "model": Field(_RENDER, {"type": "string"}, "the model or its file"),
    "workflow": Field(_RENDER, {"type": "string"}, "the name of the ComfyUI workflow"),
    "sent_prompt": Field(
        _RENDER, {"type": "string"}, "the prompt that was sent, if a style changed it"
    ),
    "sent_negative_prompt": Field(
        _RENDER, {"type": "string"}, "the negative prompt that was sent, if a style changed it"
    ),
    "submit": Field(_RENDER, _TEXT, "the provider's handle, shared by all images of one submit"),
    "date": Field(_RENDER, {"type": "string", "format": "date"}, "the folder's date, UTC"),
    "slug": Field(
        _RENDER, {"type": "string", "pattern": "^[a-z0-9-]+$"}, "the prompt in the file's name"
    ),
    "started_at": Field(_RENDER, {"type": "string", "format": "date-time"}, "UTC, of the submit"),
    "latency_ms": Field(_RENDER, _COUNT, "from the submit until the image was here"),
    "queue_ms": Field(_RENDER, _COUNT, "the part of it spent waiting for the backend's turn"),
    "cost_usd": Field(
        _RENDER, {"type": "number", "minimum": 0}, "absent when unknown, never 0 for unknown"
    ),
    "attempts": Field(_RENDER, {"type": "integer", "minimum": 1}, "submits that this image took"),
    "backend_meta": Field(_RENDER, _LOOSE, "seed_used, prompt_id, client_id, vram_used_mib, …"),
    "fidelity": Field(_RENDER, _FIDELITY, "what was approximated or dropped, when anything was"),
    "warnings": Field(
        _RENDER,
        {"type": "array", "items": {"type": "string"}},
        "`flat` (one colour), `extension` (the name says another format)",
    ),
    "pending": Field(_RENDER, _PENDING, "render stopped waiting; pipe the line back to collect it"),
    "members": Field("sheet", {"type": "array"}, "the images on the sheet"),
    "cells": Field("sheet", {"type": "array"}, "address, id, file and pixel box of each"),
    "cloud": Field(
        "upload",
        _object([], bucket=_TEXT, path=_TEXT, image_id=_UUID, signed_url={"type": "string"}),
        "where it is in the cloud",
    ),
    "usage_id": Field("log-usage", _TEXT, "the row of the cost log"),
    "error": Field("the tool that failed", _ERROR, "what failed, if money left, what to do"),
}

REQUEST = [name for name, field in FIELDS.items() if field.by == _ASK]
OF_TOOLS = [name for name in FIELDS if name not in REQUEST and name != "job"]

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def finite(text: str) -> float:
    """Read a number of JSON with a point or an exponent; BadLine when a double cannot hold it."""
    value = float(text)
    if math.isinf(value):
        raise BadLine(f"not JSON: {text[:20]} is too large for a number")
    return value


def _no_constant(text: str) -> float:
    raise BadLine(f"not JSON: {text} is no number")


_decode = json.JSONDecoder(parse_float=finite, parse_constant=_no_constant).decode


def parse(raw: bytes) -> Record:
    """Read one line; BadLine when it is not one JSON object in UTF-8."""
    try:
        value = _decode(raw.rstrip(b" \t\r\n").decode())  # or its end is column 1 of line 2
    except UnicodeDecodeError as fault:
        raise BadLine(f"not UTF-8: byte {fault.start + 1} of the line") from None
    except json.JSONDecodeError as fault:
        line = f"line {fault.lineno} of the object, " if fault.lineno > 1 else ""
        raise BadLine(f"not JSON: {fault.msg} at {line}column {fault.colno}") from None
    except RecursionError:
        raise BadLine("not JSON: nested too deep") from None
    except ValueError:  # Python's own limit on the digits of an integer
        raise BadLine("not JSON: a number has too many digits") from None
    if b"\\ud" in raw.lower():
        _check_pairs(value)
    if not isinstance(value, dict):
        raise BadLine(f"not a JSON object: {_NAMES[type(value)]}")
    return value


_MARK = "\ufeff".encode()  # the byte-order mark that Windows puts before UTF-8
_INVISIBLE = "\ufeff\u200b"


def without_mark(raw: bytes) -> bytes:
    """Return a line without the byte-order mark that it begins with."""
    return raw.removeprefix(_MARK)


def is_blank(raw: bytes) -> bool:
    """Whether a line shows nothing: it holds blanks and marks without a width only."""
    return raw.isspace() or not raw.decode(errors="replace").strip(_INVISIBLE + " \t\r\n")


def _check_pairs(value: Any) -> None:
    """Refuse half of a surrogate pair: no UTF-8 can hold it, so nothing after us could read it."""
    for text in _strings(value):
        if not is_unicode(text):
            raise BadLine("not Unicode: half of a surrogate pair")


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8: no half of a surrogate pair is in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_NAMES: dict[type, str] = {
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def line(record: Mapping[str, Any]) -> bytes:
    """Give the record as one line of UTF-8, newline included."""
    return (_CONTROL.sub(_escaped, _encode(record)) + "\n").encode()


_CONTROL = re.compile("[\x7f-\x9f]")  # JSON lets them stand, a terminal would obey them


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def checked(record: Mapping[str, Any]) -> Record:
    """Give a copy whose request fields are sound; Refused names the field otherwise.

    A field that is null counts as not said; a whole number written as a float becomes an int.
    """
    found = {}
    for name, value in record.items():
        field = FIELDS.get(name)
        if field is None or field.by != _ASK:
            found[name] = value
        elif value is not None:
            found[name] = _checked(name, value, field.schema)
    if "prompt" not in found:
        raise Refused("no prompt", hint=None if record else "a request needs at least a prompt")
    return found


def _checked(name: str, value: Any, schema: Mapping[str, Any]) -> Any:
    kind: str = schema["type"]
    if name == "seed":
        _check_seed(value)
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, _KINDS[kind]):
        raise Refused(f"{name} must be {_KIND_NAMES[kind]}, not {_NAMES.get(type(value), '?')}")
    if kind in ("integer", "number"):
        low, high = schema["minimum"], schema["maximum"]
        if not low <= value <= high:
            raise Refused(f"{name} must be from {low} to {high}, not {_short(value)}")
        return value
    if kind == "object" and depth(value) > _DEEPEST:
        raise Refused(f"{name} is nested more than {_DEEPEST} deep")
    for text in _strings(value):
        _check_text(name, text)
    if isinstance(value, str):
        _check_length(name, value, schema)
    return value


ROUNDED = "jq before 1.7 rounds numbers above 2^53; take jq 1.7, or write the seed anew"


def _check_seed(value: Any) -> None:
    """Explain the seeds that other tools take, and those that a tool on the way has changed."""
    if isinstance(value, float) and not value.is_integer():
        hint = "leave it out for a random one"
        raise Refused(f"seed must be a whole number, not {value}", hint=hint)
    if not isinstance(value, (int, float)):
        return
    if value < 0:
        hint = "leave it out for a random one"
        raise Refused(f"seed must be from 0 to {MAX_SEED}, not {_short(value)}", hint=hint)
    if isinstance(value, float) and value > 2**53:
        raise Refused(f"seed {value} has lost digits, so it differs", hint=ROUNDED)
    if MAX_SEED < value <= MAX_SEED + 1000:
        raise Refused(f"seed must be from 0 to {MAX_SEED}, not {value}", hint=ROUNDED)


def is_rounded(seed: Any, exact: Any) -> bool:
    """Whether a seed is what another became in a program that knows doubles only."""
    if not isinstance(seed, int) or not isinstance(exact, int) or seed == exact:
        return False
    return max(seed, exact) > 2**53 and float(seed) == float(exact)


_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "object": (dict,),
}
_KIND_NAMES = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "object": "an object",
}


def _short(value: Any) -> str:
    digits = int(math.log10(abs(value))) + 1 if abs(value) >= 1 else 1
    return str(value) if digits <= 40 else f"a number of {digits} digits"


def _strings(value: Any) -> Iterator[str]:
    """Every string inside a JSON value, keys included, without recursion."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one


_DEEPEST = 100  # far more than any backend takes, far less than what breaks a reader of JSON


def depth(value: Any) -> int:
    """How deep lists and objects are nested, without recursion."""
    depth, level = 0, [value]
    while level:
        nested = [one for one in level if isinstance(one, (dict, list))]
        depth += bool(nested)
        level = [x for one in nested for x in (one.values() if isinstance(one, dict) else one)]
    return depth


def _check_text(name: str, text: str) -> None:
    if not is_unicode(text):
        raise Refused(f"{name} is not valid UTF-8")
    if "\0" in text:
        raise Refused(f"{name} has a NUL character in it", hint="Postgres has no place for one")


def check_storable(record: Mapping[str, Any]) -> None:
    """Refuse a record that Postgres has no place for: a NUL in any text, or nested too deep."""
    if depth(record) > _DEEPEST:
        raise Refused(f"the record is nested more than {_DEEPEST} deep")
    for text in _strings(record):
        _check_text("the record", text)


def _check_length(name: str, text: str, schema: Mapping[str, Any]) -> None:
    if len(text) < schema.get("minLength", 0) or ("pattern" in schema and not text.strip()):
        raise Refused(f"{name} is empty")
    if len(text) > schema.get("maxLength", math.inf):
        raise Refused(f"{name} has {len(text)} characters; at most {schema['maxLength']} fit")
    if schema.get("format") == "uuid" and canonical_uuid(text) is None:
        raise Refused(f"{name} must be a UUID, not {text[:40]!r}")


def canonical_uuid(text: str) -> str | None:
    """Give the text in lower case when it is a UUID in the usual 8-4-4-4-12 form, else None."""
    parts = text.split("-")
    if [len(part) for part in parts] != [8, 4, 4, 4, 12]:
        return None
    digits = text.lower().replace("-", "")
    return text.lower() if all(one in "0123456789abcdef" for one in digits) else None


def asked(record: Mapping[str, Any], kept: Collection[str] = ()) -> Record:
    """Give a record's request and unknown fields; what tools wrote is dropped, but for `kept`.

    Without its id kept, it is a new request, and the old id stands in `request`.
    """
    gone = {*OF_TOOLS, "id", "job"} - {*kept}
    fresh = {name: value for name, value in record.items() if name not in gone}
    if "id" not in kept and "id" in record:
        fresh["request"] = record["id"]
    return fresh


def overridden(record: Mapping[str, Any], values: Mapping[str, Any]) -> Record:
    """Give a copy in which `values` hold over what the record says (`--set`)."""
    for name in values:
        if name not in REQUEST:
            raise Refused(f"{name!r} is no request field", hint=suggest(name, REQUEST))
    return {**record, **values}


def changed(record: Mapping[str, Any], values: Mapping[str, Any]) -> Record:
    """Return a copy in which `values` win over what the record says; options merge by key."""
    options = record.get("options")
    if isinstance(options, dict) and "options" in values:
        values = {**values, "options": {**options, **values["options"]}}
    return {**record, **values}


_SIZE_TEXT = re.compile(r"(\d{1,9})[x×X](\d{1,9})", re.ASCII)


def size_of(text: str) -> dict[str, int] | None:
    """Return width and height of a text like 1024x768; None when it is no such text."""
    match = _SIZE_TEXT.fullmatch(text)
    return {"width": int(match[1]), "height": int(match[2])} if match else None


def sized(record: Mapping[str, Any]) -> Record:
    """Return a copy whose `size`, a text like 1024x768, is read when it has no width and height."""
    text, sides = record.get("size"), (record.get("width"), record.get("height"))
    size = size_of(text) if isinstance(text, str) and sides == (None, None) else None
    return {**record, **(size or {})}


def with_defaults(record: Mapping[str, Any], defaults: Mapping[str, Any]) -> Record:
    """Give a copy in which `defaults` fill what the record does not say; options merge by key."""
    filled = dict(record)
    for name, value in defaults.items():
        if name == "options" and isinstance(filled.get(name), dict):
            filled[name] = {**value, **filled[name]}
        elif filled.get(name) is None:
            filled[name] = value
    return filled


def schema(of: str = "record") -> dict[str, Any]:
    """Give the JSON Schema (draft 2020-12) of a request or a record."""
    names = [*REQUEST, "job"] if of == "request" else list(FIELDS)
    properties: dict[str, Any] = {}
    for name in names:
        field = FIELDS[name]
        fragment = dict(field.schema)
        if field.by == _ASK and name != "prompt" and of == "request":
            fragment["type"] = [fragment["type"], "null"]
        properties[name] = {"description": field.says, **fragment}
    whole: dict[str, Any] = {"required": ["prompt"], "properties": properties}
    if of == "record":  # a failed one travels on with the very fields that made it fail
        del whole["required"]
        whole["anyOf"] = [{"required": [name]} for name in ("prompt", "file", "members")]
        failed = {"properties": {"error": properties["error"]}}
        whole = {"if": {"required": ["error"]}, "then": failed, "else": whole}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:imagen:{of}",
        "title": f"imagen {of}",
        "type": "object",
        **whole,
    }
