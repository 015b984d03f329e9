"""imagen-render and its journal: pay once, whatever happens in between.

What is paid for is counted by the Replicate look-alike. That a render killed at any step is paid
once stands in tests/scenarios/test_killed.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from paid import PRICE, QUICK, SCHNELL, TOKEN, Paid
from servers.comfyui import ComfyUI
from servers.replicate import NO_CREDIT, TROUBLE, problem, said, throttled

SMALL = ("--size", "64x64")


def error(ran: Any) -> dict[str, Any]:
    """The error of the only record."""
    assert "Traceback" not in ran.err
    found: dict[str, Any] = ran.record["error"]
    assert found["code"] != "internal", found
    return found


def is_image(made: dict[str, Any]) -> bool:
    return "error" not in made and "pending" not in made and Path(made["file"]).is_file()


def without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}


# -- the same id again -----------------------------------------------------------------------------


def test_the_same_id_again_gives_the_same_record_and_asks_nobody(paid):
    first = paid("a cat", "--id", "k")
    asked = len(paid.server.requests)
    again = paid("a cat", "--id", "k")
    assert (again.status, again.out) == (0, first.out)
    assert (paid.creates, len(paid.server.requests)) == (1, asked)


def test_the_same_id_again_needs_no_token_once_it_is_done(paid):
    first = paid("a cat", "--id", "k")
    assert paid("a cat", "--id", "k", env={"REPLICATE_API_TOKEN": None}).out == first.out


def test_a_uuid_in_other_letters_is_the_same_id(paid):
    name = "0b3c1d5e-0000-4000-8000-0123456789ab"
    paid("a cat", "--id", name)
    again = paid("a cat", "--id", name.upper())
    assert (again.status, paid.creates) == (0, 1)


def test_a_file_that_is_gone_is_collected_again_while_the_provider_has_it(paid):
    first = paid("a cat", "--id", "k").record
    data = Path(first["file"]).read_bytes()
    shutil.rmtree(Path(first["file"]).parent)
    again = paid("a cat", "--id", "k")
    assert again.status == 0
    assert Path(again.record["file"]).read_bytes() == data
    assert again.record["submit"] == first["submit"]
    assert paid.creates == 1


@pytest.mark.parametrize("gone", ["the files", "the whole prediction"])
def test_a_paid_file_that_is_gone_everywhere_is_told_each_time_and_never_paid_again(paid, gone):
    first = paid("a cat", "--id", "k").record
    Path(first["file"]).unlink()
    if gone == "the files":
        paid.server.remove_data(first["submit"])
    else:
        paid.server.predictions.clear()
    told = [paid("a cat", "--id", "k") for _ in range(2)]
    for ran in told:
        assert ran.status == 1
        assert (error(ran)["code"], error(ran)["billed"]) == ("paid_file_gone", "yes")
        assert error(ran)["retry"] == "never"
    assert error(told[0]) == error(told[1])
    assert paid.server.asks("POST") == 1


def test_again_pays_for_what_is_gone(paid):
    first = paid("a cat", "--id", "k").record
    Path(first["file"]).unlink()
    paid.server.remove_data(first["submit"])
    assert paid("a cat", "--id", "k").status == 1
    anew = paid("a cat", "--id", "k", "--again")
    assert is_image(anew.record)
    assert (paid.creates, anew.record["request"]) == (2, "k")


def test_what_was_submitted_is_attached_to_and_collected(paid):
    paid.server.held = True
    left = paid("a cat", "--id", "k", "--wait", 0)
    assert (left.status, "pending" in left.record) == (75, True)
    paid.server.held = False
    made = paid("a cat", "--id", "k")
    assert (made.status, is_image(made.record)) == (0, True)
    assert made.record["submit"] == left.record["pending"]["handle"]
    assert paid.creates == 1


def test_a_pending_line_is_collected_though_its_id_was_finished_meanwhile(paid):
    left = paid("a cat", "--id", "k", "--wait", 0)
    made = paid("a cat", "--id", "k").record
    again = paid(stdin=[left.record]).record
    assert again == made
    assert paid.creates == 1


def test_what_failed_and_was_not_billed_is_submitted_under_the_next_number(paid):
    paid.server.queue_s = 1e6
    paid.configure(keys="poll_s: 0.01, settle_s: 0.05, retry_s: 0.01, cancel_after_s: 0.001")
    paid.server.skew_s = 2  # so that its deadline is over at the first look
    failed = paid("a cat", "--id", "k", "--timeout", 3)
    assert (error(failed)["code"], error(failed)["billed"]) == ("prediction_aborted", "no")
    assert failed.status == 75
    paid.server.queue_s = 0.0
    made = paid("a cat", "--id", "k").record
    assert is_image(made)
    assert (paid.creates, made["attempts"]) == (2, 2)


def test_what_failed_and_may_be_billed_is_the_same_error_and_no_call(paid):
    paid.server.ending, paid.server.error = "failed", "CUDA out of memory"
    failed = paid("a cat", "--id", "k")
    assert (error(failed)["code"], error(failed)["billed"]) == ("prediction_failed", "unknown")
    paid.server.ending, asked = "succeeded", len(paid.server.requests)
    again = paid("a cat", "--id", "k")
    assert (again.status, error(again)) == (failed.status, error(failed))
    assert again.record["id"] == failed.record["id"] == "k"
    assert len(paid.server.requests) == asked
    assert is_image(paid("a cat", "--id", "k", "--again").record)
    assert paid.creates == 2


def test_a_render_that_brought_too_few_images_gives_them_again_with_the_same_error(paid):
    paid.server.filtered = 1
    few = paid("a cat", "--id", "k", "--option", "num_outputs=3")
    assert [is_image(one) for one in few.records] == [True, True, False]
    assert few.records[2]["error"]["billed"] == "yes"
    again = paid("a cat", "--id", "k", "--option", "num_outputs=3")
    assert again.records == few.records
    assert (again.status, paid.creates) == (few.status, 1)


def test_all_images_of_a_submit_are_given_again(paid):
    first = paid("a cat", "--id", "k", "--option", "num_outputs=3")
    again = paid("a cat", "--id", "k", "--option", "num_outputs=3")
    assert [one["id"] for one in again.records] == ["k", "k.2", "k.3"]
    assert (again.records, paid.creates) == (first.records, 1)


# -- another request under a used id ---------------------------------------------------------------

OTHERS = {
    "another prompt": ("a dog", "--seed", 7),
    "another seed": ("a cat", "--seed", 8),
    "one thing more": ("a cat", "--seed", 7, "--steps", 2),
    "one thing less": ("a cat",),
    "another option": ("a cat", "--seed", 7, "--option", "go_fast=false"),
    "another backend": ("a cat", "--seed", 7, "--backend", "mock"),
}


def test_a_different_request_under_a_used_id_is_refused_and_nothing_is_sent(paid):
    paid("a cat", "--seed", 7, "--id", "k")
    asked = len(paid.server.requests)
    for what, other in OTHERS.items():
        refused = paid(*other, "--id", "k")
        assert (refused.status, error(refused)["code"]) == (2, "id_taken"), what
        assert error(refused)["retry"] == "never"
        assert len(paid.server.requests) == asked


EXACT = 12345678901234567890  # what Python's double and what jq 1.6 make of it stand below
ROUNDED = 12345678901234567168, 12345678901234567000


@pytest.mark.parametrize("seed", ROUNDED)
def test_a_seed_that_was_rounded_on_the_way_is_named_and_nothing_is_sent(paid, seed):
    line = paid("a cat", "--seed", EXACT, "--id", "k").record
    line = without(line, "file", "sidecar") | {"seed": seed}
    refused = paid(stdin=[line])
    assert (refused.status, error(refused)["code"], paid.creates) == (2, "id_taken", 1)
    says = f"the seed {seed} of the line is rounded: this id was begun with {EXACT}"
    assert error(refused)["message"] == says
    assert "jq before 1.7 rounds numbers above 2^53" in error(refused)["hint"]
    other = paid(stdin=[line | {"prompt": "a dog"}])
    assert error(other)["message"] == "the id k belongs to another request"


def test_a_different_request_under_the_id_of_what_is_still_open_is_refused_too(paid):
    paid.server.held = True
    paid("a cat", "--id", "k", "--wait", 0)
    refused = paid("a dog", "--id", "k", "--wait", 0)
    assert (refused.status, error(refused)["code"]) == (2, "id_taken")
    assert paid.creates == 1


def test_the_resolved_line_of_the_same_request_is_not_a_different_one(paid):
    made = paid("a cat", "--id", "k", "--steps", 2).record
    line = without(made, "file", "sidecar")
    again = paid(stdin=[line])
    assert (again.status, again.record["file"], paid.creates) == (0, made["file"], 1)


def test_a_failed_line_whose_prompt_was_changed_is_not_answered_with_the_old_prompts_image(paid):
    paid.server.fail("GET /v1/predictions/", TROUBLE, times=2)
    failed = paid("a cat", "--id", "k").record
    assert failed["error"]["retry"] == "safe"
    refused = paid(stdin=[failed | {"prompt": "a dog"}])
    assert (refused.status, error(refused)["code"]) == (2, "id_taken")
    made = paid(stdin=[failed])
    assert is_image(made.record)
    assert paid.creates == 1


# -- requests that were not accepted ---------------------------------------------------------------

REFUSALS = {
    "402": (NO_CREDIT, 1, "out_of_credit"),
    "429": (throttled(0.01), 4, "rate_limited"),
    "429 for an hour": (throttled(3600), 1, "rate_limited"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_was_not_accepted_was_no_submit_and_leaves_its_id_free(paid, what):
    answer, times, code = REFUSALS[what]
    paid.server.fail("POST", answer, times=times)
    refused = paid("a cat", "--id", "k")
    assert (error(refused)["code"], error(refused)["billed"]) == (code, "no")
    assert "attempts" not in refused.record
    assert paid.sql("select * from submits") == paid.sql("select * from renders") == []
    made = paid("a dog", "--id", "k").record
    assert is_image(made)
    assert (made["attempts"], paid.creates) == (1, 1)


def test_a_refused_token_was_no_submit_either(paid):
    refused = paid("a cat", "--id", "k", env={"REPLICATE_API_TOKEN": "r8_wrong"})
    assert error(refused)["code"] == "unauthorized"
    assert paid.sql("select * from renders") == []
    assert is_image(paid("a dog", "--id", "k").record)


# -- an answer that was lost -----------------------------------------------------------------------


def test_a_create_whose_answer_was_lost_is_found(paid):
    paid.server.fail("POST", None, after=True)
    made = paid("a cat", "--id", "k")
    assert is_image(made.record)
    assert (paid.creates, made.record["attempts"]) == (1, 1)


@pytest.mark.parametrize("status", [303, 408, 499])
def test_a_refusal_that_something_on_the_way_may_have_made_up_is_looked_for_too(paid, status):
    paid.server.fail("POST", problem(status, "gave up waiting"), after=True)
    made = paid("a cat", "--id", "k")
    assert is_image(made.record)
    assert (paid.creates, made.record["attempts"]) == (1, 1)


def test_a_create_that_is_certainly_absent_is_sent_once_more(paid):
    paid.server.fail("POST", TROUBLE)
    made = paid("a cat", "--id", "k")
    assert is_image(made.record)
    assert (paid.creates, made.record["attempts"]) == (1, 2)


def test_a_create_that_cannot_be_told_is_not_sent_again_until_it_can(paid):
    paid.server.fail("POST", None)
    paid.server.fail("GET /v1/predictions", TROUBLE, times=4)
    for _ in range(2):
        doubt = paid("a cat", "--id", "k")
        assert doubt.status == 75
        assert (error(doubt)["code"], error(doubt)["billed"]) == ("answer_lost", "unknown")
        assert (error(doubt)["retry"], error(doubt)["retry_after_s"]) == ("after", 5)
    assert paid.server.asks("POST") == 1
    made = paid("a cat", "--id", "k").record
    assert is_image(made)
    assert paid.creates == 1


@pytest.mark.parametrize("ends", ["--wait", signal.SIGINT, signal.SIGTERM])
def test_a_create_that_we_gave_up_waiting_for_may_be_accepted_as_long_as_its_limits_last(
    paid, until, ends
):
    paid.configure(keys="poll_s: 0.01, settle_s: 0.5, retry_s: 0.01, read_s: 7, connect_s: 2")
    paid.server.fail("POST", None, after=True, late_s=5.5)
    wait = ("--wait", 0) if ends == "--wait" else ()
    child = paid.tool.start("render", "a cat", "--id=k", "--size=512x512", *wait)
    until(lambda: paid.server.asks("POST"))
    if not wait:
        child.send_signal(ends)
    doubt = paid.tool.ended(child).record
    assert (doubt["error"]["billed"], doubt["error"]["retry"]) == ("unknown", "after")
    assert paid.creates == 0, "it is accepted later"
    again = paid("a cat", "--id", "k")
    assert (again.status, error(again)["retry"], paid.server.asks("POST")) == (75, "after", 1)
    until(lambda: paid.creates)
    assert is_image(paid("a cat", "--id", "k").record)
    assert paid.server.asks("POST") == 1


def test_a_create_that_can_never_be_told_is_closed_and_not_sent_again(paid):
    paid.server.add({"prompt": "x"}, data_removed=True, input={})
    paid.server.fail("POST", None)
    first = paid("a cat", "--id", "k")
    assert (first.status, error(first)["code"]) == (1, "answer_lost")
    assert (error(first)["billed"], error(first)["retry"]) == ("unknown", "reconcile")
    assert paid.sql("select state from renders") == [("failed",)]
    assert paid.sql("select billed from submits") == [("unknown",)]
    asked = len(paid.server.requests)
    again = paid("a cat", "--id", "k")
    assert (again.status, error(again)) == (1, error(first))
    assert (paid.server.asks("POST"), len(paid.server.requests)) == (1, asked)


@pytest.mark.parametrize("other", ["its input was removed", "our prompt, and no seed"])
def test_what_others_made_before_ours_and_is_not_our_very_input_is_no_doubt(paid, other):
    removed = other == "its input was removed"
    handle = paid.server.add({"prompt": "x" if removed else "a cat"}, age_s=3650)
    if removed:
        paid.server.remove_data(handle)
    paid.server.fail("POST", None)
    made = paid("a cat", "--id", "k").record
    assert is_image(made)
    assert (paid.server.asks("POST"), made["attempts"]) == (2, 2)


def test_what_perhaps_is_ours_ends_nothing_while_what_certainly_is_may_still_be_listed(paid):
    paid.configure(keys="poll_s: 0.01, settle_s: 2, retry_s: 0.01")
    paid.server.add({"prompt": "a cat"}, age_s=5)
    paid.server.lag_s = 1
    paid.server.fail("POST", None, after=True)
    assert is_image(paid("a cat", "--id", "k").record)
    assert paid.server.asks("POST") == 1


def test_a_wait_ends_although_the_list_asks_for_a_longer_one(paid):
    paid.server.fail("POST", None)
    paid.server.fail("GET /v1/predictions", throttled(25), times=9)
    doubt = paid("a cat", "--id", "k", "--wait", 1, timeout=20)
    assert (doubt.status, error(doubt)["billed"]) == (75, "unknown")
    assert (error(doubt)["retry"], error(doubt)["retry_after_s"]) == ("after", 25)


def test_the_answer_to_a_create_is_not_taken_from_another_instance_of_the_account(paid):
    rep = f"{{type: replicate, model: '{SCHNELL}', base_url: '{paid.server.url}', {QUICK}}}"
    paid.write(f"default_backend: rep\nbackends:\n  rep: {rep}\n  second: {rep}\n")
    first = paid("a cat", "--id", "k", "--seed", 7).record
    (theirs,) = paid.server.predictions
    paid.server.fail("POST", said(201, {**theirs, "status": "succeeded"}))
    made = paid("a cat", "--id", "m", "--seed", 7, "--backend", "second").record
    assert is_image(made)
    assert made["submit"] != first["submit"]
    assert paid.server.asks("POST") == 3


def test_without_an_id_what_can_never_be_told_is_told_again_and_not_paid_a_second_time(paid):
    paid.server.add({"prompt": "x"}, data_removed=True, input={})
    paid.server.fail("POST", None)
    doubt = paid("a cat")
    again = paid("a cat")
    assert (again.status, error(again)) == (1, error(doubt))
    assert again.record["id"] == doubt.record["id"]
    assert paid.server.asks("POST") == 1
    assert is_image(paid("a cat", "--new").record)


def test_a_lost_create_is_not_taken_from_the_one_who_has_it(paid):
    """Two ids, one input: what one of them owns is not what the other has lost."""
    paid("a cat", "--seed", 7, "--id", "one")
    paid.server.fail("POST", None)
    other = paid("a cat", "--seed", 7, "--id", "other").record
    assert is_image(other)
    assert paid.creates == 2
    assert other["submit"] == paid.server.predictions[1]["id"]


def test_a_lost_create_is_not_taken_from_another_instance_of_the_account(paid):
    rep = f"{{type: replicate, model: {SCHNELL}, base_url: '{paid.server.url}', {QUICK}}}"
    paid.write(f"backends:\n  one: {rep}\n  other: {rep}")
    one = paid("a cat", "--seed", 7, "--backend=one").record
    paid.server.fail("POST", None)
    other = paid("a cat", "--seed", 7, "--backend=other").record
    assert is_image(other)
    assert paid.creates == 2
    assert [one["submit"], other["submit"]] == [made["id"] for made in paid.server.predictions]


def test_lost_creates_of_one_input_at_once_are_each_their_own(paid):
    paid.server.fail("POST", None, times=2, after=True)
    paid.server.fail("POST", TROUBLE, times=2)
    names = [f"k{n}" for n in range(6)]
    ran = paid.together(("a cat", "--seed", 7, "--id", name) for name in names)
    assert {one.status for one in ran} <= {0, 75}, "one of them may have had both of the 500"
    ended = [paid("a cat", "--seed", 7, "--id", name) for name in names]
    assert [one.status for one in ended] == [0] * 6, [one.err for one in ended]
    assert len({one.record["submit"] for one in ended}) == paid.creates == 6


def test_a_lost_create_is_found_though_our_clock_was_set_back_since(paid):
    """The intent then lies in the future: where in the list it stands cannot be worked out."""
    paid.server.fail("POST", None, after=True)
    paid.server.fail("GET", TROUBLE, times=100)
    assert error(paid("a cat", "--id", "k"))["retry"] == "after"
    paid.server.forgive()
    paid.set_clock(-600)
    assert is_image(paid("a cat", "--id", "k").record)
    assert paid.creates == 1


# -- without an id ---------------------------------------------------------------------------------


def pending_one(paid: Paid, *args: object, **more: Any) -> dict[str, Any]:
    paid.server.held = True
    left = paid(*(args or ("a cat",)), "--wait", 0, **more)
    assert left.status == 75, left.err
    paid.server.held = False
    found: dict[str, Any] = left.record
    return found


def test_the_id_of_a_paid_render_that_nobody_named_is_told_once_it_was_accepted(paid):
    ran = paid("a cat")
    assert ran.err == f"imagen-render: {ran.record['id']}: a paid render at rep\n"
    assert "a paid render" not in paid("a cat", "--id", "k").err
    paid.server.held = True
    left = paid("a cat", "--wait", 0)
    assert f"imagen-render: {left.record['id']}: a paid render at rep" in left.err


@pytest.mark.parametrize("token", [None, "r8_another", TOKEN])
def test_a_render_that_was_refused_is_not_called_a_paid_one(paid, token):
    paid.server.fail("POST", NO_CREDIT)
    ran = paid("a cat", env={"REPLICATE_API_TOKEN": token})
    assert ran.status in (1, 2)
    assert paid.creates == 0
    assert "a paid render" not in ran.err


def test_what_is_paid_and_could_not_be_collected_is_named_with_its_command(paid):
    paid.server.fail("GET /v1/predictions/", None, times=99)
    paid.configure(keys=f"{QUICK}, patience_s: 0.1")
    ran = paid("a cat")
    assert (ran.status, ran.record["error"]["billed"] != "no") == (75, True)
    assert "(hint: run the same command again, or imagen-render --resume)" in ran.err


def test_the_same_command_attaches_to_what_an_earlier_one_left_and_says_so(paid):
    left = pending_one(paid)
    made = paid("a cat")
    assert is_image(made.record)
    assert (made.record["id"], paid.creates) == (left["id"], 1)
    assert f"{left['id']}: taken up where an earlier run left it (--new declines)" in made.err


def test_what_was_handed_out_is_paid_again(paid):
    first = paid("a cat").record
    assert paid("a cat").record["id"] != first["id"]
    pending_one(paid, "a dog")
    paid("a dog")
    paid("a dog")
    assert paid.creates == 4


def test_new_declines_what_an_earlier_run_left(paid):
    left = pending_one(paid)
    made = paid("a cat", "--new").record
    assert is_image(made)
    assert (made["id"] != left["id"], paid.creates) == (True, 2)


def test_what_is_older_than_an_hour_is_not_taken_up(paid):
    left = pending_one(paid)
    paid.age(3601)
    assert paid("a cat").record["id"] != left["id"]
    assert paid.creates == 2


def test_what_is_nearly_an_hour_old_is(paid):
    left = pending_one(paid)
    paid.age(3500)
    assert paid("a cat").record["id"] == left["id"]


def test_another_callers_render_is_not_taken_up(paid):
    left = pending_one(paid, env={"MAI_FROM_ID": "ann"})
    assert left["caller"] == "ann"
    assert paid("a cat", env={"MAI_FROM_ID": "ben"}).record["id"] != left["id"]
    assert paid.creates == 2
    assert paid("a cat", env={"MAI_FROM_ID": "ann"}).record["id"] == left["id"]
    assert paid.creates == 2


def test_a_render_that_somebody_named_is_not_taken_up(paid):
    pending_one(paid, "a cat", "--id", "k")
    assert paid("a cat").record["id"] != "k"
    assert paid.creates == 2


def test_a_request_with_an_id_does_not_take_up_one_without(paid):
    pending_one(paid)
    assert paid("a cat", "--id", "k").record["id"] == "k"
    assert paid.creates == 2


@pytest.mark.parametrize("other", [("a dog",), ("a cat", "--seed", 1), ("a cat", "--steps", 2)])
def test_another_request_is_not_taken_up(paid, other):
    left = pending_one(paid)
    assert paid(*other).record["id"] != left["id"]


def test_again_does_not_take_up_the_very_line_that_it_makes_anew(paid):
    left = pending_one(paid)
    made = paid("--again", stdin=[left]).record
    assert is_image(made)
    assert (made["request"], paid.creates) == (left["id"], 2)


def test_what_nobody_read_is_handed_out_to_the_next_and_paid_once(paid, until):
    read, write = os.pipe()
    paid.server.held = True
    child = paid.tool.start("render", "a cat", "--size=512x512", stdout=write, stdin=-3)
    os.close(write)
    until(lambda: paid.creates)
    os.close(read)  # `| head -0`, once it is submitted
    paid.server.held = False
    assert b"Traceback" not in child.communicate(timeout=20)[1]
    made = paid("a cat")
    assert is_image(made.record)
    assert "taken up" in made.err
    assert paid.creates == 1
    assert len(list(Path(made.record["file"]).parent.glob("*.png"))) == 1


def test_two_equal_lines_in_one_batch_are_two_images(paid):
    ran = paid(stdin=[{"prompt": "a cat", "seed": 7}] * 2)
    assert len({one["file"] for one in ran.records}) == paid.creates == 2


def test_two_equal_lines_take_up_two_that_were_left(paid):
    paid.server.held = True
    lines = [{"prompt": "a cat", "seed": 7}] * 2
    left = paid("--wait", 0, stdin=lines).records
    paid.server.held = False
    made = paid(stdin=[*lines, lines[0]]).records
    assert [one["id"] for one in made[:2]] == [one["id"] for one in left]
    assert paid.creates == 3


def test_a_count_that_was_left_in_the_middle_goes_on(paid, until):
    paid.server.statuses = ["starting"] * 10_000
    child = paid.tool.start(
        "render", "a cat", "--seed=5", "--count=3", "--size=512x512", stdin=subprocess.DEVNULL
    )
    until(lambda: paid.creates)
    child.kill()
    child.communicate()
    paid.server.statuses = []
    ran = paid("a cat", "--seed", 5, "--count", 3)
    assert [one["seed"] for one in ran.records] == [5, 6, 7]
    assert all(is_image(one) for one in ran.records)
    assert paid.creates == 3


def test_a_named_count_pays_for_nothing_twice(paid):
    paid.server.held = True
    first = paid("a cat", "--id", "k", "--seed", 5, "--count", 2, "--wait", 0)
    paid.server.held = False
    ran = paid("a cat", "--id", "k", "--seed", 5, "--count", 3)
    assert [one["id"] for one in ran.records] == ["k-1", "k-2", "k-3"]
    assert [one["id"] for one in first.records] == ["k-1", "k-2"]
    assert (ran.status, paid.creates) == (0, 3)
    again = paid("a cat", "--id", "k", "--seed", 5, "--count", 3)
    assert (again.out, paid.creates) == (ran.out, 3)


# -- at the same time ------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [2, 10])
def test_started_at_once_with_one_id_they_pay_once_and_print_the_same(paid, many):
    paid.server.seconds = 0.2
    ran = paid.together([("a cat", "--id", "k")] * many)
    assert [one.status for one in ran] == [0] * many, ran[0].err
    assert len({one.out for one in ran}) == 1
    assert is_image(ran[0].record)
    assert paid.creates == 1


def test_started_at_once_without_an_id_they_are_as_many_images(paid):
    ran = paid.together([("a cat",)] * 8)
    assert [one.status for one in ran] == [0] * 8
    assert len({one.record["file"] for one in ran}) == paid.creates == 8


def test_one_that_was_left_is_taken_up_by_one_of_many(paid):
    left = pending_one(paid)
    ran = paid.together([("a cat",)] * 5)
    names = [one.record["id"] for one in ran]
    assert (names.count(left["id"]), len(set(names))) == (1, 5)
    assert paid.creates == 5


# -- what is open ----------------------------------------------------------------------------------


def test_resume_with_dry_run_lists_what_is_open_and_does_nothing(paid):
    left = pending_one(paid, "a cat", "--id", "k")
    asked = len(paid.server.requests)
    listed = paid.tool("render", "--resume", "--dry-run")
    assert listed.status == 0
    assert (listed.record["id"], listed.record["state"]) == ("k", "submitted")
    assert listed.record["submit"] == left["pending"]["handle"]
    assert "k: rep, submitted since 20" in listed.err
    assert len(paid.server.requests) == asked


def test_resume_finishes_what_is_open_and_then_there_is_nothing(paid):
    for name in ("k1", "k2"):
        pending_one(paid, "a cat", "--id", name)
    ran = paid.tool("render", "--resume")
    assert (ran.status, [one["id"] for one in ran.records]) == (0, ["k1", "k2"])
    assert all(is_image(one) for one in ran.records)
    assert paid.creates == 2
    assert paid.tool("render", "--resume").out == b""
    assert paid("a cat", "--id", "k1").record == ran.records[0]


def test_resume_leaves_alone_what_a_living_process_holds(paid, until):
    paid.server.held = True
    child = paid.tool.start("render", "a cat", "--id=k", "--size=512x512", stdin=-3)
    until(lambda: paid.creates)
    ran = paid.tool("render", "--resume")
    assert (ran.status, ran.out) == (0, b"")
    paid.server.held = False
    assert is_image(paid.tool.ended(child).record)
    assert paid.creates == 1


def test_resume_looks_for_what_was_intended_and_lost(paid):
    paid.server.fail("POST", None, after=True)
    paid.server.fail("GET /v1/predictions", TROUBLE, times=2)
    assert error(paid("a cat", "--id", "k"))["retry"] == "after"
    ran = paid.tool("render", "--resume")
    assert is_image(ran.record)
    assert paid.creates == 1


def test_one_that_cannot_be_resumed_does_not_stop_the_others(paid):
    pending_one(paid, "a cat", "--id", "k1")
    pending_one(paid, "a cat", "--id", "k2")
    paid.server.predictions.pop(0)
    ran = paid.tool("render", "--resume")
    assert [is_image(one) for one in ran.records] == [False, True]
    assert ran.records[0]["error"]["retry"] == "reconcile"
    assert paid.server.asks("POST") == 2


def test_resume_takes_no_prompt(paid):
    ran = paid.tool("render", "--resume", "a cat")
    assert (ran.status, ran.out, paid.creates) == (2, b"", 0)


@pytest.mark.parametrize("also", ["--output=x.png", "--output=-", "--no-ledger"])
def test_resume_puts_no_two_images_into_one_file_and_needs_its_ledger(paid, also):
    left = [pending_one(paid, prompt) for prompt in ("a cat", "a dog")]
    ran = paid.tool("render", "--resume", "--force", also)
    assert (ran.status, ran.out) == (2, b"")
    assert "--resume" in ran.err
    made = paid.tool("render", "--resume").records
    assert len({one["file"] for one in made if is_image(one)}) == len(left)


# -- without a ledger, and with one that cannot be used --------------------------------------------


def test_no_ledger_goes_on_without_one(paid):
    assert is_image(paid.tool("render", "a cat", *SMALL, "--backend=mock", "--no-ledger").record)
    assert is_image(paid("a cat", "--no-ledger").record)
    assert paid.creates == 1
    assert not paid.ledger.exists()


def test_no_ledger_is_refused_where_a_budget_is_kept_but_not_for_what_is_free(paid):
    paid.configure("budget: {per_day: 1}")
    refused = paid("a cat", "--no-ledger")
    assert (refused.status, paid.server.requests) == (2, [])
    assert "--no-ledger" in error(refused)["hint"]
    assert is_image(paid.tool("render", "a cat", *SMALL, "--backend=mock", "--no-ledger").record)


def test_a_found_lost_create_needs_no_ledger(paid):
    paid.server.fail("POST", None, after=True)
    assert is_image(paid("a cat", "--no-ledger").record)
    assert paid.creates == 1


def corrupt(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma user_version = 99")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def strangers(path: Path, version: int = 0) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("create table bookmarks (url text)")
        db.execute(f"pragma user_version = {version}")


def strangers_versioned(path: Path) -> None:
    strangers(path, 1)


def strangers_of_our_version(path: Path) -> None:
    strangers(path, 2)


@pytest.mark.parametrize(
    "spoil", [corrupt, cut, newer, strangers, strangers_versioned, strangers_of_our_version]
)
def test_a_ledger_that_is_none_is_told_before_anything_is_paid_and_left_alone(paid, spoil):
    paid("a cat", "--id", "k", "--backend", "mock")
    spoil(paid.ledger)
    before = paid.ledger.read_bytes()
    ran = paid("a dog")
    assert ran.status == 2, ran.err
    assert "Traceback" not in ran.err
    assert str(paid.ledger) in ran.err
    assert "$IMAGEN_LEDGER" in ran.err
    assert paid.server.requests == []
    assert paid.ledger.read_bytes() == before


@pytest.mark.parametrize("place", ["/dev/null", "/dev/full", "a folder"])
def test_a_place_that_can_hold_no_ledger_is_told_before_anything_is_paid(paid, place):
    if place == "a folder":
        place = str(paid.tool.folder)
    ran = paid("a cat", env={"IMAGEN_LEDGER": place})
    status = 75 if place == "/dev/full" and os.geteuid() == 0 else 2  # others make no lock there
    assert (ran.status, paid.server.requests) == (status, []), ran.err
    assert "$IMAGEN_LEDGER" in ran.err


@pytest.fixture
def powerless(needs) -> list[str]:
    """What takes root's power over file permissions away; nothing for other people."""
    if os.geteuid() != 0:
        return []
    return [needs("setpriv", "util-linux"), "--inh-caps=-all", "--bounding-set=-all", "--"]


