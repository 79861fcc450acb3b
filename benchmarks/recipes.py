"""Every recipe over many kinds of models, as `maasdam build` does it: what passes, what fails its limits, what is refused.

    python -m benchmarks.recipes [--family images text speech] [--only NAME ...] [--recipe NAME ...]

The models are tiny and random (benchmarks/breadth_models.py), so sizes and speeds mean nothing; what counts is what they are
made of. Pictures are labelled with what the source itself answers, so a drop is a change of mind. A cell is the verdict with
the metric before and after; what is refused stands below the table with the sentence that refused it; what broke without one
is a crash, and a fault.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import sys
import tempfile
import traceback
import wave
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.breadth import sentence
from benchmarks.breadth_models import FAMILIES, VOCABULARY, Maker
from maasdam import settings
from maasdam.errors import MaasdamError
from maasdam.operations.build import BuildSpec, build
from maasdam.operations.workspace import Workspace

PICTURES = 48
RECORDINGS = 8
LETTERS = "abcdefghijklmnop"
HELD = "the dog sat on the mat and the cat sat on the log\n"
TRAIN = "the cat sat on the mat and the dog sat on the log\n"
IMAGES = (
    "ConvNeXt", "Swin", "DeiT", "BEiT", "EfficientNet", "RegNet", "MobileViT", "SegFormer", "MobileNetV3Small", "DenseNet121",
)  # fmt: skip
SPEECH = ("HuBERT-CTC", "WavLM-CTC")
RECIPES = {
    "images": ("fp32", "bf16", "int8", "int8-dynamic", "int8-weights", "pruned", "distilled"),
    "speech": ("fp32", "bf16", "int8", "int8-dynamic", "int8-weights", "pruned", "distilled"),
    "text": ("fp32", "bf16", "int8", "int8-weights", "int4-weights", "pruned", "distilled"),
}
Data = tuple[Path, Path, Path | None]
"""(data to score on, other data to train and calibrate on, a folder for --processor)"""
Cell = tuple[str, str]
"""(what the table shows, the sentence that refused it)."""


def main() -> None:
    """Build and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=sorted(RECIPES), default=list(RECIPES))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only models whose name holds one of these")
    parser.add_argument("--recipe", nargs="+", help="only these recipes")
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for family in args.family:
        recipes = tuple(name for name in RECIPES[family] if not args.recipe or name in args.recipe)
        rows = {name: dict(_row(family, make, recipes)) for name, make in _models(family) if _is_wanted(name, args.only)}
        if rows:
            print("\n".join(_table(family, recipes, rows)), flush=True)


def _is_wanted(name: str, only: list[str] | None) -> bool:
    return not only or any(part.lower() in name.lower() for part in only)


def _models(family: str) -> Iterator[tuple[str, Maker]]:
    known = {name: make for rows in FAMILIES.values() for name, make in rows.items()}
    names = {"images": IMAGES, "speech": SPEECH, "text": tuple(FAMILIES["decoders"])}[family]
    return ((name, known[name]) for name in names)


def _row(family: str, make: Maker, recipes: tuple[str, ...]) -> Iterator[tuple[str, Cell]]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "made").mkdir()
        source = make(work / "made")
        prepare, task = {
            "images": (_of_pictures, "image-classification"),
            "speech": (_of_recordings, "automatic-speech-recognition"),
            "text": (_of_texts, "text-generation"),
        }[family]
        held, train, processor = prepare(source, work)
        home = Workspace.open(settings.load({"home": work / "home"}, environ={}))
        with home:
            for recipe in recipes:
                cell = _cell(home, source, recipe, held, train, processor, task)
                print(f"{source.name} {recipe}: {cell[0]} {cell[1]}", file=sys.stderr, flush=True)
                yield recipe, cell
                gc.collect()


def _cell(home: Workspace, source: Path, recipe: str, held: Path, train: Path, processor: Path | None, task: str) -> Cell:
    try:
        data: dict[str, Any] = {"data": held, "calibrate": train, "train": train}
        version = build(home, BuildSpec("it", str(source), task, recipe, processor=processor, **data))
    except MaasdamError as error:
        return "refused", sentence(error)
    except Exception as error:  # a fault of ours: the user would see a traceback
        traceback.print_exc(file=sys.stderr)
        return "**crash**", f"{type(error).__name__}: {sentence(error)}"
    report = version.report or {}
    accuracy = report.get("accuracy") or {}
    sides = [accuracy.get(side) for side in ("reference", "candidate")]
    shown = " → ".join("-" if side is None else f"{side:.3g}" for side in sides)
    return f"{'passed' if report.get('passed') else 'failed'}, {shown}", "; ".join(report.get("failures") or [])


