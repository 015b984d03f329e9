"""The official Python client gets from our cloud what it got from real servers: `make official`.

tests/data/storage/official.json holds 27 operations of supabase 2.34.1 as they were seen on the
wire: its request and the status and body it got. Here the client does the same again. For tables
PostgREST is real in both cases; there it is the gateway that is looked at.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import urllib.request
from pathlib import Path

import pytest

from servers import postgres
from servers.supabase import BUCKET, serving

WANTED = os.environ.get("IMAGEN_OFFICIAL") == "1"  # before the environment is cleaned
DATA = Path(__file__).parents[1] / "data" / "storage"
RECORDED = {
    one["name"]: one for one in json.loads((DATA / "official.json").read_text())["operations"]
}
PNG = base64.b64decode(json.loads((DATA / "recorded.json").read_text())["png"])
USER = "00000000-0000-0000-0000-00000000000a"
TABLES = f"""
create schema imagen;
create schema mai;
create table imagen.images (
  id uuid primary key default gen_random_uuid(), user_id uuid, path text, prompt text not null,
  width integer, cost_usd numeric(12, 6) default 0, meta jsonb default '{{}}',
  status text default 'ok', created_at timestamptz default now()
);
create table mai.imagen_usage (
  id bigserial primary key, request_id text unique, cost_usd numeric(12, 6) default 0,
  created_at timestamptz default now()
);
insert into mai.imagen_usage (request_id) select 'r' || n from generate_series(1, 1500) as n;
grant usage on schema imagen, mai to service_role;
grant all on all tables in schema imagen, mai to service_role;
grant all on all sequences in schema imagen, mai to service_role;
insert into storage.buckets (id, name, public, file_size_limit, allowed_mime_types)
values ('{BUCKET}', '{BUCKET}', false, 20480, array['image/png', 'image/jpeg']);
"""
MASKS = {
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}": "<ID>",
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:[\d.]+(Z|\+00:00|\+00)": "<TIME>",
    r"eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+": "<JWT>",
    r'"id":\d+': '"id":<N>',
}


@pytest.fixture(scope="module")
def installed():
    """Skip where the client is not installed; only `make official` fails for want of it."""
    if importlib.util.find_spec("supabase") is None:
        said = "no official supabase client here: `make official` installs it and runs this"
        (pytest.fail if WANTED else pytest.skip)(said)


@pytest.fixture(scope="module")
def project(installed, cluster, serve):
    """A project with the tables that the client was recorded with."""
    with cluster.database(postgres.BARE) as place:
        with place.cursor() as cursor:
            cursor.execute(TABLES)
            expose = "set pgrst.db_schemas = 'public, imagen, mai'"
            cursor.execute(f"alter role authenticator in database {place.name} {expose}")
        with serving(place) as cloud:
            yield cloud


@pytest.fixture(scope="module")
def client(project):
    """The official client, as the service role."""
    import httpx
    from supabase import ClientOptions, create_client

    with httpx.Client(http2=False, timeout=20) as connection:
        options = ClientOptions(httpx_client=connection)
        yield create_client(project.url, project.service_key, options)


def operations(client):
    """The operations by name, in the order in which they were recorded."""
    bucket, nowhere = client.storage.from_(BUCKET), client.storage.from_("nope")
    images = client.schema("imagen").table("images")
    usage = client.schema("mai").table("imagen_usage")
    png, path = {"content-type": "image/png"}, "wire/a b.png"
    again = {**png, "upsert": "true", "cache-control": "60"}
    rows = [{"user_id": USER, "path": f"w{number}", "prompt": "x"} for number in range(5)]
    once, on = {"request_id": "w1", "cost_usd": 1}, {"on_conflict": "request_id"}
    since = ("created_at", "2020-01-01T00:00:00+00:00")
    return {
        "upload": lambda: bucket.upload(path, PNG, png),
        "upload-again": lambda: bucket.upload(path, PNG, png),
        "upload-upsert": lambda: bucket.upload(path, PNG, again),
        "update": lambda: bucket.update(path, PNG, png),
        "upload-unicode-key": lambda: bucket.upload("wire/żółw.png", PNG, png),
        "upload-wrong-type": lambda: bucket.upload(
            "wire/a.txt", b"x", {"content-type": "text/plain"}
        ),
        "sign": lambda: bucket.create_signed_url(path, 60),
        "sign-many": lambda: bucket.create_signed_urls([path, "wire/none.png"], 60),
        "download": lambda: bucket.download(path),
        "list": lambda: bucket.list("wire"),
        "info": lambda: bucket.info(path),
        "exists": lambda: bucket.exists(path),
        "remove": lambda: bucket.remove([path, "wire/none.png"]),
        "upload-no-bucket": lambda: nowhere.upload("a.png", PNG, png),
        "insert": images.insert(rows[1]).execute,
        "insert-minimal": images.insert(rows[2], returning="minimal").execute,
        "insert-many": images.insert(rows[3:]).execute,
        "upsert-merge": usage.upsert(once, **on).execute,
        "upsert-ignore": usage.upsert(once, **on, ignore_duplicates=True).execute,
        "select-range-count": images.select("path,created_at", count="exact")
        .gte(*since)
        .order("created_at", desc=True)
        .range(0, 1)
        .execute,
        "select-is-cut": usage.select("id").execute,
        "single-of-none": images.select("path").eq("path", "zz").single().execute,
        "insert-duplicate": usage.insert(once).execute,
        "insert-null": images.insert({"user_id": USER, "path": "q"}).execute,
        "schema-not-exposed": client.schema("hidden").table("t").select("*").execute,
        "update-rows": images.update({"status": "y"}).eq("path", "w1").execute,
        "delete-rows": images.delete().in_("path", ["w1", "w2", "w3", "w4"]).execute,
    }


@pytest.fixture(scope="module")
def done(project, client):
    """Run all operations; give what each asked and was answered, and what the client made of it."""
    seen, respond = [], project.gateway.respond

    def noted(request):
        answer = respond(request)
        seen.append((f"{request.method} {request.target}", answer))
        return answer

    project.gateway.respond = noted
    found = {}
    for name, operation in operations(client).items():
        try:
            result = operation()
        except Exception as error:  # noqa: BLE001 - what the client made of the answer
            result = error
        assert len(seen) == len(found) + 1, f"{name} is not one request: {result!r}"
        found[name] = (*seen[-1], result)
    return found


def in_order(request):
    """The client names columns in an order that differs from run to run."""
    start, sign, columns = request.partition("?columns=")
    return start, sign, sorted(columns.split("%2C"))


def shown(answer):
    """The body as it is kept: masked."""
    if answer.body == PNG:
        return "<PNG>"
    text = answer.body.decode()
    for pattern, mask in MASKS.items():
        text = re.sub(pattern, mask, text)
    return text


@pytest.mark.parametrize("name", RECORDED)
def test_the_client_is_answered_as_real_servers_did(done, name):
    request, answer, _ = done[name]
    wanted = RECORDED[name]
    body = shown(answer)
    assert in_order(request) == in_order(wanted["request"])
    assert answer.status == wanted["status"]
    assert (body if wanted["whole"] else body[: len(wanted["body"])]) == wanted["body"]


def test_the_client_understands_the_answers(done):
    results = {name: result for name, (_, _, result) in done.items()}
    assert results["download"] == PNG
    assert results["exists"] is True
    assert results["info"]["size"] == len(PNG)
    assert [one["name"] for one in results["list"]] == ["a b.png"]
    assert [one["name"] for one in results["remove"]] == ["wire/a b.png"]
    assert len(results["select-is-cut"].data) == 1000
    assert (len(results["select-range-count"].data), results["select-range-count"].count) == (2, 4)
    codes = {name: str(result.code) for name, result in results.items() if hasattr(result, "code")}
    assert codes == {
        "upload-again": "Duplicate",
        "upload-unicode-key": "InvalidKey",
        "upload-wrong-type": "invalid_mime_type",
        "upload-no-bucket": "Bucket not found",
        "single-of-none": "PGRST116",
        "insert-duplicate": "23505",
        "insert-null": "23502",
        "schema-not-exposed": "PGRST106",
    }


def test_a_url_that_the_client_signed_gives_the_same_bytes_without_a_key(client):
    bucket = client.storage.from_(BUCKET)
    bucket.upload("signed/a b.png", PNG, {"content-type": "image/png"})
    url = bucket.create_signed_url("signed/a b.png", 60)["signedURL"]
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.read() == PNG
