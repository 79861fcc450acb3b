"""Tiny transformers models with random weights, saved as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maasdam.core import IMAGE_CLASSIFICATION, SPEECH_RECOGNITION, TEXT_GENERATION, Artifact, Signature, TensorSpec

VOCABULARY = 300
_TOKENS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
_LLAMA: dict[str, Any] = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def _signature(inputs: list[TensorSpec], classes: int, *, is_sequence: bool) -> Signature:
    shape = (None, None, classes) if is_sequence else (None, classes)
    return Signature(tuple(inputs), (TensorSpec("logits", "float32", shape),))


def image_classifier(folder: Path, kind: str = "mobilenet") -> Artifact:
    """MobileNetV2 or ViT on 32 x 32 pixels, 7 classes."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    if kind == "vit":
        sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        model: Any = t.ViTForImageClassification(
            t.ViTConfig(image_size=32, patch_size=8, num_labels=7, initializer_range=0.3, **sizes)
        )
    else:
        model = t.MobileNetV2ForImageClassification(t.MobileNetV2Config(image_size=32, depth_multiplier=0.35, num_labels=7))
        _with_real_statistics(model)
        model.classifier.weight.data.normal_(0, 0.5)
    _save(model, folder)
    pixels = TensorSpec("pixel_values", "float32", (None, 3, 32, 32), "NCHW", (-1.0, 1.0))
    signature = _signature([pixels], 7, is_sequence=False)
    return Artifact(f"sha256:{kind}", folder, "pytorch", "huggingface", IMAGE_CLASSIFICATION, "pytorch", signature, 1)


def speech_recogniser(folder: Path) -> Artifact:
    """Wav2Vec2Bert with a CTC head over 80 mel bands, 12 tokens: the architecture of the starter model."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    config = t.Wav2Vec2BertConfig(
        vocab_size=12,
        hidden_size=32,
        output_hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        feature_projection_input_dim=80,
        conv_depthwise_kernel_size=5,
        position_embeddings_type="relative_key",
        add_adapter=False,
        initializer_range=0.3,
    )
    _save(t.Wav2Vec2BertForCTC(config), folder)
    inputs = [TensorSpec("input_features", "float32", (None, None, 80)), TensorSpec("attention_mask", "int64", (None, None))]
    signature = _signature(inputs, 12, is_sequence=True)
    return Artifact("sha256:speech", folder, "pytorch", "huggingface", SPEECH_RECOGNITION, "pytorch", signature, 1)


def waveform_recogniser(folder: Path) -> Artifact:
    """wav2vec2 with a CTC head over raw sound: its convolutions need 400 samples at least."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    config = t.Wav2Vec2Config(
        vocab_size=12,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        initializer_range=0.3,
    )
    _save(t.Wav2Vec2ForCTC(config), folder)
    inputs = [TensorSpec("input_values", "float32", (None, None)), TensorSpec("attention_mask", "int64", (None, None))]
    signature = _signature(inputs, 12, is_sequence=True)
    return Artifact("sha256:wave", folder, "pytorch", "huggingface", SPEECH_RECOGNITION, "pytorch", signature, 1)


def residual_classifier(folder: Path) -> Artifact:
    """ResNet over pixels of any height and width, 7 classes."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]}
    model = t.ResNetForImageClassification(t.ResNetConfig(num_labels=7, layer_type="bottleneck", **sizes))
    _with_real_statistics(model)
    _save(model, folder)
    pixels = TensorSpec("pixel_values", "float32", (None, 3, None, None), "NCHW")
    signature = _signature([pixels], 7, is_sequence=False)
    return Artifact("sha256:resnet", folder, "pytorch", "huggingface", IMAGE_CLASSIFICATION, "pytorch", signature, 1)


def _with_real_statistics(model: Any) -> None:
    """Fill the batch normalisations from a real pass, else nothing but zeros reaches the head."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(pixel_values=torch.randn(64, 3, 32, 32))
    model.eval()


def _rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": kind, **fields}}


