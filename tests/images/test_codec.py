"""Pictures: what bytes are, what is wrong with them, and those the mock draws."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagen.errors import BadImage
from imagen.images import codec, scene


def noisy(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.effect_noise(size, 90).convert(mode)


def encoded(picture: Image.Image, form: str, **more: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **more)
    return out.getvalue()


def animated(form: str) -> bytes:
    frames = [noisy() for _ in range(3)]
    return encoded(noisy(), form, save_all=True, append_images=frames)


FORMATS = [form for form in codec.FORMATS if codec.can_decode(form)]
MOVING = [form for form in FORMATS if form not in ("png", "jpeg")]


@pytest.mark.parametrize("form", FORMATS)
def test_a_good_image_is_told_by_its_bytes(form):
    assert codec.probe(encoded(noisy(), form)) == codec.Picture(form, 40, 30, False)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_an_image_that_was_cut_off_is_none(form, share):
    data = encoded(noisy(size=(200, 200)), form)
    with pytest.raises(BadImage) as caught:
        codec.probe(data[: int(len(data) * share)])
    assert not caught.value.whole


@pytest.mark.parametrize("form", FORMATS)
def test_every_beginning_of_an_image_is_told_to_be_cut(form):
    data = encoded(noisy(), form)
    assert not codec.is_cut(data)
    assert [n for n in range(len(data) - 2) if not codec.is_cut(data[:n])] == []


@pytest.mark.parametrize("form", MOVING)
def test_an_animation_is_an_image_as_a_whole_and_none_without_its_last_frame(form):
    data = animated(form)
    assert codec.probe(data) == codec.Picture(form, 40, 30, False)
    with pytest.raises(BadImage, match="cut short"):
        codec.probe(data[:-200])


def test_a_gif_with_a_table_of_colours_for_each_frame_is_read_to_its_end():
    frames = [noisy().quantize(number) for number in (2, 16, 250)]
    data = encoded(frames[0], "gif", save_all=True, append_images=frames[1:], comment=b";" * 600)
    assert codec.probe(data).format == "gif"
    assert codec.is_cut(data[:-1])


@pytest.mark.parametrize("brands", [b"avif\0\0\0\0mif1", b"mif1\0\0\0\0miafavif", b"avis\0\0\0\0"])
def test_an_avif_is_told_by_any_of_its_brands(brands):
    assert codec.kind((8 + len(brands)).to_bytes(4) + b"ftyp" + brands) == "avif"


@pytest.mark.parametrize("brands", [b"heic\0\0\0\0mif1", b"isom\0\0\0\0mp42", bytes(4)])
def test_other_files_of_that_family_are_no_avif(brands):
    assert codec.kind((8 + len(brands)).to_bytes(4) + b"ftyp" + brands + b"avif") is None


def test_without_a_decoder_an_avif_is_refused_with_what_would_help(monkeypatch):
    monkeypatch.setattr(codec, "can_decode", lambda form: form != "avif")
    data = (16).to_bytes(4) + b"ftypavif" + bytes(4) + (8).to_bytes(4) + b"mdat"
    with pytest.raises(BadImage, match="cannot decode AVIF") as caught:
        codec.probe(data)
    assert caught.value.whole
    assert "Pillow 11.3" in (caught.value.hint or "")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """Make a PNG by hand: 8-bit grey, whatever its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no PNG"),
        (b"<html>504 Gateway Time-out</html>", "no PNG"),
        (b"GIF89a" + b"\0" * 50, "broken gif"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "nor a GIF or AVIF"),
        (b"RIFF\0\0\0\0WAVEfmt ", "no PNG"),
        (b"\x89PNG\r\n\x1a\n", "without its end"),
        (b"\xff\xd8\xff\xe0 and no more", "broken jpeg"),
        (b"RIFF\x20\0\0\0WEBPVP8 nonsense", "broken webp"),
        (png(40, 30).replace(b"IDAT", b"IDAX"), "broken png"),
        (png(30000, 30000), "too many"),
        (png(0, 30), "broken png"),
    ],
)
def test_bytes_that_are_no_image_are_refused_with_the_reason(data, says):
    with pytest.raises(BadImage, match=says) as caught:
        codec.probe(data)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300


