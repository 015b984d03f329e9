"""Contact sheets: thumbnails letterboxed into cells, pasted as they are decoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ..disk import open_regular
from ..errors import BadImage
from ..images import text as texts
from ..images.codec import NO_AVIF, can_decode, kind, open_image
from .layout import KEY, Grid, line_height, text_size

if TYPE_CHECKING:
    from PIL import Image

_PAPER, _BACK, _FAULT, _INK, _DIM = "#202124", "#303134", "#5c2b29", "white", "#bdc1c6"
_THREADS = 2  # decoding lets go of Python's lock; more than two only hold more pixels at once
_ORIENTATION = 0x0112


class Member(NamedTuple):
    """What goes into a cell: an image's path, or why there is none, and the lines of its label."""

    path: Path | None
    fault: str
    label: Sequence[str]


class Style(NamedTuple):
    """How a sheet looks: its title, the font file or None, the most pixels an image may have."""

    title: str
    font: str | None
    max_pixels: int


def compose(grid: Grid, members: Iterable[Member], style: Style) -> tuple[Image.Image, list[str]]:
    """Draw a sheet; gives it and what kept each member from being shown ("" for nothing).

    Only a few images are in memory at once, whatever their number.
    """
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", grid.size, _PAPER)
    pen = ImageDraw.Draw(picture)
    font = texts.font(text_size(grid.cell), style.font)
    if style.title:
        title = texts.font(text_size(grid.cell) * 3 // 2, style.font)
        text = texts.cut(style.title, title, grid.size[0] - 2 * grid.gap)
        pen.text((grid.gap, grid.gap), text, font=title, fill=_INK)
    faults = []
    for number, (member, thumbnail) in enumerate(_thumbnails(members, grid.cell, style)):
        fault = thumbnail if isinstance(thumbnail, str) else ""
        faults.append(fault if not member.fault else "")
        left, top, width, height = grid.box(number)
        pen.rectangle(
            (left, top, left + width - 1, top + height - 1), fill=_FAULT if fault else _BACK
        )
        if isinstance(thumbnail, str):
            _write_fault(pen, fault, font, (left, top), grid.cell)
        else:
            at = (left + (width - thumbnail.width) // 2, top + (height - thumbnail.height) // 2)
            picture.paste(thumbnail, at, thumbnail if thumbnail.mode == "RGBA" else None)
        _write_label(pen, grid, number, member.label, font)
    return picture, faults


def save(picture: Image.Image, members: dict[str, str], stream: IO[bytes]) -> None:
    """Write a sheet as PNG with one compressed text chunk for each member, by address."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for place, text in members.items():
        chunks.add_itxt(KEY + place, text, zip=True)
    picture.save(stream, "PNG", compress_level=1, pnginfo=chunks)


def _thumbnails(
    members: Iterable[Member], cell: int, style: Style
) -> Iterator[tuple[Member, Image.Image | str]]:
    """Decode ahead by as many as there are threads, in order."""
    waiting: deque[tuple[Member, Future[Image.Image | str]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for member in members:
            waiting.append((member, pool.submit(_thumbnail, member, cell, style.max_pixels)))
            if len(waiting) > _THREADS:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def _thumbnail(member: Member, cell: int, max_pixels: int) -> Image.Image | str:
    if member.path is None:
        return member.fault
    try:
        return fitted(member.path, cell, max_pixels)
    except BadImage as fault:
        return fault.message


def fitted(path: Path, cell: int, max_pixels: int) -> Image.Image:
    """Open an image as RGB or RGBA that fits into `cell` pixels; BadImage says why it cannot be.

    Of an animation it is the first frame.
    """
    try:
        with open_regular(path) as stream, open_image(stream, _form(stream)) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                raise BadImage(f"{width}×{height} pixels; --max-pixels allows {max_pixels}")
            turn = _turn(opened)
            opened.draft("RGB", (cell * 2, cell * 2))
            small = _plain(opened)
            small = _reduced(small, cell)
            return small.transpose(turn) if turn is not None else small
    except BadImage:
        raise
    except FileNotFoundError:
        raise BadImage("the file is gone") from None
    except OSError as fault:
        why = fault.strerror or str(fault)
        raise BadImage(f"no image that can be read: {why}") from None
    except Exception as fault:  # noqa: BLE001 - hostile bytes make decoders raise anything at all
        raise BadImage(f"no image that can be read: {fault}") from None


def _form(stream: IO[bytes]) -> str:
    """Return the format that the first bytes name; BadImage when there is no reader for it."""
    form = kind(stream.read(256))
    stream.seek(0)
    if form is None:
        raise BadImage("no image that can be read: no PNG, JPEG, WebP, GIF or AVIF")
    if not can_decode(form):
        raise BadImage(f"no image that can be read: {': '.join(NO_AVIF)}")
    return form


def _plain(opened: Image.Image) -> Image.Image:
    """Give any mode as 8-bit RGB, or RGBA where something is transparent."""
    clear = opened.mode in ("LA", "PA", "La", "RGBa") or "transparency" in opened.info
    if opened.mode == "RGBA" or (opened.mode == "RGB" and not clear):
        opened.load()
        return opened
    if opened.mode.startswith(("I", "F")):
        return opened.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    return opened.convert("RGBA" if clear else "RGB")


def _reduced(image: Image.Image, cell: int) -> Image.Image:
    """Shrink to fit into the cell: by a whole factor first, which costs little, then exactly."""
    from PIL import Image

    longest = max(image.size)
    width, height = (max(round(side * cell / longest), 1) for side in image.size)
    factor = longest // cell
    if factor > 1:
        image = image.reduce(factor)
    if longest <= cell:
        return image
    return (
        image
        if image.size == (width, height)
        else image.resize((width, height), Image.Resampling.LANCZOS)
    )


def _turn(opened: Image.Image) -> Any:
    """Give the transpose that EXIF asks for, None for none."""
    from PIL.Image import Transpose

    if opened.format == "PNG" and "exif" not in opened.info:
        return None  # reading EXIF of every PNG would cost more than its thumbnail's paste
    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(opened.getexif().get(_ORIENTATION, 1))


def _write_fault(pen: Any, fault: str, font: Any, at: tuple[int, int], cell: int) -> None:
    margin = cell // 16
    step = line_height(text_size(cell))
    for number, line in enumerate(texts.wrapped(fault, font, cell - 2 * margin, cell // step - 1)):
        pen.text((at[0] + margin, at[1] + margin + number * step), line, font=font, fill=_INK)


def _write_label(pen: Any, grid: Grid, number: int, lines: Sequence[str], font: Any) -> None:
    left, top, width, height = grid.box(number)
    step = line_height(text_size(grid.cell))
    first = f"{grid.address(number)}  {lines[0] if lines else ''}"
    for row, text in enumerate([first, *lines[1:]]):
        at = (left, top + height + row * step)
        pen.text(at, texts.cut(text, font, width), font=font, fill=_DIM if row else _INK)
