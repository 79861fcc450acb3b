"""POST /v2/models/NAME[/versions/V]/infer, below the framework: the route where microseconds count.

Knows the protocol's JSON and bytes. Refuses to know engines; answers come from `operations.infer`.

    body -> JSON + binary -> payloads -> operations.infer -> outputs -> JSON [+ binary]
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import orjson

from maasdam.api import body as bodies
from maasdam.api import json_body
from maasdam.api import oip_tensors as wire
from maasdam.api.body import Receive
from maasdam.api.entrance import Scope, Send, request_of
from maasdam.api.fields import check_known, check_neutral, check_query
from maasdam.api.measured import measured_headers
from maasdam.api.sampling import NAMES, sampling_from
from maasdam.core import (
    Chunk,
    Entry,
    Facts,
    Payload,
    TensorPayload,
    TextPayload,
    split_name,
)
from maasdam.errors import InvalidField, InvalidInput, InvalidTensor, ModelNotFound, Unsupported
from maasdam.operations.service import Service
from maasdam.tasks import TASKS, carried_by

if TYPE_CHECKING:
    from maasdam.core import type_array

JSON_LENGTH = b"inference-header-content-length"
REQUEST_PARAMETERS = ("timeout", "binary_data_output")
STATELESS = ("sequence_id", "sequence_start", "sequence_end")
NO_PRIORITY: Mapping[str, tuple[Any, ...]] = {"priority": (0,)}
SHARED_MEMORY = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
"""Said to be of another place where they are used; without a region they mean nothing."""
CARRIED = {task.oip.input: task for task in reversed(TASKS.values()) if task.oip is not None}
"""Tasks by the BYTES input that carries them. Those that share one take the same payload."""
MOST_PROMPTS = 64
SMALL_BYTES = 128 * 1024
"""JSON up to this size is read and written in the event loop: a hop to a thread would cost more."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One inference request, read."""

    request: wire.InferRequest
    payloads: tuple[Payload, ...]
    shape: tuple[int, ...]
    """Of the BYTES input, where the payloads came from one."""


