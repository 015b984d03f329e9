"""When a look that finds nothing is proof: attempts, takeovers, lines, old entries."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from imagen import clock
from imagen.clock import Instant
from imagen.ledger.journal import Attempt, Entry
from imagen.render import settling
from imagen.render.settling import Sending


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def entry(**more: Any) -> Entry:
    names = ("attempt_at", "attempt_boot", "attempt_clock", "attempt_limit_s", "server_date")
    values = {**dict.fromkeys(Entry.__slots__), **dict.fromkeys(names), **more}
    return Entry(**{"state": "open", "number": 1, "intended_at": time.time(), **values})


def attempt(age_s: float, limit_s: float = 65, server_date: float | None = None) -> Attempt:
    return Attempt(clock.before(age_s), limit_s, server_date)


def wait_s(sending: Sending) -> Any:
    return pytest.approx(sending.wait_s(5), abs=0.5)


def test_an_attempt_of_a_process_that_died_settles_once_its_limits_and_the_lists_lag_are_over():
    assert wait_s(settling.of_attempt(attempt(10))) == 60
    assert wait_s(settling.of_attempt(attempt(69))) == 1
    assert settling.of_attempt(attempt(71)).wait_s(5) == 0


def test_an_attempt_that_ended_in_this_process_settles_by_the_lists_lag():
    ended = settling.of_attempt(attempt(30))._replace(ended=time.monotonic() - 2)
    assert wait_s(ended) == 3


def test_after_a_reboot_the_uptime_counts_and_the_servers_own_time_bounds_the_list():
    there = Attempt(Instant(time.time() - 600, "another boot", 1e6), 65, 1000.0)
    sending = settling.of_attempt(there)
    assert sending.wait_s(5) == max(70 - clock.boottime(), 0)
    lost = sending.lost(bool)
    assert (lost.age_s, lost.server_date) == (None, 1000.0)


def test_the_age_is_exact_within_a_boot_and_unknown_when_the_wall_clock_was_set():
    assert settling.of_attempt(attempt(20)).lost(bool).age_s == pytest.approx(20, abs=1)
    began = clock.before(20)
    set_back = Attempt(began._replace(wall=began.wall + 3600), 65, None)
    assert settling.of_attempt(set_back).lost(bool).age_s is None
    assert wait_s(settling.of_attempt(set_back)) == 50


def test_what_an_older_release_journaled_may_have_been_sent_until_now_and_settles_from_now_on():
    old = entry(intended_at=time.time() - 3000)
    sending = settling.of_entry(old, 65)
    assert wait_s(sending) == 70
    assert sending.lost(bool).age_s is None
    kept = sending.as_attempt()
    columns = dict(zip(("attempt_at", "attempt_boot", "attempt_clock"), kept.began, strict=True))
    later = entry(intended_at=old.intended_at, attempt_limit_s=kept.limit_s, **columns)
    again = settling.of_entry(later, 65)
    assert again.started_at == old.intended_at
    assert wait_s(again) == 70
    assert again.lost(bool).age_s is None, "when it was sent is known by the wall clock only"


def test_a_job_that_was_taken_over_settles_after_whoever_had_it_lost_it():
    now = time.time()
    job = {"id": "k", "intended_at": iso(now - 300), "released_at": iso(now - 10)}
    sending = settling.of_line({"job": job}, 65)
    assert wait_s(sending) == 60
    assert sending.lost(bool).age_s == pytest.approx(300, abs=1)
    answered = settling.of_line({"job": {**job, "released_at": None}}, 65)
    assert answered.wait_s(5) == 0, "nothing is on its way any more"


def test_a_failed_line_of_another_ledger_settles_after_the_submit_that_it_names():
    sending = settling.of_line({"started_at": iso(time.time() - 30)}, 65)
    assert wait_s(sending) == 40
    assert sending.lost(bool).age_s is None
    for odd in ({}, {"started_at": "soon"}, {"started_at": 5}, {"job": "x"}):
        assert wait_s(settling.of_line(odd, 65)) == 70


@pytest.mark.parametrize("job", [None, "x", {}, {"intended_at": None}, {"intended_at": "soon"}])
def test_a_line_that_nobody_has_sent_is_not_taken_over(job):
    assert not settling.is_taken_over({"job": job})
    assert settling.is_taken_over({"job": {"intended_at": iso(0)}})
