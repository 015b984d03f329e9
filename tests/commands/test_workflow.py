"""imagen-workflow: list, show, check, import, as processes and against a server."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import shapes
from imagen.workflows import template
from servers.comfyui import TROUBLE, ComfyUI


def written(folder: Any, graph: Any, name: str = "export.json") -> str:
    (folder / name).write_text(json.dumps(graph))
    return name


def local(url: str, **settings: Any) -> str:
    """The configuration of an instance `local` at this URL."""
    lines = {"type": "comfyui", "url": url, "patience_s": 0.2, "retry_s": 0.01, **settings}
    return "backends:\n  local:\n" + "".join(f"    {k}: {v}\n" for k, v in lines.items())


# -- list, show ------------------------------------------------------------------------------------


def test_the_bundled_workflows_are_listed(tool):
    ran = tool("workflow", "list")
    assert ran.status == 0
    assert [row["name"] for row in ran.records] == template.bundled()
    assert ran.records[0]["models"][0] == "flux1-schnell.safetensors"
    assert (ran.records[0]["width"], ran.records[0]["steps"]) == (1024, 4)


def test_workflows_of_the_configuration_are_listed_with_their_backends(tool, configure):
    file = {"_imagen": {"description": "mine"}, **shapes.sd15()}
    config = configure(local("http://127.0.0.1:9", workflow="./mine.json"))
    written(config.parent, file, "mine.json")
    rows = {row["name"]: row for row in tool("workflow", "list").records}
    assert rows["mine"]["backends"] == ["local"]
    assert rows["mine"]["path"] == str(config.parent / "mine.json")
    configure(local("http://127.0.0.1:9"))
    rows = {row["name"]: row for row in tool("workflow", "list").records}
    assert rows["flux1-schnell"]["backends"] == ["local"]


def test_a_workflow_that_cannot_be_read_is_said_and_the_others_are_listed(tool, configure):
    configure(local("http://127.0.0.1:9", workflow="./gone.json"))
    ran = tool("workflow", "list")
    assert (ran.status, len(ran.records)) == (2, 3)
    assert "backend local: cannot read workflow" in ran.err


def test_on_a_terminal_the_list_is_a_table_and_a_workflow_a_page(tool):
    lines = tool.on_terminal("workflow", "list").splitlines()
    assert lines[0].split() == ["name", "size", "steps", "models", "backends", "description"]
    assert len(lines) == 4
    page = tool.on_terminal("workflow", "show", "sd35-medium")
    assert "multiples of 16" in page
    assert "negative_prompt" in page
    assert " https://huggingface.co/" in page, "where its file comes from"
    assert page.index("CheckpointLoaderSimple") < page.index("KSampler") < page.index("SaveImage")


def test_show_says_where_each_placeholder_stands(tool):
    shown = tool("workflow", "show", "flux1-schnell").record
    stands = {one["name"]: one["places"] for one in shown["placeholders"]}
    assert stands["seed"] == ["31.seed"]
    assert sorted(stands["width"]) == ["27.width", "30.width"]
    assert shown["nodes"][-1] == {"id": "9", "class": "SaveImage", "made_of": ["8"]}
    assert shown["models"][0]["folder"] == "diffusion_models"


def test_show_raw_is_the_file_itself(tool):
    ran = tool("workflow", "show", "--raw", "flux2-klein")
    assert ran.out == (template.BUNDLED / "flux2-klein.json").read_bytes()


# -- check -----------------------------------------------------------------------------------------


def test_the_bundled_workflows_are_sound(tool):
    ran = tool("workflow", "check", *template.bundled())
    assert (ran.status, ran.out) == (0, b"")
    assert ran.err.count(": sound\n") == 3
    assert tool("workflow", "check", "-q", "sd35-medium").err == ""


def test_what_must_be_changed_in_the_file_ends_with_2(tool, tmp_path):
    graph = shapes.sd15()
    graph["5"]["inputs"]["model"] = ["77", 0]
    graph["5"]["inputs"]["steps"] = "${setps}"
    ran = tool("workflow", "check", written(tmp_path, graph), "./no-such.json", "flux1-schnell")
    assert ran.status == 2
    found = {one["what"]: one for one in ran.records if one["severity"] == "error"}
    assert found["no_value"]["hint"].startswith("did you mean steps?")
    broken = found["exception_during_inner_validation"]
    assert (broken["workflow"], broken["node"], broken["class"]) == ("export", "5", "KSampler")
    assert "cannot read workflow" in ran.err
    assert "flux1-schnell: sound" in ran.err, "the others are checked all the same"


def test_warnings_alone_end_with_0(tool, tmp_path):
    ran = tool("workflow", "check", written(tmp_path, shapes.sd15()))
    assert ran.status == 0
    assert [one["what"] for one in ran.records] == ["no_prompt", "no_seed"]
    assert "export: 2 warnings" in ran.err
    shown = tool.on_terminal("workflow", "check", "export.json")
    assert "warning: no ${prompt}: every request would make the same image [no_prompt]" in shown


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ('{"nodes": []}', "Export (API)"),
        ("oops", "not JSON"),
        (b"\x89PNG\r\n\x1a\n", "x is a PNG (hint: it is no JSON file: imagen-workflow import"),
        (b"\xff\xd8\xff\xe0", "not JSON: no text in UTF-8"),
        ('{"9": {"class_type": "PreviewImage", "inputs": {}}}', "no SaveImage"),
    ],
)
def test_what_is_no_workflow_is_refused(tool, tmp_path, data, says):
    (tmp_path / "x.json").write_bytes(data if isinstance(data, bytes) else data.encode())
    ran = tool("workflow", "check", "x.json")
    assert (ran.status, ran.out) == (2, b"")
    assert says in ran.err


def test_a_server_that_has_all_finds_nothing_and_runs_nothing(tool, configure):
    with ComfyUI() as server:
        configure(local(server.url))
        ran = tool("workflow", "check", "sd35-medium", "flux2-klein", "--backend", "local")
        own = tool("workflow", "check", "--backend", "local")
    assert (ran.status, ran.out, own.status) == (0, b"", 0), ran.out
    assert "flux1-schnell: sound" in own.err
    assert {method for method, _, _ in server.requests} == {"GET"}
    assert all(path.startswith("/object_info/") for _, path, _ in server.requests)


def test_what_the_server_lacks_ends_with_1(tool, configure):
    with ComfyUI() as server:
        configure(local(server.url))
        server.uninstall("ae.safetensors")
        del server.classes["ModelSamplingFlux"]
        ran = tool("workflow", "check", "flux1-schnell", "--backend", "local")
    assert ran.status == 1
    found = {one["what"]: one for one in ran.records}
    assert found["value_not_in_list"]["file"] == "ae.safetensors"
    assert found["invalid_prompt"]["class"] == "ModelSamplingFlux"


def test_values_out_of_range_end_with_2_before_anything_is_sent(tool, configure, tmp_path):
    graph = shapes.sd15()
    graph["1"]["inputs"]["ckpt_name"] = "sd3.5_medium.safetensors"
    graph["5"]["inputs"] |= {"steps": 0, "sampler_name": "eulre"}
    with ComfyUI() as server:
        configure(local(server.url))
        ran = tool("workflow", "check", written(tmp_path, graph), "--backend", "local")
    assert ran.status == 2
    errors = {one["what"]: one for one in ran.records if one["severity"] == "error"}
    assert errors["value_smaller_than_min"]["message"] == "Value 0 smaller than min of 1"
    assert "did you mean euler" in errors["value_not_in_list"]["hint"]
    assert server.submits == []


def test_the_instance_fills_its_own_placeholders(tool, configure):
    with ComfyUI() as server:
        configure(local(server.url, unet="mine.safetensors", default_steps=0))
        refused = tool("workflow", "check", "--backend", "local")
        configure(local(server.url, unet="mine.safetensors", default_steps=20_000))
        ran = tool("workflow", "check", "--backend", "local")
    assert "default_steps" in refused.err
    assert {one["what"] for one in ran.records} == {"value_not_in_list", "value_bigger_than_max"}


def test_a_class_with_a_name_of_any_kind_is_asked_for_as_it_is(tool, configure, tmp_path):
    graph = {
        "1": {"class_type": "Load? (a/b) #1", "inputs": {}},
        "2": {"class_type": "..", "inputs": {}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    with ComfyUI() as server:
        configure(local(server.url))
        ran = tool("workflow", "check", written(tmp_path, graph), "--backend", "local")
    assert ran.status == 1
    asked = [path for _, path, _ in server.requests]
    assert asked == ["/object_info/Load%3F%20%28a%2Fb%29%20%231", "/object_info/SaveImage"]


def test_a_server_that_is_off_ends_with_75_and_the_boot_hint(tool, configure):
    configure(local("http://127.0.0.1:9", boot_hint="boot-it now"))
    ran = tool("workflow", "check", "flux1-schnell", "--backend", "local")
    assert (ran.status, ran.out) == (75, b"")
    assert "boot-it now" in ran.err


@pytest.mark.parametrize(
    "info",
    [
        [],
        {"UNETLoader": []},
        {"UNETLoader": {"input": 5}},
        {"UNETLoader": {"input": {"required": [1]}}},
    ],
)
def test_a_server_that_answers_nonsense_is_said_to(tool, configure, info):
    from servers.comfyui import Answer

    with ComfyUI() as server:
        configure(local(server.url))
        server.fail("GET /object_info/UNETLoader", Answer(200, json.dumps(info).encode()), times=2)
        ran = tool("workflow", "check", "flux1-schnell", "--backend", "local")
        server.fail("GET /object_info", TROUBLE, times=4)
        broken = tool("workflow", "check", "flux1-schnell", "--backend", "local")
    assert (ran.status in (1, 75), broken.status) == (True, 75)
    assert "Traceback" not in ran.err + broken.err
    assert "a fault in imagen itself" not in ran.err


def test_only_a_comfyui_can_be_asked(tool):
    ran = tool("workflow", "check", "flux1-schnell", "--backend", "mock")
    assert ran.status == 2
    assert "backend mock is no ComfyUI" in ran.err
    assert "no backend 'mokc'" in tool("workflow", "check", "--backend", "mokc").err


# -- import ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["guided", *shapes.ANSWERS])
def test_an_export_and_what_is_asked_becomes_a_workflow_that_loads(tool, tmp_path, name):
    answers = shapes.ANSWERS.get(name, [])
    export = written(tmp_path, shapes.SHAPES[name]())
    ran = tool("workflow", "import", export, "-o", "made.json", *answers)
    assert (ran.status, ran.err) == (0, "")
    made = template.load(str(tmp_path / "made.json"))
    assert template.fill(made, {}) == shapes.SHAPES[name]()
    found = {line["placeholder"] for line in ran.records if line["what"] == "found"}
    assert found == made.placeholders()


def test_an_import_is_rendered_by_a_server_as_the_export_was(tool, tmp_path, configure):
    export = written(tmp_path, shapes.recorded()["flux1-schnell"])
    with ComfyUI() as server:
        config = configure(local(server.url, workflow="./made.json"))
        assert tool("workflow", "import", export, "-o", config.parent / "made.json").status == 0
        assert tool("workflow", "check", "--backend", "local").status == 0
        ran = tool("render", "a cat", "--backend", "local", "--size", "64x64", "--seed", 7)
    assert ran.status == 0
    assert (ran.record["width"], ran.record["steps"]) == (64, 4)
    sent = server.submits[0]["prompt"]
    assert (sent["6"]["inputs"]["text"], sent["31"]["inputs"]["seed"]) == ("a cat", 7)


def test_without_a_file_the_workflow_goes_to_stdout_and_the_report_to_stderr(tool):
    ran = tool("workflow", "import", "-", stdin=json.dumps(shapes.sd15()))
    assert ran.status == 0
    assert template.parse("x", ran.out).places()["seed"] == [("5", "seed")]
    assert '${prompt} ← 2.text (CLIPTextEncode) = "a photo of a lighthouse"' in ran.err
    assert "left: 5.denoise (KSampler) = 1" in ran.err
    assert tool("workflow", "import", "-q", "-", stdin=json.dumps(shapes.sd15())).err == ""


def test_on_a_terminal_the_report_is_for_people(tool, tmp_path):
    written(tmp_path, shapes.sd15())
    shown = tool.on_terminal("workflow", "import", "export.json", "-o", "made.json")
    assert "${steps} ← 5.steps (KSampler) = 20\n" in shown


def test_a_picture_of_comfyui_is_an_export_too(tool, tmp_path):
    text, out = PngInfo(), io.BytesIO()
    text.add_text("prompt", json.dumps(shapes.sd15()))
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=text)
    (tmp_path / "ComfyUI_00001_.png").write_bytes(out.getvalue())
    ran = tool("workflow", "import", "ComfyUI_00001_.png")
    assert ran.status == 0
    assert template.fill(template.parse("x", ran.out), {}) == shapes.sd15()


def test_a_file_that_is_there_is_not_replaced_unless_told(tool, tmp_path):
    export = written(tmp_path, shapes.sd15())
    (tmp_path / "made.json").write_text("mine")
    ran = tool("workflow", "import", export, "-o", "made.json")
    assert (ran.status, ran.out) == (2, b"")
    assert "--force" in ran.err
    assert (tmp_path / "made.json").read_text() == "mine"
    assert tool("workflow", "import", export, "-o", "made.json", "--force").status == 0
    assert template.load(str(tmp_path / "made.json")).defaults["steps"] == 20


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_only_a_file_can_be_replaced(tool, tmp_path, force):
    export = written(tmp_path, shapes.sd15())
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for place in ("folder", "pipe", "link"):
        ran = tool("workflow", "import", export, "-o", place, *force)
        assert (ran.status, ran.out) == (2, b"")
        assert f"the output file is no file: {place} (hint: name a file" in ran.err
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    nowhere = tool("workflow", "import", export, "-o", "none/x.json", *force)
    assert "no folder none (hint: make it first)" in nowhere.err
    dash = tool("workflow", "import", export, "-o", "-", *force)
    assert template.parse("x", dash.out).places()["seed"] and not (tmp_path / "-").exists()


def test_a_file_whose_name_is_no_utf_8_is_read_and_named_without_it(tool, tmp_path):
    name = os.fsdecode(b"\xff.json")
    try:
        written(tmp_path, shapes.sd15(), name)
    except OSError:
        pytest.skip("the file system takes no such names")
    checked = tool("workflow", "check", name)
    assert checked.status == 0
    assert [one["workflow"] for one in checked.records] == ["?", "?"]
    assert tool("workflow", "show", name).record["name"] == "?"
    assert tool("workflow", "import", name, "-o", name, "--force").status == 0


def test_it_is_the_export_that_is_named_not_what_would_be_made_of_it(tool, tmp_path):
    written(tmp_path, {"1": 5}, "export.json")
    ran = tool("workflow", "import", "export.json", "-o", "made.json")
    assert "workflow export: node 1 has no class_type" in ran.err


@pytest.mark.parametrize("name", shapes.ANSWERS)
def test_what_is_not_clear_is_asked_for_and_nothing_is_written(tool, tmp_path, name):
    export = written(tmp_path, shapes.SHAPES[name]())
    ran = tool("workflow", "import", export, "-o", "made.json")
    assert (ran.status, ran.out) == (2, b"")
    assert shapes.ANSWERS[name][0] in ran.err
    assert not (tmp_path / "made.json").exists()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not JSON"),
        (b'{"nodes": [], "links": []}', "in ComfyUI: Workflow, Export (API)"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "nested too deep"),
        (b"\x89PNG\r\n\x1a\n", "holds no graph"),
        (b"{" + b" " * (16 * 2**20) + b"}", "larger than 16 MiB"),
    ],
)
def test_bad_input_is_refused_with_the_reason(tool, tmp_path, data, says):
    (tmp_path / "export.json").write_bytes(data)
    ran = tool("workflow", "import", "export.json", "-o", "made.json")
    assert (ran.status, ran.out) == (2, b"")
    assert says in ran.err
    assert not (tmp_path / "made.json").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["import"], "import takes one name or file"),
        (["import", "gone.json"], "cannot read the export"),
        (["import", "."], "cannot read the export"),
        (["show"], "show takes one name"),
        (["show", "flux1-shnell"], "did you mean flux1-schnell?"),
        (["list", "x"], "list takes nothing more"),
        (["check"], "check takes names"),
        (["check", ""], "no workflow ''"),
        (["check", "x", "--raw"], "--raw goes with show"),
        (["list", "--sampler", "5"], "--sampler goes with import"),
        (["check", "flux1-schnell", "--output-node", "9"], "--output-node goes with import"),
        (["polish"], "is not one of"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(tool, args, says):
    ran = tool("workflow", *args)
    assert (ran.status, ran.out) == (2, b"")
    assert says in ran.err


def test_a_folder_that_is_not_there_is_said(tool, tmp_path):
    export = written(tmp_path, shapes.sd15())
    ran = tool("workflow", "import", export, "-o", "no/such/made.json")
    assert ran.status == 2
    assert "no folder no/such (hint: make it first)" in ran.err
