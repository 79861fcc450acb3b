"""What the settings allow, in bytes."""

from __future__ import annotations

import pytest

from maasdam.errors import InvalidInput
from maasdam.operations.limits import machine_memory, memory_budget
from maasdam.settings import Settings


@pytest.mark.parametrize(
    ("text", "size"),
    [("", None), ("4000000000", 4e9), ("4GB", 4e9), ("1.5 gb", 1.5e9), ("512 MiB", 512 * 2**20), ("2g", 2e9), ("7 B", 7)],
)
def test_a_memory_budget_is_bytes(text: str, size: float | None) -> None:
    assert memory_budget(Settings(memory_budget=text)) == size


def test_or_a_share_of_the_machine() -> None:
    assert memory_budget(Settings(memory_budget="50 %")) == machine_memory() // 2
    assert memory_budget(Settings(memory_budget="100%")) == machine_memory()


@pytest.mark.parametrize("text", ["much", "0", "0%", "101%", "-4GB", "4 XB", "4GB please", "1e9", "%", "inf"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="memory_budget"):
        memory_budget(Settings(memory_budget=text))
