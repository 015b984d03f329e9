"""ComfyUI workflows as data: load, inspect, fill. Pure after load.

A workflow is an API-format graph: node id -> {class_type, inputs}. A value that is exactly
`"${name}"` is a placeholder and becomes the value of that name, typed as the value is; anything
else, a longer string with a placeholder in it too, stays as it is. The extra top-level key
`_imagen` says what the workflow is, its defaults, and the model files it needs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..config.settings import check, expanded
from ..disk import open_named
from ..errors import BadLine, Refused, WorkflowFault, suggest
from ..records.record import REQUEST, checked, finite

BUNDLED = Path(__file__).parents[1] / "data" / "workflows"
MAX_BYTES = 16 * 2**20
MAX_DEPTH = 100  # of what stands in one another
FIELDS = ("width", "height", "steps", "cfg", "sampler", "scheduler")  # of a request
_WHOLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

Graph = dict[str, dict[str, Any]]


class Model(NamedTuple):
    """A model file that a workflow names, ComfyUI's folder for it, and what is known of the file.

    `size` is in bytes; `accept` is the page where its licence must be accepted, where it must.
    """

    file: str
    folder: str = ""
    sources: tuple[str, ...] = ()
    size: int | None = None
    sha256: str | None = None
    licence: str = ""
    accept: str = ""


@dataclass(slots=True)
class Workflow:
    """A workflow: its name, its graph with placeholders, and what `_imagen` says of it.

    `named` is what a command line calls it: a bundled name, or the path of its file.
    """

    name: str
    graph: Graph
    description: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)
    size_multiple: int = 8
    models: list[dict[str, Any]] = field(default_factory=list)
    named: str = ""

    def placeholders(self) -> set[str]:
        """Give the names of all placeholders in the graph."""
        return {*self.places()}

    def places(self) -> dict[str, list[tuple[str, str]]]:
        """Give for each placeholder the nodes and inputs where it stands."""
        found: dict[str, list[tuple[str, str]]] = {}
        for node, wanted, name in _holes(self.graph):
            found.setdefault(name, []).append((node, wanted))
        return found

    def nodes(self, class_type: str) -> list[str]:
        """Give the ids of the nodes of a class."""
        return [key for key, node in self.graph.items() if node["class_type"] == class_type]

    def needs(self, values: Mapping[str, Any]) -> list[Model]:
        """Give the model files that it needs with these values, placeholders filled in.

        What `_imagen` knows of a file it knows of the default one: of another only the folder.
        """
        return [_needed(model, self.defaults, values) for model in self.models]

    def cure(self, missing: Iterable[str], given: Mapping[str, Any]) -> str | None:
        """Say what brings missing model files to where ComfyUI runs; None when nobody knows.

        `given` are the placeholders that have another value than the default.
        """
        needed = {model.file: model for model in self.needs(given) if model.file in missing}
        names = [hole[1] for model in self.models if (hole := _WHOLE.fullmatch(model["file"]))]
        chosen = [
            name for name in names if given.get(name, None) not in (None, self.defaults.get(name))
        ]
        words = [
            "imagen-models",
            "fetch",
            self.named,
            *(f"--option={n}={given[n]}" for n in chosen),
        ]
        says = [
            f"no source is known for {model.file}, which goes into models/{model.folder}"
            for model in needed.values()
            if not model.sources
        ]
        if any(model.sources for model in needed.values()):
            says.append(f"where ComfyUI runs: {shlex.join(words)}")
        return "; ".join(says) or None


def _needed(about: Mapping[str, Any], defaults: Mapping[str, Any], values: Any) -> Model:
    hole = _WHOLE.fullmatch(about["file"])
    usual = defaults.get(hole[1]) if hole else about["file"]
    name = values.get(hole[1], usual) if hole else usual
    folder = about.get("folder", "")
    if name is None or name != usual:
        return Model(about["file"] if name is None else str(name), folder)
    source = about.get("source", ())
    sources = (source,) if isinstance(source, str) else tuple(source)
    known = {key: about[key] for key in ("size", "licence", "accept") if key in about}
    sha256 = about["sha256"].lower() if "sha256" in about else None
    return Model(str(name), folder, sources, sha256=sha256, **known)


def bundled() -> list[str]:
    """Give the names of the workflows that come with imagen."""
    return sorted(path.stem for path in BUNDLED.glob("*.json"))


def is_path(name: str) -> bool:
    """Whether a workflow is named by the path of a file."""
    return name.endswith(".json") or "/" in name


def path_of(name: str, folder: Path | None = None) -> Path:
    """Give the file of a bundled workflow by name, or of one by path (relative to `folder`)."""
    if is_path(name):
        return (folder or Path()) / expanded(name)
    if name not in bundled():
        hint = _file_meant(name, folder or Path()) or suggest(name, bundled())
        raise WorkflowFault(f"no workflow {name!r}", code="unknown_workflow", hint=hint)
    return BUNDLED / f"{name}.json"


def _file_meant(name: str, folder: Path) -> str | None:
    """Say how a file is named, if there is one that may be meant."""
    if _is_file(folder / f"{name}.json"):
        return f"a file is named with its .json: {name}.json"
    if not _is_file(folder / name):
        return None
    return _OF_PICTURE if name.lower().endswith(".png") else f"a file is named by a path: ./{name}"


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - Path's fails for a name that no disk can hold


_OF_PICTURE = "it is no JSON file: imagen-workflow import reads the graph in a picture of ComfyUI"


def load(name: str, folder: Path | None = None) -> Workflow:
    """Load a bundled workflow by name, or a file by path (relative to `folder`)."""
    path = path_of(name, folder)
    try:
        with open_named(path) as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as fault:
        raise WorkflowFault(f"cannot read workflow {path}: {fault.strerror}") from None
    found = parse(name_of(path), data)
    found.named = str(path.absolute()) if is_path(name) else name
    return found


def name_of(path: Path) -> str:
    """Give the name of a workflow by its file; what is no UTF-8 in it is a ?."""
    return path.stem.encode(errors="replace").decode()


def parse(name: str, data: bytes) -> Workflow:
    """Read a workflow from its bytes; WorkflowFault says what is no API-format graph about it."""
    tree = read(name, data)
    about = tree.pop("_imagen", {})
    check_graph(name, tree)
    return Workflow(name, tree, **_checked_about(name, about))


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def read(name: str, data: bytes, constant: Callable[[str], float] = _no_constant) -> dict[str, Any]:
    """Read the JSON object of a workflow's file; WorkflowFault when it is none, or the editor's.

    `constant` gives the value of NaN and the infinities.
    """
    if data.startswith(b"\x89PNG"):
        raise WorkflowFault(f"workflow {name} is a PNG", hint=_OF_PICTURE)
    if len(data) > MAX_BYTES:
        raise WorkflowFault(f"workflow {name}: larger than {MAX_BYTES // 2**20} MiB")
    try:
        tree = json.loads(
            data, parse_float=finite, parse_constant=constant, object_pairs_hook=_each_once
        )
    except BadLine as fault:
        raise WorkflowFault(f"workflow {name}: {fault.message}") from None
    except UnicodeDecodeError:
        raise WorkflowFault(f"workflow {name}: not JSON: no text in UTF-8") from None
    except (ValueError, RecursionError) as fault:
        raise WorkflowFault(f"workflow {name}: not JSON: {fault}") from None
    if isinstance(tree, dict) and isinstance(tree.get("nodes"), list):
        raise WorkflowFault(
            f"workflow {name} is a UI-format export; an API-format one is needed",
            hint="in ComfyUI: Workflow, Export (API)",
        )
    if not isinstance(tree, dict):
        raise WorkflowFault(f"workflow {name}: not an object of nodes")
    if _is_deep(tree):
        raise WorkflowFault(f"workflow {name}: not JSON of a workflow: nested too deep")
    return tree


def _is_deep(tree: Any) -> bool:
    level = [tree]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, (list, dict))
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; a key that stands twice would hide a node or an input."""
    made = dict(pairs)
    if len(made) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{twice!r} stands twice in an object")
    return made


