"""A queued job as a request line, and an answered line as what becomes of the job. Pure.

A row is written by a web user: what it may say is listed here, and everything else fails that job.
Ids, owners and callers come from the row's own columns and from the worker alone.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

from ..errors import Refused, suggest
from ..records import naming, record
from ..records.documents import Documents
from ..records.record import Record
from . import job_record

PARAMS = (
    *("negative_prompt", "style", "width", "height", "seed", "steps", "cfg"),
    *("sampler", "scheduler", "options"),
)
PENDING_S = 10  # until an unfinished render is looked at again
MENDED_S = 60  # until a job is tried again that met a fault of the worker's own machine
# codes of such faults, whatever their retry, and with this retry: the job is not to blame
_OF_THE_WORKER = ("config", "unauthorized", "unpriced", "ledger", "ledger_busy")
_OF_ITS_DISK = ("file", "safe")  # full, or broken; a file that can never be is the job's own fault
_UNTIL_THEN = (
    "over_budget",
    "answer_lost",
    "server_fault",
)  # with `after`, time alone settles these
_BACKOFF_S, _LONGEST_S = 5.0, 600.0
_MOST_TEXT = 500  # characters of an error in the row


class Answers:
    """Reads the records that one pipeline writes: one a line, or indented, as a filter may do."""

    def __init__(self) -> None:
        """Begin with a pipeline."""
        self._documents = Documents()
        self._is_inside = False

    def read(self, line: bytes) -> Iterator[Record]:
        """Yield the records that end with this line; what is no JSON object is none."""
        line = record.without_mark(line)
        whole = _object(line)
        if whole is not None and (line.startswith(b"{") or not self._is_inside):
            self._documents, self._is_inside = Documents(), False  # what is open never ends
            yield whole
            return
        self._is_inside = self._is_inside or line.lstrip().startswith((b"{", b"["))
        if self._is_inside:
            for document in self._documents.feed(0, line + b"\n"):
                if (made := _object(document.raw)) is not None:
                    yield made


def _object(text: bytes) -> Record | None:
    """Read a JSON object, whatever numbers it has; None when it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class Rules(NamedTuple):
    """What jobs may ask for: backends by name, keys of options, and the default backend."""

    backends: Collection[str]
    options: Collection[str]
    default_backend: str


class Verdict(NamedTuple):
    """What becomes of a job: done, failed, retry (an attempt was used), or back (none was).

    `answered` says of one that goes back that there is a reason: its claims count anew.
    `under_way` says that what was sent before may still be accepted, so whoever claims it next
    must not take its absence at the provider for proof too soon. `render_id` is the record's;
    `record` is what the row of a job that is over keeps of it.
    """

    kind: Literal["done", "failed", "retry", "back"]
    image_id: str | None = None
    after_s: float = 0
    error: str | None = None
    detail: Record | None = None
    answered: bool = False
    render_id: str | None = None
    under_way: bool = False
    record: Record | None = None


def request_of(job: Any, rules: Rules, now: datetime, seed: int) -> Record:
    """Give the line of a job's first claim, by which every later one is made too.

    `job` has id, prompt, backend, params and owner_user_id. Refused says what it must not hold.
    """
    params = job.params
    if not isinstance(params, dict):
        raise Refused("params must be an object")
    for name in params:
        if name not in PARAMS:
            raise Refused(
                f"params may not hold {str(name)[:60]!r}", hint=suggest(str(name), PARAMS)
            )
    backend = job.backend or rules.default_backend
    if backend not in rules.backends:
        raise Refused(f"jobs may not use the backend {str(backend)[:60]!r}")
    _check_options(params.get("options"), rules.options)
    line = {
        **{name: value for name, value in params.items() if value is not None},
        "id": job.id,
        "prompt": job.prompt,
        "backend": backend,
        "caller": f"job:{job.owner_user_id}" if job.owner_user_id else "job",
    }
    if job.owner_user_id:
        line["owner_user_id"] = job.owner_user_id
    line.setdefault("seed", seed)
    sound = record.checked(line)
    slug = f"{naming.slug(job.prompt)}-{job.id[:8]}"
    return {**sound, "date": now.date().isoformat(), "slug": slug}


def _check_options(options: Any, known: Collection[str]) -> None:
    if options is None:
        return
    if not isinstance(options, dict):
        raise Refused("params.options must be an object")
    for name in options:
        if name not in known:
            hint = "worker.options of the configuration lists what is allowed"
            raise Refused(f"params.options may not hold {str(name)[:60]!r}", hint=hint)


