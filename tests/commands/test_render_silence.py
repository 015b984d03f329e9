"""imagen-render against a server that takes a connection and stays silent: every wait has an end.

The limits of the product are 4 s for --wait 3, 5 s for --timeout 3 and 2 s for Ctrl-C; here they
are wider, for machines under load. Without them it took from 19 s to 60 s.
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from servers.comfyui import SILENCE, ComfyUI
from servers.replicate import Answer as Paid
from servers.replicate import throttled

SMALL = ("--size=64x64", "--seed=7")
ALL = ""  # of whatever request


@pytest.fixture
def server() -> Iterator[ComfyUI]:
    with ComfyUI() as running:
        yield running


@pytest.fixture
def local(configure: Callable[[str], Any]) -> Callable[[str], None]:
    """Give a function that makes a server the default backend."""

    def written(url: str) -> None:
        instance = f"{{type: comfyui, url: '{url}', retry_s: 0.05, poll_min_s: 0.01}}"
        configure(f"default_backend: local\nbackends: {{local: {instance}}}\n")

    return written


@pytest.fixture
def deaf_url() -> Iterator[str]:
    """The address of a socket that listens, and nobody ever accepts a connection there."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def asks(server: ComfyUI, request: str) -> int:
    return sum(f"{method} {path}".startswith(request) for method, path, _ in server.requests)


# -- --wait ----------------------------------------------------------------------------------------


def test_a_wait_ends_with_the_pending_line_of_the_handle_that_we_chose(tool, local, deaf_url):
    local(deaf_url)
    with within(14):
        ran = tool("render", "a cat", *SMALL, "--wait", 3)
    assert ran.status == 75
    assert "error" not in ran.record
    assert len(ran.record["pending"]["handle"]) == 36
    assert ran.record["attempts"] == 1


def test_a_pending_line_whose_prompt_never_arrived_is_submitted_when_it_is_piped_back(
    tool, local, server
):
    local(server.url)
    server.fail("POST /prompt", SILENCE, times=9)
    with within(14):
        left = tool("render", "a cat", *SMALL, "--wait", 1)
    assert (left.status, server.submits) == (75, [])
    server.mend()
    made = tool("render", stdin=left.out)
    assert (made.status, len(server.submits)) == (0, 1)
    assert made.record["id"] == left.record["id"]


@pytest.mark.parametrize("again", ["pipe", "command", "resume"])
def test_a_pending_line_whose_prompt_did_arrive_is_collected_and_not_submitted_again(
    tool, local, server, again
):
    local(server.url)
    server.fail("POST /prompt", SILENCE, after=True)
    left = tool("render", "a cat", *SMALL, "--id", "k", "--wait", 1)
    assert (left.status, len(server.submits)) == (75, 1)
    if again == "pipe":
        made = tool("render", stdin=left.out)
    elif again == "command":
        made = tool("render", "a cat", *SMALL, "--id", "k")
    else:
        made = tool("render", "--resume")
    assert (made.status, len(server.submits)) == (0, 1)
    assert made.record["submit"] == left.record["pending"]["handle"]


@pytest.mark.parametrize("request_", ["GET /history", "GET /view"])
def test_a_wait_ends_in_the_middle_of_a_look_and_of_a_fetch(tool, local, server, request_):
    local(server.url)
    if request_ == "GET /history":
        server.held = True
    else:
        server.fail(request_, SILENCE, times=9)
    child = tool.start("render", "a cat", *SMALL, "--wait", 3)
    child.stdin.close()
    child.stdin = None
    if request_ == "GET /history":
        while not server.submits:
            time.sleep(0.01)
        server.fail(ALL, SILENCE, times=99)
    with within(14):
        ran = tool.ended(child)
    assert (ran.status, "pending" in ran.record) == (75, True)
    server.mend()
    server.release()
    assert tool("render", stdin=ran.out).status == 0
    assert len(server.submits) == 1


def test_a_wait_of_no_time_still_submits_and_looks_once(tool, local, server):
    local(server.url)
    assert tool("render", "a cat", *SMALL, "--wait", 0).status == 0


# -- --timeout -------------------------------------------------------------------------------------


