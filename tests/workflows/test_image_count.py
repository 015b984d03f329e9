"""How many images a graph makes: as counted on a real server, and None where it cannot be known."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.workflows.image_count import expected_images, images_of
from servers.comfyui import DATA

COUNTED: dict[str, dict[str, int]] = json.loads((DATA / "image_counts.json").read_text())
Graph = dict[str, dict[str, Any]]


class Node:
    """A node of a graph that is drawn from its outputs: an input that is a Node becomes a link."""

    def __init__(self, kind: str, slot: int = 0, **inputs: Any) -> None:
        self.kind, self.slot, self.inputs = kind, slot, inputs


def graph_of(**outputs: Node) -> Graph:
    """Give the graph that these output nodes end; they are called n8, n9, …."""
    graph: Graph = {}
    ids: dict[int, str] = {}

    def put(node: Node, key: str | None = None) -> str:
        if id(node) not in ids:
            ids[id(node)] = key or f"1{len(ids):02}"
            inputs = {
                name: [put(value), value.slot] if isinstance(value, Node) else value
                for name, value in node.inputs.items()
            }
            graph[ids[id(node)]] = {"class_type": node.kind, "inputs": inputs}
        return ids[id(node)]

    for name, output in outputs.items():
        put(output, name.removeprefix("n"))
    return graph


def empty(batch_size: Any, width: int = 64) -> Node:
    return Node("EmptyImage", width=width, height=64, batch_size=batch_size, color=0)


def latent(batch_size: Any) -> Node:
    return Node("EmptySD3LatentImage", width=64, height=64, batch_size=batch_size)


VAE = Node("VAELoader", vae_name="ae.safetensors")
MODEL = Node("UNETLoader", unet_name="flux1-schnell.safetensors", weight_dtype="default")


def decoded(samples: Node) -> Node:
    return Node("VAEDecode", samples=samples, vae=VAE)


def saved(images: Node, kind: str = "SaveImage") -> Node:
    return Node(kind, images=images, filename_prefix="x")


def part(image: Node, index: Any, length: Any) -> Node:
    return Node("ImageFromBatch", image=image, batch_index=index, length=length)


def latent_part(samples: Node, index: int, length: int) -> Node:
    return Node("LatentFromBatch", samples=samples, batch_index=index, length=length)


def repeated(image: Node, amount: Any) -> Node:
    return Node("RepeatImageBatch", image=image, amount=amount)


def blended(kind: str, one: int, other: int) -> Node:
    return Node(kind, image1=empty(one), image2=empty(other))


def composed(destination: int, source: int) -> Node:
    return Node("ImageCompositeMasked", destination=empty(destination), source=empty(source))


def rebatched(images: Node, batch_size: int) -> Node:
    return Node("RebatchImages", images=images, batch_size=batch_size)


def scaled(image: Node) -> Node:
    for kind in ("ImageScale", "ImageScaleBy", "ImageInvert", "ImageSharpen", "Canny"):
        image = Node(kind, image=image)
    return image


SAMPLED = Node("KSampler", model=MODEL, latent_image=latent(2), seed=1)
TWICE = Node("RepeatLatentBatch", samples=Node("VAEEncode", pixels=empty(3), vae=VAE), amount=2)
SWITCHED = Node("ComfySwitchNode", switch=True, on_true=empty(3), on_false=empty(2))
MASKED = Node("MaskToImage", mask=Node("SolidMask", value=1.0, width=8, height=8))
LATENTS = Node("LatentBatch", samples1=latent(2), samples2=latent(2))
THREE = {f"images.image{n}": empty(n + 1) for n in range(3)}
SAME = empty(2)
GRAPHS = {
    "EmptyImage batch_size 3": graph_of(n9=saved(empty(3))),
    "RepeatImageBatch amount 2 of 3": graph_of(n9=saved(repeated(empty(3), 2))),
    "ImageBatch of 2 and 3": graph_of(n9=saved(blended("ImageBatch", 2, 3))),
    "ImageBatch of 2 and 3, other size": graph_of(
        n9=saved(Node("ImageBatch", image1=empty(2), image2=empty(3, width=128)))
    ),
    "ImageFromBatch index 1 length 2 of 4": graph_of(n9=saved(part(empty(4), 1, 2))),
    "ImageFromBatch index 3 length 9 of 4": graph_of(n9=saved(part(empty(4), 3, 9))),
    "ImageFromBatch index 9 length 1 of 4": graph_of(n9=saved(part(empty(4), 9, 1))),
    "EmptySD3LatentImage 2, VAEDecode": graph_of(n9=saved(decoded(latent(2)))),
    "RepeatLatentBatch 3 of 2": graph_of(
        n9=saved(decoded(Node("RepeatLatentBatch", samples=latent(2), amount=3)))
    ),
    "LatentFromBatch index 1 length 1 of 2": graph_of(
        n9=saved(decoded(latent_part(latent(2), 1, 1)))
    ),
    "LatentFromBatch index 1 length 64 of 2": graph_of(
        n9=saved(decoded(latent_part(latent(2), 1, 64)))
    ),
    "LatentBatch of 2 and 2": graph_of(n9=saved(decoded(LATENTS))),
    "VAEEncode of 3, RepeatLatentBatch 2": graph_of(n9=saved(decoded(TWICE))),
    "RebatchImages batch_size 2 of 5 (a list of 3)": graph_of(n9=saved(rebatched(empty(5), 2))),
    "RebatchImages batch_size 1 of 3, ImageInvert": graph_of(
        n9=saved(Node("ImageInvert", image=rebatched(empty(3), 1)))
    ),
    "ImageBlend of 1 and 3": graph_of(n9=saved(blended("ImageBlend", 1, 3))),
    "ImageBlend of 3 and 1": graph_of(n9=saved(blended("ImageBlend", 3, 1))),
    "ImageCompositeMasked destination 1 source 3": graph_of(n9=saved(composed(1, 3))),
    "ImageCompositeMasked destination 3 source 1": graph_of(n9=saved(composed(3, 1))),
    "ImageStitch of 1 and 3": graph_of(n9=saved(blended("ImageStitch", 1, 3))),
    "LoadImage, animated, 3 frames": graph_of(n9=saved(Node("LoadImage", image="a.webp"))),
    "LoadImage, one frame": graph_of(n9=saved(Node("LoadImage", image="a.png"))),
    "SaveAnimatedWEBP of 3": graph_of(n9=saved(empty(3), "SaveAnimatedWEBP")),
    "SaveAnimatedPNG of 3": graph_of(n9=saved(empty(3), "SaveAnimatedPNG")),
    "two SaveImage: 2 and 3": graph_of(n8=saved(empty(2)), n9=saved(empty(3))),
    "SaveImage 2 and PreviewImage 3": graph_of(
        n8=saved(empty(2)), n9=saved(empty(3), "PreviewImage")
    ),
    "the same SaveImage content twice": graph_of(n8=saved(SAME), n9=saved(SAME)),
    "SolidMask, MaskToImage": graph_of(n9=saved(MASKED)),
    "ImageScale, ImageScaleBy, ImageInvert, ImageSharpen, Canny of 3": graph_of(
        n9=saved(scaled(empty(3)))
    ),
    "ImagePadForOutpaint of 2": graph_of(n9=saved(Node("ImagePadForOutpaint", image=empty(2)))),
    "KSampler of 2": graph_of(n9=saved(decoded(SAMPLED))),
    "BatchImagesNode of 1, 2 and 3": graph_of(n9=saved(Node("BatchImagesNode", **THREE))),
    "ComfySwitchNode true: 3, false: 2": graph_of(n9=saved(SWITCHED)),
}
DEPENDS_ON_A_FILE = {"LoadImage, animated, 3 frames", "LoadImage, one frame"}


@pytest.mark.parametrize("name", COUNTED)
def test_it_is_as_many_as_a_real_server_made(name: str) -> None:
    traced = {node: images_of(GRAPHS[name], node) for node in COUNTED[name]}
    if name in DEPENDS_ON_A_FILE:
        assert set(traced.values()) == {None}
    else:
        assert traced == COUNTED[name]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("two SaveImage: 2 and 3", 5),
        ("SaveImage 2 and PreviewImage 3", 2),
        ("the same SaveImage content twice", 4),
        ("SaveAnimatedWEBP of 3", None),
    ],
)
def test_only_images_that_are_delivered_are_expected(name: str, count: int | None) -> None:
    assert expected_images(GRAPHS[name]) == count


def custom(image: Node) -> Node:
    return Node("SomebodysNode", image=image)


UNKNOWN = {
    "a class without a rule": saved(custom(empty(2))),
    "a number from another node": saved(empty(Node("SomebodysNumber", value=2))),
    "a number that is text": saved(empty("two")),
    "no number": saved(empty(None)),
    "an amount from another node": saved(repeated(empty(2), Node("SomebodysNumber"))),
    "a part of each batch of a list": saved(part(rebatched(empty(5), 2), 0, 1)),
    "a batch of lists": saved(Node("ImageBatch", image1=rebatched(empty(5), 2), image2=empty(1))),
    "two batches that do not fit": saved(blended("ImageBlend", 2, 3)),
    "a switch with a linked condition": saved(
        Node("ComfySwitchNode", switch=Node("PrimitiveBoolean", value=True), on_true=empty(3))
    ),
    "a video": saved(decoded(Node("EmptyHunyuanLatentVideo", batch_size=1, length=25))),
    "nothing linked": saved(Node("ImageInvert")),
    "a negative index": saved(part(empty(4), -1, 1)),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_cannot_be_known_is_not_guessed(what: str) -> None:
    assert expected_images(graph_of(n9=UNKNOWN[what])) is None
    assert expected_images(graph_of(n8=saved(empty(2)), n9=UNKNOWN[what])) is None


@pytest.mark.parametrize(
    ("value", "count"),
    [(4, 4), ("4", 4), (4.9, 4), (True, 1), (Node("PrimitiveInt", value=4), 4)],
)
def test_a_number_is_taken_as_the_server_takes_it(value: Any, count: int) -> None:
    assert expected_images(graph_of(n9=saved(empty(value)))) == count


def test_a_list_that_fits_into_one_batch_is_a_batch() -> None:
    assert expected_images(graph_of(n9=saved(part(rebatched(empty(2), 2), 1, 5)))) == 1


def test_a_cycle_and_a_link_to_nowhere_are_not_known() -> None:
    inputs = {"images": ["1", 0]}
    save = {"class_type": "SaveImage", "inputs": inputs}
    loop = {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}}
    assert expected_images({"9": save, "1": loop}) is None
    assert expected_images({"9": save}) is None


@pytest.mark.parametrize("count", [1, 7])
def test_a_thousand_nodes_in_a_row_are_followed(count: int) -> None:
    graph: Graph = {"0": {"class_type": "EmptyImage", "inputs": {"batch_size": count}}}
    for number in range(1, 3000):
        inputs = {"image": [str(number - 1), 0]}
        graph[str(number)] = {"class_type": "ImageInvert", "inputs": inputs}
    graph["9000"] = {"class_type": "SaveImage", "inputs": {"images": ["2999", 0]}}
    assert expected_images(graph) == count


KINDS = sorted({node["class_type"] for graph in GRAPHS.values() for node in graph.values()})
NAMES = sorted({n for graph in GRAPHS.values() for node in graph.values() for n in node["inputs"]})
LINKS = st.tuples(st.integers(0, 9).map(str), st.integers(-1, 3)).map(list)
VALUES = st.one_of(LINKS, st.integers(-3, 5), st.floats(), st.sampled_from(["", "2", "x", None]))
NODES = st.fixed_dictionaries(
    {
        "class_type": st.sampled_from([*KINDS, "SomebodysNode"]),
        "inputs": st.dictionaries(st.sampled_from(NAMES), VALUES | st.just([]), max_size=5),
    }
)
ANY_GRAPH = st.dictionaries(st.integers(0, 9).map(str), NODES, max_size=8)


@given(ANY_GRAPH)
def test_of_any_graph_it_is_at_least_one_or_not_known(graph: Graph) -> None:
    count = expected_images(graph)
    assert count is None or count >= 1


@given(st.sampled_from([*GRAPHS]), ANY_GRAPH)
def test_what_no_output_uses_changes_nothing(name: str, others: Graph) -> None:
    unused = {
        f"other {key}": node
        for key, node in others.items()
        if node["class_type"] not in ("SaveImage", "PreviewImage")
    }
    assert expected_images({**GRAPHS[name], **unused}) == expected_images(GRAPHS[name])
