"""imagen-generate: the everyday pipeline on one command line."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from .. import chain, config, options, pipe, preview, record
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
@options.render_options
@click.option("--no-cloud", is_flag=True, help="Do not upload, whatever the configuration says.")
@click.option("--preview/--no-preview", default=None, help="Show always, or never.")
@click.pass_context
def main(context: click.Context, /, common: Common, prompts: tuple[str, ...], **said: Any) -> int:
    """Renders like imagen-render, then does what is set up behind it, and says on stderr where each
    image is. The exit status is render's: what fails later is a warning, the image is safe.
    """
    values = config.load(common.config_file)
    options.told(said, values)
    reads_stdin = not prompts or prompts == ("-",)
    if reads_stdin and not pipe.stdin_waits():
        raise UsageFault("no prompt", hint="imagen-generate 'a cat in a fishbowl'")
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    shows = preview.wanted(
        preview.mode(said["preview"], values["output.preview"]), on_terminal, os.environ
    )
    shared = ["--config", str(values.path)] if values.path else []
    lines = ["--lines"] if said["lines"] else []
    stages = [
        chain.argv(
            "imagen-render",
            *options.as_arguments(context),
            *shared,
            *lines,
            *_quiet(common),
            "--",
            *prompts,
        )
    ]
    if shows and not said["dry_run"] and said["output"] != "-":
        stages.append(chain.argv("imagen-preview", "--preview", "--best-effort", *shared))

    def on_line(line: bytes) -> None:
        if not said["dry_run"] and said["output"] != "-":
            _tell(line, common)
        if not on_terminal or said["dry_run"] or said["output"] == "-":
            pipe.write_out(line)

    ended = chain.run(stages, on_line, reads_stdin)
    for stage in ended[1:]:
        if stage.status:
            common.report.say(
                f"imagen-{stage.tool} failed with status {stage.status}; the image is safe"
            )
    return ended[0].status


def _quiet(common: Common) -> list[str]:
    return ["--quiet"] * common.report.quiet + ["--verbose"] * common.report.verbose


def _tell(line: bytes, common: Common) -> None:
    """One line for people about each image: the file, and where it is in the cloud."""
    try:
        made = record.parse(line)
    except BadLine:
        return
    if "pending" in made:
        common.report.note(
            f"{pipe.name_of(made, '')}: not done yet; pipe its record back to collect it"
        )
    elif "file" in made:
        cloud = made.get("cloud")
        where = (
            f" → {cloud.get('bucket')}/{cloud.get('path')} ({cloud.get('image_id')})"
            if cloud
            else ""
        )
        common.report.note(f"{made['file']}{where}")


if __name__ == "__main__":
    main()
