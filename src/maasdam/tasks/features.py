"""Feature extraction: a text to a vector, pooled and normalised as the model's sentence-transformers folder says.

Knows texts, prompts and vectors. Refuses to know engines and HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import FEATURES, Answer, Payload, ReadPayload, Signature, Tensors, TensorSpec, Vector
from maasdam.errors import InvalidField, InvalidModel, InvalidPayload
from maasdam.tasks import ranking
from maasdam.tasks.examples import read_texts, text_in
from maasdam.tasks.files import read_json
from maasdam.tasks.reading import Reader, Words, units
from maasdam.tasks.scoring import NEIGHBOURS
from maasdam.tasks.sentences import Sentence, normalised
from maasdam.tasks.task import Task

if TYPE_CHECKING:
    from maasdam.core import type_array

PATH = "/v1/embeddings"
SETTINGS = "config_sentence_transformers.json"
ROLES = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""What texts are for, and what folders call the prompts for them. Of a folder without one the default stands before both."""
SHOWN = 8
"""Numbers of a vector that a terminal shows."""


class FeatureExtractor:
    """The processor of one embedding model. Thread-safe."""

    task = FEATURES

    def __init__(self, folder: Path, signature: Signature | None) -> None:
        self.reader = Reader(folder, signature, "an embedding model")
        assert signature is not None
        self._output, self._is_whole = _output(signature)
        self.longest, self.spell = self.reader.longest, self.reader.spell
        self._sentence = Sentence(folder)
        self._size = self._sentence.size(next(s.shape[-1] for s in signature.outputs if s.name == self._output), self._is_whole)
        self._nested = _nested(read_json(folder / "config.json"))
        settings = read_json(folder / SETTINGS)
        prompts = settings.get("prompts")
        self._prompts = {str(k): str(v) for k, v in prompts.items()} if isinstance(prompts, dict) else {}
        default = settings.get("default_prompt_name")
        self._default = self._prompts.get(str(default), "")
        self._lengths = {prompt: self._length(prompt) for prompt in {self._default, *self._prompts.values()}}

    def _length(self, prompt: str) -> int:
        """Tokens of a prompt with what stands before it: those that pooling may leave out."""
        if not prompt or self._sentence.includes_prompt:
            return 0
        of = self.reader.words(prompt.strip()).of
        return max((at + 1 for at, text in enumerate(of) if text is not None), default=0)

    def _prompt(self, payload: ReadPayload) -> str:
        if not isinstance(payload.text, str) or payload.role == "":
            return ""
        if payload.role is None:
            return self._default
        named = next((name for name in (payload.role, *ROLES.get(payload.role, ())) if name in self._prompts), None)
        if named is None and payload.role not in ROLES:
            has = ", ".join(self._prompts) or "none"
            raise InvalidField(f"'prompt_name' is {payload.role!r:.60}; this model's prompts are: {has}", "prompt_name")
        return self._default if named is None else self._prompts[named]

    def _check_dimensions(self, wanted: int | None) -> None:
        """Raise InvalidField unless the model was trained for so many first numbers to stand for a vector."""
        if wanted is None or wanted == self._size:
            return
        if self._nested is None:
            why = (
                f"this model's vectors have {self._size} numbers, and its config.json says of no fewer that they mean the same"
            )
            raise InvalidField(f"'dimensions' is {wanted}: {why}", "dimensions", "unsupported_parameter")
        if (self._nested and wanted not in self._nested) or (self._size is not None and wanted > self._size):
            may = ", ".join(map(str, self._nested)) or f"1 to {self._size}"
            raise InvalidField(f"'dimensions' is {wanted}; this model's vectors may have: {may}", "dimensions")

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """One text -> one row. Raises InvalidPayload, InputTooLong."""
        assert isinstance(payload, ReadPayload)
        if payload.beside is not None:
            raise InvalidPayload("an embedding model reads one text at a time")
        self._check_dimensions(payload.dimensions)
        if isinstance(payload.text, str):
            return self.reader.read(self._words(payload, payload.text))
        return self.reader.read(self.reader.ids(payload.text))

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """States of tokens [1, T, H], or the vector [1, D] of a model that pools itself -> a vector. Raises EngineFailure."""
        import numpy as np

        assert isinstance(payload, ReadPayload)
        found = outputs[0][self._output][0]
        if self._is_whole:
            vector = self._sentence.finished(np.asarray(found, dtype=np.float32))
        else:
            vector = self._sentence.pooled(found, self._lengths.get(self._prompt(payload), 0))
        if payload.dimensions is not None and payload.dimensions < len(vector):
            vector = vector[: payload.dimensions]
            vector = normalised(vector) if self._sentence.normalises else vector
        return Vector(vector, self._cut(payload, found))

    def _cut(self, payload: ReadPayload, found: type_array) -> int:
        """Tokens that were cut off."""
        if not payload.cuts or not isinstance(payload.text, str) or (not self._is_whole and len(found) != self.longest):
            return 0
        return self._words(payload, payload.text).cut

    def _words(self, payload: ReadPayload, text: str) -> Words:
        """Of a text behind its prompt, without the spaces around both: so sentence-transformers reads them."""
        return self.reader.words((self._prompt(payload) + text).strip(), cuts=payload.cuts)

    units = staticmethod(units)


