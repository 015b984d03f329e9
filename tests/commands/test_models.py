"""imagen-models: which model files there are, fetching them, verifying them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shlex
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imagen.workflows import template
from seeds import SEED
from servers.filehost import Fault, FileHost

BYTES = random.Random(7).randbytes(3_000_000)
SHA256 = hashlib.sha256(BYTES).hexdigest()
PATH = "/lab/model/resolve/main/a.safetensors"
TOKEN = "hf_a-secret-that-nobody-may-see"


@pytest.fixture
def host() -> Iterator[FileHost]:
    """A hub that holds one file."""
    with FileHost() as found:
        found.put(PATH, BYTES)
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """ComfyUI's models folder."""
    found = tmp_path / "ComfyUI" / "models"
    found.mkdir(parents=True)
    return found


Write = Callable[..., str]


@pytest.fixture
def wanting(tmp_path: Path) -> Write:
    """Write a workflow that wants these files."""

    def write(*models: dict[str, Any], **defaults: Any) -> str:
        path = tmp_path / "mine.json"
        about = {"models": [*models], "defaults": defaults}
        node = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}
        path.write_text(json.dumps({"_imagen": about, "9": node}))
        return str(path)

    return write


def model(source: str | list[str] = f"https://huggingface.co{PATH}", **more: Any) -> dict[str, Any]:
    known = {"file": "a.safetensors", "folder": "vae", "size": len(BYTES), "sha256": SHA256}
    about = {**known, "licence": "Apache-2.0", "source": source, **more}
    return {key: value for key, value in about.items() if value is not None}


@pytest.fixture
def models(tool, host, folder, monkeypatch) -> Callable[..., Any]:
    """Run imagen-models with the folder, and the host as the hub."""
    monkeypatch.setenv("HF_ENDPOINT", host.url)
    monkeypatch.setenv("IMAGEN_MODELS_DIR", str(folder))
    return lambda *args, **more: tool("models", *args, **more)


