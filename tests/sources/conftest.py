"""A store of its own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from maasdam.artifacts.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")
