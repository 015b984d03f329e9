"""The migrations on a real PostgreSQL: who may do what, what is exposed, running them again."""

from __future__ import annotations

import hashlib
import re
import subprocess
import uuid

import psycopg2
import pytest

from imagen import db
from imagen.db import migrations
from servers import postgres

FILES = {one.name: one.sql for one in migrations.read()}
OWNER, OTHER = str(uuid.UUID(int=10)), str(uuid.UUID(int=11))
PATH = "2026-01-02/a-cat-7.png"
DENIED = "denied"
MOST = 2**64 - 1
SHA = hashlib.sha256(b"").hexdigest()


def image(**more):
    row = {
        **{"id": str(uuid.uuid4()), "owner_user_id": OWNER, "backend": "mock", "prompt": "a cat"},
        **{"seed": 7, "width": 64, "height": 64, "bytes": 9, "sha256": SHA},
        **{"storage_path": f"2026-01-02/{uuid.uuid4()}.png"},
    }
    return {**row, **more}


def usage(**more):
    row = {"backend": "mock", "model": "mock", "prompt_hash": SHA, "submit": str(uuid.uuid4())}
    return {**row, **more}


def put(cursor, table, row):
    names = ", ".join(row)
    marks = ", ".join(["%s"] * len(row))
    cursor.execute(f"insert into {table} ({names}) values ({marks})", list(row.values()))


# -- who may do what -------------------------------------------------------------------------------

ROLES = {
    "owner": ("authenticated", OWNER),
    "other user": ("authenticated", OTHER),
    "anon": ("anon", None),
    "service role": ("service_role", None),
}
WHAT = ("select", "insert", "update", "delete")
ALL_DENIED = (DENIED,) * 4
MATRIX = {  # how many rows are met, of the one that is there and the owner's
    "imagen.images": {
        "owner": (1, DENIED, DENIED, DENIED),
        "other user": (0, DENIED, DENIED, DENIED),
        "anon": ALL_DENIED,
        "service role": (1, 1, 1, 1),
    },
    "mai.imagen_usage": {
        "owner": ALL_DENIED,
        "other user": ALL_DENIED,
        "anon": ALL_DENIED,
        "service role": (1, 1, 1, 1),
    },
    "storage.objects": {  # Supabase grants everything here: the policies decide, and have no error
        "owner": (1, DENIED, 0, 0),
        "other user": (0, DENIED, 0, 0),
        "anon": (0, DENIED, 0, 0),
        "service role": (1, 1, 1, 1),
    },
}
INSERTS = {
    "imagen.images": image(id=str(uuid.UUID(int=20))),
    "mai.imagen_usage": usage(submit="another"),
    "storage.objects": {"bucket_id": "imagen-generated", "name": "another.png"},
}
SETS = {
    "imagen.images": "prompt = 'mine now'",
    "mai.imagen_usage": "caller = 'me'",
    "storage.objects": "name = 'mine-now.png'",
}
CASES = [
    (table, who, what, expected)
    for table, rows in MATRIX.items()
    for who, outcomes in rows.items()
    for what, expected in zip(WHAT, outcomes, strict=True)
]


@pytest.fixture(scope="module")
def filled(cluster):
    """A database with one image of the owner's, its object and its usage; every test rolls back."""
    with cluster.database() as place:
        with place.cursor() as cursor:
            put(cursor, "imagen.images", image(storage_path=PATH))
            put(cursor, "mai.imagen_usage", usage())
            put(cursor, "storage.objects", {"bucket_id": "imagen-generated", "name": PATH})
        yield place


@pytest.mark.parametrize(
    ("table", "who", "what", "expected"), CASES, ids=lambda said: str(said).replace(" ", "-")
)
def test_who_may_do_what(table, who, what, expected, filled):
    role, user = ROLES[who]
    with filled.cursor() as cursor:
        cursor.execute("begin")
        cursor.execute(f"set local role {role}")
        claims = f'{{"role": "{role}"' + (f', "sub": "{user}"}}' if user else "}")
        cursor.execute("select set_config('request.jwt.claims', %s, true)", [claims])
        try:
            run(cursor, table, what)
            met = cursor.rowcount
        except psycopg2.errors.InsufficientPrivilege:
            met = DENIED
        cursor.execute("rollback")
    assert met == expected