def line_of(
    request: Mapping[str, Any],
    attempt: int,
    intended_at: float | None,
    released_at: float | None = None,
) -> Record:
    """Return the line of one attempt; times are unix time.

    `intended_at` when somebody may have sent it before, `released_at` until when that may have
    been; None there where nothing can be on its way.
    """
    job: Record = {"id": request["id"], "attempt": attempt}
    if intended_at is not None:
        job["intended_at"] = _iso(intended_at)
    if intended_at is not None and released_at is not None:
        job["released_at"] = _iso(released_at)
    return {**request, "job": job}


def verdict(
    made: Mapping[str, Any] | None, attempts: int, most: int, under_way: bool = False
) -> Verdict:
    """Judge the record that answers a job; `attempts` were used before it, of `most`.

    `under_way` says that what somebody sent before may not have been accepted yet when the record
    was made.
    """
    if made is None:
        return _no_image("the pipeline gave no record for it")
    error = made.get("error")
    if isinstance(error, dict):
        outcome = _of_error(error, made, attempts, most, under_way)
        is_over = outcome.kind == "failed"
        return outcome._replace(record=job_record.for_row(made)) if is_over else outcome
    if isinstance(made.get("file"), str):
        cloud = made.get("cloud")
        found = cloud.get("image_id") if isinstance(cloud, dict) else None
        render_id = record.canonical_uuid(str(made.get("render_id")))
        image_id = record.canonical_uuid(str(found))
        kept = job_record.for_row(made)
        return Verdict("done", image_id, render_id=render_id, record=kept)
    if made.get("pending") is not None:
        # accepted, and yet the provider's list may show it later only
        return Verdict("back", after_s=PENDING_S, answered=True, under_way=True)
    return _no_image("its record has neither file nor error")


def _no_image(why: str) -> Verdict:
    return Verdict("failed", error=f"no image: {why}", detail={"code": "no_image"})


def _of_error(
    error: Record, made: Mapping[str, Any], attempts: int, most: int, under_way: bool
) -> Verdict:
    text = " ".join(str(error.get("message") or error.get("code") or "failed").split())
    text = text[:_MOST_TEXT].replace("\0", "")
    detail = {name: one for name, one in error.items() if name != "traceback" and _can_keep(one)}
    if error.get("code") in _UNTIL_THEN and error.get("retry") == "after":
        wait_s = max(_seconds(error), _BACKOFF_S)
        return Verdict("back", after_s=wait_s, error=text, detail=detail, answered=True)
    was_sent = error.get("billed", "no") != "no" or made.get("submit") is not None
    if _is_of_the_setup(error, made):
        back = Verdict("back", after_s=MENDED_S, error=text, detail=detail, answered=True)
        # it may come before the look for what was sent earlier
        return back._replace(under_way=under_way or was_sent)
    again = error.get("retry") in ("safe", "after")
    if not again:
        return Verdict("failed", error=text, detail=detail)
    if attempts + 1 >= most:
        return Verdict("failed", error=f"{text} (after {attempts + 1} attempts)", detail=detail)
    after_s = backoff(attempts, _seconds(error))
    return Verdict("retry", after_s=after_s, error=text, detail=detail, under_way=was_sent)


def _is_of_the_setup(error: Record, made: Mapping[str, Any]) -> bool:
    """Tell whether the worker's machine, its account or its project is at fault, not the job.

    A fault that names a value of the job's own options is the job's, whatever else it says: the job
    would come back for ever.
    """
    if (error.get("code"), error.get("retry")) == _OF_ITS_DISK:
        return True
    if error.get("code") in _OF_THE_WORKER:
        return True
    options, text = made.get("options"), str(error.get("message"))
    values = options.values() if isinstance(options, dict) else ()
    names = [value for value in values if isinstance(value, str) and value]
    return error.get("scope") == "setup" and not any(name in text for name in names)


def _can_keep(value: Any) -> bool:
    """Whether a row can hold what somebody's filter wrote: no NaN, nothing of any depth."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int | None)


def backoff(attempts: int, told_s: float = 0) -> float:
    """Give the seconds until the next attempt: doubling, with jitter, at least what was told."""
    grown = min(_BACKOFF_S * 2.0 ** min(attempts, 9), _LONGEST_S)
    return max(told_s, grown * random.uniform(0.5, 1.0))


def _seconds(error: Mapping[str, Any]) -> float:
    said = error.get("retry_after_s")
    return float(said) if isinstance(said, (int, float)) and 0 <= said < 10**7 else 0.0


def _iso(moment: float) -> str:
    from datetime import UTC

    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
