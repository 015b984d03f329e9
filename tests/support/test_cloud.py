"""The test cloud: one URL as Supabase has it, our policies behind it, and make dev-cloud."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import psycopg2
import pytest
import requests

from servers.supabase import BUCKET

SUPPORT = Path(__file__).parent
PNG = b"\x89PNG of the tests"
PATH = "2026-01-02/a-cat-7.png"
OBJECT = f"/storage/v1/object/{BUCKET}/{PATH}"


def ask(url, method, path, key, body=None, **headers):
    heads = {"apikey": key, "Authorization": f"Bearer {key}", **headers}
    return requests.request(method, url + path, data=body, headers=heads, timeout=10)


def image(owner, path=PATH):
    return {
        **{"id": str(uuid.uuid4()), "owner_user_id": owner, "backend": "mock", "prompt": "a cat"},
        **{"seed": 7, "width": 64, "height": 64, "bytes": len(PNG), "storage_path": path},
        "sha256": hashlib.sha256(PNG).hexdigest(),
    }


def upload(url, key, owner, path=PATH):
    """Do what an upload does: the object, then its row."""
    where = f"/storage/v1/object/{BUCKET}/{path}"
    put = ask(url, "PUT", where, key, PNG, **{"Content-Type": "image/png", "x-upsert": "true"})
    heads = {"Content-Profile": "imagen", "Content-Type": "application/json"}
    row = ask(url, "POST", "/rest/v1/images", key, json.dumps(image(owner, path)), **heads)
    return put.status_code, row.status_code


@pytest.fixture(scope="module")
def shared(cluster, serve_cloud):
    """A project for all tests here, with an owner, another user, and an image of the owner's."""
    with cluster.database() as place, serve_cloud(place) as cloud:
        cloud.owner, cloud.other = cloud.new_user(), cloud.new_user()
        assert upload(cloud.url, cloud.service_key, cloud.owner) == (200, 201)
        yield cloud


@pytest.fixture
def project(shared):
    shared.gateway.forget()
    return shared


def key_of(project, who):
    return {
        "owner": lambda: project.user_key(project.owner),
        "other user": lambda: project.user_key(project.other),
        "anon": lambda: project.anon_key,
        "service role": lambda: project.service_key,
    }[who]()


@pytest.mark.parametrize(
    ("who", "reads", "lists", "writes", "deletes"),
    [
        ("owner", 200, 1, "403", "403"),
        ("other user", 400, 0, "403", "403"),
        ("anon", 400, 0, "403", "403"),
        ("service role", 200, 1, None, None),
    ],
)
def test_the_policies_decide_about_objects(project, who, reads, lists, writes, deletes):
    key = key_of(project, who)
    assert ask(project.url, "GET", OBJECT, key).status_code == reads
    listed = ask(
        *(project.url, "POST", f"/storage/v1/object/list/{BUCKET}", key),
        *('{"prefix": "2026-01-02"}',),
        **{"Content-Type": "application/json"},
    )
    assert len(listed.json()) == lists
    where = f"/storage/v1/object/{BUCKET}/2026-01-02/{who}.png"
    put = ask(project.url, "PUT", where, key, PNG, **{"Content-Type": "image/png"})
    assert put.json().get("statusCode") == writes
    deleted = ask(project.url, "DELETE", where if writes is None else OBJECT, key)
    assert deleted.json().get("statusCode") == deletes
    assert project.storage.objects() == {PATH: PNG}


def test_an_owner_can_have_their_image_signed_and_another_cannot(project):
    path, heads = f"/storage/v1/object/sign/{BUCKET}/{PATH}", {"Content-Type": "application/json"}
    sign = {
        who: ask(project.url, "POST", path, key_of(project, who), '{"expiresIn": 60}', **heads)
        for who in ("owner", "other user")
    }
    assert sign["other user"].json()["code"] == "NoSuchKey"
    url = f"{project.url}/storage/v1{sign['owner'].json()['signedURL']}"
    assert requests.get(url, timeout=10).content == PNG, "no header is needed"
    project.storage.skew_s = 61
    try:
        assert requests.get(url, timeout=10).json()["code"] == "InvalidJWT"
    finally:
        project.storage.skew_s = 0


@pytest.mark.parametrize("path", [OBJECT, "/rest/v1/images", "/storage/v1/bucket"])
def test_the_gateway_wants_the_apikey_header(project, path):
    headers = {"Authorization": f"Bearer {project.service_key}"}
    got = requests.get(project.url + path, headers=headers, timeout=10)
    assert (got.status_code, got.json()["message"]) == (401, "No API key found in request")


