"""Each fault at each stage of a render, met by each program: paid once, nothing lost, all counted.

`make test` plays chosen cells, `make soak` all of them and 2,000 random ones with kills in between.
A name says stage, fault and program; a failure says which promise broke, and all that was seen.
"""

from __future__ import annotations

import pytest

from matrix import (
    MOST_CELLS,
    Cell,
    all_cells,
    chosen_cells,
    judge,
    pairs,
)
from places import comfyui, mock, replicate
from playing import Player

CELLS = chosen_cells()


def hold(seen):
    """Fail with the promises that were broken and all that was seen."""
    broken = judge(seen)
    assert not broken, "\n".join(["", *broken, str(seen)])


def play(cell, place, request):
    """Play a cell; a worker's has a database of its own."""
    fixtures = [request.getfixturevalue(name) for name in ("tool", "configure")]
    database = request.getfixturevalue("database") if cell.program == "listen" else None
    return Player(cell, place, *fixtures, database).play()


@pytest.mark.parametrize("cell", CELLS, ids=[cell.id for cell in CELLS])
def test_paid_once_nothing_lost_all_counted_never_stuck(cell, request):
    with replicate() as place:
        hold(play(cell, place, request))
