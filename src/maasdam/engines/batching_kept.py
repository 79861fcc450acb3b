"""What was found of batching, kept where it was found: another processor, engine or setting computes in another way.

Knows files and what a finding depends on. Refuses to know how one is made.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from maasdam.core import UNKNOWN, UNTRIED, Artifact, Batching
from maasdam.engines import ENGINES, in_force, installed_version
from maasdam.engines.processor import processor_name

NEVER = Batching(UNKNOWN, 'not tried: its settings say batch = "never"')
OWN = Batching(UNKNOWN, "not tried: its engine is asked request by request, and shares its steps among them by itself")
TRIAL = 2
"""Grows when the trial comes to see more: what was found before is then found anew."""


class Findings:
    """Findings below one home, a small file each. Several processes may use it at once."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "batching"

    def get(self, artifact: Artifact, *, device: str | None = None, threads: int = 0) -> Batching | None:
        """What was found of `artifact` as it would run here now; None where nothing was."""
        try:
            return Batching.from_json(json.loads(self._file(_facts(artifact, device, threads)).read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def told(self, artifact: Artifact, *, threads: int = 0) -> Batching:
        """What is known of `artifact` here without trying it."""
        if artifact.signature is None:
            return self.get(artifact, threads=threads) or OWN
        if artifact.settings.get("batch") == "never":
            return NEVER
        return self.get(artifact, threads=threads) or UNTRIED

    def keep(self, artifact: Artifact, batching: Batching, *, device: str | None = None, threads: int = 0) -> None:
        """Keep what was found of `artifact` as it runs here. Where the disk takes no more it is found again next time."""
        facts = _facts(artifact, device, threads)
        path = self._file(facts)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(facts | batching.to_json(), indent=1))
            temporary.replace(path)

    def _file(self, facts: Mapping[str, Any]) -> Path:
        return self._folder / f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}.json"


def _facts(artifact: Artifact, device: str | None, threads: int) -> dict[str, Any]:
    where, settings = in_force(artifact, device=device, threads=threads)
    info = ENGINES.get(artifact.engine)
    return {
        "digest": artifact.digest,
        "engine": artifact.engine,
        "libraries": {name: installed_version(name) for name in (info.libraries if info else ())},
        "settings": settings,
        "device": where,
        "processor": processor_name(),
        "trial": TRIAL,
    }
