"""What a comparison asks, what it reports, and that no text can leave the page's data."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.errors import UsageFault
from imagen.sheets import comparison_page


def test_all_seeds_of_a_backend_come_before_the_next_backend():
    turns = list(comparison_page.turns("x", ["a", "b"], [1, 2]))
    assert [turn.id for turn in turns] == ["x-a-1", "x-a-2", "x-b-1", "x-b-2"]
    assert [turn.file for turn in turns] == ["a-1.png", "a-2.png", "b-1.png", "b-2.png"]


@pytest.mark.parametrize(
    ("text", "expected"), [("a", ["a"]), ("a,b", ["a", "b"]), (" a , b,", ["a", "b"])]
)
def test_words_are_apart_by_commas(text, expected):
    assert comparison_page.words(text, "--backends") == expected


@pytest.mark.parametrize("text", ["", ",", " ", "a,a", "a,b, a"])
def test_no_words_and_a_word_twice_are_refused(text):
    with pytest.raises(UsageFault, match="--backends takes names, each once"):
        comparison_page.words(text, "--backends")


REQUEST = {"prompt": "a cat", "seed": 1, "id": "x"}
TURNS = list(comparison_page.turns("x", ["a", "b"], [1]))


def test_a_summary_sums_up_what_was_done():
    made = [
        {"file": "/f/a-1.png", "latency_ms": 1000, "queue_ms": 400, "cost_usd": 0.1, "seed": 1},
        {"file": "/f/b-1.png", "latency_ms": 500, "seed": 1},
        {"error": {"code": "x"}, "cost_usd": 5},
    ]
    found = comparison_page.summary("x", REQUEST, TURNS, made)
    assert (found["backends"], found["seeds"], found["request"]) == (["a", "b"], [1], REQUEST)
    assert found["members"] == made
    assert found["totals"] == {
        "asked": 2,
        "done": 2,
        "failed": 1,
        "latency_ms": 1500,
        "queue_ms": 400,
        "cost_usd": 0.1,
        "unpriced": 1,
    }


def test_an_unknown_price_is_counted_and_not_taken_for_zero():
    assert comparison_page.prices(
        [{"cost_usd": None}, {}, {"cost_usd": 0.1}, {"cost_usd": 0.2}]
    ) == {
        "cost_usd": 0.3,
        "unpriced": 2,
    }


def test_a_render_that_gave_no_record_is_a_failed_member():
    found = comparison_page.unanswered(TURNS[1], REQUEST, 137)
    assert (found["id"], found["backend"], found["prompt"]) == ("x-b-1", "b", "a cat")
    assert found["error"]["tool"] == "imagen-compare"
    assert "137" in found["error"]["message"]


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


@given(st.text(), st.text())
def test_no_text_leaves_the_pages_data(prompt, message):
    asked = {**REQUEST, "prompt": f"{prompt}</script><!--<script>&amp;]]>{prompt}"}
    found = comparison_page.summary("x", asked, TURNS, [{"seed": 1, "error": {"message": message}}])
    page = comparison_page.page(found).decode()
    assert data_of(page)["request"]["prompt"] == asked["prompt"]
    assert data_of(page)["members"][0]["error"]["message"] == message
    assert page.count("<script") == page.count("</script>") == 2
    assert page.isascii() or prompt not in page or prompt.isascii()


def test_the_page_names_files_beside_it_and_keeps_large_seeds():
    turns = list(comparison_page.turns("x", ["a"], [2**64 - 1]))
    made = [{"file": "/far/away/a-1.png", "seed": 2**64 - 1}]
    shown = data_of(
        comparison_page.page(comparison_page.summary("x", REQUEST, turns, made)).decode()
    )
    assert shown["members"][0]["file"] == "a-1.png"
    assert shown["seeds"] == [shown["members"][0]["seed"]] == ["18446744073709551615"]


def test_the_page_refers_to_nothing_on_a_network():
    page = comparison_page.PAGE.read_text()
    assert not re.search(r"https?:|wss?:|//[a-z]|\bsrc=|\bhref=|@import|url\(|fetch\(", page)
    assert "default-src 'none'" in page


def test_the_page_leaves_out_what_is_private():
    one = {"file": "/f/a-1.png", "seed": 1, "caller": "somebody@home", "owner_user_id": "u-u-i-d"}
    request = {**REQUEST, "caller": "somebody@home"}
    page = comparison_page.page(comparison_page.summary("x", request, TURNS, [one]))
    assert b"somebody@home" not in page
    assert b"u-u-i-d" not in page
