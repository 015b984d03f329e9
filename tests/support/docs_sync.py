"""Write the generated parts of the documents again, or name those that are stale.

A generated part stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`; what is in it comes
from the code.

    python tests/support/docs_sync.py             exit 1 and name what is stale
    python tests/support/docs_sync.py --write     write it again (`make docs`)
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import imagen
from imagen import backends
from imagen.backends import mock
from imagen.cli.tools import TOOLS
from imagen.config import prices, settings
from imagen.config.settings import Key
from imagen.errors import ImagenError
from imagen.models import files
from imagen.records import record
from imagen.workflows import template

TOP = Path(__file__).parents[2]
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"<!-- begin: (.+?) -->\n(.*?)<!-- end: \1 -->\n", re.DOTALL)
_COLUMNS = 88


def blocks(page: Path) -> list[str]:
    """Give the names of a page's generated parts."""
    return [found[1] for found in _BLOCK.finditer(page.read_text())]


def synced(page: Path) -> str:
    """Give a page's text with every generated part as the code has it now."""

    def fresh(found: re.Match[str]) -> str:
        name = found[1]
        return f"<!-- begin: {name} -->\n\n{_made(name, page)}\n\n<!-- end: {name} -->\n"

    return _BLOCK.sub(fresh, page.read_text())


def stale(page: Path) -> list[str]:
    """Name the parts of a page that are not what the code says now."""
    text = page.read_text()
    new = {found[1]: found[2] for found in _BLOCK.finditer(synced(page))}
    return [found[1] for found in _BLOCK.finditer(text) if found[2] != new[found[1]]]


def _made(name: str, page: Path) -> str:
    kind, _, rest = name.partition(" ")
    return _help(rest) if kind == "help" else _MAKERS[name](page)


# -- the parts -------------------------------------------------------------------------------------


