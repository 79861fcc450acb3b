"""What a conversion is asked beside random inputs: the edges of what the source takes, its lengths, its branches.

Knows the source alone, and how much time there is. Refuses to know the candidate. Everything asked is something that the source
answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from maasdam.convert.probes import Sizes, has_cache, probe
from maasdam.convert.proof.clues import Clues
from maasdam.convert.proof.conditions import Watch
from maasdam.convert.proof.edges import Question, edges, rows_of
from maasdam.core import TensorEngine, Tensors

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 400, 512, 1024, 2048, 4096, 8192, 16384)
"""The shortest length that runs is looked for among these, then between two of them."""
MORE = (1, 2, 3, 4, 5, 7, 8, 13, 15, 16, 17, 31, 33, 63, 65, 127, 129)
"""Beyond the shortest: the next ones, then those around powers of two, where kernels change their ways."""
LARGER, LEAST_NUMBERS = 4, 2**17
"""A length that is tried has no more numbers than so many times the largest random batch, or than that many."""
BATCHES = (4, 8, 17)
LEAST = 12
"""Inputs for a network whose shapes are fixed, whatever time allows."""
SEARCH_SECONDS = 5.0
SEARCHES = 150
MOST_LEFT = 40
"""Questions whose kinds are named where no time was left for them."""
Clock = Callable[[], float]


@dataclass(slots=True)
class Inquiry:
    """What came of asking: for the certificate."""

    rows: dict[str, int | None] = field(default_factory=dict)
    shortest: int | None = None
    """Of the source's open axes; None where none is open."""
    refused: int = 0
    """What the source itself does not take."""
    left_out: list[str] = field(default_factory=list)
    """What there was no time for."""


