"""The record: what a line may be, what a request's fields may hold, and the schema of both."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from imagen.errors import BadLine, ImagenError, Refused
from imagen.records import record

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # what a careless writer or a hostile one might put there
    | texts
    | st.sampled_from(["../../x", "\0", "", 1e308, -1, 2**64, 10**4000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
records = st.dictionaries(st.sampled_from([*record.FIELDS]) | texts, values, max_size=8)


# -- lines -----------------------------------------------------------------------------------------


@given(records)
@settings(max_examples=60, deadline=None)
def test_a_record_written_and_read_is_the_same(one):
    line = record.line(one)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert record.parse(line) == one
    assert [*record.parse(line)] == [*one], "the keys stay in their places"


@given(st.binary(max_size=60))
@example(b'{"a":1}')
@example(b'{"a":"\\ud800"}')
@example(b"[" * 50_000)
@example(b'{"a":' + b"1" * 5_000 + b"}")
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_a_record_or_a_bad_line(raw):
    try:
        one = record.parse(raw)
    except BadLine as fault:
        assert fault.message
        assert fault.exit_status == 2
    else:
        assert isinstance(one, dict)
        assert record.parse(record.line(one)) == one


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"oops", "not JSON: "),
        (b'{"a":}', "not JSON: "),
        (b'{"prompt": "a cat"\r\n', "at column 19"),
        (b"[1]", "a list"),
        (b"null", "null"),
        (b'"x"', "a string"),
        (b"7", "a number"),
        (b"true", "true or false"),
        (b"\xff", "not UTF-8: byte 1"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":1e400}', "1e400"),
        (b'{"a":' + b"9" * 5_000 + b"}", "too many digits"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":"\\uDFFF"}', "surrogate"),
    ],
)
def test_a_bad_line_says_what_is_wrong_with_it(raw, says):
    with pytest.raises(BadLine, match=says) as caught:
        record.parse(raw)
    assert len(caught.value.as_line()) < 200


def test_a_whole_pair_of_surrogates_is_an_ordinary_character():
    assert record.parse(b'{"a":"\\ud83d\\udc08"}') == {"a": "🐈"}


# -- request fields --------------------------------------------------------------------------------


def checked(**fields: Any) -> dict[str, Any]:
    return record.checked({"prompt": "a", **fields})


@pytest.mark.parametrize(
    ("name", "value", "becomes"),
    [
        ("seed", 7.0, 7),
        ("seed", 2**64 - 1, 2**64 - 1),
        ("width", 16, 16),
        ("height", 16384, 16384),
        ("cfg", 0, 0),
        ("cfg", 3.5, 3.5),
        ("prompt", "\n a \t", "\n a \t"),
        ("prompt", "x" * 100_000, "x" * 100_000),
        ("options", {"a": {"b": [1, None]}}, {"a": {"b": [1, None]}}),
        ("owner_user_id", "AC6C9501-0000-4000-8000-2CFF4288382B", None),
    ],
)
def test_a_sound_field_is_kept(name, value, becomes):
    assert checked(**{name: value})[name] == (value if becomes is None else becomes)


def test_a_whole_float_becomes_an_integer():
    assert isinstance(checked(seed=7.0)["seed"], int)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", ""),
        ("prompt", "  \n"),
        ("prompt", "x" * 100_001),
        ("prompt", "a\0b"),
        ("prompt", None),
        ("prompt", 7),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.5),
        ("seed", True),
        ("seed", "7"),
        ("width", 15),
        ("width", 16385),
        ("height", math.inf),
        ("steps", 0),
        ("steps", 10_001),
        ("cfg", 100.01),
        ("cfg", []),
        ("sampler", ""),
        ("id", "x" * 201),
        ("options", []),
        ("options", {"a": "\0"}),
        ("options", {"\0": 1}),
        ("owner_user_id", "me"),
    ],
)
def test_an_unsound_field_is_refused_by_its_name(name, value):
    with pytest.raises(Refused) as caught:
        checked(**{name: value})
    assert caught.value.message.startswith(name if value is not None else "no prompt")
    assert len(caught.value.message) < 200


ANEW = "leave it out for a random one"


@pytest.mark.parametrize(
    ("seed", "says", "hint"),
    [
        (-1, f"seed must be from 0 to {record.MAX_SEED}, not -1", ANEW),
        (-1.0, f"seed must be from 0 to {record.MAX_SEED}, not -1.0", ANEW),
        (1.5, "seed must be a whole number, not 1.5", ANEW),
        (-1.5, "seed must be a whole number, not -1.5", ANEW),
        (math.inf, "seed must be a whole number, not inf", ANEW),
        (2.0**53 + 2, "seed 9007199254740994.0 has lost digits, so it differs", "jq before 1.7"),
        (2.0**64, "seed 1.8446744073709552e+19 has lost digits, so it differs", "jq before 1.7"),
        (2**64, f"seed must be from 0 to {record.MAX_SEED}, not {2**64}", "jq before 1.7"),
        (2**64 + 999, f"not {2**64 + 999}", "jq before 1.7"),
        (2**64 + 1000, f"not {2**64 + 1000}", None),
        (10**4000, "not a number of 4001 digits", None),
        (True, "seed must be a whole number, not true or false", None),
        ("7", "seed must be a whole number, not a string", None),
    ],
)
def test_a_seed_of_another_tool_or_one_that_was_rounded_is_explained(seed, says, hint):
    with pytest.raises(Refused) as caught:
        checked(seed=seed)
    assert says in caught.value.message
    assert caught.value.hint is None if hint is None else caught.value.hint.startswith(hint)


@pytest.mark.parametrize("seed", [0, 0.0, -0.0, 2.0**53, 2**53 + 1, record.MAX_SEED])
def test_a_seed_that_is_whole_is_kept_to_its_last_digit(seed):
    assert checked(seed=seed)["seed"] == seed
    assert isinstance(checked(seed=seed)["seed"], int)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((number, str(number)) for number in (0, 1, 9, 15, -1, -5, 10**39, -(10**39))),
        (10**40, "a number of 41 digits"),
        (-(10**40), "a number of 41 digits"),
        (10**3999, "a number of 4000 digits"),
    ],
)
def test_a_number_out_of_range_is_shown_unless_it_is_long(value, shown):
    with pytest.raises(Refused) as caught:
        checked(width=value)
    assert caught.value.message == f"width must be from 16 to 16384, not {shown}"


@pytest.mark.parametrize(("name", "value"), [("cfg", 7.0), ("cfg", 100), ("width", 512.0)])
def test_a_number_keeps_its_kind_where_a_fraction_is_allowed(name, value):
    kept = checked(**{name: value})[name]
    assert (kept, isinstance(kept, float)) == (value, name == "cfg" and value == 7.0)


def nested(depth: int, inner: Any = 1) -> Any:
    """Give lists and objects inside each other, so many, around a value."""
    value = inner
    for number in range(depth):
        value = {"x": value} if number % 2 else [value, "beside"]
    return value


def test_what_is_nested_a_hundred_deep_is_kept_and_no_deeper():
    assert checked(options={"a": nested(99)})["options"]
    with pytest.raises(Refused, match="options is nested more than 100 deep"):
        checked(options={"a": nested(100)})
    record.check_storable({"mine": nested(99)})
    with pytest.raises(Refused, match="the record is nested more than 100 deep"):
        record.check_storable({"mine": nested(100)})


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("a\0b", "a NUL character in it", "Postgres has no place for one"),
        ("\ud800", "is not valid UTF-8", None),
    ],
)
@pytest.mark.parametrize("place", [lambda text: {"k": [1, text]}, lambda text: {"k": {text: 1}}])
def test_text_that_no_row_can_hold_is_refused_wherever_it_stands(text, says, hint, place):
    for call in (lambda: checked(options=place(text)), lambda: record.check_storable(place(text))):
        with pytest.raises(Refused, match=says) as caught:
            call()
        assert caught.value.hint == hint
    record.check_storable({"k": [{"a": "\n"}, None, 1, "🐈"]})


def test_half_a_pair_of_surrogates_is_found_wherever_it_stands_in_a_line():
    for line in (rb'{"a":["\uD800"]}', rb'{"a":[{"b":{"\udc00":1}}]}', rb'[["\ud800"]]'):
        with pytest.raises(BadLine, match="half of a surrogate pair"):
            record.parse(line)


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_only_a_prompt_has_to_show_something(text):
    assert checked(negative_prompt=text)["negative_prompt"] == text


def test_a_request_without_a_prompt_is_refused_and_an_empty_one_with_a_hint():
    for fields, hint in (({}, "a request needs at least a prompt"), ({"seed": 1}, None)):
        with pytest.raises(Refused, match=r"^no prompt$") as caught:
            record.checked(fields)
        assert caught.value.hint == hint


def test_null_counts_as_not_said_and_unknown_fields_are_left_alone():
    assert checked(seed=None, style=None, mine=None, other="\0") == {
        "prompt": "a",
        "mine": None,
        "other": "\0",
    }


@given(records)
@settings(max_examples=60, deadline=None)
def test_what_is_checked_is_sound_by_the_schema_of_a_request(one):
    try:
        sound = record.checked(one)
    except Refused:
        return
    except ImagenError as fault:
        raise AssertionError("an unsound field is the asker's to change") from fault
    asked = {name: value for name, value in sound.items() if name in record.REQUEST}
    assert [*Draft202012Validator(record.schema("request")).iter_errors(asked)] == []
    assert {name: sound[name] for name in one if name not in record.REQUEST} == {
        name: one[name] for name in one if name not in record.REQUEST
    }


# -- defaults, overrides, and a record made anew ---------------------------------------------------


@pytest.mark.parametrize(
    ("line", "defaults", "filled"),
    [
        ({}, {"seed": 1}, {"seed": 1}),
        ({"seed": 2}, {"seed": 1}, {"seed": 2}),
        ({"seed": None}, {"seed": 1}, {"seed": 1}),
        ({"seed": 0}, {"seed": 1}, {"seed": 0}),
        ({"options": {"a": 1}}, {"options": {"a": 2, "b": 2}}, {"options": {"a": 1, "b": 2}}),
        ({"options": {}}, {"options": {"b": 2}}, {"options": {"b": 2}}),
    ],
)
def test_defaults_fill_what_a_line_does_not_say(line, defaults, filled):
    assert record.with_defaults(line, defaults) == filled


def test_overrides_go_over_what_a_line_says_and_only_over_request_fields():
    assert record.overridden({"seed": 1, "x": 1}, {"seed": 2}) == {"seed": 2, "x": 1}
    with pytest.raises(Refused) as caught:
        record.overridden({}, {"sed": 2})
    assert "seed" in caught.value.hint


def test_a_record_made_anew_keeps_what_was_asked_and_nothing_tools_wrote():
    finished = dict.fromkeys(record.FIELDS, 1) | {"id": "old", "mine": 1}
    fresh = record.asked(finished)
    assert fresh["request"] == "old"
    assert fresh["mine"] == 1
    kept = {*record.REQUEST} - {"id"} | {"request", "mine"}
    assert {*fresh} == kept


@pytest.mark.parametrize(
    ("line", "values", "result"),
    [
        ({"seed": 1, "x": 1}, {"seed": 2}, {"seed": 2, "x": 1}),
        ({"options": {"a": 1, "b": 1}}, {"options": {"b": 2}}, {"options": {"a": 1, "b": 2}}),
        ({"options": {"a": 1}}, {"seed": 2}, {"options": {"a": 1}, "seed": 2}),
        ({"options": None}, {"options": {"b": 2}}, {"options": {"b": 2}}),
        ({"options": "x"}, {"options": {"b": 2}}, {"options": {"b": 2}}),
        ({}, {"options": {"b": 2}}, {"options": {"b": 2}}),
    ],
)
def test_where_the_command_line_wins_options_win_key_by_key(line, values, result):
    before = json.dumps([line, values])
    assert record.changed(line, values) == result
    assert json.dumps([line, values]) == before, "neither is written into"


def test_defaults_are_not_written_into_the_line_that_they_fill():
    line: dict[str, Any] = {"options": {"a": 1}}
    record.with_defaults(line, {"seed": 1, "options": {"b": 2}, "cfg": {"of": "no options"}})
    assert line == {"options": {"a": 1}}
    assert record.with_defaults({"cfg": {}}, {"cfg": {"a": 1}}) == {"cfg": {}}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *((text, (1024, 768)) for text in ("1024x768", "1024X768", "1024×768", "01024x0768")),
        *((text, None) for text in ("1024", "1024x", "x768", "1024x768x2", " 1024x768", "-1x1")),
        *((text, None) for text in ("1.5x2", "١x٢", "1024x768\n", "1234567890x1", "", "axb")),
    ],
)
def test_a_size_is_two_whole_numbers_with_an_x_between_them(text, size):
    sides = size and {"width": size[0], "height": size[1]}
    assert record.size_of(text) == sides
    assert record.sized({"size": text}) == {"size": text, **(sides or {})}


@pytest.mark.parametrize(
    "line",
    [
        {"size": "64x32", "width": 16},
        {"size": "64x32", "height": 16},
        {"size": 64},
        {"size": ["64x32"]},
        {"size": None},
        {},
    ],
)
def test_a_size_is_read_only_where_no_side_is_said(line):
    assert record.sized(line) == line


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("AC6C9501-3757-4A6D-8B97-2CFF4288382B", "ac6c9501-3757-4a6d-8b97-2cff4288382b"),
        ("ac6c950137574a6d8b972cff4288382b", None),
        ("{ac6c9501-3757-4a6d-8b97-2cff4288382b}", None),
        ("ac6c9501-3757-4a6d-8b97-2cff4288382g", None),
        ("ac6c9501-3757-4a6d-8b97-2cff4288382b\n", None),
        ("٣c6c9501-3757-4a6d-8b97-2cff4288382b", None),
        ("", None),
    ],
)
def test_a_uuid_has_one_form(text, canonical):
    assert record.canonical_uuid(text) == canonical


# -- the schema ------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["request", "record"])
def test_a_schema_is_valid_and_describes_every_field(of):
    schema = record.schema(of)
    Draft202012Validator.check_schema(schema)
    text = json.dumps(schema)
    wanted = [*record.FIELDS] if of == "record" else [*record.REQUEST]
    assert all(f'"{name}"' in text for name in wanted)


SHEET = {"file": "/s.png", "members": [{"id": "a"}], "cells": []}
ERROR = {"tool": "t", "code": "c", "message": "m", "billed": "no", "retry": "safe"}
PENDING = {"backend": "mock", "handle": "h", "since": "2026-01-02T03:04:05Z"}


@pytest.mark.parametrize(
    ("one", "sound"),
    [
        ({"prompt": "a"}, True),
        ({"prompt": "a", "mine": {"x": 1}}, True),
        ({}, False),
        (SHEET, True),
        ({"prompt": "a", "pending": PENDING}, True),
        ({"prompt": "a", "pending": {"handle": "h"}}, False),
        ({"prompt": 5, "error": ERROR}, True),
        ({"error": {**ERROR, "retry": "maybe"}}, False),
        ({"prompt": "a", "seed": 2**64}, False),
        ({"prompt": "a", "sha256": "x"}, False),
        ({"prompt": "a", "cost_usd": None}, False),
        ({"prompt": "a", "format": "bmp"}, False),
        ({"prompt": "a", "slug": "../x"}, False),
    ],
)
def test_the_schema_of_a_record(one, sound):
    assert Draft202012Validator(record.schema("record")).is_valid(one) == sound


def test_a_request_may_say_null_where_a_record_may_not():
    line = {"prompt": "a", "seed": None}
    assert Draft202012Validator(record.schema("request")).is_valid(line)
    assert not Draft202012Validator(record.schema("record")).is_valid(line)


def test_what_a_terminal_would_obey_is_escaped_and_reads_back_the_same():
    made = {"prompt": "a\x9b31mb\x7f"}
    line = record.line(made)
    assert b"\\u009b31m" in line
    assert b"\x7f" not in line
    assert record.parse(line) == made
