"""What a check finds in a file, and by a server's /object_info: as real servers refused it."""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import pytest

import shapes
from comfyui_recorded import ANSWERS, body_of
from imagen.errors import WorkflowFault
from imagen.workflows import check, check_server, template
from imagen.workflows.check import UNKNOWN, Finding
from servers.comfyui import DATA, judged

LINKS = json.loads((DATA / "links.json").read_text())
CLASSES = json.loads((DATA / "object_info.json").read_text())
REFUSED_UNREAD = {"err_empty_prompt", "err_no_output_node", "err_node_no_class_type"}
REFUSED_UNREAD |= {"err_node_no_inputs", "err_ui_format_workflow"}


def exchanges() -> dict[str, Any]:
    """What real servers said to graphs: all that was recorded with a graph in it."""
    found = {}
    for name, one in {**ANSWERS, **LINKS}.items():
        body = body_of(one) if one["path"] == "/prompt" else None
        graph = body.get("prompt") if isinstance(body, dict) else None
        if one["status"] in (200, 400) and isinstance(graph, dict):
            found[name] = (graph, one)
    return found


EXCHANGES = exchanges()


def errors(graph: Any, classes: Any = CLASSES) -> list[Finding]:
    """All errors that a check with these classes finds."""
    found = [*check.of_graph(graph), *check_server.findings(graph, classes)]
    return [one for one in found if one.severity == "error"]


def said_by_a_server(answer: Any) -> set[tuple[str, str]]:
    """The node and the type of each fault that a server names."""
    found = {
        (node, fault["type"])
        for node, about in answer.get("node_errors", {}).items()
        for fault in about["errors"]
    }
    if answer.get("error", {}).get("type") == "invalid_prompt":
        found.add((answer["error"]["details"].split("'#")[1][:-1], "invalid_prompt"))
    return found


@pytest.mark.parametrize("name", sorted({*EXCHANGES} - REFUSED_UNREAD - {"err_cycle"}))
def test_a_check_finds_what_a_real_server_refused_and_nothing_else(name):
    graph, exchange = EXCHANGES[name]
    found = errors(graph)
    assert {(one.node, one.what) for one in found} == said_by_a_server(exchange["answer"])
    told = json.dumps(exchange["answer"])
    for one in found:
        assert one.input is None or f'"input_name": "{one.input}"' in told or "exception" in told


def test_most_refusals_were_recorded():
    assert len(EXCHANGES) >= 40
    assert sum(bool(said_by_a_server(one["answer"])) for _, one in EXCHANGES.values()) >= 24


@pytest.mark.parametrize("name", sorted(REFUSED_UNREAD))
def test_what_a_server_refuses_as_no_graph_cannot_even_be_loaded(name):
    graph, exchange = EXCHANGES[name]
    assert exchange["status"] == 400
    with pytest.raises(WorkflowFault):
        template.parse(name, json.dumps(graph).encode())


def test_a_cycle_which_a_server_refuses_without_a_word_is_named():
    graph, exchange = EXCHANGES["err_cycle"]
    assert (exchange["status"], exchange["answer"]["node_errors"]) == (400, {})
    (found,) = (one for one in check.of_graph(graph) if one.severity == "error")
    assert found.message == "made of itself: 1 ← 2 ← 1"


@pytest.mark.parametrize("kind", ["smaller_than_min", "bigger_than_max"])
def test_ranges_are_said_in_the_servers_own_words(kind):
    for graph, exchange in EXCHANGES.values():
        for about in exchange["answer"].get("node_errors", {}).values():
            for fault in about["errors"]:
                if fault["type"].endswith(kind):
                    assert fault["message"] in [one.message for one in errors(graph)]


@pytest.mark.parametrize(
    ("name", "severity", "what"),
    [
        ("ok_unknown_input_ignored", "note", "unknown_input"),
        ("err_link_scalar_for_image", "warning", "not_linked"),
        ("err_width_float", "note", "coerced"),
        ("err_width_string_numeric", "note", "coerced"),
        ("err_latent_width_not_multiple", "note", "step_not_met"),
    ],
)
def test_what_a_server_takes_without_a_word_is_said(name, severity, what):
    graph, exchange = EXCHANGES[name]
    assert exchange["status"] == 200
    found = [*check_server.findings(graph, CLASSES)]
    assert (severity, what) in {(one.severity, one.what) for one in found}