@pytest.mark.parametrize("what", ["the file", "the folder", "the locks"])
def test_a_read_only_ledger_is_told_before_anything_is_paid(paid, powerless, what):
    paid("a cat", "--id", "k", "--backend", "mock")
    path = {"the file": paid.ledger, "the folder": paid.state, "the locks": paid.state / "locks"}
    mode = stat.S_IMODE(path[what].stat().st_mode)
    path[what].chmod(mode & 0o555)
    try:
        argv = paid.tool.argv("render", "a dog", "--size=512x512")
        ran = paid.tool("render", argv=[*powerless, *argv])
    finally:
        path[what].chmod(mode)
    assert (ran.status, paid.server.requests) == (2, []), ran.err
    assert str(paid.ledger) in ran.err
    assert "$IMAGEN_LEDGER" in ran.err


IMPATIENT = """
import imagen.ledger.database as database
database.BUSY_S = 0.2
from imagen.commands.render import main
main()
"""


def test_a_ledger_that_another_process_holds_for_too_long_is_a_temporary_error(paid):
    paid("a cat", "--id", "k", "--backend", "mock")
    with closing(sqlite3.connect(paid.ledger, isolation_level=None)) as db:
        db.execute("begin immediate")
        argv = [sys.executable, "-c", IMPATIENT, "a dog", "--id=d", "--size=512x512"]
        busy = paid.tool("render", argv=argv)
    assert (busy.status, error(busy)["code"]) == (75, "ledger_busy")
    assert (error(busy)["billed"], error(busy)["retry"]) == ("no", "safe")
    assert "attempts" not in busy.record, "it was not sent, so there is nothing to look for"
    assert paid.server.requests == []
    made = paid(stdin=[busy.record]).record
    assert is_image(made)
    assert (made["attempts"], paid.server.asks("GET /v1/predictions?")) == (1, 0)


