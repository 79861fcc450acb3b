"""The Open Inference Protocol's protobuf: messages to a call, an answer to messages.

Knows fields and bytes. Refuses to know what is meant (`oip_call`) and gRPC. The messages are made from `oip.binpb`, which
`tools/proto.py` makes of `oip.proto`, in a pool of their own: in the process's pool they clash with those of other libraries
that speak this protocol (tritonclient, kserve), which have the same names.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from maasdam.api import oip_tensors as wire
from maasdam.api.oip_call import OipCall, OipReply, call_of, check_input_parameters, check_stateless, name_of
from maasdam.errors import InvalidInput, InvalidTensor, TooLarge

if TYPE_CHECKING:
    from maasdam.core import type_array

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
POOL = DescriptorPool()
POOL.AddSerializedFile(files("maasdam.api").joinpath("oip.binpb").read_bytes())
FINAL, EMPTY_FINAL = "triton_final_response", "triton_enable_empty_final_response"
"""Triton's parameters of streamed answers: this is the last one; say so in one of its own if need be (here none is needed)."""
MOST_FIELDS = 10_000
"""Of one message, not counting those within others."""
RAW_TAG = 7 << 3 | 2
"""How a raw content begins on the wire."""
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where InferTensorContents has the elements of each datatype; FP16 and BF16 come raw only."""


def message(name: str) -> Any:
    """A message's class."""
    return GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


_Response, _StreamResponse = message("ModelInferResponse"), message("ModelStreamInferResponse")


def parsed(kind: Any, data: bytes) -> Any:
    """A message of this class. Raises InvalidInput."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidInput(f"the message is no {kind.DESCRIPTOR.full_name}: {error}") from None


def check_outline(data: bytes, most: int) -> None:
    """Refuse, before it is parsed, a ModelInferRequest of which more than `most` bytes are not raw contents, or of many fields.

    Raw contents are taken as they are; everything else becomes objects all at once, up to 50 times as large. Raises TooLarge,
    InvalidInput. What can't be read here is left to the parser to refuse.
    """
    place, size, rest, fields = 0, len(data), 0, 0
    while place < size:
        start = place
        tag, place = _varint(data, place)
        if tag & 7 == 2:
            length, place = _varint(data, place)
            place += length
        elif tag & 7 == 0:
            _, place = _varint(data, place)
        else:  # of four or eight bytes, or none that there is
            place += {1: 8, 5: 4}.get(tag & 7, size)
        fields += 1
        rest += 0 if tag == RAW_TAG or place > size else place - start
        if fields > MOST_FIELDS:
            raise InvalidInput(f"the message has more than {MOST_FIELDS} fields; a request has one for each tensor")
    if rest > most:
        raise TooLarge(
            f"{rest} bytes of the message are no raw contents, where this service takes at most {most}: send tensors in "
            "raw_input_contents, or raise max_json_tensor_bytes"
        )


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(data) and shift < 70:
        byte = data[place]
        value |= (byte & 127) << shift
        place += 1
        shift += 7
        if byte < 128:
            return value, place
    return value, len(data)  # cut off, or none


def made(kind: Any, values: dict[str, Any]) -> Any:
    """A message of this class, of those values that it has fields for."""
    return ParseDict(values, kind(), ignore_unknown_fields=True)


def values_of(parameters: Any) -> dict[str, Any]:
    """A map of parameters, each as what it holds; None for one that holds nothing."""
    return {name: getattr(value, value.WhichOneof("parameter_choice") or "", None) for name, value in parameters.items()}


def decode(asked: Any, of_wire: tuple[str, ...] = (), may_stream: bool = False) -> OipCall:
    """A ModelInferRequest's call. `of_wire`: parameters of it that are read elsewhere. Raises InvalidInput, Unsupported."""
    name = name_of(asked.model_name, asked.model_version)
    wire.check_tensors([tensor.name for tensor in asked.inputs], [output.name for output in asked.outputs])
    parameters = values_of(asked.parameters)
    check_stateless(parameters)
    outputs = [wire.Wanted(output.name, values_of(output.parameters)) for output in asked.outputs]
    return call_of(name, _arrays(asked), outputs, parameters, asked.id or None, of_wire=of_wire, may_stream=may_stream)


