"""Detectors that only their exporter knows, as `detection.json` beside the model says: YOLO's kin. Nothing is guessed.

Knows that file, how pictures come to fit the model, and how boxes come back. Refuses to know engines and labels' meaning.

    picture --fit--> [1, C, H, W] --engine--> rows of numbers --layout, boxes, strides--> candidates --overlaps away--> boxes
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import Signature, Tensors, TensorSpec
from maasdam.errors import InvalidModel
from maasdam.tasks.detection_heads import Candidates
from maasdam.tasks.files import DECLARED as FILE
from maasdam.tasks.files import read_json
from maasdam.tasks.pixels import MAX_EDGE, channel_axis, only_picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from maasdam.core import type_array

LAYOUTS = {"4+C,N": 4, "N,4+C": 4, "N,5+C": 5, "N,6": 6}
"""How an output is laid out behind its batch -> the numbers before those of the classes: a box, then whether there is a thing;
"N,6" is a box, its score and its class, of a model that has taken overlaps away itself."""
_WORDS = {
    "layout": (*LAYOUTS,),
    "boxes": ("cxcywh", "xyxy"),
    "units": ("pixels", "shares"),
    "resize": ("letterbox", "letterbox-corner", "stretch"),
    "channels": ("RGB", "BGR"),
}
_NEEDED = (*_WORDS, "labels", "scale", "threshold")
_KNOWN = (*_NEEDED, "overlap", "output", "strides", "pad", "size", "mean", "std")
PAD = 114
"""What YOLO's kin put beside a picture."""
MOST_CANDIDATES = 30_000
"""The surest are looked through for overlaps."""
MOST_KEPT = 300


@dataclass(frozen=True, slots=True)
class Fitted:
    """How a picture lies in what the model sees: pixels there = pixels of the picture x `scale` + `left`, `top`."""

    width: int
    height: int
    """Of the picture as it lies there."""
    left: int
    top: int
    scale_x: float
    scale_y: float


