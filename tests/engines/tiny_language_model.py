"""A tiny Llama with a tokenizer of its own, random but fixed, as a Hugging Face folder and as a genai folder."""

from __future__ import annotations

from pathlib import Path

from maasdam.core import Artifact

CONTEXT = 128
VOCABULARY = 320


def huggingface(
    folder: Path, *, context: int = CONTEXT, control: tuple[str, ...] = (), template: str | None = None
) -> Artifact:
    """Config, safetensors, tokenizer and chat template in `folder`. Weights are large, so that greedy choices are clear.

    `control`: control tokens beside its own.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<bos>", "<eos>", "<user>", "<assistant>", *control]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text = ["the cat sat on the mat and the dog sat on the log, as they say; là-bas, naïve café"] * 4
    tokenizer.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")
    wrapped.chat_template = template or (
        "{{ bos_token }}{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    size = sum(f.stat().st_size for f in folder.iterdir())
    return Artifact("sha256:llama", folder, "pytorch", "huggingface", "text-generation", "transformers", None, size)


def genai(source: Artifact, folder: Path) -> Artifact:
    """The same model for OpenVINO GenAI."""
    from maasdam.convert import convert

    made = convert(source, "openvino", folder)
    return Artifact("sha256:genai", folder, made.format, made.layout, "text-generation", made.engine, None, 1)