class HeldLedger:
    """A ledger that another process holds from the moment at which a create is accepted."""

    def __init__(self, paid: Paid) -> None:
        self.db = sqlite3.connect(paid.ledger, isolation_level=None, check_same_thread=False)
        self._create = paid.server._create
        paid.server._create = self._accept  # type: ignore[method-assign]

    def _accept(self, *args: Any) -> Any:
        self.db.execute("begin immediate")
        return self._create(*args)

    def release(self) -> None:
        self.db.rollback()
        self.db.close()


@pytest.fixture
def held_ledger(paid) -> HeldLedger:
    paid("a cat", "--id", "first", "--backend", "mock")
    paid.server.held = True
    return HeldLedger(paid)


def start_impatient(paid: Paid, *args: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", IMPATIENT, *args, "--size=512x512"]
    return paid.tool.start("render", argv=argv, stdin=subprocess.DEVNULL)


def handles(paid: Paid) -> list[tuple[Any, ...]]:
    return paid.sql("select state, handle from renders join submits using (render_id)")[1:]


def test_a_handle_that_could_not_be_written_is_written_with_the_result(paid, held_ledger, until):
    child = start_impatient(paid, "a dog", "--id=d")
    until(lambda: paid.server.asks("GET /v1/predictions/"), 30)
    held_ledger.release()
    paid.server.held = False
    ran = paid.tool.ended(child)
    assert "another process holds the ledger" in ran.err
    assert handles(paid) == [("done", ran.record["submit"])]
    Path(ran.record["file"]).unlink()
    paid.server.lag_s, paid.server.predictions[0]["_listed"] = 1e6, 1e12  # no list shows it
    again = paid("a dog", "--id", "d")
    assert is_image(again.record)
    assert paid.creates == 1


def test_a_handle_that_could_not_be_written_is_written_with_the_failure(paid, held_ledger, until):
    child = start_impatient(paid, "a dog", "--id=d")
    until(lambda: paid.server.asks("GET /v1/predictions/"), 30)
    paid.server.predictions[0]["_canceled"] = paid.server.now()
    held_ledger.release()
    ran = paid.tool.ended(child)
    assert error(ran)["code"] == "prediction_canceled"
    assert handles(paid) == [("failed", paid.server.predictions[0]["id"])]


def test_a_handle_that_could_not_be_written_is_written_when_the_wait_is_over(
    paid, held_ledger, until
):
    child = start_impatient(paid, "a dog", "--id=d", "--wait=4")
    until(lambda: paid.server.asks("GET /v1/predictions/"), 30)
    held_ledger.release()
    ran = paid.tool.ended(child)
    assert (ran.status, "pending" in ran.record) == (75, True)
    assert handles(paid) == [("open", ran.record["pending"]["handle"])]


def test_what_is_done_without_a_handle_is_collected_by_that_of_its_record(paid):
    """An earlier release could leave it so."""
    first = paid("a cat", "--id", "k").record
    paid.sql("update submits set handle = null")
    Path(first["file"]).unlink()
    paid.server.predictions[0]["_listed"] = 1e12
    again = paid("a cat", "--id", "k")
    assert is_image(again.record)
    assert (paid.creates, again.record["submit"]) == (1, first["submit"])
    assert paid.sql("select handle from submits") == [(first["submit"],)]


def test_what_was_paid_and_is_nowhere_any_more_is_never_paid_again_by_the_same_line(paid):
    first = paid("a cat", "--id", "k").record
    paid.sql("update submits set handle = null")
    paid.sql("update renders set records = json_remove(records, '$[0].submit')")
    Path(first["file"]).unlink()
    Path(first["sidecar"]).unlink()
    paid.server.predictions[0]["_listed"] = 1e12
    paid.age(1000)
    gone = paid("a cat", "--id", "k")
    assert (gone.status, error(gone)["code"], error(gone)["billed"]) == (1, "paid_file_gone", "yes")
    assert (paid.creates, paid.server.asks("POST")) == (1, 1)


# -- a full disk -----------------------------------------------------------------------------------

# Runs render in a tmpfs of its own that is filled at the start, or before the named method of the
# journal; then, when there is room again, once more.
FULL = """
import os, subprocess, sys
from pathlib import Path
when, *args = sys.argv[1:]

def fill():
    with open("disk/filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(1024))
        except OSError:
            pass

if os.fork() == 0:
    if when == "start":
        fill()
    else:
        from imagen.ledger.journal import Journal
        method = getattr(Journal, when)
        def full(*args, **more):
            fill()
            return method(*args, **more)
        setattr(Journal, when, full)
    sys.argv[1:] = args
    from imagen.commands.render import main
    main()
_, status = os.wait()
Path("first").write_text(str(os.waitstatus_to_exitcode(status)))
os.unlink("disk/filler")
sys.stdout.flush()
sys.argv[1:] = args
from imagen.commands.render import main
main()
"""


def on_a_full_disk(paid: Paid, needs: Any, when: str, *places: str) -> tuple[int, Any]:
    """Give the status of the render on the full disk, and both's output."""
    (paid.tool.folder / "disk").mkdir()
    script = 'mount -t tmpfs -o size=400k tmpfs disk || exit 99; exec "$@"'
    unshare = [needs("unshare", "util-linux"), "--mount", "--map-root-user"]
    run = [sys.executable, "-c", FULL, when, "a cat", "--id=k", "--size=512x512", *places]
    env = {"IMAGEN_LEDGER": "disk/ledger.sqlite3"} if "--out-dir=disk" not in places else {}
    ran = paid.tool("render", argv=[*unshare, "sh", "-c", script, "sh", *run], env=env)
    if ran.status == 99 or "unshare" in ran.err:
        pytest.skip(f"no mounts of our own here: {ran.err.strip()}")
    return int((paid.tool.folder / "first").read_text()), ran


def test_a_full_disk_before_the_intent_costs_nothing(paid, needs):
    """There may be room later: a queued job is tried again, and not given up."""
    first, ran = on_a_full_disk(paid, needs, "intend")
    assert first == 75
    assert "disk is full (hint: free some space, then run it again" in ran.err
    failed, made = ran.records
    assert (failed["error"]["code"], failed["error"]["retry"]) == ("ledger", "safe")
    assert failed["error"]["billed"] == "no"
    assert is_image(made)
    assert paid.creates == 1


def test_a_disk_that_is_full_from_the_start_costs_nothing(paid, needs):
    first, ran = on_a_full_disk(paid, needs, "start")
    assert first == 75
    assert "$IMAGEN_LEDGER" in ran.err
    assert [is_image(one) for one in ran.records] == [True]
    assert paid.creates == 1


@pytest.mark.parametrize("when", ["submitted", "done", "delivered"])
def test_a_ledger_that_fills_up_after_the_create_costs_nothing_twice(paid, needs, when):
    first, ran = on_a_full_disk(paid, needs, when)
    assert "Traceback" not in ran.err
    assert (first, ran.status) == (0, 0), ran.err
    one, again = ran.records
    assert is_image(again)
    assert (one["file"], one["submit"]) == (again["file"], again["submit"])
    assert paid.creates == 1


def test_a_ledger_that_is_spoiled_after_the_create_keeps_no_image_back(paid, until):
    paid.server.held = True
    child = paid.tool.start("render", "a cat", "--size=512x512")
    until(lambda: paid.server.asks("GET /v1/predictions/"))
    for file in paid.state.glob("ledger.sqlite3*"):
        with file.open("r+b") as spoiled:
            spoiled.write(b"x" * file.stat().st_size)
    paid.server.held = False
    ran = paid.tool.ended(child)
    assert is_image(ran.record)
    assert (ran.status, paid.creates) == (0, 1)
    assert "goes out all the same" in ran.err


def test_no_room_for_the_image_loses_nothing_that_was_paid(paid, needs):
    first, ran = on_a_full_disk(paid, needs, "submitted", "--out-dir=disk")
    failed, made = ran.records
    assert (first, failed["error"]["code"], failed["error"]["billed"]) == (75, "file", "yes")
    assert "error" not in made
    assert made["file"].endswith(".png")
    assert (ran.status, paid.creates) == (0, 1)


# -- pending lines of elsewhere --------------------------------------------------------------------


def test_a_pending_line_of_another_ledger_is_taken_into_ours(paid):
    left = pending_one(paid, "a cat", "--id", "k", env={"IMAGEN_LEDGER": "other.sqlite3"})
    made = paid(stdin=[left]).record
    assert is_image(made)
    assert (made["render_id"], paid.creates) == (left["render_id"], 1)
    again = paid(stdin=[left]).record
    assert (again, paid.creates) == (made, 1)
    assert paid.sql("select state, handle from renders join submits using (render_id)") == [
        ("done", left["pending"]["handle"])
    ]


def test_a_pending_line_with_the_handle_of_another_id_does_not_get_its_image(paid):
    mine = pending_one(paid, "a cat", "--id", "mine")
    stolen = without(mine, "render_id") | {"id": "theirs"}
    refused = paid(stdin=[stolen])
    assert (refused.status, error(refused)["code"]) == (1, "handle_taken")
    assert error(refused)["billed"] == "no"
    made = paid("a cat", "--id", "mine").record
    assert is_image(made)
    assert paid.creates == 1


def test_pending_lines_of_one_handle_at_once_have_one_owner_and_the_others_are_told(paid):
    left = pending_one(paid, "a cat", "--id", "k", env={"IMAGEN_LEDGER": "other.sqlite3"})
    lines = [without(left, "render_id") | {"id": f"k{n}"} for n in range(8)]
    argv = paid.tool.argv("render")
    started = [paid.tool.start("render", argv=argv) for _ in lines]
    for child, line in zip(started, lines, strict=True):
        child.stdin.write(json.dumps(line).encode() + b"\n")
        child.stdin.flush()
    ran = [paid.tool.ended(child) for child in started]
    codes = [one.record.get("error", {}).get("code") for one in ran]
    assert sorted(codes, key=str) == [None, *["handle_taken"] * 7]
    assert paid.creates == 1


def test_whatever_is_changed_in_a_pending_line_it_never_pays(paid):
    paid("a cat", "--id", "done")
    left = pending_one(paid, "a dog", "--id", "left")
    paid.server.ending = "failed"
    paid("a cow", "--id", "failed")
    paid.server.ending = "succeeded"
    known = {row[1]: row[0] for row in paid.sql("select render_id, id from renders")}
    handle = left["pending"]["handle"]
    changes = [
        {"id": "new", "render_id": "no uuid"},
        {"id": "new", "render_id": known["done"]},
        {"render_id": known["failed"]},
        {"id": "done"},
        {"id": "failed"},
        {"id": "n0"},
        {"id": "n5", "attempts": 10**9},
        {"id": "n6", "seed": 1, "pending": {**left["pending"], "since": "x"}},
        *(
            {"id": f"h{n}", "pending": {**left["pending"], "handle": name}}
            for n, name in enumerate(["z" * 26, "../" + handle, handle + "\n", ""])
        ),
    ]
    changed = [{**without(left, "render_id"), **change} for change in changes]
    creates = paid.creates
    ran = paid(stdin=changed)
    assert "Traceback" not in ran.err
    assert len(ran.records) == len(changed)
    codes = [one.get("error", {}).get("code") for one in ran.records]
    assert "internal" not in codes, ran.err
    dogs = [one for one in ran.records if one.get("submit") == handle and "error" not in one]
    assert [one["id"] for one in dogs] == [], "nobody else gets what another id paid for"
    assert paid.server.asks("POST") == paid.creates == creates
    assert is_image(paid("a dog", "--id", "left").record)
    assert paid.creates == creates


def test_a_pending_line_whose_prediction_nobody_knows_is_not_rendered_anew(paid):
    left = pending_one(paid, "a cat", "--id", "k", env={"IMAGEN_LEDGER": "other.sqlite3"})
    paid.server.predictions.clear()
    lost = paid(stdin=[left])
    assert (lost.status, error(lost)["retry"], error(lost)["billed"]) == (1, "reconcile", "unknown")
    assert paid.server.asks("POST") == 1


# -- lines of what another ledger sent -------------------------------------------------------------


def lost_elsewhere(paid: Paid, accepted: bool) -> dict[str, Any]:
    """Give the failed line of a create whose answer another ledger lost."""
    paid.server.fail("POST", None, after=accepted)
    paid.server.fail("GET /v1/predictions", TROUBLE, times=2)
    lost = paid("a cat", "--id=k", env={"IMAGEN_LEDGER": "other.sqlite3"})
    assert error(lost)["retry"] == "after"
    return lost.record


def test_a_lost_create_of_another_ledger_is_journaled_where_it_is_found(paid):
    paid.server.held = True
    line = lost_elsewhere(paid, accepted=True)
    left = paid("--wait=0", stdin=[line])
    assert (left.status, left.record["pending"]["since"]) == (75, line["started_at"])
    assert paid.sql(
        "select state, handle is null, estimate_usd from renders join submits using (render_id)"
    ) == [("open", 0, PRICE)]
    paid.server.held = False
    made = paid(stdin=[line])
    assert is_image(made.record)
    assert paid(stdin=[line]).out == made.out, "it is done, so the same record is handed out"
    assert paid.creates == 1


def test_a_lost_create_without_a_ledger_is_found_by_its_record(paid):
    paid.server.fail("POST", None, after=True)
    paid.server.fail("GET /v1/predictions", TROUBLE, times=2)
    lost = paid("a cat", "--no-ledger")
    assert error(lost)["retry"] == "after"
    assert is_image(paid("--no-ledger", stdin=[lost.record]).record)
    assert paid.creates == 1


def test_a_create_of_another_ledger_that_never_arrived_is_sent_once_its_limits_are_over(paid):
    paid.configure(keys=f"{QUICK}, read_s: 6, connect_s: 2")
    line = lost_elsewhere(paid, accepted=False)
    doubt = paid(stdin=[line])
    assert (doubt.status, error(doubt)["retry"], paid.creates) == (75, "after", 0)
    time.sleep(error(doubt)["retry_after_s"] + 0.1)
    assert is_image(paid(stdin=[line]).record)
    assert paid.creates == 1


def test_a_job_that_another_worker_sent_is_pending_where_it_is_found(paid):
    name = "0b3c1d5e-0000-4000-8000-0123456789ab"
    job = {"id": name, "attempt": 1, "intended_at": datetime.now(UTC).isoformat()}
    paid.server.held = True
    other = {"IMAGEN_LEDGER": "other.sqlite3"}
    paid("a cat", "--id", name, "--seed", 7, "--wait", 0, env=other)
    line = {"prompt": "a cat", "id": name, "seed": 7, "job": job}
    left = paid("--wait=0", stdin=[line])
    assert (left.status, "pending" in left.record) == (75, True)
    paid.server.held = False
    assert is_image(paid(stdin=[line]).record)
    assert (paid.creates, paid.sql("select state from renders")) == (1, [("done",)])


# -- ComfyUI and the mock are journaled too --------------------------------------------------------


@pytest.fixture
def comfy(tool, configure):
    with ComfyUI() as server:
        fast = "poll_min_s: 0.001, poll_max_s: 0.02, retry_s: 0.01"
        configure(f"backends: {{comfy: {{type: comfyui, url: '{server.url}', {fast}}}}}\n")
        yield server


def test_comfyui_is_asked_once_for_one_id_by_ten_at_once(tool, comfy):
    args = ("a cat", *SMALL, "--id=k", "--backend=comfy")
    started = [tool.start("render", *args, stdin=subprocess.DEVNULL) for _ in range(10)]
    ran = [tool.ended(child) for child in started]
    assert [one.status for one in ran] == [0] * 10, [one.err for one in ran]
    assert len({one.out for one in ran}) == len(comfy.submits) == 1


def test_a_free_file_that_is_gone_is_made_again(tool, comfy):
    args = ("a cat", *SMALL, "--id=k", "--backend=comfy")
    first = tool("render", *args).record
    Path(first["file"]).unlink()
    again = tool("render", *args)
    assert (again.status, again.record["sha256"]) == (0, first["sha256"])
    assert is_image(again.record)


def test_a_mock_render_is_in_the_journal_from_intent_to_delivery(tool):
    made = tool("render", "a cat", *SMALL, "--id=k").record
    with closing(sqlite3.connect(tool.folder / "state/imagen/ledger.sqlite3")) as db:
        (row,) = db.execute(
            "select id, state, delivered, handle, billed, cost_usd from renders join submits"
            " using (render_id)"
        ).fetchall()
    assert row == ("k", "done", 1, made["submit"], "no", 0)


# -- seeds, secrets, modes -------------------------------------------------------------------------


def test_a_seed_of_64_bits_goes_through_the_ledger_as_it_is(paid):
    seed = 2**64 - 1
    left = pending_one(paid, "a cat", "--seed", seed, "--id", "k")
    made = paid("a cat", "--seed", seed, "--id", "k").record
    again = paid("a cat", "--seed", seed, "--id", "k").record
    assert left["seed"] == made["seed"] == again["seed"] == seed
    assert paid.server.predictions[0]["input"]["seed"] == seed
    near = paid("a cat", "--seed", seed - 1, "--id", "k")
    assert error(near)["code"] == "id_taken"
    assert paid.creates == 1


def test_the_token_stands_nowhere(paid):
    said = [paid("a cat", "--verbose"), paid("a dog", "--wait", 0, "--verbose")]
    paid.server.fail("POST", NO_CREDIT)
    said.append(paid("a cow", "--verbose"))
    paid.server.fail("POST", None)
    said.append(paid("a sow", "--verbose"))
    for ran in said:
        assert TOKEN not in ran.err
        assert TOKEN.encode() not in ran.out
    files = [path for path in paid.tool.folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".json" for path in files)
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_a_token_in_the_words_of_a_failed_prediction_is_hidden(paid):
    paid.server.ending, paid.server.error = "failed", f"no access with {TOKEN}"
    ran = paid("a cat", "--id", "k")
    assert error(ran)["message"].endswith("no access with ***")
    assert TOKEN not in ran.err + str(paid.sql("select error from renders"))


def test_the_ledger_and_its_companions_are_for_their_owner_alone(paid, until):
    paid.server.held = True
    child = paid.tool.start(
        "render", "a cat", "--size=512x512", stdin=subprocess.DEVNULL, umask=0o000
    )
    until(lambda: paid.creates)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paid.state.glob("ledger*")}
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=10)
    names = {"ledger.sqlite3", "ledger.sqlite3-wal", "ledger.sqlite3-shm"}
    assert found == dict.fromkeys(names, 0o600)
    assert stat.S_IMODE(paid.state.stat().st_mode) == 0o700


def test_what_it_cost_stands_in_the_record_and_in_the_journal(paid):
    made = paid("a cat", "--option", "num_outputs=2").records
    assert [one["cost_usd"] for one in made] == [2 * PRICE, 0]
    (row,) = paid.sql("select billed, estimate_usd, cost_usd from submits")
    assert row == ("yes", 2 * PRICE, 2 * PRICE)


def test_a_change_of_the_default_backend_does_not_make_another_request_of_it(tool, configure):
    configure("backends: {one: {type: mock}, other: {type: mock}}\ndefault_backend: one\n")
    first = tool("render", "a cat", "--id", "k", "--size", "64x64").record
    configure("backends: {one: {type: mock}, other: {type: mock}}\ndefault_backend: other\n")
    again = tool("render", "a cat", "--id", "k", "--size", "64x64")
    assert (again.status, again.record) == (0, first)
    asked = tool("render", "a cat", "--id", "k", "--size", "64x64", "--backend", "other")
    assert (asked.status, asked.record["error"]["code"]) == (2, "id_taken")
