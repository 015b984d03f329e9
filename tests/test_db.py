"""Connecting to a real PostgreSQL: transactions, time-outs, errors that show no password."""

from __future__ import annotations

import itertools
import re
import socket
import threading
from contextlib import closing

import pytest

from imagen import db
from imagen.db import Database, DatabaseBusy, DatabaseFault, connection
from imagen.errors import AnswerLost, ConfigFault, Refused, Unreachable

SECRET = "hunter2hunter2"


def connect(dsn):
    return closing(Database(db.address(dsn), "imagen-test"))


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dsn", "shown", "has_password"),
    [
        ("postgresql://m@db.example.net:6543/postgres", "db.example.net:6543/postgres", False),
        (f"postgresql://m:{SECRET}@db.example.net/postgres", "db.example.net/postgres", True),
        (
            f"postgresql://m@db.example.net/postgres?password={SECRET}",
            "db.example.net/postgres",
            True,
        ),
        (f"host=/run/postgresql dbname=imagen password={SECRET}", "/run/postgresql/imagen", True),
        ("postgresql:///imagen", "local socket/imagen", False),
    ],
)
def test_an_address_is_shown_without_its_user_and_password(dsn, shown, has_password):
    assert db.address(dsn) == (dsn, shown, has_password)


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://m:{SECRET}@{SECRET}@db.example.net/postgres",
        f"postgresql://m:{SECRET}/{SECRET}@db.example.net/postgres",
        f"postgresql://m:{SECRET}%zz@db.example.net/postgres",
        f"hostdb password='{SECRET}",
        f"mysql://m:{SECRET}@db.example.net/x",
    ],
)
def test_an_address_that_cannot_be_read_is_not_shown(dsn):
    with pytest.raises(ConfigFault, match="cannot be read") as caught:
        db.address(dsn)
    assert SECRET not in caught.value.as_line()
    assert caught.value.__cause__ is None


# -- connecting ------------------------------------------------------------------------------------


def test_who_connects_is_told_to_the_server(database):
    with connect(database.dsn()) as connected, connected.transaction() as step:
        assert step.rows("select current_setting('application_name')") == [("imagen-test",)]


def test_a_port_where_nobody_listens_is_unreachable():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(Unreachable, match=f"127.0.0.1:{port}/x: connection refused") as caught:
            Database(db.address(f"postgresql://m:{SECRET}@127.0.0.1:{port}/x"), "t")
    assert SECRET not in str(caught.value)
    assert caught.value.exit_status == 75


def test_a_host_that_is_none_is_unreachable():
    with pytest.raises(Unreachable, match="no such host"):
        Database(db.address("postgresql://m@nowhere.invalid/x"), "t")


