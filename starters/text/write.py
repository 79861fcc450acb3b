"""Write text with the starter language model; run as a program, write the shipped `samples/`.

    python starters/text/write.py

The samples are the model's own words at temperature 1, from fixed seeds: nothing of the corpus
is in them, and nothing is trained on them. They serve to compare a model with its compressed
form (perplexity on the same text), not to judge how good the model is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

HERE = Path(__file__).parent
SAMPLES, SAMPLE_TOKENS = 40, 256
OPENINGS = (
    "Good morrow, sir. What news from the city?",
    "O, speak again, bright angel!",
    "Who goes there? Stand, and name yourself.",
    "My lord, the king is coming.",
    "I love thee not.",
    "Tell me, where is my father?",
    "Give me my sword!",
    "What, will you leave me so?",
    "The people rise against us; what shall we do?",
    "KING HENRY:\nHow now, what noise is that?",
    "FIRST MURDERER:\nIs it done?",
    "QUEEN:\nWhere are my children?",
    "Peace, fool.",
    "How does my lady?",
    "Come, let us drink and be merry.",
    "Hello, who are you?",
    "What is the meaning of honour?",
    "He is banished.",
    "I have a letter for you, madam.",
    "To-morrow we shall fight.",
)
"""Our own first lines, for the chat half of an evaluation."""


def load(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The model in float32 (from its bfloat16 weights) and its tokenizer."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def completions(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: int,
    seed: int,
    temperature: float | None = None,
    top_p: float | None = None,
    least_tokens: int = 0,
) -> list[str]:
    """What the model writes after each prompt, sampled; settings left out are those that ship with it.
    Before `least_tokens` it may not end.

    Prompts are complete: they begin with the tokenizer's first token, chat marks and all.
    """
    torch.manual_seed(seed)
    tokenizer.padding_side = "left"
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, add_special_tokens=False)
    inputs.pop("token_type_ids", None)
    settings = {
        k: v
        for k, v in {"temperature": temperature, "top_p": top_p, "min_new_tokens": least_tokens or None}.items()
        if v is not None
    }
    output = model.generate(**inputs, do_sample=True, max_new_tokens=new_tokens, top_k=0, **settings)
    return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def chat_prompts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """One conversation for each of `OPENINGS`, ready for the assistant's turn."""
    return [
        str(tokenizer.apply_chat_template([{"role": "user", "content": o}], tokenize=False, add_generation_prompt=True))
        for o in OPENINGS
    ]


def main() -> None:
    """Write `samples/text.jsonl`."""
    model, tokenizer = load(HERE / "model")
    texts = completions(model, tokenizer, [str(tokenizer.bos_token)] * SAMPLES, SAMPLE_TOKENS, 7, 1.0, 1.0, SAMPLE_TOKENS)
    folder = HERE / "samples"
    folder.mkdir(exist_ok=True)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


if __name__ == "__main__":
    main()
