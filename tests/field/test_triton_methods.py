"""Every method of Triton's four clients against a real service: answered, or refused by name with what to do instead."""

from __future__ import annotations

import asyncio
import inspect
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.served import Process, add_mlp, open_home, start
from tests.service import free_port
from tritonclient.utils import InferenceServerException

X = np.arange(16, dtype=np.float32).reshape(2, 8)
TOLD: dict[str, tuple[tuple[Any, ...], str]] = {
    "is_server_live": ((), "True"),
    "is_server_ready": ((), "True"),
    "is_model_ready": (("mlp", "1"), "True"),
    "get_server_metadata": ((), "maasdam"),
    "get_model_metadata": (("mlp", "1"), "FP32"),
    "get_model_config": (("mlp",), "TYPE_FP32"),
    "get_model_repository_index": ((), "READY"),
    "get_inference_statistics": (("mlp", "1"), "inference_stats"),
    "get_log_settings": ((), "log_info"),
    "update_log_settings": (({"log_verbose_level": 0, "log_info": True},), "log_info"),
    "load_model": (("mlp",), "None"),
    "unload_model": (("spare",), "None"),
}
"""Methods that are answered: what they are given, and what the answer has."""
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "get_trace_settings": ((), "traces are not made here"),
    "update_trace_settings": ((), "traces are not made here"),
    "get_system_shared_memory_status": ((), "shared memory is not read here"),
    "register_system_shared_memory": (("r", "/k", 64), "shared memory is not read here"),
    "unregister_system_shared_memory": (("r",), "shared memory is not read here"),
    "get_cuda_shared_memory_status": ((), "shared memory is not read here"),
    "register_cuda_shared_memory": (("r", b"aaaa", 0, 64), "shared memory is not read here"),
    "unregister_cuda_shared_memory": ((), "shared memory is not read here"),
}
"""Those that are not offered, and what the refusal says."""
ASKS = {"infer", "async_infer", "stream_infer", "start_stream", "async_stream_infer", "stop_stream"}
OF_THE_CLIENT = {"close", "plugin", "register_plugin", "unregister_plugin", "generate_request_body", "parse_response_body"}
"""These send nothing."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, str]]:
    """A service, and where its gRPC is."""
    home = tmp_path_factory.mktemp("served")
    workspace = open_home(home)
    add_mlp(workspace)
    add_mlp(workspace, "spare")
    _, key = workspace.keys.create("clients", ["infer", "deploy", "admin"])
    workspace.close()
    port = free_port()
    running = start(home, key, "--grpc-port", str(port))
    yield running, f"127.0.0.1:{port}"
    assert running.stop() == 0 and "Traceback" not in running.log.read_text()


KINDS = ["http", "http.aio", "grpc", "grpc.aio"]


def opened(kind: str, served: tuple[Process, str]) -> tuple[Any, Any]:
    """A client's module and a client with the key. An asynchronous one belongs to the running loop."""
    module = pytest.importorskip(f"tritonclient.{kind}", reason="needs tritonclient and grpcio")
    client = module.InferenceServerClient(served[1] if "grpc" in kind else served[0].url.removeprefix("http://"))
    client.register_plugin(_Key(served[0].key))
    return module, client


class _Key:
    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, request: Any) -> None:
        request.headers["authorization"] = f"Bearer {self.key}"


async def _value(given: Any) -> Any:
    return await given if inspect.isawaitable(given) else given


@pytest.mark.parametrize("kind", KINDS)
async def test_every_method_is_answered_or_refused_by_name(kind: str, served: tuple[Process, str]) -> None:
    _, client = opened(kind, served)
    has = {name for name in dir(client) if not name.startswith("_")}
    assert has - OF_THE_CLIENT - ASKS == TOLD.keys() | REFUSED.keys(), "a method that nobody tries"
    try:
        await _value(client.load_model("spare"))
        for name, (given, says) in TOLD.items():
            assert says in str(await _value(getattr(client, name)(*given))), name
        for name, (given, says) in REFUSED.items():
            with pytest.raises(InferenceServerException) as caught:
                await _value(getattr(client, name)(*given))
            assert says in caught.value.message() and caught.value.status() in ("400", "StatusCode.UNIMPLEMENTED"), name
    finally:
        await _value(client.close())


