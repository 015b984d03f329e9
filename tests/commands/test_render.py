"""imagen-render, run as people run it: lines and options in, records and files out."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import re
import struct
import termios
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagen.ledger import Ledger
from imagen.records import record
from imagen.records.record import DRAWN_SEEDS, MAX_SEED

SMALL = ("--size", "64x64")
TINY = {"width": 64, "height": 64}
DATED = {**TINY, "date": "2026-01-02"}


def is_uuid4(text: str) -> bool:
    return str(uuid.UUID(text)) == text and uuid.UUID(text).version == 4


def files_in(folder: Path) -> list[str]:
    """Every file below a folder, dot-files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# -- what comes in ---------------------------------------------------------------------------------


def test_a_prompt_becomes_an_image_and_its_record(tool, out_dir):
    ran = tool("render", "A cat, in a fish-bowl!", *SMALL, "--seed", 7)
    made = ran.record
    assert (ran.status, ran.err) == (0, "")
    today = datetime.now(UTC).date().isoformat()
    assert made["file"] == str(out_dir / made["date"] / "a-cat-in-a-fish-bowl-7.png")
    assert made["sidecar"] == made["file"].removesuffix("png") + "json"
    assert made["date"] in (today, datetime.now(UTC).date().isoformat())
    data = Path(made["file"]).read_bytes()
    assert made["sha256"] == hashlib.sha256(data).hexdigest()
    assert made["bytes"] == len(data)
    assert (made["format"], made["width"], made["height"]) == ("png", 64, 64)
    assert (made["backend"], made["model"], made["cost_usd"]) == ("mock", "mock", 0)
    assert made["backend_meta"]["seed_used"] == made["seed"] == 7
    assert (made["attempts"], made["slug"]) == (1, "a-cat-in-a-fish-bowl")
    assert is_uuid4(made["id"])
    assert made["render_id"] == made["id"]
    assert isinstance(made["latency_ms"], int)
    started = datetime.fromisoformat(made["started_at"])
    assert started.utcoffset().total_seconds() == 0
    assert abs((datetime.now(UTC) - started).total_seconds()) < 60
    assert not {"error", "pending", "warnings", "fidelity", "sent_prompt"} & {*made}


def test_the_sidecar_holds_the_whole_record(tool):
    made = tool("render", "a cat", *SMALL, "--style", "ink", "--config", sample_with_ink(tool))
    assert json.loads(Path(made.record["sidecar"]).read_bytes()) == made.record


def sample_with_ink(tool) -> Path:
    path = tool.folder / "ink.yaml"
    path.write_text('styles: {ink: {template: "ink drawing of {prompt}", negative: photo}}\n')
    return path


def test_a_style_changes_what_is_sent_and_the_record_keeps_both(tool):
    ran = tool("render", "a cat", *SMALL, "--style=ink", "--config", sample_with_ink(tool))
    made = ran.record
    assert (made["prompt"], made["style"]) == ("a cat", "ink")
    assert made["sent_prompt"] == "ink drawing of a cat"
    assert made["sent_negative_prompt"] == "photo"
    assert "negative_prompt" not in made


def test_png_text_chunks_say_prompt_seed_and_backend(tool):
    made = tool("render", "a cät 🐈", *SMALL, "--seed", 5).record
    with Image.open(made["file"]) as picture:
        assert picture.text == {"prompt": "a cät 🐈", "seed": "5", "backend": "mock"}


def test_each_prompt_argument_is_one_image_and_stdin_is_not_read(tool, out_dir):
    ran = tool("render", "a cat", "a dog", *SMALL, stdin='{"prompt":"never"}\n')
    assert [one["prompt"] for one in ran.records] == ["a cat", "a dog"]
    assert len(files_in(out_dir)) == 4


def test_request_lines_on_stdin_become_records_in_their_order(tool):
    ran = tool("render", stdin=[{"prompt": "a", **TINY}, {"prompt": "b", **TINY, "seed": 3}])
    assert [one["prompt"] for one in ran.records] == ["a", "b"]
    assert ran.records[1]["seed"] == 3


def test_a_dash_names_stdin(tool):
    ran = tool("render", "-", *SMALL, stdin='{"prompt":"a"}\n\n   \n{"prompt":"b"}')
    assert [one["prompt"] for one in ran.records] == ["a", "b"]


def test_lines_takes_plain_text_one_prompt_a_line(tool):
    text = "a cat\n\n  \n{not json} ünd\r\nlast without a newline"
    ran = tool("render", "--lines", *SMALL, stdin=text)
    prompts = [one["prompt"] for one in ran.records]
    assert prompts == ["a cat", "{not json} ünd", "last without a newline"]
    assert ran.status == 0


@pytest.mark.parametrize("also", [["-"], ["--lines"]])
def test_prompts_and_stdin_together_are_refused(tool, also):
    ran = tool("render", "a cat", *also, stdin="x\n")
    assert (ran.status, ran.out) == (2, b"")
    assert ran.err.startswith("imagen-render: ")


def test_empty_stdin_is_no_work_and_no_fault(tool):
    assert tool("render", stdin="") == (0, b"", "")


