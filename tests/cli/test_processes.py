"""A pipeline of child processes: its lines, its statuses, its signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imagen import signals
from imagen.cli import processes as child_processes
from imagen.errors import ReaderGone
from processes import children_of, group_members


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
    statuses = child_processes.run([stage(one) for one in scripts], lines.append, reads_stdin=False)
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
        statuses = child_processes.run(
            [stage(SAYS_GOODBYE), stage(UPPER)], on_line, reads_stdin=False
        )
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
            child_processes.run([stage(ENDLESS), stage(UPPER)], on_line, reads_stdin=False)
        assert [child.poll() is None for child in children] == [False, False]
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdout.close()


def test_a_tool_of_ours_is_run_by_our_own_python_and_named_without_its_prefix():
    assert child_processes.argv("imagen-render", "--", "-x") == [
        *(sys.executable, "-P", "-m", "imagen", "render", "--", "-x")
    ]
    assert child_processes.run(
        [child_processes.argv("imagen-render", "--version")], lambda _: None, False
    ) == [0]


# -- however we die, they die with us --------------------------------------------------------------

OWNER = """
import sys
from imagen.cli import processes as chain
sleeper = "import os, sys, time; print(os.getpid(), os.getpgrp(), flush=True); time.sleep(100)"
grandchild = (
    "import os, subprocess, sys, time; child = subprocess.Popen(['sleep', '100']);"
    "print(child.pid, os.getpgrp(), flush=True); time.sleep(100)"
)
stages = [[sys.executable, "-c", one] for one in SCRIPTS]
chain.run(stages, lambda line: (sys.stdout.buffer.write(line), sys.stdout.flush()), False)
"""


def owner_of(scripts: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a process that runs a pipeline; give it and the pipeline's process group."""
    code = OWNER.replace("SCRIPTS", scripts)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout
    return child, int(child.stdout.readline().split()[1])


@pytest.mark.parametrize("scripts", ["[sleeper]", "[grandchild]"])
def test_when_we_are_killed_the_stages_and_their_children_are_killed(until, scripts):
    child, group = owner_of(scripts)
    try:
        assert len(group_members(group)) >= 2
        child.kill()
        child.wait()
        until(lambda: group_members(group) == [], 5)
    finally:
        child.stdout.close()
        for one in group_members(group):
            os.kill(one, signal.SIGKILL)


def test_a_stage_that_ignores_signals_dies_with_us_too(until):
    stubborn = (
        "['import os, signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)];"
        "print(os.getpid(), os.getpgrp(), flush=True); time.sleep(100)']"
    )
    child, group = owner_of(stubborn)
    child.kill()
    child.wait()
    child.stdout.close()
    until(lambda: group_members(group) == [], 5)


def test_a_pipeline_that_has_ended_leaves_no_guard_and_no_descriptor():
    before, children = len([*Path("/proc/self/fd").iterdir()]), children_of(os.getpid())
    for _ in range(3):
        run(COUNT, UPPER)
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    assert set(children_of(os.getpid())) <= set(children)


def test_a_tool_that_is_fed_dies_with_us(until):
    fed = (
        "import sys; from imagen.cli import processes as chain\n"
        "code = 'import os, sys, time; print(os.getpgrp(), file=sys.stderr, flush=True);"
        " time.sleep(100)'\n"
        "chain.feed([sys.executable, '-c', code], b'', lambda line: None)"
    )
    child = subprocess.Popen([sys.executable, "-c", fed], stderr=subprocess.PIPE)
    assert child.stderr
    group = int(child.stderr.readline())
    child.kill()
    child.wait()
    child.stderr.close()
    until(lambda: group_members(group) == [], 5)


def test_a_line_that_comes_in_pieces_with_a_signal_between_them_comes_whole():
    before = signal.getsignal(signal.SIGINT)
    signals.install()
    pieces = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "os.write(1, b'first half, ')\n"
        "time.sleep(0.5)\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "time.sleep(0.5)\n"
        "os.write(1, b'second half\\nno end')\n"
    )
    try:
        lines, statuses = run(pieces)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (lines, statuses) == ([b"first half, second half\n", b"no end"], [0])


def test_only_the_first_stage_gets_what_is_meant_for_it():
    shows = "import os; print(os.environ.get('FOR_ONE'), flush=True)"
    relay = f"import sys; [print(line.strip()) for line in sys.stdin]\n{shows}"
    lines: list[bytes] = []
    extra = child_processes.Extra({"FOR_ONE": "yes"})
    child_processes.run([stage(shows), stage(relay)], lines.append, reads_stdin=False, extra=extra)
    assert lines == [b"yes\n", b"None\n"]
