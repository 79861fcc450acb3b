"""PyTorch -> OpenVINO IR for models of one batch of tensors: names and dynamic axes kept, weights kept at float32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maasdam.core import Artifact, Signature
from maasdam.pipeline.convert.openvino_file import save
from maasdam.pipeline.convert.programs import with_program
from maasdam.pipeline.convert.pytorch_to_onnx import quiet_exporter
from maasdam.pipeline.convert.signatures import of_program

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def write(source: Artifact, out: Path) -> Signature:
    """Write `out`/model.xml and model.bin; returns the signature. Raises Unsupported with the exporter's reason."""
    return with_program(source, lambda program: _convert(program, source.signature, out))


def _convert(program: ExportedProgram, wanted: Signature | None, out: Path) -> Signature:
    import openvino as ov

    wanted = wanted or of_program(program)
    with quiet_exporter():
        model = ov.convert_model(program)
    return save(model, wanted, out)
