"""What a server would find wrong with a filled graph, by its /object_info. Pure.

The rules are those of POST /prompt as recorded: inputs are coerced first, `step` is not enforced,
unknown inputs are ignored, and only what the outputs are made of is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import MissingModel, suggest
from . import check
from . import graph as graphs
from .check import UNKNOWN, Finding, at
from .graph import Graph, Link
from .object_info import MODEL_FILES, choices, other_spelling, there_as
from .template import Workflow, fill

Classes = Mapping[str, Any]
_TYPES: dict[str, type] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
_MOST_NAMES = 100  # to look for close ones
_ANY = "*"


def judged(flow: Workflow, given: Mapping[str, Any], classes: Classes) -> list[Finding]:
    """Give all that is found in a workflow, by its file and by a server; `given` fills it."""
    graph = fill(flow, check.values(flow, given))
    outputs = [node for node in graph if _is_output(graph, node, classes)]
    return [*check.findings(flow, given, outputs), *findings(graph, classes)]


def findings(graph: Graph, classes: Classes) -> Iterator[Finding]:
    """Yield what a server with these classes would refuse, drop or change."""
    for node in graph:
        kind = graphs.class_of(graph, node)
        if not classes.get(kind):
            said = f"Cannot execute because node {kind} does not exist."
            hint = f"update ComfyUI, or install the nodes that {kind} is of"
            yield at(graph, node, "error", "invalid_prompt", said, hint=hint)
    known = {node for node in graph if classes.get(graphs.class_of(graph, node))}
    outputs = [node for node in graph if _is_output(graph, node, classes)]
    reached = {*graphs.upstream(graph, outputs)}
    if not outputs and len(known) == len(graph):
        yield Finding("error", "prompt_no_outputs", "Prompt has no outputs")
    for node in graph:
        if node in known & reached:
            yield from _of_node(graph, node, classes)


def _is_output(graph: Graph, node: str, classes: Classes) -> bool:
    return bool((classes.get(graphs.class_of(graph, node)) or {}).get("output_node"))


def lacking(found: Finding) -> bool:
    """Whether it is the server that lacks something, not the workflow that is wrong."""
    return found.file is not None or found.what == "invalid_prompt"


def lack(found: Finding) -> str:
    """Say in a few words what a server lacks or refuses."""
    if found.what == "invalid_prompt":
        return f"no node {found.kind}"
    if found.file:
        return f"no {found.file} for {found.input} of node {found.node} ({found.kind})"
    return f"{found.where()}: {found.message}"


def _of_node(graph: Graph, node: str, classes: Classes) -> Iterator[Finding]:
    asked = classes[graphs.class_of(graph, node)].get("input") or {}
    required, optional = asked.get("required") or {}, asked.get("optional") or {}
    inputs = graph[node]["inputs"]
    for name in required:
        if name not in inputs:
            said = "Required input is missing"
            yield at(graph, node, "error", "required_input_missing", said, input=name)
    specs = {**required, **optional}
    for name, value in inputs.items():
        if name not in specs:
            said = f"{graphs.class_of(graph, node)} has no such input; the server ignores it"
            hint = suggest(name, specs) if len(inputs) <= _MOST_NAMES else None
            yield at(graph, node, "note", "unknown_input", said, input=name, hint=hint)
        elif isinstance(value, list):
            if found := graphs.link(value):
                yield from _of_link(graph, node, name, found, specs[name], classes)
        else:
            yield from _of_value(graph, node, name, specs[name])


def _of_link(
    graph: Graph, node: str, name: str, source: Link, spec: Any, classes: Classes
) -> Iterator[Finding]:
    """Compare the type that a link brings with the one that is wanted."""
    if source.node not in graph:
        return
    outputs = (classes.get(graphs.class_of(graph, source.node)) or {}).get("output")
    if not isinstance(outputs, list):
        return
    if source.slot >= len(outputs):
        own = _is_output(graph, node, classes)
        what = "exception_during_validation" if own else "exception_during_inner_validation"
        many = f"{graphs.named(graph, source.node)} has {len(outputs)} outputs"
        said = f"links to output {source.slot}: {many}, counted from 0"
        yield at(graph, node, "error", what, said, input=name)
        return
    got, wanted = _type(outputs[source.slot]), _type(_kind(spec))
    if not _fits(got, wanted):
        said = f"received_type({got}) mismatch input_type({wanted})"
        yield at(graph, node, "error", "return_type_mismatch", said, input=name)


def _kind(spec: Any) -> Any:
    return spec[0] if isinstance(spec, list) and spec else _ANY


def _rules(spec: Any) -> Mapping[str, Any]:
    rules = spec[1] if isinstance(spec, list) and len(spec) > 1 else {}
    return rules if isinstance(rules, dict) else {}


def _type(kind: Any) -> str:
    """Give a type as text; a list of choices is a COMBO."""
    return "COMBO" if isinstance(kind, list) else str(kind)


def _fits(got: str, wanted: str) -> bool:
    """Whether a type goes into an input; each may be several with commas between, or any.

    Types like COMFY_MATCHTYPE_V3 are whatever is linked.
    """
    one, other = ({part.strip() for part in text.split(",")} for text in (got, wanted))
    return bool(one & other) or _ANY in one | other or "MATCHTYPE" in got + wanted


def _of_value(graph: Graph, node: str, name: str, spec: Any) -> Iterator[Finding]:
    """Judge a value as the server does: coerced, then its range, then the choices."""
    value, kind, rules = graph[node]["inputs"][name], _type(_kind(spec)), _rules(spec)
    if isinstance(value, dict) and "__value__" in value:
        value = value["__value__"]
    if value is UNKNOWN:
        return
    try:
        taken = _TYPES[kind](value) if kind in _TYPES else value
    except (ValueError, TypeError, OverflowError) as fault:
        said = f"Failed to convert an input value to a {kind} value: {_short(value)}, {fault}"
        yield at(graph, node, "error", "invalid_input_type", said, input=name)
        return
    if kind in _TYPES and taken != value and value == value:  # noqa: PLR0124 - nan is no coercion
        said = f"{_short(value)} is taken as {_short(taken)}"
        yield at(graph, node, "note", "coerced", said, input=name)
    yield from _in_range(graph, node, name, taken, rules)
    offered = choices(spec)
    if offered is not None and taken not in offered:
        yield _not_offered(graph, node, name, taken, offered, rules)
    if kind not in (*_TYPES, "COMBO", _ANY) and isinstance(value, (str, int, float)):
        said = f"{_short(value)} stands where a {kind} link belongs; it fails when it is run"
        yield at(graph, node, "warning", "not_linked", said, input=name)


def _in_range(
    graph: Graph, node: str, name: str, value: Any, rules: Mapping[str, Any]
) -> Iterator[Finding]:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    low, high, step = (rules.get(one) for one in ("min", "max", "step"))
    if isinstance(low, (int, float)) and value < low:
        said = f"Value {value} smaller than min of {low}"
        yield at(graph, node, "error", "value_smaller_than_min", said, input=name)
    elif isinstance(high, (int, float)) and value > high:
        said = f"Value {value} bigger than max of {high}"
        yield at(graph, node, "error", "value_bigger_than_max", said, input=name)
    elif isinstance(value, int) and isinstance(step, int) and step > 1 and value % step:
        said = f"{value} is no multiple of {step}; the server takes it, and makes another size"
        yield at(graph, node, "note", "step_not_met", said, input=name)


def _not_offered(
    graph: Graph, node: str, name: str, value: Any, offered: list[Any], rules: Mapping[str, Any]
) -> Finding:
    """Say that a value is none of the choices: a model file, an uploaded picture, or a word."""
    said = f"Value not in list: {_short(value)} not in (list of length {len(offered)})"
    if any(key.endswith("_upload") for key in rules):  # pictures in subfolders are not listed
        return at(graph, node, "warning", "custom_validation_failed", said, input=name)
    if isinstance(value, str) and value.endswith(MODEL_FILES):
        if other := other_spelling(value, offered):
            said = f"Value not in list: {there_as(value, other)}"
            return at(graph, node, "error", "value_not_in_list", said, input=name)
        said = f"Value not in list: {_short(value)} is not installed"
        more = {"hint": MissingModel.hint, "file": value}
        return at(graph, node, "error", "value_not_in_list", said, input=name, **more)
    hint = suggest(str(value)[:100], [str(one) for one in offered])
    return at(graph, node, "error", "value_not_in_list", said, input=name, hint=hint)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
