"""The ComfyUI backend: one adapter, workflows as data.

What a real server does is recorded; the look-alike in tests/support/servers/comfyui.py is held
to it.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote

from ... import http, retry
from ...config.loader import secret
from ...config.settings import Key
from ...errors import (
    BadImage,
    ConfigFault,
    IdTaken,
    ImagenError,
    MissingModel,
    Refused,
    Rejected,
    RenderLost,
    ServerFault,
    ServerTooOld,
    Unreachable,
)
from ...records.record import canonical_uuid
from ...workflows import check_server, object_info, template
from ...workflows.check import Finding
from ...workflows.image_count import expected_images
from ...workflows.template import Model, Workflow
from .. import BASE_KEYS, Ask, Collected, Instance, Lost, Plan, Sought, Status, Wait
from . import responses

KEYS = {
    "url": Key("server", "http://127.0.0.1:8188"),
    "workflow": Key("string", "flux1-schnell"),
    "boot_hint": Key("string"),
    "headers_env": Key("environment"),
    "poll_min_s": Key("seconds", 0.01),
    "poll_max_s": Key("seconds", 0.5),
    "patience_s": Key("seconds", 30),
    "retry_s": Key("seconds", 0.3),
}
_MIN_SIZE, _MAX_SIZE = 16, 16384  # of EmptySD3LatentImage in /object_info
_FIELDS = template.FIELDS
_REQUESTED = {"prompt", "negative_prompt", "seed", *_FIELDS}  # never filled by options
_SHARE = 0.04  # of the time waited: the poll is never far behind and never a burden
_AT_LEAST_S = 1  # for the one look that even a wait of no time needs
_FETCH_S = 600  # for all images of a prompt, as long as they keep coming
_MOST_IMAGES = 100  # of one prompt, where no more are planned: each is held in memory
_TOO_OLD = "this ComfyUI does not take the prompt_id that a client chooses"
_LOGIN = "check url; behind a proxy that asks for a login, headers_env sends a token or a cookie"
_LOOK_S = 1.0  # how often /queue, which carries whole graphs, is asked beside /history


def open_instance(instance: Instance) -> ComfyUI:
    """Open a configured instance."""
    return ComfyUI(instance)


def extra_keys(instance: Instance) -> dict[str, Key]:
    """Give the keys that the instance's own workflow adds: its placeholders."""
    return dict.fromkeys(_workflow(instance).placeholders(), Key("any"))


def _workflow(instance: Instance) -> Workflow:
    return template.load(str(instance.get("workflow", "flux1-schnell")), instance.config_folder)


P = ParamSpec("P")
T = TypeVar("T")


def _reading(function: Callable[P, T]) -> Callable[P, T]:
    """Turn an answer of a shape that no ComfyUI has into a fault of the server."""

    @wraps(function)
    def guarded(*args: P.args, **more: P.kwargs) -> T:
        try:
            return function(*args, **more)
        except (TypeError, ValueError, AttributeError, LookupError, RecursionError) as fault:
            what = f"{type(fault).__name__}: {fault}"[:200]
            raise ServerFault(f"the server's answer is not ComfyUI's ({what})") from fault

    return guarded


