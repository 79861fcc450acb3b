"""LoRA adapters, merged into the weights they were made for: W + B·A·alpha/r, a model of its own. Knows peft's files.

Refuses pickles and code, what is no plain LoRA, and an adapter that does not fit whole: of one that matched in part nobody
could say what it is.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maasdam.errors import InvalidInput, InvalidModel, UnsafeModel, Unsupported, from_extra
from maasdam.sources.bounds import Place, opened, read_json_object
from maasdam.sources.safetensors import read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
MOST_RANK = 1024
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)(?:\.default)?\.weight")
_OTHER: Mapping[str, tuple[Any, ...]] = {
    # what makes it another thing than a plain LoRA -> the values that don't
    "use_dora": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter says of itself, checked as far as that goes without the model."""

    path: Path
    rank: int
    scale: float
    turned: bool
    """Its model's weights are [in, out], as GPT-2's."""
    pairs: Mapping[str, tuple[str, str]]
    """Layer -> the names of A and B."""
    shapes: Mapping[str, tuple[int, ...]]


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder. Raises InvalidInput, InvalidModel, UnsafeModel (a pickle, code), Unsupported (no plain LoRA)."""
    path = opened(Path(folder).expanduser())
    if not path.is_dir():
        raise InvalidInput(f"--lora {folder} is no folder; give the one with {CONFIG} and {WEIGHTS}")
    place = Place(path)
    weights = place.file(WEIGHTS)
    if weights is None:
        pickle = next((name for name in PICKLES if place.file(name) is not None), None)
        if pickle is not None:
            raise UnsafeModel(f"{path} is refused: {pickle} is a pickle, which can run code; save it as {WEIGHTS}")
        raise InvalidModel(f"{path} holds no {WEIGHTS}; save the adapter with peft's save_pretrained")
    config = read_json_object(place.need(CONFIG, "it says what the adapter is"))
    if "auto_map" in config:
        raise UnsafeModel(f"{path} is refused: its {CONFIG} names code of its own (auto_map)")
    rank, scale = _scale(config, path)
    shapes = read_header(weights).shapes
    pairs: dict[str, dict[str, str]] = {}
    for name in shapes:
        found = _NAME.fullmatch(name)
        if found is None:
            raise Unsupported(f"{path}: '{name:.100}' is no weight of a plain LoRA: lora_A and lora_B of linear layers are")
        if found[2] in pairs.setdefault(found[1], {}):
            raise InvalidModel(f"{path}: layer '{found[1]:.100}' has two of lora_{found[2]}")
        pairs[found[1]][found[2]] = name
    whole = {layer: (pair["A"], pair["B"]) for layer, pair in pairs.items() if len(pair) == 2}
    if not pairs or len(whole) != len(pairs):
        lonely = next((layer for layer in pairs if layer not in whole), None)
        raise InvalidModel(f"{path} " + (f"has half a pair for layer '{lonely:.100}'" if lonely else "holds no weights"))
    for layer, (a, b) in whole.items():
        if len(shapes[a]) != 2 or len(shapes[b]) != 2 or shapes[a][0] != rank or shapes[b][1] != rank:
            raise InvalidModel(f"{path}: layer '{layer:.100}' has {shapes[a]} and {shapes[b]}, which are not of rank {rank}")
    return Adapter(path, rank, scale, config.get("fan_in_fan_out") is True, whole, shapes)


def _scale(config: Mapping[str, Any], path: Path) -> tuple[int, float]:
    """Rank, and what B·A is multiplied by."""
    if config.get("peft_type") != "LORA":
        raise Unsupported(f"{path} is an adapter of type {config.get('peft_type')!r:.40}; LORA is merged")
    other = next((name for name, neutral in _OTHER.items() if config.get(name) not in neutral), None)
    if other is not None:
        raise Unsupported(f"{path} is no plain LoRA: its {CONFIG} has {other} = {config[other]!r:.60}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MOST_RANK:
        raise InvalidModel(f"{path}: r is {rank!r:.40}; it takes a whole number from 1 to {MOST_RANK}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha) or not 0 < alpha < 1e6:
        raise InvalidModel(f"{path}: lora_alpha is {alpha!r:.40}; it takes a number above 0")
    return rank, alpha / math.sqrt(rank) if config.get("use_rslora") is True else alpha / rank


def merge(base: Path, adapter: Adapter, out: Path) -> None:
    """Write the base's folder into `out`, an empty one, with the adapter in its weights. The sums are float32's.

    Raises InvalidModel (a layer that the base has not, or of another shape; a sum that is no number), MissingExtra (torch).
    """
    place = Place(base)
    shards = [name for name in place.names() if name.endswith(".safetensors")]
    if not shards or place.file("config.json") is None:
        raise InvalidInput(f"{base} is no Hugging Face folder with safetensors; an adapter is merged into one")
    shapes = {name: shape for shard in shards for name, shape in read_header(place.need(shard, "weights")).shapes.items()}
    _check_fit(adapter, shapes)
    with from_extra("pytorch", "torch"):
        import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(adapter.path / WEIGHTS, "pt") as given:
        for shard in shards:
            tensors = {}
            with safe_open(place.need(shard, "weights"), "pt") as own:
                for name in own.keys():  # noqa: SIM118  it is no dictionary
                    weight = own.get_tensor(name)
                    pair = adapter.pairs.get(name.removesuffix(".weight"))
                    if pair is not None and name.endswith(".weight"):
                        a, b = (given.get_tensor(one).to(torch.float32) for one in pair)
                        change = (b @ a) * adapter.scale
                        total = weight.to(torch.float32) + (change.T if adapter.turned else change)
                        if not torch.isfinite(total).all():
                            raise InvalidModel(f"{adapter.path}: merged into '{name:.100}' it gives what is no number")
                        weight = total.to(weight.dtype)
                    tensors[name] = weight.contiguous()
                save_file(tensors, out / shard, metadata={"format": "pt"})
    for name in place.names():
        file = place.file(name)
        if file is not None and not name.endswith(".safetensors") and name != "artifact.json":
            shutil.copyfile(file, out / name)


def _check_fit(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for layer, (a, b) in adapter.pairs.items():
        shape = shapes.get(f"{layer}.weight")
        wanted = (adapter.shapes[b][0], adapter.shapes[a][1])
        if shape is None:
            raise InvalidModel(f"{adapter.path} is for a layer '{layer:.100}', which this model has not; is it another's?")
        if shape != (wanted[::-1] if adapter.turned else wanted):
            made = list(wanted)
            raise InvalidModel(f"{adapter.path}: '{layer:.100}' is made for {made}; this model's weight is {list(shape)}")
