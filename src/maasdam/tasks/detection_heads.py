"""What detectors of transformers give, as boxes: scores of classes and boxes in shares of the picture, for each query.

Knows which families score how. Refuses to know pictures, labels and engines; a family it does not know is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from maasdam.core import Signature, Tensors
from maasdam.errors import EngineFailure, InvalidModel

if TYPE_CHECKING:
    from maasdam.core import type_array

ONE_OF = ("detr", "table-transformer", "yolos")
"""Families that choose one class of each query, or the last: none."""
EACH = {"conditional_detr": 100, "deformable_detr": 100, "dab-detr": 100, "rt_detr": None, "rt_detr_v2": None, "d_fine": None}
"""Families that score each class by itself, and how many (query, class) they keep; None: as many as queries."""
THRESHOLD = 0.5
"""As `post_process_object_detection` of transformers has it."""


class Candidates(NamedTuple):
    """What may be there: N boxes."""

    corners: type_array
    """[N, 4] float32: xmin, ymin, xmax, ymax in pixels of the upright picture."""
    scores: type_array
    """[N] float32, 0 to 1."""
    classes: type_array
    """[N] int64."""

    def above(self, threshold: float) -> Candidates:
        """Those with a higher score, the surest first. Raises EngineFailure for NaN."""
        import numpy as np

        if not (np.isfinite(self.corners).all() and np.isfinite(self.scores).all()):
            raise EngineFailure("the model's boxes of this picture are not finite")
        order = np.argsort(-self.scores, kind="stable")
        order = order[self.scores[order] > threshold]
        return Candidates(self.corners[order], self.scores[order], self.classes[order])


class Queries:
    """The head of one transformers model."""

    threshold = THRESHOLD

    def __init__(self, config: Mapping[str, Any], signature: Signature) -> None:
        kind = config.get("model_type")
        if kind not in ONE_OF and kind not in EACH:
            raise InvalidModel(
                f"how a '{kind}' model scores its boxes is not known here; known are {', '.join((*ONE_OF, *EACH))}, and any "
                "ONNX whose folder has a detection.json that says it"
            )
        names = [spec.name for spec in signature.outputs]
        if not {"logits", "pred_boxes"} <= set(names):
            raise InvalidModel(f"a detector gives logits and pred_boxes; this model gives {', '.join(names)}")
        self._kind = str(kind)

    def found(self, outputs: Tensors, width: int, height: int) -> Candidates:
        """logits [1, Q, C] and pred_boxes [1, Q, 4] (centre and size, shares) -> every candidate."""
        import numpy as np

        logits, boxes = (np.asarray(outputs[name][0], np.float32) for name in ("logits", "pred_boxes"))
        half = boxes[:, 2:] * np.float32(0.5)
        corners = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
        corners *= np.array([width, height, width, height], np.float32)
        if self._kind in ONE_OF:
            powers = np.exp(logits - logits.max(-1, keepdims=True))
            chances = (powers / powers.sum(-1, keepdims=True))[:, :-1]
            return Candidates(corners, chances.max(-1), chances.argmax(-1))
        with np.errstate(over="ignore"):
            flat = (1 / (1 + np.exp(-logits))).reshape(-1)
        kept = np.argsort(-flat, kind="stable")[: EACH[self._kind] or len(logits)]
        return Candidates(corners[kept // logits.shape[1]], flat[kept], kept % logits.shape[1])
