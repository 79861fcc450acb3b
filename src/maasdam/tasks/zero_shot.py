"""Zero-shot image classification: which of a caller's labels a picture shows, by a model that reads texts and sees pictures.

Knows pictures, labels and vectors. Refuses to know engines and HTTP.

    picture, texts of the labels --one row--> vector of the picture, vectors of the texts --likeness--> scores

One row has a picture [C, H, W] and several texts [L, T], so that labels are read beside the picture that they are asked of. The
vectors of a set of labels are kept: asked again, only the picture is seen, beside one short text that nobody asks about.
A picture, or a text, alone gives its vector, of length 1: those of both can be compared.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import (
    ZERO_SHOT_IMAGES,
    Answer,
    Classification,
    ImagePayload,
    Payload,
    ReadPayload,
    Signature,
    Tensors,
    TensorSpec,
    Units,
    Vector,
)
from maasdam.errors import EngineFailure, InputTooLong, InvalidField, InvalidModel
from maasdam.tasks import features
from maasdam.tasks.classes import best_of, classification, lines, shown, to_json
from maasdam.tasks.examples import labelled_files, labels_in, text_in
from maasdam.tasks.files import LIKENESS, read_json
from maasdam.tasks.pixels import IMAGES, Pixels, gray
from maasdam.tasks.reading import Reader
from maasdam.tasks.task import RawExample

if TYPE_CHECKING:
    from maasdam.core import type_array

TEMPLATE = "This is a photo of {}."
"""What transformers reads for a label."""
KEPT_BYTES = 64 * 1024 * 1024
KEPT_SECONDS = 900.0
"""What was asked about that lately may be in the middle of a request, and is not dropped."""
IMAGE_VECTOR, TEXT_VECTORS = "image_embeds", "text_embeds"
"""Outputs: [1, D] and [1, L, D], of length 1."""


class Matcher:
    """The processor of one model of pictures and texts. Thread-safe."""

    task = ZERO_SHOT_IMAGES

    def __init__(self, folder: Path, signature: Signature | None, max_pixels: int) -> None:
        self._picture, self._texts = _inputs(signature)
        self._see = Pixels(folder, self._picture, max_pixels)
        inner = Signature((TensorSpec("input_ids", self._texts.dtype, (None, None)),), ())
        self._reader = Reader(folder, inner, "a model of pictures and texts")
        self.spell = self._reader.spell
        config = read_json(folder / "config.json")
        self._is_one_of = "siglip" not in str(config.get("model_type"))
        most = config.get("text_config")
        most = most.get("max_position_embeddings", 77) if isinstance(most, dict) else 77
        self.longest: int | None = min(self._reader.longest or most, self._texts.shape[2] or most)
        self._reader.longest = self.longest
        self._pad = int(self._reader.tokenizer.pad_token_id or 0)
        self._scale, self._shift = _likeness(folder)
        self._kept = Kept(KEPT_BYTES)

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """One picture or text -> one row. Raises InvalidPayload, InvalidField."""
        import numpy as np

        if isinstance(payload, ReadPayload):
            if payload.role or payload.dimensions is not None:
                name = "dimensions" if payload.dimensions is not None else "prompt_name"
                raise InvalidField(f"'{name}' means nothing to this model; leave it out", name, "unsupported_parameter")
            shape = [size or 224 if axis else 1 for axis, size in enumerate(self._picture.shape)]
            return [self._row(np.zeros(shape, self._picture.dtype), [self._reader.of(payload).ids])]
        assert isinstance(payload, ImagePayload)
        texts = [""]
        if payload.labels is not None:
            asked = self._read(payload)
            texts = asked if len(asked) == 1 or self._kept.get(tuple(asked)) is None else texts
        read = [self._tokens(i, text) for i, text in enumerate(texts)]
        return [self._row(self._see(payload), read)]

    def _row(self, pixels: type_array, read: list[list[int]]) -> dict[str, type_array]:
        import numpy as np

        width = self._texts.shape[2] or max(len(ids) for ids in read)
        # what follows the end of a text is not seen by it (CLIP), or was so in training (SigLIP)
        padded = [ids + [self._pad] * (width - len(ids)) for ids in read]
        return {self._picture.name: pixels, self._texts.name: np.array([padded], dtype=self._texts.dtype)}

    def _tokens(self, number: int, text: str) -> list[int]:
        try:
            ids = self._reader.words(text).ids
        except InputTooLong as error:
            raise InvalidField(f"'labels[{number}]' is too long: {error}", f"labels[{number}]") from error
        return ids or [self._pad]

    def _read(self, payload: ImagePayload) -> list[str]:
        """What is read for the labels. Raises InvalidField."""
        if not payload.labels:
            raise InvalidField("'labels' is missing: this model tells what you name apart; send a list of labels", "labels")
        template = TEMPLATE if payload.template is None else payload.template
        if template.count("{}") != 1:
            name = "hypothesis_template"
            raise InvalidField(f"'{name}' is {template!r:.80}; send a text with one {{}}, where the label goes", name)
        return [template.replace("{}", label) for label in payload.labels]

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """Vectors -> the `top_k` best of the labels, or the vector that was asked for. Raises EngineFailure for NaN."""
        import numpy as np

        (found,) = outputs
        pictures, texts = (np.asarray(found[name], dtype=np.float32) for name in (IMAGE_VECTOR, TEXT_VECTORS))
        if isinstance(payload, ReadPayload):
            is_text = payload.cuts and isinstance(payload.text, str)
            return _vector(texts[0, 0], self._reader.of(payload).cut if is_text else 0)
        assert isinstance(payload, ImagePayload)
        if payload.labels is None:
            return _vector(pictures[0])
        asked = tuple(self._read(payload))
        if len(asked) == 1 or texts.shape[1] == len(asked):
            vectors = texts[0]
            self._kept.put(asked, vectors)
        else:
            kept = self._kept.get(asked)
            if kept is None:
                raise EngineFailure("the vectors of these labels were dropped while the picture waited; send it again")
            vectors = kept
        likeness = self._scale * (vectors.astype(np.float64) @ pictures[0].astype(np.float64)) + self._shift
        if not np.isfinite(likeness).all():
            raise EngineFailure("the model's likeness of this picture with the labels is not finite")
        return best_of(likeness, dict(enumerate(payload.labels)), payload.top_k, self._is_one_of)

    def units(self, payload: Payload, prepared: Sequence[Tensors]) -> Units:
        """One picture is one item; of a text its tokens."""
        return Units(
            items=1, prompt_tokens=prepared[0][self._texts.name].shape[2] if isinstance(payload, ReadPayload) else None
        )


class Kept:
    """Vectors of sets of labels, the newest so many bytes of them. Thread-safe.

    One that was asked for in the last KEPT_SECONDS is never dropped: a full one takes nothing new instead.
    """

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._lock = threading.Lock()
        self._vectors: OrderedDict[tuple[str, ...], tuple[type_array, float]] = OrderedDict()

    def get(self, texts: tuple[str, ...]) -> type_array | None:
        """Those of a set; None where they are not kept."""
        with self._lock:
            found = self._vectors.get(texts)
            if found is None:
                return None
            self._vectors[texts] = found[0], time.monotonic()
            self._vectors.move_to_end(texts)
            return found[0]

    def put(self, texts: tuple[str, ...], vectors: type_array) -> None:
        """Keep [L, D] of a set, where there is room."""
        with self._lock:
            if texts in self._vectors:
                return
            size = _size(texts, vectors)
            while self._vectors and self._held + size > self._most:
                oldest, (old, used) = next(iter(self._vectors.items()))
                if time.monotonic() - used < KEPT_SECONDS:
                    return
                del self._vectors[oldest]
                self._held -= _size(oldest, old)
            if self._held + size <= self._most:
                self._vectors[texts] = vectors.copy(), time.monotonic()
                self._held += size


def _size(texts: tuple[str, ...], vectors: type_array) -> int:
    return int(vectors.nbytes) + sum(100 + 4 * len(text) for text in texts)


def _inputs(signature: Signature | None) -> tuple[TensorSpec, TensorSpec]:
    """Of pictures and of texts. Raises InvalidModel."""
    if signature is None:
        raise InvalidModel("a model of pictures and texts needs a signature: the names and shapes of its tensors")
    pictures = [spec for spec in signature.inputs if len(spec.shape) == 4]
    texts = [spec for spec in signature.inputs if spec.name == "input_ids" and len(spec.shape) == 3]
    lacking = {IMAGE_VECTOR, TEXT_VECTORS} - {spec.name for spec in signature.outputs}
    if len(signature.inputs) != 2 or len(pictures) != 1 or len(texts) != 1 or lacking:
        has = ", ".join(f"{spec.name} {spec.sizes}" for spec in (*signature.inputs, *signature.outputs))
        raise InvalidModel(
            "a model of pictures and texts takes pixel_values [?, C, H, W] and input_ids [?, labels, tokens], and gives "
            f"{IMAGE_VECTOR} and {TEXT_VECTORS}; this model has {has}: build it from its Hugging Face folder"
        )
    return pictures[0], texts[0]


def _likeness(folder: Path) -> tuple[float, float]:
    """What likenesses are multiplied by, and what is added. Raises InvalidModel."""
    held = read_json(folder / LIKENESS)
    try:
        return float(held["scale"]), float(held["shift"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidModel(
            f"the model has no {LIKENESS} with scale and shift; build it from its Hugging Face folder"
        ) from error


def _vector(values: type_array, cut: int = 0) -> Vector:
    import numpy as np

    if not np.isfinite(values).all():
        raise EngineFailure("the model's vector is not finite")
    return Vector(np.ascontiguousarray(values), cut)


def _examples(path: Path, labels: Mapping[int, str] | None, signature: Signature | None) -> list[RawExample]:
    """Pictures with the labels that the data has: which of them each shows is the question."""
    named = labels_in(path, IMAGES)
    choice = tuple(name.replace("_", " ") for name in named.values()) or None

    def example(file: Any) -> ImagePayload:
        return ImagePayload(file.read_bytes(), labels=choice)

    rows = labelled_files(path, IMAGES, "images", named, is_labelled=choice is not None)
    return [(name, partial(example, file), truth) for name, file, truth in rows]


def _of_row(row: Mapping[str, Any], top_k: int) -> ReadPayload:
    return ReadPayload(text_in(row, "text"))


def _same(one: Answer, other: Answer) -> bool | None:
    if isinstance(one, Classification) and isinstance(other, Classification):
        return one.labels[0].label_id == other.labels[0].label_id
    return None


TASK = classification(
    name=ZERO_SHOT_IMAGES,
    payloads=(ImagePayload, ReadPayload),
    takes="image files, and labels to choose from",
    doors=("/v1/images/classifications", features.PATH),
    open=lambda folder, signature, settings: Matcher(folder, signature, settings.max_image_pixels),
    warm_up=gray,
    read_examples=_examples,
    suffixes=IMAGES,
    of_file=ImagePayload,
    of_row=_of_row,
    field="image",
    same=_same,
    shown=lambda answer: shown(answer) if isinstance(answer, Classification) else features.numbers(answer),
    lines=lambda answer: lines(answer) if isinstance(answer, Classification) else features.lines(answer),
    to_json=lambda answer: to_json(answer) if isinstance(answer, Classification) else features.to_json(answer),
    loss=None,
)
