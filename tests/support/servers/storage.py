"""A Supabase Storage look-alike: what version 1.11.2 was seen to say, it says.

tests/data/storage/recorded.json holds what the real one was asked and said;
tests/cloud/test_storage.py replays it here. Not there: copy, move, list-v2, ranges, resumable
uploads, image transformations. Who may read or write what is decided by the rows of
`storage_rows.py`: with a database those are storage.objects under its policies, without one only
the service role gets in.

    with Storage(secret) as storage: ...     by itself; storage.front.url, paths without /storage/v1
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import uuid
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from .gateway import JSON, Answer, Front, Request
from .postgrest import token as sign
from .storage_rows import SERVICE, Claims, Denied, Exists, Memory, Row, Rows, Table, Trouble
from .storage_wire import (
    INTERNAL,
    NO_BUCKET,
    NO_OBJECT,
    Refused,
    body_of,
    check_file,
    check_mime,
    dated,
    decoded,
    denied,
    first_of,
    invalid,
    key_of,
    metadata_of,
    no_route,
    raw,
    said,
    seconds_of,
    shown_bucket,
    shown_file,
    shown_folder,
    shown_gone,
    stamp,
    uploaded,
)

KEY = re.compile(r"[A-Za-z0-9_/!.*'() &$@=;:+,?-]+")
MOST_BYTES = 50 * 2**20  # the server's own limit, beside the bucket's
UPLOAD_LASTS_S = 2 * 3600  # a signed URL for an upload


class Bytes:
    """The bytes of objects, by bucket and name: in memory, or as files of a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.versions: dict[tuple[str, str], str] = {}
        self._data: dict[str, bytes] = {}

    def put(self, place: tuple[str, str], data: bytes) -> None:
        """Keep bytes under a name, in place of others."""
        version, before = str(uuid.uuid4()), self.versions.get(place)
        if self.folder:
            (self.folder / version).write_bytes(data)
        else:
            self._data[version] = data
        self.versions[place] = version
        self._drop(before)

    def get(self, place: tuple[str, str]) -> bytes | None:
        """Give the bytes of a name."""
        version = self.versions.get(place)
        if version is None:
            return None
        try:
            return (self.folder / version).read_bytes() if self.folder else self._data[version]
        except (FileNotFoundError, KeyError):  # replaced meanwhile
            return self.get(place)

    def forget(self, place: tuple[str, str]) -> str:
        """Drop the bytes of a name; give the version that they had."""
        version = self.versions.pop(place, "")
        self._drop(version)
        return version

    def _drop(self, version: str | None) -> None:
        if version and self.folder:
            (self.folder / version).unlink(missing_ok=True)
        self._data.pop(version or "", None)


