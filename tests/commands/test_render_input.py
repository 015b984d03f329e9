"""imagen-render given bad lines, bad names and bad places: a clear error or a correct file.

Never a traceback, never a file outside the output folder.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagen.records import record

SMALL = ("--size", "64x64")
UP = "../../x"


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def render(tool, out_dir) -> Callable[..., Any]:
    """Run render; whatever comes in, this much holds."""

    def run(stdin: bytes | str | list[dict[str, Any]], *args: object, **more: Any):
        before = everything(tool.folder)
        ran = tool("render", *SMALL, *args, stdin=stdin, **more)
        assert "Traceback" not in ran.err
        assert "fault in imagen-render itself" not in ran.err
        assert ran.status in (0, 1, 2, 75)
        state = tool.folder / "state" / "imagen"
        strays = {
            path
            for path in everything(tool.folder) - before
            if not path.is_relative_to(out_dir) and not path.is_relative_to(state)
        }
        assert not strays
        for one in everything(out_dir):
            ours = one.suffix in (".png", ".json") or one.name.endswith(".reserved")
            assert ours, f"{one} is left behind"
        return ran

    return run


GOOD = b'{"prompt":"good"}\n'

NO_RECORDS = {
    "a word": b"oops",
    "a list": b"[1]",
    "a string": b'"x"',
    "a number": b"7",
    "null": b"null",
    "cut off": b'{"prompt":"a"',
    "two in one line": b'{"prompt":"a"}{"prompt":"b"}',
    "single quotes": b"{'prompt':'a'}",
    "not UTF-8": b'{"prompt":"\xff\xfe"}',
    "UTF-16": '{"prompt":"a"}'.encode("utf-16"),
    "a NUL byte": b'{"prompt":"a\0"}',
    "5,000 digits": b'{"prompt":"a","seed":' + b"9" * 5000 + b"}",
    "5,000 digits elsewhere": b'{"prompt":"a","mine":[-' + b"9" * 5000 + b"]}",
    "1e400": b'{"prompt":"a","cfg":1e400}',
    "NaN": b'{"prompt":"a","cfg":NaN}',
    "-Infinity": b'{"prompt":"a","mine":-Infinity}',
    "half a surrogate pair": b'{"prompt":"\\ud83d"}',
    "half a pair in a key": b'{"prompt":"a","\\uDC00":1}',
    "100,000 deep": b'{"prompt":"a","options":' + b'{"x":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "100,000 lists deep": b'{"prompt":"a","mine":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 deep and cut off": b"[" * 100_000,
    "17 MiB": b'{"prompt":"' + b"a" * (17 * 2**20) + b'"}',
}


@pytest.mark.parametrize("what", NO_RECORDS)
def test_what_is_no_record_is_named_by_its_line_and_the_next_is_done(render, what):
    ran = render(GOOD + NO_RECORDS[what] + b"\n" + GOOD)
    assert ran.status == 2
    assert ran.err.startswith("imagen-render: line 2: ")
    assert len(ran.err.splitlines()) == 1
    assert len(ran.err) < 400
    assert [one["prompt"] for one in ran.records] == ["good", "good"]


@pytest.mark.parametrize("name", ["prompts.jsonl", "a b.json", "x.NDJSON", "prompts.txt"])
def test_a_file_of_prompts_is_not_taken_for_a_prompt(tool, out_dir, name):
    (tool.folder / name).write_text('{"prompt": "a cat"}')
    ran = tool("render", *SMALL, "a cat", name, cwd=tool.folder)
    assert (ran.status, ran.out) == (2, b"")
    assert f"(hint: imagen-render < {shlex.quote(name)})" in ran.err
    assert not out_dir.exists()


@pytest.mark.parametrize(
    ("name", "args", "hint"),
    [
        ("generate", [], "imagen-generate < a.jsonl"),
        ("enqueue", [], "imagen-enqueue < a.jsonl"),
        ("compare", ["--backends=mock"], "it takes one prompt, and no lines"),
    ],
)
def test_the_hint_for_a_file_of_prompts_names_the_program_that_was_typed(
    tool, out_dir, name, args, hint
):
    (tool.folder / "a.jsonl").write_text('{"prompt": "a cat"}')
    ran = tool(name, "a.jsonl", *args)
    assert (ran.status, ran.out) == (2, b"")
    assert ran.err.startswith(f"imagen-{name}: a.jsonl is a file, not a prompt (hint: {hint}")
    assert not out_dir.exists()


@pytest.mark.parametrize("name", ["render", "generate"])
def test_request_options_beside_resume_are_named_once_each(tool, name):
    tool("render", "a", *SMALL, "--id=k", '--option=faults=["slow"]', "--wait=0")
    ran = tool(name, "--resume", "--seed=7", "--set=steps=3", "--set=cfg=2", "--timeout=60")
    assert (ran.status, ran.record["id"]) == (0, "k")
    lines = [line for line in ran.err.splitlines() if "has no effect beside --resume" in line]
    assert [line.split()[1] for line in lines] == ["--seed", "--set"]
    assert tool("render", "--resume", "--seed=7", "-q").err == ""


# -- the mock, when nothing is configured ----------------------------------------------------------

NOTHING = {"IMAGEN_BACKEND": None}
MOCK = "no default_backend is configured, so the mock draws: test images, no real pictures"


@pytest.mark.parametrize("name", ["render", "generate"])
def test_the_mock_is_named_once_when_it_is_used_only_because_nothing_is_configured(tool, name):
    ran = tool(name, "a cat", "a dog", *SMALL, env=NOTHING)
    assert (ran.status, len(ran.records)) == (0, 2)
    hint = "(hint: docs/reference/backends.md"
    assert ran.err.splitlines()[0].startswith(f"imagen-render: {MOCK} {hint}")
    assert ran.err.count(MOCK) == 1
    assert tool(name, "a cat", *SMALL, "-q", env=NOTHING).err == ""


def test_the_mock_is_not_named_when_somebody_asked_for_it(tool, configure):
    made = tool("render", "a", *SMALL, "--backend=mock", env=NOTHING)
    assert MOCK not in made.err
    assert MOCK not in tool("render", "a", *SMALL, "--set=backend=mock", env=NOTHING).err
    for again in ([], ["--again"]):
        assert MOCK not in tool("render", *again, stdin=made.out, env=NOTHING).err
    assert MOCK not in tool("render", "a", "--dry-run", env=NOTHING).err
    assert MOCK not in tool("render", "a", *SMALL, env={"IMAGEN_BACKEND": "mock"}).err
    configure("output: {preview: 'off'}")
    assert MOCK in tool("render", "a", *SMALL).err
    configure("default_backend: mock")
    assert MOCK not in tool("render", "a", *SMALL).err


def test_a_name_of_no_file_is_a_prompt(tool):
    assert tool("render", *SMALL, "prompts.jsonl").record["prompt"] == "prompts.jsonl"


def test_a_prompt_that_begins_with_a_dash_and_a_blank_is_told_of_the_end_of_options(tool):
    ran = tool("render", *SMALL, "- a cat")
    assert ran.status == 2
    assert "(hint: imagen-render -- '- …'" in ran.err
    assert tool("render", *SMALL, "--", "- a cat").record["prompt"] == "- a cat"


ONE_CAT = '{"prompt": "a cat", "seed": 7}'
SPELLINGS = {
    "a byte-order mark": f"\ufeff{ONE_CAT}\n",
    "indented": '{\n  "prompt": "a cat",\n  "seed": 7\n}\n',
    "in a list": f"[{ONE_CAT}]\n",
    "after lines that show nothing": f"\ufeff\n\u200b\n  \n{ONE_CAT}\n",
}


@pytest.mark.parametrize("what", SPELLINGS)
def test_a_request_in_another_spelling_is_one_image(render, what):
    ran = render(SPELLINGS[what].encode())
    assert (ran.status, ran.err) == (0, "")
    assert (ran.record["prompt"], ran.record["seed"]) == ("a cat", 7)


def test_a_byte_order_mark_is_no_part_of_a_prompt(render):
    ran = render("\ufefffirst\nsecond\n".encode(), "--lines")
    assert [one["prompt"] for one in ran.records] == ["first", "second"]


def test_an_indented_sidecar_is_passed_on_as_one_line(render):
    made = render([{"prompt": "a cat"}]).record
    again = render(Path(made["sidecar"]).read_bytes())
    assert again.record == made
    assert again.out.count(b"\n") == 1


@pytest.mark.parametrize(
    "text", ['{"prompt": "a"', "[{", "{'prompt': 'a'}", '{"prompt":"a"}\noops']
)
def test_no_hint_would_pay_for_json_as_a_prompt(render, text):
    ran = render(text.encode())
    assert ran.status == 2
    assert "--lines" not in ran.err


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("negative", "fog", "it is called negative_prompt"),
        ("widht", 64, "did you mean width?"),
        ("num_inference_steps", 4, "it is called steps"),
        ("guidance", 3.5, "it is called cfg"),
        ("model", "sdxl", "backend names the instance that has the model"),
        ("size", "large", "width and height, or size as WxH"),
    ],
)
def test_a_key_that_looks_like_a_field_is_named_once(render, key, value, hint):
    ran = render([{"prompt": "a", "id": "k", key: value}, {"prompt": "b", key: value}])
    assert ran.status == 0
    notes = [said for said in ran.err.splitlines() if "has no effect" in said]
    assert notes == [f"imagen-render: the key {key!r} has no effect (hint: {hint})"]
    if key != "model":
        assert [one[key] for one in ran.records] == [value, value]


def test_a_key_of_somebody_elses_is_not_named(render):
    ran = render(
        [{"prompt": "a", "mine": 1, "album": "toys", "tags": [], "name": "x", "title": ""}]
    )
    assert (ran.status, ran.err) == (0, "")


def test_a_size_as_text_is_read_when_neither_side_is_given(tool):
    lines = [{"prompt": "a", "size": "48x32"}, {"prompt": "b", "size": "48x32", "width": 64}]
    ran = tool("render", "--set", "steps=1", stdin=lines)
    first, second = ran.records
    assert (first["width"], first["height"], first["size"]) == (48, 32, "48x32")
    assert second["width"] == 64


@pytest.mark.parametrize(
    "line", [b'{"prompt":"a","seed":1,"seed":2}', b'{"prompt":"a","options":{"x":1,"x":2}}']
)
def test_two_equal_keys_are_refused_in_a_line_that_would_be_rendered(render, out_dir, line):
    ran = render(line + b"\n" + GOOD)
    assert ran.status == 2
    assert "stands twice in one object" in ran.err
    assert len([*out_dir.rglob("*.png")]) == 1
    passed = line.removesuffix(b"}") + b',"file":"/f.png","width":64,"height":64}\n'
    assert render(passed).out == passed


@pytest.mark.parametrize(
    ("seed", "message", "hint"),
    [
        ("-1", "seed must be from 0 to", "leave it out for a random one"),
        ("1.5", "seed must be a whole number, not 1.5", "leave it out for a random one"),
        ("1.2345678901234567e+19", "has lost digits, so it differs", "jq before 1.7 rounds"),
        ("18446744073709552000", "seed must be from 0 to", "jq before 1.7 rounds"),
    ],
)
def test_a_seed_that_cannot_be_meant_is_explained(render, seed, message, hint):
    ran = render(f'{{"prompt":"a","seed":{seed}}}\n'.encode())
    assert ran.status == 2
    error = ran.record["error"]
    assert message in error["message"]
    assert error["hint"].startswith(hint)


REFUSED: dict[str, dict[str, Any]] = {
    "no prompt": {"prompt": None},
    "an empty prompt": {"prompt": ""},
    "a blank prompt": {"prompt": " \n\t"},
    "a prompt that is a number": {"prompt": 5},
    "a prompt that is a list": {"prompt": ["a"]},
    "a prompt of 100,001 characters": {"prompt": "x" * 100_001},
    "NUL in the prompt": {"prompt": "a\0b"},
    "NUL in the negative prompt": {"negative_prompt": "\0"},
    "NUL in an id": {"id": "a\0"},
    "NUL in an option": {"options": {"a": {"b": ["\0"]}}},
    "NUL in an option's name": {"options": {"\0": 1}},
    "an empty id": {"id": ""},
    "a numeric id": {"id": 5},
    "an id of 201 characters": {"id": "x" * 201},
    "a width of 15": {"width": 15},
    "a width of 16,385": {"width": 16385},
    "a width of 1e308": {"width": 1e308},
    "a width of 4,000 digits": {"width": 10**4000},
    "a fractional height": {"height": 64.5},
    "a height that is text": {"height": "64"},
    "a height that is true": {"height": True},
    "a negative seed": {"seed": -1},
    "a seed of 2^64": {"seed": 2**64},
    "a seed that is text": {"seed": "1"},
    "a seed that is a list": {"seed": []},
    "no steps": {"steps": 0},
    "10,001 steps": {"steps": 10_001},
    "a cfg of 100.5": {"cfg": 100.5},
    "a cfg that is text": {"cfg": "high"},
    "a sampler that is an object": {"sampler": {}},
    "options that are a list": {"options": []},
    "options that are text": {"options": "x"},
    "a style that is a number": {"style": 1},
    "a backend that is a list": {"backend": []},
    "an unknown backend": {"backend": "nonesuch"},
    "an unknown style": {"style": "nonesuch"},
    "an owner that is no UUID": {"owner_user_id": "me"},
    "no images": {"options": {"images": 0}},
    "17 images": {"options": {"images": 17}},
    "a style with a path": {"style": UP},
    "a backend with a path": {"backend": UP},
    "a slug with a path": {"slug": UP},
    "a slug with a dot": {"slug": "a.png"},
    "an empty slug": {"slug": ""},
    "a slug of 300": {"slug": "x" * 300},
    "a slug that is a list": {"slug": [UP]},
    "a date with a path": {"date": UP},
    "a date that is a path": {"date": "/tmp"},
    "a date with a newline": {"date": "2026-01-02\n"},
    "a date that is none": {"date": "2026-02-30"},
    "a date that is a number": {"date": 20260102},
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_request_that_cannot_be_is_refused_before_anything_is_sent(render, out_dir, what):
    line = {"prompt": "bad", **REFUSED[what]}
    ran = render([line, {"prompt": "good"}])
    assert ran.status == 2
    failed, made = ran.records
    error = failed["error"]
    assert (error["retry"], error["billed"]) == ("never", "no")
    assert {key: failed[key] for key in line} == line, "the line travels on as it was"
    assert "submit" not in failed
    assert len(error["message"]) < 300
    assert made["prompt"] == "good"
    assert Path(made["file"]).is_file()
    assert len([*out_dir.rglob("*.png")]) == 1


MADE: dict[str, dict[str, Any]] = {
    "a path for a prompt": {"prompt": UP},
    "a prompt of dots": {"prompt": ".." * 40},
    "a prompt of 100,000 characters": {"prompt": "wörd " * 20_000},
    "a prompt of 100,000 letters in one word": {"prompt": "w" * 100_000},
    "emoji": {"prompt": "👩‍🚀 and a 🐈"},
    "right to left": {"prompt": "\u202egnp.exe"},
    "control characters": {"prompt": "a\x1b[31m\x07\r\nb"},
    "a path for an id": {"id": UP},
    "a path for a sampler": {"sampler": UP},
    "a path for a scheduler": {"scheduler": UP},
    "a path for a caller": {"caller": UP},
    "a path for a request": {"request": UP},
    "a path in the options": {"options": {UP: UP}},
    "an emoji for an id": {"id": "🐈"},
    "the largest seed": {"seed": 2**64 - 1},
    "a seed as a float": {"seed": 7.0},
    "a cfg of 100": {"cfg": 100},
    "an unknown field of a 4,000-digit number": {"mine": 10**4000},
    "an unknown field with NUL": {"mine": {"\0": "\0"}},
    "a tool's own field as a path": {"sidecar": UP, "submit": UP, "workflow": UP, "render_id": UP},
    "tools' own fields of the wrong kind": {
        "fidelity": 5,
        "warnings": "x",
        "attempts": "many",
        "backend_meta": [],
        "started_at": 7,
        "cost_usd": "free",
        "model": {},
        "sent_prompt": 3,
        "width": 5000,
    },
    "null for tools' own fields": dict.fromkeys(["date", "slug", "error", "submit", "sidecar"]),
}


@pytest.mark.parametrize("what", MADE)
def test_a_strange_request_becomes_a_correct_file(render, out_dir, what):
    line = {"prompt": "strange", **MADE[what]}
    ran = render([line])
    assert ran.status == 0
    others = [line for line in ran.err.splitlines() if "has no effect" not in line]
    assert all("the mock" in line for line in others), "only what it has no use for"
    made = ran.record
    assert Path(made["file"]).is_relative_to(out_dir)
    assert Path(made["file"]).is_file()
    assert json.loads(Path(made["sidecar"]).read_bytes()) == made
    assert made["prompt"] == line["prompt"]
    assert {name: made[name] for name in ("mine",) if name in line} == {
        name: line[name] for name in ("mine",) if name in line
    }


@pytest.mark.parametrize("depth", [200, 450, 900, 960, 990])
@pytest.mark.parametrize("name", ["mine", "options"])
def test_deep_nesting_is_passed_on_or_refused(render, name, depth):
    deep = b'{"x":' * depth + b"1" + b"}" * depth
    ran = render(b'{"prompt":"a","%s":%s}\n' % (name.encode(), deep) + GOOD)
    assert ran.status in (0, 2)
    assert ran.records[-1]["prompt"] == "good"
    if ran.status == 0:
        assert deep in ran.out
        made = ran.records[0]
        assert json.loads(Path(made["sidecar"]).read_bytes()) == made


values = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    | st.sampled_from([UP, "mock", "", [], {}, ["flat"], {"faults": "flat"}, {"faults": 5}])
    | st.sampled_from([{"tool": "imagen-render", "retry": "safe"}, {"images": 2}, 64, 2**64])
    | st.just({"backend": "mock", "handle": "h", "since": "2026-01-02T03:04:05Z"})
)  # fmt: skip
names = [*record.FIELDS, "mine"]
lines = st.dictionaries(st.sampled_from(names), values, max_size=6)


@given(st.lists(lines, min_size=20, max_size=20))
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_the_lines_are_the_last_one_is_done(tool, found):
    small = ("--set", "width=64", "--set", "height=64", "--wait", 0)
    stdin = [*({"prompt": "a", **one} for one in found), {"prompt": "last"}]
    ran = tool("render", *small, stdin=stdin, check_records=False)
    assert "Traceback" not in ran.err
    assert "fault in imagen-render itself" not in ran.err
    assert ran.status in (0, 1, 2, 75)
    assert ran.records[-1]["prompt"] == "last"
    assert Path(ran.records[-1]["file"]).is_file()
    inside = (tool.folder / "home" / "Pictures", tool.folder / "state")
    strays = [path for path in everything(tool.folder) if not path.is_relative_to(inside[0])]
    assert all(path.is_relative_to(inside[1]) for path in strays)


@pytest.mark.parametrize("prompt", ["", "  ", "x" * 100_001])
def test_a_bad_prompt_argument_is_refused(render, out_dir, prompt):
    ran = render("", prompt)
    assert ran.status == 2
    assert not out_dir.exists()


def test_a_prompt_argument_that_is_no_utf8_is_refused(render, out_dir):
    ran = render("", b"caf\xe9")
    assert (ran.status, out_dir.exists()) == (2, False)
    assert "UTF-8" in ran.err


def test_plain_lines_that_are_no_utf8_are_refused_one_by_one(render):
    ran = render(b"caf\xe9\ngood\n", "--lines")
    assert ran.status == 2
    assert ran.err.startswith("imagen-render: line 1: ")
    assert [one["prompt"] for one in ran.records] == ["good"]


def test_hostile_text_cannot_steer_the_terminal(render):
    ran = render([{"prompt": "a", "id": "\x1b[2Jx\r\n", "backend": "\x1b]0;t\x07"}])
    assert ran.status == 2
    assert len(ran.err.splitlines()) == 1
    assert not {"\x1b", "\x07", "\r"} & {*ran.err}


@pytest.mark.parametrize("option", ["--id", "--backend", "--style", "--sampler", "--negative"])
def test_a_path_in_an_option_reaches_no_file(render, option):
    assert render("", "a", option, UP).status in (0, 2)


# -- places ----------------------------------------------------------------------------------------


def unmade(ran) -> dict[str, Any]:
    """The error of a record that came to nothing: named for people, and no half file claimed."""
    assert ran.status in (1, 2, 75)
    others = [line for line in ran.err.splitlines() if "has no effect" not in line]
    assert len(others) == 1
    assert not {"file", "sidecar"} & {*ran.record}
    return ran.record["error"]


def test_a_file_where_the_output_folder_should_be(render, tool):
    (tool.folder / "taken").write_text("mine")
    error = unmade(render("", "a", "--out-dir", tool.folder / "taken"))
    assert (error["code"], error["billed"]) == ("file", "no")
    assert "taken" in error["message"]
    assert (tool.folder / "taken").read_text() == "mine"


def test_a_file_where_the_dated_folder_should_be(tool, out_dir):
    out_dir.mkdir(parents=True)
    (out_dir / "2026-01-02").write_text("mine")
    error = unmade(tool("render", *SMALL, stdin=[{"prompt": "a", "date": "2026-01-02"}]))
    assert error["code"] == "file"
    assert everything(out_dir) == {out_dir / "2026-01-02"}
    assert (out_dir / "2026-01-02").read_text() == "mine"


def as_nobody_special(needs) -> list[str]:
    """Give what takes root's power over file permissions away; nothing for other people."""
    if os.geteuid() != 0:
        return []
    return [needs("setpriv", "util-linux"), "--inh-caps=-all", "--bounding-set=-all", "--"]


