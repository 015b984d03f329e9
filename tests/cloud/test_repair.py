"""Objects and rows that came apart are listed, and mended from the files of this machine."""

from __future__ import annotations

import io
import json
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from imagen.cloud import repair, upload
from imagen.cloud.storage import Bucket
from imagen.cloud.supabase import Project, Tables
from imagen.cloud.upload import Target
from servers.gateway import JSON, Answer, Front
from servers.supabase import BUCKET
from uploads import DAY, belongs, made, rows

OWNER = "11111111-2222-4333-8444-555555555555"
PATH = f"{DAY}/a-cat-7.png"


@pytest.fixture
def target(cloud):
    opened = Project(cloud.url, cloud.service_key, "MY_KEY")
    with closing(Tables(opened, "imagen")) as tables:
        yield Target(tables, Bucket(opened, BUCKET))


def brought(one, target):
    image = upload.judged(one, OWNER)
    with upload.opened(image) as stream:
        return upload.upload(image, stream, target)["path"]


def put(target, path, data):
    target.bucket.put(path, io.BytesIO(data), len(data), "image/png")


def removed(cloud, table):
    with cloud.database.cursor() as cursor:
        cursor.execute("set session_replication_role = replica")
        cursor.execute(f"delete from {table}")
        cursor.execute("set session_replication_role = origin")


def found(target, folder, minutes=10):
    now = datetime.now(UTC) + timedelta(minutes=minutes)
    return [*repair.differences(target, folder, now)]


def mended(target, folder):
    all_found = found(target, folder)
    for one in all_found:
        repair.mend(one, target, OWNER)
    return all_found


def test_where_all_belongs_together_there_is_nothing(target, tmp_path):
    for seed in range(3):
        brought(made(tmp_path, seed), target)
    assert found(target, tmp_path) == []


def test_an_object_without_a_row_gets_one(cloud, target, tmp_path):
    one = made(tmp_path)
    brought(one, target)
    removed(cloud, "imagen.images")
    (lone,) = found(target, tmp_path)
    assert lone.as_record() == {
        **{"problem": "object_without_row", "path": PATH, "file": one["file"], "mended": False},
    }
    (lone,) = mended(target, tmp_path)
    assert (lone.mended, belongs(cloud), found(target, tmp_path)) == (True, True, [])


def test_a_row_without_its_object_gets_it(cloud, target, tmp_path):
    one = made(tmp_path)
    brought(one, target)
    removed(cloud, "storage.objects")
    (lone,) = mended(target, tmp_path)
    assert (lone.problem, lone.image_id) == (
        "row_without_object",
        upload.image_id(one["render_id"]),
    )
    assert lone.mended and belongs(cloud)


def test_an_object_of_another_size_is_put_again(cloud, target, tmp_path):
    brought(made(tmp_path), target)
    put(target, PATH, b"another's")
    (lone,) = mended(target, tmp_path)
    assert (lone.problem, lone.mended, belongs(cloud)) == ("object_differs", True, True)


def test_to_list_is_not_to_write(cloud, target, tmp_path):
    brought(made(tmp_path), target)
    removed(cloud, "imagen.images")
    cloud.gateway.forget()
    assert len(found(target, tmp_path)) == 1
    assert {method for method, _ in cloud.gateway.asked} == {"GET", "POST"}
    assert cloud.gateway.asks("POST") == cloud.gateway.asks("POST /storage/v1/object/list/")


def test_an_object_that_may_be_waiting_for_its_row_is_not_listed(cloud, target, tmp_path):
    put(target, PATH, b"x")
    assert found(target, tmp_path, minutes=0) == []
    assert len(found(target, tmp_path, minutes=6)) == 1


@pytest.mark.parametrize(
    ("said", "year"),
    [(None, 1), ("soon", 1), ("2026-11-23T10:00:00", 2026), ("2026-11-23T10:00:00Z", 2026)],
)
def test_an_object_without_a_time_counts_as_old(said, year):
    moment = repair._moment(said)
    assert (moment.year, moment.tzinfo) == (year, UTC)


@pytest.mark.parametrize("here", ["nothing", "another image", "no sidecar"])
def test_without_its_file_it_is_listed_and_left(here, cloud, target, tmp_path):
    one = made(tmp_path / "there")
    brought(one, target)
    removed(cloud, "imagen.images")
    folder = tmp_path / "here"
    if here == "another image":
        made(folder, data=b"of another length")
    elif here == "no sidecar":
        made(folder)
        (folder / DAY / "a-cat-7.json").unlink()
    (lone,) = mended(target, folder)
    assert (lone.file, lone.mended, lone.why) == (None, False, "no such image on this machine")
    assert (rows(cloud), len(cloud.storage.objects())) == ([], 1)


