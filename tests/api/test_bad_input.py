"""Whatever is sent, each door answers in its own words, says what to do, shows no traceback, and goes on working."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from tests.api.conftest import Running, wait_for
from tests.fakes import FakeProcessor

from maasdam.core import AudioPayload

INFER = "/v2/models/doubles/infer"
CHAT = "/v1/chat/completions"
IMAGES = "/v1/images/classifications"
SPEECH = "/v1/audio/transcriptions"
JSON = {"content-type": "application/json"}
GOOD_TENSOR = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


@pytest.fixture(autouse=True)
def still_up(client: httpx.Client) -> Iterator[None]:
    """After every test the service answers as before."""
    yield
    answer = client.post(INFER, json={"inputs": [GOOD_TENSOR]})
    assert answer.status_code == 200 and answer.json()["outputs"][0]["data"] == [2, 4]


def sentence(answer: httpx.Response) -> str:
    """The error's sentence, in the form of the door it came from; never a traceback."""
    assert answer.headers["x-request-id"]
    assert "Traceback" not in answer.text and 'File "' not in answer.text
    path = answer.request.url.path
    body = answer.json()
    if path.startswith("/v2"):
        assert set(body) == {"error"}
        return str(body["error"])
    if path.startswith("/v1") and not path.startswith("/v1/images"):
        assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
        return str(body["error"]["message"])
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["status"] == answer.status_code and body["request_id"] == answer.headers["x-request-id"]
    return str(body["detail"])


def infer(client: httpx.Client, *inputs: dict[str, Any], **more: Any) -> httpx.Response:
    return client.post(INFER, json={"inputs": list(inputs)} | more)


@pytest.mark.parametrize("path", [INFER, CHAT, "/v1/completions", IMAGES, "/v1/embeddings"])
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b"", "."),
        (b"[]", "."),
        (b"null", "."),
        (b"[" * 100_000, "nests deeper than 64"),
        (b'{"a":' * 1000 + b"1" + b"}" * 1000, "nests deeper than 64"),
    ],
)
def test_json_that_is_none(client: httpx.Client, path: str, body: bytes, says: str) -> None:
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code == 400, answer.text
    if path == INFER and says != "nests deeper than 64":
        assert sentence(answer)
    else:
        assert says in sentence(answer) or says == "."


@pytest.mark.parametrize(
    ("path", "send"),
    [
        ("/v2/models/ghost/infer", {"json": {"inputs": [GOOD_TENSOR]}}),
        ("/v2/models/doubles/versions/9/infer", {"json": {"inputs": [GOOD_TENSOR]}}),
        (CHAT, {"json": {"model": "ghost", "messages": [{"role": "user", "content": "hi"}]}}),
        ("/v1/completions", {"json": {"model": "ghost", "prompt": "hi", "stream": True}}),
        (IMAGES, {"data": {"model": "ghost"}, "files": {"file": b"AB"}}),
        (SPEECH, {"data": {"model": "ghost"}, "files": {"file": b"AB"}}),
    ],
)
def test_an_unknown_model_is_told_what_there_is(client: httpx.Client, fake_service: Running, path: str, send: Any) -> None:
    answer = client.post(path, **send)
    assert answer.status_code == 404
    told = sentence(answer)
    assert "doubles, images, speech, text" in told or "versions being served: 1" in told
    if path == CHAT:
        assert answer.json()["error"]["code"] == "model_not_found" and answer.json()["error"]["param"] == "model"
    (row,) = fake_service.rows(answer.headers["x-request-id"])
    assert row.status == 404 and row.items == 0 and row.compute_seconds is None


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([], "at least one"),
        ([GOOD_TENSOR, GOOD_TENSOR], "named twice"),
        ([GOOD_TENSOR | {"name": "z"}], "takes: x"),
        ([GOOD_TENSOR, GOOD_TENSOR | {"name": "z"}], "takes: x"),
        ([GOOD_TENSOR | {"datatype": "FP64"}], "send float32"),
        ([GOOD_TENSOR | {"shape": [1, 3], "data": [1, 2, 3]}], "send \\[-1, 2\\]"),
        ([GOOD_TENSOR | {"shape": [2]}], "send \\[-1, 2\\]"),
        ([GOOD_TENSOR | {"shape": [0, 2], "data": []}], "empty"),
        ([GOOD_TENSOR | {"shape": [1 << 62, 2]}], "more elements"),
        ([GOOD_TENSOR | {"data": [1, "a"]}], "numbers"),
        ([GOOD_TENSOR | {"data": None}], "no data"),
        ([GOOD_TENSOR | {"parameters": {"shared_memory_region": "r"}}], "shared memory"),
        ([{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["a"]}], "send raw tensors"),
    ],
)
def test_tensors_that_do_not_fit(client: httpx.Client, inputs: list[Any], says: str) -> None:
    answer = infer(client, *inputs)
    assert answer.status_code == 400
    import re

    assert re.search(says, sentence(answer)), answer.text