def all_in(folder: Path) -> dict[str, int]:
    """Every file in a folder, with its size."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.stat().st_size for name, path in found.items()}


def is_whole(folder: Path) -> bool:
    """Whether the file is there, and nothing else."""
    only = all_in(folder) == {"vae/a.safetensors": len(BYTES)}
    return only and (folder / "vae/a.safetensors").read_bytes() == BYTES


# -- list ------------------------------------------------------------------------------------------


def test_list_names_every_file_of_the_bundled_workflows(tool):
    rows = tool("models", "list").records
    named = {(row["workflow"], row["folder"], row["file"]) for row in rows}
    assert named == {
        (name, one.folder, one.file)
        for name in template.bundled()
        for one in template.load(name).needs({})
    }
    assert all(row["licence"] and row["source"].startswith("https://") for row in rows)
    (schnell,) = (row for row in rows if row["file"] == "flux1-schnell.safetensors")
    assert (schnell["size"], schnell["sha256"][:8]) == (23782506688, "9403429e")
    assert "state" not in schnell, "no folder was named to look in"
    (medium,) = (row for row in rows if row["workflow"] == "sd35-medium")
    assert medium["accept"].startswith("https://huggingface.co/stabilityai/")
    assert all(row["size"] and len(row["sha256"]) == 64 for row in rows)


def test_list_tells_what_is_there_also_in_the_folders_of_older_comfyuis(models, wanting, folder):
    known = {"size": 4, "sha256": None}
    names = {"unet": "diffusion_models", "clip": "text_encoders", "vae": "vae", "loras": "loras"}
    files = [model(file=f"{new}.pt", folder=new, **known) for new in names.values()]
    for name, data in {"unet": b"1234", "clip": b"123", "vae": b""}.items():
        (folder / name).mkdir()
        (folder / name / f"{names[name]}.pt").write_bytes(data)
    (folder / "vae/vae.pt").rename(folder / "vae/.vae.pt.part")
    (folder / "vae/.vae.pt.part").write_bytes(b"12")
    rows = models("list", wanting(*files)).records
    found = {row["folder"]: (row["state"], row["bytes"]) for row in rows}
    assert found == {
        "diffusion_models": ("present", 4),
        "text_encoders": ("wrong size", 3),
        "vae": ("partial", 2),
        "loras": ("absent", 0),
    }


def test_a_file_goes_into_the_folder_that_this_comfyui_has(models, wanting, folder):
    (folder / "unet").mkdir()
    row = models("fetch", wanting(model(folder="diffusion_models"))).record
    assert row["path"] == str(folder / "unet/a.safetensors")


def test_on_terminal_it_is_a_table(tool):
    lines = tool.on_terminal("models", "list", "flux1-schnell").splitlines()
    assert lines[0].split() == ["workflow", "folder", "file", "size", "licence", "state"]
    assert len(lines) == 5
    assert "23.8 GB" in lines[1]


# -- fetch -----------------------------------------------------------------------------------------


def test_fetch_brings_the_file_and_says_so(models, host, wanting, folder):
    ran = models("fetch", wanting(model()))
    assert (ran.status, ran.err) == (0, "")
    assert ran.record["state"] == "present"
    assert ran.record["fetched"] is True
    assert ran.record["source"] == f"{host.url}{PATH}", "the hub is the configured one"
    assert is_whole(folder)
    mask = os.umask(0)
    os.umask(mask)
    mode = stat.S_IMODE((folder / "vae/a.safetensors").stat().st_mode)
    assert mode == 0o666 & ~mask, "ComfyUI, another user, can read it"


def test_what_is_there_is_not_asked_for_again(models, host, wanting, folder):
    mine = wanting(model(), model(file="b.safetensors", source=f"https://huggingface.co{PATH}"))
    models("fetch", mine)
    asked = len(host.asked)
    ran = models("fetch", mine)
    assert (ran.status, [row["state"] for row in ran.records]) == (0, ["present", "present"])
    assert (asked, len(host.asked)) == (2, 2)
    assert "fetched" not in ran.records[0]


def test_a_file_of_two_workflows_is_fetched_once(models, host, wanting, tmp_path):
    other = tmp_path / "other.json"
    mine = wanting(model())
    other.write_text(Path(mine).read_text())
    assert len(models("fetch", mine, other).records) == 1
    assert len(host.asked) == 1


def test_two_workflows_that_mean_different_files_by_one_name_are_told(models, wanting, tmp_path):
    mine = wanting(model())
    other = tmp_path / "other.json"
    other.write_text(Path(mine).read_text().replace(SHA256, SHA256[::-1]))
    ran = models("fetch", mine, other)
    assert ran.status == 2
    assert "other wants another vae/a.safetensors" in ran.err
    assert len(ran.records) == 1


CUT = Fault(cut_after=1_200_000)


def test_a_cut_download_goes_on_where_it_stopped(models, host, wanting, folder):
    host.faults = [CUT, CUT]
    assert models("fetch", wanting(model())).status == 0
    assert is_whole(folder)
    assert host.ranges_asked() == [None, "bytes=1200000-", "bytes=2400000-"]
    tag = f'"{SHA256[:16]}"'
    assert [headers["If-Range"] for _, headers in host.asked] == [None, tag, tag]


def limit_to(size: int) -> Callable[[], None]:
    """Let no file grow beyond a size."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_failed_file_does_not_stop_the_others(models, host, wanting):
    gone = model("https://huggingface.co/gone", file="b.safetensors")
    ran = models("fetch", wanting(gone, model()))
    assert ran.status == 1
    assert [row["state"] for row in ran.records] == ["failed", "present"]


def test_a_source_that_asks_to_wait_for_long_is_a_temporary_error(models, host, wanting):
    host.faults = [Fault(status=429, headers={"Retry-After": "3600"})]
    ran = models("fetch", wanting(model()))
    assert (ran.status, ran.record["error"]["retry_after_s"]) == (75, 3600)
    assert "run it again" in ran.err


# -- who may have it -------------------------------------------------------------------------------


def test_a_token_goes_to_the_hub_that_asks_for_it_and_to_nobody_else(models, host, wanting, folder):
    with FileHost("localhost") as cdn:
        cdn.put(PATH, BYTES)
        host.token, host.elsewhere = TOKEN, cdn.url
        cdn.faults = [CUT]
        ran = models("fetch", wanting(model()), env={"HF_TOKEN": TOKEN})
        assert (ran.status, is_whole(folder)) == (0, True)
        sent = [headers["Authorization"] for _, headers in host.asked]
        assert sent == [None, f"Bearer {TOKEN}", f"Bearer {TOKEN}"], "only when it is asked for"
        assert [headers["Authorization"] for _, headers in cdn.asked] == [None, None]
        assert cdn.ranges_asked() == [None, "bytes=1200000-"]
    assert TOKEN not in ran.err
    assert TOKEN.encode() not in ran.out
    assert not any(TOKEN.encode() in path.read_bytes() for path in folder.rglob("*.json"))


