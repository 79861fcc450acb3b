"""Whether an answer depends on its company where activations are rounded, and what the companion's row costs.

    python -m benchmarks.company [--models random trained large] [--weights int8 int4] [--prompts 200] [--work DIR]

Models are made: Llamas of 13 and 97 million random parameters, and the text model that ships, which is trained; the passes that
make int8 and int4 weights follow. After each prompt, of 1 to 258 tokens, 24 tokens are written greedily: alone, among 7 others,
among 31 others, and joining 4 that have begun; answers are compared token for token, and their log-probabilities bit for bit,
which sees what no text shows. "Without a companion" is the same engine left alone with one row. Then 1, 8 and 32 answers are
written at once, in turns: rounded without a companion, rounded with one, exact. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compression import _llama as make_llama
from benchmarks.contenders import apply, versions
from maasdam.artifacts.store import Store
from maasdam.core import Artifact
from maasdam.engines import genai_engine
from maasdam.engines.genai_company import Written, written
from maasdam.engines.genai_steps import Steps
from maasdam.engines.processor import processor_name
from maasdam.pipeline.run_recipe import Build
from maasdam.sources import ingest

STARTER = Path(__file__).parents[1] / "starters" / "text" / "model"
TOKENS = 24
LENGTHS = (1, 2, 3, 127, 128, 129, 130, 253, 254, 255, 256, 257, 258)
"""Where parts of a prompt begin and end; the others' lengths are drawn."""
TURNS = 5


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(SOURCES), default=list(SOURCES))
    parser.add_argument("--weights", nargs="+", choices=("int8", "int4"), default=["int8", "int4"])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--work", type=Path, help="keep models here, so that a second run makes none anew")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    print(f"{processor_name()}; {args.threads} threads; {versions()}\n")
    same, costs = [], []
    with tempfile.TemporaryDirectory() as folder:
        work = args.work or Path(folder)
        build = Build(Store(work / "store"), threads=args.threads)
        for name in args.models:
            source = build.convert(ingest(str(SOURCES[name](work)), build.store, task="text-generation"), "openvino")
            for weights in args.weights:
                made = apply(build, source, "quantize", scheme=f"weights-{weights}", format="openvino")
                same += compared(f"{name}, {weights}", made, args.prompts, args.threads)
                costs += priced(f"{name}, {weights}", made, args.threads)
    print("| | answers | the same tokens | the same bits | largest difference of a log-probability |\n|---|---|---|---|---|")
    print("\n".join(same))
    print(
        "\n| CPU ms a token, by streams | rounded, without a companion | rounded, with a companion | exact |\n|---|---|---|---|"
    )
    print("\n".join(costs))


def compared(name: str, artifact: Artifact, count: int, threads: int) -> list[str]:
    """Lines of the first table."""
    random = np.random.default_rng(1)
    lengths = [*LENGTHS, *(int(n) for n in random.integers(1, 100, count))][:count]
    random.shuffle(lengths)
    prompts = [random.integers(3, 8000, (1, n)) for n in lengths]
    steps = opened(artifact, threads)
    alone = [written(steps, [prompt], tokens=TOKENS)[0] for prompt in prompts]

    def grouped(size: int, joining: int = 0) -> list[Written]:
        groups = [prompts[i : i + size] for i in range(0, count, size)]
        return [
            answer for group in groups for answer in written(steps, group, tokens=TOKENS, joining=min(joining, len(group) - 1))
        ]

    lines = []
    lone = opened(artifact, threads, is_accompanied=False)
    for what, answers in (
        ("among 7 others", grouped(8)),
        ("among 31 others", grouped(32)),
        ("joining 4 that have begun", grouped(8, 4)),
        ("without a companion", [written(lone, [prompt], tokens=TOKENS)[0] for prompt in prompts]),
    ):
        tokens = sum([i for i, _ in a] == [i for i, _ in b] for a, b in zip(alone, answers, strict=True))
        bits = sum(a == b for a, b in zip(alone, answers, strict=True))
        apart = [abs(x - y) for a, b in zip(alone, answers, strict=True) for (i, x), (j, y) in zip(a, b, strict=True) if i == j]
        lines.append(f"| {name}: {what} | {count} | {tokens} | {bits} | {max(apart):.1g} |")
        print(lines[-1], flush=True)
    return lines


def priced(name: str, artifact: Artifact, threads: int) -> list[str]:
    """Lines of the second table."""
    ways = {
        "bare": opened(artifact, threads, is_accompanied=False),
        "accompanied": opened(artifact, threads),
        "exact": opened(artifact, threads, is_accompanied=False, rounds=False),
    }
    lines = []
    for streams, tokens in ((1, 64), (8, 24), (32, 12)):
        prompts = [np.random.default_rng(i).integers(3, 8000, (1, 16)) for i in range(streams)]
        spent: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(TURNS + 1):
            for way, steps in ways.items():
                began = time.process_time()
                written(steps, prompts, tokens=1)  # their prompts are not what is measured
                middle = time.process_time()
                written(steps, prompts, tokens=1 + tokens)
                if turn:
                    spent[way].append((time.process_time() - middle - (middle - began)) / tokens / streams * 1e3)
        lines.append(f"| {name}: {streams} | " + " | ".join(f"{statistics.median(each):.2f}" for each in spent.values()) + " |")
        print(lines[-1], flush=True)
    return lines


def opened(artifact: Artifact, threads: int, *, is_accompanied: bool = True, rounds: bool = True) -> Steps:
    """The artifact's steps, as the engine takes them."""
    make, _, blocks = genai_engine._pipeline(artifact.path, {"threads": threads, "dynamic_quantization": rounds})
    return Steps(make(), blocks, is_accompanied=is_accompanied)


def random_llama(folder: Path, **sizes: Any) -> Path:
    """A Llama of random weights by seed 0 with the shipped tokenizer, made if it is not there; `sizes` of its configuration."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if folder.is_dir():
        return folder
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STARTER / name, folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=8192, max_position_embeddings=1024, **sizes)).save_pretrained(folder)
    return folder


def _random(work: Path) -> Path:
    layers = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4}
    return random_llama(work / "random", hidden_size=512, intermediate_size=1536, tie_word_embeddings=True, **layers)


def _large(work: Path) -> Path:
    folder = work / "large"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        make_llama(folder)
    return folder


SOURCES: dict[str, Callable[[Path], Path]] = {"random": _random, "trained": lambda work: STARTER, "large": _large}

if __name__ == "__main__":
    main()
