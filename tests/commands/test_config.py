"""imagen-config: a sample, a check, what is in force, and the schemas."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from imagen.cli import first_config
from imagen.records import record
from servers.comfyui import ComfyUI

SAMPLE_INSTANCES = [
    "mock",
    "flux-schnell-local",
    "flux2-klein-local",
    "sd35-medium-local",
    "flux-schnell-replicate",
    "flux-dev-replicate",
]


def in_force(ran) -> dict[str, dict[str, object]]:
    return {line["key"]: line for line in ran.records}


# -- sample ----------------------------------------------------------------------------------------


def test_the_sample_holds_every_instance_and_is_valid(tool, configure):
    sample = tool("config", "sample")
    tree = yaml.safe_load(sample.out)
    assert [*tree["backends"]] == SAMPLE_INSTANCES
    assert tree["default_backend"] == "flux-schnell-local"
    assert tree["backends"]["flux-schnell-local"]["boot_hint"] == "boot-whitetower mrock"
    configure(sample.out.decode())
    ran = tool("config", "validate")
    assert ran.status == 0


def test_the_sample_shows_how_to_find_the_owner_and_leaves_it_empty(tool):
    text = tool("config", "sample").out.decode()
    assert not yaml.safe_load(text)["supabase"]["owner_user_id"]
    assert re.search(r"#.*select id from auth\.users", text)
    assert re.search(r"^ *# *owner_user_id: [0-9a-f-]{36}$", text, re.MULTILINE)


def test_the_sample_holds_no_secret(tool):
    text = tool("config", "sample").out.decode()
    assert not re.search(r"^\s*\S*(token|secret|password|_key):", text, re.MULTILINE)


def test_the_comments_of_the_sample_are_settings_that_would_be_valid(tool, configure):
    text = tool("config", "sample").out.decode()
    tail = text[text.index("# usage:") :]
    uncommented = "".join(line.removeprefix("# ") + "\n" for line in tail.splitlines())
    configure(uncommented)
    assert tool("config", "validate").status == 0


# -- validate --------------------------------------------------------------------------------------

FAULTY = """\
default_backend: flux-locl
outptu: {}
backends:
  flux-local:
    type: comfyui
    urll: http://x
    url: localhost:8188
  other: {type: comfy}
  bad/name: {type: mock}
  untyped: {}
output:
  preview: sometimes
  cloud_sync: on
budget:
  per_day: -1
supabase:
  owner_user_id: me
worker:
  jobs: 0
  poll_s: .nan
styles:
  ink: {templte: x}
output:
  dir: 5
