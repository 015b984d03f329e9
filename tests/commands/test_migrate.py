"""imagen-migrate on a real PostgreSQL."""

from __future__ import annotations

import json
import os
import pty
import socket
from contextlib import closing

import pytest

from imagen import db
from imagen.db import Database, DatabaseBusy, DatabaseFault, migrations
from imagen.db.migrations import Migration, State
from servers import postgres

NAMES = [one.name for one in migrations.read()]
SECRET = "hunter2hunter2"


@pytest.fixture
def migrate(tool):
    """Run imagen-migrate on a database as the role that is no superuser."""

    def run(place, *options, user="migrator", **more):
        return tool("migrate", *options, env={"IMAGEN_DATABASE_URL": place.dsn(user)}, **more)

    return run


def tables(place):
    with place.cursor() as cursor:
        cursor.execute(
            "select schemaname || '.' || tablename from pg_tables"
            " where schemaname in ('imagen', 'mai') order by 1"
        )
        return [name for (name,) in cursor.fetchall()]


def done(ran):
    return [(line["migration"], line["status"]) for line in ran.records]


# -- applying --------------------------------------------------------------------------------------


def test_all_are_applied_in_order_and_each_once(bare_database, migrate):
    first = migrate(bare_database)
    assert first.status == 0, first.err
    assert done(first) == [(name, "applied") for name in NAMES]
    assert tables(bare_database) == [
        *("imagen.images", "imagen.jobs", "imagen.migrations", "mai.imagen_usage"),
    ]
    again = migrate(bare_database)
    assert (again.status, again.out) == (0, b"")
    assert again.err == "imagen-migrate: nothing to do: every migration is applied\n"


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(bare_database, migrate):
    ran = migrate(bare_database, "--dry-run")
    assert ran.status == 0
    assert done(ran) == [(name, "pending") for name in NAMES]
    assert tables(bare_database) == []


def test_the_status_lists_all_of_them(database, migrate):
    with database.cursor() as cursor:
        cursor.execute("delete from imagen.migrations where name = %s", [NAMES[-1]])
        cursor.execute("insert into imagen.migrations values ('999_of_a_newer_imagen', 'x')")
    ran = migrate(database, "--status")
    expected = [(name, "applied") for name in NAMES[:-1]]
    expected += [(NAMES[-1], "pending"), ("999_of_a_newer_imagen", "unknown")]
    assert done(ran) == expected
    assert ran.records[0]["applied_at"].endswith("+00:00")


def test_a_file_that_was_changed_after_it_was_applied_stops_all(database, migrate):
    with database.cursor() as cursor:
        cursor.execute("delete from imagen.migrations where name = %s", [NAMES[0]])
        cursor.execute("update imagen.migrations set sha256 = 'x' where name = %s", [NAMES[2]])
    for option in ([], ["--dry-run"]):
        ran = migrate(database, *option)
        assert (ran.status, ran.out) == (2, b"")
        assert f"{NAMES[2]}.sql was changed after it was applied (hint: " in ran.err
    status = dict(done(migrate(database, "--status")))
    assert (status[NAMES[0]], status[NAMES[2]]) == ("pending", "changed")


def test_four_at_once_apply_each_once(bare_database, tool):
    env = {"IMAGEN_DATABASE_URL": bare_database.dsn("migrator")}
    running = [tool.start("migrate", env=env) for _ in range(4)]
    lines = []
    for child in running:
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0, err.decode()
        lines += [json.loads(line)["migration"] for line in out.splitlines()]
    assert sorted(lines) == NAMES


def test_one_that_fails_leaves_nothing_behind_and_those_before_it_stay(bare_database):
    good = Migration("001_good", "create table imagen.good ()")
    bad = Migration("002_bad", "create table imagen.bad (); select 1 / 0")
    after = Migration("003_after", "create table imagen.after ()")
    with closing(connected(bare_database)) as database:
        with pytest.raises(DatabaseFault, match="division by zero"):
            list(migrations.apply(database, [good, bad, after]))
        assert [one.status for one in migrations.look(database, [good, bad, after])] == [
            *("applied", "pending", "pending")
        ]
    assert tables(bare_database) == ["imagen.good", "imagen.migrations"]