def test_an_open_file_is_fetched_without_the_token(models, host, wanting):
    assert models("fetch", wanting(model()), env={"HF_TOKEN": TOKEN}).status == 0
    assert [headers["Authorization"] for _, headers in host.asked] == [None]


def test_another_host_that_asks_for_a_login_gets_no_token(models, host, wanting):
    with FileHost() as other:
        other.token = TOKEN
        source = other.put(PATH, BYTES)
        ran = models("fetch", wanting(model(source)), env={"HF_TOKEN": TOKEN})
        assert [headers["Authorization"] for _, headers in other.asked] == [None]
    assert ran.status == 1
    assert "no token goes to another host" in ran.err


@pytest.mark.parametrize(
    ("given", "says"), [(None, "$HF_TOKEN"), ("hf_of-somebody-else", "accept its licence")]
)
def test_a_file_that_needs_a_login_says_what_to_do(models, host, wanting, given, says):
    host.token = TOKEN
    page = "https://example.org/licence"
    ran = models(
        "fetch", wanting(model(accept=page, licence="Some licence")), env={"HF_TOKEN": given}
    )
    assert ran.status == 1
    assert f"Some licence, to be accepted at {page}" in ran.err
    assert says in ran.err
    assert "hf_" not in ran.err


# -- the disk --------------------------------------------------------------------------------------


def test_room_is_looked_for_before_anything_is_fetched(models, host, wanting, folder):
    vast = model(file="vast.safetensors", size=10**15)
    ran = models("fetch", wanting(model(), vast))
    assert (ran.status, ran.out, host.asked) == (75, b"", [])
    assert "no room in" in ran.err
    assert "1000.0 TB are to come" in ran.err
    dry = models("fetch", wanting(model(), vast), "--dry-run")
    assert (dry.status, len(dry.records)) == (75, 2), "a dry run says both"


FULL = """
mount -t tmpfs -o size=9m tmpfs "$IMAGEN_MODELS_DIR" || exit 99
head -c 7340032 /dev/zero > "$IMAGEN_MODELS_DIR"/filler
"$@"; echo $? > first; wc -c < "$IMAGEN_MODELS_DIR"/vae/.a.safetensors.part > part
rm "$IMAGEN_MODELS_DIR"/filler; "$@"; status=$?
cmp "$IMAGEN_MODELS_DIR"/vae/a.safetensors whole || exit 98
exit $status
"""


def test_a_disk_that_fills_up_is_one_line_and_the_part_is_gone_on_with(
    tool, models, host, wanting, needs
):
    host.lengths = False  # so that nobody knows beforehand
    (tool.folder / "whole").write_bytes(BYTES)
    unshare = [needs("unshare", "util-linux"), "--mount", "--map-root-user"]
    argv = tool.argv("models", "fetch", wanting(model(size=None)))
    ran = models(argv=[*unshare, "sh", "-c", FULL, "sh", *argv])
    if ran.status == 99 or "unshare" in ran.err:
        pytest.skip(f"no mounts of our own here: {ran.err.strip()}")
    assert (ran.status, (tool.folder / "first").read_text()) == (0, "75\n"), ran.err
    (line,) = ran.err.splitlines()
    assert "No space left on device (hint: free some space and run it again" in line
    part = int((tool.folder / "part").read_text())
    assert 1_500_000 < part < 2**21
    assert host.ranges_asked() == [None, f"bytes={part}-"]


def test_a_limit_on_file_size_is_one_line_and_the_part_stays(models, wanting, folder):
    ran = models("fetch", wanting(model()), preexec_fn=limit_to(1_000_000))
    assert (ran.status, len(ran.err.splitlines())) == (2, 1)
    assert "File too large" in ran.err
    assert "ulimit -f" in ran.err
    assert all_in(folder)["vae/.a.safetensors.part"] == 1_000_000


def test_an_existing_file_is_never_touched(models, host, wanting, folder):
    there = BYTES[:-1]
    path = folder / "vae/a.safetensors"
    path.parent.mkdir()
    path.write_bytes(there)
    ran = models("fetch", wanting(model()))
    assert (ran.status, path.read_bytes(), host.asked) == (1, there, [])
    assert f"{path} has {len(there)} bytes, not {len(BYTES)}" in ran.err
    assert f"rm {path}" in ran.err


