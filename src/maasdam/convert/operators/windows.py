"""Where the windows of convolutions and poolings lie. Knows kernels, strides and paddings; never a framework.

Sizes may be symbols: then only what needs no comparison of sizes is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Pads = list[tuple[Any, Any]]
"""(before, after) for each spatial axis."""
Each = list[int]
"""One number for each spatial axis."""


def paddings(
    sizes: Sequence[Any],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> Pads:
    """The padding that `pads` (ONNX order: all befores, all afters) or `auto_pad` asks for."""
    rank = len(kernel)
    if auto_pad == "VALID" or (auto_pad == "NOTSET" and not pads):
        return [(0, 0)] * rank
    if auto_pad == "NOTSET":
        assert pads is not None
        return list(zip(pads[:rank], pads[rank:], strict=True))
    out: Pads = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (k - 1) * dilation + 1
        total = reach - 1 if stride == 1 else _at_least_zero(((size + stride - 1) // stride - 1) * stride + reach - size)
        small = total // 2
        out.append((small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small))
    return out


def _at_least_zero(value: Any) -> Any:
    return value if not isinstance(value, int) else max(0, value)


def rounded_up(
    sizes: Sequence[Any], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Pads
) -> Pads:
    """`pads` with what "ceil_mode" adds after each axis: one more window where one starts inside the input or its padding."""
    out: Pads = []
    for size, k, stride, dilation, (before, after) in zip(sizes, kernel, strides, dilations, pads, strict=True):
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
    sizes: Sequence[Any],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    output_padding: Sequence[int],
    output_shape: Sequence[int] | None,
    auto_pad: str,
) -> Pads:
    """What a transposed convolution cuts off (before, after) each axis of its full result."""
    rank = len(kernel)
    if output_shape is None and auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        return paddings(sizes, kernel, strides, dilations, pads, auto_pad)
    wanted = list(output_shape or [size * stride for size, stride in zip(sizes, strides, strict=True)])[-rank:]
    out: Pads = []
    for size, k, stride, dilation, extra, target in zip(sizes, kernel, strides, dilations, output_padding, wanted, strict=True):
        total = stride * (size - 1) + extra + (k - 1) * dilation + 1 - target
        small = total // 2
        out.append((small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small))
    return out