def _nested(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """How short vectors may be cut where the model was trained for that, as config.json says it; () is any length."""
    sizes = config.get("matryoshka_dimensions")
    if isinstance(sizes, list) and sizes:
        return tuple(sorted(int(size) for size in sizes if isinstance(size, int)))
    return () if config.get("is_matryoshka") is True else None


def _output(signature: Signature) -> tuple[str, bool]:
    """The output that is pooled, and whether it is pooled already. Raises InvalidModel."""
    floats = [spec for spec in signature.outputs if spec.dtype.startswith("float")]

    def only(among: list[TensorSpec], *names: str) -> TensorSpec | None:
        return next((spec for name in names for spec in among if spec.name == name), among[0] if len(among) == 1 else None)

    states = only([spec for spec in floats if len(spec.shape) == 3], "last_hidden_state", "token_embeddings")
    if states is not None:
        return states.name, False
    whole = only([spec for spec in floats if len(spec.shape) == 2], "sentence_embedding")
    if whole is None:
        has = ", ".join(f"{spec.name} {spec.sizes}" for spec in signature.outputs)
        raise InvalidModel(f"an embedding model gives a vector a token, in one output of 3 axes; this model gives {has}")
    return whole.name, True


def numbers(answer: Vector) -> str:
    """The first of them, as a terminal shows them."""
    return " ".join(f"{x:.6g}" for x in answer.values[:SHOWN]) + (" …" if len(answer.values) > SHOWN else "")


def lines(answer: Vector) -> list[str]:
    """As a terminal shows it."""
    cut = " (the text was cut)" if answer.cut else ""
    return [f"{len(answer.values)} numbers: {numbers(answer)}{cut}"]


def to_json(answer: Vector) -> dict[str, Any]:
    """As a JSON object."""
    return {"embedding": answer.values.tolist(), "truncated": bool(answer.cut)}


def _read(path: Path, labels: Mapping[int, str] | None, signature: Signature | None) -> list[Any]:
    return [(name, ReadPayload(text_in(row, "text"), cuts=True), None) for name, row in read_texts(path, "text")]


TASK = Task(
    name=FEATURES,
    payloads=(ReadPayload,),
    answer=Vector,
    takes="texts",
    doors=(PATH, *ranking.DOORS),
    open=lambda folder, signature, settings: FeatureExtractor(folder, signature),
    warm_up=lambda signature: ReadPayload("a", cuts=True),
    read_examples=_read,
    metric=NEIGHBOURS,
    same=lambda one, other: None,
    shown=numbers,
    lines=lines,
    to_json=to_json,
    of_row=lambda row, top_k: ReadPayload(text_in(row, "text"), cuts=True),
)
