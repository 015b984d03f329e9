"""The plan of the house (docs/architecture.md) holds: who imports whom, and names that rhyme."""

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
from imagen import workflow
from imagen.tools import TOOLS

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

ALLOWED: dict[str, set[str]] = {
    "naming": set(),
    "object_info": set(),
    "tools": set(),
    "errors": set(),
    "signals": {"errors"},
    "record": {"errors"},
    "settings": {"errors", "record"},
    "prompt": {"errors"},
    "workflow": {"disk", "errors", "record", "settings"},
    "graph": set(),
    "workflow_check": {"errors", "graph", "workflow"},
    "workflow_classes": {
        "object_info",
        "comfy_api",
        "errors",
        "graph",
        "workflow",
        "workflow_check",
    },
    "workflow_images": {"graph"},
    "workflow_roles": set(),
    "workflow_walk": {"graph", "workflow_roles"},
    "workflow_found": {"errors", "graph", "workflow_walk"},
    "workflow_find": {
        "object_info",
        *("comfy_api", "errors", "graph", "record"),  # comfy_api: how model files end
        *("workflow", "workflow_check", "workflow_found", "workflow_roles", "workflow_walk"),
    },
    "workflow_import": {
        *("errors", "graph", "image", "workflow"),  # image: the graph in a PNG
        *("workflow_found", "workflow_walk"),
    },
    "workflow_show": {"graph", "table", "workflow"},
    "retry": {"errors"},
    "request": {"naming", "errors", "record", "files"},  # files: is_slug and is_date, both pure
    "prices": {"config", "errors", "settings"},
    "models": {"disk", "errors", "workflow"},
    "hub": {"errors", "http"},
    "download": {
        *("disk", "errors", "files", "http", "hub", "models", "retry", "settings", "workflow"),
        "ledger",  # its locks
    },
    "replicate_api": {"errors", "replicate_models"},
    "replicate_models": set(),
    "replicate_outputs": {"backends", "errors", "image", "replicate_api"},
    "replicate_plan": {"backends", "errors", "replicate_models"},
    "comfy_api": {"object_info", "errors", "image"},  # image: the text chunks of a returned PNG
    "disk": set(),
    "files": {"disk", "errors", "record", "signals"},  # signals are put off while a file is made
    "image": {"disk", "errors", "image"},
    "image.structure": set(),
    "ledger": {"disk", "errors", "record", "ledger"},
    "ledger.locks": set(),
    "ledger.database": {"disk", "errors", "ledger", "retry"},
    "ledger.journal": {"clock", "ledger"},
    "clock": set(),
    "settling": {"backends", "clock", "ledger"},  # ledger: what is known of an attempt
    "ledger.spend": {"ledger"},
    "ledger.usage": {"ledger"},
    "ledger.uploads": {"ledger"},
    "ledger.deliveries": {"ledger"},
    "ledger.comparisons": {"clock", "ledger"},
    "budget": {"errors", "ledger"},  # ledger: the type of what was spent
    "caller": set(),
    "http": {"errors", "http"},
    "http.addresses": set(),
    "http.answers": {"errors", "http"},  # http.exchange
    "http.bodies": {"http"},  # http.exchange
    "http.connections": {"clock", "errors", "http"},  # http.addresses, http.exchange
    "http.exchange": set(),
    "db": {"db", "errors"},
    "db.connection": {"db", "errors"},
    "db.ear": {"db"},
    "db.hosts": set(),
    "db.kept": set(),
    "migrations": {"errors", "db"},
    "config": {"config_file", "disk", "errors", "settings"},
    "config_file": {"disk", "errors", "settings"},
    "config_init": {"config", "errors", "http"},
    "preview": {"errors"},
    "sheet": {"errors", "record"},
    "contact": {"disk", "errors", "record", "files", "image", "ledger", "sheet"},
    "compare": {"errors", "record", "sheet"},
    "comparison": {"attach", "errors", "ledger", "lock_wait", "record", "request"},
    "chain": {"errors", "group_guard", "signals"},
    "reader": set(),
    "delivery": {"errors", "ledger", "reader"},
    "documents": {"errors", "record"},
    "pipe": {"documents", "errors", "reader", "record", "signals"},
    # config and db: the database's address, for all tools that take --database-url
    "options": {
        *("config", "db", "errors", "record", "request", "settings"),
        *("option_effects", "pipe"),  # the types only
    },
    "line_checks": {"errors", "record"},
    "option_effects": {"record", "request"},
    "outcome": {
        *("backends", "errors", "files", "image", "ledger", "prompt", "record"),
        "settling",
    },
    "submit": {
        *("backends", "budget", "clock", "errors", "ledger", "outcome", "retry", "settling"),
        "http",  # http.answers: which answers prove a refusal
        "lock_wait",
    },
    "store": {
        "naming",
        *("backends", "disk", "errors", "files", "image", "ledger", "outcome", "record"),
        "request",
    },
    "lock_wait": {"ledger"},
    "attach": {"errors", "ledger", "lock_wait", "request"},
    "render": {
        *("attach", "ledger", "prompt", "backends", "budget", "submit", "store"),
        *("errors", "record", "request", "settling", "signals", "config", "outcome"),
        "silence",
    },
    "supabase": {"http", "retry", "errors"},
    "storage": {"errors", "http", "supabase"},
    "upload": {
        "naming",
        "errors",
        "files",
        "record",
        "storage",
        "supabase",
    },  # files: the rules of names
    "repair": {"errors", "files", "record", "upload"},
    "signing": {"errors", "record", "upload"},
    "jobs": {"http", "db", "retry", "errors", "record"},
    "queued": {"errors", "record", "request"},
    "follow": {"db", "errors", "jobs", "retry"},
    "usage": {"errors", "ledger", "record"},  # ledger: the id of a submit's row, pure
    "outbox": {"errors", "ledger", "supabase", "usage"},
    "reconcile": {"backends", "ledger", "record"},
    "silence": set(),
    "settle": {"errors", "ledger"},
    "table": set(),
    "notify": set(),
    "group_guard": set(),
    "guard_program": set(),
    "process_tree": {"guard_program"},
    "pipeline": {"process_tree"},
    "job_record": {"record"},
    "joblines": {"naming", "documents", "errors", "files", "job_record", "record"},
    "slots": {
        *("clock", "joblines", "pipeline", "process_tree", "record"),
        "jobs",  # the type of what was claimed
    },
    "worker": {
        *("clock", "db", "errors", "joblines", "jobs", "notify", "record", "slots"),
    },
    "machine_ledger": {"errors", "ledger"},
    "command": {
        "tools",
        "errors",
        "reader",
        "signals",
        "pipe",
        "commands",
    },  # commands: the table of tools
}
OF_BACKENDS = {
    "object_info",
    *("http", "retry", "image", "workflow", "errors"),
    *("config", "settings", "record", "comfy_api"),  # an instance is a piece of configuration
    *("disk", "files"),  # the mock keeps the memory of a server
    *("workflow_check", "workflow_classes"),  # what a server would refuse
    "workflow_images",  # how many images come
    *("prices", "replicate_api", "replicate_models", "replicate_outputs", "replicate_plan"),
}


