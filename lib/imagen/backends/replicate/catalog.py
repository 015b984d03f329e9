"""What models at Replicate take: references, aspect ratios, sizes. Pure.

Facts are of the published input schemas of FLUX schnell and FLUX dev (2025-2026). Of the other FLUX
models it is only known that they take an aspect ratio; of the rest, nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_AT_1 = {
    "1:1": (1024, 1024),
    "16:9": (1344, 768),
    "21:9": (1536, 640),
    "3:2": (1216, 832),
    "2:3": (832, 1216),
    "4:5": (896, 1088),
    "5:4": (1088, 896),
    "3:4": (896, 1152),
    "4:3": (1152, 896),
    "9:16": (768, 1344),
    "9:21": (640, 1536),
}
_AT_A_QUARTER = {ratio: (width // 2, height // 2) for ratio, (width, height) in _AT_1.items()}
PIXELS = {"1": _AT_1, "0.25": _AT_A_QUARTER}  # by megapixels and aspect_ratio, of schnell and dev


class Flux(NamedTuple):
    """What a FLUX model takes; of those without `pixels` only the ratios are known."""

    ratios: tuple[str, ...]
    pixels: bool
    most_steps: int = 0  # 0: it takes no steps, or it is not known that it does
    steps: int | None = None  # when not told
    most_guidance: float = 0.0
    most_images: int = 1


class Reference(NamedTuple):
    """A model: `owner/name`, and the version that it is pinned to, if any."""

    name: str
    version: str | None = None

    def __str__(self) -> str:
        """Give it as it was written."""
        return f"{self.name}:{self.version}" if self.version else self.name

    @property
    def path(self) -> str:
        """Where predictions of it are created."""
        return "/v1/predictions" if self.version else f"/v1/models/{self.name}/predictions"

    @property
    def flux(self) -> Flux | None:
        """What it takes, when it is a FLUX model; None when nothing is known of it."""
        if self.name in _FLUX:
            return _FLUX[self.name]
        return _OTHER_FLUX if self.name.startswith("black-forest-labs/") else None


def reference(text: str) -> Reference:
    """Read a model that settings.MODEL matches."""
    name, _, version = text.partition(":")
    return Reference(name, version or None)


_FLUX = {
    "black-forest-labs/flux-schnell": Flux((*_AT_1,), True, 4, 4, 0.0, 4),
    "black-forest-labs/flux-dev": Flux((*_AT_1,), True, 50, 28, 10.0, 4),
}
_OTHER_FLUX = Flux(tuple(ratio for ratio in _AT_1 if "21" not in ratio), False)


class Shape(NamedTuple):
    """An aspect ratio and, where the model has them, megapixels."""

    ratio: str
    megapixels: str | None = None


def shape(flux: Flux, width: int, height: int) -> Shape:
    """Give what comes nearest to a size: by ratio, then by area.

    A size that the model can make is met, though 896×1152, its 3:4, is nearer to a true 4:5.
    """
    if not flux.pixels:
        return Shape(_nearest_ratio(flux.ratios, width, height))
    for megapixels, sizes in PIXELS.items():
        for ratio, size in sizes.items():
            if size == (width, height):
                return Shape(ratio, megapixels)
    ratio = _nearest_ratio(flux.ratios, width, height)

    def off(megapixels: str) -> float:
        return abs(math.log(width * height / math.prod(PIXELS[megapixels][ratio])))

    return Shape(ratio, min(PIXELS, key=off))


def _nearest_ratio(ratios: Iterable[str], width: int, height: int) -> str:
    def off(ratio: str) -> float:
        across, down = ratio.split(":")
        return abs(math.log(width / height * int(down) / int(across)))

    return min(ratios, key=off)


def pixels(flux: Flux | None, given: Mapping[str, Any]) -> tuple[int, int] | None:
    """Give the size that an input makes, None when it is not known."""
    if flux is None or not flux.pixels:
        return None
    sizes = PIXELS.get(str(given.get("megapixels", "1")), {})
    return sizes.get(str(given.get("aspect_ratio", "1:1")))