@pytest.mark.parametrize("value", ["nan"])
def test_nan_in_binary_is_refused(client: httpx.Client, value: str) -> None:
    import numpy as np

    raw = np.array([[np.nan, 1]], np.float32).tobytes()
    answer = binary(client, [GOOD_TENSOR | {"data": None, "parameters": {"binary_data_size": 8}}], raw)
    assert answer.status_code == 400 and "NaN" in sentence(answer)


def binary(client: httpx.Client, inputs: list[Any], raw: bytes, length: str | None = None) -> httpx.Response:
    inputs = [{k: v for k, v in one.items() if v is not None} for one in inputs]
    head = json.dumps({"inputs": inputs}).encode()
    headers = {"Inference-Header-Content-Length": length if length is not None else str(len(head))}
    return client.post(INFER, content=head + raw, headers=headers)


@pytest.mark.parametrize("length", ["-1", "1e3", "0", "99999999", "9" * 40, "abc", "", "0x10", "12.5"])
def test_a_lying_header_length_is_refused(client: httpx.Client, length: str) -> None:
    answer = binary(client, [GOOD_TENSOR], b"", length)
    assert answer.status_code == 400 and sentence(answer)


@pytest.mark.parametrize("size", [-1, 7, 9, 1 << 70, True, "8", 1.5])
def test_a_lying_binary_size_is_refused(client: httpx.Client, size: Any) -> None:
    answer = binary(client, [GOOD_TENSOR | {"data": None, "parameters": {"binary_data_size": size}}], b"12345678")
    assert answer.status_code == 400 and sentence(answer)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"outputs": [{"name": "z"}]}, "gives: y"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "named twice"),
        ({"outputs": [{"name": "y", "parameters": {"classification": -3}}]}, "classification"),
        ({"parameters": {"timeout": -5}}, "microseconds"),
        ({"parameters": {"sequence_id": 7}}, "no state"),
        ({"id": 7}, "id"),
    ],
)
def test_what_is_asked_wrongly(client: httpx.Client, more: dict[str, Any], says: str) -> None:
    answer = infer(client, GOOD_TENSOR, **more)
    assert answer.status_code == 400 and says in sentence(answer)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, "model"),
        ({"model": "text"}, "messages"),
        ({"model": "text", "messages": []}, "messages"),
        ({"model": 5, "messages": [{"role": "user", "content": "hi"}]}, "model"),
        ({"model": "text", "messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"model": "text", "messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"model": "text", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"seed": "x"}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"frequency_penalty": 9}, "frequency_penalty"),
        ({"made_up": 1}, "made_up"),
    ],
)
def test_chat_fields_that_can_not_be_honoured_are_named(client: httpx.Client, body: dict[str, Any], param: str) -> None:
    good = {"model": "text", "messages": [{"role": "user", "content": "hi"}]}
    whole = body if "messages" in body or body.get("model") else good | body
    answer = client.post(CHAT, json=whole)
    assert answer.status_code == 400, answer.text
    assert sentence(answer) and answer.json()["error"]["param"] == param


@pytest.mark.parametrize("prompt", [None, 5, [], [[]], [""] * 65, ["a", 5], {"a": 1}, [["a"]], [10**23], [[1, -1]]])
def test_prompts_that_are_none(client: httpx.Client, prompt: Any) -> None:
    answer = client.post("/v1/completions", json={"model": "text", "prompt": prompt})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("field", ["echo", "best_of", "suffix", "logprobs"])