def test_a_record_is_out_before_the_next_line_is_in(tool):
    child = tool.start("render", *SMALL)
    for prompt in ("first", "second"):
        child.stdin.write(json.dumps({"prompt": prompt}).encode() + b"\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["prompt"] == prompt
    child.stdin.close()
    assert child.wait(60) == 0


def test_no_prompt_on_a_terminal_is_a_usage_fault(tool):
    terminal, side = pty.openpty()
    child = tool.start("render", stdin=side)
    os.close(side)
    assert child.wait(60) == 2
    assert child.stderr.read().startswith(b"imagen-render: no prompt (hint: ")
    os.close(terminal)


def test_a_closed_stdin_without_a_prompt_is_a_usage_fault(tool):
    argv = ["sh", "-c", 'exec "$@" <&-', "sh", *tool.argv("render")]
    assert tool("render", argv=argv).status == 2


def test_a_closed_stdin_does_not_matter_to_a_prompt(tool):
    argv = ["sh", "-c", 'exec "$@" <&-', "sh", *tool.argv("render", "a cat", *SMALL)]
    assert tool("render", argv=argv).record["prompt"] == "a cat"


# -- what a line means -----------------------------------------------------------------------------


def test_unknown_keys_pass_through_with_equal_values_in_their_place(tool):
    line = {
        "zebra": {"deep": [1, 2.5, None, True, "ü"]},
        "prompt": "a cat",
        "big": 12345678901234567890,
        "job": {"id": "j1", "attempt": 2},
        **TINY,
        "last": "",
    }
    made = tool("render", stdin=[line]).record
    assert {key: made[key] for key in line} == line
    assert [*made][: len(line)] == [*line]


def test_a_null_request_field_counts_as_not_said(tool):
    line = dict.fromkeys(["id", "seed", "style", "backend", "width", "options"])
    ran = tool("render", *SMALL, stdin=[{"prompt": "a", **line, "date": None, "slug": None}])
    assert ran.status == 0
    assert (ran.record["backend"], ran.record["width"], ran.record["slug"]) == ("mock", 64, "a")
    assert is_uuid4(ran.record["id"])


def test_a_finished_line_is_passed_on_byte_for_byte(tool, out_dir):
    raw = b'{ "prompt" : "\\u0061", "file": "/no/such.png","x":1.50 , "id":"k"}\n'
    ran = tool("render", stdin=raw)
    assert ran == (0, raw, "")
    assert not out_dir.exists()


def test_a_line_without_its_newline_gets_one_on_the_way_through(tool):
    assert tool("render", stdin='{"prompt":"a","file":"/f"}').out == b'{"prompt":"a","file":"/f"}\n'


def test_a_line_with_members_is_passed_on_whatever_the_options(tool):
    raw = b'{"file": "/s.png", "members": [1], "cells": []}\n'
    assert tool("render", "--count", 2, "--seed", 1, stdin=raw) == (0, raw, "")


@pytest.mark.parametrize(
    "error",
    [
        {"tool": "imagen-upload", "code": "x", "message": "m", "billed": "no", "retry": "safe"},
        {"tool": "imagen-render", "code": "x", "message": "m", "billed": "no", "retry": "never"},
        {
            "tool": "imagen-render",
            "code": "x",
            "message": "m",
            "billed": "unknown",
            "retry": "reconcile",
        },
    ],
)
def test_a_record_that_came_in_failed_is_passed_on_and_does_not_count(tool, out_dir, error):
    raw = json.dumps({"prompt": "a", "seed": 1, "error": error}).encode() + b"\n"
    assert tool("render", stdin=raw) == (0, raw, "")
    assert not out_dir.exists()


@pytest.mark.parametrize("retry", ["safe", "after"])
def test_a_line_with_renders_own_error_is_tried_again_when_that_is_safe(tool, retry):
    error = {"tool": "imagen-render", "code": "x", "message": "m", "billed": "no", "retry": retry}
    made = tool("render", stdin=[{"prompt": "a", "id": "k", "seed": 1, **TINY, "error": error}])
    assert (made.status, made.record["id"], made.record["seed"]) == (0, "k", 1)
    assert Path(made.record["file"]).is_file()
    assert "error" not in made.record


def test_a_failed_record_piped_back_is_made_with_the_same_id_seed_and_name(tool):
    line = {"prompt": "a", "options": {"faults": [{"fault": "server_error", "times": 2}]}, **TINY}
    failed = tool("render", stdin=[line])
    assert failed.status == 75
    made = tool("render", stdin=failed.out)
    assert made.status == 0
    for name in ("id", "seed", "date", "slug", "render_id"):
        assert made.record[name] == failed.record[name]
    assert "error" not in made.record


# -- ids, seeds, again, count ----------------------------------------------------------------------


def test_count_makes_numbered_ids_and_seeds_that_count_up(tool):
    ran = tool("render", "--count", 3, stdin=[{"prompt": "a", "id": "k", "seed": 40, **TINY}])
    assert [one["id"] for one in ran.records] == ["k-1", "k-2", "k-3"]
    assert [one["seed"] for one in ran.records] == [40, 41, 42]
    assert {one["request"] for one in ran.records} == {"k"}
    assert len({one["file"] for one in ran.records}) == 3
    assert len({one["render_id"] for one in ran.records}) == 3


def test_count_without_an_id_numbers_a_fresh_one(tool):
    ran = tool("render", "a", *SMALL, "--count", 2)
    base = ran.records[0]["request"]
    assert is_uuid4(base)
    assert [one["id"] for one in ran.records] == [f"{base}-1", f"{base}-2"]
    assert ran.records[1]["seed"] == ran.records[0]["seed"] + 1


def test_a_drawn_seed_stays_within_32_bits(tool):
    ran = tool("render", "--dry-run", "a", "--count", 50)
    seeds = [one["payload"]["seed"] for one in ran.records]
    assert seeds == [*range(seeds[0], seeds[0] + 50)]
    assert 0 <= seeds[0] <= seeds[-1] < DRAWN_SEEDS


def test_the_largest_seed_is_taken_and_one_more_is_refused(tool):
    assert tool("render", "a", *SMALL, "--seed", MAX_SEED).record["seed"] == MAX_SEED
    assert tool("render", "a", "--seed", MAX_SEED + 1).status == 2
    assert tool("render", "a", "--seed", MAX_SEED, "--count", 2).status == 2


@pytest.fixture
def finished(tool) -> dict[str, Any]:
    return tool("render", stdin=[{"prompt": "a", "id": "old", "seed": 9, "mine": 1, **TINY}]).record


WRITTEN = ("sha256", "file", "submit", "started_at", "sidecar")


def test_again_makes_a_finished_line_anew_with_a_fresh_id(tool, finished):
    again = tool("render", "--again", stdin=[finished]).record
    assert again["request"] == "old"
    assert is_uuid4(again["id"])
    assert (again["prompt"], again["seed"], again["mine"]) == ("a", 9, 1)
    assert again["file"].endswith("/a-9-2.png")
    assert again["sha256"] == finished["sha256"]


def test_count_on_a_finished_line_draws_a_new_first_seed(tool, finished):
    ran = tool("render", "--count", 2, stdin=[finished])
    first, second = ran.records
    assert first["request"] == second["request"] == "old"
    assert is_uuid4(first["id"])
    assert is_uuid4(second["id"])
    assert first["id"] != second["id"]
    assert second["seed"] == first["seed"] + 1
    assert first["seed"] != 9


def test_seed_on_a_finished_line_is_the_new_ones_seed(tool, finished):
    made = tool("render", "--seed", 77, stdin=[finished]).record
    assert (made["seed"], made["request"], made["mine"]) == (77, "old", 1)
    assert made["file"].endswith("/a-77.png")


def test_count_and_seed_on_a_finished_line_count_up_from_that_seed(tool, finished):
    ran = tool("render", "--seed", 77, "--count", 2, stdin=[finished])
    assert [one["seed"] for one in ran.records] == [77, 78]


def test_what_tools_wrote_is_dropped_from_a_line_that_is_made_anew(tool, finished):
    line = {**finished, "cloud": {"bucket": "b"}, "usage_id": "u", "job": {"id": "j"}}
    ran = tool("render", "--seed", 77, stdin=[line])
    assert not {"cloud", "usage_id", "job"} & {*ran.record}
    assert all(ran.record[name] != finished[name] for name in WRITTEN)


def test_seed_is_only_a_default_for_a_fresh_line(tool):
    ran = tool("render", "--seed", 5, stdin=[{"prompt": "a", "seed": 6, **TINY}])
    assert (ran.record["seed"], "request" in ran.record) == (6, False)


def test_again_lets_the_command_line_win_over_the_line(tool):
    line = {"prompt": "a", "seed": 9, "steps": 4, "options": {"x": 1, "y": 1}, **TINY}
    finished = tool("render", stdin=[line]).record
    args = ("--size", "48x32", "--steps", 8, "--option", "x=2")
    ran = tool("render", "--again", *args, stdin=[finished])
    made = ran.record
    assert (made["width"], made["height"], made["steps"]) == (48, 32, 8)
    assert (made["options"], made["seed"]) == ({"x": 2, "y": 1}, 9)
    assert "no effect" not in ran.err


def test_set_takes_a_size(tool):
    line = {"prompt": "a", **TINY}
    made = tool("render", "--set", "size=48x32", stdin=[line]).record
    assert (made["width"], made["height"]) == (48, 32)
    assert "size" not in made
    ran = tool("render", "--set", "size=big", stdin=[line])
    assert (ran.status, ran.out) == (2, b"")
    assert "--set size takes WxH" in ran.err


UNUSED = (
    ("--size", "48x32"),
    ("--negative", "fog"),
    ("--set", "seed=3"),
    ("--out-dir", "elsewhere"),
)


@pytest.mark.parametrize("args", UNUSED)
def test_an_option_for_finished_lines_only_is_refused_and_the_lines_pass(tool, finished, args):
    lines = record.line(finished) * 3
    ran = tool("render", *args, stdin=lines)
    assert (ran.status, ran.out) == (2, lines)
    (said,) = ran.err.splitlines()
    name = " ".join(args).partition("=")[0] if args[0] == "--set" else args[0]
    assert said.startswith(f"imagen-render: {name} has no effect on these lines (hint: --again ")


def test_an_option_without_effect_is_said_once_and_the_status_stays(tool, finished):
    line = {"prompt": "b", **TINY}
    ran = tool("render", "--size", "48x32", stdin=[finished, line, line])
    assert ran.status == 0
    assert ran.records[0] == finished
    assert ran.records[1]["width"] == TINY["width"]
    assert ran.err.count("--size has no effect") == 1
    assert "no effect" not in tool("render", "-q", "--size", "48x32", stdin=[line]).err


@pytest.mark.parametrize("args", [("--steps", 4), ("--set", "steps=4"), ("--option", "x=1")])
def test_an_option_that_one_line_uses_has_an_effect(tool, finished, args):
    ran = tool("render", *args, stdin=[finished, {"prompt": "b", **TINY}])
    assert ran.status == 0
    assert "no effect" not in ran.err


def test_the_same_command_over_its_own_records_says_nothing(tool):
    args = ("--size", "48x32", "--seed", 5, "--option", "x=1", "--negative", "fog")
    first = tool("render", *args, stdin=[{"prompt": "a", "id": "k"}])
    failed = {**first.record, "error": {"tool": "imagen-upload", "retry": "never"}}
    del failed["file"]
    ran = tool("render", *args, stdin=[failed], check_records=False)
    assert (ran.status, ran.err, ran.records) == (0, "", [failed])


def test_options_without_a_line_are_no_fault(tool):
    assert tool("render", "--size", "48x32", stdin=b"") == (0, b"", "")


def test_id_names_the_one_image(tool):
    made = tool("render", "a", *SMALL, "--id", "cover").record
    assert made["id"] == "cover"
    assert made["render_id"] != "cover"
    assert uuid.UUID(made["render_id"]).version == 5
    again = tool("render", "a", *SMALL, "--id", "cover").record
    assert again["render_id"] == made["render_id"], "the ledger's own id makes it, so it stays"


def test_id_cannot_name_two_images(tool):
    ran = tool("render", "a", "b", *SMALL, "--id", "cover")
    assert ran.status == 2
    assert ran.records[0]["id"] == "cover"
    assert ran.records[1]["error"]["retry"] == "never"


def test_a_uuid_is_its_own_render_id(tool):
    name = "0B3C1D5E-0000-4000-8000-0123456789AB"
    assert tool("render", "a", *SMALL, "--id", name).record["render_id"] == name.lower()


def test_options_are_defaults_and_set_overrides(tool):
    lines = [{"prompt": "a", "width": 32}, {"prompt": "b"}]
    ran = tool("render", *SMALL, "--set", "height=48", "--set", "prompt=7", stdin=lines)
    assert [one["width"] for one in ran.records] == [32, 64]
    assert [one["height"] for one in ran.records] == [48, 48]
    assert [one["prompt"] for one in ran.records] == ["7", "7"]


def test_set_holds_for_a_line_that_is_tried_again(tool):
    line = {"prompt": "a", "options": {"faults": ["server_error"]}, **TINY}
    failed = tool("render", stdin=[line])
    assert tool("render", "--set", "options={}", stdin=failed.out).status == 0


def test_set_of_something_that_is_no_request_field_is_refused_with_close_matches(tool):
    ran = tool("render", "a", "--set", "widht=3")
    assert (ran.status, ran.out) == (2, b"")
    assert "width" in ran.err


def test_options_are_typed_as_json_where_they_parse(tool):
    pairs = {"a": "1", "b": "1.5", "c": "true", "d": '{"x":[1]}', "e": "plain", "f": "=", "g": ""}
    args = [part for key, value in pairs.items() for part in ("--option", f"{key}={value}")]
    made = tool("render", "p", *SMALL, *args).record
    expected = {"a": 1, "b": 1.5, "c": True, "d": {"x": [1]}, "e": "plain", "f": "=", "g": ""}
    assert made["options"] == expected


def test_an_option_fills_what_the_lines_own_options_do_not_say(tool):
    line = {"prompt": "p", **TINY, "options": {"images": 1}}
    made = tool("render", "--option", "images=2", "--option", "x=1", stdin=[line]).record
    assert made["options"] == {"images": 1, "x": 1}


@pytest.mark.parametrize(
    "args",
    [
        ["--size", "64"],
        ["--size", "64x"],
        ["--size", "-1x64"],
        ["--size", "8x8"],
        ["--size", "20000x64"],
        ["--seed", "-1"],
        ["--seed", "x"],
        ["--seed", "1.5"],
        ["--seed", "true"],
        ["--seed", "9" * 5000],
        ["--steps", "0"],
        ["--steps", "1e400"],
        ["--cfg", "NaN"],
        ["--cfg", "-1"],
        ["--count", "0"],
        ["--option", "novalue"],
        ["--option", "=1"],
        ["--set", "novalue"],
        ["--wait", "-1"],
        ["--wait", "nan"],
        ["--timeout", "nan"],
        ["--timeout", "soon"],
        ["--no-such-option"],
        ["--config", "/no/such/file.yaml"],
        ["--out-dir", "~no-such-user-here/x"],
        ["--output", "x.png", "--count", "2"],
    ],
)
def test_an_option_that_cannot_be_meant_is_one_line_and_status_2(tool, out_dir, args):
    ran = tool("render", "a cat", *args)
    assert (ran.status, ran.out) == (2, b"")
    assert re.fullmatch(r"imagen-render: [^\n]+\n", ran.err)
    assert "fault in imagen-render itself" not in ran.err
    assert not out_dir.exists()


@pytest.mark.parametrize(
    ("args", "close"),
    [(["--backend", "mok"], "mock"), (["--style", "inc"], "ink")],
)
def test_an_unknown_name_is_refused_with_close_matches(tool, out_dir, args, close):
    ran = tool("render", "a cat", *args, "--config", sample_with_ink(tool))
    assert ran.status == 2
    assert f"did you mean {close}" in ran.err
    assert close in ran.record["error"]["hint"]
    assert not out_dir.exists()


# -- names of files --------------------------------------------------------------------------------


def test_a_taken_name_gets_a_number_and_is_never_overwritten(tool):
    line = {"prompt": "a cat", "seed": 1, **DATED}
    first, second, third = tool("render", stdin=[line, line, line]).records
    stems = [Path(one["file"]).stem for one in (first, second, third)]
    assert stems == ["a-cat-1", "a-cat-1-2", "a-cat-1-3"]
    assert all(Path(one["file"]).with_suffix(".json") == Path(one["sidecar"]) for one in [second])


@pytest.mark.parametrize("suffix", [".png", ".json", ".jpg", ".webp"])
def test_a_strangers_file_of_any_kind_takes_the_name_for_both(tool, out_dir, suffix):
    strangers = out_dir / "2026-01-02" / f"a-1{suffix}"
    strangers.parent.mkdir(parents=True)
    strangers.write_text("mine")
    made = tool("render", stdin=[{"prompt": "a", "seed": 1, **DATED}]).record
    assert made["file"].endswith("/a-1-2.png")
    assert strangers.read_text() == "mine"


def test_a_dangling_link_is_a_taken_name_too(tool, out_dir):
    folder = out_dir / "2026-01-02"
    folder.mkdir(parents=True)
    (folder / "a-1.png").symlink_to(tool.folder / "elsewhere.png")
    made = tool("render", stdin=[{"prompt": "a", "seed": 1, **DATED}]).record
    assert made["file"].endswith("/a-1-2.png")
    assert not (tool.folder / "elsewhere.png").exists()


def test_nothing_but_image_and_sidecar_stays_behind(tool, out_dir):
    tool("render", stdin=[{"prompt": "a", "seed": 1, **DATED}])
    assert files_in(out_dir) == ["2026-01-02/a-1.json", "2026-01-02/a-1.png"]


def test_the_reservation_of_a_dead_process_is_taken_over(tool, out_dir):
    folder = out_dir / "2026-01-02"
    folder.mkdir(parents=True)
    (folder / ".a-1.reserved").write_text(str(uuid.uuid4()))
    made = tool("render", stdin=[{"prompt": "a", "seed": 1, **DATED}]).record
    assert made["file"].endswith("/a-1.png")
    assert files_in(folder) == ["a-1.json", "a-1.png"]


def test_the_reservation_of_a_living_process_is_left_to_it(tool, out_dir):
    folder, owner = out_dir / "2026-01-02", str(uuid.uuid4())
    folder.mkdir(parents=True)
    reservation = folder / ".a-1.reserved"
    reservation.write_text(owner)
    with Ledger(tool.folder / "state" / "imagen" / "ledger.sqlite3").lock(owner):
        made = tool("render", stdin=[{"prompt": "a", "seed": 1, **DATED}]).record
    assert made["file"].endswith("/a-1-2.png")
    assert reservation.read_text() == owner


def test_a_killed_render_leaves_nothing_under_the_final_name_and_goes_on_when_run_again(
    tool, out_dir, until
):
    line = {"prompt": "a", "seed": 1, "id": "k", **DATED}
    child = tool.start("render", *("--option", 'faults=["hang"]'))
    child.stdin.write(json.dumps(line).encode() + b"\n")
    child.stdin.close()
    until(lambda: [*tool.folder.glob("state/imagen/mock/*.json")])
    child.kill()
    child.wait()
    assert files_in(out_dir) == ["2026-01-02/.a-1.reserved"]
    other = tool("render", stdin=[{**line, "id": "another"}]).record
    assert other["file"].endswith("/a-1-2.png"), "the name is still that of the render that is open"
    (memory,) = tool.folder.glob("state/imagen/mock/*.json")
    memory.write_text(json.dumps({**json.loads(memory.read_bytes()), "faults": []}))
    made = tool("render", "--option", 'faults=["hang"]', stdin=[line]).record
    assert made["file"].endswith("/a-1.png")
    assert [name for name in files_in(out_dir) if "reserved" in name] == []


def test_renders_at_the_same_time_never_share_a_name(tool, out_dir):
    line = json.dumps({"prompt": "a", "seed": 1, **DATED}).encode() + b"\n"
    children = [tool.start("render") for _ in range(3)]
    for child in children:
        child.stdin.write(line * 4)
        child.stdin.close()
    made = [json.loads(row) for child in children for row in child.stdout]
    assert [child.wait(20) for child in children] == [0, 0, 0]
    assert len({one["file"] for one in made}) == 12
    for one in made:
        assert json.loads(Path(one["sidecar"]).read_bytes()) == one
        assert Path(one["file"]).is_file()
    assert len(files_in(out_dir)) == 24


def test_two_renders_of_one_id_wait_for_each_other(tool, until):
    line = {"prompt": "a", "id": "k", "seed": 1, **TINY}
    slow = {**line, "options": {"faults": [{"fault": "slow", "wait_s": 0.6}]}}
    first = tool.start("render")
    first.stdin.write(json.dumps(slow).encode() + b"\n")
    first.stdin.close()
    until(lambda: [*tool.folder.glob("state/imagen/mock/*.json")])
    began = time.monotonic()
    second = tool("render", stdin=[slow])
    assert time.monotonic() - began > 0.3
    assert first.wait(60) == second.status == 0


def test_one_submit_of_many_images_gives_as_many_records(tool):
    ran = tool("render", stdin=[{"prompt": "a", "id": "k", "options": {"images": 3}, **TINY}])
    assert [one["id"] for one in ran.records] == ["k", "k.2", "k.3"]
    for name in ("seed", "submit"):
        assert len({one[name] for one in ran.records}) == 1
    for name in ("file", "sha256", "render_id"):
        assert len({one[name] for one in ran.records}) == 3
    assert [one["cost_usd"] for one in ran.records] == [0, 0, 0]


# -- --output --------------------------------------------------------------------------------------


def test_output_writes_the_one_image_and_its_sidecar_there(tool, out_dir):
    made = tool("render", "a cat", *SMALL, "--output", "cover.png").record
    assert made["file"] == str(tool.folder / "cover.png")
    assert json.loads((tool.folder / "cover.json").read_bytes()) == made
    assert Path(made["file"]).is_file()
    assert not out_dir.exists()
    assert not [*tool.folder.glob(".*")]


@pytest.mark.parametrize("existing", ["cover.png", "cover.json"])
def test_output_refuses_an_existing_file_and_sends_nothing(tool, existing):
    (tool.folder / existing).write_text("mine")
    ran = tool("render", "a cat", *SMALL, "--output", "cover.png")
    assert (ran.status, ran.record["error"]["code"]) == (2, "output_exists")
    assert "submit" not in ran.record
    assert (tool.folder / existing).read_text() == "mine"
    assert len([*tool.folder.glob("cover.*")]) == 1


def test_force_lets_output_replace_a_file(tool):
    tool("render", "a dog", *SMALL, "--output", "cover.png")
    made = tool("render", "a cat", *SMALL, "--output", "cover.png", "--force").record
    assert hashlib.sha256((tool.folder / "cover.png").read_bytes()).hexdigest() == made["sha256"]
    assert json.loads((tool.folder / "cover.json").read_bytes()) == made


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_output_refuses_a_folder(tool, force):
    (tool.folder / "cover.png").mkdir()
    ran = tool("render", "a cat", *SMALL, "--output", "cover.png", *force)
    assert (ran.status, "submit" in ran.record) == (2, False)


def test_output_refuses_the_name_of_its_own_sidecar(tool):
    ran = tool("render", "a cat", *SMALL, "--output", "cover.json", "--force")
    assert ran.status == 2
    assert not (tool.folder / "cover.json").exists()


def test_output_into_a_folder_that_is_not_there_is_refused_before_anything_is_sent(tool):
    ran = tool("render", "a cat", *SMALL, "--output", "no/such/cover.png")
    assert ran.status == 2 or Path(ran.record["file"]).is_file()
    assert "Traceback" not in ran.err


def test_output_with_another_formats_suffix_keeps_the_bytes_and_says_so(tool):
    made = tool("render", "a cat", *SMALL, "--output", "cover.jpg").record
    assert made["warnings"] == ["extension"]
    assert made["format"] == "png"
    assert Path(made["file"]).read_bytes().startswith(b"\x89PNG")


def test_output_takes_one_image_only(tool):
    ran = tool("render", "a", "b", *SMALL, "--output", "cover.png")
    assert ran.status == 2
    assert [*tool.folder.glob("cover*.png")] in ([], [tool.folder / "cover.png"])
    several = tool("render", "a", *SMALL, "--output", "x.png", "--option", "images=2")
    assert (several.status, "submit" in several.record) == (2, False)


def test_output_dash_writes_the_image_to_stdout_and_the_record_last_to_stderr(tool, out_dir):
    ran = tool("render", "a cat", *SMALL, "--output=-")
    made = json.loads(ran.err.splitlines()[-1])
    assert ran.status == 0
    assert hashlib.sha256(ran.out).hexdigest() == made["sha256"]
    assert not {"file", "sidecar"} & {*made}
    assert not out_dir.exists()


def test_output_dash_of_a_failed_render_writes_nothing_to_stdout(tool):
    ran = tool("render", "a", *SMALL, "--output=-", "--option", 'faults=["out_of_credit"]')
    assert (ran.status, ran.out) == (1, b"")
    assert json.loads(ran.err.splitlines()[-1])["error"]["code"] == "out_of_credit"


def test_out_dir_goes_over_the_environment_and_that_over_the_file(tool, configure):
    configure(f"output: {{dir: {tool.folder}/of-file}}\n")
    env = {"IMAGEN_OUT_DIR": str(tool.folder / "of-env")}
    for expected, args, also in [
        ("of-flag", ["--out-dir", "of-flag"], env),
        ("of-env", [], env),
        ("of-file", [], {}),
    ]:
        made = tool("render", "a", *SMALL, *args, env=also).record
        assert Path(made["file"]).is_relative_to(tool.folder / expected)


# -- --dry-run and --strict ------------------------------------------------------------------------


def test_a_dry_run_prints_the_exact_payload_and_sends_nothing(tool, out_dir):
    name = str(uuid.uuid4())
    line = {"prompt": "a", "id": name, "seed": 3, **TINY, "options": {"faults": ["hang"]}}
    ran = tool("render", "--dry-run", stdin=[line])
    assert ran.status == 0
    assert [*ran.record] == ["id", "backend", "payload", "fidelity", "cost_usd"]
    assert (ran.record["id"], ran.record["backend"]) == (name, "mock")
    assert (ran.record["fidelity"], ran.record["cost_usd"]) == ({}, 0)
    assert not out_dir.exists()
    assert not [*tool.folder.glob("state/imagen/mock/*")]
    tool("render", "--wait", 0, stdin=[line])
    (accepted,) = tool.folder.glob("state/imagen/mock/*.json")
    sent = json.loads(accepted.read_bytes())
    del sent["accepted_at"]
    assert sent == ran.record["payload"]


def test_a_dry_run_prints_one_line_per_request(tool):
    lines = [{"prompt": "a", **TINY}, {"prompt": "b", "width": 9000}]
    ran = tool("render", "--dry-run", "--count", 2, stdin=lines)
    assert [one["payload"]["prompt"] for one in ran.records] == ["a", "a", "b", "b"]
    assert ran.records[3]["fidelity"]["approximated"][0]["got"] == 4096


def test_a_dry_run_does_not_collect_what_is_pending(tool, out_dir):
    hung = ("--option", 'faults=["hang"]')
    pending = tool("render", "a", *SMALL, *hung, "--wait", 0)
    tool("render", "--dry-run", stdin=pending.out)
    assert [name for name in files_in(out_dir) if name.endswith((".png", ".json"))] == []


def test_what_cannot_be_met_is_approximated_or_dropped_and_said(tool):
    ran = tool("render", stdin=[{"prompt": "a", "width": 5000, "height": 16, "cfg": 3}])
    fidelity = ran.record["fidelity"]
    assert (ran.status, ran.record["width"]) == (0, 4096)
    assert [(one["field"], one["asked"], one["got"]) for one in fidelity["approximated"]] == [
        ("width", 5000, 4096)
    ]
    assert [(one["field"], one["asked"]) for one in fidelity["dropped"]] == [("cfg", 3)]


@pytest.mark.parametrize("also", [{"width": 5000}, {"steps": 4}, {"options": {"nonsense": 1}}])
def test_strict_refuses_what_would_be_approximated_or_dropped(tool, out_dir, also):
    ran = tool("render", "--strict", stdin=[{"prompt": "a", **TINY, **also}])
    assert (ran.status, ran.record["error"]["code"]) == (2, "not_faithful")
    assert not out_dir.exists()


def test_strict_lets_a_request_through_that_is_met_exactly(tool):
    assert tool("render", "--strict", "a", *SMALL).status == 0


# -- the pipe --------------------------------------------------------------------------------------


def test_a_bad_line_says_which_and_the_others_are_done(tool):
    text = '{"prompt":"a"}\n\n{"prompt": oops}\n{"prompt":"b"}\n'
    ran = tool("render", *SMALL, stdin=text)
    assert ran.status == 2
    assert ran.err.startswith("imagen-render: line 3: not JSON: ")
    assert len(ran.err.splitlines()) == 1
    assert [one["prompt"] for one in ran.records] == ["a", "b"]


def test_the_records_before_a_bad_line_are_already_out(tool):
    child = tool.start("render", *SMALL)
    child.stdin.write(b'{"prompt":"a"}\n')
    child.stdin.flush()
    assert json.loads(child.stdout.readline())["prompt"] == "a"
    child.stdin.write(b"oops\n")
    child.stdin.close()
    assert child.stderr.readline().startswith(b"imagen-render: line 2: not JSON: ")
    assert child.wait(60) == 2


def test_a_failed_record_is_one_line_on_stderr_and_travels_on_with_its_error(tool):
    name = "3f2a0000-0000-4000-8000-000000000000"
    line = {"prompt": "a", "id": name, **TINY, "options": {"faults": ["out_of_credit"]}}
    ran = tool("render", stdin=[line])
    assert re.fullmatch(r"imagen-render: 3f2a0000…: [^\n]+\n", ran.err)
    assert ran.record["error"] == {
        "tool": "imagen-render",
        "code": "out_of_credit",
        "message": "The account is out of credit",
        "billed": "no",
        "retry": "never",
        "scope": "setup",
    }
    assert {key: ran.record[key] for key in line} == line


def faulty(*faults: str) -> dict[str, Any]:
    return {"prompt": "a", **TINY, "options": {"faults": [*faults]}}


OK, CREDIT, THROTTLED = faulty(), faulty("out_of_credit"), faulty("throttled")
REFUSED = {"prompt": "a", "width": 3}


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([OK], 0),
        ([THROTTLED, OK], 75),
        ([THROTTLED, CREDIT, OK], 1),
        ([REFUSED, CREDIT, THROTTLED, OK], 2),
        ([OK, REFUSED], 2),
    ],
)
def test_the_worst_exit_status_wins(tool, lines, status):
    ran = tool("render", stdin=lines)
    assert ran.status == status
    assert len(ran.records) == len(lines)


