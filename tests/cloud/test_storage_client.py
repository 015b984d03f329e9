"""The bucket as imagen sees it: lists that are read to their end, signed addresses, slow lines."""

from __future__ import annotations

import io
import json
import time
from contextlib import closing, suppress

import pytest
import requests

from imagen import http
from imagen.cloud import storage, supabase
from imagen.cloud.storage import Bucket
from imagen.cloud.supabase import Project, Tables
from imagen.errors import AnswerLost, Rejected, ServerFault
from servers.gateway import JSON, Answer, Front
from servers.storage import Storage
from servers.supabase import BUCKET

LIST = f"POST /storage/v1/object/list/{BUCKET}"


@pytest.fixture
def bucket(cloud):
    opened = Project(cloud.url, cloud.service_key, "MY_KEY")
    yield Bucket(opened, BUCKET)
    opened.close()


def put(bucket, path, data=b"x"):
    bucket.put(path, io.BytesIO(data), len(data), "image/png")


def filled(cloud, table, values):
    with cloud.database.cursor() as cursor:
        cursor.execute("set session_replication_role = replica")
        cursor.execute(f"insert into {table} {values}")
        cursor.execute("set session_replication_role = origin")


def test_all_objects_are_listed_however_many_and_however_deep(cloud, bucket):
    filled(
        cloud,
        "storage.objects (bucket_id, name)",
        f"select '{BUCKET}', '2026-11-23/x-' || n || '.png' from generate_series(1, 2300) n"
        f" union all select '{BUCKET}', 'a/b/c/' || n from generate_series(1, 3) n",
    )
    found = [path for path, _ in bucket.objects()]
    assert len(found) == len({*found}) == 2303
    assert {"2026-11-23/x-2300.png", "a/b/c/3"} <= {*found}


def test_all_rows_are_read_beyond_what_the_server_gives_at_once(cloud, bucket):
    filled(
        cloud,
        "imagen.images (id, owner_user_id, backend, prompt, width, height, bytes, sha256,"
        " storage_path)",
        "select gen_random_uuid(), gen_random_uuid(), 'm', 'p', 1, 1, 1, repeat('0', 64), n::text"
        " from generate_series(1, 2300) n",
    )
    with closing(Tables(bucket._project, "imagen")) as tables:
        assert len([*tables.rows("images", "id")]) == 2300


@pytest.mark.parametrize("said", [b"{}", b"[7]", b'[{"id": null}]', b"<html>"])
def test_a_list_that_is_none_is_a_fault_of_the_server(said, cloud, bucket):
    cloud.gateway.fail(LIST, Answer(200, JSON, said))
    with pytest.raises(ServerFault, match="no list"):
        [*bucket.objects()]


def test_a_folder_without_a_name_does_not_send_us_round(cloud, bucket):
    folder = json.dumps([{"name": "", "id": None}]).encode()
    cloud.gateway.fail(LIST, Answer(200, JSON, folder))
    assert [path for path, _ in bucket.objects()] == []
    assert cloud.gateway.asks(LIST) == 2


def test_a_signed_address_gives_the_bytes_to_anybody_until_it_expires(cloud, bucket):
    put(bucket, "2026-11-23/a cat & +7.png", b"\x89PNG")
    url = bucket.signed_url("2026-11-23/a cat & +7.png", 60)
    assert url.startswith(f"{cloud.url}/storage/v1/object/sign/{BUCKET}/2026-11-23/a%20cat")
    assert requests.get(url, timeout=5).content == b"\x89PNG"
    cloud.storage.skew_s = 61
    assert requests.get(url, timeout=5).json()["code"] == "InvalidJWT"


def test_a_missing_object_cannot_be_signed_and_has_no_size(bucket):
    with pytest.raises(Rejected):
        bucket.signed_url("none.png", 60)
    assert bucket.size("none.png") is None
    put(bucket, "some.png", b"1234")
    assert bucket.size("some.png") == 4


def test_no_signed_url_in_the_answer_is_a_fault_of_the_server(cloud, bucket):
    cloud.gateway.fail("POST /storage/v1/object/sign", Answer(200, JSON, b"[]"))
    with pytest.raises(ServerFault, match="no signed URL"):
        bucket.signed_url("x.png", 60)


@pytest.mark.parametrize("name", ["a b", "ü#?/..", "%2e"])
def test_a_bucket_of_any_name_stays_in_its_place(name, cloud, bucket):
    with suppress(Rejected):
        put(Bucket(bucket._project, name), "x.png")
    ((_, target),) = cloud.gateway.asked
    assert target.startswith("/storage/v1/object/") and "?" not in target and "#" not in target


# -- a line that is slow ---------------------------------------------------------------------------


class Trickle(io.BytesIO):
    """A file whose parts take their time, as on a slow line."""

    def read(self, size=-1):
        time.sleep(0.1)
        return super().read(size)


@pytest.fixture
def slow(monkeypatch):
    """A bucket of a server without a database, and a patience of almost nothing."""
    monkeypatch.setattr(supabase, "PATIENCE_S", 0.4)
    monkeypatch.setattr(supabase, "CONNECT_S", 0.1)
    with Storage("secret") as server:
        under = server.respond
        server.front.respond = lambda one: under(
            one._replace(target=one.target[len("/storage/v1") :])
        )
        opened = Project(server.front.url, server.token(60, role="service_role"), "MY_KEY")
        body = json.dumps({"name": "b"}).encode()
        opened.server.post("/storage/v1/bucket", json.loads(body))
        yield Bucket(opened, "b"), server
        opened.close()


def test_a_slow_line_has_the_time_that_the_bytes_need(slow, monkeypatch):
    bucket, server = slow
    data = b"x" * 2**21
    bucket.put("x.png", Trickle(data), len(data), "image/png")
    assert server.objects("b") == {"x.png": data}


def test_a_line_that_is_too_slow_is_given_up(slow, monkeypatch):
    bucket, server = slow
    monkeypatch.setattr(storage, "SLOWEST", 2**30)
    monkeypatch.setattr(http.bodies, "_SENT", 2**14)
    data = b"x" * 2**21
    with pytest.raises(AnswerLost, match="too slowly"):
        bucket.put("x.png", Trickle(data), len(data), "image/png")
    assert server.objects("b") == {}


def test_a_server_that_is_no_supabase_is_said(monkeypatch):
    front = Front(lambda _request: Answer(200, {}, b"<html>"))
    opened = Project(front.url, "k", "MY_KEY")
    try:
        with pytest.raises(Rejected, match="does not answer as Supabase does"):
            Tables(opened, "imagen").some("images", "id", id="eq.1")
    finally:
        opened.close()
        front.stop()


def listing(front_answer):
    """Give the paths that a bucket lists whose every page is this."""
    front = Front(lambda _request: Answer(200, JSON, json.dumps(front_answer).encode()))
    opened = Project(front.url, "key", "MY_KEY")
    try:
        return [path for path, _ in Bucket(opened, BUCKET).objects()], front.asks()
    finally:
        opened.close()
        front.stop()


@pytest.mark.parametrize(
    "page",
    [
        [{"name": "a.png", "id": "1"}],
        [{"name": "2026-11-23", "id": None}],
        [{"name": "a", "id": None}, {"name": "b", "id": None}, {"name": "c.png", "id": "1"}],
    ],
)
def test_a_server_that_ignores_offset_or_prefix_is_an_error_and_no_endless_loop(page):
    with pytest.raises(ServerFault, match="again"):
        listing(page)
