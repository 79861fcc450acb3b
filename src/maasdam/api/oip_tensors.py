"""Tensors as the Open Inference Protocol writes them: JSON numbers, or raw bytes after the JSON.

Knows datatypes, shapes and bytes. Refuses to know models and HTTP. Every length a client claims is checked before
anything of that size is made.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np

from maasdam.api import json_body
from maasdam.core import WithoutNan
from maasdam.errors import InvalidInput, InvalidTensor

if TYPE_CHECKING:
    from maasdam.core import type_array

TO_NUMPY: dict[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
"""BF16 and BYTES are read by functions of their own."""
FROM_NUMPY: dict[str, str] = {numpy: oip for oip, numpy in TO_NUMPY.items()} | {"bfloat16": "BF16", "object": "BYTES"}
SIZES: dict[str, int] = {oip: np.dtype(name).itemsize for oip, name in TO_NUMPY.items()} | {"BF16": 2}
MOST_DIMENSIONS = 32
MOST_TENSORS = 256
MOST_ELEMENTS = 1 << 48
MOST_BESIDE = 2 << 20
"""Bytes of a request's JSON beside large data: they become objects all at once."""
LARGE_BYTES = 128 * 1024
"""JSON over this size is read in pieces, each of which holds Python's lock for a moment only."""


ABSENT = msgspec.Raw()


class Tensor(msgspec.Struct, forbid_unknown_fields=True):
    """One input as the client wrote it. `data` is left as bytes of JSON until the shape is known to be sane."""

    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = ABSENT
    parameters: dict[str, Any] = {}


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """One output that the client asks for."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON of an inference request."""

    inputs: list[Tensor]
    id: str | None = None
    outputs: list[Wanted] | None = None
    parameters: dict[str, Any] = {}
    model_name: str | None = None
    """As the path says it; some clients write both."""
    model_version: str | None = None


MOST_PLAIN = 1e15
"""Numbers up to it are the same whether they are read as a float or as a whole number first."""


class Plain(msgspec.Struct, forbid_unknown_fields=True):
    """The one input of most requests."""

    name: str
    shape: tuple[int, ...]
    datatype: Literal["FP32"]
    data: list[Annotated[float, msgspec.Meta(ge=-MOST_PLAIN, le=MOST_PLAIN)]]


class PlainRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What most requests are."""

    inputs: tuple[Plain]
    id: str | None = None


PLAIN_DEPTH = 4
MOST_PLAIN_BYTES = 4096
DATA_DEPTH = 4
"""Of the brackets of data: the request's, those of its inputs, the input's, its own."""

_decoder = msgspec.json.Decoder(InferRequest)
_plain_decoder = msgspec.json.Decoder(PlainRequest)


def decode_plain(data: bytes, limits: json_body.JsonLimits) -> tuple[str | None, dict[str, type_array]] | None:
    """The id and the tensors of a small request in its plainest form, as `decode` and `read` would have them, in one step and
    without NaN; None for all others, of which those two say what they are."""
    if len(data) > MOST_PLAIN_BYTES or limits.depth < PLAIN_DEPTH:
        return None
    try:
        request = _plain_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    (tensor,) = request.inputs
    numbers = tensor.data
    if not numbers or len(numbers) != _plain_elements(tensor.shape):
        return None
    return request.id, WithoutNan({tensor.name: np.ndarray(tensor.shape, np.float32, _floats(len(numbers)).pack(*numbers))})


@lru_cache(maxsize=256)
def _plain_elements(shape: tuple[int, ...]) -> int:
    """How many elements a shape holds; 0 for one that is none, or not plain."""
    return math.prod(shape) if len(shape) <= MOST_DIMENSIONS and min(shape, default=0) >= 0 else 0


@lru_cache(maxsize=256)
def _floats(count: int) -> struct.Struct:
    """A third of what numpy takes to look through a list."""
    return struct.Struct(f"{count}f")


def decode(header: bytes, limits: json_body.JsonLimits) -> InferRequest:
    """The request's JSON; large data, beside which `limits` hold, is not looked at yet. Raises InvalidInput, TooLarge."""
    large: dict[bytes, bytes] = {}
    if len(header) > LARGE_BYTES:
        header, large = json_body.without_arrays(header, b"data", DATA_DEPTH, limits)
        if len(header) > MOST_BESIDE:
            raise InvalidInput(f"more than {MOST_BESIDE} bytes are not in lists of data; only those may be so large")
    else:
        json_body.check_json_depth(header, limits.depth)
    try:
        request = _decoder.decode(header)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the request does not follow the Open Inference Protocol: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the request is not valid JSON: {error}") from None
    check_tensors([tensor.name for tensor in request.inputs], [wanted.name for wanted in request.outputs or ()])
    for tensor in request.inputs if large else ():
        data = bytes(tensor.data)
        tensor.data = msgspec.Raw(large.get(data, data))
    return request


