"""The one importer of PIL: tell what bytes are, encode, and (in its modules) draw."""

from __future__ import annotations

import io
from functools import cache
from typing import IO, TYPE_CHECKING, NamedTuple

from ..errors import BadImage
from .structure import is_cut, kind

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Picture", "can_decode", "encode_png", "is_cut", "kind", "open_image", "probe"]
FORMATS = ("png", "jpeg", "gif", "webp", "avif")
MAX_PIXELS = 16384 * 16384
MAX_TEXT = 16 * 2**20  # bytes of one text chunk, or of a colour profile
NO_AVIF = "this Pillow cannot decode AVIF", "Pillow 11.3 or newer can"


class Picture(NamedTuple):
    """What the bytes of an image say: its format, its pixels, whether it is one flat colour."""

    format: str
    width: int
    height: int
    flat: bool


def can_decode(form: str) -> bool:
    """Whether Pillow can decode the format: AVIF only from 11.3 on, and not in every build."""
    if form.lower() != "avif":
        return True
    try:
        from PIL import AvifImagePlugin
    except ImportError:
        return False
    return bool(AvifImagePlugin.SUPPORTED)


def probe(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode an image, an animation's first frame; BadImage when that is not possible.

    It may be no image, cut short, broken, or of more than max_pixels; or Pillow lacks its format.
    """
    form, cut = kind(data), is_cut(data)
    if form is None:
        start = data[:12].decode("latin-1")
        says = f"no PNG, JPEG or WebP, nor a GIF or AVIF: {len(data)} bytes, {start!r}…"
        raise BadImage(f"the backend returned {says}", whole=not cut)
    if cut and form == "png":
        raise BadImage(f"the backend returned a PNG without its end ({len(data)} bytes)")
    if cut and form != "jpeg":  # one that lacks only its last two bytes is as good
        raise BadImage(f"the backend returned a broken {form}: cut short at {len(data)} bytes")
    if not can_decode(form):
        raise BadImage(f"the backend returned an AVIF: {NO_AVIF[0]}", hint=NO_AVIF[1], whole=True)
    try:
        opened = open_image(io.BytesIO(data), form)
        width, height = opened.size
        if width * height > max_pixels:
            raise BadImage(
                f"the backend returned {width}×{height} pixels: too many to check", whole=True
            )
        opened.load()
        return Picture(form, width, height, _is_flat(opened))
    except BadImage:
        raise
    except Exception as fault:  # noqa: BLE001 - hostile bytes make decoders raise anything at all
        says = f"the backend returned a broken {form}: {fault}"
        raise BadImage(says, whole=not cut) from None


def text_of_png(data: bytes) -> dict[str, str]:
    """Read the text chunks of a PNG without decoding it; none when it is no PNG or a broken one."""
    if kind(data) != "png":
        return {}
    try:
        info = open_image(io.BytesIO(data), "png").info
        return {str(key): value for key, value in info.items() if isinstance(value, str)}
    except Exception:  # noqa: BLE001 - probe() says what is wrong with it
        return {}


def open_image(stream: IO[bytes], form: str) -> Image.Image:
    """Open an image of a known format undecoded, with our limits; the one way to Pillow's readers.

    What Pillow raises on broken bytes is the caller's to catch; its warnings go nowhere.
    """
    from PIL import Image

    _silence_warnings()
    Image.MAX_IMAGE_PIXELS = None  # our own limit is checked before decoding
    if form == "png":
        from PIL import PngImagePlugin

        PngImagePlugin.MAX_TEXT_CHUNK = MAX_TEXT  # a graph with a long prompt passes Pillow's 1 MiB
        opened: Image.Image = PngImagePlugin.PngImageFile(stream)
        return opened
    if form == "avif":
        from PIL import AvifImagePlugin

        moving: Image.Image = AvifImagePlugin.AvifImageFile(stream)
        return moving
    return Image.open(stream, formats=[form])


@cache
def _silence_warnings() -> None:
    """Keep Pillow's warnings about broken metadata off stderr: a line there is ours."""
    import warnings

    warnings.filterwarnings("ignore", module=r"PIL\.")


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
