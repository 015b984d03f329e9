"""What Replicate's models take, and what its answers mean."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.backends.replicate import responses as api
from imagen.backends.replicate.catalog import PIXELS, Reference, Shape, pixels, reference, shape
from imagen.backends.replicate.responses import (
    Wanted,
    best,
    is_trusted,
    judged,
    next_page,
    prediction,
    stamp,
)
from imagen.config.settings import MODEL
from imagen.errors import AnswerLost, ServerFault, Throttled

SCHNELL, OTHER = "black-forest-labs/flux-schnell", "black-forest-labs/flux-1.1-pro"
FLUX = reference(SCHNELL).flux
PRO = reference(OTHER).flux
assert FLUX is not None
assert PRO is not None
SIDE = st.integers(16, 16384)
NOW = 1_780_000_000.0


# -- models and sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("owner/name", "/v1/models/owner/name/predictions"),
        ("black-forest-labs/flux-1.1-pro", "/v1/models/black-forest-labs/flux-1.1-pro/predictions"),
        ("owner/name:abc123", "/v1/predictions"),
    ],
)
def test_a_model_has_its_path_and_a_version_the_common_one(text, path):
    assert MODEL.fullmatch(text)
    assert (str(reference(text)), reference(text).path) == (text, path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "owner/",
        "/name",
        "o/n/m",
        "o/n:",
        "o/n:a:b",
        "o/n?x",
        "../name",
        "o/..",
        "o n/m",
    ],
)
def test_what_is_no_model_is_known_as_such(text):
    assert not MODEL.fullmatch(text)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 1024), Shape("1:1", "1")),
        ((512, 512), Shape("1:1", "0.25")),
        ((1920, 1080), Shape("16:9", "1")),
        ((1080, 1920), Shape("9:16", "1")),
        ((640, 360), Shape("16:9", "0.25")),
        ((800, 1000), Shape("4:5", "1")),
        ((896, 1152), Shape("3:4", "1")),
        ((448, 576), Shape("3:4", "0.25")),
        ((1000, 700), Shape("3:2", "1")),
        ((16384, 16), Shape("21:9", "0.25")),
        ((16, 16384), Shape("9:21", "0.25")),
        ((16, 16), Shape("1:1", "0.25")),
        ((16384, 16384), Shape("1:1", "1")),
        ((724, 724), Shape("1:1", "0.25")),
        ((725, 725), Shape("1:1", "1")),
    ],
)
def test_a_size_becomes_the_nearest_ratio_and_then_the_nearest_area(size, expected):
    assert shape(FLUX, *size) == expected


@pytest.mark.parametrize("megapixels", PIXELS)
@pytest.mark.parametrize("ratio", PIXELS["1"])
def test_each_size_that_a_model_makes_is_met_exactly(megapixels, ratio):
    size = PIXELS[megapixels][ratio]
    found = shape(FLUX, *size)
    assert pixels(FLUX, {"aspect_ratio": found.ratio, "megapixels": found.megapixels}) == size


def _off(ratio: str, width: int, height: int) -> float:
    across, down = map(int, ratio.split(":"))
    return abs(math.log(width / height) - math.log(across / down))


@given(SIDE, SIDE)
def test_no_other_ratio_and_no_other_area_is_nearer(width, height):
    found = shape(FLUX, width, height)
    made = pixels(FLUX, {"aspect_ratio": found.ratio, "megapixels": found.megapixels})
    assert made is not None
    if made == (width, height):
        return
    nearest = min(_off(ratio, width, height) for ratio in PIXELS["1"])
    assert _off(found.ratio, width, height) == pytest.approx(nearest, abs=1e-12)
    areas = [math.prod(PIXELS[one][found.ratio]) for one in PIXELS]
    off = [abs(math.log(width * height / area)) for area in areas]
    assert abs(math.log(width * height / math.prod(made))) == min(off)


@given(SIDE, SIDE)
def test_a_size_turned_on_its_side_gives_the_ratio_turned(width, height):
    for flux in (FLUX, PRO):
        one, other = shape(flux, width, height), shape(flux, height, width)
        assert one.ratio.split(":") == other.ratio.split(":")[::-1]
        assert one.megapixels == other.megapixels


@given(SIDE, SIDE)
def test_a_model_whose_sizes_are_not_known_gets_a_ratio_only(width, height):
    found = shape(PRO, width, height)
    assert found.ratio in PRO.ratios
    assert found.megapixels is None
    assert pixels(PRO, {"aspect_ratio": found.ratio}) is None


def test_of_a_model_that_is_not_known_nothing_is_claimed():
    assert reference("stability-ai/sdxl").flux is None
    assert pixels(None, {"aspect_ratio": "1:1"}) is None
    assert pixels(FLUX, {"aspect_ratio": "16:10"}) is None
    assert pixels(FLUX, {"aspect_ratio": "1:1", "megapixels": ["1"]}) is None


# -- one prediction --------------------------------------------------------------------------------


def item(**more: Any) -> dict[str, Any]:
    base = {"id": "p1", "status": "succeeded", "input": {"prompt": "a cat", "seed": 7}}
    return {**base, "created_at": "2026-05-31T00:00:00Z", "model": SCHNELL, **more}


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        {},
        {"id": "p1"},
        {"status": "x"},
        *({"id": i, "status": "x"} for i in (5, "", "a/..")),
    ],
)
def test_what_is_no_prediction_is_a_fault_of_the_server(said):
    with pytest.raises(ServerFault, match="no prediction"):
        prediction(said)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["input", "output", "error", "logs", "created_at", "started_at", "completed_at"]
FIELDS += ["metrics", "data_removed", "model", "version"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), JSON)
def test_whatever_stands_in_the_other_fields_it_can_be_read(more, run):
    said = {"id": "p1", "status": "succeeded", "metrics": {"predict_time": run}, **more}
    found = prediction(said)
    assert all(isinstance(url, str) for url in found.outputs)
    assert found.run_ms is None or found.run_ms >= 0
    judged([said], Wanted({"prompt": "a"}, Reference("a/b"), 0, 0), lambda _: False)
    api.failure(found)


def nested(value: Any, depth: int) -> Any:
    for number in range(depth):
        value = [value] if number % 2 else {"x": value}
    return value


@pytest.mark.parametrize(
    ("output", "urls"),
    [
        (None, []),
        ("http://h/a.png", ["http://h/a.png"]),
        (["http://h/a.png", "http://h/b.png"], ["http://h/a.png", "http://h/b.png"]),
        (["http://h/a.png", None, 5, ""], ["http://h/a.png"]),
        ({"url": "http://h", "more": ["http://i"], "size": 3}, ["http://h", "http://i"]),
        (" http://h/a.png\n", ["http://h/a.png"]),
        (["a caption", "see http://h/a.png"], []),
        (["http://h/a.png"] * 1001, ["http://h/a.png"] * 1000),
        (nested("http://h/a.png", 12), ["http://h/a.png"]),
        (nested("http://h/a.png", 13), []),
        (nested("http://h/a.png", 2000), []),
    ],
)
def test_an_output_is_a_list_of_addresses_or_one_or_none(output, urls):
    assert prediction(item(output=output)).outputs == urls


def test_how_long_it_ran_is_told_by_its_metrics_or_else_by_its_times():
    times = {"started_at": "2026-05-31T00:00:00Z", "completed_at": "2026-05-31T00:00:01.5Z"}
    assert prediction(item(metrics={"predict_time": 0.25}, **times)).run_ms == 250
    assert prediction(item(metrics={"predict_time": "?"}, **times)).run_ms == 1500
    assert prediction(item()).run_ms is None
    for name, at in times.items():
        assert prediction(item(**{name: at})).run_ms is None, "half of the times says nothing"
    backwards = dict(zip(times, reversed(times.values()), strict=True))
    assert prediction(item(**backwards)).run_ms == 0
    for odd, run_ms in ((0, 0), (-1, 1500), (1e6, 1500), (True, 1500), (math.inf, 1500)):
        assert prediction(item(metrics={"predict_time": odd}, **times)).run_ms == run_ms, odd


def test_of_the_plain_fields_only_the_kind_that_they_should_have_is_read():
    one = prediction(item(model=5, version=["x"], data_removed="yes", logs=None))
    assert (one.model, one.version, one.data_removed, one.logs) == (None, None, False, "")
    other = prediction(item(version="v", data_removed=True, logs="seed: 1"))
    assert (other.version, other.data_removed, other.logs) == ("v", True, "seed: 1")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-05-31T00:00:00Z", 1780185600.0),
        ("2026-05-31T00:00:00.5Z", 1780185600.5),
        ("2026-05-31T00:00:00.123456789Z", 1780185600.123456),
        ("2026-05-31T02:00:00+02:00", 1780185600.0),
        ("2026-05-31T00:00:00", 1780185600.0),
        ("yesterday", None),
        ("", None),
        (None, None),
        (5, None),
    ],
)
def test_times_are_read_with_and_without_fractions(text, seconds):
    assert stamp(text) == seconds


@pytest.mark.parametrize(
    ("logs", "seed"),
    [
        ("Using seed: 42\n", 42),
        ("loading\nusing seed 18446744073709551615\ndone", 2**64 - 1),
        ("Using seed: 1\nUsing seed: 2", 1),
        ("seeds of doubt", None),
        ("Using seed: " + "9" * 5000, None),
        ("", None),
    ],
)
def test_the_seed_is_read_in_the_logs(logs, seed):
    assert api.seed_in(logs) == seed


@pytest.mark.parametrize(
    ("more", "code", "billed", "retry"),
    [
        ({"status": "failed", "error": "out\nof memory"}, "prediction_failed", "unknown", "never"),
        ({"status": "failed"}, "prediction_failed", "unknown", "never"),
        ({"status": "failed", "error": {"a": 1}}, "prediction_failed", "unknown", "never"),
        ({"status": "aborted"}, "prediction_aborted", "no", "safe"),
        ({"status": "canceled"}, "prediction_canceled", "no", "never"),
        (
            {"status": "canceled", "started_at": "2026-05-31T00:00:00Z"},
            *("prediction_canceled", "unknown", "never"),
        ),
        (
            {"status": "canceled", "metrics": {"predict_time": 1}},
            *("prediction_canceled", "unknown", "never"),
        ),
    ],
)
def test_each_bad_ending_says_whether_money_left(more, code, billed, retry):
    fault = api.failure(prediction(item(**more)))
    assert fault is not None
    assert (fault.code, fault.billed, fault.retry) == (code, billed, retry)
    assert "\n" not in fault.message


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("out\nof memory", "out of memory"),
        ({"a": 1}, '{"a": 1}'),
        (None, "it does not say why"),
        ("", "it does not say why"),
        ("x" * 600, "x" * 500),
    ],
)
def test_a_prediction_that_failed_says_why_on_one_line(error, text):
    fault = api.failure(prediction(item(status="failed", error=error)))
    assert fault.message == f"the prediction failed: {text}"


@pytest.mark.parametrize(
    ("more", "when"),
    [
        ({}, "before it began"),
        ({"started_at": "2026-05-31T00:00:00Z"}, "while it ran"),
        ({"metrics": {"predict_time": 0.1}}, "while it ran"),
        ({"metrics": {"predict_time": 0}}, "before it began"),
    ],
)
def test_a_canceled_prediction_says_whether_it_had_begun(more, when):
    fault = api.failure(prediction(item(status="canceled", **more)))
    assert fault.message == f"the prediction was canceled {when}"
    assert fault.billed == ("no" if when == "before it began" else "unknown")


@pytest.mark.parametrize("status", ["succeeded", "starting", "processing", "queued", ""])
def test_no_other_status_is_a_bad_ending(status):
    assert api.failure(prediction(item(status=status))) is None


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "body", "seconds"),
    [
        (3.0, b'{"retry_after": 5, "detail": "~7s"}', 3),
        (0.0, b'{"retry_after": 5}', 0),
        (None, b'{"retry_after": 5, "detail": "~7s"}', 5),
        (None, b'{"retry_after": 0.5}', 0.5),
        (None, b'{"retry_after": 0, "detail": "~7s"}', 0),
        (None, b'{"retry_after": -5, "detail": "resets in ~7s."}', 7),
        (None, b'{"retry_after": "5", "detail": "resets in ~7s."}', 7),
        (None, b'{"retry_after": true, "detail": "in ~ 7.5 s"}', 7.5),
        (None, b'{"retry_after": 1e999}', None),
        (None, b'{"retry_after": 1%s}' % (b"0" * 400), None),
        (None, b"Your rate limit resets in ~30s", 30),
        (None, b"wait", None),
        (None, b"[" * 100_000, None),
        (None, b"\xff", None),
    ],
)
def test_how_long_to_wait_is_told_by_header_then_body_then_text(header, body, seconds):
    fault = Throttled("429", retry_after_s=header, body=body)
    assert api.told_wait(fault) == seconds


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"title": "Bad", "detail": "no\\n such thing", "status": 422}', "Bad: no such thing"),
        (b'{"detail": "no"}', "no"),
        (b'{"title": "%s", "detail": "x"}' % (b"a" * 500), "a" * 400),
        (b'{"title": 5, "detail": null}', ""),
        (b"[]", ""),
        (b"<html>", ""),
        (b"", ""),
    ],
)
def test_a_refusal_is_read_as_far_as_it_can_be(body, says):
    assert api.problem(body) == says


# -- the look for a lost one -----------------------------------------------------------------------

AT = stamp("2026-05-31T00:00:00Z") or 0


def look(*items: Any, since: float | None = AT - 10, sent: Any = None, **more: Any) -> Any:
    model, readable = more.get("model", reference(SCHNELL)), more.get("readable_since", since)
    wanted = Wanted(sent or {"prompt": "a cat", "seed": 7}, model, since, readable)
    return judged([*items], wanted, more.get("owned", lambda _: False))


def match(listed: Any, sent: Any, **more: Any) -> str:
    """How a prediction with that input is judged: ours, perhaps, another."""
    page = look(item(input=listed, **more), sent=sent)
    return "ours" if page.ours else "perhaps" if page.doubtful else "another"


def test_ours_has_every_input_that_we_sent_whatever_else_it_has():
    assert look(item(input={"prompt": "a cat", "seed": 7, "go_fast": True})).ours
    for other in ({"prompt": "a dog", "seed": 7}, {"prompt": "a cat", "seed": 8}):
        found = look(item(input=other))
        assert (found.ours, found.doubtful) == ([], False)


LONG = "a cat in a hat, " * 100
ASKED_OF_IT = {"prompt": "a cat", "seed": 7, "aspect_ratio": "16:9", "num_inference_steps": 4}
TOLD_DIFFERENTLY = {
    "defaults are dropped": {"prompt": "a cat", "seed": 7},
    "numbers are text": {**ASKED_OF_IT, "seed": "7", "num_inference_steps": "4"},
    "numbers have fractions, rounded": {**ASKED_OF_IT, "seed": 7.0, "num_inference_steps": 3.9999},
    "an enum has another case": {**ASKED_OF_IT, "aspect_ratio": "LANDSCAPE_16_9"},
    "the seed is not shown": {"prompt": "a cat"},
    "the seed is 0": {**ASKED_OF_IT, "seed": 0, "aspect_ratio": "1:1"},
    "the seed cannot be read": {**ASKED_OF_IT, "seed": "random"},
    "the prompt is trimmed": {**ASKED_OF_IT, "prompt": " a cat\n"},
    "the prompt is not shown": {"seed": 7},
    "the prompt is no text": {**ASKED_OF_IT, "prompt": ["a cat"]},
}


@pytest.mark.parametrize("how", TOLD_DIFFERENTLY)
def test_what_a_list_tells_differently_is_perhaps_ours(how):
    assert match(TOLD_DIFFERENTLY[how], ASKED_OF_IT) == "perhaps"


def test_a_model_under_its_alias_is_perhaps_ours():
    assert match(ASKED_OF_IT, ASKED_OF_IT, model="flux-schnell") == "perhaps"
    assert match({**ASKED_OF_IT, "seed": 8}, ASKED_OF_IT, model="flux-schnell") == "another"


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (LONG[:1000], "perhaps"),
        (LONG[:999] + "…", "perhaps"),
        (LONG[:1000] + "...", "perhaps"),
        (LONG[:240], "perhaps"),
        (LONG + " and a dog", "perhaps"),
        (LONG[:200], "perhaps"),
        (LONG[:199], "another"),
        (LONG[:150], "another"),
        ("a dog" + LONG[5:1000], "another"),
        ("", "another"),
    ],
)
def test_a_prompt_that_is_cut_short_is_perhaps_ours(listed, expected):
    sent = {"prompt": LONG, "seed": 7}
    assert match({"prompt": listed, "seed": 7}, sent) == expected
    assert match({"prompt": listed, "seed": 8}, sent) == "another"


@pytest.mark.parametrize(
    ("sent", "listed", "expected"),
    [
        (7, 8, "another"),
        (7, "8", "another"),
        (7, 8.0, "another"),
        (2**64 - 1, 2**64 - 1, "ours"),
        (2**64 - 1, 18446744073709552000, "perhaps"),
        (2**64 - 1, 1.8446744073709552e19, "perhaps"),
        (2**64 - 1, 1.844674e19, "perhaps"),
        (2**53 - 1, 2**53, "another"),
        (2**53, 2**53 + 1, "perhaps"),
        (7, 10**400, "another"),
        (2**64 - 1, 10**400, "another"),
        (7, True, "perhaps"),
        (7, None, "perhaps"),
    ],
)
def test_only_a_seed_that_is_certainly_another_tells_two_predictions_apart(sent, listed, expected):
    input_ = {"prompt": "a cat", "seed": sent}
    assert match({**input_, "seed": listed}, input_) == expected


def test_where_we_sent_no_seed_any_may_have_been_drawn():
    assert match({"prompt": "a cat", "seed": 9}, {"prompt": "a cat"}) == "ours"
    assert match({"prompt": "a cat", "seed": 9, "x": 2}, {"prompt": "a cat", "x": 1}) == "perhaps"


@pytest.mark.parametrize(
    ("sent", "listed", "same"),
    [
        (1, 1.0, True),
        (3.5, 3.5, True),
        (True, True, True),
        (True, False, False),
        (True, 1, False),
        (1, True, False),
        (False, None, False),
        (None, None, True),
        ("1", 1, False),
        ([1, {"a": "b"}], [1, {"a": "b", "c": 0}], True),
        ([1], [1, 2], False),
        ([1, 2], [1, 3], False),
        ([1, 2], [2, 1], False),
        ([1], {"0": 1}, False),
        ({"a": 1}, ["a"], False),
        ([1], "1", False),
        ("a", {"a": 1}, False),
        ({"a": 1}, {"b": 1}, False),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, False),
        (0.5, 10**400, False),
        ("data:image/png;base64,AA", "https://replicate.delivery/x.png", False),
        ("data:image/png;base64,AA", "data:image/png;base64,AA", True),
    ],
)
def test_values_are_compared_as_json(sent, listed, same):
    input_ = {"prompt": "a cat", "seed": 7}
    result = match({**input_, "x": listed}, {**input_, "x": sent})
    assert result == ("ours" if same else "perhaps")


def test_what_looks_like_ours_just_before_the_window_is_a_doubt_and_no_absence():
    edges = ((10, False, False), (11, True, False), (3610, True, False), (3611, False, True))
    for seconds, doubtful, reached in edges:
        at = datetime.fromtimestamp(AT - seconds, UTC).isoformat()
        found = look(item(created_at=at))
        assert bool(found.ours) is (seconds == 10)
        assert (found.doubtful, found.reached) == (doubtful, reached), seconds


# -- the answer to a create ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shown",
    [
        {"prompt": "a cat", "seed": 7},
        {},
        {"prompt": "A CAT in", "seed": "7"},
        {"prompt": "a cat, masterpiece", "num_outputs": "1"},
        {"seed": None, "image": "https://replicate.delivery/x.png"},
        {"prompt": "a cat", "seed": 7.0, "aspect_ratio": "SQUARE"},
        *({"prompt": odd, "seed": 7} for odd in ("", "a", "  A\nCAT", None, 5, ["a dog"])),
        *(None, [], "a dog", 5),
    ],
)
def test_the_answer_to_our_own_create_is_ours_however_it_tells_the_input(shown):
    sent = {"prompt": "a cat", "seed": 7, "aspect_ratio": "1:1", "image": "data:image/png;base64,A"}
    assert api.created({"id": "p1", "status": "starting", "input": shown}, sent) == "p1"


@pytest.mark.parametrize(
    "shown", [{"prompt": "a cat", "seed": 8}, {"prompt": "our dog", "seed": 7}]
)
def test_a_strangers_prediction_is_never_taken_for_the_answer(shown):
    with pytest.raises(AnswerLost) as caught:
        api.created({"id": "p1", "input": shown}, {"prompt": "a cat", "seed": 7})
    assert caught.value.billed == "unknown"


@pytest.mark.parametrize(
    ("shown", "is_ours"),
    [
        ("0123456789abcdefghijKLM", True),
        ("0123456789 abcdefghij and more", True),
        ("0123456789abcdefghix", False),
        ("0123456789", True),
        ("123456789", False),
    ],
)
def test_the_first_twenty_letters_of_a_prompt_say_whose_answer_it_is(shown, is_ours):
    sent = {"prompt": "0123456789abcdefghijklm", "seed": 7}
    answer = {"id": "p1", "input": {"prompt": shown}}
    if is_ours:
        assert api.created(answer, sent) == "p1"
    else:
        with pytest.raises(AnswerLost):
            api.created(answer, sent)


@pytest.mark.parametrize("answer", [{}, {"id": None}, {"id": "../x"}, {"id": 5}])
def test_an_answer_without_an_id_is_as_good_as_lost(answer):
    with pytest.raises(AnswerLost) as caught:
        api.created(answer, {"prompt": "a cat"})
    assert caught.value.billed == "unknown"


# -- what stands in the list -----------------------------------------------------------------------


def test_another_model_or_version_is_not_ours_even_with_the_same_input():
    assert not look(item(model="black-forest-labs/flux-dev")).ours
    assert look(item(model="black-forest-labs/flux-dev")).doubtful, "or ours under an alias"
    assert look(item(model=None)).ours
    assert look(item(model=5)).ours
    assert look(item(model=SCHNELL.upper())).ours
    assert look(item(), model=reference(SCHNELL.upper())).ours
    assert look(item(version="of its own")).ours, "none was asked for"
    pinned = reference(f"{SCHNELL}:abc")
    assert look(item(version="abc"), model=pinned).ours
    assert not look(item(version="def"), model=pinned).ours
    assert look(item(version="hidden")).ours
    assert look(item(version="hidden"), model=pinned).ours


def test_what_others_own_is_skipped():
    found = look(item(), item(id="p2"), owned=lambda handle: handle == "p1")
    assert [one.id for one in found.ours] == ["p2"]
    gone = item(data_removed=True, input={})
    assert not look(gone, owned=lambda _: True).doubtful


def test_what_has_no_input_any_more_cannot_be_told_unless_it_is_another_models():
    for input_ in ({}, None, ...):
        gone = item(data_removed=True, input=input_)
        gone = {name: value for name, value in gone.items() if value is not ...}
        assert look(gone).doubtful
        assert not look({**gone, "model": "black-forest-labs/flux-dev"}).doubtful
        assert not look({**gone, "created_at": "2026-05-30T00:00:00Z"}).doubtful, "long before"


@pytest.mark.parametrize(
    ("readable_since", "doubtful"),
    [(None, True), (AT - 1, True), (AT, True), (AT + 1, False)],
)
def test_what_was_made_before_inputs_are_readable_is_told_by_its_time(readable_since, doubtful):
    """An input is taken away an hour after its end: of ours it would still be there."""
    gone = item(data_removed=True, input=None)
    assert look(gone, readable_since=readable_since).doubtful is doubtful
    assert look({**gone, "created_at": None}, readable_since=readable_since).doubtful


def test_what_was_made_before_the_submit_is_not_ours_and_ends_the_look():
    found = look(item(created_at="2026-05-30T22:59:00Z"))
    assert (found.ours, found.doubtful, found.reached) == ([], False, True)
    assert look(item(created_at="2026-05-30T23:59:50Z")).ours
    found = look(item(created_at=None))
    assert found.ours
    assert not found.reached, "who knows when"
    assert not look(item(created_at="2001-01-01T00:00:00Z"), since=None).reached


def test_one_old_prediction_out_of_order_does_not_end_the_look():
    old, ours = item(created_at="2026-05-30T10:00:00Z"), item(created_at="2026-05-30T23:59:50Z")
    wanted = Wanted({"prompt": "a cat", "seed": 8}, reference(SCHNELL), AT - 10, AT - 86400)
    assert not judged([old, ours], wanted, lambda _: False).reached
    assert judged([ours, old], wanted, lambda _: False).reached


@pytest.mark.parametrize("items", [None, {}, "x", 5])
def test_a_list_that_is_none_is_a_fault(items):
    with pytest.raises(ServerFault):
        judged(items, Wanted({}, Reference("a/b"), 0, 0), lambda _: False)


@pytest.mark.parametrize("odd", [None, 5, "x", [], {}, {"id": "p1"}])
def test_an_item_that_is_no_prediction_leaves_a_doubt(odd):
    assert look(odd).doubtful


def test_a_living_one_goes_before_a_failed_one_and_then_the_oldest():
    def one(id_: str, status: str, at: int | None) -> Any:
        return prediction(item(id=id_, status=status, created_at=at and f"2026-05-31T00:00:0{at}Z"))

    failed = [one(f"f{n}", status, 1) for n, status in enumerate(["failed", "canceled", "aborted"])]
    late, early = one("late", "succeeded", 5), one("early", "processing", 3)
    unknown = one("unknown", "paused", 4)
    undated = one("undated", "succeeded", None)
    assert best([*failed, undated, late, unknown, early]) == early
    assert best([*failed, undated]) == undated
    assert best(failed) == failed[0]
    assert best([]) is None


@pytest.mark.parametrize(
    ("date", "now"),
    [("Sun, 31 May 2026 00:00:00 GMT", AT), ("soon", None), ("", None), (None, None)],
)
def test_the_servers_time_is_that_of_its_date(date, now):
    assert api.server_now({} if date is None else {"Date": date}) == now


# -- addresses -------------------------------------------------------------------------------------

API = "https://api.replicate.com"


@pytest.mark.parametrize(
    ("said", "base", "path"),
    [
        (None, API, None),
        (f"{API}/v1/predictions?cursor=a%3D", API, "/v1/predictions?cursor=a%3D"),
        ("/v1/predictions?cursor=b", API, "/v1/predictions?cursor=b"),
        (f"{API}/v1/predictions", API, "/v1/predictions"),
        (f"{API}/v2/pages?cursor=x", API, "/v2/pages?cursor=x"),
        ("http://h:1/p/v1/predictions?cursor=c", "http://h:1/p", "/v1/predictions?cursor=c"),
        ("http://h:1/px/v1/predictions?cursor=c", "http://h:1/p", "/v1/predictions?cursor=c"),
        (f"{API}/v1/predictions?cursor=d", "http://h:1/p", "/v1/predictions?cursor=d"),
        ("https://evil.example/v1/predictions?cursor=e", API, "/v1/predictions?cursor=e"),
    ],
)
def test_the_next_page_is_read_on_our_own_server_only(said, base, path):
    assert next_page(said, base) == path


@pytest.mark.parametrize(
    "said",
    [
        *("https://evil.example/steal", "https://evil.example/steal?cursor=x", "//evil.example/x"),
        *("https://evil.example/v1/predictions", "ftp://x/y", "https://[x", "", 5, [], {}),
    ],
)
def test_a_next_page_somewhere_else_is_a_fault(said):
    with pytest.raises(ServerFault):
        next_page(said, API)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"{API}/v1/files/x", True),
        ("https://API.replicate.com:443/x", True),
        ("https://replicate.delivery/x.png", True),
        ("https://pbxt.replicate.delivery/x.png", True),
        ("http://replicate.delivery/x.png", False),
        ("https://replicate.delivery:8443/x.png", False),
        ("http://api.replicate.com/x", False),
        ("https://api.replicate.com:8443/x", False),
        ("https://api.replicate.com.evil.example/x", False),
        ("https://evilreplicate.delivery/x", False),
        ("https://replicate.delivery.evil.example/x", False),
        ("https://evil.example/replicate.delivery", False),
        ("https://storage.googleapis.com/x", False),
        *((url, False) for url in ("", "/x", "https:///x", "file:///x")),
    ],
)
def test_the_token_goes_to_the_api_and_to_replicates_files_only(url, expected):
    assert is_trusted(url, API) is expected


@pytest.mark.parametrize(
    ("url", "own", "expected"),
    [
        ("http://h:80/x", "http://h", True),
        ("http://h/x", "http://h:80/api", True),
        ("http://h:81/x", "http://h", False),
        ("http://h:443/x", "https://h", False),
        ("HTTPS://h/x", "https://h:443", True),
    ],
)
def test_a_port_that_is_not_written_is_the_schemes_own(url, own, expected):
    assert is_trusted(url, own) is expected


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_the_address_may_be_written_with_and_without_its_v1(url):
    assert api.base(url) == "http://h:1"


def test_ids_are_safe_in_a_path():
    assert api.is_id("gm3qorzdhgbfurvjtvhg6dckhu")
    for text in ("", "a/b", "..", "a?b", "a b", "ü", "a" * 101, None, 5, "a\n"):
        assert not api.is_id(text), text
