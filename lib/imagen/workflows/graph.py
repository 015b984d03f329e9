"""ComfyUI graphs as graphs: links, what is made of what, order, cycles. Pure, and no recursion.

A graph is node id -> {class_type, inputs}. An input that is a list is a link: [node id, slot],
the id a string. What is no link of this shape, or leads to no node, leads nowhere here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

Graph = Mapping[str, Mapping[str, Any]]
_KEPT = ("Save", "Preview")  # how the classes begin whose nodes a server runs for their own sake


class Link(NamedTuple):
    """Where an input's value comes from: the node, and which of its outputs (from 0)."""

    node: str
    slot: int


def link(value: Any) -> Link | None:
    """Read an input as a link; None when it is none, or of another shape than the server's."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    node, slot = value
    if not isinstance(node, str) or type(slot) is not int or slot < 0:
        return None
    return Link(node, slot)


def links(graph: Graph, node: str) -> Iterator[tuple[str, Link]]:
    """Yield the inputs of a node that lead to another, with their links."""
    for name, value in graph[node]["inputs"].items():
        found = link(value)
        if found and found.node in graph:
            yield name, found


def literals(graph: Graph, node: str) -> Iterator[tuple[str, Any]]:
    """Yield the inputs of a node that hold a value of their own."""
    for name, value in graph[node]["inputs"].items():
        if not isinstance(value, list):
            yield name, value


def class_of(graph: Graph, node: str) -> str:
    """Give the class of a node."""
    return str(graph[node]["class_type"])


def named(graph: Graph, node: str) -> str:
    """Name a node for people: its id and its class."""
    return f"node {node} ({class_of(graph, node)})"


def kept(graph: Graph) -> list[str]:
    """Give the nodes that save or show something, as far as their classes tell without a server."""
    return [node for node in graph if class_of(graph, node).startswith(_KEPT)]


def upstream(graph: Graph, starts: Iterable[str]) -> list[str]:
    """Give nodes and all that they are made of, the nearest first."""
    found = dict.fromkeys(starts)
    waiting = deque(found)
    while waiting:
        for _, source in links(graph, waiting.popleft()):
            if source.node not in found:
                found[source.node] = None
                waiting.append(source.node)
    return [*found]


def in_order(graph: Graph) -> list[str]:
    """Give the nodes in an order of execution; those in a cycle, and behind one, are left out."""
    needs = {node: {source.node for _, source in links(graph, node)} for node in graph}
    users: dict[str, list[str]] = {node: [] for node in graph}
    for node, sources in needs.items():
        for source in sources:
            users[source].append(node)
    ready = deque(node for node, sources in needs.items() if not sources)
    left, order = {node: len(sources) for node, sources in needs.items()}, []
    while ready:
        order.append(ready.popleft())
        for user in users[order[-1]]:
            left[user] -= 1
            if not left[user]:
                ready.append(user)
    return order


def cycle(graph: Graph) -> list[str]:
    """Give the nodes of a cycle, each made of the next; none when there is no cycle."""
    stuck = {*graph} - {*in_order(graph)}
    at = next((node for node in graph if node in stuck), None)
    walked: dict[str, int] = {}
    while at is not None and at not in walked:
        walked[at] = len(walked)
        at = next(source.node for _, source in links(graph, at) if source.node in stuck)
    return [*walked][walked[at] :] if at is not None else []
