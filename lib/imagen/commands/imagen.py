"""imagen: list the tools, or run one of them."""

from __future__ import annotations

import importlib
import sys

from .. import __version__
from ..cli.pipe import Report, drop_stdout, write_out
from ..cli.tools import TOOLS
from ..errors import ImagenError, ReaderGone, suggest


def main() -> None:
    """Run `imagen TOOL …` as `imagen-TOOL …`; without a tool, list them all."""
    try:
        _run(*(sys.argv[1:] or ["--help"]))
    except ReaderGone:
        drop_stdout()
    except ImagenError as fault:
        Report("imagen").fault("", fault)
        sys.exit(fault.exit_status)


def _run(tool: str, *rest: str) -> None:
    if tool == "help" and rest:
        tool, rest = rest[0], ("--help",)
    if tool in ("-h", "--help", "help"):
        write_out(f"{listing()}\n".encode())
    elif tool == "--version":
        write_out(f"imagen {__version__}\n".encode())
    elif tool not in TOOLS:
        hint = suggest(tool, TOOLS) or "imagen lists the tools"
        Report("imagen").say(f"no tool {tool!r} (hint: {hint})")
        sys.exit(2)
    else:
        module = tool.replace("-", "_")
        importlib.import_module(f"imagen.commands.{module}").main(list(rest))


def listing() -> str:
    """Give the list of tools, one line each."""
    lines = [f"  imagen-{name:<{max(map(len, TOOLS))}}  {says}" for name, says in TOOLS.items()]
    return "\n".join(["Tools, each with --help; `imagen TOOL` runs `imagen-TOOL`:", *lines])
