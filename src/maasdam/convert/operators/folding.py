"""Where Col2Im puts the elements of its columns. Knows kernels, strides and paddings; never a framework."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def places(
    image: Sequence[int], block: Sequence[int], dilations: Sequence[int], pads: Sequence[int], strides: Sequence[int]
) -> NDArray[np.int64]:
    """For each element of a block (rows) and each block (columns) its place in the flattened image, or the number of places
    in it: one more than the last, for what lies in the padding."""
    count = len(image)
    blocks = [
        (size + pads[i] + pads[i + count] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1 for i, size in enumerate(image)
    ]
    beyond = int(np.prod(image))
    rows = []
    for within in itertools.product(*(range(size) for size in block)):
        place = np.zeros(blocks, np.int64)
        is_inside = np.ones(blocks, np.bool_)
        for i, size in enumerate(image):
            along = np.arange(blocks[i]) * strides[i] + within[i] * dilations[i] - pads[i]
            along = along.reshape([-1 if axis == i else 1 for axis in range(count)])
            place = place * size + along
            is_inside = is_inside & (along >= 0) & (along < size)
        rows.append(np.where(is_inside, place, beyond).reshape(-1))
    return np.stack(rows)
