"""No JSON holds the service up: it is counted before it is parsed, and what is large is read in pieces."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from tests.api.conftest import Running, client, fake_service  # noqa: F401  fixtures

from maasdam.api import json_body, oip_tensors
from maasdam.api.http import body_limits
from maasdam.api.json_body import JsonLimits
from maasdam.errors import InvalidInput, InvalidTensor, TooLarge
from maasdam.settings import Settings, load

LIMITS = JsonLimits(64, 200_000)
MEGABYTE = 1_000_000
CHAT, INFER, IMAGES = "/v1/chat/completions", "/v2/models/doubles/infer", "/v1/images/classifications"
JSON = {"Content-Type": "application/json"}


def read_slowly(data: bytes) -> list[tuple[int, int, int]]:
    """The marks outside strings, byte by byte."""
    is_inside = is_escaped = False
    depth = 0
    out = []
    for i, code in enumerate(data):
        if is_escaped:
            is_escaped = False
        elif code == ord("\\"):
            is_escaped = True
        elif code == ord('"'):
            is_inside = not is_inside
        elif not is_inside and code in b"[]{},:":
            depth += (code in b"[{") - (code in b"]}")
            out.append((i, code, depth))
    return out


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 17])
def test_the_scan_sees_what_a_reader_byte_by_byte_sees(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(json_body, "BLOCK", block)
    chance = random.Random(block)
    for _ in range(400):
        data = bytes(chance.choice(b'[]{},:"\\\\\\"a') for _ in range(chance.randrange(40)))
        marks = [mark for m in json_body.scan(data) for mark in zip(m.places, m.codes, m.depths, strict=True)]
        assert [tuple(map(int, mark)) for mark in marks] == read_slowly(data), data


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[" * 65 + b'"' + b'\\"' * 20_000, "deeper than 64"),
        (b"[" * 100_000, "deeper than 64"),
        (b"[" + b"[]," * 2_600_000 + b"[]]", "200000 values"),
        (b"{" + b",".join(b'"%d":1' % i for i in range(300_000)) + b"}", "200000 values"),
        (b"[" + b'"",' * 2_000_000 + b'""]', "200000 values"),
        (b"[" + b"9" * MEGABYTE + b"]", "more than 500"),
        (b"[1, -" + b"9" * 5000 + b"]", "more than 500"),
        (b'["' + b'\\"' * 4_000_000, "valid JSON"),
        (b'"' * 8_000_000, "valid JSON"),
        (b"\\" * 8_000_000, "valid JSON"),
        (b'["\xff' + b"a" * 5000 + b'"]', "valid JSON"),
        (b'["\\ud800' + b"a" * 5000 + b'"]', "valid JSON"),
        (b"[1e999," + b"1," * 5000 + b"1]", "valid JSON"),
        (b"[NaN]", "valid JSON"),
    ],
)
def test_what_would_take_long_is_refused_before_it_is_parsed(data: bytes, says: str) -> None:
    with pytest.raises((InvalidInput, TooLarge), match=says):
        json_body.parse(data, LIMITS)


def test_what_is_long_and_harmless_is_read() -> None:
    text = 'hello, world [x] {"a": "\\"}' * 50_000
    for value in (
        text,
        [text] * 3,
        list(range(90_000)),
        {"a": [0.1] * 50_000},
        1 << 70,
        [10**400],
        ["9" * 5000],
        [1, 2] * 3000,
    ):
        for indent in (None, 2):  # a reader that guesses from the first line end breaks on dense arrays
            assert json_body.parse(json.dumps(value, indent=indent).encode(), LIMITS) == value
    assert json_body.parse(b'{"a":1,"a":2}', LIMITS) == {"a": 2}


def others_wait(work: Callable[[], Any]) -> float:
    """The longest time in seconds that another thread waited for Python's lock while `work` ran, as a share of its time."""
    gaps, is_over = [0.0], threading.Event()

    def watch() -> None:
        last = time.perf_counter()
        while not is_over.wait(0.0005):
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    work()
    spent = time.perf_counter() - began
    is_over.set()
    watcher.join()
    return max(gaps) / spent


def test_a_large_tensor_lets_others_have_their_turn() -> None:
    raw = b"[" + b"7," * 2_000_000 + b"7]"
    assert others_wait(lambda: [np.array(piece) for piece in json_body.leaves(raw)[1]]) < 0.5


