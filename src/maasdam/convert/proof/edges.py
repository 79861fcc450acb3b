"""Inputs at the edges of what a model takes, each made of one that it took: constants, ties, an embedding's last row, small and
large numbers, extremes.

Knows values, dtypes and names. Refuses to know shapes (they are those of the batch it starts from), engines and what is a right
answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.convert.probes import Sizes, accepted, vocabulary
from maasdam.convert.proof.clues import Clues
from maasdam.core import PAST, Signature, Tensors, TensorSpec

if TYPE_CHECKING:
    from maasdam.core import type_array

PLAIN = "1"
"""The group of what is judged by one scale: inputs of a usual size."""
AMPLITUDES = (1e-3, 1e3, 1e-2, 1e2)
HALVES = tuple(n / 2 for n in range(-6, 7))
"""Few values, so that some are equal: signs, zero, what lies between two integers."""
FEW = (0.0, 1.0, 2.0, 3.0)
MOST_ROWS = 2**20
"""Of the largest vocabulary that is looked for; a model that takes larger numbers computes with them."""
MOST_BYTES = 64 * 1024 * 1024
"""Of an answer that grows with an integer: it is a size or a number of repeats, and larger ones would fill the memory."""
MOST_SINGLE = 64
"""A single integer may be a size or a number of turns: no larger one is tried, save those the graph names."""
ANY = 256
"""Of integers that may be anything bytes are drawn: of 0 and 1 alone most networks tell little apart."""
ASKING_SECONDS = 5.0
EXTREMES = (1e6, 1e30, 1e-40)


@dataclass(frozen=True, slots=True)
class Question:
    """A batch, what the source answers, and how its answer is to be judged."""

    kind: str
    """Its first word is that of many: constant, ties, amplitude, length …"""
    batch: Tensors
    group: str = PLAIN
    """What it is judged with: answers to small numbers are small."""
    is_tied: bool = False
    """Are equal numbers to stay equal where its neighbours are asked for?"""
    is_beyond: bool = False
    """Is it outside of what a conversion answers for? Then it is written down whether it agrees."""
    may_be_refused: bool = False
    """Is it right to refuse it in words? A length that is shorter than the conversion takes."""
    answer: Tensors = field(default_factory=dict)
    """Empty until the source was asked."""


def edges(batch: Tensors, signature: Signature, rows: Mapping[str, int | None], clues: Clues, seed: int) -> Iterator[Question]:
    """What to try beside `batch`. `rows`: how many values each integer input takes, None for any (`rows_of`)."""
    random = np.random.default_rng([seed, 77])
    specs = {s.name: s for s in signature.inputs}
    floats = [n for n, s in specs.items() if s.dtype.startswith("float") and _is_free(s) and batch[n].size]
    integers = [n for n in rows if batch[n].size]
    booleans = [n for n, s in specs.items() if s.dtype == "bool" and "mask" not in n and batch[n].size]

    def made(names: Sequence[str], value: Callable[[str], Any]) -> dict[str, type_array]:
        out: dict[str, type_array] = dict(batch)
        for name in integers:  # over their real range, whatever else is tried
            if (count := rows[name]) is not None and name not in names:
                out[name] = random.integers(0, count, batch[name].shape).astype(batch[name].dtype)
        for name in names:
            array = np.asarray(value(name))
            if (span := specs[name].value_range) is not None and array.dtype.kind == "f":
                array = array.clip(*span)
            out[name] = np.broadcast_to(array, batch[name].shape).astype(batch[name].dtype).copy()
        return out

    def few(name: str, values: Sequence[float]) -> type_array:
        kept = [v for v in values if v >= 0] if _is_positive(batch[name]) else list(values)
        drawn: type_array = random.choice(np.array(kept), batch[name].shape)
        return drawn

    if integers:
        yield Question("integers every value in turn", made(integers, lambda n: _sweep(batch[n], rows[n])), is_tied=True)
        yield Question("integers the largest", made(integers, lambda n: 7 if (count := rows[n]) is None else count - 1))
    if floats:
        yield Question("constant 0", made(floats, lambda _: 0.0))
        yield Question("ties 0, 1, 2, 3", made(floats, lambda n: few(n, FEW)), is_tied=True)
        yield Question("ties halves from -3 to 3", made(floats, lambda n: few(n, HALVES)), is_tied=True)
        for amplitude in AMPLITUDES[:2]:
            yield from _scaled(amplitude, floats, specs, batch, made)
        yield Question("constant 1", made(floats, lambda _: 1.0))
    for name in booleans:
        for truth in (True, False):
            yield Question(f"constant {name} {truth}".lower(), made([name], _always(truth)))
    for name in integers:
        if batch[name].size == 1:
            for number in dict.fromkeys((0, 1, 2, 3, *clues.integers)):
                if abs(number) < 2**31:
                    yield Question(f"integers {name} {number}", made([name], _always(number)))
    if integers:
        yield Question("integers 0", made(integers, lambda _: 0))
        for _ in range(3):
            yield Question("integers any", made(integers, lambda n: _any(batch[n], rows[n], random)), is_tied=True)
    for mask in (n for n, s in specs.items() if "mask" in n and s.dtype != "float16" and batch[n].ndim > 1):
        if batch[mask].shape[1] > 1 and (batch[mask] != 0).all():
            yield Question("mask begins late", made([mask], lambda n: _late(batch[n])))
    if floats:
        for amplitude in AMPLITUDES[2:]:
            yield from _scaled(amplitude, floats, specs, batch, made)
        yield Question("constant -1", made(floats, lambda n: 1.0 if _is_positive(batch[n]) else -1.0))
        for turn in clues.floats:
            if not any(_is_positive(batch[n]) for n in floats) or turn >= 0:
                yield Question(f"constant {turn:.6g}", made(floats, _always(turn)))
        for _ in range(2):
            yield Question("ties 0, 1, 2, 3", made(floats, lambda n: few(n, FEW)), is_tied=True)
        yield Question("ties one number an item", made(floats, lambda n: _by_item(batch[n], random)), is_tied=True)
    yield from _beyond(floats, integers, rows, specs, batch, clues, made)


def _always(value: Any) -> Callable[[str], Any]:
    return lambda _: value


def _scaled(
    amplitude: float, names: Sequence[str], specs: Mapping[str, TensorSpec], batch: Tensors, made: Callable[..., Any]
) -> Iterator[Question]:
    """Not over a range that is declared: what lies outside of it is no input."""
    free = [n for n in names if amplitude < 1 or specs[n].value_range is None]
    if free:
        larger = {n: max(1.0, float(np.sqrt(np.mean(np.square(batch[n].astype(np.float64)))))) for n in free}
        what = f"{amplitude:.0e}"
        yield Question(f"amplitude {what}", made(free, lambda n: batch[n].astype(np.float64) * (amplitude / larger[n])), what)


def _beyond(
    floats: Sequence[str], integers: Sequence[str], rows: Mapping[str, int | None], specs: Mapping[str, TensorSpec],
    batch: Tensors, clues: Clues, made: Callable[..., Any],
) -> Iterator[Question]:  # fmt: skip
    free = [n for n in floats if specs[n].value_range is None]
    if free:
        for size in EXTREMES:
            wide = [n for n in free if size < float(np.finfo(batch[n].dtype).max)]
            if wide:
                what = f"{size:.0e}"
                yield Question(
                    f"extreme {what}", made(wide, lambda n, s=size: batch[n].astype(np.float64) * s), what, is_beyond=True
                )
        inf = made(free, lambda n: _sprinkled(batch[n], np.inf))
        yield Question("extreme inf", inf, "inf", is_beyond=not clues.asks_for_infinity)
    if missing := [n for n in floats if specs[n].takes_nan]:
        yield Question("missing values", made(missing, lambda n: _sprinkled(batch[n], np.nan)), "nan")
    unbound = [n for n in integers if rows[n] is None and batch[n].size > 1]
    if unbound:
        yield Question("integers thousands", made(unbound, lambda n: _thousands(batch[n])), "1e+03", is_tied=True)
        ends = {n: np.iinfo(batch[n].dtype) for n in unbound}
        for what, pick in (("largest", "max"), ("smallest", "min")):
            yield Question(f"extreme {what}", made(unbound, lambda n, p=pick: getattr(ends[n], p)), what, is_beyond=True)


def _sprinkled(array: type_array, number: float) -> type_array:
    """Every third number replaced, the first among them."""
    return np.where(np.arange(array.size).reshape(array.shape) % 3, array, number)


def _is_free(spec: TensorSpec) -> bool:
    return not spec.name.startswith(PAST) and "mask" not in spec.name


def _is_positive(array: type_array) -> bool:
    """Did the source want numbers that are not negative, so that random ones were drawn so?"""
    return bool(array.size > 4 and array.min() >= 0)


def _sweep(array: type_array, count: int | None) -> type_array:
    """All of the values where there is room for them, else evenly spread, the last one among them."""
    if count is None:
        low = 0 if array.dtype.kind == "u" else -3
        turns: type_array = np.arange(array.size).reshape(array.shape) % 7
        around: type_array = turns + low
        return around
    if array.size >= count:
        return (np.arange(array.size) % count).reshape(array.shape)
    spread: type_array = np.linspace(count - 1, 0, array.size).round().astype(np.int64).reshape(array.shape)
    return spread


def _any(array: type_array, count: int | None, random: np.random.Generator) -> type_array:
    low, high = (0, count) if count is not None else (0 if array.dtype.kind == "u" else -4, 5)
    return np.asarray(random.integers(low, high, array.shape))


def _thousands(array: type_array) -> type_array:
    info = np.iinfo(array.dtype)
    values = (np.arange(array.size).reshape(array.shape) * 37 % 2001) - 1000
    return values.clip(info.min, info.max)


def _late(mask: type_array) -> type_array:
    """What is masked stands first, as decoders are padded."""
    out = np.ones_like(mask)
    out[:, : max(1, mask.shape[1] // 3)] = 0
    return out


def _by_item(array: type_array, random: np.random.Generator) -> type_array:
    shape = (array.shape[0], *(1 for _ in array.shape[1:])) if array.ndim else ()
    values: type_array = np.asarray(random.standard_normal(shape))
    return np.abs(values) if _is_positive(array) else values


def rows_of(
    run: Callable[[Tensors], Tensors], batch: Tensors, signature: Signature, is_late: Callable[[], bool] = lambda: False
) -> dict[str, int | None]:
    """How many values each integer input takes, from 0: found by asking, since an embedding refuses what it has no row for.

    None where it takes any, or is a size. Inputs whose numbers mean something else (masks, lengths, positions) are left out.
    Once it `is_late` no more is asked: what was taken by then counts.
    """

    def is_size(sizes: Sequence[int]) -> bool:
        return sizes[-1] > MOST_BYTES and sizes[-1] > 2 * min(sizes)

    found: dict[str, int | None] = {}
    for spec in signature.inputs:
        array = batch[spec.name]
        if not spec.dtype.startswith(("int", "uint")) or any(w in spec.name for w in ("mask", "length", "position")):
            continue
        if spec.value_range:
            found[spec.name] = int(spec.value_range[1]) + 1
            continue
        info = np.iinfo(spec.dtype)
        most = MOST_ROWS if array.size > 1 else MOST_SINGLE
        sizes: list[int] = []
        """Bytes of each answer."""

        def takes(value: int, name: str = spec.name, info: Any = info, sizes: list[int] = sizes) -> bool:
            if value > info.max:
                return False
            try:
                answer = run({**batch, name: np.full_like(batch[name], value)})
            except Exception:  # each engine has its own words for a row that is not there
                return False
            sizes.append(sum(a.nbytes for a in answer.values()))
            return True

        if array.size == 0 or not takes(0) or not takes(1):
            continue  # its numbers mean something that can't be told from here
        good = 1
        while good < most and not is_size(sizes) and not is_late() and takes(good * 2):
            good *= 2
        if good >= most or is_size(sizes):
            found[spec.name] = None
            continue
        low, high = good, min(good * 2, info.max + 1)
        while high - low > 1 and not is_late():
            middle = (low + high) // 2
            low, high = (middle, high) if takes(middle) else (low, middle)
        found[spec.name] = low + 1 if low < info.max else None
    return found


def has_unknown_rows(signature: Signature, folder: Path | None) -> bool:
    """Is there an integer input of which nothing tells how many rows it numbers?"""
    return vocabulary(folder) is None and any(
        s.dtype.startswith(("int", "uint")) and not s.value_range for s in signature.inputs
    )


def in_rows(run: Callable[[Tensors], Tensors], signature: Signature, folder: Path | None, sizes: Sizes) -> Signature:
    """The signature with the range of integers of which nothing tells how many rows they number, as far as asking finds it."""
    if not has_unknown_rows(signature, folder):
        return signature
    try:
        batch, answer = accepted(run, signature, sizes, seed=0, folder=folder)
    except Exception:  # whoever runs it next says why it doesn't
        return signature
    until = time.monotonic() + ASKING_SECONDS
    rows = rows_of(run, batch, signature, lambda: time.monotonic() > until)

    def known(spec: TensorSpec) -> TensorSpec:
        array = batch[spec.name]
        if array.size < 2 or spec.name not in rows:
            return spec
        count = rows[spec.name]
        if count is None:  # any, or it is a size
            count = min(ANY, int(np.iinfo(array.dtype).max) + 1)
            try:
                found = run({**batch, spec.name: np.full_like(array, count - 1)})
            except Exception:  # each engine has its own words
                return spec
            if any(found[name].shape != answer[name].shape for name in answer):
                return spec
        return replace(spec, value_range=(0, count - 1))

    return Signature(tuple(known(s) for s in signature.inputs), signature.outputs)


def neighbours(batch: Tensors, *, seed: int, is_tied: bool) -> dict[str, type_array]:
    """The batch with every float one step of its type up or down. Equal numbers stay equal where they are `is_tied`.

    A step is that of the input's own size, and no smaller than that of 1: what a network adds to a small input is not small,
    and is rounded.
    """
    random = np.random.default_rng([seed, 991])
    out = dict(batch)
    for name, array in batch.items():
        if array.dtype.kind != "f" or "mask" in name or not array.size:
            continue
        finite = array[np.isfinite(array)]
        size = float(np.sqrt(np.mean(np.square(finite.astype(np.float64))))) if finite.size else 1.0
        at_least = np.spacing(np.asarray(max(size, 1.0), array.dtype))
        with np.errstate(all="ignore"):
            step = np.maximum(np.spacing(np.abs(array)), at_least)
        if is_tied:
            values, places = np.unique(array, return_inverse=True)
            signs = random.choice(np.array([-1, 1], array.dtype), values.shape)[places.reshape(array.shape)]
        else:
            signs = random.choice(np.array([-1, 1], array.dtype), array.shape)
        moved = array + signs * step
        out[name] = np.where(np.isfinite(array) & np.isfinite(moved), moved, array).astype(array.dtype)
    return out
