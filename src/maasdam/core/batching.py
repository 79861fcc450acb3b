"""Whether a model's answers depend on what else is in the batch, and how that was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maasdam.core.tensors import Tensors

INDEPENDENT, DEPENDENT, UNKNOWN = "independent", "dependent", "unknown"


@dataclass(frozen=True, slots=True)
class Tried:
    """Sizes that callers were computed together at: up to `rows` rows, each of the `sizes` of every input's other axes."""

    rows: int
    sizes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Batching:
    """Whether a row's answer is the same whatever rows stand beside it: only then callers are computed together.

    `verdict` is "independent", "dependent" or "unknown"; `how` is one sentence on how that was found; `tried` is what an
    independent one was proven at.
    """

    verdict: str
    how: str
    tried: tuple[Tried, ...] = ()

    @property
    def is_independent(self) -> bool:
        """Whether rows of several callers may be one batch."""
        return self.verdict == INDEPENDENT

    def most_rows(self, tensors: Tensors) -> int:
        """Rows that a batch with these tensors in it may hold: 1 for sizes outside of what was tried."""
        if self.verdict != INDEPENDENT:
            return 1
        sizes = {name: array.shape[1:] for name, array in tensors.items()}
        if not any(_covers(sizes, one.sizes) for one in self.tried):
            return 1
        return max((one.rows for one in self.tried if _covers(one.sizes, sizes)), default=1)

    def facts(self) -> dict[str, str]:
        """As reports, `status` and `/admin/models` show it: the verdict, and how it was found."""
        return {"batching": self.verdict, "batching_how": self.how}

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        tried = [{"rows": one.rows, "sizes": {name: list(sizes) for name, sizes in one.sizes.items()}} for one in self.tried]
        return {"verdict": self.verdict, "how": self.how, "tried": tried}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Batching:
        """The inverse of `to_json`."""
        tried = [Tried(int(one["rows"]), {name: tuple(sizes) for name, sizes in one["sizes"].items()}) for one in data["tried"]]
        return Batching(str(data["verdict"]), str(data["how"]), tuple(tried))


OF_ITS_ENGINE = Batching(
    UNKNOWN, "nothing to try: its engine is given one request after another and puts them together by itself"
)
UNTRIED = Batching(UNKNOWN, "not tried on this machine: verification does, and the service when it loads the model")


def _covers(large: Mapping[str, tuple[int, ...]], small: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether each size of `large` is at least that of `small`, of the same tensors."""
    return large.keys() == small.keys() and all(
        len(large[name]) == len(sizes) and all(a >= b for a, b in zip(large[name], sizes, strict=True))
        for name, sizes in small.items()
    )
