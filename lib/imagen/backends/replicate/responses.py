"""What the answers of Replicate's API mean: predictions, refusals, the list, addresses. Pure.

Facts are of its published API description (2025-2026).
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple, TypeGuard
from urllib.parse import urljoin, urlsplit

from ...errors import AnswerLost, ImagenError, RenderFailed, ServerFault, Throttled
from .catalog import Reference

LIST = "/v1/predictions"
ENDED = ("succeeded", "failed", "canceled", "aborted")  # any other status may still change

# -- one prediction --------------------------------------------------------------------------------


class Prediction(NamedTuple):
    """A prediction as far as it can be read; times in unix seconds."""

    id: str
    status: str
    input: dict[str, Any] | None
    outputs: list[str]
    error: str
    logs: str
    created: float | None
    started: float | None
    completed: float | None
    predict_s: float | None
    data_removed: bool
    model: str | None
    version: str | None
    output: Any = None
    shown: Sequence[str] = ()  # the outputs as a record may have them
    now: float | None = None  # the server's clock when it said so

    @property
    def run_ms(self) -> int | None:
        """How long the model ran."""
        seconds = self.predict_s
        if seconds is None and self.started and self.completed:
            seconds = max(self.completed - self.started, 0)
        return None if seconds is None else round(seconds * 1000)


def is_id(text: Any) -> bool:
    """Whether it can be the id of a prediction, and is safe in a path."""
    return isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,100}", text) is not None


def prediction(said: Any) -> Prediction:
    """Read a prediction; ServerFault when it is none."""
    if not isinstance(said, dict) or not is_id(said.get("id")):
        raise ServerFault("the answer is no prediction: it has no id")
    if not isinstance(said.get("status"), str):
        raise ServerFault("the answer is no prediction: it has no status")
    metrics, given = said.get("metrics"), said.get("input")
    run: Any = metrics.get("predict_time") if isinstance(metrics, dict) else None
    model, version = said.get("model"), said.get("version")
    return Prediction(
        id=said["id"],
        status=said["status"],
        input=given if isinstance(given, dict) and given else None,
        outputs=addresses(said.get("output")),
        error=_text(said.get("error")),
        logs=str(said.get("logs") or ""),
        created=stamp(said.get("created_at")),
        started=stamp(said.get("started_at")),
        completed=stamp(said.get("completed_at")),
        predict_s=float(run) if _is_number(run) and 0 <= run < 1e6 else None,
        data_removed=said.get("data_removed") is True,
        model=model if isinstance(model, str) else None,
        version=version if isinstance(version, str) else None,
        output=said.get("output"),
    )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_DEEPEST = 12  # lists and objects inside each other
_MOST_ADDRESSES = 1000
_ADDRESS = re.compile(r"https?://\S+|data:[^,\s]{0,200},.*", re.IGNORECASE | re.DOTALL)


def addresses(output: Any) -> list[str]:
    """Return the http(s) and data: addresses in an output, in their order; text is passed over.

    Models have one, a list, lists in lists, or objects in which captions and others stand by them.
    """
    urls: list[str] = []
    waiting = [(output, 0)]
    while waiting and len(urls) < _MOST_ADDRESSES:
        value, depth = waiting.pop()
        if isinstance(value, str):
            if address := _ADDRESS.match(value.strip()):
                urls.append(address[0])
        elif isinstance(value, (dict, list)) and depth < _DEEPEST:
            inner = value.values() if isinstance(value, dict) else value
            waiting += [(one, depth + 1) for one in reversed([*inner])]
    return urls


def _text(error: Any) -> str:
    text = error if isinstance(error, str) else json.dumps(error) if error else ""
    return " ".join(text.split())[:500]


def stamp(text: Any) -> float | None:
    """Read a time of ISO 8601, with or without fractions; None when it is none."""
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def seed_in(logs: str) -> int | None:
    """Give the seed that a model drew, which it tells in its logs; None when it does not."""
    found = re.search(r"\busing seed:?\s*(\d{1,20})\b", logs, re.IGNORECASE)
    return int(found[1]) if found else None


def failure(ended: Prediction) -> ImagenError | None:
    """Give the error of a prediction that ended without success; None for any other."""
    why = ended.error or "it does not say why"
    if ended.status == "failed":
        return RenderFailed(
            f"the prediction failed: {why}", code="prediction_failed", billed="unknown"
        )
    if ended.status == "aborted":
        says = "the prediction was aborted: its deadline passed before it began"
        return RenderFailed(says, code="prediction_aborted", retry="safe")
    if ended.status == "canceled":
        begun = ended.started is not None or bool(ended.predict_s)
        says = f"the prediction was canceled {'while it ran' if begun else 'before it began'}"
        billed = "unknown" if begun else "no"
        return RenderFailed(says, code="prediction_canceled", billed=billed)
    return None


# -- refusals --------------------------------------------------------------------------------------


def told_wait(fault: Throttled) -> float | None:
    """Give the seconds to wait after a 429: of its header, else its body, else the body's text."""
    if fault.retry_after_s is not None:
        return fault.retry_after_s
    try:
        said = json.loads(fault.body)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict):
        told: Any = said.get("retry_after")
        if _is_number(told) and 0 <= told < _MOST:
            return float(told)
    found = re.search(r"~\s*(\d{1,6}(?:\.\d+)?)\s*s", fault.body.decode(errors="replace"))
    return float(found[1]) if found else None


