"""imagen-preview, beside a real tmux; what stands in for tmux-img writes down how it was called."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from imagen.records import record

STAND_IN = """#!/bin/sh
part=$(TMPDIR="$SHOWN" mktemp)
printf '%s\\0' "$@" >"$part"
mv "$part" "$part.argv"
exec sleep 60
"""


class Tmux:
    """A private tmux server, and what was shown in it."""

    def __init__(self, program: str, folder: Path, shown: Path) -> None:
        self.program = program
        self.shown = shown
        shown.mkdir()
        programs = folder / "programs"
        programs.mkdir()
        (programs / "tmux-img").write_text(STAND_IN)
        (programs / "tmux-img").chmod(0o755)
        self.env = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "TMUX_TMPDIR": str(folder),
            "SHOWN": str(shown),
        }
        self.run("new-session", "-d", "-x", "200", "-y", "50", "exec sleep 60")
        self.env["TMUX"] = self.run("display-message", "-p", "#{socket_path},#{pid},0")

    def run(self, *args: str) -> str:
        command = [self.program, "-L", "imagen-test", "-f", "/dev/null", *args]
        env = {**os.environ, **self.env, "SHELL": "/bin/sh"}
        return subprocess.run(
            command,
            env=env,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    def calls(self) -> list[list[str]]:
        """How tmux-img was called, each time."""
        found = sorted(self.shown.glob("*.argv"), key=lambda path: path.stat().st_mtime_ns)
        return [path.read_bytes().decode().split("\0")[:-1] for path in found]

    def windows(self) -> list[str]:
        return self.run("list-windows", "-F", "#{window_name}").splitlines()


@pytest.fixture
def tmux(tmp_path, needs) -> Iterator[Tmux]:
    program = needs("tmux", "tmux")
    folder = Path(tempfile.mkdtemp(prefix="tmux-"))  # a socket's path has to be short
    server = Tmux(program, folder, tmp_path / "shown")
    yield server
    server.run("kill-server")
    shutil.rmtree(folder)


def image(path: Path) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"what is in it does not matter here")
    return {"prompt": "a cat", "file": str(path)}


def test_each_image_gets_a_window_beside_ours_and_its_record_goes_on(tool, tmux, until):
    lines = [image(tool.folder / name) for name in ("one.png", "two.png")]
    stdin = b"".join(json.dumps(line).encode() + b" \n" for line in lines)
    ran = tool("preview", "--preview", stdin=stdin, env=tmux.env)
    assert ran == (0, stdin, "")
    until(lambda: len(tmux.calls()) == 2)
    assert sorted(tmux.calls()) == [["--hold", line["file"]] for line in lines]
    assert len(tmux.windows()) == 3


@pytest.mark.parametrize(
    "name",
    [
        "a cat, it's here.png",
        "two  spaces.png",
        "'.png",
        'say "cat".png',
        "$HOME and `id` and $(id).png",
        "a;b&c|d.png",
        "-n.png",
        "über 🐈.png",
        "back\\slash.png",
        "new\nline.png",
        "#{pane_id} #S.png",
        "100% %H.png",
    ],
)
def test_a_path_reaches_tmux_img_as_it_is(tool, tmux, until, name):
    line = image(tool.folder / "some folder" / name)
    ran = tool("preview", "--preview", stdin=[line], env=tmux.env)
    assert (ran.status, ran.err) == (0, "")
    assert until(tmux.calls) == [["--hold", line["file"]]]


def test_tmux_runs_nothing_that_stands_in_a_files_name(tool, tmux, until):
    lines = [image(tool.folder / f"#(touch no{n})x.png") for n in range(4)]
    tool("preview", "--preview", stdin=lines, env=tmux.env)
    until(lambda: len(tmux.calls()) == 4)
    tmux.run("run-shell", "sleep 0.1")  # what tmux were to run would have run by now
    assert [*tool.folder.rglob("no?")] == []


def test_files_may_be_named_on_the_command_line(tool, tmux, until):
    image(tool.folder / "it's.png")
    ran = tool("preview", "--preview", "it's.png", env=tmux.env)
    assert ran.record["file"] == str(tool.folder / "it's.png")
    assert until(tmux.calls) == [["--hold", str(tool.folder / "it's.png")]]


def test_what_it_writes_for_a_named_file_is_a_record(tool):
    image(tool.folder / "a.png")
    ran = tool("preview", "--no-preview", "a.png")
    assert [*Draft202012Validator(record.schema("record")).iter_errors(ran.record)] == []


ERROR = {"tool": "imagen-render", "code": "x", "message": "m", "billed": "no", "retry": "never"}
PENDING = {"backend": "mock", "handle": "h", "since": "2026-01-02T03:04:05Z"}


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "a", "file": "{file}", "error": ERROR},
        {"prompt": "a", "file": "{file}", "pending": PENDING},
        {"prompt": "a"},
        {"prompt": "a", "file": 5},
    ],
)
def test_what_is_no_finished_image_passes_untouched(tool, tmux, line):
    path = image(tool.folder / "a.png")["file"]
    stdin = json.dumps(line).replace("{file}", path).encode() + b"\n"
    assert tool("preview", "--preview", stdin=stdin, env=tmux.env) == (0, stdin, "")
    assert len(tmux.windows()) == 1


# -- whether to show -------------------------------------------------------------------------------


def shown_on_a_terminal(tool, *args: object, env: dict[str, str], line: dict[str, Any]) -> int:
    """Run preview with stdout on a terminal; give its status."""
    terminal, side = pty.openpty()
    child = tool.start("preview", *args, stdout=side, env=env)
    os.close(side)
    child.stdin.write(json.dumps(line).encode() + b"\n")
    child.stdin.close()
    status = child.wait(60)
    os.close(terminal)
    return status


def test_auto_shows_on_a_terminal_inside_tmux(tool, tmux, until):
    line = image(tool.folder / "a.png")
    assert shown_on_a_terminal(tool, env=tmux.env, line=line) == 0
    assert until(tmux.calls) == [["--hold", line["file"]]]


def test_auto_shows_nothing_in_a_pipe(tool, tmux):
    assert tool("preview", stdin=[image(tool.folder / "a.png")], env=tmux.env).status == 0
    assert len(tmux.windows()) == 1


def test_auto_shows_nothing_outside_tmux(tool):
    assert shown_on_a_terminal(tool, env={}, line=image(tool.folder / "a.png")) == 0


@pytest.mark.parametrize(
    ("args", "variable", "configured", "shows"),
    [
        ([], None, None, False),
        ([], None, "on", True),
        ([], "off", "on", False),
        ([], "on", "off", True),
        (["--no-preview"], "on", "on", False),
        (["--preview"], "off", "off", True),
    ],
)
def test_the_flag_wins_over_the_environment_over_the_configuration(
    tool, configure, args, variable, configured, shows
):
    if configured:
        configure(f"output: {{preview: {configured}}}\n")
    ran = tool(
        "preview", *args, stdin=[image(tool.folder / "a.png")], env={"IMAGEN_PREVIEW": variable}
    )
    assert ("error" in ran.record) == shows, "outside tmux, whoever wants to show fails"


# -- what can be missing ---------------------------------------------------------------------------


@pytest.fixture
def without(tool) -> dict[str, dict[str, str]]:
    """Environments that lack one thing each."""
    nothing, only_tmux = tool.folder / "nothing", tool.folder / "only-tmux"
    for folder in (nothing, only_tmux):
        folder.mkdir()
    (only_tmux / "tmux").write_text("#!/bin/sh\nexit 0\n")
    (only_tmux / "tmux").chmod(0o755)
    inside = {"TMUX": "/no/such/socket,1,0"}
    return {
        "outside_tmux": {"PATH": str(only_tmux)},
        "no_tmux": {**inside, "PATH": str(nothing)},
        "no_tmux_img": {**inside, "PATH": str(only_tmux)},
    }


CODES = ["outside_tmux", "no_tmux", "no_tmux_img"]


@pytest.mark.parametrize("code", CODES)
def test_what_is_missing_is_an_error_of_its_own(tool, without, code):
    line = image(tool.folder / "a.png")
    ran = tool("preview", "--preview", stdin=[line], env=without[code])
    error = ran.record.pop("error")
    assert (ran.status, error["code"], error["tool"]) == (1, code, "imagen-preview")
    assert error["hint"] in ran.err
    assert len(ran.err.splitlines()) == 1
    assert {**ran.record, "error": error} == {**line, "error": error}


def test_the_three_messages_differ(tool, without):
    line = image(tool.folder / "a.png")
    said = {tool("preview", "--preview", stdin=[line], env=without[one]).err for one in CODES}
    assert len(said) == 3


@pytest.mark.parametrize("code", CODES)
def test_with_best_effort_it_is_only_a_warning(tool, without, code):
    stdin = json.dumps(image(tool.folder / "a.png")).encode() + b"\n"
    ran = tool("preview", "--preview", "--best-effort", stdin=stdin, env=without[code])
    assert (ran.status, ran.out) == (0, stdin)
    assert len(ran.err.splitlines()) == 1


def test_a_tmux_that_is_gone_is_an_error_that_says_what_tmux_said(tool, tmux):
    env = {**tmux.env, "TMUX": f"{tool.folder}/gone,1,0"}
    ran = tool("preview", "--preview", stdin=[image(tool.folder / "a.png")], env=env)
    assert (ran.status, ran.record["error"]["code"]) == (1, "preview")
    assert "gone" in ran.err


def test_an_image_that_is_not_there_is_an_error(tool, tmux):
    line = {"prompt": "a", "file": "/no/such/image.png"}
    ran = tool("preview", "--preview", stdin=[line], env=tmux.env)
    assert (ran.status, ran.record["error"]["code"]) == (1, "file")
    assert len(tmux.windows()) == 1


def test_a_bad_line_does_not_stop_the_others(tool):
    ran = tool("preview", stdin=b'oops\n{"prompt":"a"}\n')
    assert (ran.status, ran.records) == (2, [{"prompt": "a"}])


def test_no_records_on_a_terminal_is_a_usage_fault(tool):
    terminal, side = pty.openpty()
    child = tool.start("preview", stdin=side)
    os.close(side)
    assert child.wait(60) == 2
    assert child.stderr.read().startswith(b"imagen-preview: no records (hint: ")
    os.close(terminal)
