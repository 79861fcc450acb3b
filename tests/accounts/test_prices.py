"""Prices come from maasdam.toml; what is not in it has none."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from maasdam import settings
from maasdam.accounts.prices import Prices
from maasdam.core import Entry
from maasdam.errors import InvalidInput

LIST = """
port = 9000
[prices.bard]
currency = "EUR"
prompt_tokens = 2e-7
completion_tokens = 6e-7
[prices."*"]
currency = "EUR"
requests = 0.001
"""


def entry(model: str, **units: Any) -> Entry:
    return Entry("r", datetime.now(UTC), None, "anonymous", model, "/", 200, 0.1, **units)


def test_a_request_costs_what_the_list_says(tmp_path: Path) -> None:
    path = tmp_path / "maasdam.toml"
    path.write_text(LIST)
    prices = Prices.load(path)
    assert prices.of(entry("bard", prompt_tokens=1_000_000, completion_tokens=None)) == (pytest.approx(0.2), "EUR")
    assert prices.of(entry("digits", items=5)) == (0.001, "EUR")


def test_settings_and_prices_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "maasdam.toml"
    path.write_text(LIST)
    assert settings.load({}, {}, path).port == 9000


def test_without_a_list_nothing_has_a_price(tmp_path: Path) -> None:
    assert Prices.load(tmp_path / "none.toml").of(entry("bard", prompt_tokens=5)) == (None, None)
    assert Prices({"bard": {"currency": "EUR", "requests": 1}}).of(entry("digits")) == (None, None)


@pytest.mark.parametrize(
    "text",
    [
        "prices = 3",
        "[prices]\ncurrency = 'EUR'",
        "[prices.a]\nrequests = 1",
        "[prices.a]\ncurrency = 'EURO'\nrequests = 1",
        "[prices.a]\ncurrency = 'EUR'\nrequests = -1",
        "[prices.a]\ncurrency = 'EUR'\nrequests = inf",
        "[prices.a]\ncurrency = 'EUR'\nrequests = nan",
        "[prices.a]\ncurrency = 'EUR'\nrequests = true",
        "[prices.a]\ncurrency = 'EUR'\nrequests = 'much'",
        "[prices.a]\ncurrency = 'EUR'\nper_smile = 1",
        "[prices",
    ],
)
def test_a_list_that_is_wrong_is_said_so_with_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "maasdam.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"maasdam\.toml"):
        Prices.load(path)
