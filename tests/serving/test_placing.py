"""Which replicas run in this process, and which in an engine host."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from maasdam.serving.placing import Placing
from maasdam.serving.router import Desired


@pytest.mark.parametrize(
    ("engine", "passed", "isolate", "where"),
    [
        ("onnxruntime", True, False, "here"),
        ("openvino-genai", True, False, "host"),  # its library holds Python's lock while it computes
        ("onnxruntime", None, False, "host"),
        ("onnxruntime", True, True, "host"),
    ],
)
async def test_where_a_version_runs(engine: str, passed: bool | None, isolate: bool, where: str) -> None:
    async def here(version: Any, options: Any) -> Any:
        return "here"

    async def in_host(version: Any, options: Any, may_push: bool) -> Any:
        return "host"

    attempts = SimpleNamespace(were_fatal=lambda *names: False, forgive=lambda *names: None)
    version = SimpleNamespace(model="m", version=1, engine=engine, task=None, passed=passed, imported=None)
    desired = Desired(1, {1: 1.0}, 1, datetime.now(UTC), isolate=isolate)
    placing = Placing(here, in_host, cast(Any, attempts), elsewhere=here)
    assert await placing(cast(Any, version), desired, may_push=False) == where
