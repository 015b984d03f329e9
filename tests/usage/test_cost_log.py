"""The cost log, judged: which records have a row and what is in it, times, sums, tables."""

from __future__ import annotations

import csv
import hashlib
from datetime import UTC, datetime

import pytest

from imagen import tables
from imagen.backends import Ran
from imagen.cli.pipe import visible
from imagen.errors import Refused, UsageFault
from imagen.ledger import Ledger
from imagen.ledger.journal import Paid
from imagen.records.record import MAX_SEED
from imagen.usage import cost_log, reconcile

NOW = datetime(2026, 11, 23, 18, 30, tzinfo=UTC)
MADE = {
    "prompt": "a cat",
    "id": "cat",
    "backend": "paid",
    "model": "m",
    "seed": MAX_SEED,
    "render_id": "6ba792c8-a3af-4c59-8b9b-597415381159",
    "submit": "h1",
    "started_at": "2026-11-22T23:59:59.5Z",
    "latency_ms": 1200,
    "cost_usd": 0.003,
    "caller": "me",
    "file": "/a.png",
}
ERROR = {"tool": "imagen-render", "code": "x", "message": "m", "billed": "yes", "retry": "never"}
FAILED = {name: MADE[name] for name in MADE if name not in ("file", "cost_usd")} | {"error": ERROR}


def row_of(record):
    return cost_log.row_of(record, lambda: "who runs us", NOW)


def without(record, *names):
    return {name: value for name, value in record.items() if name not in names}


# -- the row ---------------------------------------------------------------------------------------


def test_a_finished_record_has_a_row_with_the_hash_of_its_prompt_and_not_the_prompt():
    row = row_of({**MADE, "sent_prompt": "a cat, in oil"})
    assert row == {
        "usage_id": row["usage_id"],
        "created_at": "2026-11-22T23:59:59.500Z",
        "backend": "paid",
        "model": "m",
        "seed": MAX_SEED,
        "prompt_hash": hashlib.sha256(b"a cat").hexdigest(),
        "latency_ms": 1200,
        "cost_usd_estimate": 0.003,
        "caller": "me",
        "render_id": MADE["render_id"],
        "submit": "h1",
    }


def test_the_images_of_one_submit_have_one_row():
    assert row_of(MADE)["usage_id"] == row_of({**MADE, "id": "cat.2", "cost_usd": 0})["usage_id"]
    assert row_of(MADE)["usage_id"] != row_of({**MADE, "backend": "other"})["usage_id"]


PENDING = {"backend": "paid", "handle": "h1", "since": "2026-01-02T03:04:05Z"}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a cat"},
        without(MADE, "submit"),
        {**MADE, "submit": None},
        {**MADE, "members": []},
        {**without(MADE, "file"), "pending": PENDING},
        {**without(MADE, "file"), "pending": PENDING, "sha256": "0" * 64},
        without(MADE, "file"),
        {**FAILED, "error": {**ERROR, "tool": "imagen-upload"}},
        {**FAILED, "error": {**ERROR, "retry": "safe"}},
        {**FAILED, "error": {**ERROR, "retry": "after", "billed": "unknown"}},
        {**FAILED, "error": "broken"},
    ],
)
def test_what_was_not_submitted_or_is_not_over_has_none(record):
    assert row_of(record) is None


@pytest.mark.parametrize(
    ("record", "cost"),
    [
        (without(MADE, "cost_usd"), None),
        ({**MADE, "cost_usd": None}, None),
        ({**MADE, "cost_usd": 0}, 0),
        (FAILED, None),
        ({**FAILED, "cost_usd": 0.01}, 0.01),
        ({**FAILED, "error": {**ERROR, "billed": "unknown", "retry": "reconcile"}}, None),
        ({**FAILED, "error": {**ERROR, "billed": "no"}}, 0),
        ({**FAILED, "error": {**ERROR, "billed": "no", "retry": "safe"}}, 0),
        ({**MADE, "error": {**ERROR, "tool": "imagen-upload", "billed": "no"}}, 0.003),
        ({**without(MADE, "cost_usd"), "error": {**ERROR, "tool": "x", "billed": "no"}}, None),
        ({**without(MADE, "file"), "sha256": "0" * 64}, 0.003),
    ],
)
def test_a_cost_is_what_is_known_and_never_0_for_unknown(record, cost):
    assert row_of(record)["cost_usd_estimate"] == cost


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"backend": None}, "no backend"),
        ({"backend": ""}, "backend must be"),
        ({"backend": 5}, "backend must be"),
        ({"backend": "a\0b"}, "backend must be"),
        ({"submit": ["h"]}, "submit must be"),
        ({"submit": "h" * 201}, "submit must be"),
        ({"prompt": None}, "no prompt"),
        ({"cost_usd": -1}, "cost_usd must be"),
        ({"cost_usd": "free"}, "cost_usd must be"),
        ({"cost_usd": True}, "cost_usd must be"),
        ({"cost_usd": 1e6}, "cost_usd must be"),
    ],
)
def test_what_cannot_be_logged_is_refused(change, says):
    with pytest.raises(Refused, match=says):
        row_of({**MADE, **change})