def questions(
    source: TensorEngine,
    bases: Sequence[Tensors],
    *,
    folder: Path | None,
    clues: Clues,
    watched: Watch,
    seconds: float,
    inquiry: Inquiry,
    clock: Clock = time.monotonic,
) -> Iterator[Question]:
    """Questions, the likeliest to tell first, for about `seconds`, those between them included.

    `bases` are batches that the source took, and that were compared. What came of it is written into `inquiry`.
    """
    until = clock() + seconds
    signature = source.signature
    small = min(bases, key=lambda b: sum(a.size for a in b.values()))
    wide = max(bases, key=lambda b: max((len(a) for a in b.values() if a.ndim), default=0))
    inquiry.rows = rows_of(source.run, small, signature, lambda: clock() > until)
    is_fixed = not any(None in s.shape for s in signature.inputs)
    number = len(bases)

    def answered(batch: Tensors) -> Tensors | None:
        try:
            return source.run(batch)
        except Exception:  # each engine has its own words for what it does not take
            inquiry.refused += 1
            return None

    def planned_questions() -> Iterator[Question]:
        whole = list(edges(small, signature, inquiry.rows, clues, seed=0))
        within = [e for e in whole if not e.is_beyond]
        yield from within[: len(within) // 2]
        most = max(LARGER * max(_numbers(small), _numbers(wide)), LEAST_NUMBERS)
        yield from _lengths(source, folder, inquiry, most, lambda: clock() > until)
        yield from _branches(source, small, clues, watched, clock)
        yield from within[len(within) // 2 :]
        yield from (edge for edge in whole if edge.is_beyond)
        if wide is not small:
            for edge in edges(wide, signature, inquiry.rows, clues, seed=1):
                if not edge.is_beyond and edge.kind.startswith(("integers", "ties", "amplitude")):
                    yield edge

    planned = planned_questions()
    for question in planned:
        if clock() > until and not (is_fixed and number < LEAST):
            inquiry.left_out += dict.fromkeys((question.kind, *(q.kind for q in islice(planned, MOST_LEFT))))
            return
        answer = question.answer or answered(question.batch)
        if answer is None:
            continue
        watched.look(question.batch)
        number += 1
        yield replace(question, answer=answer)
    seed = 100
    while is_fixed and number < LEAST:
        seed += 1
        number += 1
        batch = probe(signature, Sizes(1), seed=seed, folder=folder)
        if (answer := answered(batch)) is not None:
            yield Question("more", batch, answer=answer)


def _numbers(batch: Tensors) -> int:
    return sum(array.size for array in batch.values())


def _lengths(
    source: TensorEngine, folder: Path | None, inquiry: Inquiry, most: int, is_late: Callable[[], bool]
) -> Iterator[Question]:
    """From the shortest that runs. Decoders with a cache are asked for theirs by the sizes they are proven at."""
    signature = source.signature
    if has_cache(signature):
        return

    def batch(sizes: Sizes) -> dict[str, Any]:
        return _in_rows(probe(signature, sizes, seed=5, folder=folder), inquiry.rows, sizes)

    def runs(length: int) -> bool | None:
        if is_late():
            return None
        tried = batch(Sizes(1, length=length))
        if _numbers(tried) > most:  # two sides of thousands would fill the memory, to find out nothing
            return None
        try:
            source.run(tried)
        except Exception:
            return False
        return True

    if any(None in s.shape[1:] for s in signature.inputs):
        shortest = _shortest(runs)
        inquiry.shortest = shortest
        if shortest is not None:
            for more in (0, *MORE):
                length = shortest + more
                if _numbers(batch(Sizes(1, length=length))) > most:
                    break
                yield Question(f"length {length}", batch(Sizes(1, length=length)), may_be_refused=True)
            yield Question(f"length {shortest}", batch(Sizes(3, length=shortest)), may_be_refused=True)
    if any(s.shape and s.shape[0] is None for s in signature.inputs):
        for count in BATCHES:
            is_small = count == max(BATCHES) and inquiry.shortest is not None
            several = batch(Sizes(count, length=inquiry.shortest) if is_small else Sizes(count))
            if _numbers(several) <= most:
                yield Question(f"batch {count}", several, may_be_refused=True)


def _in_rows(batch: dict[str, Any], rows: Mapping[str, int | None], sizes: Sizes) -> dict[str, Any]:
    """Integers of the range that was found."""
    random = np.random.default_rng([sizes.batch, sizes.length or 0])
    for name, count in rows.items():
        if count is not None and name in batch:
            batch[name] = random.integers(0, count, batch[name].shape).astype(batch[name].dtype)
    return batch


def _shortest(runs: Callable[[int], bool | None]) -> int | None:
    before = 0
    for length in LENGTHS:
        does = runs(length)
        if does is None:
            return None
        if does:
            low, high = before, length
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if runs(middle) else (middle, high)
            return high
        before = length
    return None


def _branches(source: TensorEngine, base: Tensors, clues: Clues, watched: Watch, clock: Clock) -> Iterator[Question]:
    """Inputs that take a branch which none took before, looked for at random: sizes, offsets and the graph's own numbers."""
    if not watched.names or watched.session is None:
        return
    until = clock() + SEARCH_SECONDS
    watched.look(base)
    random = np.random.default_rng(7)
    offsets = [0.0, *clues.floats]
    for turn in range(SEARCHES):
        if not watched.missing() or clock() > until:
            return
        size, offset = 10.0 ** random.uniform(-4, 4), float(random.choice(np.array(offsets)))
        sign = float(random.choice(np.array([-1.0, 1.0])))
        batch = {}
        for name, array in base.items():
            if array.dtype.kind == "f" and "mask" not in name:
                drawn = random.standard_normal(array.shape) * size * (turn % 3 != 0) + sign * size * (turn % 3) + offset
                batch[name] = drawn.astype(array.dtype)
            elif array.dtype.kind == "b":
                batch[name] = random.random(array.shape) < random.choice(np.array([0.0, 0.5, 1.0]))
            elif array.dtype.kind in "iu" and array.size == 1 and clues.integers:
                batch[name] = np.full_like(array, random.choice(np.array(clues.integers)))
            else:
                batch[name] = array
        if watched.look(batch):
            yield Question("branch", batch)