@pytest.mark.parametrize("where", ["before", "inside"])
def test_a_read_only_folder(render, tool, needs, where):
    locked = tool.folder / "locked"
    (locked / "2026-01-02").mkdir(parents=True)
    for folder in (locked / "2026-01-02", locked)[: 1 if where == "inside" else 2]:
        folder.chmod(0o555)
    argv = [*as_nobody_special(needs), *tool.argv("render", *SMALL, "--out-dir", locked)]
    try:
        error = unmade(render([{"prompt": "a", "date": "2026-01-02"}], argv=argv))
    finally:
        locked.chmod(0o755)
        (locked / "2026-01-02").chmod(0o755)
    assert (error["code"], error["retry"]) == ("file", "never")
    assert "--out-dir" in error["hint"]
    assert everything(locked) == set()


def on_a_small_disk(tool, size: str, *args: object) -> list[str]:
    """Give a command line that runs render with a tmpfs of its own for its output."""
    script = """
        mount -t tmpfs -o size="$1" tmpfs disk || exit 99
        shift
        "$@"
        status=$?
        ls -A disk/* >left
        exit $status
    """
    (tool.folder / "disk").mkdir()
    render = tool.argv("render", *args, "--out-dir", "disk")
    return ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", size, *render]


def test_a_full_disk_fails_one_record_after_the_other_and_leaves_no_half_file(tool, needs):
    needs("unshare", "util-linux")
    lines = [{"prompt": f"{n}", "seed": n, "width": 512, "height": 512} for n in range(8)]
    largest = max(one["bytes"] for one in tool("render", "--out-dir=all", stdin=lines).records)
    argv = on_a_small_disk(tool, str(3 * largest + 30_000))
    ran = tool("render", argv=argv, stdin=lines)
    if ran.status == 99 or "unshare" in ran.err:
        pytest.skip(f"no mounts of our own here: {ran.err.strip()}")
    assert "Traceback" not in ran.err
    assert ran.status == 75
    made = [one for one in ran.records if "file" in one]
    failed = [one for one in ran.records if "error" in one]
    assert len(made) + len(failed) == 8
    assert made
    assert failed
    for one in failed:
        assert (one["error"]["code"], one["error"]["retry"]) == ("file", "safe")
        assert "No space left" in one["error"]["message"]
    left = [name for name in (tool.folder / "left").read_text().split() if "." in name]
    left = [name for name in left if not name.endswith(".reserved")]
    assert sorted(left) == sorted(Path(one[k]).name for one in made for k in ("file", "sidecar"))


