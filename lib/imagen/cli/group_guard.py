"""A guard for the process group of a chain: it kills the group when we die, however that is.

The guard holds one end of a pipe whose other end only we hold: when we die, it reads the end of the
pipe and kills its own group. It is a child of ours and is waited for only at the end, so that no
other process can get the group's number before.
"""

from __future__ import annotations

import os
from subprocess import DEVNULL, Popen

# it outlives the signals that end the others of its group well
_SCRIPT = "trap '' INT TERM HUP QUIT PIPE; read -r _; kill -KILL 0"


class GroupGuard:
    """Guards the group of a child: its members are killed when we die before this is closed."""

    def __init__(self, leader: int) -> None:
        """Take the child that leads the group. Raise OSError when no process can be started."""
        theirs, self._alive = os.pipe()  # closed on exec: no child holds our end
        try:
            self._process = Popen(
                ["sh", "-c", _SCRIPT],
                stdin=theirs,
                stdout=DEVNULL,
                stderr=DEVNULL,
                process_group=leader,
            )
        except BaseException:
            os.close(self._alive)
            raise
        finally:
            os.close(theirs)

    def close(self) -> None:
        """End the guard, once the members have ended."""
        self._process.kill()
        self._process.wait()
        os.close(self._alive)
