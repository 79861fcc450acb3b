"""What prompts that begin alike take where they are computed once, whether an answer shows it, and what guessing ahead brings.

    python -m benchmarks.prefix FOLDER [FOLDER ...] [--prompts 200] [--threads 2] [--lookup 4 8]

Each FOLDER holds a text model as OpenVINO GenAI has it. First: prompts of 1 to 258 tokens, most of which begin like others,
each without a prefix cache, then with one, alone, among 7 others, and alone again: 8 greedy tokens and their log-probabilities
are compared bit for bit. Then, in turns: the first token after 1,200 tokens that were computed before but the last 16, with and
without; 8 answers of 16 tokens to one prompt of 200. Last, answers of 96 greedy tokens to prompts of the shipped text model's
kind, one and 8 at once: exact, rounded, and with prompt lookup; what it writes is compared with the exact. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import versions
from maasdam.engines.genai_company import Written, greedily, written
from maasdam.engines.genai_engine import ALIKE_TOKENS, _pipeline, _salts
from maasdam.engines.genai_prefix import Prefixes
from maasdam.engines.genai_steps import Steps
from maasdam.engines.generation import read_defaults
from maasdam.engines.processor import processor_name

TURNS = 3
VERSES = (
    "ROMEO:\nBut, soft! what light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n",
    "KING RICHARD II:\nWhat say you to this?\n\nKING",
    "First Citizen:\nWe are accounted poor citizens, the patricians good.\n",
    "GLOUCESTER:\nNow is the winter of our discontent\nMade glorious summer by this sun of York;\n",
)


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lookup", type=int, nargs="*", default=[4, 8])
    args = parser.parse_args()
    print(f"{processor_name()}; {args.threads} threads; {versions()}\n")
    for folder in args.folders:
        vocabulary = read_defaults(folder).vocabulary or 2
        plain, cached = (opened(folder, args.threads, **{"prefix_cache": "key"} if shares else {}) for shares in (False, True))
        if args.prompts:
            print(compared(folder.name, plain, cached, args.prompts, vocabulary), flush=True)
        print(priced(folder.name, plain, cached, vocabulary), flush=True)
        for line in guessed(folder, args.threads, args.lookup):
            print(line, flush=True)


def opened(folder: Path, threads: int, *, rounds: bool = True, **options: Any) -> Steps:
    """The model's steps, as the engine takes them."""
    ahead = options.get("prompt_lookup", 0)
    make, _, blocks = _pipeline(folder, {"threads": threads, "dynamic_quantization": rounds, **options})
    salts = _salts(folder, is_asked_for=True) if "prefix_cache" in options else None
    prefixes = None if salts is None else Prefixes(salts, blocks)
    return Steps(make(salts), blocks, is_accompanied=rounds, prefixes=prefixes, ahead=ahead)


def compared(name: str, plain: Steps, cached: Steps, count: int, vocabulary: int) -> str:
    """A line: how many answers are the same bits."""
    random = np.random.default_rng(1)
    heads = [random.integers(3, vocabulary, (1, n)) for n in (96, 128, 200, 31)]
    prompts = []
    for _ in range(count):
        head = heads[int(random.integers(4))][:, : int(random.integers(0, 201))]
        prompts.append(np.concatenate([head, random.integers(3, vocabulary, (1, int(random.integers(1, 59))))], 1))
    expected = [written(plain, [prompt])[0] for prompt in prompts]
    told = []
    for size in (1, 8, 1):
        groups = [prompts[i : i + size] for i in range(0, count, size)]
        answers: list[Written] = [answer for group in groups for answer in written(cached, group, owner="one")]
        told.append(f"{sum(a == b for a, b in zip(answers, expected, strict=True))} of {count}")
    return f"| {name}: the same bits, the first time, among 7, all found | {' | '.join(told)} |"


def priced(name: str, plain: Steps, cached: Steps, vocabulary: int) -> str:
    """A line: milliseconds of the processor."""
    random = np.random.default_rng(2)
    head, prompt = random.integers(3, vocabulary, (1, 1184)), random.integers(3, vocabulary, (1, 200))
    written(cached, [head], tokens=1, owner="one")
    spent: dict[str, list[float]] = {}
    for _ in range(TURNS):
        long = np.concatenate([head, random.integers(3, vocabulary, (1, 16))], 1)
        prompt = prompt + 0
        prompt[0, 0] = random.integers(3, vocabulary)
        works: dict[str, Callable[[], object]] = {
            "1,200 tokens": partial(written, plain, [long], tokens=1),
            "1,184 of them found": partial(written, cached, [long], tokens=1, owner="one"),
            "8 to one prompt": partial(written, plain, [prompt] * 8, tokens=16),
            "8 to one, computed once": partial(written, cached, [prompt] * 8, tokens=16, owner="one"),
        }
        for what, work in works.items():
            began = time.process_time()
            work()
            spent.setdefault(what, []).append((time.process_time() - began) * 1e3)
    return f"| {name} | " + " | ".join(f"{what}: {statistics.median(each):.0f} ms" for what, each in spent.items()) + " |"


def guessed(folder: Path, threads: int, lookups: list[int]) -> list[str]:
    """Lines: milliseconds of the processor a token, steps, and whether the text is the exact one."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = [np.array([tokenizer.encode(verse).ids], np.int64) for verse in VERSES * 2]
    ways = {"exact": opened(folder, threads, rounds=False), "rounded": opened(folder, threads)}
    ways |= {f"lookup {n}": opened(folder, threads, rounds=False, prompt_lookup=n) for n in lookups}
    lines = []
    for streams in (1, 8):
        spent: dict[str, list[float]] = {way: [] for way in ways}
        texts: dict[str, Any] = {}
        counts: dict[str, int] = {}
        for turn in range(TURNS + 1):
            for way, steps in ways.items():
                began, number = time.process_time(), 0
                answers = []
                for prompt in prompts[:streams]:
                    configuration = greedily(96)
                    if way.startswith("lookup"):
                        configuration.num_assistant_tokens, configuration.max_ngram_size = int(way[7:]), ALIKE_TOKENS
                    answers.append(steps.add_request(prompt, configuration))
                while steps.has_non_finished_requests():
                    steps.step()
                    number += 1
                if turn:
                    spent[way].append((time.process_time() - began) / 96 / streams * 1e3)
                texts[way] = [[i for piece in answer._pieces for i in piece.generated_ids] for answer in answers]
                counts[way] = number
        cells = [
            f"{way}: {statistics.median(each):.2f} ms, {counts[way]} steps"
            + (", the same text" if texts[way] == texts["exact"] else ", another text" if way != "rounded" else "")
            for way, each in spent.items()
        ]
        lines.append(f"| {folder.name}: {streams} at once | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
