"""PyTorch -> torch.export (.pt2): dynamic axes kept, no sample inputs inside, so that loading it runs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maasdam.convert.programs import save_pt2, with_program
from maasdam.convert.signatures import describe, of_program
from maasdam.core import Artifact, Signature
from maasdam.engines.pytorch_engine import load_program

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def write(source: Artifact, out: Path) -> Signature:
    """Write `out`/model.pt2 and return the signature read back from it. Raises Unsupported with the exporter's reason."""
    return with_program(source, lambda program: _save(program, source.signature, out / "model.pt2"))


def _save(program: ExportedProgram, wanted: Signature | None, path: Path) -> Signature:
    save_pt2(program, str(path))
    return describe(of_program(load_program(path)), wanted)
