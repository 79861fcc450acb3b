"""Ids of a caller's own come back, never as the ledger's; and which web pages may call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from tests.api.conftest import SMALL, Running, client, fake_service, run_in_thread  # noqa: F401  fixtures

from maasdam.api.correlation import trace_of, well_formed
from maasdam.api.cors import Origins
from maasdam.errors import InvalidInput, NotFound
from maasdam.operations.requests import find_request
from maasdam.settings import Settings
from maasdam.telemetry.logs import LogFile, lines_of
from maasdam.telemetry.requests import Ended, RequestLines

TENSOR = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
ALLOWED = "https://app.example.com"


@pytest.mark.parametrize("theirs", ["abc-123", "4bf92f35-77b3-4da6-a3ce-929d0e0e4736", "req_0123456789", "a" * 128])
@pytest.mark.parametrize("path", ["/v2/models/doubles/infer", "/v2/models/ghost/infer", "/v1/nothing"])
def test_a_well_formed_id_comes_back_beside_ours(client: httpx.Client, fake_service: Running, theirs: str, path: str) -> None:
    answers = [client.post(path, json=TENSOR, headers={"X-Request-Id": theirs}) for _ in range(2)]
    assert [answer.headers.get_list("x-request-id") for answer in answers] == [[theirs], [theirs]]
    own = {answer.headers["maasdam-request-id"] for answer in answers}
    assert len(own) == 2, "two requests, two rows"
    if "doubles" in path:
        assert all(len(fake_service.rows(one)) == 1 for one in own) and not fake_service.rows(theirs)


@pytest.mark.parametrize("theirs", ["", "id", "a b c d", "a" * 129, "<script>", "a;b,c\"d'e"])
def test_what_is_none_is_replaced(client: httpx.Client, theirs: str) -> None:
    answer = client.get("/health", headers={"X-Request-Id": theirs})
    assert len(answer.headers["x-request-id"]) == 32 and "maasdam-request-id" not in answer.headers
    assert well_formed(theirs.encode()) is None


def test_a_request_is_found_by_its_callers_id_too(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "maasdam.log", 0, 0)
    ours = [f"{i:032x}" for i in range(3)]
    told = [(ours[0], "mine-123"), (ours[1], "mine-123"), (ours[2], ours[1])]
    lines = [{"event": "request", "request_id": own, "client_request_id": theirs} for own, theirs in told]
    file.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [line["request_id"] for line in lines_of("mine-123", file)] == ours[:2]
    assert [line["request_id"] for line in lines_of(ours[1], file)] == [ours[1]], "nobody can take another's place"
    where = SimpleNamespace(
        settings=Settings(home=tmp_path, log_file=str(file.path)), ledger=SimpleNamespace(row=lambda request_id: None)
    )
    assert find_request(where, "mine-123")["request_id"] == ours[1], "the newest"
    with pytest.raises(NotFound, match="no request other-id"):
        find_request(where, "other-id")


async def test_the_line_has_the_callers_id(caplog: pytest.LogCaptureFixture) -> None:
    lines = RequestLines()
    with caplog.at_level("INFO", logger="maasdam.requests"):
        for theirs in ("mine-123", None):
            lines.add(Ended("r", None, "GET", "/x", 200, 0.1, None, None, None, theirs), 200, None, None)
        lines.flush()
    first, second = (json.loads(line) for line in caplog.records[-1].getMessage().splitlines())
    assert first["client_request_id"] == "mine-123" and "client_request_id" not in second


def test_a_traceparent_is_read_as_w3c_has_it() -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    assert trace_of(f"00-{trace}-00f067aa0ba902b7-01".encode()) == (trace, "00f067aa0ba902b7", "01")
    assert trace_of(f"cc-{trace}-00f067aa0ba902b7-ff-what-the-future-has".encode()) == (trace, "00f067aa0ba902b7", "01")
    for wrong in (None, b"", trace.encode(), f"00-{trace.upper()}-00f067aa0ba902b7-01".encode(), b"00-" + b"x" * 52):
        assert trace_of(wrong) is None
    for wrong in (f"ff-{trace}-00f067aa0ba902b7-01", f"00-{trace}-00f067aa0ba902b7-01-more", f"00-{trace}-{'0' * 16}-01"):
        assert trace_of(wrong.encode()) is None
    assert trace_of(f"00-{'0' * 32}-00f067aa0ba902b7-01".encode()) is None


@pytest.mark.parametrize("path", ["/v2/models/doubles/infer", "/v2/models/ghost/infer", "/v1/nothing"])
def test_a_request_says_its_place_in_a_trace(client: httpx.Client, path: str) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    answers = [client.post(path, json=TENSOR, headers={"traceparent": f"00-{trace}-{parent}-01"}) for _ in range(2)]
    spans = [answer.headers["x-request-id"][-16:] for answer in answers]
    assert [answer.headers["traceresponse"] for answer in answers] == [f"00-{trace}-{span}-01" for span in spans]
    assert parent not in spans and len(set(spans)) == 2
    for none in ({}, {"traceparent": f"ff-{trace}-{parent}-01"}):
        assert "traceresponse" not in client.post(path, json=TENSOR, headers=none).headers


@pytest.fixture(scope="module")
def browsed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    home = tmp_path_factory.mktemp("home")
    for running in run_in_thread(home, replace(SMALL, home=home, cors_origins=f"{ALLOWED}, http://localhost:3000")):
        with running.client() as it:
            yield it


def test_a_page_of_an_allowed_origin_may_call(browsed: httpx.Client) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    for origin in (ALLOWED, "http://localhost:3000"):
        headers = {"Origin": origin, "Authorization": ""} | asks  # a browser sends no key with its question
        answer = browsed.options("/v1/chat/completions", headers=headers)
        assert answer.status_code == 204 and answer.headers["access-control-allow-origin"] == origin
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert answer.headers["access-control-allow-headers"] == "authorization, content-type"
        real = browsed.post("/v2/models/doubles/infer", json=TENSOR, headers={"Origin": origin})
        assert real.status_code == 200 and real.headers["access-control-allow-origin"] == origin
        assert "x-request-id" in real.headers["access-control-expose-headers"]
        refused = browsed.get("/v1/models", headers={"Origin": origin, "Authorization": "Bearer wrong"})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in real.headers


def test_no_other_page_may(browsed: httpx.Client, client: httpx.Client) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Authorization": ""}
    for origin in ("https://evil.example", "null", f"{ALLOWED}.evil.example", "http://app.example.com"):
        for it in (browsed, client):
            answer = it.options("/v1/chat/completions", headers={"Origin": origin} | asks)
            assert answer.status_code == 401 and "access-control-allow-origin" not in answer.headers
            assert "access-control-allow-origin" not in it.get("/health", headers={"Origin": origin}).headers
    assert "access-control-allow-origin" not in client.get("/health", headers={"Origin": ALLOWED}).headers
    assert browsed.get("/health").headers["vary"] == "Origin"


def test_the_setting_is_read_or_refused() -> None:
    assert Origins.of("").names == frozenset() and Origins.of("*").is_any
    assert dict(Origins.of("*").headers([(b"origin", b"https://any.example")]))[b"access-control-allow-origin"]
    for wrong in ("app.example.com", "https://", "https://a.example/path", "ftp://a.example", "https://a.example https://b"):
        with pytest.raises(InvalidInput, match="cors_origins"):
            Origins.of(wrong)


def test_a_service_with_a_wrong_setting_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cors_origins has 'nonsense'"):
        next(run_in_thread(tmp_path, replace(SMALL, home=tmp_path, cors_origins="nonsense")))
