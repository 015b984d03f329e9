"""A ComfyUI look-alike: real HTTP, drawn pictures, and the faults that a test asks for.

It answers as real servers were recorded to, and backends/comfyui/test_lookalike.py holds it to
that; only it runs no model. Work is done when somebody looks: each request first brings the queue
to where it would be by now, so that no second clock makes a test flicker.

    with ComfyUI() as server: ...           in a test
    python -m servers.comfyui --port 0      as a program: prints its URL, serves until killed
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from servers import wire
from servers.wire import Broken

from .connections import CuttableServer

DATA = Path(__file__).parents[2] / "data" / "comfyui"
JSON, TEXT = "application/json; charset=utf-8", "text/plain; charset=utf-8"
OLD_VERSION = "0.3.44"  # the last one without a prompt_id of the client's choice
Graph = dict[str, Any]


class Answer(NamedTuple):
    """What goes back: status, body, content type if any, file name if any."""

    status: int = 200
    body: bytes = b""
    kind: str | None = None
    name: str | None = None


SILENCE = Answer(0)  # no answer, for as long as the server is there
TROUBLE = Answer(500, b"500 Internal Server Error\n\nServer got itself in trouble", TEXT)


class Item(NamedTuple):
    """A prompt as /queue and /history show it."""

    number: int
    id: str
    graph: Graph
    extra: dict[str, Any]
    outputs: list[str]


class ComfyUI:
    """The server; a test sets what is public."""

    def __init__(self, port: int = 0) -> None:
        self.classes: Graph = json.loads((DATA / "object_info.json").read_text())
        self.stats = json.loads((DATA / "recorded.json").read_text())["answers"]["system_stats"]
        self.seconds = 0.0  # that each render takes
        self.held = False  # nothing ends before `release`
        self.error: str | None = None  # with which each render fails
        self.fork = False  # history in the words of the fork
        self.old = False  # of before mid-2025: takes no prompt_id of ours, any interrupt is global
        self.foreign: Any = {}  # outputs of other nodes, put into each history entry
        self.spoil: Callable[[bytes], bytes] = bytes  # what becomes of a picture in /view
        self.files: dict[tuple[str, str], bytes] = {}  # pictures by subfolder and name
        self.requests: list[tuple[str, str, Any]] = []  # all of them: method, path, body
        self.headers: list[dict[str, str]] = []  # of each request
        self.submits: list[dict[str, Any]] = []  # bodies of accepted prompts, as they came
        self.interrupts: list[str | None] = []  # None is a global one
        self._faults: list[tuple[str, Answer | Broken | None, bool]] = []
        self._lock = threading.RLock()
        self.forget()
        self._open(port)

    # -- what a test may do ----------------------------------------------------------------------

    def fail(
        self,
        request: str,
        answer: Answer | Broken | None = TROUBLE,
        *,
        times: int = 1,
        after: bool = False,
    ) -> None:
        """Answer the next requests that start so ("POST /prompt") with this; None cuts them off.

        With `after` they are obeyed all the same.
        """
        self._faults += [(request, answer, after)] * times

    def mend(self) -> None:
        """Meet no more faults."""
        self._faults.clear()

    def release(self) -> None:
        """Let what was held end."""
        with self._lock:
            self.held, self._ended = False, time.time()

    def uninstall(self, file: str) -> None:
        """Take a model file off the server."""
        for spec in (spec for kind in self.classes.values() for spec in _specs(kind).values()):
            if isinstance(spec[0], list) and file in spec[0]:
                spec[0].remove(file)

    def queue(self) -> tuple[str | None, list[str]]:
        """Give the ids of the running prompt and of the pending ones."""
        with self._lock:
            self._advance()
            return self._running and self._running.id, [item.id for item in self._pending]

    def ending(self, prompt_id: str) -> str | None:
        """Give how a prompt ended, None while it has not."""
        with self._lock:
            self._advance()
            found = self._history.get(prompt_id)
            return found["status"]["messages"][-1][0] if found else None

    def forget(self) -> None:
        """Lose what only memory holds: history, queue, cache."""
        with self._lock:
            self._history: dict[str, Any] = {}
            self._pending: list[Item] = []
            self._running: Item | None = None
            self._started = self._ended = 0.0
            self._number = 0
            self._cache: dict[tuple[str, str], Any] = {}

    def restart(self, down_s: float = 0.0) -> None:
        """Close the port, forget, and open the same port again."""
        self.close()
        self.forget()
        time.sleep(down_s)
        self._open(self._http.server_port)

    def _open(self, port: int) -> None:
        self.closed = threading.Event()
        handler = type("Handler", (_Handler,), {"comfy": self})
        self._http = _Http(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Cut all connections and close the port."""
        self.closed.set()
        self._http.cut()
        self._thread.join()

    def __enter__(self) -> ComfyUI:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- routes ----------------------------------------------------------------------------------

    def respond(self, method: str, path: str, raw: bytes) -> Answer | Broken | None:
        """Give the answer to a request, None to cut its connection; meets the scripted faults."""
        fault = next((one for one in self._faults if f"{method} {path}".startswith(one[0])), None)
        if fault is None:
            return self.answer(method, path, raw)
        self._faults.remove(fault)
        if fault[2]:
            self.answer(method, path, raw)
        return fault[1]

    def answer(self, method: str, target: str, raw: bytes = b"") -> Answer:
        """Do what a request asks, and give its answer."""
        url = urlsplit(target)
        route, _, name = url.path.removeprefix("/api").strip("/").partition("/")
        query = {key: values[0] for key, values in parse_qs(url.query, True).items()}
        routes: dict[str, Callable[[], Answer]] = {
            "POST prompt": lambda: self._prompt(raw),
            "GET history": lambda: _json(_one(self._history, unquote(name))),
            "POST history": lambda: self._forget(json.loads(raw)["delete"]),
            "GET queue": self._queue,
            "POST queue": lambda: self._delete(json.loads(raw)["delete"]),
            "POST interrupt": lambda: self._interrupt(json.loads(raw or b"{}").get("prompt_id")),
            "GET view": lambda: self._view(**query),
            "GET system_stats": lambda: _json(self._stats()),
            "GET object_info": lambda: _json(_one(self.classes, name)),
        }
        with self._lock:
            self._advance()
            found = routes.get(f"{method} {route}")
            return found() if found else Answer(404, kind="application/octet-stream")

    def _prompt(self, raw: bytes) -> Answer:
        try:
            body = json.loads(raw)
            graph = dict(body["prompt"]) if "prompt" in body else None
            extra = dict(body.get("extra_data", {})) if graph is not None else {}
        except (ValueError, TypeError):  # which a real server does not catch either
            return TROUBLE
        if graph is None:
            error = _error("no_prompt", "No prompt provided", "No prompt provided")
            return _json({"error": error, "node_errors": {}}, 400)
        error, outputs, node_errors = judged(graph, self.classes)
        if error:
            return _json({"error": error, "node_errors": node_errors}, 400)
        extra |= {"client_id": body["client_id"]} if "client_id" in body else {}
        extra |= {"create_time": round(time.time() * 1000)} if self.fork else {}
        chosen = uuid.uuid4() if self.old else body.get("prompt_id", uuid.uuid4())
        item = Item(self._number, str(chosen), graph, extra, outputs)
        self._number += 1
        self._pending.append(item)
        self.submits.append(json.loads(raw))
        return _json({"prompt_id": item.id, "number": item.number, "node_errors": node_errors})

    def _stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.stats["answer"]
        version = OLD_VERSION if self.old else stats["system"]["comfyui_version"]
        return {**stats, "system": {**stats["system"], "comfyui_version": version}}

    def _queue(self) -> Answer:
        running = [self._running] if self._running else []
        return _json({"queue_running": running, "queue_pending": self._pending})

    def _delete(self, gone: list[str]) -> Answer:
        self._pending = [item for item in self._pending if item.id not in gone]
        return Answer()

    def _forget(self, gone: list[str]) -> Answer:
        self._history = {key: entry for key, entry in self._history.items() if key not in gone}
        return Answer()

    def _interrupt(self, meant: str | None) -> Answer:
        self.interrupts.append(meant)
        if self._running and (self.old or meant in (None, self._running.id)):
            said = {**_working(self._running), "executed": []}
            self._end(time.time(), "execution_interrupted", said)
        return Answer()

    def _view(
        self, filename: str | None = None, subfolder: str = "", type: str = "output"
    ) -> Answer:
        if filename == "" or ".." in (filename or "") or type not in ("output", "temp", "input"):
            return Answer(400)
        if ".." in subfolder:
            return Answer(403)
        data = self.files.get((subfolder, filename or "")) if type == "output" else None
        return Answer(404) if data is None else Answer(200, self.spoil(data), "image/png", filename)

    # -- the work --------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Bring the queue to where it would be by now."""
        while self._running or self._pending:
            if self._running is None:
                self._running, self._started = self._pending.pop(0), time.time()
            done = max(self._started + self.seconds, self._ended)
            if self.held or done > time.time():
                return
            if self.error is None:
                self._end(done, "execution_success", {})
            else:
                said = {"exception_message": self.error, "exception_type": "RuntimeError"}
                more = {"traceback": [], "current_inputs": {}, "current_outputs": []}
                said |= {**_working(self._running), "executed": [], **more}
                self._end(done, "execution_error", said)

    def _end(self, at: float, how: str, said: dict[str, Any]) -> None:
        """Put the running prompt into the history: success, error or interrupted."""
        item, self._running, self._ended = self._running, None, at
        assert item is not None
        good, outputs = how == "execution_success", {}
        nodes = [key for out in item.outputs for key in _upstream(item.graph, out)]
        marks = {key: (key * (key in item.outputs), _hash(item.graph, key)) for key in nodes}
        cached = [key for key in item.graph if marks.get(key) in self._cache]
        if good:
            outputs = {o: self._cache.get(marks[o]) or self._saved(item, o) for o in item.outputs}
            self._cache = {marks[key]: outputs.get(key) for key in nodes}
        if good and not self.seconds:
            at = time.time()  # a real server stamps once the pictures are saved
        start, end = round(self._started * 1000), round(at * 1000)
        messages: list[Any] = [
            ["execution_start", {"prompt_id": item.id, "timestamp": start}],
            ["execution_cached", {"nodes": cached, "prompt_id": item.id, "timestamp": start}],
            [how, {"prompt_id": item.id, **said, "timestamp": end}],
        ]
        if self.fork:
            text = said.get("exception_message")
            messages = ["execution_start", "execution_cached", f"{how}: {text}" if text else how]
        status = {"status_str": "success" if good else "error", "completed": good}
        self._history[item.id] = {
            "prompt": item,
            "outputs": {**outputs, **self.foreign},
            "status": {**status, "messages": messages},
            "meta": {
                key: {"node_id": key, "display_node": key, "parent_node": None, "real_node_id": key}
                for key in outputs
            },
        }

    def _saved(self, item: Item, key: str) -> dict[str, Any]:
        """Draw and keep the pictures of a SaveImage node; a counter makes each name new."""
        folder, _, stem = item.graph[key]["inputs"]["filename_prefix"].rpartition("/")
        pattern = re.compile(re.escape(stem) + r"_(\d{5})_\.png")
        found = [pattern.fullmatch(name) for at, name in self.files if at == folder]
        last = max((int(one[1]) for one in found if one), default=0)
        places = []
        for number, data in enumerate(_drawn(item, key), last + 1):
            name = f"{stem}_{number:05}_.png"
            self.files[folder, name] = data
            more = {"abs_path": f"/output/{folder}/{name}"} if self.fork else {}
            places.append({**more, "filename": name, "subfolder": folder, "type": "output"})
        return {"images": places}


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), JSON)


