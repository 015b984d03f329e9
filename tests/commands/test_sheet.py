"""imagen-sheet: many images on one picture, and from an answer like B3 back to the image."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from PIL import Image, ImageFont
from PIL.PngImagePlugin import PngInfo

from imagen.records import record

COLOURS = [(200, 30, 30), (20, 160, 40), (30, 40, 210), (210, 200, 20), (140, 20, 150), (9, 9, 9)]
SMALL = ("--cell", 48, "--output", "sheet.png")
schema = Draft202012Validator(record.schema("record"))


def paint(path: Path, colour=COLOURS[0], size=(96, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def images(tool) -> list[Path]:
    """Six plain images, without sidecars."""
    return [paint(tool.folder / "in" / f"{n}.png", one) for n, one in enumerate(COLOURS)]


@pytest.fixture
def lines(images) -> list[dict]:
    """The six as records."""
    return [
        {"id": f"i{n}", "prompt": f"colour {n}", "seed": n, "file": str(path)}
        for n, path in enumerate(images)
    ]


def pick(tool, place: str, name: str = "sheet.png"):
    return tool("sheet", "--pick", place, name)


# -- from records to a sheet -----------------------------------------------------------------------


def test_records_become_one_picture_and_its_record(tool, lines):
    ran = tool("sheet", *SMALL, stdin=lines)
    made = ran.record
    assert (ran.status, ran.err) == (0, "")
    schema.validate(made)
    assert made["file"] == str(tool.folder / "sheet.png")
    assert made["members"] == [one["id"] for one in lines]
    assert json.loads(Path(made["sidecar"]).read_bytes()) == made
    with Image.open(made["file"]) as picture:
        assert picture.size == (made["width"], made["height"])
    assert Path(made["file"]).stat().st_size == made["bytes"]


def test_each_cells_box_holds_its_members_pixels(tool, lines):
    made = tool("sheet", *SMALL, "--title", "Six", stdin=lines).record
    assert [cell["address"] for cell in made["cells"]] == ["A1", "B1", "C1", "A2", "B2", "C2"]
    with Image.open(made["file"]) as picture:
        for cell, line, colour in zip(made["cells"], lines, COLOURS, strict=True):
            left, top, width, height = cell["box"]
            assert (cell["id"], cell["file"]) == (line["id"], line["file"])
            assert picture.getpixel((left + width // 2, top + height // 2)) == colour
            inside = picture.crop((left, top + 8, left + width, top + height - 8))
            assert inside.getcolors() == [(width * (height - 16), colour)], "and nothing else"


def test_without_a_name_it_is_dated_and_never_replaces_one(tool, images, out_dir):
    first, second = (tool("sheet", images[0]).record["file"] for _ in range(2))
    assert Path(first).parent.parent == out_dir
    assert [Path(one).name for one in (first, second)] == ["sheet.png", "sheet-2.png"]


@pytest.mark.parametrize("columns", [1, 2, 6, 100])
def test_columns_are_as_told(tool, lines, columns):
    made = tool("sheet", *SMALL, "--columns", columns, stdin=lines).record
    lefts = {cell["box"][0] for cell in made["cells"]}
    assert len(lefts) == min(columns, 6)


def test_a_cell_has_the_pixels_told(tool, images):
    made = tool("sheet", images[0], "--cell", 100, "--output", "x.png").record
    assert made["cells"][0]["box"][2:] == [100, 100]


def test_labels_and_title_are_drawn_and_told(tool, lines):
    plain = tool("sheet", *SMALL, "--label", "nothing", stdin=lines).record
    full = tool("sheet", *SMALL, "--force", "--label", "prompt, seed,file", stdin=lines).record
    assert full["height"] > plain["height"]
    titled = tool("sheet", *SMALL, "--force", "--title", "Six 🐈 قط", stdin=lines).record
    assert titled["title"] == "Six 🐈 قط"


def test_differences_leave_out_what_all_share(tool, lines):
    same = [{**line, "prompt": "one prompt", "seed": 3} for line in lines]
    both = tool("sheet", *SMALL, stdin=same).record
    none = tool("sheet", *SMALL, "--force", "--differences", stdin=same).record
    assert none["height"] < both["height"]
    lowest = max(cell["box"][1] + cell["box"][3] for cell in none["cells"])
    assert none["height"] - lowest > 8, "the addresses are still there"


# -- images named ----------------------------------------------------------------------------------


def test_images_are_named_with_and_without_sidecars(tool, images):
    images[0].with_suffix(".json").write_text('{"id": "zero", "prompt": "red", "file": "/old"}')
    images[1].with_suffix(".json").write_text("{broken")
    made = tool("sheet", *SMALL, *images[:3]).record
    assert made["members"] == ["zero", "1", "2"]
    assert [cell["file"] for cell in made["cells"]] == [str(one) for one in images[:3]]
    assert pick(tool, "A1").record["prompt"] == "red"


def test_a_folder_gives_its_images_by_name_but_no_sheet(tool, images):
    (images[0].parent / "notes.txt").write_text("no image")
    paint(images[0].parent / ".hidden.png")
    first = tool("sheet", "in", "--output", "in/a sheet.png").record
    assert first["members"] == ["0", "1", "2", "3", "4", "5"]
    again = tool("sheet", "in", "--output", "in/a sheet.png", "--force").record
    assert again["members"] == first["members"]


def test_names_come_in_ended_by_nul(tool, images):
    odd = paint(tool.folder / "a\nb ü.png")
    listed = b"\0".join(os.fsencode(path) for path in [odd, *images[:2]])
    made = tool("sheet", *SMALL, "-0", stdin=listed).record
    assert [cell["file"] for cell in made["cells"]] == [str(one) for one in [odd, *images[:2]]]
    folder = tool("sheet", *SMALL, "--force", "-0", stdin=b"in\0").record
    assert len(folder["members"]) == 6


def test_names_come_from_one_place(tool, images):
    ran = tool("sheet", *SMALL, "-0", images[0], stdin=b"x\0")
    assert (ran.status, ran.out) == (2, b"")


@pytest.mark.parametrize("args", [[], ["-0"], ["empty"]])
def test_nothing_gives_no_sheet(tool, args):
    (tool.folder / "empty").mkdir()
    ran = tool("sheet", *SMALL, *args)
    assert (ran.status, ran.out) == (2, b"")
    assert "nothing to put on a sheet" in ran.err
    assert not (tool.folder / "sheet.png").exists()


# -- what cannot be shown --------------------------------------------------------------------------


def test_failed_and_pending_records_get_a_cell_and_do_not_count(tool, lines):
    error = {"tool": "imagen-render", "code": "x", "message": "no luck", "billed": "no"}
    lines[0] = {"id": "i0", "prompt": "a", "error": {**error, "retry": "safe"}}
    pending = {"backend": "m", "handle": "h", "since": "2026-01-01T00:00:00Z"}
    lines[1] = {"id": "i1", "prompt": "b", "pending": pending}
    ran = tool("sheet", *SMALL, stdin=lines)
    assert (ran.status, ran.err, len(ran.record["cells"])) == (0, "", 6)
    assert "file" not in ran.record["cells"][0]
    assert pick(tool, "A1").record == lines[0]


@pytest.mark.parametrize("spoil", ["missing", "corrupt", "empty", "truncated"])
def test_an_image_that_cannot_be_shown_fails_here_and_the_sheet_is_made(tool, lines, spoil):
    path = Path(lines[2]["file"])
    data = path.read_bytes()
    path.write_bytes({"corrupt": b"x" * 99, "truncated": data[:60]}.get(spoil, b""))
    if spoil == "missing":
        path.unlink()
    ran = tool("sheet", *SMALL, stdin=lines)
    assert ran.status == 1
    assert ran.err.startswith("imagen-sheet: i2: ")
    assert len(ran.err.splitlines()) == 1
    assert len(ran.record["cells"]) == 6
    with Image.open(ran.record["file"]) as picture:
        left, top, *_ = ran.record["cells"][2]["box"]
        assert picture.getpixel((left + 1, top + 1)) == (0x5C, 0x2B, 0x29)


def test_a_bomb_is_refused_by_the_limit(tool, images):
    head = b"\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0"
    chunk = b"IHDR" + head
    crc = zlib.crc32(chunk).to_bytes(4)
    (tool.folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + crc)
    data = zlib.compress(b"\0" * 999)
    with (tool.folder / "bomb.png").open("ab") as stream:
        body = b"IDAT" + data
        stream.write(len(data).to_bytes(4) + body + zlib.crc32(body).to_bytes(4))
    ran = tool("sheet", *SMALL, images[0], "bomb.png")
    assert ran.status == 1
    assert "60000×60000 pixels; --max-pixels allows 100000000" in ran.err
    own = tool("sheet", *SMALL, "--force", "--max-pixels", 6000, *images[:2])
    assert own.status == 1
    assert own.err.count("--max-pixels allows 6000") == 2


def test_a_bad_line_does_not_stop_the_others(tool, lines):
    ran = tool("sheet", *SMALL, stdin=b"{broken\n" + record.line(lines[0]))
    assert ran.status == 2
    assert len(ran.record["cells"]) == 1


def test_records_of_any_shape_do_no_harm(tool, lines):
    odd = [
        {"file": 5, "id": None, "error": "x", "cloud": 3},
        {"file": {}, "prompt": ["a"], "seed": {"b": 1}, "fidelity": [1], "latency_ms": "soon"},
        {"file": "", "pending": 1, "error": {"message": [1]}},
        {"file": "/dev/null", "members": 3, "cells": "x", "fidelity": {"dropped": [1]}},
        {},
    ]
    ran = tool("sheet", *SMALL, "--label", ",".join(record.FIELDS), stdin=odd, check_records=False)
    assert "itself" not in ran.err
    assert len(ran.record["cells"]) == 5
    assert len(tool("sheet", "--list", "sheet.png", check_records=False).records) == 5


def test_a_name_that_is_no_unicode_is_named_and_left_out(tool, images):
    odd = os.fsencode(tool.folder) + b"/n\xff.png"
    shutil.copy(images[0], odd)
    ran = tool("sheet", *SMALL, odd, images[1])
    assert ran.status == 2
    assert "not UTF-8" in ran.err
    assert "itself" not in ran.err
    assert ran.record["members"] == ["1"]


def test_a_name_that_is_no_unicode_in_a_folder_is_left_out_too(tool, images):
    folder = tool.folder / "album"
    folder.mkdir()
    shutil.copy(images[0], os.fsencode(folder) + b"/n\xff.png")
    shutil.copy(images[1], folder / "1.png")
    ran = tool("sheet", *SMALL, folder)
    assert (ran.status, ran.record["members"]) == (2, ["1"])
    assert r"n\xff.png: the path is not UTF-8" in ran.err


# -- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    ["قطة في وعاء", "金魚鉢の中の猫", "🐈‍⬛👩‍👩‍👧", "a\x1b[31m\x07\x7f\u202eb\nc", "W" * 100_000],
)
def test_any_prompt_is_labelled(tool, lines, prompt):
    ran = tool("sheet", *SMALL, "--title", prompt[:999], stdin=[{**lines[0], "prompt": prompt}])
    assert (ran.status, ran.err) == (0, "")
    assert pick(tool, "A1").record["prompt"] == prompt


def test_a_font_is_used(tool, lines):
    (tool.folder / "own.ttf").write_bytes(ImageFont.load_default(9).font_bytes)
    assert tool("sheet", *SMALL, "--font", "own.ttf", stdin=lines).status == 0


@pytest.mark.parametrize("font", ["none.ttf", "bad.ttf", "."])
def test_a_bad_font_is_refused_and_nothing_is_written(tool, lines, font):
    (tool.folder / "bad.ttf").write_text("no font")
    ran = tool("sheet", *SMALL, "--font", font, stdin=lines)
    assert (ran.status, ran.out) == (2, b"")
    assert "no font that can be read" in ran.err
    assert not [*tool.folder.glob("*sheet*")]
    assert not [*tool.folder.glob(".*")], "no reservation is left either"


# -- the output ------------------------------------------------------------------------------------


def test_an_output_that_exists_is_refused_without_force(tool, lines):
    (tool.folder / "sheet.png").write_text("precious")
    refused = tool("sheet", *SMALL, stdin=lines)
    assert (refused.status, refused.out) == (2, b"")
    assert "exists" in refused.err
    assert (tool.folder / "sheet.png").read_text() == "precious"
    assert tool("sheet", *SMALL, "--force", stdin=lines).status == 0
    with Image.open(tool.folder / "sheet.png") as picture:
        assert picture.format == "PNG"


def test_a_folder_that_is_not_there_is_said(tool, lines):
    ran = tool("sheet", "--output", "no/such/sheet.png", stdin=lines)
    assert ran.status == 2
    assert "no/such" in ran.err


# -- from an answer back to the image --------------------------------------------------------------


def test_what_is_picked_is_the_members_record(tool, lines):
    private = {"caller": "me", "owner_user_id": "ac6c9501-3757-4a6d-8b97-2cff4288382b"}
    cloud = {"path": "p", "signed_url": "https://example.com/secret"}
    full = [{**line, **private, "cloud": cloud, "album": {"x": [1.5]}} for line in lines]
    tool("sheet", *SMALL, stdin=full)
    ran = pick(tool, "b2")
    assert ran.status == 0
    assert ran.record == {**lines[4], "cloud": {"path": "p"}, "album": {"x": [1.5]}}
    data = (tool.folder / "sheet.png").read_bytes()
    with Image.open(tool.folder / "sheet.png") as picture:
        texts = picture.text
    assert len(texts) == data.count(b"iTXtimagen:") == 6
    assert json.loads(texts["imagen:A1"])["file"] == "in/0.png"
    assert not [text for text in texts.values() if "secret" in text or "caller" in text]


def test_several_are_picked_in_the_order_asked_and_all_are_listed(tool, lines):
    tool("sheet", *SMALL, stdin=lines)
    ran = tool("sheet", "--pick", "C1", "--pick", "A2", "sheet.png")
    assert [one["id"] for one in ran.records] == ["i2", "i3"]
    assert tool("sheet", "--list", "sheet.png").records == lines


@pytest.mark.parametrize("option", [["--list"], ["--pick", "A1"]])
def test_picking_does_not_read_stdin(tool, lines, option):
    tool("sheet", *SMALL, stdin=lines)
    child = tool.start("sheet", *option, "sheet.png")  # its stdin stays open and never ends
    assert child.wait(20) == 0
    assert json.loads(child.stdout.readline())["id"] == "i0"


def test_four_more_like_the_one_picked(tool):
    lines = [{"id": f"r{n}", "prompt": f"p {n}", "seed": n} for n in range(3)]
    rendered = tool("render", "--size", "64x64", stdin=lines)
    tool("sheet", *SMALL, stdin=rendered.out)
    more = tool("render", "--count", 4, stdin=pick(tool, "B1").out)
    assert more.status == 0
    assert [one["prompt"] for one in more.records] == ["p 1"] * 4
    assert {one["request"] for one in more.records} == {"r1"}
    assert len({one["seed"] for one in more.records}) == 4
    assert all(Path(one["file"]).is_file() for one in more.records)


def test_what_is_picked_is_finished_and_passes_through_render(tool):
    rendered = tool("render", "a cat", "--size", "64x64")
    tool("sheet", *SMALL, stdin=rendered.out)
    shown = {name: one for name, one in rendered.record.items() if name != "caller"}
    assert tool("render", stdin=pick(tool, "A1").out).record == shown


def test_a_sheet_moved_with_its_images_stays_traceable(tool, lines):
    old = tool.folder / "old"
    shutil.move(tool.folder / "in", old / "in")
    for line in lines:
        line["file"] = str(old / "in" / Path(line["file"]).name)
    (old / "sheets").mkdir()
    tool("sheet", "--cell", 48, "--output", "old/sheets/s.png", stdin=lines)
    shutil.move(old, tool.folder / "new")
    found = pick(tool, "C2", "new/sheets/s.png").record
    assert found["file"] == str(tool.folder / "new" / "in" / "5.png")
    assert Path(found["file"]).is_file()


def test_a_sheet_in_a_linked_folder_is_traceable(tool, lines):
    (tool.folder / "far" / "away").mkdir(parents=True)
    (tool.folder / "link").symlink_to("far/away")
    tool("sheet", "--cell", 48, "--output", "link/s.png", stdin=lines)
    assert pick(tool, "A1", "link/s.png").record["file"] == lines[0]["file"]


def test_a_sheet_of_much_text_is_read(tool, images):
    text = [f"{n} {os.urandom(40_000).hex()} " for n in range(30)]  # 2.4 MB that hardly compress
    lines = [{"id": str(n), "prompt": one, "file": str(images[0])} for n, one in enumerate(text)]
    lines[7]["prompt"] = "é" * 100_000
    assert tool("sheet", *SMALL, stdin=lines).status == 0
    assert [one["prompt"] for one in tool("sheet", "--list", "sheet.png").records] == [
        one["prompt"] for one in lines
    ]


# -- hostile sheets --------------------------------------------------------------------------------


def hostile(path: Path, *texts: str, key: str = "imagen:A1") -> None:
    chunks = PngInfo()
    for text in texts:
        chunks.add_itxt(key, text, zip=True)
    Image.new("RGB", (9, 9)).save(path, pnginfo=chunks)


@pytest.mark.parametrize("option", [["--list"], ["--pick", "A1"]])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"x"',
        '{"a": NaN}',
        '{"a": "\\ud800"}',
        "[" * 100_000,
        "9" * 5000,
        "x" * 2**25,
    ],
    ids=["empty", "cut", "list", "string", "nan", "surrogate", "deep", "digits", "over the limit"],
)
def test_a_sheet_with_a_broken_map_is_refused(tool, option, text):
    hostile(tool.folder / "x.png", text)
    ran = tool("sheet", *option, "x.png")
    assert (ran.status, ran.out) == (1, b"")
    assert len(ran.err.splitlines()) == 1
    assert "itself" not in ran.err


@pytest.mark.parametrize(
    "data",
    [b"", b"\x89PNG\r\n\x1a\n", b"no png" * 99, b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n" * 99],
)
def test_what_is_no_sheet_is_refused(tool, data):
    (tool.folder / "x.png").write_bytes(data)
    ran = tool("sheet", "--pick", "A1", "x.png")
    assert (ran.status, ran.out) == (1, b"")
    assert "no sheet of imagen" in ran.err


@pytest.mark.parametrize("size", [20, 60, 120])
def test_a_truncated_sheet_is_refused_or_told_right(tool, lines, size):
    tool("sheet", *SMALL, stdin=lines)
    path = tool.folder / "sheet.png"
    path.write_bytes(path.read_bytes()[:size])
    ran = pick(tool, "A1")
    assert "itself" not in ran.err
    assert ran.status == 1


def test_a_plain_image_is_no_sheet(tool, images):
    ran = tool("sheet", "--list", images[0])
    assert (ran.status, ran.out) == (1, b"")


def test_hostile_keys_and_paths_are_shown_and_not_obeyed(tool):
    hostile(tool.folder / "x.png", '{"file": "a\\u0000b", "prompt": "p"}', key="imagen:\x1b[31mA1")
    ran = tool("sheet", "--pick", "B1", "x.png")
    assert ran.status == 2
    assert "\x1b" not in ran.err
    assert tool("sheet", "--list", "x.png").record["prompt"] == "p"


@pytest.mark.parametrize("place", ["D1", "A3", "AAAA9"])
def test_a_cell_that_is_not_there_is_said(tool, lines, place):
    tool("sheet", *SMALL, stdin=lines)
    ran = pick(tool, place)
    assert (ran.status, ran.out) == (2, b"")
    assert f"no cell {place}" in ran.err
    assert "the last one is C2" in ran.err


@pytest.mark.parametrize("place", ["", "3B", "cat", "A0", "../A1", "A1:B2"])
def test_an_address_that_is_none_is_said(tool, lines, place):
    tool("sheet", *SMALL, stdin=lines)
    ran = pick(tool, place)
    assert (ran.status, ran.out) == (2, b"")
    assert "no address of a cell" in ran.err


@pytest.mark.parametrize("args", [["--list"], ["--pick", "A1"], ["--list", "a.png", "b.png"]])
def test_one_sheet_must_be_named(tool, args):
    assert tool("sheet", *args).status == 2


@pytest.mark.parametrize("name", ["none.png", "."])
def test_a_sheet_that_cannot_be_read_is_said(tool, name):
    ran = pick(tool, "A1", name)
    assert ran.status == 2
    assert "cannot read the sheet" in ran.err


# -- its peers agree -------------------------------------------------------------------------------


def test_imagemagick_reads_the_sheet(tool, lines, needs):
    made = tool("sheet", *SMALL, stdin=lines).record
    identify = needs("identify", "imagemagick")
    said = subprocess.run(
        [identify, "-format", "%m %w %h", made["file"]], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"PNG {made['width']} {made['height']}"


def test_a_taken_output_is_refused_before_a_line_is_read(tool):
    (tool.folder / "x.png").write_bytes(b"mine")
    endless = ["sh", "-c", 'yes \'{"file":"a.png"}\' | "$@"', "sh"]
    ran = tool("sheet", argv=[*endless, *tool.argv("sheet", "--output", "x.png")])
    assert ran.status == 2
    assert "exists" in ran.err


def test_a_file_that_is_not_there_is_refused_and_no_sheet_is_made(tool):
    ran = tool("sheet", "nosuch.pgn", "--output", "x.png")
    assert (ran.status, "no such file: nosuch.pgn" in ran.err) == (2, True)
    assert not (tool.folder / "x.png").exists()


def test_a_folder_of_dated_folders_is_looked_into(tool, out_dir):
    tool("render", "a cat", "--size", "64x64", "--count", "3")
    ran = tool("sheet", str(out_dir), "--output", "x.png")
    assert len(ran.record["members"]) == 3


# -- limits, and files that others put there -------------------------------------------------------


def test_a_sheet_that_is_too_large_is_refused_before_anything_is_written(tool):
    lines = [{"id": str(number), "error": {"code": "x"}} for number in range(3000)]
    ran = tool("sheet", "--output", "sheet.png", stdin=lines)
    assert (ran.status, ran.out) == (2, b"")
    assert "at most 160000000 fit" in ran.err
    assert [*tool.folder.glob("*sheet*")] == []


def test_text_in_sum_is_refused_when_the_sheet_is_written(tool, images):
    lines = [{"id": str(n), "note": "x" * 9_000_000, "file": str(images[0])} for n in range(4)]
    ran = tool("sheet", *SMALL, stdin=lines)
    assert (ran.status, ran.out) == (2, b"")
    assert "32 MiB" in ran.err
    assert [*tool.folder.glob("*sheet*")] == []


def test_a_small_file_that_unpacks_to_very_much_is_refused(tool):
    hostile(tool.folder / "x.png", "[" + "[]," * 5_000_000 + "0]")
    ran = tool("sheet", "--list", "x.png")
    assert (ran.status, ran.out) == (1, b"")
    assert "values" in ran.err


@pytest.mark.parametrize("args", [["pipe.png"], ["."], ["zero.png"], ["--pick", "A1", "pipe.png"]])
def test_pipes_and_devices_keep_nobody_waiting(tool, args):
    os.mkfifo(tool.folder / "pipe.png")
    os.mkfifo(tool.folder / "cat.json")
    (tool.folder / "zero.png").symlink_to("/dev/zero")
    paint(tool.folder / "cat.png")
    ran = tool("sheet", *args, *(["--output", "sheet.png"] if "--pick" not in args else []))
    if args == ["."]:
        assert (ran.status, ran.record["members"]) == (0, ["cat"])
    else:
        assert "no regular file" in ran.err


def test_a_record_whose_file_is_a_pipe_gets_a_cell_that_says_so(tool):
    os.mkfifo(tool.folder / "pipe.png")
    ran = tool("sheet", *SMALL, stdin=[{"id": "p", "file": str(tool.folder / "pipe.png")}])
    assert ran.status == 1
    assert "no regular file" in ran.err


def test_two_files_of_one_stem_are_told_apart(tool):
    for name in ("cat.png", "cat.jpg", "dog.png"):
        paint(tool.folder / name)
    made = tool("sheet", *SMALL, "cat.png", "cat.jpg", "dog.png").record
    assert made["members"] == ["cat", "cat.jpg", "dog"]
