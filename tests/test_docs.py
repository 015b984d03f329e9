"""What the documents show happens: examples are run, tables are fresh, links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import docs_sync
import imagen
from imagen.cli.tools import TOOLS

TOP, PAGES = docs_sync.TOP, docs_sync.PAGES
LIB = Path(imagen.__file__).parent
NEEDED = {"jq": "jq", "curl": "curl"}  # program: its Debian package
HOME = "/home/you"  # what the documents call the home folder
MARK = re.compile("\036(\\d+)\n")


class Block(NamedTuple):
    """A fenced block: where it stands, its language, its lines, and the comment right before it."""

    page: Path
    number: int
    language: str
    lines: list[str]
    comment: str


class Example(NamedTuple):
    """A block of commands with the output they have, and the files that it starts from."""

    block: Block
    files: dict[str, str]


class Step(NamedTuple):
    """One command, and what it prints."""

    command: str
    output: list[str]


def blocks(page: Path) -> Iterator[Block]:
    before, inside = "", None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if inside is None and (fence := re.fullmatch(r"```(\w*)", line)):
            comment = re.fullmatch(r"<!-- (.+) -->", before)
            inside = Block(page, number, fence[1], [], comment[1] if comment else "")
        elif line == "```" and inside:
            yield inside
            inside = None
        elif inside:
            inside.lines.append(line)
        before = line


def examples() -> Iterator[Example]:
    """Every console block, with the files and the configuration that stand above it on its page."""
    for page in PAGES:
        files: dict[str, str] = {}
        for block in blocks(page):
            if block.comment == "config":
                files["~/.config/imagen/config.yaml"] = "\n".join(block.lines) + "\n"
            elif block.comment.startswith("file: "):
                files[block.comment.removeprefix("file: ")] = "\n".join(block.lines) + "\n"
            elif block.language == "console" and block.lines[:1] and block.lines[0][:2] == "$ ":
                yield Example(block, dict(files))


def steps(block: Block) -> list[Step]:
    found: list[Step] = []
    for line in block.lines:
        if line.startswith("$ "):
            found.append(Step(line[2:], []))
        elif line.startswith("> ") and not found[-1].output:
            found[-1] = Step(f"{found[-1].command}\n{line[2:]}", [])
        else:
            found[-1].output.append(line)
    return found


def name(example: Example) -> str:
    return f"{example.block.page.relative_to(TOP)}:{example.block.number}"


def page_name(page: Path) -> str:
    return str(page.relative_to(TOP))


EXAMPLES = list(examples())


@pytest.fixture(scope="session")
def tools(tmp_path_factory) -> Path:
    """A folder with our tools as programs, run by the Python that runs the tests."""
    folder = tmp_path_factory.mktemp("tools")
    for tool in ["imagen", *(f"imagen-{name}" for name in TOOLS)]:
        words = [sys.executable, "-m", "imagen", *tool.split("-", 1)[1:]]
        (folder / tool).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (folder / tool).chmod(0o755)
    return folder


def environment(tools: Path, home: Path) -> dict[str, str]:
    return {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONPATH": f"{LIB.parent}:{os.environ.get('PYTHONPATH', '')}",
    }


def backend_of(example: Example) -> dict[str, str]:
    """Name the mock where the page's configuration names no default, as README.md tells to."""
    configured = example.files.get("~/.config/imagen/config.yaml", "")
    return {} if "default_backend" in configured else {"IMAGEN_BACKEND": "mock"}