def check_graph(name: str, graph: Any) -> None:
    """Refuse what is no graph of nodes that saves an image."""
    for key, node in graph.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise WorkflowFault(f"workflow {name}: node {key} has no class_type")
        if not isinstance(node.get("inputs"), dict):
            raise WorkflowFault(f"workflow {name}: node {key} has no inputs")
    if not any(node["class_type"] == "SaveImage" for node in graph.values()):
        raise WorkflowFault(f"workflow {name} has no SaveImage node, so nothing would come of it")


def _checked_about(name: str, about: Any) -> dict[str, Any]:
    kinds: dict[str, type] = {
        "description": str,
        "defaults": dict,
        "size_multiple": int,
        "models": list,
    }
    for key, value in about.items() if isinstance(about, dict) else [("_imagen", about)]:
        if key not in kinds:
            raise WorkflowFault(
                f"workflow {name}: _imagen.{key} is unknown", hint=suggest(key, kinds)
            )
        if not isinstance(value, kinds[key]) or (isinstance(value, int) and not 1 <= value <= 1024):
            raise WorkflowFault(f"workflow {name}: _imagen.{key} must be a {kinds[key].__name__}")
    for model in about.get("models", []):
        for fault in _model_faults(model):
            raise WorkflowFault(f"workflow {name}: each of _imagen.models {fault}")
    defaults = {n: v for n, v in about.get("defaults", {}).items() if n in REQUEST}
    try:
        checked({"prompt": "sound?", **defaults})
    except Refused as fault:
        raise WorkflowFault(f"workflow {name}: _imagen.defaults: {fault.message}") from None
    return about  # type: ignore[no-any-return]


