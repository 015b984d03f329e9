"""Drawing a sheet: every kind of image is letterboxed and right, every label is drawn."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from imagen.errors import BadImage, Refused
from imagen.images import codec
from imagen.images import text as texts
from imagen.sheets import drawing, layout

RED, GREEN, BLUE, BACK = (200, 30, 30), (20, 160, 40), (30, 40, 210), (48, 49, 52)
LIMIT = 100_000_000
PLAIN = drawing.Style("", None, LIMIT)


def near(one, other, by: int = 12) -> bool:
    return all(abs(a - b) <= by for a, b in zip(one[:3], other[:3], strict=True))


def drawn(path: Path | None, cell: int = 64, **style) -> Image.Image:
    """Give the one cell of a sheet of one image; it must have no fault."""
    grid = layout.grid(1, None, cell, 1, False)
    picture, faults = drawing.compose(grid, [drawing.Member(path, "", ["x"])], PLAIN)
    assert faults == [""]
    left, top, width, height = grid.box(0)
    return picture.crop((left, top, left + width, top + height))


def saved(folder: Path, picture: Image.Image, name: str, **options) -> Path:
    picture.save(folder / name, **options)
    return folder / name


# -- kinds of images -------------------------------------------------------------------------------


KINDS = ["x.png", "x.jpg", "x.webp", *(["x.avif"] if codec.can_decode("avif") else [])]


@pytest.mark.parametrize("name", [*KINDS, "x.gif"])
@pytest.mark.parametrize("size", [(300, 300), (64, 64), (1000, 640), (7, 9)])
def test_every_format_keeps_its_colour(tmp_path, name, size):
    cell = drawn(saved(tmp_path, Image.new("RGB", size, RED), name, quality=95))
    assert near(cell.getpixel((32, 32)), RED)


@pytest.mark.parametrize("name", ["x.gif", *KINDS[2:]])
def test_of_an_animation_the_first_frame_is_shown(tmp_path, name):
    first, second = (Image.new("RGB", (80, 80), colour) for colour in (RED, BLUE))
    path = saved(tmp_path, first, name, save_all=True, append_images=[second])
    assert near(drawn(path).getpixel((32, 32)), RED)


def test_without_a_decoder_an_avif_says_what_would_help_and_the_others_are_shown(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(codec, "can_decode", lambda form: form.lower() != "avif")
    monkeypatch.setattr(drawing, "can_decode", codec.can_decode)
    path = tmp_path / "x.avif"
    path.write_bytes((16).to_bytes(4) + b"ftypavif" + bytes(200))
    with pytest.raises(BadImage, match=r"cannot decode AVIF: Pillow 11\.3"):
        drawing.fitted(path, 64, 10**6)
    assert near(
        drawn(saved(tmp_path, Image.new("RGB", (80, 80), RED), "x.webp")).getpixel((32, 32)), RED
    )


def test_the_content_decides_and_not_the_name(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (80, 80), BLUE), "x.png", format="JPEG")
    assert near(drawn(path).getpixel((32, 32)), BLUE)


def test_alpha_shows_the_cell_behind_it(tmp_path):
    picture = Image.new("RGBA", (128, 128), (*RED, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 64, 128))
    for name, options in {"x.png": {}, "x.webp": {"lossless": True}}.items():
        cell = drawn(saved(tmp_path, picture, name, **options))
        assert near(cell.getpixel((10, 32)), BACK)
        assert near(cell.getpixel((54, 32)), RED)


def test_half_transparent_is_half_mixed_and_edges_do_not_darken(tmp_path):
    picture = Image.new("RGBA", (640, 640), (*GREEN, 128))
    mixed = tuple((a + b) // 2 for a, b in zip(GREEN, BACK, strict=True))
    assert near(drawn(saved(tmp_path, picture, "x.png")).getpixel((32, 32)), mixed)
    white = Image.new("RGBA", (640, 640), (0, 0, 0, 0))
    white.paste((255, 255, 255, 255), (0, 0, 325, 640))
    row = [drawn(saved(tmp_path, white, "y.png")).getpixel((x, 32)) for x in range(64)]
    assert all(min(one) >= min(BACK) - 2 for one in row), "black never shines through"


def test_a_palette_with_transparency(tmp_path):
    picture = Image.new("P", (128, 128), 0)
    picture.putpalette([*GREEN, *BLUE, *(0,) * 762])
    picture.paste(1, (0, 0, 64, 128))
    cell = drawn(saved(tmp_path, picture, "x.png", transparency=1))
    assert near(cell.getpixel((10, 32)), BACK)
    assert near(cell.getpixel((54, 32)), GREEN)
    plain = drawn(saved(tmp_path, picture, "y.png"))
    assert near(plain.getpixel((10, 32)), BLUE)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_colour_that_counts_as_transparent(tmp_path, mode):
    key, other = ((9, 9, 9), GREEN) if mode == "RGB" else (9, 200)
    picture = Image.new(mode, (128, 128), other)
    picture.paste(key, (0, 0, 64, 128))
    cell = drawn(saved(tmp_path, picture, "x.png", transparency=key))
    assert near(cell.getpixel((10, 32)), BACK)
    assert near(cell.getpixel((54, 32)), GREEN if mode == "RGB" else (200,) * 3)


def test_cmyk(tmp_path):
    cell = drawn(saved(tmp_path, Image.new("CMYK", (200, 200), (0, 255, 255, 0)), "x.jpg"))
    assert near(cell.getpixel((32, 32)), (255, 0, 0), by=20)


@pytest.mark.parametrize(("value", "shade"), [(0, 0), (32768, 128), (65535, 255)])
def test_sixteen_bits_of_gray(tmp_path, value, shade):
    path = saved(tmp_path, Image.new("I;16", (200, 100), value), "x.png")
    assert near(drawn(path).getpixel((32, 32)), (shade,) * 3, by=2)


@pytest.mark.parametrize(
    ("mode", "value", "shade"), [("1", 1, 255), ("L", 90, 90), ("LA", (90, 255), 90)]
)
def test_other_kinds_of_gray(tmp_path, mode, value, shade):
    path = saved(tmp_path, Image.new(mode, (200, 200), value), "x.png")
    assert near(drawn(path).getpixel((32, 32)), (shade,) * 3, by=2)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(tmp_path, name, orientation):
    upright = Image.new("RGB", (320, 640), BLUE)
    upright.paste(RED, (0, 0, 160, 320))  # red is at the upper left, and the picture is tall
    upright.paste(GREEN, (160, 0, 320, 320))
    stored = upright
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposes that undo what EXIF asks
    if orientation in back:
        stored = upright.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    cell = drawn(saved(tmp_path, stored, name, exif=exif.tobytes(), quality=95))
    assert near(cell.getpixel((22, 10)), RED, by=40)
    assert near(cell.getpixel((42, 10)), GREEN, by=40)
    assert near(cell.getpixel((32, 54)), BLUE, by=40)
    assert near(cell.getpixel((4, 32)), BACK)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp"])
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (3, 9000), (1, 1)])
def test_strips_are_letterboxed(tmp_path, name, size):
    cell = drawn(saved(tmp_path, Image.new("RGB", size, (255, 255, 255)), name))
    assert near(cell.getpixel((31, 31)), (255, 255, 255))
    assert near(cell.getpixel((4, 4)), BACK)
    assert near(cell.getpixel((60, 60)), BACK)
    if size[1] >= 5000:
        assert min(cell.getpixel((31, 0))) > 200
        assert min(cell.getpixel((31, 63))) > 200


def test_a_small_image_is_not_made_larger(tmp_path):
    cell = drawn(saved(tmp_path, Image.new("RGB", (10, 10), RED), "x.png"))
    assert near(cell.getpixel((32, 32)), RED)
    assert near(cell.getpixel((24, 32)), BACK)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(16, 300))
@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_an_image_fits_and_keeps_its_shape(tmp_path, width, height, cell):
    small = drawing.fitted(saved(tmp_path, Image.new("RGB", (width, height)), "x.png"), cell, LIMIT)
    longest = max(width, height)
    assert max(small.size) == min(longest, cell)
    scale = min(1, cell / longest)
    assert abs(small.width - width * scale) <= 1
    assert abs(small.height - height * scale) <= 1


# -- what cannot be shown --------------------------------------------------------------------------


def bomb(path: Path, width: int = 60_000, height: int = 60_000) -> Path:
    """Write a few bytes that say they are a picture of 3.6 thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    with pytest.raises(BadImage, match="60000×60000 pixels; --max-pixels allows 100000000"):
        drawing.fitted(bomb(tmp_path / "x.png"), 64, LIMIT)