@pytest.mark.parametrize("pieces", [3, 32 * 1024])
def test_large_arrays_are_read_as_small_ones(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    monkeypatch.setattr(json_body, "PIECE_VALUES", pieces)
    monkeypatch.setattr(oip_tensors, "LARGE_BYTES", 0)
    chance = random.Random(pieces)
    for kind, values in (
        ("FP32", [0.5, -3, 1e5]),
        ("INT64", [-5, 1 << 40]),
        ("BOOL", [True, False]),
        ("BYTES", ["a,[b]", '"\\']),
    ):
        for _ in range(30):
            shape = [chance.randrange(1, 5) for _ in range(chance.randrange(1, 4))]
            flat = [chance.choice(values) for _ in range(int(np.prod(shape)))]
            nested: Any = flat
            for size in reversed(shape[1:]):
                nested = [nested[i : i + size] for i in range(0, len(nested), size)]
            for data in (flat, nested):
                tensor = oip_tensors.Tensor(
                    "x", shape, kind, msgspec.Raw(json.dumps(data, indent=chance.choice([None, 1])).encode())
                )
                request = oip_tensors.InferRequest([tensor])
                (array,) = oip_tensors.read(request, memoryview(b"")).values()
                expected = [text.encode() for text in flat] if kind == "BYTES" else flat
                assert array.shape == tuple(shape) and array.ravel().tolist() == expected, (data, array)


@pytest.mark.parametrize(
    "data",
    ["[[1],2]", "[[1,2],[3]]", "[1,[2]]", "[{}]", "[[1],[]]", "[[],[[1]]]", '["a",1]', "[null,1]", "[1,2,3]", "[[[1]],[2]]"],
)
def test_uneven_large_arrays_are_refused(monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.setattr(oip_tensors, "LARGE_BYTES", 0)
    request = oip_tensors.InferRequest([oip_tensors.Tensor("x", [2], "FP32", msgspec.Raw(data.encode()))])
    with pytest.raises(InvalidTensor):
        oip_tensors.read(request, memoryview(b""))


def nested(chance: random.Random, depth: int) -> Any:
    """An array of arrays that is even, or nearly."""
    if depth == 0:
        return chance.choice([1, -0.5, "a]", '\\"[', True, None, [], {"data": [1]}] if chance.random() < 0.1 else [1, 2])
    return [nested(chance, depth - (chance.random() < 0.98)) for _ in range(chance.choice([0, 1, 2, 2, 2]))]


def test_what_is_read_in_pieces_is_json() -> None:
    """Nothing but the pieces themselves says that it is: brackets, commas and what stands beside them are tried at random."""
    chance, accepted = random.Random(7), 0
    for _ in range(20_000):
        text = json.dumps(nested(chance, chance.randrange(1, 4)), indent=chance.choice([None, 1]))
        for _ in range(chance.choice([0, 1, 1, 2])):
            at, rest = (chance.randrange(1, len(text)) for _ in range(2))
            rest = at + (rest > at)
            text = text[:at] + chance.choice(["", "[", "]", ",", "[]", "1", " ", '"', "}", "[1]"]) + text[rest:]
        depths = [depth for _, _, depth in read_slowly(text.encode())]
        if not text.endswith("]") or not depths or depths[-1] or min(depths[:-1], default=1) < 1:
            continue  # where it ends is known before
        try:
            shape, pieces = json_body.leaves(text.encode())
            flat = [value for piece in pieces for value in piece]
        except ValueError:
            continue
        try:
            array = np.array(json.loads(text), object)
        except ValueError:
            raise AssertionError(text) from None
        assert array.shape == shape or not array.size, text
        assert array.ravel().tolist() == flat, text
        accepted += 1
    assert accepted > 1000


def test_large_data_is_cut_out_before_the_rest_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Decoder:
        def decode(self, header: bytes) -> Any:
            sizes.append(len(header))
            return whole.decode(header)

    whole = oip_tensors._decoder
    monkeypatch.setattr(oip_tensors, "_decoder", Decoder())
    values = list(range(50_000))
    tensors = [
        {"name": "x", "shape": [50_000], "datatype": "INT32", "data": values},
        {"name": "y", "shape": [2], "datatype": "INT32", "data": [1, 2]},
        {"name": "z", "shape": [2, 25_000], "datatype": "INT32", "data": [values[:25_000], values[25_000:]]},
        {"name": 'a"data', "shape": [1], "datatype": "BYTES", "data": ["]" + "x" * 5000]},
    ]
    for indent in (None, 1):
        head = json.dumps({"inputs": tensors, "parameters": {"data": [[["a"]]], "b": '"data":['}}, indent=indent).encode()
        request = oip_tensors.decode(head, LIMITS)
        assert request.parameters == {"data": [[["a"]]], "b": '"data":['} and sizes.pop() < 1000
        found = oip_tensors.read(request, memoryview(b""))
        assert found["x"].tolist() == values and found["y"].tolist() == [1, 2]
        assert found["z"].ravel().tolist() == values and found['a"data'].tolist() == [b"]" + b"x" * 5000]


LONG = b",".join([b"1"] * 100_000)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[%b' % LONG, "valid JSON"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[%b}}]}' % LONG, "can't be read"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[%b]]}]}' % LONG, "valid JSON"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[%b]1}]}' % LONG, "valid JSON"),
        (b'{"inputs":[{"name":"x","shape":[%b],"datatype":"FP32","data":[1]}]}' % LONG, "up to 32 sizes"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","date":[%b]}]}' % LONG, "unknown field"),
        (b'{"inputs":[{"name":"x","shape":[100002],"datatype":"FP32","data":[%b,,1]}]}' % LONG, "data can't be read"),
        (b'{"inputs":[{"name":"x","shape":[100000],"datatype":"FP32","data":[%b[]]}]}' % LONG, "data can't be read"),
        (b'{"inputs":[{"name":"x","shape":[100000],"datatype":"FP32","data":{"a":[%b]}}]}' % LONG, "can't be read"),
        (
            b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[%b]}]}' % (b"[" * 50_000 + b"]" * 90_000),
            "deeper than 64",
        ),
    ],
)
def test_large_requests_that_are_none_are_refused(head: bytes, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        oip_tensors.read(oip_tensors.decode(head, LIMITS), memoryview(b""))


def test_empty_large_arrays_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oip_tensors, "LARGE_BYTES", 0)
    for data, shape in (("[]", [0]), ("[[],[]]", [2, 0]), ("[ [ ] ]", [1, 0])):
        request = oip_tensors.InferRequest([oip_tensors.Tensor("x", shape, "INT32", msgspec.Raw(data.encode()))])
        (array,) = oip_tensors.read(request, memoryview(b"")).values()
        assert array.shape == tuple(shape)


