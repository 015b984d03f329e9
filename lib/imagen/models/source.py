"""Where files come from: Hugging Face or a mirror of it, and any other host by its address."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from typing import NamedTuple
from urllib.parse import urlsplit

from .. import http
from ..errors import ConfigFault, Rejected

HOME = "https://huggingface.co"
PATIENCE_S = 60  # that a source may fail without a gain
_READ_S = 30  # that it may be silent


class Hub:
    """The host of most sources. The token goes to it when it asks for one, and to nobody else."""

    def __init__(self, base: str, token: str | None = None, patience_s: float = PATIENCE_S) -> None:
        """Take the hub's address, and the token that its gated files need."""
        self._base, self._token, self._patience_s = base, token, patience_s
        parts = urlsplit(base)
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
        self.url = bare.geturl().rstrip("/")
        self._down: set[str] = set()  # hosts that the patience was over with
        self._gated: set[str] = set()

    @cached_property
    def _plain(self) -> http.Server:
        return http.Server(self._base, None, _READ_S, "source")

    @cached_property
    def _named(self) -> http.Server:
        if not (str(self._token).isascii() and str(self._token).isprintable()):
            raise ConfigFault("$HF_TOKEN holds what no header can")
        return http.Server(
            self._base, {"Authorization": f"Bearer {self._token}"}, _READ_S, "source"
        )

    def patience_s(self, url: str) -> float:
        """Give the seconds that a source may fail without a gain; none where one just did."""
        return 0 if http.origin(url) in self._down else self._patience_s

    def note(self, url: str, is_down: bool) -> None:
        """Note that the patience was over with a source's host, or that it answers."""
        (self._down.add if is_down else self._down.discard)(http.origin(url))

    def address(self, source: str) -> str:
        """Give the address of a source: one at Hugging Face is looked for at the hub."""
        at_hub = source.startswith(f"{HOME}/")
        return self.url + source.removeprefix(HOME) if at_hub else source

    def open(self, stack: ExitStack, url: str, headers: Mapping[str, str]) -> http.Flow:
        """GET until `stack` is closed; where a token is asked for, once more with it."""
        server = self._named if url in self._gated else self._plain
        try:
            return stack.enter_context(server.flow(url, self._is_hub, headers))
        except Rejected as fault:
            if fault.status not in (401, 403):
                raise
            if url in self._gated or not (self._token and self._is_hub(url)):
                fault.hint = self._why_refused(url)
                raise
        self._gated.add(url)
        return self.open(stack, url, headers)

    def close(self) -> None:
        """Close the connections."""
        for name in ("_plain", "_named"):
            if name in vars(self):
                getattr(self, name).close()

    def _is_hub(self, url: str) -> bool:
        return http.origin(url) == http.origin(self.url)

    def _why_refused(self, url: str) -> str:
        if not self._is_hub(url):
            return f"no token goes to another host than {self.url}: get it by hand"
        if self._token:
            return "the account of $HF_TOKEN may not have it: accept its licence first"
        return f"it needs a login: put a token of {self.url} into $HF_TOKEN"


class Offer(NamedTuple):
    """What an answer offers: from which byte on, of how many in all, and of which version."""

    start: int
    total: int | None
    tag: str | None


def offer(flow: http.Flow) -> Offer:
    """Read an answer's status and headers; Rejected when it is no file."""
    tags = (flow.headers.get("ETag", ""), flow.headers.get("Last-Modified", ""))
    tag = next((one for one in tags if one and not one.startswith("W/")), None)
    length = flow.headers.get("Content-Length", "")
    if flow.status == 200 and re.fullmatch(r"\d{0,19}", length):
        return Offer(0, int(length) if length else None, tag)
    span = re.fullmatch(_SPAN, flow.headers.get("Content-Range", ""))
    if flow.status != 206 or not span:
        raise Rejected(f"the source answers {flow.status}, and no file that can be read")
    return Offer(int(span[1]), None if span[2] == "*" else int(span[2]), tag)


_SPAN = r"bytes (\d{1,19})-\d{1,19}/(\d{1,19}|\*)"  # more digits are no number of bytes
