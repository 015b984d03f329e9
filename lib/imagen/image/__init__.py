"""The one importer of PIL: tell what bytes are, encode, and (in its modules) draw."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BadImage

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP")
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


def probe(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode an image fully; BadImage when it is none, cut off, or has more than max_pixels."""
    form = kind(data)
    if form is None:
        start = data[:12].decode("latin-1")
        raise BadImage(f"the backend returned no PNG, JPEG or WebP: {len(data)} bytes, {start!r}…")
    if form == "png" and b"IEND\xaeB`\x82" not in data[-1024:]:
        raise BadImage(f"the backend returned a PNG without its end ({len(data)} bytes)")
    try:
        opened = _open(data, form)
        width, height = opened.size
        if width * height > max_pixels:
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
