"""Exports become workflows: what is found, what is asked, and that nothing else changes."""

from __future__ import annotations

import copy
import io
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import shapes
from imagen.errors import WorkflowFault
from imagen.workflows import check, template
from imagen.workflows.importing import export as exports
from imagen.workflows.importing import infer
from imagen.workflows.importing.draft import Import, Told
from shapes import BAD, PHOTO, Graph

TOLD = {
    "sdxl_refiner": Told(samplers=("6", "9")),
    "sdxl_two_texts": Told(prompt="2.text_g"),
    "two_outputs": Told(output="7"),
    "hires_fix": Told(samplers=("5",)),
}
EXPORTS: dict[str, Callable[[], Graph]] = {
    **shapes.SHAPES,
    **{name: (lambda name=name: shapes.recorded()[name]) for name in shapes.recorded()},
}


def imported(graph: Graph, told: Told = Told()) -> Import:  # noqa: B008
    """Import a graph after it has been written and read, as a file is."""
    read = exports.graph_of("mine", json.dumps(graph).encode())
    return infer.imported("mine", read, told)


def flow_of(found: Import) -> template.Workflow:
    return template.parse("mine", exports.written(found))


def places(graph: Graph, told: Told = Told()) -> dict[str, list[str]]:  # noqa: B008
    """Where the placeholders of an import stand, as node.input."""
    found = flow_of(imported(graph, told)).places()
    return {name: [".".join(one) for one in some] for name, some in found.items()}


def refusal(graph: Any, told: Told = Told()) -> WorkflowFault:  # noqa: B008
    with pytest.raises(WorkflowFault) as caught:
        imported(graph, told)
    assert caught.value.exit_status == 2
    return caught.value


def report(graph: Graph, told: Told = Told()) -> list[exports.Line]:  # noqa: B008
    return exports.report(imported(graph, told))


# -- every shape -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPORTS)
def test_filled_with_its_own_defaults_it_is_the_export_again(name):
    export = EXPORTS[name]()
    flow = flow_of(imported(export, TOLD.get(name, Told())))
    assert json.dumps(template.fill(flow, {}), sort_keys=True) == json.dumps(export, sort_keys=True)


@pytest.mark.parametrize("name", EXPORTS)
def test_it_passes_a_check_and_asks_prompt_and_seed_anew(name):
    flow = flow_of(imported(EXPORTS[name](), TOLD.get(name, Told())))
    assert check.findings(flow) == []
    assert {"prompt", "seed", "steps", "sampler"} <= flow.placeholders()


@pytest.mark.parametrize("name", EXPORTS)
def test_all_that_is_not_linked_is_reported_once_as_found_or_left(name):
    export = EXPORTS[name]()
    lines = report(export, TOLD.get(name, Told()))
    told = [(line.node, line.input) for line in lines if line.what != "note"]
    held = [
        (node, name)
        for node, about in export.items()
        for name, value in about["inputs"].items()
        if not isinstance(value, list)
    ]
    assert sorted(told) == sorted(held)


@pytest.mark.parametrize("name", TOLD)
def test_what_is_open_is_asked_with_the_flag_that_answers(name):
    fault = refusal(EXPORTS[name]())
    assert fault.code == "ambiguous_workflow"
    flag = shapes.ANSWERS[name][0]
    assert f"{flag} NODE" in str(fault.hint)
    for answer in shapes.ANSWERS[name][1::2]:
        assert answer in fault.message, "the choices are named"


# -- the shapes one by one -------------------------------------------------------------------------


def test_a_checkpoint_with_one_sampler():
    assert places(shapes.sd15()) == {
        "checkpoint": ["1.ckpt_name"],
        "prompt": ["2.text"],
        "negative_prompt": ["3.text"],
        "width": ["4.width"],
        "height": ["4.height"],
        "batch_size": ["4.batch_size"],
        "seed": ["5.seed"],
        "steps": ["5.steps"],
        "cfg": ["5.cfg"],
        "sampler": ["5.sampler_name"],
        "scheduler": ["5.scheduler"],
    }


