"""A tool that is forked is to its caller what a new one is: the tests start nearly all that way."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from preloaded import ForkedTool

PIPE = subprocess.PIPE
WAYS = pytest.mark.parametrize("cold", [False, True], ids=["forked", "cold"])


@pytest.fixture(autouse=True)
def _can_fork(python):
    if python is None or not python.is_there:
        pytest.skip("tools are not forked here")


def test_forked_is_what_runs_unless_something_reaches_the_start_of_a_python(tool):
    def is_forked(*args, **more):
        child = tool.start("render", *args, **more)
        child.communicate(timeout=30)
        return isinstance(child, ForkedTool)

    assert is_forked("--help")
    assert is_forked("--help", env={"HOME": "/", "TZ": "Asia/Tokyo"}, start_new_session=True)
    assert not is_forked("--help", cold=True)
    for name in ("PYTHONPATH", "PYTHONUTF8", "LC_ALL", "LANG", "LD_LIBRARY_PATH", "TMPDIR"):
        assert not is_forked("--help", env={name: "C"}), name
    assert not is_forked("--help", preexec_fn=lambda: None)


@pytest.mark.parametrize(
    ("name", "args", "stdin", "status"),
    [
        ("", ["--help"], b"", 0),
        ("", ["rendr"], b"", 2),
        ("render", ["--help"], b"", 0),
        ("render", ["--colour"], b"", 2),
        (
            "render",
            ["--dry-run", "--size", "64x64", "--seed", "7", "--id", "k"],
            b'{"prompt":"x"}',
            0,
        ),
        ("render", ["--dry-run", "--seed", "7", "--id", "k"], b'{"prompt":"\xff"}', 2),
        ("usage", ["--by", "month"], b"", 2),
        ("render", ["--dry-run", "--lines", "--id=k", "--seed=7"], "ä\u2028b\n".encode(), 0),
        ("jobs", [], b"", 2),
    ],
)
def test_status_and_both_streams_are_the_same_as_of_a_new_python(name, args, stdin, status, tool):
    (forked, cold) = (
        tool(name, *args, stdin=stdin, cold=cold, check_records=False) for cold in (False, True)
    )
    assert forked.status == cold.status == status, forked.err
    assert forked.out == cold.out
    assert forked.err == cold.err


@WAYS
def test_it_is_our_child_with_a_folder_an_environment_and_a_session_of_its_own(
    cold, tool, tmp_path, until
):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    child = tool.start("render", cwd=folder, start_new_session=True, cold=cold)
    status = Path(f"/proc/{child.pid}/status")
    assert f"PPid:\t{os.getpid()}\n" in status.read_text()
    until(lambda: Path(f"/proc/{child.pid}/cwd").readlink() == folder)
    until(lambda: os.getsid(child.pid) == child.pid)
    child.communicate(b'{"prompt":"x","width":64,"height":64,"file":"no"}\n', timeout=30)
    assert (tmp_path / "state" / "imagen").is_dir()


@WAYS
def test_no_socket_of_the_tests_is_open_in_it(cold, tool, until):
    child = tool.start("render", cold=cold)
    ours = {Path(f"/proc/self/fd/{one.fileno()}").readlink() for one in (child.stdin, child.stderr)}
    theirs = Path(f"/proc/{child.pid}/fd")
    until(lambda: ours <= {path.readlink() for path in theirs.iterdir()})
    until(lambda: catches(child.pid, signal.SIGTERM))
    assert not [
        link
        for path in theirs.iterdir()
        if int(path.name) > 2 and (link := str(path.readlink())).startswith("socket:")
    ]
    assert child.communicate(timeout=30) == (b"", b"")


@WAYS
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_can_be_killed_and_interrupted(number, cold, tool, until):
    child = tool.start("render", cold=cold)
    until(lambda: catches(child.pid, signal.SIGTERM))
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    statuses = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
    assert child.returncode == statuses[number], err


def catches(pid: int, number: int) -> bool:
    """Whether a process handles a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = [line.split()[1] for line in lines if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (number - 1) & 1)


@WAYS
def test_what_it_left_open_is_closed_when_it_ends(cold, tool, tmp_path):
    assert tool("render", "x", "--size=64x64", cold=cold).status == 0
    state = tmp_path / "state" / "imagen"
    assert {path.name for path in state.glob("ledger*")} == {"ledger.sqlite3"}, "not taken over"


def test_a_reader_that_is_gone_and_a_full_disk_are_met_as_by_a_new_one(tool):
    def ends(cold):
        with Path("/dev/full").open("wb") as full:
            yield tool("render", "--help", stdout=full, cold=cold)
        reader, writer = os.pipe()
        os.close(reader)
        yield tool("render", "--help", stdout=writer, cold=cold)
        os.close(writer)

    assert [*ends(False)] == [*ends(True)]