def _help(tool: str) -> str:
    arguments = [tool, "--help"] if tool in TOOLS else []
    said = subprocess.run(
        [sys.executable, "-m", "imagen", *arguments],
        env={**os.environ, "COLUMNS": str(_COLUMNS)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return f"```text\n{said.rstrip()}\n```"


def _tools(page: Path) -> str:
    folder = os.path.relpath(TOP / "docs/tools", page.parent)
    rows = [
        [f"[imagen-{name}]({os.path.normpath(f'{folder}/imagen-{name}.md')})", says]
        for name, says in TOOLS.items()
    ]
    return _table(["tool", "what it does"], rows)


def _record_fields(_page: Path) -> str:
    rows = [
        [f"`{name}`", field.by, _kind(field.schema), field.says]
        for name, field in record.FIELDS.items()
    ]
    return _table(["field", "written by", "holds", "says"], rows)


def _kind(schema: dict[str, Any]) -> str:
    """Say a JSON Schema in words."""
    if "enum" in schema:
        return _or(schema["enum"])
    kind = schema["type"]
    if kind in ("integer", "number"):
        low, high = schema.get("minimum"), schema.get("maximum")
        limits = f"{low} to {high}" if high is not None else f"from {low}"
        return f"{'whole number' if kind == 'integer' else 'number'}, {limits}"
    if kind == "string":
        return _text_kind(schema)
    if kind == "array":
        return f"list of {_kind(schema['items'])}" if "items" in schema else "list"
    if "properties" in schema:
        needed = schema.get("required", [])
        names = [f"`{name}`" + "?" * (name not in needed) for name in schema["properties"]]
        return f"object: {', '.join(names)}"
    return "object"


def _text_kind(schema: dict[str, Any]) -> str:
    if "format" in schema:
        return {"uuid": "UUID", "date": "date", "date-time": "time, ISO 8601"}[schema["format"]]
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    pattern = schema.get("pattern")
    parts = ["text"]
    if high is not None:
        parts.append(f"{low} to {high} characters")
    if pattern:
        parts.append("not blank" if pattern == "\\S" else f"`{pattern}`")
    return ", ".join(parts)


def _error_codes(_page: Path) -> str:
    rows = []
    for kind in error_classes():
        fault = kind()
        status = str(fault.exit_status)
        rows.append([f"`{fault.code}`", fault.message, fault.billed, fault.retry, status])
    return _table(["code", "message, when nothing more exact is known", *_ERROR_HEADS], rows)


_ERROR_HEADS = ["billed", "retry", "exit status"]


def error_classes() -> Iterator[type[ImagenError]]:
    """Every class of the error family, in the order in which the modules define them."""
    for found in sorted(pkgutil.walk_packages(imagen.__path__, "imagen."), key=_errors_first):
        if not re.search(r"__main__|\.commands\b", found.name):
            for value in vars(importlib.import_module(found.name)).values():
                own = isinstance(value, type) and value.__module__ == found.name
                if own and issubclass(value, ImagenError) and value is not ImagenError:
                    yield value


def _errors_first(module: pkgutil.ModuleInfo) -> tuple[bool, str]:
    return module.name != "imagen.errors", module.name


def _mock_faults(_page: Path) -> str:
    return _table(["fault", "what happens"], [[f"`{k}`", v] for k, v in mock.FAULTS.items()])


def _config_keys(_page: Path) -> str:
    rows = [
        [f"`{section}.{name}`".replace("`.", "`"), *_key(key), _code(f"${key.env}", key.env)]
        for section, keys in settings.KEYS.items()
        for name, key in keys.items()
    ]
    return _table(["key", "value", "default", "environment"], rows)


def _instance_keys(_page: Path) -> str:
    rows = [["every", f"`{name}`", *_key(key)] for name, key in backends.BASE_KEYS.items()]
    for kind in backends.TYPES:
        keys = importlib.import_module(f"imagen.backends.{kind}").KEYS
        rows += [[kind, f"`{name}`", *_key(key)] for name, key in keys.items()]
    return _table(["type", "key", "value", "default"], rows)


def _key(key: Key) -> list[str]:
    kind = _or(key.kind.split("|")) if "|" in key.kind else _KINDS.get(key.kind, key.kind)
    return [kind, _code(key.default, key.default)]


_KINDS = {
    "string": "text",
    "url": "URL",
    "server": "URL",
    "uuid": "UUID",
    "count": "whole number from 1",
    "seconds": "seconds",
    "amount": "USD",
    "date": "date",
    "strings": "list of words",
    "mapping": "keys and values",
    "environment": "header: variable",
    "faults": "list, or a YAML file",
}


def _code(value: object, there: object) -> str:
    return f"`{value}`" if there is not None else ""


def _workflows(_page: Path) -> str:
    found = [template.load(name) for name in template.bundled()]
    about = [
        [
            f"`{one.name}`",
            one.description,
            str(one.defaults["steps"]),
            f"{one.defaults['width']}×{one.defaults['height']}, multiples of {one.size_multiple}",
        ]
        for one in found
    ]
    rows = [
        [
            f"`{one.name}`",
            f"`{model.file}`",
            f"`models/{model.folder}`",
            files.readable(model.size) if model.size else "",
            f"[{model.licence}]({model.accept})" if model.accept else model.licence,
            f"<{model.sources[0]}>",
        ]
        for one in found
        for model in one.needs({})
    ]
    return (
        _table(["workflow", "what it is", "steps", "size"], about)
        + "\n\n"
        + _table(["workflow", "file", "folder of ComfyUI", "size", "licence", "source"], rows)
    )


def _prices(_page: Path) -> str:
    rows = [
        [f"`{model}`", f"{one['amount']}", one["unit"], one["as_of"], f"<{one['source']}>"]
        for model, one in prices.read(prices.LIST).items()
    ]
    return _table(["model", "USD", "for each", "as of", "source"], rows)


_MAKERS: dict[str, Callable[[Path], str]] = {
    "tools": _tools,
    "record fields": _record_fields,
    "error codes": _error_codes,
    "mock faults": _mock_faults,
    "config keys": _config_keys,
    "instance keys": _instance_keys,
    "workflows": _workflows,
    "prices": _prices,
}


def _or(words: Iterable[str]) -> str:
    *most, last = (f"`{word}`" for word in words)
    return f"{', '.join(most)} or {last}" if most else last


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def main() -> int:
    """Write what is stale, or name it."""
    write = "--write" in sys.argv[1:]
    found = [(page, name) for page in PAGES for name in stale(page)]
    for page, name in found:
        if write:
            page.write_text(synced(page))
        print(f"{page.relative_to(TOP)}: {name}{'' if write else ' is stale (hint: make docs)'}")
    return 1 if found and not write else 0


if __name__ == "__main__":
    sys.exit(main())
