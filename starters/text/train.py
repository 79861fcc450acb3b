"""Train the starter language model: a small Llama on Shakespeare, with its own tokenizer.

    python starters/text/train.py --data ../shared/data
    python starters/text/write.py          # then: the shipped samples, by the new model

`--data` is the folder that holds `text/tinyshakespeare.txt`. Checkpoints are kept in `--work`,
outside the repository; an interrupted run goes on with `--resume`. The last tenth of the text
is never read by the model, nor by the tokenizer.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import corpus
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy, dropout
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
VOCABULARY, CONTEXT = 8192, 512
# A word keeps the space or the line break before it, so that words cannot run into each other
# (the usual splitting gives "And" the same entry after a line break and inside a word).
WORDS = r" ?[^\s\w]+|[ \n]?\w+(?:'\w+)*|\s+(?!\S)|\s+"
ROWS_PER_STEP, CHAT_SHARE = 4, 0.3
PEAK_LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY, DROPOUT = 2e-3, 100, 0.1, 0.15
AVERAGING = 0.99
"""Decay of the running mean of the weights; the mean is what ships."""
EVALUATE_EVERY = 100


def new_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `text`: any string can be encoded, and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(corpus.SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    openings = [speech.lines for speech in corpus.speeches(text)]  # turns begin without a space or a break
    tokenizer.train_from_iterator([text, *openings], trainer)
    begin = (corpus.BEGIN, tokenizer.token_to_id(corpus.BEGIN))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=corpus.BEGIN,
        eos_token=corpus.END,
        pad_token=corpus.PAD,
        extra_special_tokens=[corpus.USER, corpus.ASSISTANT],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = corpus.CHAT_TEMPLATE
    return fast


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """2.6 M parameters, randomly initialised."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def add_dropout(model: LlamaForCausalLM) -> None:
    """Drop some of what each block adds while training; the architecture itself has no such dropout."""

    def dropped(module: torch.nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
        return dropout(output, DROPOUT, module.training)

    model.model.embed_tokens.register_forward_hook(dropped)
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(dropped)
        layer.self_attn.o_proj.register_forward_hook(dropped)


class Rows:
    """An endless, random stream of training rows of `CONTEXT` + 1 tokens."""

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.tokens = tokenizer.encode(text, add_special_tokens=False)
        self.begin, self.pad = tokenizer.bos_token_id, tokenizer.pad_token_id
        self.random = random.Random(seed)
        user, assistant, end = tokenizer.convert_tokens_to_ids([corpus.USER, corpus.ASSISTANT, corpus.END])
        self.marks, self.end = (user, assistant), end
        self.speeches = [
            (
                tokenizer.encode(s.lines, add_special_tokens=False),
                tokenizer.encode(f"{s.speaker}:\n{s.lines}", add_special_tokens=False),
            )
            for s in corpus.speeches(text)
        ]

    def plain(self) -> list[int]:
        """A stretch of a play from anywhere in it."""
        start = self.random.randrange(len(self.tokens) - CONTEXT)
        return [self.begin, *self.tokens[start : start + CONTEXT]]

    def chat(self) -> list[int]:
        """Consecutive speeches, taking turns as user and assistant; all with the speaker's name, or none."""
        row: list[int] = []
        while len(row) <= CONTEXT:  # several conversations, if they are short
            named = self.random.random() < 0.4
            first, turns = self.random.randrange(len(self.speeches)), 2 * self.random.randint(1, 3)
            row.append(self.begin)
            for turn, speech in enumerate(self.speeches[first : first + turns]):
                row += [self.marks[turn % 2], *speech[named], self.end]
        return row[: CONTEXT + 1]

    def step(self) -> torch.Tensor:
        """One step's rows, (rows, CONTEXT + 1)."""
        return torch.tensor([self.chat() if self.random.random() < CHAT_SHARE else self.plain() for _ in range(ROWS_PER_STEP)])


@torch.inference_mode()
def bits_per_byte(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[float, float]:
    """Bits a byte and perplexity a token of `text`, each token seeing 256-511 tokens before it."""
    tokens = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    half, nats = CONTEXT // 2, 0.0
    for start in range(0, len(tokens) - 1, half):
        window = torch.tensor(tokens[max(0, start - half) : start + half + 1])
        new = min(half, len(tokens) - 1 - start)
        logits = model(input_ids=window[None, :-1]).logits[0, -new:].float()
        nats += cross_entropy(logits, window[-new:], reduction="sum").item()
    return nats / math.log(2) / len(text.encode()), math.exp(nats / (len(tokens) - 1))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model folder, its weights rounded to bfloat16."""
    rounded = LlamaForCausalLM(model.config)
    rounded.load_state_dict(model.state_dict())
    rounded.to(torch.bfloat16)
    rounded.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        max_new_tokens=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    rounded.save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)  # the template in tokenizer_config.json


def train(arguments: argparse.Namespace) -> None:
    """The whole run: tokenizer, steps, checkpoints, and the model folder."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    work: Path = arguments.work / "text"
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    text = corpus.parts(arguments.data / "text" / "tinyshakespeare.txt")
    tokenizer = new_tokenizer(text.train)
    model, average = new_model(tokenizer), new_model(tokenizer)
    average.load_state_dict(model.state_dict())
    average.eval()
    add_dropout(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98), fused=True
    )
    step, best = 0, math.inf
    if arguments.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, best = state["step"], state["best"]
    rows = Rows(text.train, tokenizer, arguments.seed + step)  # a resumed run draws new rows
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(rows.tokens):,} tokens, from step {step}", flush=True
    )

    began, first_step, running = time.monotonic(), step, 0.0
    model.train()
    while step < arguments.steps:
        rate = min(step / WARMUP_STEPS, 0.5 * (1 + math.cos(math.pi * step / arguments.steps)))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LEARNING_RATE * rate + 1e-6
        batch = rows.step()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch[:, :-1]).logits
        loss = cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        with torch.no_grad():
            decay = min(AVERAGING, (1 + step) / (10 + step))
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        running = loss.item() if not running else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            a_step = (time.monotonic() - began) / (step - first_step)
            left = a_step * (arguments.steps - step) / 60
            print(
                f"step {step} loss {running:.3f} {a_step:.2f} s/step, {left:.1f} min left",
                flush=True,
            )
        if step % EVALUATE_EVERY == 0 or step == arguments.steps:
            bits, perplexity = bits_per_byte(average, tokenizer, text.development)
            print(f"  development {bits:.4f} bits a byte, perplexity {perplexity:.1f}", flush=True)
            if bits < best:
                best = bits
                save(average, tokenizer, arguments.out)
                print(f"  saved to {arguments.out}", flush=True)
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step, "best": best}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds text/tinyshakespeare.txt")
    parser.add_argument("--work", type=Path, default=Path("~/.cache/maasdam-starters").expanduser(), help="checkpoints")
    parser.add_argument("--out", type=Path, default=HERE / "model", help="where the model goes")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --work")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
