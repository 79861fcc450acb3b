"""What decides whether two runs are of the same things: digests of files. Knows no pass, no engine."""

from __future__ import annotations

import hashlib
from pathlib import Path


def content_digest(path: Path) -> str:
    """sha256 over the names and bytes of a file or of every file in a folder."""
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            total.update(f"{file.relative_to(path) if path.is_dir() else file.name}\0".encode())
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