def test_a_limit_on_file_size_leaves_no_half_file(render, tool, out_dir):
    line = {"prompt": "a", "seed": 1, "width": 4096, "height": 4096}
    size = render([line]).record["bytes"]
    shutil.rmtree(out_dir)
    assert size > 50_000, "the ledger's own files are to stay below the limit"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, size - 1))

    error = unmade(render([line], preexec_fn=limit))
    assert error["code"] == "file"
    assert [path.name for path in everything(out_dir)] == [".a-1.reserved"]
    assert render([line]).record["file"].endswith("a-1.png"), "it goes on when there is room"


def test_a_full_device_as_stdout_is_said_and_stops_the_work(tool, out_dir):
    with Path("/dev/full").open("wb") as full:
        ran = tool("render", *SMALL, stdin=GOOD * 5, stdout=full)
    assert ran.status == 1
    assert "No space left" in ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err.splitlines()) == 1
    assert len([*out_dir.rglob("*.png")]) == 1, "what nobody hears of is not made"


def test_a_full_device_as_stderr_does_not_cost_the_records(tool):
    with Path("/dev/full").open("wb") as full:
        ran = tool("render", *SMALL, stdin=b"oops\n" + GOOD, stderr=full)
    assert [one["prompt"] for one in ran.records] == ["good"]
    assert ran.status == 2


