"""A pipeline is started, fed, read and ended whole, and its guard outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imagen.clock import boottime
from imagen.queue.pipeline import MOST, Pipeline
from processes import group_members, is_alive


@pytest.fixture
def start():
    made = []

    def run(command):
        made.append(Pipeline(command))
        return made[-1]

    yield run
    for one in made:
        one.end()


def lines_of(pipeline, number, until):
    found = []

    def enough():
        pipeline.flush()
        found.extend(pipeline.lines())
        return len(found) >= number

    until(enough)
    return found


def group_of(pipeline):
    return pipeline.tree.group


def test_lines_go_in_and_come_out_again_and_it_keeps_running(start, until):
    one = start("cat | cat")
    for line in (b"a\n", b"b\n"):
        one.send(line)
        assert lines_of(one, 1, until) == [line.strip()]
    assert one.is_alive()
    assert not one.is_gone()


def test_it_ends_with_its_input(start, until):
    one = start("cat | cat")
    one.end_input()
    until(one.is_gone)
    one.lines()
    assert not one.is_open


def test_a_full_pipe_makes_nobody_wait_and_the_rest_follows(start, until, tmp_path):
    one = start(f"until [ -e '{tmp_path}/go' ]; do sleep 0.05; done; cat")
    line = b"x" * 3_000_000
    one.send(line + b"\n")  # of which nothing is read before there is that file
    (tmp_path / "go").touch()
    assert one.waits()[-1][0] == one._in
    assert lines_of(one, 1, until) == [line]


def test_a_line_for_a_pipeline_that_is_gone_is_forgotten(start, until):
    one = start("exit 1")
    until(one.is_gone)
    one.send(b"a\n")
    assert len(one.waits()) == 2
    assert not one.is_alive()


def test_a_line_without_end_closes_it(start, until):
    one = start("tr '\\0' x < /dev/zero")
    until(lambda: one.lines() == [] and not one.is_open, 20)
    assert len(one._rest) <= MOST


def test_endless_lines_leave_others_their_turn(start, until):
    one = start("yes")
    until(one.lines)
    began = time.monotonic()
    one.lines()
    assert time.monotonic() - began < 5
    assert one.is_open


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_stage_and_not_the_guard(start, until, number):
    one = start("sleep 100 | sleep 100")
    until(lambda: len(group_members(group_of(one))) >= 4)
    one.signal(number)
    until(one.is_gone)
    assert group_members(group_of(one)) == [group_of(one)]


def test_a_stage_has_its_time_to_end_well_though_the_next_is_gone(start, until, tmp_path):
    work = tmp_path / "stage.py"
    said = tmp_path / "said"
    work.write_text(
        "import signal, time, pathlib, sys\n"
        "def end(*_):\n"
        "    time.sleep(0.4)\n"
        f"    pathlib.Path({str(said)!r}).write_text('ended well')\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGINT, end)\n"
        "print('ready', flush=True)\n"
        "time.sleep(100)\n"
    )
    one = start(f"{sys.executable} {work} | cat")
    lines_of(one, 1, until)
    one.signal(signal.SIGINT)
    until(one.is_gone)
    assert said.read_text() == "ended well"


def test_a_guard_that_is_killed_is_noticed(start, until):
    one = start("cat")
    os.kill(group_of(one), signal.SIGKILL)
    until(lambda: not one.is_alive())


def test_killing_leaves_no_process_and_no_descriptor(until):
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(3):
        one = Pipeline("sh -c 'sleep 100 & sleep 100' | cat")
        group = group_of(one)
        assert one.end() == []
        until(lambda group=group: group_members(group) == [], 5)
    assert len([*Path("/proc/self/fd").iterdir()]) == before


# -- processes that leave the group ----------------------------------------------------------------


MARKED = {
    "the shell itself": "echo $$; exec setsid sleep 100",
    "a stage": "setsid sh -c 'echo $$; exec sleep 100' | cat",
    "an orphan": "(setsid sh -c 'echo $$; exec sleep 100' &) & sleep 100 | cat",
    "a daemon that closed everything": (
        "(setsid sh -c 'echo $$; exec sleep 100 >&- 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-' &); cat"
    ),
}
ESCAPES = {
    **MARKED,
    "without environment": "(env -i setsid sh -c 'echo $$; exec sleep 100' &); cat",
}


@pytest.mark.parametrize("how", ESCAPES)
def test_what_leaves_the_group_is_killed_with_the_rest(start, until, how):
    one = start(ESCAPES[how])
    pid = int(lines_of(one, 1, until)[0])
    until(lambda: os.getpgid(pid) != group_of(one))
    assert one.end() == []
    assert not is_alive(pid)


@pytest.mark.parametrize("how", ESCAPES)
def test_what_leaves_the_group_ends_with_us(until, how):
    owner, pid, group = owned(ESCAPES[how])
    until(lambda: os.getpgid(pid) != group)
    owner.kill()
    owner.wait()
    until(lambda: not is_alive(pid) and group_members(group) == [], 5)


@pytest.mark.parametrize("how", MARKED)
def test_what_leaves_the_group_is_found_though_the_guard_was_killed(start, until, how):
    one = start(ESCAPES[how])
    pid = int(lines_of(one, 1, until)[0])
    until(lambda: os.getpgid(pid) != group_of(one))
    os.kill(group_of(one), signal.SIGKILL)
    until(lambda: not one.is_alive())
    assert not one.is_gone()
    assert one.end() == []
    assert not is_alive(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_what_left_the_group(start, until, number):
    one = start("echo ready; exec setsid sleep 100")
    lines_of(one, 1, until)
    one.signal(number)
    until(one.is_gone)


def test_what_is_started_because_of_a_signal_does_not_get_that_signal_too(start, until):
    """The guard looks for what has left the group while the group already reacts."""
    cleans_up = "trap 'sh -c \"sleep 0.1; echo cleaned up\"; exit' INT"
    pipelines = [start(f"{cleans_up}; echo ready; while :; do sleep 0.01; done") for _ in range(4)]
    for one in pipelines:
        lines_of(one, 1, until)
        one.signal(signal.SIGINT)
    for one in pipelines:
        until(lambda one=one: not one.is_alive())
        assert one.lines() == [b"cleaned up"]


def test_a_guard_that_stands_still_is_killed_with_its_group(start, until):
    one = start("echo $$; exec setsid sleep 100")
    pid = int(lines_of(one, 1, until)[0])
    os.kill(group_of(one), signal.SIGSTOP)
    assert one.end() == []
    assert not is_alive(pid)


def test_ending_waits_no_longer_than_it_says_for_what_cannot_be_found(until, tmp_path):
    """Without mark, parent and guard nobody can know whose it is; that it lives is said."""
    one = Pipeline(f"(env -i setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 100' &); cat")
    pid = int(until(lambda: pid_in(tmp_path)))
    os.kill(group_of(one), signal.SIGKILL)
    until(lambda: not one.is_alive())
    began = time.monotonic()
    assert not one.tree.end(0.5)
    assert time.monotonic() - began < 3
    one.forget()
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


def pid_in(folder):
    try:
        return (folder / "pid").read_text()
    except OSError:
        return ""


# -- an owner that is gone, or stands still --------------------------------------------------------


def owned(command, until="inf"):
    """Start a process that has a pipeline; give it, the first line, and the group."""
    code = (
        "import select, sys, time; from imagen.queue.pipeline import Pipeline\n"
        "from imagen.clock import boottime\n"
        f"one = Pipeline({command!r})\n"
        f"one.tree.allow_until(boottime() + float({until!r}))\n"
        "while not (lines := one.lines()): select.select([one._out], [], [])\n"
        "print(int(lines[0]), one.tree.group, flush=True); time.sleep(100)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout
    pid, group = map(int, child.stdout.readline().split())
    child.stdout.close()
    return child, pid, group


@pytest.mark.parametrize("how", ["echo $$; sleep 100 | cat", ESCAPES["the shell itself"]])
def test_an_owner_that_stands_still_loses_it_when_its_time_is_over(until, how):
    owner, pid, group = owned(how, "2")
    try:
        owner.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        time.sleep(0.5)
        assert is_alive(pid)
        until(lambda: not is_alive(pid) and group_members(group) == [], 5)
        assert time.monotonic() - began < 4
    finally:
        owner.kill()
        owner.wait()


def test_an_owner_that_goes_on_allowing_keeps_it(start, until):
    one = start("cat")
    for _ in range(5):
        one.tree.allow_until(boottime() + 3)
        time.sleep(0.8)
    assert one.is_alive()
    one.tree.allow_until(float("inf"))
    time.sleep(1.5)
    assert one.is_alive()


def test_our_death_by_kill_ends_all_of_it_within_a_second_grandchildren_too(until, tmp_path):
    code = (
        "import time; from imagen.queue.pipeline import Pipeline\n"
        "one = Pipeline(\"trap '' INT TERM; (trap '' TERM HUP; sleep 100) & sleep 100 | cat\")\n"
        "print(one.tree.group, flush=True); time.sleep(100)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout
    group = int(child.stdout.readline())
    until(lambda: len(group_members(group)) >= 5)
    child.kill()
    child.wait()
    child.stdout.close()
    until(lambda: group_members(group) == [], 5)
