"""Where a render's images go: names reserved, images verified and written, names given back."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import disk
from ..backends import Collected, Raw
from ..errors import BadImage, ImagenError, NotAnImage, TooFewImages, from_os
from ..files import reservations, sidecars, store
from ..images import codec
from ..ledger import Entry, Ledger, LedgerBusy, LedgerFault
from ..records import naming
from ..records.record import Record
from ..records.request import Told
from . import result
from .result import Job


class Store:
    """Writes the images of renders where the command line says."""

    def __init__(
        self, ledger: Ledger, told: Told, image_out: Callable[[bytes], None] | None
    ) -> None:
        """Take who knows dead owners of names, and what takes bytes instead of a file."""
        self._ledger = ledger
        self._told = told
        self._image_out = image_out

    def reserve(self, job: Job, place: Mapping[str, Any] | None = None) -> None:
        """Reserve the names of the first image and its sidecar, or those journaled before."""
        if self._image_out is None:
            job.places.append(self._place(job, 1, job.render_id, place or {}))

    def release(self, job: Job, before: Mapping[str, Any] | None = None) -> None:
        """Release the names, unless the render may still go on, or that is not known.

        With the place that was journaled, those too that an earlier run reserved and left.
        """
        try:
            if self._ledger.path and self._ledger.journal.is_open(job.render_id):
                return
        except (LedgerFault, LedgerBusy):  # a ledger that breaks keeps back no image
            return
        for place in job.places:
            place.release()
        self.tidy(before or {}, job.render_id, job.record)

    def tidy(self, place: Mapping[str, Any], render_id: str, request: Mapping[str, Any]) -> None:
        """Remove the reservations that a process left when it died after its last step."""
        if self._image_out is None:
            for folder, stem in self._stems(place, request):
                reservations.release(folder, stem, render_id)

    def _stems(self, place: Mapping[str, Any], request: Mapping[str, Any]) -> set[tuple[Path, str]]:
        """Return where the images of a journaled render are: those after a named one are dated."""
        if not place:
            return set()
        dated = {self._dated(request)} if place["asked_for"] and "slug" in request else set()
        return {(Path(place["folder"]), str(place["stem"])), *dated}

    def is_there(self, made: list[Record]) -> bool:
        """Whether these images can be handed out again as they are."""
        wanted, out = self._told.output, self._image_out
        places = [one.get("file") for one in made]
        elsewhere = bool(wanted) and [str(Path(str(wanted)).absolute())] != places[:1]
        return bool(made) and not out and not elsewhere and all(map(sidecars.is_intact, made))

    def those_there(self, made: list[Record]) -> list[Record]:
        """Return the records whose images are still there, byte for byte."""
        return [one for one in made if sidecars.is_intact(one)]

    def changed(self, records: list[Record]) -> list[Record]:
        """Return the records whose files are there with other bytes than were written."""
        return [one for one in records if _is_file(one.get("file")) and not sidecars.is_intact(one)]

    def written(self, job: Job, entry: Entry, made: list[Record]) -> list[Record] | None:
        """Return what an earlier run has written already, brought to where it is wanted now.

        None when that is not here: what is done and gone, and what was never written.
        """
        if entry.state == "open" and job.plan and not self._image_out:
            numbers = {result.number_of(one, entry.id) for one in job.made}
            is_counted = job.plan.images > 0  # else more may be at the backend than is here
            whole = is_counted and numbers >= {*range(1, job.plan.images + 1)}
            if whole and self.is_there(job.made):
                return job.made
        if entry.state != "done" or not made or len(self.those_there(made)) < len(made):
            return None
        first = made[0]
        data = disk.read_regular(first["file"])
        if self._image_out:
            self._image_out(data)
            return made
        self.reserve(job)
        return [self._stored(job, 1, first, data), *made[1:]]

    def find_written(self, entry: Entry) -> list[Record]:
        """Return the images of a submit that are on the disk and perhaps not journaled.

        They are told by their sidecars, and verified; in the order of their numbers.
        """
        records: dict[int, Record] = {}
        for folder, stem in self._stems(entry.place, entry.request):
            for one in sidecars.sidecars(folder, stem):
                number, id_ = result.number_of(one, entry.id), str(one.get("id"))
                ours = entry.render_id if number == 1 else self._ledger.render_id(id_)
                same = one.get("render_id") == ours and entry.handle in (None, one.get("submit"))
                if same and sidecars.is_intact(one):
                    disk.sync_folder(folder)  # its names may not have lasted yet
                    records[number] = one
        return [records[number] for number in sorted(records)]

    def write(self, job: Job, collected: Collected) -> tuple[list[Record], ImagenError | None]:
        """Verify each image, then write it; returns the records, and what went wrong with others.

        What can be had later goes before what never will: then the render is not over.
        """
        total = round((time.monotonic() - job.began) * 1000)
        made: list[Record] = []
        faults: list[ImagenError] = []
        raw = collected.raw
        for number, data in collected.numbered:
            try:
                made.append(self._written(job, result.made(job, collected, number, total), data))
            except ImagenError as fault:
                final = _as_final(fault, job)
                if final is not fault:
                    raw = raw or Raw(data, _suffix(data))
                final.record = self.missing_record(job, number)
                faults.append(final)
        made = _add_written(made, job)
        if collected.fault:
            collected.fault.record = self.missing_record(job, result.first_missing(job, made))
            faults.append(collected.fault)
        # where the number is not known, any is right
        expected = max(job.plan.images, 1) if job.plan else 1
        if not faults and len(made) < expected:
            faults.append(self._too_few(job, made, expected))
        if not faults:
            return made, None
        first = min(faults, key=lambda one: one.ends)
        if isinstance(first, NotAnImage) and first.record is not None:
            first.record["backend_meta"] = {"seed_used": job.record["seed"], **collected.meta}
            try:
                self._keep(job, first, raw)
            except ImagenError as full:  # it is not over: the next run keeps it
                full.record = first.record
                return made, full
        return made, first

    def _too_few(self, job: Job, records: list[Record], expected: int) -> TooFewImages:
        return TooFewImages(
            f"the backend returned {len(records)} of {expected} images",
            record=self.missing_record(job, result.first_missing(job, records)),
            billed="yes" if job.backend.paid else "no",
        )

    def missing_record(self, job: Job, number: int) -> Record:
        """Return the record of an image of the submit that did not come.

        Of a second one it says whose it is, so that the line is not taken for a render of its own.
        """
        whose = {} if number == 1 else {"request": job.asked["id"]}
        return {**job.record, "submit": job.handle, "id": result.name(job, number), **whose}

    def _keep(self, job: Job, fault: NotAnImage, raw: Raw | None) -> None:
        """Write what is no picture beside where the image would be; FileFault when that fails."""
        if raw is None:
            return
        place = job.places[0] if job.places else None
        folder, stem = (place.folder, place.stem) if place else self._dated(job.record)
        try:
            kept = store.keep_raw(folder, stem, *raw)
        except OSError as error:
            raise from_os(error, "cannot write the file") from None
        if fault.record is not None:
            fault.record["backend_meta"]["raw_file"] = str(kept)
        fault.hint = f"what came is in {kept}"

    def _is_taken(self, job: Job, path: Path, before: Mapping[str, Any]) -> bool:
        """Whether the name where the image once was is another's now, and is not to be replaced."""
        was = before and Path(before["folder"]) / (before["stem"] + before["suffix"])
        if path != was or not job.was_made or self._told.force or not path.exists():
            return False
        return not reservations.may_replace(path.with_suffix(".json"), job.render_id)

    def _dated(self, record: Mapping[str, Any]) -> tuple[Path, str]:
        """Return the folder and the stem of an image that nobody named."""
        return self._told.out_dir / record["date"], f"{record['slug']}-{record['seed']}"

    def _written(self, job: Job, made: Record, data: bytes) -> Record:
        first = made["id"] == job.asked["id"]
        made["render_id"] = job.render_id if first else self._ledger.render_id(made["id"])
        picture = codec.probe(data, result.most_pixels(job.plan))
        result.compare(made, picture, job.plan)
        made |= {
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "format": picture.format,
        }
        if self._image_out is not None and first:
            self._image_out(data)
            return made
        return self._stored(job, 1 if first else 2, made, data)

    def _stored(self, job: Job, number: int, made: Record, data: bytes) -> Record:
        """Write one image; those that nobody asked for get a dated name, whatever --output says."""
        try:
            while True:
                if number == 1 and job.places:
                    place = job.places[0]
                else:
                    place = self._place(job, number, made["render_id"], {})
                    job.places.append(place)
                try:
                    return store.store(place, made, data)
                except FileExistsError:  # a stranger has taken the name meanwhile: the next one
                    if place.asked_for:
                        raise
                    place.release()
                    job.places.remove(place)
        except OSError as fault:
            raise from_os(fault, "cannot write the image") from None

    def _place(
        self, job: Job, number: int, image_id: str, before: Mapping[str, Any]
    ) -> reservations.Place:
        told, take_over = self._told, self._ledger.take_over
        path = Path(told.output).absolute() if told.output and number == 1 else None
        if path is None and before.get("asked_for"):
            path = Path(before["folder"]) / (before["stem"] + before["suffix"])
        try:
            if path is not None and not self._is_taken(job, path, before):
                ours = job.taken_up and reservations.may_replace(
                    path.with_suffix(".json"), job.render_id
                )
                return reservations.reserve_exactly(
                    path, job.render_id, told.force or ours, take_over
                )
            folder, stem = self._dated(job.record)
            if before:
                folder, stem = Path(before["folder"]), str(before["stem"])
            owner = reservations.Owner(job.render_id, image_id, job.taken_up)
            held = {place.stem for place in job.places}
            return reservations.reserve(folder, stem, owner, take_over, held)
        except OSError as fault:
            raise from_os(fault, "cannot write the image") from None


def _add_written(records: list[Record], job: Job) -> list[Record]:
    """Return the records with those that an earlier run has written, in order."""
    names = {one["id"] for one in records}
    there = [one for one in job.made if one["id"] not in names]
    return sorted([*records, *there], key=lambda one: result.number_of(one, job.asked["id"]))


def _as_final(fault: ImagenError, job: Job) -> ImagenError:
    """Return the error of bytes that are whole and no image: what was paid is not made again."""
    if not (job.backend.paid and isinstance(fault, BadImage) and fault.whole):
        return fault
    return NotAnImage(fault.message, hint=fault.hint, billed="yes")


def _suffix(data: bytes) -> str:
    return sidecars.SUFFIXES.get(codec.kind(data) or "", ".bin")


def _is_file(path: Any) -> bool:
    return isinstance(path, str) and Path(path).is_file()


def name_files(made: Record) -> None:
    """Work out the date and the slug that its files are named by, once."""
    made.setdefault("date", datetime.now(UTC).date().isoformat())
    made.setdefault("slug", naming.slug(made["prompt"]))
