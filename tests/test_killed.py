"""Killed with SIGKILL at every step, and run again: one submit, one image, every time.

`make test` takes every few steps, another share on each day; `make soak` takes them all.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imagen.ledger import Ledger
from killing import Ended, Rounds
from servers.comfyui import ComfyUI

SOAK = int(os.environ.get("IMAGEN_SOAK", "0"))  # rounds for each backend
SHARE = 1 if SOAK else 5
FIRST = int(time.time() // 86400) % SHARE
ASKED = ("a cat", "--seed", 7, "--size", "64x64")


@pytest.fixture
def rounds(tmp_path, tool) -> Iterator[Rounds]:
    running = Rounds(tmp_path, tool.environment())
    yield running
    running.close()


class Place:
    """One backend to render with, and how many submits it was asked to pay for."""

    def __init__(self, rounds: Rounds, name: str, submits: Callable[[], int]) -> None:
        self.rounds = rounds
        self.name = name
        self.submits = submits
        self.number = 0

    def run(self, *args: object, kill_at: int | None = None) -> Ended:
        """Render in a state folder of this number's own."""
        home = self.rounds.folder / f"n{self.number}"
        env = {"XDG_STATE_HOME": str(home / "state"), "IMAGEN_OUT_DIR": str(home / "out")}
        more = ("--backend", self.name, *args)
        return self.rounds.run(*ASKED, *more, kill_at=kill_at, **env)

    def fresh(self) -> None:
        """Begin anew: other folders, nothing counted."""
        shutil.rmtree(self.rounds.folder / f"n{self.number}", ignore_errors=True)
        self.number += 1

    def left(self) -> list[str]:
        """What stands in the output folder."""
        out = self.rounds.folder / f"n{self.number}" / "out"
        return sorted(path.name for path in out.rglob("*") if path.is_file())

    def open_ones(self) -> list[str]:
        """What the journal still has open."""
        state = self.rounds.folder / f"n{self.number}" / "state"
        ledger = Ledger(state / "imagen" / "ledger.sqlite3")
        try:
            return ledger.journal.unfinished()
        finally:
            ledger.close()


@pytest.fixture
def mock(rounds, tmp_path) -> Place:
    def submits() -> int:
        path = tmp_path / "submits"
        return len(path.read_text().splitlines()) if path.exists() else 0

    return Place(rounds, "mock", submits)


@pytest.fixture
def comfyui(rounds, configure) -> Iterator[Place]:
    with ComfyUI() as server:
        fast = "poll_min_s: 0.001, poll_max_s: 0.02, retry_s: 0.01"
        configure(f"backends: {{comfy: {{type: comfyui, url: '{server.url}', {fast}}}}}\n")
        yield Place(rounds, "comfy", lambda: len(server.submits))


BACKENDS = ["mock", "comfyui"]


@pytest.fixture(params=BACKENDS)
def place(request) -> Place:
    return request.getfixturevalue(request.param)


def steps_of(place: Place, *args: object) -> list[str]:
    """The steps of a render that nobody kills."""
    ran = place.run(*args)
    assert (ran.status, len(ran.records)) == (0, 1), ran.err
    assert place.left() == ["a-cat-7.json", "a-cat-7.png"]
    return ran.steps


def is_whole(place: Place, ran: Ended, where: str) -> dict[str, Any]:
    """One image, its sidecar, one record, and nothing that stays open or lies about."""
    assert ran.status == 0, f"{where}: {ran.err}"
    (made,) = ran.records
    assert Path(made["file"]).is_file(), where
    assert place.left() == ["a-cat-7.json", "a-cat-7.png"], where
    assert place.open_ones() == [], where
    return made


def test_killed_at_any_step_and_run_again_it_is_one_submit_and_one_image(place):
    steps = steps_of(place, "--id", "k")
    assert len(steps) > 30, "killed at too few steps to mean anything"
    for number in range(FIRST, len(steps), SHARE):
        place.fresh()
        before = place.submits()
        killed = place.run("--id", "k", kill_at=number)
        assert killed.status == -9, f"{number} of {len(steps)}: {killed}"
        where = f"killed at step {number}, {killed.steps[-1]}"
        is_whole(place, place.run("--id", "k"), where)
        assert place.submits() - before == 1, where


def test_without_an_id_too_as_long_as_it_was_not_handed_out(place):
    steps = steps_of(place)
    handed_out = steps.index("before Journal.delivered")
    for number in range(FIRST, handed_out + 1, SHARE):
        place.fresh()
        before = place.submits()
        killed = place.run(kill_at=number)
        where = f"killed at step {number}, {killed.steps[-1]}"
        is_whole(place, place.run(), where)
        assert place.submits() - before == 1, where


def test_killed_again_and_again_it_comes_to_its_end(place):
    steps_of(place, "--id", "k")
    for start in range(FIRST, 40, SHARE * 2):
        place.fresh()
        before = place.submits()
        trail = []
        for number in range(start, 200, 7):
            ran = place.run("--id", "k", kill_at=number)
            if ran.status == 0:
                break
            trail.append(ran.steps[-1])
        is_whole(place, place.run("--id", "k"), str(trail))
        assert place.submits() - before == 1, trail
