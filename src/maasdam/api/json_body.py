"""JSON read within bounds. Knows brackets, quotes and counts; never what a body means.

A parse holds Python's lock from its first byte to its last, in a thread too, so nothing is parsed before its depth and
its number of values are known. The scan that finds them lets go of the lock many times a megabyte, and needs the same
time for every input of a size:

    bytes -scan, in blocks-> marks ([ ] { } , :) outside strings -> depth and count within limits? -> one parse
"""

from __future__ import annotations

import binascii
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import orjson

from maasdam.core import with_words
from maasdam.errors import InvalidInput, TooLarge

if TYPE_CHECKING:
    from maasdam.core import type_array

BLOCK = 128 * 1024
"""Bytes scanned at once."""
SMALL_BYTES = 4096
"""JSON up to this size can't do harm by its number of values."""
BASE64_BLOCK = 1 << 20
LONGEST_NUMBER = 500
"""Characters of one number."""
PLAIN_NUMBER = 24
"""Characters of a number as machines write it. Longer ones are read by arithmetic of their own: each eight count as a value."""

WORDS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
"""What is no number in JSON, as Protocol Buffers' JSON writes it."""
PIECE_VALUES, PIECE_BYTES = 32 * 1024, 1 << 20
"""Of a large array that are read or written at once."""

QUOTE, BACKSLASH, OPEN, CLOSE, COMMA = b'"\\[],'
_STEPS = np.zeros(256, np.int8)
_STEPS[[ord("["), ord("{")]] = 1
_STEPS[[ord("]"), ord("}")]] = -1
_VALUES = np.zeros(256, np.int8)
_VALUES[[*b"[{,"]] = 1
_VALUES[ord(":")] = 2  # a key: it is hashed, and its place in the object made
_TOO_DEEP = "the JSON nests deeper than {} levels; send it flatter"
_IS_SPACE = np.zeros(256, bool)
_IS_SPACE[[*b" \t\r\n"]] = True
_CUT = secrets.token_hex(16).encode()
"""No caller knows it, so none can write the word that stands in place of an array."""
_IS_SPECIAL = np.zeros(256, bool)
_IS_SPECIAL[[*b'[]{},:"\\']] = True


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """What one JSON body may be."""

    depth: int
    """Levels of nesting."""
    values: int
    """Values, keys (two each), and eight digits of a number longer than PLAIN_NUMBER. 200,000 are parsed in some 20 ms."""


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
        return loads(data)
    except ValueError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None


_decoder = msgspec.json.Decoder()


def loads(data: bytes) -> Any:
    """What valid JSON says. Raises ValueError.

    msgspec, not orjson: orjson 3.13.0 makes floats of whole numbers beyond 64 bits, and of JSON with two spaces or line
    ends after its first bracket it says "failed to allocate memory" when an array in it is dense.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None


def check(data: bytes, limits: JsonLimits) -> None:
    """Raise what `parse` raises of depth, number and numbers' length, without parsing."""
    if len(data) <= SMALL_BYTES:
        check_json_depth(data, limits.depth)
        return
    values = before = 0
    for marks in scan(data):
        if not marks.places.size:
            continue
        if int(marks.depths.max()) > limits.depth:
            raise InvalidInput(_TOO_DEEP.format(limits.depth))
        values += int(_VALUES[marks.codes].sum(dtype=np.int64)) + sum(_digits(data, marks.places, before, PLAIN_NUMBER)) // 8
        if values > limits.values:
            raise TooLarge(f"the JSON holds more than {limits.values} values; send less, or raise max_json_values")
        before = int(marks.places[-1])
    _digits(data, np.array([len(data)]), before, LONGEST_NUMBER)


def check_json_depth(data: bytes, limit: int) -> None:
    """Raise InvalidInput when JSON nests deeper than `limit`."""
    if data.count(b"[") + data.count(b"{") <= limit:
        return
    for marks in scan(data):
        if marks.depths.size and int(marks.depths.max()) > limit:
            raise InvalidInput(_TOO_DEEP.format(limit))


def _digits(data: bytes, places: type_array, before: int, least: int) -> list[int]:
    """How long the numbers of more than `least` characters are that end at these marks; `before`: the mark before the first.

    Raises InvalidInput for one of more than LONGEST_NUMBER.
    """
    starts = np.concatenate(([before], places[:-1]))
    lengths = []
    for i in np.flatnonzero(places - starts > least + 1):
        value = data[starts[i] : places[i]].lstrip(b"[]{},: \t\r\n")
        if value[:1] not in b"-0123456789":
            continue
        lengths.append(len(value.rstrip()))
        if lengths[-1] > LONGEST_NUMBER:
            raise InvalidInput(f"the JSON holds a number of more than {LONGEST_NUMBER} characters; send a shorter one")
    return lengths


