"""A pipeline of child processes: its lines, its statuses, its signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from imagen import chain, signals
from imagen.errors import ReaderGone


def stage(script: str) -> list[str]:
    return [sys.executable, "-c", script]


UPPER = "import sys\nfor line in sys.stdin: print(line.strip().upper(), flush=True)"
ENDLESS = """
import sys
try:
    while True: print('x' * 1000, flush=True)
except BrokenPipeError:
    sys.stdout = None
"""
COUNT = "for n in range(3): print('n', n, flush=True)"


def run(*scripts: str) -> tuple[list[bytes], list[int]]:
    lines: list[bytes] = []
    statuses = chain.run([stage(one) for one in scripts], lines.append, reads_stdin=False)
    return lines, statuses


def test_the_stages_make_one_pipeline():
    assert run(COUNT, UPPER) == ([b"N 0\n", b"N 1\n", b"N 2\n"], [0, 0])


def test_each_stage_says_how_it_ended():
    lines, statuses = run("raise SystemExit(75)", UPPER + "\nraise SystemExit(3)", UPPER)
    assert (lines, statuses) == ([], [75, 3, 0])


def test_a_stage_that_a_signal_ended_is_128_and_its_number():
    assert run("import os; os.kill(os.getpid(), 9)")[1] == [137]


def test_a_later_stage_that_dies_ends_the_earlier_one_quietly():
    assert run(ENDLESS, "pass")[1] == [0, 0]


def test_stdin_is_closed_to_the_first_stage_unless_it_is_asked_to_read():
    assert run("import sys; print(len(sys.stdin.read()))") == ([b"0\n"], [0])


SAYS_GOODBYE = """
import os, signal, sys, time
def bye(number, frame):
    os.write(1, f"bye {number}\\n".encode())  # print may be at it already
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, bye)
print("ready", flush=True)
time.sleep(20)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_handed_to_the_first_stage_and_its_last_words_still_come(number):
    before = signal.getsignal(number)
    signals.install()
    lines: list[bytes] = []

    def on_line(line: bytes) -> None:
        lines.append(line)
        if line == b"READY\n":
            signal.raise_signal(number)

    try:
        statuses = chain.run([stage(SAYS_GOODBYE), stage(UPPER)], on_line, reads_stdin=False)
    finally:
        signal.signal(number, before)
    assert lines == [b"READY\n", b"BYE %d\n" % number]
    assert statuses == [128 + number, 0]


def test_no_stage_is_in_our_process_group():
    own, theirs = os.getpgrp(), run("import os; print(os.getpgrp())")[0]
    assert int(theirs[0]) != own


def test_a_reader_that_is_gone_leaves_no_stage_running(monkeypatch):
    children: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def watched(*args: Any, **more: Any) -> subprocess.Popen[bytes]:
        children.append(start(*args, **more))
        return children[-1]

    def on_line(_line: bytes) -> None:
        raise ReaderGone

    monkeypatch.setattr(subprocess, "Popen", watched)
    try:
        with pytest.raises(ReaderGone):
            chain.run([stage(ENDLESS), stage(UPPER)], on_line, reads_stdin=False)
        assert [child.poll() is None for child in children] == [False, False]
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdout.close()


def test_a_tool_of_ours_is_run_by_our_own_python_and_named_without_its_prefix():
    assert chain.argv("imagen-render", "--", "-x") == [
        *(sys.executable, "-P", "-m", "imagen", "render", "--", "-x")
    ]
    assert chain.run([chain.argv("imagen-render", "--version")], lambda _: None, False) == [0]
