"""What every command shares: common options, and the one place where exceptions become statuses."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .. import __version__, signals
from ..errors import (
    FAILED,
    Fault,
    ImagenError,
    ReaderGone,
    Stopped,
    UsageFault,
    as_unicode,
    from_os,
)
from . import reader
from .tools import TOOLS

if TYPE_CHECKING:
    from .pipe import Pipe, Report


class Common(NamedTuple):
    """What the common options said, and where the tool's words go."""

    report: Report
    pipe: Pipe
    config_file: str | None


class Tool(click.Command):
    """A command whose exceptions become exit statuses, and whose mistakes read as one line."""

    def main(self, args: Any = None, prog_name: Any = None, **_: Any) -> Any:  # type: ignore[override]
        """Run, and leave with the exit status."""
        sys.exit(self._status(args))

    def get_help_option(self, context: click.Context) -> click.Option | None:
        """Give --help, which prints as the tools print their records."""
        option = super().get_help_option(context)
        if option:
            option.callback = _help
        return option

    def _status(self, args: Any) -> int:
        tool = self.name or "imagen"
        try:
            reader.remember_parent()
            signals.install()
            status = super().main(args, tool, standalone_mode=False)
            return status if isinstance(status, int) else 0
        except BaseException as fault:  # noqa: BLE001 - what is not ours is raised again below
            signals.end()
            return _status_of(fault, tool)


def _status_of(fault: BaseException, tool: str) -> int:
    """Say what failed, and give the exit status: the one place where exceptions become statuses."""
    from .pipe import Report, drop_stdout, run_again

    report = Report(tool)
    match fault:
        case ReaderGone():
            drop_stdout()
            return 0
        case Stopped():
            return fault.status
        case click.ClickException():
            message = " ".join(fault.format_message().split())
            is_prompt = isinstance(fault, click.NoSuchOption) and fault.option_name == "- "
            hint = f"{tool} -- '- …': -- ends the options" if is_prompt else f"{tool} --help"
            report.say(f"{message} (hint: {hint})")
            return fault.exit_code
        case ImagenError():
            report.fault("", fault, run_again(fault))
            return fault.exit_status
        case OSError():
            report.say(from_os(fault, "cannot go on").as_line())
            drop_stdout()
            return FAILED
    if not isinstance(fault, Exception) or os.environ.get("IMAGEN_TRACEBACK"):
        raise fault
    report.fault("", Fault.of(fault))
    return FAILED


def tool(
    name: str, epilog: str = "", any_bytes: Collection[str] = ()
) -> Callable[[Callable[..., int | None]], Tool]:
    """Make a function the command `imagen-<name>`, with the options that all share.

    The function takes a Common first, and returns its exit status (None for 0). `any_bytes` are
    the parameters that need not be UTF-8, such as files that are only read.
    """

    def wrap(function: Callable[..., int | None]) -> Tool:
        def callback(config: str | None, quiet: bool, verbose: bool, **rest: Any) -> int | None:
            from .pipe import Pipe, Report

            report = Report(f"imagen-{name}", quiet, verbose)
            _check_unicode(click.get_current_context(), any_bytes)
            return function(Common(report, Pipe(report), config), **rest)

        params = list(reversed(getattr(function, "__click_params__", [])))
        details = inspect.cleandoc(function.__doc__ or "")
        return Tool(
            name=f"imagen-{name}",
            callback=callback,
            params=[*params, *_common()],
            help=f"{TOOLS[name]}\n\n{details}",
            epilog="\b\n" + epilog.strip("\n") if epilog else None,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 88},
        )

    return wrap


def _common() -> list[click.Parameter]:
    return [
        click.Option(["--config"], metavar="FILE", help="Configuration file, over $IMAGEN_CONFIG."),
        click.Option(["-q", "--quiet"], is_flag=True, help="No progress and no notes on stderr."),
        click.Option(["-v", "--verbose"], is_flag=True, help="Say more on stderr."),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_version,
            help="Print the version and end.",
        ),
    ]


def _version(context: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        _print(context, f"{context.command.name} {__version__}")


def _help(context: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        _print(context, context.get_help())


def _print(context: click.Context, text: str) -> None:
    """Print and end; a full disk is said as it is of records."""
    from .pipe import write_out

    if not context.resilient_parsing:
        write_out(f"{text}\n".encode())
        context.exit()


def _check_unicode(context: click.Context, any_bytes: Collection[str]) -> None:
    """Raise UsageFault for an argument that no record, row or request could hold."""
    for parameter in context.command.params:
        if parameter.name == "config" or parameter.name in any_bytes:
            continue
        for text in _texts(context.params.get(parameter.name or "")):
            if (shown := as_unicode(text)) != text:
                name = parameter.opts[0] if parameter.param_type_name == "option" else None
                name = name or parameter.make_metavar(context).strip("[].")
                raise UsageFault(f"{name} is not valid UTF-8: '{shown}'")


def _texts(value: Any) -> Iterator[str]:
    for each in value if isinstance(value, tuple) else [value]:
        if isinstance(each, str):
            yield each