def ran(example: Example, home: Path, tools: Path) -> list[tuple[str, int]]:
    """Run the commands of an example in one shell; give the output and status of each."""
    folder = home / "album"
    folder.mkdir(parents=True)
    for path, text in example.files.items():
        file = home / path[2:] if path.startswith("~/") else folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    ends = "docs_status=$?; printf '\\036%s\\n' $docs_status; (exit $docs_status)"
    script = ["exec 2>&1", *(f"{step.command}\n{ends}" for step in steps(example.block))]
    done = subprocess.run(
        ["sh", "-c", "\n".join(script)],
        cwd=folder,
        env=environment(tools, home) | backend_of(example),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    parts = MARK.split(done.stdout.decode().replace(str(home), HOME))
    return [(said, int(status)) for said, status in zip(parts[::2], parts[1::2], strict=False)]


def pattern(expected: list[str]) -> str:
    """Give a regular expression for expected lines: … is any text of a line, alone any lines."""
    return "".join(
        r"(?:[^\n]*\n)*" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r"\n"
        for line in expected
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_an_example_does_what_the_page_shows(example, tools, needs, tmp_path):
    wanted = steps(example.block)
    for program, package in NEEDED.items():
        if any(re.search(rf"\b{program}\b", step.command) for step in wanted):
            needs(program, package)
    results = ran(example, tmp_path / "you", tools)
    assert len(results) == len(wanted)
    for number, (step, (said, status)) in enumerate(zip(wanted, results, strict=True)):
        shown = said if said.endswith("\n") or not said else f"{said}\n"
        expected = "\n".join(step.output)
        assert re.fullmatch(pattern(step.output), shown), (
            f"$ {step.command}\nshould print:\n{expected}\nprinted:\n{shown}"
        )
        asked = wanted[number + 1 :] and wanted[number + 1].command == "echo $?"
        assert status == 0 or asked, f"$ {step.command}\nended with {status}, which is not shown"


def test_there_are_examples_to_run():
    assert len(EXAMPLES) > 20


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_a_page_has_no_stale_part(page):
    assert docs_sync.stale(page) == []


def test_every_kind_of_generated_part_is_used():
    used = {part for page in PAGES for part in docs_sync.blocks(page)}
    assert used >= {*docs_sync._MAKERS, *(f"help {tool}" for tool in TOOLS)}


@pytest.mark.parametrize("tool", ["imagen", *(f"imagen-{name}" for name in TOOLS)])
def test_every_tool_has_its_page_with_its_help(tool):
    page = TOP / "docs/tools" / f"{tool}.md"
    assert f"help {tool.removeprefix('imagen-')}" in docs_sync.blocks(page)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_named_files_are_there(page):
    folders = r"(?:docs|lib|tests|bench|bin|workflows|sql|systemd|\.ci)/"
    for named in re.findall(rf"`({folders}[^`\s]+)`", prose(page)):
        assert "NAME" in named or (TOP / named).exists() or (LIB / named).exists(), named
    ours = [path for folder in ("lib", "tests", "bench") for path in (TOP / folder).rglob("*.py")]
    for named in re.findall(r"`((?:\w+/)*[a-z]\w*\.py)`", prose(page)):
        assert "NAME" in named or any(path.as_posix().endswith(f"/{named}") for path in ours), named


def test_every_module_stands_in_the_architecture():
    text = (TOP / "docs/development/architecture.md").read_text()
    for path in sorted(LIB.rglob("[a-z]*.py")):
        module = path.relative_to(LIB)
        names = [module.as_posix(), *(f"{folder}/" for folder in module.parts[:-1])]
        assert any(f"`{name}`" in text for name in names), module


def source() -> str:
    return "\n".join(path.read_text() for path in LIB.rglob("*.py"))


def test_every_error_code_is_explained():
    text = (TOP / "docs/reference/record.md").read_text()
    codes = {
        *re.findall(r'code="(\w+)"', source()),
        *(one.code for one in docs_sync.error_classes()),
    }
    assert {code for code in codes if f"`{code}`" not in text} == set()


def test_every_environment_variable_is_explained():
    text = (TOP / "docs/tools/imagen-config.md").read_text()
    ours = r"\b(?:IMAGEN[A-Z]*|XDG|SUPABASE|REPLICATE)_[A-Z_]+\b"
    named = set(re.findall(rf"{ours}|\bNO_COLOR\b", source()))
    assert {variable for variable in named if f"`{variable}`" not in text.replace("$", "")} == set()


def help_examples() -> Iterator[tuple[str, str]]:
    """Give each example of each help text, as its page has it: a test holds the page to it."""
    for tool in TOOLS:
        page = (TOP / f"docs/tools/imagen-{tool}.md").read_text()
        for line in page.partition("Examples:")[2].partition("\n```\n")[0].splitlines():
            if line.strip().startswith(("imagen", "echo", "printf")):
                yield tool, line.strip()


@pytest.mark.parametrize(("tool", "line"), list(help_examples()))
def test_an_example_in_a_help_text_uses_what_exists(tool, line, tools, tmp_path):
    words = [*shlex.shlex(line, posix=True, punctuation_chars=True)]
    commands: list[list[str]] = [[]]
    for word in words:
        if word in ("|", "&&"):
            commands.append([])
        elif word in ("<", ">"):
            commands[-1].append("--help")  # what follows is a file
            commands.append([])
        else:
            commands[-1].append(word)
    ours = [command for command in commands if command and command[0].startswith("imagen")]
    assert any(command[0] == f"imagen-{tool}" for command in ours)
    for command in ours:
        done = subprocess.run(
            [tools / command[0], "--help", *command[1:]],
            env=environment(tools, tmp_path),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
