"""One image into the cloud: its object, then its row, so that doing it again changes nothing.

The object's path is the tail of the local file, <date>/<slug>-<seed>.<ext>. PUT overwrites, so
before it the row at that path is asked for. The order makes a repairable half of whatever goes
wrong: an object without a row is found by the next try, a row without its object is never written.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import files
from .errors import ImagenError, Refused, Rejected
from .record import Record, canonical_uuid
from .storage import Bucket
from .supabase import Tables

KINDS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_ALIKE = (
    *("backend", "model", "workflow", "prompt", "negative_prompt", "seed", "steps", "cfg"),
    *("width", "height", "bytes", "sha256", "latency_ms"),
)


class RowMissing(ImagenError):
    """The object is in the bucket, its row is not in the table"""

    code = "row_missing"
    retry = "safe"
    hint = "imagen-upload --retry-pending finishes it"


class Different(Refused):
    """Another image has this image's id in the cloud"""

    code = "image_differs"
    exit_status = 1


class Target(NamedTuple):
    """Where images go: the table, the bucket, and whose they are when a record does not say."""

    tables: Tables
    bucket: Bucket
    owner: str | None


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


def image_id(render_id: str) -> str:
    """Give the id of a render's image in the cloud, the same wherever it is worked out."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"imagen image {render_id}"))


def judged(record: Record, owner: str | None) -> Image:
    """Give what a record asks to be uploaded; Refused says what it lacks."""
    render_id = canonical_uuid(str(record.get("render_id") or ""))
    if render_id is None:
        raise Refused("no render_id: only images that imagen made can be uploaded")
    whose = canonical_uuid(str(record.get("owner_user_id") or owner or ""))
    if whose is None:
        raise Refused(
            "no owner_user_id, or one that is no UUID",
            hint="set supabase.owner_user_id or $IMAGEN_OWNER_USER_ID; imagen-config sample says"
            " how to find it",
        )
    for name in ("prompt", "backend", "width", "height", "bytes", "sha256"):
        if record.get(name) is None:
            raise Refused(f"no {name}: the record is not a finished one")
    file = Path(str(record["file"]))
    return Image(
        {**record, "render_id": render_id}, file, image_id(render_id), whose, path_of(record)
    )


def path_of(record: Mapping[str, Any]) -> str:
    """Give an image's path in the bucket: its file's own tail, or that which it would have."""
    date, slug, seed = record.get("date"), record.get("slug"), record.get("seed")
    if not (isinstance(date, str) and files.is_date(date)):
        raise Refused("no date, or none as YYYY-MM-DD: the path in the bucket begins with it")
    if not (isinstance(slug, str) and files.is_slug(slug)):
        raise Refused("no slug, or one that is not [a-z0-9-]: the path in the bucket is made of it")
    file = Path(str(record["file"]))
    suffix = files.SUFFIXES.get(str(record.get("format")), ".png")
    stem = f"{slug}-{seed}"
    own = file.stem.startswith(stem) and files.is_slug(file.stem) and file.parent.name == date
    return f"{date}/{file.stem if own else stem}{suffix}"


def checked(image: Image) -> None:
    """Refuse a file that is not the recorded one."""
    try:
        with image.file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as fault:
        raise Refused(f"cannot read {image.file}: {fault.strerror}", code="file") from None
    if found != image.record["sha256"]:
        raise Refused(f"{image.file} is not the file that was recorded: another sha256")


def row_of(image: Image, path: str) -> Record:
    """Give the row of imagen.images."""
    record = image.record
    job = record.get("job")
    return {
        "id": image.image_id,
        "created_at": record.get("started_at"),
        "owner_user_id": image.owner,
        **{name: record.get(name) for name in _ALIKE},
        "cost_usd_estimate": record.get("cost_usd"),
        "storage_path": path,
        "sidecar": {name: one for name, one in record.items() if name != "cloud"},
        "job_id": canonical_uuid(str(job.get("id"))) if isinstance(job, dict) else None,
    }


def upload(image: Image, target: Target) -> Record:
    """Bring object and row into the cloud, or find them there; gives the record's `cloud`."""
    checked(image)
    known = _one(target.tables, id=f"eq.{image.image_id}")
    if known:
        path = _same(image, known)
        if target.bucket.size(path) != image.record["bytes"]:
            _put(image, target, path)
        return _cloud(image, target, path)
    path = image.path
    if _one(target.tables, storage_path=f"eq.{path}"):
        path = image.other_path
        if _one(target.tables, storage_path=f"eq.{path}"):
            raise Different(f"another image stands at {path} in the cloud")
    _put(image, target, path)
    try:
        return _cloud(image, target, _recorded(image, target, path))
    except Different:
        raise
    except ImagenError as fault:
        says = f"the object is there, its row is not: {fault.message}"
        facts = {"retry": fault.retry, "retry_after_s": fault.retry_after_s}
        raise RowMissing(says, hint=fault.hint or RowMissing.hint, **facts) from None


def _recorded(image: Image, target: Target, path: str) -> str:
    """Insert the row; gives the path that it has."""
    try:
        if target.tables.insert_ignoring("images", [row_of(image, path)], "id"):
            return path
    except Rejected as fault:
        if fault.status != 409 or path == image.other_path:
            raise
        path = image.other_path  # another machine took the name between our look and now
        _put(image, target, path)
        return _recorded(image, target, path)
    known = _one(target.tables, id=f"eq.{image.image_id}")
    if known is None:
        raise Rejected("the row was not taken, and is not there")
    return _same(image, known)


def _same(image: Image, known: Mapping[str, Any]) -> str:
    if known.get("sha256") != image.record["sha256"]:
        raise Different(f"the image {image.image_id} in the cloud has another sha256 than this one")
    return str(known["storage_path"])


def _put(image: Image, target: Target, path: str) -> None:
    target.bucket.put(path, image.file, KINDS[str(image.record.get("format"))])


def _one(tables: Tables, **filters: str) -> Record | None:
    found = tables.some("images", "id,sha256,storage_path", **filters)
    return found[0] if found else None


def _cloud(image: Image, target: Target, path: str) -> Record:
    return {"bucket": target.bucket.name, "path": path, "image_id": image.image_id}
