"""imagen-render under spend caps: what may not be paid is not sent, however many try at once."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from paid import PRICE, QUICK, Paid
from servers.replicate import NO_CREDIT, TROUBLE

SMALL = ("--size", "64x64")


def error(ran: Any) -> dict[str, Any]:
    assert "Traceback" not in ran.err
    found: dict[str, Any] = ran.record["error"]
    return found


def to_midnight() -> float:
    now = datetime.now(UTC)
    return 86400 - (now - now.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()


def spend(paid: Paid, cap: str, renders: int = 0) -> None:
    """Set a cap, and spend what so many renders cost."""
    paid.configure(f"budget: {{{cap}}}")
    if renders:
        assert paid(*(f"cat {number}" for number in range(renders))).status == 0


@pytest.fixture(autouse=True)
def not_at_midnight() -> None:
    """What is counted by the day is begun on the day it ends."""
    if to_midnight() < 30:
        pytest.skip("the day ends in the midst of this test")


# -- one cap after the other -----------------------------------------------------------------------


@pytest.mark.parametrize("cap", ["per_day", "per_month", "per_caller"])
def test_over_a_cap_nothing_is_sent_and_it_says_what_is_spent_and_asked(paid, cap):
    spend(paid, f"{cap}: 0.007", renders=2)
    asked = len(paid.server.requests)
    refused = paid("a dog")
    assert (refused.status, len(paid.server.requests)) == (2, asked)
    told = error(refused)
    assert (told["code"], told["billed"], told["retry"]) == ("over_budget", "no", "after")
    for amount in ("$0.006", "$0.007", "$0.003"):
        assert amount in told["message"], "spent, the cap, and asked"
    if cap == "per_month":
        assert to_midnight() - 5 <= told["retry_after_s"] <= 31 * 86400
    else:
        assert abs(told["retry_after_s"] - to_midnight()) < 10
    assert "attempts" not in refused.record
    assert paid.creates == 2


def test_over_the_cap_of_one_render_is_never_allowed(paid):
    paid.configure("budget: {per_render: 0.007}")
    assert paid("a cat", "--option", "num_outputs=2").status == 0
    refused = paid("a cat", "--option", "num_outputs=3")
    assert (refused.status, error(refused)["code"]) == (2, "over_budget")
    assert error(refused)["retry"] == "never"
    assert "retry_after_s" not in error(refused)
    assert paid.creates == 1


def test_an_estimate_larger_than_the_cap_is_never_allowed(paid):
    paid.configure("budget: {per_day: 0.002}")
    refused = paid("a cat")
    assert (error(refused)["retry"], paid.server.requests) == ("never", [])


def test_a_cap_may_be_reached_exactly(paid):
    paid.configure("budget: {per_day: 0.009}")
    ran = paid("a", "b", "c", "d")
    assert ["error" in one for one in ran.records] == [False] * 3 + [True]
    assert paid.creates == 3


def test_each_caller_has_a_cap_of_its_own(paid):
    paid.configure("budget: {per_caller: 0.004}")
    assert paid("a cat", env={"MAI_FROM_ID": "ann"}).status == 0
    assert paid("a dog", env={"MAI_FROM_ID": "ann"}).status == 2
    assert paid("a dog", env={"MAI_FROM_ID": "ben"}).status == 0
    assert paid(stdin=[{"prompt": "a cow", "caller": "ann"}]).status == 2
    assert paid(stdin=[{"prompt": "a cow", "caller": "cat"}]).status == 0
    assert paid.creates == 3


def test_one_line_that_is_over_budget_does_not_stop_the_others(paid):
    paid.configure("budget: {per_day: 0.007}")
    lines = [
        {"prompt": "a", "options": {"num_outputs": 2}},
        {"prompt": "b"},
        {"prompt": "c", "backend": "mock"},
    ]
    ran = paid(stdin=lines)
    assert [one.get("error", {}).get("code") for one in ran.records] == [
        None,
        None,
        "over_budget",
        None,
    ]
    assert ran.status == 2


# -- many at once ----------------------------------------------------------------------------------


def test_twenty_shells_at_once_cannot_pass_a_cap(paid):
    cap = 0.0225  # seven and a half
    paid.configure(f"budget: {{per_day: {cap}}}")
    paid.server.seconds = 0.05
    ran = paid.together([("a cat",)] * 20)
    assert paid.creates == 7
    assert paid.creates * PRICE <= cap
    assert sorted(one.status for one in ran) == [0] * 7 + [2] * 13
    for one in ran:
        if one.status == 2:
            assert error(one)["code"] == "over_budget"
            assert (error(one)["retry"], error(one)["retry_after_s"] > 0) == ("after", True)


def test_what_is_over_budget_at_once_with_one_id_is_paid_once(paid):
    paid.configure("budget: {per_day: 0.004}")
    ran = paid.together([("a cat", "--id", "k")] * 4)
    assert [one.status for one in ran] == [0] * 4
    assert paid.creates == 1


# -- what nobody knows the price of, and what is free ----------------------------------------------

DEEP = "somebody/something"


def test_an_unknown_price_is_refused_with_a_cap_unless_the_configuration_knows_it(paid):
    paid.server.models.append(DEEP)
    paid.configure("budget: {per_day: 1}", model=DEEP)
    refused = paid("a cat", "--id", "k")
    assert (refused.status, error(refused)["code"]) == (2, "unpriced")
    assert DEEP in error(refused)["message"]
    assert paid.server.requests == []
    price = f"prices: {{{DEEP}: {{amount: 0.4, unit: image}}}}"
    paid.configure(f"budget: {{per_day: 1}}\n{price}", model=DEEP)
    made = paid("a cat", "--id", "k")
    assert (made.status, made.record["cost_usd"]) == (0, 0.4)
    assert [paid("a dog").status for _ in range(2)] == [0, 2]


def test_an_unknown_price_is_no_matter_without_a_cap(paid):
    paid.server.models.append(DEEP)
    paid.configure(model=DEEP)
    made = paid("a cat")
    assert made.status == 0
    assert "cost_usd" not in made.record


def test_a_free_backend_is_never_blocked(paid):
    paid.configure("budget: {per_render: 0, per_day: 0, per_month: 0, per_caller: 0}")
    assert paid.tool("render", "a cat", *SMALL, "--backend=mock").status == 0
    assert paid("a cat").status == 2
    assert paid.creates == 0


def test_what_is_free_uses_nothing_up(paid):
    spend(paid, "per_day: 0.003")
    assert paid.tool("render", "a", "b", *SMALL, "--backend=mock").status == 0
    assert paid("a cat").status == 0


# -- what counts -----------------------------------------------------------------------------------


def test_what_is_done_and_handed_out_again_counts_once(paid):
    spend(paid, "per_day: 0.004")
    first = paid("a cat", "--id", "k")
    assert paid("a cat", "--id", "k").out == first.out
    Path(first.record["file"]).unlink()
    assert paid("a cat", "--id", "k").status == 0, "to collect again costs nothing"


def test_a_submit_that_was_not_billed_gives_its_reservation_back(paid):
    paid.configure("budget: {per_day: 0.003}", keys=f"{QUICK}, cancel_after_s: 0.001")
    paid.server.queue_s, paid.server.skew_s = 1e6, 2
    assert error(paid("a cat"))["code"] == "prediction_aborted"
    paid.server.queue_s = 0.0
    assert paid("a dog").status == 0
    assert paid("a cow").status == 2


def test_a_submit_that_was_not_accepted_reserves_nothing(paid):
    spend(paid, "per_day: 0.003")
    paid.server.fail("POST", NO_CREDIT)
    assert paid("a cat").status == 1
    assert paid("a dog").status == 0


def test_a_failed_one_whose_billing_is_unknown_counts(paid):
    spend(paid, "per_day: 0.003")
    paid.server.ending = "failed"
    assert error(paid("a cat"))["billed"] == "unknown"
    assert error(paid("a dog"))["code"] == "over_budget"


def test_one_that_cannot_be_told_counts(paid):
    spend(paid, "per_day: 0.003")
    paid.server.add({"prompt": "x"}, data_removed=True, input={})
    paid.server.fail("POST", None)
    assert error(paid("a cat", "--id", "k"))["retry"] == "reconcile"
    assert error(paid("a dog"))["code"] == "over_budget"


def test_the_second_try_of_what_is_certainly_absent_does_not_count_twice(paid):
    spend(paid, "per_day: 0.003")
    paid.server.fail("POST", TROUBLE)
    made = paid("a cat")
    assert (made.status, made.record["attempts"]) == (0, 2)
    assert paid("a dog").status == 2


def test_what_is_pending_is_reserved_and_its_collection_is_never_over_budget(paid):
    spend(paid, "per_day: 0.003")
    paid.server.held = True
    left = paid("a cat", "--wait", 0)
    assert left.status == 75
    assert error(paid("a dog"))["code"] == "over_budget"
    paid.server.held = False
    spend(paid, "per_day: 0")
    assert paid(stdin=[left.record]).status == 0


def test_what_another_ledger_submitted_counts_once_it_is_ours(paid):
    paid.configure("budget: {per_day: 0.003}")
    paid.server.held = True
    left = paid("a cat", "--wait", 0, env={"IMAGEN_LEDGER": "other.sqlite3"}).record
    paid.server.held = False
    assert paid(stdin=[left]).status == 0
    assert error(paid("a dog"))["code"] == "over_budget"


def test_a_pending_line_that_names_no_prediction_is_not_reserved_for_ever(paid):
    paid.configure("budget: {per_day: 0.004}")
    pending = {"backend": "rep", "handle": "../models", "since": "2026-11-23T00:00:00Z"}
    line = {"prompt": "a cat", "id": "k", "seed": 7, "pending": pending}
    first, again = (paid(stdin=[line]) for _ in range(2))
    assert (first.status, first.record["error"]["billed"]) == (2, "unknown")
    assert again.record["error"] == first.record["error"]
    assert paid.tool("render", "--resume").out == b""
    paid.age(86400)
    assert "error" not in paid("a dog").record
    assert paid.creates == 1


def test_what_was_spent_yesterday_counts_for_the_month_and_not_for_today(paid):
    spend(paid, "per_day: 0.003", renders=1)
    paid.age(86400)
    assert paid("a dog").status == 0
    assert paid("a cow").status == 2
    paid.configure("budget: {per_month: 0.006}")
    first = datetime.now(UTC).day == 1
    assert paid("a cow").status == (0 if first else 2)
    paid.age(32 * 86400)
    assert paid("a cow").status == 0


def test_what_is_still_open_counts_today_whenever_it_was_begun(paid):
    paid.configure("budget: {per_day: 0.003}")
    paid.server.held = True
    assert paid("a cat", "--id", "k", "--wait", 0).status == 75
    paid.age(40 * 86400)
    assert error(paid("a dog"))["code"] == "over_budget"
    paid.server.held = False
    assert paid("a cat", "--id", "k").status == 0
    assert paid("a dog").status == 0, "it is over, and was of another day"


def test_an_over_budget_line_piped_back_works_the_next_day(paid):
    spend(paid, "per_day: 0.003", renders=1)
    refused = paid("a dog", "--id", "k")
    assert paid(stdin=[refused.record]).status == 2
    paid.age(86400)
    made = paid(stdin=[refused.record])
    assert made.status == 0
    assert (made.record["id"], made.record["attempts"]) == ("k", 1)
    assert made.record["seed"] == refused.record["seed"]
    assert paid.server.asks("GET /v1/predictions?") == 0, "what was never sent is not looked for"
    assert paid.creates == 2


def test_an_over_budget_line_leaves_no_trace_of_its_own_in_the_ledger(paid):
    paid.configure("budget: {per_day: 0.001}")
    paid("a cat", "--id", "k")
    assert paid.sql("select * from renders") == paid.sql("select * from submits") == []
    paid.configure()
    assert paid("a dog", "--id", "k").status == 0


def test_a_second_submit_that_is_over_budget_leaves_the_first_as_it_was(paid):
    paid.configure("budget: {per_day: 0.003}", keys=f"{QUICK}, cancel_after_s: 0.001")
    paid.server.queue_s, paid.server.skew_s = 1e6, 2
    assert error(paid("a cat", "--id", "k"))["code"] == "prediction_aborted"
    paid.server.queue_s = 0.0
    assert paid("a dog").status == 0
    refused = paid("a cat", "--id", "k")
    assert (error(refused)["code"], paid.creates) == ("over_budget", 2)
    paid.age(86400)
    made = paid("a cat", "--id", "k")
    assert (made.status, made.record["attempts"]) == (0, 2)
    assert paid.creates == 3


def test_the_seconds_that_it_ran_are_what_it_cost(paid):
    price = "prices: {black-forest-labs/flux-schnell: {amount: 0.01, unit: second}}"
    paid.configure(f"budget: {{per_day: 6.1}}\n{price}")
    made = paid("a cat")
    assert made.status == 0
    (row,) = paid.sql("select estimate_usd, cost_usd from submits")
    assert row == (6, made.record["cost_usd"]), "until it is cancelled, then what it was"
    assert made.record["cost_usd"] < 0.1
    assert paid("a dog").status == 0, "the reservation is settled to what it cost"


def test_a_killed_shells_reservation_lives_until_its_render_is_resolved(paid, until):
    paid.configure("budget: {per_day: 0.003}")
    paid.server.held = True
    child = paid.tool.start("render", "a cat", "--id=k", "--size=512x512", stdin=subprocess.DEVNULL)
    until(lambda: paid.creates)
    child.kill()
    child.communicate()
    assert error(paid("a dog"))["code"] == "over_budget"
    paid.server.held = False
    assert paid("a cat", "--id", "k").status == 0
    assert error(paid("a dog"))["code"] == "over_budget"
    assert paid.creates == 1


def test_what_cannot_be_told_counts_on_its_own_day_alone_and_again_makes_a_new_one(paid):
    paid.configure("budget: {per_day: 0.004}")
    paid.server.add({"prompt": "x"}, data_removed=True, input={})
    paid.server.fail("POST", None)
    lost = paid("a cat", "--id", "k")
    assert error(lost)["retry"] == "reconcile"
    again = paid("--again", stdin=lost.out)
    assert error(again)["code"] == "over_budget", "it may have been paid today"
    paid.age(3 * 86400)
    made = paid("--again", stdin=lost.out)
    assert (made.status, made.record["request"]) == (0, "k")
    assert error(paid("a cat", "--id", "k"))["code"] == "answer_lost"


# -- what a person reads ---------------------------------------------------------------------------


def test_over_a_cap_it_names_the_file_the_time_and_what_an_old_render_reserves(paid):
    spend(paid, "per_day: 0.007", renders=1)
    paid.server.held = True
    assert paid("a cat", "--id", "weeks", "--wait", 0).status == 75
    paid.age(20 * 86400)
    paid.server.held = False
    spend(paid, "per_day: 0.005")
    refusal = error(paid("a dog"))
    assert (
        "$0.003 of it is reserved by 1 unfinished render (weeks of 20 d ago)" in refusal["message"]
    )
    assert refusal["message"].endswith("it opens again once that is settled")
    assert (
        f"raise budget.per_day in {paid.tool.folder}/config/imagen/config.yaml" in refusal["hint"]
    )
    assert "imagen-render --resume" in refusal["hint"]
    assert paid.tool("render", "--resume").status == 0
    assert paid("a dog").status == 0
    refusal = error(paid("a cow"))
    assert "it opens again at 00:00 UTC, in " in refusal["message"]
    assert "reserved by" not in refusal["message"]