def _model_faults(model: Any) -> Iterator[str]:
    """Yield what is wrong with one of the model files, as the end of a sentence."""
    if not isinstance(model, dict) or not isinstance(model.get("file"), str):
        yield "needs a file"
        return
    for key in model.keys() - _OF_MODEL.keys():
        yield f"has no {key!r} ({suggest(key, _OF_MODEL)})"
    for key in model.keys() & _OF_MODEL.keys():
        says, good = _OF_MODEL[key]
        if not good(model[key]):
            yield f"needs {says} for its {key}, not {str(model[key])[:80]!r}"


def is_inside(path: Any) -> bool:
    """Whether a text names a place below a folder, by names that hide and escape nothing."""
    return isinstance(path, str) and all(
        re.fullmatch(r"[^.\\\s/][^\\/]*", part) and part.isprintable() for part in path.split("/")
    )


def slashed(file: Any) -> Any:
    """Return a model file's name with its folders named by slashes: a Windows server's has \\."""
    return file.replace("\\", "/") if isinstance(file, str) else file


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and not list(check((), "url", value))


_OF_MODEL: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "file": ("a path inside its folder", lambda said: is_inside(slashed(said))),
    "folder": ("a folder inside models", is_inside),
    "source": (
        "an address, or a list of them,",
        lambda said: all(map(_is_url, said if isinstance(said, list) and said else [said])),
    ),
    "size": ("a number of bytes", lambda said: type(said) is int and 0 < said < 2**50),
    "sha256": (
        "64 hexadecimal digits",
        lambda said: isinstance(said, str) and bool(re.fullmatch("[0-9a-fA-F]{64}", said)),
    ),
    "licence": ("text", lambda said: isinstance(said, str)),
    "accept": ("the address of a page", _is_url),
}


def _holes(graph: Graph) -> Iterator[tuple[str, str, str]]:
    """Yield (node id, input, placeholder name) for every placeholder."""
    for key, node in graph.items():
        for wanted, value in node["inputs"].items():
            for text in _texts(value):
                if hole := _WHOLE.fullmatch(text):
                    yield key, wanted, hole[1]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def fill(workflow: Workflow, values: Mapping[str, Any]) -> Graph:
    """Give the graph with every placeholder filled, once; WorkflowFault when one has no value."""
    known = {**workflow.defaults, **values}
    for key, wanted, name in _holes(workflow.graph):
        if known.get(name) is None:
            where = f"node {key} ({workflow.graph[key]['class_type']}), {wanted}"
            hint = f"--option {name}=…, or {name}: in the backend's configuration"
            close = suggest(name, known) or ""
            if close.startswith("did you mean"):
                hint = f"{close} or give it: {hint}"
            message = f"workflow {workflow.name}: ${{{name}}} has no value: {where}"
            raise WorkflowFault(message, hint=hint)
    return {
        key: {
            **node,
            "inputs": {wanted: _filled(value, known) for wanted, value in node["inputs"].items()},
        }
        for key, node in workflow.graph.items()
    }


def _filled(value: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(value, str) and (hole := _WHOLE.fullmatch(value)):
        return known[hole[1]]
    if isinstance(value, list):
        return [_filled(one, known) for one in value]
    if isinstance(value, dict):
        return {key: _filled(one, known) for key, one in value.items()}
    return value
