"""ONNX and TensorFlow -> OpenVINO IR. OpenVINO reads most of both by itself.

A .keras file needs TensorFlow to become a SavedModel; what OpenVINO can't read of one goes through ONNX.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from maasdam.convert.directions import tensorflow_to_onnx
from maasdam.convert.directions.keras_to_savedmodel import export_keras
from maasdam.convert.directions.openvino_file import save
from maasdam.convert.directions.plain_onnx import plain
from maasdam.core import Artifact, Signature
from maasdam.errors import MissingExtra, Unsupported

_NOISE = re.compile(
    r"Check '|FrontEnd API failed|Model wasn't fully|\[ONNX Frontend\]|While validating|Exception from|Summary:|Conversion is"
)
"""How lines of OpenVINO's errors begin that say where in it something failed, and not what."""


def write(source: Artifact, out: Path) -> Signature:
    """Write `out`/model.xml and model.bin; returns the signature. Raises Unsupported naming what OpenVINO can't convert.

    A TensorFlow model that OpenVINO can't read by itself goes through ONNX.
    """
    if source.layout == "onnx":
        with (
            tempfile.TemporaryDirectory(dir=out.parent) as work,
            plain(source.path / "model.onnx", Path(work) / "plain") as file,
        ):
            return _convert(file, source.signature, out)
    try:
        if source.layout == "savedmodel":
            return _convert(source.path, source.signature, out)
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            export_keras(source.path / "model.keras", Path(folder), source.signature)
            return _convert(Path(folder), source.signature, out)
    except Unsupported as direct:
        return through_onnx(source, out, tensorflow_to_onnx.write, direct)


def through_onnx(source: Artifact, out: Path, to_onnx: Callable[[Artifact, Path], Signature], direct: Unsupported) -> Signature:
    """The other way, where the direct one failed. Raises Unsupported with the reasons of both."""
    try:
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            signature = to_onnx(source, Path(folder))
            between = replace(source, path=Path(folder), format="onnx", layout="onnx", signature=source.signature or signature)
            return write(between, out)
    except (Unsupported, MissingExtra) as other:  # without TensorFlow there is no other way: say what the first one failed on
        both = f"{direct}; through ONNX neither: {other}" if str(other) != str(direct) else str(direct)
        raise Unsupported(both) from other


def _convert(path: Path, wanted: Signature | None, out: Path) -> Signature:
    import openvino as ov

    try:
        model = ov.convert_model(path)
    except Exception as error:  # OpenVINO raises its own types and RuntimeError alike
        lines = [line.strip().removeprefix("-- ") for line in str(error).splitlines() if line.strip()]
        rules = (
            [line for line in lines if "No conversion rule" in line]
            or [line for line in lines if not _NOISE.match(line)]
            or lines
        )
        raise Unsupported(f"OpenVINO can't convert the model: {' '.join(rules)[:400]}") from error
    return save(model, wanted, out)
