"""imagen-compare: one request to several backends, one after the other, side by side."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..cli import render_options as request_options
from ..cli.processes import NOTHING, Extra
from ..cli.tool import Common, tool
from ..errors import (
    FAILED,
    INTERRUPTED,
    REFUSED,
    TEMPORARY,
    ImagenError,
    ReaderGone,
    UsageFault,
    from_os,
    worse,
)

if TYPE_CHECKING:
    from ..cli.delivery import Delivery
    from ..config.loader import Config
    from ..records.record import Record
    from ..records.request import Request
    from ..render.comparison import Comparisons
    from ..sheets.comparison_page import Turn

EXAMPLES = """
Examples:
  imagen-compare 'a cat in a fishbowl' --backends mock,flux-schnell-local
  imagen-compare 'a lighthouse' --backends mock,flux2-klein-local --seeds 1,2,3 --size 768x768
"""
_OURS = {"backend", "seed", "id", "output", "out_dir", "dry_run", "wait"}
_NOT = {"count", "again", "output", "force", "backend", "sets"}
_STATUS = {0: 0, REFUSED: REFUSED, TEMPORARY: TEMPORARY}  # all else is a failure of that one


class ComparisonSpec(NamedTuple):
    """What is compared: the request as every backend gets it, the backends, and the seeds."""

    request: Request
    backends: list[str]
    seeds: list[int]
    out_dir: Path
    digest: str
    id: str | None
    wait_s: float | None
    new: bool


@tool("compare", epilog=EXAMPLES)
@click.argument("prompt")
@click.option("--backends", required=True, metavar="A,B", help="Backend instances, in this order.")
@click.option("--seeds", metavar="N,N", help="Several seeds, a column each.")
@request_options.render_options(*_NOT)
@click.pass_context
def main(context: click.Context, /, common: Common, prompt: str, **said: Any) -> int:
    """The same request and seed go to each backend, one after the other. Writes a folder with each
    image, sheet.png, compare.json and compare.html; prints each member's record as it is done, the
    sheet's record last. A backend that fails leaves its error in its cell.
    """
    from .. import backends
    from ..config import loader
    from ..records.record import is_unicode
    from ..sheets import comparison_page

    if prompt == "-" or not is_unicode(prompt):
        raise UsageFault("the prompt is not UTF-8, or -, which compare does not read")
    request_options.check_prompts("imagen-compare", [prompt])
    values = loader.load(common.config_file)
    chosen = comparison_page.words(said["backends"], "--backends")
    for name in chosen:
        backends.open_backend(name, values, loader.ledger_path().parent)
    spec = _read_spec(prompt, said, values, chosen)
    passed = list(request_options.as_arguments(context, but=_OURS))
    passed += ["--config", str(values.path)] if values.path else []
    if said["dry_run"]:
        turns = list(comparison_page.turns(spec.request["id"], chosen, spec.seeds))
        return _dry(common, turns, passed, prompt)
    with ExitStack() as stack:
        run = _begin(common, spec, bool(said["no_ledger"]), stack)
        return _run(run, values, passed, spec.wait_s)


def _read_spec(prompt: str, said: dict[str, Any], values: Any, chosen: list[str]) -> ComparisonSpec:
    """Return what is compared; without a seed, one is drawn for all."""
    import uuid

    from ..records import request
    from ..records.styles import styled
    from ..render import comparison
    from ..sheets import comparison_page

    told = request_options.told(said, values)
    told.defaults.pop("backend", None)
    told.default_backend = None
    numbers = comparison_page.words(said["seeds"], "--seeds") if said["seeds"] else []
    lines: list[Record] = [
        {"prompt": prompt, "seed": request_options.typed(one)} for one in numbers
    ]
    requests = [request.requests_of(one, told)[0] for one in lines or [{"prompt": prompt}]]
    first, seeds = requests[0], [one["seed"] for one in requests]
    digest = comparison.digest(first, chosen, None if "seed" in first.drawn else seeds)
    first["id"] = said["id"] or str(uuid.uuid4())
    styled(first, values.styles)  # a style that is none is refused before anything is sent
    return ComparisonSpec(
        first, chosen, seeds, told.out_dir, digest, said["id"], told.wait_s, bool(said["new"])
    )


def _begin(common: Common, spec: ComparisonSpec, no_ledger: bool, stack: ExitStack) -> Run:
    """Begin the comparison, or take up what an earlier run left of it."""
    from ..cli import caller, pipe
    from ..cli.delivery import Delivery
    from ..config import loader
    from ..ledger import Comparison, required
    from ..ledger.journal import Asker
    from ..render.comparison import Comparisons, Question
    from ..sheets import comparison_page

    def new_folder(seed: int) -> Path:
        return _folder(spec.out_dir, spec.request["prompt"], seed)

    comparisons, delivery, is_taken_up = None, None, False
    if no_ledger:
        folder = new_folder(spec.seeds[0]).absolute()
        entry = Comparison("", spec.request["id"], spec.seeds, str(folder))
    else:
        comparisons = Comparisons(required(loader.ledger_path()), common.report.note, spec.wait_s)
        asker = Asker(spec.id is not None, spec.digest, caller.caller())
        question = Question(spec.id, asker, spec.seeds, new_folder)
        entry, is_taken_up = comparisons.claim(question, spec.new, stack)
        path = loader.ledger_path()
        delivery = Delivery(path, pipe.reader(), common.report.note, entry.run)
    request = {**spec.request, "id": entry.id, "seed": entry.seeds[0]}
    turns = list(comparison_page.turns(entry.id, spec.backends, entry.seeds))
    folder = Path(entry.folder)
    folder.mkdir(parents=True, exist_ok=True)
    extra = NOTHING
    if delivery is not None:
        descriptor = stack.enter_context(delivery.running())
        extra = Extra(pipe.render_environment(delivery.run, descriptor), (descriptor,))
    return Run(common, request, turns, folder, is_taken_up, comparisons, delivery, extra)


def _folder(out_dir: Path, prompt: str, seed: int) -> Path:
    from datetime import UTC, datetime

    from ..files import reservations
    from ..records import naming

    today = datetime.now(UTC).date().isoformat()
    try:
        return reservations.new_folder(out_dir, today, f"{naming.slug(prompt)}-{seed}-compare")
    except OSError as fault:
        raise from_os(fault, "cannot write the comparison") from None


def _dry(common: Common, turns: list[Turn], passed: list[str], prompt: str) -> int:
    from ..cli import processes
    from ..records import record
    from ..sheets import comparison_page

    plans: list[Record] = []
    status = 0

    def on_line(line: bytes) -> None:
        plans.append(record.parse(line))
        common.pipe.write(plans[-1])

    for turn in turns:
        stage = _stage(turn, [*passed, "--dry-run"], prompt)
        status = worse(status, processes.run([stage], on_line, reads_stdin=False)[0])
    common.pipe.write({"plans": len(plans), **comparison_page.prices(plans)})
    return status


def _run(run: Run, values: Config, passed: list[str], wait_s: float | None) -> int:
    """Ask one backend after the other, and put what came of it side by side."""
    status, is_finished = 0, True
    end = None if wait_s is None else time.monotonic() + wait_s
    busy: set[str] = set()  # servers of our own that are still at a member
    for turn in run.turns:
        is_own = values.backends[turn.backend]["type"] == "comfyui"
        if is_own and busy - {turn.backend}:  # two models on one graphics card run out of memory
            says = "not sent, another ComfyUI server is busy (hint: run the same command again)"
            run.common.report.note(f"{turn.id}: {says}")
            status, is_finished = worse(status, TEMPORARY), False
            continue
        wait = [] if end is None else [f"--wait={max(end - time.monotonic(), 0):.3f}"]
        ended = run.member(turn, [*passed, *wait])
        run.report()
        if ended in INTERRUPTED:
            return ended
        if is_own and "pending" in run.records[-1]:
            busy.add(turn.backend)
        status = worse(status, _STATUS.get(ended, FAILED))
        is_finished = is_finished and run.is_over(turn, ended)
    status = worse(status, run.sheet())
    if is_finished:
        run.finish()
    return status


class Run:
    """One comparison under way: its members' records so far, its folder, and the ledger's part."""

    def __init__(
        self,
        common: Common,
        request: Record,
        turns: list[Turn],
        folder: Path,
        is_taken_up: bool,
        comparisons: Comparisons | None,
        delivery: Delivery | None,
        extra: Extra,
    ) -> None:
        """Take what is compared, and where its records and images go."""
        self.common = common
        self.turns = turns
        self.records: list[Record] = []
        self._request = request
        self._folder = folder
        self._is_taken_up = is_taken_up
        self._comparisons = comparisons
        self._delivery = delivery
        self._extra = extra

    def member(self, turn: Turn, passed: list[str]) -> int:
        """Render one member and write its record; gives imagen-render's status."""
        from ..cli import processes
        from ..records import record

        output = ["--output", str(self._folder / turn.file)]
        stage = _stage(turn, [*passed, *output], self._request["prompt"])
        (status,) = processes.run(
            [stage], lambda line: self._write(record.parse(line)), False, self._extra
        )
        if turn.id not in [one.get("id") for one in self.records]:
            if self._delivery and self._delivery.is_abandoned():
                raise ReaderGone
            self._write(self._missing(turn, status))
        return status

    def _missing(self, turn: Turn, status: int) -> Record:
        """Return the record of a member whose render ended without one."""
        from ..sheets import comparison_page

        if self._comparisons is None or status not in INTERRUPTED:
            return comparison_page.unanswered(turn, self._request, status)
        return self._comparisons.record_of(comparison_page.member(turn, self._request))

    def _write(self, member: Record) -> None:
        self.records.append(member)
        self.common.pipe.write(member)
        if self._delivery:
            self._delivery.written(member)

    def is_over(self, turn: Turn, status: int) -> bool:
        """Whether a member needs no other run: it was made, or it failed for good.

        One in doubt is not over: a new comparison would pay for all members again.
        """
        error = self.records[-1].get("error", {})
        if status not in (0, FAILED, REFUSED) or error.get("retry") == "reconcile":
            return False
        return self._comparisons is None or not self._comparisons.is_open(turn.id)

    def report(self) -> None:
        """Write compare.json and compare.html anew."""
        import json

        from ..files import atomic
        from ..sheets import comparison_page

        summary = comparison_page.summary(
            self._request["id"], self._request, self.turns, self.records
        )
        text = json.dumps(summary, ensure_ascii=False, indent=1) + "\n"
        atomic.publish(self._folder / "compare.json", text.encode(), replace=True)
        atomic.publish(self._folder / "compare.html", comparison_page.page(summary), replace=True)

    def sheet(self) -> int:
        """Draw the sheet; over the one that an earlier run of this comparison drew."""
        from ..cli import processes
        from ..records import record
        from ..sheets import comparison_page

        columns = str(len({turn.seed for turn in self.turns}))
        output = ["--output", str(self._folder / "sheet.png"), "--columns", columns]
        force = ["--force"] if self._is_taken_up else []
        title = ["--label", comparison_page.LABEL, "--title", self._request["prompt"]]
        stage = processes.argv("imagen-sheet", *output, *force, *title)
        lines = b"".join(map(record.line, self.records))
        return processes.feed(stage, lines, self.common.pipe.write)

    def finish(self) -> None:
        """Journal that all of it was written to the caller."""
        if self._comparisons and self._delivery and not self._delivery.is_abandoned():
            try:
                self._comparisons.finish(self._delivery.run)
            except ImagenError as fault:
                self.common.report.note(fault.message)


def _stage(turn: Turn, passed: list[str], prompt: str) -> list[str]:
    from ..cli import processes

    own = [f"--backend={turn.backend}", f"--seed={turn.seed}", f"--id={turn.id}"]
    return processes.argv("imagen-render", *passed, *own, "--", prompt)


if __name__ == "__main__":
    main()
