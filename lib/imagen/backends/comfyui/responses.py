"""What a ComfyUI server's answers mean: refusals, queue, history, object_info. Pure.

Two kinds of servers were recorded, 0.3.64 and a fork at 0.10.0; both are read. Other nodes put
into /history and /object_info what they like: whatever is not ours there is skipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ...errors import ImagenError, Interrupted, MissingModel, Rejected, RenderFailed
from ...images import codec
from ...workflows.object_info import MODEL_FILES, choices, other_spelling, there_as

Choices = Callable[[str, str], Iterable[Any]]  # of a node class and its input, where they are known
_OWN_IDS_SINCE = (0, 3, 45)  # the release from which POST /prompt takes the client's prompt_id


class Entry(NamedTuple):
    """A finished prompt in /history: how it ended, its outputs, the last message, its run time."""

    status: str
    outputs: dict[str, Any]
    last: str
    said: Mapping[str, Any]
    run_ms: int | None


def prefix(submit_id: str) -> str:
    """Give the filename_prefix that makes a submit's images provably its own."""
    return f"imagen/{submit_id}"


def place_in(queue: Mapping[str, Any], handle: str) -> int | None:
    """0 when it runs, n when it is the nth to come, None when it is in neither list.

    Without both lists it is no answer that could say so: LookupError or TypeError.
    """
    running, waiting = (
        [item for item in queue[name] if isinstance(item, list) and len(item) > 1]
        for name in ("queue_running", "queue_pending")
    )
    if any(item[1] == handle for item in running):
        return 0
    waiting.sort(key=lambda item: float(item[0]))
    return next((n for n, item in enumerate(waiting, 1) if item[1] == handle), None)


def refusal(fault: Rejected, choices_of: Choices) -> ImagenError:
    """Read a 400 of /prompt; another status is of what stands before the server.

    `choices_of` is asked where the server leaves out what an input may be: as `node_fault`.
    """
    if fault.status in (401, 403, 407) or fault.status < 400:
        return fault
    try:
        said = json.loads(fault.body)
        error = said["error"]
        error = error if isinstance(error, dict) else {"message": str(error)}
    except (ValueError, LookupError, TypeError, RecursionError):
        return fault
    if said.get("node_errors"):
        otherwise = error.get("message") or "the workflow is refused"
        return node_fault(said["node_errors"], otherwise, choices_of)
    text = ": ".join(part for part in (error.get("message"), error.get("details")) if part)
    says = f"ComfyUI refuses the workflow: {text}"  # the graph itself, not a value in a node
    return RenderFailed(says, code="workflow_refused", scope="setup")


def node_fault(errors: Mapping[str, Any], otherwise: str, choices_of: Choices) -> ImagenError:
    """Name the first fault of each node; a file that is not installed is a MissingModel.

    A list of more than 20 names is left out of a refusal: then `choices_of` is asked for it.
    """
    texts, missing, misspelt = [], [], []
    for key, node in errors.items():
        for one in node.get("errors", []):
            file = _model_file(one)
            if file is None:
                said = f"{one.get('message')}: {one.get('details')}"
                texts.append(f"node {key} ({node.get('class_type')}): {said}")
                continue
            extra = one["extra_info"]
            offered = choices(extra.get("input_config"))
            if offered is None:
                offered = [*choices_of(str(node.get("class_type")), str(extra.get("input_name")))]
            if other := other_spelling(file, offered):
                misspelt.append(file)
                texts.append(f"{there_as(file, other)} (node {key}, {extra.get('input_name')})")
                continue
            missing.append(file)
            where = f"{node.get('class_type')} {key}, {extra.get('input_name')}"
            texts.append(f"{file} is not installed ({where})")
    message = "; ".join(texts[:3]) or otherwise
    if missing:
        return MissingModel(f"ComfyUI: {message}", files=missing)
    scope = "setup" if misspelt and len(misspelt) == len(texts) else None
    says = f"ComfyUI refuses the workflow: {message}"
    return RenderFailed(says, code="workflow_refused", scope=scope)


def _model_file(error: Mapping[str, Any]) -> str | None:
    """Return the model file that a fault of a node's value is about; None if it is about none."""
    extra = error.get("extra_info") or {}
    value = str(extra.get("received_value", ""))
    is_file = error.get("type") == "value_not_in_list" and value.endswith(MODEL_FILES)
    return value if is_file else None


