"""What a ComfyUI's answers mean, whatever other nodes put into them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen import comfy_api
from imagen.http import Answer
from servers.comfyui import DATA

HANDLE = "0b3c1d5e-0000-4000-8000-0123456789ab"
HISTORIES = json.loads((DATA / "recorded.json").read_text())["histories"]
FINISHED = sorted(name for name, entry in HISTORIES.items() if entry["outputs"])
Path = tuple[Any, ...]

JUNK = st.sampled_from(
    [
        *(None, True, 0, -1, 1e308, math.nan, math.inf, -math.inf, "", "x", [], {}, [[]], [None]),
        *({"images": 5}, {"images": [None, "x", {}]}, {"images": [{"filename": 5}]}, {"text": []}),
        {"type": "output", "subfolder": "imagen", "filename": None},
    ]
)


def stored_as_ours(name: str) -> dict[str, Any]:
    """Give a recorded entry with its images under our prefix."""
    entry = copy.deepcopy(HISTORIES[name])
    number = 0
    for output in entry["outputs"].values():
        for place in output["images"]:
            number += 1
            folder, _, stem = comfy_api.prefix(HANDLE).partition("/")
            place |= {"subfolder": folder, "filename": f"{stem}_{number:05}_.png"}
    return entry


def read_back(entry: Any) -> comfy_api.Entry:
    """Give an entry as it is read from the wire, where Python writes NaN and Infinity."""
    body = json.dumps({HANDLE: entry}).encode()
    return comfy_api.entry_of(Answer(200, {}, body).json_object(lenient=True)[HANDLE])


def paths(value: Any, at: Path = ()) -> Iterator[Path]:
    """Yield the places of all values inside one, but for our own images and what holds them."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        if (*at, key)[:1] != ("outputs",):
            yield (*at, key)
            yield from paths(inner, (*at, key))


def put(entry: Any, path: Path, junk: Any) -> None:
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = junk


@pytest.mark.parametrize("name", FINISHED)
@given(data=st.data())
def test_our_images_are_found_whatever_stands_elsewhere_in_the_history(
    name: str, data: st.DataObject
) -> None:
    entry = stored_as_ours(name)
    expected = comfy_api.ours(HANDLE, read_back(entry).outputs)
    assert expected
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([*paths(entry)]))
        put(entry, path, copy.deepcopy(data.draw(JUNK)))
    for key in data.draw(st.lists(st.sampled_from(["0", "zz", "12:3"]), unique=True)):
        entry["outputs"].setdefault(key, copy.deepcopy(data.draw(JUNK)))
    mine = next(one for one in entry["outputs"].values() if expected[0] in _images(one))
    mine["images"].insert(0, copy.deepcopy(data.draw(JUNK)))
    read = read_back(entry)
    assert read.status == "success"
    assert comfy_api.ours(HANDLE, read.outputs) == expected
    assert read.run_ms is None or read.run_ms >= 0
    assert comfy_api.is_same_graph(entry, HISTORIES[name]["prompt"][2]) in (True, False)


def _images(output: Any) -> list[Any]:
    images = output.get("images") if isinstance(output, dict) else None
    return images if isinstance(images, list) else []


@pytest.mark.parametrize("name", ["exec_error", "interrupt_real_sampler"])
def test_what_failed_has_failed(name: str) -> None:
    assert read_back(HISTORIES[name]).status == "error"


@pytest.mark.parametrize(
    "graph",
    [
        {"9": {"inputs": {"filename_prefix": comfy_api.prefix(HANDLE)}}, "1": 5, "2": None},
        {"9": {"inputs": {"filename_prefix": comfy_api.prefix(HANDLE)}}, "1": {"inputs": [1]}},
        {"9": {"inputs": {"filename_prefix": comfy_api.prefix(HANDLE)}}, "1": {"x": math.nan}},
    ],
)
def test_odd_nodes_in_the_graph_of_a_picture_do_not_make_it_a_strangers(
    graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = {"prompt": json.dumps(graph)}
    monkeypatch.setattr(comfy_api.image, "text_of_png", lambda _body: text)
    assert comfy_api.is_ours(HANDLE, b"")
    assert not comfy_api.is_ours("another", b"")


@pytest.mark.parametrize(
    "queue",
    [{}, {"queue_running": [], "queue_pending": None}, {"queue_running": 5, "queue_pending": []}],
)
def test_a_queue_without_its_lists_does_not_say_that_a_prompt_is_absent(queue: Any) -> None:
    with pytest.raises((LookupError, TypeError)):
        comfy_api.place_in(queue, HANDLE)


@pytest.mark.parametrize("junk", [None, 5, "x", {}, [], [1]])
def test_an_odd_item_in_the_queue_hides_no_other(junk: Any) -> None:
    ours = [1, HANDLE, {}, {}, []]
    assert comfy_api.place_in({"queue_running": [junk], "queue_pending": [junk, ours]}, HANDLE) == 1
    assert comfy_api.place_in({"queue_running": [junk, ours], "queue_pending": []}, HANDLE) == 0


@pytest.mark.parametrize(
    ("version", "too_old"),
    [
        ("0.3.44", True),
        ("v0.2.0", True),
        ("0.3.45", False),
        ("0.3.64", False),
        ("0.10.0", False),
        ("1.0.0", False),
        ("0.3.44-12-g1a2b", True),
        ("unknown", False),
        ("0.3", False),
        (None, False),
        (5, False),
    ],
)
def test_a_server_that_takes_no_prompt_id_is_told_by_its_version(
    version: Any, too_old: bool
) -> None:
    reported = comfy_api.is_too_old({"system": {"comfyui_version": version}})
    assert reported == (version if too_old else None)


@pytest.mark.parametrize("stats", [{}, {"system": None}, {"system": [1]}])
def test_a_server_that_does_not_say_its_version_is_not_called_too_old(stats: Any) -> None:
    assert comfy_api.is_too_old(stats) is None
