"""Turn an artifact into the same network in another format, and prove it.

Knows which directions exist. Each direction is one module; a direction that is not here is refused by name.
Refuses to know catalogs, recipes and where sources came from.

    pytorch (huggingface, pt2, torchscript) -> onnx, openvino (ir; genai for language models), pytorch (pt2; ctranslate2)
    tensorflow (savedmodel, keras)          -> onnx, openvino, tensorflow (savedmodel)
    onnx                                    -> openvino, pytorch (pt2), tensorflow (savedmodel)
    pytorch -> tensorflow and back          through onnx
"""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from maasdam.artifacts.produced import Produced
from maasdam.convert.directions.companions import copy_companions
from maasdam.convert.networks import default_part, parts_of
from maasdam.core import Artifact, Format, Layout, Progress, Signature, silent
from maasdam.errors import Unsupported

_DIRECTIONS = "maasdam.convert.directions"


@dataclass(frozen=True, slots=True)
class Direction:
    """One way: the module that writes it (its `write(source, out) -> Signature | None`), and what it gives."""

    module: str
    layout: Layout
    engine: str
    through: Format | None = None
    """The format to convert to first, from which the module goes on."""


_TENSORS: dict[tuple[Layout, Format], Direction] = {
    ("huggingface", "onnx"): Direction("pytorch_to_onnx", "onnx", "onnxruntime"),
    ("pt2", "onnx"): Direction("pytorch_to_onnx", "onnx", "onnxruntime"),
    ("torchscript", "onnx"): Direction("pytorch_to_onnx", "onnx", "onnxruntime"),
    ("huggingface", "openvino"): Direction("pytorch_to_openvino", "ir", "openvino"),
    ("pt2", "openvino"): Direction("pytorch_to_openvino", "ir", "openvino"),
    ("torchscript", "openvino"): Direction("pytorch_to_openvino", "ir", "openvino"),
    ("huggingface", "pytorch"): Direction("pytorch_to_pt2", "pt2", "pytorch"),
    ("torchscript", "pytorch"): Direction("pytorch_to_pt2", "pt2", "pytorch"),
    ("savedmodel", "onnx"): Direction("tensorflow_to_onnx", "onnx", "onnxruntime"),
    ("keras", "onnx"): Direction("tensorflow_to_onnx", "onnx", "onnxruntime"),
    ("keras", "tensorflow"): Direction("keras_to_savedmodel", "savedmodel", "tensorflow"),
    ("savedmodel", "openvino"): Direction("to_openvino", "ir", "openvino"),
    ("keras", "openvino"): Direction("to_openvino", "ir", "openvino"),
    ("onnx", "openvino"): Direction("to_openvino", "ir", "openvino"),
    ("onnx", "pytorch"): Direction("onnx_to_pytorch", "pt2", "pytorch"),
    ("onnx", "tensorflow"): Direction("onnx_to_tensorflow", "savedmodel", "tensorflow"),
    ("huggingface", "tensorflow"): Direction("onnx_to_tensorflow", "savedmodel", "tensorflow", through="onnx"),
    ("pt2", "tensorflow"): Direction("onnx_to_tensorflow", "savedmodel", "tensorflow", through="onnx"),
    ("torchscript", "tensorflow"): Direction("onnx_to_tensorflow", "savedmodel", "tensorflow", through="onnx"),
    ("savedmodel", "pytorch"): Direction("onnx_to_pytorch", "pt2", "pytorch", through="onnx"),
    ("keras", "pytorch"): Direction("onnx_to_pytorch", "pt2", "pytorch", through="onnx"),
}
_WHOLE: dict[tuple[tuple[str, ...], Format], Direction] = {
    (("decoder",), "openvino"): Direction("language_to_genai", "genai", "openvino-genai"),
    (("encoder", "decoder"), "pytorch"): Direction("whisper_to_ctranslate2", "ctranslate2", "ctranslate2"),
}
"""Models that generate, by the networks they hold, to layouts that hold all of them."""


def find_direction(source: Artifact, to: Format) -> Direction:
    """The way from `source` to the format. Raises Unsupported naming the direction where there is none."""
    if source.layout == "huggingface":
        whole = _WHOLE.get((parts_of(source), to)) if source.signature is None else None
        if whole is not None:
            return whole
        if source.signature is None and len(parts := parts_of(source)) > 1:
            raise Unsupported(
                f"the model is {len(parts)} networks, each converted by itself: add --part {' or --part '.join(parts)}"
            )
    if (direction := _TENSORS.get((source.layout, to))) is not None:
        return direction
    if source.format == to:
        raise Unsupported(f"the model is {to} ({source.layout}) already; there is nothing to convert")
    raise Unsupported(f"can't convert {source.format} ({source.layout}) to {to}: this direction does not exist yet")


def convert(source: Artifact, to: Format, out: Path, *, progress: Progress = silent) -> Produced:
    """Write `source` in format `to` into the existing folder `out`, with its processor files, and say what was made.

    The signature is read back from the file that was written. Proving that it computes the same is `certify`'s work.
    Raises Unsupported where no way leads there or the model does not go it, MissingExtra, InvalidModel.
    """
    direction = find_direction(source, to)
    if direction not in _WHOLE.values():
        source = default_part(source)
    if direction.through is not None:
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            between = convert(source, direction.through, Path(folder), progress=progress)
            on_the_way = replace(
                source, path=Path(folder), format=between.format, layout=between.layout, engine=between.engine,
                signature=between.signature,
            )  # fmt: skip
            signature = _write(direction, on_the_way, out, progress)
    else:
        signature = _write(direction, source, out, progress)
    copy_companions(source.path, out)
    return Produced(format=to, layout=direction.layout, engine=direction.engine, signature=signature)


def _write(direction: Direction, source: Artifact, out: Path, progress: Progress) -> Signature | None:
    progress(f"convert to {direction.layout}")
    found: Signature | None = importlib.import_module(f"{_DIRECTIONS}.{direction.module}").write(source, out)
    return found
