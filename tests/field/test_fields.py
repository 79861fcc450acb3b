"""A field that nobody reads is refused by its name on every route; what clients send by themselves is taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.api.conftest import SMALL, Running, run_in_thread

INFER = "/v2/models/doubles/infer"
TEXT = "/v2/models/text/infer"
TENSOR = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
PROMPT = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["ab"]}
CHAT = {"model": "text", "messages": [{"role": "user", "content": "ab"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    from dataclasses import replace

    home: Path = tmp_path_factory.mktemp("home")
    for running in run_in_thread(home, replace(SMALL, home=home)):
        assert isinstance(running, Running)
        with running.client() as it:
            yield it


def chat(**more: Any) -> dict[str, Any]:
    return CHAT | more


def said(**more: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": "ab"} | more])


def part(**more: Any) -> dict[str, Any]:
    return said(content=[{"type": "text", "text": "ab"} | more])


JSON: dict[str, tuple[str, dict[str, Any], str]] = {
    "chat": ("/v1/chat/completions", chat(temprature=1), "temprature"),
    "message": ("/v1/chat/completions", said(contents="x"), "messages[0].contents"),
    "tool calls": ("/v1/chat/completions", said(tool_calls=[{"id": "x"}]), "messages[0].tool_calls"),
    "content part": ("/v1/chat/completions", part(txt="x"), "messages[0].content[0].txt"),
    "stream options": ("/v1/chat/completions", chat(stream=True, stream_options={"usage": True}), "stream_options.usage"),
    "completion": ("/v1/completions", {"model": "text", "prompt": "ab", "maxtokens": 2}, "maxtokens"),
    "image": ("/v1/images/classifications", {"model": "images", "image": "YWI=", "topk": 2}, "topk"),
    "infer": (INFER, {"inputs": [TENSOR], "output": []}, "output"),
    "input": (INFER, {"inputs": [TENSOR | {"layout": "NHWC"}]}, "layout"),
    "output": (INFER, {"inputs": [TENSOR], "outputs": [{"name": "y", "binary": True}]}, "binary"),
    "infer's parameter": (INFER, {"inputs": [TENSOR], "parameters": {"time_out": 5}}, "time_out"),
    "input's parameter": (INFER, {"inputs": [TENSOR | {"parameters": {"binary_size": 8}}]}, "binary_size"),
    "output's parameter": (INFER, {"inputs": [TENSOR], "outputs": [{"name": "y", "parameters": {"binary": 1}}]}, "binary"),
    "priority": (INFER, {"inputs": [TENSOR], "parameters": {"priority": 3}}, "priority"),
    "sampling of tensors": (INFER, {"inputs": [TENSOR], "parameters": {"temperature": 1}}, "temperature"),
    "sampling of texts": (TEXT, {"inputs": [PROMPT], "parameters": {"temprature": 1}}, "temprature"),
    "another model": (INFER, {"inputs": [TENSOR], "model_name": "triples"}, "model_name"),
    "index": ("/v2/repository/index", {"redy": True}, "redy"),
    "load": ("/v2/repository/models/doubles/load", {"parameter": {}}, "parameter"),
    "unload": ("/v2/repository/models/doubles/unload", {"parameters": {"dependents": True}}, "dependents"),
    "key": ("/admin/keys", {"name": "a", "scopes": ["infer"], "scope": "infer"}, "scope"),
}


@pytest.mark.parametrize(("path", "body", "name"), JSON.values(), ids=JSON)
def test_an_unknown_field_is_named(client: httpx.Client, path: str, body: dict[str, Any], name: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400 and name in answer.text, answer.text


@pytest.mark.parametrize(
    ("path", "form", "name"),
    [
        ("/v1/images/classifications", {"model": "images", "topk": "2"}, "topk"),
        ("/v1/audio/transcriptions", {"model": "speech", "langauge": "en"}, "langauge"),
        ("/v1/audio/transcriptions", {"model": "speech", "chunking_strategy": "server_vad"}, "chunking_strategy"),
    ],
)
def test_an_unknown_field_of_a_form_is_named(client: httpx.Client, path: str, form: dict[str, str], name: str) -> None:
    answer = client.post(path, data=form, files={"file": b"ab"})
    assert answer.status_code == 400 and f"'{name}'" in answer.text, answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v2/models/doubles"),
        ("GET", "/v2"),
        ("GET", "/admin/usage"),
        ("GET", "/admin/models"),
        ("GET", "/health"),
        ("POST", INFER),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v2/repository/index"),
        ("DELETE", "/admin/keys/none"),
    ],
)
def test_an_unknown_query_parameter_is_named(client: httpx.Client, method: str, path: str) -> None:
    body = {INFER: {"inputs": [TENSOR]}, "/v1/chat/completions": CHAT}.get(path) if method == "POST" else None
    answer = client.request(method, f"{path}?verbos=1", json=body)
    assert answer.status_code == 400 and "'verbos'" in answer.text, answer.text


def test_a_known_query_parameter_is_taken(client: httpx.Client) -> None:
    assert client.get("/admin/usage?by=day&since=1h").status_code == 200


TAKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "what a message brings back": (
        "/v1/chat/completions",
        said(refusal=None, annotations=[], audio=None, function_call=None, tool_calls=None),
    ),
    "a name": ("/v1/chat/completions", said(name="joe")),
    "a hint to a cache": ("/v1/chat/completions", part(cache_control={"type": "ephemeral"})),
    "openai's options": (
        "/v1/chat/completions",
        chat(n=1, user="u", metadata={"a": "b"}, logit_bias={}, tools=None, response_format={"type": "text"}, store=False),
    ),
    "langchain's completion": (
        "/v1/completions",
        {"model": "text", "prompt": ["ab"], "n": 1, "best_of": 1, "logit_bias": {}, "top_p": 1, "frequency_penalty": 0},
    ),
    "kserve's names": (INFER, {"id": "1", "model_name": "doubles", "inputs": [TENSOR]}),
    "triton's parameters": (INFER, {"inputs": [TENSOR], "parameters": {"sequence_id": 0, "priority": 0, "timeout": 3000000}}),
    "an output in numbers": (INFER, {"inputs": [TENSOR], "outputs": [{"name": "y", "parameters": {"binary_data": False}}]}),
    "every way to sample": (TEXT, {"inputs": [PROMPT], "parameters": {"max_tokens": 2, "stop": ["x"], "ignore_eos": True}}),
    "an index of what is ready": ("/v2/repository/index", {"ready": True}),
}


@pytest.mark.parametrize(("path", "body"), TAKEN.values(), ids=TAKEN)
def test_what_clients_send_by_themselves_is_taken(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text


def test_numbers_that_json_lacks_are_words_and_are_read_again(client: httpx.Client) -> None:
    import tritonclient.http as triton

    ours = [float("inf"), 1.5]
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [["Infinity", 1.5], ["-Infinity", 0.1]]}
    answer = client.post(INFER, json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == ["Infinity", 3.0, "-Infinity", 0.2]
    read = np.array(answer.json()["outputs"][0]["data"], np.float32)
    assert np.array_equal(read, np.array([np.inf, 3.0, -np.inf, 0.2], np.float32))

    given = triton.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(np.array([ours], np.float32))
    with triton.InferenceServerClient(str(client.base_url).removeprefix("http://").rstrip("/")) as it:
        headers = {"Authorization": client.headers["Authorization"]}
        wanted = [triton.InferRequestedOutput("y", binary_data=False)]
        got = it.infer("doubles", [given], outputs=wanted, headers=headers).as_numpy("y")
    assert np.array_equal(got, np.array([[np.inf, 3.0]], np.float32))


@pytest.mark.parametrize("count", [4, 40_000])
def test_each_number_keeps_its_place_and_its_digits(count: int) -> None:
    import json

    import orjson

    from maasdam.api.json_body import numbers, without_words, worded

    values = np.arange(count, dtype=np.float32) / 7
    values[[1, count // 2, count - 1]] = [np.nan, np.inf, -np.inf]
    piece = numbers(values)
    piece = worded(piece) if isinstance(piece, np.ndarray) else piece  # as an answer with a null in it is written again
    written = json.loads(orjson.dumps(piece, option=orjson.OPT_SERIALIZE_NUMPY))
    assert [written[1], written[count // 2], written[-1]] == ["NaN", "Infinity", "-Infinity"]
    assert np.array_equal(np.array(without_words(written), np.float32), values, equal_nan=True)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        ({"datatype": "FP32", "data": ["infinity", 1.0]}, "numbers"),
        ({"datatype": "FP32", "data": ["1.0", 1.0]}, "numbers"),
        ({"datatype": "FP32", "data": [1e39, 1.0]}, "too large"),
        ({"datatype": "INT64", "data": ["Infinity", 1]}, "whole numbers"),
    ],
)
def test_other_words_are_no_numbers(client: httpx.Client, tensor: dict[str, Any], says: str) -> None:
    answer = client.post(INFER, json={"inputs": [TENSOR | tensor]})
    assert answer.status_code == 400 and says in answer.text, answer.text


def test_the_command_line_says_the_same_words() -> None:
    from maasdam.operations.run import to_json

    answer = {"y": np.array([[np.inf, -np.inf], [np.nan, 0.5]])}
    assert to_json(answer) == {"outputs": {"y": [["Infinity", "-Infinity"], ["NaN", 0.5]]}}