def test_who_waits_for_another_too_long_may_run_again(bare_database, monkeypatch):
    monkeypatch.setattr(migrations, "TURN_S", 0.05)
    lock = db.queries()["migrations_lock"]
    with bare_database.cursor() as other, closing(connected(bare_database)) as database:
        other.execute(f"begin; {lock}")
        with pytest.raises(DatabaseBusy) as caught:
            list(migrations.apply(database, migrations.read()))
    assert caught.value.exit_status == 75


def connected(place, user="migrator"):
    return Database(db.address(place.dsn(user)), "tests")


def test_on_a_terminal_it_is_a_table(bare_database, tool):
    upper, lower = pty.openpty()
    env = {"IMAGEN_DATABASE_URL": bare_database.dsn("migrator")}
    ran = tool("migrate", "--status", env=env, stdout=lower)
    os.close(lower)
    said = os.read(upper, 10_000).decode().splitlines()
    os.close(upper)
    assert ran.status == 0
    assert said == [f"pending  {name}" for name in NAMES]


# -- bootstrap -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def empty_server(cluster):
    """A PostgreSQL of its own, just started, with none of our roles."""
    server = postgres.started()
    yield server
    server.let_go()


def test_a_plain_postgresql_gets_what_it_lacks(empty_server, tool):
    env = {"IMAGEN_DATABASE_URL": empty_server.dsn()}
    plain = tool("migrate", env=env)
    assert (plain.status, plain.out) == (2, b"")
    assert "no role anon, authenticated, service_role, authenticator (hint: " in plain.err
    dry = tool("migrate", "--bootstrap", "--dry-run", env=env)
    assert done(dry) == [(name, "pending") for name in ("bootstrap", *NAMES)]
    ran = tool("migrate", "--bootstrap", env=env)
    assert (ran.status, ran.err) == (0, "")
    assert done(ran) == [(name, "applied") for name in ("bootstrap", *NAMES)]
    again = tool("migrate", "--bootstrap", env=env)
    assert (again.status, done(again)) == (0, [("bootstrap", "applied")])


@pytest.mark.parametrize("schema", ["auth", "storage"])
def test_no_bootstrap_where_a_schema_is_anothers(schema, plain_database, migrate):
    with plain_database.cursor() as cursor:
        cursor.execute(f"create schema {schema}")
    ran = migrate(plain_database, "--bootstrap", user=None)
    assert (ran.status, ran.out) == (2, b"")
    assert f"there already is a schema {schema}, not made by --bootstrap" in ran.err
    with plain_database.cursor() as cursor:
        cursor.execute("select to_regclass('auth.users'), to_regclass('storage.objects')")
        assert cursor.fetchall() == [(None, None)]


def test_no_bootstrap_by_who_is_no_superuser(plain_database, migrate):
    ran = migrate(plain_database, "--bootstrap")
    assert ran.status == 2
    assert "migrator is no superuser" in ran.err


def test_the_status_goes_alone(tool):
    assert tool("migrate", "--status", "--bootstrap").status == 2


# -- the address -----------------------------------------------------------------------------------


def test_without_an_address_it_says_where_to_put_one(tool):
    ran = tool("migrate")
    assert ran.status == 2
    assert "no database (hint: set $IMAGEN_DATABASE_URL, or give --database-url)" in ran.err


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://m:{SECRET}@h/x",
        f"host=h password={SECRET}",
        f"postgres://h/x?password={SECRET}",
    ],
)
def test_a_password_on_the_command_line_is_refused(url, tool):
    ran = tool("migrate", "--database-url", url)
    assert ran.status == 2
    assert "~/.pgpass" in ran.err
    assert SECRET not in ran.err


