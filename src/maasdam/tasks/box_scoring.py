"""How good boxes are: against truths as COCO counts, or against the source's where nobody says what is right.

Knows boxes, folders of pictures with boxes as Hugging Face lays them out, and overlap. Refuses to know models.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import Box, Boxes, Example, ImagePayload, Score
from maasdam.errors import InvalidInput
from maasdam.tasks.declared_heads import overlaps
from maasdam.tasks.examples import Row, listed_files
from maasdam.tasks.labels import LabelIds
from maasdam.tasks.pixels import IMAGES
from maasdam.tasks.task import Metric, RawExample

if TYPE_CHECKING:
    from maasdam.core import type_array

THRESHOLD = 0.001
"""Boxes are scored down to this score, as is usual: a threshold of use would cut the curve off."""
MOST = 100
"""The surest boxes of a picture that count, as COCO has it."""
LEVELS = tuple(0.5 + 0.45 / 9 * i for i in range(10))
"""Least overlaps at which a box counts as found; the metric is the mean over them."""
RECALLS = 101
"""Places of the curve of precision over recall whose mean is a class's average precision."""


def boxed_files(path: Path, labels: Mapping[int, str] | None) -> list[RawExample]:
    """Pictures with the boxes that metadata.jsonl says are in them, else None: {"file_name", "objects": {"bbox": [[x, y,
    width, height], …], "categories": [label or its number, …]}}. Raises InvalidInput.
    """
    files = listed_files(path, IMAGES, "images come in a folder, with metadata.jsonl where their boxes are known")
    ids = LabelIds(labels)

    def payload(file: Path) -> ImagePayload:
        return ImagePayload(file.read_bytes(), MOST, threshold=THRESHOLD)

    return [
        (name, payload(file), None if row is None else _truth(row, ids, labels or {}, where))
        for name, file, row, where in files
    ]


def _truth(row: Row, ids: LabelIds, labels: Mapping[int, str], where: str) -> Boxes | None:
    objects = row.get("objects")
    if objects is None:
        return None
    boxes = objects.get("bbox") if isinstance(objects, Mapping) else None
    classes = (objects.get("categories", objects.get("category"))) if isinstance(objects, Mapping) else None
    if not isinstance(boxes, list) or not isinstance(classes, list) or len(boxes) != len(classes):
        raise InvalidInput(f"{where}: objects must hold 'bbox' and 'categories', two lists of one length")
    return Boxes(tuple(_true_box(box, kind, ids, labels, where) for box, kind in zip(boxes, classes, strict=True)))


def _true_box(box: Any, kind: Any, ids: LabelIds, labels: Mapping[int, str], where: str) -> Box:
    is_box = isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) and math.isfinite(x) for x in box)
    if not is_box or box[2] <= 0 or box[3] <= 0:
        raise InvalidInput(f"{where}: a box is {box!r:.60}; it is [x, y, width, height] in pixels, with an area")
    number = ids.of_row({"label" if isinstance(kind, str) else "label_id": kind}, where)
    if number is None:
        raise InvalidInput(f"{where}: a category is {kind!r}; it is a label of the model, or its number")
    x, y, width, height = box
    return Box(labels.get(number, str(number)), number, 1.0, x, y, x + width, y + height)


def _precision(answers: Sequence[Boxes], examples: Sequence[Example]) -> Score:
    """Mean average precision over LEVELS and the classes that are there, as COCO counts it (all areas, 100 boxes a picture)."""
    import numpy as np

    total: dict[int, int] = defaultdict(int)
    found: dict[int, list[tuple[float, type_array]]] = defaultdict(list)
    for answer, example in zip(answers, examples, strict=True):
        for box in example.truth.boxes:
            total[box.label_id] += 1
        for kind, score, hits in _hits(answer.boxes[:MOST], example.truth.boxes):
            found[kind].append((score, hits))
    if not total:
        raise InvalidInput("none of the pictures has a box in its truth; average precision needs some")
    table = np.stack([_average(found[kind], count) for kind, count in total.items()])
    extra = {"map50": float(table[:, 0].mean()), "map75": float(table[:, 5].mean()), "classes": float(len(total))}
    return Score("map", float(table.mean()), len(examples), extra)


