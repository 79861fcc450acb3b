"""Small promises of the service, each its own."""

from __future__ import annotations

import importlib.metadata
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.requests import Request
from tests.api.conftest import client, fake_service  # noqa: F401  fixtures
from tests.engines.networks import MLP, artifact

from maasdam.api import http, openai
from maasdam.api.body import IN_THE_LOOP
from maasdam.api.entrance import REQUEST_ID
from maasdam.engines import open_engine, openvino_engine
from maasdam.errors import InvalidInput, Overloaded
from maasdam.operations import quickstart

CHAT: dict[str, Any] = {"model": "text", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.mark.parametrize(("error", "closes"), [(Overloaded("the queue is full"), True), (InvalidInput("no"), False)])
async def test_a_full_queue_ends_the_connection_on_every_route(error: Exception, closes: bool) -> None:
    request = Request({"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], REQUEST_ID: "0" * 32})
    answer = await http._refuse(request, error)
    assert (answer.headers.get("connection") == "close") == closes


def test_openvino_answers_where_its_memory_is_in_use_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "LARGE_BYTES", 0)
    engine = open_engine(artifact(tmp_path, MLP, "onnx", "openvino"), threads=1)
    right = engine.run(MLP.inputs)
    compiled, asked = engine._compiled, 0

    def busy() -> None:
        nonlocal asked
        asked += 1
        raise RuntimeError("Infer Request is busy")

    engine._compiled = SimpleNamespace(create_infer_request=compiled.create_infer_request, release_memory=busy)
    for _ in range(2):
        for name, array in engine.run(MLP.inputs).items():
            np.testing.assert_array_equal(array, right[name])
    assert asked == 2
    engine.close()


def test_many_messages_are_looked_through_beside_the_event_loop(
    client: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where: list[str] = []
    messages_of = openai.messages_of

    def noted(body: Any) -> Any:
        where.append(threading.current_thread().name.split("_")[0])
        return messages_of(body)

    monkeypatch.setattr(openai, "messages_of", noted)
    message = CHAT["messages"][0]
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    client.post("/v1/chat/completions", json=CHAT | {"messages": [message] * (IN_THE_LOOP // 20)})
    assert len(where) == 2 and where[0] != "read" and where[1] == "read"


def test_a_checkout_does_not_ask_for_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", none)
    monkeypatch.delenv("MAASDAM_STARTERS", raising=False)
    assert len(quickstart.starters()) == 3
