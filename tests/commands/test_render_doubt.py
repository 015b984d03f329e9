"""imagen-render after an answer was lost: what it looks for, when it sends again, what stays open.

What is paid for is counted by the Replicate look-alike. tests/scenarios/test_matrix.py has the
faults crossed with the programs; here stand the cases that need words of their own.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from servers.replicate import SPELLINGS, Answer, problem, said, throttled

KEYS = "poll_s: 0.01, settle_s: 0.5, retry_s: 0.01, connect_s: 1, read_s: 3"


@pytest.fixture
def paid(paid):
    paid.configure(keys=KEYS)
    return paid


def error(ran: Any) -> dict[str, Any]:
    found: dict[str, Any] = ran.record["error"]
    return found


def is_image(ran: Any) -> bool:
    return ran.status == 0 and Path(ran.record["file"]).is_file()


def killed_in_its_create(paid, until, *args):
    """Start a render and kill it while the provider has its create, unanswered."""
    child = paid.tool.start("render", *args, "--size=512x512", stdin=subprocess.DEVNULL)
    until(lambda: paid.server.asks("POST"))
    child.send_signal(signal.SIGKILL)
    child.communicate()


# -- a create that is accepted after its process was killed ----------------------------------------


def test_a_killed_create_is_in_doubt_until_its_limits_are_over_and_then_settles_itself(paid, until):
    paid.configure(keys=KEYS.replace("read_s: 3", "read_s: 20"))
    paid.server.fail("POST", None, after=True, late_s=19, until_listed=True)
    killed_in_its_create(paid, until, "a cat", "--id=k")
    assert paid.creates == 0, "it is accepted later"
    early = paid("a cat", "--id", "k")
    assert (early.status, error(early)["code"]) == (75, "answer_lost")
    assert (error(early)["billed"], error(early)["retry"]) == ("unknown", "after")
    assert 0 < error(early)["retry_after_s"] <= 1 + 20 + 0.5
    until(lambda: paid.creates)
    made = paid("a cat", "--id", "k")
    assert is_image(made)
    assert (paid.creates, paid.server.asks("POST"), made.record["attempts"]) == (1, 1, 1)


def test_a_killed_create_that_never_arrived_is_sent_again_once_that_is_proven(paid, until):
    paid.server.fail("POST", Answer(wait_s=9))
    killed_in_its_create(paid, until, "a cat", "--id=k")
    assert error(paid("a cat", "--id", "k"))["retry"] == "after"
    paid.age(5)
    made = paid("a cat", "--id", "k")
    assert is_image(made)
    assert (paid.creates, made.record["attempts"]) == (1, 2)
    assert paid.sql("select billed from submits order by number") == [("no",), ("yes",)]


def test_a_doubt_counts_against_the_budget_until_it_is_settled(paid, until):
    paid.configure("budget: {per_day: 0.003}", keys=KEYS)
    paid.server.fail("POST", Answer(wait_s=9))
    killed_in_its_create(paid, until, "a cat", "--id=k")
    assert error(paid("a dog"))["code"] == "over_budget"
    paid.age(5)
    assert is_image(paid("a cat", "--id", "k")), "what it reserves is its own"
    assert paid.creates == 1


def test_a_doubt_is_never_waited_for_beyond_the_wait(paid, until):
    paid.server.fail("POST", Answer(wait_s=9))
    killed_in_its_create(paid, until, "a cat", "--id=k")
    began = time.monotonic()
    early = paid("a cat", "--id", "k", "--wait", 0)
    assert error(early)["retry"] == "after"
    assert time.monotonic() - began < 3 + 1


# -- attempts within one run -----------------------------------------------------------------------


def test_after_a_429_only_the_last_attempt_counts(paid):
    """The intent is older than the list lags by then; the create that was cut is not."""
    paid.configure(keys="poll_s: 0.01, settle_s: 1, retry_s: 0.01")
    paid.server.lag_s = 0.5
    paid.server.fail("POST", throttled(1.2))
    paid.server.fail("POST", None, after=True)
    assert is_image(paid("a cat", "--id", "k"))
    assert (paid.creates, paid.server.asks("POST")) == (1, 2)


def test_a_slow_504_may_have_been_accepted_and_a_list_that_lags_is_waited_for(paid):
    paid.configure(keys="poll_s: 0.01, settle_s: 1, retry_s: 0.01")
    paid.server.lag_s = 0.5
    paid.server.fail("POST", problem(504, "gateway time-out", wait_s=1.2), after=True)
    made = paid("a cat", "--id", "k")
    assert is_image(made)
    assert (paid.creates, made.record["attempts"]) == (1, 1)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(502, b"<html>Bad gateway</html>", "text/html"),
        Answer(403, b"<html>Who are you?</html>", "text/html"),
        Answer(429, b"<html>Slow down</html>", "text/html", {"Retry-After": "0"}),
        Answer(301, headers={"Location": "http://127.0.0.1:9/"}),
        problem(408, "gave up"),
        Answer(200, b"<html>welcome</html>", "text/html"),
        said(201, {"id": None}),
    ],
    ids=lambda answer: f"{answer.status} {answer.kind}",
)
@pytest.mark.parametrize("accepted", [True, False])
def test_an_answer_that_proves_no_refusal_is_looked_behind(paid, answer, accepted):
    paid.server.fail("POST", answer, after=accepted)
    made = paid("a cat", "--id", "k")
    assert is_image(made)
    assert (paid.creates, made.record["attempts"]) == (1, 1 if accepted else 2)


def in_the_wait_after_a_429(paid, until, *args):
    """Start a render, and return it while it waits because it was told to."""
    paid.server.fail("POST", throttled(20))
    child = paid.tool.start("render", *args, "--size=512x512", stdin=subprocess.DEVNULL)
    until(lambda: paid.server.asks("POST"))
    if paid.ledger.exists():
        until(lambda: paid.sql("select 1 from submits where refused_at is not null"))
    return child


@pytest.mark.parametrize("name", [("--id=k",), ()], ids=["id", "no id"])
def test_term_in_the_wait_after_a_429_leaves_no_doubt(paid, until, name):
    child = in_the_wait_after_a_429(paid, until, "a cat", *name)
    child.send_signal(signal.SIGTERM)
    ran = paid.tool.ended(child)
    assert (ran.status, error(ran)["code"], error(ran)["billed"]) == (143, "interrupted", "no")
    assert (error(ran)["retry"], "retry_after_s" in error(ran)) == ("safe", False)
    assert "attempts" not in ran.record
    assert paid.sql("select * from submits") == [], "a refusal is no submit"
    made = paid("a cat", *name)
    assert is_image(made)
    assert (paid.creates, paid.server.asks("POST"), made.record["attempts"]) == (1, 2, 1)
    assert paid.server.asks("GET /v1/predictions?") == 0


@pytest.mark.parametrize("name", [("--id=k",), ()], ids=["id", "no id"])
def test_a_run_that_is_killed_in_the_wait_after_a_429_leaves_no_doubt(paid, until, name):
    paid.configure("budget: {per_day: 0.003}", keys=KEYS)
    child = in_the_wait_after_a_429(paid, until, "a cat", *name)
    child.kill()
    child.communicate()
    assert is_image(paid("another cat", "--id", "other")), "what was refused reserves nothing"
    paid.configure(keys=KEYS)
    made = paid("a cat", *name)
    assert is_image(made)
    assert (paid.creates, paid.server.asks("POST"), made.record["attempts"]) == (2, 3, 1)
    billed = "select number, billed from submits join renders using (render_id) where id <> 'other'"
    assert paid.sql(billed) == [(1, "yes")]


def test_an_attempt_after_a_429_that_is_killed_is_in_doubt_again(paid, until):
    paid.configure(keys=KEYS.replace("read_s: 3", "read_s: 30"))
    paid.server.fail("POST", throttled(0.2))
    paid.server.fail("POST", Answer(wait_s=60))
    child = paid.tool.start("render", "a cat", "--id=k", "--size=512x512", stdin=subprocess.DEVNULL)
    until(lambda: paid.server.asks("POST") == 2)
    child.kill()
    child.communicate()
    early = paid("a cat", "--id", "k")
    assert (early.status, error(early)["code"]) == (75, "answer_lost")
    paid.age(32)
    assert is_image(paid("a cat", "--id", "k"))
    assert (paid.creates, paid.server.asks("POST")) == (1, 3)


@pytest.mark.parametrize("wait_s", [1, 5])
def test_a_wait_that_ends_before_that_of_a_429_leaves_no_doubt(paid, wait_s):
    paid.server.fail("POST", throttled(4.5))
    ran = paid("a cat", "--id", "k", "--wait", wait_s)
    assert (ran.status, error(ran)["code"], error(ran)["billed"]) == (75, "rate_limited", "no")
    assert is_image(paid("a cat", "--id", "k"))
    assert (paid.creates, paid.server.asks("GET /v1/predictions?")) == (1, 0)


# -- the same doubt again --------------------------------------------------------------------------


def doubt_after_a_429(paid):
    paid.server.fail("POST", throttled(1))
    paid.server.fail("POST", None, after=True)


def test_a_doubt_says_the_same_start_each_time(paid):
    doubt_after_a_429(paid)
    paid.server.fail("GET /v1/predictions", Answer(503), times=4)
    first, again = (paid("a cat", "--id", "k") for _ in range(2))
    assert error(first)["retry"] == error(again)["retry"] == "after"
    assert first.record["started_at"] == again.record["started_at"]


def test_a_doubt_that_no_look_can_settle_says_the_same_start_each_time(paid):
    paid.server.spelling = SPELLINGS
    doubt_after_a_429(paid)
    words = ("a lighthouse at dusk " * 60, "--id", "k")
    first, again = (paid(*words) for _ in range(2))
    assert error(first)["retry"] == error(again)["retry"] == "reconcile"
    assert first.record["started_at"] == again.record["started_at"]


# -- answers that are not ours ---------------------------------------------------------------------


def test_an_answer_with_an_id_that_is_anothers_is_a_lost_answer(paid):
    first = paid("a cat", "--seed", 7, "--id", "one").record
    paid.server.fail("POST", said(201, {"id": first["submit"], "status": "starting"}), after=True)
    other = paid("a dog", "--seed", 8, "--id", "other")
    assert is_image(other)
    assert paid.creates == 2
    assert other.record["submit"] == paid.server.predictions[1]["id"]


def test_a_strangers_prediction_in_the_answer_is_never_stored_as_ours(paid):
    handle = paid.server.add({"prompt": "their dog", "seed": 5})
    shown = {"id": handle, "status": "succeeded", "input": {"prompt": "their dog", "seed": 5}}
    paid.server.fail("POST", said(201, shown), after=True)
    made = paid("a cat", "--id", "k")
    assert is_image(made)
    assert made.record["submit"] != handle
    assert paid.server.asks("POST") == 1


def test_what_the_answer_shows_differently_is_ours_all_the_same(paid):
    paid.server.spelling = SPELLINGS
    made = paid("a cat", "--id", "k", "--seed", 7)
    assert is_image(made)
    assert paid.server.asks("POST") == 1


# -- what perhaps is ours --------------------------------------------------------------------------


def test_a_look_alike_of_another_ledger_leaves_no_doubt_when_its_seed_is_another(paid):
    paid.server.add({"prompt": "a cat", "seed": 5, "aspect_ratio": "16:9"})
    paid.server.fail("POST", None)
    assert is_image(paid("a cat", "--seed", 7, "--id", "k"))
    assert paid.server.asks("POST") == 2


def test_the_very_input_just_before_the_window_is_a_doubt(paid):
    """Its time may be of another clock than the Date of the answers."""
    given = {"prompt": "a cat", "seed": 7, "aspect_ratio": "1:1", "megapixels": "0.25"}
    given |= {"num_inference_steps": 4, "output_format": "png"}
    made = paid("a cat", "--seed", 7, "--dry-run", check_records=False).record
    assert made["payload"]["input"].keys() <= given.keys()
    paid.server.add(made["payload"]["input"], age_s=600)
    paid.server.fail("POST", None)
    doubt = paid("a cat", "--seed", 7, "--id", "k")
    assert (error(doubt)["code"], error(doubt)["retry"]) == ("answer_lost", "reconcile")
    assert paid.server.asks("POST") == 1


# -- two ledgers -----------------------------------------------------------------------------------


def test_a_failed_line_is_settled_on_another_ledger_too(paid, until):
    paid.server.fail("POST", None)
    paid.server.fail("GET /v1/predictions", Answer(503), times=2)
    doubt = paid("a cat", "--id", "k")
    assert error(doubt)["retry"] == "after"
    elsewhere = {"IMAGEN_LEDGER": str(paid.tool.folder / "other.sqlite3")}
    early = paid(stdin=[doubt.record], env=elsewhere)
    assert (early.status, error(early)["code"]) == (75, "answer_lost")
    old = {**early.record, "started_at": "2020-01-01T00:00:00Z"}
    made = paid(stdin=[old], env=elsewhere)
    assert is_image(made)
    assert paid.creates == 1


@pytest.mark.parametrize("odd", ["soon", 5, None, {}, "9999-12-31T23:59:59Z"])
def test_a_failed_line_whose_time_cannot_be_read_waits_as_if_it_had_just_been_sent(paid, odd):
    failed = {"prompt": "a cat", "id": "k", "attempts": 1, "started_at": odd}
    failed["error"] = {"tool": "imagen-render", "retry": "after", "code": "answer_lost"}
    ran = paid(stdin=[failed])
    assert (ran.status, error(ran)["retry"], paid.creates) == (75, "after", 0)
    assert 3 < error(ran)["retry_after_s"] <= 4.5


def test_the_handle_of_a_render_that_its_provider_forgot_is_asked_for_once_more(paid):
    paid.server.held = True
    left = paid("a cat", "--id", "k", "--wait", 0)
    assert left.status == 75
    predictions = [*paid.server.predictions]
    paid.server.predictions.clear()
    lost = paid("a cat", "--id", "k")
    assert (error(lost)["code"], error(lost)["retry"]) == ("render_lost", "reconcile")
    assert paid.sql("select billed from submits") == [("unknown",)]
    paid.server.predictions += predictions
    paid.server.held = False
    assert is_image(paid("a cat", "--id", "k"))
    assert paid.sql("select billed from submits") == [("yes",)]