def encode(reply: OipReply) -> Any:
    """A ModelInferResponse; the outputs are raw, whatever the inputs were, as Triton sends them."""
    response = _Response(model_name=reply.model, model_version=reply.version, id=reply.id or "")
    for name, array in reply.outputs.items():
        response.outputs.add(name=name, datatype=wire.datatype(array), shape=array.shape)
        response.raw_output_contents.append(wire.to_bytes(array))
    return response


def streamed(response: Any, is_last: bool) -> bytes:
    """A ModelStreamInferResponse, written."""
    response.parameters[FINAL].bool_param = is_last
    return bytes(_StreamResponse(infer_response=response).SerializeToString())


def failed(text: str, call_id: str) -> bytes:
    """The same of a request that failed: the stream goes on."""
    response = _StreamResponse(error_message=text, infer_response=_Response(id=call_id))
    response.infer_response.parameters[FINAL].bool_param = True
    return bytes(response.SerializeToString())


def _arrays(asked: Any) -> dict[str, type_array]:
    """The inputs: those with contents as these say, the others from the raw contents in their order."""
    if len(asked.raw_input_contents) > len(asked.inputs):
        said = f"{len(asked.raw_input_contents)} raw_input_contents for {len(asked.inputs)} inputs"
        raise InvalidTensor(f"{said}; send one for each input without contents, in order")
    left = list(reversed(asked.raw_input_contents))
    arrays = {}
    for i, sent in enumerate(asked.inputs):
        tensor = wire.Tensor(sent.name, list(sent.shape), sent.datatype)
        if sent.parameters:
            tensor.parameters = values_of(sent.parameters)
            check_input_parameters(tensor.parameters, i, ("binary_data_size",))
        count = wire.elements(tensor)
        if not left or (sent.HasField("contents") and sent.contents.ListFields()):
            arrays[tensor.name] = _from_contents(tensor, count, sent.contents)
        else:
            arrays[tensor.name] = _from_raw(tensor, count, left.pop())
    if left:
        raise InvalidTensor(f"{len(left)} raw_input_contents are left over; send one for each input without contents, in order")
    return arrays


def _from_raw(tensor: wire.Tensor, count: int, raw: bytes) -> type_array:
    size = tensor.parameters.get("binary_data_size")  # KServe's client says it here too
    if size is not None and size != len(raw):
        raise InvalidTensor(
            f"input '{tensor.name}': binary_data_size is {size!r:.40} and its raw contents have {len(raw)} bytes"
        )
    return wire.from_bytes(tensor, count, memoryview(raw))


def _from_contents(tensor: wire.Tensor, count: int, contents: Any) -> type_array:
    if "shared_memory_region" in tensor.parameters:
        raise InvalidTensor(f"input '{tensor.name}' is in shared memory; this service takes its data in the message")
    field = CONTENTS.get(tensor.datatype)
    if field is None:
        raise InvalidTensor(f"input '{tensor.name}': {tensor.datatype} has no place in contents; send raw_input_contents")
    other = next((held.name for held, _ in contents.ListFields() if held.name != field), None)
    if other is not None:
        raise InvalidTensor(f"input '{tensor.name}' is {tensor.datatype} and has {other}; send {field}")
    values = getattr(contents, field)
    if len(values) != count:
        raise InvalidTensor(f"input '{tensor.name}' has {len(values)} elements where shape {tensor.shape} holds {count}")
    array = np.array(values, "object" if tensor.datatype == "BYTES" else None)
    wants = np.dtype(wire.TO_NUMPY.get(tensor.datatype, "object"))
    if wants.kind in "iu" and array.size and not np.iinfo(wants).min <= array.min() <= array.max() <= np.iinfo(wants).max:
        raise InvalidTensor(f"input '{tensor.name}' holds a number outside {tensor.datatype}")
    return array.astype(wants, copy=False).reshape(tensor.shape)