class Storage:
    """The server; a test may set what is public."""

    def __init__(self, secret: str, dsn: str | None = None, folder: Path | None = None) -> None:
        """Take the secret of the project's tokens, and the database's address as authenticator."""
        self.secret = secret
        self.rows: Rows = Table(dsn) if dsn else Memory()
        self.bytes = Bytes(folder)
        self.skew_s = 0.0  # of its clock: a test need not wait for a URL to expire
        self.most_bytes = MOST_BYTES
        self.front: Front | None = None

    def __enter__(self) -> Storage:
        """Serve on a port of its own."""
        self.front = Front(self.respond)
        return self

    def __exit__(self, *_: object) -> None:
        if self.front:
            self.front.stop()
        self.close()

    def close(self) -> None:
        """Close the connections to the database."""
        self.rows.close()

    def objects(self, bucket: str = "imagen-generated") -> dict[str, bytes]:
        """Give the bytes of all objects of a bucket by name."""
        found = self.rows.within(SERVICE, bucket, "")
        return {row.name: self.bytes.get((bucket, row.name)) or b"" for row in found}

    def now(self) -> float:
        """Give the time on its clock."""
        return time.time() + self.skew_s

    # -- requests --------------------------------------------------------------------------------

    def respond(self, request: Request) -> Answer:
        """Answer a request."""
        try:
            return self._route(request)
        except Refused as refused:
            return refused.answer
        except Denied:
            return denied("new row violates row-level security policy").answer
        except Exists:
            exists = ("Duplicate", "The resource already exists", "KeyAlreadyExists")
            return Refused(409, *exists).answer
        except Trouble as trouble:
            code = str(trouble)
            broken = ("DatabaseError", f"database error, code: {code}", "DatabaseError", 500)
            return Refused(500, *broken).answer if code else INTERNAL.answer

    def _route(self, request: Request) -> Answer:
        path = request.target.partition("?")[0]
        method = "GET" if request.method == "HEAD" else request.method
        json_said = request.headers.get("Content-Type", "").startswith("application/json")
        if json_said and not request.body and method != "GET":
            message = "Body cannot be empty when content-type is set to 'application/json'"
            answer = Refused(400, "FastifyError", message, "InvalidRequest").answer
            return answer._replace(headers={**JSON, "connection": "close"})
        match method, path.split("/")[1:]:
            case "GET", ["status"]:
                return Answer()
            case _, ["bucket", *rest]:
                return self._bucket(method, rest, request)
            case _, ["object", "sign" | "public" | "upload" as kind, *rest]:
                return self._open(method, kind, rest, request)
            case _, ["object", *rest]:
                return self._object(method, rest, request)
        return no_route(request)

    def _bucket(self, method: str, rest: list[str], request: Request) -> Answer:
        claims = self._claims(request)
        match method, rest:
            case "POST", []:
                body = body_of(request, "name")
                one = {"id": body.get("id") or body["name"], **body}
                try:
                    self.rows.add_bucket(claims, one)
                except Exists:
                    exists = ("Duplicate", "The resource already exists", "BucketAlreadyExists")
                    raise Refused(409, *exists) from None
                return said(200, {"name": one["id"]})
            case "GET", []:
                kind = {"type": "STANDARD"}
                found = [shown_bucket(one, kind) for one in self.rows.buckets(claims)]
                return said(200, found)
            case "GET", [name]:
                return said(200, shown_bucket(self._found_bucket(name, claims), {}))
            case "DELETE", [name]:
                self._found_bucket(name, claims)
                if self.rows.within(SERVICE, name, ""):
                    message = "The bucket you tried to delete is not empty"
                    raise Refused(409, "ResourceNotEmpty", message, "ResourceNotEmpty")
                self.rows.drop_bucket(claims, name)
                return said(200, {"message": "Successfully deleted"})
        return no_route(request)

    def _open(self, method: str, kind: str, rest: list[str], request: Request) -> Answer:
        """Answer for /object/sign, /object/upload/sign and /object/public."""
        match method, kind, rest:
            case "POST", "sign", [bucket]:
                return self._sign_many(bucket, request)
            case "POST", "sign", [bucket, *key]:
                return self._sign(bucket, key_of(key), request)
            case "GET", "sign", [bucket, *key]:
                return self._signed(bucket, key_of(key), request)
            case "POST", "upload", ["sign", bucket, _, *_]:
                return self._sign_upload(bucket, key_of(rest[2:]), request)
            case "PUT", "upload", ["sign", bucket, _, *_]:
                return self._signed_upload(bucket, key_of(rest[2:]), request)
            case "GET", "public", [bucket, *key]:
                if not self._found_bucket(bucket)["public"]:
                    raise NO_BUCKET
                return self._sent(self._found(SERVICE, bucket, key_of(key)))
        return no_route(request)

    def _object(self, method: str, rest: list[str], request: Request) -> Answer:
        match method, rest:
            case "POST", ["list", bucket]:
                return self._list(bucket, request)
            case "GET", ["info", bucket, _, *_]:
                claims = self._claims(request)
                return self._info(self._found(claims, bucket, key_of(rest[2:])))
            case "GET", ["authenticated", bucket, _, *_]:
                claims = self._claims(request)
                return self._sent(self._found(claims, bucket, key_of(rest[2:])))
            case "GET", [bucket, _, *_]:
                return self._sent(self._found(self._claims(request), bucket, key_of(rest[1:])))
            case "POST" | "PUT", [bucket, _, *_]:
                return self._upload(method, bucket, key_of(rest[1:]), request)
            case "DELETE", [bucket]:
                return self._delete_many(bucket, request)
            case "DELETE", [bucket, _, *_]:
                return self._delete(bucket, key_of(rest[1:]), request)
        return no_route(request)

    # -- objects ---------------------------------------------------------------------------------

    def _upload(self, method: str, bucket: str, key: str, request: Request) -> Answer:
        claims = self._claims(request)
        upsert = method == "PUT" or request.headers.get("x-upsert") == "true"
        row = self._stored(claims, bucket, key, request, upsert)
        return said(200, {"Key": f"{bucket}/{key}", "Id": row.id})

    def _stored(self, claims: Claims, bucket: str, key: str, request: Request, upsert: bool) -> Row:
        """Judge and keep an upload. As with the real one, two at once may both be the first."""
        limits = self._found_bucket(bucket)
        upload = uploaded(request)
        check_mime(upload.mime, limits["allowed_mime_types"])
        if not KEY.fullmatch(key):
            raise Refused(400, "InvalidKey", f"Invalid key: {key}", "InvalidKey")
        self.rows.may_put(claims, bucket, key, upsert)
        if len(upload.data) > min(self.most_bytes, limits["file_size_limit"] or self.most_bytes):
            message = "The object exceeded the maximum allowed size"
            raise Refused(413, "Payload too large", message, "EntityTooLarge")
        check_file(bucket, key)
        self.bytes.put((bucket, key), upload.data)
        about = metadata_of(upload, self.now())
        return self.rows.put(bucket, key, claims.get("sub"), about, upload.user_metadata)

    def _found_bucket(self, name: str, claims: Claims = SERVICE) -> dict[str, Any]:
        for one in self.rows.buckets(claims):
            if one["id"] == name:
                return one
        raise NO_BUCKET

    def _found(self, claims: Claims, bucket: str, key: str) -> Row:
        """Give the object that may be seen, as it is in the database."""
        self._found_bucket(bucket)
        row = self.rows.find(claims, bucket, key)
        if row is None:
            raise NO_OBJECT
        return row

    def _sent(self, row: Row, **headers: str) -> Answer:
        data = self.bytes.get((row.bucket_id, row.name))
        if data is None:  # a row that somebody put into the database by hand
            raise NO_OBJECT
        about = row.metadata or {}
        cache = {} if "expires" in headers else {"cache-control": about.get("cacheControl", "")}
        kind = about.get("mimetype", "application/octet-stream")
        fixed = {"accept-ranges": "bytes", "content-type": kind, "x-robots-tag": "none"}
        return Answer(200, {**fixed, **dated(row), **headers, **cache}, data)

    def _info(self, row: Row) -> Answer:
        about = row.metadata or {}
        cache = about.get("cacheControl", "")
        shown = {
            **{"id": row.id, "name": row.name, "version": self._version(row)},
            **{"bucket_id": row.bucket_id, "size": about.get("size")},
            **{"content_type": about.get("mimetype"), "cache_control": cache},
            **{"etag": about.get("eTag"), "metadata": row.user_metadata or {}},
            **{"last_modified": stamp(row.updated_at), "created_at": stamp(row.created_at)},
        }
        return said(200, shown, **dated(row), **{"cache-control": cache})

    def _version(self, row: Row) -> str:
        return self.bytes.versions.get((row.bucket_id, row.name), "")

    def _delete(self, bucket: str, key: str, request: Request) -> Answer:
        claims = self._claims(request)
        self._found(SERVICE, bucket, key)
        if not self.rows.delete(claims, bucket, [key]):
            raise denied("Access denied")
        self.bytes.forget((bucket, key))
        return said(200, {"message": "Successfully deleted"})

    def _delete_many(self, bucket: str, request: Request) -> Answer:
        claims = self._claims(request)
        gone = self.rows.delete(claims, bucket, body_of(request, "prefixes")["prefixes"])
        return said(200, [shown_gone(one, self.bytes.forget((bucket, one.name))) for one in gone])

    def _list(self, bucket: str, request: Request) -> Answer:
        claims, body = self._claims(request), body_of(request, "prefix")
        inside = body["prefix"].strip("/") + "/" if body["prefix"].strip("/") else ""
        order = body.get("sortBy") or {}
        by, down = order.get("column") or "name", order.get("order") == "desc"
        files, folders = [], set()
        for row in self.rows.within(claims, bucket, inside + (body.get("search") or "")):
            first, is_folder, _ = row.name.removeprefix(inside).partition("/")
            if is_folder:
                folders.add(first)
            else:
                files.append((getattr(row, by), shown_file(first, row)))
        if by == "name":
            named = [(one, shown_folder(one)) for one in folders]
            found = sorted([*named, *((one["name"], one) for _, one in files)], key=first_of)
            found = found[::-1] if down else found
        else:  # not recorded: folders, which have no times, come first
            found = [(one, shown_folder(one)) for one in sorted(folders)]
            found += sorted(files, key=first_of, reverse=down)
        start = body.get("offset") or 0
        return said(200, [one for _, one in found[start : start + (body.get("limit") or 100)]])

    # -- tokens ----------------------------------------------------------------------------------

    def _claims(self, request: Request) -> Claims:
        header = request.headers.get("Authorization")
        if header is None:
            raise invalid("headers must have required property 'authorization'")
        return self.read_token(header.removeprefix("Bearer "), denied)

    def read_token(self, token: str, refuse: Callable[[str], Refused]) -> Claims:
        """Give the claims of a token that is ours and has not expired."""
        parts = token.split(".")
        if len(parts) != 3:
            raise refuse("Invalid Compact JWS")
        head, claims = decoded(parts[0]), decoded(parts[1])
        if not isinstance(head, dict) or "alg" not in head:
            raise refuse("JWS Protected Header is invalid")
        signed = ".".join(parts[:2]).encode()
        right = hmac.digest(self.secret.encode(), signed, hashlib.sha256)
        if head["alg"] != "HS256" or not isinstance(claims, dict) or raw(parts[2]) != right:
            raise refuse("signature verification failed")
        if claims.get("exp", self.now() + 1) <= self.now():
            raise refuse('"exp" claim timestamp check failed')
        return claims

    def token(self, lasts_s: float, **claims: Any) -> str:
        """Sign a token that lasts so long on its clock."""
        times = {"iat": int(self.now()), "exp": int(self.now() + lasts_s)}
        return sign(self.secret, **claims, **times)

    def _sign(self, bucket: str, key: str, request: Request) -> Answer:
        claims, body = self._claims(request), body_of(request, "expiresIn")
        self._found(claims, bucket, key)
        return said(200, {"signedURL": self._signed_url(bucket, key, seconds_of(body))})

    def _sign_many(self, bucket: str, request: Request) -> Answer:
        claims, body = self._claims(request), body_of(request, "expiresIn", "paths")
        lasts_s, found = seconds_of(body), []
        missing = "Either the object does not exist or you do not have access to it"
        for path in body["paths"]:
            there = self.rows.find(claims, bucket, path)
            url = self._signed_url(bucket, path, lasts_s) if there else None
            found.append({"error": None if there else missing, "path": path, "signedURL": url})
        return said(200, found)

    def _signed_url(self, bucket: str, key: str, lasts_s: int) -> str:
        place = f"{bucket}/{key}"  # which is not quoted: a space stays one
        return f"/object/sign/{place}?token={self.token(lasts_s, url=place)}"

    def _by_token(self, bucket: str, key: str, request: Request) -> Claims:
        query = parse_qs(request.target.partition("?")[2])
        if "token" not in query:
            raise invalid("querystring must have required property 'token'")
        bad = "InvalidJWT"
        claims = self.read_token(query["token"][0], lambda why: Refused(400, bad, why, bad))
        if claims.get("url") != f"{bucket}/{key}":
            wrong = "InvalidSignature"
            raise Refused(400, wrong, "Invalid signature", wrong)
        return claims

    def _signed(self, bucket: str, key: str, request: Request) -> Answer:
        claims = self._by_token(bucket, key, request)
        query = parse_qs(request.target.partition("?")[2], keep_blank_values=True)
        headers = {"expires": formatdate(claims["exp"], usegmt=True)}
        for name in query.get("download", []):
            named = f"; filename={name}; filename*=UTF-8''{name}" if name else ""
            headers["content-disposition"] = f"attachment{named}"
        return self._sent(self._found(SERVICE, bucket, key), **headers)

    def _sign_upload(self, bucket: str, key: str, request: Request) -> Answer:
        claims = self._claims(request)
        self._found_bucket(bucket)
        upsert = request.headers.get("x-upsert") == "true"
        self.rows.may_put(claims, bucket, key, upsert)
        about = {"owner": claims.get("sub"), "url": f"{bucket}/{key}", "upsert": upsert}
        token = self.token(UPLOAD_LASTS_S, **about)
        url = f"/object/upload/sign/{bucket}/{key}?token={token}"
        return said(200, {"url": url, "token": token})

    def _signed_upload(self, bucket: str, key: str, request: Request) -> Answer:
        claims = self._by_token(bucket, key, request)
        as_owner = {**SERVICE, "sub": claims.get("owner")}
        self._stored(as_owner, bucket, key, request, bool(claims.get("upsert")))
        return said(200, {"Key": f"{bucket}/{key}"})
