"""A bucket of Supabase Storage: put, look, sign, list.

What the real server answers is recorded: PUT overwrites whatever is there, a name may hold only
some of ASCII, and the status that is meant stands in the body.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote, urljoin

from ..errors import Rejected, ServerFault
from ..http import MAX_IMAGE
from .supabase import Project, parsed

if TYPE_CHECKING:
    from ..http import Answer, Server

SLOWEST = 2**16  # bytes a second: a line that is slower is a dead one
_LISTED = 1000  # objects a page
_DEEPEST = 50  # folders inside one another


class Bucket:
    """One bucket, by its name."""

    def __init__(self, project: Project, name: str) -> None:
        """Take the project and the bucket's name."""
        self._project = project
        self.name = name

    def put(self, path: str, stream: IO[bytes], length: int, kind: str) -> None:
        """Store an open file under a path, over what is there; from its start at each try.

        Rejected when the answer is not Storage's: then nothing says that the object is there.
        """
        where = self._path("object", path)
        headers = {"Content-Type": kind, "x-upsert": "true"}

        def put(server: Server) -> Answer:
            stream.seek(0)
            return server.put(where, stream, headers)

        answer = parsed(self._project.ask(put, sends_s=length / SLOWEST).body)
        if not isinstance(answer, dict) or answer.get("Key") != f"{self.name}/{path}":
            raise self._project.stranger("Supabase Storage")

    def size(self, path: str) -> int | None:
        """Give an object's length in bytes, None when there is no such object."""
        try:
            found = self._json("get", self._path("object/info", path))
        except Rejected as fault:
            if fault.status == 404:
                return None
            raise
        size = found.get("size") if isinstance(found, dict) else None
        return size if isinstance(size, int) else -1

    def sha256(self, path: str) -> str | None:
        """Give the sha256 of an object's bytes, None when there is no such object."""
        where = self._path("object/authenticated", path)
        try:
            found = self._project.ask(lambda server: server.get(where, MAX_IMAGE))
        except Rejected as fault:
            if fault.status == 404:
                return None
            raise
        return hashlib.sha256(found.body).hexdigest()

    def signed_url(self, path: str, seconds: int) -> str:
        """Give an address at which anybody may fetch the object for so long."""
        found = self._json("post", self._path("object/sign", path), {"expiresIn": seconds})
        said = found.get("signedURL") if isinstance(found, dict) else None
        if not isinstance(said, str):
            raise ServerFault("Supabase gave no signed URL")
        base = f"{self._project.server.url}/storage/v1/"
        return urljoin(base, quote(said.lstrip("/"), safe="/?=&%.-_~"))  # its path is not quoted

    def objects(self, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the path and the entry of every object, folder by folder.

        ServerFault when the server does not keep to the folder and the page that it is asked for.
        """
        if depth > _DEEPEST:
            raise ServerFault("Supabase lists the same folder inside itself again and again")
        for entry in self._entries(prefix):
            path = f"{prefix}/{entry['name']}" if prefix else str(entry["name"])
            if entry.get("id") is not None:
                yield path, entry
            elif entry["name"]:  # the look inside a folder without a name would be this one again
                yield from self.objects(path, depth + 1)

    def _entries(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        offset = 0
        earlier: set[str] = set()  # names of the page before
        while True:
            asked = {
                "prefix": prefix,
                "limit": _LISTED,
                "offset": offset,
                "sortBy": {"column": "name", "order": "asc"},
            }
            found = self._json("post", self._path("object/list"), asked)
            if not isinstance(found, list) or not all(map(_is_entry, found)):
                raise ServerFault("Supabase gave no list of objects")
            if not found:
                return
            names = {entry["name"] for entry in found}
            if names <= earlier:
                raise ServerFault("Supabase lists the same objects again, whatever the offset")
            yield from (entry for entry in found if entry["name"] not in earlier)
            offset, earlier = offset + len(found), names

    def _path(self, verb: str, path: str | None = None) -> str:
        whole = self.name if path is None else f"{self.name}/{path}"
        return f"/storage/v1/{verb}/{quote(whole)}"

    def _json(self, method: str, path: str, *body: Any) -> Any:
        return parsed(self._project.ask(lambda server: getattr(server, method)(path, *body)).body)


def _is_entry(found: Any) -> bool:
    return isinstance(found, dict) and isinstance(found.get("name"), str)
