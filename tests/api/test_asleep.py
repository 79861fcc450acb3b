"""What every door says of a model that is not in memory, and that a request wakes it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.api.conftest import Running
from tests.waiting import wait_until

from maasdam.operations.fleet import Standing, worst

INPUTS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}


def put_to_sleep(service: Running, model: str, **how: Any) -> None:
    """Deployed on demand, and not in memory."""
    with service.client() as client:
        assert client.delete(f"/admin/deployments/{model}").status_code == 204
        answer = client.put(f"/admin/deployments/{model}", json={"mode": "on-demand"} | how)
        assert answer.status_code == 200 and answer.json()["mode"] == "on-demand"


def state(service: Running, model: str) -> str:
    return service.service.router.find(model).state


def test_what_is_asleep_is_ready_and_known(own_service: Running) -> None:
    for model in ("doubles", "text"):
        put_to_sleep(own_service, model, idle_seconds=90)
    with own_service.client() as client:
        assert client.get("/readyz").status_code == client.get("/v2/health/ready").status_code == 200
        assert client.get("/health").json()["models"]["asleep"] == 2
        for model in ("doubles", "text"):
            assert client.get(f"/v2/models/{model}/ready").json()["ready"] is True
        told = client.get("/v2/models/doubles").json()
        assert [tensor["name"] for tensor in told["inputs"]] == ["x"] and told["parameters"]["state"] == "asleep"
        assert [tensor["name"] for tensor in client.get("/v2/models/text").json()["inputs"]] == ["text_input"]
        assert client.get("/v2/models/doubles/config").json()["output"][0]["name"] == "y"
        index = {row["name"]: row for row in client.post("/v2/repository/index", json={"ready": True}).json()}
        assert (index["doubles"]["state"], index["doubles"]["reason"]) == ("READY", "it is loaded at the next request")
        row = next(row for row in client.get("/admin/deployments").json()["deployments"] if row["model"] == "doubles")
        assert (row["mode"], row["idle_seconds"], row["serving"][0]["state"]) == ("on-demand", 90, "asleep")
        assert "text" in [one["id"] for one in client.get("/v1/models").json()["data"]]
    assert state(own_service, "doubles") == state(own_service, "text") == "asleep", "asking about it wakes nobody"


def test_a_request_wakes_it_by_every_door(own_service: Running) -> None:
    for model in ("doubles", "images", "text"):
        put_to_sleep(own_service, model)
    with own_service.client() as client:
        answer = client.post("/v2/models/doubles/infer", json=INPUTS)
        assert answer.status_code == 200 and answer.json()["outputs"][0]["data"] == [2.0, 4.0]
        assert own_service.newest_row().status == 200
        with client.stream("POST", "/v1/completions", json={"model": "text", "prompt": "x", "stream": True}) as stream:
            assert stream.status_code == 200 and stream.read().endswith(b"data: [DONE]\n\n")
        refused = client.post("/v1/chat/completions", json={"model": "images", "messages": [{"role": "user", "content": "x"}]})
        assert refused.status_code == 400 and state(own_service, "images") == "asleep"
        shown = client.post("/v1/images/classifications", data={"model": "images"}, files={"file": b"ab"})
        assert shown.status_code == 200
        assert client.get("/health").json()["models"]["ready"] == 4


def test_load_wakes_it_and_it_stays_as_it_was_deployed(own_service: Running) -> None:
    put_to_sleep(own_service, "doubles", replicas=2, idle_seconds=90)
    with own_service.client() as client:
        assert client.post("/v2/repository/models/doubles/load").status_code == 200
        wait_until(lambda: len(own_service.service.router.find("doubles").replicas) == 2)
        row = next(row for row in client.get("/admin/deployments").json()["deployments"] if row["model"] == "doubles")
        assert (row["mode"], row["idle_seconds"], row["replicas"]) == ("on-demand", 90, 2)
        assert client.post("/v2/repository/models/doubles/unload").status_code == 200
        assert client.get("/v2/models/doubles/ready").status_code == 404


@pytest.mark.parametrize(
    ("own", "other", "told"),
    [
        ("asleep", "ready", "ready"),
        ("asleep", "asleep", "asleep"),
        ("waking", "asleep", "waking"),
        ("ready", "loading", "loading"),
        ("asleep", "failed", "failed"),
    ],
)
def test_of_several_workers_it_sleeps_where_none_has_it(own: str, other: str, told: str) -> None:
    others = [Standing(True, None, (("doubles", 1, other, None, 1),))]
    assert worst((own, None, 1), "doubles", 1, others)[0] == told


def test_status_and_metrics_say_what_models_hold(own_service: Running) -> None:
    from maasdam.cli.deploy import _text

    with own_service.client() as client:
        assert client.get("/admin/models").json()["memory_budget_bytes"] is None
        metrics = client.get("/metrics").text
    assert 'maasdam_model_load_seconds_count{how="start",phase="all"} 4.0' in metrics
    row: dict[str, Any] = dict.fromkeys(
        ("model", "version", "follows", "task", "format", "engine", "batching", "replicas", "traffic")
    )
    row |= {
        "isolate": False,
        "mode": "pin",
        "idle_seconds": None,
        "options": {"prefix_cache": "key"},
        "serving": [{"version": 1, "state": "ready", "memory_bytes": 12_000_000}],
    }
    told = {"url": "http://here", "state": "running", "hint": None, "memory_budget_bytes": 40_000_000}
    text = _text([row], told, [])
    assert "pin, prefix cache key" in text and "1 ready 12 MB" in text and "models hold 12 MB of 40 (memory_budget)" in text
