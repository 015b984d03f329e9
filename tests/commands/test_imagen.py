"""imagen: lists the tools, and runs one of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import imagen
from imagen.commands import TOOLS

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
