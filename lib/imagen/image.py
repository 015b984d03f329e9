"""The one importer of PIL: tell what bytes are, and draw the mock's pictures."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import BadImage

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 16384 * 16384
MAX_TEXT = 16 * 2**20  # bytes of one text chunk
_MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff", "webp": b"RIFF"}


class Picture(NamedTuple):
    """What the bytes of an image say: its format, its pixels, whether it is one flat colour."""

    format: str
    width: int
    height: int
    flat: bool


def kind(data: bytes) -> str | None:
    """Tell the format by the magic bytes; None when it is no PNG, JPEG or WebP."""
    for name, magic in _MAGIC.items():
        if data.startswith(magic) and (name != "webp" or data[8:12] == b"WEBP"):
            return name
    return None


def probe(data: bytes) -> Picture:
    """Decode an image fully; BadImage when it is none, cut off, or larger than MAX_PIXELS."""
    form = kind(data)
    if form is None:
        start = data[:12].decode("latin-1")
        raise BadImage(f"the backend returned no PNG, JPEG or WebP: {len(data)} bytes, {start!r}…")
    if form == "png" and b"IEND\xaeB`\x82" not in data[-1024:]:
        raise BadImage(f"the backend returned a PNG without its end ({len(data)} bytes)")
    try:
        opened = _open(data, form)
        width, height = opened.size
        if width * height > MAX_PIXELS:
            raise BadImage(f"the backend returned {width}×{height} pixels: too many to check")
        opened.load()
        return Picture(form, width, height, _is_flat(opened))
    except BadImage:
        raise
    except Exception as fault:  # noqa: BLE001 - hostile bytes make decoders raise anything at all
        raise BadImage(f"the backend returned a broken {form}: {fault}") from None


def text_of_png(data: bytes) -> dict[str, str]:
    """Read the text chunks of a PNG without decoding it; none when it is no PNG or a broken one."""
    if kind(data) != "png":
        return {}
    try:
        info = _open(data, "png").info
        return {str(key): value for key, value in info.items() if isinstance(value, str)}
    except Exception:  # noqa: BLE001 - probe() says what is wrong with it
        return {}


def _open(data: bytes, form: str) -> Image.Image:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # our own limit is checked before decoding
    if form == "png":
        from PIL import PngImagePlugin

        PngImagePlugin.MAX_TEXT_CHUNK = MAX_TEXT  # a graph with a long prompt passes Pillow's 1 MiB
        opened: Image.Image = PngImagePlugin.PngImageFile(io.BytesIO(data))
        return opened
    return Image.open(io.BytesIO(data), formats=[form])


def _is_flat(opened: Image.Image) -> bool:
    if opened.mode.startswith(("I", "F")):  # more than 8 bits: getcolors() does not count these
        low, high = opened.getextrema()
        return low == high
    return opened.getcolors(1) is not None  # ends at the second colour


def draw(prompt: str, seed: int, width: int, height: int, caption: str) -> Image.Image:
    """Draw a landscape that prompt and seed decide, with the prompt legible on it."""
    from PIL import Image, ImageDraw

    dice = hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()
    sky, glow, ground = _palette(dice)
    ramp = Image.linear_gradient("L").resize((1, height), Image.Resampling.BILINEAR)
    bands = [
        ramp.point([_mix(high, low, i / 255) for i in range(256)])
        for high, low in zip(sky, glow, strict=True)
    ]
    picture = Image.merge("RGB", bands).resize((width, height), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    _draw_sun(pen, dice, glow, width, height)
    for layer in range(4):
        shade = tuple(_mix(a, b, 0.25 + layer * 0.25) for a, b in zip(glow, ground, strict=True))
        pen.polygon(_ridge(dice, layer, width, height), fill=shade)
    _write_prompt(pen, prompt, caption, width, height)
    return picture


def _mix(one: int, other: int, share: float) -> int:
    return round(one + (other - one) * share)


def _palette(dice: bytes) -> tuple[tuple[int, ...], ...]:
    from colorsys import hls_to_rgb

    hue = dice[0] / 256
    turn = 0.08 + dice[1] / 256 * 0.35
    colours = (hue, 0.28, 0.55), (hue + turn, 0.78, 0.75), (hue + turn / 2, 0.12, 0.5)
    return tuple(
        tuple(round(255 * part) for part in hls_to_rgb(h % 1, light, s)) for h, light, s in colours
    )


def _draw_sun(pen: Any, dice: bytes, glow: tuple[int, ...], width: int, height: int) -> None:
    radius = min(width, height) * (0.06 + dice[2] / 256 * 0.1)
    x, y = width * (0.15 + dice[3] / 256 * 0.7), height * (0.15 + dice[4] / 256 * 0.25)
    for ring in (1.5, 1.25, 1.0):
        colour = tuple(_mix(part, 255, 0.85 if ring == 1.0 else 0.3 / ring) for part in glow)
        size = radius * ring
        pen.ellipse((x - size, y - size, x + size, y + size), fill=colour)


def _ridge(dice: bytes, layer: int, width: int, height: int) -> list[tuple[float, float]]:
    from math import sin

    base = height * (0.48 + layer * 0.13)
    swing = height * (0.11 - layer * 0.015)
    a, b, c = dice[5 + layer * 3 : 8 + layer * 3]
    points = []
    for step in range(65):
        t = step / 64
        wave = sin(t * (3 + a / 48) + b / 20) + 0.5 * sin(t * (7 + b / 24) + c / 20)
        points.append((t * width, base - swing * wave + 0.25 * swing * sin(t * (19 + c / 8) + a)))
    return [*points, (width, height), (0, height)]


def _write_prompt(pen: Any, prompt: str, caption: str, width: int, height: int) -> None:
    from PIL import ImageFont

    size = max(min(width, height) // 22, 8)
    margin = size
    font = ImageFont.load_default(size)
    small = ImageFont.load_default(max(size * 5 // 8, 7))
    lines = _wrapped(
        prompt, font, width - 2 * margin, most=max((height // 3) // (size * 5 // 4), 1)
    )
    top = height - margin - size - len(lines) * size * 5 // 4
    for number, text in enumerate([*lines, caption]):
        used = small if number == len(lines) else font
        at = (margin, top + number * size * 5 // 4)
        pen.text(
            at, text, font=used, fill="white", stroke_width=max(size // 14, 1), stroke_fill="black"
        )


def _wrapped(text: str, font: Any, width: int, most: int) -> list[str]:
    """Break text into at most `most` lines of `width` pixels, the last with an ellipsis if cut."""
    lines: list[str] = []
    words = text[:1000].split()
    while words and len(lines) < most:
        line = words.pop(0)
        while font.getlength(line) > width and len(line) > 1:  # one word wider than the picture
            keep = max(int(len(line) * width / font.getlength(line)), 1)
            words.insert(0, line[keep:])
            line = line[:keep]
        while words and font.getlength(f"{line} {words[0]}") <= width:
            line += " " + words.pop(0)
        lines.append(line)
    if words and lines:
        lines[-1] = lines[-1][:-1].rstrip() + "…"
    return lines


def encode_png(picture: Image.Image, text: dict[str, str]) -> bytes:
    """Encode as PNG with text chunks; level 1: a fifth of the time for a sixth more bytes."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_itxt(key, value, zip=len(value) > 1000)
    out = io.BytesIO()
    out.name = "image.png"  # by the name Pillow loads one plugin; told a format, five
    picture.save(out, compress_level=1, pnginfo=chunks)
    return out.getvalue()
