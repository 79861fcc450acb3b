"""Bodies in gzip and deflate, in and out; and none that unpacks to more than is allowed."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
from tests.api.conftest import Running, client, fake_service  # noqa: F401  fixtures

from maasdam.api.encodings import packed, unpacked

BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).encode()
INFER = "/v2/models/doubles/infer"


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKERS = {"gzip": gzip.compress, "x-gzip": gzip.compress, "GZIP": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("coding", PACKERS)
@pytest.mark.parametrize("path", [INFER, "/v1/completions", "/v2/repository/index"])
def test_what_is_packed_is_read(client: httpx.Client, coding: str, path: str) -> None:
    body = {INFER: BODY, "/v1/completions": b'{"model": "text", "prompt": "a", "max_tokens": 2}'}.get(path, b"{}")
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    answer = client.post(path, content=PACKERS[coding](body), headers=headers)
    assert answer.status_code == 200, answer.text


def test_deflate_without_zlibs_frame_is_read_too(client: httpx.Client) -> None:
    answer = client.post(INFER, content=raw_deflate(BODY), headers={"Content-Encoding": "deflate"})
    assert answer.json()["outputs"][0]["data"] == [2.0, 4.0]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_binary_tensors_may_be_packed_both_ways(client: httpx.Client, coding: str) -> None:
    x = np.array([[1, 2]], np.float32).tobytes()
    asked = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": len(x)}}
    head = json.dumps({"inputs": [asked], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Encoding": coding, "Accept-Encoding": coding}
    with client.stream("POST", INFER, content=PACKERS[coding](head + x), headers=headers) as answer:
        sent = b"".join(answer.iter_raw())
    assert answer.status_code == 200 and answer.headers["content-encoding"] == coding
    assert int(answer.headers["content-length"]) == len(sent)
    whole = zlib.decompress(sent, 47)
    json_length = int(answer.headers["inference-header-content-length"])
    assert json.loads(whole[:json_length])["outputs"][0]["name"] == "y"
    assert np.frombuffer(whole[json_length:], np.float32).tolist() == [2, 4]


@pytest.mark.parametrize("accepted", ["gzip, deflate, br", "identity", "br", "*"])
def test_who_only_could_read_it_packed_gets_it_as_it_is(client: httpx.Client, accepted: str) -> None:
    answer = client.post(INFER, content=BODY, headers={"Accept-Encoding": accepted})
    assert answer.status_code == 200 and "content-encoding" not in answer.headers


@pytest.mark.parametrize(
    ("data", "coding", "status", "says"),
    [
        (BODY, "gzip", 415, "no gzip"),
        (BODY, "deflate", 415, "no deflate"),
        (gzip.compress(BODY)[:-9], "gzip", 415, "cut off"),
        (gzip.compress(BODY) + b"x", "gzip", 415, "more follows"),
        (zlib.compress(BODY) + b"x", "deflate", 415, "no deflate"),
        (b"", "gzip", 415, "cut off"),
        (BODY, "br", 415, "'br' is not read"),
        (gzip.compress(gzip.compress(BODY)), "gzip, gzip", 415, "not read"),
        (gzip.compress(b"0" * 20_000_000), "gzip", 413, "larger than allowed"),
        (zlib.compress(b" " * 20_000_000), "deflate", 413, "larger than allowed"),
    ],
    ids=["plain", "plain deflate", "cut", "tail", "tail deflate", "empty", "br", "twice", "bomb", "bomb deflate"],
)
def test_what_can_not_be_unpacked_is_refused(client: httpx.Client, data: bytes, coding: str, status: int, says: str) -> None:
    answer = client.post(INFER, content=data, headers={"Content-Encoding": coding})
    assert answer.status_code == status and says in answer.json()["error"]
    assert client.post(INFER, content=BODY).status_code == 200


def test_no_more_is_held_than_the_limit() -> None:
    bomb: Any = gzip.compress(b"0" * 50_000_000)
    assert unpacked(bomb, b"gzip", 1000) is None
    assert unpacked(packed(b"0" * 1000, b"deflate"), b"deflate", 1000) == b"0" * 1000


def test_the_memory_that_a_packed_body_took_is_given_back(client: httpx.Client, fake_service: Running) -> None:
    for _ in range(20):  # each is near the limit of what one body may be, and all together over that of all
        body = b" " * 1_900_000 + BODY
        assert client.post(INFER, content=gzip.compress(body), headers={"Content-Encoding": "gzip"}).status_code == 200
