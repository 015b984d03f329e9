"""What the Storage look-alike reads in a request and writes in an answer; pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import uuid
from datetime import UTC, datetime
from email.parser import BytesHeaderParser
from email.utils import formatdate
from typing import Any, NamedTuple
from urllib.parse import unquote

from .gateway import JSON, Answer, Request
from .storage_rows import Row

MIME = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+(\s*;.*)?")
MOST_NAME = 255  # bytes of a file's name: the recorded server keeps objects as files


class Refused(Exception):
    """What Storage says no with; nearly always as HTTP 400, with the real status in the body."""

    def __init__(self, status: int, error: str, message: str, code: str, http: int = 400) -> None:
        """Take the four fields of the body."""
        super().__init__(message)
        about = {"statusCode": str(status), "error": error, "message": message, "code": code}
        self.answer = said(http, about)


def said(status: int, about: Any, **headers: str) -> Answer:
    """Answer in JSON, as compact as the real one."""
    text = json.dumps(about, ensure_ascii=False, separators=(",", ":"))
    return Answer(status, {**JSON, **headers}, text.encode())


def invalid(message: str) -> Refused:
    """Refuse a request that has not the form that it should."""
    return Refused(400, "Error", message, "InvalidRequest")


def denied(message: str) -> Refused:
    """Refuse who asks."""
    return Refused(403, "Unauthorized", message, "AccessDenied")


NO_BUCKET = Refused(404, "Bucket not found", "Bucket not found", "NoSuchBucket")
NO_OBJECT = Refused(404, "not_found", "Object not found", "NoSuchKey")
BAD_MIME = "invalid_mime_type"
INTERNAL = Refused(500, "Internal", "Internal Server Error", "InternalError", 500)
# read in Storage's source, never recorded: too many connections, and none in time
SLOW_DOWN = Refused(
    429, "too_many_connections", "Too many connections issued to the database", "SlowDown", 429
).answer
DATABASE_TIMEOUT = Refused(
    544, "DatabaseTimeout", "The connection to the database timed out", "DatabaseTimeout", 544
).answer


class Upload(NamedTuple):
    """The bytes of an object and what is said of them."""

    data: bytes
    mime: str
    cache: str
    user_metadata: dict[str, Any] | None


# -- what stands in a request ----------------------------------------------------------------------


def key_of(words: list[str]) -> str:
    """Give the key that the rest of a path names."""
    return unquote("/".join(words))


def first_of(pair: tuple[Any, Any]) -> Any:
    """Give what a pair is sorted by."""
    return pair[0]


def no_route(request: Request) -> Answer:
    """Answer a path that nothing is at."""
    path = request.target.partition("?")[0]
    message = f"Route {request.method}:{path} not found"
    return said(404, {"message": message, "error": "Not Found", "statusCode": 404})


def body_of(request: Request, *required: str) -> dict[str, Any]:
    """Read the JSON of a request, which must have these keys."""
    is_json = request.headers.get("Content-Type", "").startswith("application/json")
    try:
        body = json.loads(request.body) if is_json else None
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise invalid("body must be object")
    for name in required:
        if name not in body:
            raise invalid(f"body must have required property '{name}'")
    return body


def seconds_of(body: dict[str, Any]) -> int:
    """Read how long a signed URL is to last, s."""
    try:
        seconds = int(body["expiresIn"])  # a string of digits will do
    except (TypeError, ValueError):
        raise invalid("body/expiresIn must be integer") from None
    if seconds < 1:
        raise invalid("body/expiresIn must be >= 1")
    return seconds


def uploaded(request: Request) -> Upload:
    """Read an upload, sent as it is or as a form."""
    kind = request.headers.get("Content-Type") or "application/octet-stream"
    given = request.headers.get("x-metadata")
    user = decoded(given) if given else None
    if not kind.startswith("multipart/form-data"):
        cache = request.headers.get("cache-control", "no-cache")
        return Upload(request.body, kind, cache, user)
    data, mime, cache = b"", "application/octet-stream", "no-cache"
    for name, part_kind, content in parts_of(request.body, kind):
        if name == "cacheControl":
            cache = f"max-age={content.decode()}"
        elif name == "metadata":
            user = json.loads(content)
        else:
            data, mime = content, part_kind or mime
    return Upload(data, mime, cache, user)


def parts_of(body: bytes, kind: str) -> list[tuple[str, str, bytes]]:
    """Give name, content type and content of each part of a form."""
    boundary = kind.partition("boundary=")[2].strip('"').encode()
    found = []
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        headers = BytesHeaderParser().parsebytes(head)
        name = headers.get_param("name", "", "content-disposition")
        found.append((str(name), headers.get("Content-Type", ""), content))
    return found


def check_mime(mime: str, allowed: list[str] | None) -> None:
    """Refuse a content type that is none, or that the bucket does not take."""
    if not MIME.fullmatch(mime):
        raise Refused(415, BAD_MIME, "Invalid Content-Type header", "InvalidMimeType")
    families = {one.removesuffix("*") for one in allowed or [] if one.endswith("/*")}
    if allowed and mime not in allowed and not mime.startswith((*families,)):
        raise Refused(415, BAD_MIME, f"mime type {mime} is not supported", "InvalidMimeType")


def check_file(bucket: str, key: str) -> None:
    """Refuse what a server that keeps objects as files cannot name."""
    if {".", ".."} & {*key.split("/")}:
        path = f"supa/local/{bucket}/{key}/{uuid.uuid4()}"
        raise Refused(
            400, "InvalidKey", f"Invalid key: {path} contains dot path segment", "InvalidKey"
        )
    if max(len(part) for part in key.split("/")) > MOST_NAME:
        raise INTERNAL


# -- what stands in an answer ----------------------------------------------------------------------


def stamp(at: datetime | None) -> str | None:
    """Write a time as Storage does."""
    return at and at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def metadata_of(upload: Upload, now: float) -> dict[str, Any]:
    """Give what storage.objects keeps of an upload."""
    etag = hashlib.md5(upload.data, usedforsecurity=False).hexdigest()
    return {
        "eTag": f'"{etag}"',
        "size": len(upload.data),
        "mimetype": upload.mime,
        "cacheControl": upload.cache,
        "lastModified": stamp(datetime.fromtimestamp(now, UTC)),
        "contentLength": len(upload.data),
        "httpStatusCode": 200,
    }


def dated(row: Row) -> dict[str, str]:
    """Give the headers that say which version of an object this is."""
    modified = formatdate(row.updated_at.timestamp(), usegmt=True)
    return {"etag": (row.metadata or {}).get("eTag", ""), "last-modified": modified}


def shown_bucket(one: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Show a bucket; `more` goes where the list has the type."""
    return {
        **{"id": one["id"], "name": one["name"], "owner": one["owner_id"] or ""},
        **{"public": one["public"], **more, "file_size_limit": one["file_size_limit"]},
        **{"allowed_mime_types": one["allowed_mime_types"]},
        **{name: stamp(one[name]) for name in ("created_at", "updated_at")},
    }