def test_defaults_are_what_the_export_held():
    flow = flow_of(imported(shapes.sd15()))
    assert flow.defaults["negative_prompt"] == BAD
    assert (flow.defaults["width"], flow.defaults["height"]) == (512, 768)
    assert flow.defaults["cfg"] == 8
    assert type(flow.defaults["cfg"]) is int, "typed as it was"
    assert flow.description == "v1-5-pruned-emaonly-fp16, 20 steps"
    assert flow.size_multiple == 8


def test_each_lora_has_a_placeholder_of_its_own_and_its_folder():
    flow = flow_of(imported(shapes.loras()))
    assert [(model.file, model.folder) for model in flow.needs({})] == [
        ("base/dreamshaper_8.safetensors", "checkpoints"),
        ("vae-ft-mse-840000-ema-pruned.safetensors", "vae"),
        ("ink.safetensors", "loras"),
        ("detail.safetensors", "loras"),
    ]
    assert {"lora", "lora_2"} <= flow.placeholders()


def test_a_file_that_is_loaded_twice_is_one_model():
    graph = shapes.loras()
    graph["4"]["inputs"]["lora_name"] = graph["3"]["inputs"]["lora_name"]
    found = imported(graph)
    assert [one["file"] for one in found.models] == ["${checkpoint}", "${vae}", "${lora}"]


def test_a_text_for_both_encoders_is_the_prompt_in_both():
    found = places(shapes.dual_prompts())
    assert found["prompt"] == ["4.clip_l", "4.t5xxl"]
    assert found["guidance"] == ["4.guidance"]
    assert (found["t5xxl"], found["clip_l"]) == (["2.clip_name1"], ["2.clip_name2"])


def test_other_words_for_each_encoder_are_asked_for():
    fault = refusal(shapes.dual_prompts("lighthouse, 35mm"))
    assert '4.clip_l "lighthouse, 35mm"' in fault.message
    assert f'4.t5xxl "{PHOTO}"' in fault.message
    found = places(shapes.dual_prompts("lighthouse, 35mm"), Told(prompt="4.t5xxl"))
    assert found["prompt"] == ["4.t5xxl"]


def test_an_empty_text_beside_a_prompt_stays_empty():
    assert places(shapes.dual_prompts(""))["prompt"] == ["4.t5xxl"]


def test_a_negative_that_is_made_of_the_prompt_is_none():
    shared = shapes.sd15()
    shared["5"]["inputs"]["negative"] = shared["5"]["inputs"]["positive"]
    for graph in (shapes.dual_prompts(), shapes.recorded()["flux2-klein"], shared):
        assert "negative_prompt" not in places(graph)
        notes = [line.why for line in report(graph) if line.what == "note"]
        assert any("no negative prompt" in str(why) for why in notes)


def test_a_custom_sampler_is_followed_to_its_noise_its_schedule_and_its_primitives():
    found = places(shapes.guided())
    assert found["seed"] == ["9.noise_seed"]
    assert (found["steps"], found["scheduler"]) == (["12.steps"], ["12.scheduler"])
    assert found["sampler"] == ["11.sampler_name"]
    assert (found["width"], found["height"]) == (["4.value"], ["5.value"])
    assert "cfg" not in found


def test_flux2_has_its_size_in_two_places_and_its_prompt_in_a_primitive():
    found = places(shapes.klein())
    assert found["width"] == ["10.width", "11.width"]
    assert found["prompt"] == ["4.value"]
    assert found["negative_prompt"] == ["6.text"]
    assert (found["cfg"], found["steps"]) == (["8.cfg"], ["10.steps"])
    assert flow_of(imported(shapes.klein())).size_multiple == 16


def test_base_and_refiner_are_asked_for_and_share_what_is_the_same():
    found = places(shapes.sdxl_refiner(), TOLD["sdxl_refiner"])
    assert found["prompt"] == ["4.text", "7.text"]
    assert found["negative_prompt"] == ["5.text", "8.text"]
    assert found["steps"] == ["6.steps", "9.steps"]
    assert found["seed"] == ["6.noise_seed"], "the refiner adds no noise"
    assert (found["checkpoint"], found["checkpoint_2"]) == (["1.ckpt_name"], ["2.ckpt_name"])


