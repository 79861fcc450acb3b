"""Whether callers may be computed together. It is found by trying: what a model's shapes promise, its sums may break.

Knows engines, signatures and rows. Refuses to know queues, callers and files.

    a batch, twice                                             the same answers, or nothing can be told
    the same batch, one row kept and its neighbours changed    the kept row's answer must be the same, bit for bit
    the kept row alone                                         its answer may differ by COUNT_CHANGES of the largest value

The neighbours are other values, a thousandth and a thousandfold of them, their negatives, zeros, infinity, and NaN where
the model takes it; the kept row is the first and the last of two and of every doubling up to the most rows that are served
together. A softmax over the first axis, a recurrent layer along it, a scale taken over the batch, a branch on all of it:
each shows in one of these.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from maasdam.core import DEPENDENT, INDEPENDENT, UNKNOWN, Batching, Signature, TensorEngine, Tensors, TensorSpec, Tried
from maasdam.engines.made_up import Ranges, Row, lengths, rows
from maasdam.errors import EngineFailure, MaasdamError

if TYPE_CHECKING:
    from maasdam.core import type_array

log = logging.getLogger("maasdam.engines")

COUNT_CHANGES = 1e-5
"""Of an answer's largest value, how much the number of rows and a row's place among them may change it: sums are added in
another order."""
LIMIT_SECONDS = 10.0
"""What is not found by then is unknown."""
GROWS_SECONDS = 2.0
"""Once two rows are proven, how long larger numbers of rows and other sizes are tried."""
MOST_ROWS = 256
"""Rows that are ever computed together."""
DIFFERENT_ROWS, FEWEST_DIFFERENT = 12, 4
"""Rows that batches are made of; fewer where they are large."""
POOL_BYTES, BATCH_BYTES, STRETCHED_BYTES = 1 << 27, 1 << 28, 1 << 20
"""What made-up rows, a batch of them, and a row of other sizes than the first may hold."""
RUNS = 18
"""Runs that proving one number of rows takes, about."""
CHEAP_SECONDS = 0.1
GAIN = 0.9
"""Where a number of rows takes over CHEAP_SECONDS to prove, twice as many are tried only if a row took less than this part of
what it took among fewer: a network that computes all it can with two rows is served no faster with more."""
GROWTH = 1.4
"""How much longer twice the rows are expected to take."""
SLACK_SECONDS = 1.0
"""How much longer than `GROWS_SECONDS` what was begun may take."""
STRETCHES = (0.125, 4, 16, 64)
"""After the first size of the open axes, the others that are tried, as multiples of it."""


Change = Callable[[TensorSpec, "type_array"], "type_array"]
"""An input's spec and rows -> as many other rows, a new array."""


@dataclass(frozen=True, slots=True)
class _Verdict(Exception):
    verdict: str
    how: str


def why_never(signature: Signature) -> str | None:
    """Why rows of several callers can't even be put together; None where they can."""
    for side, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if not spec.shape or spec.shape[0] is not None:
                return f"{side} '{spec.name}' has no open first axis: {spec.sizes}"
    return None