def entry_of(stored: Mapping[str, Any]) -> Entry:
    """Read a history entry; the fork has messages as strings, the original as pairs.

    Only what says that it failed has failed: an odd status beside our images keeps none back.
    """
    status = _dict(stored.get("status"))
    messages = status.get("messages")
    last, said = "", {}
    stamps: dict[str, Any] = {}
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, str):
            last, _, text = message.partition(": ")
            said = {"exception_message": text}
        elif isinstance(message, list) and len(message) == 2 and isinstance(message[1], dict):
            last, said = str(message[0]), message[1]
            stamps[last] = said.get("timestamp")
    run_ms = _between(stamps.get("execution_start"), stamps.get(last))
    ending = "error" if status.get("status_str") == "error" else "success"
    return Entry(ending, _dict(stored.get("outputs")), last, said, run_ms)


def _between(start: Any, end: Any) -> int | None:
    """Return the milliseconds between two stamps of a server; None when they make no sense."""
    if type(start) is not int or type(end) is not int:
        return None
    return end - start if 0 <= end - start < 2**40 else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def is_same_graph(stored: Mapping[str, Any], graph: Mapping[str, Any]) -> bool:
    """Whether a history entry is of this graph: history holds the values as they were coerced.

    Nodes may rewrite the stored graph; where it cannot be read it counts as the same, for its id
    is ours.
    """
    prompt = stored.get("prompt")
    nodes = prompt[2] if isinstance(prompt, list) and len(prompt) > 2 else None
    if not isinstance(nodes, dict) or not all(map(_is_node, nodes.values())):
        return True
    return nodes.keys() == graph.keys() and all(
        nodes[key].get("class_type") == node["class_type"]
        and all(_is_same(nodes[key]["inputs"].get(n), v) for n, v in node["inputs"].items())
        for key, node in graph.items()
    )


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict)


def _is_same(one: Any, other: Any) -> bool:
    return bool(one == other) or str(one) == str(other)


def failure(entry: Entry) -> ImagenError:
    """Give the error of an entry that did not end well."""
    if entry.last.startswith("execution_interrupted"):
        return Interrupted("somebody interrupted the render on the server")
    said = entry.said
    text = " ".join(str(said.get("exception_message") or "it does not say why").split())
    node = f" in node {said['node_id']} ({said.get('node_type')})" if said.get("node_id") else ""
    return RenderFailed(f"ComfyUI failed{node}: {text}"[:600], code="execution_error")


def ours(handle: str, outputs: Mapping[str, Any]) -> list[dict[str, str]]:
    """Give the places of the images that our SaveImage nodes wrote, in order of their names."""
    lists = [_dict(output).get("images") for output in outputs.values()]
    places = [place for images in lists if isinstance(images, list) for place in images]
    return sorted((place for place in places if _is_our_place(handle, place)), key=_filename)


def _is_our_place(handle: str, place: Any) -> bool:
    folder, _, start = prefix(handle).partition("/")
    return (
        isinstance(place, dict)
        and (place.get("type"), place.get("subfolder")) == ("output", folder)
        and isinstance(place.get("filename"), str)
        and place["filename"].startswith(start)
    )


def _filename(place: Mapping[str, str]) -> str:
    return place["filename"]


def is_ours(handle: str, body: bytes) -> bool:
    """Whether the graph in the PNG, where there is one, saved under our prefix."""
    text = codec.text_of_png(body).get("prompt")
    if text is None:
        return True
    try:
        nodes = [_dict(node) for node in json.loads(text).values()]
        prefixes = [_dict(node.get("inputs")).get("filename_prefix") for node in nodes]
    except (ValueError, AttributeError, RecursionError):
        return False
    return prefix(handle) in prefixes


def is_too_old(stats: Mapping[str, Any]) -> str | None:
    """Return the version in /system_stats if that server does not take our prompt_id.

    None also where it does not say its version, or not as numbers.
    """
    version = _dict(stats.get("system")).get("comfyui_version")
    numbers = re.match(r"v?(\d{1,6})\.(\d{1,6})\.(\d{1,6})", str(version))
    if numbers is None or tuple(map(int, numbers.groups())) >= _OWN_IDS_SINCE:
        return None
    return str(version)