class ComfyUI:
    """One configured server with one workflow."""

    paid = False

    def __init__(self, instance: Instance) -> None:
        """Take the instance; its workflow is loaded now, its server not asked yet."""
        self._settings = instance
        self.workflow = _workflow(instance)
        self.timeout_s = instance.get("timeout_s", 1800)
        self._poll = (instance.get("poll_min_s", 0.01), instance.get("poll_max_s", 0.5))
        self._patience_s = instance.get("patience_s", 30)
        self.retry_s = instance.get("retry_s", 0.3)
        self._opened: http.Server | None = None
        self._too_old: ServerTooOld | None = None  # why nothing more is sent

    def plan(self, ask: Ask) -> Plan:
        """Fill the workflow: the exact body of POST /prompt."""
        request, holes = ask.request, self.workflow.placeholders()
        plan = Plan({}, {"seed": request["seed"]}, 0.0, handle=ask.submit_id)
        values = self._values(ask, plan, holes)
        graph = template.fill(self.workflow, values)
        for node in self.workflow.nodes("SaveImage"):
            graph[node]["inputs"]["filename_prefix"] = responses.prefix(ask.submit_id)
        client = _client_id(ask.submit_id)
        plan.payload = {"prompt": graph, "prompt_id": ask.submit_id, "client_id": client}
        plan.images = expected_images(graph) or 0
        known = {**self.workflow.defaults, **values}
        plan.resolved |= {name: known[name] for name in _FIELDS if name in holes and name in known}
        plan.resolved |= {**self._model(values), "workflow": self.workflow.name}
        return plan

    def _values(self, ask: Ask, plan: Plan, holes: set[str]) -> dict[str, Any]:
        """Give the value of each placeholder; note what is rounded and what has no place."""
        request, defaults = ask.request, self.workflow.defaults
        own = holes - _REQUESTED
        options = {**self._settings.get("options", {}), **request.get("options", {})}
        values = self._given() | {name: options[name] for name in options.keys() & own}
        values |= {"prompt": ask.prompt, "negative_prompt": ask.negative, "seed": request["seed"]}
        values |= {name: request.get(name, defaults.get(name)) for name in _FIELDS}
        if "steps" not in request:
            values["steps"] = self._settings.get("default_steps", defaults.get("steps"))
        if values["cfg"] is not None:
            values["cfg"] = float(values["cfg"])
        for name in ("width", "height"):
            if name in holes and values[name] is not None:
                values[name] = self._rounded(name, values[name], plan)
        self._note_dropped(ask, options, plan, holes)
        return {name: value for name, value in values.items() if value is not None}

    def _note_dropped(
        self, ask: Ask, options: Mapping[str, Any], plan: Plan, holes: set[str]
    ) -> None:
        asked = {name: ask.request[name] for name in _FIELDS if name in ask.request}
        asked |= {"prompt": ask.prompt, "seed": ask.request["seed"]}
        if ask.negative:
            asked["negative_prompt"] = ask.negative
        for name, value in asked.items():
            if name not in holes:
                plan.drop(name, value, f"workflow {self.workflow.name} has no ${{{name}}}")
        for name, value in options.items():
            if name not in holes or name in _REQUESTED:
                why = f"workflow {self.workflow.name} has no option {name}"
                plan.drop(f"options.{name}", value, why)

    def _given(self, flow: Workflow | None = None) -> dict[str, Any]:
        """Give the placeholders that the instance itself fills (unet, vae, …)."""
        names = (flow or self.workflow).placeholders() - {*KEYS, *BASE_KEYS}
        options = self._settings.get("options", {})
        given = {name: options.get(name, self._settings.get(name)) for name in names - _REQUESTED}
        return {name: value for name, value in given.items() if value is not None}

    def _rounded(self, name: str, asked: int, plan: Plan) -> int:
        step = self.workflow.size_multiple
        low, high = -(-_MIN_SIZE // step) * step, _MAX_SIZE // step * step
        got = min(max(round(asked / step) * step, low), high)
        if got != asked:
            why = f"workflow {self.workflow.name} makes multiples of {step}"
            plan.approximate(name, asked, got, why)
        return got

    def _model(self, values: Mapping[str, Any]) -> dict[str, str]:
        needs = self.workflow.needs(values)
        return {"model": needs[0].file} if needs else {}

    @_reading
    def submit(
        self, plan: Plan, until: float = math.inf, begin: Callable[[], None] = lambda: None
    ) -> str:
        """POST /prompt; nothing runs when the server finds fault with any part of it."""
        if self._too_old:
            raise ServerTooOld(self._too_old.message)
        begin()
        handle = str(plan.handle)
        with self._server.within(until):
            if self._is_known(handle, plan.payload["prompt"]):
                return handle
            try:
                answer = self._server.post("/prompt", plan.payload).json_object(lenient=True)
            except Rejected as fault:
                raise self._with_cure(responses.refusal(fault, self._choices_of)) from None
            except Unreachable as fault:
                raise self._with_boot_hint(fault) from None
            self._check_accepted(answer, handle)
        return handle

    def _check_accepted(self, answer: Mapping[str, Any], handle: str) -> None:
        """Check that all of it was accepted, and under our id; else stop what was queued."""
        accepted_id = answer.get("prompt_id")
        if answer.get("node_errors"):
            with suppress(ImagenError):
                self._stop(str(accepted_id))  # the nodes without fault were queued all the same
            raise self._with_cure(
                responses.node_fault(
                    answer["node_errors"],
                    "some outputs of the workflow are refused",
                    self._choices_of,
                )
            )
        if not isinstance(accepted_id, str):
            raise ServerFault(f"the server's answer is not ComfyUI's (prompt_id {accepted_id!r})")
        if accepted_id != handle:
            try:
                self._stop(accepted_id)
                outcome = "it was cancelled"
            except ImagenError as fault:
                outcome = f"it may go on, it could not be cancelled ({fault.message})"
            self._too_old = ServerTooOld(f"{_TOO_OLD}: it queued prompt {accepted_id}; {outcome}")
            raise self._too_old

    def _is_known(self, handle: str, graph: template.Graph) -> bool:
        """Whether this very prompt has been made already; Refused when its id made another.

        The server would run it again and overwrite the entry, which until then is the old one's.
        """
        stored = self._look(f"/history/{handle}").get(handle)
        if not stored or not isinstance(stored, dict):
            return False
        if not responses.is_same_graph(stored, graph):
            raise IdTaken("this id has made another picture on the server")
        if responses.entry_of(stored).status == "success":
            return True
        self._server.post("/history", {"delete": [handle]})
        return False

    @_reading
    def find(self, plan: Plan, lost: Lost, until: float = math.inf) -> str | Sought:
        """Look for our prompt_id in /queue and /history, twice: it may be between the two."""
        handle = str(plan.handle)
        with self._server.within(until):
            for _ in range(2):
                if responses.place_in(self._look("/queue"), handle) is not None:
                    return handle
                entry = _entry(self._look(f"/history/{handle}"), handle)
                if entry:
                    return handle if entry.status == "success" else Sought.ABSENT
        return Sought.ABSENT

    @_reading
    def collect(self, handle: str, wait: Wait, plan: Plan | None) -> Collected | None:
        """Poll /history, and /queue for what /history cannot tell, then fetch the images."""
        if canonical_uuid(handle) is None:
            raise Refused(f"no prompt_id of ours: {handle[:60]!r}")
        entry = self._ended(handle, wait)
        return entry and self._fetched(handle, entry, wait, plan)

    def _ended(self, handle: str, wait: Wait) -> responses.Entry | None:
        """Poll until the prompt has ended; None when the wait is over before."""
        began = time.monotonic()
        looked, missing = began, 0
        with self._server.within(max(wait.until, wait.look_until, began + _AT_LEAST_S)):
            while True:
                if entry := self._entry(handle):
                    return entry
                now = time.monotonic()
                if now - looked >= _LOOK_S or missing:
                    looked = now
                    place = self._place_in_queue(handle)
                    missing = missing + 1 if place is None else 0
                    if missing > 1 and not self._entry(handle):
                        raise RenderLost(
                            f"the ComfyUI at {self._server.url} no longer knows prompt {handle}"
                        )
                    wait.tell(_telling(place))
                if now >= wait.until:
                    return None
                pause = min(max((now - began) * _SHARE, self._poll[0]), self._poll[1])
                time.sleep(max(min(pause, wait.until - now), 0))

    @_reading
    def cancel(self, handle: str, until: float = math.inf) -> None:
        """Take our prompt out of the queue, or interrupt it by its id while it is the one running.

        An old server takes any interrupt for a global one: so it is sent only while ours runs.
        """
        with self._server.within(until):
            self._stop(handle)

    def _stop(self, handle: str) -> None:
        self._server.post("/queue", {"delete": [handle]})
        queue = self._server.get("/queue").json_object(lenient=True)
        if responses.place_in(queue, handle) == 0:
            self._server.post("/interrupt", {"prompt_id": handle})

    def status(self, ask: bool, until: float = math.inf) -> Status:
        """Ask the server whether it is there and has the workflow's nodes and files."""
        missing = [
            name for name in self._settings.get("headers_env", {}).values() if not secret(name)
        ]
        if missing:
            return Status("not configured", f"set {', '.join(missing)}")
        if not ask:
            return Status("ok")
        try:
            with self._server.within(until):
                stats = self._server.get("/system_stats").json_object(lenient=True)
                if version := responses.is_too_old(stats):
                    return Status("too old", f"ComfyUI {version}; {ServerTooOld.hint}")
                findings = self.judged(self.workflow)
        except Unreachable as fault:
            return Status("unreachable", self._with_boot_hint(fault).as_line())
        except ImagenError as fault:
            return Status("unreachable", fault.as_line())
        lacks = [one for one in findings if one.severity == "error" and one.what != "no_value"]
        return self._incomplete(lacks) if lacks else Status("ok")

    def _incomplete(self, lacks: list[Finding]) -> Status:
        files = [*dict.fromkeys(one.file for one in lacks if one.file)]
        nodes = [*dict.fromkeys(one.kind for one in lacks if one.what == "invalid_prompt")]
        cure = (self._cure(files) or MissingModel.hint) if files else ""
        says = [*dict.fromkeys(map(check_server.lack, lacks)), *([cure] if cure else [])]
        told = {"missing_models": files, "missing_nodes": nodes, "cure": cure}
        shown = {name: value for name, value in told.items() if value}
        return Status("incomplete", "; ".join(says), shown)

    def needs(self, options: Mapping[str, Any]) -> list[Model]:
        """Give the model files that it needs, as the instance and these options name them."""
        return self.workflow.needs({**self._given(), **options})

    def _cure(self, files: Iterable[str]) -> str | None:
        return self.workflow.cure([*files], self._given())

    def _with_cure(self, fault: ImagenError) -> ImagenError:
        if isinstance(fault, MissingModel):
            fault.hint = self._cure(fault.files) or fault.hint
        return fault

    def _choices_of(self, kind: str, name: str) -> list[Any]:
        """Return what the server offers for an input of a node class; nothing if it does not say.

        It is asked once: whatever fails here must not hide the refusal that it explains.
        """
        if not kind.strip("."):
            return []
        with suppress(ImagenError, TypeError, AttributeError, LookupError):
            inputs = self._json(f"/object_info/{quote(kind, safe='')}")[kind]["input"]
            specs = {**(inputs.get("optional") or {}), **(inputs.get("required") or {})}
            return object_info.choices(specs.get(name)) or []
        return []

    @_reading
    def judged(self, flow: Workflow) -> list[Finding]:
        """Ask the server for its node classes, and find all that is wrong with a workflow here."""
        classes: dict[str, Any] = {}
        for kind in dict.fromkeys(node["class_type"] for node in flow.graph.values()):
            if kind.strip("."):  # else it would lead to another page
                classes |= self._look(f"/object_info/{quote(kind, safe='')}")
        found = check_server.judged(flow, self._standing(flow), classes)
        cure = flow.cure([one.file for one in found if one.file], self._given(flow))
        return [one._replace(hint=cure) if one.file and cure else one for one in found]

    def _standing(self, flow: Workflow) -> dict[str, Any]:
        """Give what this instance fills a workflow's placeholders with when no request says it."""
        given, steps = self._given(flow), self._settings.get("default_steps")
        return given if steps is None else {**given, "steps": steps}

    def about(self) -> dict[str, str]:
        """Give its model and workflow."""
        return {**self._model(self._given()), "workflow": self.workflow.name}

    @property
    def _server(self) -> http.Server:
        if self._opened is None:
            url = self._settings.get("url", KEYS["url"].default)
            self._opened = http.Server(url, self._headers(), who="ComfyUI", login_hint=_LOGIN)
        return self._opened

    def _headers(self) -> dict[str, str]:
        headers = {}
        for header, variable in self._settings.get("headers_env", {}).items():
            value, where = secret(variable), f"backend {self._settings.name}: ${variable}"
            if value is None:
                raise ConfigFault(f"{where} is not set", hint=f"it holds the {header} header")
            if not (value.isascii() and value.isprintable()):
                raise ConfigFault(f"{where} holds what no header can")
            headers[header] = value
        return headers

    def _with_boot_hint(self, fault: Unreachable) -> Unreachable:
        fault.hint = self._settings.get("boot_hint") or fault.hint
        return fault

    def _look(self, path: str) -> dict[str, Any]:
        """Read once or twice: who looks for a lost submit should not wait for a dead server."""
        try:
            return retry.once_more(lambda: self._json(path), self.retry_s, until=self._server.until)
        except Unreachable as fault:
            raise self._with_boot_hint(fault) from None

    def _read(self, path: str) -> dict[str, Any]:
        try:
            return retry.for_a_while(
                lambda: self._json(path),
                self._patience_s,
                self.retry_s,
                until=self._server.until,
            )
        except Unreachable as fault:
            raise self._with_boot_hint(fault) from None
        except Rejected as fault:
            fault.retry = "safe"  # the prompt goes on; whoever asks again may be let in
            raise

    def _json(self, path: str) -> dict[str, Any]:
        return self._server.get(path).json_object(lenient=True)

    def _place_in_queue(self, handle: str) -> int | None:
        return responses.place_in(self._read("/queue"), handle)

    def _entry(self, handle: str) -> responses.Entry | None:
        return _entry(self._read(f"/history/{handle}"), handle)

    def _fetched(
        self, handle: str, entry: responses.Entry, wait: Wait, plan: Plan | None
    ) -> Collected:
        """Fetch what it made: no more than planned or _MOST_IMAGES, whichever is more.

        A server that stays silent is waited for no longer than the wait; what comes may take its
        time.
        """
        if entry.status != "success":
            raise responses.failure(entry)
        places = responses.ours(handle, entry.outputs)
        if not places:
            raise BadImage("the workflow ended without an image of ours", retry="never")
        most = max(plan.images if plan else 1, _MOST_IMAGES)
        meta: dict[str, Any] = {"prompt_id": handle, "client_id": _client_id(handle)}
        if len(places) > most:
            meta["not_fetched"] = len(places) - most
        until = max(wait.until, wait.look_until)
        with self._server.within(time.monotonic() + _FETCH_S), self._hurried(until):
            images = [self._view(handle, place, until) for place in places[:most]]
            meta |= self._vram()
        return Collected(images, meta, entry.run_ms)

    @contextmanager
    def _hurried(self, until: float) -> Iterator[None]:
        """Let no silence of the server last beyond a time of time.monotonic()."""
        server, usual_s = self._server, self._server.read_s
        server.read_s = min(max(until - time.monotonic(), _AT_LEAST_S), usual_s)
        try:
            yield
        finally:
            server.read_s = usual_s

    def _view(self, handle: str, place: Mapping[str, str], until: float) -> bytes:
        wanted = {key: place[key] for key in ("filename", "subfolder", "type")}
        try:
            body = retry.once_more(
                lambda: self._server.get("/view", http.MAX_IMAGE, wanted).body,
                self.retry_s,
                until=until,
            )
        except Rejected as fault:
            if fault.status == 404:
                gone = f"the image of prompt {handle} is gone from the server"
                raise RenderLost(gone, finished=True) from None
            raise
        if not responses.is_ours(handle, body):
            raise BadImage(f"{place['filename']} is another prompt's picture")
        return body

    def _vram(self) -> dict[str, int]:
        """Memory in use on the first device, in MiB; best effort."""
        try:
            device = self._json("/system_stats")["devices"][0]
            return {"vram_used_mib": int(device["vram_total"] - device["vram_free"]) // 2**20}
        except (ImagenError, LookupError, TypeError, ValueError):
            return {}


def _entry(history: Mapping[str, Any], handle: str) -> responses.Entry | None:
    found = history.get(handle)
    return responses.entry_of(found) if isinstance(found, dict) and found else None


def _client_id(submit_id: str) -> str:
    return uuid.uuid5(uuid.UUID(submit_id), "client").hex


def _telling(place: int | None) -> str:
    if place is None:
        return "looking for it"
    return "running" if place == 0 else f"number {place} in the queue"
