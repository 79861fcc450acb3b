"""Does a stateful OpenVINO language model give transformers' logits? Knows both; refuses to know how it was made.

Scored whole (one call) and in steps (the cache at work), alone and in a batch with a padded neighbour. What does not
agree is not handed out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.convert.networks import context_of, windows_of
from maasdam.errors import Unsupported

if TYPE_CHECKING:
    from maasdam.core import type_array

RELATIVE_TOLERANCE = 1e-4
"""Of the largest logit. Float32 in another order of summation stays under 1e-5 (fourteen architectures, measured)."""
LENGTHS = (33, 7)
BEYOND = 9
"""Tokens beyond a window that a text has which shows it."""
AT_ONCE = 512
"""Tokens of one call, of a text that is longer than a window."""


class StatefulScorer:
    """An OpenVINO language model at float32, fed token by token or whole."""

    def __init__(self, model_file: Path) -> None:
        import openvino as ov

        properties = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        compiled = ov.Core().compile_model(model_file, "CPU", properties)
        self._request = compiled.create_infer_request()
        self._takes = {name for port in compiled.inputs for name in port.get_names()}

    def logits(
        self, ids: type_array, steps: tuple[int, ...], mask: type_array | None = None, last: int | None = None
    ) -> type_array:
        """ids [B, T] -> logits [B, T, V], or of the `last` tokens; `steps`: lengths of the calls the sequence is cut into."""
        self._request.reset_state()
        mask = np.ones(ids.shape, np.int64) if mask is None else mask
        positions = np.maximum(mask.cumsum(1) - 1, 0)
        found, start = [], 0
        for step in steps:
            end = start + step
            given = {
                "input_ids": ids[:, start:end],
                "attention_mask": mask[:, :end],
                "position_ids": positions[:, start:end],
                "beam_idx": np.arange(len(ids), dtype=np.int32),
            }
            self._request.infer({k: np.ascontiguousarray(v) for k, v in given.items() if k in self._takes})
            if last is None or end > ids.shape[1] - last:
                found.append(self._request.get_tensor("logits").data.copy())
            start = end
        return np.concatenate(found, axis=1)[:, -(last or 0) :]


def vocabulary_and_context(model: Any) -> tuple[int, int]:
    """How many tokens a transformers model knows, and how many one graph of it takes (1024 where its config is silent)."""
    config = model.config.get_text_config(decoder=True)
    return int(config.vocab_size), context_of(model.config) or 1024


def padded_cases(vocabulary: int, longest: int, seed: int) -> Iterator[tuple[type_array, type_array | None]]:
    """Random (ids, mask): one text alone, and two of which one is padded at its left."""
    random = np.random.default_rng(seed)
    for length in sorted({min(length, longest) for length in LENGTHS}):
        ids = random.integers(0, vocabulary, (2, length))
        mask = np.ones_like(ids)
        mask[1, : length // 3] = 0
        yield ids[:1], None
        yield ids, mask


def beyond_window(model: Any, seed: int) -> Iterator[tuple[type_array, tuple[int, ...]]]:
    """For each window within the context a random text that is longer, and the lengths of the calls it is cut into."""
    vocabulary, longest = vocabulary_and_context(model)
    for window in sorted({window for window in windows_of(model.config) if window}):
        length = min(window + BEYOND, longest)
        whole, rest = divmod(length - 2, AT_ONCE)
        steps = (*[AT_ONCE] * whole, *([rest] if rest else []), 1, 1)
        yield np.random.default_rng([seed, window]).integers(0, vocabulary, (1, length)), steps


def reference_logits(model: Any, ids: type_array, mask: type_array | None, last: int | None = None) -> type_array:
    """transformers' logits [B, T, V] for ids [B, T], positions counted without the padding; `last`: of so many tokens alone."""
    import inspect

    import torch

    given: dict[str, Any] = {"input_ids": torch.from_numpy(np.ascontiguousarray(ids))}
    if last is not None and "logits_to_keep" in inspect.signature(model.forward).parameters:
        given["logits_to_keep"] = last
    if mask is not None:
        given["attention_mask"] = torch.from_numpy(mask)
        if "position_ids" in inspect.signature(model.forward).parameters:
            given["position_ids"] = torch.from_numpy(np.maximum(mask.cumsum(1) - 1, 0))
    with torch.inference_mode():
        found: type_array = model(**given).logits.numpy()
    return found[:, -(last or 0) :]


def check_parity(model: Any, model_file: Path) -> None:
    """Raise Unsupported when the file's logits are not the logits of the transformers `model`."""
    vocabulary, longest = vocabulary_and_context(model)
    scorer = StatefulScorer(model_file)
    difference = scale = 0.0
    for ids, mask in padded_cases(vocabulary, longest, seed=0):
        reference = reference_logits(model, ids, mask)
        is_real = np.ones(ids.shape, bool) if mask is None else mask.astype(bool)
        length = ids.shape[1]
        for steps in ((length,), (length - 2, 1, 1)):
            found = scorer.logits(ids, steps, mask)
            difference = max(difference, float(np.abs(found - reference)[is_real].max(initial=0.0)))
            difference = difference if np.isfinite(found[is_real]).all() else float("inf")
        scale = max(scale, float(np.abs(reference[is_real]).max()))
    for ids, calls in beyond_window(model, seed=0):
        reference, found = reference_logits(model, ids, None, BEYOND), scorer.logits(ids, calls, last=BEYOND)
        difference = max(difference, float(np.abs(found - reference).max()))
        difference = difference if np.isfinite(found).all() else float("inf")
        scale = max(scale, float(np.abs(reference).max()))
    limit = RELATIVE_TOLERANCE * scale
    if not difference <= limit:
        raise Unsupported(
            f"{type(model).__name__} does not convert faithfully to OpenVINO: its logits differ by {difference:.2g} "
            f"where {limit:.2g} is allowed; it can be built with --to pytorch, as it is"
        )
