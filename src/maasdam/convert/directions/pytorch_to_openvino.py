"""PyTorch -> OpenVINO IR for models of one batch of tensors: names and dynamic axes kept, weights kept at float32.

What OpenVINO's converter has no rule for in a PyTorch program goes through ONNX, for which it has more.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maasdam.convert.directions import pytorch_to_onnx, to_openvino
from maasdam.convert.directions.openvino_file import save
from maasdam.convert.directions.pytorch_to_onnx import quiet_exporter
from maasdam.convert.directions.relative_keys import gather_relative_keys
from maasdam.convert.programs import with_program
from maasdam.convert.signatures import of_program
from maasdam.core import Artifact, Signature
from maasdam.errors import Unsupported

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def write(source: Artifact, out: Path) -> Signature:
    """Write `out`/model.xml and model.bin; returns the signature. Raises Unsupported with the reasons of both ways."""
    try:
        return with_program(source, lambda program: _convert(program, source.signature, out))
    except Unsupported as direct:
        return to_openvino.through_onnx(source, out, pytorch_to_onnx.write, direct)


def _convert(program: ExportedProgram, wanted: Signature | None, out: Path) -> Signature:
    import openvino as ov

    wanted = wanted or of_program(program)
    gather_relative_keys(program)
    with quiet_exporter():
        model = ov.convert_model(program)
    return save(model, wanted, out)
