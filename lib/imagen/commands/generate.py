"""imagen-generate: the everyday pipeline on one command line."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from ..cli import render_options as request_options
from ..cli.tool import Common, tool
from ..errors import BadLine, UsageFault

if TYPE_CHECKING:
    from ..config.loader import Config
    from ..records.record import Record

EXAMPLES = """
Examples:
  imagen-generate 'a cat in a fishbowl' --size 768x768
  imagen-generate 'a lighthouse' --count 4 --no-cloud
"""


@tool("generate", epilog=EXAMPLES, any_bytes=("prompts",))
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@click.option("--lines", is_flag=True, help="stdin is plain text, one prompt a line.")
@click.option("--resume", is_flag=True, help="Finish what earlier runs left open.")
@request_options.render_options()
@click.option("--no-cloud", is_flag=True, help="Do not upload, whatever the configuration says.")
@click.option("--preview/--no-preview", default=None, help="Show always, or never.")
@click.pass_context
def main(context: click.Context, /, common: Common, prompts: tuple[str, ...], **said: Any) -> int:
    """Renders like imagen-render, then does what is set up behind it, and says on stderr where each
    image is. The exit status is render's: what fails later is a warning, the image is safe.
    """
    from ..cli import pipe, processes
    from ..config import loader

    values = loader.load(common.config_file)
    request_options.told(said, values)
    request_options.check_resume(said, prompts)
    request_options.check_prompts("imagen-generate", prompts)
    reads_stdin = not said["resume"] and (not prompts or prompts == ("-",))
    if reads_stdin and not pipe.stdin_waits():
        raise UsageFault("no prompt", hint="imagen-generate 'a cat in a fishbowl'")
    shared = ["--config", str(values.path)] if values.path else []
    passed = [*request_options.as_arguments(context), *shared, *_flags(common, said)]
    render = processes.argv("imagen-render", *passed, "--", *prompts)
    if said["dry_run"] or said["output"] == "-":
        processes.replace_process(render)  # nothing comes behind it
    stages = {"imagen-render": render, **_later_stages(said, values, shared)}
    first, *others = _run(common, list(stages.values()), reads_stdin, not said["no_ledger"])
    for name, status in zip(list(stages)[1:], others, strict=True):
        if status:
            common.report.say(f"{name} failed with status {status}; the image is safe")
    return first


def _later_stages(said: dict[str, Any], values: Config, shared: list[str]) -> dict[str, list[str]]:
    """Return the stages behind imagen-render, as the configuration and the options want them."""
    from ..cli import processes, tmux
    from ..cloud import upload

    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    names = {}
    if upload.syncs(said["no_cloud"], values["output.cloud_sync"], values["supabase.url"]):
        names["imagen-upload"] = ["--best-effort"]
    if not said["no_ledger"]:
        names["imagen-log-usage"] = ["--best-effort"]
    mode = tmux.mode(said["preview"], values["output.preview"])
    if tmux.wanted(mode, on_terminal, os.environ):
        names["imagen-preview"] = ["--preview", "--best-effort"]
    return {name: processes.argv(name, *options_, *shared) for name, options_ in names.items()}


def _run(
    common: Common, commands: list[list[str]], reads_stdin: bool, has_ledger: bool
) -> list[int]:
    """Run the pipeline; each record that reaches the caller is journaled as delivered."""
    from ..cli import pipe, processes
    from ..cli.delivery import Delivery
    from ..config import loader

    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    delivery = Delivery(loader.ledger_path(), pipe.reader(), common.report.note)

    def on_line(line: bytes) -> None:
        record = _parse(line)
        _tell(record, common)
        if not on_terminal:
            pipe.write_out(line)
        if has_ledger:
            delivery.written(record)

    if not has_ledger:
        return processes.run(commands, on_line, reads_stdin)
    with delivery.running() as descriptor:
        extra = processes.Extra(pipe.render_environment(delivery.run, descriptor), (descriptor,))
        return processes.run(commands, on_line, reads_stdin, extra)


def _flags(common: Common, said: dict[str, Any]) -> list[str]:
    flags = {
        "--quiet": common.report.quiet,
        "--verbose": common.report.verbose,
        "--lines": said["lines"],
        "--resume": said["resume"],
    }
    return [name for name, given in flags.items() if given]


def _parse(line: bytes) -> Record:
    from ..records import record

    try:
        return record.parse(line)
    except BadLine:
        return {}


def _tell(record: Record, common: Common) -> None:
    """One line for people about each image: the file, and where it is in the cloud.

    imagen-render itself says what is not done yet.
    """
    if "file" in record:
        common.report.note(f"{record['file']}{_where(record.get('cloud'))}")


def _where(cloud: Any) -> str:
    if not isinstance(cloud, dict):
        return ""
    return f" → {cloud.get('bucket')}/{cloud.get('path')} ({cloud.get('image_id')})"


if __name__ == "__main__":
    main()
