"""What a text encoder says of padding: nothing that anybody reads. Knows masks; no engine.

A token that attends to nothing (all of ModernBERT's window is padding) has whatever an engine makes of an empty softmax.
"""

from __future__ import annotations

import numpy as np

from maasdam.core import PAST, Tensors

WORDS, MASK = "input_ids", "attention_mask"


def without_padding(batch: Tensors, wanted: Tensors, got: Tensors) -> Tensors:
    """`got` with what is wanted where the mask of an encoder hides the token itself. Numbers alone: NaN there would spread."""
    mask = batch.get(MASK)
    if mask is None or WORDS not in batch or mask.ndim != 2 or mask.all() or any(name.startswith(PAST) for name in batch):
        return got
    out = dict(got)
    for name, array in got.items():
        if array.shape[:2] == mask.shape and array.ndim == 3 and array.shape == wanted[name].shape:
            hides = np.broadcast_to(mask[..., None] == 0, array.shape) & np.isfinite(array)
            out[name] = np.where(hides, wanted[name], array)
    return out
