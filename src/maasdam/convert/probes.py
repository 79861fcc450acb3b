"""Inputs to try a model on: random, repeatable, of the kind the signature asks for.

Knows names, dtypes, layouts and value ranges. Refuses to know frameworks. Random pixels are drawn as smooth fields of
differing contrast, since plain noise looks the same to a trained network and would prove little.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from maasdam.core import PAST, Signature, Tensors, TensorSpec
from maasdam.errors import Unsupported

if TYPE_CHECKING:
    from maasdam.core import type_array

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the dynamic axes are set to. `stretch` scales the natural length of the model's kind of sequence."""

    batch: int
    stretch: float = 1.0
    is_ragged: bool = False
    """Do masks end early for all but the first item?"""
    past: int = 5
    """Tokens in the cache of a decoder that has one."""
    multiple: int = 1
    """Of what the sides of images are multiples."""
    length: int | None = None
    """Of every open axis but the batch, whatever is natural."""
    is_apart: bool = False
    """Have first axes of different names different sizes?"""


EXPORT_SIZES = Sizes(batch=2, stretch=1.3, is_ragged=True)
PROOF_SIZES: tuple[Sizes, ...] = (Sizes(2), Sizes(1, 2.1), Sizes(3, 1.6, is_ragged=True))
"""Batches of one, two and three; three lengths; full and ragged masks."""
CACHE_SIZES: tuple[Sizes, ...] = (Sizes(1, 2.1, past=0), Sizes(2, 0, past=9), Sizes(3, 1.6, is_ragged=True, past=3))
"""A prompt, one token over a cache, a prompt that goes on."""

_NATURAL_LENGTH = {"input_values": 6400, "input_features": 61, "input_ids": 12}
_DEFAULT_LENGTH = 24
_DEFAULT_SIDE = 64
_DEFAULT_VOCABULARY = 2
ALPHABET = 12
"""How many different integers an item has where they have a range."""
_OTHERS: tuple[tuple[float, int], ...] = ((1, 32), (0.5, 1), (0.25, 1), (0.1, 1), (2.5, 32), (4, 1))
"""Stretch and multiple of sizes to fall back on."""
_LONGER: tuple[tuple[float, int], ...] = ((16, 1), (64, 1), (256, 1))
"""Of sequences alone: layers with wide windows want hundreds or thousands of samples."""


def probe(signature: Signature, sizes: Sizes, *, seed: int, folder: Path | None = None) -> dict[str, type_array]:
    """One batch of random inputs by name. `folder` may hold a config.json with the vocabulary's size."""
    random = np.random.default_rng([seed, sizes.batch, round(sizes.stretch * 1000)])
    length = _length(signature, sizes)
    past = sizes.past if has_cache(signature) else 0
    words = vocabulary(folder)
    named = _named_sizes(signature, sizes, length, past)
    out = {}
    for spec in signature.inputs:
        shape = _shape(spec, sizes, length, past, named)
        if "mask" in spec.name:
            out[spec.name] = _mask(shape, sizes, spec.dtype)
        elif spec.dtype.startswith(("int", "uint")):
            out[spec.name] = _integers(spec, shape, words, past, length, random)
        elif spec.dtype.startswith("float"):
            out[spec.name] = _floats(spec, shape, random)
        elif spec.dtype == "bool":
            out[spec.name] = random.random(shape) < 0.5
        else:
            raise Unsupported(f"input '{spec.name}' is {spec.dtype}; only numbers and booleans can be tried at random")
    return out


def accepted(
    run: Callable[[dict[str, type_array]], Answer], signature: Signature, sizes: Sizes, *, seed: int, folder: Path | None
) -> tuple[dict[str, type_array], Answer]:
    """A probe that `run` takes, with its answer: of `sizes`, else of others, since not every model takes every length or side.

    Raises what the first one raised where none is taken.
    """
    _, batch, answer = taken(run, signature, sizes, seed=seed, folder=folder)
    return batch, answer