# -- choices, types, what is lacking ---------------------------------------------------------------


def triple(**files: str) -> Any:
    graph = copy.deepcopy(shapes.recorded()["sd35-medium.triple-clip"])
    graph["43"]["inputs"] |= files
    return graph


def test_both_shapes_of_choices_are_read():
    assert CLASSES["TripleCLIPLoader"]["input"]["required"]["clip_name1"][0] == "COMBO"
    assert errors(triple()) == []
    (found,) = errors(triple(clip_name2="nope.safetensors"))
    assert (found.what, found.node, found.file) == ("value_not_in_list", "43", "nope.safetensors")
    assert check_server.lacking(found)


def test_a_word_that_is_no_choice_is_the_workflows_fault_with_close_ones():
    (found,) = errors(EXCHANGES["err_sampler_unknown"][0])
    assert not check_server.lacking(found)
    assert "did you mean euler" in str(found.hint)


def test_a_picture_that_is_not_listed_may_be_there_all_the_same():
    graph = shapes.from_picture()
    graph["2"]["inputs"]["image"] = "folder/mine.png"
    (found,) = (one for one in check_server.findings(graph, CLASSES) if one.severity == "warning")
    assert (found.what, found.input) == ("custom_validation_failed", "image")


def test_what_no_output_is_made_of_is_not_looked_at():
    graph = {**shapes.sd15(), "99": {"class_type": "EmptyImage", "inputs": {"width": "wide"}}}
    graph["1"]["inputs"]["ckpt_name"] = "sd3.5_medium.safetensors"
    assert errors(graph) == []
    assert judged(copy.deepcopy(graph), CLASSES)[0] is None, "nor does a server"


def test_a_value_that_nobody_gives_is_not_judged():
    graph = shapes.sd15()
    graph["1"]["inputs"]["ckpt_name"] = UNKNOWN
    assert errors(graph) == []


@pytest.mark.parametrize(
    ("got", "wanted", "fits"),
    [
        ("MODEL", "MODEL", True),
        ("*", "MODEL", True),
        ("IMAGE", "IMAGE,MASK", True),
        ("A", "*", True),
        ("CLIP", "MODEL", False),
        ("STRING", "COMBO", False),
    ],
)
def test_types_fit_when_they_share_one_or_are_any(got, wanted, fits):
    classes = {
        "From": {"input": {}, "output": [got]},
        "To": {"input": {"required": {"x": [wanted]}}, "output": [], "output_node": True},
    }
    graph = {
        "1": {"class_type": "From", "inputs": {}},
        "2": {"class_type": "To", "inputs": {"x": ["1", 0]}},
    }
    assert [one.what for one in errors(graph, classes)] == ["return_type_mismatch"] * (not fits)


@pytest.mark.parametrize(("slot", "whole"), [(0, True), (2, True), (3, False), (9, False)])
def test_outputs_are_counted_from_0(slot, whole):
    graph = shapes.sd15()
    graph["1"]["inputs"]["ckpt_name"] = "sd3.5_medium.safetensors"
    graph["6"]["inputs"]["vae"] = ["1", slot]
    found = {one.what for one in errors(graph)} - {"return_type_mismatch"}
    assert found == (set() if whole else {"exception_during_inner_validation"})


@pytest.mark.parametrize("name", [*shapes.SHAPES, *shapes.recorded()])
def test_a_check_and_the_look_alike_agree_on_every_shape(name):
    graph = {**shapes.recorded(), **{n: make() for n, make in shapes.SHAPES.items()}}[name]
    error, _, node_errors = judged(copy.deepcopy(graph), CLASSES)
    found = errors(graph)
    unknown = {one.node for one in found if one.what == "invalid_prompt"}
    assert bool(unknown) == (error is not None and error["type"] == "invalid_prompt")
    if not unknown:
        assert {(one.node, one.what) for one in found} == said_by_a_server(
            {"node_errors": node_errors}
        )


# -- placeholders ----------------------------------------------------------------------------------


