"""Ages that hold whatever the wall clock does: within one boot, across boots, without a boot id."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from imagen import clock
from imagen.clock import Instant

seconds = st.floats(0, 1e7)


def test_now_names_this_boot_and_both_clocks():
    instant = clock.now()
    assert abs(instant.wall - time.time()) < 5
    assert abs(instant.uptime - clock.boottime()) < 5
    assert instant.boot == clock.boot_id()


@given(seconds, seconds)
def test_within_a_boot_the_age_is_exact(start, passed):
    then, at = Instant(1e9, "a", start), Instant(1e9 + passed, "a", start + passed)
    assert abs((clock.age(then, at) or 0) - passed) < 1e-3
    assert abs(clock.least_age(then, at) - passed) < 1e-3


@given(seconds, seconds, st.floats(61, 1e8), st.sampled_from([1, -1]))
def test_a_wall_clock_that_was_set_leaves_only_what_passed_at_the_least(start, passed, jump, sign):
    then, at = Instant(1e9, "a", start), Instant(1e9 + passed + sign * jump, "a", start + passed)
    assert clock.age(then, at) is None
    assert abs(clock.least_age(then, at) - passed) < 1e-3


@given(seconds, seconds, st.floats(-1e8, 1e8))
def test_after_a_reboot_it_is_at_least_as_old_as_the_boot(start, uptime, wall):
    then, at = Instant(1e9, "a", start), Instant(1e9 + wall, "b", uptime)
    assert clock.age(then, at) is None
    assert clock.least_age(then, at) == uptime


@given(seconds, seconds, st.booleans())
def test_without_a_boot_id_nothing_is_taken_for_older_than_it_can_be(start, uptime, rebooted):
    then, at = Instant(1e9, None, start), Instant(1e9, None, uptime)
    assert clock.age(then, at) is None
    least = clock.least_age(then, at)
    truth = uptime if rebooted else uptime - start  # of a reboot at least the uptime has passed
    if truth >= 0:
        assert 0 <= least <= truth + 1e-9 or rebooted
        assert least <= uptime


def test_a_moment_in_the_future_is_this_moment():
    assert clock.before(-5).uptime <= clock.boottime()
    assert clock.least_age(clock.before(5), clock.now()) >= 5
