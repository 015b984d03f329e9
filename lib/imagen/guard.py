"""The guard of a process group: it kills the group when we die, however that is.

The guard holds one end of a pipe from us: when we die, it reads the end of it and kills the group
that it is in. It is waited for only when all is over, so that the group's number is nobody else's
before.
"""

from __future__ import annotations

import os
from subprocess import DEVNULL, Popen

# it outlives what is sent to its group to end the others well
_SCRIPT = "trap '' INT TERM HUP QUIT PIPE; read -r _; kill -KILL 0"


def start(alive: int, stdout: int = DEVNULL, group: int = 0) -> Popen[bytes]:
    """Start a guard in a group, or as the leader of a new one.

    `alive` is the pipe whose other end only we hold. Whoever reads the other end of `stdout` sees
    when the guard itself has died.
    """
    return Popen(
        ["sh", "-c", _SCRIPT], stdin=alive, stdout=stdout, stderr=DEVNULL, process_group=group
    )


class Guard:
    """Guards the group of a child: its members are killed when we die before this is closed."""

    def __init__(self, leader: int) -> None:
        """Take the child that leads the group; OSError when no process can be had."""
        alive, self._alive = os.pipe()  # closed on exec: no child holds our end
        try:
            self._process = start(alive, group=leader)
        except BaseException:
            os.close(self._alive)
            raise
        finally:
            os.close(alive)

    def close(self) -> None:
        """End the guard, once the members have ended."""
        self._process.kill()
        self._process.wait()
        os.close(self._alive)
