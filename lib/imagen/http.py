"""The one importer of requests: one session per host, time-outs, size caps, errors of our own."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from .errors import (
    AnswerLost,
    ConfigFault,
    ImagenError,
    OutOfCredit,
    Rejected,
    ServerFault,
    Throttled,
    Unreachable,
)

CONNECT_S = 5
MAX_JSON = 64 * 2**20  # bytes; a full /object_info is 352 KB
_PART = 2**14  # bytes: a part is waited for whole, and only then is the clock looked at
MAX_IMAGE = 512 * 2**20  # bytes


class Answer(NamedTuple):
    """A status from 200 to 299, its headers and its body, and what of it must not be shown."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    hidden: Collection[str] = ()

    def for_people(self) -> bytes:
        """Give the body with the secrets that a server echoes hidden."""
        body = self.body
        for secret in self.hidden:
            body = body.replace(secret.encode(), b"***")
        return body

    def json_object(self) -> dict[str, Any]:
        """Read the body as a JSON object; ServerFault when it is none."""
        try:
            found = json.loads(self.body, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ServerFault(f"the server answered no JSON object: {excerpt(self.for_people())}")
        return found


class Server:
    """A session with one host."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        read_s: float = 60,
        who: str = "server",
        plain_headers: Mapping[str, str] | None = None,
    ) -> None:
        """Take the base URL, headers that go with every request, and the read time-out.

        What stands in `headers` is a secret, and hidden wherever the server says it again; what
        stands in `plain_headers` is not.
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
        self._session = requests.Session()
        self._session.headers.update(
            {"User-Agent": "imagen", **(headers or {}), **(plain_headers or {})}
        )
        self._secrets = sorted(_secrets(headers or {}), key=len, reverse=True)
        named = get_auth_from_url(url)
        # an auth of our own, even an empty one, keeps ~/.netrc off the Authorization header
        self._session.auth = named if any(named) else _unchanged

    def get(self, path: str, limit: int = MAX_JSON, **params: str) -> Answer:
        """GET; `limit` caps the body's bytes."""
        return self._ask("GET", path, limit, params=params)

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        """POST a JSON body; `headers`, which hold no secret, are for this once."""
        return self._ask("POST", path, MAX_JSON, json=body, headers=headers)

    def close(self) -> None:
        """Close the session's connections."""
        self._session.close()

    def _ask(self, method: str, path: str, limit: int, **more: Any) -> Answer:
        import requests
        from urllib3.exceptions import HTTPError

        try:
            with self._session.request(
                method,
                self.url + path,
                timeout=(CONNECT_S, self.read_s),
                allow_redirects=False,
                stream=True,
                **more,
            ) as response:
                body = self._body(response, limit)
                answer = Answer(response.status_code, response.headers, body, self._secrets)
        except (requests.RequestException, HTTPError, ValueError) as fault:
            raise self._lost(fault) from None
        self._check(answer)
        return answer

    def _body(self, response: Any, limit: int) -> bytes:
        """Read the body whole; a slow one ends at the time-out too, not only a silent one."""
        until = min(time.monotonic() + max(self.read_s, 60), self.until)
        parts, size = [], 0
        for part in response.iter_content(_PART):
            parts.append(part)
            size += len(part)
            if size > limit:
                raise ServerFault(f"the {self.who} answered more than {limit // 2**20} MiB")
            if time.monotonic() > until:
                raise AnswerLost(f"the {self.who} at {self.url} answers too slowly")
        return b"".join(parts)

    def _lost(self, fault: Exception) -> ImagenError:
        """Tell a request that never left from one that may have arrived."""
        import requests
        from urllib3.exceptions import NewConnectionError

        wrong = (requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader)
        if isinstance(fault, wrong) or not isinstance(fault, requests.RequestException):
            return ConfigFault(f"the {self.who}'s address or headers cannot be used: {self.url}")
        reason = getattr(fault.args[0] if fault.args else None, "reason", None)
        never = (requests.ConnectTimeout, requests.exceptions.ProxyError)
        handshake = any(sign in str(fault) for sign in _HANDSHAKE)
        if isinstance(fault, never) or isinstance(reason, NewConnectionError) or handshake:
            return Unreachable(f"cannot reach the {self.who} at {self.url}: {_why(fault)}")
        return AnswerLost(f"lost the answer of the {self.who} at {self.url}: {_why(fault)}")

    def _check(self, answer: Answer) -> None:
        if answer.status < 300:
            return
        body = answer.for_people()
        said = f"the {self.who} at {self.url} answered {answer.status}: {excerpt(body)}"
        told = _seconds(answer.headers.get("Retry-After"))
        if answer.status >= 500:
            raise ServerFault(said, status=answer.status, body=body, retry_after_s=told)
        if answer.status == 429:
            raise Throttled(said, status=answer.status, body=body, retry_after_s=told)
        if answer.status == 402:
            raise OutOfCredit(said)
        raise Rejected(said, status=answer.status, body=body)


def _secrets(headers: Mapping[str, str]) -> set[str]:
    """Give the values of headers, whole and word by word ("Bearer TOKEN"), short words left out."""
    values = [*headers.values(), *(word for value in headers.values() for word in value.split())]
    return {value for value in values if len(value) > 5 and value != "Bearer"}


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _unchanged(request: Any) -> Any:
    return request


def _seconds(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return max(seconds, 0) if math.isfinite(seconds) else None


_HANDSHAKE = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "HANDSHAKE_FAILURE")
_REASONS = {
    "refused": "connection refused",
    "timed out": "timed out",
    "resolve": "no such host",
    "Name or service": "no such host",
    "reset by peer": "connection reset",
    "Remote end closed": "the connection was closed",
    "No route": "no route to the host",
    "unreachable": "the network is unreachable",
    "CERTIFICATE": "its certificate is not trusted",
    "SSL": "it does not speak TLS",
    "proxy": "the proxy does not answer",
    "Broken": "the connection was cut",
    "IncompleteRead": "the body was cut short",
}


def _why(fault: Exception) -> str:
    text = str(fault)
    return next((says for sign, says in _REASONS.items() if sign in text), type(fault).__name__)


def excerpt(body: bytes, length: int = 200) -> str:
    """Give the start of a body as one line for people."""
    text = " ".join(body[: length * 4].decode(errors="replace").split())
    return text[: length - 1] + "…" if len(text) > length else text or "(nothing)"
