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

from imagen.backends.comfyui import responses
from imagen.errors import MissingModel, Rejected
from imagen.http import Answer
from imagen.workflows import object_info
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
            folder, _, stem = responses.prefix(HANDLE).partition("/")
            place |= {"subfolder": folder, "filename": f"{stem}_{number:05}_.png"}
    return entry


def read_back(entry: Any) -> responses.Entry:
    """Give an entry as it is read from the wire, where Python writes NaN and Infinity."""
    body = json.dumps({HANDLE: entry}).encode()
    return responses.entry_of(Answer(200, {}, body).json_object(lenient=True)[HANDLE])


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
    expected = responses.ours(HANDLE, read_back(entry).outputs)
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
    assert responses.ours(HANDLE, read.outputs) == expected
    assert read.run_ms is None or read.run_ms >= 0
    assert responses.is_same_graph(entry, HISTORIES[name]["prompt"][2]) in (True, False)


def _images(output: Any) -> list[Any]:
    images = output.get("images") if isinstance(output, dict) else None
    return images if isinstance(images, list) else []


@pytest.mark.parametrize("name", ["exec_error", "interrupt_real_sampler"])
def test_what_failed_has_failed(name: str) -> None:
    assert read_back(HISTORIES[name]).status == "error"


@pytest.mark.parametrize(
    "graph",
    [
        {"9": {"inputs": {"filename_prefix": responses.prefix(HANDLE)}}, "1": 5, "2": None},
        {"9": {"inputs": {"filename_prefix": responses.prefix(HANDLE)}}, "1": {"inputs": [1]}},
        {"9": {"inputs": {"filename_prefix": responses.prefix(HANDLE)}}, "1": {"x": math.nan}},
    ],
)
def test_odd_nodes_in_the_graph_of_a_picture_do_not_make_it_a_strangers(
    graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = {"prompt": json.dumps(graph)}
    monkeypatch.setattr(responses.codec, "text_of_png", lambda _body: text)
    assert responses.is_ours(HANDLE, b"")
    assert not responses.is_ours("another", b"")


@pytest.mark.parametrize(
    "queue",
    [{}, {"queue_running": [], "queue_pending": None}, {"queue_running": 5, "queue_pending": []}],
)
def test_a_queue_without_its_lists_does_not_say_that_a_prompt_is_absent(queue: Any) -> None:
    with pytest.raises((LookupError, TypeError)):
        responses.place_in(queue, HANDLE)


@pytest.mark.parametrize("junk", [None, 5, "x", {}, [], [1]])
def test_an_odd_item_in_the_queue_hides_no_other(junk: Any) -> None:
    ours = [1, HANDLE, {}, {}, []]
    assert responses.place_in({"queue_running": [junk], "queue_pending": [junk, ours]}, HANDLE) == 1
    assert responses.place_in({"queue_running": [junk, ours], "queue_pending": []}, HANDLE) == 0


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
    reported = responses.is_too_old({"system": {"comfyui_version": version}})
    assert reported == (version if too_old else None)


@pytest.mark.parametrize("stats", [{}, {"system": None}, {"system": [1]}])
def test_a_server_that_does_not_say_its_version_is_not_called_too_old(stats: Any) -> None:
    assert responses.is_too_old(stats) is None


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ([["a", "b"]], ["a", "b"]),
        ([["a"], {"default": "a"}], ["a"]),
        ([[]], []),
        (["COMBO", {"options": ["a", "b"]}], ["a", "b"]),
        (["COMBO", {"options": "a"}], None),
        (["COMBO", {}], None),
        (["COMBO", 5], None),
        (["COMBO"], None),
        (["INT", {"options": [1, 2]}], None),
        ([], None),
        ("COMBO", None),
        (None, None),
    ],
)
def test_the_choices_of_an_input_are_read_in_both_shapes(spec: Any, names: Any) -> None:
    assert object_info.choices(spec) == names


def rejected(body: Any, status: int = 400) -> Rejected:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Rejected("the ComfyUI answered", status=status, body=raw)


def no_choices(_kind: str, _name: str) -> list[Any]:
    return []


