"""What a job's row keeps of its record: no secret, nothing that Postgres cannot hold, no more."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.queue import job_record
from imagen.queue.jobs import as_json

RECORD = {
    **{"prompt": "a cat", "id": "x", "seed": 2**64 - 1, "cost_usd": 0.003, "file": "/x/a-cat.png"},
    **{"cloud": {"bucket": "b", "path": "p", "image_id": "i"}, "mine": [1, {"a": None}]},
}


def test_a_record_is_kept_as_it_is():
    assert job_record.for_row(RECORD) == RECORD


def test_an_address_for_anybody_and_a_traceback_are_left_out():
    cloud = {**RECORD["cloud"], "signed_url": "https://x/y?token=secret"}
    error = {"code": "internal", "message": "m", "traceback": "secret"}
    kept = job_record.for_row({**RECORD, "cloud": cloud, "error": error})
    assert kept == {**RECORD, "error": {"code": "internal", "message": "m"}}
    assert "secret" not in json.dumps(kept)


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], json.loads("[" * 200 + "]" * 200)])
def test_what_postgres_cannot_hold_is_left_out_by_name(value):
    assert job_record.for_row({**RECORD, "odd": value}) == {**RECORD, "left_out": ["odd"]}


def test_of_a_record_that_is_too_large_the_largest_unknown_fields_go_first():
    large = {"other": "x" * job_record.MOST_BYTES, "another": "y" * 1000}
    assert job_record.for_row({**large, **RECORD}) == {
        **RECORD,
        "another": large["another"],
        "left_out": ["other"],
    }
    options = {"x": "z" * job_record.MOST_BYTES}
    kept = job_record.for_row({**RECORD, "options": options, "another": "y"})
    assert {**RECORD, **kept} == {**kept, "mine": RECORD["mine"]}
    assert kept["left_out"] == ["mine", "another", "options"]


@given(
    st.dictionaries(
        st.text(max_size=200) | st.sampled_from(["file", "cloud", "error", "left_out"]),
        st.text(max_size=2000)
        | st.integers()
        | st.floats()
        | st.dictionaries(st.text(max_size=3), st.floats() | st.text(max_size=5_000), max_size=3),
        max_size=30,
    )
)
def test_whatever_a_record_holds_its_row_can_keep_it(record):
    text = as_json(job_record.for_row(record))
    assert len(text.encode()) <= job_record.MOST_BYTES + 10_000
    assert isinstance(json.loads(text), dict)


def test_a_million_fields_are_bounded_too():
    kept = job_record.for_row({**RECORD, **{f"field {n}" * 10: n for n in range(100_000)}})
    assert {name: kept[name] for name in RECORD if name != "mine"} == {
        name: value for name, value in RECORD.items() if name != "mine"
    }
    assert len(as_json(kept).encode()) <= job_record.MOST_BYTES + 10_000
    assert max(map(len, kept["left_out"])) <= 60
