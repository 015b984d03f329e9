"""Who asked: the record's own caller, else $MAI_FROM_ID, else the tmux pane's name, else user@host.

Asked of the system once in a process, and only by what makes new renders.
"""

from __future__ import annotations

import os
from functools import cache


@cache
def caller() -> str:
    """Give who runs us, at most 200 characters."""
    found = os.environ.get("MAI_FROM_ID", "").strip() or _pane() or _user()
    text = "".join(one if one.isprintable() else " " for one in found).strip()
    return text.encode(errors="replace").decode()[:200] or "unknown"


def _pane() -> str:
    """Give the name that the tmux pane was given as its option @mai-name; nothing without one."""
    pane = os.environ.get("TMUX_PANE")
    if not pane or not os.environ.get("TMUX"):
        return ""
    import subprocess

    command = ["tmux", "display-message", "-p", "-t", pane, "#{@mai-name}"]
    try:
        said = subprocess.run(command, capture_output=True, timeout=2, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.decode(errors="replace").strip() if said.returncode == 0 else ""


def _user() -> str:
    import pwd

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"{name}@{os.uname().nodename}"
