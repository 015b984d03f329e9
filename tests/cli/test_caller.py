"""Who asked: the record, over $MAI_FROM_ID, over the tmux pane, over user@host."""

from __future__ import annotations

import os
import pwd
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imagen.cli import caller

SMALL = ("--size", "64x64")
HERE = f"{pwd.getpwuid(os.getuid()).pw_name}@{socket.gethostname()}"


@pytest.fixture
def ask(monkeypatch) -> Callable[..., str]:
    """Ask anew, with this environment."""

    def asked(**env: str) -> str:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        caller.caller.cache_clear()
        return caller.caller()

    yield asked
    caller.caller.cache_clear()


def test_without_anything_it_is_the_user_at_this_host(ask, monkeypatch):
    monkeypatch.delenv("MAI_FROM_ID", raising=False)
    assert ask() == HERE


@pytest.mark.parametrize("blank", ["", "  ", "\n\t"])
def test_a_blank_name_is_none(ask, blank):
    assert ask(MAI_FROM_ID=blank) == HERE


HOSTILE = {
    "long": ("x" * 10_000, "x" * 200),
    "long and wide": ("é🎨" * 500, "é🎨" * 100),
    "lines": ("a\nb\r\n", "a b"),
    "terminal controls": ("\x1b[31mred\x07", "[31mred"),
    "only controls": ("\x1b\x07", "unknown"),
    "right to left": ("a\u202eb", "a b"),
    "sql": ("'); drop table renders; --", "'); drop table renders; --"),
    "strftime and formats": ("%H %s #{pane_id}", "%H %s #{pane_id}"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_name_becomes_one_line_of_text(ask, what):
    said, found = HOSTILE[what]
    assert ask(MAI_FROM_ID=said) == found


def test_a_name_that_is_no_utf8_becomes_one_that_is(ask):
    name = ask(MAI_FROM_ID=os.fsdecode(b"a\xffb"))
    assert name.encode() == b"a b"


def test_a_user_without_a_name_is_a_number(ask, monkeypatch):
    def nobody(_uid: int) -> Any:
        raise KeyError

    monkeypatch.delenv("MAI_FROM_ID", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert ask() == f"{os.getuid()}@{socket.gethostname()}"


@pytest.mark.parametrize("program", ["exit 1", "sleep 60", "printf '\\377\\376'", "exit 0"])
def test_a_tmux_that_does_not_answer_is_gone_without(ask, monkeypatch, tmp_path, program):
    monkeypatch.delenv("MAI_FROM_ID", raising=False)
    fake = tmp_path / "tmux"
    fake.write_text(f"#!/bin/sh\nexec >&1; {program}\n")
    fake.chmod(0o755)
    kept: Callable[..., Any] = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: kept(*a, **{**k, "timeout": 0.3}))
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    name = ask(TMUX="/nowhere,1,0", TMUX_PANE="%0")
    assert name == (HERE if "printf" not in program else name)
    assert name.isprintable()
    assert name


def test_without_a_tmux_program_it_is_gone_without(ask, monkeypatch):
    monkeypatch.delenv("MAI_FROM_ID", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert ask(TMUX="/nowhere,1,0", TMUX_PANE="%0") == HERE


# -- in the record ---------------------------------------------------------------------------------


def test_the_record_goes_over_the_environment(tool):
    lines = [{"prompt": "a", "caller": "line"}, {"prompt": "b"}]
    ran = tool("render", *SMALL, stdin=lines, env={"MAI_FROM_ID": "env"})
    assert [one["caller"] for one in ran.records] == ["line", "env"]


def test_a_caller_that_is_none_is_refused(tool):
    for bad in ("", "x" * 201, 7):
        ran = tool("render", *SMALL, stdin=[{"prompt": "a", "caller": bad}], check_records=False)
        assert ran.status == 2, bad
        assert "caller" in ran.record["error"]["message"]


def test_a_hostile_name_is_a_sound_record(tool):
    ran = tool("render", "a", *SMALL, env={"MAI_FROM_ID": "\x1b[31m'\"é\\" + "🎨" * 300})
    assert ran.status == 0
    assert len(ran.record["caller"]) == 200


class Tmux:
    """A real tmux server of the test's own, with one pane."""

    def __init__(self, program: str, folder: Path) -> None:
        self._command = [program, "-S", str(folder / "tmux"), "-f", "/dev/null"]
        self.folder = folder

    def __call__(self, *args: str) -> str:
        """Run one of its commands."""
        done = subprocess.run(
            [*self._command, *args], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()


@pytest.fixture
def tmux(needs, tool) -> Iterator[Tmux]:
    found = Tmux(needs("tmux", "tmux"), tool.folder)
    found("new-session", "-d", "-x", "80", "-y", "24", "sh")
    yield found
    found("kill-server")


def in_pane(tmux: Tmux, tool: Any, until: Any, **env: str) -> str:
    """Run the real tool in the pane; gives the caller of its record."""
    said = {"PYTHONPATH": tool.environment()["PYTHONPATH"], **env}
    sets = [f"{name}={shlex.quote(value)}" for name, value in said.items()]
    code = "from imagen.cli.caller import caller; print(caller())"
    run = f"{' '.join(sets)} {shlex.join([sys.executable, '-c', code])}"
    out = tmux.folder / "said"
    out.unlink(missing_ok=True)
    tmux("send-keys", f"{run} > {shlex.quote(str(out))}.new; mv {out}.new {out}", "Enter")
    until(out.exists)
    return out.read_text().removesuffix("\n")


def test_in_a_tmux_pane_it_is_the_panes_name_under_the_environments(tmux, tool, until):
    assert in_pane(tmux, tool, until, MAI_FROM_ID="") == HERE, "a pane without a name"
    tmux("set-option", "-p", "@mai-name", "painter")
    assert in_pane(tmux, tool, until, MAI_FROM_ID="") == "painter"
    assert in_pane(tmux, tool, until, MAI_FROM_ID="me") == "me"


def test_the_name_is_that_of_the_pane_it_runs_in_and_not_of_the_one_that_is_shown(
    tmux, tool, until
):
    mine = tmux("display-message", "-p", "#{pane_id}")
    tmux("set-option", "-p", "@mai-name", "mine")
    tmux("split-window", "sh")
    tmux("set-option", "-p", "@mai-name", "other")
    tmux("select-pane", "-t", mine)
    assert in_pane(tmux, tool, until, MAI_FROM_ID="") == "mine"


@pytest.mark.parametrize(
    "name", ["é 🎨", "100% %H #{pane_id} #(touch owned) $(touch owned)", "-t other"]
)
def test_a_hostile_pane_name_is_text_and_runs_nothing(tmux, tool, until, name):
    tmux("set-option", "-p", "@mai-name", name)
    assert in_pane(tmux, tool, until, MAI_FROM_ID="") == name
    assert not [*tmux.folder.rglob("owned")]
