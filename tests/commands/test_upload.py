"""imagen-upload: the real tool against a cloud that fails in every way."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import threading
from pathlib import Path

import pytest
import requests

from imagen.ledger import Ledger
from imagen.records.record import MAX_SEED
from servers.gateway import AS_IT_IS, JSON, Answer
from servers.supabase import BUCKET
from uploads import DAY, NOT_SET_UP, before, belongs, emptied, made, rows

LATER = Answer(503, {"Retry-After": "60"}, b'{"message":"later"}')
ROW, LOOK, PUT = "POST /rest/v1/images", "GET /rest/v1/images", "PUT /storage/v1/object"
ERROR = {"tool": "imagen-render", "code": "x", "message": "m", "billed": "yes", "retry": "never"}
OWNER = "11111111-2222-4333-8444-555555555555"


@pytest.fixture(scope="module")
def project(cluster, serve_cloud):
    with cluster.database() as place, serve_cloud(place) as found:
        yield found


@pytest.fixture
def cloud(project, monkeypatch):
    """An empty project, to which the environment points."""
    emptied(project)
    for name, value in project.environment(OWNER).items():
        monkeypatch.setenv(name, value)
    return project


@pytest.fixture
def image(tool):
    """Make an image: `image(7, slug="a-dog")`; gives its record."""
    return lambda seed=7, **more: made(tool.folder / "images", seed, **more)


@pytest.fixture
def kept(tool):
    """Give the ids of what is kept for --retry-pending."""

    def ids():
        path = tool.folder / "state" / "imagen" / "ledger.sqlite3"
        if not path.exists():
            return []
        ledger = Ledger(path)
        found = [one["id"] for one in ledger.uploads.kept()]
        ledger.close()
        return found

    return ids


# -- the line --------------------------------------------------------------------------------------


def test_a_record_gets_its_place_in_the_cloud_and_is_else_as_it_was(tool, cloud, image, kept):
    one = {"album": {"x": [1.5, None]}, **image(), "zzz": "ü"}
    ran = tool("upload", stdin=[one])
    assert (ran.status, ran.err) == (0, "")
    assert [*ran.record] == [*one, "cloud"]
    assert {name: ran.record[name] for name in one} == one
    assert (ran.record["cloud"]["bucket"], ran.record["cloud"]["path"]) == (
        *(BUCKET, f"{DAY}/a-cat-7.png"),
    )
    assert rows(cloud, "id::text, owner_user_id::text") == [
        (ran.record["cloud"]["image_id"], OWNER),
    ]
    assert (belongs(cloud), kept()) == (True, [])


def test_from_prompt_to_cloud(tool, cloud):
    rendered = tool("render", "a cat", "--size", "64x64", "--seed", MAX_SEED, check_records=False)
    ran = tool("upload", stdin=rendered.out)
    file = Path(ran.record["file"])
    assert cloud.storage.objects() == {f"{file.parent.name}/{file.name}": file.read_bytes()}
    assert rows(cloud, "seed") == [(MAX_SEED,)]


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "a", "file": "/a.png", "error": ERROR},
        {"prompt": "a", "pending": {"backend": "b", "handle": "h", "since": "x"}},
        {"file": "/sheet.png", "members": []},
    ],
)
def test_what_is_no_finished_image_passes_untouched_and_nothing_is_asked(tool, cloud, line):
    raw = json.dumps(line).encode() + b"  \n"
    assert tool("upload", stdin=raw) == (0, raw, "")
    assert cloud.gateway.asks() == 0


def test_one_bad_line_stops_none_of_the_others(tool, cloud, image):
    lines = [image(1), {"prompt": "a"}, {**image(2), "date": None}, image(3)]
    stdin = b"oops\n" + b"".join(json.dumps(one).encode() + b"\n" for one in lines)
    ran = tool("upload", stdin=stdin)
    assert (ran.status, len(rows(cloud))) == (2, 2)
    assert ["error" in one for one in ran.records] == [False, True, True, False]
    said = ran.err.splitlines()
    assert [line.split(": ")[1] for line in said] == ["line 1", "line 3", "a-cat-2"]
    assert "no file" in said[1] and "no date" in said[2]


def test_each_record_goes_out_as_soon_as_it_is_up(tool, cloud, image):
    child = tool.start("upload")
    for seed in range(3):
        child.stdin.write(json.dumps(image(seed)).encode() + b"\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["seed"] == seed
        assert len(rows(cloud)) == seed + 1
    child.stdin.close()
    assert child.wait(60) == 0


def test_no_records_on_a_terminal_is_a_usage_fault(tool):
    terminal, side = pty.openpty()
    child = tool.start("upload", stdin=side)
    os.close(side)
    assert child.wait(60) == 2
    assert child.stderr.read().startswith(b"imagen-upload: no records (hint: ")
    os.close(terminal)


@pytest.mark.parametrize(
    "args",
    [
        ["--repair", "--retry-pending"],
        ["--repair", "x.png"],
        ["--retry-pending", "x.png"],
        ["--apply"],
        ["--repair", "--dry-run"],
        ["--signed-url", "0"],
        [OWNER],
        [OWNER, "--signed-url", "9", "--dry-run"],
    ],
)
def test_what_does_not_go_together_is_a_usage_fault(tool, cloud, args):
    assert tool("upload", *args).status == 2
    assert cloud.gateway.asks() == 0


# -- imagen-upload x.png && rm x.png ---------------------------------------------------------------


def test_files_are_uploaded_by_their_sidecars(tool, cloud, image):
    files = [image(seed)["file"] for seed in range(3)]
    relative = [os.path.relpath(one, tool.folder) for one in files]
    ran = tool("upload", *relative)
    assert (ran.status, [one["file"] for one in ran.records]) == (0, files)
    assert belongs(cloud) and len(rows(cloud)) == 3


def unsafe(name, record):
    """Make of an image what must not be taken for uploaded."""
    file, sidecar = Path(record["file"]), Path(record["sidecar"])
    match name:
        case "no sidecar":
            sidecar.unlink()
        case "no file":
            file.unlink()
        case "a broken sidecar":
            sidecar.write_text("{")
        case "another's sidecar":
            file.write_bytes(b"another")
        case "a sheet" | "pending" | "failed":
            key = {"a sheet": "members", "pending": "pending", "failed": "error"}[name]
            sidecar.write_text(json.dumps({**record, key: {}}))


UNSAFE = (
    *("no sidecar", "no file", "a broken sidecar", "another's sidecar"),
    *("a sheet", "pending", "failed"),
)


def test_a_file_that_cannot_be_uploaded_fails(tool, cloud, image):
    records = [image(seed) for seed, _ in enumerate(UNSAFE)]
    for name, one in zip(UNSAFE, records, strict=True):
        unsafe(name, one)
    ran = tool("upload", *(one["file"] for one in records))
    assert (ran.status, len(ran.err.splitlines())) == (2, len(UNSAFE))
    assert all(one["error"]["tool"] == "imagen-upload" for one in ran.records)
    assert cloud.storage.objects() == {}


@pytest.mark.parametrize("closed", [True, False])
def test_files_are_all_uploaded_though_nobody_reads_of_it(closed, tool, cloud, image):
    files = [image(seed)["file"] for seed in range(3)]
    reads, writes = os.pipe()
    os.close(reads)
    argv = tool.argv("upload", *files)
    argv = ["sh", "-c", 'exec "$@" >&-', "sh", *argv] if closed else argv
    assert tool("upload", argv=argv, stdout=writes, check_records=False).status == 0
    os.close(writes)
    assert belongs(cloud) and len(rows(cloud)) == 3


@pytest.mark.parametrize(
    ("start", "answer", "status"),
    [(LOOK, LATER, 75), (PUT, LATER, 75), (ROW, LATER, 75), (ROW, Answer(403, JSON, b"{}"), 1)],
)
def test_whatever_fails_is_no_success_is_kept_and_finished_later(
    tool, cloud, image, kept, start, answer, status
):
    one = image()
    cloud.gateway.fail(start, answer)
    ran = tool("upload", one["file"])
    error = ran.record["error"]
    assert (ran.status, kept()) == (status, ["a-cat-7"])
    assert "cloud" not in ran.record
    assert (error["tool"], error["code"] == "row_missing") == ("imagen-upload", start == ROW)
    assert ran.err.startswith("imagen-upload: a-cat-7: ")
    assert "imagen-upload --retry-pending sends it" in ran.err and "kept" in ran.err
    assert (error["retry"] == "safe") == ("(hint: kept; " in ran.err)
    assert len(rows(cloud)) == 0
    again = tool("upload", "--retry-pending")
    assert (again.status, again.record["cloud"]["path"], kept()) == (
        *(0, f"{DAY}/a-cat-7.png", []),
    )
    assert belongs(cloud)


def test_a_question_that_gets_no_answer_puts_nothing(tool, cloud, image):
    cloud.gateway.fail(LOOK, LATER)
    assert tool("upload", image()["file"]).status == 75
    assert cloud.gateway.asks(PUT) == 0


def test_another_image_of_the_same_id_is_said_and_not_kept(tool, cloud, image, kept):
    first = image()
    tool("upload", stdin=[first])
    ran = tool("upload", stdin=[image(data=b"other", render_id=first["render_id"])])
    assert (ran.status, ran.record["error"]["code"], kept()) == (1, "image_differs", [])
    assert rows(cloud) == [(f"{DAY}/a-cat-7.png", first["sha256"])]


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("SUPABASE_URL", "no supabase.url"),
        ("SUPABASE_SERVICE_ROLE_KEY", "no key for Supabase"),
        ("IMAGEN_OWNER_USER_ID", "no owner_user_id"),
    ],
)
def test_what_is_not_configured_is_said_for_each_record_and_no_line_is_lost(
    tool, cloud, image, missing, says
):
    ran = tool("upload", stdin=[image(1), image(2)], env={missing: None})
    assert (ran.status, [one["seed"] for one in ran.records]) == (2, [1, 2])
    assert all(says in one["error"]["message"] for one in ran.records)
    assert cloud.gateway.asks() == 0


def test_an_upload_needs_no_ledger(tool, cloud, image):
    (tool.folder / "broken").write_text("no ledger")
    env = {"IMAGEN_LEDGER": str(tool.folder / "broken")}
    ran = tool("upload", stdin=[image(1), image(2)], env=env)
    assert (ran.status, len(ran.err.splitlines())) == (0, 1)
    assert "nothing is kept for --retry-pending" in ran.err
    assert belongs(cloud) and len(rows(cloud)) == 2


# -- the key ---------------------------------------------------------------------------------------


def test_the_key_may_stand_in_a_file_that_nobody_else_reads(tool, cloud, image):
    file = tool.folder / "key"
    file.write_text(cloud.service_key + "\n")
    env = {"SUPABASE_SERVICE_ROLE_KEY": None, "SUPABASE_SERVICE_ROLE_KEY_FILE": str(file)}
    file.chmod(0o644)
    open_to_all = tool("upload", stdin=[image()], env=env)
    assert (open_to_all.status, "chmod 600" in open_to_all.err) == (2, True)
    file.chmod(0o600)
    assert tool("upload", stdin=[image()], env=env).status == 0


@pytest.mark.parametrize(("fails", "answer"), NOT_SET_UP)
def test_what_a_project_answers_that_is_not_set_up_is_a_fault_of_the_setup(
    fails, answer, tool, cloud, image, kept
):
    cloud.gateway.fail(fails, answer, times=9)
    ran = tool("upload", stdin=[image()])
    assert ran.record["error"]["scope"] == "setup", ran.err
    cloud.gateway.forget()
    again = tool("upload", stdin=[image()])
    assert "cloud" in again.record, again.err


@pytest.mark.parametrize("who", ["expired", "user", "service"])
def test_a_key_is_never_shown(who, tool, cloud, image, until):
    key = {
        "expired": cloud.rest.key(lasts_s=-60),
        "user": cloud.user_key(OWNER),
        "service": cloud.service_key,
    }[who]
    cloud.gateway.fail(ROW, Answer(403, JSON, json.dumps({"message": f"no {key}"}).encode()))
    cloud.gateway.fail(LOOK, AS_IT_IS, wait_s=0.2)
    child = tool.start("upload", env={"SUPABASE_SERVICE_ROLE_KEY": key}, cold=True)
    child.stdin.write(json.dumps(image()).encode() + b"\n")
    child.stdin.flush()
    until(cloud.gateway.asks)
    argv = Path(f"/proc/{child.pid}/cmdline").read_bytes()
    child.stdin.close()
    child.stdin = None
    ran = tool.ended(child)
    assert ran.status == 1
    assert ran.record["error"]["code"] == ("row_missing" if who == "service" else "unauthorized")
    ledger = b"".join(one.read_bytes() for one in (tool.folder / "state/imagen").glob("ledger*"))
    for shown in (argv, ran.out, ran.err.encode(), ledger):
        assert key.encode() not in shown


def test_the_legacy_anon_key_is_refused_before_anything_is_sent(tool, cloud, image):
    env = {"SUPABASE_SERVICE_ROLE_KEY": cloud.anon_key}
    ran = tool("upload", stdin=[image()], env=env)
    assert (ran.status, ran.record["error"]["code"]) == (2, "config")
    assert "holds the legacy anon key, which may write nothing" in ran.err
    assert cloud.anon_key not in ran.err + ran.out.decode()
    assert cloud.gateway.asks() == 0


# -- best effort -----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [LOOK, PUT, ROW])
def test_with_best_effort_a_failure_is_a_warning_and_is_kept(tool, cloud, image, kept, start):
    one = image()
    cloud.gateway.fail(start, LATER)
    ran = tool("upload", "--best-effort", stdin=[one])
    assert (ran.status, ran.record, kept()) == (0, one, ["a-cat-7"])
    assert ran.err.startswith("imagen: cloud sync: a-cat-7: ")
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("missing", ["SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY"])
def test_with_best_effort_no_line_is_lost_for_want_of_a_setting(tool, cloud, image, missing, kept):
    ran = tool("upload", "--best-effort", stdin=[image(1), image(2)], env={missing: None})
    assert (ran.status, len(ran.records), len(ran.err.splitlines())) == (0, 2, 2)
    assert kept() == ["a-cat-1", "a-cat-2"]


def test_a_cloud_that_is_down_does_not_hold_up_each_of_many(tool, cloud, image):
    cloud.gateway.fail(LOOK, LATER, times=20)
    ran = tool("upload", "--best-effort", stdin=[image(seed) for seed in range(20)])
    assert (ran.status, len(ran.err.splitlines()), cloud.gateway.asks()) == (0, 20, 20)


# -- signed addresses ------------------------------------------------------------------------------


def test_a_signed_url_gives_the_same_bytes_until_it_expires(tool, cloud, image):
    one = image()
    url = tool("upload", "--signed-url", "60", stdin=[one]).record["cloud"]["signed_url"]
    assert requests.get(url, timeout=5).content == Path(one["file"]).read_bytes()
    cloud.storage.skew_s = 61
    assert requests.get(url, timeout=5).status_code == 400


def test_the_id_of_an_image_is_enough_for_an_address(tool, cloud, image, kept):
    """A web page knows the id; the image is on another machine, or nowhere any more."""
    one = tool("upload", stdin=[image()]).record
    data = Path(one["file"]).read_bytes()
    Path(one["file"]).unlink()
    name = one["cloud"]["image_id"]
    job = {"id": "a job", "status": "done", "prompt": "a cat", "image_id": name}
    by_id = tool("upload", "--signed-url", 60, name.upper(), check_records=False)
    by_line = tool("upload", "--signed-url", 60, stdin=[one, job], check_records=False)
    assert (by_id.status, by_line.status, by_id.err, by_line.err) == (0, 0, "", "")
    for line in (by_id.record, *by_line.records):
        assert {name: line["cloud"][name] for name in one["cloud"]} == one["cloud"]
        assert requests.get(line["cloud"]["signed_url"], timeout=5).content == data
    assert by_id.record["id"] == name.upper()
    assert [line["id"] for line in by_line.records] == [one["id"], "a job"]
    assert cloud.gateway.asks("PUT") == 1
    assert kept() == []


def test_ids_and_files_are_arguments_alike(tool, cloud, image):
    first = tool("upload", stdin=[image(1)]).record["cloud"]["image_id"]
    ran = tool("upload", "--signed-url", 60, first, image(2)["file"], check_records=False)
    assert ran.status == 0
    assert all(line["cloud"]["signed_url"] for line in ran.records)
    assert len(rows(cloud)) == 2


def test_an_address_of_what_is_not_there_is_refused_and_stops_no_other(tool, cloud, image):
    here = tool("upload", stdin=[image()]).record["cloud"]["image_id"]
    ran = tool("upload", "--signed-url", 60, OWNER, here, check_records=False)
    assert ran.status == 2
    assert [line.get("error", {}).get("code") for line in ran.records] == ["no_such_image", None]
    assert f"there is no image {OWNER} in the cloud" in ran.err


def test_an_image_whose_object_is_gone_has_no_address(tool, cloud, image):
    one = tool("upload", stdin=[image()]).record
    with cloud.database.cursor() as cursor:
        cursor.execute("set session_replication_role = replica")
        cursor.execute("delete from storage.objects")
        cursor.execute("set session_replication_role = origin")
    ran = tool("upload", "--signed-url", 60, one["cloud"]["image_id"], check_records=False)
    assert (ran.status, ran.record["error"]["code"]) == (2, "no_such_image")
    assert "--repair" in ran.err


def test_an_address_is_not_of_another_image_than_the_record_is(tool, cloud, image):
    one = tool("upload", stdin=[image()]).record
    Path(one["file"]).unlink()
    ran = tool("upload", "--signed-url", 60, stdin=[{**one, "sha256": "0" * 64}])
    assert (ran.status, ran.record["error"]["code"]) == (1, "image_differs")


def test_a_record_whose_file_is_here_is_uploaded_and_signed_as_ever(tool, cloud, image):
    one = tool("upload", stdin=[image()]).record
    emptied(cloud)
    again = tool("upload", "--signed-url", 60, stdin=[one]).record
    assert again["cloud"]["signed_url"]
    assert belongs(cloud) and len(rows(cloud)) == 1


@pytest.mark.parametrize(("args", "status"), [([], 75), (["--best-effort"], 0)])
def test_where_only_the_signing_fails_the_image_is_up(tool, cloud, image, kept, args, status):
    cloud.gateway.fail("POST /storage/v1/object/sign", LATER)
    ran = tool("upload", "--signed-url", "60", *args, stdin=[image()])
    assert (ran.status, [*ran.record["cloud"]], kept()) == (
        *(status, ["bucket", "path", "image_id"], []),
    )
    assert belongs(cloud) and len(rows(cloud)) == 1


# -- what the cloud does ---------------------------------------------------------------------------


def come_back(place):
    with place.cluster.cursor() as cursor:
        cursor.execute(f"alter database {place.name} with allow_connections true")


def test_a_database_that_goes_away_mid_run_and_comes_back_loses_nothing(tool, cloud, image):
    place = cloud.database
    child = tool.start("upload")
    child.stdin.write(json.dumps(image(1)).encode() + b"\n")
    child.stdin.flush()
    child.stdout.readline()
    with place.cluster.cursor() as cursor:
        cursor.execute(f"alter database {place.name} with allow_connections false")
        ends = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s"
        cursor.execute(ends, [place.name])
    threading.Timer(0.8, come_back, [place]).start()
    child.stdin.write(json.dumps(image(2)).encode() + b"\n")
    child.stdin.close()
    child.stdin = None
    ran = tool.ended(child)
    assert (ran.status, ran.record["seed"]) == (0, 2)
    assert belongs(cloud) and len(rows(cloud)) == 2


def test_the_schemas_that_others_expose_stay(tool, cloud, image):
    tool("upload", stdin=[image()])
    with cloud.database.cursor() as cursor:
        cursor.execute("select unnest(setconfig) from pg_db_role_setting where setdatabase <> 0")
        said = [one for (one,) in cursor.fetchall() if "db_schemas" in one]
    assert not said or {"public", "imagen", "mai"} <= {*said[0].partition("=")[2].split(", ")}


# -- twice, two at once, two machines --------------------------------------------------------------


def test_twice_is_one_object_and_one_row(tool, cloud, image):
    first = tool("upload", stdin=[image()])
    assert tool("upload", stdin=first.out).out == first.out
    assert (cloud.gateway.asks(PUT), cloud.gateway.asks(ROW)) == (1, 1)


def test_two_processes_that_upload_the_same_records_make_one_of_each(tool, cloud, image, kept):
    stdin = b"".join(json.dumps(image(seed)).encode() + b"\n" for seed in range(20))
    children = [tool.start("upload") for _ in range(2)]
    for child in children:
        child.stdin.write(stdin)
        child.stdin.close()
    outs = [child.stdout.read() for child in children]
    assert [child.wait(20) for child in children] == [0, 0]
    assert outs[0] == outs[1]
    assert belongs(cloud) and len(rows(cloud)) == 20
    assert kept() == []


def test_two_machines_with_one_file_name_have_an_image_each(tool, cloud):
    here = made(tool.folder / "here", data=b"here")
    there = made(tool.folder / "there", data=b"there")
    tool("upload", stdin=[here])
    env = {"XDG_STATE_HOME": str(tool.folder / "elsewhere")}
    path = tool("upload", stdin=[there], env=env).record["cloud"]["path"]
    assert path == f"{DAY}/a-cat-7-{there['render_id'][:8]}.png"
    assert cloud.storage.objects() == {f"{DAY}/a-cat-7.png": b"here", path: b"there"}
    assert belongs(cloud)


# -- hostile records -------------------------------------------------------------------------------


def test_no_record_reaches_another_key(tool, cloud, image):
    bad = [
        {"date": "../../x"},
        {"date": f"{DAY}/.."},
        {"slug": "../../bucket"},
        {"slug": "%2e%2e"},
        {"slug": "ü"},
        {"seed": "7/../../x"},
        {"seed": 1e300},
        {"format": "../png"},
        {"render_id": "../../../../x"},
        {"render_id": "eq.1,or=(id.gt.0)"},
        {"prompt": "\0"},
        {"album": {"\0": 1}},
        {"owner_user_id": "*"},
        {"file": f"/nowhere/{DAY}/a-cat-7-..%2f.png"},
        {"file": 7},
        {"file": f"file://{DAY}"},
    ]
    lines = [{**image(seed), **one} for seed, one in enumerate(bad)]
    ran = tool("upload", stdin=[*lines, image(99, album="ü" * 1_000_000)])
    assert ran.status == 2
    assert ["error" in one for one in ran.records] == [True] * len(bad) + [False]
    assert [*cloud.storage.objects()] == [f"{DAY}/a-cat-99.png"]
    assert "Traceback" not in ran.err


# -- killed ----------------------------------------------------------------------------------------


def killed_at(tool, cloud, record, number, after):
    """Upload a record, killed before or after its request of that number is obeyed."""
    child, real, count = tool.start("upload"), cloud.gateway.respond, [0]

    def respond(request):
        count[0] += 1
        if count[0] == number and not after:
            child.kill()
            return Answer(500)
        answer = real(request)
        if count[0] == number:
            child.kill()
            child.wait()
        return answer

    cloud.gateway.respond = respond
    try:
        child.stdin.write(json.dumps(record).encode() + b"\n")
        child.stdin.flush()
        assert child.wait(20) == -9
    finally:
        cloud.gateway.respond = real
    assert count[0] == number


def test_killed_at_any_request_it_is_finished_later_and_is_there_once(tool, cloud, image, kept):
    points = [(number, after) for number in (1, 2, 3) for after in (False, True)]
    records = [image(seed) for seed, _ in enumerate(points)]
    for record, (number, after) in zip(records, points, strict=True):
        killed_at(tool, cloud, record, number, after)
    assert len(kept()) == len(points)
    assert len(rows(cloud)) == 1 and len(cloud.storage.objects()) == 3
    by_hand = [record for number, record in enumerate(records) if number in (0, 2, 3, 5)]
    assert tool("upload", stdin=by_hand).status == 0
    ran = tool("upload", "--retry-pending")
    assert (ran.status, len(ran.records), kept()) == (0, 2, [])
    assert belongs(cloud) and len(rows(cloud)) == len(points)
    assert tool("upload", "--retry-pending") == (0, b"", "")


# -- what is kept ----------------------------------------------------------------------------------


def test_what_is_kept_is_tried_in_any_folder(tool, cloud, image, tmp_path):
    one = image()
    cloud.gateway.fail(LOOK, LATER)
    tool("upload", os.path.relpath(one["file"], tool.folder))
    assert tool("upload", "--retry-pending", cwd="/").record["cloud"]
    assert belongs(cloud)


def test_what_still_fails_stays_kept(tool, cloud, image, kept):
    cloud.gateway.fail(PUT, LATER, times=2)
    tool("upload", stdin=[image(1), image(2)])
    cloud.gateway.fail(PUT, LATER)
    ran = tool("upload", "--retry-pending")
    assert (ran.status, kept()) == (75, ["a-cat-1"])
    assert ["error" in one for one in ran.records] == [True, False]


def test_a_file_that_went_away_is_said_once_and_not_tried_again(tool, cloud, image, kept):
    one = image()
    cloud.gateway.fail(PUT, LATER)
    tool("upload", stdin=[one])
    Path(one["file"]).unlink()
    ran = tool("upload", "--retry-pending")
    assert (ran.status, ran.record["error"]["code"], kept()) == (2, "image_gone", [])
    assert "it is not tried again" in ran.err


def test_a_file_on_a_disk_that_is_away_is_waited_for(tool, cloud, image, kept):
    one = image()
    cloud.gateway.fail(PUT, LATER)
    tool("upload", stdin=[one])
    folder = Path(one["file"]).parent
    folder.rename(folder.with_name("away"))
    assert (tool("upload", "--retry-pending").status, kept()) == (2, ["a-cat-7"])
    folder.with_name("away").rename(folder)
    assert (tool("upload", "--retry-pending").status, belongs(cloud)) == (0, True)


def test_an_object_whose_file_is_gone_gets_its_row(tool, cloud, image, kept):
    one = image()
    cloud.gateway.fail(ROW, LATER)
    tool("upload", "--best-effort", stdin=[one])
    Path(one["file"]).unlink()
    ran = tool("upload", "--retry-pending")
    assert (ran.status, kept(), len(rows(cloud))) == (0, [], 1)
    assert belongs(cloud)


# -- dry run and repair ----------------------------------------------------------------------------


def test_a_dry_run_shows_object_and_row_and_asks_nothing(tool, cloud, image, kept):
    one = image()
    ran = tool("upload", "--dry-run", stdin=[one], env={"SUPABASE_SERVICE_ROLE_KEY": None})
    assert ran.status == 0
    assert ran.record["object"] == f"{BUCKET}/{DAY}/a-cat-7.png"
    assert ran.record["row"]["sha256"] == one["sha256"]
    assert (cloud.gateway.asks(), kept()) == (0, [])
    assert tool("upload", "--dry-run", stdin=[{**one, "date": None}]).status == 2


def test_repair_lists_and_with_apply_mends(tool, cloud, image):
    env = {"IMAGEN_OUT_DIR": str(tool.folder / "images")}
    lines = [image(seed) for seed in range(3)]
    tool("upload", stdin=lines)
    with cloud.database.cursor() as cursor:
        cursor.execute("delete from imagen.images where seed = 0")
        cursor.execute("delete from storage.objects where name like '%%-1.png'")
        cursor.execute(
            "update storage.objects set updated_at = now() - interval '1 hour',"
            " metadata = jsonb_set(metadata, '{size}', case when name like '%%-2.png' then '1'"
            " else metadata -> 'size' end)"
        )
    listed = tool("upload", "--repair", env=env)
    assert (listed.status, [one["problem"] for one in listed.records]) == (
        *(1, ["object_without_row", "object_differs", "row_without_object"]),
    )
    assert cloud.gateway.asks(PUT) == 3 and not belongs(cloud)
    ran = tool("upload", "--repair", "--apply", env=env)
    assert (ran.status, [one["mended"] for one in ran.records]) == (0, [True] * 3)
    assert belongs(cloud) and len(rows(cloud)) == 3
    assert tool("upload", "--repair", env=env) == (0, b"", "")


def test_repair_without_an_answer_says_so(tool, cloud):
    cloud.gateway.fail(LOOK, LATER)
    ran = tool("upload", "--repair")
    assert (ran.status, ran.out) == (75, b"")


def test_what_went_up_is_what_is_here(tool, cloud, image):
    data = os.urandom(3_000_000)
    one = image(data=data)
    assert tool("upload", stdin=[one]).status == 0
    (found,) = cloud.storage.objects().values()
    assert hashlib.sha256(found).hexdigest() == one["sha256"]


def test_a_file_changed_in_place_meanwhile_gets_no_row_and_fails(cloud, tool, image):
    one = image(data=os.urandom(3_000_000))

    def change() -> None:
        with Path(one["file"]).open("r+b") as stream:
            stream.seek(2_000_000)
            stream.write(b"x" * 1000)

    with before(cloud, LOOK, change):
        ran = tool("upload", one["file"])
    assert ran.status == 2
    assert rows(cloud) == []


def test_a_pipe_or_a_device_is_refused_and_holds_nobody_up(cloud, tool, image):
    one = image()
    os.mkfifo(tool.folder / "fifo")
    for name in (str(tool.folder / "fifo"), "/dev/zero"):
        ran = tool("upload", stdin=[{**one, "file": name}], timeout=20)
        assert (ran.status, ran.record["error"]["code"]) == (2, "file")


def test_bytes_of_the_same_length_that_are_not_the_rows_are_put_right_by_uploading_again(
    cloud, tool, image
):
    one = image()
    made = tool("upload", one["file"]).record["cloud"]
    right = cloud.storage.objects()[made["path"]]
    headers = {"apikey": cloud.service_key, "Authorization": f"Bearer {cloud.service_key}"}
    headers |= {"Content-Type": "image/png", "x-upsert": "true"}
    place = f"{cloud.url}/storage/v1/object/{BUCKET}/{made['path']}"
    requests.put(place, data=right[::-1], headers=headers, timeout=10).raise_for_status()
    assert cloud.storage.objects()[made["path"]] != right
    assert tool("upload", one["file"]).status == 0
    assert cloud.storage.objects()[made["path"]] == right