def test_a_closed_stderr_does_not_cost_the_records(tool):
    argv = ["sh", "-c", 'exec "$@" 2>&-', "sh", *tool.argv("render", *SMALL)]
    ran = tool("render", argv=argv, stdin=b"oops\n" + GOOD)
    assert (ran.status, ran.record["prompt"]) == (2, "good")


def test_a_closed_stdout_ends_it_quietly(tool, out_dir):
    argv = ["sh", "-c", 'exec "$@" >&-', "sh", *tool.argv("render", *SMALL)]
    ran = tool("render", argv=argv, stdin=GOOD * 5)
    assert (ran.status, ran.err) == (0, "")
    assert len([*out_dir.rglob("*.png")]) <= 1


# -- without a home --------------------------------------------------------------------------------


@pytest.fixture
def homeless(tool) -> dict[str, str | None]:
    """An environment whose HOME is a file, so that nothing can be made in it."""
    (tool.folder / "file").write_text("")
    xdg = dict.fromkeys(["XDG_CONFIG_HOME", "XDG_STATE_HOME"])
    return {"HOME": str(tool.folder / "file"), **xdg}


def test_without_a_home_it_says_what_to_name_and_goes_on_without_a_ledger_when_told(tool, homeless):
    refused = tool("render", "a", *SMALL, "--out-dir", "here", env=homeless)
    assert (refused.status, refused.out) == (2, b"")
    assert "$IMAGEN_LEDGER" in refused.err
    assert len(refused.err.splitlines()) == 1
    made = tool("render", "a", *SMALL, "--out-dir", "here", "--no-ledger", env=homeless)
    assert (made.status, made.err) == (0, "")
    assert Path(made.record["file"]).is_relative_to(tool.folder / "here")


