"""What a model costs."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from imagen.config import loader, prices
from imagen.config.prices import Price, price_of
from imagen.errors import ConfigFault

SCHNELL = "black-forest-labs/flux-schnell"
VERSION = "c846a69991daf4c0e5d016514849d14ee5b2e6846ce6b9d6f21369e564cfe51e"


def configured(tmp_path: Path, text: str) -> loader.Config:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return loader.load(str(path))


# -- the list of the package -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "amount"),
    [("flux-schnell", 0.003), ("flux-dev", 0.025), ("flux-pro", 0.055), ("flux-1.1-pro", 0.04)],
)
def test_the_models_of_the_list_have_a_price_for_each_image(model, amount):
    price = price_of(f"black-forest-labs/{model}", {})
    assert price is not None
    assert (price.amount, price.unit) == (amount, "image")


def test_every_listed_price_says_since_when_and_from_where():
    listed = prices.read(prices.LIST)
    assert len(listed) >= 4
    for model, price in listed.items():
        assert price.keys() == {"amount", "unit", "as_of", "source"}
        assert price["source"].startswith("https://")
        assert model in price["source"]


def test_an_unknown_model_has_no_price_which_is_not_a_price_of_0():
    assert price_of("somebody/something", {}) is None


def test_a_version_costs_what_its_model_costs_unless_it_has_a_price_of_its_own():
    pinned = f"{SCHNELL}:{VERSION}"
    assert price_of(pinned, {}) == price_of(SCHNELL, {})
    own = {pinned: {"amount": 1, "unit": "second"}, SCHNELL: {"amount": 2, "unit": "image"}}
    assert price_of(pinned, own) == Price(1, "second")
    assert price_of(SCHNELL, own) == Price(2, "image")


# -- what a render costs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price", "images", "pixels", "seconds", "usd"),
    [
        (Price(0.003, "image"), 1, None, 60, 0.003),
        (Price(0.003, "image"), 4, None, 60, 0.012),
        (Price(0.1, "image"), 3, None, 60, 0.3),
        (Price(0.012, "megapixel"), 1, 1_000_000, 60, 0.012),
        (Price(0.012, "megapixel"), 2, 1024 * 1024, 60, 0.025165824),
        (Price(0.012, "megapixel"), 1, None, 60, None),
        (Price(0.000225, "second"), 4, None, 60, 0.0135),
        (Price(0, "image"), 1, None, 60, 0),
    ],
)
def test_an_estimate_counts_the_units(price, images, pixels, seconds, usd):
    assert price.estimate(images, pixels, seconds) == usd


# -- the configuration over it ---------------------------------------------------------------------


def test_the_configuration_goes_over_the_list_and_adds_to_it(tmp_path):
    text = f"prices:\n  {SCHNELL}: {{amount: 1, unit: second}}\n  a/b: {{amount: 2, unit: image}}\n"
    found = configured(tmp_path, text)
    assert price_of(SCHNELL, found.prices) == Price(1, "second")
    assert price_of("a/b", found.prices) == Price(2, "image")
    assert price_of("black-forest-labs/flux-dev", found.prices) is not None


@pytest.mark.parametrize(
    ("written", "meant"), [("2026-05", "2026-05"), ("2026-05-31", "2026-05-31"), ("null", None)]
)
def test_a_price_says_of_which_day_or_month_it_is(tmp_path, written, meant):
    text = f"prices: {{a/b: {{amount: 2, unit: image, as_of: {written}}}}}"
    found = price_of("a/b", configured(tmp_path, text).prices)
    assert found is not None
    assert found.as_of == meant


FAULTS = [
    ("a/b: {amount: -1, unit: image}", "a/b.amount: must be an amount in USD"),
    ("a/b: {amount: .inf, unit: image}", "a/b.amount: must be an amount"),
    ("a/b: {amount: .nan, unit: image}", "a/b.amount: must be an amount"),
    ("a/b: {amount: cheap, unit: image}", "a/b.amount: must be an amount"),
    ("a/b: {amount: true, unit: image}", "a/b.amount: must be an amount"),
    ("a/b: {amount: 1, unit: picture}", "a/b.unit: must be image, megapixel, second"),
    ("a/b: {amount: 1, unit: [image]}", "a/b.unit: must be image, megapixel, second"),
    ("a/b: {amount: 1, unit: image, as_of: lately}", "a/b.as_of: must be a date"),
    ("a/b: {amount: 1, unit: image, as_of: 2026-13}", "a/b.as_of: must be a date"),
    ("a/b: {amount: 1, unit: image, as_of: '2026-02-30'}", "a/b.as_of: must be a date"),
    ("a/b: {amount: 1, unit: image, as_of: 5}", "a/b.as_of: must be a date"),
    ("a/b: {amount: 1, unit: image, prize: 5}", "a/b.prize: unknown key"),
    ("a/b: {unit: image}", "a/b: no amount"),
    ("a/b: {amount: 1}", "a/b: no unit"),
    ("a/b: 0.003", "a/b: must hold keys and values"),
    ("a/b:", "a/b: must hold keys and values"),
    ("flux: {amount: 1, unit: image}", "flux: no model of the form owner/name"),
    ("5: {amount: 1, unit: image}", "5: no model of the form owner/name"),
]


@pytest.mark.parametrize(("text", "says"), FAULTS)
def test_a_fault_in_the_configured_prices_is_named_by_its_place(tmp_path, text, says):
    with pytest.raises(ConfigFault, match=f"prices.{says}") as caught:
        configured(tmp_path, f"prices:\n  {text}\n")
    assert caught.value.exit_status == 2
    assert "mine.yaml" in caught.value.message


@pytest.mark.parametrize("text", ["prices: [1]", "prices: 5"])
def test_prices_that_are_no_list_of_models_are_a_fault(tmp_path, text):
    with pytest.raises(ConfigFault, match="prices: must hold"):
        configured(tmp_path, text)


@pytest.mark.parametrize(("text", "says"), FAULTS)
def test_a_fault_in_the_list_itself_is_named_with_its_line(tmp_path, text, says):
    path = tmp_path / "prices.yaml"
    path.write_text(f"# a list\n{text}\n")
    with pytest.raises(ConfigFault, match=f"prices.yaml:2: {says}") as caught:
        price_of("a/b", {}, path)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        "a/b: {amount: 1, unit",
        "\x00",
        "a/b: {amount: 1, unit: image, as_of: 2026-02-30}",
        "a/b: &x [*x]",
    ],
)
def test_a_list_that_is_none_is_a_fault_that_names_the_file(tmp_path, text):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(ConfigFault, match="prices"):
        price_of("a/b", {}, path)


def test_a_model_that_stands_twice_is_a_fault(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text("a/b: {amount: 1, unit: image}\na/b: {amount: 2, unit: image}\n")
    with pytest.raises(ConfigFault, match=r"prices.yaml:2: a/b: stands twice"):
        price_of("a/b", {}, path)


def test_a_file_that_is_not_there_is_a_fault(tmp_path):
    with pytest.raises(ConfigFault, match="cannot read"):
        price_of("a/b", {}, tmp_path / "none.yaml")


def test_the_prices_in_force_are_shown_with_what_they_stand_on(tool, configure):
    configure("prices:\n  a/b: {amount: 2, unit: image, as_of: 2026-05-31}\n")
    shown = {line["key"]: line for line in tool("config", "show").records}
    assert shown["prices.a/b.amount"]["value"] == 2
    assert shown["prices.a/b.as_of"]["value"] == str(date(2026, 5, 31))
    assert shown["prices.a/b.unit"]["source"] == "file"


def test_validate_names_the_line_of_a_price_that_is_none(tool, configure):
    path = configure("prices:\n  a/b:\n    amount: -1\n    unit: image\n")
    ran = tool("config", "validate")
    assert ran.status == 2
    assert f"{path}:3: prices.a/b.amount: must be an amount in USD, not '-1'" in ran.err
