"""Servers of the tests end with whoever uses them, however that ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from servers.guarded import DidNotStart, Guarded, new_folder

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc to look into")
USER = """
import sys
sys.path.insert(0, sys.argv[1])
from servers.guarded import Guarded
from pathlib import Path
folder = Path(sys.argv[2])
share = Guarded(folder)
if not (folder / "pid").exists():
    share.run(["sleep", "60"], lambda: True)
print(share.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def use(tmp_path):
    """Start processes that use one server; give the process and the server's pid."""
    folder, started = new_folder("test"), []

    def start():
        command = [sys.executable, "-c", USER, str(HERE), str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        child = subprocess.Popen(command, **pipes, start_new_session=True)
        started.append(child)
        return child, int(child.stdout.readline())

    start.folder = folder
    yield start
    for child in started:
        child.kill()
        child.communicate()
    shutil.rmtree(folder, ignore_errors=True)  # a guard that was killed cannot


def lives(pid):
    with suppress(ProcessLookupError, FileNotFoundError):  # it may end between the two
        os.kill(pid, 0)
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_a_server_ends_with_its_only_user_even_when_that_is_killed(use, until):
    child, server = use()
    assert lives(server)
    os.killpg(child.pid, signal.SIGKILL)
    until(lambda: not lives(server))
    until(lambda: not use.folder.exists())


def test_a_server_lives_until_the_last_of_its_users_ends(use, until):
    (first, server), (second, same) = use(), use()
    assert server == same
    first.kill()
    first.wait()
    third, same = use()
    assert server == same
    assert lives(server)
    second.kill()
    third.kill()
    until(lambda: not lives(server))
    until(lambda: not use.folder.exists())


def test_a_server_ends_when_its_guard_is_killed(use, until):
    _, server = use()
    status = Path(f"/proc/{server}/status").read_text()
    guard = int(status.partition("PPid:")[2].split()[0])
    os.kill(guard, signal.SIGKILL)
    until(lambda: not lives(server))


def test_a_server_is_started_again_in_its_folder_and_still_ends_with_its_user(use, until):
    child, server = use()
    share = Guarded(use.folder)
    share.again(signal.SIGKILL, lambda: True, away_s=0.1)
    assert not lives(server)
    assert lives(share.pid)
    server = share.pid
    share.let_go()
    assert lives(server)
    child.kill()
    until(lambda: not lives(server))
    until(lambda: not use.folder.exists())


def test_one_that_does_not_start_says_why_and_leaves_nothing():
    share = Guarded(new_folder("test"))
    with pytest.raises(DidNotStart, match="no port today"):
        share.run(["sh", "-c", "echo no port today; sleep 0.1; exit 3"], lambda: False)
    share.let_go()
    assert not share.folder.exists()


def test_a_killed_test_run_leaves_no_postgresql_behind(cluster, tmp_path, until):
    """The real thing: what the fixture starts, and its runner killed."""
    script = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from pathlib import Path\nfrom servers import postgres\n"
        f"cluster = postgres.shared(Path({str(tmp_path)!r}))\n"
        "print(cluster.share.pid, cluster.share.folder, flush=True)\nsys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    pid, folder = child.stdout.readline().decode().split()
    assert lives(int(pid))
    child.kill()
    child.communicate()
    until(lambda: not lives(int(pid)))
    until(lambda: not Path(folder).exists())