@pytest.mark.parametrize(
    ("field", "value", "column", "becomes"),
    [
        ("seed", -1, "seed", None),
        ("seed", MAX_SEED + 1, "seed", None),
        ("seed", 7.0, "seed", None),
        ("seed", True, "seed", None),
        ("latency_ms", 10**30, "latency_ms", None),
        ("model", "a\0b", "model", None),
        ("model", 5, "model", None),
        ("render_id", "no uuid", "render_id", None),
        ("caller", "", "caller", "who runs us"),
        ("caller", None, "caller", "who runs us"),
        ("started_at", "yesterday", "created_at", "2026-11-23T18:30:00.000Z"),
        ("started_at", None, "created_at", "2026-11-23T18:30:00.000Z"),
        ("started_at", "2026-11-23T01:00:00+02:00", "created_at", "2026-11-22T23:00:00.000Z"),
        ("started_at", "0001-01-01T00:00:00+14:00", "created_at", "2026-11-23T18:30:00.000Z"),
    ],
)
def test_what_a_column_cannot_hold_is_left_out(field, value, column, becomes):
    assert row_of({**MADE, field: value})[column] == becomes


# -- the ledger's rows -----------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    yield ledger.usage
    ledger.close()


def test_a_row_that_is_added_twice_is_there_once_with_the_largest_cost(rows):
    row = row_of(MADE)
    assert rows.add({**row, "cost_usd_estimate": 0, "latency_ms": None}) is True
    assert rows.add(row) is False
    assert rows.add({**row, "cost_usd_estimate": 0, "latency_ms": 5}) is False
    assert rows.add({**row, "cost_usd_estimate": None}) is False
    assert rows.rows() == [row]


@pytest.mark.parametrize(
    ("first", "second", "unsent", "after"),
    [
        ((True, False), None, 0, 1),
        ((True, True), None, 1, 1),
        ((False, True), None, 1, 0),
        ((False, True), (True, False), 1, 1),
        ((True, False), (False, True), 1, 1),
        ((False, True), (False, True), 1, 0),
        ((True, True), (False, True), 1, 1),
    ],
)
def test_a_row_is_kept_and_sent_when_anybody_wants_it(rows, first, second, unsent, after):
    row = row_of(MADE)
    for how in filter(None, (first, second)):
        rows.add(row, *how)
    waiting = rows.unsent()
    assert len(waiting) == unsent
    rows.sent(waiting)
    assert (len(rows.unsent()), len(rows.rows())) == (0, after)


# -- times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "time"),
    [
        ("2026-11-23", "2026-11-23T00:00:00.000Z"),
        ("2026-11-23T18:00", "2026-11-23T18:00:00.000Z"),
        ("2026-11-23T18:00:01.5Z", "2026-11-23T18:00:01.500Z"),
        ("2026-11-23T18:00+02:00", "2026-11-23T16:00:00.000Z"),
        ("24h", "2026-11-22T18:30:00.000Z"),
        ("7d", "2026-11-16T18:30:00.000Z"),
        ("2w", "2026-11-09T18:30:00.000Z"),
    ],
)
def test_a_time_is_a_day_a_time_or_an_age(said, time):
    assert cost_log.asked_time("--since", said, NOW) == time


@pytest.mark.parametrize(
    "said",
    [
        "",
        "x",
        "7",
        "7m",
        "-7d",
        "2026-13-01",
        "2026-02-30",
        "9999999d",
        "٧d",
        "7d ",
        "0001-01-01T00+14:00",
    ],
)
def test_what_is_no_time_is_refused(said):
    with pytest.raises(UsageFault, match="--since: no time"):
        cost_log.asked_time("--since", said, NOW)


# -- sums ------------------------------------------------------------------------------------------


def rows_of(*changes):
    return [{**row_of(MADE), **change} for change in changes]


def test_what_nobody_priced_is_counted_and_no_part_of_the_sum():
    known, none = {"cost_usd_estimate": 0.1}, {"cost_usd_estimate": None}
    made, total = cost_log.groups(rows_of(known, known, known, none), ["backend"])
    assert made == [{"backend": "paid", **total}]
    assert total == {"renders": 4, "cost_usd": 0.3, "unpriced": 1, "latency_p50_ms": 1200}


def test_a_group_of_which_nothing_is_known_has_no_cost():
    made, total = cost_log.groups(rows_of({"cost_usd_estimate": None, "latency_ms": None}), [])
    assert made == [total]
    assert total == {"renders": 1, "cost_usd": None, "unpriced": 1, "latency_p50_ms": None}