def find_batching(
    engine: TensorEngine,
    ranges: Ranges,
    examples: Sequence[Tensors] = (),
    *,
    limit_seconds: float = LIMIT_SECONDS,
    grows_seconds: float = GROWS_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Batching:
    """Try `engine` on `examples` (one row each), or on made-up rows whose integers are within `ranges`.

    Runs the engine some dozens of times, `limit_seconds` long at most unless a single run takes longer than it did before.
    """
    why = why_never(engine.signature)
    if why is not None:
        return Batching(UNKNOWN, why)
    if not engine.signature.inputs:
        return Batching(UNKNOWN, "it has no inputs")
    trial = _Trial(engine, ranges, clock, clock() + limit_seconds, clock() + grows_seconds)
    try:
        trial.run(examples)
    except _Verdict as verdict:
        return Batching(verdict.verdict, verdict.how)
    except Exception as error:  # whatever an engine does to what was made up: then requests run one by one, which is right
        log.warning("batching could not be tried", exc_info=error)
        return Batching(UNKNOWN, f"it could not be tried: {error}")
    most = max(one.rows for one in trial.proven)
    counts = "2" if most == 2 else f"2 to {most}"
    return Batching(
        INDEPENDENT,
        f"in batches of {counts} {trial.what}, a row's answer was the same, bit for bit, whatever stood beside it: "
        f"{', '.join(trial.taken)}",
        tuple(trial.proven),
    )


@dataclass(slots=True)
class _Trial:
    engine: TensorEngine
    ranges: Ranges
    clock: Callable[[], float]
    until: float
    grows_until: float
    proven: list[Tried] = field(default_factory=list)
    taken: dict[str, None] = field(default_factory=dict)
    """The kinds of neighbours that were taken, in order."""
    what: str = "made-up rows"

    def run(self, examples: Sequence[Tensors]) -> None:
        """Fills `proven`; raises _Verdict where that is not to be."""
        signature = self.engine.signature
        groups = _by_sizes([e for e in examples if all(len(array) == 1 for array in e.values())])
        if groups:
            self.what = "of its examples"
            for items in groups:
                like = items[0]
                made = self._made(1, like)
                self._prove(items + made, self.until if not self.proven else self.grows_until)
            pool = groups[0]
        else:
            pool = self._first()
            self._prove(pool, self.until)
        if any(None in spec.shape[1:] for spec in signature.inputs):
            self._stretch(pool[0])

    def _first(self) -> list[Row]:
        """Made-up rows of the first size that a single one runs at."""
        first: MaasdamError | None = None
        for length in lengths(self.engine.signature):
            made = self._made(length, None)
            try:
                self._run(made[0])
            except MaasdamError as error:
                first = first or error
            else:
                return made
        raise _Verdict(UNKNOWN, f"made-up rows did not run: {first}")

    def _made(self, length: int, like: Row | None) -> list[Row]:
        try:
            size = sum(array.nbytes for array in rows(self.engine.signature, length, 1, self.ranges, like)[0].values())
            count = max(FEWEST_DIFFERENT, min(DIFFERENT_ROWS, POOL_BYTES // max(size, 1)))
            return rows(self.engine.signature, length, count, self.ranges, like)
        except (KeyError, TypeError) as error:
            if like is not None:
                return []
            raise _Verdict(UNKNOWN, f"rows of its types can't be made up ({error})") from error

    def _stretch(self, row: Row) -> None:
        """Other sizes of the open axes, as many as there is time for."""
        signature = self.engine.signature
        open_axes = {s.name: [axis for axis, size in enumerate(s.shape) if size is None and axis] for s in signature.inputs}
        for times in STRETCHES:
            like = {}
            for name, array in row.items():
                shape = list(array.shape)
                for axis in open_axes[name]:
                    shape[axis] = max(1, round(shape[axis] * times))
                like[name] = _Sized(tuple(shape))
            if self.clock() > self.grows_until or max(math.prod(sized.shape) for sized in like.values()) * 4 > STRETCHED_BYTES:
                return
            made = self._made(1, like)  # type: ignore[arg-type]  # only the shapes are read
            if not made:
                return
            try:
                self._prove(made, self.grows_until, self.proven[0].rows)
            except MaasdamError:
                continue  # not every model takes every length
            except _Verdict as verdict:
                if verdict.verdict == UNKNOWN:
                    continue
                raise

    def _prove(self, pool: Sequence[Row], until: float, most_rows: int = MOST_ROWS) -> None:
        """Two rows, `until` then, and every doubling for which there is time. Raises _Verdict where two are not proven."""
        kept = pool[:DIFFERENT_ROWS]
        if len(kept) < 2:
            raise _Verdict(UNKNOWN, "there is one row only, and others of its types can't be made up")
        alone = [self._run(kept[0])]
        began = self.clock()
        alone.append(self._run(kept[1]))
        seconds, count, most = self.clock() - began, 2, 1  # of the second run: the first one makes the engine ready
        best = per_row = seconds
        most_rows = min(most_rows, max(2, BATCH_BYTES // max(1, sum(array.nbytes for array in kept[0].values()))))
        while count <= most_rows:
            if self.clock() + seconds * RUNS * GROWTH > (until if count == 2 else self.grows_until):
                if count == 2:
                    raise _Verdict(UNKNOWN, f"one row takes {seconds:.2g} s: trying {RUNS} batches takes longer than there is")
                break
            try:
                seconds = self._count(count, kept, alone, until if count == 2 else self.grows_until + SLACK_SECONDS)
            except _Verdict as verdict:
                if count == 2 or verdict.verdict == DEPENDENT:
                    raise
                break  # the number of rows changes the answer, or there was no time: no more are put together
            except MaasdamError:
                if count == 2:
                    raise
                break  # so many are refused
            most, best, per_row = count, min(best, per_row), seconds / count
            if seconds * RUNS > CHEAP_SECONDS and per_row > GAIN * best:
                break  # more at once are no faster, and trying them takes long
            count *= 2
        self.proven.append(Tried(most, {name: array.shape[1:] for name, array in kept[0].items()}))

    def _count(self, count: int, pool: Sequence[Row], alone: Sequence[Tensors], until: float) -> float:
        """Prove `count` rows; seconds of one run."""
        import numpy as np

        batch = {name: np.concatenate([pool[i][name] for i in _order(count, len(pool))]) for name in pool[0]}
        took = [self.clock()]
        base = self._answer(batch, count)
        took.append(self.clock())
        again = self._answer(batch, count)
        took.append(self.clock())
        if _differing(again, base, slice(None)) is not None:
            raise _Verdict(UNKNOWN, f"the same batch of {count} is answered differently each time")
        for kind, change in _kinds(self.engine.signature, self.ranges, pool):
            for keep in _kept(count, kind):
                if self.clock() > until:
                    raise _Verdict(UNKNOWN, f"it was not found within {LIMIT_SECONDS:g} s")
                self._swap(batch, base, kind, change, keep, count)
        for place, row in ((0, 0), (count - 1, 1)):
            self._same_alone(base, alone[row], place, count)
        return min(took[1] - took[0], took[2] - took[1])  # what is slow once was another process

    def _swap(self, batch: Row, base: Tensors, kind: str, change: Change, keep: slice, count: int) -> None:
        """Change all rows but those of `keep`, and compare the answers of these."""
        changed = {}
        for spec in self.engine.signature.inputs:
            array = batch[spec.name]
            other = change(spec, array)
            other[keep] = array[keep]
            changed[spec.name] = other
        try:
            answer = self._answer(changed, count)
        except MaasdamError as error:
            if kind == OTHER:
                raise _Verdict(UNKNOWN, f"a batch of {count} was refused: {error}") from error
            return  # not a value that this model takes
        self.taken[kind] = None
        differing = _differing(answer, base, keep)
        if differing is not None:
            name, by = differing
            raise _Verdict(DEPENDENT, f"in a batch of {count}, a row's '{name}' changed{by} when the other rows became {kind}")

    def _run(self, batch: Tensors) -> Tensors:
        try:
            return self.engine.run(batch)
        except MaasdamError:
            raise
        except Exception as error:
            raise EngineFailure(f"{type(error).__name__}: {error}") from error

    def _answer(self, batch: Tensors, count: int) -> Tensors:
        try:
            answer = self._run(batch)
        except MaasdamError as error:
            if count == 2 and not self.taken:
                raise _Verdict(UNKNOWN, f"two rows were refused: {error}") from error
            raise
        for name, array in answer.items():
            if array.ndim == 0 or array.shape[0] != count:
                raise _Verdict(DEPENDENT, f"to {count} rows, '{name}' is of shape {list(array.shape)}: not a row for each")
        return answer

    def _same_alone(self, base: Tensors, alone: Tensors, place: int, count: int) -> None:
        import numpy as np

        for name, array in base.items():
            one, other = array[place : place + 1], alone[name]
            if one.shape != other.shape:
                raise _Verdict(
                    DEPENDENT, f"'{name}' is of shape {list(other.shape)} alone, {list(one.shape)} among {count} rows"
                )
            if one.dtype.kind not in "fV" and one.dtype.name != "bfloat16":
                if not np.array_equal(one, other):
                    raise _Verdict(_by_count(count), f"'{name}' of a row alone is not that of the same row among {count}")
                continue
            a, b = one.astype(np.float64), other.astype(np.float64)
            largest = float(np.abs(b, where=np.isfinite(b), out=np.zeros_like(b)).max(initial=0.0))
            with np.errstate(invalid="ignore"):
                far = np.abs(a - b) > COUNT_CHANGES * largest
            if bool((far | (np.isfinite(a) != np.isfinite(b))).any()):
                by = float(np.nanmax(np.abs(a - b)))
                differs = f"differs by {by:.2g} (of values up to {largest:.2g}) from the same row among {count}"
                raise _Verdict(_by_count(count), f"'{name}' of a row alone {differs}")


def _by_count(count: int) -> str:
    """Where two rows already change an answer it is dependent; where more do, fewer are put together."""
    return DEPENDENT if count == 2 else UNKNOWN


class _Sized:
    """Stands for an array of which only the shape is asked."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


def _by_sizes(examples: Sequence[Tensors]) -> list[list[Row]]:
    """Examples of equal sizes together, the commonest first, three groups at most."""
    groups: dict[Any, list[Row]] = {}
    for example in examples:
        groups.setdefault(tuple((n, a.shape) for n, a in sorted(example.items())), []).append(dict(example))
    return sorted(groups.values(), key=len, reverse=True)[:3]


def _order(count: int, size: int) -> list[int]:
    """Which rows of a pool of `size` a batch is made of: the first two stand at its ends."""
    return [0, *(i % size for i in range(2, count)), 1]


def _kept(count: int, kind: str) -> Iterator[slice]:
    """Which rows stay: the first, the last; where others take their place, also every second."""
    yield slice(0, 1)
    yield slice(count - 1, count)
    if kind == OTHER and count > 2:
        yield slice(0, None, 2)
        yield slice(1, None, 2)


OTHER = "other values"


def _kinds(signature: Signature, ranges: Ranges, pool: Sequence[Row]) -> Iterator[tuple[str, Change]]:
    """Names of what neighbours become, and how: spec, rows -> other rows (a new array)."""
    import numpy as np

    def others(spec: TensorSpec, array: Any) -> Any:
        size = len(pool)  # of which another one is picked for each
        order = _order(len(array), size)
        return np.concatenate([pool[(was + 1 + i % (size - 1)) % size][spec.name] for i, was in enumerate(order)])

    def times(factor: float) -> Change:
        def change(spec: TensorSpec, array: Any) -> Any:
            other = others(spec, array)
            with np.errstate(over="ignore"):
                return (other * other.dtype.type(factor)) if _is_float(other) else _end(spec, other, factor > 0)

        return change

    def full(value: float) -> Change:
        def change(spec: TensorSpec, array: Any) -> Any:
            if not _is_float(array) or (value != value and not spec.takes_nan):
                return _end(spec, array.copy(), value == 0)
            return np.full_like(array, value)

        return change

    def _end(spec: TensorSpec, array: Any, is_low: bool) -> Any:
        if spec.name not in ranges:  # booleans
            return np.full_like(array, not is_low) if array.dtype.kind == "b" else array
        return np.full_like(array, ranges[spec.name][0 if is_low else 1])

    yield OTHER, others
    yield "a thousandfold", times(1e3)
    yield "a thousandth", times(1e-3)
    yield "negative, a thousandfold", times(-1e3)
    yield "zeros", full(0.0)
    yield "infinite", full(np.inf)
    if any(spec.takes_nan for spec in signature.inputs):
        yield "NaN", full(np.nan)


def _is_float(array: Any) -> bool:
    return bool(array.dtype.kind == "f" or array.dtype.name == "bfloat16")


def _differing(answer: Tensors, base: Tensors, keep: Any) -> tuple[str, str] | None:
    """The first output that is not the same, bit for bit, in the rows of `keep`, and by how much; None where none is."""
    import numpy as np

    for name, array in base.items():
        a, b = answer[name][keep], array[keep]
        if a.shape != b.shape:
            return name, f" its shape from {list(b.shape)} to {list(a.shape)}"
        if a.dtype.kind == "O":
            if not np.array_equal(a, b):
                return name, ""
            continue
        if a.tobytes() == b.tobytes():
            continue
        if not _is_float(a):
            return name, ""
        wide, was = a.astype(np.float64), b.astype(np.float64)
        if not np.array_equal(wide, was, equal_nan=True):
            with np.errstate(invalid="ignore"):
                by = float(np.nanmax(np.abs(wide - was), initial=0.0))
            return name, f" by {by:.2g}"
    return None
