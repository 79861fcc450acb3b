"""PyTorch -> ONNX: the dynamo exporter, operator set 18, names and dynamic axes kept, one file up to 2 GB."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from maasdam.convert.directions.relative_keys import gather_relative_keys
from maasdam.convert.onnx_files import LARGEST_MESSAGE, read_onnx
from maasdam.convert.programs import with_program
from maasdam.convert.signatures import describe, name_onnx, of_onnx, of_program
from maasdam.core import Artifact, Signature
from maasdam.errors import from_extra

if TYPE_CHECKING:
    from torch.export import ExportedProgram

OPERATOR_SET = 18


def write(source: Artifact, out: Path) -> Signature:
    """Write `out`/model.onnx and return its signature. Raises Unsupported with the exporter's reason."""
    with from_extra("build", "onnxscript"):
        import onnxscript  # noqa: F401  # asked for, to say which extra is missing
    return with_program(source, lambda program: _export(program, source.signature, out / "model.onnx"))


def _export(program: ExportedProgram, wanted: Signature | None, path: Path) -> Signature:
    import torch

    wanted = wanted or of_program(program)
    gather_relative_keys(program)
    with quiet_exporter():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPERATOR_SET,
            input_names=[s.name for s in wanted.inputs],
            output_names=[s.name for s in wanted.outputs],
            verbose=False,
        )
    assert exported is not None  # the dynamo exporter always answers
    weights = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    is_split = weights > LARGEST_MESSAGE
    exported.save(str(path), external_data=is_split)
    model = read_onnx(path)
    name_onnx(model, wanted)
    _without_notes(model)
    onnx.save(model, path)
    return describe(of_onnx(model), wanted)


def _without_notes(noted: Any) -> None:
    """Leave out the exporter's notes: stack traces with folders of this machine, more bytes than a small network's weights.

    `noted`: a message of ONNX; all messages within it are cleaned too.
    """
    if hasattr(noted, "metadata_props"):
        del noted.metadata_props[:]
    for field, held in noted.ListFields():
        if field.message_type is not None:
            for message in held if field.is_repeated else (held,):
                _without_notes(message)


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence what the exporter prints and warns: its words are about its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
