"""Killed with SIGKILL at every step, and run again: one submit, one image, every time.

`make test` adds a few rounds at random steps, others in each run; `make soak` a thousand.
$IMAGEN_SEED takes the same steps again.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from imagen.files.sidecars import is_intact
from imagen.ledger import Ledger
from killing import Ended, Rounds
from seeds import SEED
from servers.comfyui import ComfyUI
from servers.replicate import SCHNELL, TOKEN, Replicate

ROUNDS = int(os.environ.get("IMAGEN_SOAK", "8"))  # for each backend, at random steps
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
        self.env: dict[str, str] = {}
        self.forget: Callable[[], object] = lambda: None

    def run(self, *args: object, kill_at: int | None = None, by: Rounds | None = None) -> Ended:
        """Render in a state folder of this number's own, when what was killed before is settled."""
        home = self.rounds.folder / f"n{self.number}"
        _age(home / "state" / "imagen" / "ledger.sqlite3")
        env = {"XDG_STATE_HOME": str(home / "state"), "IMAGEN_OUT_DIR": str(home / "out")}
        more = ("--backend", self.name, *args)
        return (by or self.rounds).run(*ASKED, *more, kill_at=kill_at, **env, **self.env)

    def fresh(self) -> None:
        """Begin anew: other folders, nothing counted."""
        shutil.rmtree(self.rounds.folder / f"n{self.number}", ignore_errors=True)
        self.number += 1
        self.forget()

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


def _age(ledger: Path) -> None:
    """Let the attempts in a ledger be older than any of them can take."""
    if not ledger.exists():
        return
    with closing(sqlite3.connect(ledger)) as db, db, suppress(sqlite3.OperationalError):
        db.execute("update submits set attempt_at = attempt_at - 1000")  # no table yet: no attempt
        db.execute("update submits set attempt_clock = attempt_clock - 1000")


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


@pytest.fixture
def replicate(rounds, configure, monkeypatch) -> Iterator[Place]:
    with Replicate() as server:
        fast = "poll_s: 0.005, settle_s: 0.01, retry_s: 0.01"
        about = f"model: {SCHNELL}, base_url: '{server.url}', {fast}"
        configure(f"backends: {{rep: {{type: replicate, {about}}}}}\nbudget: {{per_day: 100}}\n")
        place = Place(rounds, "rep", lambda: server.creates)
        place.forget = server.predictions.clear  # another ledger's would look like ours
        place.env["REPLICATE_API_TOKEN"] = TOKEN
        yield place


BACKENDS = ["mock", "comfyui", "replicate"]


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
    for number in range(len(steps)):
        place.fresh()
        before = place.submits()
        killed = place.run("--id", "k", kill_at=number)
        assert killed.status == -9, f"{number} of {len(steps)}: {killed}"
        where = f"killed at step {number}, {killed.steps[-1]}"
        is_whole(place, place.run("--id", "k"), where)
        assert place.submits() - before == 1, where


def test_killed_at_any_step_without_hard_links_too(mock):
    mock.env["NO_LINKS"] = "1"
    steps = steps_of(mock, "--id", "k")
    for number in range(len(steps)):
        mock.fresh()
        mock.run("--id", "k", kill_at=number)
        _age_empty(mock)
        where = f"killed at step {number}, {steps[number]}"
        is_whole(mock, mock.run("--id", "k"), where)


def _age_empty(place: Place) -> None:
    """Let reservations that a killed process left empty be old."""
    for path in (place.rounds.folder / f"n{place.number}").rglob(".*.reserved"):
        os.utime(path, (1, 1))