def run(cursor, table, what):
    if what == "insert":
        put(cursor, table, INSERTS[table])
    else:
        statements = {
            "select": f"select * from {table}",
            "update": f"update {table} set {SETS[table]}",
            "delete": f"delete from {table}",
        }
        cursor.execute(statements[what])


def test_every_table_of_ours_has_row_level_security(database):
    with database.cursor() as cursor:
        cursor.execute(
            "select relname, relrowsecurity from pg_class"
            " where relkind = 'r' and relnamespace in ('imagen'::regnamespace, 'mai'::regnamespace)"
        )
        assert dict(cursor.fetchall()) == {
            "images": True,
            "imagen_usage": True,
            "jobs": True,
            "migrations": True,
        }


def test_nobody_but_who_migrates_sees_what_was_applied(database):
    for role in ("anon", "authenticated", "service_role"):
        with database.cursor() as cursor:
            cursor.execute(f"set role {role}")
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute("select * from imagen.migrations")


# -- what the tables hold --------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "row"), [("imagen.images", image), ("mai.imagen_usage", usage)])
def test_the_largest_seed_is_kept_whole_and_a_larger_one_refused(table, row, database):
    with database.cursor() as cursor:
        put(cursor, table, row(seed=MOST))
        cursor.execute(f"select seed::text from {table}")
        assert cursor.fetchall() == [(str(MOST),)]
        for wrong in (MOST + 1, -1):
            with pytest.raises(psycopg2.errors.CheckViolation):
                put(cursor, table, row(seed=wrong))


def test_a_submit_is_logged_once(database):
    with database.cursor() as cursor:
        put(cursor, "mai.imagen_usage", usage(submit="one"))
        put(cursor, "mai.imagen_usage", usage(submit="one", backend="other"))
        with pytest.raises(psycopg2.errors.UniqueViolation):
            put(cursor, "mai.imagen_usage", usage(submit="one"))


@pytest.mark.parametrize("name", ["owner_user_id", "storage_path", "sha256", "prompt"])
def test_an_image_has_an_owner_a_path_a_checksum_and_a_prompt(name, database):
    with database.cursor() as cursor, pytest.raises(psycopg2.errors.NotNullViolation):
        put(cursor, "imagen.images", image(**{name: None}))


def test_two_images_have_no_path_in_common(database):
    with database.cursor() as cursor:
        put(cursor, "imagen.images", image(storage_path=PATH))
        with pytest.raises(psycopg2.errors.UniqueViolation):
            put(cursor, "imagen.images", image(storage_path=PATH))


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (
            f"select * from imagen.images where owner_user_id = '{OWNER}'"
            " order by created_at desc limit 50",
            "images_owner_created_at",
        ),
        (
            "select * from mai.imagen_usage order by created_at desc limit 50",
            "imagen_usage_created_at",
        ),
        ("select * from mai.imagen_usage where caller = 'me'", "imagen_usage_caller"),
    ],
)
def test_what_is_asked_often_has_an_index(query, index, database):
    with database.cursor() as cursor:
        cursor.execute("set enable_seqscan = off")
        cursor.execute(f"explain {query}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert index in plan
    assert "Sort" not in plan


def test_the_bucket_is_private_and_has_limits(database):
    with database.cursor() as cursor:
        cursor.execute(
            "select id, public, file_size_limit, allowed_mime_types from storage.buckets"
        )
        (bucket,) = cursor.fetchall()
    assert bucket[:3] == ("imagen-generated", False, 50 * 2**20)
    assert bucket[3] == [f"image/{kind}" for kind in ("png", "jpeg", "webp", "gif", "avif")]


@pytest.mark.parametrize(
    ("types", "after"),
    [
        ("{image/png}", ["image/png"]),
        (
            "{image/webp,image/jpeg,image/png,video/mp4,image/gif}",
            [*("image/webp", "image/jpeg", "image/png", "video/mp4", "image/gif"), "image/avif"],
        ),
    ],
)
def test_a_list_of_types_that_somebody_narrowed_is_left_alone(bare_database, types, after):
    row = {"id": "imagen-generated", "name": "x", "allowed_mime_types": types}
    with bare_database.cursor() as cursor:
        put(cursor, "storage.buckets", row)
        postgres.migrate(bare_database.cluster, bare_database.name)
        cursor.execute("select allowed_mime_types from storage.buckets")
        assert cursor.fetchall() == [(after,)]


def test_a_bucket_that_is_there_becomes_private_and_keeps_its_limits(bare_database):
    with bare_database.cursor() as cursor:
        put(
            cursor,
            "storage.buckets",
            {"id": "imagen-generated", "name": "x", "public": True, "file_size_limit": 7},
        )
        postgres.migrate(bare_database.cluster, bare_database.name)
        cursor.execute(
            "select public, file_size_limit, cardinality(allowed_mime_types) from storage.buckets"
        )
        assert cursor.fetchall() == [(False, 7, 5)]


# -- what PostgREST serves -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("public, graphql_public", "public, graphql_public, imagen, mai"),
        ("shop,public", "shop, public, imagen, mai"),
        ("mai, public", "mai, public, imagen"),
        ("imagen, mai", "imagen, mai"),
    ],
)
def test_schemas_that_were_exposed_stay_so(before, after, bare_database):
    with bare_database.cursor() as cursor:
        cursor.execute("alter role authenticator set pgrst.db_schemas = %s", [before])
        postgres.migrate(bare_database.cluster, bare_database.name)
        assert exposed(cursor) == {0: after}


