"""The guard: a small program that starts a command and ends all its processes with its owner.

It leads a process group, and on Linux every process below it that loses its parent becomes its
child, so that a process which leaves the group (setsid, a daemon) is still found. It ends them all
when its stdin ends, which is the owner's death, however that comes about; when it is told to; and
when the time is over that the owner last allowed, because a stopped owner cannot end anything.

It runs by its path under the bare interpreter and imports nothing of the package; process_tree.py
starts it. Arguments: the mark; the descriptors of the command's stdin, of its stdout, and of the
pipe that all its processes hold; the command. Lines on stdin: `until T` (CLOCK_BOOTTIME, or inf),
`signal N`, `kill`. Lines on stdout: `first` when the command's own process has ended, `all` when no
process is left, `left PID...` for what cannot be ended.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

MARK = "IMAGEN_GUARD"  # stands in the environment of every process that is guarded
KILL_S = 2.0  # for processes that were killed to be gone
_LOOK_S = 0.2  # poll() does not count the time a machine sleeps, so the clock is read this often
_OWN = ("INT", "TERM", "HUP", "QUIT", "PIPE", "TSTP", "TTIN", "TTOU")  # the guard outlives these
_OF_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)  # the interpreter ignores them, commands must not
_PR_SET_CHILD_SUBREAPER = 36


def boottime() -> float:
    """Return the seconds since the machine started, as clock.boottime does, which is not here."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def become_subreaper() -> None:
    """Let orphans below this process become its children, where the system can do that."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return


def processes() -> dict[int, tuple[int, int]]:
    """Return the parent and the process group of every live process; nothing without /proc."""
    try:
        names = os.listdir("/proc")  # noqa: PTH208 - pathlib takes as long to import as all else
    except OSError:
        return {}
    table = {}
    for name in names:
        fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split() if name.isdigit() else []
        if len(fields) > 2 and fields[0] not in (b"Z", b"X"):
            table[int(name)] = (int(fields[1]), int(fields[2]))
    return table


def guarded(mark: str, root: int | None = None) -> set[int]:
    """Return the live processes below `root`, and those whose environment has the mark."""
    table = processes()
    entry = f"{MARK}={mark}".encode()
    members = {pid for pid in table if entry in _read(f"/proc/{pid}/environ").split(b"\0")}
    added = {pid for pid, (parent, _group) in table.items() if parent == root}
    while added:
        members |= added
        added = {pid for pid, (parent, _group) in table.items() if parent in members} - members
    return members - {os.getpid()}


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone, or another user's."""
    try:
        os.kill(pid, number)
    except OSError:
        return


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        parts = []
        while part := os.read(descriptor, 2**16):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


class _Guard:
    """The running guard."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.until = float("inf")
        self.first = 0  # the command's own process
        self.alone = False  # no process is left below
        self.over = False
        self._text = b""

    def start(self, source: int, sink: int, command: list[str]) -> None:
        """Start the command with these streams, and the signals as the owner had them."""
        own = [getattr(signal, f"SIG{name}") for name in _OWN]
        reset = [one for one in own if signal.getsignal(one) is not signal.SIG_IGN]
        for number in own:
            signal.signal(number, signal.SIG_IGN)
        self.first = os.posix_spawnp(
            command[0],
            command,
            {**os.environ, MARK: self.mark},
            file_actions=[
                *((os.POSIX_SPAWN_DUP2, source, 0), (os.POSIX_SPAWN_DUP2, sink, 1)),
                *((os.POSIX_SPAWN_CLOSE, source), (os.POSIX_SPAWN_CLOSE, sink)),
            ],
            setsigdef={*reset, *_OF_PYTHON},
        )

    def serve(self, wakes: int) -> None:
        """Obey and reap until everything must end."""
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(wakes, select.POLLIN)
        while not self.over and boottime() < self.until:
            wait_s = None if self.until == float("inf") else _LOOK_S * 1000
            ready = [descriptor for descriptor, _events in poll.poll(wait_s)]
            if wakes in ready:
                os.read(wakes, 4096)
                self.reap()
            if 0 in ready:
                self._obey(os.read(0, 4096))

    def _obey(self, part: bytes) -> None:
        *lines, self._text = (self._text + part).split(b"\n")
        self.over = not part
        for line in lines:
            word, _, value = line.partition(b" ")
            if word == b"until":
                self.until = float(value)
            elif word == b"signal":
                self._pass_on(int(value))
            elif word == b"kill":
                self.over = True

    def _pass_on(self, number: int) -> None:
        """Send a signal to the processes that have left the group; the owner signals the group."""
        members = guarded(self.mark, os.getpid())
        table = (
            processes()
        )  # after them: what began meanwhile, in the group, is no member that left
        for pid in members & {*table}:
            if table[pid][1] != os.getpid():
                send(pid, number)

    def reap(self) -> None:
        """Collect the children that have ended, and report what that means."""
        try:
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                if pid == self.first:
                    _report("first")
        except ChildProcessError:
            if not self.alone:
                self.alone = True
                _report("all")

    def end(self) -> None:
        """Kill every guarded process, then the group with the guard itself."""
        ends = boottime() + KILL_S
        while living := guarded(self.mark, os.getpid()):
            for pid in sorted(living):  # parents first: a shell would report its children's death
                send(pid, signal.SIGKILL)
            self.reap()
            if boottime() > ends:
                _report(f"left {' '.join(map(str, sorted(living)))}")
                break
            time.sleep(0.005)
        os.kill(0, signal.SIGKILL)


def _report(text: str) -> None:
    try:
        os.write(1, f"{text}\n".encode())
    except OSError:  # the owner is gone
        return


def main(arguments: list[str]) -> None:
    """Run the guard."""
    mark, source, sink, lifetime, *command = arguments
    wakes, woken = os.pipe()
    for descriptor in (wakes, woken):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    become_subreaper()
    guard = _Guard(mark)
    try:
        guard.start(int(source), int(sink), command)
        for number in (source, sink, lifetime):
            os.close(int(number))
        guard.serve(wakes)
    finally:
        guard.end()


if __name__ == "__main__":
    main(sys.argv[1:])
