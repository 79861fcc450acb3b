"""What every way of quantising shares: calibration inputs that tell how far they are, and copying what stays."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maasdam.core import Artifact
from maasdam.errors import InvalidInput
from maasdam.pipeline.examples import Inputs, calibration_inputs, describe
from maasdam.pipeline.passes import PassContext


def calibration(source: Artifact, settings: Mapping[str, Any], context: PassContext) -> tuple[list[Inputs], dict[str, Any]]:
    """Prepared inputs of --calibrate, else of a sample of --data, and the facts that say which. Raises InvalidInput."""
    path = context.calibrate or context.data
    if path is None:
        raise InvalidInput("static int8 needs calibration data: name a folder with --calibrate or --data")
    context.progress("prepare calibration data")
    inputs = calibration_inputs(source, path, settings["samples"])
    facts = {
        "samples": len(inputs),
        "data": describe(path),
        "is_sample_of_evaluation_data": context.calibrate is None,
        "says": f"{len(inputs)} unlabelled examples of --calibrate"
        if context.calibrate is not None
        else f"an unlabelled sample of the evaluation data (--data), {len(inputs)} examples: --calibrate was not given",
    }
    return inputs, {"calibration": facts}


class Counted:
    """Calibration inputs that tell how far they were read. Iterates anew each time, as NNCF does."""

    def __init__(self, inputs: list[Inputs], context: PassContext) -> None:
        self._inputs, self._progress = inputs, context.progress

    def __len__(self) -> int:
        return len(self._inputs)

    def __iter__(self) -> Iterator[Inputs]:
        for done, tensors in enumerate(self._inputs, 1):
            yield tensors
            self._progress("calibrate", done, len(self._inputs))


def copy_all_but(folder: Path, out: Path, names: set[str]) -> None:
    """Copy the files of an artifact, those of these names excepted."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in names | {"artifact.json"}:
            shutil.copyfile(path, out / path.name)
