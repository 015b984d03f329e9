"""What a model costs: the price list of the package, and that of the configuration over it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigFault
from . import loader
from .settings import check_prices

LIST = Path(__file__).parents[1] / "data" / "prices.yaml"


class Price(NamedTuple):
    """An amount in USD for each unit (image, megapixel, second), when and where it was read."""

    amount: float
    unit: str
    as_of: str | None = None
    source: str | None = None

    def estimate(self, images: int, pixels: int | None, seconds: float) -> float | None:
        """Give what a submit costs at most, as far as is known: `pixels` of one image or None."""
        if self.unit == "second":
            return _rounded(self.amount * seconds)
        if self.unit == "image":
            return _rounded(self.amount * images)
        return None if pixels is None else _rounded(self.amount * images * pixels / 1e6)


def price_of(model: str, over: Mapping[str, Any], listed: Path = LIST) -> Price | None:
    """Give the price of `owner/name` or `owner/name:version`; None when it is not known.

    That of the version goes over that of the model; a configured one (`over`) over a listed one.
    """
    for name in dict.fromkeys((model, model.partition(":")[0])):
        for prices in (over, read(listed)):
            if name in prices:
                return _price(prices[name])
    return None


@cache
def read(path: Path) -> dict[str, Any]:
    """Read a price list; ConfigFault names the first fault in it with its line."""
    parsed = loader.parse(path)
    for place in parsed.twice:
        raise loader.stands_twice(path, place, parsed.lines)
    for fault in check_prices((), parsed.tree):
        where = f"{path}:{loader.line_of(fault.place, parsed.lines)}: {'.'.join(fault.place)}"
        raise ConfigFault(f"{where}: {fault.message}", hint=fault.hint)
    return parsed.tree


def _price(said: Mapping[str, Any]) -> Price:
    as_of, source = said.get("as_of"), said.get("source")
    return Price(said["amount"], said["unit"], str(as_of) if as_of else None, source)


def _rounded(usd: float) -> float:
    """Give an amount without the noise of binary fractions: to a billionth of a dollar."""
    return round(usd, 9)
