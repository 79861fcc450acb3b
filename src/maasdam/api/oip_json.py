"""The Open Inference Protocol's JSON, with binary data behind it or without: bytes to a call, an answer to bytes.

Knows JSON and lengths. Refuses to know what is meant (`oip_call`) and how the bytes came.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import orjson

from maasdam.api import json_body
from maasdam.api import oip_tensors as wire
from maasdam.api.oip_call import OipCall, OipReply, call_of, check_input_parameters, check_stateless
from maasdam.core import TensorPayload, split_name
from maasdam.errors import InvalidField, InvalidInput

OF_REQUEST, OF_INPUT, OF_OUTPUT = ("binary_data_output",), ("binary_data_size",), ("binary_data",)
"""Parameters that this codec reads by itself."""


def decode(name: str, data: bytes, length: int, limits: json_body.JsonLimits) -> OipCall:
    """The request for the model `name` in a body whose first `length` bytes are JSON. Raises InvalidInput, Unsupported."""
    plain = wire.decode_plain(data, limits) if length == len(data) else None
    if plain is not None:
        return OipCall(name, plain[0], (), {}, (TensorPayload(plain[1]),), ())
    head = data if length == len(data) else data[:length]
    try:
        request = wire.decode(head, limits)
    except InvalidInput:
        _check_not_left_over(data, length)
        raise
    _check_name(name, request)
    check_stateless(request.parameters)
    for i, tensor in enumerate(request.inputs):
        check_input_parameters(tensor.parameters, i, OF_INPUT)
    return call_of(
        name,
        wire.read(request, memoryview(data)[length:]),
        request.outputs or (),
        request.parameters,
        request.id,
        of_wire=OF_REQUEST,
        of_output=OF_OUTPUT,
        is_base64=request.inputs[0].parameters.get("binary_data_size") is None,
    )


def encode(call: OipCall, reply: OipReply) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where binary data follows."""
    wanted = {output.name: output for output in call.outputs} if call.outputs else {}
    all_binary = call.parameters.get("binary_data_output") is True
    outputs: list[bytes] = []
    tail: list[bytes] = []
    for name, array in reply.outputs.items():
        described = _described(name, wire.datatype(array), array.shape)
        is_binary = wanted[name].parameters.get("binary_data", all_binary) if name in wanted else all_binary
        if is_binary is True:
            raw = wire.to_bytes(array)
            outputs.append(b'%b,"parameters":{"binary_data_size":%d}}' % (described, len(raw)))
            tail.append(raw)
        else:
            outputs.append(b'%b,"data":%b}' % (described, _data(wire.to_json(array))))
    call_id = b"" if reply.id is None else b',"id":%b' % orjson.dumps(reply.id)
    head = b'%b,"outputs":[%b]%b}' % (_answered(reply.model, reply.version), b",".join(outputs), call_id)
    return (b"".join([head, *tail]), len(head)) if tail else (head, None)


@lru_cache(maxsize=256)
def _answered(model: str, version: str) -> bytes:
    """How an answer begins."""
    return orjson.dumps({"model_name": model, "model_version": version})[:-1]


@lru_cache(maxsize=256)
def _described(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """How an output begins."""
    return orjson.dumps({"name": name, "datatype": datatype, "shape": shape})[:-1]


def _data(values: Any) -> bytes:
    if not isinstance(values, np.ndarray):
        return orjson.dumps(values)
    data = orjson.dumps(json_body.numbers(values), option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in data:  # NaN or an infinity: to look for one in each answer would cost more
        data = orjson.dumps(json_body.worded(values), option=orjson.OPT_SERIALIZE_NUMPY)
    return data


def json_length(value: bytes | None, data: bytes) -> int:
    """How many of a body's bytes are JSON, by its Inference-Header-Content-Length, if it has one. Raises InvalidInput."""
    size = len(data)
    if value is None:
        return size
    if value.isdigit() and len(value) <= 15 and int(value) > size:
        _check_not_left_over(data, int(value))
    if not value.isdigit() or len(value) > 15 or int(value) > size:
        shown = value[:40].decode("latin-1")
        raise InvalidInput(f"Inference-Header-Content-Length is '{shown}'; send the bytes of JSON, at most the body's {size}")
    return int(value)


def _check_name(name: str, request: wire.InferRequest) -> None:
    """Raise InvalidField where the body names another model than the path."""
    if request.model_name is None and request.model_version is None:
        return
    model, version, _ = split_name(name)
    for field, said, is_said in (
        ("model_name", request.model_name, (None, "", model, name)),
        ("model_version", request.model_version, (None, "", str(version or ""))),
    ):
        if said not in is_said:
            raise InvalidField(f"'{field}' is {said!r:.60} and the path says '{name}'; say the same, or leave it out", field)


def _check_not_left_over(data: bytes, length: int) -> None:
    """Raise what is truly wrong where a header of an earlier, binary request came with JSON alone."""
    if length == len(data) or not data.rstrip().endswith(b"}") or len(data) > wire.LARGE_BYTES:
        return
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return
    raise InvalidInput(
        f"Inference-Header-Content-Length says {length}, but the whole body of {len(data)} bytes is JSON: "
        "the header is left over from a request with binary data; leave it out"
    )