def _table(family: str, recipes: tuple[str, ...], rows: dict[str, dict[str, Cell]]) -> list[str]:
    lines = [f"### {family.capitalize()}", "", "| model | " + " | ".join(recipes) + " |", "|" + "---|" * (len(recipes) + 1)]
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, cells in rows.items():
        lines.append(f"| {name} | " + " | ".join(cells[recipe][0] for recipe in recipes) + " |")
        for recipe, (_, why) in cells.items():
            if why:
                reasons[why].append(f"{name} {recipe}")
    lines += ["", *(f"- {', '.join(where)}: {why}" for why, where in reasons.items()), ""]
    return lines


def _of_pictures(source: Path, work: Path) -> Data:
    processor = _processor(source, work) if source.suffix == ".keras" else None
    held, train = (_pictures(source, processor, work / name, seed) for seed, name in enumerate(("held", "train")))
    return held, train, processor


def _pictures(source: Path, processor: Path | None, folder: Path, seed: int) -> Path:
    """Smooth random pictures, labelled with what the source answers."""
    from PIL import Image

    folder.mkdir()
    random = np.random.default_rng(seed)
    for number in range(PICTURES):
        coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    with (folder / "metadata.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file_name", "label_id"))
        rows.writerows(_answers(source, processor, folder, folder.parent))
    return folder


def _answers(source: Path, processor: Path | None, folder: Path, work: Path) -> Iterator[tuple[str, int]]:
    from maasdam.artifacts.store import Store
    from maasdam.core import ImagePayload
    from maasdam.engines import open_engine
    from maasdam.pipeline.examples import Preparer
    from maasdam.sources import ingest

    artifact = ingest(str(source), Store(work / "asked"), task="image-classification", processor=processor)
    prepare, engine = Preparer(artifact), open_engine(artifact, threads=2)
    try:
        for file in sorted(folder.glob("*.png")):
            (inputs,) = prepare(file.name, ImagePayload(file.read_bytes()))
            run: Any = engine
            yield file.name, int(np.argmax(next(iter(run.run(inputs).values()))))
    finally:
        engine.close()


def _processor(source: Path, work: Path) -> Path:
    """The Hugging Face files that a network of keras.applications does not bring."""
    folder = work / "processor"
    folder.mkdir()
    side = {"height": 64, "width": 64}
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor", "size": side}))
    (folder / "config.json").write_text(json.dumps({"id2label": {str(i): f"class {i}" for i in range(10)}}))
    return folder


def _of_recordings(source: Path, work: Path) -> Data:
    """With a tokenizer of letters beside the model."""
    words = {"<pad>": 0, "|": 1, "<unk>": 2} | {letter: 3 + i for i, letter in enumerate(LETTERS)}
    (source / "vocab.json").write_text(json.dumps(words))
    said = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "<pad>", "unk_token": "<unk>", "word_delimiter_token": "|"}
    (source / "tokenizer_config.json").write_text(json.dumps(said))
    held, train = (_recordings(work / name, seed) for seed, name in enumerate(("held", "train")))
    return held, train, None


def _recordings(folder: Path, seed: int) -> Path:
    """Tones in noise, a few letters to each."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    rows = []
    for number in range(RECORDINGS):
        seconds = np.arange(16_000) / 16_000
        tone = np.sin(2 * np.pi * (200 + 90 * number) * seconds) * 0.4 + random.normal(0, 0.02, len(seconds))
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes((tone * 32767).astype("<i2").tobytes())
        rows.append((f"{number}.wav", "".join(random.choice(list(LETTERS), 4))))
    with (folder / "metadata.csv").open("w", newline="") as written:
        csv.writer(written).writerows([("file_name", "transcription"), *rows])
    return folder


def _of_texts(source: Path, work: Path) -> Data:
    """With a tokenizer of as many tokens as the model has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(f"{HELD} {TRAIN}".split(), trainer)
    kept = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    kept.save_pretrained(source)
    for name, text in (("held.txt", HELD), ("train.txt", TRAIN)):
        (work / name).write_text(text * 40)
    return work / "held.txt", work / "train.txt", None


if __name__ == "__main__":
    main()