def read(request: InferRequest, binary: memoryview) -> dict[str, type_array]:
    """The inputs as arrays. `binary` is what follows the JSON. Raises InvalidTensor."""
    arrays: dict[str, type_array] = {}
    start = 0
    for tensor in request.inputs:
        count = elements(tensor)
        size = tensor.parameters.get("binary_data_size")
        if "shared_memory_region" in tensor.parameters:
            raise InvalidTensor(f"input '{tensor.name}' is in shared memory; this service takes JSON or binary data")
        if size is None:
            arrays[tensor.name] = _from_json(tensor, count)
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidTensor(f"input '{tensor.name}': binary_data_size is {size!r}; send its number of bytes")
        if bytes(tensor.data):
            raise InvalidTensor(f"input '{tensor.name}' has both data and binary_data_size; send one of them")
        if size > len(binary) - start:
            raise InvalidTensor(f"input '{tensor.name}' claims {size} bytes where {len(binary) - start} are left in the body")
        arrays[tensor.name] = from_bytes(tensor, count, binary[start : start + size])
        start += size
    if start != len(binary):
        raise InvalidTensor(
            f"{len(binary) - start} bytes follow the last tensor; binary_data_size of the inputs must cover the body"
        )
    return arrays


def datatype(array: type_array) -> str:
    """The protocol's name of an array's type. Raises InvalidTensor for one it has no name for."""
    return _datatype(array.dtype)


@lru_cache(maxsize=64)
def _datatype(dtype: Any) -> str:
    name = FROM_NUMPY.get(dtype.name)
    if name is None and dtype.kind in "SU":
        return "BYTES"
    if name is None:
        raise InvalidTensor(f"an output is {dtype.name}, which the Open Inference Protocol has no datatype for")
    return name


def to_bytes(array: type_array) -> bytes:
    """Raw little-endian bytes, row by row; BYTES elements each after their length in 4 bytes."""
    if datatype(array) == "BYTES":
        parts = []
        for element in array.ravel():
            raw = element if isinstance(element, bytes) else str(element).encode()
            parts.append(struct.pack("<I", len(raw)) + raw)
        return b"".join(parts)
    return np.ascontiguousarray(array).tobytes()


def to_json(array: type_array) -> Any:
    """The elements, row by row, flat; `json_body.numbers` writes them."""
    kind = datatype(array)
    if kind == "BYTES":
        return [element.decode("utf-8", "replace") if isinstance(element, bytes) else str(element) for element in array.ravel()]
    if kind in ("FP16", "BF16"):
        array = array.astype(np.float32)
    return array.ravel()