def test_no_rows_are_no_groups_and_a_sum_of_nothing():
    made, total = cost_log.groups([], ["day"])
    assert (made, total["renders"], total["cost_usd"]) == ([], 0, 0)


def test_groups_stand_in_order_of_their_keys_the_unknown_last():
    changes = [
        {"model": "b"},
        {"model": None},
        {"model": "a"},
        {"model": "a", "created_at": "2026-11-24T…"},
    ]
    made, _ = cost_log.groups(rows_of(*changes), ["day", "model"])
    assert [(one["day"], one["model"], one["renders"]) for one in made] == [
        ("2026-11-22", "a", 1),
        ("2026-11-22", "b", 1),
        ("2026-11-22", None, 1),
        ("2026-11-24", "a", 1),
    ]


def test_keys_are_known_ones():
    assert cost_log.asked_keys("day, model,day") == ["day", "model"]
    assert cost_log.asked_keys("") == []
    with pytest.raises(UsageFault, match="no key 'colour'"):
        cost_log.asked_keys("day,colour")


# -- tables ----------------------------------------------------------------------------------------


def test_a_table_is_aligned_and_shows_what_a_terminal_would_obey():
    rows = [{"a": "x\x1b[2J", "n": 5, "usd": 0.003}, {"a": None, "n": 12, "usd": 10.0}]
    assert tables.aligned(["a", "n", "usd"], rows, visible).splitlines() == [
        "a          n     usd",
        r"x\x1b[2J   5   0.003",
        "-         12  10.000",
    ]


def test_csv_comes_back_whole_and_no_cell_is_a_formula():
    rows = [
        {"a": 'x, "y"', "b": "=1+1", "c": 0.000001, "d": None},
        {"a": " @x", "b": "\x1b]0;", "c": 1},
    ]
    text = "".join(tables.csv_lines(["a", "b", "c", "d"], rows, visible))
    assert [*csv.reader(text.splitlines())] == [
        ["a", "b", "c", "d"],
        ['x, "y"', "'=1+1", "0.000001", ""],
        ["' @x", r"\x1b]0;", "1", ""],
    ]


# -- compared with the provider --------------------------------------------------------------------


def ran(**more):
    return Ran(
        **{
            "handle": "h",
            "status": "succeeded",
            "ended": True,
            "billed": "yes",
            "created": 0.0,
            "model": "m",
            "prompt": None,
            **more,
        }
    )


def problems(one, *paid, logged=(), files=(), at_work=False):
    known = reconcile.Known(
        {p.handle: p for p in paid}, logged, {"m": "paid"}, files.__contains__, lambda _: at_work
    )
    return [problem["problem"] for problem in reconcile.problems([one], known)]


def paid(**more):
    return Paid(
        **{
            "backend": "b",
            "handle": "h",
            "render_id": "r",
            "id": "cat",
            "state": "done",
            "last": True,
            "records": [{"file": "/a"}],
            **more,
        }
    )


@pytest.mark.parametrize(
    ("one", "known", "found"),
    [
        (ran(), {}, ["not_recorded"]),
        (ran(status="failed", billed="unknown"), {}, ["not_recorded"]),
        (ran(status="aborted", billed="no"), {}, []),
        (ran(status="processing", ended=False), {}, []),
        (ran(), {"logged": ["h"]}, []),
        (ran(), {"paid": paid(), "files": ["/a"]}, []),
        (ran(), {"paid": paid()}, ["no_file"]),
        (ran(), {"paid": paid(records=[{"sha256": "x"}])}, []),
        (ran(), {"paid": paid(state="open", records=[])}, ["no_file"]),
        (ran(), {"paid": paid(state="open", records=[]), "at_work": True}, []),
        (ran(), {"paid": paid(state="failed", records=[])}, ["no_file"]),
        (ran(), {"paid": paid(last=False), "files": ["/a"]}, ["no_file"]),
        (ran(status="failed", billed="unknown"), {"paid": paid(state="failed")}, []),
    ],
)
def test_what_ran_is_recorded_and_what_was_paid_has_its_file(one, known, found):
    submit = [known.pop("paid")] if "paid" in known else []
    assert problems(one, *submit, **known) == found


def test_a_problem_says_what_is_known_of_it():
    known = reconcile.Known({}, (), {"m": "paid"}, lambda _: False, lambda _: False)
    assert [*reconcile.problems([ran(prompt="a cat")], known)] == [
        {
            "problem": "not_recorded",
            "backend": "paid",
            "submit": "h",
            "created_at": "1970-01-01T00:00:00Z",
            "status": "succeeded",
            "model": "m",
            "prompt_hash": hashlib.sha256(b"a cat").hexdigest(),
        }
    ]