def test_a_sampler_that_was_not_named_is_left_and_said():
    found = places(shapes.hires_fix(), TOLD["hires_fix"])
    assert (found["seed"], found["width"]) == (["5.seed"], ["4.width"])
    lines = report(shapes.hires_fix(), TOLD["hires_fix"])
    assert any(line.what == "note" and "node 7 (KSampler)" in str(line.why) for line in lines)
    both = report(shapes.hires_fix(), Told(samplers=("7", "5")))
    (left,) = (line for line in both if (line.node, line.input) == ("5", "seed"))
    assert (left.what, left.why) == ("left", "${seed} is 469771404043268")


def test_the_named_text_is_the_prompt_and_the_other_is_left_and_said():
    lines = report(shapes.sdxl_two_texts(), TOLD["sdxl_two_texts"])
    (left,) = (line for line in lines if (line.node, line.input) == ("2", "text_l"))
    assert (left.what, left.value, left.why) == ("left", "35mm", f'${{prompt}} is "{PHOTO}"')
    found = places(shapes.sdxl_two_texts(), TOLD["sdxl_two_texts"])
    assert found["width"] == ["2.target_width", "3.target_width", "4.width"]


def test_three_encoders_and_a_negative_that_ends_late():
    found = places(shapes.sd3_triple())
    assert found["prompt"] == ["4.clip_l", "4.clip_g", "4.t5xxl"]
    assert found["negative_prompt"] == ["5.text"]
    assert {"clip_g", "clip_l", "t5xxl"} <= found.keys()


def test_a_controlnet_keeps_both_sides_apart():
    found = places(shapes.controlled())
    assert (found["prompt"], found["negative_prompt"]) == (["4.text"], ["5.text"])
    assert found["controlnet"] == ["2.control_net_name"]


def test_a_picture_to_begin_with_has_its_own_size():
    found = places(shapes.from_picture())
    assert "width" not in found
    notes = [line.why for line in report(shapes.from_picture()) if line.what == "note"]
    assert notes == ["the size is left: the picture begins with 2 (LoadImage)"]


def test_one_value_for_both_sides_is_left():
    graph = shapes.guided()
    for node in ("6", "13"):
        graph[node]["inputs"]["height"] = ["4", 0]
    assert not {"width", "height"} & places(graph).keys()
    assert any(line.why == "one value for both width and height" for line in report(graph))


def test_a_latent_that_comes_from_nowhere_known_is_said():
    graph = shapes.sd15()
    graph["5"]["inputs"]["latent_image"] = "x"
    assert "the size is left" in [line.why for line in report(graph)]


def test_of_several_that_save_one_is_asked_for_even_if_it_saves_no_sample():
    graph = {"100": {"class_type": "LoadImage", "inputs": {"image": "edges.png"}}}
    graph["101"] = {"class_type": "SaveImage", "inputs": {"images": ["100", 0]}}
    graph |= shapes.sd15()
    assert "--output-node NODE" in str(refusal(graph).hint)
    assert "seed" in places(graph, Told(output="7"))
    assert "no sampler leads to node 101" in refusal(graph, Told(output="101")).message


def test_several_sizes_are_asked_for():
    graph = shapes.sd15()
    small = {"width": 256, "height": 256, "batch_size": 1}
    graph["20"] = {"class_type": "EmptyLatentImage", "inputs": small}
    both = {"samples_to": ["4", 0], "samples_from": ["20", 0], "x": 0, "y": 0, "feather": 0}
    graph["21"] = {"class_type": "LatentComposite", "inputs": both}
    graph["5"]["inputs"]["latent_image"] = ["21", 0]
    assert "--latent NODE" in str(refusal(graph).hint)
    assert places(graph, Told(latent="20"))["width"] == ["20.width"]


def test_a_text_that_is_put_together_is_asked_for():
    graph = shapes.sd15()
    parts = {"string_a": "photo of", "string_b": "a cat", "delimiter": " "}
    graph["20"] = {"class_type": "StringConcatenate", "inputs": parts}
    graph["2"]["inputs"]["text"] = ["20", 0]
    fault = refusal(graph)
    assert "2.text" in fault.message
    assert "--prompt NODE.INPUT" in str(fault.hint)
    assert places(graph, Told(prompt="20.string_b"))["prompt"] == ["20.string_b"]


