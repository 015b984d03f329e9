"""The ledger: its random id, and the locks that tell a living render from a dead one."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from imagen import ledger
from imagen.ledger import Ledger, LedgerFault

NAME = "0b3c1d5e-0000-4000-8000-0123456789ab"


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "state" / "deep" / "ledger.sqlite3"


def test_its_id_is_random_and_stays(path, tmp_path):
    first = Ledger(path)
    assert uuid.UUID(first.id).version == 4
    assert Ledger(path).id == first.id
    assert Ledger(tmp_path / "other.sqlite3").id != first.id


def test_it_is_for_its_owner_alone(path):
    Ledger(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_opened_by_many_at_once_it_has_one_id(path):
    with ThreadPoolExecutor(8) as pool:
        ids = {each.id for each in pool.map(lambda _: Ledger(path), range(8))}
    assert len(ids) == 1


def test_whoever_makes_it_waits_for_others_that_are_making_it(path):
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("begin immediate")
        timer = threading.Timer(0.2, other.execute, ["commit"])
        timer.start()
        assert Ledger(path).id
        timer.join()


def test_a_uuid_is_its_own_global_id_and_any_other_name_is_made_one(path, tmp_path):
    mine, other = Ledger(path), Ledger(tmp_path / "other.sqlite3")
    assert mine.render_id(NAME.upper()) == NAME
    assert mine.render_id("cover") == mine.render_id("cover")
    assert mine.render_id("cover") != mine.render_id("Cover")
    assert mine.render_id("cover") != other.render_id("cover")
    assert mine.render_id("cover") == str(uuid.uuid5(uuid.UUID(mine.id), "cover"))


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0 and junk"])
def test_a_file_that_is_no_ledger_is_named_and_left_alone(path, content):
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(LedgerFault, match=r"ledger\.sqlite3") as caught:
        Ledger(path)
    assert caught.value.exit_status == 2
    assert path.read_bytes() == content


def test_a_database_of_something_else_is_no_ledger(path):
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as db:
        db.execute("create table mine (x)")
        db.execute("pragma user_version = 7")
    db.close()
    with pytest.raises(LedgerFault):
        Ledger(path)


def test_without_a_place_it_says_so_and_draws_an_id_for_this_run(tmp_path):
    (tmp_path / "file").touch()
    notes: list[str] = []
    opened = [ledger.opened(tmp_path / "file" / "ledger", notes.append) for _ in range(2)]
    assert opened[0].id != opened[1].id
    assert opened[0].path is None
    assert len(notes) == 2
    assert "$IMAGEN_LEDGER" in notes[0]
    with opened[0].lock("x") as mine, opened[0].lock("x", wait=False) as theirs:
        assert (mine, theirs) == (True, False)


# -- locks -----------------------------------------------------------------------------------------


def locks(path: Path) -> list[Path]:
    return [*(path.parent / "locks").iterdir()]


def test_a_lock_is_held_by_one_and_gone_afterwards(path):
    mine, theirs = Ledger(path), Ledger(path)
    with mine.lock("a") as held:
        assert held
        assert len(locks(path)) == 1
        with theirs.lock("a", wait=False) as second:
            assert not second
        with theirs.lock("b", wait=False) as other:
            assert other
        assert len(locks(path)) == 1, "whoever did not get it removes nothing"
    assert locks(path) == []
    with theirs.lock("a", wait=False) as held:
        assert held


def test_a_lock_is_freed_when_the_work_fails(path):
    with pytest.raises(ZeroDivisionError), Ledger(path).lock("a"):
        raise ZeroDivisionError
    with Ledger(path).lock("a", wait=False) as held:
        assert held


def test_whoever_waits_gets_it_next(path):
    order: list[str] = []

    def wait() -> None:
        with Ledger(path).lock("a"):
            order.append("second")

    thread = threading.Thread(target=wait)
    with Ledger(path).lock("a"):
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


HOLD = """
import sys
from pathlib import Path
from imagen.ledger import Ledger
with Ledger(Path(sys.argv[1])).lock("a"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_kernel_frees_the_lock_of_a_killed_process(path, tool):
    child = tool.start("", argv=[sys.executable, "-c", HOLD, str(path)])
    assert child.stdout.readline() == b"held\n"
    mine = Ledger(path)
    with mine.lock("a", wait=False) as held:
        assert not held
    child.kill()
    child.wait()
    assert len(locks(path)) == 1, "the file stays, the lock does not"
    with mine.lock("a", wait=False) as held:
        assert held
    assert locks(path) == []


def test_no_two_processes_ever_hold_one_lock(path, tool):
    counter = """
import sys
from pathlib import Path
from imagen.ledger import Ledger
ledger, number = Ledger(Path(sys.argv[1])), Path(sys.argv[2])
for _ in range(100):
    with ledger.lock("a"):
        number.write_text(str(int(number.read_text()) + 1))
"""
    number = path.with_name("number")
    Ledger(path)
    number.write_text("0")
    argv = [sys.executable, "-c", counter, str(path), str(number)]
    children = [tool.start("", argv=argv, stderr=subprocess.STDOUT) for _ in range(3)]
    assert [child.communicate(timeout=20)[0] for child in children] == [b"", b"", b""]
    assert number.read_text() == "300"
