"""What was found in a picture, drawn on it. Knows Pillow's pens; never models or pages."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from maasdam.core import Box
from maasdam.tasks.pictures import ANY_SIZE, decode_image

if TYPE_CHECKING:
    from PIL.Image import Image

EDGE = 480
"""Pixels along the longer side of what is drawn."""
QUALITY = 80
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#f032e6", "#808000", "#000075")


def with_boxes(data: bytes, boxes: Sequence[Box]) -> bytes:
    """The picture, made smaller, with a frame and a label for each box; JPEG."""
    from PIL import ImageDraw

    image, scale = _page(data)
    pen = ImageDraw.Draw(image)
    for box in reversed(boxes):  # the surest on top
        colour, places = COLOURS[box.label_id % len(COLOURS)], [side * scale for side in box[3:]]
        left, right = sorted((places[0], places[2]))
        upper, lower = sorted((places[1], places[3]))
        pen.rectangle((left, upper, right, lower), outline=colour, width=2)
        words = f"{box.label} {box.score:.2f}"[:40]
        at = (max(0, left), max(0, upper - 11))
        pen.rectangle(pen.textbbox(at, words), fill=colour)
        pen.text(at, words, fill="white")
    return _jpeg(image)


def _page(data: bytes) -> tuple[Image, float]:
    image = decode_image(data, ANY_SIZE)
    scale = min(1.0, EDGE / max(image.size))
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale)))), scale


def _jpeg(image: Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
