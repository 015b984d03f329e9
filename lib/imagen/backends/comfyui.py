"""The ComfyUI backend: one adapter, workflows as data.

What a real server does is recorded; the look-alike in tests/servers/comfyui.py is held to it.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from .. import http, image, retry, workflow
from ..config import Key, secret
from ..errors import (
    BadImage,
    ConfigFault,
    ImagenError,
    Interrupted,
    MissingModel,
    Refused,
    Rejected,
    RenderFailed,
    RenderLost,
    Unreachable,
)
from ..record import canonical_uuid
from ..workflow import Workflow
from . import Ask, Collected, Instance, Plan, Sought, Status, Wait

KEYS = {
    "url": Key("url", "http://127.0.0.1:8188"),
    "workflow": Key("string", "flux1-schnell"),
    "boot_hint": Key("string"),
    "headers_env": Key("environment"),
    "poll_min_s": Key("seconds", 0.01),
    "poll_max_s": Key("seconds", 0.5),
    "patience_s": Key("seconds", 30),
    "retry_s": Key("seconds", 0.3),
}
_MIN_SIZE, _MAX_SIZE = 16, 16384  # of EmptySD3LatentImage in /object_info
_FIELDS = ("width", "height", "steps", "cfg", "sampler", "scheduler")
_SHARE = 0.04  # of the time waited: the poll is never far behind and never a burden
_LOOK_S = 1.0  # how often /queue, which carries whole graphs, is asked beside /history


def open_instance(instance: Instance) -> ComfyUI:
    """Open a configured instance."""
    return ComfyUI(instance)


def extra_keys(instance: Instance) -> dict[str, Key]:
    """Give the keys that the instance's own workflow adds: its placeholders."""
    return dict.fromkeys(_workflow(instance).placeholders(), Key("any"))


def _workflow(instance: Instance) -> Workflow:
    return workflow.load(str(instance.get("workflow", "flux1-schnell")), instance.config_folder)