_HEADS = {"head_dim": 16, "query_pre_attn_scalar": 16}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 3.0, 4.0], "original_max_position_embeddings": 128}
_BASE: dict[str, Any] = {**_LLAMA, "pad_token_id": 0}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    # kind -> its config's class, and what it has beside the sizes of all
    "llama": ("LlamaConfig", _BASE),
    "llama, linear positions": ("LlamaConfig", _BASE | _rope("linear", factor=4.0)),
    "llama, dynamic positions": ("LlamaConfig", _BASE | _rope("dynamic", factor=2.0)),
    "llama, yarn positions": ("LlamaConfig", _BASE | _rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "llama, llama3 positions": (
        "LlamaConfig",
        _BASE | _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
    ),
    "mistral": ("MistralConfig", _BASE | {"sliding_window": None}),
    "mistral, window": ("MistralConfig", _BASE | {"sliding_window": 8}),
    "qwen2": ("Qwen2Config", _BASE),
    "qwen2, windows": ("Qwen2Config", _BASE | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", _BASE | {"head_dim": 16}),
    "gemma2": ("Gemma2Config", _BASE | _HEADS | {"sliding_window": 8}),
    "gemma3": (
        "Gemma3TextConfig",
        _BASE | _HEADS | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3, window": ("Phi3Config", _BASE | {"sliding_window": 8}),
    "phi3, longrope": ("Phi3Config", _BASE | _rope("longrope", **_LONG) | {"original_max_position_embeddings": 128}),
    "gpt2": ("GPT2Config", {**_TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "gpt_neox": ("GPTNeoXConfig", _BASE | {"rotary_pct": 0.5}),
    "olmo2": ("Olmo2Config", _BASE),
    "granite": (
        "GraniteConfig",
        _BASE | {"attention_multiplier": 0.25, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    ),
    "smollm3": ("SmolLM3Config", _BASE | {"no_rope_layers": [1, 0]}),
    "qwen2_moe": ("Qwen2MoeConfig", _BASE | _EXPERTS | {"shared_expert_intermediate_size": 16}),
    "qwen3_moe": ("Qwen3MoeConfig", _BASE | _EXPERTS | {"head_dim": 16}),
    "bloom": ("BloomConfig", {**_TOKENS, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
}


def language_model(folder: Path, kind: str = "llama", **changes: Any) -> Artifact:
    """A decoder of two layers with a byte-level tokenizer."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    config, sizes = DECODERS[kind]
    made = getattr(t, config)(**{**sizes, **changes})
    _save(t.AutoModelForCausalLM.from_config(made, dtype=torch.float32), folder)
    _byte_tokenizer().save_pretrained(folder)
    return Artifact(f"sha256:{kind}", folder, "pytorch", "huggingface", TEXT_GENERATION, "transformers", None, 1)


def whisper(folder: Path) -> Artifact:
    """Whisper with two layers a side and a byte-level vocabulary."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    names = ["startoftranscript", "en", "translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    special = ["<|endoftext|>", *(f"<|{name}|>" for name in names)]
    tokenizer = _byte_tokenizer(special)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in special}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    config = t.WhisperConfig(
        vocab_size=len(tokenizer) + 1501,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_target_positions=64,
        init_std=0.3,
        decoder_start_token_id=start,
        eos_token_id=end,
        bos_token_id=end,
        pad_token_id=end,
    )
    model = t.WhisperForConditionalGeneration(config)
    model.generation_config.update(suppress_tokens=[], begin_suppress_tokens=[])
    _save(model, folder)
    tokenizer.save_pretrained(folder)
    t.WhisperFeatureExtractor().save_pretrained(folder)
    return Artifact("sha256:whisper", folder, "pytorch", "huggingface", SPEECH_RECOGNITION, "transformers", None, 1)


def change_a_weight(folder: Path, by: float = 0.5) -> None:
    """Add `by` to one number of the largest matrix in model.safetensors."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = max((n for n in tensors if tensors[n].ndim == 2), key=lambda n: tensors[n].numel())
    tensors[name][1, 1] += by
    save_file(tensors, file, metadata={"format": "pt"})


def _save(model: Any, folder: Path) -> None:
    import transformers

    transformers.logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(folder)


def _byte_tokenizer(special: list[str] | None = None) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    first = [] if special else ["<pad>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        ["hello"], trainers.BpeTrainer(vocab_size=300, special_tokens=first, initial_alphabet=alphabet)
    )
    if special:
        tokenizer.add_special_tokens(special)
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], bos_token=special[0])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
