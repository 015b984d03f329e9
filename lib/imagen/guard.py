"""The guard of a process group: it kills the group when we die, however that is.

The guard is the group's leader. It holds one end of a pipe from us: when we die, it reads the end
of it and kills the group. It is waited for only when all is over, so that its number, which is the
group's, is nobody else's before.
"""

from __future__ import annotations

import subprocess

# it outlives what is sent to its group to end the others well
_SCRIPT = "trap '' INT TERM HUP QUIT PIPE; read -r _; kill -KILL 0"


def start(alive: int, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Start a guard in a new group; `alive` is the pipe whose other end only we hold.

    Whoever reads the other end of `stdout` sees when the guard itself has died.
    """
    return subprocess.Popen(
        ["sh", "-c", _SCRIPT],
        stdin=alive,
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
