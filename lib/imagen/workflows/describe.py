"""Workflows for people and for jq: what one is, where its placeholders stand, its nodes. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..tables import Shown, aligned
from . import graph as graphs
from .template import Workflow

LISTED = ("name", "size", "steps", "models", "backends", "description")
_WIDE = 60  # characters of a value on a terminal


def row(flow: Workflow, backends: Iterable[str], path: str | None) -> dict[str, Any]:
    """Give a workflow as a line of a list; sizes in pixels."""
    known = flow.defaults
    about = {
        "name": flow.name,
        "description": flow.description,
        **{name: known.get(name) for name in ("width", "height", "steps")},
        "models": [model.file for model in flow.needs({})],
        "backends": [*backends],
        "path": path,
    }
    return {name: value for name, value in about.items() if value is not None}


def listed(rows: Iterable[Mapping[str, Any]], shown: Shown) -> str:
    """Lay the lines of a list out as a table."""
    cells = [
        {
            **one,
            "size": f"{one['width']}×{one['height']}" if {"width", "height"} <= {*one} else None,
            "models": len(one["models"]),
            "backends": ", ".join(one["backends"]) or None,
            "description": _cut(one["description"]),
        }
        for one in rows
    ]
    return aligned(LISTED, cells, shown)


def about(flow: Workflow) -> dict[str, Any]:
    """Give all that a workflow says: `_imagen`, its placeholders, its nodes in execution order."""
    graph = flow.graph
    order = graphs.in_order(graph)
    return {
        "name": flow.name,
        "description": flow.description,
        "size_multiple": flow.size_multiple,
        "placeholders": [
            {
                "name": name,
                "default": flow.defaults.get(name),
                "places": [f"{node}.{wanted}" for node, wanted in places],
            }
            for name, places in flow.places().items()
        ],
        "models": [model._asdict() for model in flow.needs({})],
        "nodes": [_node(graph, node) for node in [*order, *(graph.keys() - {*order})]],
    }


def _node(graph: graphs.Graph, node: str) -> dict[str, Any]:
    made_of = dict.fromkeys(source.node for _, source in graphs.links(graph, node))
    return {"id": node, "class": graphs.class_of(graph, node), "made_of": [*made_of]}


def page(said: Mapping[str, Any], shown: Shown) -> str:
    """Lay out what `about` gives for a terminal."""
    rows = {
        "placeholders": [
            {
                "placeholder": one["name"],
                "default": _text(one["default"]),
                "stands in": ", ".join(one["places"]),
            }
            for one in said["placeholders"]
        ],
        "models": [{**one, "source": next(iter(one["sources"]), None)} for one in said["models"]],
        "nodes": [{**one, "made of": ", ".join(one["made_of"])} for one in said["nodes"]],
    }
    columns = {
        "placeholders": ("placeholder", "default", "stands in"),
        "models": ("file", "folder", "source"),
        "nodes": ("id", "class", "made of"),
    }
    head = f"{shown(said['name'])}: {shown(said['description'])}\n"
    size = f"width and height are multiples of {said['size_multiple']}\n"
    tables = [aligned(columns[name], some, shown) for name, some in rows.items() if some]
    return "\n".join([head + size, *tables])


def _text(value: Any) -> str | None:
    return None if value is None else _cut(json.dumps(value, ensure_ascii=False))


def _cut(text: str) -> str:
    return text if len(text) <= _WIDE else text[: _WIDE - 1] + "…"


def finding(one: Mapping[str, Any]) -> str:
    """Give a finding of a check as a line for people."""
    node = f"node {one['node']} ({one['class']})" if "node" in one else ""
    where = ", ".join(part for part in (node, one.get("input", "")) if part)
    text = f"{one['severity']}: {where}{': ' if where else ''}{one['message']} [{one['what']}]"
    return f"{text} (hint: {one['hint']})" if one.get("hint") else text


def line(one: Mapping[str, Any]) -> str:
    """Give a line of an import's report for people."""
    if one["what"] == "note":
        return str(one["why"])
    node = f"{one['node']}.{one['input']} ({one['class']})"
    text = f"{node} = {_text(one['value'])}"
    if one["what"] == "found":
        return f"${{{one['placeholder']}}} ← {text}"
    return f"left: {text}{': ' + one['why'] if one.get('why') else ''}"
