"""The one importer of requests: one session per host, limits of time and size, our own errors."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import IO, Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from ..errors import AnswerLost, ConfigFault, ImagenError, Rejected, ServerFault
from . import bodies
from .exchange import BrokenAnswer, Exchange, Stage, use
from .responses import (
    Answer,
    judged,
    lost,
    origin,
    secrets,
)

CONNECT_S = 5
BODY_S = 60  # that a body may take, however steadily it trickles; more where read_s is more
MAX_JSON = 64 * 2**20  # bytes, unpacked; a full /object_info is 352 KB
MAX_IMAGE = 512 * 2**20  # bytes
_FLOW_PART = 2**18  # bytes at most of a body that is handed on while it comes
_PACE = 2**16  # bytes of it that must come within each BODY_S
_AS_IT_IS = {"Accept-Encoding": "identity"}
_MOST_REDIRECTS = 5
_LEAST_S = 0.1  # that an exchange may take, however late it begins
_REDIRECTS = (301, 302, 303, 307, 308)


class Flow(NamedTuple):
    """An answer whose body is read while it comes: AnswerLost when it is cut, silent or slow."""

    status: int
    headers: Mapping[str, str]
    parts: Iterator[bytes]


class Server:
    """A session with one host.

    Every exchange ends in time, whatever the server does. Name, connection, tunnel and TLS take
    `connect_s` at most, the head of the answer `read_s` more, and silence never lasts longer than
    `read_s`. A body that is read may take BODY_S (or `read_s`) beside that, except that of a POST:
    it ends whole within `limit_s`.

    Errors say what is proven: Unreachable and ConfigFault are raised only where no byte of the
    request has left, AnswerLost wherever one may have: decision 0013-never-sent.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        read_s: float = 60,
        who: str = "server",
        connect_s: float = CONNECT_S,
        login_hint: str | None = None,
    ) -> None:
        """Take the base URL, headers that go with every request, and the time-outs.

        `login_hint` says how to get past a 401, a redirect or a login page. What stands in
        `headers` is a secret, and hidden wherever the server says it again.
        """
        import requests
        from requests.utils import get_auth_from_url, urldefragauth

        from .connections import Adapter

        try:
            self.url = urldefragauth(url).partition("?")[0].rstrip("/")
        except ValueError:
            raise ConfigFault(f"the {who}'s address cannot be used: {url[:100]!r}") from None
        self.who = who
        self._login_hint = login_hint
        self.read_s = read_s
        self.connect_s = connect_s
        self.until = math.inf  # of time.monotonic(): nothing is waited for any longer
        self._own = headers or {}  # for this host, and whom it trusts
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, Adapter())
        self._around: dict[str, Any] = {}  # by origin: proxies, certificates
        # else it prepares the next request of a redirect, and for that reads a body without end
        setattr(self._session, "get_redirect_target", _nowhere)  # noqa: B010
        standard = {"User-Agent": "imagen", "Accept-Encoding": "gzip"}  # bodies.py unpacks it
        self._session.headers.update({**standard, **self._own})
        self._secrets = sorted(secrets(headers or {}), key=len, reverse=True)
        named = get_auth_from_url(url)
        # an auth of our own, even an empty one, keeps ~/.netrc off the Authorization header
        self._session.auth = named if any(named) else _unchanged

    def limit_s(self, read_s: float | None = None) -> float:
        """Return the longest time that a `post` with this `read_s` takes, its whole answer too."""
        return self.connect_s + (self.read_s if read_s is None else read_s)

    def get(
        self,
        path: str,
        limit: int = MAX_JSON,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """GET; `limit` caps the body's bytes, `headers` are of this request alone."""
        more = {"params": dict(params or {}), "headers": dict(headers or {})}
        return self._checked("GET", self.url + path, limit, self._exchange(), **more)

    def put(self, path: str, body: IO[bytes], headers: Mapping[str, str]) -> Answer:
        """PUT an open file, from where it stands to its end, read as it is sent.

        Beside what every exchange may take, it may take as long as bodies.SLOWEST allows.
        """
        sent = bodies.SentFile(body)
        sends_s = max(BODY_S, sent.remaining / bodies.SLOWEST)
        exchange = self._exchange(ends=time.monotonic() + self.limit_s() + sends_s)
        more = {"data": sent, "headers": dict(headers)}
        return self._checked("PUT", self.url + path, MAX_JSON, exchange, **more)

    def post(
        self,
        path: str,
        body: Any,
        headers: Mapping[str, str] | None = None,
        read_s: float | None = None,
        fresh: bool = False,
    ) -> Answer:
        """POST a JSON body; `headers` and `read_s` are of this request alone.

        It ends within `connect_s` + `read_s`, the whole answer included: see `limit_s`. With
        `fresh` it never goes over a connection that was idle for more than a second: such a one may
        be dead, and then it is not known whether the request arrived.
        """
        exchange = self._exchange(read_s, time.monotonic() + self.limit_s(read_s))
        exchange.needs_fresh = fresh
        more = {"json": body, "headers": dict(headers or {})}
        return self._checked("POST", self.url + path, MAX_JSON, exchange, **more)

    def fetch(self, url: str, trusted: Callable[[str], bool], limit: int = MAX_IMAGE) -> Answer:
        """GET from any http or https address, over at most five redirects, all in the time of one.

        Our headers, the token among them, go only to addresses that are `trusted`: that is asked
        anew at each of them. The server's own host may be anywhere. Every other one must be of the
        internet, or Rejected is raised: it is looked up once, judged, and connected to there; where
        a proxy looks it up, only addresses and names that are local by themselves are refused.
        """
        ends = time.monotonic() + self.limit_s() + self._body_s()

        def ask(place: str) -> Answer:
            exchange = self._exchange(ends=ends)
            exchange.public_only = _host(place) != _host(self.url)
            if exchange.public_only:
                self._check_name(place)
            return self._ask("GET", place, limit, exchange, **self._for(place, trusted))

        answer, place = self._followed(url, ask)
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
        """Let nothing be waited for beyond a time of time.monotonic(), nor beyond an outer one."""
        outer = self.until
        self.until = min(until, outer)
        try:
            yield
        finally:
            self.until = outer

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

    def _check_name(self, url: str) -> None:
        from .addresses import is_local_name

        if is_local_name(_host(url)):
            where = origin(url)[:100]
            raise Rejected(f"the {self.who} names a file that is not on the internet: {where}")

    def _body_s(self) -> float:
        return max(self.read_s, BODY_S)

    def _exchange(self, read_s: float | None = None, ends: float = math.inf) -> Exchange:
        """Return the limits of an exchange that begins now; `ends` is of the whole of it."""
        now = time.monotonic()
        read_s = self.read_s if read_s is None else read_s
        until = max(min(self.until, ends), now + _LEAST_S)
        return Exchange(min(now + self.connect_s, until), read_s, until)

    def _checked(self, *request: Any, **more: Any) -> Answer:
        return judged(self._ask(*request, **more), self.who, self.url)

    def _ask(self, method: str, url: str, limit: int, exchange: Exchange, **more: Any) -> Answer:
        """Send a request and read its whole answer; the head of a GET's has a time of its own."""
        import requests

        where = self.url if url.startswith(self.url) else origin(url)
        whole = exchange.until
        if method == "GET":
            exchange.until = min(whole, exchange.connect_until + exchange.read_s)
        request = requests.Request(method, url, **more)
        with self._translating(exchange, where), self._sent(request, exchange) as response:
            exchange.until = min(whole, time.monotonic() + self._body_s())
            body = self._body(response, limit, where)
            _check_whole(response)
            head = response.status_code, response.headers
            return Answer(*head, body, self._secrets, self._login_hint)

    @contextmanager
    def _translating(self, exchange: Exchange, where: str) -> Iterator[None]:
        """Raise what a fault means, by how far the exchange had come."""
        try:
            yield
        except ImagenError:
            raise
        except Exception as fault:
            if not exchange.was_sent and not isinstance(fault, _network()):
                raise
            raise lost(fault, exchange, self.who, where) from fault

    def _opened(
        self,
        opened: ExitStack,
        url: str,
        headers: Mapping[str, str],
        trusted: Callable[[str], bool],
    ) -> Flow:
        """GET, and leave the body to be read."""
        import requests

        where, more = origin(url), self._for(url, trusted)
        more["headers"] = {**more.get("headers", {}), **headers}
        exchange = self._exchange(ends=time.monotonic() + self.limit_s())
        with self._translating(exchange, where):
            request = requests.Request("GET", url, **more)
            response = opened.enter_context(self._sent(request, exchange))
        parts = self._flowing(response, exchange, where)
        return Flow(response.status_code, response.headers, parts)

    def _flowing(self, response: Any, exchange: Exchange, where: str) -> Iterator[bytes]:
        """Yield a body as it comes."""
        until, size = time.monotonic() + BODY_S, 0
        parts = bodies.raw_parts(response, _FLOW_PART)
        while True:
            exchange.until = min(self.until, time.monotonic() + BODY_S)  # for one part of it
            with self._translating(exchange, where):
                part = next(parts, b"")
                if not part:
                    _check_whole(response)
                    return
            yield part
            size += len(part)
            if time.monotonic() > until:
                if size < _PACE:
                    raise AnswerLost(f"the {self.who} at {where} answers too slowly")
                until, size = time.monotonic() + BODY_S, 0

    def _sent(self, request: Any, exchange: Exchange) -> Any:
        """Send a request; what the environment says of proxies and certificates is read once."""
        prepared = self._session.prepare_request(request)
        place = origin(str(prepared.url))
        if place not in self._around:
            self._around[place] = self._surroundings(str(prepared.url))
        exchange.stage = Stage.HANDED_OVER  # unless our own connections, which know, take it over
        with use(exchange):
            return self._session.send(
                prepared,
                timeout=(self.connect_s, exchange.read_s),
                allow_redirects=False,
                **self._around[place],
            )

    def _surroundings(self, url: str) -> Any:
        """Return what the environment says; no proxy is asked for this machine itself."""
        from .addresses import is_loopback

        settings = self._session.merge_environment_settings(url, {}, True, None, None)
        if is_loopback(_host(url)):
            settings["proxies"] = {}
        return settings

    def _body(self, response: Any, limit: int, where: str) -> bytes:
        """Read the body whole, unpacked; the exchange ends it when it takes too long."""
        parts, size = [], 0
        for part in bodies.parts(response):
            parts.append(part)
            size += len(part)
            if size > limit:
                raise ServerFault(f"the {self.who} at {where} answered more than {limit >> 20} MiB")
        return b"".join(parts)


_PLAIN_URL = re.compile(r"https?://([\w.-]+|\[[\da-fA-F:.]+\])(:\d{1,5})?([/?][!-~]*)?", re.ASCII)


def _check_whole(response: Any) -> None:
    """Raise BrokenAnswer when a body that was read is shorter than its length says."""
    promised = response.headers.get("Content-Length", "")
    has_length = promised.isdecimal() and len(promised) < 20  # Python reads no number of any length
    if has_length and response.raw.tell() < int(promised):  # urllib3 1 lets it pass
        raise BrokenAnswer("it was cut short")


def _host(url: str) -> str:
    """Return the host of an address, without its port; "" when it has none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".").lower()
    except ValueError:
        return ""


def _network() -> tuple[type[Exception], ...]:
    """Return the kinds of fault that an exchange may end by."""
    import http.client

    import requests
    from urllib3.exceptions import HTTPError

    return requests.RequestException, HTTPError, http.client.HTTPException, OSError, ValueError


def _unchanged(request: Any) -> Any:
    return request


def _nowhere(_response: Any) -> None:
    return None