def test_without_a_home_and_a_folder_it_says_where_it_could_not_write(render, homeless):
    error = unmade(render("", "a", "--quiet", "--no-ledger", env=homeless))
    assert (error["code"], error["retry"]) == ("file", "never")


def test_without_a_ledger_an_id_is_global_for_one_run_only(tool, homeless):
    args = ("a", *SMALL, "--out-dir", "here", "--id", "k", "--no-ledger")
    one, other = (tool("render", *args, env=homeless).record for _ in range(2))
    assert one["render_id"] != other["render_id"]


@pytest.mark.parametrize("env", [{"HOME": ""}, {"HOME": "relative"}, {"HOME": None}])
def test_a_home_that_is_none_is_no_traceback(tool, env):
    if env["HOME"] is not None:  # else it is the home of whoever runs the tests
        env = {**env, "XDG_CONFIG_HOME": None}
    ran = tool("render", "a", *SMALL, "--out-dir", "here", env=env)
    assert "itself" not in ran.err
    assert "Traceback" not in ran.err
    assert ran.status == 0


def test_a_ledger_that_is_none_is_named_and_left_alone(tool, out_dir):
    broken = tool.folder / "broken.sqlite3"
    broken.write_bytes(b"this is no database at all" * 100)
    ran = tool("render", "a", *SMALL, env={"IMAGEN_LEDGER": str(broken)})
    assert ran.status == 2
    assert "broken.sqlite3" in ran.err
    assert "$IMAGEN_LEDGER" in ran.err
    assert broken.read_bytes().startswith(b"this is no database")
    assert not out_dir.exists()


