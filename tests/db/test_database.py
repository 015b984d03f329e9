"""Connecting to a real PostgreSQL: transactions, time-outs, errors that show no password."""

from __future__ import annotations

import itertools
import re
import socket
import threading
import time
from contextlib import closing

import pytest

from imagen import db
from imagen.db import Database, DatabaseBusy, DatabaseFault, connection, hosts
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
    with pytest.raises(Unreachable, match="is not currently accepting connections"):
        Database(db.address(database.dsn()), "t")


@pytest.mark.parametrize(
    "said",
    [
        "the database system is starting up",
        "the database system is shutting down",
        "the database system is not yet accepting connections\nDETAIL:  Consistent recovery state",
        "terminating connection due to administrator command",
        "Tenant or user not found",
        "MaxClientsInSessionMode: max clients reached",
        "sorry, too many clients already",
        'permission denied for database "x"',
        "no more connections allowed (max_client_conn)",
    ],
)
def test_a_server_that_turns_us_away_for_now_is_unreachable_and_its_sentence_is_shown(said):
    """What PostgreSQL and poolers were seen to say to those who connect meanwhile."""
    where = db.address("host=h")
    fault = connection._turned_away(f"connection to server failed: FATAL:  {said}\n", where)
    assert isinstance(fault, Unreachable)
    assert said.partition("\n")[0] in fault.message


@pytest.mark.parametrize(
    "said",
    [
        'password authentication failed for user "m"',
        'no pg_hba.conf entry for host "10.0.0.1", user "m", database "x", no encryption',
        'role "m" is not permitted to log in',
        'role "m" does not exist',
        'database "x" does not exist',
    ],
)
def test_only_who_asks_and_for_which_database_is_lasting(said):
    fault = connection._turned_away(f"FATAL:  {said}\n", db.address("host=h"))
    assert isinstance(fault, ConfigFault)
    assert said in fault.message


def test_a_password_in_the_servers_sentence_is_not_shown():
    said = f"FATAL:  odd password {SECRET}\n"
    assert SECRET not in connection._turned_away(said, db.address("host=h"), SECRET).message


def test_a_silent_first_host_leaves_time_for_the_others(database):
    port = database.cluster.parts["port"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ports = f"{silent.getsockname()[1]},{port}"
        dsn = database.dsn("migrator", host="127.0.0.1,127.0.0.1", port=ports, connect_timeout=8)
        began = time.monotonic()
        with connect(dsn) as found, found.transaction() as step:
            assert 3 < time.monotonic() - began < 8
            assert step.rows("select 1") == [(1,)]


def test_of_several_hosts_one_that_refuses_is_passed_over_and_a_wrong_password_is_not(database):
    port = database.cluster.parts["port"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ports = f"{taken.getsockname()[1]},{port}"
        where = {"host": "127.0.0.1,127.0.0.1", "port": ports}
        with connect(database.dsn("migrator", **where)):
            pass
        with pytest.raises(Unreachable, match="connection refused"):
            Database(db.address(database.dsn("migrator", **where, password=SECRET)), "t")
        twice = {"host": "127.0.0.1,127.0.0.1", "port": f"{port},{port}"}
        with pytest.raises(ConfigFault, match="the password is wrong"):
            Database(db.address(database.dsn("migrator", **{**twice, "password": SECRET})), "t")


def test_of_several_hosts_one_that_may_be_written_to_is_chosen(database):
    port = database.cluster.parts["port"]
    where = {"host": "127.0.0.1,127.0.0.1", "port": f"{port},{port}"}
    for kind in ("read-write", "primary", "prefer-standby", "any"):
        with connect(database.dsn("migrator", **where, target_session_attrs=kind)):
            pass
    with pytest.raises(Unreachable):
        Database(db.address(database.dsn("migrator", **where, target_session_attrs="standby")), "t")


def test_a_silent_first_address_of_a_host_leaves_time_for_the_others(monkeypatch):
    infos = [(0, 0, 0, "", (address, 0)) for address in ("10.0.0.1", "10.0.0.2", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: infos)
    targets = hosts.targets({"host": "db.example.net", "port": "6000"})
    assert targets == [
        {"host": "db.example.net", "hostaddr": address, "port": "6000"}
        for address in ("10.0.0.1", "10.0.0.2")
    ]


def test_a_database_that_is_not_utf8_is_refused_by_name(database):
    name = f"latin_{database.name}"
    with database.cluster.cursor() as cursor:
        cursor.execute(f"create database {name} encoding 'LATIN1' locale 'C' template template0")
    try:
        with pytest.raises(ConfigFault, match=f"{name} at .* has the encoding LATIN1") as caught:
            Database(db.address(database.cluster.dsn(name)), "t")
        assert "createdb --encoding UTF8" in caught.value.hint
    finally:
        with database.cluster.cursor() as cursor:
            cursor.execute(f"drop database {name}")


def test_text_travels_as_utf8_whatever_the_environment_says(database, monkeypatch):
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with connect(database.dsn()) as connected, connected.transaction() as step:
        assert step.rows("select %s", "日本") == [("日本",)]


@pytest.mark.parametrize(
    ("dsn", "hint"),
    [
        ("postgresql://m@h/x?pgbouncer=true", "leave out ?pgbouncer=…"),
        ("postgresql://m@h/x?supa=base-pooler.x", "leave out ?supa=…"),
        ("postgresql://m@h/x?schema=imagen", "leave out ?schema=…"),
        ('"postgresql://m@h/x"', "without the quotes"),
        ("'postgresql://m@h/x'", "without the quotes"),
        ("postgresql://m@h/x\n?sslmode=require", "on one line"),
    ],
)
def test_an_address_made_for_other_clients_gets_a_hint_that_fits(dsn, hint):
    with pytest.raises(ConfigFault, match="cannot be read") as caught:
        db.address(dsn)
    assert hint in caught.value.hint


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
