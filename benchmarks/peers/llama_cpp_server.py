"""llama.cpp's server on a Llama's weights. Needs packages xllamacpp, gguf, safetensors and numpy.

    python llama_cpp_server.py FOLDER PORT SLOTS THREADS

FOLDER is the Hugging Face folder of a Llama with a tokenizer of bytes (GPT-2's kind); its weights are written beside it, Q8_0.
"""

import json
import sys
import time
from pathlib import Path


def made(folder: Path) -> Path:
    """The weights as GGUF, products in Q8_0."""
    import gguf
    import numpy as np
    from gguf import GGMLQuantizationType, quants
    from safetensors import safe_open

    out = folder / "model-q8_0.gguf"
    if out.exists():
        return out
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    width, heads, keys = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(width // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(7)
    special = {one["id"]: one["content"] for one in tokenizer.get("added_tokens", [])}
    words = {number: word for word, number in tokenizer["model"]["vocab"].items()} | special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([words.get(i, f"[PAD{i}]") for i in range(config["vocab_size"])])
    writer.add_token_types([3 if i in special else 1 for i in range(config["vocab_size"])])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    with safe_open(str(folder / "model.safetensors"), "np") as weights:
        for key in weights.keys():  # noqa: SIM118  it is no mapping
            tensor, own = weights.get_tensor(key).astype(np.float32), key.removesuffix(".weight")
            name = names.get(own)
            if name is None:
                _, _, layer, part = own.split(".", 3)
                name = f"blk.{layer}.{parts[part]}"
                if part in ("self_attn.q_proj", "self_attn.k_proj"):  # its rotation takes neighbours, not halves
                    count = heads if "q_proj" in part else keys
                    tensor = tensor.reshape(count, 2, width // heads // 2, width).swapaxes(1, 2).reshape(-1, width)
            tensor = np.ascontiguousarray(tensor)
            if tensor.ndim == 2:
                kind = GGMLQuantizationType.Q8_0
                writer.add_tensor(f"{name}.weight", quants.quantize(tensor, kind), raw_dtype=kind)
            else:
                writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def main() -> None:
    """Serve until killed; prints the address."""
    import xllamacpp

    folder, (port, slots, threads) = Path(sys.argv[1]), map(int, sys.argv[2:5])
    params = xllamacpp.CommonParams()
    params.model.path = str(made(folder))
    params.port, params.n_parallel, params.n_ctx = port, slots, 256 * slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.warmup, params.cache_prompt = True, False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