def without_arrays(data: bytes, key: bytes, depth: int, limits: JsonLimits) -> tuple[bytes, dict[bytes, bytes]]:
    """`data` with a word in place of each array that is the value of `key` at `depth` and large; and by word, the arrays.

    What is cut out is no valid JSON yet: `leaves` sees to it. Raises InvalidInput, TooLarge as `check` does of the rest.
    """
    opens, closes, kinds = [], [], []
    for marks in scan(data):
        if marks.depths.size and int(marks.depths.max()) > limits.depth:
            raise InvalidInput(_TOO_DEEP.format(limits.depth))
        steps = _STEPS[marks.codes]
        is_open = (marks.depths == depth) & (steps == 1)
        opens.append(marks.places[is_open])
        kinds.append(marks.codes[is_open])
        closes.append(marks.places[(marks.depths == depth - 1) & (steps == -1)])
    ends = np.concatenate(closes)
    starts, codes = (np.concatenate(many)[: ends.size] for many in (opens, kinds))
    is_cut = (codes == OPEN) & (ends - starts > SMALL_BYTES)
    is_key = re.compile(rb'(?<!\\)"%b"[ \t\r\n]*:[ \t\r\n]*\Z' % key)
    rest: list[bytes] = []
    cut: dict[bytes, bytes] = {}
    done = 0
    for start, end in zip(starts[is_cut].tolist(), ends[is_cut].tolist(), strict=True):
        if is_key.search(data, max(done, start - 64), start):
            word = b'"%b %d"' % (_CUT, len(cut))
            rest += [data[done:start], word]
            cut[word], done = data[start : end + 1], end + 1
    whole = b"".join([*rest, data[done:]])
    check(whole, limits)
    return whole, cut


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
    escaping: type_array = slashes[in_run % 2 == 0]
    return escaping


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


def leaves(raw: bytes) -> tuple[tuple[int, ...], Iterator[list[Any]]]:
    """The shape of a JSON array of arrays, and its values row by row, a piece at a time.

    `raw` goes from a bracket to its own. Raises ValueError where it is no JSON, the nesting is uneven or holds objects; so
    may the iterator. Raises InvalidInput for a number of more than LONGEST_NUMBER characters.
    """
    blocks = list(scan(raw))
    places, codes, depths = (np.concatenate([getattr(block, name) for block in blocks]) for name in Marks.__slots__)
    _digits(raw, places, 0, LONGEST_NUMBER)
    if not codes.size or codes[0] != OPEN or bool(np.isin(codes, [*b"{}:"]).any()):
        raise ValueError("no array of arrays of values")
    deepest = int(depths.max())
    is_between = (depths[:-1] < deepest) & (np.diff(places) > 1)
    edges = np.stack((places[:-1][is_between] + 1, places[1:][is_between]), axis=1).ravel()
    is_text = np.logical_or.reduceat(~_IS_SPACE[np.frombuffer(raw, np.uint8)], edges)[::2] if edges.size else edges
    if bool(is_text.any()) or bool(((codes[:-1] == CLOSE) & (codes[1:] == OPEN)).any()):
        raise ValueError("lists in it have something else than a comma between them")
    shape: list[int] = []
    lists = 1
    for depth in range(1, deepest + 1):
        opens = places[(codes == OPEN) & (depths == depth)]
        if opens.size != lists:
            raise ValueError("some elements are lists and others are not")
        commas = places[(codes == COMMA) & (depths == depth)]
        counts = np.bincount(np.searchsorted(opens, commas) - 1, minlength=lists)
        if int(counts.min()) != int(counts.max()):
            raise ValueError("some lists are longer than others")
        shape.append(int(counts[0]) + 1)
        lists *= shape[-1]
    flat = bytearray(raw)
    np.frombuffer(flat, np.uint8)[places[codes != COMMA]] = ord(" ")
    if shape[-1] == 1 and not flat.translate(None, b", \t\r\n"):
        shape[-1] = 0
        return tuple(shape), iter(())
    commas = places[codes == COMMA]
    values, starts = np.arange(commas.size) // PIECE_VALUES, commas // PIECE_BYTES
    return tuple(shape), _pieces(flat, commas[:-1][(np.diff(values) > 0) | (np.diff(starts) > 0)])


def _pieces(flat: bytearray, ends: type_array) -> Iterator[list[Any]]:
    start = 0
    for end in [*map(int, ends), len(flat)]:
        yield loads(b"".join([b"[", flat[start:end], b"]"]))
        start = end + 1


def numbers(values: type_array) -> Any:
    """A flat array as orjson writes it into an answer: large ones are written in pieces before.

    Small ones are written as they are: where an answer then holds a null, they must be `worded` and written again.
    """
    if values.size <= PIECE_VALUES:
        return values
    starts = range(0, values.size, PIECE_VALUES)
    pieces = [orjson.dumps(worded(values[i : i + PIECE_VALUES]), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] for i in starts]
    pieces[0], pieces[-1] = b"[" + pieces[0], pieces[-1] + b"]"
    return orjson.Fragment(b",".join(pieces))


def worded(values: type_array) -> Any:
    """With words in place of what is no number in JSON, of which orjson makes null."""
    if values.dtype.kind != "f" or bool(np.isfinite(values).all()):
        return values
    return with_words(list(values))


def without_words(values: list[Any]) -> list[Any]:
    """The same words as numbers, in a list or in lists of lists; other strings stay."""
    return [
        WORDS.get(value, value) if isinstance(value, str) else without_words(value) if isinstance(value, list) else value
        for value in values
    ]