@pytest.mark.parametrize("kind", KINDS)
async def test_every_way_to_ask_answers_the_same(kind: str, served: tuple[Process, str]) -> None:
    module, client = opened(kind, served)
    given = module.InferInput("x", [2, 8], "FP32")
    given.set_data_from_numpy(X)
    asked = [module.InferRequestedOutput("y")]
    found = []
    try:
        result = await _value(client.infer("mlp", [given], outputs=asked, request_id="1", timeout=5_000_000, priority=0))
        found.append(result.as_numpy("y"))
        if kind == "http":
            found.append(client.async_infer("mlp", [given]).get_result().as_numpy("y"))
        if kind == "grpc":
            told: queue.Queue[Any] = queue.Queue()
            client.async_infer("mlp", [given], callback=lambda result, error: told.put((result, error)))
            client.start_stream(callback=lambda result, error: told.put((result, error)))
            for i in range(3):
                client.async_stream_infer("mlp", [given], request_id=str(i), enable_empty_final_response=True)
            answers = [await asyncio.to_thread(told.get, timeout=20) for _ in range(4)]
            client.stop_stream()
            assert not any(error for _, error in answers)
            found += [answer.as_numpy("y") for answer, _ in answers]
        if kind == "grpc.aio":

            async def requests() -> Any:
                for i in range(3):
                    yield {"model_name": "mlp", "inputs": [given], "request_id": str(i)}

            async for answer, error in client.stream_infer(requests()):
                assert error is None
                found.append(answer.as_numpy("y"))
    finally:
        await _value(client.close())
    assert len(found) == {"http": 2, "http.aio": 1, "grpc": 5, "grpc.aio": 4}[kind]
    assert all((one == found[0]).all() and one.shape == (2, 4) for one in found)


def test_statistics_are_of_what_was_asked(served: tuple[Process, str]) -> None:
    with served[0].client() as client:

        def told() -> Any:
            (one,) = client.get("/v2/models/mlp/versions/1/stats").json()["model_stats"]
            return one

        before = told()
        body = {"inputs": [{"name": "x", "shape": [2, 8], "datatype": "FP32", "data": X.tolist()}]}
        for _ in range(3):
            assert client.post("/v2/models/mlp/infer", json=body).status_code == 200
        assert client.post("/v2/models/mlp/infer", json=body | {"outputs": [{"name": "z"}]}).status_code == 400
        after = told()
        assert (after["inference_count"] - before["inference_count"], after["version"]) == (6, "1")
        assert after["execution_count"] - before["execution_count"] == 3
        assert after["last_inference"] >= before["last_inference"] > 1.7e12
        for name, count in (("success", 3), ("fail", 1), ("queue", 3), ("compute_infer", 3)):
            now, then = after["inference_stats"][name], before["inference_stats"][name]
            assert now["count"] - then["count"] == count and now["ns"] > then["ns"]
        assert next(size for size in after["batch_stats"] if size["batch_size"] == 2)["compute_infer"]["count"] >= 3
        assert {one["name"] for one in client.get("/v2/models/stats").json()["model_stats"]} >= {"mlp"}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"log_file": "/tmp/elsewhere"}, "log_file"),
        ({"log_format": "ISO8601"}, "log_format"),
        ({"log_info": 1}, "send true or false"),
        ({"log_verbose_level": -1}, "0 or more"),
        ({"log_warning": False}, "is logged too"),
        ({"log_colour": True}, "unknown log setting"),
    ],
)
def test_log_settings_that_can_not_be_are_refused_by_name(served: tuple[Process, str], asked: Any, says: str) -> None:
    with served[0].client() as client:
        before = client.get("/v2/logging").json()
        answer = client.post("/v2/logging", json=asked)
        assert answer.status_code == 400 and says in answer.json()["error"]
        assert client.get("/v2/logging").json() == before


def test_a_log_can_be_made_to_say_less(served: tuple[Process, str], tmp_path: Path) -> None:
    with served[0].client() as client:
        try:
            quiet = client.post("/v2/logging", json={"log_info": False}).json()
            assert quiet["log_info"] is False and quiet["log_warning"] is True
            asked = client.get("/v2/models/mlp").headers["x-request-id"]
        finally:
            loud = client.post("/v2/logging", json={"log_info": True})
        assert loud.json()["log_info"] is True
        last = loud.headers["x-request-id"]
        served[0].log.open().close()
        assert asked != last