def test_the_limit_itself_is_allowed(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (30, 20)), "x.png")
    assert drawing.fitted(path, 16, 600).width == 16
    with pytest.raises(BadImage, match="--max-pixels allows 599"):
        drawing.fitted(path, 16, 599)


def test_a_missing_file_is_gone(tmp_path):
    with pytest.raises(BadImage, match="the file is gone"):
        drawing.fitted(tmp_path / "x.png", 64, LIMIT)


@pytest.mark.parametrize(
    "spoil", [lambda data: b"", lambda data: b"no image", lambda data: data[:300]]
)
def test_what_is_no_image_says_so_without_its_path(tmp_path, spoil):
    path = saved(tmp_path, Image.effect_noise((200, 200), 90), "x.png")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(BadImage, match="no image that can be read") as caught:
        drawing.fitted(path, 64, LIMIT)
    assert str(tmp_path) not in caught.value.message


def test_other_formats_and_folders_are_no_images(tmp_path):
    for path in (saved(tmp_path, Image.new("RGB", (9, 9)), "x.bmp"), tmp_path):
        with pytest.raises(BadImage, match="no image that can be read"):
            drawing.fitted(path, 64, LIMIT)


def test_a_fault_is_written_into_the_cell_and_told_apart(tmp_path):
    members = [
        drawing.Member(None, "imagen-render: no luck", []),
        drawing.Member(tmp_path / "gone.png", "", []),
    ]
    grid = layout.grid(2, None, 128, 1, False)
    picture, faults = drawing.compose(grid, members, PLAIN)
    assert faults == ["", "the file is gone"], "only what failed here counts"
    for number in range(2):
        left, top, width, height = grid.box(number)
        cell = picture.crop((left, top, left + width, top + height))
        assert cell.getpixel((1, 1)) == (0x5C, 0x2B, 0x29)
        assert cell.getextrema()[0][1] > 200, "there are letters in it"


