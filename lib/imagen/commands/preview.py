"""imagen-preview: show each image in a tmux window, and pass its record on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from ..cli.tool import Common, tool
from ..errors import FileFault, PreviewFault, UsageFault

if TYPE_CHECKING:
    from ..cli.pipe import Line
    from ..records.record import Record

EXAMPLES = """
Examples:
  imagen-render 'a cat in a fishbowl' | imagen-preview
  imagen-preview --preview ~/Pictures/imagen/2026-11-23/*.png
"""


@tool("preview", epilog=EXAMPLES, any_bytes=("files",))
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("--preview/--no-preview", default=None, help="Show always, or never.")
@click.option("--best-effort", is_flag=True, help="Only warn when it cannot be shown.")
def main(common: Common, files: tuple[str, ...], best_effort: bool, **said: bool | None) -> int:
    """Records (or image FILEs) in, the same records out; each image is shown by tmux-img --hold in
    a new window. The mode is auto, on or off: --preview or --no-preview, else $IMAGEN_PREVIEW, else
    output.preview of the configuration. auto shows when stdout is a terminal inside tmux.
    """
    from pathlib import Path

    from ..cli import pipe, tmux
    from ..config import loader

    values = loader.load(common.config_file)
    mode = tmux.mode(said["preview"], values["output.preview"])
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    shows = tmux.wanted(mode, on_terminal, os.environ)

    def step(record: Record) -> Iterable[Record] | None:
        path = record.get("file")
        if not shows or not isinstance(path, str) or "error" in record or "pending" in record:
            return None
        try:
            tmux.check(os.environ)
            if not Path(path).is_file():
                raise FileFault(f"no such file: {path}", retry="never")
            tmux.show(path)
        except (PreviewFault, FileFault) as fault:
            if not best_effort:
                raise
            common.report.fault(pipe.name_of(record, path), fault)
        return None

    return common.pipe.each(_source(files), step)


def _source(files: tuple[str, ...]) -> Iterable[Line]:
    from pathlib import Path

    from ..cli import pipe

    if files:
        paths = (str(Path(name).absolute()) for name in files)
        return [pipe.line_of_file(path, {"file": path}) for path in paths]
    if not pipe.stdin_waits():
        raise UsageFault("no records", hint="imagen-render 'a cat' | imagen-preview")
    return pipe.read(sys.stdin.buffer)


if __name__ == "__main__":
    main()
