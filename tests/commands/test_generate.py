"""imagen-generate: the everyday pipeline on one command line."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from processes import kill_alone, kill_tree
from servers.gateway import Answer

SMALL = ("--size", "64x64")


def fault(name: str) -> tuple[str, str]:
    return ("--option", f'faults=["{name}"]')


def test_a_prompt_becomes_an_image_and_one_line_for_people(tool, out_dir):
    ran = tool("generate", "a cat", *SMALL, "--seed", 7)
    made = ran.record
    assert ran.status == 0
    assert made["file"] == str(out_dir / made["date"] / "a-cat-7.png")
    assert Path(made["file"]).is_file()
    assert ran.err == f"imagen-generate: {made['file']}\n"
    sidecar = json.loads(Path(made["sidecar"]).read_bytes())
    assert {**sidecar, "usage_id": made["usage_id"]} == made


def test_on_a_terminal_the_file_is_named_and_no_json_is_shown(tool):
    terminal, side = pty.openpty()
    child = tool.start("generate", "a cat", *SMALL, "--seed", 7, stdout=side)
    os.close(side)
    assert child.wait(20) == 0
    with pytest.raises(OSError, match=r"Input/output error"):
        os.read(terminal, 4096)
    os.close(terminal)
    assert child.stderr.read().endswith(b"/a-cat-7.png\n")


def test_every_option_of_render_reaches_render(tool):
    ran = tool(
        *("generate", "first", "-v", "second", "--size=32x48", "--seed=5", "--count=2"),
        *("--negative", "a, b's", "--option", "x=1", "--option", "y={}", "--set", "steps=3"),
        *("--out-dir", "some where", "--no-cloud", "--no-preview"),
    )
    assert ran.status == 0
    assert [one["prompt"] for one in ran.records] == ["first", "first", "second", "second"]
    assert [one["seed"] for one in ran.records] == [5, 6, 5, 6]
    for one in ran.records:
        assert (one["width"], one["height"], one["steps"]) == (32, 48, 3)
        assert (one["negative_prompt"], one["options"]) == ("a, b's", {"x": 1, "y": {}})
        assert Path(one["file"]).is_relative_to(tool.folder / "some where")
    said = [one for one in ran.err.splitlines() if one.startswith("imagen-generate")]
    assert len(said) == 4


@pytest.mark.parametrize("prompt", ["--seed", 'it\'s "$(id)" `id`; *\na 🐈'])
def test_a_prompt_reaches_render_as_it_is(tool, prompt):
    assert tool("generate", *SMALL, "--", prompt).record["prompt"] == prompt


def test_lines_come_in_from_stdin(tool):
    ran = tool("generate", *SMALL, "--lines", stdin="a cat\na dog\n")
    assert [one["prompt"] for one in ran.records] == ["a cat", "a dog"]
    records = tool("generate", *SMALL, stdin=[{"prompt": "a"}])
    assert records.record["prompt"] == "a"


def test_no_prompt_on_a_terminal_is_a_usage_fault(tool):
    terminal, side = pty.openpty()
    child = tool.start("generate", stdin=side)
    os.close(side)
    assert child.wait(60) == 2
    assert child.stderr.read().startswith(b"imagen-generate: no prompt (hint: ")
    os.close(terminal)


def test_a_dry_run_prints_what_would_be_sent(tool, out_dir):
    ran = tool("generate", "a cat", "--dry-run")
    assert ran.status == 0
    assert ran.record["payload"]["prompt"] == "a cat"
    assert not out_dir.exists()


def test_output_dash_writes_the_image(tool):
    ran = tool("generate", "a cat", *SMALL, "--output=-")
    assert ran.status == 0
    assert ran.out.startswith(b"\x89PNG")
    assert json.loads(ran.err.splitlines()[-1])["prompt"] == "a cat"


def test_quiet_leaves_only_the_record(tool):
    ran = tool("generate", "a cat", *SMALL, "--quiet")
    assert (ran.status, ran.err) == (0, "")
    assert ran.record["prompt"] == "a cat"


# -- its exit status is render's -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["--width"], 2),
        (["--seed", "x"], 2),
        (["--backend", "nonesuch"], 2),
        (["--config", "/no/such/file"], 2),
        (fault("out_of_credit"), 1),
        (fault("throttled"), 75),
        ([*fault("hang"), "--wait", "0.1"], 75),
    ],
)
def test_a_failing_render_gives_its_status(tool, args, status):
    ran = tool("generate", "a cat", *SMALL, *args)
    assert ran.status == status
    assert ran.err
    assert "Traceback" not in ran.err


def test_a_failed_record_travels_to_the_end(tool):
    ran = tool("generate", "a cat", *SMALL, *fault("out_of_credit"))
    assert ran.record["error"]["tool"] == "imagen-render"


def test_a_pending_record_is_said_and_comes_out(tool):
    ran = tool("generate", "a cat", *SMALL, *fault("hang"), "--wait", "0.1")
    assert "pending" in ran.record
    assert "not done yet" in ran.err


def test_a_preview_that_fails_is_a_warning_and_the_image_is_safe(tool):
    ran = tool("generate", "a cat", *SMALL, "--preview")
    assert ran.status == 0
    assert Path(ran.record["file"]).is_file()
    assert "error" not in ran.record
    assert "this is no tmux session" in ran.err


def test_a_preview_forced_on_by_the_configuration_fails_as_softly(tool, configure):
    configure("output: {preview: on}\n")
    assert tool("generate", "a cat", *SMALL).status == 0
    quiet = tool("generate", "a cat", *SMALL, "--no-preview")
    assert "tmux" not in quiet.err


def test_each_image_is_shown_once_it_is_there(tool, until):
    programs = tool.folder / "programs"
    programs.mkdir()
    for name, body in {"tmux": f'echo "$@" >>{programs}/calls', "tmux-img": ""}.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "TMUX": "x,1,0"}
    ran = tool("generate", "a", "b", *SMALL, "--preview", env=env)
    assert ran.status == 0
    calls = (programs / "calls").read_text().splitlines()
    assert [call.split()[-1] for call in calls] == [one["file"] for one in ran.records]


# -- signals and readers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status", "field"), [(signal.SIGINT, 130, "error"), (signal.SIGTERM, 143, "pending")]
)
def test_a_signal_reaches_render_and_its_last_record_comes_out(tool, until, number, status, field):
    child = tool.start("generate", "a cat", *SMALL, *fault("hang"))
    until(lambda: [*tool.folder.glob("state/imagen/mock/*.json")])
    child.send_signal(number)
    record = json.loads(child.stdout.read())
    assert (child.wait(60), field in record) == (status, True)
    assert b"Traceback" not in child.stderr.read()


def test_a_reader_that_leaves_ends_it_quietly(tool, out_dir):
    child = tool.start("generate", *SMALL)
    child.stdin.write(b'{"prompt":"a"}\n')
    child.stdin.flush()
    child.stdout.readline()
    child.stdout.close()
    child.stdin.write(b'{"prompt":"b"}\n' * 50)
    child.stdin.close()
    assert child.wait(20) == 0
    assert b"Traceback" not in child.stderr.read()
    assert len([*out_dir.rglob("*.png")]) < 25, "and what is behind it too"


def test_a_module_in_the_working_folder_is_not_run(tool):
    for name in ("click.py", "json.py", "requests.py"):
        (tool.folder / name).write_text("raise SystemExit('run by mistake')")
    argv = [sys.executable, "-P", "-m", "imagen", "generate", "a cat", "--size", "64x64"]
    ran = tool("generate", argv=argv)
    assert (ran.status, "by mistake" in ran.err) == (0, False)


# -- the cloud -------------------------------------------------------------------------------------


@pytest.fixture
def owned(cloud, monkeypatch):
    """A project to which the environment points."""
    for name, value in cloud.environment(cloud.new_user()).items():
        monkeypatch.setenv(name, value)
    return cloud


def test_where_a_project_is_configured_the_image_goes_there_and_that_is_said(tool, owned):
    ran = tool("generate", "a cat", *SMALL, "--seed", 7)
    cloud = ran.record["cloud"]
    assert (ran.status, [*owned.storage.objects()]) == (0, [cloud["path"]])
    place = f"{cloud['bucket']}/{cloud['path']} ({cloud['image_id']})"
    assert ran.err == f"imagen-generate: {ran.record['file']} → {place}\n"
    assert "usage_id" in ran.record


@pytest.mark.parametrize(
    ("args", "variable", "file", "asks"),
    [
        (["--no-cloud"], "on", "on", False),
        ([], "off", "on", False),
        ([], None, "off", False),
        ([], "on", "off", True),
        (["--dry-run"], None, "on", False),
        (["--output=-"], None, "on", False),
    ],
)
def test_off_makes_no_request_at_all(tool, owned, configure, args, variable, file, asks):
    configure(f"output: {{cloud_sync: {file}}}\n")
    env = {"IMAGEN_CLOUD_SYNC": variable}
    assert tool("generate", "a cat", *SMALL, *args, env=env).status == 0
    assert (owned.gateway.asks() > 0) is asks


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_cloud_that_fails_is_a_warning_and_the_status_is_renders(tool, owned, mode):
    later = Answer(503, {"Retry-After": "60"}, b"{}")
    owned.gateway.fail("GET /rest/v1/images", later)
    ran = tool("generate", "a cat", *SMALL, env={"IMAGEN_CLOUD_SYNC": mode})
    assert (ran.status, "cloud" in ran.record, "error" in ran.record) == (0, False, False)
    assert ran.err.startswith("imagen: cloud sync: ")
    assert ran.err.endswith(f"imagen-generate: {ran.record['file']}\n")
    assert tool("upload", "--retry-pending").status == 0
    assert len(owned.storage.objects()) == 1


def test_on_without_a_project_is_a_warning_for_each_image(tool):
    ran = tool("generate", "a", "b", *SMALL, env={"IMAGEN_CLOUD_SYNC": "on"})
    assert (ran.status, len(ran.records)) == (0, 2)
    assert ran.err.count("imagen: cloud sync: ") == 2


def test_a_render_that_failed_is_not_uploaded(tool, owned):
    assert tool("generate", "a cat", *SMALL, *fault("out_of_credit")).status == 1
    assert owned.gateway.asks() == 0


# -- killed, and run again -------------------------------------------------------------------------


def generate(paid, *args, **more):
    """Start imagen-generate where it is paid for."""
    return paid.tool.start(
        "generate", "a cat", "--size=512x512", *args, stdin=subprocess.DEVNULL, **more
    )


def end(paid, *args):
    return paid.tool.ended(generate(paid, *args))


def is_handed_over(paid):
    """Whether the record has left imagen-render and is on its way to the caller."""
    fetched = paid.server.asks("GET /files")
    return fetched and paid.sql("select 1 from renders where delivered_by is not null")


@pytest.fixture
def slow_upload(paid, monkeypatch):
    """A Supabase project that accepts connections and stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("SUPABASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", "k" * 40)
        monkeypatch.setenv("IMAGEN_OWNER_USER_ID", "0b3c1d5e-0000-4000-8000-0123456789ab")
        yield


