"""The pass "convert": the same network in another format. Knows which settings it takes; `convert` does the work, and what
runs the recipe has the result proven (`proven.prove`), cached or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maasdam.artifacts.produced import Produced
from maasdam.core import FORMATS, Artifact
from maasdam.pipeline.passes import Pass, PassContext, Setting


def run(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Write `source` in the format settings["to"] into `out`. Raises Unsupported where no way leads there."""
    from maasdam.convert import convert

    return convert(source, settings["to"], out, progress=context.progress)


PASS = Pass(
    use="convert",
    version=4,
    settings={"to": Setting(str, None, choices=FORMATS, says="the format to convert to", is_required=True)},
    run=run,
    is_proven=True,
    libraries=(
        "torch",
        "transformers",
        "onnx",
        "onnxscript",
        "openvino",
        "tensorflow_cpu",
        "tf2onnx",
        "openvino_tokenizers",
        "ctranslate2",
    ),
)
