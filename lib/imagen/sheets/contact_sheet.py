"""One contact sheet, from records to file: lay out, draw, embed, write; and pick from it again."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..disk import read_regular
from ..errors import Refused, from_os
from ..files import reservations, store
from ..images import codec
from ..ledger import Ledger
from ..records.record import Record
from . import drawing, layout


class Wanted(NamedTuple):
    """What a sheet should be; without `output` it gets a dated name in `folder`."""

    folder: Path
    output: str | None = None
    force: bool = False
    columns: int | None = None
    cell: int = 256
    label: str | None = None
    differences: bool = False
    title: str = ""
    font: str | None = None
    max_pixels: int = 100_000_000


def make(
    members: Sequence[Record], wanted: Wanted, ledger: Ledger
) -> tuple[Record, dict[int, str]]:
    """Draw the members and write the sheet; gives its record and why some could not be shown."""
    fields = [name.strip() for name in wanted.label.split(",")] if wanted.label else None
    labels = layout.labels(members, fields, wanted.differences)
    most = max(map(len, labels))
    grid = layout.grid(len(members), wanted.columns, wanted.cell, most, bool(wanted.title))
    layout.check_size(grid)
    owner = str(uuid.uuid4())
    with ledger.lock(owner):
        place = _place(wanted, owner, ledger)
        try:
            pairs = zip(members, labels, strict=True)
            texts = {
                grid.address(n): layout.embedded(m, place.folder) for n, m in enumerate(members)
            }
            layout.check_texts(texts)
            drawn = [drawing.Member(*layout.shown(one), label) for one, label in pairs]
            style = drawing.Style(wanted.title, wanted.font, wanted.max_pixels)
            picture, faults = drawing.compose(grid, drawn, style)
            record = layout.record(owner, members, grid, wanted.title)
            with tempfile.TemporaryFile() as stream:
                drawing.save(picture, texts, stream)
                del picture  # the encoded sheet is on disk: only one of the two is held
                return _stored(place, record, stream), {
                    n: why for n, why in enumerate(faults) if why
                }
        finally:
            place.release()


def _place(wanted: Wanted, owner: str, ledger: Ledger) -> reservations.Place:
    try:
        if wanted.output:
            path = Path(wanted.output).absolute()
            return reservations.reserve_exactly(path, owner, wanted.force, ledger.take_over)
        today = datetime.now(UTC).date().isoformat()
        ours = reservations.Owner(owner, owner)
        return reservations.reserve(wanted.folder / today, "sheet", ours, ledger.take_over)
    except OSError as fault:
        raise from_os(fault, "cannot write the sheet") from None


def _stored(place: reservations.Place, record: Record, stream: Any) -> Record:
    record["bytes"] = stream.tell()
    stream.seek(0)
    record["sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
    stream.seek(0)
    try:
        return store.store(place, record, partial(shutil.copyfileobj, stream))
    except OSError as fault:
        raise from_os(fault, "cannot write the sheet") from None


def members_of(path: Path, addresses: Collection[str]) -> Iterator[Record]:
    """Yield the records of a sheet's cells, all of them when no address is named.

    They are read one by one, for a small file can hold large ones.
    """
    path = path.absolute()
    try:
        texts = layout.texts_of(codec.text_of_png(read_regular(path)), path)
    except OSError as fault:
        raise from_os(fault, "cannot read the sheet") from None
    named = [layout.known_address(one) for one in addresses]
    for place in named:
        if place not in texts:
            raise Refused(f"no cell {place} in {path}", hint=f"the last one is {list(texts)[-1]}")
    for place in named or texts:
        yield layout.member(place, texts[place], path)
