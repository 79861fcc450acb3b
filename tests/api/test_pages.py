"""What the service says of itself: documents, metrics, deployments."""

from __future__ import annotations

import re
import time

import httpx
from tests.api.conftest import Running, wait_for

TENSOR = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}


def test_the_docs_name_every_route_and_fetch_nothing(client: httpx.Client) -> None:
    spec = client.get("/openapi.json").json()
    text = client.get("/docs").text
    for path in spec["paths"]:
        assert f"<code>{path}</code>" in text
    assert not re.findall(r"(?:src|href)=\"(?!/openapi.json)", text)


def test_the_openapi_document_has_a_body_for_every_post_and_put(client: httpx.Client) -> None:
    spec = client.get("/openapi.json").json()
    bare = {
        path
        for path, methods in spec["paths"].items()
        for method, route in methods.items()
        if method in ("post", "put") and "requestBody" not in route
    }
    others = ("/v1/audio/translations", "/v1/responses/{response_id}/cancel")
    assert all(path.startswith("/v2/repository/") or path in others for path in bare), bare


def test_every_answer_carries_its_id_and_its_cost(client: httpx.Client, fake_service: Running) -> None:
    answer = client.post("/v2/models/doubles/infer", json=TENSOR)
    assert float(answer.headers["maasdam-compute-seconds"]) >= 0
    assert float(answer.headers["maasdam-joules"]) >= 0 and answer.headers["maasdam-grams-co2e"] == "null"
    assert answer.headers["maasdam-energy-method"] == "estimate: CPU-seconds x 10 W per core"
    (row,) = fake_service.rows(answer.headers["x-request-id"])
    assert row.status == 200 and row.items == 1 and row.caller == "chief" and row.endpoint == "/v2/infer"
    assert len({client.get("/health").headers["x-request-id"] for _ in range(20)}) == 20


def test_a_client_can_not_choose_the_request_id(client: httpx.Client) -> None:
    answers = [client.post("/v2/models/doubles/infer", json=TENSOR, headers={"X-Request-Id": "mine"}) for _ in range(2)]
    assert {answer.status_code for answer in answers} == {200}
    assert "mine" not in {answer.headers["x-request-id"] for answer in answers}


def test_metrics_count_by_model_version_and_status(client: httpx.Client) -> None:
    client.post("/v2/models/doubles/infer", json=TENSOR)
    client.post("/v2/models/no-such-model/infer", json=TENSOR)
    client.post("/v1/completions", json={"model": "text", "prompt": "a", "max_tokens": 2, "stream": True})
    text = client.get("/metrics").text
    assert re.search(r'maasdam_requests_total\{model="doubles",status="200",task="",version="1"\} [1-9]', text)
    assert re.search(r'maasdam_requests_total\{model="",status="404",task="",version=""\} [1-9]', text)
    assert re.search(r'maasdam_time_to_first_token_seconds_count\{model="text",.*\} [1-9]', text)
    assert re.search(r'maasdam_queue_depth\{model="doubles",version="1"\} 0', text)
    assert "no-such-model" not in text, "callers must not be able to make up time series"


def test_a_deployment_is_made_changed_and_taken_away(own_service: Running) -> None:
    with own_service.client() as client:
        assert client.delete("/admin/deployments/doubles").status_code == 204
        began = time.monotonic()
        wait_for(lambda: client.get("/v2/models/doubles").status_code == 404)
        assert time.monotonic() - began < 1
        assert client.delete("/admin/deployments/doubles").status_code == 404
        assert client.put("/admin/deployments/ghost", json={}).status_code == 404
        assert client.put("/admin/deployments/doubles", json={"version": 9}).status_code == 404
        for body in ({"replicas": 0}, {"replicas": "many"}, {"version": 0}, {"colour": "red"}, []):
            answer = client.put("/admin/deployments/doubles", json=body)
            assert answer.status_code == 400 and answer.headers["content-type"] == "application/problem+json"
        made = client.put("/admin/deployments/doubles", json={"version": 1, "replicas": 2})
        assert made.status_code == 200 and made.json()["replicas"] == 2
        wait_for(lambda: client.get("/v2/models/doubles/ready").status_code == 200)

        def replicas() -> int:
            rows = client.get("/admin/deployments").json()["deployments"]
            return int(next(row for row in rows if row["model"] == "doubles")["serving"][0]["replicas"])

        wait_for(lambda: replicas() == 2)


def test_a_deployment_from_elsewhere_is_followed_within_a_second(own_service: Running) -> None:
    own_service.records.catalog.undeploy("images")
    began = time.monotonic()
    with own_service.client() as client:
        wait_for(lambda: "images" not in client.get("/v1/models").text)
    assert time.monotonic() - began < 1


def test_a_model_that_can_not_be_loaded_says_why_to_those_who_may_deploy(own_service: Running) -> None:
    records = own_service.records
    broken = records.store.artifacts["sha256:doubles"]
    from dataclasses import replace

    records.store.artifacts["sha256:broken"] = replace(broken, digest="sha256:broken", task="image-classification")
    records.catalog.register("broken", replace(broken, digest="sha256:gone"), source="x", recipe="x", report={"passed": True})
    records.catalog.deploy("broken")
    with own_service.client() as client:
        wait_for(lambda: client.get("/health").json()["models"]["failed"] == 1)
        row = next(row for row in client.get("/admin/models").json()["models"] if row["model"] == "broken")
        assert row["state"] == "failed" and "gone" in row["reason"]
        answer = client.post("/v2/models/broken/infer", json=TENSOR)
        assert answer.status_code == 503 and "failed to load" in answer.json()["error"]
        assert client.post("/v2/models/doubles/infer", json=TENSOR).status_code == 200
        assert client.get("/v2/health/ready").status_code == 200
