"""The ledger: its random id, its locks, its versions, the journal, and what was spent."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import imagen
from imagen import ledger
from imagen.ledger import Journal, Ledger, LedgerFault
from imagen.ledger.database import Database
from imagen.ledger.journal import Asker, Intent
from imagen.ledger.spending import Spent, spent

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


def open_descriptors() -> int:
    gc.collect()  # what other tests have left open
    return len([*Path("/proc/self/fd").iterdir()])


def test_whoever_does_not_get_a_lock_leaves_no_descriptor_open(path):
    mine, theirs = Ledger(path), Ledger(path)
    with mine.lock("a"):
        before = open_descriptors()
        for _ in range(20):
            with theirs.lock("a", wait=False) as held:
                assert not held
        assert open_descriptors() == before


def test_a_lock_whose_file_is_replaced_meanwhile_leaves_no_descriptor_open(path, monkeypatch):
    mine, real = Ledger(path), fcntl.flock
    replaced = []

    def flock(descriptor: int, how: int) -> None:
        real(descriptor, how)
        if len(replaced) < 20:
            (file,) = locks(path)
            file.unlink()
            replaced.append(file)

    monkeypatch.setattr(fcntl, "flock", flock)
    before = open_descriptors()
    with mine.lock("a") as held:
        assert held
        assert open_descriptors() == before + 1
    assert len(replaced) == 20


def test_a_place_for_locks_that_goes_away_later_in_a_run_is_told_as_the_ledgers(path):
    ours = Ledger(path)
    with ours.lock("a") as held:
        assert held
    (path.parent / "locks").rmdir()
    (path.parent / "locks").write_text("a file stands where the folder was")
    with (
        pytest.raises(LedgerFault, match=r"ledger\.sqlite3 cannot be used: no lock"),
        ours.lock("b"),
    ):
        pass


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


# -- versions --------------------------------------------------------------------------------------


def raw(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


def test_a_ledger_of_the_first_version_keeps_its_id_and_gets_a_journal(path):
    path.parent.mkdir(parents=True)
    raw(
        path,
        "pragma journal_mode = wal",
        "create table ledger (id text not null)",
        f"insert into ledger values ('{NAME}')",
        "pragma user_version = 1",
    )
    upgraded = Ledger(path)
    assert upgraded.id == NAME
    assert upgraded.journal.unfinished() == []
    assert upgraded.usage.rows() == []
    assert Ledger(path).id == NAME


def test_an_upgrade_that_fails_in_the_middle_leaves_the_version_as_it_was(path, monkeypatch):
    from imagen.ledger import database

    kept = Ledger(path).id
    broken = [*database._VERSIONS, "create table more (x);\ncreate table ledger (x)"]
    monkeypatch.setattr(database, "_VERSIONS", broken)
    with pytest.raises(LedgerFault):
        Ledger(path)
    monkeypatch.undo()
    assert Ledger(path).id == kept


def test_a_ledger_of_a_newer_version_is_left_alone(path):
    Ledger(path).close()
    raw(path, "pragma user_version = 99")
    with pytest.raises(LedgerFault, match="newer imagen") as caught:
        Ledger(path)
    assert "$IMAGEN_LEDGER" in str(caught.value.hint)


def test_additions_leave_the_version_that_older_releases_know(path):
    from imagen.ledger import database

    Ledger(path).close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("pragma user_version").fetchone() == (len(database._VERSIONS),)
        assert db.execute("select number from additions").fetchall() == [
            (len(database._ADDITIONS),)
        ]


def test_a_ledger_without_the_additions_gets_them_and_keeps_its_rows(path, monkeypatch):
    from imagen.ledger import database

    with monkeypatch.context() as old:
        old.setattr(database, "_ADDITIONS", [])
        Ledger(path).close()
    with closing(sqlite3.connect(path)) as db, db:  # as an older release does
        db.execute(
            "insert into renders (render_id, id, given, asked, caller, backend, state, request,"
            " place, created_at) values ('r', 'k', 0, 'asked', 'ann', 'rep', 'open', ?, '{}', 1)",
            [json.dumps(RECORD)],
        )
        db.execute(
            "insert into submits (render_id, number, backend, plan, caller, intended_at)"
            " values ('r', 1, 'rep', '{}', 'ann', 1)"
        )
    after = Ledger(path)
    entry = after.journal.entry("r")
    assert entry and entry.request == RECORD
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("select attempt_at, server_date from submits").fetchall() == [
            (None, None)
        ]


# -- the journal -----------------------------------------------------------------------------------

RECORD: dict[str, Any] = {"id": "k", "prompt": "é🎨\n\x00'", "backend": "rep", "seed": 2**64 - 1}
PLACE = {"folder": "/out", "stem": "k-1", "suffix": "", "asked_for": False}
UNNAMED = Asker(False, "asked", "ann")
ERROR = {"code": "x", "message": "m", "billed": "unknown", "retry": "never"}


def intent(render: str = "r", number: int = 1, usd: float | None = 0.25, **more: Any) -> Intent:
    return Intent(render, number, RECORD, PLACE, {"cost_usd": usd, "seed": 2**64 - 1}, **more)


@pytest.fixture
def journal(path) -> Journal:
    return Ledger(path).journal


def spent_of(path: Path, caller: str = "ann", now: float | None = None) -> Spent:
    return spent(Database(path), caller, now or time.time())


def test_an_intent_comes_back_as_it_was_also_in_another_process(path, journal):
    began = journal.intend(intent(), UNNAMED)
    entry = Ledger(path).journal.entry("r")
    assert entry is not None
    assert (entry.request, entry.place) == (RECORD, PLACE)
    assert entry.plan == {"cost_usd": 0.25, "seed": 2**64 - 1}
    assert (entry.state, entry.number, entry.handle) == ("open", 1, None)
    assert (entry.intended_at, entry.is_over) == (began, False)
    assert journal.entry("other") is None


def test_from_intent_to_delivery_it_is_unfinished_and_taken_up_until_it_is_delivered(journal):
    steps = [
        lambda: journal.intend(intent(), UNNAMED),
        lambda: journal.submitted("r", 1, "h"),
        lambda: journal.done("r", 1, [{"id": "k", "cost_usd": 0.2}], paid=True),
    ]
    for number, step in enumerate(steps):
        step()
        assert (journal.unfinished(), journal.undelivered(UNNAMED)) == (["r"], ["r"])
        assert journal.is_open("r") is (number < 2)
    journal.delivered("r")
    assert (journal.unfinished(), journal.undelivered(UNNAMED)) == ([], [])


@pytest.mark.parametrize(("synced", "mode"), [(True, "full"), (False, "normal")])
def test_a_handle_is_on_the_disk_unless_the_intent_tells_it_already(journal, synced, mode):
    said = []
    journal.intend(intent(), UNNAMED)
    journal._db._db.set_trace_callback(said.append)
    assert journal.submitted("r", 1, "h", synced=synced)
    assert f"pragma synchronous = {mode}" in said


# -- uploads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "mode"), [({"code": "unreachable"}, "full"), (None, "normal")])
def test_an_upload_that_failed_is_on_the_disk_and_one_that_is_under_way_need_not_be(
    path, error, mode
):
    said: list[str] = []
    ours = Ledger(path)
    ours.uploads._db._db.set_trace_callback(said.append)
    ours.uploads.keep({"render_id": "r"}, error)
    assert [line for line in said if "synchronous" in line] == [f"pragma synchronous = {mode}"]


def test_what_is_to_be_uploaded_comes_oldest_first_and_keeps_its_place(path, monkeypatch):
    uploads = Ledger(path).uploads
    for name, at in (("b", 10.0), ("c", 30.0), ("a", 20.0), ("b", 40.0)):
        monkeypatch.setattr(time, "time", lambda at=at: at)
        uploads.keep({"render_id": name, "at": at}, {"code": "unreachable"})
    assert uploads.kept() == [
        {"render_id": "b", "at": 40.0},
        {"render_id": "a", "at": 20.0},
        {"render_id": "c", "at": 30.0},
    ]


# -- the journal: who takes up what ----------------------------------------------------------------


@pytest.mark.parametrize(
    "other", [Asker(False, "asked", "ben"), Asker(False, "other", "ann"), Asker(False, "", "")]
)
def test_another_asker_takes_up_nothing(journal, other):
    journal.intend(intent(), UNNAMED)
    assert journal.undelivered(other) == []


def test_what_has_a_name_or_failed_or_is_old_is_not_taken_up(path, journal):
    journal.intend(intent("named"), Asker(True, "asked", "ann"))
    journal.intend(intent("failed"), UNNAMED)
    journal.failed("failed", 1, ERROR, [])
    journal.intend(intent("old"), UNNAMED)
    raw(path, "update renders set created_at = created_at - 3601 where render_id = 'old'")
    assert journal.undelivered(UNNAMED) == []
    assert journal.unfinished() == ["old", "named"]


def test_those_to_take_up_come_oldest_first(journal):
    names = ["b", "c", "a"]
    for name in names:
        journal.intend(intent(name), UNNAMED)
    assert journal.undelivered(UNNAMED) == journal.unfinished() == names


def test_a_handle_belongs_to_one_submit_of_an_instance(path, journal):
    for name in ("one", "two"):
        journal.intend(intent(name), UNNAMED)
    assert journal.submitted("one", 1, "h")
    assert journal.submitted("one", 1, "h"), "written twice is no theft"
    assert not Ledger(path).journal.submitted("two", 1, "h")
    assert journal.owners("h") == {("one", 1)}
    assert journal.owners("another") == set()
    entry = journal.entry("two")
    assert entry is not None
    assert entry.handle is None
    assert not journal.adopt(intent("three", handle="h"), UNNAMED)
    assert journal.entry("three") is None
    elsewhere = intent("three", handle="h")._replace(request={**RECORD, "backend": "another"})
    assert journal.adopt(elsewhere, UNNAMED)
    assert journal.owners("h") == {("one", 1), ("three", 1)}


def test_an_intent_that_is_withdrawn_was_never_there(path, journal):
    journal.intend(intent(), UNNAMED)
    journal.withdraw("r", 1)
    assert journal.entry("r") is None
    assert spent_of(path).day == 0


def test_a_second_intent_that_is_withdrawn_leaves_what_the_first_came_to(journal):
    journal.intend(intent(), UNNAMED)
    journal.failed("r", 1, {**ERROR, "billed": "no"}, [])
    journal.intend(intent(number=2, absent=1), UNNAMED)
    journal.withdraw("r", 2)
    entry = journal.entry("r")
    assert entry is not None
    assert (entry.state, entry.number) == ("failed", 1)


def test_an_intent_that_is_refused_leaves_nothing(path, journal):
    def refuse(_spent: Spent) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        journal.intend(intent(), UNNAMED, refuse)
    assert journal.entry("r") is None
    assert spent_of(path) == (0, 0, 0, pytest.approx(time.time(), abs=5), (), ())


# -- what was spent --------------------------------------------------------------------------------


def test_an_open_submit_counts_with_its_estimate_and_a_done_one_with_its_cost(path, journal):
    journal.intend(intent(), UNNAMED)
    assert spent_of(path)[:3] == (0.25, 0.25, 0.25)
    journal.done("r", 1, [{"id": "k", "cost_usd": 0.2}], paid=True)
    assert spent_of(path)[:3] == (0.2, 0.2, 0.2)
    assert spent_of(path, "ben")[:3] == (0.2, 0.2, 0)


@pytest.mark.parametrize(("billed", "usd"), [("no", 0), ("unknown", 0.25), ("yes", 0.25)])
def test_a_failed_submit_counts_unless_it_was_not_billed(path, journal, billed, usd):
    journal.intend(intent(), UNNAMED)
    journal.failed("r", 1, {**ERROR, "billed": billed}, [])
    assert spent_of(path).day == usd


def test_what_is_not_proven_absent_counts_beside_the_submit_that_follows(path, journal):
    journal.intend(intent(), UNNAMED)
    seen: list[Spent] = []
    journal.intend(intent(number=2), UNNAMED, seen.append)
    assert (seen[0].day, spent_of(path).day) == (0.25, 0.5)


def test_what_another_submit_has_replaced_does_not_count_against_it(path, journal):
    journal.intend(intent(), UNNAMED)
    seen: list[Spent] = []
    journal.intend(intent(number=2, absent=1), UNNAMED, seen.append)
    assert seen[0].day == 0
    assert spent_of(path).day == 0.25


def test_what_costs_nothing_or_nobody_knows_how_much_is_not_summed(path, journal):
    journal.intend(intent("free", usd=0), UNNAMED)
    journal.intend(intent("unknown", usd=None), UNNAMED)
    assert spent_of(path)[:3] == (0, 0, 0)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("begun", "now", "day", "month"),
    [
        ("2026-11-23T00:00:00", "2026-11-23T23:59:59", 1, 1),
        ("2026-11-22T23:59:59", "2026-11-23T00:00:00", 0, 1),
        ("2026-10-31T23:59:59", "2026-11-01T00:00:00", 0, 0),
        ("2026-11-01T00:00:00", "2026-11-30T12:00:00", 0, 1),
        ("2026-12-31T23:59:59", "2027-01-01T00:00:00", 0, 0),
        ("2028-02-29T12:00:00", "2028-02-29T13:00:00", 1, 1),
        ("2028-02-29T23:00:00", "2028-03-01T00:00:00", 0, 0),
    ],
)
def test_days_and_months_end_at_midnight_utc_whatever_the_clock_on_the_wall(
    path, journal, monkeypatch, begun, now, day, month
):
    for zone in ("UTC", "Pacific/Auckland", "America/Los_Angeles"):
        with monkeypatch.context() as wall:
            wall.setenv("TZ", zone)
            time.tzset()
            journal.intend(intent(usd=1), UNNAMED)
            journal.done("r", 1, [{"id": "k", "cost_usd": 1}], paid=True)
            raw(path, f"update submits set intended_at = {at(begun)}")
            assert spent_of(path, now=at(now))[:3] == (day, month, day), zone
            raw(path, "update submits set billed = null")
            assert spent_of(path, now=at(now))[:3] == (1, 1, 1), "still open"
            journal.withdraw("r", 1)
    time.tzset()


# -- the cost log ----------------------------------------------------------------------------------

ROW: dict[str, Any] = {
    "usage_id": "u1",
    "created_at": "2026-11-23T12:00:00Z",
    "backend": "rep",
    "model": "m",
    "seed": 2**64 - 1,
    "prompt_hash": "0" * 64,
    "latency_ms": 1200,
    "cost_usd_estimate": 0.003,
    "caller": "é",
    "render_id": NAME,
    "submit": "h",
}


def test_a_usage_row_comes_back_as_it_was_and_twice_adds_nothing(path):
    usage = Ledger(path).usage
    assert usage.add(ROW)
    assert not Ledger(path).usage.add({**ROW, "usage_id": "u2"})
    assert usage.rows() == [ROW]


def test_a_submit_costs_the_largest_that_was_told_and_unknown_is_not_0(path):
    usage = Ledger(path).usage
    costs = [None, 0.001, None, 0.003, 0.002]
    told = []
    for cost in costs:
        usage.add({**ROW, "cost_usd_estimate": cost})
        told.append(usage.rows()[0]["cost_usd_estimate"])
    assert told == [None, 0.001, 0.001, 0.003, 0.003]


def test_rows_without_what_nobody_knows(path):
    usage = Ledger(path).usage
    lacking = dict.fromkeys(("model", "seed", "latency_ms", "cost_usd_estimate", "render_id"))
    usage.add({**ROW, **lacking})
    assert usage.rows() == [{**ROW, **lacking}]


def test_what_is_to_be_sent_stays_so_until_it_has_arrived(path):
    usage = Ledger(path).usage
    usage.add(ROW, send=True)
    usage.add({**ROW, "submit": "here", "usage_id": "u2"})
    assert [row["usage_id"] for row in usage.unsent()] == ["u1"]
    usage.add(ROW)
    assert [row["usage_id"] for row in usage.unsent()] == ["u1"], "that did not send it"
    usage.sent([ROW])
    assert usage.unsent() == []


def test_rows_of_a_time_have_its_begin_and_not_its_end(path):
    usage = Ledger(path).usage
    days = [f"2026-11-{day}T00:00:00Z" for day in (21, 22, 23)]
    for number, day in enumerate(days):
        usage.add({**ROW, "created_at": day, "submit": str(number), "usage_id": day}, False)
    found = usage.rows("2026-11-22", "2026-11-23T00:00:00Z")
    assert [row["created_at"] for row in found] == [days[1]]
    assert len(usage.rows()) == 3


def test_a_second_connection_of_a_process_leaves_the_first_its_journal(tmp_path):
    """A file that is opened and closed beside a connection would lose its locks."""
    path = tmp_path / "ledger.sqlite3"
    first = Ledger(path)
    second = Ledger(path)
    code = (
        "import sys; from pathlib import Path; from imagen.ledger import Ledger;"
        "ledger = Ledger(Path(sys.argv[1])); ledger.comparisons.take_up('x'); ledger.close()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(imagen.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code, path], check=True, env=environment)
    assert path.with_name(path.name + "-wal").exists(), "it is not the last one to close it"
    first.close()
    second.close()