@given(st.sampled_from(FORMATS), st.integers(0, 400), st.binary(min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_spoiled_bytes_are_an_image_or_a_bad_one(form, at, spoil):
    data = bytearray(encoded(noisy(), form))
    data[at : at + len(spoil)] = spoil
    try:
        found = codec.probe(bytes(data))
    except BadImage:
        return
    assert found.format == form


@pytest.mark.parametrize(
    ("picture", "flat"),
    [
        (Image.new("RGB", (30, 30), (9, 8, 7)), True),
        (Image.new("L", (30, 30)), True),
        (Image.new("RGBA", (30, 30), (1, 2, 3, 0)), True),
        (Image.new("P", (30, 30)), True),
        (Image.new("1", (30, 30)), True),
        (Image.new("I;16", (30, 30), 60000), True),
        (noisy("L"), False),
        (noisy("1"), False),
        (noisy("P"), False),
        (noisy("RGBA"), False),
    ],
)
def test_one_colour_is_flat(picture, flat):
    assert codec.probe(encoded(picture, "png")).flat == flat


def test_one_other_pixel_is_not_flat():
    for mode, value in (("RGB", (0, 0, 1)), ("I;16", 1)):
        picture = Image.new(mode, (300, 300))
        picture.putpixel((299, 299), value)
        assert not codec.probe(encoded(picture, "png")).flat


# -- text chunks -----------------------------------------------------------------------------------


TEXTS = ["a cat", "ünï 🐈", "x" * 100_000, "猫" * 50_000, "a\nb", "${seed}"]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_text_chunks_are_written_and_read_back(text):
    data = codec.encode_png(noisy(), {"prompt": text, "seed": "5"})
    assert codec.text_of_png(data) == {"prompt": text, "seed": "5"}
    assert codec.probe(data) == codec.Picture("png", 40, 30, False)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", encoded(noisy(), "jpeg")])
def test_what_is_no_png_has_no_text(data):
    assert codec.text_of_png(data) == {}


# -- the mock's pictures ---------------------------------------------------------------------------


def drawn(prompt: str = "a cat", seed: int = 1, size: tuple[int, int] = (96, 64)) -> bytes:
    return scene.draw(prompt, seed, *size, "seed 1").tobytes()


def test_prompt_and_seed_decide_the_picture():
    assert drawn() == drawn()
    assert drawn() != drawn(seed=2)
    assert drawn() != drawn("a dog")


PROMPTS = ["a", "x" * 5000, "word " * 5000, "猫 🐈 ﷽", "\0", "\u202e", "a\n\n\nb", "  "]


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
@pytest.mark.parametrize("size", [(16, 16), (16, 512), (512, 16), (301, 77)])
def test_any_prompt_is_drawn_at_any_size(prompt, size):
    picture = scene.draw(prompt, 2**64 - 1, *size, "a caption")
    assert picture.size == size
    assert picture.getcolors(1) is None, "it is not flat"


# -- what comes with an image ----------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("after", [b"\0" * 2**20, b"PK\3\4 a zip" * 90_000])
def test_bytes_after_an_images_end_do_no_harm(form, after):
    data = encoded(noisy(), form)
    assert not codec.is_cut(data + after)
    assert codec.probe(data + after).format == form


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_jpeg_with_a_thumbnail_is_cut_where_only_the_thumbnail_ends(share):
    exif = Image.Exif()
    exif[0x010E] = b"\xff\xd8 thumbnail \xff\xd9".decode("latin-1")
    data = encoded(noisy(size=(400, 300)), "jpeg", exif=exif)
    assert not codec.is_cut(data)
    assert codec.is_cut(data[: int(len(data) * share)])
    assert not codec.is_cut(encoded(noisy(size=(400, 300)), "jpeg", progressive=True) + b"x" * 5000)


def much_text() -> bytes:
    chunks = PngInfo()
    chunks.add_text("prompt", "a" * 1_500_000, zip=True)
    return encoded(noisy(), "png", pnginfo=chunks)


@pytest.mark.parametrize(
    "data",
    [much_text(), encoded(noisy(), "png", icc_profile=b"\0" * 2**21)],
    ids=["1.5 MB of text", "a profile of 2 MB"],
)
def test_large_text_and_profiles_are_allowed_in_a_process_of_its_own(tmp_path, data):
    """Pillow's limits are global: what opened an image before must not matter."""
    (tmp_path / "x.png").write_bytes(data)
    imports = "from imagen.images.codec import probe; from imagen.sheets import drawing as sheet"
    code = f"import sys; from pathlib import Path; {imports}; {{}}"
    sheet = "print(sheet.fitted(Path(sys.argv[1]), 64, 10**8).size)"
    render = "print(probe(Path(sys.argv[1]).read_bytes()).format)"
    for what, says in ((sheet, "(40, 30)"), (render, "png")):
        run = [sys.executable, "-c", code.format(what), tmp_path / "x.png"]
        ran = subprocess.run(run, capture_output=True, text=True, check=False)
        assert (ran.stdout.strip(), ran.stderr) == (says, "")


def test_warnings_of_pillow_go_nowhere(tmp_path):
    picture = Image.new("P", (8, 8))
    picture.info["transparency"] = b"\x80" * 8
    picture.save(tmp_path / "palette.png")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\xff"
    noisy(size=(8, 8)).save(tmp_path / "exif.jpg", exif=exif)
    code = (
        "import sys, warnings; from pathlib import Path; from imagen.images.codec import probe\n"
        "from imagen.sheets import drawing as sheet\n"
        "for one in map(Path, sys.argv[1:]): sheet.fitted(one, 64, 10**8); probe(one.read_bytes())"
    )
    paths = [tmp_path / "palette.png", tmp_path / "exif.jpg"]
    run = [sys.executable, "-W", "default", "-c", code, *paths]
    ran = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
