"""What a model of pictures and texts makes scores of likenesses with: two of its weights, written beside it.

Knows their names and how they are kept. The vectors are the network's; these two numbers are the same for all of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maasdam.errors import InvalidModel
from maasdam.tasks.files import LIKENESS


def keep_likeness(folder: Path) -> None:
    """Write LIKENESS into an artifact's folder, of the safetensors there. Raises InvalidModel where they have no scale."""
    if (folder / LIKENESS).is_file():
        return
    held: dict[str, float] = {}
    for path in sorted(folder.glob("*.safetensors")):
        held |= _numbers(path)
    scale = math.exp(min(held.get("logit_scale", math.nan), 700.0))
    shift = held.get("logit_bias", 0.0)
    if not math.isfinite(scale) or not math.isfinite(shift):
        raise InvalidModel("the model's weights have no logit_scale that is a number; save the model again")
    (folder / LIKENESS).write_text(json.dumps({"scale": scale, "shift": shift}))


def _numbers(path: Path) -> Mapping[str, float]:
    from safetensors import safe_open

    opened: Any = safe_open(path, framework="numpy")
    with opened as weights:
        names = {"logit_scale", "logit_bias"}.intersection(weights.keys())
        return {name: float(weights.get_tensor(name).astype("float64").reshape(-1)[0]) for name in names}