# -- letters ---------------------------------------------------------------------------------------

SCRIPTS = {
    "Arabic": "قط في وعاء السمك",
    "CJK": "金魚鉢の中の猫",
    "emoji": "🐈‍⬛ 👩‍👩‍👧‍👦 🏳️‍🌈",
    "control characters": "a\x00b\x1b[31mc\x07\r\n\td\u202e\u2028e",
    "combining": "Z̷͎̈á̸l̵g̶o̷" * 20,
    "nothing": "",
    "one long word": "x" * 5000,
}


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_a_label_in_any_script_is_drawn(text):
    grid = layout.grid(1, None, 96, 2, True)
    member = drawing.Member(None, text, [text, text])
    picture, _ = drawing.compose(grid, [member], drawing.Style(text, None, LIMIT))
    assert picture.size == grid.size


@given(st.text(st.characters(), max_size=60))
@settings(max_examples=60, deadline=None)
def test_no_text_is_too_strange_to_draw(text):
    font = texts.font(10)
    pen = ImageDraw.Draw(Image.new("RGB", (80, 80)))
    pen.text((0, 0), texts.cut(text, font, 80), font=font)
    for line in texts.wrapped(text, font, 80, 3):
        pen.text((0, 0), line, font=font)


@given(st.text("abc dé f", max_size=90), st.integers(20, 300))
@settings(deadline=None)
def test_a_cut_line_fits_and_ends_with_an_ellipsis(text, width):
    font = texts.font(12)
    line = texts.cut(text, font, width)
    assert font.getlength(line) <= width
    whole = " ".join(text.split())
    assert line == whole or (line.endswith("…") and whole.startswith(line[:-1]))


def test_a_long_prompt_is_cut_with_an_ellipsis():
    font = texts.font(12)
    line = texts.cut("a cat " * 20_000, font, 200)
    assert line.endswith("…")
    assert 150 < font.getlength(line) <= 200


def test_a_cut_line_does_not_leave_its_cell():
    grid = layout.grid(2, 2, 96, 1, False)
    picture, _ = drawing.compose(grid, [drawing.Member(None, "", ["W" * 900])] * 2, PLAIN)
    left, top, width, height = grid.box(0)
    gap = picture.crop((left + width, top + height, left + width + grid.gap, grid.size[1]))
    assert gap.getextrema() == ((0x20, 0x20), (0x21, 0x21), (0x24, 0x24))


def test_a_font_is_read_from_its_file(tmp_path):
    path = tmp_path / "font.ttf"
    path.write_bytes(ImageFont.load_default(12).font_bytes)
    found = texts.font(13, str(path))
    assert (found.size, found.getname()) == (13, texts.font(12).getname())


@pytest.mark.parametrize("content", [None, b"", b"no font at all"])
def test_a_file_that_is_no_font_is_refused(tmp_path, content):
    path = tmp_path / "font.ttf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Refused, match="no font that can be read"):
        texts.font(12, str(path))


# -- the file --------------------------------------------------------------------------------------


def test_each_member_has_a_compressed_chunk_of_its_own(tmp_path):
    with (tmp_path / "x.png").open("wb") as stream:
        drawing.save(Image.new("RGB", (9, 9)), {"A1": "é" * 90_000, "B1": "{}"}, stream)
    data = (tmp_path / "x.png").read_bytes()
    assert data.count(b"iTXtimagen:") == 2
    assert len(data) < 2000
    with Image.open(tmp_path / "x.png") as opened:
        assert opened.text["imagen:A1"] == "é" * 90_000


def test_a_picture_with_much_text_is_shown_all_the_same(tmp_path):
    chunks = PngInfo()
    for number in range(20):
        chunks.add_text(f"note {number}", "x" * 900_000, zip=True)
    path = saved(tmp_path, Image.new("RGB", (90, 90), RED), "x.png", pnginfo=chunks)
    assert near(drawn(path).getpixel((32, 32)), RED)