def test_a_loader_that_holds_the_texts_itself_is_asked_about():
    graph = shapes.sd15()
    graph["20"] = {"class_type": "Loader of Somebody", "inputs": {"yes": PHOTO, "no": BAD}}
    graph["5"]["inputs"] |= {"positive": ["20", 1], "negative": ["20", 2]}
    assert "no text encoder was found" in refusal(graph).message
    found = places(graph, Told(prompt="20.yes", negative="20.no"))
    assert (found["prompt"], found["negative_prompt"]) == (["20.yes"], ["20.no"])


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (Told(output="8"), "no output node '8'"),
        (Told(samplers=("77",)), "no sampler '77'"),
        (Told(prompt="2"), "--prompt 2 is no text"),
        (Told(prompt="2.clip"), "--prompt 2.clip links to another node"),
        (Told(negative="5.seed"), "--negative 5.seed is no text"),
        (Told(latent="5"), "no latent with a size '5'"),
    ],
)
def test_an_answer_that_is_none_is_refused(told, says):
    assert says in refusal(shapes.sd15(), told).message


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("cfg", 1e9), ("seed", "7"), ("steps", 20.0), ("steps", True)]
)
def test_a_value_that_no_request_may_have_is_left_and_said(name, value):
    graph = shapes.sd15()
    graph["5"]["inputs"][name] = value
    assert name not in places(graph)
    assert [line.why for line in report(graph) if line.input == name] != [None]


def test_an_empty_prompt_is_the_prompt_all_the_same():
    graph = shapes.sd15()
    graph["2"]["inputs"]["text"] = ""
    flow = flow_of(imported(graph))
    assert flow.places()["prompt"] == [("2", "text")]
    assert template.fill(flow, {"prompt": ""}) == graph


texts = st.text(max_size=20)
numbers = st.integers(0, 2**64 - 1)


@given(texts, texts, numbers, st.integers(-9, 9999), st.floats(allow_nan=False), texts)
@settings(max_examples=80, deadline=None)
def test_whatever_the_values_filled_with_them_it_is_the_export_again(a, b, seed, size, cfg, word):
    graph = shapes.sd15()
    graph["2"]["inputs"]["text"], graph["3"]["inputs"]["text"] = a, b
    graph["4"]["inputs"]["width"] = size
    graph["5"]["inputs"] |= {"seed": seed, "cfg": cfg, "sampler_name": word}
    if any(text.startswith("${") for text in (a, b, word)) or cfg in (float("inf"), -float("inf")):
        return
    filled = template.fill(flow_of(imported(graph)), {"prompt": a, "seed": seed})
    assert repr(filled) == repr(graph)


# -- wrappings -------------------------------------------------------------------------------------


def png(**chunks: str) -> bytes:
    text, out = PngInfo(), io.BytesIO()
    for name, value in chunks.items():
        text.add_text(name, value)
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=text)
    return out.getvalue()


def test_what_is_sent_to_the_server_is_unwrapped():
    body = json.dumps({"prompt": shapes.sd15(), "client_id": "x", "extra_data": {}}).encode()
    assert exports.graph_of("mine", body) == shapes.sd15()


def test_the_graph_is_read_out_of_a_picture_that_comfyui_saved():
    graph = shapes.sd15()
    noted = copy.deepcopy(graph)
    noted["2"]["is_changed"] = [float("nan")]  # type: ignore[assignment]
    data = png(prompt=json.dumps(noted), workflow="{}")
    assert exports.graph_of("mine", data) == graph


@pytest.mark.parametrize("side", ["2", "3"])
def test_a_text_that_comes_by_a_link_is_no_text_that_is_not_known(side):
    graph = shapes.sd15()
    graph["22"] = {"class_type": "PrimitiveString", "inputs": {"value": "a ship"}}
    graph[side]["inputs"]["text"] = ["22", 0]
    assert [one.why for one in report(graph) if one.what == "note"] == []