def test_a_password_in_the_variable_or_a_file_of_ones_own_is_taken(database, tool, tmp_path):
    url = database.tcp("migrator", database.cluster.password)
    assert tool("migrate", "--status", env={"IMAGEN_DATABASE_URL": url}).status == 0
    held = tmp_path / "url"
    held.write_text(f"{url}\n")
    held.chmod(0o600)
    assert tool("migrate", "--status", env={"IMAGEN_DATABASE_URL_FILE": str(held)}).status == 0
    held.chmod(0o640)
    open_to_others = tool("migrate", "--status", env={"IMAGEN_DATABASE_URL_FILE": str(held)})
    assert open_to_others.status == 2
    assert f"(hint: chmod 600 {held})" in open_to_others.err


def test_a_password_in_pgpass_is_found(database, tool, tmp_path):
    pgpass = tmp_path / "home" / ".pgpass"
    pgpass.write_text(f"127.0.0.1:*:*:migrator:{database.cluster.password}\n")
    pgpass.chmod(0o600)
    ran = tool("migrate", "--status", "--database-url", database.tcp("migrator"))
    assert ran.status == 0, ran.err


def test_the_flag_goes_over_the_variable(database, tool):
    ran = tool(
        *("migrate", "--status", "--database-url", database.dsn()),
        env={"IMAGEN_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/x"},
    )
    assert ran.status == 0


def test_a_database_that_cannot_be_reached_may_be_later(tool):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"postgresql://m:{SECRET}@127.0.0.1:{taken.getsockname()[1]}/x"
        ran = tool("migrate", env={"IMAGEN_DATABASE_URL": url})
    assert ran.status == 75
    assert "connection refused (hint: run the same command again)\n" in ran.err
    assert SECRET not in ran.err


def test_a_wrong_password_must_be_changed(database, tool):
    url = database.tcp("migrator", SECRET)
    ran = tool("migrate", env={"IMAGEN_DATABASE_URL": url})
    assert ran.status == 2
    assert "the password is wrong" in ran.err
    assert SECRET not in ran.err


def test_who_may_not_migrate_is_told(bare_database, tool):
    ran = tool("migrate", env={"IMAGEN_DATABASE_URL": bare_database.dsn("authenticator")})
    assert ran.status == 2
    assert "permission denied" in ran.err


# -- judging, without a database -------------------------------------------------------------------


def test_states_compare_files_with_what_was_applied():
    from datetime import UTC, datetime

    one, two, three = (Migration(name, f"select '{name}'") for name in ("001", "002", "003"))
    when = datetime(2026, 1, 2, tzinfo=UTC)
    applied = {"001": ("001", one.sha256, when), "002": ("002", "?", when), "4": ("4", "?", when)}
    said = when.isoformat()
    assert migrations.states([one, two, three], applied) == [
        State("001", "applied", said),
        State("002", "changed", said),
        State("003", "pending"),
        State("4", "unknown", said),
    ]


# -- where a migration fails -----------------------------------------------------------------------


def test_the_migration_that_fails_is_named_and_those_that_do_not_need_it_go_on(
    bare_database, migrate
):
    with bare_database.cursor() as cursor:
        cursor.execute("drop table storage.buckets cascade")
    ran = migrate(bare_database)
    assert ran.status == 1
    assert "003_imagen_storage_policies: " in ran.err and "storage.buckets" in ran.err
    assert "007_imagen_storage_image_types" in ran.err
    status = dict(done(ran))
    assert [name for name, one in status.items() if one == "failed"] == [NAMES[2]]
    assert [name for name, one in status.items() if one == "skipped"] == [NAMES[6]]
    assert {one for name, one in status.items() if name not in (NAMES[2], NAMES[6])} == {"applied"}


