"""A Llama whose every answer is known: after the last letter of a prompt comes one chain of tokens, to the end.

Its tokenizer is of SentencePiece's kind: words begin with a space of their own, letters it lacks are spelled in bytes,
and a decoder takes the first space of a text for one that the tokenizer made up.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from maasdam.core import Artifact

CHAIN = "▁big <0xF0> <0x9F> <0x90> <0x88> ! ▁a <0xC3> <0xA9> ▁of <|end|> ▁it ▁▁ y </s>"
TEXT = " big🐈! aé of it  y"
SPECIAL = ["<unk>", "<s>", "</s>", "<|turn|>", "<|end|>"]
TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def huggingface(folder: Path, template: str = TEMPLATE) -> Artifact:
    """Write it. The answer to a prompt that ends in "k", and to any chat, is `TEXT`, 14 tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {text: i for i, text in enumerate([*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))])}
    for letter in "▁abcdefghijklmnopqrstuvwxyz.,:;!?<>|_/":
        vocabulary.setdefault(letter, len(vocabulary))
    merges = [("▁", "b"), ("▁b", "i"), ("▁bi", "g"), ("▁", "a"), ("▁", "o"), ("▁o", "f"), ("▁", "i"), ("▁i", "t"), ("▁", "▁")]
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<|turn|>", "<|end|>"],
    )
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)
    size = 32 * -(-len(vocabulary) // 32)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size)[: len(vocabulary)])
        after = torch.zeros(len(vocabulary), size)
        ids = [vocabulary[text] for text in CHAIN.split()]
        for last in ("k", "<0x0A>"):
            after[ids[0], vocabulary[last]] = 1
        for this, following in pairwise(ids):
            after[following, this] = 1
        model.lm_head.weight.copy_(after)
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    total = sum(file.stat().st_size for file in folder.iterdir())
    return Artifact("sha256:chain", folder, "pytorch", "huggingface", "text-generation", "transformers", None, total)
