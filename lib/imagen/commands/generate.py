"""imagen-generate: the everyday pipeline on one command line."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from .. import options
from ..command import Common, tool
from ..errors import BadLine, UsageFault

EXAMPLES = """
Examples:
  imagen-generate 'a cat in a fishbowl' --size 768x768
  imagen-generate 'a lighthouse' --count 4 --no-cloud
"""


@tool("generate", epilog=EXAMPLES)
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@click.option("--lines", is_flag=True, help="stdin is plain text, one prompt a line.")
@options.render_options()
@click.option("--no-cloud", is_flag=True, help="Do not upload, whatever the configuration says.")
@click.option("--preview/--no-preview", default=None, help="Show always, or never.")
@click.pass_context
def main(context: click.Context, /, common: Common, prompts: tuple[str, ...], **said: Any) -> int:
    """Renders like imagen-render, then does what is set up behind it, and says on stderr where each
    image is. The exit status is render's: what fails later is a warning, the image is safe.
    """
    from .. import chain, config, pipe, preview, upload

    values = config.load(common.config_file)
    options.told(said, values)
    reads_stdin = not prompts or prompts == ("-",)
    if reads_stdin and not pipe.stdin_waits():
        raise UsageFault("no prompt", hint="imagen-generate 'a cat in a fishbowl'")
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    shows = preview.wanted(
        preview.mode(said["preview"], values["output.preview"]), on_terminal, os.environ
    )
    binary = said["output"] == "-"
    shared = ["--config", str(values.path)] if values.path else []
    passed = [*options.as_arguments(context), *shared, *_flags(common, said["lines"])]
    stages = {"imagen-render": [*passed, "--", *prompts]}
    makes_files = not said["dry_run"] and not binary
    mode, url = values["output.cloud_sync"], values["supabase.url"]
    if makes_files and upload.syncs(said["no_cloud"], mode, url):
        stages["imagen-upload"] = ["--best-effort", *shared]
    if makes_files and not said["no_ledger"]:
        stages["imagen-log-usage"] = ["--best-effort", *shared]
    if shows and makes_files:
        stages["imagen-preview"] = ["--preview", "--best-effort", *shared]

    def on_line(line: bytes) -> None:
        if makes_files:
            _tell(line, common)
        if not on_terminal or said["dry_run"] or binary:
            pipe.write_out(line)

    commands = [chain.argv(name, *arguments) for name, arguments in stages.items()]
    first, *others = chain.run(commands, on_line, reads_stdin)
    for name, status in zip(list(stages)[1:], others, strict=True):
        if status:
            common.report.say(f"{name} failed with status {status}; the image is safe")
    return first


def _flags(common: Common, lines: bool) -> list[str]:
    flags = {"--quiet": common.report.quiet, "--verbose": common.report.verbose, "--lines": lines}
    return [name for name, given in flags.items() if given]


def _tell(line: bytes, common: Common) -> None:
    """One line for people about each image: the file, and where it is in the cloud."""
    from .. import pipe, record

    try:
        made = record.parse(line)
    except BadLine:
        return
    if "pending" in made:
        name = pipe.name_of(made, "")
        common.report.note(f"{name}: not done yet; pipe its record back to collect it")
    elif "file" in made:
        common.report.note(f"{made['file']}{_where(made.get('cloud'))}")


def _where(cloud: Any) -> str:
    if not isinstance(cloud, dict):
        return ""
    return f" → {cloud.get('bucket')}/{cloud.get('path')} ({cloud.get('image_id')})"


if __name__ == "__main__":
    main()