def test_a_node_and_an_input_may_have_points_in_their_names():
    graph = shapes.sd15()
    graph["1.2"] = {"class_type": "Mine", "inputs": {"model.prompt": "a ship", "clip": ["1", 1]}}
    graph["5"]["inputs"]["positive"] = ["1.2", 0]
    assert "--prompt NODE.INPUT" in str(refusal(graph).hint)
    told = Told(prompt="1.2.model.prompt")
    assert places(graph, told)["prompt"] == ["1.2.model.prompt"]
    assert "--prompt 1.2 is no text" in refusal(graph, Told(prompt="1.2")).message


def test_one_text_for_both_sides_is_the_prompt():
    graph = shapes.sd15()
    graph["22"] = {"class_type": "PrimitiveString", "inputs": {"value": "a ship"}}
    for side in "23":
        graph[side]["inputs"]["text"] = ["22", 0]
    assert places(graph)["prompt"] == ["22.value"]
    assert [one.why for one in report(graph) if one.what == "note"] == ["no negative prompt"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not JSON"),
        (b"not JSON", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"1":' * 300 + b"1" + b"}" * 300, "nested too deep"),
        (b'{"1": 1e400}', "not JSON: 1e400 is too large for a number"),
        (b"[]", "not an object"),
        (b"{}", "no SaveImage"),
        (b'{"1": 5}', "node 1 has no class_type"),
        (b'{"nodes": [], "links": []}', "UI-format"),
        (b'{"1": {}, "1": {}}', "'1' stands twice"),
        (b'{"_imagen": {}}', "is a workflow already"),
        (png(), "a picture that holds no graph"),
        (png(prompt='{"nodes": []}'), "UI-format"),
        (png(prompt="{}")[:60], "a picture that holds no graph"),
        (b"\xff\xd8\xff\xe0 a photo", "a picture that holds no graph"),
        (b"RIFF1234WEBP", "a picture that holds no graph"),
    ],
)
def test_what_is_no_export_is_refused_with_the_reason(data, says):
    with pytest.raises(WorkflowFault) as caught:
        exports.graph_of("mine", data)
    assert says in caught.value.message


def changed(**inputs: Any) -> Graph:
    graph = shapes.sd15()
    graph["5"]["inputs"] |= inputs
    return graph


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        (changed(model=["77", 0]), "links to node '77', which is not there"),
        (changed(model=[1, 0]), "node 5 (KSampler), model: a link is"),
        (changed(model=["1"]), "Bad linked input"),
        (changed(latent_image=["5", 0]), "made of itself: 5 ← 5"),
        (changed(seed="${seed}"), "has placeholders: seed"),
        (changed(positive="x", model="x"), "no sampler leads to node 7 (SaveImage)"),
    ],
)
def test_a_graph_that_no_server_runs_is_refused_with_the_place(graph, says):
    assert says in refusal(graph).message


def test_numbers_that_json_has_no_word_for_are_refused():
    graph = shapes.sd15()
    graph["5"]["inputs"]["denoise"] = float("inf")
    with pytest.raises(WorkflowFault, match="NaN, Infinity"):
        exports.written(infer.imported("mine", graph, Told()))


def test_half_a_surrogate_pair_is_refused():
    graph = shapes.sd15()
    graph["7"]["inputs"]["filename_prefix"] = "\ud800"
    with pytest.raises(WorkflowFault, match="surrogate"):
        exports.written(infer.imported("mine", graph, Told()))


def test_ten_thousand_loras_are_imported_at_once():
    graph = shapes.sd15()
    for n in range(10_000):
        file = {"lora_name": f"{n}.safetensors", "strength_model": 1}
        source = [str(99 + n), 0] if n else ["1", 0]
        inputs = {**file, "model": source}
        graph[str(100 + n)] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
    graph["5"]["inputs"]["model"] = ["10099", 0]
    began = time.process_time()
    found = imported(graph)
    assert len(found.models) == 10_001
    assert len(exports.report(found)) > 20_000
    assert flow_of(found).defaults["lora_10000"] == "9999.safetensors"
    assert time.process_time() - began < 10


# -- what is said and what is left -----------------------------------------------------------------


def notes(graph: Graph, told: Told = Told()) -> list[str]:  # noqa: B008
    return [str(line.why) for line in report(graph, told) if line.what == "note"]


