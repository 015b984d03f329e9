"""The mock's pictures: a landscape that prompt and seed decide."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from . import text as texts

if TYPE_CHECKING:
    from PIL import Image


_SKY = 240  # indices 0 … 239 of the colour table are the sky, from top to horizon
_RINGS, _RIDGES, _DARK, _GREY, _LIGHT = 240, 243, 247, 248, 249


def draw(prompt: str, seed: int, width: int, height: int, caption: str) -> Image.Image:
    """Draw a landscape that prompt and seed decide, with the prompt legible on it.

    It has a colour table: a third of the bytes of RGB to draw, to encode and to verify.
    """
    from PIL import Image, ImageDraw

    dice = hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()
    ramp = Image.linear_gradient("L").resize((1, height), Image.Resampling.BILINEAR)
    sky = ramp.point([n * (_SKY - 1) // 255 for n in range(256)])
    picture = sky.resize((width, height), Image.Resampling.NEAREST)
    picture.putpalette(_colours(dice))
    pen = ImageDraw.Draw(picture)
    _draw_sun(pen, dice, width, height)
    for layer in range(4):
        pen.polygon(_ridge(dice, layer, width, height), fill=_RIDGES + layer)
    _write_prompt(picture, prompt, caption)
    return picture


def _mix(one: tuple[int, ...], other: tuple[int, ...], share: float) -> tuple[int, ...]:
    return tuple(round(a + (b - a) * share) for a, b in zip(one, other, strict=True))


def _colours(dice: bytes) -> list[int]:
    """Give the colour table: sky, sun, ridges, and the shades of the letters."""
    from colorsys import hls_to_rgb

    hue = dice[0] / 256
    turn = 0.08 + dice[1] / 256 * 0.35
    chosen = (hue, 0.28, 0.55), (hue + turn, 0.78, 0.75), (hue + turn / 2, 0.12, 0.5)
    sky, glow, ground = (
        tuple(round(255 * part) for part in hls_to_rgb(h % 1, light, s)) for h, light, s in chosen
    )
    white = (255, 255, 255)
    table = [_mix(sky, glow, n / (_SKY - 1)) for n in range(_SKY)]
    table += [_mix(glow, white, share) for share in (0.2, 0.24, 0.85)]
    table += [_mix(glow, ground, 0.25 + layer * 0.25) for layer in range(4)]
    table += [(0, 0, 0), (128, 128, 128), white]
    return [part for colour in table for part in colour]


def _draw_sun(pen: Any, dice: bytes, width: int, height: int) -> None:
    radius = min(width, height) * (0.06 + dice[2] / 256 * 0.1)
    x, y = width * (0.15 + dice[3] / 256 * 0.7), height * (0.15 + dice[4] / 256 * 0.25)
    for number, ring in enumerate((1.5, 1.25, 1.0)):
        size = radius * ring
        pen.ellipse((x - size, y - size, x + size, y + size), fill=_RINGS + number)


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


def _write_prompt(picture: Image.Image, prompt: str, caption: str) -> None:
    """Write with a dark edge; the letters' soft edge is one shade of grey."""
    from PIL import Image, ImageDraw

    width, height = picture.size
    size = max(min(width, height) // 22, 8)
    font, small = texts.font(size), texts.font(max(size * 5 // 8, 7))
    step, room = size * 5 // 4, width - 2 * size
    lines = texts.wrapped(prompt, font, room, most=max((height // 3) // step, 1))
    top = max(height - 2 * size - len(lines) * step, 0)
    letters, edges = (Image.new("L", (width, height - top)) for _ in range(2))
    for number, text in enumerate([*lines, caption]):
        used = small if number == len(lines) else font
        for layer, edge in ((letters, 0), (edges, max(size // 14, 1))):
            pen = ImageDraw.Draw(layer)
            pen.text((size, number * step), text, font=used, fill=255, stroke_width=edge)
    for index, layer, least in ((_DARK, edges, 96), (_GREY, letters, 64), (_LIGHT, letters, 160)):
        picture.paste(index, (0, top), layer.point([255 * (n >= least) for n in range(256)]))
