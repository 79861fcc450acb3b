"""Errors, probes and documents in the words that clients of the standards look for."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from tests.api.conftest import Running, client, fake_service  # noqa: F401  fixtures

from maasdam.api.errors import refusal
from maasdam.errors import ModelNotFound, NotFound

CHAT = {"model": "text", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
LONG = {"model": "text", "messages": [{"role": "user", "content": "x" * 100}]}


@pytest.mark.parametrize(
    ("method", "path", "send", "status", "code"),
    [
        ("GET", "/v1", {}, 404, "not_found"),
        ("GET", "/v1/nowhere", {}, 404, "not_found"),
        ("POST", "/v1/nowhere", {"json": {}}, 404, "not_found"),
        ("DELETE", "/v1/models/text", {}, 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions", {}, 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions", {"content": b"x" * 3_000_000}, 413, "too_large"),
        ("POST", "/v1/chat/completions", {"content": b"x"}, 400, "invalid_request"),
        ("POST", "/v1/chat/completions", {"content": b"x", "headers": {"content-type": "text/plain"}}, 415, None),
        ("POST", "/v1/audio/transcriptions", {"json": {"model": "speech"}}, 415, None),
        ("POST", "/v1/images/classifications", {"content": b"x", "headers": {"content-type": "text/plain"}}, 415, None),
        ("POST", "/v1/images/classifications", {"json": {"model": "ghost", "image": ""}}, 404, "model_not_found"),
        ("GET", "/v1/images/classifications", {}, 405, "method_not_allowed"),
        ("POST", "/v1/embeddings", {"json": {"model": "ghost", "input": "a"}}, 404, "model_not_found"),
        ("POST", "/v1/chat/completions", {"json": CHAT, "headers": {"authorization": "Bearer x"}}, 401, "invalid_api_key"),
        ("POST", "/v1/chat/completions", {"json": CHAT | {"model": "ghost", "n": 5}}, 404, "model_not_found"),
        ("POST", "/v1/chat/completions", {"json": LONG}, 400, "context_length_exceeded"),
    ],
)
def test_all_of_v1_errs_as_openai_does(
    client: httpx.Client,
    method: str,
    path: str,
    send: dict[str, Any],
    status: int,
    code: str | None,
) -> None:
    answer = client.request(method, path, **send)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert error["code"] == (code or "unsupported_media_type")
    assert ("allow" in answer.headers) == (status == 405)


def test_the_context_error_is_in_the_phrase_that_clients_parse(client: httpx.Client) -> None:
    error = client.post("/v1/chat/completions", json=LONG).json()["error"]
    assert (
        error["message"].startswith("This model's maximum context length is 64 tokens. However, ") and "100" in error["message"]
    )


def test_an_errors_code_is_its_kind_not_its_wording() -> None:
    for error, code, param in (
        (NotFound("no model stands here"), "not_found", None),
        (ModelNotFound("what is ghost?"), "model_not_found", "model"),
    ):
        refused = refusal(error, "id")
        assert (refused.code, refused.param) == (code, param)


def test_curl_without_a_content_type_is_told_so(client: httpx.Client) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/admin/keys"):
        headers = {"content-type": "application/x-www-form-urlencoded"}
        answer = client.post(path, content=json.dumps(CHAT), headers=headers)
        assert answer.status_code == 415 and "curl -d" in answer.text and "Content-Type: application/json" in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/health",
        "/v1/models",
        "/v1/models/text",
        "/v2",
        "/v2/models/doubles",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/admin/keys",
    ],
)
def test_what_has_get_has_head_and_options(client: httpx.Client, path: str) -> None:
    get, head, options = (client.request(method, path) for method in ("GET", "HEAD", "OPTIONS"))
    assert head.status_code == get.status_code == 200 and head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    allowed = set(options.headers["allow"].split(", "))
    assert options.status_code == 204 and {"GET", "HEAD", "OPTIONS"} <= allowed
    assert set(client.request("TRACE", path).headers["allow"].split(", ")) == allowed
    assert ("POST" in allowed) == (path == "/admin/keys"), "all of the path's methods, not of one route only"


def test_probes_need_no_key(fake_service: Running) -> None:
    for path in ("/healthz", "/livez", "/readyz", "/health"):
        assert httpx.get(fake_service.url + path).status_code == 200


def events(answer: httpx.Response) -> list[Any]:
    return [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_stream_chunks_say_usage_null_where_usage_was_asked_for(client: httpx.Client, path: str) -> None:
    asked = (CHAT if "chat" in path else {"model": "text", "prompt": "hi", "max_tokens": 2}) | {"stream": True}
    *chunks, last = events(client.post(path, json=asked | {"stream_options": {"include_usage": True}}))
    assert chunks and all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 2
    assert all("usage" not in chunk for chunk in events(client.post(path, json=asked)))


def test_no_tokens_may_be_asked_for_where_the_standard_has_it(client: httpx.Client, fake_service: Running) -> None:
    answer = client.post("/v1/completions", json={"model": "text", "prompt": "hi", "max_tokens": 0})
    assert answer.status_code == 200
    (choice,) = answer.json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "length")
    assert answer.json()["usage"]["prompt_tokens"] == 2 and answer.json()["usage"]["completion_tokens"] == 0
    (row,) = fake_service.rows(answer.headers["x-request-id"])
    assert (row.prompt_tokens, row.completion_tokens, row.status) == (2, 0, 200)
    streamed = client.post("/v1/completions", json={"model": "text", "prompt": "hi", "max_tokens": 0, "stream": True})
    assert [event["choices"][0]["finish_reason"] for event in events(streamed)] == ["length"]
    assert client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 0}).status_code == 400


def test_the_document_says_who_needs_a_key_and_which_codes_come(client: httpx.Client) -> None:
    spec = client.get("/openapi.json").json()
    assert spec["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer" and spec["security"] == [{"bearer": []}]
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            codes = set(operation["responses"])
            is_open = path in ("/health", "/v2/health/live", "/v2/health/ready")
            assert "422" not in codes and (operation.get("security") == []) == is_open
            assert is_open or {"401", "403"} <= codes
            assert method != "post" or {"413", "415"} <= codes
    chat = spec["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(chat["200"]["content"]) == {"application/json", "text/event-stream"}
    infer = spec["paths"]["/v2/models/{model}/infer"]["post"]
    assert {one["in"] for one in infer["parameters"]} == {"path"} and "application/octet-stream" in infer["responses"]["200"][
        "content"
    ]
    body = spec["components"]["schemas"]["ChatBody"]
    message = body["properties"]["messages"]["items"]
    assert message["properties"]["name"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert body["additionalProperties"] is False and body["properties"]["temperature"]["anyOf"][0]["maximum"] == 2
