"""What has been found in an export of ComfyUI so far, and what it leaves open. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...errors import WorkflowFault
from .. import graph as graphs
from ..graph import Graph
from . import trace
from .trace import Spot


class Told(NamedTuple):
    """What the person who imports says where the export leaves it open."""

    output: str | None = None
    samplers: tuple[str, ...] = ()
    prompt: str | None = None
    negative: str | None = None
    latent: str | None = None


@dataclass(slots=True)
class Import:
    """What has been found in an export so far."""

    name: str
    graph: Graph
    marks: dict[Spot, str] = field(default_factory=dict)  # the placeholder of each spot
    defaults: dict[str, Any] = field(default_factory=dict)
    models: list[dict[str, str]] = field(default_factory=list)
    size_multiple: int = 8
    whys: dict[Spot, str] = field(default_factory=dict)  # what was left, and a reason to say so
    notes: list[str] = field(default_factory=list)
    questions: list[tuple[str, str]] = field(default_factory=list)  # each with the flags

    def mark(self, placeholder: str, spots: Iterable[Spot]) -> None:
        """Put a placeholder where its first value stands; another value is left, and said."""
        for spot in spots:
            held = trace.value(self.graph, spot)
            if (other := self.marks.get(spot, placeholder)) != placeholder:
                where = graphs.named(self.graph, spot.node)
                self.notes.append(f"{where} gives {other}, and {placeholder} by it")
                continue
            wanted = self.defaults.setdefault(placeholder, held)
            if wanted == held and type(wanted) is type(held):
                self.marks[spot] = placeholder
            else:
                self.whys[spot] = f"${{{placeholder}}} is {short(wanted)}"

    def sited(self, node: str, name: str, kinds: Any) -> list[Spot]:
        """Give where an input's value stands; [] and a reason when it cannot be told."""
        spot = Spot(node, name)
        held = trace.value(self.graph, spot)
        found = trace.origin(self.graph, spot, kinds)
        if found is None and held is not None:
            source = graphs.link(held)
            self.whys[spot] = (
                f"from {graphs.named(self.graph, source.node)}, which holds more than a value"
                if source
                else f"{short(held)} is no value for it"
            )
        return [found] if found else []

    def ask(self) -> None:
        """Raise what is not clear so far, all of it, with the flags that answer."""
        if self.questions:
            texts, flags = zip(*self.questions, strict=True)
            message, hint = "; ".join(texts), "say which: " + ", ".join(flags)
            raise self.refused(message, code="ambiguous_workflow", hint=hint)

    def refused(self, why: str, **more: Any) -> WorkflowFault:
        """Give the fault that names the export."""
        return WorkflowFault(f"export {self.name}: {why}", **more)


def short(held: Any) -> str:
    """Give a value as JSON, cut where it is long."""
    text = json.dumps(held, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"
