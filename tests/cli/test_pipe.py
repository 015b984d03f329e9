"""Read, each, write: the loop that every filter shares."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagen.cli import pipe
from imagen.cli.pipe import Line, Pipe, Report
from imagen.errors import (
    FileFault,
    ImagenError,
    Interrupted,
    ReaderGone,
    Refused,
    RenderFailed,
    Stopped,
)

Step = Callable[[dict[str, Any]], Iterable[dict[str, Any]] | None]


def run(data: bytes, step: Step) -> tuple[int, bytes, str]:
    """Run the loop over lines; give its status, and what it wrote to stdout and stderr."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        status = Pipe(Report("imagen-test")).each(pipe.read(io.BytesIO(data)), step)
    return status, out.buffer.getvalue(), err.buffer.getvalue().decode()


def untouched(_record: dict[str, Any]) -> None:
    return None


# -- what passes through ---------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


records = st.dictionaries(texts, values, max_size=5)


@given(st.lists(records, max_size=5), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_record_with_a_file_passes_byte_for_byte(found, escaped, spaced):
    separators = (", ", " : ") if spaced else (",", ":")
    lines = [
        json.dumps({**one, "file": "/f.png"}, ensure_ascii=escaped, separators=separators).encode()
        for one in found
    ]
    data = b"".join(line + b"\n" for line in lines)
    assert run(data, untouched) == (0, data, "")


@given(st.lists(st.binary(max_size=40).filter(lambda raw: b"\n" not in raw), max_size=6))
@example([b'{"a":1}', b"\xff\xfe", b"\0", b'{"a":'])
@example([b"[" * 20_000, b'{"a":"\\ud800"}', b'{"a":1e999}', b"1" * 5000])
@example([b"\r", b"\x0b\x0c", b'{"a":1}\r'])
@settings(max_examples=60, deadline=None)
def test_no_line_whatever_its_bytes_stops_the_others(lines):
    good = b'{"good":1}'
    status, out, err = run(b"\n".join([*lines, good]), untouched)
    assert out.endswith(good + b"\n")
    assert status in (0, 2)
    assert (status == 2) == bool(err)
    assert all(line.startswith("imagen-test: line ") for line in err.splitlines())
    for line in out.splitlines():
        assert isinstance(json.loads(line), dict)


def test_blank_lines_are_skipped_and_counted():
    status, out, err = run(b'\n  \n\t\r\n{"a":1}\noops\n', untouched)
    assert (status, out) == (2, b'{"a":1}\n')
    assert err.startswith("imagen-test: line 5: not JSON: ")


def test_a_line_longer_than_the_limit_is_bad_and_the_next_is_read_whole(monkeypatch):
    monkeypatch.setattr("imagen.records.record.MAX_LINE", 64)
    long = b'{"a":"' + b"x" * 500 + b'"}'
    status, out, err = run(long + b'\n{"b":1}\n', untouched)
    assert (status, out) == (2, b'{"b":1}\n')
    assert err.startswith("imagen-test: line 1: longer than ")


def test_a_line_of_just_the_limit_is_read(monkeypatch):
    line = b'{"a":"x"}\n'
    monkeypatch.setattr("imagen.records.record.MAX_LINE", len(line))
    assert run(line * 2, untouched) == (0, line * 2, "")


def test_lines_are_read_one_at_a_time():
    class Stream(io.BytesIO):
        def readline(self, *args: Any) -> bytes:
            self.asked = getattr(self, "asked", 0) + 1
            return super().readline(*args)

    stream = Stream(b'{"a":1}\n' * 5)
    next(pipe.read(stream))
    assert stream.asked == 1


def test_plain_lines_become_prompts():
    found = [*pipe.read_prompts(io.BytesIO(b" a cat \r\n\n\xff\nlast"))]
    assert [(line.where, line.record) for line in found] == [
        ("line 1", {"prompt": " a cat "}),
        ("line 3", None),
        ("line 4", {"prompt": "last"}),
    ]
    assert found[1].fault.exit_status == 2


def test_a_byte_order_mark_before_a_line_is_dropped():
    data = b'\xef\xbb\xbf{"a":1}\n{"a":2}\n\xef\xbb\xbf{"a":3}\n'
    assert run(data, untouched) == (0, data.replace(b"\xef\xbb\xbf", b""), "")
    found = [*pipe.read_prompts(io.BytesIO(b"\xef\xbb\xbffirst\r\nsecond\n"))]
    assert [line.record for line in found] == [{"prompt": "first"}, {"prompt": "second"}]


@pytest.mark.parametrize("blank", ["\ufeff", "\u200b", " \ufeff\u200b\t"])
def test_a_line_that_shows_nothing_is_blank(blank):
    data = f'{blank}\n{{"a":1}}\n{blank}\n'.encode()
    assert run(data, untouched) == (0, b'{"a":1}\n', "")
    found = [*pipe.read_prompts(io.BytesIO(f"{blank}\r\na cat\n{blank}".encode()))]
    assert [line.record for line in found] == [{"prompt": "a cat"}]


# -- JSON that spans lines -------------------------------------------------------------------------


@given(st.lists(records, min_size=1, max_size=5), st.sampled_from([1, 4, "\t"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_each_indented_object_leaves_as_one_line(found, indent, in_a_list):
    texts = [json.dumps({"a": 0, **one}, indent=indent, ensure_ascii=False) for one in found]
    if in_a_list:
        whole = json.dumps([{"a": 0, **one} for one in found], indent=indent, ensure_ascii=False)
        texts = [whole]
    status, out, err = run("\n".join(texts).encode(), untouched)
    assert (status, err) == (0, "")
    assert [json.loads(line) for line in out.splitlines()] == [{"a": 0, **one} for one in found]


SPANNING = {
    "one list on one line": (b'[{"a":1},{"a":2}]\n', [1, 2]),
    "a list of lines": (b'[\n{"a":1},\n{"a":2}\n]\n', [1, 2]),
    "lines cut out of a list": (b'{"a":1},\n{"a":2}', [1, 2]),
    "several on a line": (b'{"a":1} {"a":2}\n{"a":3}', [1, 2, 3]),
    "brackets in text": (b'{\n"a":1, "b":"}]{[\\"}"\n}', [1]),
    "lines after it": (b'{\n"a":1\n}\n\n{"a":2}\n  {"a":3}\n', [1, 2, 3]),
    "a mark before it": (b'\xef\xbb\xbf{\n"a":1\n}\n', [1]),
    "an empty list": (b"[]\n", []),
    "CRLF": (b'{\r\n  "a": 1\r\n}\r\n', [1]),
}


@pytest.mark.parametrize("what", SPANNING)
def test_an_object_that_spans_lines_is_one_record(what):
    data, numbers = SPANNING[what]
    status, out, err = run(data, untouched)
    assert (status, err) == (0, "")
    assert [json.loads(line)["a"] for line in out.splitlines()] == numbers


def test_a_number_that_spans_lines_keeps_its_spelling():
    assert run(b'{\n "a": 1.50e+3\n}\n', untouched) == (0, b'{"a": 1.50e+3}\n', "")


BROKEN = {
    "does not end": (b'{\n"a":1,\n"b":2\n{"a":2}\n', "line 1: not JSON: the object that begins"),
    "does not end, at the end": (b'{"a":2}{\n"a":1', "line 1: not JSON: the object that begins"),
    "is wrong": (b'{\n"a":oops\n}\n{"a":2}\n', "line 1: not JSON: Expecting value at line 2 of"),
    "is no object": (b'[7,{"a":2}]\n', "line 1: not a JSON object: a number"),
    "text between": (b'{\n"a":2\n}\noops', "line 4: not JSON: Expecting value at column 1"),
    "a list does not end": (b'[\n{"a":2},\n', "line 1: not JSON: the list that begins here"),
    "single quotes": (b"{'a':1}\n{\"a\":2}\n", "line 1: not JSON: Expecting property name"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_object_that_spans_lines_and_is_wrong_is_one_error(what):
    data, error = BROKEN[what]
    status, out, err = run(data, untouched)
    assert (status, json.loads(out)) == (2, {"a": 2})
    assert err.startswith(f"imagen-test: {error}")
    assert len(err.splitlines()) == 1


def test_an_object_that_grows_past_the_limit_is_given_up_and_the_next_line_is_read(monkeypatch):
    monkeypatch.setattr("imagen.records.record.MAX_LINE", 64)
    status, out, err = run(b"{\n" + b'"a":1,\n' * 40 + b'"a":1}\n{"b":1}\n', untouched)
    assert (status, out) == (2, b'{"b":1}\n')
    assert err.startswith("imagen-test: line 1: longer than ")
    assert len(err.splitlines()) == 1


def test_an_object_that_spans_lines_is_out_before_the_next_line_is_in():
    class Stream(io.BytesIO):
        lines = 0

        def readline(self, *args: Any) -> bytes:
            self.lines += 1
            return super().readline(*args)

    stream = Stream(b'{\n"a":1\n}\n{"a":2}\n')
    assert next(pipe.read(stream)).record == {"a": 1}
    assert stream.lines == 3


@pytest.mark.parametrize(
    "data", [b"{'a': 1}\n", b"[\n", '{"a":1}'.encode("utf-16"), b'{"a":1}\nx\n']
)
def test_text_that_begins_like_json_is_never_called_plain_text(data):
    lines = pipe.read(io.BytesIO(data), plain="--lines")
    assert [line.fault.hint for line in lines if line.fault and line.fault.hint == "--lines"] == []


def test_text_that_begins_otherwise_is_called_plain_text():
    (line,) = pipe.read(io.BytesIO(b"a cat\n"), plain="--lines")
    assert line.fault is not None
    assert line.fault.hint == "--lines"


# -- what a step makes of a line -------------------------------------------------------------------


def failing(fault: ImagenError | OSError) -> Step:
    def step(line: dict[str, Any]) -> Iterable[dict[str, Any]]:
        if "bad" in line:
            raise fault
        yield {**line, "done": 1}

    return step


def test_each_record_is_out_before_the_next_line_is_read():
    written: list[bytes] = []

    def lines() -> Iterable[Line]:
        for number in range(3):
            assert len(written) == number
            yield Line("x", record={"n": number})

    class Out(Pipe):
        def write(self, made: Any) -> None:
            written.append(made)

    assert Out(Report("t")).each(lines(), lambda line: [line]) == 0
    assert len(written) == 3


def test_one_line_may_become_none_or_many():
    status, out, _ = run(b'{"n":0}\n{"n":3}\n', lambda line: [line] * line["n"])
    assert (status, out) == (0, b'{"n":3}\n' * 3)


def test_a_fault_travels_on_in_its_record_and_the_others_are_done():
    fault = RenderFailed("it broke", hint="mend it")
    status, out, err = run(b'{"id":"k","bad":1}\n{"n":2}\n', failing(fault))
    failed, done = map(json.loads, out.splitlines())
    assert failed == {
        "id": "k",
        "bad": 1,
        "error": {
            "tool": "imagen-test",
            "code": "render_failed",
            "message": "it broke",
            "hint": "mend it",
            "billed": "no",
            "retry": "never",
        },
    }
    assert done == {"n": 2, "done": 1}
    assert err == "imagen-test: k: it broke (hint: mend it)\n"
    assert status == 1


def test_a_fault_may_bring_the_record_as_far_as_it_came():
    fault = RenderFailed("it broke", record={"id": "k", "seed": 5})
    _, out, _ = run(b'{"id":"k","bad":1}\n', failing(fault))
    assert json.loads(out)["seed"] == 5


def test_what_was_made_before_the_fault_is_out():
    def step(line: dict[str, Any]) -> Iterable[dict[str, Any]]:
        yield {"id": "k"}
        raise RenderFailed

    _, out, _ = run(b'{"id":"k"}\n', step)
    assert ["error" in json.loads(line) for line in out.splitlines()] == [False, True]


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Refused("no"), 2),
        (RenderFailed("no"), 1),
        (FileFault("no"), 75),
        (OSError(28, "No space left on device"), 75),
        (PermissionError(13, "Permission denied"), 2),
    ],
)
def test_the_status_tells_what_kind_of_fault_it_was(fault, status):
    found, out, err = run(b'{"bad":1}\n{"n":1}\n', failing(fault))
    assert found == status
    assert len(out.splitlines()) == 2
    assert len(err.splitlines()) == 1


def test_a_pending_record_is_temporary():
    assert run(b'{"n":1}\n', lambda line: [{**line, "pending": {}}])[0] == 75


def test_a_record_that_came_in_pending_or_failed_does_not_count():
    data = b'{"pending":{}}\n{"error":{}}\n'
    assert run(data, untouched) == (0, data, "")


def test_the_signal_that_interrupted_goes_on_once_the_record_is_out():
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    fault = Interrupted(record={"id": "k"}, stopped=Stopped(130))
    with redirect_stdout(out), redirect_stderr(io.TextIOWrapper(io.BytesIO())):
        lines = [Line("x", record={"bad": 1}), Line("y", record={"n": 2})]
        with pytest.raises(Stopped):
            Pipe(Report("t")).each(lines, failing(fault))
    (record,) = map(json.loads, out.buffer.getvalue().splitlines())
    assert record["error"]["code"] == "interrupted"


def test_a_fault_of_our_own_making_costs_one_record_and_is_named(monkeypatch):
    def step(line: dict[str, Any]) -> Iterable[dict[str, Any]]:
        if line["n"] == 1:
            raise TypeError("a bug")
        return [line]

    status, out, err = run(b'{"n":1}\n{"n":2}\n', step)
    assert status == 1
    assert "TypeError: a bug" in err
    assert [one.get("error", {}).get("code") for one in map(json.loads, out.splitlines())] == [
        "internal",
        None,
    ]
    monkeypatch.setenv("IMAGEN_TRACEBACK", "1")
    with pytest.raises(TypeError):
        run(b'{"n":1}\n', step)


@pytest.mark.parametrize(("raw", "hints"), [(b"a cat\n", True), (b'{"prompt":\n', False)])
def test_plain_text_gets_the_tools_own_hint_and_broken_json_does_not(raw, hints):
    (line,) = pipe.read(io.BytesIO(raw), "try --lines")
    assert line.fault is not None
    assert (line.fault.hint == "try --lines") == hints


# -- words for people ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"id": "cover"}, "cover"),
        ({"id": "3f2a0000-0000-4000-8000-000000000000"}, "3f2a0000…"),
        ({"id": "x" * 60}, "x" * 39 + "…"),
        ({"id": 5}, "line 9"),
        ({"id": ""}, "line 9"),
        ({}, "line 9"),
        (None, "line 9"),
    ],
)
def test_a_record_is_named_by_its_id_else_by_its_line(record, name):
    assert pipe.name_of(record, "line 9") == name


def said(report: Report, say: Callable[[Report], None]) -> bytes:
    err = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with redirect_stderr(err):
        say(report)
        return err.buffer.getvalue()


def test_control_characters_are_shown_and_not_obeyed():
    text = said(Report("t"), lambda report: report.say("a\x1b[2J\r\nb\u202e"))
    assert text == b"t: a\\x1b[2J\\r\\nb\\u202e\n"


def test_text_that_the_terminal_cannot_show_is_still_said():
    assert said(Report("t"), lambda report: report.say("\udcff")).startswith(b"t: ")


@pytest.mark.parametrize(
    ("quiet", "verbose", "shown"),
    [
        (False, False, ["say", "note"]),
        (True, False, ["say"]),
        (False, True, ["say", "note", "detail"]),
    ],
)
def test_quiet_and_verbose(quiet, verbose, shown):
    report = Report("t", quiet, verbose)
    for name in ("say", "note", "detail"):
        assert bool(said(report, lambda report, name=name: getattr(report, name)("x"))) == (
            name in shown
        )


def test_a_stream_that_is_closed_is_a_reader_that_is_gone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(ReaderGone):
        pipe.write_out(b"x")


@pytest.fixture
def between():
    """Stand between two pipes: what gives us lines, our stdin, our stdout, and what reads it."""
    out, before = os.pipe()
    after, stdout = os.pipe()
    with (
        open(out, "rb", closefd=False) as stdin,
        open(stdout, "w", encoding="utf-8", closefd=False) as ours,
    ):
        yield before, stdin, ours, after
    for descriptor in (out, before, after, stdout):
        with suppress(OSError):
            os.close(descriptor)


def test_in_a_pipeline_of_imagen_listen_a_tool_that_waits_ends_with_its_reader(
    between, monkeypatch
):
    before, stdin, stdout, after = between
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("IMAGEN_ONE_LINE", "1")
    lines = pipe.read(stdin)
    os.write(before, b'{"id":"a"}\n')
    os.close(after)
    assert next(lines).record == {"id": "a"}, "what is there comes first"
    with pytest.raises(ReaderGone):
        next(lines)


def test_elsewhere_it_waits_for_what_may_be_on_its_way(between, monkeypatch):
    before, stdin, stdout, after = between
    monkeypatch.setattr(sys, "stdout", stdout)
    os.close(after)
    lines = pipe.read(stdin)
    threading.Timer(0.2, os.write, (before, b'{"id":"late"}\n')).start()
    assert next(lines).record == {"id": "late"}


def test_who_is_idle_is_asked_again_after_as_many_seconds_as_it_says(between):
    before, stdin, *_ = between
    says: list[float | None] = [0.05, 0.05, None]

    def idle() -> float | None:
        said = says.pop(0)
        if said is None:
            os.write(before, b"{}\n")
        return said

    assert next(pipe.read(stdin, idle=idle)).record == {}
    assert says == []


def test_stdin_waits_unless_it_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert pipe.stdin_waits()
    monkeypatch.setattr(sys, "stdin", None)
    assert not pipe.stdin_waits()