@pytest.mark.parametrize("kill", [kill_alone, kill_tree])
def test_killed_while_the_upload_is_slow_and_run_again_nothing_is_paid_again(
    paid, until, slow_upload, kill
):
    child = generate(paid)
    until(lambda: is_handed_over(paid), 60)
    kill(child)
    assert paid.sql("select state, delivered from renders") == [("done", 0)]
    ran = end(paid, "--no-cloud")
    assert ran.status == 0, ran.err
    assert Path(ran.record["file"]).is_file()
    assert "taken up where an earlier run left it" in ran.err
    assert paid.creates == 1
    assert paid.sql("select delivered from renders") == [(1,)]


def test_three_runs_that_are_each_killed_while_they_upload_are_one_payment(
    paid, until, slow_upload
):
    runs = "select distinct delivered_by from renders where delivered_by is not null"
    before: list[tuple[str]] = []
    for kill in (kill_alone, kill_tree, kill_alone):
        child = generate(paid)
        until(lambda: is_handed_over(paid), 60)
        until(lambda before=before: paid.sql(runs) not in ([], before), 60)
        before = paid.sql(runs)
        kill(child)
    assert paid.creates == 1


@pytest.mark.parametrize("kill", [kill_alone, kill_tree])
def test_killed_while_it_renders_and_run_again_nothing_is_paid_again(paid, until, kill):
    paid.server.held = True
    child = generate(paid)
    until(lambda: paid.server.asks("GET /v1/predictions/"), 30)
    kill(child)
    paid.server.held = False
    ran = end(paid)
    assert (ran.status, paid.creates) == (0, 1), ran.err
    assert Path(ran.record["file"]).is_file()


