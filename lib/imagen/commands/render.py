"""imagen-render: request lines in, images and their records out."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from .. import options
from ..command import Common, tool
from ..errors import ImagenError, Refused, UsageFault

if TYPE_CHECKING:
    from ..ledger import Ledger
    from ..pipe import Line
    from ..record import Record
    from ..render import Around, Renderer
    from ..request import Told

EXAMPLES = """
Examples:
  imagen-render 'a cat in a fishbowl' --seed 7 | jq -r .file
  echo '{"prompt":"a lighthouse","width":768}' | imagen-render | imagen-preview
  imagen-render --lines < prompts.txt > records.jsonl
"""


@tool("render", epilog=EXAMPLES)
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@click.option("--lines", is_flag=True, help="stdin is plain text, one prompt a line.")
@click.option("--resume", is_flag=True, help="List and finish what earlier runs left open.")
@options.render_options()
def main(common: Common, prompts: tuple[str, ...], lines: bool, resume: bool, **said: Any) -> int:
    """Each PROMPT is one image; without any, request lines (JSON) are read from stdin. Finished
    lines are passed on, pending ones collected, failed ones tried again where that is safe.
    """
    from .. import config
    from ..ledger import Ledger, required
    from ..render import Renderer
    from ..request import Request, Told, fate

    options.check_resume({**said, "resume": resume, "lines": lines}, prompts)
    dry_run = said["dry_run"]
    values = config.load(common.config_file)
    told = options.told(said, values)
    source = None if resume else _source(prompts, lines, told.output)
    if told.output == "-":
        common.pipe.to_stderr = True
    ledger = Ledger(None) if said["no_ledger"] else required(config.ledger_path())
    renderer = Renderer(values, ledger, told, _around(common, told, ledger))
    if source is None:
        return _resumed(common, renderer, ledger, dry_run)

    def step(line: Record) -> Iterable[Record] | None:
        if isinstance(line, Request):
            dry = [renderer.dry(line)] if dry_run else None
            return dry or _told_of(common, renderer.render(line))
        if dry_run or fate(line, Told()) == "pass":
            return None
        return _told_of(common, renderer.collect(line))

    return common.pipe.each(_requests(source, told, said["id"]), step)


def _around(common: Common, told: Told, ledger: Ledger) -> Around:
    from .. import caller, config, pipe
    from ..delivery import RenderWatch
    from ..render import Around

    run, reader = pipe.outer_program()
    watch = RenderWatch(ledger.path, reader)
    return Around(
        state=config.ledger_path().parent,
        caller=caller.caller,
        before_submit=lambda: pipe.check_reader(reader),
        tell=common.report.progress,
        note=common.report.note,
        image_out=pipe.write_out if told.output == "-" else None,
        delivered_by=run,
        watch=watch.over,
        is_abandoned=watch.is_abandoned,
    )


def _resumed(common: Common, renderer: Renderer, ledger: Ledger, dry_run: bool) -> int:
    """Say what the journal has open, and finish it; with --dry-run, only print it."""
    from ..pipe import Line, name_of

    open_ones = [ledger.journal.entry(one) for one in ledger.journal.unfinished()]
    lines = [Line(one.id, record=one.about()) for one in open_ones if one]

    def step(line: Record) -> Iterable[Record]:
        about = f"{line['backend']}, {line['state']} since {line['since']}"
        common.report.note(f"{name_of(line, '')}: {about}")
        return [line] if dry_run else _told_of(common, renderer.resume(line["render_id"]))

    return common.pipe.each(lines, step)


def _told_of(common: Common, made: Iterable[Record]) -> Iterator[Record]:
    """Tell people what a record says that they did not ask for."""
    from .. import outcome, pipe

    for one in made:
        if changes := outcome.changes(one.get("fidelity", {})):
            common.report.note(f"{pipe.name_of(one, '')}: {changes}")
        if "extension" in one.get("warnings", []):
            common.report.note(f"{one['file']} is a {one['format']}, whatever its name says")
        file = one.get("file", "no file")
        common.report.detail(f"{pipe.name_of(one, '')}: {one['backend']}, {file}")
        yield one


def _source(prompts: tuple[str, ...], lines: bool, output: str | None) -> Iterator[Line]:
    from .. import pipe

    if prompts and prompts != ("-",):
        if "-" in prompts or lines:
            raise UsageFault("prompts come from the command line or from stdin, not from both")
        if len(prompts) > 1 and output:
            raise UsageFault(f"--output takes one image, here are {len(prompts)} prompts")
        return (pipe.line_of(f"prompt {n}", text) for n, text in enumerate(prompts, 1))
    if sys.stdin is None or not (prompts or pipe.stdin_waits()):
        raise UsageFault(
            "no prompt", hint="imagen-render 'a cat in a fishbowl', or imagen-render --help"
        )
    if lines:
        return pipe.read_prompts(sys.stdin.buffer)
    return pipe.read(sys.stdin.buffer, "--lines takes plain text, one prompt a line")


def _requests(source: Iterator[Line], told: Told, given_id: str | None) -> Iterator[Line]:
    """Turn each line into the requests that it stands for; what is passed on stays as it is."""
    from ..pipe import Line
    from ..request import fate, requests_of

    made = 0
    for line in source:
        try:
            what = fate(line.record, told) if line.record is not None else "pass"
            if what in ("pass", "collect") or line.record is None:
                requests: list[Record | None] = [line.record]
            else:
                requests = [*requests_of(_with_id(line.record, given_id, made), told)]
        except ImagenError as fault:
            yield Line(line.where, line.raw, line.record, fault)
            continue
        made += what != "pass"
        for request in requests:
            if told.output and made > 1 and what != "pass":
                yield Line(
                    line.where,
                    record=request,
                    fault=Refused("--output takes one image; this is another"),
                )
            else:
                yield Line(line.where, line.raw if what == "pass" else b"", request, line.fault)


def _with_id(line: Record, given: str | None, made: int) -> Record:
    if given is None or line.get("id") is not None:
        return line
    if made:
        raise Refused(f"--id {given} names the first image; this is another")
    return {**line, "id": given}


if __name__ == "__main__":
    main()
