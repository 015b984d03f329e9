"""What is wrong with a workflow, as far as the file tells: links, placeholders, defaults. Pure.

What a finding is called (`what`) is ComfyUI's own word for it wherever it has one, so that a check
says beforehand what POST /prompt would answer. ComfyUI looks only at what its outputs are made of;
faults elsewhere are warnings here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import suggest
from . import graph as graphs
from .graph import Graph
from .template import FIELDS, Workflow, fill

ALWAYS = ("prompt", "seed")  # what every request has a value for
_ASKED = ("negative_prompt", *FIELDS)  # what some have
UNKNOWN = ...  # the value of a placeholder that nobody gives: nothing is said of it
_PARTIAL = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_MOST_NAMES = 100  # to look for a close one among
_SHAPE = "Bad linked input, must be a length-2 list of [node_id, slot_index]"


class Finding(NamedTuple):
    """What was found: how bad (error, warning, note), what, where, and what cures it.

    `file` is the model file that a server lacks.
    """

    severity: str
    what: str
    message: str
    node: str | None = None
    kind: str | None = None
    input: str | None = None
    hint: str | None = None
    file: str | None = None

    def as_record(self) -> dict[str, Any]:
        """Give it as a line of JSON; its class is called `class`."""
        found = self._asdict()
        found["class"] = found.pop("kind")
        return {name: value for name, value in found.items() if value is not None}

    def where(self) -> str:
        """Say for people where it is."""
        parts = [f"node {self.node} ({self.kind})" if self.node else "", self.input or ""]
        return ", ".join(part for part in parts if part)


def findings(
    flow: Workflow, given: Mapping[str, Any] = {}, outputs: Iterable[str] | None = None
) -> list[Finding]:
    """Give all that is found in a workflow without a server.

    `given` fills placeholders, as a backend does; `outputs` are the nodes that are run for their
    own sake, where that is known better than by their classes' names.
    """
    graph = fill(flow, values(flow, given))
    return [*of_graph(graph, outputs), *_placeholders(flow, given), *_partial(flow.graph)]


def of_graph(graph: Graph, outputs: Iterable[str] | None = None) -> Iterator[Finding]:
    """Yield what is found about a graph's links, cycles and outputs."""
    reached = {*graphs.upstream(graph, graphs.kept(graph) if outputs is None else outputs)}
    for node in graph:
        found = _links(graph, node)
        yield from found if node in reached else (one._replace(severity="warning") for one in found)
    if loop := graphs.cycle(graph):
        way = " ← ".join([*loop[:8], *["…"][: len(loop) > 8], loop[0]])
        severity = "error" if reached & {*loop} else "warning"
        yield at(graph, loop[0], severity, "dependency_cycle", f"made of itself: {way}")
    for node in graph:
        if node not in reached:
            yield at(
                graph, node, "note", "not_reached", "nothing that is saved or shown is made of it"
            )


def at(graph: Graph, node: str, *said: Any, **more: Any) -> Finding:
    """Make a finding about a node."""
    return Finding(*said, **{"node": node, "kind": graphs.class_of(graph, node), **more})


def _links(graph: Graph, node: str) -> Iterator[Finding]:
    """Yield the links of a node that have no link's shape, or lead to no node."""
    raised = (
        "exception_during_validation"
        if node in graphs.kept({node: graph[node]})
        else "exception_during_inner_validation"
    )
    for name, value in graph[node]["inputs"].items():
        if not isinstance(value, list) or UNKNOWN in value:
            continue
        found = graphs.link(value)
        if len(value) != 2:
            yield at(graph, node, "error", "bad_linked_input", _SHAPE, input=name)
        elif found is None:
            hint = f'["{value[0]}", {value[1]}]' if type(value[0]) is int else None
            said = "a link is [node id, slot]: the id a string, the slot a number from 0"
            yield at(graph, node, "error", raised, said, input=name, hint=hint)
        elif found.node not in graph:
            said = f"links to node {found.node[:40]!r}, which is not there"
            yield at(graph, node, "error", raised, said, input=name)


def _placeholders(flow: Workflow, given: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield placeholders that nothing fills, and what imagen needs that has no placeholder."""
    places = flow.places()
    has = {name for name, value in flow.defaults.items() if value is not None} | {*given, *ALWAYS}
    for name, (first, *_) in places.items():
        if name in has:
            continue
        said, what = f"${{{name}}} has no value", "no_value"
        if name in _ASKED:
            hint = f"a default in _imagen.defaults; else each request must give {name}"
            yield at(flow.graph, first[0], "warning", what, said, input=first[1], hint=hint)
            continue
        close = suggest(name, [*ALWAYS, *_ASKED, *flow.defaults][:_MOST_NAMES]) or ""
        hint = "a default in _imagen.defaults, or --backend with the instance that gives it"
        hint = f"{close} Else {hint}" if close.startswith("did you mean") else hint
        yield at(flow.graph, first[0], "error", what, said, input=first[1], hint=hint)
    for name, why in _WANTED.items():
        if name not in places:
            yield Finding("warning", f"no_{name}", f"no ${{{name}}}: {why}")
    for name in flow.defaults:
        if name not in places:
            yield Finding("note", "unused_default", f"_imagen.defaults.{name} fills no placeholder")


_WANTED = {
    "prompt": "every request would make the same image",
    "seed": "every image of a prompt would be the same",
}


def _partial(graph: Graph) -> Iterator[Finding]:
    for node in graph:
        for name, value in graphs.literals(graph, node):
            if not isinstance(value, str) or _PARTIAL.fullmatch(value):
                continue
            if hole := _PARTIAL.search(value):
                said = f"{hole[0]} stands in a longer text, so it stays as it is"
                hint = "a placeholder is the whole value"
                yield at(graph, node, "warning", "partial_placeholder", said, input=name, hint=hint)


def values(flow: Workflow, given: Mapping[str, Any]) -> dict[str, Any]:
    """Give a value for each placeholder: stand-ins for what each request has, and UNKNOWN."""
    found = {**dict.fromkeys(flow.places(), UNKNOWN), "prompt": "a cat", "seed": 0}
    defaults = {name: value for name, value in flow.defaults.items() if value is not None}
    return {**found, **defaults, **given}


def counted(found: Iterable[Finding]) -> str:
    """Sum findings up for people.

    >>> counted([Finding("error", "x", ""), Finding("note", "y", ""), Finding("note", "y", "")])
    '1 error, 2 notes'
    """
    all_of = [one.severity for one in found]
    counts = [(all_of.count(name), name) for name in ("error", "warning", "note")]
    return ", ".join(f"{many} {name}{'s' * (many > 1)}" for many, name in counts if many)
