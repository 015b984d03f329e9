"""Starts our tools by forking a Python that has imported them already, once for a worker's tests.

A tool takes 0.1 to 0.3 s of processor time to import what it needs, and the tests start thousands.
What is forked is a process like any other: with its own environment, folder, streams and session,
a child of the process that runs the tests (CLONE_PARENT), with the end of a Python that ran
`python -m imagen TOOL`. Only Linux can do this. $IMAGEN_COLD=1 starts every tool anew, as does each
test whose environment or arguments reach what a Python reads when it starts; CI runs both ways.

Run as a program, it is the Python that forks. `Preloaded` is its other end.
"""

from __future__ import annotations

import array
import atexit
import ctypes
import gc
import importlib
import inspect
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

IS_WANTED = sys.platform == "linux" and not os.environ.get("IMAGEN_COLD")
AT_START = ("PYTHON", "LD_", "LC_", "LANG", "FAKETIME", "OPENSSL", "MALLOC", "GLIBC", "TMPDIR")
CLONE_PARENT = 0x8000
CLONE_NUMBERS = {"x86_64": 56, "aarch64": 220}  # of the system call
LATE = (  # what our modules import only where they need it
    *("PIL.ImageDraw", "PIL.ImageFont", "PIL._imagingft", "PIL.PngImagePlugin"),
    *(
        "colorsys",
        "ctypes",
        "difflib",
        "http.client",
        "psycopg2.extras",
        "pwd",
        "requests.sessions",
    ),
    *("sqlite3", "ssl", "tenacity", "yaml", "encodings.idna"),
)
_EXECUTE = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]


def read_at_start(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a Python and its libraries read when they start."""
    return {name: value for name, value in env.items() if name.startswith(AT_START)}


class Preloaded:
    """A Python with our modules loaded; `can_start` whether it may stand in for a new one."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """Start it with this environment; without one that can fork, `is_there` stays false."""
        self._at_start = read_at_start(env)
        self._lock = threading.Lock()
        self._socket, other = socket.socketpair()
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(other.fileno())],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
            )
        self.is_there = self._socket.recv(1) == b"+"

    def can_start(self, env: Mapping[str, str], popen: Mapping[str, Any]) -> bool:
        """Whether a process of this environment and these arguments of Popen may be forked."""
        plain = {"stdin", "stdout", "stderr", "cwd", "start_new_session", "bufsize"}
        return self.is_there and popen.keys() <= plain and read_at_start(env) == self._at_start

    def fork(self, process: Mapping[str, Any], streams: list[int]) -> int:
        """Fork a process with these standard streams; return its id."""
        with self._lock:
            socket.send_fds(self._socket, [_framed(process)], streams)
            (pid,) = array.array("i", self._receive(4))
        if pid <= 0:
            raise RuntimeError("this system does not fork so (IMAGEN_COLD=1 does without)")
        return int(pid)

    def _receive(self, size: int) -> bytes:
        received = b""
        while len(received) < size:
            part = self._socket.recv(size - len(received))
            if not part:
                raise RuntimeError("the preloaded Python has ended (IMAGEN_COLD=1 does without)")
            received += part
        return received

    def close(self) -> None:
        """End it; what it forked lives on."""
        self._socket.close()
        self._process.wait()


class ForkedTool(subprocess.Popen[bytes]):
    """A tool that a preloaded Python forked; in all else as Popen has it."""

    def __init__(self, preloaded: Preloaded, args: list[str], **popen: Any) -> None:
        self._preloaded = preloaded
        super().__init__(args, **popen)

    def _execute_child(self, *args: Any) -> None:
        """Fork where Popen would start a program."""
        start = _EXECUTE.bind(self, *args).arguments
        ends = [start["p2cread"], start["c2pwrite"], start["errwrite"]]
        streams = [number if end == -1 else end for number, end in enumerate(ends)]  # -1: ours
        process = {
            "arguments": start["args"][3:],  # without `python -m imagen`
            "environment": start["env"],
            "folder": os.fspath(start["cwd"]),
            "own_session": start["start_new_session"],
        }
        self.pid = self._preloaded.fork(process, streams)
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(start[name] for name in pipes))  # type: ignore[attr-defined]


def _framed(process: Mapping[str, Any]) -> bytes:
    text = json.dumps(process).encode()
    return len(text).to_bytes(4, "little") + text


# -- the program -----------------------------------------------------------------------------------


def load() -> None:
    """Import all that a tool may import, and let the forks of this process share its memory."""
    import imagen

    for module in pkgutil.walk_packages(imagen.__path__, "imagen."):
        if module.name not in ("imagen.__main__", "imagen.queue.guard_program"):
            importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)
    import PIL.Image

    PIL.Image.init()
    gc.collect()
    gc.freeze()


def _clone() -> int:
    """Fork as a child of our parent; return the child's id, 0 in the child."""
    python, number = ctypes.pythonapi, CLONE_NUMBERS[os.uname().machine]
    python.PyOS_BeforeFork()
    pid = int(ctypes.CDLL(None).syscall(number, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0))
    (python.PyOS_AfterFork_Parent if pid else python.PyOS_AfterFork_Child)()
    return pid


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork as told until the other end is closed; return in each child, with what it is to be."""
    while True:
        text, descriptors, _, _ = socket.recv_fds(control, 65536, 3)
        if not text:
            return None
        size = int.from_bytes(text[:4], "little") + 4
        while len(text) < size:
            text += control.recv(size - len(text))
        pid = _clone()
        if pid == 0:
            control.close()
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
            os.closerange(3, max(descriptors) + 1)
            return dict(json.loads(text[4:]))
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(array.array("i", [pid]).tobytes())


def _become(process: Mapping[str, Any]) -> None:
    """Set what a new Python would have found."""
    if process["own_session"]:
        os.setsid()
    os.chdir(process["folder"])
    os.environ.clear()
    os.environ.update(process["environment"])
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[0] = process["folder"]
    sys.argv = ["imagen", *process["arguments"]]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        former = getattr(sys, name)
        stream = open(  # noqa: SIM115 - as a Python opens its standard streams
            number,
            "w" if number else "r",
            buffering=1 if number == 2 or os.isatty(number) else -1,
            encoding=former.encoding,
            errors=former.errors,
            closefd=False,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _end(code: object) -> None:
    """End as Python does, but for taking all modules apart, which takes longer than a tool's work.

    What the tool left open, say a ledger, is closed as its objects go. Come back where there is
    something to say first: a text, or streams that cannot be flushed.
    """
    if not isinstance(code, int | None):
        return
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    gc.collect()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit((code or 0) & 0xFF)


def _main() -> None:
    import runpy

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        sys.path.insert(0, "")  # where -m has the current folder
        load()
        CLONE_NUMBERS[os.uname().machine]
    except Exception:  # noqa: BLE001 - whatever it is, the tests do without
        control.sendall(b"-")
        return
    control.sendall(b"+")
    process = _serve(control)
    if process:
        _become(process)
        try:
            runpy.run_module("imagen", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code
        else:
            code = None
        _end(code)  # when nothing holds the frames of the tool any more
        sys.exit(code)


if __name__ == "__main__":
    _main()
