"""Whether one more submit may be paid: a table of cases, and what holds for all."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.ledger.spending import Reservation, Spent
from imagen.render.budget import CAPS, Caps, OverBudget, Unpriced, judge

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
HALF_A_DAY = 12 * 3600


def spent(day: float = 0, month: float = 0, caller: float = 0, now: datetime = NOON) -> Spent:
    return Spent(day, month, caller, now.timestamp())


def refusal(caps: Caps, estimate: float | None, gone: Spent) -> OverBudget:
    with pytest.raises(OverBudget) as caught:
        judge(caps, estimate, "flux", gone)
    assert (caught.value.exit_status, caught.value.code) == (2, "over_budget")
    assert caught.value.billed == "no"
    return caught.value


# -- what may be paid ------------------------------------------------------------------------------


def test_without_a_cap_everything_may_be_paid_also_what_nobody_knows_the_price_of():
    judge(Caps(), 1e9, "flux", spent(1e9, 1e9, 1e9))
    judge(Caps(), None, "flux", spent())


@pytest.mark.parametrize("name", CAPS)
def test_with_any_cap_an_unknown_price_is_refused(name):
    with pytest.raises(Unpriced, match="flux") as caught:
        judge(Caps(**{name: 1e9}), None, "flux", spent())
    assert (caught.value.exit_status, caught.value.code) == (2, "unpriced")
    assert caught.value.retry == "never"
    assert "prices" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("caps", "gone"),
    [
        (Caps(per_render=0.1), spent(9, 9, 9)),
        (Caps(per_day=1), spent(day=0.9, month=9, caller=9)),
        (Caps(per_month=1), spent(day=9, month=0.9, caller=9)),
        (Caps(per_caller=1), spent(day=9, month=9, caller=0.9)),
    ],
)
def test_a_cap_may_be_reached_exactly_and_counts_nothing_else(caps, gone):
    judge(caps, 0.1, "flux", gone)
    assert refusal(caps, 0.101, gone)


def test_the_noise_of_binary_fractions_is_no_cent():
    assert 0.1 + 0.2 > 0.3
    judge(Caps(per_day=0.3), 0.2, "flux", spent(day=0.1))
    judge(Caps(per_day=0.003 * 1000), 0.003, "flux", spent(day=sum([0.003] * 999)))


def test_a_cap_of_nothing_lets_nothing_be_paid():
    assert refusal(Caps(per_day=0), 0.003, spent()).retry == "never"


@pytest.mark.parametrize("name", CAPS)
def test_what_costs_nothing_is_never_over_a_cap(name):
    judge(Caps(**{name: 0}), 0, "flux", spent(9, 9, 9))


# -- when it may be tried again --------------------------------------------------------------------


def test_more_than_one_render_may_cost_is_never_allowed():
    fault = refusal(Caps(per_render=0.1), 0.2, spent())
    assert (fault.retry, fault.retry_after_s) == ("never", None)


@pytest.mark.parametrize("name", ["per_day", "per_month", "per_caller"])
def test_more_than_the_whole_cap_is_never_allowed(name):
    fault = refusal(Caps(**{name: 0.1}), 0.2, spent())
    assert (fault.retry, fault.retry_after_s) == ("never", None)


@pytest.mark.parametrize(
    ("now", "day_s", "month_s"),
    [
        ("2026-11-23T12:00:00", HALF_A_DAY, 7 * 86400 + HALF_A_DAY),
        ("2026-11-23T00:00:00", 86400, 8 * 86400),
        ("2026-11-23T23:59:59.5", 1, 7 * 86400 + 1),
        ("2026-11-30T12:00:00", HALF_A_DAY, HALF_A_DAY),
        ("2026-12-31T23:00:00", 3600, 3600),
        ("2026-12-01T00:00:00", 86400, 31 * 86400),
        ("2026-01-31T12:00:00", HALF_A_DAY, HALF_A_DAY),
        ("2027-02-28T12:00:00", HALF_A_DAY, HALF_A_DAY),
        ("2028-02-28T12:00:00", HALF_A_DAY, 86400 + HALF_A_DAY),
        ("2028-02-29T12:00:00", HALF_A_DAY, HALF_A_DAY),
        ("2028-02-01T00:00:00", 86400, 29 * 86400),
        ("2100-02-28T12:00:00", HALF_A_DAY, HALF_A_DAY),
    ],
)
def test_the_wait_is_until_the_reset_at_midnight_utc(now, day_s, month_s):
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    full = spent(1, 1, 1, moment)
    for caps, seconds in (
        (Caps(per_day=1), day_s),
        (Caps(per_caller=1), day_s),
        (Caps(per_month=1), month_s),
    ):
        fault = refusal(caps, 0.5, full)
        assert (fault.retry, fault.retry_after_s) == ("after", seconds)


def test_of_several_caps_the_wait_is_until_the_last_one_lets_it_through():
    full = spent(1, 1, 1)
    fault = refusal(Caps(per_day=1, per_month=1, per_caller=1), 0.5, full)
    assert fault.retry_after_s == 7 * 86400 + HALF_A_DAY
    fault = refusal(Caps(per_day=1, per_month=0.2, per_caller=1), 0.5, full)
    assert (fault.retry, fault.retry_after_s) == ("never", None)


def test_it_says_what_is_spent_what_the_cap_is_and_what_was_asked():
    text = refusal(Caps(per_day=10), 0.003, spent(day=9.999)).message
    assert "the day" in text
    for amount in ("$9.999", "$10.00", "$0.003"):
        assert amount in text
    text = refusal(Caps(per_render=0.1), 0.25, spent()).message
    assert "$0.25" in text
    assert "$0.10" in text


def test_an_amount_below_a_hundredth_of_a_cent_is_not_said_to_be_nothing():
    text = refusal(Caps(per_render=0.000001), 0.000042, spent()).message
    assert "$0.000042" in text
    assert "$0.000001" in text
    assert "$0.00 " not in text + " "


# -- what a person reads ---------------------------------------------------------------------------

MINE = "/etc/imagen.yaml"


def reservation(name: str, ago_h: float = 0, usd: float = 0.003) -> Reservation:
    return Reservation(name, f"render of {name}", "rep", "me", NOON.timestamp() - ago_h * 3600, usd)


def full(*reserved: Reservation, now: datetime = NOON) -> Spent:
    return Spent(1, 1, 1, now.timestamp(), reserved, reserved)


@pytest.mark.parametrize(
    ("key", "now", "opens"),
    [
        ("per_day", NOON, "it opens again at 00:00 UTC, in 12 h"),
        ("per_caller", NOON.replace(minute=23, second=30), "at 00:00 UTC, in 11 h 37 min"),
        ("per_day", NOON.replace(hour=23, minute=59, second=59), "at 00:00 UTC, in 1 min"),
        ("per_month", NOON, "it opens again on 2026-12-01 at 00:00 UTC, in 7 d 12 h"),
    ],
)
def test_it_says_when_it_opens_again_and_which_key_to_raise_in_which_file(key, now, opens):
    fault = refusal(Caps(**{key: 1}, file=MINE), 0.5, full(now=now))
    assert fault.message.endswith(opens)
    assert fault.hint == f"raise budget.{key} in {MINE}, or wait"


@pytest.mark.parametrize("name", CAPS)
def test_what_can_never_be_paid_under_a_cap_is_no_matter_of_waiting(name):
    fault = refusal(Caps(**{name: 0.1}, file=MINE), 0.2, full())
    assert fault.hint == f"raise budget.{name} in {MINE}, or ask for less"
    assert "opens" not in fault.message


def test_what_unfinished_renders_reserve_is_named_with_the_commands_that_settle_them():
    fault = refusal(Caps(per_day=1, file=MINE), 0.5, full(reservation("a"), reservation("b")))
    assert "$0.006 of it is reserved by 2 unfinished renders;" in fault.message
    assert fault.message.endswith("it opens again at 00:00 UTC, in 12 h")
    assert "imagen-render --resume" in str(fault.hint)
    assert "imagen-usage --settle ID --billed yes|no" in str(fault.hint)
    assert f"raise budget.per_day in {MINE}" in str(fault.hint)


def test_reservations_of_earlier_days_are_named_with_their_age():
    old = [reservation(f"r{days}", 24 * days + 3) for days in (29, 12, 7, 3)]
    yesterday = reservation("late", 12.5)
    fault = refusal(Caps(per_month=1), 0.5, full(*old, yesterday, reservation("new", 1)))
    assert "reserved by 6 unfinished renders" in fault.message
    assert (
        "(r29 of 29 d 3 h ago, r12 of 12 d 3 h ago, r7 of 7 d 3 h ago and 2 more)" in fault.message
    )
    assert "new" not in fault.message
    fault = refusal(Caps(per_day=1), 0.5, full(yesterday))
    assert "by 1 unfinished render (late of 12 h 30 min ago)" in fault.message


def test_a_cap_that_reservations_fill_does_not_open_at_midnight():
    fault = refusal(Caps(per_day=1), 0.5, full(reservation("weeks", 500, usd=0.9)))
    assert fault.message.endswith("it opens again once that is settled")


def test_of_a_callers_cap_only_the_callers_reservations_are_named():
    gone = Spent(1, 1, 1, NOON.timestamp(), (reservation("theirs", 99),), ())
    assert "reserved by" not in refusal(Caps(per_caller=1), 0.5, gone).message
    assert "theirs" in refusal(Caps(per_day=1), 0.5, gone).message


amounts = st.floats(0, 1000) | st.integers(0, 1000).map(lambda n: n * 0.003)
caps_of = st.builds(Caps, *[st.none() | amounts] * 4)
times = st.datetimes(datetime(2020, 1, 1), datetime(2101, 1, 1), timezones=st.just(UTC))
all_spent = st.builds(spent, amounts, amounts, amounts, times)


@given(caps_of, amounts, all_spent)
def test_what_is_allowed_never_passes_a_cap_and_what_is_refused_would_have(caps, estimate, gone):
    sums = (estimate, gone.day + estimate, gone.month + estimate, gone.caller + estimate)
    pairs = [*zip((getattr(caps, name) for name in CAPS), sums, strict=True)]
    fits = all(cap is None or total <= cap + 1e-6 for cap, total in pairs)
    passes = any(cap is not None and total > cap for cap, total in pairs)
    try:
        judge(caps, estimate, "flux", gone)
        assert fits or estimate == 0
    except OverBudget:
        assert passes


@given(caps_of, amounts, all_spent)
def test_after_the_wait_it_may_be_paid(caps, estimate, gone):
    """With nothing more spent; what is of the month goes on counting until the month is over."""
    try:
        judge(caps, estimate, "flux", gone)
    except OverBudget as fault:
        if fault.retry == "never":
            return
        assert fault.retry_after_s is not None
        assert fault.retry_after_s == math.ceil(fault.retry_after_s) > 0
        later = datetime.fromtimestamp(gone.now, UTC) + timedelta(seconds=fault.retry_after_s)
        same_month = later.month == datetime.fromtimestamp(gone.now, UTC).month
        judge(caps, estimate, "flux", spent(0, gone.month if same_month else 0, 0, later))
