"""INT and TERM become exceptions, put off while a line or a file is being finished."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from imagen import signals
from imagen.errors import Stopped

BOTH = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Give the handlers back as they were."""
    numbers = [*(number for number, _ in BOTH), signal.SIGALRM]
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "status"), BOTH)
def test_a_signal_is_an_exception_with_its_exit_status(number, status):
    signals.install()
    with pytest.raises(Stopped) as caught:
        signal.raise_signal(number)
    assert caught.value.status == status


@pytest.mark.parametrize(("number", "status"), BOTH)
def test_a_signal_waits_until_what_is_held_is_done(number, status):
    signals.install()
    done: list[str] = []
    with pytest.raises(Stopped) as caught, signals.held():
        signal.raise_signal(number)
        done.append("all of it")
    assert (done, caught.value.status) == (["all of it"], status)


def test_holds_may_stand_in_one_another():
    signals.install()
    done: list[str] = []
    with pytest.raises(Stopped), signals.held():
        with signals.held():
            signal.raise_signal(signal.SIGTERM)
        done.append("still held")
    assert done == ["still held"]


def test_after_a_hold_a_signal_comes_at_once_again():
    signals.install()
    with signals.held():
        pass
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGINT)


def test_a_hold_that_fails_lets_go():
    signals.install()
    with pytest.raises(ZeroDivisionError), signals.held():
        raise ZeroDivisionError
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("number", "_status"), BOTH)
def test_a_signal_that_was_ignored_when_we_started_stays_ignored(number, _status):
    signal.signal(number, signal.SIG_IGN)
    signals.install()
    signal.raise_signal(number)
    assert signal.getsignal(number) is signal.SIG_IGN


def test_what_is_dropped_never_comes():
    signals.install()
    with signals.dropped():
        signal.raise_signal(signal.SIGINT)
    with signals.held():
        pass


def test_a_hold_inside_of_what_is_dropped_does_not_let_it_out():
    signals.install()
    done: list[str] = []
    with signals.dropped():
        with signals.held():
            signal.raise_signal(signal.SIGTERM)
        done.append("the last words")
    assert done
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("number", "status"), BOTH)
def test_a_signal_whose_exception_is_lost_comes_again(number, status):
    """C code may clear what a handler raises in it."""
    signals.install()
    with pytest.raises(Stopped) as caught:
        with suppress(Stopped):  # as C code does
            signal.raise_signal(number)
        time.sleep(30)
    assert caught.value.status == status


def test_a_signal_that_is_lost_while_something_is_held_comes_when_it_is_done():
    signals.install()
    with pytest.raises(Stopped) as caught:
        with suppress(Stopped):
            signal.raise_signal(signal.SIGTERM)
        with signals.held():
            time.sleep(0.2)
        raise AssertionError("it never came")
    assert caught.value.status == 143


def test_a_signal_that_somebody_heeds_comes_once():
    signals.install()
    try:
        signal.raise_signal(signal.SIGTERM)
    except Stopped as stopped:
        stopped.heeded = True
    time.sleep(0.2)
