"""Runs that nobody waits for any more: they notice it, finish, and the next run takes them up."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imagen.cli.reader import Reader
from servers.replicate import Answer


def abandoned(paid) -> list[float]:
    return [row[0] for row in paid.sql("select abandoned_at from renders") if row[0] is not None]


def start_below_shell(paid, command: list[str], stdout: int) -> subprocess.Popen[bytes]:
    """Start a command as the child of a shell that waits for it."""
    script = shlex.join(command) + "; true"  # so that the shell does not become the command
    return paid.tool.start(
        "", argv=["sh", "-c", script], stdin=subprocess.DEVNULL, stdout=stdout, stderr=None
    )


def leave(paid, until, *prompts: str) -> subprocess.Popen[bytes]:
    """Start a run whose reader goes away once its first create is accepted, and is still held."""
    paid.server.held = True
    child = paid.tool.start("render", *prompts, "--size=512x512", stdin=subprocess.DEVNULL)
    until(lambda: submitted(paid), 60)
    child.stdout.close()
    until(lambda: abandoned(paid), 20)
    return child


def submitted(paid) -> bool:
    return paid.ledger.exists() and paid.creates == 1 and bool(paid.server.asks("GET /v1/pred"))


@pytest.mark.parametrize("name", ["render", "generate"])
def test_when_the_shell_above_it_is_killed_the_next_run_takes_it_up_and_pays_nothing(
    paid, until, name
):
    paid.server.held = True
    command = paid.tool.argv(name, "a cat", "--size=512x512")
    shell = start_below_shell(paid, command, subprocess.PIPE)
    until(lambda: submitted(paid), 60)
    shell.kill()
    shell.wait()
    until(lambda: abandoned(paid), 20)
    second = paid.tool.start(name, "a cat", "--size=512x512", stdin=subprocess.DEVNULL)
    until(lambda: paid.server.asks("GET /v1/pred") > 3, 20)
    paid.server.held = False
    ran = paid.tool.ended(second)
    assert ran.status == 0, ran.err
    assert Path(ran.record["file"]).is_file()
    assert "taken up where an earlier run left it" in ran.err
    assert paid.creates == 1
    assert paid.sql("select state, delivered from renders") == [("done", 1)]


def test_the_next_run_may_come_before_the_first_has_noticed(paid, until):
    paid.server.held = True
    shell = start_below_shell(
        paid, paid.tool.argv("render", "a cat", "--size=512x512"), subprocess.PIPE
    )
    until(lambda: submitted(paid), 60)
    shell.kill()
    second = paid.tool.start("render", "a cat", "--size=512x512", stdin=subprocess.DEVNULL)
    until(lambda: abandoned(paid), 20)
    paid.server.held = False
    ran = paid.tool.ended(second)
    assert (ran.status, paid.creates) == (0, 1), ran.err


def test_a_pipe_whose_reader_is_gone_makes_it_abandoned(paid, until):
    child = leave(paid, until, "a cat")
    paid.server.held = False
    child.wait(60)
    assert paid.sql("select state, delivered from renders") == [("done", 0)], "it finished its work"
    ran = paid("a cat")
    assert (ran.status, paid.creates) == (0, 1), ran.err
    assert Path(ran.record["file"]).is_file()


def test_a_run_that_writes_to_a_file_is_never_abandoned(paid, until, tmp_path):
    paid.server.held = True
    with (tmp_path / "records.jsonl").open("wb") as stream:
        shell = start_below_shell(
            paid, paid.tool.argv("render", "a cat", "--size=512x512"), stream.fileno()
        )
    until(lambda: submitted(paid), 60)
    shell.kill()
    shell.wait()
    second = paid.tool.start("render", "a cat", "--size=512x512", stdin=subprocess.DEVNULL)
    until(lambda: paid.creates == 2, 60)
    assert abandoned(paid) == []
    paid.server.held = False
    ran = paid.tool.ended(second)
    assert ran.status == 0, ran.err
    assert "this one makes a second image (hint: give both runs the same --id)" in ran.err
    until(lambda: (tmp_path / "records.jsonl").stat().st_size, 20)
    assert paid.sql("select delivered from renders") == [(1,), (1,)]


def test_an_abandoned_run_begins_no_further_line(paid, until):
    child = leave(paid, until, "a", "b", "c")
    paid.server.held = False
    child.wait(60)
    assert paid.creates == 1


def test_wait_hands_out_the_pending_record_of_an_abandoned_run_that_is_still_at_it(paid, until):
    child = leave(paid, until, "a cat")
    ran = paid("a cat", "--wait", 0)
    assert (ran.status, "pending" in ran.record, paid.creates) == (75, True, 1)
    paid.server.held = False
    child.wait(60)
    collected = paid(stdin=[ran.record])
    assert (collected.status, paid.creates) == (0, 1)


def test_wait_ends_too_while_an_abandoned_run_is_still_sending(paid, until):
    paid.server.fail("POST", Answer(wait_s=60))
    command = paid.tool.argv("render", "a cat", "--size=512x512")
    shell = start_below_shell(paid, command, subprocess.PIPE)
    until(lambda: paid.server.asks("POST"), 60)
    shell.kill()
    shell.wait()
    until(lambda: abandoned(paid), 20)
    ran = paid("a cat", "--wait", 1, timeout=20)
    error = ran.record["error"]
    assert (ran.status, error["code"], error["billed"]) == (75, "answer_lost", "unknown")
    assert (error["retry"], paid.server.asks("POST")) == ("after", 1)


# -- runs that another one waits for ---------------------------------------------------------------


@pytest.fixture
def sending(paid, until):
    """Give a run whose create has no answer, and that is stopped."""

    def start(*args: str) -> subprocess.Popen[bytes]:
        paid.server.fail("POST", Answer(wait_s=60))
        child = paid.tool.start("render", *args, "--size=512x512", stdin=subprocess.DEVNULL)
        until(lambda: paid.server.asks("POST"), 60)
        child.send_signal(signal.SIGSTOP)
        return child

    return start


def test_wait_bounds_the_wait_for_another_run_of_the_id_and_names_one_that_is_stopped(
    paid, until, sending
):
    child = sending("a cat", "--id=k")
    began = time.monotonic()
    ran = paid("a cat", "--id", "k", "--wait", 4, timeout=30)
    assert time.monotonic() - began < 15
    error = ran.record["error"]
    assert (ran.status, error["code"], error["billed"]) == (75, "answer_lost", "unknown")
    assert (error["retry"], error["retry_after_s"]) == ("after", 5)
    assert f"process {child.pid}, which is stopped" in error["message"]
    assert f"kill -CONT {child.pid}" in error["hint"]
    assert ran.err.count(f"waiting for another run of k (process {child.pid}, which is stop") == 1
    assert paid.server.asks("POST") == 1
    child.kill()
    child.wait()
    paid.age(100)
    made = paid("a cat", "--id", "k")
    assert (made.status, paid.creates) == (0, 1)


def test_a_stopped_run_is_not_waited_for_without_end(paid, sending):
    sending("a cat", "--id=k")
    script = (
        "import imagen.render.lock_wait as w; w.STOPPED_S = 1.0;"
        " from imagen.commands.render import main; main()"
    )
    argv = [sys.executable, "-c", script, "a cat", "--id=k", "--size=512x512"]
    ran = paid.tool("render", argv=argv, timeout=30)
    assert (ran.status, ran.record["error"]["code"]) == (75, "answer_lost")
    assert paid.server.asks("POST") == 1


def test_wait_hands_out_the_pending_record_while_another_run_of_the_id_is_at_it(paid, until):
    paid.server.held = True
    child = paid.tool.start("render", "a cat", "--id=k", "--size=512x512", stdin=subprocess.DEVNULL)
    until(lambda: submitted(paid), 60)
    ran = paid("a cat", "--id", "k", "--wait", 0)
    assert (ran.status, "pending" in ran.record, paid.creates) == (75, True, 1)
    waiting = paid.tool.start(
        "render", "a cat", "--id=k", "--size=512x512", stdin=subprocess.DEVNULL
    )
    says = waiting.stderr.readline().decode()
    assert f"waiting for another run of k (process {child.pid}; hint: --wait S" in says
    paid.server.held = False
    first, second = paid.tool.ended(child), paid.tool.ended(waiting)
    assert (first.status, second.status, first.out == second.out) == (0, 0, True)
    assert paid.creates == 1


def test_wait_bounds_the_wait_for_another_id_that_sends_the_same_input(paid, sending):
    child = sending("a cat", "--id=one", "--seed=7")
    ran = paid("a cat", "--id", "two", "--seed", 7, "--wait", 1, timeout=30)
    error = ran.record["error"]
    assert (ran.status, error["code"], error["billed"]) == (75, "answer_lost", "no")
    assert error["retry"] == "after"
    assert f"process {child.pid}, which is stopped" in error["message"]
    assert paid.server.asks("POST") == 1
    child.kill()
    child.wait()
    assert paid("a cat", "--id", "two", "--seed", 7).status == 0


def test_wait_ends_for_an_abandoned_run_that_is_stopped(paid, until):
    child = leave(paid, until, "a cat")
    child.send_signal(signal.SIGSTOP)
    ran = paid("a cat", "--wait", 4)
    assert (ran.status, "pending" in ran.record, paid.creates) == (75, True, 1)
    assert f"(process {child.pid}, which is stopped; hint: kill -CONT {child.pid}" in ran.err


# -- who reads -------------------------------------------------------------------------------------


def test_a_reader_leaves_a_pipe_a_socket_and_a_terminal():
    reading, writing = os.pipe()
    ours, theirs = socket.socketpair()
    terminal, side = pty.openpty()
    readers = [Reader(writing), Reader(ours.fileno()), Reader(side)]
    assert [one.is_gone() for one in readers] == [False] * 3
    assert [one.can_leave for one in readers] == [True] * 3
    os.close(reading)
    theirs.close()
    os.close(terminal)
    assert [one.is_gone() for one in readers] == [True] * 3
    os.close(writing)
    ours.close()
    os.close(side)


@pytest.mark.parametrize("name", ["file", "/dev/null"])
def test_a_file_is_never_left(tmp_path, name):
    with (tmp_path / name).open("wb") as stream:
        assert not Reader(stream.fileno()).is_gone()


PARENT = """
import os, sys, time
from imagen.cli import reader
reader.remember_parent()
one = reader.Reader(int(sys.argv[1]))
before = one.is_gone()
print(before, flush=True, file=sys.stderr)
while os.getppid() == int(sys.argv[2]): time.sleep(0.01)
print(one.is_gone(), flush=True, file=sys.stderr)
"""


@pytest.mark.parametrize(("kind", "expected"), [("pipe", "True"), ("socket", "False")])
def test_the_parent_counts_behind_a_pipe_only(tool, kind, expected):
    ends = os.pipe() if kind == "pipe" else [one.detach() for one in socket.socketpair()]
    script = f"{shlex.quote(sys.executable)} -c {shlex.quote(PARENT)} {ends[1]} $$; true"
    shell = tool.start("", argv=["sh", "-c", script], pass_fds=(ends[1],))
    assert shell.stderr.readline() == b"False\n"
    shell.kill()
    assert shell.stderr.readline().decode().strip() == expected
    for one in ends:
        os.close(one)
