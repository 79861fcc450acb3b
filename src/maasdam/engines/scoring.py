"""How likely a model finds given texts: log-probabilities of each next token, for perplexity.

Knows causal language models and token ids. Refuses to know texts, tokenizers and limits.

Both ways compute in float32 and return natural logarithms: entry i of an answer is log p(ids[i + 1] | ids[0..i]).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import Progress, silent
from maasdam.engines.openvino_engine import dynamic_quantization
from maasdam.engines.openvino_library import kept_in, openvino
from maasdam.errors import InvalidInput, InvalidModel

if TYPE_CHECKING:
    from maasdam.core import type_array

ROWS_AT_ONCE = 256
"""Positions whose logits are normalised at a time: bounds memory for large vocabularies."""


def log_likelihoods(
    folder: Path,
    sequences: Sequence[Sequence[int]],
    *,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> list[type_array]:
    """For each sequence of T ids (T at least 2, within the context): T - 1 log-probabilities, float64.

    `folder` is a genai folder (openvino_model.xml) or a Hugging Face one (safetensors; needs torch). Settings: "threads",
    and for OpenVINO those of `genai_engine.open`, so that what is scored is what is served.
    """
    for ids in sequences:
        if len(ids) < 2:
            raise InvalidInput(f"a sequence of {len(ids)} tokens has no next token to score; send at least 2")
    if (folder / "openvino_model.xml").is_file():
        logits_of = _openvino(folder, settings or {})
    elif (folder / "config.json").is_file():
        logits_of = _torch(folder, settings or {})
    else:
        raise InvalidModel(f"{folder.name} is neither an OpenVINO language model nor a Hugging Face one")
    out = []
    for i, ids in enumerate(sequences):
        progress("score", i, len(sequences))
        out.append(_next_log_probabilities(logits_of(list(ids)), ids))
    return out


def _next_log_probabilities(logits: type_array, ids: Sequence[int]) -> type_array:
    """logits [T, V] float32 -> [T - 1] float64."""
    import numpy as np

    targets = np.asarray(ids[1:], dtype=np.int64)
    out = np.empty(len(targets), dtype=np.float64)
    for start in range(0, len(targets), ROWS_AT_ONCE):
        rows = logits[start : min(start + ROWS_AT_ONCE, len(targets))].astype(np.float64)
        top = rows.max(axis=1)
        normaliser = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
        out[start : start + len(rows)] = rows[np.arange(len(rows)), targets[start : start + len(rows)]] - normaliser
    return out


def _openvino(folder: Path, settings: Mapping[str, Any]) -> Any:
    import numpy as np

    ov = openvino()

    properties: dict[str, Any] = {
        "KV_CACHE_PRECISION": kept_in(settings.get("kv_precision", "f32")),
        **dynamic_quantization({"dynamic_quantization": True, **settings}),
    }
    if settings.get("precision", "f32") != "auto":
        properties["INFERENCE_PRECISION_HINT"] = settings.get("precision", "f32")
    if settings.get("threads"):
        properties["INFERENCE_NUM_THREADS"] = settings["threads"]
    compiled = ov.Core().compile_model(str(folder / "openvino_model.xml"), "CPU", properties)
    request = compiled.create_infer_request()
    takes = {name for port in compiled.inputs for name in port.get_names()}

    def logits_of(ids: list[int]) -> type_array:
        request.reset_state()
        length = len(ids)
        inputs = {
            "input_ids": np.array([ids], dtype=np.int64),
            "attention_mask": np.ones((1, length), dtype=np.int64),
            "position_ids": np.arange(length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        request.infer({name: array for name, array in inputs.items() if name in takes})
        logits: type_array = request.get_tensor("logits").data[0]
        return logits

    return logits_of


def _torch(folder: Path, settings: Mapping[str, Any]) -> Any:
    from maasdam.engines.transformers_library import open_module

    module = open_module(folder)
    import torch

    if settings.get("threads"):
        torch.set_num_threads(settings["threads"])

    def logits_of(ids: list[int]) -> type_array:
        with torch.inference_mode():
            logits: type_array = module(input_ids=torch.tensor([ids])).logits[0].numpy()
        return logits

    return logits_of
