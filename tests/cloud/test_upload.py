"""One image into the cloud: what is refused beforehand, and what becomes of object and row."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import closing

import pytest

from imagen.cloud import supabase, upload
from imagen.cloud.storage import Bucket
from imagen.cloud.supabase import KeyRefused, Project, Tables
from imagen.cloud.upload import Different, FileGone, RowMissing, Target
from imagen.errors import ImagenError, Refused, Rejected, ServerFault, Throttled, Unreachable
from imagen.files import sidecars
from imagen.records import naming, record
from imagen.records.record import MAX_SEED
from servers.gateway import AS_IT_IS, JSON, Answer
from servers.supabase import BUCKET
from uploads import DAY, before, belongs, emptied, made, rows

OWNER = "11111111-2222-4333-8444-555555555555"
LATER = Answer(503, {"Retry-After": "60"}, b"{}")
ROW, LOOK, PUT = "POST /rest/v1/images", "GET /rest/v1/images", "PUT /storage/v1/object"


@pytest.fixture
def cloud(project, monkeypatch):
    """An empty project; a server that is down is given up after a moment."""
    emptied(project)
    monkeypatch.setattr(supabase, "PATIENCE_S", 6.7)
    return project


@pytest.fixture
def target(cloud):
    opened = Project(cloud.url, cloud.service_key, "MY_KEY")
    with closing(Tables(opened, "imagen")) as tables:
        yield Target(tables, Bucket(opened, BUCKET))


def brought(one, target):
    image = upload.judged(one, OWNER)
    with upload.opened(image) as stream:
        return upload.upload(image, stream, target)


# -- what is refused, and never sent ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"date": None}, "no date"),
        ({"date": "2026-13-01"}, "no date"),
        ({"date": "../.."}, "no date"),
        ({"slug": None}, "no slug"),
        ({"slug": "../x"}, "no slug"),
        ({"slug": "ünï"}, "no slug"),
        ({"seed": None}, "no seed"),
        ({"seed": "7/../../x"}, "seed must be a whole number"),
        ({"seed": MAX_SEED + 1}, "seed must be from"),
        ({"seed": -1}, "seed must be from"),
        ({"render_id": None}, "no render_id"),
        ({"render_id": "cat"}, "no render_id"),
        ({"owner_user_id": "me"}, "owner_user_id must be a UUID"),
        ({"prompt": None}, "no prompt"),
        ({"prompt": "a\0b"}, "NUL"),
        ({"album": {"x": ["\0"]}}, "NUL"),
        ({"file": "/a\0b.png"}, "NUL"),
        ({"width": "64"}, "width must be"),
        ({"bytes": 0}, "bytes must be"),
        ({"bytes": True}, "bytes must be"),
        ({"sha256": "xyz"}, "sha256"),
        ({"format": "bmp"}, "format must be"),
        ({"format": ["png"]}, "format must be"),
        ({"model": 7}, "model must be"),
        ({"latency_ms": 2**63}, "latency_ms must be"),
        ({"cost_usd": -1}, "cost_usd must be"),
        ({"cost_usd": 1e9}, "cost_usd must be"),
        ({"started_at": "yesterday"}, "started_at"),
        ({"started_at": 7}, "started_at"),
        ({"started_at": "0001-01-01T00:00:00+14:00"}, "started_at"),
    ],
)
def test_what_no_row_or_path_can_hold_is_refused_beforehand(wrong, says, tmp_path):
    with pytest.raises(Refused, match=says):
        upload.judged({**made(tmp_path), **wrong}, OWNER)


@pytest.mark.parametrize(
    "name", ["prompt", "backend", "seed", "width", "height", "bytes", "sha256", "format"]
)
def test_what_every_finished_image_has_is_needed(name, tmp_path):
    one = made(tmp_path)
    without = {key: value for key, value in one.items() if key != name}
    for lacking in (without, {**one, name: None}):
        with pytest.raises(Refused, match=f"no {name}"):
            upload.judged(lacking, OWNER)


@pytest.mark.parametrize(
    ("name", "sound", "unsound"),
    [
        ("bytes", (1, 2**63 - 1), (0, 2**63, 1.0)),
        ("latency_ms", (0, 2**63 - 1, None), (-1, 2**63, 0.5, True)),
        ("cost_usd", (0, 0.0, 999_999, None), (-0.01, 999_999.5, "1", True)),
        ("model", ("", None), (7, [])),
        ("workflow", ("w", None), (7, {})),
        ("sha256", ("0" * 64,), ("0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", 7)),
    ],
)
def test_a_column_is_used_to_its_ends_and_not_beyond(name, sound, unsound, tmp_path):
    for value in sound:
        image = upload.judged({**made(tmp_path), name: value}, OWNER)
        column = {"cost_usd": "cost_usd_estimate"}.get(name, name)
        assert upload.row_of(image, image.path)[column] == value
    for value in unsound:
        with pytest.raises(Refused, match=name):
            upload.judged({**made(tmp_path), name: value}, OWNER)


@pytest.mark.parametrize(
    ("started_at", "created_at"),
    [
        ("2026-05-31T00:00:00Z", "2026-05-31T00:00:00+00:00"),
        ("2026-05-31T02:00:00.25+02:00", "2026-05-31T00:00:00.250000+00:00"),
        ("2026-05-31T00:00:00", "2026-05-31T00:00:00+00:00"),
    ],
)
def test_a_row_is_as_old_as_its_image(started_at, created_at, tmp_path):
    image = upload.judged({**made(tmp_path), "started_at": started_at}, OWNER)
    assert upload.row_of(image, image.path)["created_at"] == created_at


def test_the_row_holds_the_sidecar_without_what_the_cloud_said_before(tmp_path):
    one = {**made(tmp_path), "cloud": {"path": "x"}, "mine": 1}
    sidecar = upload.row_of(upload.judged(one, OWNER), "p")["sidecar"]
    assert "cloud" not in sidecar
    assert sidecar["mine"] == 1


def test_a_record_that_is_nested_too_deep_is_refused(tmp_path):
    deep = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(Refused, match="nested"):
        upload.judged({**made(tmp_path), "album": deep}, OWNER)


@pytest.mark.parametrize("owner", [None, "", "me"])
def test_an_owner_is_needed_and_the_records_goes_first(owner, tmp_path):
    with pytest.raises(Refused, match="no owner_user_id") as caught:
        upload.judged(made(tmp_path), owner)
    assert "$IMAGEN_OWNER_USER_ID" in caught.value.hint
    other = OWNER.replace("1", "a")
    assert upload.judged(made(tmp_path, owner_user_id=other.upper()), OWNER).owner == other


@pytest.mark.parametrize(
    ("file", "path"),
    [
        (f"/x/{DAY}/a-cat-7.png", "a-cat-7.png"),
        (f"/x/{DAY}/a-cat-7-2.png", "a-cat-7-2.png"),
        (f"/x/{DAY}/a-cat-7-0a1b2c3d.png", "a-cat-7-0a1b2c3d.png"),
        (f"/x/{DAY}/a-cat-77.png", "a-cat-7.png"),
        (f"/x/{DAY}/a-cat-7-Ü.png", "a-cat-7.png"),
        (f"/x/{DAY}/a-cat-7-{'x' * 300}.png", "a-cat-7.png"),
        ("/x/2026-11-24/a-cat-7-2.png", "a-cat-7.png"),
        ("/home/me/liked.png", "a-cat-7.png"),
        (f"/x/../{DAY}/..", "a-cat-7.png"),
    ],
)
def test_the_path_is_the_tail_of_the_file_or_made_of_the_record(file, path):
    one = {"date": DAY, "slug": "a-cat", "seed": 7, "format": "png", "file": file}
    assert upload.path_of(one) == f"{DAY}/{path}"


def test_every_path_is_a_legal_key_and_the_other_one_too(tmp_path):
    slug = naming.slug("Ünï 'cøde' ☃ ../.. %2e%2e \\ # []{}~ " + "x" * 300)
    image = upload.judged(made(tmp_path, MAX_SEED, slug), OWNER)
    assert upload.is_path(image.path) and upload.is_path(image.other_path)
    assert image.other_path.endswith(f"-{image.record['render_id'][:8]}.png")


@pytest.mark.parametrize(
    "path",
    *[["../a.png", "a.png", f"{DAY}/../a.png", f"/{DAY}/a.png", f"{DAY}/a.json", f"{DAY}/A.png"]],
)
def test_a_name_that_is_none_of_ours_is_no_path(path):
    assert not upload.is_path(path)


def test_the_id_in_the_cloud_comes_of_the_render_id_alone(tmp_path):
    one = upload.judged(made(tmp_path), OWNER)
    assert upload.judged({**one.record, "id": "another", "seed": 8}, OWNER).image_id == one.image_id
    assert upload.judged({**made(tmp_path), "id": one.record["id"]}, OWNER).image_id != one.image_id
    fixed = "0c9a1d2e-0000-4000-8000-000000000000"
    assert upload.image_id(fixed) == "8a2819f5-ab4f-57b8-9345-581ab965d499"


@pytest.mark.parametrize(
    ("flag", "mode", "url", "syncs"),
    [
        (False, "auto", "http://x", True),
        (False, "auto", None, False),
        (False, "on", "http://x", True),
        (False, "on", None, True),
        (False, "off", "http://x", False),
        (False, "off", None, False),
        *((True, mode, url, False) for mode in ("auto", "on", "off") for url in ("http://x", None)),
    ],
)
def test_the_flag_goes_over_the_mode_and_auto_is_when_there_is_a_project(flag, mode, url, syncs):
    assert upload.syncs(flag, mode, url) is syncs


# -- the row ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "job_id"),
    [
        (None, None),
        ("x", None),
        ({"id": "nightly-7"}, None),
        ({"id": OWNER.upper()}, OWNER),
    ],
)
def test_a_row_has_the_job_of_its_record_if_that_is_a_uuid(job, job_id, tmp_path):
    image = upload.judged(made(tmp_path, job=job), OWNER)
    assert upload.row_of(image, "p")["job_id"] == job_id


def test_a_row_says_what_the_record_says(cloud, target, tmp_path):
    one = made(
        tmp_path,
        MAX_SEED,
        **{
            "negative_prompt": "☃",
            "steps": 4,
            "cfg": 1.5,
            "workflow": "w",
            "album": {"x": [1.5, None]},
        },
        **{"cloud": {"signed_url": "http://old"}, "job": {"id": OWNER}},
    )
    path = brought(one, target)["path"]
    ((*found, sidecar),) = rows(
        cloud,
        "storage_path, owner_user_id::text, backend, model, workflow, prompt, negative_prompt,"
        " seed, steps, cfg, width, height, bytes, sha256, latency_ms, cost_usd_estimate::float,"
        " job_id::text, to_char(created_at at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS.MS'),"
        " sidecar",
    )
    assert found == [
        *(path, OWNER, "mock", "mock", "w", "a cat", "☃", MAX_SEED, 4, 1.5, 64, 48, one["bytes"]),
        *(one["sha256"], 40, 0.003, OWNER, f"{DAY} 12:00:00.250"),
    ]
    assert sidecar == {name: value for name, value in one.items() if name != "cloud"}


def test_what_a_record_does_not_know_is_null_and_its_time_is_now(cloud, target, tmp_path):
    one = made(tmp_path)
    for name in ("model", "latency_ms", "cost_usd", "started_at"):
        del one[name]
    brought(one, target)
    assert rows(cloud, "model, latency_ms, cost_usd_estimate, now() - created_at < '1 min'") == [
        (None, None, None, True)
    ]


def test_a_sidecar_of_megabytes_goes_in_whole(cloud, target, tmp_path):
    brought(made(tmp_path, album="ü" * 1_000_000), target)
    assert rows(cloud, "length(sidecar ->> 'album')") == [(1_000_000,)]


# -- object and row --------------------------------------------------------------------------------


def test_an_upload_is_one_look_one_object_and_one_row(cloud, target, tmp_path):
    one = made(tmp_path)
    said = brought(one, target)
    path = f"{DAY}/a-cat-7.png"
    assert said == {"bucket": BUCKET, "path": path, "image_id": upload.image_id(one["render_id"])}
    assert [method for method, _ in cloud.gateway.asked] == ["GET", "PUT", "POST"]
    assert rows(cloud) == [(path, one["sha256"])]
    assert belongs(cloud)


@pytest.mark.parametrize("form", sidecars.SUFFIXES)
def test_the_bucket_takes_every_format_of_a_record(form, cloud, target, tmp_path):
    one = made(tmp_path, format=form, data=f"bytes of {form}".encode())
    path = brought(one, target)["path"]
    assert path == f"{DAY}/a-cat-7{sidecars.SUFFIXES[form]}" and upload.is_path(path)
    assert cloud.storage.objects() == {path: f"bytes of {form}".encode()}


def test_twice_is_once(cloud, target, tmp_path):
    one = made(tmp_path)
    assert brought(one, target) == brought(one, target)
    assert (cloud.gateway.asks(PUT), len(rows(cloud))) == (1, 1)


def test_many_go_over_one_connection(cloud, target, tmp_path):
    for seed in range(5):
        brought(made(tmp_path, seed), target)
    assert len(cloud.gateway.asked_over) == 1


def test_an_object_that_went_missing_or_was_cut_is_put_again(cloud, target, tmp_path):
    one = made(tmp_path)
    path = brought(one, target)["path"]
    with cloud.database.cursor() as cursor:
        cursor.execute("delete from storage.objects")
    brought(one, target)
    assert belongs(cloud)
    with (tmp_path / DAY / "a-cat-7.json").open("rb") as stream:
        target.bucket.put(path, stream, 1, "image/png")
    assert not belongs(cloud)
    brought(one, target)
    assert belongs(cloud)


def test_the_name_of_another_image_is_left_alone(cloud, target, tmp_path):
    mine, other = made(tmp_path / "mine", data=b"mine"), made(tmp_path / "other", data=b"other")
    first, second = brought(mine, target)["path"], brought(other, target)["path"]
    assert (first, second) == (
        f"{DAY}/a-cat-7.png",
        f"{DAY}/a-cat-7-{other['render_id'][:8]}.png",
    )
    assert belongs(cloud)
    assert brought(other, target)["path"] == second


def test_where_both_names_are_taken_nothing_is_put(cloud, target, tmp_path):
    one = made(tmp_path / "one")
    brought(made(tmp_path / "two", data=b"2"), target)
    taken = made(tmp_path / "three", slug=f"a-cat-7-{one['render_id'][:8]}", seed=7)
    brought(taken, target)
    with cloud.database.cursor() as cursor:
        cursor.execute(
            "update imagen.images set storage_path = %s where sha256 = %s",
            [upload.judged(one, OWNER).other_path, taken["sha256"]],
        )
    puts = cloud.gateway.asks(PUT)
    with pytest.raises(Different, match="other images stand at"):
        brought(one, target)
    assert cloud.gateway.asks(PUT) == puts


def test_a_row_with_another_sha256_stops_the_put(cloud, target, tmp_path):
    one = made(tmp_path)
    brought(one, target)
    other = made(tmp_path, data=b"another", render_id=one["render_id"])
    with pytest.raises(Different, match="another sha256") as caught:
        brought(other, target)
    assert (caught.value.exit_status, cloud.gateway.asks(PUT)) == (1, 1)
    assert rows(cloud) == [(f"{DAY}/a-cat-7.png", one["sha256"])]


@pytest.mark.parametrize("taken", [0, 1])
def test_where_the_question_gets_no_answer_nothing_is_put(taken, cloud, target, tmp_path):
    """Neither the one for the first name nor, where that is taken, the one for the second."""
    for _ in range(taken):
        brought(made(tmp_path / "other", data=b"other"), target)
    cloud.gateway.fail(LOOK, AS_IT_IS, times=taken)
    cloud.gateway.fail(LOOK, LATER)
    with pytest.raises(ServerFault) as caught:
        brought(made(tmp_path), target)
    assert (caught.value.exit_status, cloud.gateway.asks(PUT)) == (75, taken)


def test_two_that_looked_at_the_same_moment_have_a_row_each(cloud, target, tmp_path):
    """The window that is left: the later PUT stands at the path of the first one's row."""
    first, second = made(tmp_path / "1", data=b"1"), made(tmp_path / "2", data=b"the second")
    with before(cloud, PUT, lambda: brought(first, target)):
        path = brought(second, target)["path"]
    assert path == f"{DAY}/a-cat-7-{second['render_id'][:8]}.png"
    assert dict(rows(cloud)) == {f"{DAY}/a-cat-7.png": first["sha256"], path: second["sha256"]}
    assert cloud.storage.objects() == {f"{DAY}/a-cat-7.png": b"the second", path: b"the second"}
    brought(first, target)
    assert belongs(cloud)


