"""Named arrays and what is known of them before there are any. Knows shapes and dtypes; refuses to know frameworks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Any

from maasdam.errors import InvalidTensor

if TYPE_CHECKING:
    import numpy as np

    type_array = np.ndarray[Any, np.dtype[Any]]

Tensors = Mapping[str, "type_array"]
"""Named arrays. The first axis of every array is the batch, save where the signature says otherwise."""

PAST = "past_key_values"
"""How inputs that hold a key-value cache begin (past_key_values.0.key), as Hugging Face has it. An empty cache is a cache."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What the file calls an open axis, and the sizes it takes. Axes of one name are of one size."""

    name: str
    least: int = 1
    most: int | None = None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named tensor: `dtype` is numpy's name ("float32", "int64", "object" for bytes); None in `shape` is dynamic.

    `layout` names the axes where it is known ("NCHW", "NHWC", "NT"); `value_range` is what the model was made for.
    `rows_of` says what the first axis counts where the inputs' open first axes are different things ("nodes", "edges");
    `takes_nan`: the model reads NaN as a missing value.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    layout: str | None = None
    value_range: tuple[float, float] | None = None
    rows_of: str | None = None
    takes_nan: bool = False
    axes: tuple[Axis | None, ...] = ()
    """One for each axis, where the file says more of them than that the first is the batch; () where it doesn't."""

    @property
    def sizes(self) -> str:
        """The shape in words; "?" is any size."""
        return "[" + ", ".join("?" if size is None else str(size) for size in self.shape) + "]"

    def to_json(self) -> dict[str, Any]:
        """A JSON object; absent facts are left out."""
        out: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        axes = [None if a is None else [a.name, a.least, a.most] for a in self.axes]
        facts: dict[str, Any] = {"layout": self.layout, "value_range": list(self.value_range or ()), "rows_of": self.rows_of}
        facts |= {"takes_nan": self.takes_nan, "axes": axes}
        return out | {name: fact for name, fact in facts.items() if fact}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TensorSpec:
        """The inverse of `to_json`."""
        low_high = data.get("value_range")
        return TensorSpec(
            data["name"],
            data["dtype"],
            tuple(data["shape"]),
            data.get("layout"),
            (float(low_high[0]), float(low_high[1])) if low_high else None,
            data.get("rows_of"),
            bool(data.get("takes_nan", False)),
            axes=tuple(None if a is None else Axis(*a) for a in data.get("axes", ())),
        )


def distinct(outputs: Iterable[str], inputs: Iterable[str]) -> list[str]:
    """Names of outputs; what is an input's name or an earlier output's gets a number: an LSTM's are lstm, lstm_1, lstm_2.

    Formats where a name stands for one tensor could not hold a model else.
    """
    taken, out = set(inputs), []
    for name in outputs:
        number, candidate = 0, name
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.add(candidate)
        out.append(candidate)
    return out


class Checked(dict[str, "type_array"]):
    """Tensors that fit their signature: whoever is handed them need not look through them again."""


class WithoutNan(dict[str, "type_array"]):
    """Tensors in which there can be no NaN: what they were written in has no word for it."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a tensor engine takes and gives, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object of two lists."""
        return {"inputs": [s.to_json() for s in self.inputs], "outputs": [s.to_json() for s in self.outputs]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Signature:
        """The inverse of `to_json`."""
        return Signature(
            tuple(TensorSpec.from_json(s) for s in data["inputs"]),
            tuple(TensorSpec.from_json(s) for s in data["outputs"]),
        )

    def check(self, tensors: Tensors) -> None:
        """Raise InvalidTensor unless `tensors` has exactly these inputs, of these dtypes and shapes, with rows of one number.

        NaN is refused where the model does not say that it takes it. An axis may be of size 0, but not all the rows.
        """
        if isinstance(tensors, Checked):
            return
        names = [s.name for s in self.inputs]
        if len(tensors) != len(names) or not all(name in tensors for name in names):
            wanted = ", ".join(names)
            for name in tensors:
                if name not in names:
                    raise InvalidTensor(f"no input '{name}'; this model takes: {wanted}")
            missing = next(name for name in names if name not in tensors)
            raise InvalidTensor(f"input '{missing}' is missing; this model takes: {wanted}")
        has_nan = not isinstance(tensors, WithoutNan)
        rows: dict[str | None, int] = {}
        for spec in self.inputs:
            name, array = spec.name, tensors[spec.name]
            if _dtype_name(array.dtype) != spec.dtype:
                raise InvalidTensor(f"input '{name}' is {array.dtype.name}; send {spec.dtype}")
            if not _fits(spec.shape, array.shape):
                sizes = spec.sizes.replace("?", "-1")
                raise InvalidTensor(f"input '{name}' has shape {list(array.shape)}; send {sizes} (-1 is any size)")
            if has_nan and not spec.takes_nan and array.dtype.kind == "f" and bool((array != array).any()):
                raise InvalidTensor(f"input '{name}' holds NaN; send finite numbers")
            if spec.shape and spec.shape[0] is None and rows.setdefault(spec.rows_of, array.shape[0]) != array.shape[0]:
                others = rows[spec.rows_of]
                raise InvalidTensor(f"input '{name}' has batch {array.shape[0]}, the others {others}; send one batch size")
        if rows and not any(rows.values()):
            name = next(s.name for s in self.inputs if s.shape and s.shape[0] is None)
            raise InvalidTensor(f"input '{name}' is empty: shape {list(tensors[name].shape)}; send at least one element")


def _fits(wanted: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    if len(wanted) != len(shape):
        return False
    for want, got in zip(wanted, shape, strict=True):  # noqa: SIM110  a generator costs each small request a microsecond
        if want is not None and want != got:
            return False
    return True


@lru_cache(maxsize=64)
def _dtype_name(dtype: Any) -> str:
    """numpy works a name out anew each time, which took a tenth of a small request."""
    return str(dtype.name)


def with_words(value: Any) -> Any:
    """JSON has no number that is not finite: in lists of lists those become strings, in the words of Protocol Buffers' JSON."""
    if isinstance(value, list):
        return [with_words(item) for item in value]
    if isinstance(value, Real) and not isinstance(value, int) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if float(value) > 0 else "-Infinity"
    return value