def problem(body: bytes) -> str:
    """Give what a refusal says (problem details, all optional), nothing when it cannot be read."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(said, dict):
        return ""
    parts = [said[name] for name in ("title", "detail") if isinstance(said.get(name), str)]
    return " ".join(": ".join(parts).split())[:400]


# -- the look for a lost one -----------------------------------------------------------------------


class Wanted(NamedTuple):
    """What a lost prediction has: the input that we sent, the model, and since when it can be.

    Times are on the server's clock. Nothing before `since` is ours (None: that is not known), and
    nothing of which the input cannot be read before `readable_since`.
    """

    input: Mapping[str, Any]
    model: Reference
    since: float | None
    readable_since: float | None


class Judged(NamedTuple):
    """A page of the list: what is ours, whether more perhaps is, whether it goes back so far."""

    ours: list[Prediction]
    doubtful: bool
    reached: bool


def judged(items: Any, wanted: Wanted, owned: Callable[[str], bool]) -> Judged:
    """Judge the items of a page; `owned` handles are others'. ServerFault when it is no list."""
    if not isinstance(items, list):
        raise ServerFault("the server's list is not Replicate's")
    ours, doubtful, reached = [], False, False
    for item in items:
        try:
            one = prediction(item)
        except ServerFault:
            doubtful = True
            continue
        early_s = _early_s(one, wanted.since)
        if one.created is not None:  # newest first: what follows one that is out of order counts
            reached = early_s > BEYOND_S
        if early_s > BEYOND_S or owned(one.id):
            continue
        match = compare(one, wanted)
        if match == "ours" and early_s <= 0:
            ours.append(one)
        doubtful |= match == ("ours" if early_s > 0 else "perhaps")
    return Judged(ours, doubtful, reached)


BEYOND_S = 3600  # what stands so far before the window and looks like ours is a doubt, no absence


def _early_s(one: Prediction, since: float | None) -> float:
    """Return the seconds by which it was created before a time; 0 when it was not."""
    return 0.0 if since is None or one.created is None else max(since - one.created, 0.0)


Match = Literal["ours", "perhaps", "another"]


def compare(one: Prediction, wanted: Wanted) -> Match:
    """Judge whether a prediction is the one that we sent.

    It is ours when it shows all that we sent. A list may tell an input slightly differently
    (defaults dropped, numbers as text, a prompt cut short, the model under an alias), so only a
    readable seed that differs, or another prompt, makes it another one's; all else perhaps is ours.
    """
    if one.input is None:
        since = wanted.readable_since
        older = since is not None and one.created is not None and one.created < since
        return "perhaps" if not older and _is_model(one, wanted.model) else "another"
    if _is_exact(one, wanted):
        return "ours"
    if _other_seed(wanted.input.get("seed"), one.input.get("seed")):
        return "another"
    same = _is_beginning(wanted.input.get("prompt"), one.input.get("prompt"))
    return "perhaps" if same else "another"


def _is_exact(one: Prediction, wanted: Wanted) -> bool:
    shown = one.input or {}
    return _is_model(one, wanted.model) and all(
        _is_same(value, shown.get(name)) for name, value in wanted.input.items()
    )


def _is_model(one: Prediction, model: Reference) -> bool:
    """Whether it names our model; "hidden" is the version of official models."""
    if one.model is not None and one.model.lower() != model.name.lower():
        return False
    return not model.version or one.version in (None, "hidden", model.version)


def _is_same(sent: Any, listed: Any) -> bool:
    """Whether the list shows just what we sent."""
    if isinstance(sent, dict) and isinstance(listed, dict):
        return all(_is_same(value, listed.get(name)) for name, value in sent.items())
    if isinstance(sent, list) and isinstance(listed, list):
        return len(sent) == len(listed) and all(map(_is_same, sent, listed))
    if isinstance(sent, bool) or isinstance(listed, bool):
        return sent is listed
    return bool(sent == listed)


def _other_seed(sent: Any, listed: Any) -> bool:
    """Whether a seed can be read that is certainly not the one that we sent; 0 asks for any."""
    ours, theirs = _number(sent), _number(listed)
    if not ours or not theirs or ours == theirs:
        return False
    return not _is_rounded(ours, theirs)


