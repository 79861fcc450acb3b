"""What a model took in memory here before, kept; what one that was never loaded may take. Knows files; never processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from maasdam.core import Artifact
from maasdam.engines import ENGINES, in_force, installed_version

OWN_BYTES = 60_000_000
"""What a process of an engine takes before it has a model."""
PER_FILE_BYTE = 1.5
"""What a model takes for each byte of its files: the weights, a copy in the engine's order of some, and room to compute in."""


class HostSizes:
    """HostSizes below one home, a small file each. Several processes may use it at once."""

    def __init__(self, home: Path, artifact: Callable[[str], Artifact], *, threads: int = 0) -> None:
        """`artifact` gives that of a digest; raises NotFound."""
        self._folder = home / "memory"
        self._artifact = artifact
        self._threads = threads

    def expected(self, kind: str) -> tuple[int, int]:
        """Bytes that a host of this `HostWork.kind` took once it had loaded, 0 where that was not measured; and at most, or a
        guess. Blocks. Raises NotFound.
        """
        artifact = self._artifact(kind.partition(" ")[0])
        try:
            kept = json.loads(self._file(self._facts(kind, artifact)).read_text())
            return int(kept.get("loaded_bytes", 0)), int(kept["bytes"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return 0, OWN_BYTES + round(artifact.size_bytes * PER_FILE_BYTE)

    def keep(self, kind: str, loaded: int, most: int) -> None:
        """Keep what was measured. Blocks. Where the disk takes no more it is measured again next time."""
        facts = self._facts(kind, self._artifact(kind.partition(" ")[0]))
        path = self._file(facts)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({**facts, "loaded_bytes": loaded, "bytes": most}))
            temporary.replace(path)

    def _file(self, facts: Mapping[str, object]) -> Path:
        return self._folder / f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}.json"

    def _facts(self, kind: str, artifact: Artifact) -> dict[str, object]:
        where, settings = in_force(artifact, device=None, threads=self._threads)
        info = ENGINES.get(artifact.engine)
        return {
            "digest": kind,
            "engine": artifact.engine,
            "libraries": {name: installed_version(name) for name in (info.libraries if info else ())},
            "settings": settings,
            "device": where,
        }