def check_tensors(inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Raise InvalidInput where a request has no inputs, too many tensors, or two of one name."""
    if not inputs:
        raise InvalidInput("'inputs' is empty; send at least one tensor")
    if len(inputs) > MOST_TENSORS or len(outputs) > MOST_TENSORS:
        raise InvalidInput(f"more than {MOST_TENSORS} tensors; send fewer")
    _check_names("input", inputs)
    _check_names("output", outputs)


def _check_names(what: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInput(f"{what} '{twice}' is named twice; name each once")


def elements(tensor: Tensor) -> int:
    """How many elements the shape holds. Raises InvalidTensor for a datatype there is not, and a shape that can't be."""
    if tensor.datatype not in SIZES and tensor.datatype != "BYTES":
        known = ", ".join([*SIZES, "BYTES"])
        raise InvalidTensor(f"input '{tensor.name}' has datatype '{tensor.datatype}'; the datatypes are {known}")
    if len(tensor.shape) > MOST_DIMENSIONS or any(size < 0 for size in tensor.shape):
        raise InvalidTensor(
            f"input '{tensor.name}' has shape {tensor.shape[:8]}; send up to {MOST_DIMENSIONS} sizes of 0 or more"
        )
    if math.prod(size for size in tensor.shape if size) > MOST_ELEMENTS:  # also where a 0 makes the product 0
        raise InvalidTensor(f"input '{tensor.name}' has shape {tensor.shape[:8]}: more elements than a body can hold")
    return math.prod(tensor.shape)


def from_bytes(tensor: Tensor, count: int, raw: memoryview) -> type_array:
    """The tensor of `count` elements that `raw` is. Raises InvalidTensor."""
    if tensor.datatype == "BYTES":
        return _strings(tensor, count, raw)
    needs = count * SIZES[tensor.datatype]
    if needs != len(raw):
        raise InvalidTensor(
            f"input '{tensor.name}': {tensor.datatype} of shape {tensor.shape} is {needs} bytes, and {len(raw)} were sent"
        )
    if tensor.datatype == "BF16":
        return _bfloat16(np.frombuffer(raw, np.uint16)).reshape(tensor.shape)
    array = np.frombuffer(raw, TO_NUMPY[tensor.datatype] if tensor.datatype != "BOOL" else np.uint8)
    if tensor.datatype == "BOOL":
        array = array != 0  # a byte other than 0 and 1 is no bool to an engine
    return array.reshape(tensor.shape)


def _strings(tensor: Tensor, count: int, raw: memoryview) -> type_array:
    if count * 4 > len(raw):
        raise InvalidTensor(
            f"input '{tensor.name}': {count} strings of BYTES need at least {count * 4} bytes, and {len(raw)} were sent"
        )
    out = np.empty(count, object)
    start = 0
    for i in range(count):
        end = start + 4
        if end > len(raw):
            raise InvalidTensor(f"input '{tensor.name}': the length of string {i} is cut off")
        (length,) = struct.unpack_from("<I", raw, start)
        start, end = end, end + length
        if end > len(raw):
            raise InvalidTensor(f"input '{tensor.name}': string {i} claims {length} bytes where {len(raw) - start} are left")
        out[i] = bytes(raw[start:end])
        start = end
    if start != len(raw):
        raise InvalidTensor(f"input '{tensor.name}': {len(raw) - start} bytes follow the last string")
    return out.reshape(tensor.shape)


def _from_json(tensor: Tensor, count: int) -> type_array:
    raw = bytes(tensor.data)
    if not raw or raw == b"null":
        raise InvalidTensor(f"input '{tensor.name}' has no data; send 'data' or binary data with binary_data_size")
    if count > len(raw):  # each element takes a byte at least
        raise InvalidTensor(f"input '{tensor.name}' has shape {tensor.shape} and far fewer elements in 'data'")
    if len(raw) > LARGE_BYTES:
        return _from_large_json(tensor, count, raw)
    try:
        data = json_body.loads(raw)
    except ValueError as error:
        raise InvalidTensor(f"input '{tensor.name}': data is not valid JSON: {error}") from None
    if not isinstance(data, list):
        raise InvalidTensor(f"input '{tensor.name}': data is not a list")
    if tensor.datatype == "BYTES":
        return _texts(tensor, count, data)
    try:
        array = _numbers(tensor, json_body.without_words(data) if _has_words(tensor, raw) else data)
    except (ValueError, OverflowError):
        raise InvalidTensor(f"input '{tensor.name}': data is ragged; nest it evenly or send it flat") from None
    if array.size != count:
        raise InvalidTensor(f"input '{tensor.name}' has {array.size} elements where shape {tensor.shape} holds {count}")
    return _cast(tensor, array).reshape(tensor.shape)


def _from_large_json(tensor: Tensor, count: int, raw: bytes) -> type_array:
    try:
        shape, pieces = json_body.leaves(raw)
        has = math.prod(shape)
        if has != count:
            raise InvalidTensor(f"input '{tensor.name}' has {has} elements where shape {tensor.shape} holds {count}")
        if tensor.datatype == "BYTES":
            return _texts(tensor, count, [text for piece in pieces for text in piece])
        has_words = _has_words(tensor, raw)
        arrays = [_cast(tensor, _numbers(tensor, json_body.without_words(p) if has_words else p)) for p in pieces]
    except (ValueError, OverflowError) as error:
        raise InvalidTensor(f"input '{tensor.name}': data can't be read: {error}; nest it evenly or send it flat") from None
    return np.concatenate(arrays).reshape(tensor.shape) if arrays else _cast(tensor, np.empty(0)).reshape(tensor.shape)


def _numbers(tensor: Tensor, data: list[Any]) -> type_array:
    """What numpy makes of `data`; but whole numbers, some of which are above 2^63, don't become floats."""
    array = np.array(data)
    if array.dtype.kind == "f" and tensor.datatype == "UINT64":
        flat = np.array(data, object).ravel().tolist()
        if all(type(element) is int and 0 <= element < 1 << 64 for element in flat):
            return np.array(flat, np.uint64).reshape(array.shape)
    return array


def _has_words(tensor: Tensor, raw: bytes) -> bool:
    """Whether "Infinity", "-Infinity" and "NaN" may stand in it for numbers that JSON can't say, and the datatype can."""
    return tensor.datatype.startswith(("FP", "BF")) and b'"' in raw


def _cast(tensor: Tensor, array: type_array) -> type_array:
    """To the datatype, refusing what would change a value's meaning."""
    kind, wants = array.dtype.kind, tensor.datatype
    if array.size == 0:
        array = np.empty(0, TO_NUMPY.get(wants, "float32"))
        return array if wants != "BF16" else _bfloat16(array.astype(np.uint16))
    is_float = wants.startswith(("FP", "BF"))
    allowed = "b" if wants == "BOOL" else "iuf" if is_float else "iu"
    if kind not in allowed and not (wants == "BOOL" and kind in "iu" and bool(np.isin(array, (0, 1)).all())):
        needs = "true or false" if wants == "BOOL" else "numbers" if is_float else "whole numbers"
        raise InvalidTensor(f"input '{tensor.name}': {wants} data must be {needs}")
    if wants == "BF16":
        wide = array.astype(np.float32)
        return _bfloat16((wide.view(np.uint32) >> 16).astype(np.uint16))
    target = np.dtype(TO_NUMPY[wants])
    if is_float:
        try:
            with np.errstate(over="raise"):
                return array.astype(target)
        except FloatingPointError:
            raise InvalidTensor(f"input '{tensor.name}' holds a number too large for {wants}") from None
    if wants != "BOOL":
        limits = np.iinfo(target)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InvalidTensor(f"input '{tensor.name}' holds a number outside {wants}")
    return array.astype(target)


def _texts(tensor: Tensor, count: int, data: list[Any]) -> type_array:
    flat = data
    while flat and isinstance(flat[0], list):
        if not all(isinstance(element, list) for element in flat):
            break
        flat = [element for inner in flat for element in inner]
    if not all(isinstance(element, str) for element in flat):
        raise InvalidTensor(f"input '{tensor.name}': BYTES data must be strings")
    if len(flat) != count:
        raise InvalidTensor(f"input '{tensor.name}' has {len(flat)} elements where shape {tensor.shape} holds {count}")
    out = np.empty(count, object)
    for i, element in enumerate(flat):
        out[i] = element.encode()
    return out.reshape(tensor.shape)


def _bfloat16(bits: type_array) -> type_array:
    import ml_dtypes

    return bits.view(ml_dtypes.bfloat16)
