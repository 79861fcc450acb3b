"""Nothing but health is open, and a key opens only what its scopes say."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from tests.api.conftest import Running
from tests.waiting import until

from maasdam.accounts.keys import OPERATOR
from maasdam.api.access import OPEN, SCOPES
from maasdam.core import Caller
from maasdam.errors import Unauthenticated
from maasdam.operations.service import Service

TENSOR = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}


def every_route(service: Running) -> list[tuple[str, str]]:
    with service.client() as client:
        spec = client.get("/openapi.json").json()
    routes = [(method.upper(), path) for path, methods in spec["paths"].items() for method in methods]
    return [*routes, ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/no/such/route"), ("POST", "/v1/nothing")]


def test_every_route_but_health_refuses_a_caller_without_a_key(fake_service: Running) -> None:
    routes = every_route(fake_service)
    assert len(routes) > 30
    with httpx.Client(base_url=fake_service.url) as client:
        for method, path in routes:
            answer = client.request(method, path.format(model="doubles", version="1", key="k", request_id="r", response_id="r"))
            if path in OPEN:
                assert answer.status_code == 200, path
            else:
                assert answer.status_code == 401, (method, path, answer.status_code)
                assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Basic abc", "Bearer wrong", "Bearer mdm_x_y", "Bearer ü".encode(), "Bearer " + "x" * 5000]
)
def test_a_wrong_key_is_refused_in_the_doors_own_words(fake_service: Running, value: str | bytes) -> None:
    with httpx.Client(base_url=fake_service.url, headers={"Authorization": value}) as client:
        answer = client.get("/v1/models")
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert client.post("/v2/models/doubles/infer", json=TENSOR).json()["error"]
        assert client.get("/admin/models").json()["title"] == "Unauthorized"


def test_a_key_without_the_scope_is_refused(fake_service: Running) -> None:
    with fake_service.client(fake_service.key) as client:
        assert client.get("/v1/models").status_code == 200
        for method, path in [
            ("GET", "/admin/keys"),
            ("POST", "/admin/keys"),
            ("GET", "/admin/usage"),
            ("GET", "/admin/models"),
            ("PUT", "/admin/deployments/doubles"),
            ("DELETE", "/admin/deployments/doubles"),
            ("POST", "/v2/repository/models/doubles/unload"),
            ("GET", "/admin"),
            ("GET", "/adminfoo"),
        ]:
            answer = client.request(method, path)
            assert answer.status_code == 403, (path, answer.text)
        assert client.get("/metrics").status_code == client.get("/docs").status_code == 200


def test_a_key_that_may_only_deploy_may_not_infer_or_administer(fake_service: Running) -> None:
    _, secret = fake_service.records.keys.create("ci", ["deploy"])
    with fake_service.client(secret) as client:
        assert client.post("/v2/models/doubles/infer", json=TENSOR).status_code == 403
        assert client.get("/admin/deployments").status_code == 200
        assert client.get("/admin/keys").status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models",
        "/v1//models",
        "/V1/models",
        "/v1/models/../../health",
        "/health/",
        "/health/../admin/keys",
        "/%2fhealth",
        "/v2/health/live/",
        "/v2/health/live%2f..%2f..%2fmodels",
    ],
)
def test_no_spelling_of_a_path_is_a_way_around(fake_service: Running, path: str) -> None:
    import socket

    it = socket.create_connection(("127.0.0.1", fake_service.port))
    it.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert it.recv(1000).startswith(b"HTTP/1.1 401")


def test_a_revoked_key_is_refused_within_a_second(fake_service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = fake_service.records.keys
    record, secret = fake_service.records.keys.create("leaver", ["infer"])
    with fake_service.client(secret) as client:
        assert client.get("/v1/models").status_code == 200
        with fake_service.client() as admin:
            assert admin.delete(f"/admin/keys/{record.id}").status_code == 204
        now = keys._clock
        monkeypatch.setattr(keys, "_clock", lambda: now() + 1.0)
        assert client.get("/v1/models").status_code == 401


def test_keys_are_made_and_listed_without_their_secrets(client: httpx.Client) -> None:
    made = client.post("/admin/keys", json={"name": "bob", "scopes": ["infer"]})
    assert made.status_code == 201 and made.json()["secret"].startswith("mdm_")
    listed = client.get("/admin/keys").text
    assert "bob" in listed and made.json()["secret"] not in listed and "hash" not in listed
    for body in (
        {"name": "bob", "scopes": ["root"]},
        {"name": "", "scopes": ["infer"]},
        {"name": "x", "scopes": []},
        {"nome": 1},
    ):
        assert client.post("/admin/keys", json=body).status_code == 400
    assert client.delete("/admin/keys/none").status_code == 404


def test_without_keys_only_this_machine_is_answered(open_to_all: Running) -> None:
    with httpx.Client(base_url=open_to_all.url) as client:
        assert client.post("/v2/models/doubles/infer", json=TENSOR).status_code == 200
        assert client.get("/docs").status_code == 200
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Host": "127.0.0.1.evil.example"}):
            assert client.get("/v1/models", headers=headers).status_code == 403
        assert client.get("/v1/models", headers={"Origin": "http://localhost:3000"}).status_code == 200


def test_scopes_cover_every_prefix_once() -> None:
    assert len({prefix for prefix, _ in SCOPES}) == len(SCOPES)
    assert FastAPI  # the table, not the framework, decides


@pytest.mark.parametrize("name", ["Authorization", "api-key", "x-api-key", "X-API-Key"])
def test_a_key_is_read_where_clients_send_it(fake_service: Running, name: str) -> None:
    value = f"Bearer {fake_service.key}" if name == "Authorization" else fake_service.key
    with httpx.Client(base_url=fake_service.url) as client:
        assert client.get("/v1/models", headers={name: value}).status_code == 200
        assert client.get("/v1/models", headers={name: value[:-1]}).status_code == 401
        assert client.get("/v1/models", headers={name: ""}).status_code == 401
        if name != "Authorization":  # which is the one that counts where there are two
            assert client.get("/v1/models", headers={name: value, "Authorization": "Bearer wrong"}).status_code == 401


async def test_what_was_looked_up_before_a_revocation_answers_nobody_who_comes_after_it() -> None:
    class Slow:
        """Keys that are read, and then take their time."""

        times_forgotten = 0

        def __init__(self) -> None:
            self.is_revoked = False
            self.has_read, self.goes_on = threading.Event(), threading.Event()

        def seen(self, secret: str) -> None:
            return None

        def check(self, secret: str) -> Caller:
            is_revoked = self.is_revoked
            self.has_read.set()
            assert self.goes_on.wait(30)
            if is_revoked:
                raise Unauthenticated("revoked")
            return OPERATOR

    service: Any = object.__new__(Service)
    service._lookups, service.keys = {}, Slow()
    before = asyncio.ensure_future(service.authenticate("s"))
    await until(service.keys.has_read.is_set)
    service.keys.is_revoked, service.keys.times_forgotten = True, 1
    after = [asyncio.ensure_future(service.authenticate("s")) for _ in range(2)]
    await asyncio.sleep(0)
    assert len(service._lookups) == 2, "one for all who ask"
    service.keys.goes_on.set()
    assert await before == OPERATOR
    for one in after:
        with pytest.raises(Unauthenticated):
            await one
    await until(lambda: not service._lookups)