def test_the_same_image_by_another_process_in_the_meantime_is_no_clash(cloud, target, tmp_path):
    one = made(tmp_path)
    with before(cloud, ROW, lambda: brought(one, target)):
        assert brought(one, target)["path"] == f"{DAY}/a-cat-7.png"
    assert belongs(cloud)


def test_eight_that_upload_one_image_at_once_make_one_row(cloud, tmp_path):
    one, said = made(tmp_path), []

    def run():
        opened = Project(cloud.url, cloud.service_key, "MY_KEY")
        with closing(Tables(opened, "imagen")) as tables:
            said.append(brought(one, Target(tables, Bucket(opened, BUCKET)))["path"])

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [f"{DAY}/a-cat-7.png"] * 8
    assert belongs(cloud) and len(rows(cloud)) == 1


# -- what passes, and what does not ----------------------------------------------------------------

FAULTS = {
    "500": Answer(500, JSON, b"{}"),
    "503 with Retry-After": Answer(503, {"Retry-After": "0.1"}, b"{}"),
    "429": Answer(429, {}, b"{}"),
    "Storage's 544": Answer(400, JSON, b'{"statusCode":"544","error":"DatabaseTimeout"}'),
    "Storage's 429": Answer(400, JSON, b'{"statusCode":"429","code":"SlowDown"}'),
    "cut off": None,
}


