"""GGUF: weights, tokenizer and chat template in one file, as llama.cpp has them. Reads the header; refuses to read a weight.

A header is what somebody says: counts and lengths are believed only as far as the file is long, and up to bounds of ours.

    "GGUF" version  tensors n  facts m | m x (key, type, value) | n x (name, sizes, type, offset) | weights
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from maasdam.core import TEXT_GENERATION
from maasdam.errors import InvalidModel, Unsupported
from maasdam.sources.bounds import Place
from maasdam.sources.finding import Reading

MAGIC = b"GGUF"
FILE = "model.gguf"
MOST_FACTS = 4096
MOST_TENSORS = 65_536
MOST_ITEMS = 4_000_000
"""Of an array: words of a vocabulary, merges."""
MOST_TEXT_BYTES = 4 * 1024 * 1024
"""Of one text: chat templates."""
MOST_KEY_BYTES = 1024
MOST_HEADER_BYTES = 256 * 1024 * 1024
MOST_AXES = 4
MOST_CONTEXT = 1 << 24

_PLAIN = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_TYPES: Mapping[int, tuple[str, int, int]] = {
    # number: what it is called, weights a block, bytes a block
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
_NO_WRITERS = frozenset(("clip", "bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "modern-bert", "t5encoder"))
"""Architectures that continue no text."""


class _Header:
    """Reads from a file's start; nothing beyond its end or our bounds."""

    def __init__(self, stream: BinaryIO, size: int, path: Path) -> None:
        self._stream = stream
        self._left = min(size, MOST_HEADER_BYTES)
        self._path = path
        self._texts = 0

    def wrong(self, why: str) -> InvalidModel:
        return InvalidModel(f"{self._path} is not as GGUF is: {why}; fetch or convert it again")

    def take(self, count: int) -> bytes:
        if count > self._left:
            raise self.wrong("its header goes on behind its end, or has more than 256 MB")
        self._left -= count
        data = self._stream.read(count)
        if len(data) < count:
            raise self.wrong("it is cut off")
        return data

    def number(self, kind: str) -> Any:
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def text(self, most: int) -> str:
        length = self.number("<Q")
        if length > most:
            raise self.wrong(f"a text in its header has {length:,} bytes, more than {most:,}")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A fact's value; of an array how many it holds: what is in it is llama.cpp's to read."""
        if kind in _PLAIN:
            return self.number(_PLAIN[kind])
        if kind == _TEXT:
            return self.text(MOST_TEXT_BYTES)
        if kind != _ARRAY:
            raise self.wrong(f"a fact of type {kind}, which there is not")
        inner, count = self.number("<I"), self.number("<Q")
        if count > MOST_ITEMS or (inner not in _PLAIN and inner != _TEXT):
            raise self.wrong(f"an array of {count:,} items of type {inner}")
        if inner == _TEXT:
            self._texts += count  # each takes a look of its own
            if self._texts > MOST_ITEMS:
                raise self.wrong(f"arrays of more than {MOST_ITEMS:,} texts")
            for _ in range(count):
                self.take(self._bounded(self.number("<Q")))
        else:
            self.take(count * struct.calcsize(_PLAIN[inner]))
        return count

    def _bounded(self, length: int) -> int:
        if length > MOST_TEXT_BYTES:
            raise self.wrong(f"a text in its header has {length:,} bytes")
        return length


def read(place: Place, name: str) -> Reading:
    """Read one file's header. Raises InvalidModel for one that lies, Unsupported for parts and what writes no text."""
    path = place.need(name, "the model is missing")
    size = path.stat().st_size
    with path.open("rb") as stream:
        header = _Header(stream, size, path)
        if header.take(4) != MAGIC:
            raise header.wrong("it does not begin so")
        version = header.number("<I")
        if version not in (2, 3):
            raise Unsupported(f"{path} is GGUF of version {version}; versions 2 and 3 are read")
        tensors, count = header.number("<Q"), header.number("<Q")
        if not 0 < tensors <= MOST_TENSORS or not 0 < count <= MOST_FACTS:
            raise header.wrong(f"it says that it holds {tensors:,} tensors and {count:,} facts")
        facts = _facts(header, count)
        elements, sizes = _tensors(header, tensors)
        begin = stream.tell()
    _check_spans(header, facts, sizes, size, begin)
    return _reading(path, header, facts, elements)