def times_of(row: Row) -> dict[str, str | None]:
    """Show the times of an object."""
    names = ("updated_at", "created_at", "last_accessed_at")
    return {name: stamp(getattr(row, name)) for name in names}


def shown_file(name: str, row: Row) -> dict[str, Any]:
    """Show an object in a list."""
    return {"name": name, "id": row.id, **times_of(row), "metadata": row.metadata}


def shown_folder(name: str) -> dict[str, Any]:
    """Show a folder in a list."""
    keys = ("id", "updated_at", "created_at", "last_accessed_at", "metadata")
    return {"name": name, **dict.fromkeys(keys)}


def shown_gone(row: Row, version: str) -> dict[str, Any]:
    """Show an object that was deleted."""
    owner = row.owner_id or ""
    return {
        **{"name": row.name, "bucket_id": row.bucket_id, "owner": owner, "owner_id": owner},
        **{"version": version, "id": row.id, **times_of(row)},
        **{"metadata": row.metadata, "user_metadata": row.user_metadata or {}},
    }


def raw(text: str) -> bytes:
    """Decode base64 as tokens have it; empty when it is none."""
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""


def decoded(text: str) -> Any:
    """Read JSON in base64; None when it is none."""
    try:
        return json.loads(raw(text.rstrip("=")))
    except ValueError:
        return None
