"""The kinds of problem, and how payloads of each become tensors and come back as answers.

Knows tasks, payloads and the Hugging Face files that describe a model's processor. Refuses to know engines, batching
and HTTP.

    payload --Processor.prepare--> tensors, tensors, …   (windows of a long recording: several)
    outputs, outputs, … --Processor.finish--> answer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from maasdam.core import (
    IMAGE_CLASSIFICATION,
    SPEECH_RECOGNITION,
    TASKS,
    TEXT_GENERATION,
    Answer,
    Example,
    Processor,
    Score,
    Signature,
)
from maasdam.errors import Unsupported
from maasdam.settings import Settings


def open_processor(task: str, folder: Path, signature: Signature | None, settings: Settings | None = None) -> Processor:
    """The processor that the files in `folder` describe, fitted to the engine's `signature`.

    `settings` bounds what is decoded (max_image_pixels, max_audio_seconds, max_tokens).
    Raises Unsupported (no such task), InvalidModel (files missing or wrong, or they don't fit the signature).
    """
    limits = settings or Settings()
    if task == IMAGE_CLASSIFICATION:
        from maasdam.tasks.images import ImageClassifier

        return ImageClassifier(folder, signature, limits.max_image_pixels)
    if task == SPEECH_RECOGNITION:
        from maasdam.tasks.speech import open_speech

        return open_speech(folder, signature, limits.max_audio_seconds)
    if task == TEXT_GENERATION:
        from maasdam.tasks.text import TextProcessor

        return TextProcessor(folder)
    raise Unsupported(f"no task '{task}'; the tasks are: {', '.join(TASKS)}")


def load_examples(
    task: str,
    path: Path,
    *,
    labels: Mapping[int, str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    signature: Signature | None = None,
) -> list[Example]:
    """Evaluation examples from a folder or file in Hugging Face's conventions; "tensors" is .npz of named arrays.

    `labels` are the model's (id to name): a label's text must be one of them. With `limit`, so many chosen by `seed`, in
    their own order. `signature` tells which tensors have no batch: a scalar, a state. `truth` is the label's id, the
    transcription, or None where the data has none.
    Raises InvalidInput: nothing there, another kind, unknown labels, files missing or outside the folder.
    """
    from maasdam.tasks.examples import read_examples

    return read_examples(task, Path(path), labels=labels, limit=limit, seed=seed, signature=signature)


def score(task: str, answers: Sequence[Answer], examples: Sequence[Example]) -> Score:
    """The task's metric over `answers` to `examples`, one to one: "top1" (0-1) or "wer" (0 up).

    Raises Unsupported for tasks without one here (text is scored by perplexity, from logits), InvalidInput without truths.
    """
    from maasdam.tasks.scoring import score_answers

    return score_answers(task, answers, examples)