def test_a_server_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(connection, "CONNECT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(Unreachable, match="timed out"):
            Database(db.address(f"postgresql://m@127.0.0.1:{port}/x"), "t")


def test_a_wrong_password_is_a_matter_of_configuration_and_not_shown(database):
    with pytest.raises(ConfigFault, match="the password is wrong") as caught:
        Database(db.address(database.tcp("migrator", SECRET)), "t")
    assert SECRET not in caught.value.as_line()


def test_no_password_where_one_is_wanted(database):
    with pytest.raises(ConfigFault, match="wants a password"):
        Database(db.address(database.tcp("migrator")), "t")


def test_a_database_that_is_not_there(cluster):
    with pytest.raises(ConfigFault, match="no such user or database"):
        Database(db.address(cluster.dsn("nothing_here")), "t")


def test_a_database_that_lets_nobody_in_is_unreachable_for_now(database):
    with database.cluster.cursor() as cursor:
        cursor.execute(f"alter database {database.name} with allow_connections false")
    with pytest.raises(Unreachable, match="busy"):
        Database(db.address(database.dsn()), "t")


@pytest.mark.parametrize(
    "said",
    [
        "the database system is starting up",
        "the database system is shutting down",
        "the database system is not yet accepting connections\nDETAIL:  Consistent recovery state",
        "terminating connection due to administrator command",
    ],
)
def test_a_server_that_is_restarted_is_unreachable_for_now(said):
    """What a PostgreSQL was seen to say to those who connect meanwhile."""
    where = db.address("host=h")
    assert isinstance(connection._turned_away(f"FATAL:  {said}\n", where), Unreachable)


# -- transactions ----------------------------------------------------------------------------------


def test_a_transaction_takes_hold_whole_or_not_at_all(database):
    with connect(database.dsn()) as connected:
        with pytest.raises(ZeroDivisionError), connected.transaction() as step:
            step.rows("create table kept (n int)")
            raise ZeroDivisionError
        with connected.transaction() as step:
            assert step.rows("select to_regclass('kept')") == [(None,)]
            step.rows("create table kept (n int)")
        with connected.transaction() as step:
            assert step.rows("select count(*) from kept") == [(0,)]


def test_values_are_sent_as_values(database):
    with connect(database.dsn()) as connected, connected.transaction() as step:
        assert step.rows("select %s", "'; drop table x") == [("'; drop table x",)]
        assert step.rows("select 'ten %'") == [("ten %",)]


def test_a_statement_that_takes_too_long_is_ended(database):
    with connect(database.dsn()) as connected:
        with pytest.raises(DatabaseBusy) as caught, connected.transaction(statement_s=0.05) as step:
            step.rows("select pg_sleep(5)")
        assert caught.value.exit_status == 75
        with connected.transaction() as step:
            assert step.rows("show statement_timeout") == [("1min",)]


def test_a_lock_is_not_waited_for_for_ever(database):
    with database.cursor() as holder, connect(database.dsn()) as connected:
        holder.execute("select pg_advisory_lock(7)")
        with pytest.raises(DatabaseBusy), connected.transaction(lock_s=0.05) as step:
            step.rows("select pg_advisory_xact_lock(7)")


def test_a_connection_that_the_server_ends_is_lost(database):
    with connect(database.dsn()) as connected:
        with pytest.raises(AnswerLost) as caught, connected.transaction() as step:
            pid = step.rows("select pg_backend_pid()")[0][0]
            with database.cursor() as other:
                other.execute("select pg_terminate_backend(%s, 5000)", [pid])
            step.rows("select 1")
        assert caught.value.exit_status == 75
        with pytest.raises(AnswerLost), connected.transaction() as step:
            step.rows("select 1")


def test_a_server_that_vanishes_in_the_middle_is_lost(database):
    """A proxy cuts the connection while a statement runs."""
    with socket.create_server(("127.0.0.1", 0)) as front:
        port = front.getsockname()[1]
        back = int(database.cluster.parts["port"])
        threading.Thread(target=_hand_on_then_cut, args=(front, back), daemon=True).start()
        dsn = database.dsn("migrator", host="127.0.0.1", port=port)
        with (
            connect(dsn) as connected,
            pytest.raises(AnswerLost),
            connected.transaction() as step,
        ):
            step.rows("select pg_sleep(30)")


def _hand_on_then_cut(front, port):
    with front.accept()[0] as client, socket.create_connection(("127.0.0.1", port)) as server:
        threading.Thread(target=_pump, args=(server, client), daemon=True).start()
        while b"pg_sleep" not in (said := client.recv(65536)):
            server.sendall(said)
        client.shutdown(socket.SHUT_RDWR)
        server.shutdown(socket.SHUT_RDWR)


def _pump(source, target):
    try:
        while said := source.recv(65536):
            target.sendall(said)
    except OSError:
        pass


def test_what_was_refused_is_said_without_the_row(database):
    with connect(database.dsn()) as connected:
        with connected.transaction() as step:
            step.rows("create table strict (secret text, n int not null)")
        with pytest.raises(DatabaseFault, match="23502") as caught, connected.transaction() as step:
            step.rows("insert into strict values (%s, null)", SECRET)
    assert SECRET not in caught.value.as_line()
    assert caught.value.sqlstate == "23502"


def test_what_one_may_not_do_is_refused(database):
    with (
        connect(database.dsn("authenticator")) as connected,
        pytest.raises(Refused, match="permission denied") as caught,
        connected.transaction() as step,
    ):
        step.rows("select * from imagen.images")
    assert caught.value.code == "not_permitted"


# -- named queries ---------------------------------------------------------------------------------


def test_queries_have_names():
    text = "-- about\n\n-- name: one\n-- what for\nselect 1;\n\n-- name: two\nselect 2;\n"
    assert db.parse_queries(text) == {"one": "-- what for\nselect 1;", "two": "select 2;"}


def test_a_name_stands_once():
    with pytest.raises(ValueError, match="two queries named one"):
        db.parse_queries("-- name: one\nselect 1;\n-- name: one\nselect 2;\n")


def test_a_name_alone_on_a_line_stands_for_that_block():
    text = "-- name: one\nwith a as (\n  :two\n)\nselect ':two'::text;\n-- name: two\nselect 2;\n"
    assert db.parse_queries(text)["one"] == "with a as (\nselect 2\n)\nselect ':two'::text;"


@pytest.mark.parametrize("name", sorted(db.queries()))
def test_every_named_query_says_what_it_is_for_and_is_understood_by_the_server(name, database):
    sql = db.queries()[name]
    assert sql.startswith("-- ")
    numbers = itertools.count(1)
    asked = re.sub("%s", lambda _: f"${next(numbers)}", sql)
    with connect(database.dsn()) as connected, connected.transaction() as step:
        step.rows("create table if not exists imagen.migrations (name text, sha256 text)")
        step.rows(f"prepare it as {asked}" if "%s" in sql else sql)
