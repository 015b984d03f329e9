"""One image into the cloud: its object, then its row, so that doing it again changes nothing.

The object's path is the tail of the local file, <date>/<slug>-<seed>.<ext>. PUT overwrites, so
before it the row at that path is asked for. The order makes a repairable half of whatever goes
wrong: an object without a row is found by the next try, a row without its object is never written.
What the row cannot hold is refused before the first request.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import TEMPORARY, ImagenError, Refused
from ..files import sidecars
from ..records import naming
from ..records.record import Record, canonical_uuid, check_storable, checked
from .storage import Bucket
from .supabase import Conflict, Tables

KINDS = {form: f"image/{form}" for form in sidecars.SUFFIXES}
_PATH = re.compile(r"(\d{4}-\d\d-\d\d)/[a-z0-9-]{1,200}\.(png|jpg|webp|gif|avif)", re.ASCII)
_ALIKE = (
    *("backend", "model", "workflow", "prompt", "negative_prompt", "seed", "steps", "cfg"),
    *("width", "height", "bytes", "sha256", "latency_ms"),
)
_NEEDED = ("prompt", "backend", "seed", "width", "height", "bytes", "sha256", "format")
_COLUMNS = "id,sha256,storage_path"
_BIGINT = 2**63 - 1
_NUMBERS: dict[str, tuple[type | tuple[type, ...], int, float]] = {
    "bytes": (int, 1, _BIGINT),
    "latency_ms": (int, 0, _BIGINT),
    "cost_usd": ((int, float), 0, 999_999),  # numeric(12, 6)
}


class RowMissing(ImagenError):
    """The object is in the bucket, its row is not in the table"""

    code = "row_missing"
    retry = "safe"
    hint = "kept; imagen-upload --retry-pending sends it"


class Different(Refused):
    """Another image has this image's id in the cloud"""

    code = "image_differs"
    exit_status = 1


class FileGone(Refused):
    """The image is not on this machine any more"""

    code = "image_gone"


class Target(NamedTuple):
    """Where images go: the table and the bucket."""

    tables: Tables
    bucket: Bucket


class Image(NamedTuple):
    """What goes up: the record, its file, its id in the cloud, its owner, and its path there."""

    record: Record
    file: Path
    image_id: str
    owner: str
    path: str

    @property
    def other_path(self) -> str:
        """The path when another image has the first one: unique by the render's id."""
        stem, dot, suffix = self.path.rpartition(".")
        return f"{stem}-{self.record['render_id'][:8]}{dot}{suffix}"


def syncs(no_cloud: bool, mode: str, url: str | None) -> bool:
    """Whether imagen-generate uploads: the flag over the mode; auto is when there is a project."""
    return not no_cloud and (mode == "on" or (mode == "auto" and bool(url)))


