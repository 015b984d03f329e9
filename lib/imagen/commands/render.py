"""imagen-render: request lines in, images and their records out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from ..cli import render_options as request_options
from ..cli.tool import Common, tool
from ..errors import TEMPORARY, ImagenError, Refused, UsageFault

if TYPE_CHECKING:
    from ..cli.option_effects import OptionEffects
    from ..cli.pipe import Line
    from ..ledger import Ledger
    from ..records.record import Record
    from ..records.request import Told
    from ..render.renderer import Around, Renderer

EXAMPLES = """
Examples:
  imagen-render 'a cat in a fishbowl' --seed 7 | jq -r .file
  echo '{"prompt":"a lighthouse","width":768}' | imagen-render | imagen-preview
  imagen-render --lines < prompts.txt > records.jsonl
"""
RESUME = "imagen-render --resume"
RECENT_S = 7 * 24 * 3600  # doubts that are over are named so long
FEW = 3  # lines: of so many each is named that is pending


@tool("render", epilog=EXAMPLES, any_bytes=("prompts",))
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@click.option("--lines", is_flag=True, help="stdin is plain text, one prompt a line.")
@click.option("--resume", is_flag=True, help="List and finish what earlier runs left open.")
@request_options.render_options()
def main(common: Common, prompts: tuple[str, ...], lines: bool, resume: bool, **said: Any) -> int:
    """Each PROMPT is one image; without any, request lines (JSON) are read from stdin. Finished
    lines are passed on, pending ones collected, failed ones tried again where that is safe.
    """
    from ..cli.option_effects import OptionEffects
    from ..config import loader
    from ..ledger import Ledger, required
    from ..records.request import Request, Told, fate
    from ..render.renderer import Renderer

    request_options.check_resume({**said, "resume": resume, "lines": lines}, prompts)
    dry_run = said["dry_run"]
    values = loader.load(common.config_file)
    told = request_options.told(said, values)
    source = None if resume else _source(prompts, lines, told.output)
    is_mock = loader.is_only_the_mock(values)
    if told.output == "-":
        common.pipe.to_stderr = True
    ledger = Ledger(None) if said["no_ledger"] else required(loader.ledger_path())
    renderer = Renderer(values, ledger, told, _around(common, told, ledger))
    teller = Teller(common, _collect_hint(told, resume, said["no_ledger"]))
    common.pipe.hint = teller.hint
    if source is None:
        request_options.tell_unused_by_resume(common.report, said)
        return _resumed(common, renderer, ledger, teller, dry_run)

    def step(line: Record) -> Iterable[Record] | None:
        if isinstance(line, Request):
            if dry_run:
                return [renderer.dry(line)]
            if is_mock and "backend" in line.drawn:
                teller.tell_mock()
            return teller.tell_of(renderer.render(line))
        if dry_run or fate(line, Told()) == "pass":
            return None
        return teller.tell_of(renderer.collect(line))

    effects = OptionEffects(said, told)
    with teller:
        notes = common.report.note
        common.pipe.each(_requests(source, told, said["id"], effects, notes), step)
    return request_options.tell_unused(common.pipe, effects)


def _around(common: Common, told: Told, ledger: Ledger) -> Around:
    from ..cli import caller, pipe
    from ..cli.delivery import RenderWatch
    from ..config import loader
    from ..render.renderer import Around

    run, reader = pipe.outer_program()
    watch = RenderWatch(ledger.path, reader)
    return Around(
        state=loader.ledger_path().parent,
        caller=caller.caller,
        before_submit=lambda: pipe.check_reader(reader),
        tell=common.report.progress,
        shows=common.report.shows,
        note=common.report.note,
        image_out=pipe.write_out if told.output == "-" else None,
        delivered_by=run,
        watch=watch.over,
        is_abandoned=watch.is_abandoned,
    )


def _collect_hint(told: Told, resume: bool, no_ledger: bool) -> str:
    """Return how what is pending after this run is collected."""
    if no_ledger:
        return "pipe its record back into imagen-render"
    return RESUME if told.new or resume else f"run the same command again, or {RESUME}"


def _resumed(
    common: Common, renderer: Renderer, ledger: Ledger, teller: Teller, dry_run: bool
) -> int:
    """Say what the journal has open or in doubt, and finish what can be; --dry-run only prints."""
    from ..cli.pipe import Line, name_of

    open_ones = [ledger.journal.entry(one) for one in ledger.journal.unfinished()]
    lines = [Line(one.id, record=one.about()) for one in open_ones if one]
    lines += [Line(one["id"], record=one) for one in _doubts(ledger)]

    def step(line: Record) -> Iterable[Record]:
        if line.get("problem"):
            _tell_doubt(common, line)
            return [line] if dry_run else []
        about = f"{line['backend']}, {line['state']} since {line['since']}"
        common.report.note(f"{name_of(line, '')}: {about}")
        return [line] if dry_run else teller.tell_of(renderer.resume(line["render_id"]))

    with teller:
        return common.pipe.each(lines, step)


def _doubts(ledger: Ledger) -> list[Record]:
    """Return what is over, and nobody knows whether it was billed; what is open is looked for."""
    import time

    from ..usage import reconcile

    submits = ledger.journal.doubts(time.time() - RECENT_S)
    over = [one for one in submits if one.billed == "unknown" and one.last]
    return [
        {**doubt, "render_id": one.render_id, "state": one.state}
        for one, doubt in zip(over, reconcile.doubts(over, lambda _: False), strict=True)
    ]


def _tell_doubt(common: Common, doubt: Record) -> None:
    where = f"{doubt['backend']}, since {doubt['since']}"
    says = f"{where}, whether it was billed is not known"
    common.report.note(f"{doubt['id']}: {says} (hint: {doubt['hint']})")


class Teller:
    """Tells people what a record says that they did not ask for, and what is pending."""

    def __init__(self, common: Common, collecting: str) -> None:
        """Take where it is said, and how what is pending is collected."""
        self._report = common.report
        self._collecting = collecting
        self._pending = 0
        self._mock_is_told = False

    def __enter__(self) -> None:
        """Begin with a run."""

    def __exit__(self, *_: object) -> None:
        """Say at its end how many more are pending."""
        if (more := self._pending - FEW) > 0:
            self._report.say(f"{more} more not done yet (hint: {self._collecting})")

    def tell_mock(self) -> None:
        """Say once that the mock's images are no pictures of what was asked for."""
        from ..config import loader

        if not self._mock_is_told:
            self._mock_is_told = True
            self._report.note(loader.ONLY_THE_MOCK)

    def tell_of(self, records: Iterable[Record]) -> Iterator[Record]:
        """Tell of each record that passes."""
        from ..cli import pipe
        from ..render import result

        for one in records:
            name = pipe.name_of(one, "")
            if changes := result.changes(one.get("fidelity", {})):
                self._report.note(f"{name}: {changes}")
            if "extension" in one.get("warnings", []):
                self._report.note(f"{one['file']} is a {one['format']}, whatever its name says")
            file = one.get("file", "no file")
            self._report.detail(f"{name}: {one['backend']}, {file}")
            if "pending" in one:
                self._tell_pending(name, one["backend"])
            yield one

    def _tell_pending(self, name: str, backend: str) -> None:
        """Say it even with -q: the status is 75, and nothing else says why."""
        self._pending += 1
        if self._pending <= FEW:
            says = f"{name}: not done yet at {backend} (hint: {self._collecting})"
            self._report.say(says)

    def hint(self, fault: ImagenError) -> str | None:
        """Return what to do about a fault; what may be paid already is collected."""
        from ..cli.pipe import run_again, soon

        if fault.retry == "reconcile" and not fault.hint and fault.record:
            name = shlex.quote(str(fault.record.get("id", "ID")))
            return f"look at the provider, then imagen-usage --settle {name} --billed yes|no"
        if fault.exit_status != TEMPORARY or fault.billed == "no":
            return run_again(fault)
        collecting = f"{self._collecting}{soon(fault)}"
        return f"{fault.hint}; then {collecting}" if fault.hint else collecting


def _source(prompts: tuple[str, ...], lines: bool, output: str | None) -> Iterator[Line]:
    from ..cli import pipe

    if prompts and prompts != ("-",):
        if "-" in prompts or lines:
            raise UsageFault("prompts come from the command line or from stdin, not from both")
        request_options.check_prompts("imagen-render", prompts)
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


def _requests(
    source: Iterator[Line],
    told: Told,
    given_id: str | None,
    effects: OptionEffects,
    note: Callable[[str], None],
) -> Iterator[Line]:
    """Turn each line into the requests that it stands for; what is passed on stays as it is."""
    from ..cli.pipe import Line
    from ..records.checks import UnknownKeys, check_equal_keys
    from ..records.request import fate, requests_of

    made, unknown = 0, UnknownKeys()
    for line in source:
        try:
            what = fate(line.record, told) if line.record is not None else "pass"
            if line.record is not None:
                effects.look_at(line.record, what)
            if what in ("pass", "collect") or line.record is None:
                requests: list[Record | None] = [line.record]
            else:
                if line.raw:
                    check_equal_keys(line.raw)
                for text in unknown.notes(line.record) if what == "new" else ():
                    note(text)
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
