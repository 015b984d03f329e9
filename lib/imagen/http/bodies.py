"""Bodies: a file as it is sent, an answer as it comes, unpacked in steps of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from .exchange import BrokenAnswer

SLOWEST = 2**16  # bytes a second: a file that is sent more slowly is given up
_SENT = 2**18  # bytes of a file read at once
_PART = 2**14  # bytes of an answer at once
_STEP = 2**20  # bytes at most that a part is unpacked to at once
_PACKED = ("gzip", "x-gzip", "deflate")


class SentFile:
    """A file as requests reads it while it is sent, from where it stands to its end."""

    def __init__(self, body: IO[bytes]) -> None:
        """Take an open file."""
        self._body = body
        self.tell = body.tell
        start = body.tell()
        self.len = body.seek(0, 2)
        body.seek(start)
        self.remaining = self.len - start

    def read(self, size: int = -1) -> bytes:
        """Return the next part: fewer and larger parts than it asks for."""
        return self._body.read(max(size, _SENT))

    def __iter__(self) -> Iterator[bytes]:
        """Yield it by lines: requests only looks whether this is here."""
        return iter(self._body)


def raw_parts(response: Any, size: int = _PART) -> Iterator[bytes]:
    """Yield a body as it was sent; an older urllib3 waits until a part is whole."""
    raw = response.raw
    if not hasattr(raw, "read1"):
        yield from raw.stream(_PART, decode_content=False)
        return
    while part := raw.read1(size, decode_content=False):
        yield part


def parts(response: Any) -> Iterator[bytes]:
    """Yield a body unpacked, never more than a step at once. Raise BrokenAnswer when it cannot be.

    A small body may be packed from a huge one: who reads it can stop.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower() or "identity"
    if encoding == "identity":
        return raw_parts(response)
    if encoding in _PACKED:
        return _unpacked(raw_parts(response))
    raise BrokenAnswer(f"its body is encoded as {encoding[:40]!r}")


def _unpacked(packed: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack gzip, also of several members, or deflate."""
    import zlib

    def unpacker() -> Any:
        return zlib.decompressobj(32 + zlib.MAX_WBITS)

    member, is_empty = unpacker(), True
    try:
        for part in packed:
            is_empty, rest, step = False, part, b""
            while rest or len(step) == _STEP:
                if member.eof:
                    member = unpacker()
                step = member.decompress(rest, _STEP)
                if step:
                    yield step
                rest = member.unused_data if member.eof else member.unconsumed_tail
                if member.eof and not rest:
                    break
    except zlib.error as fault:
        raise BrokenAnswer("its body cannot be unpacked") from fault
    if not (member.eof or is_empty):
        raise BrokenAnswer("it was cut short")