def image_id(render_id: str) -> str:
    """Give the id of a render's image in the cloud, the same wherever it is worked out."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"imagen image {render_id}"))


# -- what a record asks for ------------------------------------------------------------------------


def judged(record: Record, owner: str | None) -> Image:
    """Give what a record asks to be uploaded; Refused says what it lacks, or what no row holds."""
    render_id = canonical_uuid(str(record.get("render_id") or ""))
    if render_id is None:
        raise Refused(
            "no render_id: only images that imagen made can be uploaded",
            hint="an image FILE needs its sidecar beside it",
        )
    check_storable(record)
    sound = {**checked(record), "render_id": render_id}
    _check_written(sound)
    whose = canonical_uuid(str(sound.get("owner_user_id") or owner or ""))
    if whose is None:
        raise Refused(
            "no owner_user_id, so whose image it is in the cloud is not known",
            hint="set supabase.owner_user_id or $IMAGEN_OWNER_USER_ID",
        )
    return Image(sound, Path(str(sound["file"])), image_id(render_id), whose, path_of(sound))


def _check_written(record: Mapping[str, Any]) -> None:
    """Refuse what tools wrote when no row can hold it: after the object it would be too late."""
    for name in _NEEDED:
        if record.get(name) is None:
            raise Refused(f"no {name}: the record is not one of a finished image")
    if not (isinstance(record["format"], str) and record["format"] in KINDS):
        raise Refused(f"format must be one of {', '.join(KINDS)}")
    if not re.fullmatch("[0-9a-f]{64}", str(record["sha256"])):
        raise Refused("sha256 is none")
    for name in ("model", "workflow"):
        if not isinstance(record.get(name), str | None):
            raise Refused(f"{name} must be a string")
    for name, (kind, least, most) in _NUMBERS.items():
        value = record.get(name)
        good = isinstance(value, kind) and not isinstance(value, bool)
        if value is not None and not (good and least <= value <= most):
            raise Refused(f"{name} must be a number from {least} to {most}")
    _moment(record)


def _moment(record: Mapping[str, Any]) -> str | None:
    """Give when it was made, in UTC."""
    said = record.get("started_at")
    if said is None:
        return None
    try:
        moment = datetime.fromisoformat(said)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC).isoformat()
    except (TypeError, ValueError, OverflowError):
        raise Refused("started_at is no time") from None


def path_of(record: Mapping[str, Any]) -> str:
    """Give an image's path in the bucket: its file's own tail, or that which it would have.

    The seed of a record that was `checked` is a whole number.
    """
    date, slug, seed = record.get("date"), record.get("slug"), record["seed"]
    if not (isinstance(date, str) and naming.is_date(date)):
        raise Refused("no date, or none as YYYY-MM-DD: the path in the bucket begins with it")
    if not (isinstance(slug, str) and naming.is_slug(slug)):
        raise Refused("no slug, or one that is not [a-z0-9-]: the path in the bucket is made of it")
    file = Path(str(record["file"]))
    stem, suffix = f"{slug}-{seed}", sidecars.SUFFIXES[record["format"]]
    own = (file.stem == stem or file.stem.startswith(f"{stem}-")) and file.parent.name == date
    own_path = f"{date}/{file.stem}{suffix}"
    return own_path if own and is_path(own_path) else f"{date}/{stem}{suffix}"


def is_path(path: str) -> bool:
    """Whether a name in the bucket is one that we give: a local path may be made of it."""
    found = _PATH.fullmatch(path)
    return found is not None and naming.is_date(found[1])


def row_of(image: Image, path: str) -> Record:
    """Give the row of imagen.images; what a column has a default for is left out."""
    record = image.record
    job, moment = record.get("job"), _moment(record)
    return {
        "id": image.image_id,
        **({"created_at": moment} if moment else {}),
        "owner_user_id": image.owner,
        **{name: record.get(name) for name in _ALIKE},
        "cost_usd_estimate": record.get("cost_usd"),
        "storage_path": path,
        "sidecar": {name: one for name, one in record.items() if name != "cloud"},
        "job_id": canonical_uuid(str(job.get("id"))) if isinstance(job, dict) else None,
    }


def opened(image: Image) -> BufferedReader:
    """Open the image's file; Refused when it is not the recorded one."""
    try:
        # a pipe or a device must not keep us waiting
        descriptor = os.open(image.file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        stream = os.fdopen(descriptor, "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise FileGone(f"no such file: {image.file}") from None
    except (OSError, ValueError) as fault:
        why = getattr(fault, "strerror", None) or fault
        raise Refused(f"cannot read {image.file}: {why}", code="file") from None
    try:
        _check_file(image, stream)
    except BaseException:
        stream.close()
        raise
    return stream


def _check_file(image: Image, stream: BufferedReader) -> None:
    try:
        about = os.fstat(stream.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise Refused(f"no regular file: {image.file}", code="file")
        if about.st_size == 0:  # nor is one that the kernel makes up read: it may never end
            raise FileGone(
                f"{image.file} is not the file that was recorded: another sha256, it is empty"
            )
        stream.seek(0)
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        length = about.st_size
    except OSError as fault:
        raise Refused(f"cannot read {image.file}: {fault.strerror}", code="file") from None
    if found != image.record["sha256"]:
        raise FileGone(f"{image.file} is not the file that was recorded: another sha256")
    if length != image.record["bytes"]:
        raise Refused(f"{image.file} has {length} bytes, the record says {image.record['bytes']}")


# -- the steps -------------------------------------------------------------------------------------


def upload(image: Image, stream: BufferedReader, target: Target) -> Record:
    """Bring object and row into the cloud, or find them there; gives the record's `cloud`.

    `stream` is what `opened` gave. Each path is looked at before it is written to.
    """
    for path in (image.path, image.other_path):
        known, taken = _seen(image, target, path)
        if known:
            return _cloud(image, target, _whole(image, stream, target, known))
        if taken:
            continue  # another image's: a PUT would replace it
        _put(image, stream, target, path)
        if _recorded(image, target, path):
            return _cloud(image, target, path)
    known, _ = _seen(image, target, image.path)
    if known:  # by another process, in the meantime
        return _cloud(image, target, _whole(image, stream, target, known))
    raise Different(f"other images stand at {image.path} and {image.other_path} in the cloud")


def _seen(image: Image, target: Target, path: str) -> tuple[Record | None, bool]:
    """Give the image's row, and whether another's is at the path when it has none: one question."""
    either = f'(id.eq.{image.image_id},storage_path.eq."{path}")'
    found = target.tables.some("images", _COLUMNS, **{"or": either})
    known = next((row for row in found if row.get("id") == image.image_id), None)
    return known, known is None and bool(found)


def _whole(image: Image, stream: BufferedReader, target: Target, known: Record) -> str:
    """Give the path of the image's row, once its object is there too."""
    if known.get("sha256") != image.record["sha256"]:
        raise Different(f"the image {image.image_id} in the cloud has another sha256 than this one")
    path = str(known["storage_path"])
    bucket, record = target.bucket, image.record
    if bucket.size(path) != record["bytes"] or bucket.sha256(path) != record["sha256"]:
        _put(image, stream, target, path)
    return path


def finished(image: Image, target: Target) -> Record | None:
    """Write the row of an object that is there already, for an image whose file is gone here."""
    if known := _one(target.tables, id=f"eq.{image.image_id}"):
        path = str(known["storage_path"])
        is_there = target.bucket.sha256(path) == image.record["sha256"] == known.get("sha256")
        return _cloud(image, target, path) if is_there else None
    for path in (image.path, image.other_path):
        if (
            _one(target.tables, storage_path=f"eq.{path}") is None
            and target.bucket.sha256(path) == image.record["sha256"]
            and _recorded(image, target, path)
        ):
            return _cloud(image, target, path)
    return None


def _recorded(image: Image, target: Target, path: str) -> bool:
    """Insert the row; False when one with its id or its path came in since we looked."""
    try:
        return bool(target.tables.insert_ignoring("images", [row_of(image, path)], "id"))
    except ImagenError as fault:
        if isinstance(fault, Conflict) and (fault.state, fault.columns) in _SAME:
            return False
        says = f"the object is there, its row is not: {fault.message}"
        facts = {"retry": fault.retry, "retry_after_s": fault.retry_after_s, "scope": fault.scope}
        raise RowMissing(says, hint=kept_hint(fault), **facts) from None


_SAME = (("23505", "id"), ("23505", "storage_path"))  # what another image has already


def kept_hint(fault: ImagenError) -> str:
    """Return the hint of an upload that is kept: what to do first, and what sends it."""
    if fault.hint and "imagen-upload --retry-pending" in fault.hint:
        return fault.hint
    if fault.exit_status == TEMPORARY:
        return f"{fault.hint}; {RowMissing.hint}" if fault.hint else str(RowMissing.hint)
    first = fault.hint or "mend what the message says"
    return f"{first}; then imagen-upload --retry-pending sends it: it is kept"


def _put(image: Image, stream: BufferedReader, target: Target, path: str) -> None:
    target.bucket.put(path, stream, image.record["bytes"], KINDS[image.record["format"]])
    _check_file(image, stream)  # it may have changed under us: then no row may say that it is there


def _one(tables: Tables, **filters: str) -> Record | None:
    found = tables.some("images", _COLUMNS, **filters)
    return found[0] if found else None


def _cloud(image: Image, target: Target, path: str) -> Record:
    return {"bucket": target.bucket.name, "path": path, "image_id": image.image_id}
