"""What became smaller. Knows files, parameters and arithmetic; never time: what got faster is for verify to measure."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.artifacts.store import MANIFEST
from maasdam.pipeline.prune.layers import parameters_of

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 20
SAYS = "smaller is not faster: what became faster is measured as latency, against the reference"


def counted(model: torch.nn.Module, example: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """{"parameters", "nonzero", "macs"}: multiply-accumulates of matrix products and convolutions over `example`."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**example)
    nonzero = sum(int(p.count_nonzero()) for p in model.parameters())
    return {"parameters": parameters_of(model), "nonzero": nonzero, "macs": counter.get_total_flops() // 2}


def weighed(folder: Path) -> dict[str, int]:
    """{"file_bytes", "compressed_bytes"} of all files in `folder`, each compressed by itself with zlib at its default level."""
    plain = packed = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        packer = zlib.compressobj()
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                plain += len(block)
                packed += len(packer.compress(block))
        packed += len(packer.flush())
    return {"file_bytes": plain, "compressed_bytes": packed}


def compared(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Any]:
    """{"<what>": {"before", "after"}, …, "says"}"""
    return {key: {"before": before[key], "after": after[key]} for key in before} | {"says": SAYS}