def test_a_ledger_that_has_no_place_is_refused_before_anything_is_sent(tool, out_dir):
    (tool.folder / "taken").write_text("")
    ran = tool("render", "a", *SMALL, env={"IMAGEN_LEDGER": str(tool.folder / "taken" / "l")})
    assert (ran.status, ran.out) == (2, b"")
    assert "$IMAGEN_LEDGER" in ran.err
    assert not out_dir.exists()


@pytest.mark.parametrize("option", ["--negative", "--id", "--sampler", "--style"])
def test_an_argument_that_is_not_utf_8_is_refused(tool, option):
    argv = ["sh", "-c", 'exec "$@" "$(printf "\\377")"', "sh", *tool.argv("render", "a", option)]
    ran = tool("render", argv=argv)
    assert ran.status == 2
    assert "not valid UTF-8" in ran.err


def test_a_line_too_deep_to_write_again_costs_itself_alone(tool):
    deep = b'{"prompt":"deep","x":' + b"[" * 980 + b"]" * 980 + b"}\n"
    ran = tool("render", *SMALL, stdin=deep + GOOD, check_records=False)
    assert [one.get("prompt") for one in ran.records][-1] == "good"
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    "fidelity", [5, {"dropped": [5]}, {"approximated": [{"field": 1}]}, {"x": []}]
)
def test_what_a_line_says_of_its_fidelity_is_believed_only_where_it_is_sound(tool, fidelity):
    error = {"tool": "imagen-render", "retry": "safe"}
    line = {
        "prompt": "a",
        "id": "k",
        "seed": 1,
        "width": 64,
        "height": 64,
        "error": error,
        "fidelity": fidelity,
    }
    ran = tool("render", stdin=[{**line, "model": 5, "started_at": 5}])
    assert (ran.status, "fidelity" in ran.record) == (0, False)
    assert ran.record["model"] == "mock"
    assert Path(ran.record["file"]).is_file()
