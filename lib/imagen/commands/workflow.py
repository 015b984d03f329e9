"""imagen-workflow: list, show and check workflows; make one of an export of ComfyUI."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..cli.tool import Common, tool
from ..errors import DONE, FAILED, REFUSED, ImagenError, UsageFault, worse

if TYPE_CHECKING:
    from ..config.loader import Config
    from ..workflows.check import Finding
    from ..workflows.template import Workflow

EXAMPLES = """
Examples:
  imagen-workflow show flux1-schnell
  imagen-workflow check flux1-schnell | jq -r .message
  imagen-workflow import export.json -o sdxl.json
"""
_OF = {
    "show": ("raw",),
    "check": ("backend",),
    "import": ("output", "force", "output_node", "samplers", "prompt", "negative", "latent"),
}


@tool("workflow", epilog=EXAMPLES, any_bytes=("names", "output"))
@click.argument("action", type=click.Choice(["list", "show", "check", "import"]))
@click.argument("names", nargs=-1, metavar="[NAME|FILE]...")
@click.option("--raw", is_flag=True, help="show: the file as it is, to make another one of.")
@click.option("--backend", metavar="NAME", help="check: against this instance's server as well.")
@click.option("-o", "--output", metavar="FILE", help="import: write here, not to stdout (-).")
@click.option("--force", is_flag=True, help="import: replace FILE.")
@click.option("--output-node", metavar="NODE", help="import: the node that saves the image.")
@click.option(
    "--sampler", "samplers", multiple=True, metavar="NODE", help="import: may be given again."
)
@click.option("--prompt", metavar="NODE.INPUT", help="import: where the prompt stands.")
@click.option("--negative", metavar="NODE.INPUT", help="import: where the negative prompt stands.")
@click.option("--latent", metavar="NODE", help="import: the latent whose size is the picture's.")
def main(common: Common, action: str, names: tuple[str, ...], **said: Any) -> int:
    """list: the bundled workflows and those of the configuration. show NAME: placeholders, models
    and nodes. check NAME...: what is wrong, before any GPU time; with --backend also what its
    server lacks or refuses. import FILE: an API-format export (or a PNG of ComfyUI, or - for
    stdin) with placeholders put in; what is not clear is asked for.
    """
    for other, options in _OF.items():
        for name in options:
            if said[name] and other != action:
                raise UsageFault(f"--{name.replace('_', '-').rstrip('s')} goes with {other}")
    if action == "list" and names:
        raise UsageFault("list takes nothing more")
    if action in ("show", "import") and len(names) != 1:
        raise UsageFault(f"{action} takes one name or file")
    if action == "check" and not names and not said["backend"]:
        raise UsageFault("check takes names or files, or --backend for the instance's own workflow")
    if action == "list":
        return _list(common)
    if action == "show":
        return _show(common, names[0], said["raw"])
    if action == "check":
        return _check(common, names, said["backend"])
    return _import(common, names[0], said)


def _on_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _list(common: Common) -> int:
    from ..cli.pipe import visible, write_out
    from ..config import loader
    from ..workflows import describe

    rows = []
    for row in _rows(common, loader.load(common.config_file)):
        rows.append(row)
        if not _on_terminal():
            common.pipe.write(row)
    if _on_terminal():
        write_out(describe.listed(rows, visible).encode())
    return common.pipe.status


def _rows(common: Common, values: Config) -> Iterator[dict[str, Any]]:
    """Give the bundled workflows, then those of the configuration; one that is broken is said."""
    from ..workflows import describe, template

    users: dict[str, list[str]] = {name: [] for name in template.bundled()}
    for name, instance in values.backends.items():
        if instance.get("type") == "comfyui":
            users.setdefault(str(instance.get("workflow") or "flux1-schnell"), []).append(name)
    folder = values.path.parent if values.path else None
    for name, backends in users.items():
        try:
            path = (
                str(template.path_of(name, folder).absolute()) if template.is_path(name) else None
            )
            yield describe.row(template.load(name, folder), backends, path)
        except ImagenError as fault:
            common.pipe.failed(f"backend {', '.join(backends)}", fault)


def _show(common: Common, name: str, raw: bool) -> int:
    from ..cli.pipe import visible, write_out
    from ..disk import open_named
    from ..workflows import describe, template

    flow = template.load(name)
    if raw:
        with open_named(template.path_of(name)) as stream:
            write_out(stream.read())
    elif _on_terminal():
        write_out(describe.page(describe.about(flow), visible).encode())
    else:
        common.pipe.write(describe.about(flow))
    return DONE


def _check(common: Common, names: tuple[str, ...], instance: str | None) -> int:
    """Check each; one that cannot be read, or a server that does not answer, is said."""
    from ..workflows import check, template

    backend: Any = _opened(common, instance) if instance else None
    for name in names or [None]:
        try:
            flow = backend.workflow if name is None else template.load(name)
            found = backend.judged(flow) if backend else check.findings(flow)
            status = _told(common, flow, found)
        except ImagenError as fault:
            common.pipe.failed(name or "", fault)
        else:
            common.pipe.status = worse(common.pipe.status, status)
    return common.pipe.status


def _opened(common: Common, name: str) -> Any:
    from .. import backends
    from ..config import loader

    values = loader.load(common.config_file)
    opened = backends.open_backend(name, values, loader.ledger_path().parent)
    if not hasattr(opened, "judged"):
        raise UsageFault(f"backend {name} is no ComfyUI: it has no workflow to check")
    return opened


def _told(common: Common, flow: Workflow, found: list[Finding]) -> int:
    """Write what was found; 2 when the workflow must be changed, 1 when only the server must."""
    from ..cli.pipe import visible, write_out
    from ..workflows import check, check_server, describe

    for one in found:
        record = {"workflow": flow.name, **one.as_record()}
        if _on_terminal():
            write_out(f"{visible(describe.finding(record))}\n".encode())
        else:
            common.pipe.write(record)
    common.report.note(f"{flow.name}: {check.counted(found) or 'sound'}")
    errors = [one for one in found if one.severity == "error"]
    lacks = all(check_server.lacking(one) for one in errors)
    return (FAILED if lacks else REFUSED) if errors else DONE


def _import(common: Common, source: str, said: dict[str, Any]) -> int:
    """Write the workflow to its file, the report to stdout; without a file, report to stderr."""
    from ..cli.pipe import visible, write_out
    from ..workflows import describe, template
    from ..workflows.importing import draft, export, infer

    told = draft.Told(
        said["output_node"], said["samplers"], said["prompt"], said["negative"], said["latent"]
    )
    name = "stdin" if source == "-" else template.name_of(Path(source))
    output = None if said["output"] == "-" else said["output"]
    graph = export.graph_of(name, _read(source))
    found = infer.imported(name, graph, told)
    data = export.written(found)
    lines = [line.as_record() for line in export.report(found)]
    if output:
        _write(Path(output), data, said["force"])
    for line in lines:
        text = describe.line(line)
        if not output:
            common.report.note(text)
        elif _on_terminal():
            write_out(f"{visible(text)}\n".encode())
        else:
            common.pipe.write(line)
    if not output:
        write_out(data)
    return DONE


def _write(output: Path, data: bytes, force: bool) -> None:
    from ..errors import OutputTaken, from_os
    from ..files import atomic, reservations

    try:
        reservations.check_free(output, force)
        atomic.publish(output, data, replace=force)
    except FileExistsError:
        raise OutputTaken(f"the output file exists: {output}") from None
    except OSError as fault:
        raise from_os(fault, f"cannot write {output}") from None


def _read(source: str) -> bytes:
    """Read an export, from stdin too; MAX_EXPORT bytes at most."""
    from ..disk import open_named
    from ..errors import Refused, from_os
    from ..workflows.importing import export

    limit = export.MAX_EXPORT
    try:
        if source == "-":
            data = sys.stdin.buffer.read(limit + 1) if sys.stdin else b""
        else:
            with open_named(source) as stream:
                data = stream.read(limit + 1)
    except OSError as fault:
        raise from_os(fault, "cannot read the export") from None
    if len(data) > limit:
        raise Refused(f"the export is larger than {limit // 2**20} MiB")
    return data


if __name__ == "__main__":
    main()