@pytest.mark.parametrize("name", sorted(set(modules()) & set(ALLOWED)))
def test_a_module_imports_only_what_is_below_it(name):
    imported = {top(one) for one in modules()[name].ours}
    assert imported <= ALLOWED[name]


@pytest.mark.parametrize("name", [one for one in modules() if top(one) == "backends"])
def test_a_backend_imports_only_what_is_below_it_and_no_other_backend(name):
    imported = modules()[name].ours
    faces = {"backends.base", "backends.registry"}
    siblings = {one for one in imported if one.startswith("backends.")} - faces
    assert siblings == set()
    assert {top(one) for one in imported} <= OF_BACKENDS | {"backends"}


@pytest.mark.parametrize("name", [one for one in modules() if top(one) == "image"])
def test_pictures_know_nothing_of_lines_and_servers(name):
    assert {top(one) for one in modules()[name].ours} <= {"disk", "image", "errors", "sheet"}


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


def test_nothing_below_imports_a_command():
    for one in modules().values():
        if top(one.name) != "commands" and one.name != "__main__":
            assert not {name for name in one.ours if name.startswith("commands.")}, one.name


def test_only_commands_know_the_pipe_and_the_command_line():
    upper = {"command", "pipe", "options", "chain", "preview"}
    for one in modules().values():
        if top(one.name) not in ("commands", "__main__", "command"):
            assert {top(name) for name in one.ours} & upper == set(), one.name


