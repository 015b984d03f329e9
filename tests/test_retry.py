"""The one set of retry policies."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from imagen import retry
from imagen.errors import (
    AnswerLost,
    BadImage,
    ImagenError,
    OutOfCredit,
    Refused,
    Rejected,
    ServerFault,
    Throttled,
    Unreachable,
)

TRANSIENT = [Unreachable, AnswerLost, ServerFault]
LASTING = [Rejected, OutOfCredit, Refused, BadImage, ValueError, KeyboardInterrupt]


class Calls:
    """Something that fails in turn as told, then works."""

    def __init__(self, *faults: type[BaseException]) -> None:
        self.faults = [*faults]
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        if self.faults:
            raise self.faults.pop(0)()
        return "done"


POLICIES: list[Callable[[Calls], str]] = [
    lambda call: retry.once_more(call, wait_s=0),
    lambda call: retry.for_a_while(call, patience_s=5, wait_s=0),
]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_works_is_called_once(policy):
    call = Calls()
    assert (policy(call), call.count) == ("done", 1)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_transient_fault_is_tried_again(policy, fault):
    call = Calls(fault)
    assert (policy(call), call.count) == ("done", 2)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fault", LASTING)
def test_what_will_not_change_is_not_tried_again(policy, fault):
    call = Calls(fault)
    with pytest.raises(fault):
        policy(call)
    assert call.count == 1


def test_a_read_waits_out_a_server_that_asks_to_wait():
    call = Calls(Throttled)
    assert (retry.for_a_while(call, 5, 0), call.count) == ("done", 2)


@pytest.mark.parametrize("second", [*TRANSIENT, Rejected])
def test_once_more_is_once_and_the_last_fault_is_the_one_told(second):
    call = Calls(ServerFault, second, ServerFault)
    with pytest.raises(second):
        retry.once_more(call, wait_s=0)
    assert call.count == 2


def test_for_a_while_tries_many_times_and_then_tells_the_last_fault():
    call = Calls(*[ServerFault] * 4)
    assert retry.for_a_while(call, patience_s=5, wait_s=0) == "done"
    assert call.count == 5

    def never() -> None:
        raise Unreachable("still not")

    began = time.monotonic()
    with pytest.raises(Unreachable, match="still not"):
        retry.for_a_while(never, patience_s=0.05, wait_s=0.01)
    assert 0.03 < time.monotonic() - began < 2


def test_it_waits_between_tries():
    began = time.monotonic()
    retry.once_more(Calls(ServerFault), wait_s=0.05)
    assert time.monotonic() - began >= 0.05


def test_the_faults_are_told_as_they_are_and_not_wrapped():
    fault = ServerFault("500", hint="h", record={"id": "k"})

    def call() -> None:
        raise fault

    with pytest.raises(ImagenError) as caught:
        retry.once_more(call, wait_s=0)
    assert caught.value is fault


# -- as the server tells us ------------------------------------------------------------------------


class Busy(Calls):
    """A server that asks to wait so long, each time in turn; None does not say how long."""

    def __init__(self, *seconds: float | None) -> None:
        super().__init__()
        self.told = [*seconds]

    def __call__(self) -> str:
        self.count += 1
        if self.told:
            raise Throttled(retry_after_s=self.told.pop(0))
        return "done"


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=waits.append))
    return waits


@pytest.mark.parametrize(
    ("told", "waits"),
    [
        ([], []),
        ([0], [0]),
        ([7, 60], [7, 60]),
        ([None, None, None], [1, 2, 4]),
        ([None, 5, None], [1, 5, 4]),
    ],
)
def test_a_wait_is_as_long_as_told_or_else_longer_each_time(slept, told, waits):
    call = Busy(*told)
    assert (retry.as_told(call), call.count) == ("done", 1 + len(told))
    assert slept == waits


@pytest.mark.parametrize(("told", "calls"), [([1] * 9, 4), ([61], 1), ([1, 61, 1], 2)])
def test_after_three_retries_or_for_a_longer_wait_the_fault_is_told(slept, told, calls):
    call = Busy(*told)
    with pytest.raises(Throttled) as caught:
        retry.as_told(call)
    assert (call.count, len(slept)) == (calls, calls - 1)
    assert caught.value.retry_after_s == told[calls - 1]


@pytest.mark.parametrize("fault", [*TRANSIENT, *LASTING])
def test_whatever_else_fails_is_not_tried_again_there(slept, fault):
    call = Calls(fault)
    with pytest.raises(fault):
        retry.as_told(call)
    assert (call.count, slept) == (1, [])


def test_a_read_waits_as_told_too_but_not_beyond_its_patience(slept):
    assert retry.for_a_while(Busy(3, None, 99), patience_s=5, wait_s=0.5) == "done"
    assert slept == [3, 0.5, 5]


def test_in_time_waits_as_long_as_the_server_says_and_longer_each_time():
    told = ServerFault("503", retry_after_s=0.6)
    faults = [told, ServerFault("500"), ServerFault("500")]
    times = []

    def call(left_s: float) -> str:
        times.append(time.monotonic())
        if faults:
            raise faults.pop(0)
        return "done"

    assert retry.in_time(call, patience_s=10, wait_s=0.02) == "done"
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert waits[0] >= 0.6
    assert 0.04 <= waits[1] < 0.6
    assert waits[2] >= 0.08


def test_in_time_ends_before_its_patience_does_and_says_how_much_is_left():
    left = []

    def never(left_s: float) -> None:
        left.append(left_s)
        raise Unreachable("still not")

    began = time.monotonic()
    with pytest.raises(Unreachable, match="still not"):
        retry.in_time(never, patience_s=9.5, least_s=9, wait_s=0.05)
    assert time.monotonic() - began < 9.5
    assert left == sorted(left, reverse=True)
    assert min(left) >= 5  # 9, were it not for a machine that stands still


def test_in_time_does_not_wait_longer_than_it_may():
    def later(_left_s: float) -> None:
        raise Throttled("429", retry_after_s=60)

    began = time.monotonic()
    with pytest.raises(Throttled):
        retry.in_time(later, patience_s=20)
    assert time.monotonic() - began < 10


def test_in_time_never_repeats_what_was_refused():
    calls = []

    def refused(_left_s: float) -> None:
        calls.append(1)
        raise Rejected("400")

    with pytest.raises(Rejected):
        retry.in_time(refused, patience_s=20)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "policy",
    [
        lambda call, until: retry.once_more(call, wait_s=0.05, until=until),
        lambda call, until: retry.for_a_while(call, patience_s=60, wait_s=0.05, until=until),
    ],
)
def test_nothing_is_called_again_when_its_time_is_over(policy):
    over = Calls(ServerFault)
    with pytest.raises(ServerFault):
        policy(over, time.monotonic() + 0.04)
    assert over.count == 1
    in_time = Calls(ServerFault)
    assert policy(in_time, time.monotonic() + 60) == "done"


def test_reads_go_on_until_their_time_is_over_and_no_longer():
    began = time.monotonic()
    with pytest.raises(AnswerLost):
        retry.for_a_while(Calls(*[AnswerLost] * 999), 60, wait_s=0.02, until=began + 0.3)
    assert time.monotonic() - began < 20


def test_a_wait_that_a_server_asks_for_is_not_waited_when_it_ends_too_late():
    call = Calls(lambda: Throttled(retry_after_s=5))
    began = time.monotonic()
    with pytest.raises(Throttled) as caught:
        retry.as_told(call, until=began + 3)
    assert (call.count, caught.value.retry_after_s) == (1, 5)
    assert time.monotonic() - began < 2
    assert retry.as_told(Calls(lambda: Throttled(retry_after_s=0)), until=began + 60) == "done"