def _hits(found: Sequence[Box], truths: Sequence[Box]) -> Iterator[tuple[int, float, type_array]]:
    """Of each box found, the surest first: its class, its score, and at which of LEVELS it hits a truth that is free yet."""
    import numpy as np

    levels, kinds = np.array(LEVELS), {t.label_id for t in truths}
    by_class = {kind: [t for t in truths if t.label_id == kind] for kind in kinds}
    taken = {kind: np.zeros((len(LEVELS), len(them)), bool) for kind, them in by_class.items()}
    for box in sorted(found, key=lambda b: -b.score):
        hits = np.zeros(len(LEVELS), bool)
        if box.label_id in by_class:
            over = overlaps(np.array(box[3:]), np.array([t[3:] for t in by_class[box.label_id]]))
            free = np.where(taken[box.label_id], -1.0, over[None])
            best = free.argmax(1)
            hits = free[np.arange(len(levels)), best] >= np.minimum(levels, 1 - 1e-10)
            taken[box.label_id][hits.nonzero()[0], best[hits]] = True
        yield box.label_id, box.score, hits


def _average(found: list[tuple[float, type_array]], count: int) -> type_array:
    """[LEVELS] average precision of one class that is there `count` times."""
    import numpy as np

    if not found:
        return np.zeros(len(LEVELS))
    order = np.argsort([-score for score, _ in found], kind="stable")
    right = np.cumsum(np.stack([found[i][1] for i in order]), axis=0).astype(float)
    precision = right / np.arange(1, len(order) + 1)[:, None]
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    places = np.linspace(0, 1, RECALLS)
    out = np.zeros(len(LEVELS))
    for level in range(len(LEVELS)):
        at = np.searchsorted(right[:, level] / count, places, side="left")
        out[level] = np.where(at < len(order), precision[np.minimum(at, len(order) - 1), level], 0.0).mean()
    return out


def _overlap(answers: Sequence[Boxes], truths: Sequence[Boxes], examples: Sequence[Example]) -> Score | None:
    """How much of what the source finds is found where it finds it. Every box weighs its score, so that one at a threshold's
    edge, or a crowd of faint ones, tells little: of two that belong together the overlap times the lower score counts for the
    higher one, and one that stands alone counts against. None where nothing is found in any picture.
    """
    shares = [_shared(answer.boxes, truth.boxes) for answer, truth in zip(answers, truths, strict=True)]
    both, all_ = (sum(column) for column in zip(*shares, strict=True))
    if not all_:
        return None
    empty = sum(not truth.boxes for truth in truths)
    return Score("box_overlap", both / all_, len(examples), {"pictures_without": float(empty)}, tuple(shares))


def _shared(found: Sequence[Box], truths: Sequence[Box]) -> tuple[float, float]:
    """Pairs of one class, those that overlap most first."""
    import numpy as np

    if not found or not truths:
        return 0.0, float(sum(box.score for box in (*found, *truths)))
    over = np.stack([overlaps(np.array(box[3:], float), np.array([t[3:] for t in truths], float)) for box in found])
    over *= np.array([[box.label_id == truth.label_id for truth in truths] for box in found])
    both = all_ = 0.0
    rows, columns = set(range(len(found))), set(range(len(truths)))
    for flat in np.argsort(-over, axis=None, kind="stable"):
        row, column = divmod(int(flat), len(truths))
        if over[row, column] <= 0:
            break
        if row in rows and column in columns:
            rows.remove(row)
            columns.remove(column)
            low, high = sorted((found[row].score, truths[column].score))
            both, all_ = both + float(over[row, column]) * low, all_ + high
    return both, all_ + sum(found[i].score for i in rows) + sum(truths[i].score for i in columns)


PRECISION = Metric("map", None, "Mean average precision (COCO)", most=1.0, score=_precision, beside=_overlap)
OVERLAP = Metric("box_overlap", None, "Overlap of boxes with the source's", most=1.0)