class InferRoute:
    """An ASGI application for the one route."""

    def __init__(self, service: Service, limits: bodies.BodyLimits) -> None:
        self._service = service
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one inference request. Raises what the entrance turns into the protocol's error."""
        headers = scope["headers"]
        name = name_of(**scope["path_params"])
        check_query(scope.get("query_string", b""))
        is_binary = bodies.header(headers, JSON_LENGTH) is not None
        data = await self._limits.read(scope, receive, self._limits.any if is_binary else self._limits.json_tensors)
        try:
            length = _json_length(headers, data)
            if length > self._limits.json_tensors.most:
                raise self._limits.json_tensors.error(length)
            if length <= SMALL_BYTES:
                asked = self._read(data, length)
            else:
                asked = await asyncio.get_running_loop().run_in_executor(self._service.pool, self._read, data, length)
        except InvalidInput:
            self._service.check_model(name)
            raise
        reply, json_length, measured = await self._infer(scope, name, asked)
        kind = b"application/json" if json_length is None else b"application/octet-stream"
        out = [(b"content-type", kind), (b"content-length", b"%d" % len(reply)), *measured]
        if json_length is not None:
            out.append((JSON_LENGTH, b"%d" % json_length))
        await send({"type": "http.response.start", "status": 200, "headers": out})
        await send({"type": "http.response.body", "body": reply, "more_body": False})

    async def _infer(self, scope: Scope, name: str, asked: Asked) -> tuple[bytes, int | None, list[tuple[bytes, bytes]]]:
        timeout = self._service.settings.request_timeout_seconds
        limit = asked.request.parameters.get("timeout")
        if limit is not None:
            if isinstance(limit, bool) or not isinstance(limit, int) or limit <= 0:
                raise InvalidInput(f"parameter 'timeout' is {limit!r}; send microseconds, a whole number above 0")
            timeout = min(timeout, limit / 1e6)
        _check_name(name, asked.request)
        _check_wanted(asked.request)
        request = request_of(scope, name, asked.payloads, "/v2/infer", timeout)

        async def written(chunks: list[Chunk], entry: Entry) -> tuple[bytes, int | None, list[tuple[bytes, bytes]]]:
            outputs = _outputs(chunks, asked, entry.task)
            if sum(array.nbytes for array in outputs.values()) <= SMALL_BYTES:
                reply, json_length = write(asked.request, outputs, entry)
            else:
                loop = asyncio.get_running_loop()
                reply, json_length = await loop.run_in_executor(self._service.pool, write, asked.request, outputs, entry)
            return reply, json_length, measured_headers(entry)

        check = partial(_check_outputs, asked) if asked.request.outputs else None
        return await self._service.inference.whole(request, written, check)

    def _read(self, data: bytes, length: int) -> Asked:
        head = data if length == len(data) else data[:length]
        try:
            json_body.check_json_depth(head, self._service.settings.max_json_depth)
            request = wire.decode(head)
        except InvalidInput:
            _check_not_left_over(data, length)
            raise
        for name in STATELESS:
            if request.parameters.get(name):
                raise Unsupported(f"parameter '{name}': this service keeps no state between requests")
        for i, tensor in enumerate(request.inputs):
            check_known(tensor.parameters, ("binary_data_size", *SHARED_MEMORY), "parameter", f"inputs[{i}]")
        arrays = wire.read(request, memoryview(data)[length:])
        asked = _payloads(request, arrays)
        sampling = NAMES if isinstance(asked.payloads[0], TextPayload) else ()
        check_known(request.parameters, (*REQUEST_PARAMETERS, *sampling, *STATELESS, *NO_PRIORITY), "parameter")
        check_neutral(request.parameters, NO_PRIORITY)
        _check_truth(request.parameters, "binary_data_output")
        return asked


def _check_wanted(request: wire.InferRequest) -> None:
    for i, wanted in enumerate(request.outputs or ()):
        check_known(wanted.parameters, ("binary_data", "classification", *SHARED_MEMORY), "parameter", f"outputs[{i}]")
        _check_truth(wanted.parameters, "binary_data")
        if wanted.parameters.get("classification"):
            raise Unsupported("the classification extension is not here; POST /v1/images/classifications gives labels")
        if "shared_memory_region" in wanted.parameters:
            raise Unsupported("shared memory is not read here; ask for JSON or binary data")


def _check_outputs(asked: Asked, facts: Facts) -> None:
    """Refuse an output that does not exist before the model runs for nothing."""
    carried = carried_by(facts.task)
    if not isinstance(asked.payloads[0], TensorPayload):
        have = [output for output, _ in carried.outputs] if carried else None
    else:
        have = [spec.name for spec in facts.signature.outputs] if facts.signature else None
    if have is None:
        return  # inference says that the model takes something else
    for wanted in asked.request.outputs or ():
        if wanted.name not in have:
            raise InvalidTensor(f"no output '{wanted.name}'; this model gives: {', '.join(have)}")


def _check_truth(parameters: Mapping[str, Any], name: str) -> None:
    if not isinstance(parameters.get(name, False), bool | None):
        raise InvalidField(f"parameter '{name}' is {parameters[name]!r:.40}; send true or false", name)


def _check_name(name: str, request: wire.InferRequest) -> None:
    """Raise InvalidField where the body names another model than the path."""
    model, version, _ = split_name(name)
    for field, said, is_said in (
        ("model_name", request.model_name, (None, "", model, name)),
        ("model_version", request.model_version, (None, "", str(version or ""))),
    ):
        if said not in is_said:
            raise InvalidField(f"'{field}' is {said!r:.60} and the path says '{name}'; say the same, or leave it out", field)