@pytest.mark.parametrize(
    ("fault", "start"),
    [*((fault, PUT) for fault in FAULTS), ("500", LOOK), ("429", LOOK), ("500", ROW), ("429", ROW)],
)
def test_what_passes_is_tried_again(fault, start, cloud, target, tmp_path):
    cloud.gateway.fail(start, FAULTS[fault])
    brought(made(tmp_path), target)
    assert cloud.gateway.asks() == 4
    assert belongs(cloud)


@pytest.mark.parametrize("start", [PUT, ROW])
def test_what_was_accepted_before_the_line_broke_is_there_once(start, cloud, target, tmp_path):
    cloud.gateway.fail(start, None, after=True)
    brought(made(tmp_path), target)
    assert belongs(cloud) and len(rows(cloud)) == 1


@pytest.mark.parametrize("start", [LOOK, PUT, ROW])
def test_a_slow_server_is_waited_for(start, cloud, target, tmp_path):
    cloud.gateway.fail(start, AS_IT_IS, wait_s=0.6)
    brought(made(tmp_path), target)
    assert cloud.gateway.asks() == 3


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422])
def test_what_is_refused_is_not_tried_again(status, cloud, target, tmp_path):
    cloud.gateway.fail(PUT, Answer(status, JSON, b'{"message":"no"}'), times=9)
    with pytest.raises(Rejected):
        brought(made(tmp_path), target)
    assert (cloud.gateway.asks(PUT), cloud.gateway.asks(ROW)) == (1, 0)