def test_a_reader_that_took_one_line_and_left_ends_it_quietly(tool, out_dir):
    line = {"prompt": "a", **TINY, "options": {"faults": [{"fault": "slow", "wait_s": 0.2}]}}
    child = tool.start("render")
    head = tool.start("head", argv=["head", "-1"], stdin=child.stdout)
    child.stdout.close()
    child.stdin.write((json.dumps(line).encode() + b"\n") * 100)
    child.stdin.close()
    assert child.wait(20) == 0
    assert child.stderr.read() == b""
    assert len(head.stdout.read().splitlines()) == 1
    assert len([name for name in files_in(out_dir) if name.endswith(".png")]) <= 2


def test_nothing_is_submitted_once_the_reader_is_gone(tool, out_dir):
    child = tool.start("render", *SMALL)
    child.stdin.write(b'{"prompt":"a"}\n')
    child.stdin.flush()
    child.stdout.readline()
    child.stdout.close()
    child.stdin.write(b'{"prompt":"b"}\n' * 99)
    child.stdin.close()
    assert child.wait(20) == 0
    assert child.stderr.read() == b""
    assert len(files_in(out_dir)) == 2


# -- words for people ------------------------------------------------------------------------------


def test_version_and_help(tool):
    assert re.fullmatch(rb"imagen-render \d+\.\d+\.\d+\n", tool("render", "--version").out)
    assert tool("render", "--help").out.startswith(b"Usage: imagen-render ")