def test_a_list_for_one_database_gets_them_too(bare_database):
    with bare_database.cursor() as cursor:
        cursor.execute("alter role authenticator set pgrst.db_schemas = 'public'")
        cursor.execute(
            f"alter role authenticator in database {bare_database.name}"
            " set pgrst.db_schemas = 'shop'"
        )
        postgres.migrate(bare_database.cluster, bare_database.name)
        assert [*exposed(cursor).values()] == ["public, imagen, mai", "shop, imagen, mai"]


def test_a_list_that_was_not_set_is_said_to_be_guessed(bare_database, tool):
    with bare_database.cursor() as cursor:
        cursor.execute("alter role authenticator reset pgrst.db_schemas")
        dsn = bare_database.dsn("migrator")
        ran = tool("migrate", env={"IMAGEN_DATABASE_URL": dsn})
        assert "the exposed schemas were not set in the database: public is taken" in ran.err
        assert exposed(cursor) == {0: "public, imagen, mai"}


def exposed(cursor):
    cursor.execute(
        "select setdatabase::int, split_part(setting, '=', 2)"
        " from pg_db_role_setting, unnest(setconfig) as setting"
        " where setrole = 'authenticator'::regrole and setting like 'pgrst.db\\_schemas=%'"
        " and setdatabase in (0, (select oid from pg_database where datname = current_database()))"
        " order by setdatabase"
    )
    return dict(cursor.fetchall())


# -- the files -------------------------------------------------------------------------------------


def test_plain_psql_can_run_the_files_and_run_them_again(bare_database, tool):
    dsn = bare_database.dsn("migrator")
    psql = [str(postgres.find()[0] / "psql"), dsn, "-X", "-v", "ON_ERROR_STOP=1"]
    for name in [*FILES, *FILES]:
        subprocess.run([*psql, "-f", db.SQL / f"{name}.sql"], check=True, capture_output=True)
    ran = tool("migrate", env={"IMAGEN_DATABASE_URL": dsn})
    assert ran.status == 0
    assert [line["migration"] for line in ran.records] == [*FILES]


@pytest.mark.parametrize("binaries", postgres.find()[1:], ids=lambda path: f"{path.parts[-2]}")
def test_they_run_on_an_older_postgresql_too(binaries):
    cluster = postgres.started(binaries)
    try:
        postgres.prepare(cluster)
        assert cluster.version >= 15
        with cluster.cursor(postgres.MIGRATED) as cursor:
            cursor.execute("select count(*) from imagen.migrations")
            assert cursor.fetchall() == [(len(FILES),)]
            assert exposed(cursor) == {0: "public, imagen, mai"}
    finally:
        cluster.let_go()


@pytest.mark.parametrize("name", FILES)
def test_a_migration_leaves_transactions_extensions_and_storage_alone(name):
    sql = re.sub(r"--.*", "", FILES[name]).lower()
    assert not re.search(r"^\s*(begin|commit|rollback)\s*;", sql, re.MULTILINE)
    assert "create extension" not in sql
    assert not re.search(r"delete\s+from\s+storage|truncate|drop\s+(table|schema)", sql)


def test_migrations_are_numbered_without_a_gap():
    assert [name[:3] for name in FILES] == [f"{n:03}" for n in range(1, len(FILES) + 1)]
