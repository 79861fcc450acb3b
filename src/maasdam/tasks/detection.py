"""Object detection: picture to tensor, candidates to boxes in pixels of the upright picture.

Knows pictures, boxes and labels. Refuses to know engines and HTTP. How candidates come of the model's numbers is its head's:
transformers' (`detection_heads`), or what the folder declares (`declared_heads`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import OBJECT_DETECTION, Answer, Box, Boxes, ImagePayload, Payload, Signature, Tensors, Units
from maasdam.errors import InvalidModel
from maasdam.tasks.box_scoring import PRECISION, boxed_files
from maasdam.tasks.declared_heads import DeclaredHead
from maasdam.tasks.detection_heads import Queries
from maasdam.tasks.drawing import with_boxes
from maasdam.tasks.files import DECLARED, labels_of, preprocessor, read_json
from maasdam.tasks.pictures import decode_image, upright_size
from maasdam.tasks.pixels import IMAGES, Pixels, gray, only_picture
from maasdam.tasks.task import Bytes, Task

if TYPE_CHECKING:
    from maasdam.core import type_array

USUAL = 100
"""Boxes that are told where nobody says how many."""


class Detector:
    """The processor of one detector. Thread-safe."""

    task = OBJECT_DETECTION

    def __init__(self, folder: Path, signature: Signature | None, max_pixels: int) -> None:
        if signature is None:
            raise InvalidModel("a detector needs a signature: the names and shapes of its tensors")
        self._max_pixels = max_pixels
        self._head: DeclaredHead | Queries
        if (folder / DECLARED).is_file():
            self._head = DeclaredHead(folder, signature)
            self._labels = self._head.labels
        else:
            self._head = Queries(read_json(folder / "config.json"), signature)
            if preprocessor(folder, "image_processor").get("pad_size"):
                raise InvalidModel("the model's own processor pads pictures (pad_size), and no mask of that is given here")
            self._input = only_picture(signature, "a detector")
            self._see = Pixels(folder, self._input, max_pixels)
            self._labels = labels_of(folder)

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """One picture -> one input, as the signature has it. Raises InvalidPayload."""
        assert isinstance(payload, ImagePayload)
        if isinstance(self._head, DeclaredHead):
            return [self._head.prepare(decode_image(payload.data, self._max_pixels))]
        return [{self._input.name: self._see(payload)}]

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """The head's numbers -> boxes with a score above the threshold, the surest first. Raises EngineFailure for NaN."""
        assert isinstance(payload, ImagePayload)
        threshold = self._head.threshold if payload.threshold is None else payload.threshold
        found = self._head.found(outputs[0], *upright_size(payload.data)).above(threshold)
        if isinstance(self._head, DeclaredHead):
            found = self._head.apart(found)
        rows = zip(found.corners.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
        boxes = tuple(Box(self._labels.get(number, str(number)), number, score, *place) for place, score, number in rows)
        return Boxes(boxes[: USUAL if payload.top_k is None else payload.top_k])

    def units(self, payload: Payload, prepared: Sequence[Tensors]) -> Units:
        """One picture is one item."""
        return Units(items=1)


def _data(answer: Boxes) -> list[dict[str, Any]]:
    sides = ("xmin", "ymin", "xmax", "ymax")
    return [
        {"label": b.label, "label_id": b.label_id, "score": b.score, "box": {side: getattr(b, side) for side in sides}}
        for b in answer.boxes
    ]


def _line(box: Box) -> str:
    return f"{box.label} ({box.score:.3f}) at {box.xmin:.0f}, {box.ymin:.0f} to {box.xmax:.0f}, {box.ymax:.0f}"


def _shown(answer: Boxes) -> str:
    sure = [_line(box) for box in answer.boxes if box.score >= SURE][:SHOWN]
    return "; ".join(sure) or "nothing"


SURE = 0.25
"""What a report tells of an answer in words has at least this score,"""
SHOWN = 20
"""and is no more boxes than this."""

TASK = Task(
    name=OBJECT_DETECTION,
    payloads=(ImagePayload,),
    answer=Boxes,
    takes="image files",
    doors=("/v1/images/detections",),
    open=lambda folder, signature, settings: Detector(folder, signature, settings.max_image_pixels),
    warm_up=gray,
    read_examples=lambda path, labels, signature: boxed_files(path, labels),
    metric=PRECISION,
    same=lambda one, other: None,
    shown=_shown,
    lines=lambda answer: [_line(box) for box in answer.boxes] or ["nothing found"],
    data=_data,
    to_json=lambda answer: {"boxes": _data(answer)},
    suffixes=IMAGES,
    of_file=ImagePayload,
    field="image",
    asks=("threshold", "top_k"),
    drawn=lambda payload, answer: with_boxes(payload.data, [b for b in answer.boxes if b.score >= SURE][:SHOWN]),
    oip=Bytes("image", (("detections", "BYTES"),), lambda answer: (json.dumps(_data(answer)).encode(),)),
)
