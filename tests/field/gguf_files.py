"""A tiny llama over single bytes as GGUF, written by hand, with the weights that another library needs for the same."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, LAYERS, HEADS, INNER, WORDS = 64, 2, 4, 128, 258
KINDS = {"F32": (0, 0), "F16": (1, 1), "Q8_0": (8, 7)}
"""Number of the type, and of the file's."""
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[assistant]"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def fact(key: str, kind: int, value: Any) -> bytes:
    """4: a number, 6: a float, 7: a truth, 8: a text, (9, n): an array of n."""
    head = text(key) + struct.pack("<I", kind if isinstance(kind, int) else 9)
    if kind == 8:
        return head + text(value)
    return head + struct.pack({4: "<I", 6: "<f", 7: "<?"}[kind], value)


def array(key: str, kind: int, values: list[Any]) -> bytes:
    head = text(key) + struct.pack("<IIQ", 9, kind, len(values))
    return head + b"".join(text(one) if kind == 8 else struct.pack("<i", one) for one in values)


def alphabet() -> list[str]:
    """What GPT-2 writes for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def weights(seed: int = 0) -> dict[str, Any]:
    """By transformers' names, float32."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (WORDS, WIDTH), "lm_head.weight": (WORDS, WIDTH)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{one}_proj.weight": (WIDTH, WIDTH) for one in "qkvo"}
        shapes |= {f"{layer}.mlp.{one}_proj.weight": (INNER, WIDTH) for one in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (WIDTH, INNER)
    made = {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    norms = [f"model.layers.{i}.{one}_layernorm.weight" for i in range(LAYERS) for one in ("input", "post_attention")]
    return made | {name: np.ones(WIDTH, np.float32) for name in (*norms, "model.norm.weight")}


def stored(array: Any, kind: str) -> tuple[bytes, Any]:
    """Bytes, and the numbers that they stand for."""
    if kind == "F32":
        return array.tobytes(), array
    if kind == "F16":
        return array.astype("<f2").tobytes(), array.astype("<f2").astype(np.float32)
    blocks = array.reshape(-1, 32)
    scale = (np.abs(blocks).max(1) / 127).astype("<f2")
    whole = np.round(blocks / scale.astype(np.float32)[:, None]).clip(-127, 127).astype(np.int8)
    data = b"".join(one.tobytes() + row.tobytes() for one, row in zip(scale, whole, strict=True))
    return data, (whole * scale.astype(np.float32)[:, None]).reshape(array.shape)


NAMES = {"self_attn.q": "attn_q", "self_attn.k": "attn_k", "self_attn.v": "attn_v", "self_attn.o": "attn_output"}
NAMES |= {"mlp.gate": "ffn_gate", "mlp.up": "ffn_up", "mlp.down": "ffn_down"}
NAMES |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight"}
WHOLE |= {"model.norm.weight": "output_norm.weight"}


def write(path: Path, kind: str = "F32", template: str | None = None, seed: int = 0) -> dict[str, Any]:
    """The file; what its weights are, by transformers' names."""
    kept: dict[str, Any] = {}
    infos, data = b"", b""
    made = weights(seed)
    for name, values in made.items():
        number = 0 if values.ndim == 1 else KINDS[kind][0]
        raw, kept[name] = stored(values, "F32" if values.ndim == 1 else kind)
        if name in WHOLE:
            named = WHOLE[name]
        else:
            _, _, layer, *rest = name.split(".")
            named = f"blk.{layer}.{NAMES['.'.join(rest[:-1]).removesuffix('_proj')]}.weight"
        if named.endswith(("attn_q.weight", "attn_k.weight")):  # the halves of a head stand in turns there
            turned = values.reshape(HEADS, 2, WIDTH // HEADS // 2, WIDTH).swapaxes(1, 2).reshape(values.shape)
            raw, back = stored(np.ascontiguousarray(turned), kind)
            kept[name] = back.reshape(HEADS, WIDTH // HEADS // 2, 2, WIDTH).swapaxes(1, 2).reshape(values.shape)
        sizes = struct.pack(f"<I{values.ndim}Q", values.ndim, *reversed(values.shape))
        infos += text(named) + sizes + struct.pack("<IQ", number, len(data))
        data += raw + bytes(-len(raw) % 32)
    facts = [*described(KINDS[kind][1]), *([fact("tokenizer.chat_template", 8, template)] if template else [])]
    path.write_bytes(joined(facts, len(made), infos, data))
    return kept


def described(file_type: int = 0) -> list[bytes]:
    numbers = {"context_length": 256, "embedding_length": WIDTH, "block_count": LAYERS, "feed_forward_length": INNER}
    numbers |= {"attention.head_count": HEADS, "attention.head_count_kv": HEADS, "rope.dimension_count": WIDTH // HEADS}
    return [
        fact("general.architecture", 8, "llama"),
        *(fact(f"llama.{name}", 4, number) for name, number in (numbers | {"vocab_size": WORDS}).items()),
        fact("llama.attention.layer_norm_rms_epsilon", 6, 1e-5),
        fact("llama.rope.freq_base", 6, 10000.0),
        fact("general.file_type", 4, file_type),
        fact("tokenizer.ggml.model", 8, "gpt2"),
        fact("tokenizer.ggml.pre", 8, "gpt-2"),
        array("tokenizer.ggml.tokens", 8, [*alphabet(), "<s>", "</s>"]),
        array("tokenizer.ggml.token_type", 5, [1] * 256 + [3, 3]),
        array("tokenizer.ggml.merges", 8, ["\u0120 t"]),
        fact("tokenizer.ggml.bos_token_id", 4, 256),
        fact("tokenizer.ggml.eos_token_id", 4, 257),
        fact("tokenizer.ggml.add_bos_token", 7, False),
    ]


def joined(facts: list[bytes], tensors: int, infos: bytes, data: bytes, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, len(facts)) + b"".join(facts) + infos
    return head + bytes(-len(head) % 32) + data
