"""People are told of a server that is silent, and of none that answers."""

from __future__ import annotations

import time

import pytest

from imagen.render import silence
from imagen.render.silence import Silence


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "_TICK_S", 0.01)


def test_a_silent_server_is_told_of_again_and_again(monkeypatch, until):
    monkeypatch.setattr(silence, "_NORMAL_S", 0.05)
    texts: list[str] = []
    with Silence(texts.append):
        until(lambda: len(texts) > 2)
    assert set(texts) == {"no answer from the server for 0 s"}


def test_nothing_is_told_when_it_is_over(monkeypatch, until):
    monkeypatch.setattr(silence, "_NORMAL_S", 0.05)
    texts: list[str] = []
    with Silence(texts.append):
        until(lambda: texts)
    before = len(texts)
    time.sleep(0.1)
    assert len(texts) == before


def test_an_answer_is_shown_and_ends_the_silence(monkeypatch):
    monkeypatch.setattr(silence, "_NORMAL_S", 20)
    texts: list[str] = []
    with Silence(texts.append) as watch:
        watch._heard_at -= 30
        watch.heard("running")
        time.sleep(0.1)
    assert texts in (["running"], ["no answer from the server for 30 s", "running"])


def test_a_terminal_that_has_gone_is_no_fault(monkeypatch, until):
    monkeypatch.setattr(silence, "_NORMAL_S", 0.0)
    calls: list[str] = []

    def tell(text: str) -> None:
        calls.append(text)
        raise OSError

    with Silence(tell):
        until(lambda: len(calls) > 2)