class DeclaredHead:
    """One `detection.json`, checked against the model's signature."""

    def __init__(self, folder: Path, signature: Signature) -> None:
        """Raises InvalidModel naming the field that is missing, wrong, or does not fit."""
        said = read_json(folder / FILE)
        _check(said)
        self.labels = {i: str(name) for i, name in enumerate(said["labels"])}
        self.threshold = float(said["threshold"])
        self._layout, self._corners, self._units = said["layout"], said["boxes"] == "xyxy", said["units"]
        self._resize, self._is_bgr = said["resize"], said["channels"] == "BGR"
        self._strides, self._overlap = said.get("strides"), said.get("overlap")
        self._scale, self._pad = float(said["scale"]), int(said.get("pad", PAD))
        self._input = only_picture(signature, "a detector")
        self._is_last, _ = channel_axis(self._input)
        self._mean, self._std = said.get("mean", 0.0), said.get("std", 1.0)
        self._height, self._width = self._size(said.get("size"))
        self._output = self._output_of(said.get("output"), signature)

    def _size(self, said: Any) -> tuple[int, int]:
        shape = self._input.shape[1:3] if self._is_last else self._input.shape[2:]
        wanted = said or [None, None]
        sizes = [own or other for own, other in zip(shape, wanted, strict=True)]
        if any(own and other and own != other for own, other in zip(shape, wanted, strict=True)):
            raise InvalidModel(f"{FILE}: size is {said}, and the model takes {self._input.sizes}")
        if not all(isinstance(size, int) and 0 < size <= MAX_EDGE for size in sizes):
            raise InvalidModel(f"{FILE}: the model takes any size; say 'size': [height, width], up to {MAX_EDGE:,} pixels")
        return sizes[0], sizes[1]

    def _output_of(self, named: Any, signature: Signature) -> str:
        outputs = {spec.name: spec for spec in signature.outputs}
        if named is None and len(outputs) != 1:
            raise InvalidModel(f"{FILE}: the model has outputs {', '.join(outputs)}; say which as 'output'")
        spec = outputs.get(str(named)) if named is not None else signature.outputs[0]
        if spec is None:
            raise InvalidModel(f"{FILE}: output is '{named}'; the model has {', '.join(outputs)}")
        self._check_shape(spec)
        return spec.name

    def _check_shape(self, spec: TensorSpec) -> None:
        before = LAYOUTS[self._layout]
        numbers = before if self._layout == "N,6" else before + len(self.labels)
        place = 1 if self._layout == "4+C,N" else 2
        if len(spec.shape) != 3 or spec.shape[place] not in (None, numbers):
            raise InvalidModel(
                f"{FILE}: layout '{self._layout}' with {len(self.labels)} labels is {numbers} numbers a box at axis {place} of "
                f"3, and output '{spec.name}' has shape {spec.sizes}"
            )

    def prepare(self, image: Image) -> dict[str, type_array]:
        """An RGB picture -> the one input, [1, 3, H, W] or [1, H, W, 3]."""
        import numpy as np

        at = self._fit(*image.size)
        seen = np.full((self._height, self._width, 3), self._pad, np.uint8)
        pixels: type_array = resized(np.asarray(image), at.width, at.height)
        seen[at.top : at.top + at.height, at.left : at.left + at.width] = pixels
        numbers: type_array = (seen[..., ::-1] if self._is_bgr else seen).astype(np.float32) * np.float32(self._scale)
        numbers = (numbers - np.asarray(self._mean, np.float32)) / np.asarray(self._std, np.float32)
        made = numbers[None] if self._is_last else numbers.transpose(2, 0, 1)[None]
        return {self._input.name: np.ascontiguousarray(made, dtype=self._input.dtype)}

    def _fit(self, width: int, height: int) -> Fitted:
        """As YOLO's own programs have it, to the pixel."""
        if self._resize == "stretch":
            return Fitted(self._width, self._height, 0, 0, self._width / width, self._height / height)
        scale = min(self._height / height, self._width / width)
        if self._resize == "letterbox-corner":
            return Fitted(max(1, int(width * scale)), max(1, int(height * scale)), 0, 0, scale, scale)
        wide, high = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = round((self._width - wide) / 2 - 0.1), round((self._height - high) / 2 - 0.1)
        return Fitted(wide, high, left, top, scale, scale)

    def found(self, outputs: Tensors, width: int, height: int) -> Candidates:
        """Every candidate, overlaps taken away where the model has not; `width`, `height`: of the upright picture."""
        import numpy as np

        rows = np.asarray(outputs[self._output], np.float32)[0]
        if self._layout == "4+C,N":
            rows = rows.T
        before = LAYOUTS[self._layout]
        if self._layout == "N,6":
            scores, classes = rows[:, 4], rows[:, 5].astype(np.int64)
        else:
            scores, classes = rows[:, before:].max(1), rows[:, before:].argmax(1)
            scores = scores * rows[:, 4] if before == 5 else scores
        boxes = self._on_grid(rows[:, :4]) if self._strides else rows[:, :4]
        if not self._corners:
            half = boxes[:, 2:] / 2
            boxes = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
        at, twice = self._fit(width, height), partial(np.tile, reps=2)
        boxes = boxes * twice(np.array([self._width, self._height], np.float32)) if self._units == "shares" else boxes
        boxes = (boxes - twice(np.array([at.left, at.top], np.float32))) / twice(np.array([at.scale_x, at.scale_y], np.float32))
        inside = np.clip(boxes, 0, twice(np.array([width, height], np.float32)))
        is_box = (classes >= 0) & (classes < len(self.labels))  # rows that stand for nothing have class -1
        return Candidates(np.where(np.isfinite(boxes), inside, boxes)[is_box], scores[is_box], classes[is_box])

    def apart(self, found: Candidates) -> Candidates:
        """Without those that overlap a surer one of their class; `found` is in order."""
        import numpy as np

        if self._overlap is None:
            return found
        keep: list[int] = []
        left = np.arange(min(len(found.scores), MOST_CANDIDATES))
        while len(left) and len(keep) < MOST_KEPT:
            best, others = left[0], left[1:]
            keep.append(int(best))
            is_rival = found.classes[others] == found.classes[best]
            over = overlaps(found.corners[best], found.corners[others]) > self._overlap
            left = others[~(is_rival & over)]
        return Candidates(*(part[keep] for part in found))

    def _on_grid(self, rows: type_array) -> type_array:
        """YOLOX's boxes: from cells of grids, one a stride, to centres and sizes in pixels."""
        import numpy as np

        cells, steps = [], []
        for stride in self._strides or ():
            down, across = np.meshgrid(np.arange(self._height // stride), np.arange(self._width // stride), indexing="ij")
            cells.append(np.stack([across.ravel(), down.ravel()], axis=1))
            steps.append(np.full((down.size, 1), stride))
        grid, step = np.concatenate(cells).astype(np.float32), np.concatenate(steps).astype(np.float32)
        if len(grid) != len(rows):
            raise InvalidModel(f"{FILE}: strides {self._strides} make {len(grid)} cells, and the model gives {len(rows)} boxes")
        with np.errstate(over="ignore"):
            return np.concatenate([(rows[:, :2] + grid) * step, np.exp(rows[:, 2:]) * step], axis=1)


def overlaps(one: type_array, others: type_array) -> type_array:
    """Intersection over union of a box with each of [N, 4]; 0 where both have no area."""
    import numpy as np

    sides = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    both = np.prod(np.clip(sides, 0, None), axis=1)
    areas = np.prod(one[2:] - one[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - both
    return np.asarray(both / np.maximum(areas, 1e-9))


def resized(pixels: type_array, width: int, height: int) -> type_array:
    """[H, W, 3] uint8 to another size, between the two nearest pixels each way, as OpenCV's INTER_LINEAR has it."""
    import numpy as np

    if pixels.shape[:2] == (height, width):
        return pixels
    rows, row_share = _between(pixels.shape[0], height)
    columns, share = _between(pixels.shape[1], width)
    upper, lower = (pixels[r].astype(np.float32) for r in rows)
    sides = [side[:, columns[0]] * (1 - share)[:, None] + side[:, columns[1]] * share[:, None] for side in (upper, lower)]
    mixed = sides[0] * (1 - row_share)[:, None, None] + sides[1] * row_share[:, None, None]
    return np.asarray(np.rint(mixed)).astype(np.uint8)


def _between(old: int, new: int) -> tuple[tuple[type_array, type_array], type_array]:
    """Of each new place the two old ones it lies between, and the second's share."""
    import numpy as np

    at = np.clip((np.arange(new, dtype=np.float64) + 0.5) * (old / new) - 0.5, 0, old - 1)
    first = np.floor(at).astype(np.int64)
    return (first, np.minimum(first + 1, old - 1)), (at - first).astype(np.float32)


def _check(said: dict[str, Any]) -> None:
    """Raise InvalidModel for fields that are unknown, missing, or of another kind."""
    unknown, missing = [key for key in said if key not in _KNOWN], [key for key in _NEEDED if key not in said]
    if unknown:
        raise InvalidModel(f"{FILE} has '{unknown[0]}', which is not known; it takes {', '.join(_KNOWN)}")
    if missing:
        raise InvalidModel(f"{FILE} does not say '{missing[0]}'; it needs {', '.join(_NEEDED)}")
    for key, words in _WORDS.items():
        if said[key] not in words:
            raise InvalidModel(f"{FILE}: {key} is {said[key]!r:.60}; it is one of {', '.join(words)}")
    if (said["layout"] == "N,6") != (said.get("overlap") is None):
        raise InvalidModel(
            f"{FILE}: say 'overlap' (0-1) unless the layout is 'N,6', of a model that takes overlaps away itself"
        )
    labels = said["labels"]
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise InvalidModel(f"{FILE}: labels must be a list of names, in the order of the model's classes")
    numbers = {"scale": (0, 1e9), "threshold": (0, 1), "overlap": (0, 1), "pad": (0, 255)}
    for key, (least, most) in numbers.items():
        if said.get(key) is not None and not (_is_number(said[key]) and least <= said[key] <= most):
            raise InvalidModel(f"{FILE}: {key} is {said[key]!r:.40}; it is a number from {least:g} to {most:g}")
    for key, count in (("mean", 3), ("std", 3), ("size", 2)):
        if key in said and not _is_list(said[key], count):
            raise InvalidModel(f"{FILE}: {key} must be a list of {count} numbers")
    if 0 in said.get("std", ()):
        raise InvalidModel(f"{FILE}: std holds 0, by which nothing can be divided")
    strides = said.get("strides")
    if strides is not None and not (isinstance(strides, list) and strides and all(type(s) is int and s > 0 for s in strides)):
        raise InvalidModel(f"{FILE}: strides must be a list of whole numbers, as [8, 16, 32]")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(map(_is_number, value))