def test_a_file_where_a_folder_should_be_is_one_line(models, wanting, folder):
    (folder / "vae").touch()
    ran = models("fetch", wanting(model()))
    assert (ran.status, len(ran.err.splitlines())) == (2, 1)
    assert "--models-dir" in ran.err


# -- processes -------------------------------------------------------------------------------------


def began(folder: Path, size: int) -> bool:
    part = folder / "vae/.a.safetensors.part"
    return part.exists() and part.stat().st_size >= size


def test_killed_at_random_the_same_command_goes_on_to_the_right_bytes(
    tool, models, host, wanting, folder, until
):
    mine = wanting(model(size=None, sha256=None))
    host.rate = 8e6
    sizes = sorted(random.Random(SEED).sample(range(1, len(BYTES) - 500_000), 3))
    for times, size in enumerate(sizes, 1):
        child = tool.start("models", "fetch", mine)
        until(lambda size=size, times=times: len(host.asked) == times and began(folder, size))
        child.kill()
        child.wait()
        assert not (folder / "vae/a.safetensors").exists()
    host.rate = None
    assert models("fetch", mine).status == 0
    assert is_whole(folder)
    starts = [int(asked[6:-1]) for asked in host.ranges_asked() if asked]
    assert len(starts) == 3
    assert all(start >= size for start, size in zip(starts, sizes, strict=True)), "nothing twice"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_the_part_to_go_on_with(
    tool, models, host, wanting, folder, until, number, status
):
    host.rate = 2e6
    child = tool.start("models", "fetch", wanting(model()))
    until(lambda: began(folder, 1))
    child.send_signal(number)
    ran = tool.ended(child)
    assert (ran.status, ran.err, ran.out) == (status, "", b"")
    assert set(all_in(folder)) == {"vae/.a.safetensors.part", "vae/.a.safetensors.part.json"}
    host.rate = None
    models("fetch", wanting(model()))
    assert is_whole(folder)
    assert host.ranges_asked()[1] is not None


def test_of_two_at_once_one_downloads_and_the_other_waits(
    tool, models, host, wanting, folder, until
):
    mine = wanting(model())
    host.rate = 4e6
    first = tool.start("models", "fetch", mine)
    until(lambda: began(folder, 1))
    second = models("fetch", mine)
    assert tool.ended(first).status == second.status == 0
    assert "another process fetches it; waiting" in second.err
    assert (second.record["state"], "fetched" in second.record) == ("present", False)
    assert len(host.asked) == 1
    assert is_whole(folder)


def test_of_two_at_once_the_other_goes_on_when_the_first_is_killed(
    tool, models, host, wanting, folder, until
):
    mine = wanting(model())
    host.rate = 2e6
    first, second = (tool.start("models", "fetch", mine) for _ in range(2))
    until(lambda: began(folder, 200_000))
    first.kill()
    first.wait()
    host.rate = None
    assert tool.ended(second).status == 0
    assert is_whole(folder)


def test_on_terminal_a_bar_tells_how_far_it_is(tool, models, host, wanting):
    host.rate = 4e6
    shown = tool.on_terminal("models", "fetch", wanting(model()), stream="stderr")
    assert "a.safetensors" in shown
    assert "100%" in shown
    assert "3 MB" in shown


def test_quiet_shows_no_bar(tool, models, wanting):
    assert tool.on_terminal("models", "fetch", "-q", wanting(model()), stream="stderr") == ""


# -- what cannot be fetched ------------------------------------------------------------------------


def test_a_dry_run_says_what_and_from_where_and_asks_nobody(models, host, wanting, folder):
    ran = models("fetch", wanting(model()), "--dry-run")
    assert (ran.status, host.asked, all_in(folder)) == (0, [], {})
    row = ran.record
    assert (row["state"], row["source"]) == ("absent", f"{host.url}{PATH}")
    assert row["path"] == str(folder / "vae/a.safetensors")


