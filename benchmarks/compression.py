"""What compression brings in size and speed: ratios inside one run, through Maasdam's own passes and engines.

    python -m benchmarks.compression [--only images encoder text speech] [--rounds 15] [--work DIR]

Models have the sizes of ResNet-50, BERT-base and a Llama of 97 million parameters, with random weights (speed and size
don't depend on their values; accuracy does, and is not measured here). Each is converted, pruned and quantised by the
passes of a recipe, opened by the engines that serve, limited to two threads, and timed in turns: in each round every
contender runs once, after a run that is not counted, and medians over the rounds are compared. Beside them stand the
processor's milliseconds, which what else the machine does changes less. Speech is the recogniser that ships, with its own
weights and recordings, against transformers in PyTorch. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import THREADS, Contender, Way, apply, compare, opened, print_table, versions, without_us
from maasdam.artifacts.store import Store
from maasdam.core import Artifact, Format, Sampling, SequenceRequest
from maasdam.engines.processor import processor_name
from maasdam.pipeline.examples import Inputs, PreparedExamples, calibration_inputs, evaluation_examples
from maasdam.pipeline.measure import take_turns
from maasdam.pipeline.passes import find_pass
from maasdam.pipeline.recipe import Use
from maasdam.pipeline.run_recipe import Build, Data
from maasdam.pipeline.subjects import TensorSubject
from maasdam.sources import ingest
from maasdam.tasks import score

TOKENS = 128
"""BERT's sentence length."""
PROMPT, ANSWER = 16, 33
"""Tokens of the language model's prompt and answer; the first token answered is not timed."""
STARTER = Path(__file__).parents[1] / "starters" / "speech"
WORDS = 16_000
"""The language model's vocabulary."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--work", type=Path, help="keep models and artifacts here, so that a second run makes nothing anew")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
    import torch

    torch.set_num_threads(THREADS)
    print(f"{processor_name()}; {THREADS} threads; load {os.getloadavg()[0]:.1f}; " + versions() + "\n")
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name in args.only:
            PARTS[name](work, Store(work / "store"), args.rounds)


def images(work: Path, store: Store, rounds: int) -> None:
    """ResNet-50, 224 x 224, batch 1: int8, and pruned to half its multiply-accumulates."""
    photographs = _photographs(work / "photographs")
    source = ingest(str(_once(work / "resnet50", _resnet)), store)
    build = Build(store, Data(calibrate=photographs), threads=THREADS)
    plain, ir = build.convert(source, "onnx"), build.convert(source, "openvino")
    pruned = apply(build, source, "prune", ratio=0.27, round_to=16)
    macs = build.steps[-1].facts["shrank"]["macs"]
    parameters = build.steps[-1].facts["shrank"]["parameters"]
    said = f"MACs x {macs['after'] / macs['before']:.2f}, parameters x {parameters['after'] / parameters['before']:.2f}"
    ways: list[Way] = [
        ("FP32, ONNX Runtime", plain, {}, "", ""),
        ("FP32, OpenVINO", ir, {}, "", ""),
        ("int8 (NNCF), OpenVINO", _int8(build, source, "openvino"), {}, ">= 4", ""),
        ("int8 (NNCF), the rest bf16, OpenVINO", _int8(build, source, "openvino"), {"precision": "bf16"}, ">= 4", ""),
        ("int8 (QDQ), ONNX Runtime", _int8(build, source, "onnx"), {}, "", ""),
        ("pruned, FP32, ONNX Runtime", build.convert(pruned, "onnx"), {}, ">= 2", said),
        ("pruned, FP32, OpenVINO", build.convert(pruned, "openvino"), {}, "", said),
        ("pruned, int8 (NNCF), OpenVINO", _int8(build, pruned, "openvino"), {}, "", said),
    ]
    inputs: Inputs = {"pixel_values": np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)}
    seen = calibration_inputs(ir, photographs, 200)
    alone = without_us("int8, NNCF and OpenVINO alone", ir, seen, inputs, THREADS, work / "alone")
    compare("ResNet-50, one 224 x 224 image", ways, inputs, rounds, [alone])


def encoder(work: Path, store: Store, rounds: int) -> None:
    """BERT-base, 128 tokens, batch 1."""
    source = ingest(str(_once(work / "bert", _bert)), store)
    assert source.signature is not None
    random = np.random.default_rng(0)
    inputs = {s.name: np.ones((8, TOKENS), s.dtype) for s in source.signature.inputs}
    inputs["input_ids"] = random.integers(1, 30_000, (8, TOKENS))
    np.savez(work / "sentences.npz", **inputs)  # type: ignore[arg-type]  # names are the model's
    build = Build(store, Data(calibrate=work / "sentences.npz"), threads=THREADS)
    dynamic = Use("quantize", find_pass("quantize", "benchmark").check({"scheme": "dynamic-int8", "format": "onnx"}, "b"))
    own = Use("quantize", find_pass("quantize", "benchmark").check({"scheme": "dynamic-int8", "format": "pytorch"}, "b"))
    ways: list[Way] = [
        ("FP32, ONNX Runtime", build.convert(source, "onnx"), {}, "", ""),
        ("FP32, OpenVINO", build.convert(source, "openvino"), {}, "", ""),
        ("int8 (NNCF), OpenVINO", _int8(build, source, "openvino"), {}, ">= 4", ""),
        ("int8 (NNCF), the rest bf16, OpenVINO", _int8(build, source, "openvino"), {"precision": "bf16"}, ">= 4", ""),
        ("int8 (QDQ), ONNX Runtime", _int8(build, source, "onnx"), {}, "", ""),
        ("dynamic int8, ONNX Runtime", build.apply(dynamic, build.convert(source, "onnx")), {}, "", ""),
        ("dynamic int8, PyTorch", build.apply(own, source), {}, "", "embeddings too"),
    ]
    compare(f"BERT-base, one sentence of {TOKENS} tokens", ways, {n: a[:1] for n, a in inputs.items()}, rounds)


def text(work: Path, store: Store, rounds: int) -> None:
    """A Llama of 97 million parameters, one stream, per token."""
    source = ingest(str(_once(work / "llama", _llama)), store, task="text-generation")
    build = Build(store, threads=THREADS)
    plain = build.convert(source, "openvino")

    def made(scheme: str, **settings: Any) -> Artifact:
        return apply(build, source, "quantize", scheme=scheme, format="openvino", **settings)

    rounded = {"activations": "dynamic-int8"}
    fast = {"precision": "bf16", **rounded}
    ways: list[Way] = [
        ("FP32", plain, {}, "", ""),
        ("bf16", made("bf16"), {}, "", ""),
        ("int8 weights", made("weights-int8"), {}, "", "computed in FP32"),
        ("int4 weights, groups of 64", made("weights-int4"), {}, ">= 3; size >= 5", "computed in FP32"),
        ("int4 weights, groups of 64", made("weights-int4", **rounded), {}, ">= 3; size >= 5", "activations int8"),
        ("int4 weights, groups of 64", made("weights-int4", **fast), {}, ">= 3; size >= 5", "bf16, activations int8"),
        ("int4 weights, groups of 128", made("weights-int4", group_size=128, **fast), {}, "", "bf16, activations int8"),
        ("int4 weights, embedding too", made("weights-int4", ends="int4", **fast), {}, "", "bf16, activations int8"),
    ]
    contenders = []
    with opened(ways) as engines:
        loop = asyncio.new_event_loop()
        for (what, artifact, _, target, note), engine in zip(ways, engines, strict=True):
            contenders.append(Contender(what, artifact, _answering(engine, loop), target, note))
        seconds = _per_token(contenders, rounds)
        loop.close()
    print_table("Llama, 97 M parameters, OpenVINO GenAI, one generated token at one stream", contenders, seconds)


def speech(work: Path, store: Store, rounds: int) -> None:
    """The shipped recogniser on its own recordings, one at a time; every way scored on all of them."""
    source = ingest(str(STARTER / "model"), store, task="automatic-speech-recognition")
    build = Build(store, Data(calibrate=STARTER / "calibrate"), threads=THREADS)
    examples = PreparedExamples(evaluation_examples(source, STARTER / "samples"))
    int8 = apply(build, source, "quantize", scheme="static-int8", format="openvino")
    ways: list[Way] = [
        ("FP32, transformers in PyTorch", source, {}, "", ""),
        ("FP32, ONNX Runtime", build.convert(source, "onnx"), {}, "", ""),
        ("FP32, OpenVINO", build.convert(source, "openvino"), {}, ">= 2", ""),
        ("FP32, OpenVINO, one thread", build.convert(source, "openvino"), {"threads": 1}, ">= 2", ""),
        ("int8 (NNCF), OpenVINO", int8, {}, ">= 2", ""),
        ("int8 (NNCF), OpenVINO, one thread", int8, {"threads": 1}, ">= 2", ""),
        ("int8 (QDQ), ONNX Runtime", _int8(build, source, "onnx"), {}, "", ""),
    ]
    with opened(ways) as engines:
        contenders = []
        for (what, artifact, _, target, _), engine in zip(ways, engines, strict=True):
            subject = TensorSubject(artifact, engine, examples)
            answers = [subject.observe(index).answer for index in range(len(subject))]
            rate = score("automatic-speech-recognition", [a for a in answers if a is not None], examples.examples).value
            contenders.append(Contender(what, artifact, subject.run_one, target, f"word error rate {rate:.3f}"))
        timings = take_turns({c.what: c.timed for c in contenders}, seconds=0, rounds=(rounds * 4, rounds * 4))
    print_table("Speech, the shipped recogniser, one recording", contenders, [timings[c.what].seconds for c in contenders])


def _answering(engine: Any, loop: asyncio.AbstractEventLoop) -> Callable[[int], float]:
    """One greedy answer; seconds per token after the first."""

    async def answer(number: int) -> float:
        prompt = np.random.default_rng(number).integers(4, WORDS, (1, PROMPT))
        sampling = Sampling(max_tokens=ANSWER, temperature=0.0, ignore_eos=True)
        began, count = 0.0, 0
        async for tokens in engine.submit(SequenceRequest(str(number), {"input_ids": prompt}, sampling)):
            if not count:
                began = time.perf_counter()
                first = len(tokens.token_ids)
            count += len(tokens.token_ids)
        return (time.perf_counter() - began) / (count - first)

    return lambda number: loop.run_until_complete(answer(number))


def _per_token(contenders: list[Contender], rounds: int) -> list[tuple[float, ...]]:
    """Seconds per token, round by round, each contender once a round, the beginner moving on."""
    took: list[list[float]] = [[] for _ in contenders]
    for number in range(-1, rounds):
        order = list(range(len(contenders)))
        for place in order[number % len(order) :] + order[: number % len(order)]:
            seconds: Any = contenders[place].timed(abs(number))
            if number >= 0:
                took[place].append(seconds)
    return [tuple(each) for each in took]


def _int8(build: Build, source: Artifact, format: Format) -> Artifact:
    return apply(build, source, "quantize", scheme="static-int8", format=format, samples=8)


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    if not (folder / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)
    return folder


def _resnet(folder: Path) -> None:
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    ResNetForImageClassification(ResNetConfig(num_labels=1000)).save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def _bert(folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig()).save_pretrained(folder)


def _llama(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<bos>": 0, "<eos>": 1} | {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 2)}
    words |= {f"word{i}": i for i in range(len(words), WORDS)}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def _photographs(folder: Path, count: int = 8) -> Path:
    """Smooth random pictures: ranges come from them, nothing is scored on them."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    for number in range(count):
        coarse = random.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((224, 224), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


PARTS = {"images": images, "encoder": encoder, "text": text, "speech": speech}

if __name__ == "__main__":
    main()
