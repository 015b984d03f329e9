"""What an answer means, and what it means that none came: judged, for code and for people."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Collection, Iterator, Mapping
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
from .exchange import BrokenAnswer, Exchange, Stage


class Answer(NamedTuple):
    """A status from 200 to 299, its headers and its body, and what of it must not be shown."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    hidden: Collection[str] = ()
    login_hint: str | None = None  # where a page of HTML came instead: who may have sent it

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
            shown = excerpt(self.for_people())
            is_page = self.body.lstrip()[:1] == b"<"
            hint = self.login_hint if is_page else None
            raise ServerFault(f"the server answered no JSON object: {shown}", hint=hint)
        return entry


def _null(_text: str) -> None:
    return None


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def judged(answer: Answer, who: str, where: str) -> Answer:
    """Return an answer whose status is 2xx; raise its error otherwise.

    The error carries `status`, `body` and `headers`, without the secrets that a server echoes.
    """
    if answer.status < 300:
        return answer
    from requests.structures import CaseInsensitiveDict

    body = answer.for_people()
    message = f"the {who} at {where} answered {answer.status}: {excerpt(body)}"
    place = answer.headers.get("Location") if answer.status < 400 else None
    if place:
        more = f": {excerpt(body)}" if body.strip() else ""
        message = f"the {who} at {where} answered {answer.status}: to {_shown(answer, place)}{more}"
    shown = {name: answer.hide(value) for name, value in answer.headers.items()}
    headers = CaseInsensitiveDict(shown)
    facts: dict[str, Any] = {"status": answer.status, "body": body, "headers": headers}
    if answer.status == 401 or place:
        facts["hint"] = answer.login_hint
    if answer.status >= 500 or answer.status == 429 or answer.status in TEMPORARY:
        facts["retry_after_s"] = _seconds(answer.headers.get("Retry-After"))
    if answer.status >= 500:
        raise ServerFault(message, **facts)
    if answer.status == 429:
        raise Throttled(message, **facts)
    if answer.status == 402:
        raise OutOfCredit(message, **facts)
    if answer.status in TEMPORARY:
        raise ServerFault(message, **facts)
    scope = "setup" if answer.status in OF_THE_SETUP or answer.status < 400 else None
    raise Rejected(message, **facts, scope=scope)


def _shown(answer: Answer, place: str) -> str:
    """Return where a redirect leads, without what may be a secret in it."""
    without = place.partition("?")[0].partition("#")[0]
    scheme, found, rest = without.partition("://")
    if found:
        host, slash, path = rest.partition("/")
        without = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return excerpt(answer.hide(without).encode(errors="replace"))


# Somebody gave up waiting, a lock, too early: another try may help. On a paid create none of them
# is in REFUSALS, so it stays in doubt.
TEMPORARY = frozenset({408, 423, 425})
# With these the address, the key or the proxy is wrong, whatever a request says. Not 403: a
# firewall answers it to some texts.
OF_THE_SETUP = frozenset({401, 402, 404, 405, 407})
REFUSALS = frozenset(
    {*range(400, 408), 409, 411, 413, 414, 415, 421, 422, 426, 428, 429, 431},
)