@pytest.mark.parametrize(
    ("answer", "retry"),
    [(LATER, "safe"), (Answer(429, {"Retry-After": "90"}), "after"), (Answer(403), "never")],
)
def test_an_object_without_its_row_has_an_error_of_its_own(answer, retry, cloud, target, tmp_path):
    one = made(tmp_path)
    cloud.gateway.fail(ROW, answer)
    with pytest.raises(RowMissing, match="the object is there, its row is not") as caught:
        brought(one, target)
    assert (caught.value.code, caught.value.retry) == ("row_missing", retry)
    assert (len(cloud.storage.objects()), rows(cloud)) == (1, [])
    brought(one, target)
    assert belongs(cloud)


def test_after_a_failure_the_next_question_is_asked_once_until_one_is_answered(
    cloud, target, tmp_path
):
    cloud.gateway.fail(LOOK, times=9)
    for asked in (2, 3):
        with pytest.raises(ServerFault):
            brought(made(tmp_path), target)
        assert cloud.gateway.asks() == asked
    cloud.gateway.forget()
    brought(made(tmp_path), target)
    cloud.gateway.fail(LOOK)
    brought(made(tmp_path), target)
    assert belongs(cloud)


def test_a_throttled_one_is_told_when(cloud, target, tmp_path):
    cloud.gateway.fail(PUT, Answer(429, {"Retry-After": "77"}, b"{}"))
    with pytest.raises(Throttled) as caught:
        brought(made(tmp_path), target)
    assert caught.value.retry_after_s == 77


