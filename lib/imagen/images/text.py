"""Text on pictures: fonts, lines that fit, an ellipsis where they do not."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from ..disk import open_named
from ..errors import Refused


def font(size: int, file: str | None = None) -> Any:
    """Load a font: Pillow's own, or a file's; Refused when that is none."""
    from PIL import ImageFont

    if file is None:
        return ImageFont.load_default(size)
    try:
        with open_named(file) as stream:
            return ImageFont.truetype(BytesIO(stream.read()), size)
    except (OSError, ValueError):
        raise Refused(f"no font that can be read: {file}", hint="a .ttf or .otf file") from None


def cut(text: str, font: Any, width: int) -> str:
    """Give the text as one line of at most `width` pixels, with an ellipsis where it is cut."""
    text = " ".join(text[:500].split())
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle] + "…") <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


def wrapped(text: str, font: Any, width: int, most: int) -> list[str]:
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