def proves_refusal(
    status: int,
    body: bytes,
    statuses: Collection[int] = REFUSALS,
    speaks_json: bool = True,
) -> bool:
    """Tell whether an answer to a request proves that the request was not accepted.

    The default statuses are those of RFC 9110 (section 15.5) and RFC 6585 that a server gives
    instead of acting on a request. Not among them: 408 (somebody gave up waiting), 3xx (look
    elsewhere), 5xx and all that proxies invent, for what is behind may have accepted. Where the
    API speaks JSON, only a JSON object is its own answer: a page of HTML comes from somebody in
    front of it. 407 is the proxy's, which did not forward the request, whatever its body.
    """
    if status not in statuses:
        return False
    if status == 407 or not speaks_json:
        return True
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def lost(fault: Exception, exchange: Exchange, who: str, where: str) -> ImagenError:
    """Return the error of an exchange that gave no answer.

    Whether a byte of the request may have left is known from the exchange. What the fault is, and
    what it says, goes into the message only: a server can write it.
    """
    through = f" through the proxy at {exchange.proxy}" if exchange.proxy else ""
    if exchange.was_sent:
        reason = _reason(fault)
        slow = _TOO_SLOW.get(exchange.stage)
        if slow and reason == _TIMED_OUT and exchange.is_late:
            return AnswerLost(f"the {who} at {where}{through} {slow} too slowly")
        return AnswerLost(f"lost the answer of the {who} at {where}{through}: {reason}")
    causes = list(_causes(fault))
    if exchange.stage is Stage.TUNNEL and type(causes[-1]) is OSError:  # it answered no 200
        reason = excerpt(str(causes[-1]).rpartition("failed: ")[2].encode(), 80)
        return Unreachable(f"cannot reach the {who} at {where}{through}: it answered {reason}")
    unusable = ValueError if exchange.stage <= Stage.CONNECTING else UnicodeError
    if any(isinstance(cause, unusable) for cause in causes):
        return ConfigFault(f"the {who}'s address or headers cannot be used: {where}")
    if type(fault) is OSError:  # nothing has wrapped it: of the certificates, before anything else
        return ConfigFault(f"cannot ask the {who} at {where}: {excerpt(str(fault).encode())}")
    return Unreachable(f"cannot reach the {who} at {where}{through}: {_reason(fault)}")


def _causes(fault: BaseException) -> Iterator[BaseException]:
    """Yield a fault and what urllib3 and requests have wrapped in it, the innermost last."""
    inner: Any = getattr(fault, "reason", None)
    yield fault
    candidates = [inner, *reversed(fault.args), fault.__cause__]
    for candidate in candidates:
        if isinstance(candidate, BaseException):
            yield from _causes(candidate)
            return


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


def _reason(fault: BaseException) -> str:
    """Say for people what happened, by the kind of the innermost fault that has a name here."""
    import http.client
    import socket
    import ssl

    from urllib3 import exceptions as urllib3
    from urllib3.util.ssl_match_hostname import CertificateError

    kinds: list[tuple[Any, str]] = [
        (socket.gaierror, "no such host"),
        ((TimeoutError, urllib3.TimeoutError), _TIMED_OUT),
        (ConnectionRefusedError, "connection refused"),
        (http.client.RemoteDisconnected, "the connection was closed"),
        (ConnectionResetError, "connection reset"),
        (BrokenPipeError, "the connection was cut"),
        ((ssl.SSLCertVerificationError, CertificateError), "its certificate is not trusted"),
        (ssl.SSLEOFError, "the connection was closed"),
        (ssl.SSLError, "it does not speak TLS as expected"),
        ((http.client.IncompleteRead, urllib3.IncompleteRead), "the body was cut short"),
        (http.client.HTTPException, "the answer is not HTTP"),
        (urllib3.InvalidHeader, "its headers contradict each other"),
    ]
    for cause in reversed(list(_causes(fault))):
        if isinstance(cause, BrokenAnswer):
            return str(cause)
        by_number = _BY_NUMBER.get(getattr(cause, "errno", None) or 0)
        reason = by_number or next((text for kind, text in kinds if isinstance(cause, kind)), None)
        if reason:
            return reason
    return type(fault).__name__


_TIMED_OUT = "timed out"
_TOO_SLOW = {Stage.SENDING: "takes what is sent", Stage.ANSWERING: "answers"}
_BY_NUMBER = {
    errno.EHOSTUNREACH: "no route to the host",
    errno.ENETUNREACH: "the network is unreachable",
}


def excerpt(body: bytes, length: int = 200) -> str:
    """Give the start of a body as one line for people."""
    text = " ".join(body[: length * 4].decode(errors="replace").split())
    return text[: length - 1] + "…" if len(text) > length else text or "(nothing)"
