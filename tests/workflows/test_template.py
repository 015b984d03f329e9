"""Workflow templates: load, inspect, fill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagen.errors import WorkflowFault
from imagen.workflows import template as templates
from imagen.workflows.template import Model, Workflow, fill, load, parse

SAVE = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}


def graph(**inputs: Any) -> dict[str, Any]:
    return {"1": {"class_type": "Maker", "inputs": inputs}, "9": SAVE}


def read(tree: Any) -> Workflow:
    return parse("mine", json.dumps(tree).encode())


# -- filling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["text", "${seed}", 7, 2**64 - 1, 3.5, 1.0, True, [1], {"a": 1}])
def test_a_placeholder_becomes_the_value_typed_as_it_is(value):
    filled = fill(read(graph(a="${x}")), {"x": value})
    assert filled["1"]["inputs"]["a"] == value
    assert type(filled["1"]["inputs"]["a"]) is type(value)


TEXTS = ["a ${x}", "${x} ", "${x}${x}", "$x", "${}", "${x-y}", "$ {x}", "${x}\n", "x", "", "{x}"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_placeholder_inside_a_longer_string_is_left_alone(text):
    assert fill(read(graph(a=text)), {"x": 1})["1"]["inputs"]["a"] == text


def test_a_prompt_that_looks_like_a_placeholder_is_just_a_prompt():
    filled = fill(read(graph(a="${prompt}", b="${seed}")), {"prompt": "${seed}", "seed": 5})
    assert filled["1"]["inputs"] == {"a": "${seed}", "b": 5}


@pytest.mark.parametrize(
    ("value", "filled"),
    [(["${x}", [0, "${x}"]], [5, [0, 5]]), ({"__value__": ["${x}"]}, {"__value__": [5]})],
)
def test_placeholders_inside_lists_and_objects_are_filled(value, filled):
    assert fill(read(graph(a=value)), {"x": 5})["1"]["inputs"]["a"] == filled


def test_given_values_go_over_the_workflows_own_defaults():
    tree = {"_imagen": {"defaults": {"x": 1, "y": 1}}, **graph(a="${x}", b="${y}")}
    assert fill(read(tree), {"x": 2})["1"]["inputs"] == {"a": 2, "b": 1}


@pytest.mark.parametrize("values", [{}, {"x": None}])
def test_a_placeholder_without_a_value_says_where_and_what_to_do(values):
    with pytest.raises(WorkflowFault, match=r"\$\{x\} has no value: node 1 \(Maker\), a") as caught:
        fill(read(graph(a="${x}")), values)
    assert "--option x=" in caught.value.hint


def test_a_placeholder_without_a_value_names_close_matches():
    with pytest.raises(WorkflowFault) as caught:
        fill(read(graph(a="${sampelr}")), {"sampler": "euler"})
    assert "did you mean sampler" in caught.value.hint


def test_filling_leaves_the_template_as_it_was():
    template = read(graph(a="${x}", b=["${x}"]))
    before = json.dumps(template.graph)
    fill(template, {"x": 1})["1"]["inputs"]["a"] = "changed"
    assert json.dumps(template.graph) == before


names = st.sampled_from(["prompt", "seed", "cfg", "unet"])
scalars = st.text(max_size=8) | st.integers() | st.floats(allow_nan=False) | st.booleans()
inputs = st.recursive(
    scalars | names.map("${{{}}}".format) | names.map("a ${{{}}}".format),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
graphs = st.dictionaries(
    st.integers(1, 9).map(str),
    st.builds(
        lambda kind, found: {"class_type": kind, "inputs": found, "_meta": {"title": "${seed}"}},
        st.sampled_from(["A", "B"]),
        st.dictionaries(st.text(max_size=5), inputs, max_size=4),
    ),
    max_size=4,
)


def expected(value: Any, known: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [expected(one, known) for one in value]
    whole = isinstance(value, str) and value in {f"${{{name}}}" for name in known}
    return known[value[2:-1]] if whole else value


@given(graphs, st.fixed_dictionaries(dict.fromkeys(["prompt", "seed", "cfg", "unet"], scalars)))
@example(
    {"1": {"class_type": "A", "inputs": {"a": "${prompt}", "b": "${seed}"}}},
    {"prompt": "${seed}", "seed": 1, "cfg": 1.0, "unet": "${prompt}"},
)
@settings(max_examples=60, deadline=None)
def test_filling_changes_placeholders_and_nothing_else(nodes, known):
    filled = fill(Workflow("any", nodes), known)
    assert [*filled] == [*nodes]
    for key, node in nodes.items():
        assert {**filled[key], "inputs": None} == {**node, "inputs": None}
        wanted = {name: expected(value, known) for name, value in node["inputs"].items()}
        assert repr(filled[key]["inputs"]) == repr(wanted), "types too"


# -- loading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", templates.bundled())
def test_a_bundled_workflow_says_all_about_itself(name):
    found = load(name)
    assert found.name == name
    assert found.description
    assert {"prompt", "seed", "width", "height"} <= found.placeholders()
    assert {*found.defaults} <= found.placeholders(), "each default has its placeholder"
    needed = found.placeholders() - {"prompt", "seed"}
    assert needed <= {*found.defaults}, "with its defaults alone it can be filled"
    assert len(found.nodes("SaveImage")) == 1
    for model in found.needs({}):
        assert model.file.endswith(".safetensors")
        assert model.folder
        assert model.licence
        for source in model.sources:
            assert source.startswith("https://huggingface.co/")
            assert source.endswith(f"/{model.file}")
        assert model.sources


def test_schnell_runs_its_official_schedule():
    nodes = {node["class_type"]: node["inputs"] for node in load("flux1-schnell").graph.values()}
    shifts = nodes["ModelSamplingFlux"]
    assert (shifts["max_shift"], shifts["base_shift"]) == (0, 0)
    defaults = load("flux1-schnell").defaults
    assert (defaults["steps"], defaults["scheduler"]) == (4, "simple")


def test_an_instance_may_name_its_model_file_of_which_only_the_folder_is_known():
    mine, clip, *_ = load("flux1-schnell").needs({"unet": "mine.safetensors"})
    assert mine == Model("mine.safetensors", "diffusion_models")
    assert (clip.file, clip.size) == ("clip_l.safetensors", 246144152)


def test_a_model_file_without_a_name_keeps_its_placeholder():
    tree = {"_imagen": {"models": [{"file": "${vae}", "folder": "vae"}]}, **graph(a="${vae}")}
    assert read(tree).needs({}) == [Model("${vae}", "vae")]


def test_sources_may_be_one_or_several():
    one, two = (
        {"file": "a", "source": said} for said in ("http://a/a", ["http://a/a", "http://b"])
    )
    found = read({"_imagen": {"models": [one, two]}, **graph()}).needs({})
    assert [model.sources for model in found] == [("http://a/a",), ("http://a/a", "http://b")]


@pytest.mark.parametrize(
    ("given", "missing", "says"),
    [
        ({}, ["ae.safetensors"], "where ComfyUI runs: imagen-models fetch flux1-schnell"),
        (
            {"unet": "my file.safetensors"},
            ["my file.safetensors", "ae.safetensors"],
            "no source is known for my file.safetensors, which goes into models/diffusion_models; "
            "where ComfyUI runs: imagen-models fetch flux1-schnell "
            "'--option=unet=my file.safetensors'",
        ),
        (
            {"vae": "mine.safetensors"},
            ["mine.safetensors"],
            "no source is known for mine.safetensors, which goes into models/vae",
        ),
        ({}, ["of-a-request.safetensors"], None),
        ({}, [], None),
    ],
)
def test_what_brings_missing_files_is_a_command_line(given, missing, says):
    assert load("flux1-schnell").cure(missing, given) == says


def test_a_workflow_of_a_file_is_named_by_its_path(tmp_path):
    about = {"models": [{"file": "a.pt", "folder": "vae", "source": "https://example.org/a.pt"}]}
    path = tmp_path / "my flow.json"
    path.write_text(json.dumps({"_imagen": about, **graph()}))
    cure = load("./my flow.json", tmp_path).cure(["a.pt"], {})
    assert cure == f"where ComfyUI runs: imagen-models fetch '{path}'"


def test_a_workflow_may_be_a_file_beside_the_configuration(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(graph(a="${prompt}")))
    assert load("mine.json", tmp_path).placeholders() == {"prompt"}
    assert load(str(tmp_path / "mine.json"), Path("/elsewhere")).name == "mine"


@pytest.mark.parametrize(
    ("name", "hint"), [("flux1-shnell", "did you mean flux1-schnell?"), ("x", "known: flux1")]
)
def test_an_unknown_name_is_refused_with_close_matches(name, hint):
    with pytest.raises(WorkflowFault) as caught:
        load(name)
    assert caught.value.code == "unknown_workflow"
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "file", "hint"),
    [
        ("sd15", "sd15.json", "a file is named with its .json: sd15.json"),
        ("sd15.txt", "sd15.txt", "a file is named by a path: ./sd15.txt"),
        ("twelve.png", "twelve.png", "it is no JSON file: imagen-workflow import reads"),
    ],
)
def test_a_file_that_is_named_as_if_it_were_bundled_is_pointed_to(name, file, hint, tmp_path):
    (tmp_path / file).touch()
    with pytest.raises(WorkflowFault) as caught:
        load(name, tmp_path)
    assert caught.value.hint.startswith(hint)


def test_a_name_that_no_disk_can_hold_is_only_unknown(tmp_path):
    with pytest.raises(WorkflowFault, match="no workflow"):
        load("x" * 300, tmp_path)


@pytest.mark.parametrize("name", ["../flux1-schnell", "/no/such.json", "no-such.json"])
def test_a_path_that_is_not_there_is_named(name):
    with pytest.raises(WorkflowFault, match="cannot read workflow"):
        load(name)


def test_what_imagen_says_is_not_part_of_the_graph():
    found = read({"_imagen": {"description": "mine"}, **graph()})
    assert [*found.graph] == ["1", "9"]
    assert found.description == "mine"


UI_EXPORT = {"last_node_id": 9, "nodes": [{"id": 1, "type": "KSampler"}], "links": [], "version": 1}


def test_a_ui_format_export_is_recognised_and_said_so():
    with pytest.raises(WorkflowFault, match="UI-format export") as caught:
        read(UI_EXPORT)
    assert "API" in caught.value.hint


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ([], "not an object"),
        ("x", "not an object"),
        ({}, "no SaveImage"),
        ({"1": SAVE | {"class_type": "Other"}}, "no SaveImage"),
        ({"1": []}, "node 1"),
        ({"1": {"inputs": {}}}, "node 1 has no class_type"),
        ({"1": {"class_type": 5, "inputs": {}}}, "node 1 has no class_type"),
        ({"1": {"class_type": "A"}}, "node 1 has no inputs"),
        ({"1": {"class_type": "A", "inputs": []}}, "node 1 has no inputs"),
        ({"_imagen": {"defualts": {}}, **graph()}, "_imagen.defualts is unknown"),
        ({"_imagen": {"defaults": []}, **graph()}, "_imagen.defaults must be"),
        ({"_imagen": {"size_multiple": 0}, **graph()}, "_imagen.size_multiple must be"),
        ({"_imagen": {"models": [{}]}, **graph()}, "_imagen.models"),
        ({"_imagen": {"models": ["x"]}, **graph()}, "_imagen.models"),
        *(
            ({"_imagen": {"models": [{"file": "a.pt", **wrong}]}, **graph()}, "_imagen.models")
            for wrong in (
                {"file": "../a.pt"},
                {"file": "/a.pt"},
                {"file": ""},
                {"folder": "../custom_nodes"},
                {"folder": "vae/"},
                {"folder": "a\nb"},
                {"source": "ftp://example.org/a"},
                {"source": []},
                {"source": ["https://example.org/a", 7]},
                {"size": "9"},
                {"size": True},
                {"size": 0},
                {"size": 2**60},
                {"sha256": "9" * 63},
                {"sha256": 9},
                {"licence": 7},
                {"accept": "the page"},
                {"sise": 9},
            )
        ),
        ({"_imagen": [], **graph()}, "_imagen"),
        ({"_imagen": None, **graph()}, "_imagen"),
    ],
)
def test_a_file_that_is_no_api_format_graph_is_refused_with_the_reason(tree, says):
    with pytest.raises(WorkflowFault) as caught:
        read(tree)
    assert says in caught.value.message
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("data", [b"", b"oops", b"\xff", b"[" * 100_000, b'{"a":' + b"1" * 5000])
def test_a_file_that_is_no_json_is_refused(data):
    with pytest.raises(WorkflowFault, match="not JSON"):
        parse("mine", data)


def test_a_file_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(templates, "MAX_BYTES", 100)
    with pytest.raises(WorkflowFault, match="larger than"):
        parse("mine", b" " * 101)
