"""How many images a filled graph makes: traced back from the nodes that save them. Pure.

The rules were counted on real runs. A number that depends on a class
without a rule, on a file or on another node's output is not known, and said to be so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import graph as graphs
from .graph import Graph

SAVES = "SaveImage"  # the class whose images are delivered


class Batch(NamedTuple):
    """The images, or latents, of an output: how many; `split` when they are a list of batches."""

    size: int
    split: bool = False


Batches = Mapping[str, Batch | None]
_ONE_FILE = ("SaveAnimatedWEBP", "SaveAnimatedPNG")  # all of a batch in one file
_SAVE_EACH = (SAVES, "PreviewImage")
_BATCH_SIZE = (
    *("EmptyImage", "EmptyLatentImage", "EmptySD3LatentImage", "EmptyFlux2LatentImage"),
    *("EmptyHunyuanImageLatent", "EmptyChromaRadianceLatentImage"),
)
_ALWAYS_ONE = ("LoadImageMask", "SolidMask")
_SAME = {  # as many as come in by this input, also when they come as a list of batches
    **dict.fromkeys(
        ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"), "latent_image"
    ),
    **dict.fromkeys(
        ("VAEDecode", "VAEDecodeTiled", "SetLatentNoiseMask", "LatentUpscale", "LatentUpscaleBy"),
        "samples",
    ),
    **dict.fromkeys(
        (
            *("VAEEncode", "VAEEncodeForInpaint"),
            *("InpaintModelConditioning", "InstructPixToPixConditioning"),
        ),
        "pixels",
    ),
    **dict.fromkeys(
        (
            *("ImageScale", "ImageScaleBy", "ImageScaleToTotalPixels", "ImageUpscaleWithModel"),
            *("ImageInvert", "ImageSharpen", "ImageBlur", "Canny", "ImagePadForOutpaint"),
            *("ImageCrop", "FluxKontextImageScale", "ImageToMask"),
        ),
        "image",
    ),
    "MaskToImage": "mask",
    "ResizeImageMaskNode": "input",
}
_REPEATED = {"RepeatImageBatch": "image", "RepeatLatentBatch": "samples"}
_REBATCHED = {"RebatchImages": "images", "RebatchLatents": "latents"}
_JOINED = {"ImageBatch": ("image1", "image2"), "LatentBatch": ("samples1", "samples2")}
_JOINED_ALL = ("BatchImagesNode", "BatchLatentsNode")
_PART = {"ImageFromBatch": "image", "LatentFromBatch": "samples"}
_BOTH = ("ImageBlend", "ImageStitch")  # the one alone is used with each of the others
_MOST_HOPS = 20  # from a number's input to the node that holds it


def expected_images(graph: Graph) -> int | None:
    """Return how many images the SaveImage nodes deliver; None when that cannot be known."""
    batches = _batches(graph)
    saving = [node for node in graph if graphs.class_of(graph, node) == SAVES]
    sizes = [_images(graph, node, batches) for node in saving]
    return sum(size or 0 for size in sizes) if all(sizes) and sizes else None


def images_of(graph: Graph, node: str) -> int | None:
    """Return how many files one output node makes; None when that cannot be known."""
    return _images(graph, node, _batches(graph))


def _images(graph: Graph, node: str, batches: Batches) -> int | None:
    if graphs.class_of(graph, node) not in (*_ONE_FILE, *_SAVE_EACH):
        return None
    batch = _input_batch(graph, node, "images", batches)
    if batch is None or graphs.class_of(graph, node) in _SAVE_EACH:
        return batch and batch.size
    return None if batch.split else 1


def _batches(graph: Graph) -> Batches:
    """Work out the batch of every node, each after those that it is made of."""
    batches: dict[str, Batch | None] = {}
    for node in graphs.in_order(graph):
        batch = _batch_of(graph, node, batches)
        batches[node] = batch if batch and batch.size > 0 else None
    return batches


def _batch_of(graph: Graph, node: str, batches: Batches) -> Batch | None:
    kind = graphs.class_of(graph, node)
    if kind in _BATCH_SIZE:
        size = _number(graph, node, "batch_size")
        return Batch(size) if size else None
    if kind in _ALWAYS_ONE:
        return Batch(1)
    if kind in _SAME:
        return _input_batch(graph, node, _SAME[kind], batches)
    for kinds, rule in _RULES.items():
        if kind in kinds:
            return rule(graph, node, batches)
    return None


def _input_batch(graph: Graph, node: str, name: str, batches: Batches) -> Batch | None:
    """Return the batch that comes in by a link."""
    source = graphs.link(graph[node]["inputs"].get(name))
    return batches.get(source.node) if source else None


def _whole(graph: Graph, node: str, name: str, batches: Batches) -> int | None:
    """Return the size of what comes in as one batch: of a list, each would be worked on alone."""
    batch = _input_batch(graph, node, name, batches)
    return None if batch is None or batch.split else batch.size


def _number(graph: Graph, node: str, name: str) -> int | None:
    """Return a number as the server takes it; None when it comes from what is no plain number."""
    value = graph[node]["inputs"].get(name)
    for _ in range(_MOST_HOPS):
        source = graphs.link(value)
        if source is None:
            break
        if source.node not in graph:
            return None
        kind, inputs = graphs.class_of(graph, source.node), graph[source.node]["inputs"]
        if kind == "PrimitiveInt":
            value = inputs.get("value")
        elif kind == "Reroute" and len(inputs) == 1:
            (value,) = inputs.values()
        else:
            return None
    try:
        return int(value) if isinstance(value, (int, float, str)) else None
    except (ValueError, OverflowError):
        return None


def _passed_on(graph: Graph, node: str, batches: Batches) -> Batch | None:
    links = [*graphs.links(graph, node)]
    return _input_batch(graph, node, links[0][0], batches) if len(links) == 1 else None


def _repeated(graph: Graph, node: str, batches: Batches) -> Batch | None:
    batch = _input_batch(graph, node, _REPEATED[graphs.class_of(graph, node)], batches)
    amount = _number(graph, node, "amount")
    return batch._replace(size=batch.size * amount) if batch and amount else None


def _rebatched(graph: Graph, node: str, batches: Batches) -> Batch | None:
    batch = _input_batch(graph, node, _REBATCHED[graphs.class_of(graph, node)], batches)
    size = _number(graph, node, "batch_size")
    return batch and batch._replace(split=size is None or size < batch.size)


def _joined(graph: Graph, node: str, batches: Batches) -> Batch | None:
    sizes = [_whole(graph, node, name, batches) for name in _JOINED[graphs.class_of(graph, node)]]
    return _sum(sizes)


def _joined_all(graph: Graph, node: str, batches: Batches) -> Batch | None:
    return _sum([_whole(graph, node, name, batches) for name, _ in graphs.links(graph, node)])


def _sum(sizes: list[int | None]) -> Batch | None:
    return Batch(sum(size or 0 for size in sizes)) if sizes and all(sizes) else None


def _part(graph: Graph, node: str, batches: Batches) -> Batch | None:
    size = _whole(graph, node, _PART[graphs.class_of(graph, node)], batches)
    start, length = (_number(graph, node, name) for name in ("batch_index", "length"))
    if size is None or start is None or length is None or start < 0:
        return None
    return Batch(min(length, size - min(start, size - 1)))


def _both(graph: Graph, node: str, batches: Batches) -> Batch | None:
    names = [name for name, _ in graphs.links(graph, node) if name in ("image1", "image2")]
    sizes = {_whole(graph, node, name, batches) for name in names} or {None}
    counts = {size for size in sizes if size}
    alike = len(counts) == 1 or (len(counts) == 2 and 1 in counts)
    return Batch(max(counts)) if alike and None not in sizes else None


def _composed(graph: Graph, node: str, batches: Batches) -> Batch | None:
    size = _whole(graph, node, "destination", batches)
    source = _whole(graph, node, "source", batches)
    return Batch(size) if size and source else None


def _switched(graph: Graph, node: str, batches: Batches) -> Batch | None:
    switch: Any = graph[node]["inputs"].get("switch")
    if not isinstance(switch, bool):
        return None
    return _input_batch(graph, node, "on_true" if switch else "on_false", batches)


_RULES: dict[tuple[str, ...], Callable[[Graph, str, Batches], Batch | None]] = {
    ("Reroute",): _passed_on,
    tuple(_REPEATED): _repeated,
    tuple(_REBATCHED): _rebatched,
    tuple(_JOINED): _joined,
    _JOINED_ALL: _joined_all,
    tuple(_PART): _part,
    _BOTH: _both,
    ("ImageCompositeMasked",): _composed,
    ("ComfySwitchNode",): _switched,
}