def _one(known: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: known[name]} if name in known else {}


def _links(node: dict[str, Any]) -> dict[str, str]:
    return {name: one[0] for name, one in node["inputs"].items() if isinstance(one, list)}


def _upstream(graph: Graph, key: str) -> list[str]:
    """Give a node and all that it is made of, the nearest first."""
    found = [key]
    for one in found:
        found += [link for link in _links(graph[one]).values() if link not in found]
    return found


def _hash(graph: Graph, key: str) -> str:
    """Give a hash of a node and all that it is made of, whatever the ids."""
    node = graph[key]
    parts = {**node["inputs"], **{name: _hash(graph, at) for name, at in _links(node).items()}}
    return hashlib.sha256(json.dumps([node["class_type"], parts]).encode()).hexdigest()


def _working(item: Item) -> dict[str, Any]:
    """Name the node that takes the time: the sampler, where there is one."""
    kinds = {key: node["class_type"] for key, node in item.graph.items()}
    samplers = [key for key, kind in kinds.items() if kind in ("KSampler", "SamplerCustomAdvanced")]
    node = samplers[0] if samplers else item.outputs[0]
    return {"node_id": node, "node_type": kinds[node]}


def _drawn(item: Item, key: str) -> Iterator[bytes]:
    """Draw pictures of the latent's size; the low 32 bits of the seed decide them."""
    inputs = [item.graph[one]["inputs"] for one in _upstream(item.graph, key)]
    source = next(one for one in inputs if "batch_size" in one)
    seeds = [one[name] % 2**32 for one in inputs for name in ("seed", "noise_seed") if name in one]
    size = source["width"] // 8 * 8, source["height"] // 8 * 8
    text = PngInfo()
    for name, value in {"prompt": item.graph, **item.extra.get("extra_pnginfo", {})}.items():
        text.add_text(name, json.dumps(value))
    for number in range(source["batch_size"]):
        dice = hashlib.sha256(f"{seeds} {number}".encode()).digest()
        ramp = Image.linear_gradient("L").resize(size)
        bands = [ramp.point([(shade + turn) % 256 for shade in range(256)]) for turn in dice[:3]]
        out = io.BytesIO()
        Image.merge("RGB", bands).save(out, "PNG", pnginfo=text, compress_level=1)
        yield out.getvalue()


