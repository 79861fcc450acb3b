"""The headers of safetensors files: names, dtypes and shapes of weights, without the weights.

Knows the file format and every way its header can lie. Refuses to read a single weight.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maasdam.errors import InvalidModel
from maasdam.sources.bounds import MAX_AXIS, MAX_RANK, parse_json

MAX_HEADER_BYTES = 32 * 1024 * 1024
"""The format allows 100 MB; the largest published models take under 2 MB a shard."""

_DTYPES = {
    "F64": ("float64", 64), "F32": ("float32", 32), "F16": ("float16", 16), "BF16": ("bfloat16", 16),
    "I64": ("int64", 64), "I32": ("int32", 32), "I16": ("int16", 16), "I8": ("int8", 8),
    "U64": ("uint64", 64), "U32": ("uint32", 32), "U16": ("uint16", 16), "U8": ("uint8", 8), "BOOL": ("bool", 8),
    "C64": ("complex64", 64), "F8_E4M3": ("float8_e4m3fn", 8), "F8_E5M2": ("float8_e5m2", 8), "F8_E8M0": ("float8_e8m0fnu", 8),
    "F4": ("float4_e2m1fn", 4), "F6_E2M3": ("float6_e2m3fn", 6), "F6_E3M2": ("float6_e3m2fn", 6),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    """What one file holds. `shapes` are by tensor name; `elements` counts numbers by numpy dtype name."""

    shapes: Mapping[str, tuple[int, ...]]
    elements: Counter[str] = field(default_factory=Counter)


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file. Raises InvalidModel when it is cut off or says what isn't so."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        if len(start) < 8:
            raise InvalidModel(f"{path} is no safetensors file: it has {size} bytes; fetch it again")
        if start.startswith(b"version "):
            raise InvalidModel(f"{path} is a Git LFS pointer, not the weights; run: git lfs pull")
        length = int.from_bytes(start, "little")
        if length > size - 8:
            raise InvalidModel(f"{path} says its header has {length:,} bytes, but the file has {size:,}; fetch it again")
        if length > MAX_HEADER_BYTES:
            raise InvalidModel(f"{path} has a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are taken")
        data = stream.read(length)
    header = parse_json(data, f"the header of {path}", max_depth=8)
    if not isinstance(header, dict):
        raise InvalidModel(f"the header of {path} is no JSON object; fetch the file again")
    return _checked(header, size - 8 - length, path)


def _checked(header: dict[str, Any], stored: int, path: Path) -> Header:
    """Offsets must cover the stored bytes once, without gaps: so neither too much nor too little can be read."""
    spans: list[tuple[int, int]] = []
    shapes: dict[str, tuple[int, ...]] = {}
    elements: Counter[str] = Counter()
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, bits = _DTYPES[entry["dtype"]]
            shape = tuple(int(size) for size in entry["shape"])
            begin, end = (int(place) for place in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidModel(
                f"{path}: the header's entry '{name}' is not readable ({error}); fetch the file again"
            ) from error
        if len(shape) > MAX_RANK or max((0, *shape)) > MAX_AXIS:
            raise InvalidModel(f"{path}: '{name}' has a shape no tensor has; the header lies: fetch the file again")
        count = math.prod(shape)
        if min((0, *shape)) < 0 or begin < 0 or end - begin != (count * bits + 7) // 8:
            raise InvalidModel(
                f"{path}: '{name}' has {end - begin:,} bytes, which does not fit {dtype} {list(shape)}; fetch the file again"
            )
        spans.append((begin, end))
        shapes[name] = shape
        elements[dtype] += count
    place = 0
    for begin, end in sorted(spans):
        if begin != place:
            raise InvalidModel(
                f"{path}: its tensors overlap or leave gaps at byte {place:,}; the header lies: fetch the file again"
            )
        place = end
    if place > stored:
        raise InvalidModel(
            f"{path} is cut off: its header speaks of {place:,} bytes of weights, {stored:,} are there; fetch it again"
        )
    if place < stored:
        raise InvalidModel(f"{path} has {stored - place:,} bytes its header doesn't speak of; fetch the file again")
    return Header(shapes, elements)
