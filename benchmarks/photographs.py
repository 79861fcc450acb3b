"""Int8 of a real image classifier: size, speed, and accuracy on photographs it was not calibrated on.

    python -m benchmarks.photographs --model FOLDER --data PHOTOGRAPHS [--folds 5] [--rounds 60] [--work DIR]

The photographs are cut into `--folds` parts. For each, the recipe int8 calibrates on that part alone and is scored on all the
others, so no photograph is ever scored by a network that its ranges were taken from; the drop is over all those answers,
with the float32 network's own on the same ones beside it. Size counts every file. Speed is of the first part's network, against
float32 in turns: one photograph at a time on two threads and on one, and eight in one run. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.contenders import THREADS, Contender, print_table, versions, without_us
from maasdam.artifacts.store import Store
from maasdam.core import Artifact, Classification
from maasdam.engines import open_engine
from maasdam.engines.processor import processor_name
from maasdam.pipeline.bootstrap import confidence
from maasdam.pipeline.examples import PreparedExamples, calibration_inputs, evaluation_examples
from maasdam.pipeline.measure import take_turns
from maasdam.pipeline.recipe import find_recipe
from maasdam.pipeline.run_recipe import Build, Data
from maasdam.pipeline.subjects import BATCH, TensorSubject, stacked
from maasdam.sources import ingest

TASK = "image-classification"
TARGET = ">= 2.5; size >= 3.4"


@dataclass(frozen=True, slots=True)
class Fold:
    """One part of the photographs to calibrate on, and what came of it."""

    calibrated_on: frozenset[str]
    artifact: Artifact


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder of an image classifier")
    parser.add_argument("--data", type=Path, required=True, help="labelled photographs: a folder with metadata.csv")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--work", type=Path, help="keep artifacts here, so that a second run makes nothing anew")
    args = parser.parse_args()
    print(f"{processor_name()}; {THREADS} threads; load {os.getloadavg()[0]:.1f}; {versions()}\n")
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        store = Store(work / "store")
        source = ingest(str(args.model), store, task=TASK)
        plain = Build(store, threads=THREADS).convert(source, "onnx")
        folds = _quantized(source, store, args.data, args.folds, work)
        _print_accuracy(plain, folds, args.data)
        _print_speed(plain, Build(store, threads=THREADS).convert(source, "openvino"), folds[0].artifact, args, work)


def _quantized(source: Artifact, store: Store, data: Path, count: int, work: Path) -> list[Fold]:
    """The recipe int8, calibrated on each part in turn. Labels don't come along: calibration reads none."""
    with (data / "metadata.csv").open(newline="") as file:
        names = sorted(row["file_name"] for row in csv.DictReader(file))
    folds = []
    for number in range(count):
        mine = names[number::count]
        folder = work / f"calibrate-{number}-of-{count}"
        folder.mkdir(exist_ok=True)
        for name in mine:
            shutil.copyfile(data / name, folder / name)
        build = Build(store, Data(calibrate=folder), threads=THREADS)
        folds.append(Fold(frozenset(mine), build.run(find_recipe("int8", TASK), source, None)))
    return folds


def _right(artifact: Artifact, examples: PreparedExamples) -> dict[str, bool]:
    """Whether the first label is the right one, by photograph."""
    engine = open_engine(artifact, threads=THREADS)
    try:
        subject = TensorSubject(artifact, engine, examples)  # type: ignore[arg-type]  # a classifier runs in a tensor engine
        found = {}
        for index, example in enumerate(examples.examples):
            answer = subject.observe(index).answer
            assert isinstance(answer, Classification)
            found[example.name] = answer.labels[0].label_id == example.truth
        return found
    finally:
        engine.close()


def _print_accuracy(plain: Artifact, folds: list[Fold], data: Path) -> None:
    examples = PreparedExamples(evaluation_examples(plain, data))
    expected = _right(plain, examples)
    print(f"### Top-1 of {len(examples)} photographs, each scored by networks calibrated on others\n")
    print("| calibrated on | scored on | float32 | int8 | drop, points | runs on |")
    print("|---|---|---|---|---|---|")
    reference: list[tuple[float, float]] = []
    candidate: list[tuple[float, float]] = []
    for number, fold in enumerate(folds, 1):
        got = _right(fold.artifact, examples)
        others = [name for name in expected if name not in fold.calibrated_on]
        before, after = ([float(right[name]) for name in others] for right in (expected, got))
        reference += [(value, 1.0) for value in before]
        candidate += [(value, 1.0) for value in after]
        shares = sum(before) / len(others), sum(after) / len(others)
        drop = (shares[0] - shares[1]) * 100
        print(
            f"| part {number}: {len(fold.calibrated_on)} | {len(others)} | {shares[0]:.4f} | {shares[1]:.4f} | {drop:+.2f} "
            f"| {fold.artifact.engine} |"
        )
    whole = [sum(above for above, _ in shares) / len(shares) for shares in (reference, candidate)]
    sure = confidence("top1", reference, candidate, "answers")
    assert sure is not None
    low, high = (100 * edge for edge in sure["drop"])
    print(
        f"| all | {len(reference)} answers | {whole[0]:.4f} | {whole[1]:.4f} | {(whole[0] - whole[1]) * 100:+.2f} "
        f"[{low:+.2f}, {high:+.2f}] (asked: at most 1) | |\n",
        flush=True,
    )


def _print_speed(plain: Artifact, ir: Artifact, int8: Artifact, args: argparse.Namespace, work: Path) -> None:
    """One photograph at a time, on two threads and on one (what a loaded server has for each), and a batch.

    Beside them stand NNCF and OpenVINO by themselves, calibrated on the same part.
    """
    calibration = calibration_inputs(ir, work / f"calibrate-0-of-{args.folds}", 200)
    examples = PreparedExamples(evaluation_examples(plain, args.data, limit=16))
    for title, method, threads in (
        ("one photograph, two threads", "run_one", THREADS),
        ("one photograph, one thread", "run_one", 1),
        (f"{BATCH} photographs in one run, two threads", "run_batch", THREADS),
    ):
        ways = [("FP32, ONNX Runtime", plain, ""), ("FP32, OpenVINO", ir, ""), (f"int8, {int8.engine}", int8, TARGET)]
        opened = [replace(artifact, settings={**artifact.settings, "threads": threads}) for _, artifact, _ in ways]
        engines = [open_engine(artifact, threads=threads) for artifact in opened]
        subjects = [
            TensorSubject(artifact, engine, examples)  # type: ignore[arg-type]  # a classifier runs in a tensor engine
            for artifact, engine in zip(opened, engines, strict=True)
        ]
        contenders = [
            Contender(what, artifact, getattr(subject, method), target)
            for (what, artifact, target), subject in zip(ways, subjects, strict=True)
        ]
        row = subjects[0].inputs_to_load[0]
        like = row if method == "run_one" else stacked(row, subjects[0].engine)
        contenders.append(without_us("int8, NNCF and OpenVINO alone", ir, calibration, like, threads, work / "alone"))
        timings = take_turns({c.what: c.timed for c in contenders}, seconds=0, rounds=(args.rounds, args.rounds))
        print_table(f"{args.model.name}, {title}", contenders, [timings[c.what].seconds for c in contenders])
        for engine in engines:
            engine.close()


if __name__ == "__main__":
    main()
