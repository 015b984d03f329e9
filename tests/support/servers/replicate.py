"""A Replicate look-alike: real HTTP, drawn pictures, and the faults that a test asks for.

It behaves as Replicate's published API description says. What it is asked is remembered: the
predictions that it accepted, all requests, all headers. Work is done when somebody looks: a
prediction's state is worked out from the clock, so that no second clock makes a test flicker.
A prediction that is counted is listed: it is accepted under one lock, before its answer is sent.
Unless the test lets the list lag, or lets a create be accepted late, though its client is gone.

    with Replicate() as server: ...          in a test
    python -m servers.replicate --port 0     as a program: prints its URL, serves until killed
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from servers import wire
from servers.wire import Broken

from .connections import CuttableServer

TOKEN = "r8_the-token-of-the-tests"
SCHNELL, DEV = "black-forest-labs/flux-schnell", "black-forest-labs/flux-dev"
VERSION = "c846a69991daf4c0e5d016514849d14ee5b2e6846ce6b9d6f21369e564cfe51e"
_SIZES = {
    "1:1": (1024, 1024),
    "16:9": (1344, 768),
    "21:9": (1536, 640),
    "3:2": (1216, 832),
    "4:5": (896, 1088),
    "3:4": (896, 1152),
}
_SIZES |= {":".join(reversed(r.split(":"))): (h, w) for r, (w, h) in _SIZES.items()}
_DEFAULTS = {"aspect_ratio": "1:1", "megapixels": "1", "num_outputs": 1, "output_format": "webp"}
_CHOICES = {
    "aspect_ratio": [*_SIZES],
    "megapixels": ["1", "0.25"],
    "output_format": ["webp", "jpg", "png"],
}
_MOST = {SCHNELL: {"num_outputs": 4, "num_inference_steps": 4}}
_MOST[DEV] = {"num_outputs": 4, "num_inference_steps": 50, "guidance": 10}
ALIASES = {SCHNELL: "black-forest-labs/flux.1-schnell", DEV: "black-forest-labs/flux.1-dev"}
SPELLINGS = frozenset({"defaults", "prompt", "numbers", "case", "alias"})
SHOWN_PROMPT = 1000  # characters of a prompt, where the list cuts it


class Answer(NamedTuple):
    """What goes back; and how: after a wait, only its first bytes, a byte at a time."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    headers: dict[str, str] | None = None
    wait_s: float = 0.0
    only: int | None = None  # bytes of the body, of the length that is promised
    trickle_s: float = 0.0  # between two bytes


class Fault(NamedTuple):
    """What a request that starts so is answered with; with `after` it is obeyed, maybe late."""

    start: str
    answer: Answer | Broken | None
    after: bool
    late_s: float
    until_listed: bool


def said(status: int, about: Any, **more: Any) -> Answer:
    """Answer in JSON."""
    return Answer(status, json.dumps(about).encode(), **more)


def problem(status: int, detail: str, **more: Any) -> Answer:
    """Answer with problem details."""
    return said(status, {"detail": detail, "status": status, **more})


TROUBLE = problem(500, "Internal server error", title="Internal server error")
NOT_FOUND = problem(404, "The requested resource could not be found.")
NO_CREDIT = problem(402, "You have insufficient credit to run this model.", title="No credit")


def throttled(seconds: float | None = 5, where: str = "header body text") -> Answer:
    """Ask to wait, and say how long in those places."""
    text = f" Your rate limit resets in ~{seconds:g}s." if seconds and "text" in where else ""
    body: dict[str, Any] = {"detail": f"Request was throttled.{text}", "status": 429}
    if "body" in where:
        body["retry_after"] = seconds
    headers = {"Retry-After": f"{seconds:g}"} if seconds is not None and "header" in where else {}
    return said(429, body, headers=headers)


