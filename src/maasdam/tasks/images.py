"""Image classification: scores of a picture to labels.

Knows pictures and labels. Refuses to know engines and HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maasdam.core import IMAGE_CLASSIFICATION, Answer, ImagePayload, Payload, Signature, Tensors, Units
from maasdam.errors import InvalidField, InvalidModel
from maasdam.tasks.classes import Classes, best_label, classification
from maasdam.tasks.examples import labelled_files
from maasdam.tasks.pixels import IMAGES, Pixels, gray, only_picture

if TYPE_CHECKING:
    from maasdam.core import type_array


class ImageClassifier:
    """The processor of one classifier. Thread-safe."""

    task = IMAGE_CLASSIFICATION

    def __init__(self, folder: Path, signature: Signature | None, max_pixels: int) -> None:
        if signature is None:
            raise InvalidModel("an image classifier needs a signature: the names and shapes of its tensors")
        self._classes = Classes(folder, signature, "picture")
        self._input = only_picture(signature, "an image classifier")
        self._see = Pixels(folder, self._input, max_pixels)

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """One picture -> one input. Raises InvalidPayload, InvalidField for labels: those of this model are its own."""
        assert isinstance(payload, ImagePayload)
        if payload.labels:
            raise InvalidField(
                "'labels' can't be chosen: this model tells classes of its own apart; leave it out",
                "labels",
                "unsupported_parameter",
            )
        return [{self._input.name: self._see(payload)}]

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """Scores or probabilities [1, N] -> the `top_k` best labels. Raises EngineFailure for NaN."""
        assert isinstance(payload, ImagePayload)
        return self._classes.best(outputs, payload.top_k)

    def units(self, payload: Payload, prepared: Sequence[Tensors]) -> Units:
        """One picture is one item."""
        return Units(items=1)


TASK = classification(
    name=IMAGE_CLASSIFICATION,
    payloads=(ImagePayload,),
    takes="image files",
    doors=("/v1/images/classifications",),
    open=lambda folder, signature, settings: ImageClassifier(folder, signature, settings.max_image_pixels),
    warm_up=gray,
    read_examples=lambda path, labels, signature: labelled_files(path, IMAGES, "images", labels),
    suffixes=IMAGES,
    of_file=ImagePayload,
    field="image",
    asks=("top_k", "labels", "hypothesis_template"),
    oip=best_label("image"),
)