def test_of_several_nodes_that_save_only_the_output_is_asked_for_at_first():
    fault = refusal(shapes.two_outputs())
    assert fault.hint == "say which: --output-node NODE"
    two_outputs = notes(shapes.two_outputs(), TOLD["two_outputs"])
    assert "2 nodes save: each request makes that many images" in two_outputs
    assert not any("nodes save" in note for note in notes(shapes.sd15()))


@pytest.mark.parametrize(("outputs", "shown"), [(8, 8), (9, 8)])
def test_of_many_choices_the_first_eight_are_named(outputs, shown):
    graph = shapes.sd15()
    for number in range(outputs - 1):
        graph[f"{50 + number}"] = copy.deepcopy(graph["7"])
    message = refusal(graph).message
    assert message.count("(SaveImage)") == shown
    assert ("…" in message) is (outputs > shown)


def test_a_wrong_answer_is_refused_with_the_choices_there_are():
    assert refusal(shapes.sd15(), Told(output="8")).hint == "it has 7 (SaveImage)"
    assert refusal(shapes.from_picture(), Told(latent="3")).hint is None
    long = refusal(shapes.sd15(), Told(output="x" * 90)).message
    assert long.endswith(f"no output node {'x' * 40!r}")


def test_of_the_samplers_that_were_named_none_is_called_left():
    assert notes(shapes.sd15(), Told(samplers=("5",))) == []
    hires_fix = notes(shapes.hires_fix(), Told(samplers=("5",)))
    assert [note for note in hires_fix if "is no --sampler" in note] == [
        "node 7 (KSampler) is no --sampler: its seed, steps and texts are left"
    ]


def test_a_negative_text_that_is_put_together_is_asked_for_too():
    graph = shapes.sd15()
    parts = {"string_a": "blurry", "string_b": "ugly", "delimiter": " "}
    graph["20"] = {"class_type": "StringConcatenate", "inputs": parts}
    graph["3"]["inputs"]["text"] = ["20", 0]
    fault = refusal(graph)
    assert "the negative prompt is not clear: 3.text" in fault.message
    assert "--negative NODE.INPUT" in str(fault.hint)
    assert places(graph, Told(negative="20.string_b"))["negative_prompt"] == ["20.string_b"]
    graph["2"]["inputs"]["text"] = ["20", 0]
    graph["5"]["inputs"]["negative"] = graph["5"]["inputs"]["positive"]
    assert "negative" not in refusal(graph).message, "one text for both sides is the prompt's"


def test_that_there_is_no_negative_prompt_is_said_only_where_there_is_none():
    assert "no negative prompt: 5 (ConditioningZeroOut)" in notes(shapes.dual_prompts())
    assert not any("no negative prompt" in note for note in notes(shapes.sd15()))
    graph = shapes.sd15()
    graph["20"] = {"class_type": "Loader of Somebody", "inputs": {"yes": PHOTO, "no": BAD}}
    graph["5"]["inputs"] |= {"positive": ["20", 1], "negative": ["20", 2]}
    assert notes(graph, Told(prompt="20.yes", negative="20.no")) == [
        "node 20 (Loader of Somebody) gives a text that is not known (--prompt, --negative)"
    ]


def test_a_blank_text_beside_a_prompt_stays_blank():
    assert places(shapes.dual_prompts(" \n"))["prompt"] == ["4.t5xxl"]


@pytest.mark.parametrize(
    ("kind", "size", "multiple"),
    [
        ("EmptySD3LatentImage", (1024, 768), 16),
        ("EmptySD3LatentImage", (1000, 1024), 8),
        ("EmptySD3LatentImage", (1024, 1000), 8),
        ("EmptyLatentImage", (1024, 1024), 8),
    ],
)
def test_a_size_is_a_multiple_of_what_its_latent_takes_if_the_exports_own_is(kind, size, multiple):
    graph = shapes.sd15()
    width, height = size
    graph["4"] = {
        "class_type": kind,
        "inputs": {"width": width, "height": height, "batch_size": 1},
    }
    assert imported(graph).size_multiple == multiple


