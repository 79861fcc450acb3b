"""Texts by /generate in both shapes and as Triton's clients of vLLM send them; pictures as BYTES; classes of an output."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from tests.api.conftest import Running, client, fake_service, own_service, wait_for  # noqa: F401  fixtures

from maasdam.api.oip_call import call_of, classes
from maasdam.errors import CallerError, InvalidTensor

GENERATE, STREAM = "/v2/models/text/generate", "/v2/models/text/generate_stream"


def events(client: httpx.Client, **body: Any) -> list[Any]:
    answer = client.post(STREAM, json=body)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(event.removeprefix("data: ")) for event in answer.text.split("\n\n") if event]


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": 3, "temperature": 0},
        {"parameters": {"max_tokens": 3, "temperature": 0}},
        {"stream": False, "parameters": {"max_tokens": 3}, "temperature": 0.0},
        {"parameters": {"max_tokens": 3, "stop": ["zz"], "top_p": 1, "best_of": 1, "frequency_penalty": 0}},
        {"max_tokens": 3, "exclude_input_in_output": True},
    ],
    ids=["beside", "under", "both", "protocol", "vLLM"],
)
def test_generate_answers_in_both_shapes(client: httpx.Client, body: Any, fake_service: Running) -> None:
    answer = client.post(GENERATE, json={"text_input": "ab"} | body)
    assert answer.json() == {"model_name": "text", "model_version": "1", "text_output": "abc"}
    (row,) = fake_service.rows(answer.headers["x-request-id"])
    assert (row.endpoint, row.status, row.completion_tokens) == ("/v2/generate", 200, 3)
    assert "maasdam-compute-seconds" in answer.headers
    told = client.post("/v2/models/text/versions/1/generate", json={"text_input": "ab", "id": "7", "max_tokens": 1}).json()
    assert (told["id"], told["text_output"]) == ("7", "a")


def test_a_stream_is_the_same_in_pieces_and_says_when_it_is_done(client: httpx.Client) -> None:
    pieces = events(client, text_input="ab", parameters={"max_tokens": 4, "stream": True}, id="x")
    assert "".join(piece["text_output"] for piece in pieces) == "abcd"
    assert [piece["done"] for piece in pieces] == [False, False, False, True]
    assert {(piece["model_name"], piece["model_version"], piece["id"]) for piece in pieces} == {("text", "1", "x")}
    (whole,) = events(client, text_input="ab", max_tokens=4, stream=False)
    assert whole["text_output"] == "abcd" and whole["done"] is True


@pytest.mark.parametrize("path", [GENERATE, STREAM])
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "'text_input' is missing"),
        ({"text_input": 1}, "'text_input' is missing"),
        ({"text_input": "a", "tempo": 1}, "unknown parameter 'tempo'"),
        ({"text_input": "a", "parameters": {"tempo": 1}}, "unknown parameter 'tempo'"),
        ({"text_input": "a", "parameters": [1]}, "'parameters'"),
        ({"text_input": "a", "id": 1}, "'id'"),
        ({"text_input": "a", "temperature": 3}, "'temperature'"),
        ({"text_input": "a", "best_of": 2}, "'best_of'"),
        ({"text_input": "a", "stream": "yes"}, "'stream'"),
        ({"text_input": "a", "exclude_input_in_output": False}, "'exclude_input_in_output'"),
    ],
)
def test_what_nobody_reads_is_refused_by_name(client: httpx.Client, path: str, body: Any, says: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400 and says in answer.json()["error"]


def test_other_refusals(client: httpx.Client) -> None:
    streamed = client.post(GENERATE, json={"text_input": "a", "stream": True})
    assert streamed.status_code == 400 and "generate_stream" in streamed.json()["error"]
    assert client.post("/v2/models/ghost/generate", json={"text_input": "a"}).status_code == 404
    for path in (GENERATE, STREAM):
        other = client.post(path.replace("text", "images"), json={"text_input": "a"})
        assert other.status_code == 400 and "image-classification" in other.json()["error"]
        assert client.post(path, content=b"a=1", headers={"Content-Type": "application/xml"}).status_code == 415
        assert client.get(path).status_code == 405


def test_a_stream_that_breaks_ends_with_an_error(own_service: Running) -> None:
    own_service.engines["text"].fails_after = 2
    with own_service.client() as client:
        pieces = events(client, text_input="ab", max_tokens=5)
    assert [piece.get("text_output") for piece in pieces] == ["a", "b", None] and pieces[-1]["error"]


def asked(client: httpx.Client, *inputs: dict[str, Any], model: str = "text", **more: Any) -> httpx.Response:
    return client.post(f"/v2/models/{model}/infer", json={"inputs": list(inputs)} | more)


def given(name: str, datatype: str, *data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": list(data)}


TEXT = given("text_input", "BYTES", "ab")


def test_what_tritons_clients_of_vllm_send_is_read(client: httpx.Client) -> None:
    sampling = given("sampling_parameters", "BYTES", '{"max_tokens": 2, "temperature": 0}')
    flags = [given("stream", "BOOL", False), given("exclude_input_in_output", "BOOL", True)]
    answer = asked(client, TEXT, sampling, *flags)
    assert answer.json()["outputs"][0]["data"] == ["ab"]


@pytest.mark.parametrize(
    ("beside", "says"),
    [
        (given("stream", "BOOL", True), "generate_stream"),
        (given("stream", "BOOL", False, False), "one BOOL"),
        (given("stream", "INT32", 0), "one BOOL"),
        (given("sampling_parameters", "BYTES", "{"), "not valid JSON"),
        (given("sampling_parameters", "BYTES", "[]"), "no object"),
        (given("sampling_parameters", "BYTES", "[" * 20), "nests deeper"),
        (given("sampling_parameters", "BYTES", '{"tempo": 1}'), "unknown parameter 'tempo'"),
        (given("exclude_input_in_output", "BOOL", False), "exclude_input_in_output"),
        (given("temperature", "FP32", 0), "takes no raw tensors"),
    ],
)
def test_what_stands_beside_a_text_is_read_or_refused(client: httpx.Client, beside: Any, says: str) -> None:
    answer = asked(client, TEXT, beside)
    assert answer.status_code == 400 and says in answer.json()["error"], answer.text


def test_a_picture_is_answered_with_its_label(client: httpx.Client) -> None:
    data = base64.b64encode(b"\x02\x09").decode()
    answer = asked(client, given("image", "BYTES", data, data), model="images").json()
    assert [(o["name"], o["datatype"], o["shape"]) for o in answer["outputs"]] == [
        ("label", "BYTES", [2]),
        ("score", "FP32", [2]),
    ]
    assert answer["outputs"][0]["data"] == ["label1", "label1"]
    assert "BYTES image" in client.get("/v2/models/images").json()["parameters"]["also_takes"]
    assert "base64" in asked(client, given("image", "BYTES", "&"), model="images").json()["error"]
    unsaid = given("image", "BYTES", data) | {"parameters": {"binary_data_size": None}}
    assert asked(client, unsaid, model="images").json()["outputs"][0]["data"] == ["label1"], "null is not said"


@pytest.mark.parametrize("most", [1, 2, 5])
def test_classes_are_asked_for_by_output(client: httpx.Client, most: int) -> None:
    x = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [4, 3]]}
    outputs = [{"name": "y", "parameters": {"classification": most}}]
    (answer,) = asked(client, x, model="doubles", outputs=outputs).json()["outputs"]
    rows = [["4.000000:1", "2.000000:0"], ["8.000000:0", "6.000000:1"]]
    assert answer["datatype"] == "BYTES" and answer["shape"] == [2, min(most, 2)]
    assert answer["data"] == [one for row in rows for one in row[:most]]
    for wrong in (-1, True, "3", 1.5):
        refused = asked(client, x, model="doubles", outputs=[{"name": "y", "parameters": {"classification": wrong}}])
        assert refused.status_code == 400 and "'classification'" in refused.json()["error"]
    none = asked(client, x, model="doubles", outputs=[{"name": "y", "parameters": {"classification": 0}}]).json()
    assert none["outputs"][0]["datatype"] == "FP32"


def test_classes_have_the_models_labels() -> None:
    scores = np.array([[0.25, np.inf, -1], [3, 3, 1]], np.float32)
    found = classes("y", scores, 2, {0: "cat", 1: "dog"})
    assert found.tolist() == [[b"inf:1:dog", b"0.250000:0:cat"], [b"3.000000:0:cat", b"3.000000:1:dog"]]
    assert classes("y", scores[0], 1, {}).tolist() == [b"inf:1"]
    assert classes("y", np.array(7), 3, {}).tolist() == [b"7.000000:0"]
    with pytest.raises(InvalidTensor, match="at most 100000 classes"):
        classes("y", np.zeros((50_001, 2), np.float32), 2, {})
    with pytest.raises(InvalidTensor, match="no number"):
        classes("label", np.array([b"a"], object), 1, {})


def test_no_input_beside_a_text_makes_it_break_in_another_way() -> None:
    chance = np.random.default_rng(3)

    def values() -> Iterator[Any]:
        for _ in range(300):
            text = bytes(chance.integers(32, 127, chance.integers(0, 12), dtype=np.uint8))
            yield np.array([text], object)
            yield np.array(chance.integers(0, 2, chance.integers(0, 3)), bool)

    for value in values():
        for name in ("stream", "sampling_parameters", "exclude_input_in_output"):
            try:
                call_of("text", {"text_input": np.array([b"a"], object), name: value}, (), {}, None)
            except CallerError:
                continue
