"""Write an OpenVINO model under its source's names. Knows model.xml and model.bin; refuses to know where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maasdam.core import Signature
from maasdam.pipeline.convert.signatures import describe, name_openvino, of_openvino

if TYPE_CHECKING:
    import openvino as ov


def save(model: ov.Model, wanted: Signature | None, out: Path) -> Signature:
    """Name the tensors as in `wanted`, write `out`/model.xml and model.bin, and return the signature read back."""
    import openvino as ov

    if wanted is not None:
        name_openvino(model, wanted)
    ov.save_model(model, out / "model.xml", compress_to_fp16=False)
    return describe(of_openvino(ov.Core().read_model(out / "model.xml")), wanted)
