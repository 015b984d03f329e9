"""The demos do what they show, in a folder of the test's own."""

import sys
from pathlib import Path

TOP = Path(__file__).parents[1]


def test_the_worker_demo_makes_three_images_and_leaves_nothing_running(cluster, tool):
    argv = [sys.executable, str(TOP / "docs/demo_worker.py"), "made"]
    done = tool("demo", argv=argv, env={"PYTHONPATH": str(TOP / "tests/support")}, timeout=90)
    mark = str(tool.folder / "made").encode()
    assert done.status == 0, done.err
    shown = done.out.decode()
    assert shown.count("| a ") == 3
    images = [Path(line) for line in shown.splitlines() if line.endswith(".png")]
    assert len([image for image in images if image.stat().st_size]) == 3
    assert not [one for one in Path("/proc").glob("[0-9]*/environ") if mark in environ(one)]


def environ(process: Path) -> bytes:
    """The environment of a process, nothing when it is gone or another user's."""
    try:
        return process.read_bytes()
    except OSError:
        return b""
