"""Whether and how an image is shown in a tmux window beside ours. Pure but for the spawning."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ..errors import PreviewFault

SHOWER = "tmux-img"


class OutsideTmux(PreviewFault):
    """The preview is on, but this is no tmux session"""

    code = "outside_tmux"
    hint = "run inside tmux, or leave the preview at auto"


class NoTmux(PreviewFault):
    """tmux is not installed"""

    code = "no_tmux"
    hint = "on Debian: apt install tmux"


class NoTmuxImg(PreviewFault):
    """tmux-img, which shows the image, is not on the PATH"""

    code = "no_tmux_img"
    hint = "put it there, or turn the preview off with --no-preview"


def mode(flag: bool | None, configured: str) -> str:
    """Give the mode in force: the flag over what environment and configuration say."""
    return configured if flag is None else "on" if flag else "off"


def wanted(mode: str, on_terminal: bool, environment: Mapping[str, str]) -> bool:
    """Whether to show: on always, off never, auto on a terminal inside tmux."""
    if mode == "auto":
        return on_terminal and bool(environment.get("TMUX"))
    return mode == "on"


def command(path: str) -> list[str]:
    """Give the tmux call for an image; its arguments reach tmux-img through no shell."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(path).stem)[:20]  # tmux runs a #(command) in a name
    return ["tmux", "new-window", "-a", "-n", name, "--", SHOWER, "--hold", path]


def check(environment: Mapping[str, str]) -> None:
    """Raise what keeps a preview from being shown at all."""
    if not environment.get("TMUX"):
        raise OutsideTmux
    if not shutil.which("tmux", path=environment.get("PATH")):
        raise NoTmux
    if not shutil.which(SHOWER, path=environment.get("PATH")):
        raise NoTmuxImg


def show(path: str) -> None:
    """Open the window; PreviewFault when tmux does not."""
    try:
        done = subprocess.run(command(path), capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise PreviewFault(f"tmux did not open a window: {fault}") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise PreviewFault(f"tmux did not open a window: {said or f'status {done.returncode}'}")
