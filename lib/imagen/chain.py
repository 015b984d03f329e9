"""Start a pipeline of our own tools as child processes, and stop it well."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

from .errors import Stopped


def argv(tool: str, *arguments: str) -> list[str]:
    """Give the command line of one of our tools, run by the Python that runs us.

    -P: no file in the working directory is taken for a module.
    """
    return [sys.executable, "-P", "-m", "imagen", tool.removeprefix("imagen-"), *arguments]


def run(stages: list[list[str]], on_line: Callable[[bytes], None], reads_stdin: bool) -> list[int]:
    """Run the stages as one pipeline, give each line of its end to `on_line`; gives their statuses.

    The stages stand in process groups of their own: a signal reaches us alone, and we hand it to
    the first stage, which ends its work well; the others end with their input.
    """
    children = _start(stages, reads_stdin)
    last = children[-1].stdout
    assert last is not None
    try:
        _attend(children[0], last, on_line)
    except BaseException:
        children[0].terminate()  # a paid render goes on at its provider; the others see its end
        raise
    finally:
        last.close()
        statuses = [_status(child.wait()) for child in children]
    return statuses


def feed(stage: list[str], data: bytes, on_line: Callable[[bytes], None]) -> int:
    """Run one tool on `data`, give each line of its output to `on_line`; gives its status."""
    done = subprocess.run(stage, input=data, stdout=subprocess.PIPE, check=False)
    for line in done.stdout.splitlines(keepends=True):
        on_line(line)
    return _status(done.returncode)


def _start(stages: list[list[str]], reads_stdin: bool) -> list[subprocess.Popen[bytes]]:
    children: list[subprocess.Popen[bytes]] = []
    source: Any = None if reads_stdin else subprocess.DEVNULL
    for stage in stages:
        child = subprocess.Popen(
            stage, stdin=source, stdout=subprocess.PIPE, process_group=0, env={**os.environ}
        )
        if children and children[-1].stdout is not None:
            children[-1].stdout.close()  # the next stage holds it now: its end is seen when it ends
        children.append(child)
        source = child.stdout
    return children


def _attend(
    first: subprocess.Popen[bytes], last: Iterable[bytes], on_line: Callable[[bytes], None]
) -> None:
    while True:
        try:
            for line in last:
                on_line(line)
            return
        except Stopped as stopped:
            first.send_signal(stopped.status - 128)


def _status(code: int) -> int:
    return 128 - code if code < 0 else code