def test_completion_fields_that_can_not_be_honoured_are_named(client: httpx.Client, field: str) -> None:
    value: Any = {"echo": True, "best_of": 3, "suffix": "x", "logprobs": 2}[field]
    answer = client.post("/v1/completions", json={"model": "text", "prompt": "a", field: value})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_is_refused(client: httpx.Client, stream: bool) -> None:
    answer = client.post("/v1/completions", json={"model": "text", "prompt": "x" * 100, "stream": stream})
    assert answer.status_code == 400 and "context is 64" in sentence(answer)
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", [IMAGES, SPEECH])
def test_files_that_are_none(client: httpx.Client, path: str) -> None:
    model = "images" if path == IMAGES else "speech"
    for data in (b"", b"bad"):
        answer = client.post(path, data={"model": model}, files={"file": ("f", data)})
        assert answer.status_code == 400 and "send PNG or JPEG" in sentence(answer)
    for send in ({"data": {"model": model}}, {"files": {"file": b"AB"}}, {"content": b"AB"}, {"json": {}}):
        answer = client.post(path, **send)
        assert answer.status_code in (400, 415), answer.text
        assert sentence(answer)


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data; boundary=x", "multipart/form-data; boundary=" + "y" * 500]
)
@pytest.mark.parametrize("path", [IMAGES, SPEECH])
def test_forms_that_are_none(client: httpx.Client, path: str, content_type: str) -> None:
    for content in (b"", b"rubbish", b"--x\r\n", b"--x\r\nContent-Disposition: form-data; name=file\r\n\r\n"):
        answer = client.post(path, content=content, headers={"content-type": content_type})
        assert answer.status_code == 400, answer.text
        assert sentence(answer)


@pytest.mark.parametrize(
    "body",
    [
        {"model": "images", "image": "!!!"},
        {"model": "images", "image": 5},
        {"model": "images", "image": "https://example.com/cat.png"},
        {"model": "images", "image": "file:///etc/passwd"},
        {"model": "images", "image": "data:image/png,abc"},
        {"model": "images", "image": "QUI=", "top_k": 0},
        {"model": "images", "image": "QUI=", "top_k": "many"},
        {"model": ["images"], "image": "QUI="},
    ],
)
def test_image_json_that_is_none(client: httpx.Client, body: dict[str, Any]) -> None:
    answer = client.post(IMAGES, json=body)
    assert answer.status_code == 400 and sentence(answer)


@pytest.mark.parametrize(
    ("path", "send"),
    [
        (IMAGES, {"data": {"model": "text"}, "files": {"file": b"AB"}}),
        (SPEECH, {"data": {"model": "images"}, "files": {"file": b"AB"}}),
        (CHAT, {"json": {"model": "images", "messages": [{"role": "user", "content": "hi"}]}}),
        ("/v2/models/text/infer", {"json": {"inputs": [GOOD_TENSOR]}}),
    ],
)
def test_a_model_of_another_task_is_told_where_to_go(client: httpx.Client, path: str, send: Any) -> None:
    answer = client.post(path, **send)
    assert answer.status_code == 400 and "use POST" in sentence(answer)


def test_what_no_model_does_is_said_so(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", json={"model": "text", "input": "a"})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_request"
    message = answer.json()["error"]["message"]
    assert "does text-generation, not " in message and "feature-extraction; use POST /v1/chat/completions" in message
    answer = client.post("/v1/audio/translations", data={"model": "speech"}, files={"file": b"AB"})
    assert answer.status_code == 400 and "transcriptions" in sentence(answer)
    for kind in ("srt", "vtt"):
        answer = client.post(SPEECH, data={"model": "speech", "response_format": kind}, files={"file": b"AB"})
        assert answer.status_code == 400 and "no times" in sentence(answer)


@pytest.mark.parametrize("charset", ["unicode_escape", "punycode", "utf-7", "nonsense"])
def test_a_form_is_read_in_utf_8(client: httpx.Client, charset: str) -> None:
    body = b'--B\r\nContent-Disposition: form-data; name="language"\r\n\r\n\\ud800\r\n--B--\r\n'
    for path in (SPEECH, IMAGES):
        answer = client.post(
            path, content=body, headers={"content-type": f"multipart/form-data; boundary=B; charset={charset}"}
        )
        assert answer.status_code == 415 and "UTF-8" in sentence(answer)
    sent = {"data": {"model": "speech"}, "files": {"file": b"AB"}}
    request = client.build_request("POST", SPEECH, **sent)
    request.headers["content-type"] += "; charset=utf-8"
    assert client.send(request).status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "application/x-www-form-urlencoded"])
def test_wrong_content_types_are_named(client: httpx.Client, content_type: str) -> None:
    for path in (CHAT, IMAGES):
        answer = client.post(path, content=b"a=1", headers={"content-type": content_type})
        assert answer.status_code in (400, 415), answer.text
        assert sentence(answer)
    answer = client.post(INFER, content=b"{}", headers={"content-encoding": "gzip"})
    assert answer.status_code == 415


def test_an_engine_that_breaks_shows_only_the_request_id(own_service: Running) -> None:
    with own_service.client() as client:
        own_service.engines["doubles"].fails = lambda batch: True
        answer = infer(client, GOOD_TENSOR)
        assert answer.status_code == 500
        assert answer.headers["x-request-id"] in sentence(answer) and "told to fail" not in answer.text
        (row,) = own_service.rows(answer.headers["x-request-id"])
        assert row.status == 500
        own_service.engines["doubles"].fails = lambda batch: False
        assert infer(client, GOOD_TENSOR).status_code == 200


