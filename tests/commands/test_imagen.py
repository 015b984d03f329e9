"""imagen: lists the tools, and runs one of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import imagen
from imagen.cli.tools import TOOLS

BIN = Path(__file__).parents[2] / "bin"


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["help"]])
def test_without_a_tool_it_lists_them_with_one_line_each(tool, args):
    ran = tool("", *args)
    assert (ran.status, ran.err) == (0, "")
    listed = re.findall(r"^  imagen-(\S+)\s+(.+)$", ran.out.decode(), re.MULTILINE)
    assert dict(listed) == TOOLS


def test_it_runs_the_tool_of_that_name(tool):
    ran = tool("render", "a cat", "--size", "64x64")
    assert (ran.status, ran.record["prompt"]) == (0, "a cat")
    assert tool("render", "a cat", "--seed", "x").err.startswith("imagen-render: ")


@pytest.mark.parametrize("name", TOOLS)
def test_help_of_a_tool_is_its_own_help(tool, name):
    assert tool("help", name).out == tool(name, "--help").out
    assert tool(name, "--help").out.startswith(f"Usage: imagen-{name} ".encode())


def test_version(tool):
    assert tool("", "--version").out == f"imagen {imagen.__version__}\n".encode()


@pytest.mark.parametrize(
    ("args", "hint"),
    [(["rendr"], "render"), (["--nonsense"], "lists the tools"), (["../x"], "lists the tools")],
)
def test_an_unknown_tool_is_refused_with_close_matches(tool, args, hint):
    ran = tool("", *args)
    assert (ran.status, ran.out) == (2, b"")
    assert ran.err.startswith("imagen: no tool ")
    assert hint in ran.err


def test_a_reader_that_is_gone_is_no_fault(tool):
    child = tool.start("")
    child.stdout.close()
    child.stdin.close()
    assert child.wait(60) == 0
    assert child.stderr.read() == b""


EVERY = ["", *TOOLS]


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("name", EVERY)
def test_a_page_that_no_disk_takes_is_one_line_and_status_1(tool, name, option):
    with Path("/dev/full").open("wb") as full:
        ran = tool(name, option, stdout=full)
    program = f"imagen-{name}" if name else "imagen"
    reason = "cannot write to stdout: No space left on device"
    assert (ran.status, ran.err) == (1, f"{program}: {reason}\n")


@pytest.mark.parametrize("name", EVERY)
def test_a_page_without_a_stdout_is_no_fault(tool, name):
    argv = ["sh", "-c", 'exec "$@" >&-', "sh", *tool.argv(name, "--help")]
    ran = tool(name, argv=argv)
    assert (ran.status, ran.err) == (0, "")


# -- arguments that are not UTF-8 ------------------------------------------------------------------

ODD = b"caf\xe9"
SHOWN = r"caf\xe9"


@pytest.mark.parametrize(
    "args",
    [
        ["render", "a", "--output", ODD + b".png"],
        ["render", "a", "--out-dir", ODD],
        ["render", "a", "--option", b"a=" + ODD],
        ["render", "a", "--set", b"prompt=" + ODD],
        ["generate", "a", "--output", ODD + b".png"],
        ["compare", ODD, "--backends", "mock"],
        ["compare", "a", "--backends", "mock", "--out-dir", ODD],
        ["sheet", "--output", ODD + b".png"],
        ["sheet", "--title", ODD],
        ["sheet", ODD],
        ["upload", ODD],
        ["preview", ODD],
        ["models", "list", "--models-dir", ODD],
        ["usage", "--settle", ODD, "--billed", "yes"],
        ["jobs", "retry", ODD],
        ["jobs", "--database-url", ODD],
        ["migrate", "--database-url", ODD],
        ["listen", "--name", ODD],
        ["enqueue", "--database-url", ODD],
        ["backends", ODD],
        ["workflow", "show", "flux1-schnell", "--backend", ODD],
    ],
    ids=lambda args: " ".join(os.fsdecode(one) for one in args[:-1]),
)
def test_an_argument_that_is_not_utf_8_is_one_line_that_shows_it(tool, out_dir, args):
    ran = tool(*args)
    assert (ran.status, ran.out) == (2, b"")
    assert SHOWN in ran.err.splitlines()[0]
    assert "UTF-8" in ran.err
    assert "itself" not in ran.err
    assert not out_dir.exists()


def test_a_configuration_file_may_have_any_name(tool):
    name = os.fsdecode(ODD + b".yaml")
    missing = tool("config", "show", "--config", name)
    assert (missing.status, f"not there: {SHOWN}.yaml" in missing.err) == (2, True)
    (tool.folder / name).write_text("default_backend: mock")
    assert tool("config", "path", "--config", name).out.endswith(b"/" + ODD + b".yaml\n")
    assert tool("config", "validate", name).out.endswith(ODD + b".yaml: ok\n")
    assert tool("render", "a", "--size", "64x64", "--config", name).status == 0


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("render", ["a"]),
        ("generate", ["a"]),
        ("compare", ["a", "--backends", "mock"]),
        ("config", ["show"]),
    ],
)
def test_an_output_folder_of_the_environment_that_is_not_utf_8_is_refused(tool, name, args):
    env = {"IMAGEN_OUT_DIR": os.fsdecode(ODD)}
    ran = tool(name, *args, env=env)
    shown = rf"imagen-{name}: $IMAGEN_OUT_DIR is not valid UTF-8: '{SHOWN}'"
    assert (ran.status, ran.out, ran.err.strip()) == (2, b"", shown)


@pytest.mark.parametrize("option", ["--output=a.png", "--out-dir=images"])
@pytest.mark.parametrize("name", ["render", "generate"])
def test_an_image_in_a_folder_that_is_not_utf_8_is_refused_before_it_is_made(tool, name, option):
    folder = tool.folder / os.fsdecode(ODD)
    folder.mkdir()
    ran = tool(name, "a", option, cwd=folder)
    assert (ran.status, ran.record["error"]["code"]) == (2, "file")
    assert SHOWN in ran.record["error"]["message"]
    assert [*folder.iterdir()] == []


@pytest.mark.parametrize("name", ["jobs", "enqueue", "migrate", "listen"])
def test_a_database_address_of_the_environment_that_is_not_utf_8_is_not_shown(tool, name):
    env = {"IMAGEN_DATABASE_URL": os.fsdecode(b"postgresql://u:" + ODD + b"@h/d")}
    ran = tool(name, env=env)
    assert (ran.status, ran.err) == (2, f"imagen-{name}: $IMAGEN_DATABASE_URL is not valid UTF-8\n")


# -- files that are pipes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        *([name, "--config", "pipe"] for name in ("render", "generate", "upload", "usage")),
        ["config", "validate", "pipe"],
        ["workflow", "show", "./pipe"],
        ["workflow", "check", "./pipe"],
        ["workflow", "import", "pipe"],
        ["models", "list", "./pipe"],
        ["sheet", "picture.png", "--font", "pipe"],
        ["sheet", "--list", "pipe"],
        ["render", "a", "--config", "faults.yaml"],
        ["render", "a", "--backend", "comfy", "--config", "comfy.yaml"],
        ["upload", "picture.png", "--config", "cloud.yaml"],
    ],
    ids=" ".join,
)
def test_a_named_pipe_where_a_file_belongs_is_one_line_and_never_waited_for(tool, args):
    folder = tool.folder
    os.mkfifo(folder / "pipe")
    image = tool("render", "a cat", "--size", "64x64", "--output", "picture.png")
    assert image.status == 0
    (folder / "faults.yaml").write_text("backends: {mock: {type: mock, faults: pipe}}")
    (folder / "comfy.yaml").write_text("backends: {comfy: {type: comfyui, workflow: ./pipe}}")
    owner = "owner_user_id: 11111111-1111-4111-8111-111111111111"
    (folder / "cloud.yaml").write_text(f"supabase: {{url: 'http://127.0.0.1:9', {owner}}}")
    (folder / "pipe").chmod(0o600)
    env = {"SUPABASE_SERVICE_ROLE_KEY_FILE": "pipe"}
    ran = tool(*args, stdin=image.out, env=env)
    assert ran.status == 2, ran.err
    assert "no regular file" in ran.err or "no font that can be read: pipe" in ran.err
    assert "itself" not in ran.err


def test_what_a_shell_opened_is_read_as_a_configuration_and_as_an_export(tool):
    env = {"IMAGEN_BACKEND": None}
    text = "default_backend: mock\n"
    ran = tool("config", "show", "--config", "/dev/stdin", stdin=text, env=env)
    assert (ran.status, ran.records[0]["source"]) == (0, "file")
    assert tool("config", "validate", "/dev/null").status == 0
    ran = tool("workflow", "check", "/dev/stdin", stdin="{}")
    assert "has no SaveImage node" in ran.err


# -- the launchers in bin/ -------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with bin/ as it is, and an imagen-render that says what it is told."""
    folder = tmp_path / "a check out"
    shutil.copytree(BIN, folder / "bin", symlinks=True)
    program = folder / ".venv" / "bin" / "imagen-render"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
    program.chmod(0o755)
    return folder


def run(*argv: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], **env}
    return subprocess.run(
        [*map(str, argv)], cwd=cwd, env=env, capture_output=True, text=True, timeout=10, check=False
    )


def test_a_launcher_runs_its_namesake_by_absolute_path_from_anywhere(checkout):
    done = run(checkout / "bin" / "imagen-render", "it's", "two  spaces", "", cwd=Path("/"))
    assert done.returncode == 0
    program, *args = done.stdout.splitlines()
    assert Path(program).resolve() == (checkout / ".venv" / "bin" / "imagen-render").resolve()
    assert args == ["it's", "two  spaces", ""]


def test_a_launcher_is_found_on_the_path_and_through_a_link(checkout, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "imagen-render").symlink_to(checkout / "bin" / "imagen-render")
    for folder in (checkout / "bin", tmp_path / "links"):
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        done = run("sh", "-c", "imagen-render x", cwd=tmp_path, PATH=path)
        assert (done.returncode, done.stdout.splitlines()[1:]) == (0, ["x"])


def test_a_launcher_that_is_not_set_up_says_what_to_do(checkout):
    done = run(checkout / "bin" / "imagen-config", cwd=checkout)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"imagen-config: [^\n]*make[^\n]*\n", done.stderr)