def _number(value: Any) -> int | float | None:
    """Read a number, also one in text; None when it is none."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,20}(\.0*)?\s*", value):
        return int(value.split(".")[0])
    return value if _is_number(value) else None


_MOST = 1e30  # of a number that is compared or waited for: an integer may have no float at all
_CUT = 200  # characters of a prompt that stand for the whole of it where a list cuts it short


def _is_rounded(sent: float, listed: float) -> bool:
    """Whether one is what becomes of the other in JavaScript."""
    if isinstance(sent, int) and isinstance(listed, int) and abs(sent) < 2**53:
        return False
    return abs(sent) < _MOST and abs(listed) < _MOST and math.isclose(sent, listed, rel_tol=1e-6)


def _is_beginning(sent: Any, listed: Any) -> bool:
    """Whether two prompts are one, or one is the other cut short."""
    if not isinstance(sent, str) or not isinstance(listed, str):
        return True  # it is not shown: that tells nothing
    if _letters(sent) == _letters(listed):
        return True
    shorter, longer = sorted((sent, listed.rstrip("…. ")), key=len)
    return len(shorter) >= _CUT and _letters(longer).startswith(_letters(shorter))


def _letters(text: str) -> str:
    """Give a text without what may be trimmed or normalized on its way."""
    return "".join(unicodedata.normalize("NFC", text).split())


def created(answer: Mapping[str, Any], sent: Mapping[str, Any]) -> str:
    """Return the id in the answer to a create.

    AnswerLost when it holds none, or when it is a stranger's prediction: its seed differs as a
    number, or its prompt and ours share no beginning. Nothing else that it shows counts.
    """
    handle, shown = answer.get("id"), answer.get("input")
    if not is_id(handle):
        raise AnswerLost(
            "Replicate accepted the prediction, but its answer holds no id", billed="unknown"
        )
    shown_input = shown if isinstance(shown, dict) else {}
    prompt = shown_input.get("prompt")
    is_other = isinstance(prompt, str) and not _share_beginning(str(sent["prompt"]), prompt)
    if is_other or _other_seed(sent.get("seed"), shown_input.get("seed")):
        raise AnswerLost("Replicate answered with a prediction that is not ours", billed="unknown")
    return str(handle)


def _share_beginning(one: str, other: str) -> bool:
    both = [_letters(text).casefold() for text in (one, other)]
    length = min(20, *map(len, both))
    return both[0][:length] == both[1][:length]


def listed(items: Any) -> list[Prediction]:
    """Read a page of the list; ServerFault when it is none, or one of its items cannot be read."""
    if not isinstance(items, list):
        raise ServerFault("the server's list is not Replicate's")
    return [prediction(item) for item in items]


def best(ours: Iterable[Prediction]) -> Prediction | None:
    """Give the one to take: running or succeeded before failed, then the oldest."""

    def order(one: Prediction) -> tuple[bool, float]:
        failed = one.status in ENDED and one.status != "succeeded"
        return failed, math.inf if one.created is None else one.created

    return min(ours, key=order, default=None)


def server_now(headers: Mapping[str, str]) -> float | None:
    """Give the server's time, of its Date header; None when it has none."""
    try:
        return parsedate_to_datetime(headers["Date"]).timestamp()
    except (LookupError, TypeError, ValueError, OverflowError):
        return None


# -- addresses -------------------------------------------------------------------------------------


def base(url: str) -> str:
    """Give the API's address without the /v1 that other clients want in it."""
    return url.rstrip("/").removesuffix("/v1")


def next_page(said: Any, api: str) -> str | None:
    """Give the path of the next page on the API's own server, None when this was the last.

    ServerFault when it is somewhere else: our token goes with it.
    """
    if said is None:
        return None
    with suppress(ValueError):  # of an address that is none
        return _next_page(said, api)
    raise ServerFault("the next page of the list is not on this server")


def _next_page(said: Any, api: str) -> str:
    if isinstance(said, str) and said:
        there = urlsplit(urljoin(api + LIST, said))
        own = urlsplit(api)
        query = f"?{there.query}" if there.query else ""
        if _server(there) == _server(own) and there.path.startswith(own.path + "/"):
            return there.path.removeprefix(own.path) + query
        if there.path.endswith(LIST) and query:  # the API's own name for what a proxy shows
            return LIST + query
    raise ValueError(said)


def is_trusted(url: str, api: str) -> bool:
    """Whether an address may get the token: the API's server, or Replicate's files over https."""
    there = urlsplit(url)
    host = there.hostname or ""
    files = host == "replicate.delivery" or host.endswith(".replicate.delivery")
    return _server(there) == _server(urlsplit(api)) or (
        files and _server(there) == ("https", host, 443)
    )


def _server(parts: Any) -> tuple[str, str, int]:
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    return parts.scheme, parts.hostname or "", port
