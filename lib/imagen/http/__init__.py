"""The one importer of requests: one session per host, time-outs, size caps, errors of our own."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import IO, Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from ..errors import AnswerLost, ConfigFault, Rejected, ServerFault
from .answers import Answer, excerpt, judged, lost, origin, secrets

__all__ = ["CONNECT_S", "MAX_IMAGE", "MAX_JSON", "Answer", "Flow", "Server", "excerpt", "origin"]
CONNECT_S = 5
BODY_S = 60  # that a body may take, however steadily it trickles; more where read_s is more
MAX_JSON = 64 * 2**20  # bytes; a full /object_info is 352 KB
_SENT = 2**18  # bytes of a body at once: each must be gone within CONNECT_S, on a slow line too
_PART = 2**14  # bytes: a part is waited for whole, and only then is the clock looked at
MAX_IMAGE = 512 * 2**20  # bytes
_FLOW_PART = 2**18  # bytes at most of a body that is handed on while it comes
_PACE = 2**16  # bytes of it that must come within each BODY_S
_AS_IT_IS = {"Accept-Encoding": "identity"}
_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)


class Flow(NamedTuple):
    """An answer whose body is read while it comes: AnswerLost when it is cut, silent or slow."""

    status: int
    headers: Mapping[str, str]
    parts: Iterator[bytes]


class Server:
    """A session with one host."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        read_s: float = 60,
        who: str = "server",
    ) -> None:
        """Take the base URL, headers that go with every request, and the read time-out.

        What stands in `headers` is a secret, and hidden wherever the server says it again.
        """
        import requests
        from requests.utils import get_auth_from_url, urldefragauth

        try:
            self.url = urldefragauth(url).partition("?")[0].rstrip("/")
        except ValueError:
            raise ConfigFault(f"the {who}'s address cannot be used: {url[:100]!r}") from None
        self.who = who
        self.read_s = read_s
        self.until = math.inf  # of time.monotonic(): no body is waited for any longer
        self._own = headers or {}  # for this host, and whom it trusts
        self._session = requests.Session()
        self._around: dict[str, Any] = {}  # by origin: proxies, certificates
        # else it prepares the next request of a redirect, and for that reads a body without end
        setattr(self._session, "get_redirect_target", _nowhere)  # noqa: B010
        self._session.headers.update({"User-Agent": "imagen", **self._own})
        self._secrets = sorted(secrets(headers or {}), key=len, reverse=True)
        named = get_auth_from_url(url)
        # an auth of our own, even an empty one, keeps ~/.netrc off the Authorization header
        self._session.auth = named if any(named) else _unchanged

    def get(
        self,
        path: str,
        limit: int = MAX_JSON,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """GET; `limit` caps the body's bytes, `headers` are of this request alone."""
        more = {"params": dict(params or {}), "headers": dict(headers or {})}
        return self._checked("GET", self.url + path, limit, **more)

    def put(self, path: str, body: IO[bytes], headers: Mapping[str, str]) -> Answer:
        """PUT an open file, from where it stands to its end, read as it is sent."""
        sent = _Sent(body, self)
        return self._checked("PUT", self.url + path, MAX_JSON, data=sent, headers=dict(headers))

    def post(
        self,
        path: str,
        body: Any,
        headers: Mapping[str, str] | None = None,
        read_s: float | None = None,
    ) -> Answer:
        """POST a JSON body; `headers` and `read_s` are of this request alone."""
        more = {"json": body, "headers": dict(headers or {})}
        return self._checked("POST", self.url + path, MAX_JSON, read_s, **more)

    def fetch(self, url: str, trusted: Callable[[str], bool], limit: int = MAX_IMAGE) -> Answer:
        """GET from any http or https address, over at most five redirects.

        Our headers, the token among them, go only to addresses that are `trusted`: that is asked
        anew at each of them.
        """
        answer, place = self._followed(
            url, lambda place: self._asked("GET", place, limit, **self._for(place, trusted))
        )
        return judged(answer, self.who, place)

    @contextmanager
    def flow(
        self, url: str, trusted: Callable[[str], bool], headers: Mapping[str, str]
    ) -> Iterator[Flow]:
        """GET as `fetch` does, and give the body part by part as it was sent, never decoded.

        It may take any time, but within each BODY_S some of it must come. `headers` go wherever
        the redirects lead.
        """
        with ExitStack() as opened:

            def ask(place: str) -> Flow:
                opened.close()  # what redirected here
                return self._opened(opened, place, {**_AS_IT_IS, **headers}, trusted)

            found, place = self._followed(url, ask)
            if found.status >= 300:
                said = b"".join(islice(found.parts, 4))
                judged(Answer(found.status, found.headers, said, self._secrets), self.who, place)
            if found.headers.get("Content-Encoding", "identity") != "identity":
                raise Rejected(f"the {self.who} at {place} sends the file encoded")
            yield found

    @contextmanager
    def within(self, until: float) -> Iterator[None]:
        """Let no answer be waited for beyond a time of time.monotonic()."""
        self.until = until
        try:
            yield
        finally:
            self.until = math.inf

    def close(self) -> None:
        """Close the session's connections."""
        self._session.close()

    def _for(self, url: str, trusted: Callable[[str], bool]) -> dict[str, Any]:
        """Give what keeps our headers, and a name in our own address, from who is not trusted."""
        stranger = {"headers": dict.fromkeys(self._own), "auth": _unchanged}
        return {} if trusted(url) else stranger

    def _followed(self, url: str, ask: Callable[[str], Any]) -> tuple[Any, str]:
        """Ask at an address and where it redirects to; give the last answer and its origin."""
        place = url
        for _ in range(1 + _MOST_REDIRECTS):
            url = self._fetchable(url, place)
            answer = ask(url)
            if answer.status not in _REDIRECTS or "Location" not in answer.headers:
                return answer, origin(url)
            place = answer.headers["Location"]
        raise Rejected(f"the {self.who} redirects more than {_MOST_REDIRECTS} times")

    def _fetchable(self, url: str, place: str) -> str:
        """Give the address of a place seen from a URL, when all who read it read it alike.

        No @, no \\, no port that is none, nothing but ASCII: who is trusted is read from it.
        """
        from requests.utils import requote_uri

        try:
            plain = requote_uri(urljoin(url, place))
            if _PLAIN_URL.fullmatch(plain) and urlsplit(plain).port != 0:
                return plain
        except (ValueError, AttributeError):
            pass
        raise Rejected(f"the {self.who} names an address that cannot be fetched: {place[:60]!r}")

    def _checked(self, *request: Any, **more: Any) -> Answer:
        return judged(self._asked(*request, **more), self.who, self.url)

    def _asked(
        self, method: str, url: str, limit: int, read_s: float | None = None, **more: Any
    ) -> Answer:
        import requests
        from urllib3.exceptions import HTTPError

        where = self.url if url.startswith(self.url) else origin(url)
        read_s = self.read_s if read_s is None else read_s
        left = max(self.until - time.monotonic(), 0.1)
        try:
            with self._sent(
                requests.Request(method, url, **more),
                timeout=(min(CONNECT_S, left), min(read_s, left)),
            ) as response:
                body = self._body(response, limit, where)
                return Answer(response.status_code, response.headers, body, self._secrets)
        except (requests.RequestException, HTTPError, ValueError) as fault:
            raise lost(fault, self.who, where) from None

    def _opened(
        self,
        opened: ExitStack,
        url: str,
        headers: Mapping[str, str],
        trusted: Callable[[str], bool],
    ) -> Flow:
        """GET, and leave the body to be read."""
        import requests
        from urllib3.exceptions import HTTPError

        where, more = origin(url), self._for(url, trusted)
        more["headers"] = {**more.get("headers", {}), **headers}
        try:
            response = opened.enter_context(
                self._sent(requests.Request("GET", url, **more), (CONNECT_S, self.read_s))
            )
        except (requests.RequestException, HTTPError, ValueError) as fault:
            raise lost(fault, self.who, where) from None
        return Flow(response.status_code, response.headers, self._flowing(response, where))

    def _flowing(self, response: Any, where: str) -> Iterator[bytes]:
        """Yield a body as it comes."""
        import requests
        from urllib3.exceptions import HTTPError

        until, size = time.monotonic() + BODY_S, 0
        parts = _parts(response, _FLOW_PART, decode=False)
        while True:
            try:
                part = next(parts, b"")
            except (requests.RequestException, HTTPError, ValueError, OSError) as fault:
                raise lost(fault, self.who, where) from None
            if not part:
                return self._check_whole(response, where)
            yield part
            size += len(part)
            if time.monotonic() > until:
                if size < _PACE:
                    raise AnswerLost(f"the {self.who} at {where} answers too slowly")
                until, size = time.monotonic() + BODY_S, 0

    def _sent(self, request: Any, timeout: tuple[float, float]) -> Any:
        """Send a request; what the environment says of proxies and certificates is read once."""
        prepared = self._session.prepare_request(request)
        place = origin(str(prepared.url))
        if place not in self._around:
            self._around[place] = self._session.merge_environment_settings(
                prepared.url, {}, True, None, None
            )
        return self._session.send(
            prepared, timeout=timeout, allow_redirects=False, **self._around[place]
        )

    def _body(self, response: Any, limit: int, where: str) -> bytes:
        """Read the body whole; a slow one ends at the time-out too, not only a silent one."""
        until = min(time.monotonic() + max(self.read_s, BODY_S), self.until)
        parts, size = [], 0
        for part in _parts(response):
            parts.append(part)
            size += len(part)
            if size > limit:
                raise ServerFault(f"the {self.who} at {where} answered more than {limit >> 20} MiB")
            if time.monotonic() > until:
                raise AnswerLost(f"the {self.who} at {where} answers too slowly")
        self._check_whole(response, where)
        return b"".join(parts)

    def _check_whole(self, response: Any, where: str) -> None:
        promised = response.headers.get("Content-Length", "")
        known = promised.isdecimal() and len(promised) < 20  # Python reads no number of any length
        if known and response.raw.tell() < int(promised):  # urllib3 1 lets it pass
            raise AnswerLost(f"lost the answer of the {self.who} at {where}: it was cut short")


class _Sent:
    """A file as requests reads it while it is sent: not beyond the server's `until`."""

    def __init__(self, body: IO[bytes], server: Server) -> None:
        self._body = body
        self._server = server
        self.tell = body.tell
        start = body.tell()
        self.len = body.seek(0, 2)
        body.seek(start)

    def read(self, size: int = -1) -> bytes:
        """Give the next part; AnswerLost when it is too late for one."""
        if time.monotonic() > self._server.until:
            who, where = self._server.who, self._server.url
            raise AnswerLost(f"the {who} at {where} takes what is sent too slowly")
        return self._body.read(max(size, _SENT))  # fewer and larger parts than it asks for

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)


_PLAIN_URL = re.compile(r"https?://([\w.-]+|\[[\da-fA-F:.]+\])(:\d{1,5})?([/?][!-~]*)?", re.ASCII)


def _parts(response: Any, size: int = _PART, decode: bool = True) -> Iterator[bytes]:
    """Give a body as it comes; an older urllib3 waits until a part is whole."""
    raw = response.raw
    if not hasattr(raw, "read1"):
        yield from raw.stream(size, decode_content=decode)
        return
    while part := raw.read1(size, decode_content=decode):
        yield part


def _unchanged(request: Any) -> Any:
    return request


def _nowhere(_response: Any) -> None:
    return None
