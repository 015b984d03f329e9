"""imagen-compare: one request to several backends, one after the other, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .. import options
from ..command import Common, tool
from ..errors import FAILED, INTERRUPTED, UsageFault, from_os, worse

if TYPE_CHECKING:
    from pathlib import Path

    from ..compare import Turn
    from ..record import Record

EXAMPLES = """
Examples:
  imagen-compare 'a cat in a fishbowl' --backends mock,flux-schnell-local
  imagen-compare 'a lighthouse' --backends mock,flux2-klein-local --seeds 1,2,3 --size 768x768
"""
_OURS = {"backend", "seed", "id", "output", "out_dir", "dry_run"}
_NOT = {"count", "again", "output", "force", "wait", "backend", "sets"}


@tool("compare", epilog=EXAMPLES)
@click.argument("prompt")
@click.option("--backends", required=True, metavar="A,B", help="Backend instances, in this order.")
@click.option("--seeds", metavar="N,N", help="Several seeds, a column each.")
@options.render_options(*_NOT)
@click.pass_context
def main(context: click.Context, /, common: Common, prompt: str, **said: Any) -> int:
    """The same request and seed go to each backend, one after the other. Writes a folder with each
    image, sheet.png, compare.json and compare.html; prints each member's record as it is done, the
    sheet's record last. A backend that fails leaves its error in its cell.
    """
    from .. import backends, compare, config
    from ..record import is_unicode

    if prompt == "-" or not is_unicode(prompt):
        raise UsageFault("the prompt is not UTF-8, or -, which compare does not read")
    values = config.load(common.config_file)
    chosen = compare.words(said["backends"], "--backends")
    for name in chosen:
        backends.open_backend(name, values, config.ledger_path().parent)
    request, seeds, out_dir = _request(prompt, said, values)
    turns = list(compare.turns(request["id"], chosen, seeds))
    passed = list(options.as_arguments(context, but=_OURS))
    passed += ["--config", str(values.path)] if values.path else []
    if said["dry_run"]:
        return _dry(common, turns, passed, prompt)
    folder = _folder(out_dir, prompt, seeds[0])
    return _run(common, turns, passed, request, folder)


def _request(prompt: str, said: dict[str, Any], values: Any) -> tuple[Record, list[int], Path]:
    """Give the request as every backend gets it, and the seeds; drawn once when none is given."""
    import uuid

    from .. import compare, request
    from ..prompt import styled

    told = options.told(said, values)
    told.defaults.pop("backend", None)
    told.default_backend = None
    numbers = compare.words(said["seeds"], "--seeds") if said["seeds"] else []
    lines: list[Record] = [{"prompt": prompt, "seed": options.typed(one)} for one in numbers]
    found = [request.requests_of(one, told)[0] for one in lines or [{"prompt": prompt}]]
    asked = found[0] | {"id": said["id"] or str(uuid.uuid4())}
    styled(asked, values.styles)  # a style that is none is refused before anything is sent
    return asked, [one["seed"] for one in found], told.out_dir


def _folder(out_dir: Path, prompt: str, seed: int) -> Path:
    from datetime import UTC, datetime

    from .. import files

    today = datetime.now(UTC).date().isoformat()
    try:
        return files.new_folder(out_dir, today, f"{files.slug(prompt)}-{seed}-compare")
    except OSError as fault:
        raise from_os(fault, "cannot write the comparison") from None


def _dry(common: Common, turns: list[Turn], passed: list[str], prompt: str) -> int:
    from .. import compare, record

    plans: list[Record] = []
    status = 0

    def on_line(line: bytes) -> None:
        plans.append(record.parse(line))
        common.pipe.write(plans[-1])

    for turn in turns:
        status = worse(status, _render(turn, [*passed, "--dry-run"], prompt, on_line))
    common.pipe.write({"plans": len(plans), **compare.prices(plans)})
    return status


def _run(
    common: Common, turns: list[Turn], passed: list[str], request: Record, folder: Path
) -> int:
    import json

    from .. import chain, compare, files, record

    made: list[Record] = []
    status = 0

    def on_line(line: bytes) -> None:
        made.append(record.parse(line))
        common.pipe.write(made[-1])

    for turn in turns:
        ended = _render(
            turn, [*passed, "--output", str(folder / turn.file)], request["prompt"], on_line
        )
        if turn.id not in [one.get("id") for one in made]:
            made.append(compare.unanswered(turn, request, ended))
            common.pipe.write(made[-1])
        found = compare.summary(request["id"], request, turns, made)
        text = json.dumps(found, ensure_ascii=False, indent=1) + "\n"
        files.publish(folder / "compare.json", text.encode(), replace=True)
        files.publish(folder / "compare.html", compare.page(found), replace=True)
        if ended in INTERRUPTED:
            return ended
        status = worse(status, ended and (FAILED if ended != 2 else ended))
    columns = str(len({turn.seed for turn in turns}))
    sheet = chain.argv("imagen-sheet", "--output", str(folder / "sheet.png"), "--columns", columns)
    sheet += ["--label", compare.LABEL, "--title", request["prompt"]]
    lines = b"".join(map(record.line, made))
    return worse(status, chain.feed(sheet, lines, common.pipe.write))


def _render(turn: Turn, passed: list[str], prompt: str, on_line: Any) -> int:
    from .. import chain

    own = [f"--backend={turn.backend}", f"--seed={turn.seed}", f"--id={turn.id}"]
    stage = chain.argv("imagen-render", *passed, *own, "--", prompt)
    return chain.run([stage], on_line, reads_stdin=False)[0]


if __name__ == "__main__":
    main()
