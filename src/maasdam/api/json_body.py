"""JSON read within bounds. Knows brackets, quotes and counts; never what a body means.

A parse holds Python's lock from its first byte to its last, in a thread too, so nothing is parsed before its depth and
its number of values are known. The scan that finds them lets go of the lock many times a megabyte, and needs the same
time for every input of a size:

    bytes -scan, in blocks-> marks ([ ] { } , :) outside strings -> depth and count within limits? -> one parse
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from maasdam.errors import InvalidInput, TooLarge

if TYPE_CHECKING:
    from maasdam.core import type_array

BLOCK = 128 * 1024
"""Bytes scanned at once."""
SMALL_BYTES = 4096
"""JSON up to this size can't do harm by its number of values."""
BASE64_BLOCK = 1 << 20

QUOTE, BACKSLASH = ord('"'), ord("\\")
_STEPS = np.zeros(256, np.int8)
_STEPS[[ord("["), ord("{")]] = 1
_STEPS[[ord("]"), ord("}")]] = -1
_IS_SPECIAL = np.zeros(256, bool)
_IS_SPECIAL[[*b'[]{},:"\\']] = True
_COUNTS = np.zeros(256, bool)
_COUNTS[[*b"[{,:"]] = True


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """What one JSON body may be."""

    depth: int
    """Levels of nesting."""
    values: int
    """Values and keys. 200,000 of the dearest are parsed in some 20 ms."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks outside strings in a piece of JSON, in order: their places and which they are."""

    places: type_array
    codes: type_array
    depths: type_array
    """How deep the nesting is just after each mark."""


def parse(data: bytes, limits: JsonLimits) -> Any:
    """What `data` says. Strict: UTF-8 only, no NaN, no number beyond a double, no half of a surrogate pair.

    Raises InvalidInput, TooLarge for more values than `limits` allow.
    """
    check(data, limits)
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None


def check(data: bytes, limits: JsonLimits) -> None:
    """Raise what `parse` raises of depth and number, without parsing."""
    if len(data) <= SMALL_BYTES and data.count(b"[") + data.count(b"{") <= limits.depth:
        return
    values = 0
    for marks in scan(data):
        values += int(np.count_nonzero(_COUNTS[marks.codes]))
        if marks.depths.size and int(marks.depths.max()) > limits.depth:
            raise InvalidInput(f"the JSON nests deeper than {limits.depth} levels; send it flatter")
        if values > limits.values:
            raise TooLarge(f"the JSON holds more than {limits.values} values; send less, or raise max_json_values")


def scan(data: bytes) -> Iterator[Marks]:
    """The marks of each block of `data`. What is no JSON gives marks too, those that a parser would see before it stops."""
    depth, is_inside, is_escaped = 0, False, False
    for start in range(0, len(data), BLOCK):
        codes = np.frombuffer(data, np.uint8, min(BLOCK, len(data) - start), start)
        places = np.flatnonzero(_IS_SPECIAL[codes])
        if is_escaped and places.size and places[0] == 0:
            places = places[1:]
        kinds = codes[places]
        slashes = places[kinds == BACKSLASH]
        is_escaped = False
        if slashes.size:
            escapes = _escapes(slashes)
            is_escaped = bool(escapes[-1] == codes.size - 1)
            is_literal = np.zeros(codes.size + 1, bool)
            is_literal[escapes + 1] = True
            kept = ~is_literal[places] & (kinds != BACKSLASH)
            places, kinds = places[kept], kinds[kept]
        quotes = kinds == QUOTE
        inside = np.logical_xor.accumulate(quotes) if quotes.size else quotes
        if is_inside:
            inside = ~inside
        if inside.size:
            is_inside = bool(inside[-1])
        outside = ~inside & ~quotes
        places, kinds = places[outside], kinds[outside]
        depths = np.cumsum(_STEPS[kinds], dtype=np.int32) + depth
        if depths.size:
            depth = int(depths[-1])
        yield Marks(places + start, kinds, depths)


def _escapes(slashes: type_array) -> type_array:
    """Of the places of backslashes those that escape what follows: the first, third, ... of each run."""
    is_first = np.ones(slashes.size, bool)
    is_first[1:] = np.diff(slashes) != 1
    numbers = np.arange(slashes.size)
    in_run = numbers - np.maximum.accumulate(np.where(is_first, numbers, 0))
    return slashes[in_run % 2 == 0]


def from_base64(text: bytes | str) -> bytes:
    """The bytes that `text` stands for, in pieces: a decoder holds Python's lock. Raises ValueError."""
    raw = text.encode("ascii") if isinstance(text, str) else text
    pieces = []
    for start in range(0, len(raw), BASE64_BLOCK):
        piece = raw[start : start + BASE64_BLOCK]
        if start + BASE64_BLOCK < len(raw) and b"=" in piece:
            raise ValueError("padding before the end")
        pieces.append(binascii.a2b_base64(piece, strict_mode=True))
    return b"".join(pieces)
