"""Where a render's images go: names reserved, images verified and written, names given back."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import files, image, outcome
from .backends import Collected
from .errors import ImagenError, TooFewImages, from_os
from .ledger import Entry, Ledger, LedgerBusy, LedgerFault
from .outcome import Job
from .record import Record
from .request import Told


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

    def release(self, job: Job) -> None:
        """Give the names back, unless the render may still go on, or nobody can tell."""
        try:
            if self._ledger.path and self._ledger.journal.is_open(job.render_id):
                return
        except (LedgerFault, LedgerBusy):  # a ledger that breaks keeps back no image
            return
        for place in job.places:
            place.release()

    def tidy(self, place: Mapping[str, Any], render_id: str) -> None:
        """Take away the reservation that a process left when it died after its last step."""
        if place and self._image_out is None:
            files.release(Path(place["folder"]), place["stem"], render_id)

    def is_there(self, made: list[Record]) -> bool:
        """Whether these images can be handed out again as they are."""
        wanted, out = self._told.output, self._image_out
        places = [one.get("file") for one in made]
        elsewhere = bool(wanted) and [str(Path(str(wanted)).absolute())] != places[:1]
        return bool(made) and not out and not elsewhere and all(map(_is_file, places))

    def those_there(self, made: list[Record]) -> list[Record]:
        """Give the records whose images are still there."""
        return [one for one in made if _is_file(one.get("file"))]

    def written(self, job: Job, entry: Entry, made: list[Record]) -> list[Record] | None:
        """Give what an earlier run has written already, brought to where it is wanted now.

        None when that is not here: what is done and gone, and what was never written.
        """
        if entry.state == "open" and job.plan and job.plan.images == 1 and not self._image_out:
            made = [{**one, **outcome.brought(job.asked)} for one in _left_at(job, entry.place)]
            if self.is_there(made):
                return made
        if entry.state != "done" or not made or len(self.those_there(made)) < len(made):
            return None
        first = made[0]
        data = Path(first["file"]).read_bytes()
        if self._image_out:
            self._image_out(data)
            return made
        self.reserve(job)
        return [self._stored(job, 1, first, data), *made[1:]]

    def write(self, job: Job, collected: Collected) -> tuple[list[Record], ImagenError | None]:
        """Verify each image, then write it; gives the records, and what went wrong after them."""
        total = round((time.monotonic() - job.began) * 1000)
        made: list[Record] = []
        try:
            for number, data in enumerate(collected.images, 1):
                made.append(self._written(job, outcome.made(job, collected, number, total), data))
        except ImagenError as fault:
            return made, fault
        expected = max(job.plan.images, 1) if job.plan else 1  # where it is not known, any is right
        if len(made) >= expected:
            return made, None
        rest = {**job.record, "submit": job.handle, "id": outcome.name(job, len(made) + 1)}
        return made, TooFewImages(
            f"the backend returned {len(made)} of {expected} images",
            record=rest,
            billed="yes" if job.backend.paid else "no",
        )

    def _written(self, job: Job, made: Record, data: bytes) -> Record:
        first = made["id"] == job.asked["id"]
        made["render_id"] = job.render_id if first else self._ledger.render_id(made["id"])
        picture = image.probe(data, outcome.most_pixels(job.plan))
        outcome.compare(made, picture, job.plan)
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
                    return files.store(place, made, data)
                except FileExistsError:  # a stranger has taken the name meanwhile: the next one
                    if place.asked_for:
                        raise
                    place.release()
                    job.places.remove(place)
        except OSError as fault:
            raise from_os(fault, "cannot write the image") from None

    def _place(
        self, job: Job, number: int, image_id: str, before: Mapping[str, Any]
    ) -> files.Place:
        told, take_over = self._told, self._ledger.take_over
        path = Path(told.output).absolute() if told.output and number == 1 else None
        if path is None and before.get("asked_for"):
            path = Path(before["folder"]) / (before["stem"] + before["suffix"])
        try:
            if path is not None:
                ours = job.taken_up and files.is_ours(path.with_suffix(".json"), job.render_id)
                return files.reserve_exactly(path, job.render_id, told.force or ours, take_over)
            folder = Path(before.get("folder") or told.out_dir / job.record["date"])
            stem = before.get("stem") or f"{job.record['slug']}-{job.record['seed']}"
            owner = files.Owner(job.render_id, image_id, job.taken_up)
            held = {place.stem for place in job.places}
            return files.reserve(folder, stem, owner, take_over, held)
        except OSError as fault:
            raise from_os(fault, "cannot write the image") from None


def _left_at(job: Job, place: Mapping[str, Any]) -> list[Record]:
    """Give the sidecar's record of an image that was written and not journaled, if it is whole."""
    if not place:
        return []
    file = Path(place["folder"]) / (place["stem"] + place["suffix"])
    made = files.record_of(file)
    if made.get("render_id") != job.render_id or not _is_file(made["file"]):
        return []
    files.sync_folder(file.parent)  # its names may not have lasted yet
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    return [made] if found == made.get("sha256") else []


def _is_file(path: Any) -> bool:
    return isinstance(path, str) and Path(path).is_file()


def name_files(made: Record) -> None:
    """Work out the date and the slug that its files are named by, once."""
    made.setdefault("date", datetime.now(UTC).date().isoformat())
    made.setdefault("slug", files.slug(made["prompt"]))
