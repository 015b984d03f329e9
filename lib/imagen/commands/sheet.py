"""imagen-sheet: many images on one picture, each with an address."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..cli.tool import Common, tool
from ..errors import NO_UTF_8, BadLine, RenderFailed, UsageFault, as_unicode

if TYPE_CHECKING:
    from ..records.record import Record

EXAMPLES = """
Examples:
  imagen-render 'a cat in a fishbowl' --count 12 | imagen-sheet --output cats.png
  imagen-sheet --pick B3 cats.png | imagen-render --count 4
  imagen-sheet ~/Pictures/imagen/2026-11-23 --label seed,steps --columns 6
"""


@tool("sheet", epilog=EXAMPLES, any_bytes=("files", "font"))
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("-0", "null", is_flag=True, help="stdin is image paths, each ended by NUL.")
@click.option("--output", metavar="FILE", help="The sheet's name; a dated one when not given.")
@click.option("--force", is_flag=True, help="Let --output replace a file.")
@click.option("--columns", type=click.IntRange(1, 1000), metavar="N", help="Cells in a row.")
@click.option(
    "--cell",
    type=click.IntRange(16, 4096),
    default=256,
    help="Pixels of a cell.",
    show_default=True,
)
@click.option("--label", metavar="FIELDS", help="What stands below, like prompt,seed.")
@click.option("--differences", is_flag=True, help="Label only what differs between the members.")
@click.option("--title", default="", metavar="TEXT", help="A line above all.")
@click.option("--font", metavar="FILE", help="A .ttf or .otf file, for other scripts.")
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=100_000_000,
    metavar="N",
    help="Refuse images with more.",
    show_default=True,
)
@click.option("--pick", multiple=True, metavar="B3", help="Print the record of a sheet's cell.")
@click.option("--list", "lists", is_flag=True, help="Print the records of all cells of a sheet.")
def main(common: Common, files: tuple[str, ...], **said: Any) -> int:
    """Reads records from stdin, or image FILEs and folders with their sidecars, and writes one PNG
    and its record. Each cell has an address as in a spreadsheet: letter = column, number = row. The
    sheet carries the record of every member, so that --pick can tell which image was meant.
    """
    from .. import ledger
    from ..cli import pipe
    from ..config import loader
    from ..files import reservations
    from ..sheets import contact_sheet, layout

    if said.pop("lists") | bool(said["pick"]):
        if len(files) != 1:
            raise UsageFault(
                "--pick and --list take one sheet", hint="imagen-sheet --pick B3 x.png"
            )
        for member in contact_sheet.members_of(Path(files[0]), said["pick"]):
            common.pipe.write(member)
        return common.pipe.status
    if said["output"]:  # before anything is rendered for us
        reservations.check_exactly(Path(said["output"]).absolute(), said["force"])
    found = _members(common, files, said.pop("null"))
    members = list(islice(found, layout.most_cells(said["cell"])))  # so many are refused below
    if not members:
        raise UsageFault("nothing to put on a sheet", hint="imagen-render 'a cat' | imagen-sheet")
    del said["pick"]
    wanted = contact_sheet.Wanted(loader.load(common.config_file)["output.dir"], **said)
    book = ledger.opened(loader.ledger_path(), common.report.note)
    made, faults = contact_sheet.make(members, wanted, book)
    for number, why in faults.items():
        where = pipe.name_of(members[number], made["cells"][number]["address"])
        common.pipe.failed(where, RenderFailed(why))
    common.pipe.write(made)
    return common.pipe.status


def _members(common: Common, named: tuple[str, ...], null: bool) -> Iterator[Record]:
    """Give the members' records: of images named, with their sidecars, or of the lines on stdin."""
    from ..cli import pipe

    if null and (named or not pipe.stdin_waits()):
        raise UsageFault("-0 takes the images from stdin", hint="find -print0 | imagen-sheet -0")
    if null:
        named = tuple(map(os.fsdecode, filter(None, sys.stdin.buffer.read().split(b"\0"))))
    if named or null:
        yield from _of_images(common, named)
    elif pipe.stdin_waits():
        for line in pipe.read(sys.stdin.buffer, "-0 takes image paths, as find -print0 gives them"):
            if line.record is not None:
                yield line.record
            elif line.fault:
                common.pipe.failed(line.where, line.fault)
    else:
        raise UsageFault("no records", hint="imagen-render 'a cat' --count 12 | imagen-sheet")


def _of_images(common: Common, named: tuple[str, ...]) -> Iterator[Record]:
    from ..files import sidecars
    from ..records import record

    ids: set[Any] = set()
    for name in named:
        if record.is_unicode(name) and not os.path.lexists(name):
            raise UsageFault(f"no such file: {name}")
    for path in map(Path, named):
        is_folder = record.is_unicode(str(path)) and path.is_dir()
        for image in sidecars.images_in(path) if is_folder else [path]:
            if not record.is_unicode(str(image.absolute())):
                common.pipe.failed(as_unicode(image.name), BadLine(NO_UTF_8))
                continue
            member = sidecars.record_of(image)
            if not (is_folder and "members" in member):  # the sheets made there
                yield _told_apart(member, ids)


def _told_apart(member: Record, ids: set[Any]) -> Record:
    """Give an image without a sidecar its whole name as id when another has its stem."""
    if member.keys() == {"id", "file"} and member["id"] in ids:
        member = {**member, "id": Path(member["file"]).name}
    ids.add(str(member.get("id")))
    return member


if __name__ == "__main__":
    main()
