"""What a job may ask for, and what its record makes of it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from imagen.errors import Refused
from imagen.queue import verdict as verdicts
from imagen.queue.verdict import Answers, Rules

ID, OWNER = "5c1f0d2e-1111-4222-8333-0123456789ab", "00000000-0000-0000-0000-00000000000a"
RULES = Rules(["mock", "gpu"], ["quality"], "mock")
NOW = datetime(2026, 5, 4, 23, tzinfo=UTC)
IMAGE = "0f0f0f0f-2222-4333-8444-0123456789ab"


def job(prompt="a cat", backend=None, owner=OWNER, **params):
    return SimpleNamespace(
        id=ID, prompt=prompt, backend=backend, owner_user_id=owner, params=params
    )


def asked(one):
    return verdicts.request_of(one, RULES, NOW, 7)


INDENTED = json.dumps({"id": "a", "cloud": {"path": "x"}, "list": [{}]}, indent=2).encode()


@pytest.mark.parametrize(
    ("output", "ids"),
    [
        (b'{"id":"a"}\n{"id":"b"}', ["a", "b"]),
        (b'\xef\xbb\xbf{"id":"a"}', ["a"]),
        (b'oops\n5\n[12:00] begins\n{"id":"a"}', ["a"]),
        (b'{"id":"a","x":NaN}', ["a"]),
        (b'{"id":"a","id":"b"}', ["b"]),
        (INDENTED, ["a"]),
        (INDENTED + b"\n" + INDENTED.replace(b'"a"', b'"b"'), ["a", "b"]),
        (b'{\n"id": "a",\n"x": NaN\n}', ["a"]),
        (b'{\n"id": "a",\n{"id":"b"}', ["b"]),
        (b'[\n{"id":"a"},\n{"id":"b"}\n]', ["a", "b"]),
        (b'{"id": broken\n{"id":"b"}\n{"id":"c"}', ["b", "c"]),
    ],
)
def test_an_answer_is_read_however_a_filter_writes_it(output, ids):
    answers = Answers()
    records = [record for line in output.split(b"\n") for record in answers.read(line)]
    assert [record["id"] for record in records] == ids


def test_a_job_becomes_a_line_of_the_rows_own_columns():
    assert asked(job(width=512)) == {
        "width": 512,
        "id": ID,
        "prompt": "a cat",
        "backend": "mock",
        "caller": f"job:{OWNER}",
        "owner_user_id": OWNER,
        "seed": 7,
        "date": "2026-05-04",
        "slug": "a-cat-5c1f0d2e",
    }


def test_a_seed_of_its_own_stays_and_null_says_nothing():
    assert asked(job(seed=0, steps=None))["seed"] == 0
    assert "steps" not in asked(job(steps=None))
    assert asked(job(options={"quality": 3}))["options"] == {"quality": 3}


@pytest.mark.parametrize(
    "params",
    [
        {"id": "x"},
        {"prompt": "another"},
        {"backend": "gpu"},
        {"caller": "job:somebody"},
        {"owner_user_id": OWNER},
        {"date": "2020-01-01"},
        {"slug": "../../etc"},
        {"output": "/etc/passwd"},
        {"file": "/etc/passwd"},
        {"sidecar": "/etc/passwd"},
        {"workflow": "/tmp/x.json"},
        {"render_id": ID},
        {"job": {"intended_at": "2020-01-01T00:00:00Z"}},
        {"pending": {"backend": "mock", "handle": "h", "since": "s"}},
        {"error": {"code": "x"}},
        {"cloud": {"image_id": ID}},
        {"request": "x"},
        {"__proto__": {}},
        {"": 1},
        {"options": {"faults": "hang"}},
        {"options": {"quality": 1, "other": 1}},
        {"options": []},
        {"options": "quality"},
        {"width": 10**9},
        {"width": "512"},
        {"width": True},
        {"height": -1},
        {"seed": -1},
        {"seed": 1.5},
        {"seed": 2**64},
        {"steps": 10**6},
        {"cfg": "7"},
        {"sampler": ["a"]},
        {"scheduler": {"a": 1}},
        {"negative_prompt": 3},
        {"negative_prompt": "x" * 10**6},
        {"style": 5},
    ],
    ids=str,
)
def test_what_a_row_may_not_say_is_refused(params):
    one = job()
    one.params = params
    with pytest.raises(Refused):
        asked(one)


@pytest.mark.parametrize("prompt", ["", " ", "x" * 10**6])
def test_a_prompt_that_is_none_or_endless_is_refused(prompt):
    with pytest.raises(Refused):
        asked(job(prompt))


def test_params_that_are_no_object_and_backends_not_listed_are_refused():
    one = job()
    one.params = ["width"]
    with pytest.raises(Refused, match="object"):
        asked(one)
    with pytest.raises(Refused, match="backend"):
        asked(job(backend="paid"))


def test_the_first_line_has_no_intended_at_and_later_ones_do():
    first = verdicts.line_of({"id": ID, "prompt": "a"}, 1, None)
    assert first["job"] == {"id": ID, "attempt": 1}
    later = verdicts.line_of({"id": ID, "prompt": "a"}, 2, 0.25)
    assert later["job"]["intended_at"] == "1970-01-01T00:00:00.250Z"


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        ({"file": "/a.png"}, "done"),
        ({"file": "/a.png", "error": {"message": "m", "retry": "safe"}}, "retry"),
        ({"file": "/a.png", "error": {"message": "m", "retry": "never"}}, "failed"),
        ({"error": {"message": "m", "retry": "after", "retry_after_s": 3}}, "retry"),
        ({"error": {"message": "m", "retry": "reconcile"}}, "failed"),
        ({"error": {"message": "m"}}, "failed"),
        ({"error": {"code": "over_budget", "retry": "after", "message": "m"}}, "back"),
        ({"error": {"code": "over_budget", "retry": "never", "message": "m"}}, "failed"),
        ({"file": "/a.png", "error": {"code": "unauthorized", "message": "m"}}, "back"),
        ({"error": {"code": "config", "retry": "never", "message": "m"}}, "back"),
        ({"error": {"code": "ledger", "retry": "never", "message": "m"}}, "back"),
        ({"error": {"code": "ledger", "retry": "safe", "message": "m"}}, "back"),
        ({"error": {"code": "ledger_busy", "retry": "safe", "message": "m"}}, "back"),
        ({"error": {"code": "unpriced", "retry": "never", "message": "m"}}, "back"),
        ({"error": {"code": "file", "retry": "safe", "message": "m"}}, "back"),
        ({"error": {"code": "file", "retry": "never", "message": "m"}}, "failed"),
        ({"error": {"code": "answer_lost", "retry": "after", "message": "m"}}, "back"),
        ({"error": {"code": "answer_lost", "retry": "safe", "message": "m"}}, "retry"),
        ({"error": {"code": "answer_lost", "retry": "reconcile", "message": "m"}}, "failed"),
        ({"error": {"code": "rate_limited", "retry": "after", "message": "m"}}, "retry"),
        ({"pending": {"backend": "b"}}, "back"),
        ({"pending": {"backend": "b"}, "error": {"message": "m"}}, "failed"),
        ({"id": ID}, "failed"),
        ({"file": None}, "failed"),
        (None, "failed"),
    ],
    ids=str,
)
def test_what_becomes_of_a_job(made, kind):
    assert verdicts.verdict(made, 0, 5).kind == kind


def test_neither_file_nor_pending_nor_error_is_no_image():
    assert verdicts.verdict({"id": ID}, 0, 5).detail == {"code": "no_image"}


def test_image_ids_are_uuids_or_nothing():
    assert verdicts.verdict({"file": "f", "cloud": {"image_id": IMAGE}}, 0, 5).image_id == IMAGE
    for other in ("x'; drop table", None, 3, {}):
        assert verdicts.verdict({"file": "f", "cloud": {"image_id": other}}, 0, 5).image_id is None
    assert verdicts.verdict({"file": "f", "cloud": []}, 0, 5).kind == "done"


def test_a_job_over_budget_waits_until_the_reset_and_never_not_at_all():
    made = {"code": "over_budget", "retry": "after", "message": "m"}
    assert verdicts.verdict({"error": made | {"retry_after_s": 40_000}}, 4, 5).after_s == 40_000
    assert verdicts.verdict({"error": made}, 4, 5).after_s >= 1


@pytest.mark.parametrize("code", ["ledger", "ledger_busy", "config", "unpriced"])
def test_a_fault_of_the_worker_itself_puts_a_job_back_for_a_minute_with_the_reason(code):
    """Not even the last attempt is used up."""
    found = verdicts.verdict({"error": {"code": code, "retry": "safe", "message": "m"}}, 4, 5)
    assert (found.kind, found.after_s, found.error, found.answered) == ("back", 60, "m", True)
    assert found.detail == {"code": code, "retry": "safe", "message": "m"}


@pytest.mark.parametrize("code", ["out_of_credit", "rejected", "missing_model", "server_too_old"])
def test_a_fault_of_the_setup_puts_a_job_back_for_a_minute_however_often(code):
    error = {"code": code, "retry": "never", "message": "m", "scope": "setup"}
    found = verdicts.verdict({"error": error}, 4, 5)
    assert (found.kind, found.after_s, found.error, found.answered) == ("back", 60, "m", True)
    del error["scope"]
    assert verdicts.verdict({"error": error}, 0, 5).kind == "failed"


def test_a_job_that_chose_what_is_missing_fails_alone():
    error = {"code": "missing_model", "retry": "never", "scope": "setup"}
    error["message"] = "ComfyUI: mine.safetensors is not installed"
    of = {"options": {"model": "mine.safetensors", "quality": 3}, "error": error}
    assert verdicts.verdict(of, 0, 5).kind == "failed"
    of["options"] = {"model": "other.safetensors"}
    assert verdicts.verdict(of, 0, 5).kind == "back"


def test_a_job_in_doubt_waits_until_time_has_settled_it_and_uses_no_attempt():
    made = {"code": "answer_lost", "billed": "unknown", "retry": "after", "message": "m"}
    found = verdicts.verdict({"error": made | {"retry_after_s": 95.5}}, 4, 5)
    assert (found.kind, found.after_s, found.error, found.answered) == ("back", 95.5, "m", True)
    assert found.detail == made | {"retry_after_s": 95.5}
    assert verdicts.verdict({"error": made}, 4, 5).after_s >= 1


@pytest.mark.parametrize(
    ("record", "before", "under_way"),
    [
        ({"pending": {"backend": "b"}}, False, True),
        ({"error": {"code": "config", "message": "m"}}, False, False),
        ({"error": {"code": "config", "message": "m"}}, True, True),
        ({"error": {"code": "ledger_busy", "billed": "unknown", "message": "m"}}, False, True),
        ({"error": {"code": "unreachable", "retry": "safe", "message": "m"}}, True, False),
        ({"error": {"billed": "yes", "retry": "safe", "message": "m"}}, False, True),
        ({"file": "f", "submit": "h", "error": {"retry": "safe", "message": "m"}}, False, True),
        ({"error": {"code": "answer_lost", "retry": "after", "billed": "unknown"}}, True, False),
    ],
    ids=str,
)
def test_what_was_sent_may_be_under_way_after_an_answer_unless_that_includes_the_wait(
    record, before, under_way
):
    assert verdicts.verdict(record, 0, 5, before).under_way == under_way


def test_the_last_attempt_fails_and_says_how_many_there_were():
    made = {"error": {"message": "no\nanswer\0", "retry": "safe"}}
    found = verdicts.verdict(made, 4, 5)
    assert (found.kind, found.error) == ("failed", "no answer (after 5 attempts)")


def test_attempts_are_put_off_longer_each_time_with_jitter_and_never_less_than_told():
    for attempt, most in enumerate([5, 10, 20, 40]):
        found = {verdicts.backoff(attempt) for _ in range(50)}
        assert most / 2 <= min(found) < max(found) <= most
    assert verdicts.backoff(5000) <= 600
    assert verdicts.backoff(0, 77) == 77


def test_a_name_of_a_million_letters_is_refused_at_once():
    """A web user may queue any number of these, and other jobs' leases must be renewed between."""
    began = time.process_time()
    with pytest.raises(Refused, match="params may not hold 'width"):
        asked(job(**{"width" * 200_000: 1}))
    assert time.process_time() - began < 3