def on_a_terminal(tool, *args: object, columns: int = 80, **env: str) -> tuple[int, str]:
    """Run render with stderr on a terminal; give its status and what was shown there."""
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    child = tool.start("render", *args, stderr=side, env=env)
    os.close(side)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # all other ends are closed
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    return child.wait(60), shown.decode()


SLOW = ("a", *SMALL, "--option", 'faults=[{"fault":"slow","wait_s":1.3}]')


def test_a_wait_of_more_than_a_second_is_shown_on_a_terminal(tool):
    status, shown = on_a_terminal(tool, *SLOW)
    assert status == 0
    assert "1 s  drawing" in shown
    assert "\x1b[2m" in shown
    assert shown.endswith("\r\x1b[K"), "the line is taken away at the end"


def test_no_color_shows_progress_without_colour(tool):
    status, shown = on_a_terminal(tool, *SLOW, NO_COLOR="1")
    assert status == 0
    assert "1 s  drawing" in shown
    assert not re.search(r"\x1b\[\d+m", shown)


def test_quiet_shows_no_progress(tool):
    assert on_a_terminal(tool, *SLOW, "--quiet") == (0, "")


def test_a_wait_off_a_terminal_shows_nothing(tool):
    ran = tool("render", *SLOW)
    assert (ran.status, ran.err) == (0, "")


