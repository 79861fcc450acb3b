"""Does a stateful OpenVINO language model give transformers' logits? Knows both; refuses to know how it was made.

Scored whole (one call) and in steps (the cache at work), alone and in a batch with a padded neighbour. What does not
agree is not handed out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.errors import Unsupported

if TYPE_CHECKING:
    from maasdam.core import type_array

RELATIVE_TOLERANCE = 1e-4
"""Of the largest logit. Float32 in another order of summation stays under 1e-5 (fourteen architectures, measured)."""
LENGTHS = (33, 7)


@dataclass(frozen=True, slots=True)
class LogitsProof:
    """What was compared: `spread` is how much the reference's logits vary between inputs."""

    max_abs_diff: float
    scale: float
    spread: float
    positions: int


class StatefulScorer:
    """An OpenVINO language model at float32, fed token by token or whole."""

    def __init__(self, model_file: Path) -> None:
        import openvino as ov

        properties = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        compiled = ov.Core().compile_model(model_file, "CPU", properties)
        self._request = compiled.create_infer_request()
        self._takes = {name for port in compiled.inputs for name in port.get_names()}

    def logits(self, ids: type_array, steps: tuple[int, ...], mask: type_array | None = None) -> type_array:
        """ids [B, T] -> logits [B, T, V]; `steps` are the lengths of the calls the sequence is cut into."""
        import numpy as np

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
            found.append(self._request.get_tensor("logits").data.copy())
            start = end
        return np.concatenate(found, axis=1)


def compare_logits(model: Any, model_file: Path, seeds: tuple[int, ...] = (0,)) -> LogitsProof:
    """Largest difference between the transformers `model` and the file, over seeds, lengths, steps and a padded batch."""
    import numpy as np

    scorer = StatefulScorer(model_file)
    diffs, scales, spreads, positions = [0.0], [0.0], [], 0
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or LENGTHS[0]
    for seed in seeds:
        random = np.random.default_rng(seed)
        for length in LENGTHS:
            length = min(length, longest)
            ids = random.integers(0, vocabulary, (2, length))
            left_padded = np.ones_like(ids)
            left_padded[1, : length // 3] = 0
            for rows, mask in ((ids[:1], None), (ids, left_padded)):
                reference = _reference(model, rows, mask)
                is_real = np.ones(rows.shape, bool) if mask is None else mask.astype(bool)
                for steps in ((length,), (length - 2, 1, 1)):
                    found = scorer.logits(rows, steps, mask)
                    diffs.append(float(np.abs(found - reference)[is_real].max()))
                scales.append(float(np.abs(reference[is_real]).max()))
                spreads.append(float(np.ptp(reference[is_real], axis=0).max()))
                positions += int(is_real.sum())
    return LogitsProof(max(diffs), max(scales), min(spreads), positions)


def _reference(model: Any, ids: type_array, mask: type_array | None) -> type_array:
    import inspect

    import numpy as np
    import torch

    given = {"input_ids": torch.from_numpy(ids)}
    if mask is not None:
        given["attention_mask"] = torch.from_numpy(mask)
        if "position_ids" in inspect.signature(model.forward).parameters:
            given["position_ids"] = torch.from_numpy(np.maximum(mask.cumsum(1) - 1, 0))
    with torch.inference_mode():
        found: type_array = model(**given).logits.numpy()
    return found


def check_parity(model: Any, model_file: Path) -> None:
    """Raise Unsupported when the file's logits are not transformers' logits."""
    proof = compare_logits(model, model_file)
    limit = RELATIVE_TOLERANCE * proof.scale
    if not proof.max_abs_diff <= limit:  # NaN fails too
        name = (getattr(model.config, "architectures", None) or [model.config.model_type])[0]
        raise Unsupported(
            f"{name} does not convert faithfully to OpenVINO: its logits differ by {proof.max_abs_diff:.2g} "
            f"where {limit:.2g} is allowed; build it for the transformers engine instead (--to pytorch keeps it as it is)"
        )