# -- what the real ones refuse ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code", "hint"),
    [
        ("file_size_limit = 3", "EntityTooLarge", "file_size_limit"),
        ("allowed_mime_types = '{image/webp}'", "InvalidMimeType", "allowed_mime_types"),
    ],
)
def test_size_and_mime_are_the_buckets_to_refuse(change, code, hint, cloud, target, tmp_path):
    with cloud.database.cursor() as cursor:
        cursor.execute("create table kept as select * from storage.buckets")
        cursor.execute(f"update storage.buckets set {change}")
        try:
            with pytest.raises(Rejected, match=code) as caught:
                brought(made(tmp_path), target)
        finally:
            cursor.execute(
                "update storage.buckets b set file_size_limit = k.file_size_limit,"
                " allowed_mime_types = k.allowed_mime_types from kept k where k.id = b.id;"
                " drop table kept"
            )
    assert hint in caught.value.hint
    assert (cloud.gateway.asks(PUT), rows(cloud)) == (1, [])


def test_a_bucket_that_is_not_there_is_named_and_the_migration_too(cloud, target, tmp_path):
    away = Target(target.tables, Bucket(target.bucket._project, "nothing"))
    with pytest.raises(Rejected, match="Bucket not found") as caught:
        brought(made(tmp_path), away)
    assert "imagen-migrate" in caught.value.hint


