"""What a line asks for, judged before anything is done: two functions, two tables."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagen.errors import ImagenError, Refused
from imagen.records import record
from imagen.records.record import DRAWN_SEEDS, MAX_SEED
from imagen.records.request import Request, Told, fate, requests_of

ASKED = {"prompt": "a"}
FINISHED = {**ASKED, "id": "old", "seed": 9, "file": "/f.png"}
PENDING = {**ASKED, "id": "old", "seed": 9, "pending": {"handle": "h"}}
SHEET = {"file": "/s.png", "members": []}
PLAIN, AGAIN, COUNT, SEED = Told(), Told(again=True), Told(count=2), Told(seed=5)


def failed(tool: str, retry: Any) -> dict[str, Any]:
    return {**ASKED, "error": {"tool": tool, "retry": retry}}


OURS, THEIRS = "imagen-render", "imagen-upload"


@pytest.mark.parametrize(
    ("line", "told", "expected"),
    [
        (ASKED, PLAIN, "new"),
        (ASKED, COUNT, "new"),
        ({**ASKED, "error": None}, PLAIN, "new"),
        (FINISHED, PLAIN, "pass"),
        (FINISHED, Told(strict=True, wait_s=1), "pass"),
        (FINISHED, AGAIN, "new"),
        (FINISHED, COUNT, "new"),
        (FINISHED, SEED, "new"),
        ({**FINISHED, "error": {"tool": THEIRS, "retry": "safe"}}, PLAIN, "pass"),
        (PENDING, PLAIN, "collect"),
        (PENDING, COUNT, "collect"),
        (PENDING, SEED, "collect"),
        (PENDING, AGAIN, "new"),
        ({**PENDING, "error": {"tool": OURS, "retry": "safe"}}, PLAIN, "collect"),
        ({**PENDING, "error": {"tool": THEIRS, "retry": "never"}}, PLAIN, "collect"),
        (SHEET, PLAIN, "pass"),
        (SHEET, COUNT, "pass"),
        (SHEET, SEED, "pass"),
        (failed(OURS, "safe"), PLAIN, "retry"),
        (failed(OURS, "after"), PLAIN, "retry"),
        (failed(OURS, "never"), PLAIN, "pass"),
        (failed(OURS, "reconcile"), PLAIN, "pass"),
        (failed(OURS, ["safe"]), PLAIN, "pass"),
        (failed(OURS, None), PLAIN, "pass"),
        (failed(THEIRS, "safe"), PLAIN, "pass"),
        (failed(OURS, "never"), AGAIN, "new"),
        ({**ASKED, "error": "text"}, PLAIN, "pass"),
    ],
)
def test_what_happens_to_a_line(line, told, expected):
    assert fate(line, told) == expected


def one(line: dict[str, Any], **told: Any) -> dict[str, Any]:
    (only,) = requests_of(line, Told(**told))
    return only


def is_fresh(text: str) -> bool:
    return uuid.UUID(text).version == 4


def test_a_fresh_line_gets_an_id_and_a_seed():
    made = one(ASKED)
    assert made["prompt"] == "a"
    assert is_fresh(made["id"])
    assert 0 <= made["seed"] < DRAWN_SEEDS
    assert {*made} == {"prompt", "id", "seed"}


def test_what_a_line_says_stays():
    line = {**ASKED, "id": "k", "seed": 3, "mine": [1], "job": {"id": "j"}}
    assert one(line, seed=9, defaults={"seed": 9}) == line


@pytest.mark.parametrize(
    ("line", "told", "seeds"),
    [
        ({"seed": 3}, {"count": 3}, [3, 4, 5]),
        ({}, {"count": 2, "defaults": {"seed": 7}, "seed": 7}, [7, 8]),
        ({"seed": 3}, {"count": 2, "defaults": {"seed": 7}, "seed": 7}, [3, 4]),
        ({"seed": 3}, {"count": 2, "overrides": {"seed": 20}}, [20, 21]),
        ({"seed": MAX_SEED - 1}, {"count": 2}, [MAX_SEED - 1, MAX_SEED]),
        ({"seed": 3}, {"count": 1}, [3]),
    ],
)
def test_count_counts_up_from_the_first_seed(line, told, seeds):
    made = requests_of({**ASKED, "id": "k", **line}, Told(**told))
    assert [each["seed"] for each in made] == seeds
    assert [each["id"] for each in made] == [f"k-{n + 1}" for n in range(len(seeds))]
    assert {each["request"] for each in made} == {"k"}


@pytest.mark.parametrize("told", [{"count": 3}, {"count": 10_000}])
def test_drawn_seeds_of_a_count_all_stay_within_32_bits(told):
    seeds = [each["seed"] for each in requests_of(ASKED, Told(**told))]
    assert max(seeds) < DRAWN_SEEDS
    assert seeds == [*range(seeds[0], seeds[0] + len(seeds))]


def test_seeds_that_would_pass_the_largest_are_refused():
    with pytest.raises(Refused, match="seed"):
        requests_of({**ASKED, "seed": MAX_SEED}, Told(count=2))


@pytest.mark.parametrize(
    ("told", "seeds"),
    [
        ({"again": True}, [9]),
        ({"again": True, "seed": 5, "defaults": {"seed": 5}}, [5]),
        ({"seed": 5, "defaults": {"seed": 5}}, [5]),
        ({"seed": 5, "count": 3, "defaults": {"seed": 5}}, [5, 6, 7]),
        ({"count": 2}, None),
        ({"count": 2, "again": True}, None),
    ],
)
def test_a_finished_line_made_anew(told, seeds):
    line = {**FINISHED, "mine": 1, "sha256": "x", "cloud": {}, "job": {"id": "j"}, "date": "d"}
    made = requests_of(line, Told(**told))
    if seeds is not None:
        assert [each["seed"] for each in made] == seeds
    else:
        assert made[1]["seed"] == made[0]["seed"] + 1
        assert made[0]["seed"] != 9
    for each in made:
        assert (each["request"], each["mine"], is_fresh(each["id"])) == ("old", 1, True)
        assert {*each} == {"prompt", "request", "mine", "id", "seed"}
    assert len({each["id"] for each in made}) == len(made)


def test_again_drops_the_handle_and_the_error():
    for line in (PENDING, failed(OURS, "never")):
        made = one(line, again=True)
        assert not {"pending", "error"} & {*made}


def test_a_retried_line_stays_the_one_request_that_it_is():
    line = {**failed(OURS, "safe"), "id": "k", "seed": 4, "attempts": 2, "date": "2026-01-02"}
    (made,) = requests_of(line, Told(count=5))
    assert (made["id"], made["seed"], made["attempts"]) == ("k", 4, 2)
    assert made["date"] == "2026-01-02"


def test_a_tools_field_in_a_fresh_line_does_not_survive():
    hostile = {"sidecar": "../../x", "render_id": "x", "attempts": 5, "submit": "h", "workflow": 3}
    assert not {*hostile} & {*one({**ASKED, **hostile})}


def test_every_id_that_count_makes_is_an_id_that_may_be_asked_for():
    try:
        made = requests_of({**ASKED, "id": "x" * 200}, Told(count=2))
    except Refused:
        return
    for each in made:
        assert record.checked(each) == each


@pytest.mark.parametrize(
    "bad",
    [
        {"slug": "../x"},
        {"slug": "A"},
        {"slug": ""},
        {"slug": 5},
        {"date": "../x"},
        {"date": "2026-13-01"},
        {"date": "2026-1-1"},
        {"date": 5},
        {"request": 5},
    ],
)
def test_a_name_that_a_line_brings_must_be_one(bad):
    with pytest.raises(Refused, match=next(iter(bad))):
        requests_of({**ASKED, **bad}, PLAIN)


values = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False)
    | st.just({}) | st.just([]) | st.just({"tool": OURS, "retry": "safe"}) | st.just("../../x")
)  # fmt: skip
lines = st.dictionaries(st.sampled_from([*record.FIELDS, "mine"]), values, max_size=6)
tolds = st.sampled_from([PLAIN, AGAIN, COUNT, SEED, Told(overrides={"width": 64})])


@given(lines, tolds)
@example({"prompt": "a", "date": None, "slug": None, "error": None}, PLAIN)
@example({"prompt": "a", "file": None, "id": 5}, COUNT)
@settings(max_examples=60, deadline=None)
def test_any_line_is_sound_requests_or_refused(line, told):
    try:
        made = requests_of({"prompt": "a", **line}, told)
    except ImagenError as fault:
        assert fault.exit_status == 2
        return
    for each in made:
        assert record.checked(each) == each
        assert isinstance(each["seed"], int)
        assert isinstance(each["id"], str)


def test_a_line_tried_again_is_the_request_that_it_was_whatever_the_options_say_now():
    line = {**failed(OURS, "safe"), "id": "k", "seed": 3}
    (again,) = requests_of(line, Told(defaults={"style": "ink", "steps": 9}))
    assert {"style", "steps"}.isdisjoint(again)


def test_a_line_tried_again_with_another_request_is_a_new_one():
    line = {**failed(OURS, "safe"), "id": "k", "seed": 3}
    told = Told(overrides={"prompt": "b"})
    assert fate(line, told) == "new"
    (new,) = requests_of(line, told)
    assert (new["request"], new["prompt"]) == ("k", "b")
    assert new["id"] != "k"


@pytest.mark.parametrize("name", ["file", "pending", "members", "error"])
def test_what_is_null_is_not_said(name):
    assert fate({**ASKED, name: None}, PLAIN) == "new"


def test_the_order_of_keys_makes_no_other_request_however_deep_they_are():
    one = {"prompt": "a cat", "options": {"a": {"x": 1, "y": [{"m": 1, "n": 2}]}, "b": 2}}
    other = {"options": {"b": 2, "a": {"y": [{"n": 2, "m": 1}], "x": 1}}, "prompt": "a cat"}
    assert Request(one).key == Request(other).key
    assert Request(one).is_of(Request(other).key, {})
    swapped = {**one, "options": {"a": {"x": 1, "y": [{"m": 2, "n": 1}]}, "b": 2}}
    assert Request(swapped).key != Request(one).key
