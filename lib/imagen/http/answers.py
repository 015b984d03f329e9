"""What an answer means, and what it means that none came: judged, for code and for people."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..errors import (
    AnswerLost,
    ConfigFault,
    ImagenError,
    OutOfCredit,
    Rejected,
    ServerFault,
    Throttled,
    Unreachable,
)


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

    def hide(self, text: str) -> str:
        """Give a text that was read in the body with them hidden."""
        for secret in self.hidden:
            text = text.replace(secret, "***")
        return text

    def json_object(self, lenient: bool = False) -> dict[str, Any]:
        """Read the body as a JSON object; ServerFault when it is none.

        JSON has no NaN and no Infinity, but Python writes them: `lenient` reads them as null.
        """
        constant = _null if lenient else _no_constant
        try:
            entry = json.loads(self.body, parse_constant=constant)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            raise ServerFault(f"the server answered no JSON object: {excerpt(self.for_people())}")
        return entry


def _null(_text: str) -> None:
    return None


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def judged(answer: Answer, who: str, where: str) -> Answer:
    """Give an answer that is one; its error otherwise."""
    if answer.status < 300:
        return answer
    body = answer.for_people()
    said = f"the {who} at {where} answered {answer.status}: {excerpt(body)}"
    told = _seconds(answer.headers.get("Retry-After"))
    if answer.status >= 500:
        raise ServerFault(said, status=answer.status, body=body, retry_after_s=told)
    if answer.status == 429:
        raise Throttled(said, status=answer.status, body=body, retry_after_s=told)
    if answer.status == 402:
        raise OutOfCredit(said)
    raise Rejected(said, status=answer.status, body=body)


def lost(fault: Exception, who: str, where: str) -> ImagenError:
    """Tell a request that never left from one that may have arrived."""
    import requests
    from urllib3.exceptions import HTTPError, LocationParseError, NewConnectionError

    wrong = (requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader)
    ours = isinstance(fault, (ValueError, LocationParseError)) and not isinstance(
        fault, requests.RequestException
    )
    if isinstance(fault, wrong) or ours or not isinstance(fault, (OSError, HTTPError)):
        return ConfigFault(f"the {who}'s address or headers cannot be used: {where}")
    reason = getattr(fault.args[0] if fault.args else None, "reason", None)
    never = (requests.ConnectTimeout, requests.exceptions.ProxyError)
    handshake = any(sign in str(fault) for sign in _HANDSHAKE)
    if isinstance(fault, never) or isinstance(reason, NewConnectionError) or handshake:
        return Unreachable(f"cannot reach the {who} at {where}: {_why(fault)}")
    return AnswerLost(f"lost the answer of the {who} at {where}: {_why(fault)}")


def origin(url: str) -> str:
    """Give the part of an address that says which server: scheme, host, port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()


def secrets(headers: Mapping[str, str]) -> set[str]:
    """Give the values of headers, whole and word by word ("Bearer TOKEN"), short words left out."""
    values = [*headers.values(), *(word for value in headers.values() for word in value.split())]
    return {value for value in values if len(value) > 5 and value != "Bearer"}


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
