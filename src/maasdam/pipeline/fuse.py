"""Transformer graphs with their operators fused for ONNX Runtime. Knows which networks its optimiser has patterns for.

ONNX Runtime rewrites every graph when it opens it; its transformer optimiser is a program of its own that knows more patterns
(attention, embeddings, layer norms with their residuals) and writes them into the file. The result runs on ONNX Runtime only.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maasdam.artifacts.store import MANIFEST
from maasdam.core import Artifact

PATTERNS = {
    **dict.fromkeys(("bert", "distilbert", "roberta", "xlm-roberta", "electra", "camembert", "wav2vec2", "hubert"), "bert"),
    **dict.fromkeys(("vit", "deit", "beit", "dinov2"), "vit"),
    "gpt2": "gpt2",
    "clip": "clip",
    "bart": "bart",
    "t5": "t5",
}
"""config.json's "model_type" -> the optimiser's own name of the patterns it looks for."""
MOST_BYTES = 1_500_000_000
"""Larger models have their weights beside the graph, which the optimiser would hold twice in memory."""


@dataclass(frozen=True, slots=True)
class Fused:
    """What came of it: another artifact's files, or why there are none. `operators` counts what was fused, by name."""

    artifact: Artifact | None
    operators: dict[str, int]
    why_not: str | None = None


def fuse(artifact: Artifact, folder: Path) -> Fused | None:
    """`artifact` (ONNX) with its operators fused, written into the new `folder`; None where it is no transformer we know.

    It is the same arithmetic in another order; whoever uses it compares the outputs.
    """
    patterns = PATTERNS.get(_model_type(artifact.path))
    if patterns is None or artifact.layout != "onnx":
        return None
    if artifact.size_bytes > MOST_BYTES:
        return Fused(None, {}, f"not fused: larger than {MOST_BYTES / 1e9:.1f} GB")
    try:
        model = _optimized(artifact.path / "model.onnx", patterns)
    except Exception as error:  # the optimiser's patterns meet graphs they were not written for: any error means "does not fit"
        first = (str(error).splitlines() or [""])[0][:200]
        return Fused(None, {}, f"not fused: ONNX Runtime's optimiser failed ({type(error).__name__}: {first})")
    from maasdam.convert.onnx_files import read_onnx

    before = Counter(node.op_type for node in read_onnx(artifact.path / "model.onnx").graph.node)
    found = {name: int(count) - before[name] for name, count in model.get_fused_operator_statistics().items()}
    operators = {name: count for name, count in found.items() if count > 0}
    if not operators:
        return Fused(None, {}, "not fused: its optimiser found none of its patterns in this graph")
    _copy_all_but_the_graph(artifact.path, folder)
    model.save_model_to_file(str(folder / "model.onnx"), use_external_data_format=False)
    return Fused(replace(artifact, path=folder), operators)


def _optimized(path: Path, patterns: str) -> Any:
    from onnxruntime.transformers import optimizer

    logger = logging.getLogger("onnxruntime.transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)  # it tells of every pattern it did not find
    try:
        # num_heads and hidden_size 0: found in the graph; opt_level 0: what opening does anyway is not done twice
        return optimizer.optimize_model(str(path), model_type=patterns, num_heads=0, hidden_size=0, opt_level=0)
    finally:
        logger.setLevel(before)


def _copy_all_but_the_graph(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name != MANIFEST and not path.name.startswith("model.onnx"):
            shutil.copyfile(path, folder / path.name)


def _model_type(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text()).get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        return ""
