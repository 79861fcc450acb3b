"""Image feature extraction: a picture to a vector (ViT, DINOv2, the towers of CLIP and SigLIP that see).

Knows pictures and vectors. Refuses to know engines and HTTP.

The vector is the model's own of the whole picture where it was trained for one (`image_embeds`, `pooler_output`), else that of
its first token, as DINO's is used. It has the length that the model gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maasdam.core import IMAGE_FEATURES, Answer, ImagePayload, Payload, Signature, Tensors, Units, Vector
from maasdam.errors import EngineFailure, InvalidField, InvalidModel
from maasdam.tasks import features
from maasdam.tasks.examples import labelled_files
from maasdam.tasks.pixels import IMAGES, Pixels, gray, only_picture
from maasdam.tasks.scoring import NEIGHBOURS
from maasdam.tasks.task import Task

if TYPE_CHECKING:
    from maasdam.core import type_array

WHOLE = ("image_embeds", "pooler_output", "last_hidden_state")
"""Outputs, the first there is."""


class ImageFeatures:
    """The processor of one model. Thread-safe."""

    task = IMAGE_FEATURES

    def __init__(self, folder: Path, signature: Signature | None, max_pixels: int) -> None:
        if signature is None:
            raise InvalidModel("a model of pictures needs a signature: the names and shapes of its tensors")
        self._input = only_picture(signature, "a model of pictures")
        self._see = Pixels(folder, self._input, max_pixels)
        given = {spec.name for spec in signature.outputs}
        output = next((name for name in WHOLE if name in given), None)
        if output is None:
            raise InvalidModel(
                f"a model of pictures gives one of {', '.join(WHOLE)}; this one gives {', '.join(sorted(given))}"
            )
        self._output = output

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """One picture -> one input. Raises InvalidPayload, InvalidField for labels."""
        assert isinstance(payload, ImagePayload)
        if payload.labels is not None:
            raise InvalidField("'labels' means nothing to this model, which gives vectors; leave it out", "labels")
        return [{self._input.name: self._see(payload)}]

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """[1, D], or [1, T, D] of which the first is taken -> a vector. Raises EngineFailure for NaN."""
        import numpy as np

        found = np.asarray(outputs[0][self._output][0], dtype=np.float32)
        vector = np.ascontiguousarray(found if found.ndim == 1 else found[0])
        if not np.isfinite(vector).all():
            raise EngineFailure("the model's vector of this picture is not finite")
        return Vector(vector)

    def units(self, payload: Payload, prepared: Sequence[Tensors]) -> Units:
        """One picture is one item."""
        return Units(items=1)


TASK = Task(
    name=IMAGE_FEATURES,
    payloads=(ImagePayload,),
    answer=Vector,
    takes="image files",
    doors=(features.PATH,),
    open=lambda folder, signature, settings: ImageFeatures(folder, signature, settings.max_image_pixels),
    warm_up=gray,
    read_examples=lambda path, labels, signature: [
        (name, file, None) for name, file, _ in labelled_files(path, IMAGES, "images", None, is_labelled=False)
    ],
    metric=NEIGHBOURS,
    same=lambda one, other: None,
    shown=features.numbers,
    lines=features.lines,
    to_json=features.to_json,
    suffixes=IMAGES,
    of_file=lambda data, top_k: ImagePayload(data),
)