def test_killed_while_it_replaces_an_image_no_sidecar_stands_beside_another_image(mock):
    output = mock.rounds.folder / "cat.png"
    args = ("--id", "k", "--output", output, "--force")
    old = ("--id", "old", "--output", output, "--force", "--new", "--set", "prompt=old")
    assert mock.run(*old).status == 0
    steps = mock.run(*args).steps
    assert "before atomic.unlink_durably" in steps
    assert "after atomic.unlink_durably" in steps
    for number in range(len(steps)):
        mock.fresh()
        assert mock.run(*old).status == 0
        before = mock.submits()
        mock.run(*args, kill_at=number)
        where = f"killed at step {number}, {steps[number]}"
        assert output.exists(), where
        if output.with_suffix(".json").exists():
            record = json.loads(output.with_suffix(".json").read_bytes())
            assert record["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest(), where
        (made,) = mock.run(*args).records
        assert made["id"] == "k", where
        assert json.loads(output.with_suffix(".json").read_bytes())["id"] == "k", where
        assert is_intact(made), where
        assert mock.submits() - before == 1, where


THREE = {"mock": "images=3", "rep": "num_outputs=3"}


@pytest.mark.parametrize("name", ["mock", "replicate"])
def test_killed_while_it_makes_three_images_the_next_run_has_three_under_their_names(name, request):
    place: Place = request.getfixturevalue(name)
    args = ("--id", "k", "--option", THREE[place.name])
    steps = place.run(*args).steps
    pictures = ["a-cat-7.png", "a-cat-7-2.png", "a-cat-7-3.png"]
    files = sorted([*pictures, *(name.replace(".png", ".json") for name in pictures)])
    assert place.left() == files
    every = 1 if "IMAGEN_SOAK" in os.environ else 2  # the others in another run
    for number in range(SEED % every, len(steps), every):
        place.fresh()
        before = place.submits()
        killed = place.run(*args, kill_at=number)
        where = f"IMAGEN_SEED={SEED}: killed at step {number}, {killed.steps[-1]}"
        ran = place.run(*args)
        assert ran.status == 0, f"{where}: {ran.err}"
        assert [one["id"] for one in ran.records] == ["k", "k.2", "k.3"], where
        assert [Path(one["file"]).name for one in ran.records] == pictures, where
        assert place.left() == files, where
        assert (place.open_ones(), place.submits() - before) == ([], 1), where


def test_without_an_id_too_as_long_as_it_was_not_handed_out(place):
    steps = steps_of(place)
    handed_out = steps.index("before Journal.delivered")
    for number in range(1, handed_out + 1, 3):
        place.fresh()
        before = place.submits()
        killed = place.run(kill_at=number)
        where = f"killed at step {number}, {killed.steps[-1]}"
        is_whole(place, place.run(), where)
        assert place.submits() - before == 1, where


def test_killed_again_and_again_at_random_steps_it_comes_to_its_end(place):
    chance = random.Random(SEED)
    for number in range(ROUNDS):
        place.fresh()
        before, wanted, trail = place.submits(), chance.choice([1, 1, 3]), []
        args = ("--id", "k", "--count", wanted)
        while (ran := place.run(*args, kill_at=chance.randrange(120 * wanted))).status == -9:
            trail.append(ran.steps[-1])
        where = f"IMAGEN_SEED={SEED}, round {number}: {trail}"
        assert ran.status == 0, f"{where}: {ran.err}"
        assert len(ran.records) == wanted, where
        assert all(Path(one["file"]).is_file() for one in ran.records), where
        assert len(place.left()) == 2 * wanted, where
        assert place.open_ones() == [], where
        assert place.submits() - before == wanted, where


def test_two_at_once_with_one_id_are_one_submit_whoever_is_killed(place, rounds, tool):
    other = Rounds(
        rounds.folder / "other", tool.environment({"SUBMITS": str(rounds.folder / "submits")})
    )
    try:
        chance = random.Random(SEED)
        for number in range(max(ROUNDS // 3, 3)):
            place.fresh()
            before, kill_at = place.submits(), chance.randrange(80)
            with ThreadPoolExecutor(2) as pool:
                killed = pool.submit(place.run, "--id", "k", kill_at=kill_at)
                lives = pool.submit(place.run, "--id", "k", by=other)
                ran, trail = lives.result(), killed.result().steps[-1:]
            where = f"IMAGEN_SEED={SEED}, round {number}: {trail}"
            if ran.status == 75:  # the other one was killed in its create, a moment ago
                assert ran.records[0]["error"]["code"] == "answer_lost", where
                ran = place.run("--id", "k")  # when its limits are over
            is_whole(place, ran, where)
            assert place.submits() - before == 1, where
    finally:
        other.close()