@pytest.mark.parametrize(
    "head",
    [
        b'{"inputs":[],"parameters":{' + b",".join(b'"%d":1' % i for i in range(70_000)) + b"}}",
        b'{"inputs":[{"name":"x","datatype":"FP32","data":[1],"shape":[' + b"1," * 200_000 + b"1]}]}",
        b'{"inputs":[{"name":"x","datatype":"FP32","data":[1],"shape":[1],"parameters":{"a":[' + b"1," * 200_000 + b"1]}}]}",
        b'{"inputs":[' + b'{"name":"","datatype":"","shape":[]},' * 50_000 + b'{"name":"","datatype":"","shape":[]}]}',
        b'{"inputs":[' + b"{}," * 300_000 + b"{}]}",
    ],
)
def test_only_data_of_a_tensor_request_may_be_large(head: bytes) -> None:
    with pytest.raises((InvalidInput, TooLarge), match=r"200000 values|so large|Protocol"):
        oip_tensors.decode(head, LIMITS)


def test_answers_are_written_in_pieces_as_they_would_be_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    import orjson

    monkeypatch.setattr(json_body, "PIECE_VALUES", 7)
    for array in (np.arange(40, dtype=np.int64), np.linspace(0, 1, 20, dtype=np.float32), np.zeros(0, np.float32)):
        written = orjson.dumps({"data": json_body.numbers(array)}, option=orjson.OPT_SERIALIZE_NUMPY)
        assert written == orjson.dumps({"data": array}, option=orjson.OPT_SERIALIZE_NUMPY)


def test_base64_is_read_in_pieces_as_it_would_be_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    import base64

    monkeypatch.setattr(json_body, "BASE64_BLOCK", 8)
    for size in range(30):
        data = bytes(range(size))
        assert json_body.from_base64(base64.b64encode(data).decode()) == data
    for wrong in ("QQ==QUJDREVGRw==", "QUJD\nREVG", "QUJ", "Q", "ÄÄÄÄ", "QUJDREVG*UJD"):
        with pytest.raises(ValueError):
            json_body.from_base64(wrong)


