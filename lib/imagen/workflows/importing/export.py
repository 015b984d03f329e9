"""An API-format export of ComfyUI as a workflow: read in its wrappings, written, reported. Pure.

Filled with its own defaults, what comes of an import is the very graph that was exported.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from ...errors import WorkflowFault
from ...images import codec
from .. import graph as graphs
from .. import template
from ..graph import Graph
from . import trace
from .draft import Import
from .trace import Spot

MAX_EXPORT = 64 * 2**20  # bytes; a picture with its graph is larger than a graph


def graph_of(name: str, data: bytes) -> Graph:
    """Read the graph of an export: the file, what is sent to /prompt, or a picture made of it."""
    kind = codec.kind(data)
    if kind is not None:
        tree = _in_picture(name, data)
    else:
        tree = template.read(name, data)
        if isinstance(tree.get("prompt"), dict) and "class_type" not in tree["prompt"]:
            tree = tree["prompt"]
    if "_imagen" in tree:
        raise WorkflowFault(
            f"{name} is a workflow already: it has _imagen", hint="imagen-workflow check"
        )
    template.check_graph(name, tree)
    return tree


def _in_picture(name: str, data: bytes) -> dict[str, Any]:
    """Read the graph that ComfyUI puts into the PNGs that it saves."""
    texts = codec.text_of_png(data)
    if "prompt" not in texts:
        hint = "in ComfyUI: Workflow, Export (API)"
        raise WorkflowFault(f"{name} is a picture that holds no graph to run", hint=hint)
    tree = template.read(name, texts["prompt"].encode(), float)
    for node in tree.values():
        if isinstance(node, dict):
            node.pop("is_changed", None)  # what the server noted for itself, NaN at times
    return tree


class Line(NamedTuple):
    """A line of the report: what was found and became a placeholder, what was left and why."""

    what: str
    placeholder: str | None = None
    node: str | None = None
    kind: str | None = None
    input: str | None = None
    value: Any = None
    why: str | None = None

    def as_record(self) -> dict[str, Any]:
        """Give it as a line of JSON; its class is called `class`."""
        found = self._asdict()
        found["class"] = found.pop("kind")
        return {name: one for name, one in found.items() if one is not None or name == "value"}


def tree(found: Import) -> dict[str, Any]:
    """Give the workflow: `_imagen`, and the graph with its placeholders."""
    graph = {
        node: {
            **about,
            "inputs": {
                name: f"${{{found.marks[spot]}}}"
                if (spot := Spot(node, name)) in found.marks
                else v
                for name, v in about["inputs"].items()
            },
        }
        for node, about in found.graph.items()
    }
    about = {
        "description": _description(found),
        "defaults": found.defaults,
        "size_multiple": found.size_multiple,
        "models": found.models,
    }
    return {"_imagen": about, **graph}


def _description(found: Import) -> str:
    first = found.models[0]["file"][2:-1] if found.models else ""
    name = found.defaults.get(first, found.name).replace("\\", "/")
    steps = found.defaults.get("steps")
    return PurePosixPath(name).stem + (f", {steps} steps" if steps else "")


def written(found: Import) -> bytes:
    """Give the workflow's file, after proving that it is the export with placeholders."""
    try:
        text = json.dumps(tree(found), ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    except ValueError:
        said = "it has a number that JSON has no word for (NaN, Infinity)"
        raise found.refused(said) from None
    data = text.encode(errors="surrogatepass")
    try:
        data.decode()
    except UnicodeDecodeError:
        raise found.refused("half a surrogate pair in a text") from None
    flow = template.parse(found.name, data)
    rest = {name: trace.value(found.graph, spot) for spot, name in found.marks.items()}
    if template.fill(flow, rest) != found.graph:
        raise AssertionError("an import that is not its export")
    return data


def report(found: Import) -> list[Line]:
    """Give all that was found, noted and left, in the order of defaults and of the graph."""
    spots: dict[str, list[Spot]] = {name: [] for name in found.defaults}
    for spot, name in found.marks.items():
        spots.setdefault(name, []).append(spot)
    lines = [_line(found, "found", one, name) for name, some in spots.items() for one in some]
    lines += [Line("note", why=note) for note in found.notes]
    left = dict.fromkeys(found.whys)
    for node in found.graph:
        left |= {Spot(node, name): None for name, _ in graphs.literals(found.graph, node)}
    return lines + [_line(found, "left", spot) for spot in left if spot not in found.marks]


def _line(found: Import, what: str, spot: Spot, placeholder: str | None = None) -> Line:
    kind, held = graphs.class_of(found.graph, spot.node), trace.value(found.graph, spot)
    why = None if placeholder else found.whys.get(spot)
    return Line(what, placeholder, spot.node, kind, spot.input, held, why)