def test_the_rights_that_a_role_lacks_are_named(bare_database, migrate):
    with bare_database.cursor() as cursor:
        cursor.execute("revoke all on storage.buckets from migrator, supabase_storage_admin")
        cursor.execute("revoke supabase_storage_admin from migrator")
    try:
        ran = migrate(bare_database)
    finally:
        with bare_database.cursor() as cursor:
            cursor.execute("grant supabase_storage_admin to migrator")
    assert ran.status == 2
    assert "003_imagen_storage_policies: " in ran.err
    assert "the role lacks the right to " in ran.err
    assert "make policies on storage.objects" in ran.err
    assert "create schemas" not in ran.err


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("(id uuid primary key, prompt text)", "no column created_at, owner_user_id"),
        ("(like pattern including all, mine text)", None),
    ],
)
def test_a_table_that_was_there_before_must_have_our_columns(bare_database, migrate, table, says):
    columns = migrations.columns_of(migrations.read()[0].sql)["imagen.images"]
    whole = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    with bare_database.cursor() as cursor:
        cursor.execute(f"create table pattern ({whole}, primary key (id))")
        cursor.execute(f"create schema imagen; create table imagen.images {table}")
        cursor.execute("alter schema imagen owner to migrator")
        cursor.execute("alter table imagen.images owner to migrator")
    ran = migrate(bare_database)
    if says:
        assert ran.status == 2
        assert "a table imagen.images was there before" in ran.err and says in ran.err
        assert dict(done(ran))[NAMES[4]] == "applied", "mai.imagen_usage does not need it"
    else:
        assert ran.status == 0, ran.err


def test_a_column_of_another_type_is_named(bare_database, migrate):
    with bare_database.cursor() as cursor:
        cursor.execute("create schema mai")
        cursor.execute("create table mai.imagen_usage (id bigint primary key, submit text)")
        cursor.execute("alter schema mai owner to migrator")
        cursor.execute("alter table mai.imagen_usage owner to migrator")
    ran = migrate(bare_database)
    assert ran.status == 2
    assert "another type of id (bigint)" in ran.err


@pytest.mark.parametrize(("column", "file"), [("released_at", "008"), ("record", "009")])
def test_an_added_column_that_was_there_with_another_type_is_refused(
    column, file, bare_database, migrate
):
    assert migrate(bare_database).status == 0
    with bare_database.cursor() as cursor:
        cursor.execute(f"alter table imagen.jobs drop column {column} cascade")
        cursor.execute(f"alter table imagen.jobs add column {column} text")
        cursor.execute("delete from imagen.migrations where name like %s", [f"{file}%"])
    ran = migrate(bare_database)
    assert ran.status == 2
    assert f"another type of {column} (text)" in ran.err
    assert f"{file}_imagen_jobs" in ran.err


def test_every_table_of_the_migrations_is_compared():
    tables = {name for one in migrations.read() for name in migrations.columns_of(one.sql)}
    assert tables == {"imagen.images", "mai.imagen_usage", "imagen.jobs"}


def test_the_columns_of_the_migrations_are_those_of_the_database(database):
    for one in migrations.read():
        for table, columns in migrations.columns_of(one.sql).items():
            with database.cursor() as cursor:
                cursor.execute(
                    "select attname from pg_attribute where attrelid = %s::regclass"
                    " and attnum > 0 and not attisdropped",
                    [table],
                )
                later = {
                    name
                    for later in migrations.read()
                    for name in migrations.added_columns(later.sql).get(table, {})
                }
                assert later == ({"released_at", "record"} if table == "imagen.jobs" else set())
                assert {*columns} == {name for (name,) in cursor.fetchall()} - later


def test_it_works_where_backslashes_are_escapes_by_default(bare_database, migrate):
    with bare_database.cursor() as cursor:
        cursor.execute(f"alter database {bare_database.name} set standard_conforming_strings = off")
    ran = migrate(bare_database)
    assert ran.status == 0, ran.err
    with bare_database.cursor() as cursor:
        cursor.execute(
            "select pg_get_constraintdef(oid) from pg_constraint"
            " where conrelid = 'imagen.jobs'::regclass"
        )
        assert any("\\S" in text for (text,) in cursor.fetchall())
