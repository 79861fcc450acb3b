"""Tensors on the wire: what is read back is what was sent, and no lie about lengths is believed."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maasdam.api import oip_json
from maasdam.api import oip_tensors as wire
from maasdam.api.json_body import JsonLimits, check_json_depth
from maasdam.api.oip_call import OipReply
from maasdam.core import TensorPayload
from maasdam.errors import CallerError, InvalidInput, InvalidTensor

LIMITS = JsonLimits(64, 200_000)


def read(*inputs: dict[str, Any], binary: bytes = b"") -> dict[str, Any]:
    return wire.read(wire.decode(json.dumps({"inputs": list(inputs)}).encode(), LIMITS), memoryview(binary))


def tensor(datatype: str = "FP32", shape: list[int] | None = None, data: Any = None, size: Any = None) -> dict[str, Any]:
    out: dict[str, Any] = {"name": "x", "shape": [2] if shape is None else shape, "datatype": datatype}
    if data is not None:
        out["data"] = data
    if size is not None:
        out["parameters"] = {"binary_data_size": size}
    return out


@pytest.mark.parametrize("datatype", wire.TO_NUMPY)
def test_binary_tensors_come_through_unchanged(datatype: str) -> None:
    array = np.array([[1, 0], [1, 1]]).astype(wire.TO_NUMPY[datatype])
    raw = wire.to_bytes(array)
    back = read(tensor(datatype, [2, 2], size=len(raw)), binary=raw)["x"]
    assert back.dtype == array.dtype and (back == array).all()


@pytest.mark.parametrize("datatype", [*wire.TO_NUMPY, "BF16"])
def test_json_tensors_come_through_flat_or_nested(datatype: str) -> None:
    numbers: list[Any] = [True, False, True, True] if datatype == "BOOL" else [1, 2, 3, 4]
    for data in (numbers, [numbers[:2], numbers[2:]]):
        back = read(tensor(datatype, [2, 2], data))["x"]
        assert back.shape == (2, 2) and list(wire.to_json(back)) == numbers


def test_bf16_is_read_by_its_bits() -> None:
    bits = (np.array([1.5, -2.0], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    back = read(tensor("BF16", [2], size=4), binary=bits.tobytes())["x"]
    assert back.dtype.name == "bfloat16" and back.astype(np.float32).tolist() == [1.5, -2.0]
    assert wire.to_bytes(back) == bits.tobytes() and wire.datatype(back) == "BF16"


def test_bytes_tensors_hold_any_bytes() -> None:
    elements = np.array([b"\xff\x00", b"", "grüße".encode()], object)
    raw = wire.to_bytes(elements)
    back = read(tensor("BYTES", [3], size=len(raw)), binary=raw)["x"]
    assert back.tolist() == elements.tolist()
    assert read(tensor("BYTES", [1, 2], ["a", "ü"]))["x"].tolist() == [[b"a", "ü".encode()]]


@pytest.mark.parametrize(
    ("sent", "binary", "says"),
    [
        (tensor(size=-8), b"12345678", "number of bytes"),
        (tensor(size=1 << 62), b"12345678", "8 are left"),
        (tensor(size="8"), b"12345678", "number of bytes"),
        (tensor(size=True), b"1", "number of bytes"),
        (tensor(size=4), b"12345678", "is 8 bytes, and 4"),
        (tensor(size=8), b"123456789", "1 bytes follow"),
        (tensor(data=[1, 2], size=8), b"12345678", "both"),
        (tensor(), b"", "no data"),
        (tensor(shape=[-1, 2], size=8), b"12345678", "0 or more"),
        (tensor(shape=[1 << 40, 1 << 40], size=8), b"12345678", "more elements"),
        (tensor(shape=[0, 1 << 62, 8], size=0), b"", "more elements"),
        (tensor(shape=[1 << 40], data=[1.0]), b"", "far fewer"),
        (tensor(shape=[1] * 40, data=[1.0]), b"", "up to 32"),
        (tensor("FP8", size=2), b"12", "the datatypes are"),
        (tensor("BYTES", [1 << 40], size=4), b"1234", "at least"),
        (tensor("BYTES", [1], size=4), struct.pack("<I", 0xFFFFFFFF), "claims"),
        (tensor("BYTES", [1], size=6), struct.pack("<I", 1) + b"ab", "follow"),
        (tensor("BYTES", [2], size=8), struct.pack("<I", 4) + b"abcd", "cut off"),
        (tensor(data=[1, 2, 3]), b"", "3 elements"),
        (tensor(data=[[1, 2], [3]], shape=[3]), b"", "ragged"),
        (tensor(data=["1", "2"]), b"", "must be numbers"),
        (tensor(data=[1, None]), b"", "must be numbers"),
        (tensor(data={"a": 1}), b"", "not a list"),
        (tensor("INT8", data=[1, 300]), b"", "outside INT8"),
        (tensor("INT64", data=[1.5, 2]), b"", "whole numbers"),
        (tensor("UINT8", data=[-1, 2]), b"", "outside UINT8"),
        (tensor("INT64", data=[1, 1 << 70]), b"", "whole numbers"),
        (tensor("FP32", data=[1, 1e300]), b"", "too large"),
        (tensor("BOOL", data=[1, 2]), b"", "true or false"),
        (tensor("BYTES", data=[1, 2]), b"", "strings"),
    ],
)
def test_a_lie_is_refused_with_what_to_do(sent: dict[str, Any], binary: bytes, says: str) -> None:
    with pytest.raises(InvalidTensor, match=says):
        read(sent, binary=binary)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not valid JSON"),
        (b"[1,2", "Open Inference Protocol|not valid JSON"),
        (b'{"inputs": []}', "at least one"),
        (b'{"inputs": [{"name": "x"}]}', "shape"),
        (b'{"inputs": [{"name": "x", "shape": [1.5], "datatype": "FP32"}]}', "shape"),
        (b'{"inputs": [{"name": "\xff", "shape": [1], "datatype": "FP32"}]}', "not valid JSON"),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [NaN]}]}', "not valid JSON"),
    ],
)
def test_json_that_is_no_request_is_refused(raw: bytes, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        wire.decode(raw, LIMITS)


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'x' is named twice"):
        read(tensor(data=[1, 2]), tensor(data=[1, 2]))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([*wire.SIZES, "BYTES", "X"]),
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 4), max_size=5),
    st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 20),
    st.binary(max_size=20),
)
def test_no_header_makes_it_break_in_another_way(datatype: str, shape: list[int], size: int, binary: bytes) -> None:
    with contextlib.suppress(CallerError):
        read(tensor(datatype, shape, size=size), binary=binary)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*wire.SIZES, "BYTES"]), st.lists(st.integers(0, 4), max_size=3), json_values)
def test_no_data_makes_it_break_in_another_way(datatype: str, shape: list[int], data: Any) -> None:
    try:
        raw = orjson.dumps({"inputs": [tensor(datatype, shape, data)]})
    except orjson.JSONEncodeError:
        return
    with contextlib.suppress(CallerError):
        wire.read(wire.decode(raw, LIMITS), memoryview(b""))


def test_depth_counts_brackets_outside_strings_only() -> None:
    check_json_depth(b"[" * 64 + b"]" * 64, 64)
    check_json_depth(b'["' + b"[" * 1000 + b'\\"[[["]', 64)
    check_json_depth(b"[" + b"[1]," * 5000 + b"[1]]", 64)
    with pytest.raises(InvalidInput, match="nests deeper"):
        check_json_depth(b"[" * 65 + b"]" * 65, 64)
    with pytest.raises(InvalidInput, match="nests deeper"):
        check_json_depth(b'["]]]]]]]]]]]]]]]]]]]]"' + b",[" * 65, 64)
    with pytest.raises(InvalidInput, match="nests deeper"):
        check_json_depth(b"[" * 100_000, 64)


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("shape", [[], [1], [0], [2, 0, 3], [2, 2]])
@pytest.mark.parametrize("datatype", [*wire.TO_NUMPY, "BF16", "BYTES"])
def test_every_datatype_goes_through_a_whole_call_and_back(datatype: str, shape: list[int], is_binary: bool) -> None:
    import ml_dtypes

    kind = {"BF16": ml_dtypes.bfloat16, "BYTES": object}.get(datatype) or wire.TO_NUMPY[datatype]
    values = [b"a", b"", "ü".encode(), b"d"] if datatype == "BYTES" else [1, 0, 1, 1]
    array = np.array(values[: int(np.prod(shape))], kind).reshape(shape)
    sent = tensor(datatype, shape)
    raw = wire.to_bytes(array)
    if is_binary:
        sent["parameters"] = {"binary_data_size": len(raw)}
    else:
        flat = wire.to_json(array)
        sent["data"] = flat if isinstance(flat, list) else flat.tolist()
    wanted = [{"name": "x", "parameters": {"binary_data": is_binary}}]
    head = orjson.dumps({"inputs": [sent], "id": "7", "outputs": wanted})
    call = oip_json.decode("m", head + raw if is_binary else head, len(head), LIMITS)
    (payload,) = call.payloads
    assert isinstance(payload, TensorPayload)
    back = payload.tensors["x"]
    assert back.dtype == array.dtype and back.shape == array.shape and back.tolist() == array.tolist()
    body, length = oip_json.encode(call, OipReply("m", "1", call.id, {"x": back}))
    answer = json.loads(body[:length])
    assert answer["id"] == "7" and answer["outputs"][0]["datatype"] == datatype and answer["outputs"][0]["shape"] == shape
    if is_binary:
        assert length is not None and body[length:] == raw
    else:
        assert length is None and answer["outputs"][0]["data"] == sent["data"]
