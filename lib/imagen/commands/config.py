"""imagen-config: a sample, a check, what is in force."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..cli.tool import Common, tool
from ..errors import DONE, REFUSED, ConfigFault, UsageFault

if TYPE_CHECKING:
    from ..cli.pipe import Report
    from ..config.loader import Config

EXAMPLES = """
Examples:
  imagen-config init
  imagen-config show | jq -r 'select(.source != "default") | .key'
  imagen-config schema record > record.schema.json
"""


@tool("config", epilog=EXAMPLES, any_bytes=("which",))
@click.argument("what", type=click.Choice(["init", "sample", "validate", "show", "path", "schema"]))
@click.argument("which", required=False)
def main(common: Common, what: str, which: str | None) -> int:
    """init writes a first file, and replaces none; sample prints it, commented; validate [FILE]
    names every fault with its line; show prints the values in force and where each came from; path
    prints where the file is or would be; schema [request|record] prints the JSON Schema.
    """
    import json

    from ..cli.pipe import write_out
    from ..config import loader

    if which and what not in ("validate", "schema"):
        raise UsageFault(f"{what} takes nothing more")
    if what == "init":
        _init(common)
    elif what == "sample":
        write_out(loader.SAMPLE.read_bytes())
    elif what == "path":
        write_out(os.fsencode(f"{loader.find(common.config_file) or loader.default_path()}\n"))
    elif what == "schema":
        write_out(json.dumps(_schema(which), indent=2, ensure_ascii=False).encode() + b"\n")
    elif what == "show":
        _show(loader.load(common.config_file), common)
    else:
        return _validate(common.report, which or common.config_file)
    return DONE


def _init(common: Common) -> None:
    """Write the first configuration file; ConfigFault when there is one already."""
    from ..cli import first_config
    from ..cli.pipe import write_out
    from ..config import loader
    from ..errors import from_os
    from ..files import atomic

    path = loader.chosen_path(common.config_file).absolute()
    taken = ConfigFault(
        f"{path} is there already", hint="imagen-config sample prints one to compare with it"
    )
    if os.path.lexists(path):
        raise taken
    text, note = first_config.first_file()
    os.umask(0o077)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.publish(path, text.encode())
    except FileExistsError:
        raise taken from None
    except OSError as fault:
        error = from_os(fault, "cannot write the configuration")
        error.hint = "name another file with --config"
        raise error from None
    write_out(os.fsencode(f"{path}\n"))
    common.report.note(note)


def _schema(which: str | None) -> dict[str, Any]:
    from ..records import record

    if which in ("request", "record"):
        return record.schema(which)
    if which:
        raise UsageFault(f"no schema of {which!r}", hint="request or record")
    both = {name: record.schema(name) for name in ("request", "record")}
    return {
        "$schema": both["record"].pop("$schema"),
        "$id": "urn:imagen",
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in both],
        "$defs": both,
    }


def _validate(report: Report, named: str | None) -> int:
    from .. import backends
    from ..cli.pipe import write_out
    from ..config import loader, settings

    path = loader.find(named)
    parsed = loader.parse(path) if path else loader.Parsed({}, {}, [])
    faults = [settings.Fault(place, "stands twice") for place in parsed.twice]
    faults += parsed.faults()
    if path:
        for name, said in _instances(parsed.tree):
            faults += backends.faults(backends.Instance(name, said, path.parent, path.parent))
    for fault in sorted(faults, key=lambda fault: loader.line_of(fault.place, parsed.lines)):
        where = f"{path}:{loader.line_of(fault.place, parsed.lines)}: {'.'.join(fault.place)}"
        report.fault(where, ConfigFault(fault.message, hint=fault.hint))
    if faults:
        return REFUSED
    values = loader.load(named)
    if lacking := _cloud_lacks(values):
        report.say(lacking)
    write_out(
        os.fsencode(f"{path}: ok\n") if path else b"no configuration file; the defaults are ok\n"
    )
    return DONE


def _cloud_lacks(values: Config) -> str | None:
    """Return what is missing in a cloud that is half configured, None where nothing is."""
    mode, url = values["output.cloud_sync"], values["supabase.url"]
    if mode == "off" or (mode == "auto" and not url):
        return None
    for key in ("supabase.url", "supabase.owner_user_id"):
        if not values[key]:
            sync = f"output.cloud_sync is {mode}, but {key} is empty: nothing can be uploaded"
            return f"{sync} (hint: imagen-config sample shows how to find it)"
    return None


def _instances(tree: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the instances that are whole enough for their backend to judge."""
    named = tree.get("backends")
    for name, said in named.items() if isinstance(named, dict) else []:
        if isinstance(said, dict) and isinstance(said.get("type"), str):
            yield str(name), said


def _show(values: Config, common: Common) -> None:
    from ..config import loader, settings

    for key, value, source in loader.all_values(values):
        line = {"key": key, "value": loader.shown(key, value), "source": source}
        if key.endswith("_env") and isinstance(value, str):
            line["secret"] = settings.SECRET if loader.secret(value) else None
        common.pipe.write(line)


if __name__ == "__main__":
    main()