@pytest.mark.parametrize("who", ["expired", "nonsense", "user"])
def test_only_the_service_key_gets_anything_in(who, cloud, tmp_path):
    key = {
        "expired": cloud.rest.key(lasts_s=-60),
        "nonsense": "nonsense-nonsense",
        "user": cloud.user_key(OWNER),
    }[who]
    opened = Project(cloud.url, key, "MY_KEY")
    with closing(Tables(opened, "imagen")) as tables, pytest.raises(Rejected) as caught:
        brought(made(tmp_path), Target(tables, Bucket(opened, BUCKET)))
    assert isinstance(caught.value, KeyRefused)
    assert "$MY_KEY" in caught.value.hint
    assert key not in caught.value.as_line()
    assert (cloud.storage.objects(), rows(cloud)) == ({}, [])


def test_a_project_that_is_not_there_is_unreachable(monkeypatch, tmp_path):
    monkeypatch.setattr(supabase, "PATIENCE_S", 6.1)
    opened = Project("http://127.0.0.1:9", "k", "MY_KEY")
    with closing(Tables(opened, "imagen")) as tables, pytest.raises(Unreachable):
        brought(made(tmp_path), Target(tables, Bucket(opened, BUCKET)))


# -- the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("now", [b"another", b""])
def test_a_file_that_was_changed_since_is_not_sent(now, tmp_path):
    image = upload.judged(made(tmp_path), OWNER)
    image.file.write_bytes(now)
    with pytest.raises(FileGone, match="another sha256"):
        upload.opened(image)


def test_a_file_replaced_after_it_was_checked_is_not_what_is_sent(cloud, target, tmp_path):
    one = made(tmp_path)
    image = upload.judged(one, OWNER)
    with upload.opened(image) as stream:
        (tmp_path / "new").write_bytes(b"another")
        (tmp_path / "new").replace(image.file)
        upload.upload(image, stream, target)
    assert belongs(cloud)


def test_each_try_sends_the_file_from_its_start(cloud, target, tmp_path, monkeypatch):
    monkeypatch.setattr(supabase, "PATIENCE_S", 9)
    cloud.gateway.fail(PUT, times=1)
    cloud.gateway.fail(PUT, None, after=True)
    brought(made(tmp_path, data=b"\x89PNG" * 250_000), target)
    assert belongs(cloud)


@pytest.mark.parametrize("what", ["folder", "nothing", "length"])
def test_what_is_no_such_file_is_said(what, tmp_path):
    one = made(tmp_path)
    one |= {
        "folder": {"file": str(tmp_path)},
        "nothing": {"file": "/no/such.png"},
        "length": {"bytes": one["bytes"] + 1},
    }[what]
    with pytest.raises(Refused) as caught:
        upload.opened(upload.judged(one, OWNER))
    assert caught.value.exit_status == 2


# -- an image whose file is gone -------------------------------------------------------------------


@pytest.mark.parametrize("change", ["none", "other bytes", "no object", "row there"])
def test_the_row_of_a_gone_file_is_written_if_its_very_object_is_there(
    change, cloud, target, tmp_path
):
    one = made(tmp_path)
    image = upload.judged(one, OWNER)
    if change == "row there":
        brought(one, target)
    elif change != "no object":
        data = image.file.read_bytes()
        (tmp_path / "sent").write_bytes(data[::-1] if change == "other bytes" else data)
        with (tmp_path / "sent").open("rb") as stream:
            target.bucket.put(image.path, stream, len(data), "image/png")
    said = upload.finished(image, target)
    assert (said is not None) is (change in ("none", "row there"))
    assert len(rows(cloud)) == (said is not None)