class Replicate:
    """The server; a test sets what is public."""

    def __init__(self, port: int = 0) -> None:
        self.token = TOKEN
        self.models = [SCHNELL, DEV]  # that have an official endpoint
        self.queue_s = 0.0  # before a prediction starts
        self.seconds = 0.0  # that it runs
        self.held = False  # none ends
        self.ending = "succeeded"  # of what ends from now on
        self.error: str | None = None
        self.filtered = 0  # images of each prediction that are left out as not safe
        self.statuses: list[str] = []  # each of the next looks at a prediction sees one of these
        self.page = 100
        self.fractions = True  # in times
        self.skew_s = 0.0  # of its clock
        self.created_skew_s = 0.0  # of the times of predictions, against its Date
        self.lag_s = 0.0  # from a create until the list shows it
        self.spelling: frozenset[str] = frozenset()  # what of SPELLINGS differs from what was sent
        self.dated = True  # whether answers have a Date
        self.files_url = ""  # where the images are said to be, when not here
        self.spoil = bytes  # what becomes of an image on its way
        self.requests: list[tuple[str, str, Any]] = []  # all of them: method, path, body
        self.headers: list[dict[str, str]] = []  # of each request
        self.predictions: list[dict[str, Any]] = []  # accepted ones, as the API shows them
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._listed = threading.Event()
        self.open(port)

    # -- what a test may do ----------------------------------------------------------------------

    def fail(
        self,
        request: str,
        answer: Answer | Broken | None = TROUBLE,
        *,
        times: int = 1,
        after: bool = False,
        late_s: float = 0.0,
        until_listed: bool = False,
    ) -> None:
        """Answer the next requests that start so ("POST /v1") with this; None cuts them off.

        With `after` they are obeyed all the same: when they came, or so much later, or, with
        `until_listed`, already when the list has next been read.
        """
        self._faults += [Fault(request, answer, after, late_s, until_listed)] * times

    def forgive(self) -> None:
        """Forget the faults that were asked for and did not come."""
        self._faults.clear()

    @property
    def creates(self) -> int:
        """How many predictions were accepted, which is how many are paid for."""
        return len(self.predictions)

    def asks(self, request: str) -> int:
        """Count the requests that start so."""
        return sum(f"{method} {path}".startswith(request) for method, path, _ in self.requests)

    def add(self, given: dict[str, Any], age_s: float = 0.0, **more: Any) -> str:
        """Accept a prediction of somebody else; gives its id. `more` goes over its fields."""
        with self._lock:
            made = self._accepted(SCHNELL, None, given, {}, age_s)
            made.update(more)
            self.predictions.sort(key=lambda one: one["_created"])
            return str(made["id"])

    def remove_data(self, handle: str) -> None:
        """Forget input, output and logs, as happens an hour after the end."""
        with self._lock:
            self._found(handle).update(
                data_removed=True, input={}, output=None, logs="", error=None
            )

    def now(self) -> float:
        """Give the time on its clock."""
        return time.time() + self.skew_s

    def open(self, port: int = 0) -> None:
        """Take a port and serve."""
        handler = type("Handler", (_Handler,), {"api": self})
        self._http = CuttableServer(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Cut all connections and close the port."""
        self._http.cut()

    def __enter__(self) -> Replicate:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # -- what it does ----------------------------------------------------------------------------

    def respond(
        self, method: str, target: str, raw: bytes, headers: dict[str, str]
    ) -> Answer | Broken | None:
        """Obey a request and answer it; None cuts the connection."""
        with self._lock:
            self.headers.append(headers)
            self.requests.append((method, target, _read(raw)))
            fault = self._fault(f"{method} {target}")
        if fault and not fault.after:
            return fault.answer
        if fault and fault.late_s:
            self._listed.clear()
            early = self._listed if fault.until_listed else threading.Event()
            early.wait(fault.late_s)  # whether its client still waits or not
        with self._lock:
            answer = self._answer(method, target, raw, headers)
        if wait := _preferred(headers.get("Prefer")):
            answer = self._waited(answer, wait)
        return fault.answer if fault else answer

    def _fault(self, request: str) -> Fault | None:
        for number, fault in enumerate(self._faults):
            if request.startswith(fault.start):
                return self._faults.pop(number)
        return None

    def _answer(self, method: str, target: str, raw: bytes, headers: dict[str, str]) -> Answer:
        parts = urlsplit(target)
        words = parts.path.strip("/").split("/")
        match method, words:
            case "GET", ["files", handle, name]:
                return self._file(handle, name)
            case _ if headers.get("Authorization") != f"Bearer {self.token}":
                title = "Unauthenticated"
                return problem(401, "You did not pass a valid authentication token", title=title)
            case "POST", ["v1", "models", owner, name, "predictions"]:
                model = f"{owner}/{name}"
                return (
                    self._create(model, None, raw, headers) if model in self.models else NOT_FOUND
                )
            case "POST", ["v1", "predictions"]:
                return self._create(SCHNELL, VERSION, raw, headers)
            case "GET", ["v1", "predictions"]:
                return self._list(parse_qs(parts.query))
            case "GET", ["v1", "predictions", handle]:
                found = self._found(handle)
                return said(200, self._shown(found, look=True)) if found else NOT_FOUND
            case "POST", ["v1", "predictions", handle, "cancel"]:
                found = self._found(handle)
                found["_canceled"] = self.now()
                return said(200, self._shown(found))
        return NOT_FOUND

    def _create(
        self, model: str, version: str | None, raw: bytes, headers: dict[str, str]
    ) -> Answer:
        body = _read(raw)
        given = body.get("input") if isinstance(body, dict) else None
        fault = "input is required" if not isinstance(given, dict) else _fault_in(given, model)
        if version and not fault and str(body.get("version")).rpartition(":")[2] != version:
            return problem(422, "The specified version does not exist", title="Invalid version")
        if fault:
            return problem(422, f"- {fault}\n", title="Input validation failed")
        return said(201, self._shown(self._accepted(model, version, given or {}, headers)))

    def _accepted(
        self,
        model: str,
        version: str | None,
        given: dict[str, Any],
        headers: dict[str, str],
        age_s: float = 0.0,
    ) -> dict[str, Any]:
        number = len(self.predictions) + 1
        id_ = hashlib.sha256(f"{self.url} {number}".encode()).hexdigest()[:26]
        drawn = int(id_[:8], 16)
        made = {
            "id": id_,
            "model": model,
            "version": version or "hidden",
            "input": {**given, "go_fast": given.get("go_fast", True)},  # servers may add keys
            "source": "api",
            "data_removed": False,
            "_created": self.now() - age_s + self.created_skew_s,
            "_listed": time.monotonic() - age_s + self.lag_s,
            "_seed": given.get("seed") or drawn,
            "_deadline": float((headers.get("Cancel-After") or "inf").removesuffix("s")),
            "_held": self.held,
            "_plan": (self.queue_s, self.seconds, self.ending, self.error, self.filtered),
        }
        self.predictions.append(made)
        return made

    def _found(self, handle: str) -> dict[str, Any]:
        return next((one for one in self.predictions if one["id"] == handle), {})

    def _shown(self, found: dict[str, Any], look: bool = False) -> dict[str, Any]:
        """Give a prediction as the API shows it now; what a test has put into it stays."""
        queue_s, seconds, ending, error, filtered = found["_plan"]
        begins = found["_created"] + queue_s
        ends = begins + seconds if not (found["_held"] and self.held) else float("inf")
        deadline = found["_created"] + found["_deadline"]
        canceled = found.get("_canceled", float("inf"))
        stops = min(deadline, canceled)
        now = self.now()
        shown: dict[str, Any] = {"status": "starting", "error": None, "output": None, "logs": ""}
        started = completed = None
        if now >= min(begins, stops) and begins > stops:
            shown["status"] = "aborted" if deadline < canceled else "canceled"
            completed = stops
        elif now >= begins:
            started = begins
            shown |= {"status": "processing", "logs": f"Using seed: {found['_seed']}\n"}
        if started and now >= min(ends, stops):
            completed = min(ends, stops)
            shown["status"] = ending if ends <= stops else "canceled"
        if shown["status"] == "succeeded":
            shown["output"] = self._outputs(found, filtered)
        if shown["status"] == "failed":
            shown["error"] = error or "Prediction failed for an unknown reason"
        if completed is not None:
            run = completed - started if started else None
            shown["metrics"] = {"total_time": completed - found["_created"]}
            shown["metrics"] |= {} if run is None else {"predict_time": run}
        times = {"created_at": found["_created"], "started_at": started, "completed_at": completed}
        shown |= {name: at and self._stamp(at) for name, at in times.items()}
        shown["urls"] = {
            "get": f"{self.url}/v1/predictions/{found['id']}",
            "cancel": f"{self.url}/v1/predictions/{found['id']}/cancel",
        }
        shown |= {name: value for name, value in found.items() if not name.startswith("_")}
        self._spell(shown)
        if look and self.statuses:
            shown["status"] = self.statuses.pop(0)
        return {name: value for name, value in shown.items() if value is not ...}

    def _spell(self, shown: dict[str, Any]) -> None:
        """Write model and input as some servers do: not quite as they were sent."""
        if "alias" in self.spelling and shown["model"] is not ...:
            shown["model"] = ALIASES.get(shown["model"], shown["model"])
        if isinstance(shown["input"], dict):
            spelled = ((name, self._spelled(name, one)) for name, one in shown["input"].items())
            shown["input"] = {name: one for name, one in spelled if one is not ...}

    def _spelled(self, name: str, value: Any) -> Any:
        if "defaults" in self.spelling and _DEFAULTS.get(name) == value:
            return ...
        if "prompt" in self.spelling and name == "prompt":
            return value[:SHOWN_PROMPT]
        if "case" in self.spelling and name in _CHOICES:
            return value.upper()
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return str(value) if "numbers" in self.spelling and number else value

    def _outputs(self, found: dict[str, Any], filtered: int) -> list[str]:
        given = {**_DEFAULTS, **found["input"]}
        folder = f"{self.files_url or self.url}/files/{found['id']}"
        kept = max(given["num_outputs"] - filtered, 0)
        return [f"{folder}/out-{number}.{given['output_format']}" for number in range(kept)]

    def _stamp(self, at: float) -> str:
        return datetime.fromtimestamp(at if self.fractions else int(at), UTC).strftime(
            f"%Y-%m-%dT%H:%M:%S{'.%f' if self.fractions else ''}Z"
        )

    def _list(self, query: dict[str, list[str]]) -> Answer:
        """Give a page, the newest first; the cursor is the number of predictions before it."""
        now = time.monotonic()
        listed = [one for one in self.predictions if one["_listed"] <= now]
        until = int(query.get("cursor", [str(len(listed))])[0])
        start = max(until - self.page, 0)
        results = [self._shown(one) for one in reversed(listed[start:until])]
        more = f"{self.url}/v1/predictions?cursor={start}" if start else None
        self._listed.set()
        return said(200, {"previous": None, "next": more, "results": results})

    def _file(self, handle: str, name: str) -> Answer:
        found = self._found(handle)
        number, _, kind = name.removeprefix("out-").partition(".")
        if not found or found["data_removed"] or not number.isdecimal():
            return Answer(404, b"<html>not found</html>", "text/html")
        given = {**_DEFAULTS, **found["input"]}
        width, height = _SIZES[given["aspect_ratio"]]
        share = 1 if given["megapixels"] == "1" else 2
        size = width // share, height // share
        drawn = _drawn(str(given.get("prompt")), found["_seed"], size, int(number), kind)
        return Answer(200, self.spoil(drawn), f"image/{kind.replace('jpg', 'jpeg')}")

    def _waited(self, answer: Answer, seconds: float) -> Answer:
        """Answer a create only when the prediction has ended, or the wait has."""
        if answer.status != 201:
            return answer
        until, handle = time.monotonic() + seconds, json.loads(answer.body)["id"]
        while True:
            with self._lock:
                shown = self._shown(self._found(handle))
            if shown["status"] not in ("starting", "processing") or time.monotonic() > until:
                return said(201, shown)
            time.sleep(0.01)


def _fault_in(given: dict[str, Any], model: str) -> str | None:
    """Give what a FLUX model has against an input, None when it takes it."""
    if not isinstance(given.get("prompt"), str):
        return "input: prompt is required"
    for name, choices in _CHOICES.items():
        if name in given and given[name] not in choices:
            return f"input.{name}: must be one of {', '.join(choices)}"
    for name, most in _MOST.get(model, {}).items():
        value = given.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"input.{name}: Invalid type. Expected: number"
        if not 0 <= value <= most:
            return f"input.{name}: Must be less than or equal to {most}"
    if "seed" in given and (isinstance(given["seed"], bool) or not isinstance(given["seed"], int)):
        return "input.seed: Invalid type. Expected: integer"
    return None


@lru_cache(maxsize=64)
def _drawn(prompt: str, seed: int, size: tuple[int, int], number: int, kind: str) -> bytes:
    """Draw a picture that prompt, seed and number decide."""
    dice = hashlib.sha256(f"{prompt} {seed} {number}".encode()).digest()
    ramp = Image.linear_gradient("L").resize(size)
    bands = [ramp.point([(shade + turn) % 256 for shade in range(256)]) for turn in dice[:3]]
    out, names = io.BytesIO(), {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
    more = {"compress_level": 1} if kind == "png" else {}
    Image.merge("RGB", bands).save(out, names.get(kind, "PNG"), **more)
    return out.getvalue()


def _preferred(header: str | None) -> float:
    return float(header.partition("wait=")[2] or 60) if header else 0


def _read(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw


# -- HTTP ----------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    api: Replicate
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together

    def do_GET(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.api.respond(self.command, self.path, raw, dict(self.headers))
        if answer is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if isinstance(answer, Broken):
            self.close_connection = True
            wire.send(self.connection, answer, self.path)
            return
        time.sleep(answer.wait_s)
        self.send_response_only(answer.status)
        date = {"Date": formatdate(self.api.now(), usegmt=True)} if self.api.dated else {}
        length = {"Content-Length": str(len(answer.body))}
        heads = {"Content-Type": answer.kind, **length, **date, **(answer.headers or {})}
        for name, value in heads.items():
            self.send_header(name, value)
        self.end_headers()
        self._write(answer)

    def _write(self, answer: Answer) -> None:
        body = answer.body if answer.only is None else answer.body[: answer.only]
        if not answer.trickle_s:
            self.wfile.write(body)
        for byte in body if answer.trickle_s else b"":
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(answer.trickle_s)
        if answer.only is not None:
            self.close_connection = True

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long a prediction runs")
    told = parser.parse_args()
    with Replicate(told.port) as server, suppress(KeyboardInterrupt):
        server.seconds = told.seconds
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
