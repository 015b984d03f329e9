"""From the picture back to what it is made of: samplers, texts, sizes. Pure.

Everything goes by the names of inputs in workflow_roles.py, along the links of a graph that has
been found sound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .. import graph as graphs
from ..graph import Graph, Link
from . import node_inputs as roles

_MOST_HOPS = 20  # from an input to its value


class Spot(NamedTuple):
    """An input of a node."""

    node: str
    input: str


@dataclass(slots=True)
class Texts:
    """Where the texts of a conditioning stand, and what could not be followed."""

    spots: dict[Spot, None] = field(default_factory=dict)
    lost: dict[Spot, None] = field(default_factory=dict)  # linked to what is no plain text
    zeroed: list[str] = field(default_factory=list)  # ConditioningZeroOut on the way
    passed: list[str] = field(default_factory=list)  # nodes on the way, encoders too
    ends: list[str] = field(default_factory=list)  # that lead no further and have no known text


def value(graph: Graph, spot: Spot) -> Any:
    """Give what stands in a spot."""
    return graph[spot.node]["inputs"].get(spot.input)


def samplers(graph: Graph, outputs: Iterable[str]) -> list[str]:
    """Give the samplers that outputs are made by, the nearest first."""
    return [node for node in graphs.upstream(graph, outputs) if _is_sampler(graph, node)]


def _is_sampler(graph: Graph, node: str) -> bool:
    inputs, linked = graph[node]["inputs"], {name for name, _ in graphs.links(graph, node)}
    steered = "positive" in linked or "guider" in linked
    samples = "latent_image" in linked or "sampler_name" in inputs
    return steered and samples


def controls(graph: Graph, sampler: str) -> list[str]:
    """Give a sampler and the nodes that say how it samples: noise, guider, schedule."""
    found = dict.fromkeys([sampler])
    waiting = deque(found)
    while waiting:
        for name, source in graphs.links(graph, waiting.popleft()):
            if name in roles.CONTROLLED_BY and source.node not in found:
                found[source.node] = None
                waiting.append(source.node)
    return [*found]


def origin(graph: Graph, spot: Spot, kinds: type | tuple[type, ...]) -> Spot | None:
    """Give where an input's value stands: there, or in a node that is only a value; None if not."""
    for _ in range(_MOST_HOPS):
        held = value(graph, spot)
        if not isinstance(held, list):
            return spot if isinstance(held, kinds) and not isinstance(held, bool) else None
        source = graphs.link(held)
        if source is None:
            return None
        inputs = graph[source.node]["inputs"]
        if len(inputs) == 1 and isinstance(next(iter(inputs.values())), list):
            names = [*inputs]  # passes on what it gets
        elif any(isinstance(one, list) for one in inputs.values()):
            return None
        else:
            names = [name for name in inputs if name in roles.VALUES]
        if len(names) != 1:
            return None
        spot = Spot(source.node, names[0])
    return None


def conditioning(graph: Graph, samplers: Iterable[str], names: Iterable[str]) -> list[Link]:
    """Give the links by which samplers, or their guiders, get one side of the conditioning."""
    found: dict[Link, None] = {}
    for sampler in samplers:
        for node in controls(graph, sampler):
            for name, source in graphs.links(graph, node):
                if name in names:
                    found[source] = None
    return [*found]


def texts(graph: Graph, starts: Iterable[Link]) -> Texts:
    """Follow a conditioning back to the texts that it encodes."""
    found, waiting = Texts(), deque(starts)
    seen = set(waiting)
    while waiting:
        at = waiting.popleft()
        found.passed.append(at.node)
        if graphs.class_of(graph, at.node) == roles.ZEROED:
            found.zeroed.append(at.node)
            continue
        names = _texts_of(graph, at.node)
        onward = [*_onward(graph, at, {*roles.NO_TEXT, *names})]
        if not names and not onward:
            found.ends.append(at.node)
        for name in names:
            spot = Spot(at.node, name)
            stands = origin(graph, spot, str)
            (found.spots if stands else found.lost)[stands or spot] = None
        for source in onward:
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    return found


def _texts_of(graph: Graph, node: str) -> list[str]:
    """Give the inputs of a text encoder that hold a text; none when it is no encoder."""
    inputs = graph[node]["inputs"]
    if "clip" not in inputs and "TextEncode" not in graphs.class_of(graph, node):
        return []
    return [name for name in roles.TEXTS if isinstance(inputs.get(name), (str, list))]


def _onward(graph: Graph, at: Link, others: Container[str]) -> Iterator[Link]:
    """Yield where the conditioning of an output comes from; by `others` something else comes."""
    linked = dict(graphs.links(graph, at.node))
    if {"positive", "negative"} <= linked.keys() and at.slot <= 1:
        yield linked["negative" if at.slot else "positive"]
        return
    named = [name for name in linked if name.startswith("conditioning")]
    for name in named or [name for name in linked if name not in others]:
        yield linked[name]


def latents(graph: Graph, samplers: Iterable[str]) -> tuple[list[str], list[str]]:
    """Give the nodes that a sampler's latent begins with: those with a size, and the others."""
    found: dict[str, bool] = {}
    waiting = deque(
        source.node
        for sampler in samplers
        for name, source in graphs.links(graph, sampler)
        if name == "latent_image"
    )
    seen = set(waiting)
    while waiting:
        node = waiting.popleft()
        linked = graphs.links(graph, node)
        on = dict.fromkeys(source.node for name, source in linked if name not in roles.NO_LATENT)
        if not on:
            found[node] = {"width", "height"} <= graph[node]["inputs"].keys()
        waiting.extend(one for one in on if one not in seen)
        seen.update(on)
    return [node for node in found if found[node]], [node for node in found if not found[node]]
