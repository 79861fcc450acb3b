"""Pages that are made from the code are what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from maasdam.pipeline.quantize import NAMES
from maasdam.pipeline.recipe import parse_recipe


def test_command_and_settings_pages_are_up_to_date(repository: Path) -> None:
    result = subprocess.run([sys.executable, "tools/docs.py", "--check"], cwd=repository, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_recipes_in_the_compression_page_are_recipes(repository: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (repository / "docs/compression.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert parse_recipe(block, "example", "docs/compression.md").passes


def test_the_compression_page_names_every_scheme(repository: Path) -> None:
    page = (repository / "docs/compression.md").read_text()
    assert [scheme for scheme in NAMES if f"`{scheme}`" not in page] == []
