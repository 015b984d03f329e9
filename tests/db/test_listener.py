"""Listening to a real PostgreSQL: what is heard, how a dead connection shows, and poolers."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import closing

import pytest

from imagen import db
from imagen.db import Database, DatabaseFault, Ear, Notify
from imagen.errors import AnswerLost
from imagen.queue.jobs import Queue


@pytest.fixture
def place(database):
    return database


def connect(kind, dsn):
    return closing(kind(db.address(dsn), "imagen-test"))


def say(place, channel, payload):
    with place.cursor() as cursor:
        cursor.execute("select pg_notify(%s, %s)", [channel, payload])


def readable(ear, seconds=5):
    return select.select([ear], [], [], seconds)[0]


def backends(cursor):
    cursor.execute(
        "select pid from pg_stat_activity where application_name = 'imagen-test'"
        " and datname = current_database()"
    )
    return [pid for (pid,) in cursor.fetchall()]


def test_what_is_said_is_heard_at_once_and_in_order(place):
    with connect(Ear, place.dsn()) as ear:
        ear.listen("one")
        assert ear.poll() == []
        for payload in ("a", "b"):
            say(place, "one", payload)
        say(place, "two", "c")
        assert readable(ear)
        ear.alive()
        assert ear.poll() == [Notify("one", "a"), Notify("one", "b")]
        assert ear.poll() == []


def test_the_way_there_and_back_is_timed_and_nothing_is_lost_meanwhile(place):
    with connect(Ear, place.dsn()) as ear, connect(Database, place.dsn()) as database:
        ear.listen("one")
        say(place, "one", "kept")
        took = ear.round_trip(Queue(database).ping)
        assert 0 < took < 5
        assert ear.poll() == [Notify("one", "kept")]


def test_a_trip_that_ends_nowhere_is_given_up(place):
    with connect(Ear, place.dsn()) as ear:
        begun = time.monotonic()
        assert ear.round_trip(lambda channel, token: None, within_s=0.1) is None
        assert 0.1 <= time.monotonic() - begun < 5


@pytest.mark.parametrize("ask", ["poll", "alive", "listen", "round_trip"])
def test_a_connection_that_the_server_ended_is_noticed_by_the_first_question(ask, place):
    """psycopg2's own first poll() after it raises nothing."""
    with connect(Ear, place.dsn()) as ear, place.cursor() as cursor:
        (pid,) = backends(cursor)
        cursor.execute("select pg_terminate_backend(%s, 5000)", [pid])
        assert readable(ear)
        asked = {
            "poll": ear.poll,
            "alive": ear.alive,
            "listen": lambda: ear.listen("one"),
            "round_trip": lambda: ear.round_trip(lambda channel, token: None),
        }
        with pytest.raises(AnswerLost):
            asked[ask]()
        assert ear.fileno() == -1
        with pytest.raises(AnswerLost):
            ear.poll()


def test_a_server_that_is_there_and_says_nothing_is_given_up(place, monkeypatch):
    """No time-out of the server's own can end that: its process stands still."""
    monkeypatch.setattr("imagen.db.database.GRACE_S", 0.1)
    with connect(Database, place.dsn()) as database, place.cursor() as cursor:
        (pid,) = backends(cursor)
        os.kill(pid, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            with pytest.raises(AnswerLost):
                database.run("whoami", statement_s=0.1)
            assert time.monotonic() - begun < 5
        finally:
            os.kill(pid, signal.SIGCONT)
        with pytest.raises(AnswerLost):
            database.run("whoami")


def test_a_statement_has_its_time_out_and_leaves_none_behind(place):
    with connect(Database, place.dsn()) as database, place.cursor() as cursor:
        cursor.execute("select pg_advisory_lock(4920817, 1)")
        with pytest.raises(db.DatabaseBusy):
            database.run("migrations_lock", statement_s=0.05)
        with pytest.raises(db.DatabaseBusy):
            database.run("migrations_lock", settings={"lock_timeout": "50"})
        with database.transaction() as step:
            assert step.rows("show lock_timeout") == [("10s",)]
        assert database.run("whoami")


# -- behind a transaction pooler -------------------------------------------------------------------


def test_behind_a_transaction_pooler_nothing_is_heard_and_that_shows(pooled):
    """LISTEN is accepted there, and forgotten."""
    with connect(Ear, pooled) as ear, connect(Database, pooled) as database:
        assert ear.round_trip(Queue(database).ping, within_s=0.3) is None
        ear.alive()


def test_the_queue_works_behind_a_transaction_pooler(pooled, place):
    with place.cursor() as cursor:
        cursor.execute(
            "insert into imagen.jobs (owner_user_id, prompt) values (gen_random_uuid(), 'x')"
        )
    with connect(Database, pooled) as database:
        queue = Queue(database)
        found = queue.claim("w", None, "mock")
        assert queue.intend(found.id, found.fence, {"prompt": "x"})
        assert queue.done(found.id, found.fence, None)
        with pytest.raises(DatabaseFault):
            database.run("job_claim", "w", 1, "mock", 1)
        assert queue.claim("w", None, "mock") is None


def test_what_the_server_keeps_is_sent_whole_where_the_next_connection_knows_no_name(pooled):
    def asked(database):
        return database.run("job_waiting", ["no"], "no", ["no"], kept=True)

    with connect(Database, pooled) as one, connect(Database, pooled) as other:
        assert asked(one) == asked(one) == [(None,)]
        assert asked(other) == [(None,)], "the server has the name already, from another client"
        with (
            other.transaction() as step
        ):  # takes the only connection to the server: another is made
            step.rows("select 1")
            assert asked(one) == [(None,)]
            assert one._kept.asked("select %s") == "select %s"
        assert asked(one) == asked(other) == [(None,)]