def _facts(header: _Header, count: int) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for _ in range(count):
        key = header.text(MOST_KEY_BYTES)
        if key in facts:
            raise header.wrong(f"the fact '{key[:60]}' stands in it twice")
        facts[key] = header.value(header.number("<I"))
    return facts


def _tensors(header: _Header, count: int) -> tuple[Counter[str], list[tuple[int, int]]]:
    elements: Counter[str] = Counter()
    spans: list[tuple[int, int]] = []
    names: set[str] = set()
    for _ in range(count):
        name, axes = header.text(MOST_KEY_BYTES), header.number("<I")
        if name in names or not 0 < axes <= MOST_AXES:
            raise header.wrong(f"tensor '{name[:60]}' stands in it twice, or has {axes} axes")
        names.add(name)
        shape = [header.number("<Q") for _ in range(axes)]
        kind, offset = header.number("<I"), header.number("<Q")
        if kind not in _TYPES:
            raise header.wrong(f"tensor '{name[:60]}' is of type {kind}, which is not known")
        called, block, block_bytes = _TYPES[kind]
        total = math.prod(shape)
        if not 0 < total < 1 << 48 or shape[0] % block:
            raise header.wrong(f"tensor '{name[:60]}' has sizes {shape}, which {called} can't have")
        elements[called] += total
        spans.append((offset, offset + total // block * block_bytes))
    return elements, spans


def _check_spans(header: _Header, facts: Mapping[str, Any], spans: list[tuple[int, int]], size: int, begin: int) -> None:
    """Weights lie in the file, and no two in one place."""
    alignment = facts.get("general.alignment", 32)
    if not isinstance(alignment, int) or isinstance(alignment, bool) or not 0 < alignment <= 1 << 20:
        raise header.wrong("its alignment is no number that could be one")
    start, last = begin + -begin % alignment, 0
    for low, high in sorted(spans):
        if low < last or start + high > size:
            raise header.wrong("weights lie in each other, or behind its end")
        last = high


def _reading(path: Path, header: _Header, facts: Mapping[str, Any], elements: Counter[str]) -> Reading:
    architecture = facts.get("general.architecture")
    if not isinstance(architecture, str) or not 0 < len(architecture) <= 64 or not architecture.isprintable():
        raise header.wrong("it does not say its architecture")
    if facts.get("split.count", 1) not in (0, 1):
        raise Unsupported(f"{path} is one part of {facts['split.count']}; join them with: llama-gguf-split --merge")
    if architecture in _NO_WRITERS or facts.get("general.type", "model") != "model":
        raise Unsupported(
            f"{path} is {facts.get('general.type', 'model')} of architecture {architecture}, which writes no text"
        )
    context = facts.get(f"{architecture}.context_length")
    if not isinstance(context, int) or isinstance(context, bool) or not 0 < context <= MOST_CONTEXT:
        raise header.wrong("it does not say how long a text may be")
    if not isinstance(facts.get("tokenizer.ggml.tokens"), int):
        raise Unsupported(f"{path} has no vocabulary in it; a model is served with its own")
    template = facts.get("tokenizer.chat_template")
    template_says = f"a chat template of {len(template):,} characters" if isinstance(template, str) else "no chat template"
    quantised = {kind: total for kind, total in elements.items() if kind not in ("F32", "F16", "BF16")} or elements
    main = max(quantised, key=lambda kind: quantised[kind])
    shares = ", ".join(f"{kind} {total:,}" for kind, total in elements.most_common())
    return Reading(
        format="gguf",
        layout="gguf",
        files={FILE: path},
        task=TEXT_GENERATION,
        architecture=architecture,
        parameters=sum(elements.values()),
        precision=main,
        notes=(f"weights: {shares}; context {context:,} tokens; {template_says}",),
        settings={"context_length": context, "quantisation": main, "has_template": isinstance(template, str)},
    )
