"""Audio classification: recording to features with the model's own extractor, scores to labels.

Knows recordings and labels. Refuses to know engines and HTTP.

A model that hears any length hears a long recording in windows, and the mean of what it says of them is its answer; one that
hears so much and no more hears the beginning, as its extractor cuts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maasdam.core import AUDIO_CLASSIFICATION, Answer, AudioPayload, Payload, Signature, Tensors, Units
from maasdam.errors import InvalidModel
from maasdam.tasks.classes import Classes, best_label, classification
from maasdam.tasks.examples import labelled_files
from maasdam.tasks.hearing import RECORDINGS, Hearing, Windows, quiet

if TYPE_CHECKING:
    from maasdam.core import type_array


class AudioClassifier:
    """The processor of one classifier. Thread-safe."""

    task = AUDIO_CLASSIFICATION

    def __init__(self, folder: Path, signature: Signature | None, max_seconds: float) -> None:
        if signature is None:
            raise InvalidModel("an audio classifier needs a signature: the names and shapes of its tensors")
        self._hear = Hearing(folder, signature, max_seconds, "an audio classifier")
        self._classes = Classes(folder, signature, "recording")

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """One input for each window, see `Hearing`. Raises InvalidPayload."""
        return self._hear(payload)

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """Scores or probabilities [1, N] of each window -> the `top_k` best labels. Raises EngineFailure for NaN."""
        assert isinstance(payload, AudioPayload)
        return self._classes.best(outputs, payload.top_k)

    def units(self, payload: Payload, prepared: Sequence[Tensors]) -> Units:
        """Seconds of sound, as heard."""
        assert isinstance(prepared, Windows)
        return Units(audio_seconds=prepared.seconds)


TASK = classification(
    name=AUDIO_CLASSIFICATION,
    payloads=(AudioPayload,),
    takes="audio files",
    doors=("/v1/audio/classifications",),
    open=lambda folder, signature, settings: AudioClassifier(folder, signature, settings.max_audio_seconds),
    warm_up=quiet,
    read_examples=lambda path, labels, signature: labelled_files(path, RECORDINGS, "recordings", labels),
    suffixes=RECORDINGS,
    of_file=lambda data, top_k: AudioPayload(data, top_k=top_k),
    field="audio",
    oip=best_label("audio"),
)