def test_an_image_of_a_living_run_is_not_taken_from_it(paid, until, slow_upload):
    first = generate(paid)
    until(lambda: is_handed_over(paid), 60)
    second = end(paid, "--no-cloud")
    assert "this one makes a second image (hint: give both runs the same --id)" in second.err
    assert paid("--resume").out == b"", "nor by --resume"
    assert paid.creates == 2
    kill_alone(first)


def test_what_was_written_to_the_caller_is_delivered_with_the_last_image_of_a_submit(paid):
    ran = end(paid, "--option", "num_outputs=3", "--id", "k")
    assert [one["id"] for one in ran.records] == ["k", "k.2", "k.3"]
    assert paid.sql("select id, delivered from renders") == [("k", 1)]


def test_a_terminal_that_names_the_file_has_it_delivered(paid):
    paid.tool.on_terminal("generate", "a cat", "--size=512x512")
    assert paid.sql("select state, delivered from renders") == [("done", 1)]


def test_resume_finishes_what_was_left_open_through_the_whole_chain(paid):
    paid.server.held = True
    first = end(paid, "--wait", 0)
    paid.server.held = False
    listed = paid.tool("generate", "--resume", "--dry-run", "-q")
    assert [one["state"] for one in listed.records] == ["submitted"]
    ran = paid.tool("generate", "--resume", "--no-cloud")
    assert ran.status == 0
    assert (ran.record["id"], "usage_id" in ran.record) == (first.record["id"], True)
    assert (paid.creates, paid.sql("select delivered from renders")) == (1, [(1,)])
    assert paid.tool("generate", "--resume", "--no-cloud").out == b""


@pytest.mark.parametrize("args", [("a cat",), ("--lines",), ("--no-ledger",), ("--output", "x")])
def test_resume_takes_neither_prompts_nor_what_does_not_go_with_it(tool, args):
    ran = tool("generate", "--resume", *args)
    assert (ran.status, ran.err[:26]) == (2, "imagen-generate: --resume ")
