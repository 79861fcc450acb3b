"""Where the windows of convolutions and poolings lie. Knows kernels, strides and paddings; never a framework.

Sizes may be symbols: then only what needs no comparison of sizes is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

Pads = list[tuple[Any, Any]]
"""(before, after) for each spatial axis."""
Each = list[int]
"""One number for each spatial axis."""


class WindowAttributes(TypedDict, total=False):
    """What ONNX says of windows, under its own names."""

    auto_pad: str
    dilations: Each
    kernel_shape: Each
    pads: list[int]
    """All befores, then all afters."""
    strides: Each


class WindowShape(NamedTuple):
    """How large windows are, and how far they and what they see lie apart."""

    kernel: Each
    strides: Each
    dilations: Each


def windows_of(kernel: Each, given: WindowAttributes) -> WindowShape:
    """Windows of `kernel`, side by side where nothing else is given."""
    ones = [1] * len(kernel)
    return WindowShape(kernel, given.get("strides") or ones, given.get("dilations") or ones)


def paddings(sizes: Sequence[Any], how: WindowShape, given: WindowAttributes) -> Pads:
    """The padding that is asked for, by numbers or by a word."""
    rank, pads, auto_pad = len(how.kernel), given.get("pads"), given.get("auto_pad", "NOTSET")
    if auto_pad == "VALID" or (auto_pad == "NOTSET" and not pads):
        return [(0, 0)] * rank
    if auto_pad == "NOTSET":
        assert pads is not None
        return list(zip(pads[:rank], pads[rank:], strict=True))
    out: Pads = []
    for size, k, stride, dilation in zip(sizes, *how, strict=True):
        reach = (k - 1) * dilation + 1
        total = reach - 1 if stride == 1 else _at_least_zero(((size + stride - 1) // stride - 1) * stride + reach - size)
        out.append(_halves(total, auto_pad))
    return out


def _at_least_zero(value: Any) -> Any:
    return value if not isinstance(value, int) else max(0, value)


def _halves(total: Any, auto_pad: str) -> tuple[Any, Any]:
    small = total // 2
    return (small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small)


def rounded_up(sizes: Sequence[Any], how: WindowShape, pads: Pads) -> Pads:
    """`pads` with what "ceil_mode" adds after each axis: one more window where one starts inside the input or its padding."""
    out: Pads = []
    for size, k, stride, dilation, (before, after) in zip(sizes, *how, pads, strict=True):
        reach = (k - 1) * dilation + 1
        padded = size + before + after
        windows = (padded - reach + stride - 1) // stride + 1
        if isinstance(windows, int) and (windows - 1) * stride >= size + before:
            windows -= 1  # it would start in the padding after the input
        out.append((before, _max_with(after, (windows - 1) * stride + reach - size - before)))
    return out


def _max_with(after: int, needed: Any) -> Any:
    return max(after, needed) if isinstance(needed, int) else needed


def transposed(
    sizes: Sequence[Any], how: WindowShape, given: WindowAttributes, output_padding: Each, output_shape: Each | None
) -> Pads:
    """What a transposed convolution cuts off (before, after) each axis of its full result."""
    auto_pad = given.get("auto_pad", "NOTSET")
    if output_shape is None and auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        return paddings(sizes, how, given)
    wanted = list(output_shape or [size * stride for size, stride in zip(sizes, how.strides, strict=True)])[-len(how.kernel) :]
    out: Pads = []
    for size, k, stride, dilation, extra, target in zip(sizes, *how, output_padding, wanted, strict=True):
        out.append(_halves(stride * (size - 1) + extra + (k - 1) * dilation + 1 - target, auto_pad))
    return out