def test_what_is_asked_is_counted_and_fails_on_demand(project):
    project.gateway.fail("POST /rest/v1/images", times=2)
    path = "2026-01-02/b.png"
    assert upload(project.url, project.service_key, project.owner, path) == (200, 500)
    assert upload(project.url, project.service_key, project.owner, path) == (200, 500)
    assert upload(project.url, project.service_key, project.owner, path) == (200, 201)
    assert project.gateway.asks("PUT /storage/v1/") == 3
    assert project.gateway.asks() == 6
    ask(project.url, "DELETE", f"/storage/v1/object/{BUCKET}/{path}", project.service_key)


def test_an_object_is_a_row_of_the_database(project):
    with project.database.cursor() as cursor:
        cursor.execute("select bucket_id, name, metadata ->> 'size' from storage.objects")
        assert cursor.fetchall() == [(BUCKET, PATH, str(len(PNG)))]


def test_storage_finds_its_database_again(cloud):
    path, heads = f"/storage/v1/object/{BUCKET}/a.png", {"Content-Type": "image/png"}
    statuses = []
    for _ in range(3):
        statuses.append(ask(cloud.url, "PUT", path, cloud.service_key, PNG, **heads).status_code)
        with cloud.database.cursor() as cursor:
            ends = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s"
            if len(statuses) == 1:
                named = f"{ends} and application_name = 'storage'"
                cursor.execute(named, [cloud.database.name])
                assert cursor.rowcount == 1
    assert statuses == [200, 500, 200]


def test_a_cloud_of_ones_own_is_empty_and_points_the_tools_to_it(cloud):
    assert cloud.storage.objects() == {}
    said = cloud.environment(cloud.new_user())
    assert upload(said["SUPABASE_URL"], said["SUPABASE_SERVICE_ROLE_KEY"], str(uuid.uuid4())) == (
        *(200, 201),
    )
    with psycopg2.connect(cloud.dsn) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from imagen.images")
        assert cursor.fetchone() == (1,)
    connection.close()


# -- make dev-cloud --------------------------------------------------------------------------------


@pytest.fixture
def dev_cloud(serve, cluster):
    """Start it as make does, with a folder for its temporary files that must end empty."""
    folder = Path(tempfile.mkdtemp(prefix="imagen-dev-"))  # a short path, open to PostgreSQL's user
    folder.chmod(0o711)
    child = subprocess.Popen(
        [sys.executable, "-m", "servers.supabase"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])}
        | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    yield child, folder
    child.kill()
    child.communicate()
    shutil.rmtree(folder)


def exported(child):
    """Read what it says to export."""
    lines = [child.stdout.readline().decode() for _ in range(6)]
    assert all(lines), child.stderr.read().decode()
    words = [shlex.split(line)[1] for line in lines]
    return dict(word.split("=", 1) for word in words)


def running(folder):
    """Give the servers that were started there."""
    return [int(path.read_text()) for path in folder.glob("*/pid")]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_dev_cloud_works_and_leaves_nothing_behind(dev_cloud, how, until):
    child, folder = dev_cloud
    said = exported(child)
    owner = said["IMAGEN_OWNER_USER_ID"]
    assert upload(said["SUPABASE_URL"], said["SUPABASE_SERVICE_ROLE_KEY"], owner) == (200, 201)
    assert ask(said["SUPABASE_URL"], "GET", OBJECT, said["SUPABASE_USER_KEY"]).content == PNG
    with psycopg2.connect(said["IMAGEN_DATABASE_URL"]) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from auth.users where id = %s", [owner])
        assert cursor.fetchone() == (1,)
    connection.close()
    servers = running(folder)
    assert len(servers) == 2
    child.send_signal(how)
    assert child.wait(20) == (0 if how == signal.SIGINT else -signal.SIGKILL)
    until(lambda: not list(folder.iterdir()))
    for pid in servers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("abc", "'abc' is no port (hint: PORT=54321"),
        ("-1", "'-1' is no port"),
        ("65536", "'65536' is no port"),
        ("", "'' is no port"),
        (None, "is taken (hint: another PORT"),
    ],
)
def test_a_dev_cloud_says_at_once_which_port_it_cannot_have(said, says):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = said if said is not None else str(other.getsockname()[1])
        ran = subprocess.run(
            [sys.executable, "-m", "servers.supabase", f"--port={port}"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])},
            capture_output=True,
            text=True,
            check=False,
        )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("dev-cloud: ") and says in ran.stderr
    assert ran.stderr.count("\n") == 1