def test_neighbours_in_a_batch_are_unharmed(own_service: Running) -> None:
    import threading

    engine = own_service.engines["doubles"]
    engine.fails = lambda batch: bool((batch["x"] == 13).any())
    engine.gate.clear()
    answers: dict[int, httpx.Response] = {}

    def ask(i: int) -> None:
        with own_service.client() as client:
            value = 13 if i == 3 else i
            answers[i] = infer(client, GOOD_TENSOR | {"data": [value, value]})

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    replicas = own_service.service.router.find("doubles").replicas
    wait_for(lambda: sum(replica.in_flight for replica in replicas) == 6)
    engine.gate.set()
    for thread in threads:
        thread.join()
    for i, answer in answers.items():
        assert answer.status_code == (500 if i == 3 else 200), answer.text


def test_a_busy_service_answers_503_at_once_with_retry_after(own_service: Running) -> None:
    import threading

    engine = own_service.engines["doubles"]
    engine.gate.clear()
    answers: list[httpx.Response] = []

    def ask() -> None:
        with own_service.client() as client:
            answers.append(infer(client, GOOD_TENSOR))

    threads = [threading.Thread(target=ask) for _ in range(14)]
    for thread in threads:
        thread.start()
    wait_for(lambda: sum(answer.status_code == 503 for answer in answers) >= 4)  # 8 queue, and 1 or 2 are in the engine
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all(answer.headers["retry-after"] == "1" and "try again" in sentence(answer) for answer in refused)
    engine.gate.set()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} <= {200, 503, 504}, "504 where the machine is slower than the time limit"


def test_a_time_limit_beyond_any_number_of_seconds_is_none(client: httpx.Client) -> None:
    assert infer(client, GOOD_TENSOR, parameters={"timeout": 10**400}).status_code == 200


def test_a_request_that_takes_too_long_gets_504(own_service: Running) -> None:
    with own_service.client() as client:
        own_service.engines["doubles"].gate.clear()
        answer = infer(client, GOOD_TENSOR, parameters={"timeout": 100_000})
        assert answer.status_code == 504
        assert answer.elapsed.total_seconds() < own_service.service.settings.request_timeout_seconds, (
            "the caller's limit counts"
        )
        own_service.engines["doubles"].gate.set()
        (row,) = own_service.rows(answer.headers["x-request-id"])
        assert row.status == 504


@pytest.mark.parametrize("path", ["/admin/models", "/v1/models", "/v2/models/doubles"])
def test_a_fault_of_ours_in_any_door_shows_only_the_request_id(own_service: Running, path: str) -> None:
    def break_down(*about: Any) -> Any:
        raise RuntimeError("secret detail")

    router = own_service.service.router
    router.groups = router.models = router.serving = break_down
    with own_service.client() as client:
        answer = client.get(path)
        assert answer.status_code == 500 and "secret" not in answer.text
        assert answer.headers["x-request-id"] in sentence(answer)
    del router.groups, router.models, router.serving  # the class's own again


def test_a_model_whose_decoding_hangs_holds_up_no_other(own_service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model decodes in threads of its own: twenty recordings that never come to an end are in nobody's way."""
    gate, begun = threading.Event(), threading.Semaphore(0)
    prepare = FakeProcessor.prepare

    def hanging(self: FakeProcessor, payload: Any) -> Any:
        if isinstance(payload, AudioPayload):
            begun.release()
            assert gate.wait(30)
        return prepare(self, payload)

    monkeypatch.setattr(FakeProcessor, "prepare", hanging)

    def transcribe() -> int:
        with own_service.client() as it:
            return it.post("/v1/audio/transcriptions", data={"model": "speech"}, files={"file": b"ab"}).status_code

    with ThreadPoolExecutor(20) as pool, own_service.client() as it:
        asked = [pool.submit(transcribe) for _ in range(20)]
        for _ in range(4):
            assert begun.acquire(timeout=10)
        try:
            text = it.post("/v1/completions", json={"model": "text", "prompt": "ab", "max_tokens": 2})
            image = it.post("/v1/images/classifications", data={"model": "images"}, files={"file": b"ab"})
            large = {"name": "x", "shape": [50_000, 2], "datatype": "FP32", "data": [1.0] * 100_000}
            tensors = it.post("/v2/models/doubles/infer", json={"inputs": [large]})
        finally:
            gate.set()
        assert (text.status_code, image.status_code, tensors.status_code) == (200, 200, 200)
        assert {future.result() for future in asked} <= {200, 503, 504}