@pytest.mark.parametrize("how", ["--backend=mine", "--option=vae=mine.safetensors"])
def test_a_file_that_an_instance_names_has_no_known_source(
    models, host, wanting, folder, configure, how
):
    mine = wanting(model(file="${vae}"), vae="a.safetensors")
    data = json.loads(Path(mine).read_text())
    data["1"] = {"class_type": "VAELoader", "inputs": {"vae_name": "${vae}"}}
    Path(mine).write_text(json.dumps(data))
    more = f"    workflow: {mine}\n    vae: mine.safetensors\n"
    configure("backends:\n  mine:\n    type: comfyui\n" + more)
    args = [how] if "backend" in how else [mine, how]
    ran = models("fetch", *args)
    path = folder / "vae/mine.safetensors"
    assert (ran.status, host.asked) == (2, [])
    assert f"no source is known for mine.safetensors (hint: put it at {path})" in ran.err
    assert models("fetch", "--dry-run", *args).status == 2
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"mine")
    assert models("fetch", *args).record["state"] == "present"


def test_a_backend_that_is_no_comfyui_has_no_files(models):
    ran = models("fetch", "--backend", "mock")
    assert ran.status == 2
    assert "no ComfyUI" in ran.err


@pytest.mark.parametrize("what", ["list", "fetch", "verify"])
def test_a_name_that_no_disk_can_hold_stops_no_other_file(models, wanting, what):
    models("fetch", wanting(model()))
    ran = models(what, wanting(model(file="a" * 300), model()))
    assert (ran.status, [row["file"] for row in ran.records]) == (2, ["a.safetensors"])
    assert "too long" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_name_that_leads_out_of_the_folder_is_refused(models, host, wanting, folder):
    name = "../a.pt"
    given = models("fetch", wanting(model(file="${vae}"), vae=name))
    assert (given.status, host.asked) == (2, [])
    assert "no name of a file" in given.err
    written = models("fetch", wanting(model(file=name)))
    assert (written.status, all_in(folder.parent)) == (2, {})
    assert "_imagen.models" in written.err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["fetch"], "takes a workflow"),
        (["fetch", "flux1-shnell"], "did you mean flux1-schnell"),
        (["list", "--dry-run"], "list takes no --dry-run"),
        (["verify", "--models-dir", "/no/such"], "no folder /no/such"),
        (["mend"], "list"),
    ],
)
def test_a_command_line_that_cannot_be_meant_is_refused(models, args, says):
    ran = models(*args)
    assert (ran.status, ran.out) == (2, b"")
    assert says in ran.err


def test_without_a_folder_fetch_says_how_to_name_one(tool):
    ran = tool("models", "fetch", "flux1-schnell")
    assert ran.status == 2
    assert "$IMAGEN_MODELS_DIR" in ran.err


# -- verify ----------------------------------------------------------------------------------------


def test_verify_says_of_each_file_whether_it_is_right(models, wanting, folder):
    names = ("ok", "spoiled", "short", "missing", "unknown")
    files = [model(file=f"{name}.safetensors") for name in names]
    del files[-1]["sha256"]
    (folder / "vae").mkdir()
    bytes_of = {"ok": BYTES, "spoiled": BYTES[::-1], "short": b"short", "unknown": BYTES}
    for name, data in bytes_of.items():
        (folder / f"vae/{name}.safetensors").write_bytes(data)
    ran = models("verify", wanting(*files))
    states = {row["file"].partition(".")[0]: row["state"] for row in ran.records}
    assert ran.status == 1
    assert states == {
        "ok": "ok",
        "spoiled": "wrong",
        "short": "wrong",
        "missing": "missing",
        "unknown": "unknown",
    }
    assert ran.records[-1]["sha256"] == SHA256, "so that people can compare it"
    assert [line.split()[1] for line in ran.err.splitlines()] == [
        "spoiled.safetensors:",
        "short.safetensors:",
        "missing.safetensors:",
    ]


def test_what_verify_misses_is_brought_by_what_it_says(models, wanting, folder):
    """The workflow's name alone would not bring it: it is a file."""
    mine = Path(wanting(model())).rename(folder.parent / "my own.json")
    args = [mine, "--models-dir", folder]
    ran = models("verify", *args)
    assert (ran.status, ran.record["state"]) == (1, "missing")
    name, *words = shlex.split(ran.record["error"]["hint"])
    assert (name, words) == ("imagen-models", ["fetch", *map(str, args)])
    assert models(*words).status == 0
    assert is_whole(folder)


def test_verify_without_a_workflow_says_which_one_brings_a_bundled_file(models):
    hints = {row["error"]["hint"] for row in models("verify").records}
    assert hints == {f"imagen-models fetch {name}" for name in template.bundled()}