# -- how POST /prompt judges a graph -------------------------------------------------------------


def judged(graph: Graph, classes: Graph) -> tuple[dict[str, Any] | None, list[str], Graph]:
    """Give the error if the graph is refused, the outputs that will run, and node_errors.

    Values become the types that their nodes want, in the graph itself.
    """
    for key, node in graph.items():
        kind = node.get("class_type") if isinstance(node, dict) else None
        fault = (
            f"node {kind} does not exist." if kind else "a node is missing the class_type property."
        )
        if kind not in classes:
            said = f"Cannot execute because {fault}"
            return _error("invalid_prompt", said, f"Node ID '#{key}'"), [], {}
    outputs = [key for key, node in graph.items() if classes[node["class_type"]]["output_node"]]
    if not outputs:
        return _error("prompt_no_outputs", "Prompt has no outputs", ""), [], {}
    faults: dict[str, list[dict[str, Any]]] = {}
    good, node_errors = [], {}
    for output in outputs:
        upstream = _upstream(graph, output)
        for key in upstream:
            if key not in faults:
                faults[key] = _node_faults(graph[key]["inputs"], classes[graph[key]["class_type"]])
        bad = [key for key in upstream if faults[key]]
        good += [] if bad else [output]
        for key in bad:
            about = {"errors": faults[key], "dependent_outputs": []}
            about = node_errors.setdefault(key, {**about, "class_type": graph[key]["class_type"]})
            about["dependent_outputs"].append(output)
    if good:
        return None, good, node_errors
    own = [f"{one['message']}: {one['details']}" for output in outputs for one in faults[output]]
    said = "Prompt outputs failed validation"
    return _error("prompt_outputs_failed_validation", said, "\n".join(own)), [], node_errors