"""


def test_a_backend_that_jobs_may_use_must_be_one_of_the_configuration(tool, configure):
    configure("worker: {backends: [mok, mock]}\n")
    for command in ("config validate", "listen --drain"):
        ran = tool(command, env={"IMAGEN_DATABASE_URL": "postgresql://localhost:1/none"})
        assert ran.status == 2
        assert "worker.backends: no backend 'mok' (hint: did you mean mock?" in ran.err


def test_validate_names_every_fault_with_its_line(tool, configure):
    path = configure(FAULTY)
    ran = tool("config", "validate")
    assert (ran.status, ran.out) == (2, b"")
    found = re.findall(r"^imagen-config: (.+?):(\d+): (\S+): (.+)$", ran.err, re.MULTILINE)
    assert len(found) == len(ran.err.splitlines())
    assert {one[0] for one in found} == {str(path)}
    places = {place: int(line) for _, line, place, _ in found}
    said = {place: text for _, _, place, text in found}
    for place, line in {
        "default_backend": 1,
        "outptu": 2,
        "backends.flux-local.urll": 6,
        "backends.flux-local.url": 7,
        "backends.other.type": 8,
        "backends.bad/name": 9,
        "backends.untyped": 10,
        "budget.per_day": 15,
        "supabase.owner_user_id": 17,
        "worker.jobs": 19,
        "worker.poll_s": 20,
        "styles.ink.templte": 22,
        "output": 23,
        "output.dir": 24,
    }.items():
        assert places.get(place) == line, place
    assert "flux-local" in said["default_backend"]
    assert "output" in said["outptu"]
    assert "url" in said["backends.flux-local.urll"]
    assert "comfyui" in said["backends.other.type"]
    assert "template" in said["styles.ink.templte"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [\n", "line 2"),
        ("a: b: c\n", "line 1"),
        ("\t- x\n", "line 1"),
        ("- a list\n", "keys and values"),
        ("just text\n", "keys and values"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1"),
        ("? {a: b}\n: c\n", "line 1"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_clear_line(tool, configure, text, says):
    configure(text)
    for what in ("validate", "show"):
        ran = tool("config", what)
        assert (ran.status, ran.out) == (2, b"")
        assert re.fullmatch(r"imagen-config: [^\n]+\n", ran.err)
        assert says in ran.err
        assert "itself" not in ran.err


def test_a_file_in_another_encoding_or_too_deep_is_refused(tool, configure):
    path = configure("")
    for data in (b"styles: {\xff: {}}", b"a: &a [" * 3_000, b"a: " + b"{b: " * 3_000):
        path.write_bytes(data)
        ran = tool("config", "validate")
        assert (ran.status, "itself" in ran.err) == (2, False)
        assert len(ran.err) < 1000


@pytest.mark.parametrize("name", ["5", "on", "2026-01-02", "~"])
def test_a_name_that_yaml_reads_as_something_else_is_no_traceback(tool, configure, name):
    configure(f"backends: {{{name}: {{type: mock}}}}\nstyles: {{{name}: {{prefix: x}}}}\n")
    for args in (["config", "validate"], ["config", "show"], ["backends"]):
        assert "itself" not in tool(*args).err
    for option in ("--backend", "--style"):
        ran = tool("render", "a", "--size=64x64", option, "nonesuch")
        assert (ran.status, "itself" in ran.err) == (2, False)


def test_validate_takes_a_file(tool):
    path = tool.folder / "mine.yaml"
    path.write_text("output: {cloud_sync: off}\n")
    for args in ([path], ["--config", path]):
        ran = tool("config", "validate", *args)
        assert (ran.status, ran.err) == (0, "")
        assert str(path) in ran.out.decode()
    assert tool("config", "validate", "no-such-file").status == 2
    assert tool("config", "validate", tool.folder).status == 2


@pytest.mark.parametrize(
    ("sync", "owner", "url", "lacks"),
    [
        ("on", "", "https://p.supabase.co", "supabase.owner_user_id"),
        ("auto", "", "https://p.supabase.co", "supabase.owner_user_id"),
        (None, "", "https://p.supabase.co", "supabase.owner_user_id"),
        ("on", "", "", "supabase.url"),
        ("on", "ac6c9501-0000-4000-8000-2cff4288382b", "", "supabase.url"),
        ("auto", "", "", None),
        (None, "", "", None),
        ("off", "", "https://p.supabase.co", None),
        ("on", "ac6c9501-0000-4000-8000-2cff4288382b", "https://p.supabase.co", None),
    ],
)
def test_validate_warns_only_of_a_cloud_that_is_half_configured(
    tool, configure, sync, owner, url, lacks
):
    configure(
        (f"output: {{cloud_sync: {sync}}}\n" if sync else "")
        + f'supabase: {{owner_user_id: "{owner}"{f", url: {url!r}" if url else ""}}}\n'
    )
    ran = tool("config", "validate")
    assert ran.status == 0
    assert (f"{lacks} is empty" in ran.err) if lacks else ran.err == ""


def test_validate_without_a_file_is_fine(tool):
    assert tool("config", "validate").status == 0


# -- show and path ---------------------------------------------------------------------------------


def test_show_says_where_each_value_comes_from(tool, configure):
    path = configure("default_backend: mock\noutput: {preview: off}\n")
    env = {"IMAGEN_OUT_DIR": "/pictures", "IMAGEN_PREVIEW": "on"}
    found = in_force(tool("config", "show", env=env))
    assert (found["output.dir"]["value"], found["output.dir"]["source"]) == (
        "/pictures",
        "$IMAGEN_OUT_DIR",
    )
    assert found["output.preview"] == {
        "key": "output.preview",
        "value": "on",
        "source": "$IMAGEN_PREVIEW",
    }
    assert found["default_backend"]["source"] == "file"
    assert found["output.cloud_sync"]["source"] == "default"
    assert found["backends.mock.type"]["value"] == "mock", "it always exists"
    assert tool("config", "path").out.decode() == f"{path}\n"


SECRETS = """\
backends:
  proxied:
    type: comfyui
    url: http://me:hunter2@example.org:8188
    headers_env: {Authorization: COMFY_TOKEN}
  paid: {type: replicate, api_token_env: REPLICATE_API_TOKEN}