def node_errors(received: str = "", **more: Any) -> dict[str, Any]:
    """Return the node_errors of one node with one error, in the server's shape."""
    extra = {"input_name": "unet_name", "received_value": received, **more.pop("extra", {})}
    error = {"type": "value_not_in_list", "message": "no", "details": "why", "extra_info": extra}
    return {"7": {"class_type": "UNETLoader", "errors": [{**error, **more}]}}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        *((body, 400) for body in (b"<html>", b"", [], [1], "x", None, {}, {"detail": "no"})),
        (b"[" * 100_000, 400),
        *(({"error": "login"}, status) for status in (301, 302, 399, 401, 403, 407)),
    ],
)
def test_a_refusal_that_is_not_comfyuis_stays_what_it_was(body: Any, status: int) -> None:
    fault = rejected(body, status)
    assert responses.refusal(fault, no_choices) is fault


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": {"message": "no outputs", "details": "at all"}}, "no outputs: at all"),
        ({"error": {"message": "no outputs", "details": ""}}, "no outputs"),
        ({"error": {"details": "at all"}, "node_errors": {}}, "at all"),
        ({"error": "no prompt", "node_errors": []}, "no prompt"),
    ],
)
@pytest.mark.parametrize("status", [400, 402, 413, 500])
def test_a_graph_that_is_refused_is_a_fault_of_the_setup(body: Any, text: str, status: int) -> None:
    fault = responses.refusal(rejected(body, status), no_choices)
    assert (fault.code, fault.as_record("t").get("scope")) == ("workflow_refused", "setup")
    assert fault.message == f"ComfyUI refuses the workflow: {text}"


def test_a_value_that_a_node_refuses_is_the_requests_own_fault() -> None:
    body = {"error": {"message": "invalid"}, "node_errors": node_errors("8", type="too_small")}
    fault = responses.refusal(rejected(body), no_choices)
    assert fault.code == "workflow_refused"
    assert "scope" not in fault.as_record("t")
    assert fault.message.endswith("node 7 (UNETLoader): no: why")
    empty = responses.refusal(rejected({**body, "node_errors": {"7": {"errors": []}}}), no_choices)
    assert empty.message == "ComfyUI refuses the workflow: invalid"


def test_at_most_three_faults_of_nodes_are_named() -> None:
    faults = {str(key): node_errors(type="bad")["7"] for key in range(1, 6)}
    assert responses.node_fault(faults, "", no_choices).message.count("node ") == 3


@pytest.mark.parametrize("name", ["x.safetensors", "SDXL/x.sft", "x.gguf"])
def test_a_file_that_is_not_in_the_list_is_a_missing_model(name: str) -> None:
    fault = responses.node_fault(node_errors(name), "", no_choices)
    assert isinstance(fault, MissingModel)
    assert fault.files == [name]
    assert f"{name} is not installed (UNETLoader 7, unet_name)" in fault.message


@pytest.mark.parametrize(
    "more", [{"received": "euler_x"}, {"received": "x.safetensors", "type": "other"}]
)
def test_no_other_value_is_called_a_missing_model(more: Any) -> None:
    fault = responses.node_fault(node_errors(**more), "", no_choices)
    assert not isinstance(fault, MissingModel)
    assert "node 7 (UNETLoader): no: why" in fault.message


def test_a_file_that_is_there_under_another_slash_is_named_and_not_missing() -> None:
    config = {"input_config": [["y.sft", None, "SDXL\\x.sft"]]}
    fault = responses.node_fault(node_errors("SDXL/x.sft", extra=config), "", no_choices)
    assert not isinstance(fault, MissingModel)
    assert "SDXL/x.sft is there as SDXL\\x.sft: write it so (node 7, unet_name)" in fault.message


@pytest.mark.parametrize(
    ("name", "offered", "other"),
    [
        ("a/x.sft", ["a\\x.sft"], "a\\x.sft"),
        ("a\\x.sft", ["a/x.sft"], "a/x.sft"),
        ("a/x.sft", [None, 5, "a/x.sft", "b/x.sft"], None),
        ("a/b/x.sft", ["a/b\\x.sft", "a\\b\\x.sft"], "a/b\\x.sft"),
    ],
)
def test_another_spelling_differs_in_the_slashes_only(name: str, offered: Any, other: Any) -> None:
    assert object_info.other_spelling(name, offered) == other


