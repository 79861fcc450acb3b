"""What a model's loading computes is on no caller's bill."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.served import add_mlp, open_home

from maasdam.artifacts.store import Store
from maasdam.engines import open_engine
from maasdam.operations.service import open_service
from maasdam.telemetry.meter import CpuMeter


async def test_threads_that_load_are_left_out_and_the_rest_is_loadings_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, tuple[bool, int]] = {}
    clocks: list[CpuMeter] = []

    def note(where: str) -> None:
        (clock,) = clocks
        seen.setdefault(where, (time.pthread_getcpuclockid(threading.get_ident()) in clock._others.values(), len(clock._open)))

    class Noting:
        def __init__(self, engine: Any) -> None:
            self._engine, self.signature = engine, engine.signature

        def run(self, batch: Any) -> Any:
            note("trying")
            return self._engine.run(batch)

        def precisions(self) -> dict[str, int]:
            return {}

        def close(self) -> None:
            self._engine.close()

    def opener(artifact: Any, **options: Any) -> Any:
        note("opening")
        return Noting(open_engine(artifact, **options))

    intact = Store.intact
    monkeypatch.setattr(Store, "intact", lambda store, digest: (note("hashing"), intact(store, digest))[1])
    with open_home(tmp_path) as workspace:
        add_mlp(workspace, "one", 16)
        service = open_service(workspace, open_engine=opener)
        clocks.append(service.meter)
        await service.start()
        assert (await service.router.settled("one", 60)).state == "ready"
        await service.stop()
    assert seen == {"hashing": (True, 0), "opening": (True, 1), "trying": (True, 1)}
    assert not service.meter._open, "its share ends with it"
