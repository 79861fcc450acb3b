"""Pages that are made from the code are what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_command_and_settings_pages_are_up_to_date(repository: Path) -> None:
    result = subprocess.run([sys.executable, "tools/docs.py", "--check"], cwd=repository, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