def test_a_time_out_says_when_the_prompt_could_not_be_cancelled(tool, local, deaf_url):
    local(deaf_url)
    with within(14):
        ran = tool("render", "a cat", *SMALL, "--timeout", 3)
    error = ran.record["error"]
    assert (ran.status, error["code"]) == (75, "timeout")
    assert "no image after 3 s; the render goes on, it could not be cancelled" in error["message"]


def test_a_time_out_cancels_the_prompt_whose_answer_never_came(tool, local, server):
    local(server.url)
    server.held = True
    server.fail("POST /prompt", SILENCE, after=True)
    with within(14):
        ran = tool("render", "a cat", *SMALL, "--timeout", 1)
    assert ran.record["error"]["message"].endswith("the render was cancelled")
    assert server.queue() == (None, [])
    assert None not in server.interrupts


# -- Ctrl-C ----------------------------------------------------------------------------------------


def started(tool: Any, *args: object, **more: Any) -> subprocess.Popen[bytes]:
    return tool.start("render", "a cat", *SMALL, *args, stdin=subprocess.DEVNULL, **more)


def test_an_interrupt_ends_soon_with_the_record(tool, local, server, until):
    local(server.url)
    server.fail(ALL, SILENCE, times=99)
    child = started(tool)
    until(lambda: asks(server, "GET /history"))
    child.send_signal(signal.SIGINT)
    with within(14):
        ran = tool.ended(child)
    assert (ran.status, ran.record["error"]["code"]) == (130, "interrupted")
    assert "could not be cancelled" in ran.record["error"]["message"]


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_ends_at_once_with_the_record_too(tool, local, server, until, second):
    local(server.url)
    server.fail(ALL, SILENCE, times=99)
    child = started(tool)
    until(lambda: asks(server, "GET /history"))
    child.send_signal(signal.SIGINT)
    until(lambda: asks(server, "POST /queue"))
    child.send_signal(second)
    with within(14):
        ran = tool.ended(child)
    assert (ran.status, ran.record["error"]["code"]) == (130, "interrupted")
    assert "Traceback" not in ran.err


# -- what is paid for ------------------------------------------------------------------------------


def test_a_paid_create_without_an_answer_is_never_pending(paid):
    paid.server.fail("POST /v1", Paid(wait_s=30), times=9)
    with within(14):
        ran = paid("a cat", "--wait", 3)
    assert (ran.record["error"]["code"], ran.record["error"]["billed"]) == (
        "answer_lost",
        "unknown",
    )
    assert "pending" not in ran.record


def test_a_wait_that_the_provider_asks_for_is_never_followed_by_a_create_that_is_cut_short(paid):
    paid.server.fail("POST /v1", throttled(2), times=9)
    paid.server.fail("POST /v1", Paid(wait_s=30))
    ran = paid("a cat", "--wait", 3)
    assert (ran.status, ran.record["error"]["code"]) == (75, "rate_limited")
    assert ran.record["error"]["billed"] == "no"


def test_a_wait_for_a_paid_prediction_ends_in_the_middle_of_a_look(paid):
    paid.server.held = True
    paid.server.fail("GET /v1/predictions/", Paid(wait_s=30), times=9)
    with within(14):
        ran = paid("a cat", "--wait", 3)
    assert (ran.status, "pending" in ran.record, paid.creates) == (75, True, 1)


# -- what a terminal shows -------------------------------------------------------------------------


def shown(tool: Any, *args: object) -> tuple[str, list[dict[str, Any]]]:
    """Run with stderr on a terminal; give what that showed, and the records."""
    terminal, side = pty.openpty()
    child = started(tool, *args, stderr=side)
    os.close(side)
    text = b""
    with suppress(OSError):  # all other ends are closed
        while part := os.read(terminal, 4096):
            text += part
    os.close(terminal)
    out, _ = child.communicate(timeout=10)
    return text.decode(), [json.loads(line) for line in out.splitlines()]


def test_a_terminal_is_told_how_long_the_server_has_been_silent(tool, local, deaf_url):
    local(deaf_url)
    text, (line,) = shown(tool, "--wait", 4)
    assert re.search(r"\d s  no answer from the server for \d s", text)
    assert "pending" in line
    assert "\r\x1b[Kimagen-render: " in text, "the line is taken away again"


def test_what_is_no_terminal_is_told_nothing(tool, local, deaf_url):
    local(deaf_url)
    assert "no answer" not in tool("render", "a cat", *SMALL, "--wait", 3).err