def _specs(kind: dict[str, Any]) -> dict[str, list[Any]]:
    return {**kind["input"]["required"], **kind["input"].get("optional", {})}


def _node_faults(inputs: dict[str, Any], kind: dict[str, Any]) -> list[dict[str, Any]]:
    faults = []
    for name, spec in _specs(kind).items():
        if name in inputs and not isinstance(inputs[name], list):
            faults += _value_faults(inputs, name, [*spec, {}][:2])
        elif name not in inputs and name in kind["input"]["required"]:
            said = ("required_input_missing", "Required input is missing", name)
            faults.append(_error(*said, input_name=name))
    return faults


def _value_faults(inputs: dict[str, Any], name: str, spec: list[Any]) -> Iterator[dict[str, Any]]:
    """Yield the fault of a value, if it has one, after turning it into the type that is wanted."""
    kind, rules = spec
    known = {"input_name": name, "input_config": spec, "received_value": inputs[name]}
    try:
        types: dict[Any, type] = {"INT": int, "FLOAT": float, "STRING": str}
        value = inputs[name] = types.get(str(kind), lambda same: same)(inputs[name])
    except (ValueError, TypeError) as fault:
        said = f"Failed to convert an input value to a {kind} value"
        details = f"{name}, {inputs[name]}, {fault}"
        yield _error("invalid_input_type", said, details, **known, exception_message=str(fault))
        return
    known["received_value"] = value
    if value < rules.get("min", value):
        said = f"Value {value} smaller than min of {rules['min']}"
        yield _error("value_smaller_than_min", said, name, **known)
    elif value > rules.get("max", value):
        said = f"Value {value} bigger than max of {rules['max']}"
        yield _error("value_bigger_than_max", said, name, **known)
    elif isinstance(kind, list) and value not in kind:
        many = len(kind) > 20
        known["input_config"] = None if many else spec
        details = f"{name}: '{value}' not in {f'(list of length {len(kind)})' if many else kind}"
        yield _error("value_not_in_list", "Value not in list", details, **known)


def _error(kind: str, message: str, details: str, **extra: Any) -> dict[str, Any]:
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


# -- HTTP ----------------------------------------------------------------------------------------


class _Http(CuttableServer):
    daemon_threads = False  # so that closing waits for them
    block_on_close = True


class _Handler(BaseHTTPRequestHandler):
    comfy: ComfyUI
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together

    def do_GET(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.comfy.headers.append(dict(self.headers))
        self.comfy.requests.append((self.command, self.path, _read(raw)))
        answer = self.comfy.respond(self.command, self.path, raw)
        if answer is SILENCE:
            self.comfy.closed.wait()
        if answer is None or answer is SILENCE:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        if isinstance(answer, Broken):
            self.close_connection = True
            wire.send(self.connection, answer, self.path)
            return
        self.send_response(answer.status)
        shown = answer.name and f'filename="{answer.name}"'
        heads = {"Content-Type": answer.kind, "Content-Disposition": shown}
        heads["Connection"] = "close" if answer.status == 500 else None
        for name, value in heads.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _read(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long a render takes")
    said = parser.parse_args()
    with ComfyUI(said.port) as server, suppress(KeyboardInterrupt):
        server.seconds = said.seconds
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
