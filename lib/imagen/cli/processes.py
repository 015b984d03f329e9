"""Start a pipeline of our own tools as child processes, and stop it well."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import IO, Any, NamedTuple, NoReturn

from .. import signals
from ..errors import Stopped
from .group_guard import GroupGuard

_PART = 2**16


class Extra(NamedTuple):
    """What the first stage gets besides: variables of its environment, and open descriptors."""

    environment: Mapping[str, str] = {}
    descriptors: tuple[int, ...] = ()


NOTHING = Extra()


def argv(tool: str, *arguments: str) -> list[str]:
    """Give the command line of one of our tools, run by the Python that runs us.

    -P: no file in the working directory is taken for a module.
    """
    return [sys.executable, "-P", "-m", "imagen", tool.removeprefix("imagen-"), *arguments]


def replace_process(stage: list[str]) -> NoReturn:
    """Run a tool in our place: it gets our streams, our parent and our signals."""
    os.execv(stage[0], stage)


def run(
    stages: list[list[str]],
    on_line: Callable[[bytes], None],
    reads_stdin: bool,
    extra: Extra = NOTHING,
) -> list[int]:
    """Run the stages as one pipeline, give each line of its end to `on_line`; gives their statuses.

    The stages stand in a process group of their own: a signal reaches us alone, and we hand it to
    the first stage, which ends its work well; the others end with their input. When we are killed,
    the guard of the group kills them.
    """
    children: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        try:
            _forward(children, lambda: _start(children, stages, reads_stdin, extra, stack))
            output = _Output(on_line)
            _forward(children, lambda: output.read(_stdout(children[-1]).fileno()))
        except BaseException:
            _terminate(children)  # a paid render goes on at its provider; the others see its end
            raise
        finally:
            if children:
                _stdout(children[-1]).close()
            _forward(children, lambda: [child.wait() for child in children])
    return [_status(child.returncode) for child in children]


def feed(stage: list[str], data: bytes, on_line: Callable[[bytes], None]) -> int:
    """Run one tool on `data`, give each line of its output to `on_line`; gives its status."""
    with ExitStack() as stack:
        child = subprocess.Popen(
            stage, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
        )
        stack.enter_context(child)
        try:
            stack.callback(GroupGuard(child.pid).close)
            output, _ = child.communicate(data)
        except BaseException:
            child.kill()
            raise
    for line in output.splitlines(keepends=True):
        on_line(line)
    return _status(child.returncode)


def _start(
    children: list[subprocess.Popen[bytes]],
    stages: list[list[str]],
    reads_stdin: bool,
    extra: Extra,
    stack: ExitStack,
) -> None:
    """Start the stages that do not run yet; a signal waits until all of them do.

    The first leads the group. Its guard comes right behind it, long before it can do anything.
    """
    with signals.held():
        for stage in stages[len(children) :]:
            last = _stdout(children[-1]) if children else None
            source: Any = last or (None if reads_stdin else subprocess.DEVNULL)
            child = subprocess.Popen(
                stage,
                stdin=source,
                stdout=subprocess.PIPE,
                process_group=children[0].pid if children else 0,
                env={**os.environ, **({} if children else extra.environment)},
                pass_fds=() if children else extra.descriptors,
            )
            children.append(child)
            if last is None:
                stack.callback(GroupGuard(child.pid).close)
            else:
                last.close()  # the next stage holds it now: its end is seen when it ends


class _Output:
    """The lines at the end of the pipeline; no signal comes in the middle of one."""

    def __init__(self, on_line: Callable[[bytes], None]) -> None:
        self._on_line = on_line
        self._parts: list[bytes] = []  # of a line that has not ended

    def read(self, descriptor: int) -> None:
        """Read to the end; may be called again when a signal has ended it."""
        while True:
            signals.wait_readable(descriptor)
            with signals.held():
                part = os.read(descriptor, _PART)
                self._take(part)
                if not part:
                    return

    def _take(self, part: bytes) -> None:
        *whole, rest = part.split(b"\n")
        for end in whole:
            line = b"".join([*self._parts, end, b"\n"])
            self._parts = []
            self._on_line(line)
        if rest:
            self._parts.append(rest)
        elif not part and self._parts:
            self._on_line(b"".join(self._parts))
            self._parts = []


def _forward(children: list[subprocess.Popen[bytes]], step: Callable[[], Any]) -> None:
    """Take a step; hand signals that come meanwhile to the first stage, and go on with the step."""
    while True:
        try:
            step()
            return
        except Stopped as stopped:
            stopped.heeded = True
            if children:
                children[0].send_signal(stopped.status - 128)


def _stdout(child: subprocess.Popen[bytes]) -> IO[bytes]:
    assert child.stdout is not None
    return child.stdout


def _terminate(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children[:1]:
        child.terminate()


def _status(code: int) -> int:
    return 128 - code if code < 0 else code