# -- history ---------------------------------------------------------------------------------------


GRAPH = {"1": {"class_type": "K", "inputs": {"seed": 7, "cfg": 1.0, "model": ["2", 0]}}}


def history_of(nodes: Any) -> dict[str, Any]:
    return {"prompt": [1, HANDLE, nodes, {}, []]}


def node(class_type: str = "K", **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": {**GRAPH["1"]["inputs"], **inputs}}


@pytest.mark.parametrize(
    ("nodes", "same"),
    [
        (GRAPH, True),
        ({"1": node(seed="7", cfg="1.0", added=1)}, True),
        ({"1": node(seed=8)}, False),
        ({"1": node(model=["3", 0])}, False),
        ({"1": node("L")}, False),
        ({"2": node()}, False),
        ({"1": node(), "2": node()}, False),
        ({"1": {"class_type": "K", "inputs": {}}}, False),
    ],
)
def test_a_history_entry_of_our_id_with_other_inputs_is_not_our_graph(
    nodes: Any, same: bool
) -> None:
    assert responses.is_same_graph(history_of(nodes), GRAPH) is same


@pytest.mark.parametrize(
    "entry",
    [
        *({}, {"prompt": None}, {"prompt": [1, HANDLE]}, {"prompt": {"2": {}}}),
        *(history_of(nodes) for nodes in (None, [], {"1": 5}, {"1": {"inputs": []}})),
    ],
)
def test_a_graph_that_cannot_be_read_counts_as_ours(entry: Any) -> None:
    assert responses.is_same_graph(entry, GRAPH) is True


@pytest.mark.parametrize(
    ("start", "end", "run_ms"),
    [
        (1000, 1250, 250),
        (1000, 1000, 0),
        (1000, 999, None),
        (0, 2**40 - 1, 2**40 - 1),
        (0, 2**40, None),
        (1.0, 2.0, None),
        (None, 5, None),
        (True, 5, None),
    ],
)
def test_the_time_a_prompt_ran_is_told_by_its_two_stamps(start: Any, end: Any, run_ms: Any) -> None:
    messages = [
        ["execution_start", {"timestamp": start}],
        ["execution_success", {"timestamp": end}],
    ]
    assert responses.entry_of({"status": {"messages": messages}}).run_ms == run_ms


def test_the_place_in_the_queue_follows_the_servers_numbers_and_not_its_order() -> None:
    waiting = [[9, "c"], [2.5, "b"], [1, "a"]]
    queue = {"queue_running": [[0, "r"]], "queue_pending": waiting}
    assert [responses.place_in(queue, name) for name in "rabcx"] == [0, 1, 2, 3, None]


def place(**more: Any) -> dict[str, Any]:
    folder, _, stem = responses.prefix(HANDLE).partition("/")
    return {"type": "output", "subfolder": folder, "filename": f"{stem}_00001_.png", **more}


@pytest.mark.parametrize(
    "strange", [{"type": "temp"}, {"subfolder": ""}, {"filename": "x.png"}, {"filename": None}]
)
def test_only_what_stands_under_our_prefix_is_our_image(strange: Any) -> None:
    second = place(filename=place()["filename"].replace("1_", "2_"))
    outputs = {"9": {"images": [place(**strange), second]}, "10": {"images": [place()]}}
    assert responses.ours(HANDLE, outputs) == [place(), second]


def test_a_failure_names_the_node_and_stays_one_line() -> None:
    messages = [["execution_error", {"exception_message": "out\n of memory", "node_id": "3"}]]
    status = {"status_str": "error", "messages": messages}
    fault = responses.failure(responses.entry_of({"status": status}))
    assert fault.message == "ComfyUI failed in node 3 (None): out of memory"
    silent = responses.failure(responses.entry_of({"status": {"status_str": "error"}}))
    assert silent.message == "ComfyUI failed: it does not say why"