def test_a_row_takes_a_uuid_of_any_case_and_gives_one_image(cloud, target, tmp_path):
    one = made(tmp_path)
    brought(one, target)
    brought({**one, "render_id": one["render_id"].upper()}, target)
    assert len(rows(cloud)) == 1


def test_the_hash_is_of_what_is_there(cloud, target, tmp_path):
    path = brought(made(tmp_path), target)["path"]
    assert target.bucket.sha256(path) == hashlib.sha256(cloud.storage.objects()[path]).hexdigest()
    assert target.bucket.sha256(f"{DAY}/none.png") is None


def test_a_storable_record_has_no_nul_anywhere_not_even_in_a_key():
    with pytest.raises(Refused, match="NUL"):
        record.check_storable({"a": [{"x\0": 1}]})


# -- what is not Storage, and what is no clash -----------------------------------------------------

LOGIN = Answer(200, {"content-type": "text/html"}, b"<html>please log in</html>")


@pytest.mark.parametrize(
    "answer",
    [
        LOGIN,
        Answer(200, JSON, b"{}"),
        Answer(200, JSON, b"[]"),
        Answer(200, JSON, b'{"Key":5}'),
        Answer(200, JSON, b'{"Key":"imagen-generated/another.png"}'),
        Answer(204),
    ],
)
def test_an_answer_that_is_not_storages_writes_no_row(answer, cloud, target, tmp_path):
    cloud.gateway.fail(PUT, answer)
    with pytest.raises(Rejected, match="does not answer as Supabase Storage") as caught:
        brought(made(tmp_path), target)
    assert "supabase.url" in caught.value.hint
    assert (cloud.gateway.asks(PUT), cloud.gateway.asks(ROW)) == (1, 0)


def test_a_signed_url_that_is_none_is_named_alike(cloud, target, tmp_path):
    path = brought(made(tmp_path), target)
    cloud.gateway.fail("POST /storage/v1/object/sign", LOGIN)
    with pytest.raises(ImagenError, match="signed URL"):
        target.bucket.signed_url(path["path"], 60)


@pytest.mark.parametrize(
    ("code", "message", "details"),
    [
        ("23503", 'insert or update on table "images" violates a foreign key', "Key (owner)=(x)"),
        (
            *("23505", 'duplicate key value violates unique constraint "images_sha256_key"'),
            "Key (sha256)=(x) already exists.",
        ),
        ("23P01", 'conflicting key value violates exclusion constraint "x"', None),
        ("", "", None),
    ],
)
def test_a_409_that_is_no_clash_of_id_or_path_is_its_own_error(
    code, message, details, cloud, target, tmp_path
):
    body = json.dumps({"code": code, "message": message, "details": details}).encode()
    cloud.gateway.fail(ROW, Answer(409, JSON, body), times=2)
    with pytest.raises(RowMissing) as caught:
        brought(made(tmp_path), target)
    assert code in caught.value.message and message in caught.value.message
    assert (caught.value.retry, len(cloud.storage.objects())) == ("never", 1)
    assert "then imagen-upload --retry-pending" in caught.value.hint


def test_a_foreign_key_of_ones_own_is_named_and_no_second_object_is_put(cloud, target, tmp_path):
    with cloud.database.cursor() as cursor:
        cursor.execute(
            "alter table imagen.images add constraint mine foreign key (owner_user_id)"
            " references auth.users (id) not valid"
        )
    try:
        with pytest.raises(RowMissing, match="23503"):
            brought(made(tmp_path), target)
    finally:
        with cloud.database.cursor() as cursor:
            cursor.execute("alter table imagen.images drop constraint mine")
    assert len(cloud.storage.objects()) == 1


@pytest.mark.parametrize(
    ("answer", "retry", "says"),
    [
        (LATER, "safe", "kept; imagen-upload --retry-pending sends it"),
        (Answer(403), "never", "; then imagen-upload --retry-pending"),
        (Answer(404, JSON, b'{"code":"PGRST205"}'), "never", "imagen-migrate makes the tables"),
    ],
)
def test_the_hint_of_a_missing_row_agrees_with_its_retry(
    answer, retry, says, cloud, target, tmp_path
):
    cloud.gateway.fail(ROW, answer)
    with pytest.raises(RowMissing) as caught:
        brought(made(tmp_path), target)
    assert caught.value.retry == retry
    assert says in caught.value.hint