def taken(
    run: Callable[[dict[str, type_array]], Answer], signature: Signature, sizes: Sizes, *, seed: int, folder: Path | None
) -> tuple[Sizes, dict[str, type_array], Answer]:
    """As `accepted`, with the sizes that were taken."""
    first: Exception | None = None
    for each in _attempts(signature, sizes):
        batch = probe(signature, each, seed=seed, folder=folder)
        try:
            return each, batch, run(batch)
        except Exception as error:  # each framework has its own words for a size that does not fit
            first = first or error
    assert first is not None  # there is always a first attempt
    raise first


def has_unknown_lengths(signature: Signature) -> bool:
    """Is there an open axis of which nothing tells how long it usually is?"""
    known = any(s.name in _NATURAL_LENGTH for s in signature.inputs) or has_cache(signature)
    return not known and any(None in s.shape[1:] and len(s.shape) != 4 for s in signature.inputs)


def _attempts(signature: Signature, sizes: Sizes) -> Iterator[Sizes]:
    if len(_first_names(signature)) > 1:
        yield replace(sizes, is_apart=True)
    yield sizes
    if not has_cache(signature) and any(None in s.shape[1:] for s in signature.inputs):
        others = _OTHERS if any(len(s.shape) == 4 for s in signature.inputs) else (*_OTHERS, *_LONGER)
        for stretch, multiple in others:
            yield replace(sizes, stretch=sizes.stretch * stretch, multiple=multiple)


def proof_sizes(signature: Signature) -> tuple[Sizes, ...]:
    """The sizes to prove at: one where the signature leaves nothing open."""
    if not any(None in s.shape for s in signature.inputs):
        return PROOF_SIZES[:1]
    return CACHE_SIZES if has_cache(signature) else PROOF_SIZES


def begin(signature: Signature, batch: Tensors) -> Tensors:
    """A prompt ("input_ids" alone) with what a decoder takes beside it: nothing masked or cached. Other batches as they are."""
    if not has_cache(signature) or set(batch) != {"input_ids"}:
        return batch
    rows, length = batch["input_ids"].shape
    whole = {"input_ids": batch["input_ids"], "attention_mask": np.ones((rows, length), np.int64)}
    whole["position_ids"] = np.broadcast_to(np.arange(length), (rows, length))
    caches = [s for s in signature.inputs if s.name.startswith(PAST)]
    empty = {s.name: np.zeros((rows, s.shape[1] or 0, 0, s.shape[3] or 0), s.dtype) for s in caches}
    return {s.name: (whole | empty)[s.name] for s in signature.inputs}


def has_cache(signature: Signature) -> bool:
    """Does it take keys and values of earlier tokens?"""
    return any(s.name.startswith(PAST) for s in signature.inputs)


def _length(signature: Signature, sizes: Sizes) -> int:
    if sizes.length is not None:
        return sizes.length
    natural = next((_NATURAL_LENGTH[s.name] for s in signature.inputs if s.name in _NATURAL_LENGTH), _DEFAULT_LENGTH)
    return max(1, round(natural * sizes.stretch))


def _first_names(signature: Signature) -> list[str]:
    """What the first axes of the inputs are called, each name once."""
    return list(dict.fromkeys(s.axes[0].name for s in signature.inputs if s.axes and s.axes[0] is not None))


def _named_sizes(signature: Signature, sizes: Sizes, length: int, past: int) -> dict[str, int]:
    """The size of each named axis: that of the first place where it stands, within the range it takes."""
    found: dict[str, int] = {}
    firsts = _first_names(signature)
    for spec in signature.inputs:
        plain = _shape(spec, sizes, length, past, {})
        for place, axis in enumerate(spec.axes):
            if axis is None or axis.name in found:
                continue
            size = plain[place]
            if axis.name in firsts:
                # counted things that others point at are at least two, and one more of each kind
                size = sizes.batch + (1 + firsts.index(axis.name)) * (sizes.is_apart and len(firsts) > 1)
            size = max(size, axis.least)
            found[axis.name] = size if axis.most is None else min(size, axis.most)
    return found