def second_latent(kind: str, **inputs: Any) -> Graph:
    graph = shapes.sd15()
    graph["20"] = {"class_type": kind, "inputs": {"batch_size": 1, **inputs}}
    both = {"samples_to": ["4", 0], "samples_from": ["20", 0], "x": 0, "y": 0, "feather": 0}
    graph["21"] = {"class_type": "LatentComposite", "inputs": both}
    graph["22"] = {"class_type": "PrimitiveInt", "inputs": {"value": 512}}
    graph["23"] = {"class_type": "PrimitiveInt", "inputs": {"value": 768}}
    graph["5"]["inputs"]["latent_image"] = ["21", 0]
    return graph


def test_two_latents_of_one_size_share_it_however_it_comes_to_them():
    graph = second_latent("EmptySD3LatentImage", width=["22", 0], height=["23", 0])
    draft = imported(graph)
    assert flow_of(draft).places()["width"] == [("4", "width"), ("22", "value")]
    assert draft.size_multiple == 16, "of the one that takes fewer sizes"
    other = second_latent("EmptyLatentImage", width=["22", 0], height=["22", 0])
    assert "2 latents of several sizes: " in refusal(other).message


def test_a_side_that_is_left_at_the_latent_is_left_at_every_node_that_repeats_it():
    graph = shapes.klein()
    graph["20"] = {"class_type": "PrimitiveInt", "inputs": {"value": 1024}}
    graph["11"]["inputs"] |= {"width": ["20", 0], "height": ["20", 0]}
    assert graph["11"]["class_type"] == "EmptyFlux2LatentImage"
    assert not {"width", "height"} & places(graph).keys()


def test_a_sampler_without_noise_keeps_its_seed_and_says_why():
    graph = shapes.sdxl_refiner()
    graph["9"]["inputs"]["noise_seed"] = graph["6"]["inputs"]["noise_seed"]
    assert places(graph, TOLD["sdxl_refiner"])["seed"] == ["6.noise_seed"]
    lines = report(graph, TOLD["sdxl_refiner"])
    (left,) = (line for line in lines if (line.node, line.input) == ("9", "noise_seed"))
    assert (left.what, left.why) == ("left", "its noise is off")


@pytest.mark.parametrize("cfg", [7, 7.5])
def test_a_cfg_may_be_a_whole_number_or_a_fraction(cfg):
    assert places(changed(cfg=cfg))["cfg"] == ["5.cfg"]


@pytest.mark.parametrize(
    ("kind", "name", "file", "placeholder", "folder"),
    [
        ("LoraLoaderModelOnly", "lora_name", "X.SafeTensors", "lora", "loras"),
        ("CLIPLoader", "clip_name", "clip_l.safetensors", "clip", "text_encoders"),
        ("CLIPVisionLoader", "clip_name", "clip_l.safetensors", "clip_vision", "clip_vision"),
        ("CLIPLoader", "clip_name2", "X/CLIP_L.safetensors", "clip_l", "text_encoders"),
        ("CLIPLoader", "clip_name2", "X\\t5.safetensors", "t5xxl", "text_encoders"),
        ("CLIPLoader", "clip_name2", "t5\\x.safetensors", "clip_2", "text_encoders"),
        ("CLIPLoader", "clip_name2", "clip_l/x.safetensors", "clip_2", "text_encoders"),
        ("UpscaleModelLoader", "model_name", "x.pth", "upscale_model", "upscale_models"),
        ("ModelPatchLoader", "name", "x.safetensors", "model_patch", "model_patches"),
        ("Mine", "lora_name", "x.gguf", "lora", "loras"),
    ],
)
def test_a_model_file_has_its_placeholder_by_its_input_its_class_or_its_name(
    kind, name, file, placeholder, folder
):
    graph = changed(model=["30", 0])
    graph["30"] = {"class_type": kind, "inputs": {name: file, "model": ["1", 0]}}
    draft = imported(graph)
    assert {"file": f"${{{placeholder}}}", "folder": folder} in draft.models
    assert draft.defaults[placeholder] == file


def test_a_model_file_in_an_input_that_is_not_known_is_left_and_said():
    graph = changed(model=["30", 0])
    inputs = {"thing": "x.safetensors", "note": "x.txt", "model": ["1", 0]}
    graph["30"] = {"class_type": "Mine", "inputs": inputs}
    whys = {line.input: line.why for line in report(graph) if line.node == "30"}
    assert whys["thing"] == "a model file in an input that is not known"
    assert whys["note"] != whys["thing"]
