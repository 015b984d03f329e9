"""What of an export is asked anew for each image: prompt, seed, size, models. Pure.

What an export leaves open (two samplers, two texts) is asked, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from ...errors import Refused, WorkflowFault
from ...records.record import checked
from .. import check, template
from .. import graph as graphs
from ..graph import Graph
from ..object_info import MODEL_FILES
from . import node_inputs, trace
from .draft import Import, Told, short
from .trace import Spot


def imported(name: str, graph: Graph, told: Told) -> Import:
    """Find what of an export is asked anew for each image; WorkflowFault when it is not clear."""
    _check_sound(name, graph)
    found = Import(name, graph)
    output = _output(found, told)
    found.ask()
    samplers = _samplers(found, told, output)
    found.ask()
    _find_texts(found, told, samplers)
    _find_size(found, told, samplers)
    _find_controls(found, samplers)
    found.ask()
    _find_models(found, output)
    _leave_what_no_request_holds(found)
    return found


def _check_sound(name: str, graph: Graph) -> None:
    """Refuse a graph that no server runs, or that has placeholders already."""
    flow = template.Workflow(name, graph)  # type: ignore[arg-type]
    if places := flow.places():
        hint = "it is a workflow already: imagen-workflow check"
        raise WorkflowFault(f"export {name} has placeholders: {', '.join(places)}", hint=hint)
    for one in check.of_graph(graph):
        if one.severity == "error":
            raise WorkflowFault(f"export {name}: {one.where()}: {one.message}", hint=one.hint)


def _output(found: Import, told: Told) -> str:
    graph = found.graph
    outputs = [node for node in graph if graphs.class_of(graph, node) == "SaveImage"]
    if told.output is not None:
        if len(outputs) > 1:
            found.notes.append(f"{len(outputs)} nodes save: each request makes that many images")
        return _among(found, "output node", told.output, outputs)
    if len(outputs) > 1:
        names = _list(found, outputs)
        found.questions.append((f"{len(outputs)} nodes save: {names}", "--output-node NODE"))
    return outputs[0]


def _samplers(found: Import, told: Told, output: str) -> list[str]:
    """Give the samplers whose inputs are asked for, and note those that are left."""
    known = trace.samplers(found.graph, [output])
    if not known:
        where = graphs.named(found.graph, output)
        hint = "docs/reference/backends.md says how to put placeholders in by hand"
        raise found.refused(f"no sampler leads to {where}", hint=hint)
    if told.samplers:
        chosen = [_among(found, "sampler", one, known) for one in dict.fromkeys(told.samplers)]
    else:
        chosen = known
        if len(known) > 1:
            text = f"the picture is made by {len(known)} samplers: {_list(found, known)}"
            flag = "--sampler NODE, once for each whose steps, seed and texts are asked for"
            found.questions.append((text, flag))
    for node in known:
        if node not in chosen:
            where = graphs.named(found.graph, node)
            found.notes.append(f"{where} is no --sampler: its seed, steps and texts are left")
    return chosen


def _among(found: Import, what: str, node: str, known: list[str]) -> str:
    if node not in known:
        hint = "it has " + _list(found, known) if known else None
        raise found.refused(f"no {what} {node[:40]!r}", hint=hint)
    return node


def _list(found: Import, nodes: Iterable[str]) -> str:
    names = [f"{node} ({graphs.class_of(found.graph, node)})" for node in nodes]
    return ", ".join([*names[:8], *["…"][: len(names) > 8]])


def _find_texts(found: Import, told: Told, samplers: list[str]) -> None:
    """Find prompt and negative prompt; a text that both sides are made of is no negative."""
    graph = found.graph
    sides = [
        trace.texts(graph, trace.conditioning(graph, samplers, names))
        for names in (node_inputs.POSITIVE, node_inputs.NEGATIVE)
    ]
    positive, negative = sides
    _find_text(found, "prompt", told.prompt, [*positive.spots], [*positive.lost])
    own = [spot for spot in negative.spots if spot not in positive.spots]
    lost = [spot for spot in negative.lost if spot not in positive.lost]
    _find_text(found, "negative_prompt", told.negative, own, lost)
    if not own and not told.negative:
        zeroed = f": {_list(found, negative.zeroed)}" if negative.zeroed else ""
        found.notes.append(f"no negative prompt{zeroed}")
    for node in dict.fromkeys([*positive.ends, *negative.ends]):
        where = graphs.named(graph, node)
        found.notes.append(f"{where} gives a text that is not known (--prompt, --negative)")
    for node in dict.fromkeys(node for side in sides for node in side.passed):
        spots = found.sited(node, node_inputs.GUIDANCE, (int, float))
        found.mark(node_inputs.GUIDANCE, spots)


def _find_text(
    found: Import, placeholder: str, told: str | None, spots: list[Spot], lost: list[Spot]
) -> None:
    """Mark the spots of one text: the only one there is, or the one that was named."""
    flag = {"prompt": "--prompt", "negative_prompt": "--negative"}[placeholder]
    values = {spot: trace.value(found.graph, spot) for spot in spots}
    if told is not None:
        named = _named_text(found, flag, told)
        spots = [named, *(spot for spot in spots if spot != named)]
        found.mark(placeholder, spots)
        return
    texts = {text for text in values.values() if text.strip()}
    unclear = [*(spots if len(texts) > 1 else []), *lost]
    if unclear or (placeholder == "prompt" and not spots):
        held = [short(trace.value(found.graph, spot)) for spot in unclear[:8]]
        places = zip(unclear, held, strict=False)
        names = ", ".join(f"{spot.node}.{spot.input} {text}" for spot, text in places)
        asked = f"the {placeholder.replace('_', ' ')} is not clear"
        question = f"{asked}: {names}" if names else f"{asked}: no text encoder was found"
        found.questions.append((question, f"{flag} NODE.INPUT"))
        return
    wanted = next(iter(texts), "")
    found.mark(placeholder, sorted(spots, key=lambda spot: values[spot] != wanted))


def _named_text(found: Import, flag: str, told: str) -> Spot:
    cuts = [Spot(told[:at], told[at + 1 :]) for at, one in enumerate(told) if one == "."]
    inputs = {one: found.graph[one.node]["inputs"] for one in cuts if one.node in found.graph}
    spot = next((one for one in inputs if one.input in inputs[one]), None)
    held = trace.value(found.graph, spot) if spot else None
    if spot is None or not isinstance(held, str):
        what = "links to another node" if isinstance(held, list) else "is no text of the export"
        raise found.refused(f"{flag} {told[:60]} {what}", hint="like 6.text")
    return spot


def _find_size(found: Import, told: Told, samplers: list[str]) -> None:
    graph = found.graph
    sized, others = trace.latents(graph, samplers)
    if told.latent is not None:
        sized = [_among(found, "latent with a size", told.latent, sized)]
    sizes = {_size(graph, node) for node in sized}
    if len(sizes) > 1:
        text = f"{len(sized)} latents of several sizes: {_list(found, sized)}"
        found.questions.append((text, "--latent NODE"))
        return
    if not sized:
        begins = f": the picture begins with {_list(found, others)}" if others else ""
        found.notes.append(f"the size is left{begins}")
    for node in sized:
        for name in ("width", "height"):
            found.mark(name, _of_its_own(found, node, name))
        found.mark("batch_size", found.sited(node, "batch_size", int))
    found.size_multiple = _multiple(found, sized)
    for node in graphs.upstream(graph, samplers):
        for name in node_inputs.SIZED.get(graphs.class_of(graph, node), ()):
            if (side := name.removeprefix("target_")) in found.defaults:
                found.mark(side, _of_its_own(found, node, name))


def _multiple(found: Import, sized: list[str]) -> int:
    """Give what sizes are multiples of, by the latents' classes, if the export's own size is."""
    sizes = [found.defaults[name] for name in ("width", "height") if name in found.defaults]
    known = node_inputs.MULTIPLES
    many = max((known.get(graphs.class_of(found.graph, node), 8) for node in sized), default=8)
    return 8 if any(size % many for size in sizes) else many


def _size(graph: Graph, node: str) -> tuple[str, ...]:
    """Give the size of a latent as text: numbers, or the links that they come by."""
    return tuple(
        str(trace.value(graph, trace.origin(graph, spot, int) or spot))
        for spot in (Spot(node, "width"), Spot(node, "height"))
    )


def _of_its_own(found: Import, node: str, name: str) -> list[Spot]:
    """Give where a side's value stands; none when one value is the other side's too."""
    spots = found.sited(node, name, int)
    side = name.removesuffix("width").removesuffix("height")
    other = f"{side}{'height' if name.endswith('width') else 'width'}"
    if spots == [trace.origin(found.graph, Spot(node, other), int)]:
        found.whys[spots[0]] = "one value for both width and height"
        return []
    return spots


def _find_controls(found: Import, samplers: list[str]) -> None:
    for sampler in samplers:
        for node in trace.controls(found.graph, sampler):
            inputs = found.graph[node]["inputs"]
            for name in (name for name in node_inputs.CONTROLS if name in inputs):
                placeholder = node_inputs.CONTROLS[name]
                if placeholder == "seed" and inputs.get("add_noise") in node_inputs.NOISE_OFF:
                    found.whys[Spot(node, name)] = "its noise is off"
                    continue
                found.mark(placeholder, found.sited(node, name, _KINDS.get(placeholder, int)))


_KINDS: dict[str, Any] = {"sampler": str, "scheduler": str, "cfg": (int, float)}


def _find_models(found: Import, output: str) -> None:
    """Give each model file a placeholder and its folder; one file that is loaded twice has one."""
    graph = found.graph
    given: dict[tuple[str, str], str] = {}
    counts: dict[str, int] = {}
    reached = {*graphs.upstream(graph, graphs.kept(graph)), output}
    for node in (node for node in graphs.in_order(graph) if node in reached):
        for name, held in graphs.literals(graph, node):
            if not isinstance(held, str) or not held.lower().endswith(MODEL_FILES):
                continue
            kind = graphs.class_of(graph, node)
            role = node_inputs.MODELS_OF.get((kind, name)) or node_inputs.MODELS.get(name)
            if role is None:
                found.whys[Spot(node, name)] = "a model file in an input that is not known"
                continue
            placeholder, folder = role
            if placeholder not in ("clip", "clip_vision") and placeholder.startswith("clip_"):
                placeholder = _encoder(held, placeholder)
            if (held, folder) not in given:
                counts[placeholder] = number = counts.get(placeholder, 0) + 1
                placeholder += f"_{number}" * (number > 1)
                given[held, folder] = placeholder
                found.models.append({"file": f"${{{placeholder}}}", "folder": folder})
            found.mark(given[held, folder], [Spot(node, name)])


def _encoder(file: str, otherwise: str) -> str:
    name = PurePosixPath(file.replace("\\", "/")).name.lower()
    known = node_inputs.ENCODERS.items()
    return next((placeholder for part, placeholder in known if part in name), otherwise)


def _leave_what_no_request_holds(found: Import) -> None:
    """Take placeholders back whose value no request may have; prompt and seed need no default."""
    for placeholder, held in [*found.defaults.items()]:
        if placeholder not in {*check.ALWAYS, "negative_prompt", *template.FIELDS}:
            continue
        try:
            checked({"prompt": "sound?", placeholder: held})
            continue
        except Refused as fault:
            why = fault.message
        del found.defaults[placeholder]
        if placeholder not in check.ALWAYS:
            for spot in [spot for spot, name in found.marks.items() if name == placeholder]:
                found.whys[spot] = why
                del found.marks[spot]