def _shape(spec: TensorSpec, sizes: Sizes, length: int, past: int, named: Mapping[str, int]) -> tuple[int, ...]:
    is_cache = spec.name.startswith(PAST)
    is_image = len(spec.shape) == 4 and not is_cache
    whole = past + length if "mask" in spec.name else past if is_cache else length
    free = {0: sizes.batch} if spec.shape and spec.shape[0] is None else {}
    for axis, size in enumerate(spec.shape):
        if size is None and axis:
            free[axis] = _side(axis, sizes) if is_image else whole
    free |= {i: named[a.name] for i, a in enumerate(spec.axes) if a is not None and a.name in named}
    return tuple(free[i] if size is None else size for i, size in enumerate(spec.shape))


def _side(axis: int, sizes: Sizes) -> int:
    if sizes.length is not None:
        return sizes.length
    if sizes.multiple > 1:
        return (round(_DEFAULT_SIDE * sizes.stretch / sizes.multiple) + axis) * sizes.multiple
    return round(_DEFAULT_SIDE * sizes.stretch) + 16 * axis


def _mask(shape: tuple[int, ...], sizes: Sizes, dtype: str) -> type_array:
    mask = np.ones(shape, dtype)
    if sizes.is_ragged and len(shape) > 1:
        for item in range(1, shape[0]):
            mask[item, max(1, shape[1] * (item + 1) // (item + 2)) :] = 0
    return mask


def _integers(
    spec: TensorSpec, shape: tuple[int, ...], words: int | None, past: int, length: int, random: np.random.Generator
) -> type_array:
    low, high = (0, words or _DEFAULT_VOCABULARY) if spec.dtype != "uint8" else (0, 256)
    if spec.value_range:
        low, high = int(spec.value_range[0]), int(spec.value_range[1]) + 1
    elif "length" in spec.name:  # of something that is as long as the other inputs: all of it, or the most of it
        return np.maximum(1, length - np.arange(int(np.prod(shape))) % 3).reshape(shape).astype(spec.dtype)
    elif "position" in spec.name:
        return np.broadcast_to(np.arange(past, past + shape[-1]), shape).astype(spec.dtype)
    elif "type" in spec.name:
        return np.zeros(shape, spec.dtype)
    if spec.dtype != "uint8" and high - low > ALPHABET and len(shape) > 1 and words is None:
        # as files and codes are: of all values evenly each item is much like the other
        own = [random.choice(random.integers(low, high, ALPHABET), shape[1:]) for _ in range(shape[0])]
        return np.stack(own).astype(spec.dtype) if own else np.zeros(shape, spec.dtype)
    return random.integers(low, high, shape).astype(spec.dtype)


def _floats(spec: TensorSpec, shape: tuple[int, ...], random: np.random.Generator) -> type_array:
    values = _fields(shape, random) if len(shape) == 4 and not spec.name.startswith(PAST) else random.standard_normal(shape)
    if spec.value_range:
        low, high = spec.value_range
        values = (low + high) / 2 + values * (high - low) / 4
        values = values.clip(low, high)
    return values.astype(spec.dtype)


def _fields(shape: tuple[int, ...], random: np.random.Generator) -> type_array:
    """Image-like noise, [batch, a, b, c]: coarse blocks plus grain, each item with its own contrast and brightness."""
    spatial = shape[2:] if shape[1] <= 4 else shape[1:3]
    channels = shape[1] if shape[1] <= 4 else shape[3]
    block = 8
    coarse = random.standard_normal((shape[0], channels, *(-(-s // block) for s in spatial)))
    full = coarse.repeat(block, axis=2).repeat(block, axis=3)[:, :, : spatial[0], : spatial[1]]
    contrast = random.uniform(0.3, 2.0, (shape[0], 1, 1, 1))
    brightness = random.uniform(-0.7, 0.7, (shape[0], channels, 1, 1))
    field = contrast * (full + 0.3 * random.standard_normal(full.shape)) + brightness
    return field if shape[1] <= 4 else np.moveaxis(field, 1, 3)


def vocabulary(folder: Path | None) -> int | None:
    """How many tokens config.json says there are."""
    file = folder / "config.json" if folder else None
    if file is None or not file.is_file():
        return None
    config: Any = json.loads(file.read_text())
    if not isinstance(config, dict):
        return None
    inner = config.get("text_config")
    size = config.get("vocab_size", inner.get("vocab_size") if isinstance(inner, dict) else None)
    return size if isinstance(size, int) and size > 1 else None