def name_of(model: str, version: str | None) -> str:
    """NAME or NAME:VERSION. Raises NotFound for a version that is no number."""
    if not version:
        return model
    if not (version.isascii() and version.isdigit() and len(version) < 10):
        raise ModelNotFound(f"model '{model}' has no version '{version[:50]}'; versions are numbers")
    return f"{model}:{version}"


def write(request: wire.InferRequest, outputs: dict[str, type_array], entry: Entry) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where binary data follows."""
    wanted = {output.name: output for output in request.outputs or ()}
    all_binary = request.parameters.get("binary_data_output") is True
    described: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name in wanted or outputs:
        array = outputs[name]
        one: dict[str, Any] = {"name": name, "datatype": wire.datatype(array), "shape": list(array.shape)}
        is_binary = wanted[name].parameters.get("binary_data", all_binary) if name in wanted else all_binary
        if is_binary is True:
            raw = wire.to_bytes(array)
            one["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        else:
            values = wire.to_json(array)
            one["data"] = json_body.numbers(values) if isinstance(values, np.ndarray) else values
        described.append(one)
    answer: dict[str, Any] = {"model_name": entry.model, "model_version": str(entry.version), "outputs": described}
    if request.id is not None:
        answer["id"] = request.id
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in head:  # NaN or an infinity, most likely: to look for one in each answer would cost more
        for one in described:
            if isinstance(one.get("data"), np.ndarray):
                one["data"] = json_body.worded(one["data"])
        head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([head, *tail]), len(head)) if tail else (head, None)


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


def _json_length(headers: bodies.Headers, data: bytes) -> int:
    value = bodies.header(headers, JSON_LENGTH)
    size = len(data)
    if value is None:
        return size
    if value.isdigit() and len(value) <= 15 and int(value) > size:
        _check_not_left_over(data, int(value))
    if not value.isdigit() or len(value) > 15 or int(value) > size:
        shown = value[:40].decode("latin-1")
        raise InvalidInput(f"Inference-Header-Content-Length is '{shown}'; send the bytes of JSON, at most the body's {size}")
    return int(value)


def _payloads(request: wire.InferRequest, arrays: dict[str, type_array]) -> Asked:
    name = next(iter(arrays))
    array = arrays[name]
    if len(arrays) != 1 or name not in CARRIED or request.inputs[0].datatype != "BYTES":
        return Asked(request, (TensorPayload(arrays),), ())
    if not 1 <= array.size <= MOST_PROMPTS:
        raise InvalidTensor(f"input '{name}' has {array.size} elements; send 1 to {MOST_PROMPTS}")
    elements: list[bytes] = list(array.ravel())
    if CARRIED[name].of_file is not None:
        if "binary_data_size" not in request.inputs[0].parameters:
            elements = [_from_base64(element, name) for element in elements]
        return Asked(request, tuple(CARRIED[name].payload(element) for element in elements), array.shape)
    sampling = sampling_from(request.parameters)
    try:
        texts = [element.decode() for element in elements]
    except UnicodeDecodeError:
        raise InvalidTensor(f"input '{name}' is not UTF-8; send text") from None
    return Asked(request, tuple(TextPayload(prompt=text, sampling=sampling) for text in texts), array.shape)


def _from_base64(element: bytes, name: str) -> bytes:
    try:
        return json_body.from_base64(element)
    except ValueError:
        raise InvalidTensor(f"input '{name}' in JSON must be base64; or send it as binary data") from None


def _outputs(chunks: list[Chunk], asked: Asked, task: str | None) -> dict[str, type_array]:
    carried = carried_by(task)
    if isinstance(asked.payloads[0], TensorPayload) or carried is None:
        return dict(chunks[0].value)  # type: ignore[arg-type]  # a TensorPayload is answered with tensors
    columns = zip(*(carried.values(chunk.value) for chunk in chunks), strict=True)
    return {
        name: np.array(column, wire.TO_NUMPY.get(datatype, "object")).reshape(asked.shape)
        for (name, datatype), column in zip(carried.outputs, columns, strict=True)
    }