class Entry(NamedTuple):
    """A finished prompt in /history: how it ended, its outputs, the last message, its run time."""

    status: str
    outputs: dict[str, Any]
    last: str
    said: Mapping[str, Any]
    run_ms: int | None


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
        self._retry_s = instance.get("retry_s", 0.3)
        self._opened: http.Server | None = None

    def plan(self, ask: Ask) -> Plan:
        """Fill the workflow: the exact body of POST /prompt."""
        request, holes = ask.request, self.workflow.placeholders()
        plan = Plan({}, {"seed": request["seed"]}, 0.0, handle=ask.submit_id)
        values = self._values(ask, plan, holes)
        graph = workflow.fill(self.workflow, values)
        for node in self.workflow.nodes("SaveImage"):
            graph[node]["inputs"]["filename_prefix"] = _prefix(ask.submit_id)
        client = _client_id(ask.submit_id)
        plan.payload = {"prompt": graph, "prompt_id": ask.submit_id, "client_id": client}
        plan.images = _expected(graph, self.workflow)
        known = {**self.workflow.defaults, **values}
        plan.resolved |= {name: known[name] for name in _FIELDS if name in holes and name in known}
        plan.resolved |= {**self._model(values), "workflow": self.workflow.name}
        return plan

    def _values(self, ask: Ask, plan: Plan, holes: set[str]) -> dict[str, Any]:
        """Give the value of each placeholder; note what is rounded and what has no place."""
        request, defaults = ask.request, self.workflow.defaults
        options = {**self._settings.get("options", {}), **request.get("options", {})}
        values: dict[str, Any] = {name: self._settings.get(name) for name in holes - {"options"}}
        for name, value in options.items():
            if name in holes - {"prompt", "negative_prompt", "seed", *_FIELDS}:
                values[name] = value
            else:
                plan.drop(
                    f"options.{name}", value, f"workflow {self.workflow.name} has no ${{{name}}}"
                )
        values |= {"prompt": ask.prompt, "negative_prompt": ask.negative, "seed": request["seed"]}
        for name in _FIELDS:
            values[name] = request.get(name, defaults.get(name))
        if "steps" not in request:
            values["steps"] = self._settings.get("default_steps", defaults.get("steps"))
        for name in ("negative_prompt", *_FIELDS):
            if name in request and name not in holes:
                plan.drop(name, request[name], f"workflow {self.workflow.name} has no ${{{name}}}")
        if "negative_prompt" not in request and ask.negative and "negative_prompt" not in holes:
            plan.drop("negative_prompt", ask.negative, f"workflow {self.workflow.name} has none")
        if values.get("cfg") is not None:
            values["cfg"] = float(values["cfg"])
        for name in ("width", "height"):
            if name in holes and values[name] is not None:
                values[name] = self._rounded(name, values[name], plan)
        return {name: value for name, value in values.items() if value is not None}

    def _rounded(self, name: str, asked: int, plan: Plan) -> int:
        step = self.workflow.size_multiple
        low, high = -(-_MIN_SIZE // step) * step, _MAX_SIZE // step * step
        got = min(max(round(asked / step) * step, low), high)
        if got != asked:
            plan.approximate(
                name, asked, got, f"workflow {self.workflow.name} makes multiples of {step}"
            )
        return got

    def _model(self, values: Mapping[str, Any]) -> dict[str, str]:
        needs = self.workflow.needs(values)
        return {"model": needs[0].file} if needs else {}

    def submit(self, plan: Plan) -> str:
        """POST /prompt; nothing runs when the server finds fault with any part of it."""
        try:
            answer = self._server.post("/prompt", plan.payload).json()
        except Rejected as fault:
            raise _refusal(fault) from None
        except Unreachable as fault:
            raise self._with_boot_hint(fault) from None
        said = answer if isinstance(answer, dict) else {}
        handle = str(plan.handle)
        if said.get("node_errors"):
            self.cancel(handle)  # the nodes without fault were queued all the same
            raise _node_fault(said["node_errors"], "some outputs of the workflow are refused")
        if said.get("prompt_id") != handle:
            raise RenderFailed(
                f"the server gave the prompt another id than ours: {said.get('prompt_id')!r}",
                hint="update ComfyUI: it must honour prompt_id",
            )
        return handle

    def find(self, plan: Plan) -> str | Sought:
        """Look for our prompt_id in /queue and /history, twice: it may be between the two."""
        handle = str(plan.handle)
        for _ in range(2):
            if self._place_in_queue(handle) is not None:
                return handle
            entry = self._entry(handle)
            if entry:
                return handle if entry.status == "success" else Sought.ABSENT
        return Sought.ABSENT

    def collect(self, handle: str, wait: Wait, plan: Plan | None) -> Collected | None:
        """Poll /history, and /queue for what /history cannot tell, then fetch the images."""
        if canonical_uuid(handle) is None:
            raise Refused(f"no prompt_id of ours: {handle[:60]!r}")
        began = time.monotonic()
        looked, missing = began, 0
        while True:
            if entry := self._entry(handle):
                return self._fetched(handle, entry)
            now = time.monotonic()
            if now - looked >= _LOOK_S or missing:
                looked = now
                place = self._place_in_queue(handle)
                missing = missing + 1 if place is None else 0
                if missing > 1 and not self._entry(handle):
                    raise RenderLost(f"the ComfyUI at {self._url} no longer knows prompt {handle}")
                wait.tell(_telling(place))
            if now >= wait.until:
                return None
            pause = min(max((now - began) * _SHARE, self._poll[0]), self._poll[1])
            time.sleep(max(min(pause, wait.until - now), 0))

    def cancel(self, handle: str) -> None:
        """Take our prompt out of the queue, or interrupt it by its id while it is the one running.

        An old server takes any interrupt for a global one: so it is sent only while ours runs.
        """
        self._server.post("/queue", {"delete": [handle]})
        if _place(self._server.get("/queue").json(), handle) == 0:
            self._server.post("/interrupt", {"prompt_id": handle})

    def status(self, ask: bool) -> Status:
        """Ask the server whether it is there and has the workflow's nodes and files."""
        missing = [
            name for name in self._settings.get("headers_env", {}).values() if not secret(name)
        ]
        if missing:
            return Status("not configured", f"set {', '.join(missing)}")
        if not ask:
            return Status("ok")
        try:
            self._server.get("/system_stats")
            lacks = list(self._lacks())
        except Unreachable as fault:
            return Status("unreachable", self._with_boot_hint(fault).as_line())
        except ImagenError as fault:
            return Status("unreachable", fault.message)
        return Status("incomplete", "; ".join(lacks)) if lacks else Status("ok")

    def about(self) -> dict[str, str]:
        """Give its model and workflow."""
        settings = {name: self._settings.get(name) for name in self.workflow.placeholders()}
        known = {name: value for name, value in settings.items() if value is not None}
        return {**self._model(known), "workflow": self.workflow.name}

    @property
    def _url(self) -> str:
        return str(self._settings.get("url", KEYS["url"].default))

    @property
    def _server(self) -> http.Server:
        if self._opened is None:
            self._opened = http.Server(self._url, self._headers(), who="ComfyUI")
        return self._opened

    def _headers(self) -> dict[str, str]:
        headers = {}
        for header, variable in self._settings.get("headers_env", {}).items():
            value = secret(variable)
            if value is None:
                where = f"backend {self._settings.name}"
                raise ConfigFault(
                    f"{where}: ${variable} is not set", hint=f"for its {header} header"
                )
            headers[header] = value
        return headers

    def _with_boot_hint(self, fault: Unreachable) -> Unreachable:
        fault.hint = self._settings.get("boot_hint") or fault.hint
        return fault

    def _read(self, path: str) -> Any:
        try:
            return retry.for_a_while(
                lambda: self._server.get(path).json(), self._patience_s, self._retry_s
            )
        except Unreachable as fault:
            raise self._with_boot_hint(fault) from None

    def _place_in_queue(self, handle: str) -> int | None:
        return _place(self._read("/queue"), handle)

    def _entry(self, handle: str) -> Entry | None:
        found = self._read(f"/history/{handle}").get(handle)
        return _entry_of(found) if found else None

    def _fetched(self, handle: str, entry: Entry) -> Collected:
        if entry.status != "success":
            raise _failure(entry)
        images = [self._view(handle, place) for place in _ours(handle, entry.outputs)]
        if not images:
            raise BadImage("the workflow ended without an image of ours", retry="never")
        meta = {"prompt_id": handle, "client_id": _client_id(handle), **self._vram()}
        return Collected(images, meta, entry.run_ms)

    def _view(self, handle: str, place: Mapping[str, str]) -> bytes:
        wanted = {key: place[key] for key in ("filename", "subfolder", "type")}
        try:
            body = retry.once_more(
                lambda: self._server.get("/view", http.MAX_IMAGE, **wanted).body, self._retry_s
            )
        except Rejected as fault:
            if fault.status == 404:
                gone = f"the image of prompt {handle} is gone from the server"
                raise RenderLost(gone, finished=True) from None
            raise
        if not _is_ours(handle, body):
            raise BadImage(f"{place['filename']} is another prompt's picture")
        return body

    def _vram(self) -> dict[str, int]:
        """Memory in use on the first device, in MiB; best effort."""
        try:
            device = self._server.get("/system_stats").json()["devices"][0]
            return {"vram_used_mib": (device["vram_total"] - device["vram_free"]) // 2**20}
        except (ImagenError, LookupError, TypeError):
            return {}

    def _lacks(self) -> Any:
        """Yield the node classes and the files of our workflow that the server does not have."""
        settings = {name: self._settings.get(name) for name in self.workflow.placeholders()}
        known = {**self.workflow.defaults, **{k: v for k, v in settings.items() if v is not None}}
        for key, node in self.workflow.graph.items():
            kind = node["class_type"]
            found = self._server.get(f"/object_info/{kind}").json().get(kind)
            if not found:
                yield f"no node {kind}"
                continue
            for name, spec in {
                **found["input"].get("required", {}),
                **found["input"].get("optional", {}),
            }.items():
                choices = _choices(spec)
                value = node["inputs"].get(name)
                hole = isinstance(value, str) and value.startswith("${")
                value = known.get(value[2:-1]) if hole else value
                if choices is not None and isinstance(value, str) and value not in choices:
                    yield f"no {value} for {name} of node {key} ({kind}); {MissingModel.hint}"


def _prefix(submit_id: str) -> str:
    return f"imagen/{submit_id}"


def _client_id(submit_id: str) -> str:
    return uuid.uuid5(uuid.UUID(submit_id), "client").hex


def _expected(graph: workflow.Graph, of: Workflow) -> int:
    """How many images come: the largest batch in the graph, for each SaveImage node."""
    sizes = [node["inputs"].get("batch_size", 1) for node in graph.values()]
    batch = max((size for size in sizes if isinstance(size, int)), default=1)
    return max(batch, 1) * len(of.nodes("SaveImage"))


def _place(queue: Mapping[str, Any], handle: str) -> int | None:
    """0 when it runs, n when it is the nth to come, None when it is in neither list."""
    if any(item[1] == handle for item in queue.get("queue_running", [])):
        return 0
    waiting = sorted(queue.get("queue_pending", []), key=lambda item: item[0])
    return next((n for n, item in enumerate(waiting, 1) if item[1] == handle), None)


def _telling(place: int | None) -> str:
    if place is None:
        return "looking for it"
    return "running" if place == 0 else f"number {place} in the queue"


def _choices(spec: Any) -> list[Any] | None:
    """Read a COMBO input in both of its shapes; None when the input is none."""
    if isinstance(spec, list) and spec:
        if isinstance(spec[0], list):
            return spec[0]
        if spec[0] == "COMBO" and len(spec) > 1 and isinstance(spec[1], dict):
            return spec[1].get("options")
    return None


def _refusal(fault: Rejected) -> ImagenError:
    """Read a 400 of /prompt."""
    try:
        said = json.loads(fault.body)
        error = (
            said["error"] if isinstance(said["error"], dict) else {"message": str(said["error"])}
        )
    except (ValueError, LookupError, TypeError, RecursionError):
        return fault
    if said.get("node_errors"):
        return _node_fault(said["node_errors"], error.get("message") or "the workflow is refused")
    text = ": ".join(part for part in (error.get("message"), error.get("details")) if part)
    return RenderFailed(f"ComfyUI refuses the workflow: {text}", code="workflow_refused")


def _node_fault(errors: Mapping[str, Any], otherwise: str) -> ImagenError:
    """Name the first fault of each node; a file that is not installed is a MissingModel."""
    texts, missing = [], False
    for key, node in errors.items():
        for one in node.get("errors", []):
            extra = one.get("extra_info") or {}
            named = str(extra.get("received_value", ""))
            if one.get("type") == "value_not_in_list" and named.endswith(_MODEL_FILES):
                missing = True
                folder = extra.get("input_name")
                texts.append(f"{named} is not installed ({node.get('class_type')} {key}, {folder})")
            else:
                said = f"{one.get('message')}: {one.get('details')}"
                texts.append(f"node {key} ({node.get('class_type')}): {said}")
    message = "; ".join(texts[:3]) or otherwise
    if missing:
        return MissingModel(f"ComfyUI: {message}")
    return RenderFailed(f"ComfyUI refuses the workflow: {message}", code="workflow_refused")


_MODEL_FILES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


def _entry_of(found: Mapping[str, Any]) -> Entry:
    """Read a history entry; the fork has messages as strings, the original as pairs."""
    status = found.get("status") or {}
    messages = status.get("messages") or []
    last, said = "", {}
    stamps = {}
    for message in messages:
        if isinstance(message, str):
            last, _, text = message.partition(": ")
            said = {"exception_message": text}
        elif isinstance(message, list) and len(message) == 2 and isinstance(message[1], dict):
            last, said = str(message[0]), message[1]
            stamps[last] = said.get("timestamp")
    begun, ended = stamps.get("execution_start"), stamps.get(last)
    ran = ended - begun if isinstance(begun, int) and isinstance(ended, int) else None
    return Entry(status.get("status_str", "success"), found.get("outputs") or {}, last, said, ran)


def _failure(entry: Entry) -> ImagenError:
    if entry.last.startswith("execution_interrupted"):
        return Interrupted("somebody interrupted the render on the server")
    said = entry.said
    text = " ".join(str(said.get("exception_message") or "it does not say why").split())
    node = f" in node {said['node_id']} ({said.get('node_type')})" if said.get("node_id") else ""
    return RenderFailed(f"ComfyUI failed{node}: {text}"[:600], code="execution_error")


def _ours(handle: str, outputs: Mapping[str, Any]) -> list[dict[str, str]]:
    """Give the places of the images that our SaveImage nodes wrote, in order of their names."""
    places = [place for output in outputs.values() for place in output.get("images", [])]
    folder, _, start = _prefix(handle).partition("/")
    ours = [
        place
        for place in places
        if place.get("type") == "output"
        and place.get("subfolder") == folder
        and place.get("filename", "").startswith(start)
    ]
    return sorted(ours, key=lambda place: str(place["filename"]))


def _is_ours(handle: str, body: bytes) -> bool:
    """Whether the graph in the PNG, where there is one, saved under our prefix."""
    text = image.text_of_png(body).get("prompt")
    if text is None:
        return True
    try:
        nodes = json.loads(text).values()
        prefixes = [node.get("inputs", {}).get("filename_prefix") for node in nodes]
    except (ValueError, AttributeError, RecursionError):
        return False
    return _prefix(handle) in prefixes
