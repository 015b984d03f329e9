"""INT and TERM become exceptions, put off while a line or a file is being finished."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from imagen import signals
from imagen.errors import Stopped

BOTH = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Give the handlers back as they were."""
    before = {number: signal.getsignal(number) for number, _ in BOTH}
    yield
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
