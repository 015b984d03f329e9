"""Whether and how an image is shown beside ours: the tables."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from imagen.cli import tmux
from imagen.config import loader
from imagen.errors import PreviewFault


@pytest.mark.parametrize(
    ("flag", "variable", "configured", "mode"),
    [
        (None, None, None, "auto"),
        (None, None, "on", "on"),
        (None, None, "off", "off"),
        (None, "on", None, "on"),
        (None, "off", "on", "off"),
        (None, "auto", "on", "auto"),
        (True, None, None, "on"),
        (True, "off", "off", "on"),
        (False, None, None, "off"),
        (False, "on", "on", "off"),
    ],
)
def test_the_flag_wins_over_the_environment_over_the_configuration(
    tmp_path, monkeypatch, flag, variable, configured, mode
):
    path = tmp_path / "mine.yaml"
    path.write_text(f"output: {{preview: {configured or 'null'}}}\n")
    if variable:
        monkeypatch.setenv("IMAGEN_PREVIEW", variable)
    assert tmux.mode(flag, loader.load(str(path))["output.preview"]) == mode


INSIDE, OUTSIDE, EMPTY = {"TMUX": "/tmp/s,1,0"}, {}, {"TMUX": ""}


@pytest.mark.parametrize(
    ("mode", "on_terminal", "environment", "wanted"),
    [
        ("auto", True, INSIDE, True),
        ("auto", False, INSIDE, False),
        ("auto", True, OUTSIDE, False),
        ("auto", True, EMPTY, False),
        ("on", False, OUTSIDE, True),
        ("on", True, INSIDE, True),
        ("off", True, INSIDE, False),
    ],
)
def test_whether_to_show(mode, on_terminal, environment, wanted):
    assert tmux.wanted(mode, on_terminal, environment) == wanted


PATHS = [
    "/pictures/a cat.png",
    '/pictures/it\'s a "cat".png',
    "/pictures/$(id);`id`|&.png",
    "/pictures/-n.png",
    "/pictures/" + "x" * 200 + ".png",
    "/pictures/" + "#" * 40 + ".png",
    "/pictures/#(touch no).png",
    "/pictures/#{pane_id}#S.png",
    "/pictures/🐈.png",
]


@pytest.mark.parametrize("path", PATHS)
def test_the_call_of_tmux(path):
    argv = tmux.command(path)
    assert argv[:2] == ["tmux", "new-window"]
    assert argv[-3:] == ["tmux-img", "--hold", path], "each argument stands for itself"
    assert argv[-4] == "--", "more than one argument: tmux asks no shell"


@pytest.mark.parametrize("path", PATHS)
def test_no_name_of_a_window_holds_anything_that_tmux_would_expand(path):
    argv = tmux.command(path)
    name = argv[argv.index("-n") + 1] if "-n" in argv else ""
    assert "#" not in name.replace("##", "")
    assert not re.search(r"%[a-zA-Z]", name)


@pytest.fixture
def programs(tmp_path) -> Path:
    folder = tmp_path / "programs"
    folder.mkdir()
    return folder


def program(folder: Path, name: str, script: str = "exit 0") -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_what_is_missing_is_told_apart(programs):
    inside = {**INSIDE, "PATH": str(programs)}
    with pytest.raises(tmux.OutsideTmux):
        tmux.check({"PATH": str(programs)})
    with pytest.raises(tmux.NoTmux):
        tmux.check(inside)
    program(programs, "tmux")
    with pytest.raises(tmux.NoTmuxImg):
        tmux.check(inside)
    program(programs, "tmux-img")
    tmux.check(inside)


def test_each_of_them_has_its_own_code_and_its_own_advice():
    kinds = [tmux.OutsideTmux, tmux.NoTmux, tmux.NoTmuxImg]
    for name in ("code", "hint", "message"):
        assert len({getattr(kind(), name) for kind in kinds}) == 3


@pytest.mark.parametrize(
    ("script", "says"), [("echo no server >&2; exit 1", "no server"), ("exit 7", "status 7")]
)
def test_a_tmux_that_fails_is_told_in_its_own_words(programs, monkeypatch, script, says):
    program(programs, "tmux", script)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    with pytest.raises(PreviewFault, match=says):
        tmux.show("/x.png")


def test_a_tmux_that_hangs_is_given_up(monkeypatch):
    def hang(*_: object, **more: float) -> None:
        raise subprocess.TimeoutExpired("tmux", more["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(PreviewFault, match="did not open"):
        tmux.show("/x.png")
