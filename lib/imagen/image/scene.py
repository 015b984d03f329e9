"""The mock's pictures: a landscape that prompt and seed decide."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from . import lettering

if TYPE_CHECKING:
    from PIL import Image


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
    lines = lettering.wrapped(
        prompt, font, width - 2 * margin, most=max((height // 3) // (size * 5 // 4), 1)
    )
    top = height - margin - size - len(lines) * size * 5 // 4
    for number, text in enumerate([*lines, caption]):
        used = small if number == len(lines) else font
        at = (margin, top + number * size * 5 // 4)
        pen.text(
            at, text, font=used, fill="white", stroke_width=max(size // 14, 1), stroke_fill="black"
        )
