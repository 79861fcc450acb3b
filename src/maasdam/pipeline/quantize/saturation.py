"""How far int8 weights must be narrowed so that sums of two products fit 16 bits. Knows arithmetic alone, no framework.

x86 processors without VNNI (AMD before Zen 4, Intel before Cascade Lake) multiply int8 with one instruction, `vpmaddubsw`: an
activation of 0..255 times a weight of -127..127, for two neighbouring input channels, added into 16 bits. Two bright neighbours
under two large weights exceed 32767 and are cut off there; the answer is wrong on those processors alone. Halving every weight
avoids it (ONNX Runtime's `reduce_range`, NNCF's `OverflowFix.ENABLE`) and costs a whole bit. Here a channel is narrowed by as
much as its own weights and the activations seen in calibration ask for, most of them by nothing.

    levels of activations --the highest, usually--> Peaks --with weights--> factor >= 1 per output channel
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LARGEST_SUM = 32767.0
LARGEST_LEVEL = 255.0
STEP = "look for sums that would be cut off"
"""What progress calls it."""
EXAMPLES = 64
"""Calibration examples that the peaks are taken from: their mean moves little after that."""
MANY_POSITIONS = 32
CHUNK = 1 << 20
"""Weights looked at in one step, so that a large layer needs no multiple of its size."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """The highest levels (0..255) of one layer's activations.

    `each`: (channels,) of every input channel. `pairs`: (channels + 1) // 2, of the sum of channels 2k and 2k + 1 at one
    position, an odd last channel alone. `positions`: how many positions were looked at, of one example.
    """

    each: Array
    pairs: Array
    positions: int

    def padded(self, level: float) -> Peaks:
        """The same where pixels of this level, a float 0, are put around the picture."""
        return Peaks(np.maximum(self.each, level), np.maximum(self.pairs, 2 * level), self.positions)


def peaks_of(values: Array, axis: int, low: Array | float, high: Array | float) -> Peaks:
    """Peaks of one example's activations: `values` in float, whose range [low, high] becomes the levels 0..255.

    `low` and `high` are numbers or broadcast against `values`.
    """
    levels = (np.clip(values, low, high) - low) * (LARGEST_LEVEL / (np.asarray(high) - low))
    flat = np.moveaxis(levels, axis, 0).reshape(values.shape[axis], -1)
    sums = _evened(flat)
    return Peaks(flat.max(axis=1), (sums[0::2] + sums[1::2]).max(axis=1), flat.shape[1])


def usual(peaks: list[Peaks]) -> Peaks:
    """What activations usually reach: the mean over examples of the highest, as the ranges themselves are chosen.

    Where an example has few positions its highest level is any level, so there it is the highest over all examples.
    """
    positions = min(p.positions for p in peaks)
    over = np.mean if positions >= MANY_POSITIONS else np.max
    return Peaks(over([p.each for p in peaks], axis=0), over([p.pairs for p in peaks], axis=0), positions)


def any_level(channels: int) -> Peaks:
    """Of activations nothing is known of."""
    return Peaks(np.full(channels, LARGEST_LEVEL), np.full((channels + 1) // 2, 2 * LARGEST_LEVEL), 1)


def narrowing(weights: Array, peaks: Peaks) -> Array:
    """By what to divide each output channel's weights, >= 1, so that no sum of two products is cut off.

    `weights`: (groups, outputs of a group, inputs of a group, taps), in steps of int8. Returns (groups, outputs). Depthwise
    layers (groups of one input and one output) multiply without pairs: 1.
    """
    groups, outputs, inputs, taps = weights.shape
    factors = np.ones((groups, outputs))
    if groups > 1 and inputs == outputs == 1:
        return factors
    step = max(1, CHUNK // (inputs * taps))
    for group in range(groups):
        each = peaks.each.reshape(groups, inputs)[group]
        pairs = peaks.pairs.reshape(groups, -1)[group] if inputs % 2 == 0 else None
        for start in range(0, outputs, step):
            part = slice(start, start + step)
            factors[group, part] = _largest(weights[group, part], each, pairs) / LARGEST_SUM
    return np.maximum(factors, 1.0)


def in_steps(exact: Array | None, steps: Array, scale: Array, along: list[int]) -> Array:
    """The float weights in steps of int8, so that they are rounded once; the rounded ones where those are not at hand.

    `exact`, `steps`: of one shape. `scale`: one number, or one per output channel; `along` shapes it like the weights.
    """
    rounded = steps.astype(np.float64)
    if exact is None or exact.shape != steps.shape:
        return rounded
    unrounded: Array = exact.astype(np.float64) / (scale if scale.size == 1 else scale.reshape(along))
    return unrounded if np.abs(unrounded - rounded).max(initial=0) <= 1 else rounded


def says(narrowed: int, channels: int) -> dict[str, Any]:
    """What was done, for the facts of a pass."""
    words = f"{narrowed} of {channels} output channels narrowed so that int8 sums fit 16 bits on processors without VNNI"
    return {"saturation": {"narrowed": narrowed, "channels": channels, "says": words}}


def _largest(weights: Array, each: Array, pairs: Array | None) -> Array:
    """The largest sum of two neighbours' products, either sign, of (outputs, inputs, taps) weights: (outputs,)."""
    if pairs is not None:
        first, second = weights[:, 0::2], weights[:, 1::2]
        a, b, both = each[0::2, None], each[1::2, None], pairs[:, None]
    else:  # kernels differ in whether the pairs begin anew at each tap: any two neighbours may be one
        line = weights.transpose(0, 2, 1).reshape(len(weights), -1)
        tiled = np.tile(each, weights.shape[2])
        first, second, a, b = line[:, :-1], line[:, 1:], tiled[:-1], tiled[1:]
        both = a + b
    highest = np.maximum(_sums(first, second, a, b, both), _sums(-first, -second, a, b, both))
    return np.asarray(highest.max(axis=tuple(range(1, highest.ndim))))


def _sums(first: Array, second: Array, a: Array, b: Array, both: Array) -> Array:
    """The most that x * first + y * second can be with 0 <= x <= a, 0 <= y <= b, x + y <= both: it is in a corner."""
    x_first = a * first + np.clip(both - a, 0, b) * np.maximum(second, 0)
    y_first = b * second + np.clip(both - b, 0, a) * np.maximum(first, 0)
    corners: Array = np.maximum.reduce([x_first, y_first, a * first, b * second])
    return corners


def _evened(levels: Array) -> Array:
    return levels if len(levels) % 2 == 0 else np.concatenate([levels, np.zeros_like(levels[:1])])
