"""Each fault at each stage of a render, met by each program: paid once, nothing lost, all counted.

`make test` plays chosen cells, `make soak` all of them, and $IMAGEN_SOAK random ones with kills in
between. A name says stage, fault and program; a failure says which promise broke, and all that was
seen. $IMAGEN_MATRIX_SEED makes the same random choices again.
"""

from __future__ import annotations

import os
import random
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest

import seeds
from matrix import (
    KILLS,
    MOST_CELLS,
    RENDERS,
    Cell,
    Observation,
    Run,
    all_cells,
    chosen_cells,
    chosen_free_cells,
    free_cells,
    judge,
    pairs,
)
from places import comfyui, mock, replicate
from playing import Player

ROUNDS = int(os.environ.get("IMAGEN_SOAK", "0"))
SEED = int(os.environ.get("IMAGEN_MATRIX_SEED", seeds.SEED))
PARTS = 40
CELLS = all_cells() if ROUNDS else chosen_cells()
FREE = free_cells() if ROUNDS else chosen_free_cells()


def hold(seen, *more):
    """Fail with the promises that were broken and all that was seen."""
    broken = judge(seen)
    assert not broken, "\n".join(["", *more, *broken, str(seen)])


@pytest.fixture
def play(request, tool, configure, tmp_path):
    """Play a cell on a server of its own; a worker's cell has a database of its own too."""
    opens = {"replicate": replicate, "comfyui": comfyui, "mock": lambda: mock(tmp_path)}

    def start(cell, kills=()):
        with ExitStack() as stack:
            place, database = stack.enter_context(opens[cell.backend]()), None
            if cell.program == "listen":
                cluster = request.getfixturevalue("cluster")
                database = stack.enter_context(cluster.database())
            return Player(cell, place, tool, configure, database, kills).play()

    return start


@pytest.mark.parametrize("cell", CELLS, ids=[cell.id for cell in CELLS])
def test_paid_once_nothing_lost_all_counted_never_stuck(cell, play):
    hold(play(cell))


@pytest.mark.parametrize("cell", FREE, ids=[cell.id for cell in FREE])
def test_a_backend_that_takes_our_id_makes_it_once_and_loses_nothing(cell, play):
    hold(play(cell))


@pytest.mark.skipif(not ROUNDS, reason="make soak: random cells, killed at random times")
@pytest.mark.parametrize("part", range(PARTS if ROUNDS else 1))
def test_random_cells_killed_at_random_times(part, play, capsys):
    chance = random.Random(f"{SEED} {part}")
    with capsys.disabled():
        print(f"\nmatrix: IMAGEN_MATRIX_SEED={SEED}, part {part}", file=sys.stderr)
    for number in range(max(ROUNDS // PARTS, 1)):
        cell = chance.choice(CELLS)
        kills = [chance.uniform(0.05, 1.5) for _ in range(chance.choice([0, 1, 1, 2]))]
        where = f"IMAGEN_MATRIX_SEED={SEED} part {part} round {number}: {cell.id}, killed {kills}"
        hold(play(cell, kills), where)


# -- what is played --------------------------------------------------------------------------------


def test_the_chosen_cells_are_all_creates_of_render_and_every_pair_of_the_rest():
    chosen, free, every = chosen_cells(), chosen_free_cells(), all_cells()
    assert len({*chosen, *free}) == len(chosen) + len(free) <= MOST_CELLS
    assert set(chosen) <= set(every) and set(free) <= set(free_cells())
    creates = {(c.fault, c.program) for c in every if c.stage == "create" and c.program in RENDERS}
    assert creates <= {(c.fault, c.program) for c in chosen if c.stage == "create"}
    pairwise = {c for c in every if c.program != "listen" or c.fault in KILLS[:2]}
    covered = set().union(*(pairs(cell) for cell in [*chosen, *free]))
    assert set().union(*(pairs(cell) for cell in pairwise)) <= covered
    unaccepted = {cell.fault for cell in chosen if not cell.accepted}
    assert unaccepted == {cell.fault for cell in every if not cell.accepted} - {"takeover"}


def test_the_chosen_free_cells_meet_each_fault_and_each_stage_of_those_backends():
    chosen, every = chosen_free_cells(), free_cells()
    assert {cell.fault for cell in chosen} == {cell.fault for cell in every}
    assert {(cell.backend, cell.stage) for cell in every} - {
        (cell.backend, cell.stage) for cell in chosen
    } == {("mock", "poll"), ("mock", "fetch")}, "test_render_faults and test_killed have those"


# -- the judge -------------------------------------------------------------------------------------

ROW = {"backend": "rep", "handle": "p1", "billed": "yes", "estimate_usd": 0.003}
PICTURE = {"file": "cat.png", "submit": "p1", "size": 4000}
DOUBT = {"code": "answer_lost", "billed": "unknown", "retry": "after", "retry_after_s": 2}
CELL = Cell("create", "silence", True, "render_with_id")


def seen(*runs, **changes):
    """Give what is seen of a cell in which all is well, with changes."""
    last = Run(0, [{"id": "k", "file": "cat.png"}], "", 1)
    well = Observation(CELL, [*runs, last], 1, ["p1"], [ROW], [PICTURE])
    return replace(well, **changes)


def in_doubt(**changes):
    """Give a run that does not know whether it was paid."""
    return Run(75, [{"id": "k", "error": {**DOUBT, **changes}}], "", 1)


def test_a_picture_that_was_paid_once_breaks_no_promise():
    assert judge(seen()) == []
    assert judge(seen(in_doubt())) == []


UNPAID = replace(CELL, accepted=False)
NORMALISED = replace(CELL, fault="list_normalises")
BREAKS = [
    ("PAID ONCE", seen(creates=2, submits=[ROW, ROW], runs=[Run(0, [{}], "", 2)])),
    ("NOTHING LOST", seen(runs=[in_doubt()], pictures=[])),
    ("NOTHING LOST", seen(runs=[Run(0, [{}], "", 1)], pictures=[{**PICTURE, "size": 0}])),
    ("NOTHING LOST", seen(runs=[Run(0, [{}], "", 1)], pictures=[{**PICTURE, "submit": "p0"}])),
    ("COUNTED", seen(submits=[])),
    ("COUNTED", seen(submits=[{**ROW, "billed": "no"}])),
    ("COUNTED", seen(submits=[ROW, {**ROW, "billed": None}])),
    ("COUNTED", seen(in_doubt(billed="no"))),
    ("NEVER STUCK", seen(cell=UNPAID, runs=[in_doubt()], creates=0, submits=[], pictures=[])),
    ("ENDED", seen(Run(None, [], "", 1))),
    ("ENDED", seen(Run(1, [], "", 1))),
    ("ENDED", seen(in_doubt(retry="reconcile"))),
]


@pytest.mark.parametrize(("promise", "observation"), BREAKS)
def test_the_judge_names_the_promise_that_broke(promise, observation):
    broken = judge(observation)
    assert broken, "the judge saw nothing"
    assert {line.partition(":")[0] for line in broken} == {promise}


def test_a_doubt_that_no_look_can_end_may_stay_where_the_list_cannot_be_read_for_sure():
    doubt = Run(1, [{"id": "k", "error": {**DOUBT, "retry": "reconcile"}}], "", 1)
    still = seen(cell=NORMALISED, runs=[doubt], pictures=[], submits=[{**ROW, "billed": None}])
    assert judge(still) == []
    assert judge(replace(still, cell=CELL)) != []
