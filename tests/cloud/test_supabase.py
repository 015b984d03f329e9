"""Tables through a real PostgREST: once each, all of them, and what happens when it fails."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
import uuid
from contextlib import closing, contextmanager

import pytest
import requests

from imagen.cloud import supabase
from imagen.cloud.supabase import KeyRefused, Project, Tables
from imagen.errors import ConfigFault, Rejected, ServerFault, Throttled, Unreachable
from servers import postgres
from servers.gateway import JSON, Answer, Front
from servers.postgrest import token

MOST = 2**64 - 1
VARIABLE = "SUPABASE_SERVICE_ROLE_KEY"
SHA = hashlib.sha256(b"").hexdigest()


def row(**more):
    return {"backend": "mock", "prompt_hash": SHA, "submit": str(uuid.uuid4()), **more}


@pytest.fixture(scope="module")
def served(cluster, serve):
    """A PostgREST and its database for all tests here: a start takes longer than most of them."""
    with cluster.database() as place, serve(place) as rest:
        yield place, rest


@pytest.fixture
def database(served):
    with served[0].cursor() as cursor:
        cursor.execute("truncate imagen.jobs, mai.imagen_usage, imagen.images")
    return served[0]


@pytest.fixture
def rest(served, database):
    del served[1].gateway.asked[:], served[1].gateway.instead[:]
    return served[1]


@pytest.fixture
def usage(rest):
    with closing(Tables(Project(rest.url, rest.key(), VARIABLE), "mai")) as tables:
        yield tables


def kept(place):
    with place.cursor() as cursor:
        cursor.execute("select submit from mai.imagen_usage order by submit")
        return [submit for (submit,) in cursor.fetchall()]


# -- putting in ------------------------------------------------------------------------------------


def test_a_row_that_is_put_in_twice_is_there_once(usage, database):
    one = row(submit="one")
    assert [new["submit"] for new in supabase.send_usage(usage, [one])] == ["one"]
    assert supabase.send_usage(usage, [one]) == []
    two = supabase.send_usage(usage, [one, row(submit="two"), row(submit="two")])
    assert [new["submit"] for new in two] == ["two"]
    assert kept(database) == ["one", "two"]


def test_a_row_that_is_there_is_not_changed(usage, database):
    supabase.send_usage(usage, [row(submit="one", caller="first")])
    supabase.send_usage(usage, [row(submit="one", caller="second")])
    (found,) = supabase.usage_rows(usage, None, None)
    assert found["caller"] == "first"


def test_rows_with_different_columns_go_together(usage):
    supabase.send_usage(usage, [row(caller="me"), row(model="m", latency_ms=3)])
    found = [*supabase.usage_rows(usage, None, None)]
    assert {(one["caller"], one["model"]) for one in found} == {("me", None), (None, "m")}
    assert all(one["created_at"] for one in found)


def test_no_rows_are_no_request(usage, rest):
    assert supabase.send_usage(usage, []) == []
    assert rest.gateway.asked == []


def test_the_largest_seed_comes_back_exactly(usage, database):
    supabase.send_usage(usage, [row(seed=MOST)])
    (found,) = supabase.usage_rows(usage, None, None)
    assert found["seed"] == MOST
    assert isinstance(found["seed"], int)
    with database.cursor() as cursor:
        cursor.execute("select seed::text from mai.imagen_usage")
        assert cursor.fetchone() == (str(MOST),)


def test_an_unknown_cost_stays_unknown_and_a_small_one_exact(usage):
    supabase.send_usage(usage, [row(), row(cost_usd_estimate=0.003)])
    found = {one["cost_usd_estimate"] for one in supabase.usage_rows(usage, None, None)}
    assert found == {None, 0.003}


# -- reading ---------------------------------------------------------------------------------------


def test_more_rows_than_the_server_gives_at_once_are_all_read(usage, rest, database):
    rows = [row(submit=f"{n:04}") for n in range(2500)]
    assert len(supabase.send_usage(usage, rows)) == 2500
    headers = {"apikey": "x", "Authorization": f"Bearer {rest.key()}", "Accept-Profile": "mai"}
    plain = requests.get(f"{rest.url}/rest/v1/imagen_usage", headers=headers, timeout=10)
    assert len(plain.json()) == 1000, "the server does not cut: this test shows nothing"
    rest.gateway.asked.clear()
    found = [one["submit"] for one in supabase.usage_rows(usage, None, None)]
    assert sorted(found) == [f"{n:04}" for n in range(2500)]
    assert len(rest.gateway.asked) == 4, "three with rows, and the empty one that ends it"


def test_a_limit_of_the_server_below_ours_loses_nothing(usage, monkeypatch):
    monkeypatch.setattr(supabase, "PAGE", 5000)
    supabase.send_usage(usage, [row() for _ in range(1500)])
    assert len([*supabase.usage_rows(usage, None, None)]) == 1500


def test_rows_are_read_from_a_time_to_before_another(usage):
    days = ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00+00:00", "2026-01-03T00:00:00Z"]
    supabase.send_usage(usage, [row(submit=day[:10], created_at=day) for day in days])
    found = supabase.usage_rows(usage, "2026-01-02T00:00:00+00:00", "2026-01-03T00:00:00Z")
    assert [one["submit"] for one in found] == ["2026-01-02"]
    found = supabase.usage_rows(usage, "2026-01-02T00:00:00Z", None)
    assert {one["submit"] for one in found} == {"2026-01-02", "2026-01-03"}


def test_rows_can_be_chosen_by_the_column_that_orders_them(usage):
    made = supabase.send_usage(usage, [row(submit="a"), row(submit="b"), row(submit="c")])
    ids = sorted(one["id"] for one in made)
    found = usage.rows("imagen_usage", select="id", id=f"gt.{ids[0]}")
    assert [one["id"] for one in found] == ids[1:]


# -- who may ---------------------------------------------------------------------------------------


def test_an_owner_sees_their_own_images_only_and_others_none(rest, database):
    owner, other = str(uuid.uuid4()), str(uuid.uuid4())
    image = {
        "backend": "mock",
        "prompt": "a cat",
        "width": 1,
        "height": 1,
        "bytes": 1,
        "sha256": SHA,
    }
    with closing(Tables(Project(rest.url, rest.key(), VARIABLE), "imagen")) as service:
        for user in (owner, other):
            new = {**image, "id": str(uuid.uuid4()), "owner_user_id": user, "storage_path": user}
            service.insert_ignoring("images", [new], "id")
        assert len([*service.rows("images")]) == 2
    mine = rest.key("authenticated", sub=owner)
    with closing(Tables(Project(rest.url, mine, VARIABLE), "imagen")) as signed_in:
        assert [one["owner_user_id"] for one in signed_in.rows("images")] == [owner]
        with pytest.raises(Rejected, match="42501") as caught:
            signed_in.insert_ignoring("images", [{**image, "id": owner}], "id")
        assert caught.value.hint == "the key must be the service role's"


def test_an_expired_key_is_said_once_and_names_its_variable(rest):
    expired = rest.key(lasts_s=-60)
    with (
        closing(Tables(Project(rest.url, expired, VARIABLE), "mai")) as tables,
        pytest.raises(KeyRefused, match="JWT expired") as caught,
    ):
        supabase.send_usage(tables, [row()])
    assert caught.value.code == "unauthorized"
    assert f"${VARIABLE}" in caught.value.as_line()
    assert expired not in repr(caught.value.as_record("t"))
    assert len(rest.gateway.asked) == 1


@pytest.mark.parametrize("key", ["nonsense-nonsense", "a.b.c"])
def test_a_key_that_is_none_is_unauthorized_and_not_shown(key, rest):
    with (
        closing(Tables(Project(rest.url, key, VARIABLE), "mai")) as tables,
        pytest.raises(KeyRefused) as caught,
    ):
        [*tables.rows("imagen_usage")]
    assert key not in caught.value.as_line()


def test_what_a_users_key_may_not_is_refused(rest):
    with (
        closing(Tables(Project(rest.url, rest.key("authenticated"), VARIABLE), "mai")) as tables,
        pytest.raises(Rejected, match="permission denied for schema mai"),
    ):
        [*tables.rows("imagen_usage")]


@pytest.mark.parametrize(
    ("url", "key", "says"),
    [
        (None, "k", "set it in the configuration or $SUPABASE_URL"),
        ("http://x", None, "set $MY_KEY, or $MY_KEY_FILE"),
        ("http://x", "", "set $MY_KEY"),
    ],
)
def test_what_is_missing_is_named(url, key, says):
    with pytest.raises(ConfigFault) as caught:
        Tables(Project(url, key, "MY_KEY"), "mai")
    assert says in caught.value.as_line()


# -- what is refused is never tried again, and rows are not shown ----------------------------------


@pytest.mark.parametrize(
    ("wrong", "state"),
    [
        ({"prompt_hash": "my secret prompt"}, "23514"),
        ({"submit": None}, "23502"),
        ({"latency_ms": "soon"}, "22P02"),
        ({"no_such_column": 1}, "PGRST204"),
    ],
)
def test_a_row_that_is_refused_is_sent_once_and_not_shown(wrong, state, usage, rest, database):
    with pytest.raises(Rejected, match=state) as caught:
        supabase.send_usage(usage, [row(caller="my secret self", **wrong)])
    assert "secret" not in repr(vars(caught.value))
    assert len(rest.gateway.asked) == 1
    assert kept(database) == []


@pytest.mark.parametrize(("schema", "table"), [("nothing", "imagen_usage"), ("mai", "nothing")])
def test_a_table_that_is_not_served_points_to_imagen_migrate(schema, table, rest):
    with (
        closing(Tables(Project(rest.url, rest.key(), VARIABLE), schema)) as tables,
        pytest.raises(Rejected) as caught,
    ):
        [*tables.rows(table)]
    assert "imagen-migrate" in caught.value.hint


def test_a_page_that_is_no_postgrest_points_to_the_url(usage, rest):
    rest.gateway.instead.append((200, {}, b"<html>hello</html>"))
    with pytest.raises(Rejected, match="does not answer as Supabase does") as caught:
        [*supabase.usage_rows(usage, None, None)]
    assert "supabase.url" in caught.value.hint


# -- what passes is tried again --------------------------------------------------------------------


def test_a_database_that_goes_away_and_comes_back_loses_nothing(usage, rest, database):
    supabase.send_usage(usage, [row(submit="before")])
    with database.cluster.cursor() as cursor:
        cursor.execute(f"alter database {database.name} with allow_connections false")
        cursor.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s",
            [database.name],
        )
        threading.Timer(0.4, come_back, [database]).start()
        new = supabase.send_usage(usage, [row(submit="meanwhile")])
    assert [one["submit"] for one in new] == ["meanwhile"]
    assert kept(database) == ["before", "meanwhile"]
    assert len(rest.gateway.asked) > 2


def come_back(place):
    with place.cluster.cursor() as cursor:
        cursor.execute(f"alter database {place.name} with allow_connections true")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_passes_is_tried_again(status, usage, rest):
    rest.gateway.instead.append((status, {}, b"{}"))
    assert [*supabase.usage_rows(usage, None, None)] == []
    assert len(rest.gateway.asked) == 2


@pytest.mark.parametrize("status", [429, 503])
def test_the_wait_is_what_the_server_says(status, usage, rest):
    rest.gateway.instead.append((status, {"Retry-After": "1"}, b"{}"))
    begun = time.monotonic()
    assert len(supabase.send_usage(usage, [row()])) == 1
    assert 1 <= time.monotonic() - begun < 6


def test_a_wait_that_would_take_too_long_is_left_to_the_next_run(usage, rest):
    rest.gateway.instead.append((503, {"Retry-After": "60"}, b'{"message":"later"}'))
    begun = time.monotonic()
    with pytest.raises(ServerFault, match="503: later") as caught:
        supabase.send_usage(usage, [row()])
    assert time.monotonic() - begun < 10
    assert (caught.value.retry_after_s, caught.value.exit_status) == (60, 75)


def test_who_is_throttled_for_good_is_told_when(usage, rest, monkeypatch):
    monkeypatch.setattr(supabase, "PATIENCE_S", 6.5)
    rest.gateway.instead += [(429, {"Retry-After": "1"}, b'{"details":"my secret"}')] * 3
    with pytest.raises(Throttled) as caught:
        supabase.send_usage(usage, [row()])
    assert caught.value.retry_after_s == 1
    assert "secret" not in repr(vars(caught.value))


def test_a_postgrest_without_its_database_does_not_hang_us(database, serve, monkeypatch):
    """Started so, it takes requests and never answers."""
    monkeypatch.setattr(supabase, "READ_S", 0.5)
    monkeypatch.setattr(supabase, "PATIENCE_S", 7)
    gone = postgres.Place(database.cluster, "nothing_here")
    with serve(gone, wait=False) as rest:
        tables = Tables(Project(rest.url, rest.key(), VARIABLE), "mai")
        begun = time.monotonic()
        with closing(tables), pytest.raises(Exception, match="timed out"):
            [*tables.rows("imagen_usage")]
        assert time.monotonic() - begun < 7


def test_a_server_that_never_answers_is_given_up_within_the_patience(monkeypatch):
    monkeypatch.setattr(supabase, "CONNECT_S", 0.5)
    monkeypatch.setattr(supabase, "PATIENCE_S", 1.6)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begun = time.monotonic()
        with (
            closing(Tables(Project(url, "k", VARIABLE), "mai")) as tables,
            pytest.raises(Exception, match="timed out"),
        ):
            [*tables.rows("imagen_usage")]
        assert 1 < time.monotonic() - begun < 5


def test_a_server_that_is_not_there_is_unreachable(monkeypatch):
    monkeypatch.setattr(supabase, "PATIENCE_S", 6.5)
    with (
        nobody_listens() as url,
        closing(Tables(Project(url, "k", VARIABLE), "mai")) as tables,
        pytest.raises(Unreachable) as caught,
    ):
        supabase.send_usage(tables, [row()])
    assert caught.value.exit_status == 75


@contextmanager
def nobody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_migration_is_served_without_a_restart(bare_database, serve):
    with serve(bare_database) as rest:
        tables = Tables(Project(rest.url, rest.key(), VARIABLE), "imagen")
        with closing(tables), pytest.raises(Rejected, match="PGRST106"):
            [*tables.rows("images")]
        postgres.migrate(bare_database.cluster, bare_database.name)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                assert [*tables.rows("images")] == []
                break
            except Rejected:
                time.sleep(0.05)
        assert [*tables.rows("images")] == []


# -- the kinds of keys -----------------------------------------------------------------------------


class Heads:
    """Answers everything with an empty list, and keeps the headers of what was asked."""

    def __init__(self):
        self.seen = []

    def __call__(self, request):
        self.seen.append(request.headers)
        return Answer(200, JSON, b"[]")


def heads_for(key):
    heads = Heads()
    front = Front(heads)
    try:
        with closing(Tables(Project(front.url, key, VARIABLE), "mai")) as tables:
            assert tables.some("imagen_usage", "id") == []
    finally:
        front.stop()
    return heads.seen[0]


def test_a_new_secret_key_goes_as_apikey_only():
    heads = heads_for("sb_secret_abcdefgh")
    assert heads["apikey"] == "sb_secret_abcdefgh"
    assert heads["Authorization"] is None


def test_a_legacy_key_goes_as_both():
    heads = heads_for("eyJ.eyJ.sig")
    assert (heads["apikey"], heads["Authorization"]) == ("eyJ.eyJ.sig", "Bearer eyJ.eyJ.sig")


def test_a_publishable_key_is_refused_by_name_and_never_shown():
    with pytest.raises(ConfigFault, match="publishable") as caught:
        Project("http://127.0.0.1:1", "sb_publishable_abcdefgh", VARIABLE)
    assert "sb_secret_" in caught.value.hint and f"${VARIABLE}" in caught.value.as_line()
    assert "abcdefgh" not in caught.value.as_line()


@pytest.mark.parametrize("claims", [{"role": "anon"}, {"iss": "supabase", "role": "anon", "x": 1}])
def test_the_legacy_anon_key_is_refused_by_name_and_never_shown(claims):
    key = token("secret", **claims)
    with pytest.raises(ConfigFault, match="legacy anon key") as caught:
        Project("http://127.0.0.1:1", key, VARIABLE)
    assert "service_role" in caught.value.hint and f"${VARIABLE}" in caught.value.as_line()
    assert not any(part in caught.value.as_line() for part in key.split("."))


@pytest.mark.parametrize(
    "key",
    [
        *(
            "a.b",
            "a.!!.c",
            "a.b.c",
            "..",
            "a..c",
            "a.bnVsbA.c",
            "a.W10.c",
            "a.IjEi.c",
            "a.\u00fc.c",
        ),
        *(token("s", role="service_role"), token("s", role=["anon"]), token("s"), token("s", a=1)),
    ],
)
def test_a_key_of_any_other_shape_is_sent(key):
    assert Project("http://127.0.0.1:1", key, VARIABLE)


# -- servers that do not keep to what was asked ----------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [b'[{"id":"1"},{"id":"2"}]', b'[{"id":"2"},{"id":"1"}]', b'[{"x":1}]', b"[7]", b'[{"id":[]}]'],
)
def test_rows_that_come_again_or_have_no_key_are_an_error_and_no_endless_loop(page):
    front = Front(lambda _request: Answer(200, JSON, page))
    try:
        with (
            closing(Tables(Project(front.url, "key", VARIABLE), "mai")) as tables,
            pytest.raises(Rejected, match="does not answer as Supabase does"),
        ):
            list(tables.rows("imagen_usage", "id"))
        assert front.asks() <= 2
    finally:
        front.stop()