def test_progress_never_runs_over_the_edge_of_a_narrow_terminal(tool):
    status, shown = on_a_terminal(tool, *SLOW, columns=12)
    texts = re.findall(r"\x1b\[2m(.*?)\x1b\[0m", shown)
    assert status == 0
    assert texts
    assert all(len(text) < 12 for text in texts)


def test_a_short_render_shows_nothing_on_a_terminal(tool):
    assert on_a_terminal(tool, "a", *SMALL) == (0, "")


# -- what people are told --------------------------------------------------------------------------


def test_what_the_backend_has_no_use_for_is_said_unless_quiet(tool):
    said = tool("render", "a cat", *SMALL, "--steps", "4").err
    assert "steps is dropped" in said
    assert tool("render", "a cat", *SMALL, "--steps", "4", "--quiet").err == ""


def test_verbose_says_the_backend_and_the_file(tool):
    ran = tool("render", "a cat", *SMALL, "--id", "cat", "--verbose")
    assert f"cat: mock, {ran.record['file']}" in ran.err


def test_several_prompts_for_one_output_are_refused_before_anything_is_sent(tool, out_dir):
    ran = tool("render", "a cat", "a dog", *SMALL, "--output", "y.png")
    assert (ran.status, ran.out) == (2, b"")
    assert not (tool.folder / "y.png").exists()


def test_a_folder_that_is_not_there_is_named(tool):
    ran = tool("render", "a cat", *SMALL, "--output", "nosuch/y.png")
    assert "no folder" in ran.err
    assert ".tmp" not in ran.err
