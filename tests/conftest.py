"""Fixtures that every room's tests may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def starters() -> Path:
    """The folder of the starter models that ship with the project."""
    return REPOSITORY / "starters"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real models and data that are not committed; skips with a reason where they are missing."""
    path = Path(os.environ.get("MAASDAM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip("shared data is not here")
    return path