def test_another_render_of_the_same_bytes_does_not_take_the_rows_place(cloud, target, tmp_path):
    brought(made(tmp_path / "there"), target)
    made(tmp_path / "here")
    removed(cloud, "storage.objects")
    (lone,) = mended(target, tmp_path / "here")
    assert (lone.mended, lone.why) == (False, "the file here is of another render")
    assert cloud.storage.objects() == {}


def test_an_image_that_got_another_name_is_found_by_its_own(cloud, target, tmp_path):
    brought(made(tmp_path / "first", data=b"1"), target)
    second = made(tmp_path / "second", data=b"the second")
    path = brought(second, target)
    with cloud.database.cursor() as cursor:
        cursor.execute("delete from imagen.images where storage_path = %s", [path])
    (lone,) = mended(target, tmp_path / "second")
    assert (lone.path, lone.mended, belongs(cloud)) == (path, True, True)


def test_a_lone_object_whose_image_stands_elsewhere_is_left(cloud, target, tmp_path):
    one = made(tmp_path)
    brought(one, target)
    lone_path = f"{DAY}/a-cat-7-{'0' * 8}.png"
    put(target, lone_path, (tmp_path / DAY / "a-cat-7.png").read_bytes())
    (lone,) = mended(target, tmp_path)
    assert (lone.path, lone.mended, lone.why) == (
        *(lone_path, False, f"the image here stands at {PATH}"),
    )
    assert len(rows(cloud)) == 1


@pytest.mark.parametrize("path", ["../../etc/passwd.png", "/etc/x.png", "a.png", f"{DAY}/../x.png"])
def test_a_name_of_the_cloud_leads_to_no_other_file_here(path, tmp_path):
    assert repair._local(tmp_path, path, lambda _record: True) is None


def test_a_record_that_is_refused_says_why(cloud, target, tmp_path):
    brought(made(tmp_path), target)
    removed(cloud, "imagen.images")
    made(tmp_path, width=None)
    (lone,) = mended(target, tmp_path)
    assert (lone.mended, "no width" in lone.why) == (False, True)


# -- servers and rows of any shape -----------------------------------------------------------------

ENTRIES = [
    {"name": PATH.rpartition("/")[2], "id": "1", "metadata": "text", "updated_at": 5},
    {"name": "x\ny.png", "id": "2", "metadata": ["size"]},
    {"name": "\ud800.png", "id": 7, "metadata": {"size": "9"}, "updated_at": "never"},
    {"name": "z.png", "id": {}, "metadata": {"size": True}, "updated_at": "2026-13-45"},
]
ROWS = [
    {"id": "1", "storage_path": None, "sha256": None, "bytes": None},
    {"id": "2", "sha256": 5},
    {"id": "3", "storage_path": ["x"], "bytes": "many"},
    {"id": "4", "storage_path": "../../etc/passwd", "sha256": "x", "bytes": 1},
    {"id": "5", "storage_path": f"{DAY}/a-cat-8.png", "sha256": {}, "bytes": []},
]


def test_entries_and_rows_of_any_shape_are_listed_and_stop_nothing(tmp_path):
    made(tmp_path, 7)
    made(tmp_path, 8)
    (tmp_path / DAY / "a-cat-7.json").write_bytes(b"\xff{broken")
    pages = {"images": [ROWS], "": [[{"name": DAY, "id": None}]], DAY: [ENTRIES]}

    def respond(request):
        body = json.loads(request.body) if request.body else {}
        listed = pages["images" if "/rest/" in request.target else body["prefix"]]
        return Answer(200, JSON, json.dumps(listed.pop(0) if listed else []).encode())

    front = Front(respond)
    opened = Project(front.url, "key", "MY_KEY")
    try:
        with closing(Tables(opened, "imagen")) as tables:
            listed = found(Target(tables, Bucket(opened, BUCKET)), tmp_path)
    finally:
        front.stop()
    problems = sorted((one.problem, one.image_id or "") for one in listed)
    assert problems == [
        *[("object_without_row", "")] * 4,
        *[("row_without_object", one) for one in "12345"],
    ]
    for one in listed:
        json.dumps(one.as_record())