def flow(defaults: dict[str, Any] | None = None, **inputs: Any) -> template.Workflow:
    graph = {
        "1": {"class_type": "Maker", "inputs": inputs},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    }
    return template.Workflow("mine", graph, defaults=defaults or {})


def whats(found: list[Finding]) -> list[tuple[str, str]]:
    return [(one.severity, one.what) for one in found]


GOOD = {"text": "${prompt}", "seed": "${seed}"}


def test_a_sound_workflow_has_nothing_to_be_said():
    assert check.findings(flow(**GOOD)) == []
    for name in template.bundled():
        assert check.findings(template.load(name)) == []


def test_without_prompt_or_seed_every_image_would_be_the_same():
    found = check.findings(flow())
    assert whats(found) == [("warning", "no_prompt"), ("warning", "no_seed")]


def test_a_placeholder_without_a_value_is_an_error_that_names_close_ones():
    (found,) = check.findings(flow(**GOOD, x="${sampelr}"))
    assert (found.severity, found.what, found.node, found.input) == ("error", "no_value", "1", "x")
    assert "did you mean sampler?" in str(found.hint)
    assert check.findings(flow(**GOOD, x="${unet}"), {"unet": "mine"}) == []
    assert check.findings(flow({"unet": None}, **GOOD, x="${unet}")) != []


def test_what_a_request_may_say_is_only_a_warning():
    (found,) = check.findings(flow(**GOOD, x="${width}"))
    assert (found.severity, found.what) == ("warning", "no_value")


def test_a_placeholder_in_a_longer_text_and_a_default_for_none_are_said():
    found = check.findings(flow({"lora": "x"}, **GOOD, x="photo of ${prompt}"))
    assert whats(found) == [("note", "unused_default"), ("warning", "partial_placeholder")]


def test_faults_of_what_no_image_is_made_of_are_warnings():
    broken = flow(**GOOD)
    broken.graph["5"] = {"class_type": "Other", "inputs": {"x": ["77", 0], "y": ["5", 0]}}
    assert {one.severity for one in check.findings(broken)} == {"warning", "note"}


def test_a_link_may_be_a_placeholder_too():
    linked = flow({"node": "5"}, **GOOD, x=["${node}", 0])
    linked.graph["5"] = {"class_type": "Other", "inputs": {}}
    assert check.findings(linked) == []


def test_a_server_knows_outputs_of_other_names():
    graph = {"1": {"class_type": "Keep", "inputs": {"x": ["77", 0]}}}
    classes = {"Keep": {"input": {"required": {"x": ["IMAGE"]}}, "output_node": True}}
    kept = template.Workflow("mine", graph)
    assert "error" not in {one.severity for one in check.findings(kept)}
    found = check_server.judged(kept, {}, classes)
    assert ("error", "exception_during_inner_validation") in whats(found)


def test_ten_thousand_nodes_are_checked_at_once():
    graph = {
        str(n): {"class_type": "Maker", "inputs": {"x": [str(n + 1), 0], "y": "${n" + f"{n}}}"}}
        for n in range(10_000)
    }
    graph["0"]["class_type"] = "SaveImage"
    began = time.process_time()
    found = check.findings(template.Workflow("large", graph))
    assert len([one for one in found if one.severity == "error"]) == 10_001
    assert time.process_time() - began < 5


def test_findings_are_counted_for_people():
    some = [Finding(severity, "x", "") for severity in ("error", "note", "note")]
    assert check.counted(some) == "1 error, 2 notes"
    assert check.counted([]) == ""


@pytest.mark.parametrize(
    ("written", "listed"),
    [("SDXL\\x.safetensors", "SDXL/x.safetensors"), ("SDXL/x.safetensors", "SDXL\\x.safetensors")],
)
def test_a_model_that_is_listed_with_the_other_slash_is_there(written, listed):
    spec = {"ckpt_name": [["a.safetensors", listed]]}
    classes = {"Load": {"input": {"required": spec}, "output": [], "output_node": True}}
    graph = {"1": {"class_type": "Load", "inputs": {"ckpt_name": written}}}
    (found,) = check_server.findings(graph, classes)
    assert f"is there as {listed}" in found.message
    assert "not installed" not in found.message
    assert found.file is None
