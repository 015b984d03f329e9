"""The plan (docs/development/architecture.md) holds: who imports whom, and names that rhyme."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import imagen
from imagen.cli.tools import TOOLS
from imagen.workflows import template

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lib" / "imagen"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


class Module(NamedTuple):
    """What a module of ours imports, and what it touches of the world outside."""

    name: str
    ours: frozenset[str]
    others: frozenset[str]
    touches: frozenset[str]


@cache
def modules() -> dict[str, Module]:
    found = [_read(path) for path in sorted(PACKAGE.rglob("*.py"))]
    return {one.name: one for one in found}


def _dotted(path: Path) -> list[str]:
    parts = [*path.relative_to(PACKAGE).with_suffix("").parts]
    return parts[:-1] if parts[-1] == "__init__" else parts


def _read(path: Path) -> Module:
    own = _dotted(path)
    package = own if path.name == "__init__.py" else own[:-1]
    ours, others, touches = set(), set(), set()
    for node in _running(ast.parse(path.read_text())):
        match node:
            case ast.Import():
                others |= {alias.name for alias in node.names}
            case ast.ImportFrom(level=0):
                others.add(str(node.module))
            case ast.ImportFrom():
                base = package[: len(package) - node.level + 1]
                base = [*base, *(node.module.split(".") if node.module else [])]
                ours |= {_target(base, alias.name) for alias in node.names}
            case ast.Attribute(value=ast.Name(id="os" | "sys" as outer)):
                touches.add(f"{outer}.{node.attr}")
            case ast.Call(func=ast.Name(id="print" | "input" as called)):
                touches.add(called)
    return Module(".".join(own), frozenset(ours - {""}), frozenset(others), frozenset(touches))


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs: what stands under `if TYPE_CHECKING` does not."""
    for node in ast.iter_child_nodes(tree):
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not typing_only:
            yield node
            yield from _running(node)


def _target(base: list[str], name: str) -> str:
    path = PACKAGE.joinpath(*base, name)
    is_module = path.with_suffix(".py").exists() or path.is_dir()
    return ".".join([*base, name] if is_module else base)


def top(name: str) -> str:
    return name.partition(".")[0]


# -- who may import whom ---------------------------------------------------------------------------

FOUNDATION = {"errors"}
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "clock": set(),
    "disk": set(),
    "tables": set(),
    "retry": set(),
    "signals": set(),
    "records": {"disk"},
    "http": {"clock"},
    "images": {"disk"},
    "db": set(),
    "files": {"disk", "records", "signals"},
    "config": {"disk", "records"},
    "ledger": {"clock", "disk", "files", "records", "retry"},
    "workflows": {"config", "disk", "images", "records", "tables"},
    "cloud": {"files", "http", "records", "retry"},
    "models": {"config", "disk", "files", "http", "retry", "workflows"},
    "backends": {"config", "disk", "files", "http", "images", "records", "retry", "workflows"},
    "sheets": {"disk", "files", "images", "ledger", "records"},
    "queue": {"clock", "db", "files", "ledger", "records", "retry"},
    "usage": {"backends", "cloud", "ledger", "records"},
    "render": {
        *("backends", "clock", "config", "disk", "files", "http", "images", "ledger"),
        *("records", "retry", "signals"),
    },
    # config, db, files, http and ledger are opened late, for commands
    "cli": {"config", "db", "files", "http", "ledger", "records", "signals"},
}
ROOMS["commands"] = {*ROOMS}
ROOMS["__main__"] = {"commands"}


def room_arrows() -> dict[str, set[str]]:
    """Return the rooms, and which others the modules of each one import."""
    arrows: dict[str, set[str]] = {}
    for one in modules().values():
        if one.name:
            arrows.setdefault(top(one.name), set()).update(map(top, one.ours))
    return {room: others - {room, ""} for room, others in arrows.items()}