"""


def test_secrets_are_never_printed(tool, configure):
    configure(SECRETS)
    env = {
        "COMFY_TOKEN": "hunter2",
        "REPLICATE_API_TOKEN": "hunter2",
        "SUPABASE_SERVICE_ROLE_KEY": "hunter2",
        "SUPABASE_URL": "https://me:hunter2@example.org",
    }
    for args in (["config", "show"], ["config", "validate"], ["backends"]):
        ran = tool(*args, env=env)
        assert b"hunter2" not in ran.out
        assert "hunter2" not in ran.err
    found = in_force(tool("config", "show", env=env))
    assert "***" in found["supabase.url"]["value"]
    assert found["supabase.service_key_env"]["secret"] == "***"


def test_a_switch_reads_yamls_own_on_and_off(tool, configure):
    configure("output: {preview: on, cloud_sync: off}\n")
    found = in_force(tool("config", "show"))
    assert found["output.preview"]["value"] == "on"
    assert found["output.cloud_sync"]["value"] == "off"


def test_the_home_is_expanded_and_paths_are_absolute(tool):
    found = in_force(tool("config", "show", env={"IMAGEN_OUT_DIR": "~/x"}))
    assert found["output.dir"]["value"] == str(tool.folder / "home" / "x")
    found = in_force(tool("config", "show", env={"IMAGEN_OUT_DIR": "x"}))
    assert found["output.dir"]["value"] == str(tool.folder / "x")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "config/imagen/config.yaml"),
        ({"XDG_CONFIG_HOME": None}, "home/.config/imagen/config.yaml"),
        ({"XDG_CONFIG_HOME": "relative"}, "home/.config/imagen/config.yaml"),
        ({"XDG_CONFIG_HOME": ""}, "home/.config/imagen/config.yaml"),
    ],
)
def test_the_place_of_the_file_follows_xdg(tool, env, expected):
    assert tool("config", "path", env=env).out.decode() == f"{tool.folder / expected}\n"


def test_imagen_config_names_the_file_and_the_flag_goes_over_it(tool):
    for name in ("env", "flag"):
        (tool.folder / f"{name}.yaml").write_text(f"supabase: {{bucket: of-{name}}}\n")
    env = {"IMAGEN_CONFIG": "env.yaml"}
    found = in_force(tool("config", "show", env=env))
    assert found["supabase.bucket"]["value"] == "of-env"
    found = in_force(tool("config", "show", "--config", "flag.yaml", env=env))
    assert found["supabase.bucket"]["value"] == "of-flag"


def test_a_named_file_that_is_not_there_is_a_fault(tool):
    ran = tool("config", "show", env={"IMAGEN_CONFIG": "/no/such.yaml"})
    assert ran.status == 2
    assert "$IMAGEN_CONFIG" in ran.err
    assert "/no/such.yaml" in ran.err


@pytest.mark.parametrize("env", [{"IMAGEN_PREVIEW": "maybe"}, {"SUPABASE_URL": "ftp://x"}])
def test_a_wrong_variable_is_named(tool, env):
    ran = tool("config", "show", env=env)
    assert ran.status == 2
    assert "$" + next(iter(env)) in ran.err


def test_a_broken_configuration_stops_every_tool_before_it_starts(tool, configure):
    configure("outptu: {}\n")
    for args in (["render", "a"], ["generate", "a"], ["backends"], ["preview"], ["config", "show"]):
        ran = tool(*args)
        assert (ran.status, ran.out) == (2, b"")
        assert "did you mean output" in ran.err


@pytest.mark.parametrize("what", ["", "nonsense", "show x", "sample x", "path x", "init x"])
def test_wrong_usage_is_status_2(tool, what):
    ran = tool("config", *what.split())
    assert (ran.status, ran.out) == (2, b"")
    assert ran.err.startswith("imagen-config: ")


# -- schema ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [[], ["request"], ["record"]])
def test_the_schemas_are_valid_draft_2020_12(tool, which):
    printed = json.loads(tool("config", "schema", *which).out)
    assert printed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(printed)


def test_the_printed_schemas_are_those_that_tests_hold_every_tool_to(tool):
    for which in ("request", "record"):
        assert json.loads(tool("config", "schema", which).out) == record.schema(which)


def test_the_schema_without_a_name_takes_a_request_and_a_record(tool):
    both = Draft202012Validator(json.loads(tool("config", "schema").out))
    made = tool("render", "a", "--size=64x64").record
    assert both.is_valid({"prompt": "a", "seed": None})
    assert both.is_valid(made)
    assert not both.is_valid({"seed": 1})


@pytest.mark.parametrize("args", [["schema", "x"], ["schema", "requests"]])
def test_an_unknown_schema_is_refused(tool, args):
    assert tool("config", *args).status == 2


def test_what_render_writes_fits_the_printed_schema(tool):
    schema = Draft202012Validator(json.loads(tool("config", "schema", "record").out))
    lines = [
        {"prompt": "a", "width": 5000, "cfg": 3, "job": {"id": "j", "attempt": 1}},
        {"prompt": "b", "width": 64, "options": {"images": 2, "faults": ["fewer_images"]}},
        {"prompt": "c", "options": {"faults": [{"fault": "throttled", "wait_s": 2}]}},
        {"prompt": "d", "options": {"faults": ["hang"]}},
        {"prompt": "e", "width": 64, "height": 64, "options": {"faults": ["flat"]}},
        {"prompt": 5},
    ]
    ran = tool("render", "--wait", 0, stdin=lines)
    assert len(ran.records) == 7
    for made in ran.records:
        assert [*schema.iter_errors(made)] == []
    sidecar = Path(ran.records[0]["sidecar"])
    assert schema.is_valid(json.loads(sidecar.read_bytes()))


# -- keys that stand twice -------------------------------------------------------------------------

TWICE = "budget:\n  per_day: 0.001\noutput: {dir: pictures}\nbudget:\n  per_month: 20\n"


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("render", ["a cat"]),
        ("generate", ["a cat"]),
        ("compare", ["a cat", "--backends", "mock"]),
        ("upload", []),
        ("log-usage", []),
        ("usage", []),
        ("sheet", ["a.png"]),
        ("preview", []),
        ("enqueue", []),
        ("listen", ["--", "imagen-render"]),
        ("backends", []),
        ("models", ["list"]),
        ("workflow", ["list"]),
        ("config", ["show"]),
        ("config", ["validate"]),
        ("jobs", []),
        ("jobs", ["retry", "11111111-2222-4333-8444-555555555555"]),
        ("migrate", ["--status"]),
        ("migrate", []),
    ],
)
def test_a_second_budget_block_is_refused_by_every_tool(tool, configure, name, args):
    path = configure(TWICE)
    (tool.folder / "a.png").write_bytes(b"")
    ran = tool(name, *args)
    assert (ran.status, ran.out) == (2, b"")
    assert f"{path}:4: budget: stands twice" in ran.err


def test_validate_names_a_key_that_stands_twice_beside_all_else(tool, configure):
    path = configure(f"{TWICE}colour: red\n")
    ran = tool("config", "validate")
    assert ran.status == 2
    assert f"{path}:4: budget: stands twice" in ran.err
    assert f"{path}:6: colour: unknown key" in ran.err


@pytest.mark.parametrize("name", ["jobs", "migrate"])
def test_a_configuration_that_is_named_and_not_there_is_refused_before_the_database(tool, name):
    env = {"IMAGEN_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/x"}
    ran = tool(name, "--config", "no-such.yaml", env=env)
    assert (ran.status, ran.out) == (2, b"")
    assert "a configuration file that is not there: no-such.yaml" in ran.err


# -- init ------------------------------------------------------------------------------------------


def mode(path):
    return path.stat().st_mode & 0o777


def test_init_makes_folder_and_file_for_their_owner_alone(tool):
    (tool.folder / "config").rmdir()
    ran = tool("config", "init", umask=0o022)
    path = tool.folder / "config" / "imagen" / "config.yaml"
    assert (ran.status, ran.out.decode()) == (0, f"{path}\n")
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert tool("config", "validate").status == 0


def test_what_init_writes_is_the_sample_but_for_its_default_backend(tool):
    ran = tool("config", "init")
    path = Path(ran.out.decode().strip())
    text, sample = path.read_text(), tool("config", "sample").out.decode()
    differ = [
        one
        for one, other in zip(text.splitlines(), sample.splitlines(), strict=True)
        if one != other
    ]
    assert all("default_backend" in one or one.startswith("#") for one in differ)
    backend = yaml.safe_load(text)["default_backend"]
    assert backend in ("mock", "flux-schnell-local")
    assert backend in ran.err


@pytest.mark.parametrize("held", ["default_backend: mock\n", ""])
def test_init_replaces_no_file(tool, configure, held):
    path = configure(held)
    ran = tool("config", "init")
    assert (ran.status, ran.out) == (2, b"")
    assert f"{path} is there already" in ran.err
    assert path.read_text() == held


def test_init_follows_no_link_that_leads_nowhere(tool):
    path = tool.folder / "config" / "imagen" / "config.yaml"
    path.parent.mkdir()
    path.symlink_to(tool.folder / "elsewhere")
    assert tool("config", "init").status == 2
    assert not (tool.folder / "elsewhere").exists()


def test_init_writes_where_the_flag_or_the_variable_says(tool):
    ran = tool("config", "init", "--config", "a/b/mine.yaml")
    assert (ran.status, (tool.folder / "a/b/mine.yaml").is_file()) == (0, True)
    ran = tool("config", "init", env={"IMAGEN_CONFIG": str(tool.folder / "c/mine.yaml")})
    assert (ran.status, (tool.folder / "c/mine.yaml").is_file()) == (0, True)


def test_init_where_no_folder_can_be_made_is_one_line(tool):
    (tool.folder / "file").write_text("")
    ran = tool("config", "init", "--config", "file/mine.yaml")
    assert (ran.status, ran.out) == (2, b"")
    assert re.fullmatch(r"imagen-config: [^\n]+\n", ran.err)
    assert "itself" not in ran.err


def test_two_inits_at_once_leave_one_whole_file(tool):
    running = [tool.start("config", "init") for _ in range(4)]
    ended = [tool.ended(child) for child in running]
    assert sorted(ran.status for ran in ended) == [0, 2, 2, 2]
    assert tool("config", "validate").status == 0
    folder = tool.folder / "config" / "imagen"
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_the_default_backend_of_init_is_a_comfyui_only_where_one_answers():
    with ComfyUI() as server:
        assert first_config.default_backend(server.url) == "flux-schnell-local"
        url = server.url
    assert first_config.default_backend(url) == "mock"
