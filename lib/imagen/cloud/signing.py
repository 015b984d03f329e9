"""Addresses of images that are in the cloud already, found by their ids. Nothing is uploaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..errors import Refused, Rejected
from ..records.record import Record, canonical_uuid
from .upload import Different, Target


class NoSuchImage(Refused):
    """There is no image of this id in the cloud"""

    code = "no_such_image"


def image_id_of(record: Mapping[str, Any]) -> str | None:
    """Return the id of a record's image in the cloud, if its file is not on this machine.

    It is `cloud.image_id`, or `image_id` as in a line of imagen-jobs.
    """
    file = record.get("file")
    if isinstance(file, str) and os.path.lexists(file):
        return None
    cloud = record.get("cloud")
    named = cloud.get("image_id") if isinstance(cloud, dict) else record.get("image_id")
    return canonical_uuid(str(named))


def place_of(image_id: str, sha256: Any, target: Target) -> Record:
    """Return the `cloud` of an image by its row.

    NoSuchImage when there is none, Different when the row has another sha256 than is known.
    """
    rows = target.tables.some("images", "id,sha256,storage_path", id=f"eq.{image_id}")
    if not rows:
        raise NoSuchImage(f"there is no image {image_id} in the cloud")
    if sha256 is not None and rows[0].get("sha256") != sha256:
        raise Different(f"the image {image_id} in the cloud has another sha256 than this one")
    path = str(rows[0].get("storage_path"))
    return {"bucket": target.bucket.name, "path": path, "image_id": image_id}


def signed(path: str, seconds: int, target: Target) -> str:
    """Return an address at which anybody may fetch an object; NoSuchImage when it is not there."""
    try:
        return target.bucket.signed_url(path, seconds)
    except Rejected as fault:
        if fault.status != 404 or "NoSuchBucket" in fault.message:
            raise
        hint = "imagen-upload --repair lists rows without objects"
        raise NoSuchImage(f"the object {path} is not in the bucket", hint=hint) from None