def test_every_room_has_its_row():
    assert {*room_arrows()} == {*ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_of_its_row(room):
    assert room_arrows()[room] <= ROOMS[room] | FOUNDATION


def test_no_arrow_between_rooms_runs_back_up():
    _assert_no_circle(room_arrows())


def test_no_imports_go_round_in_a_circle():
    graph = {name: {*one.ours} & {*modules()} - {name} for name, one in modules().items()}
    _assert_no_circle(graph)


def _assert_no_circle(graph: dict[str, set[str]]) -> None:
    while graph:
        free = {name for name, needs in graph.items() if not needs & {*graph}}
        assert free, f"these import one another: {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


BACKENDS = ("mock", "comfyui", "replicate")


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_imports_no_other_backend(name):
    own = f"backends.{name}"
    others = {f"backends.{other}" for other in BACKENDS if other != name}
    for one in modules().values():
        if one.name == own or one.name.startswith(f"{own}."):
            assert not {each for each in one.ours if ".".join(each.split(".")[:2]) in others}


@pytest.mark.parametrize("name", [one for one in modules() if one.startswith("commands.")])
def test_a_command_imports_no_command(name):
    assert {one for one in modules()[name].ours if one.startswith("commands.")} == set()


def test_what_the_tests_need_is_installed_where_everything_must_be_real():
    tests = (ROOT / "tests").rglob("test_*.py")
    wanted = {
        one for path in tests for one in re.findall(r'needs\("[^"]+", "([^"]+)"', path.read_text())
    }
    listed = re.search(r"packages=\((.*)\)", (ROOT / ".ci/run").read_text())
    assert listed is not None
    assert wanted
    assert wanted <= {*listed[1].split()}


SOLE = {
    "requests": {"http"},
    "urllib3": {"http"},
    "psycopg2": {"db"},
    "PIL": {"images", "sheets"},
    "sqlite3": {"ledger"},
    "tenacity": {"retry"},
    "yaml": {"backends", "config"},
}


@pytest.mark.parametrize("library", SOLE)
def test_a_library_has_its_sole_importer(library):
    users = {
        one.name for one in modules().values() if library in {top(name) for name in one.others}
    }
    assert {top(name) for name in users} <= SOLE[library]
    if library == "yaml":
        assert users <= {"config.yaml_file", "backends.mock"}, "the mock reads a file of faults"


MAY_TOUCH = {
    *("cli", "commands", "signals"),
    "config.loader",
    "queue.systemd",  # where systemd listens
    "queue.guard_program",  # a program of its own
}
WORLD = {
    *("os.environ", "os.environb", "os.getenv", "os.putenv", "os.get_terminal_size", "os.isatty"),
    *("sys.stdin", "sys.stdout", "sys.stderr", "sys.argv", "sys.exit", "print", "input"),
    *("sys.__stdin__", "sys.__stdout__", "sys.__stderr__"),
}


def test_only_the_uppermost_modules_touch_environment_terminal_and_streams():
    for one in modules().values():
        if not {one.name, top(one.name)} & MAY_TOUCH:
            assert one.touches & WORLD == set(), one.name


def test_nothing_prints():
    assert [one.name for one in modules().values() if "print" in one.touches] == []


# -- start-up is counted ---------------------------------------------------------------------------

HEAVY = ["requests", "PIL", "psycopg2", "yaml", "tenacity", "sqlite3", "importlib.metadata"]
LOOK = f"""
import sys
sys.argv = ["imagen", *sys.argv[1:]]
from imagen.commands.imagen import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("name", [*TOOLS, ""])
def test_help_and_version_import_nothing_heavy(name, option):
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *([name] if name else []), option],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.startswith(("Usage: imagen", "imagen", "Tools"))
    assert done.stderr.split() == []


# -- names rhyme -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_is_its_module_its_link_its_script_its_page_and_its_test(name):
    module = name.replace("-", "_")
    assert (PACKAGE / "commands" / f"{module}.py").is_file()
    assert (ROOT / "bin" / f"imagen-{name}").is_symlink()
    assert PYPROJECT["project"]["scripts"][f"imagen-{name}"] == f"imagen.commands.{module}:main"
    assert (ROOT / "docs/tools" / f"imagen-{name}.md").is_file()
    assert (ROOT / "tests" / "commands" / f"test_{module}.py").is_file()


def test_every_script_and_every_link_is_a_tool():
    expected = {"imagen", *(f"imagen-{name}" for name in TOOLS)}
    assert {*PYPROJECT["project"]["scripts"]} == expected
    assert {path.name for path in (ROOT / "bin").iterdir()} == {".run", *expected}


def test_all_links_in_bin_point_to_the_one_launcher():
    links = [path for path in (ROOT / "bin").iterdir() if path.name != ".run"]
    assert {str(path.readlink()) for path in links} == {".run"}
    assert os.access(ROOT / "bin" / ".run", os.X_OK)


def test_a_tools_one_line_is_a_sentence_that_fits_a_terminal():
    for name, says in TOOLS.items():
        assert re.fullmatch(r"[A-Z].*\.", says)
        assert len(f"  imagen-{name}  {says}") <= 100


# -- things that are there once, or stay as they are -----------------------------------------------


def test_the_version_is_written_down_once():
    files = [*PACKAGE.rglob("*.py"), ROOT / "pyproject.toml", ROOT / "Makefile"]
    holders = [path for path in files if f'"{imagen.__version__}"' in path.read_text()]
    assert holders == [PACKAGE / "__init__.py"]
    assert "version" in PYPROJECT["project"]["dynamic"]


NODES = {
    "flux1-schnell": {
        "6": "CLIPTextEncode",
        "8": "VAEDecode",
        "9": "SaveImage",
        "27": "EmptySD3LatentImage",
        "30": "ModelSamplingFlux",
        "31": "KSampler",
        "38": "UNETLoader",
        "39": "VAELoader",
        "40": "DualCLIPLoader",
        "42": "ConditioningZeroOut",
    },
    "flux2-klein": {
        "9": "SaveImage",
        "61": "KSamplerSelect",
        "62": "Flux2Scheduler",
        "63": "CFGGuider",
        "64": "SamplerCustomAdvanced",
        "65": "VAEDecode",
        "66": "EmptyFlux2LatentImage",
        "70": "UNETLoader",
        "71": "CLIPLoader",
        "72": "VAELoader",
        "73": "RandomNoise",
        "74": "CLIPTextEncode",
        "76": "ConditioningZeroOut",
    },
    "sd35-medium": {
        "3": "KSampler",
        "4": "CheckpointLoaderSimple",
        "8": "VAEDecode",
        "9": "SaveImage",
        "16": "CLIPTextEncode",
        "40": "CLIPTextEncode",
        "53": "EmptySD3LatentImage",
    },
}


def test_the_bundled_workflows_keep_their_names():
    assert template.bundled() == [*NODES]


@pytest.mark.parametrize("name", NODES)
def test_node_ids_of_a_bundled_workflow_are_stable(name):
    graph = template.load(name).graph
    assert {key: node["class_type"] for key, node in graph.items()} == NODES[name]


@pytest.mark.parametrize("name", ["workflows", "sql", "systemd"])
def test_data_is_linked_from_the_checkout(name):
    link = PACKAGE / "data" / name
    assert str(link.readlink()) == f"../../../{name}"
    assert link.is_dir()


def test_lint_checks_every_shell_file(needs, tmp_path):
    git = needs("git", "git")
    (tmp_path / "tests/support").mkdir(parents=True)
    for name, first in {
        "run": "#!/bin/sh",
        "an other": "#!/usr/bin/env bash",
        "strict.sh": "#!/bin/sh -eu",
        "tool.py": "#!/usr/bin/env python3",
        "page.md": "text\n#!/bin/sh",
        "empty": "",
        "untracked": "#!/bin/sh",
    }.items():
        (tmp_path / name).write_text(f"{first}\n")
    (tmp_path / "link").symlink_to("run")
    script = tmp_path / "tests/support/shell_files.sh"
    script.write_text((ROOT / "tests/support/shell_files.sh").read_text())
    (tmp_path / ".gitignore").write_text("/untracked\n")
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run([git, *command], cwd=tmp_path, check=True)
    found = subprocess.run(["sh", script], capture_output=True, text=True, check=True).stdout
    assert found.split("\n") == ["an other", "run", "strict.sh", "tests/support/shell_files.sh", ""]


def test_gitignore_has_rooted_patterns_only():
    lines = (ROOT / ".gitignore").read_text().split()
    unrooted = [line for line in lines if not line.startswith("/")]
    assert unrooted in ([], ["__pycache__/"])
