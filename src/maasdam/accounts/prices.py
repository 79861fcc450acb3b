"""What a request costs in money. Knows a price list; without one every price is None.

[prices.bard]            # maasdam.toml: money per unit, by model; "*" is every other model
currency = "EUR"
prompt_tokens = 2e-7
completion_tokens = 6e-7
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maasdam.core import Entry
from maasdam.errors import InvalidInput

UNITS = ("requests", "items", "prompt_tokens", "completion_tokens", "audio_seconds", "compute_seconds")


@dataclass(frozen=True, slots=True)
class Prices:
    """Price per unit by model."""

    by_model: Mapping[str, Mapping[str, Any]]

    @staticmethod
    def load(*paths: Path) -> Prices:
        """The [prices] tables of the first maasdam.toml that has any; else none. Raises InvalidInput naming the key."""
        return next((found for path in paths if (found := Prices._read(path)).by_model), Prices({}))

    @staticmethod
    def _read(path: Path) -> Prices:
        if not path.is_file():
            return Prices({})
        try:
            tables = tomllib.loads(path.read_text()).get("prices", {})
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f"can't read prices from {path}: {error}") from error
        for model, table in tables.items() if isinstance(tables, dict) else [("", None)]:
            if not isinstance(table, dict) or "currency" not in table:
                raise InvalidInput(f'{path}: write prices as tables by model, as in [prices.bard] with currency = "EUR"')
            for key, value in table.items():
                if key == "currency":
                    fits = isinstance(value, str) and len(value) == 3
                else:
                    fits = key in UNITS and type(value) in (int, float) and 0 <= value < math.inf
                if not fits:
                    near = difflib.get_close_matches(key, UNITS, 1)
                    meant = f" (did you mean {near[0]}?)" if near and key not in UNITS else ""
                    takes = f"currency (3 letters) or a price for one of: {', '.join(UNITS)}"
                    raise InvalidInput(f"{path}: prices.{model}.{key} = {value!r}; it takes {takes}{meant}")
        return Prices(tables)

    def of(self, entry: Entry) -> tuple[float | None, str | None]:
        """The price of one ledger entry and its currency, or (None, None) where the list names none."""
        table = self.by_model.get(entry.model) or self.by_model.get("*")
        if not table:
            return None, None
        price = sum(table[u] * ((getattr(entry, u) if u != "requests" else 1) or 0) for u in UNITS if u in table)
        return price, table.get("currency")