def test_each_kind_of_json_has_its_own_limit_which_is_a_setting() -> None:
    limits = body_limits(Settings())
    sizes = (limits.json.most, limits.json_media.most, limits.json_tensors.most, limits.any.most)
    assert sizes == tuple(megabytes << 20 for megabytes in (8, 32, 16, 128))
    environ = {f"MAASDAM_MAX_JSON_{name}": "1000" for name in ("BYTES", "MEDIA_BYTES", "TENSOR_BYTES")}
    limits = body_limits(load(environ=environ | {"MAASDAM_HOME": "/nowhere"}, file=None))
    assert (limits.json.most, limits.json_media.most, limits.json_tensors.most) == (1000, 1000, 1000)


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tests.api.conftest import SMALL, run_in_thread

    home = tmp_path_factory.mktemp("strict")
    small = replace(SMALL, max_json_bytes=1000, max_json_media_bytes=3000, max_json_tensor_bytes=2000, max_json_values=100)
    yield from run_in_thread(Path(home), replace(small, home=home))


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_over_its_limit_is_told_what_to_do(strict: Running, is_chunked: bool) -> None:
    def post(path: str, size: int, **headers: str) -> httpx.Response:
        body = b'{"model": "text", "a": "' + b"x" * (size - 26) + b'"}'
        content = iter([body[:500], body[500:]]) if is_chunked else body
        with strict.client() as it:
            return it.post(path, content=content, headers=JSON | headers)

    for path, over, says in ((CHAT, 1001, "max_json_bytes"), (INFER, 2001, "binary data"), (IMAGES, 3001, "as a form")):
        answer = post(path, over)
        assert answer.status_code == 413 and says in answer.text, answer.text
        assert post(path, over - 20).status_code == 400
    answer = post(INFER, 2600, **{"Inference-Header-Content-Length": "2500"})
    assert answer.status_code == 413 and "binary data" in answer.text
    with strict.client() as it:
        answer = it.post(CHAT, json={"model": "text", "messages": [[]] * 60 + ["x" * 50]}, headers=JSON)
        assert answer.status_code == 400  # too small for its number of values to matter


def test_many_broken_fields_are_told_as_one(client: httpx.Client) -> None:
    answer = client.post(CHAT, json={"model": "text", "messages": [1] * 50_000})
    assert answer.status_code == 400 and len(answer.content) < 5000
    answer = client.post(CHAT, json={"model": "text", "messages": [{"role": "user", "content": "a"}], "y" * 100_000: 1})
    assert answer.status_code == 400 and len(answer.content) < 5000


def test_a_header_left_over_from_a_binary_request_is_named(client: httpx.Client) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    for length in ("5", "40", "5000"):
        answer = client.post(INFER, json=body, headers={"Inference-Header-Content-Length": length})
        assert answer.status_code == 400 and "left over from a request with binary data" in answer.json()["error"]


def test_a_form_without_files_is_not_parsed(client: httpx.Client) -> None:
    answer = client.post(
        "/v1/audio/transcriptions", content=b"&" * 1_000_000, headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert answer.status_code == 415 and "multipart/form-data" in answer.text


@pytest.mark.parametrize("digit", [b"9" * 399, b"1." + b"9" * 397, b" -" + b"7" * 397])
def test_long_numbers_count_as_the_work_that_they_are(digit: bytes) -> None:
    def body(times: int) -> bytes:
        return b"[" + b",".join([digit] * times) + b"]"

    assert len(json_body.parse(body(3000), LIMITS)) == 3000
    with pytest.raises(TooLarge, match="200000 values"):
        json_body.parse(body(5000), LIMITS)
    plain = b"[" + b",".join([b"-0.12345678901234567e-300"[:24]] * 150_000) + b"]"
    assert len(json_body.parse(plain, LIMITS)) == 150_000  # as machines write them


def test_a_key_counts_as_two() -> None:
    def body(keys: int) -> bytes:
        return b"{" + b",".join(b'"%d":1' % i for i in range(keys)) + b"}"

    assert len(json_body.parse(body(66_000), LIMITS)) == 66_000
    with pytest.raises(TooLarge, match="200000 values"):
        json_body.parse(body(67_000), LIMITS)


def test_a_piece_of_a_tensor_is_small_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []

    def loads(data: bytes) -> Any:
        parsed.append(len(data))
        return whole(data)

    whole = json_body.loads
    monkeypatch.setattr(json_body, "loads", loads)
    values = [b"1." + b"9" * 450] * 10_000
    pieces = list(json_body.leaves(b"[" + b",".join(values) + b"]")[1])
    assert sum(map(len, pieces)) == 10_000 and max(parsed) < json_body.PIECE_BYTES + 1000
    with pytest.raises(InvalidInput, match="more than 500"):
        json_body.leaves(b"[1,1." + b"9" * 5000 + b",1]")
