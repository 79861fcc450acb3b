"""What every way of quantising shares: calibration inputs that tell how far they are, and copying what stays."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maasdam.artifacts.store import MANIFEST
from maasdam.core import Artifact, TextPayload
from maasdam.errors import InvalidInput
from maasdam.pipeline.examples import Inputs, Part, Preparer, calibration_inputs, describe, unlabelled_payloads
from maasdam.pipeline.passes import PassContext

PIECE_TOKENS = 2048
"""The longest calibration piece; shorter where the model's context is."""
TEXTS = 10_000
"""Texts that are tokenised to take calibration pieces from."""


def calibration(source: Artifact, settings: Mapping[str, Any], context: PassContext) -> tuple[list[Inputs], dict[str, Any]]:
    """Prepared inputs of --calibrate, else of a sample of --data, and which these are. Raises InvalidInput."""
    path = context.calibrate or context.data
    if path is None:
        raise InvalidInput("static int8 needs calibration data: name a folder with --calibrate or --data")
    context.progress("prepare calibration data")
    part: Part = "all" if context.data else "rest"  # of --calibrate alone, some is kept to judge by
    inputs = calibration_inputs(source, path, settings["samples"], part=part)
    return inputs, _provenance(len(inputs), path, context)


def calibration_texts(
    source: Artifact, settings: Mapping[str, Any], context: PassContext
) -> tuple[list[list[int]], dict[str, Any]]:
    """Token ids of texts of --calibrate, else of --data, in pieces that fit the context; and which these are.

    A long text is cut into pieces; `samples` pieces are taken, evenly spaced. Raises InvalidInput where there is no text.
    """
    path = context.calibrate or context.data
    if path is None:
        raise InvalidInput(f"{settings['scheme']} needs calibration texts: name them with --calibrate or --data")
    context.progress("prepare calibration data")
    processor: Any = Preparer(source).processor
    longest = min(processor.context_length or PIECE_TOKENS, PIECE_TOKENS)
    pieces: list[list[int]] = []
    for _, payload in unlabelled_payloads(source.task, path, TEXTS):
        assert isinstance(payload, TextPayload)
        ids = [int(i) for i in processor.tokenizer(payload.prompt, verbose=False)["input_ids"]]
        pieces += [ids[start : start + longest] for start in range(0, len(ids), longest)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise InvalidInput("the calibration data holds no text of two tokens or more")
    wanted = min(settings["samples"], len(pieces))
    chosen = [pieces[i * len(pieces) // wanted] for i in range(wanted)]
    return chosen, _provenance(len(chosen), path, context) | {"tokens": sum(len(piece) for piece in chosen)}


def _provenance(count: int, path: Path, context: PassContext) -> dict[str, Any]:
    return {
        "samples": count,
        "data": describe(path),
        "is_sample_of_evaluation_data": context.calibrate is None,
        "says": f"{count} unlabelled examples of --calibrate"
        if context.calibrate is not None
        else f"an unlabelled sample of the evaluation data (--data), {count} examples: --calibrate was not given",
    }


class Counted:
    """Calibration inputs that tell how far they were read. Iterates anew each time, as NNCF does."""

    def __init__(self, inputs: list[Inputs], context: PassContext, what: str = "calibrate") -> None:
        self._inputs, self._progress, self._what = inputs, context.progress, what

    def __len__(self) -> int:
        return len(self._inputs)

    def __iter__(self) -> Iterator[Inputs]:
        for done, tensors in enumerate(self._inputs, 1):
            yield tensors
            self._progress(self._what, done, len(self._inputs))


def copy_all_but(folder: Path, out: Path, names: set[str]) -> None:
    """Copy the files of an artifact, those of these names excepted."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in names | {MANIFEST}:
            shutil.copyfile(path, out / path.name)