def test_no_imports_go_round_in_a_circle():
    graph = {name: {*one.ours} & {*modules()} - {name} for name, one in modules().items()}
    graph["command"] -= {"commands"}  # the table of tools, which imports nothing
    while graph:
        free = {name for name, needs in graph.items() if not needs & {*graph}}
        assert free, f"these import one another: {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


SOLE = {
    "requests": {"http"},
    "urllib3": {"http"},
    "psycopg2": {"db"},
    "PIL": {"image"},
    "sqlite3": {"ledger"},
    "tenacity": {"retry"},
    "yaml": {"backends", "config_file"},
}


@pytest.mark.parametrize("library", SOLE)
def test_a_library_has_its_sole_importer(library):
    users = {
        one.name for one in modules().values() if library in {top(name) for name in one.others}
    }
    assert {top(name) for name in users} <= SOLE[library]
    if library == "yaml":
        assert users <= {"config_file", "backends.mock"}, "the mock reads a file of faults"


MAY_TOUCH = {
    *("config", "caller", "command", "pipe", "chain", "signals", "preview", "commands"),
    "notify",  # where systemd listens
    "guard_program",  # a program of its own
}
WORLD = {
    *("os.environ", "os.environb", "os.getenv", "os.putenv", "os.get_terminal_size", "os.isatty"),
    *("sys.stdin", "sys.stdout", "sys.stderr", "sys.argv", "sys.exit", "print", "input"),
    *("sys.__stdin__", "sys.__stdout__", "sys.__stderr__"),
}


def test_only_the_uppermost_modules_touch_environment_terminal_and_streams():
    for one in modules().values():
        if top(one.name) not in MAY_TOUCH:
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
    assert (ROOT / "docs" / f"imagen-{name}.md").is_file()
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
    assert workflow.bundled() == [*NODES]


@pytest.mark.parametrize("name", NODES)
def test_node_ids_of_a_bundled_workflow_are_stable(name):
    graph = workflow.load(name).graph
    assert {key: node["class_type"] for key, node in graph.items()} == NODES[name]


@pytest.mark.parametrize("name", ["workflows", "sql", "systemd"])
def test_data_is_linked_from_the_checkout(name):
    link = PACKAGE / "data" / name
    assert str(link.readlink()) == f"../../../{name}"
    assert link.is_dir()


def test_lint_checks_every_shell_file(needs, tmp_path):
    git = needs("git", "git")
    (tmp_path / "tests").mkdir()
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
    script = tmp_path / "tests/shell_files.sh"
    script.write_text((ROOT / "tests/shell_files.sh").read_text())
    (tmp_path / ".gitignore").write_text("/untracked\n")
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run([git, *command], cwd=tmp_path, check=True)
    found = subprocess.run(["sh", script], capture_output=True, text=True, check=True).stdout
    assert found.split("\n") == ["an other", "run", "strict.sh", "tests/shell_files.sh", ""]


def test_gitignore_has_rooted_patterns_only():
    lines = (ROOT / ".gitignore").read_text().split()
    unrooted = [line for line in lines if not line.startswith("/")]
    assert unrooted in ([], ["__pycache__/"])
