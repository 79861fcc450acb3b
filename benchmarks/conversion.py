"""The matrix of conversions, measured: model x direction, each proven against the source on its own engine.

    python -m benchmarks.conversion [--only resnet bert ...] [--mobilenet FOLDER] [--operators] [--write docs/conversion.md]

Architectures have their real depth and random weights (MobileNetV2 real ones, where --mobilenet names a folder; without, it
is left out). From each, every direction is taken: from the Hugging Face folder to the three formats and OpenVINO, and on from
the ONNX file and the SavedModel that were made. A cell holds the largest difference of any output as a share of its largest
value, over two seeds and batches of one, two and three, and the seconds the conversion took. What is refused, or differs by
more than the tolerance, is a gap and named. After the matrix: ONNX's own node tests, operator by operator.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.node_tests import FRAMEWORKS, Verdict, verdicts
from maasdam.artifacts.store import Store
from maasdam.convert import convert
from maasdam.convert.networks import Part, take_part
from maasdam.convert.proof.certificate import certify
from maasdam.convert.proof.differences import Tolerance
from maasdam.core import SPEECH_RECOGNITION, Artifact, Format
from maasdam.engines.processor import processor_name
from maasdam.errors import MaasdamError
from maasdam.pipeline.run_recipe import installed_version
from maasdam.sources import ingest

SEEDS = (0, 1)
OPERATORS = "## Operators"
START = "<!-- measured: python -m benchmarks.conversion --write docs/conversion.md -->"
NAMES = {"pytorch": "PyTorch", "onnx": "ONNX", "tensorflow": "TensorFlow", "openvino": "OpenVINO"}
FIRST: tuple[Format, ...] = ("onnx", "tensorflow", "pytorch", "openvino")
ONWARD: dict[Format, tuple[Format, ...]] = {
    "onnx": ("pytorch", "tensorflow", "openvino"),
    "tensorflow": ("pytorch", "onnx", "openvino"),
}
COLUMNS = [("pytorch", to) for to in FIRST] + [(a, b) for a, targets in ONWARD.items() for b in targets]


@dataclass(frozen=True, slots=True)
class Cell:
    """One conversion: its difference and seconds, or why there is none."""

    difference: float | None
    seconds: float | None
    gap: str = ""

    def __str__(self) -> str:
        if self.difference is None:
            return "gap" if self.gap else ""
        return f"{self.difference:.0e}, {self.seconds:.0f} s" if self.difference else f"0, {self.seconds:.0f} s"


Matrix = dict[str, dict[tuple[str, str], Cell]]


def main() -> None:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(MODELS))
    parser.add_argument("--mobilenet", type=Path, help="a Hugging Face folder of a MobileNetV2 with real weights")
    parser.add_argument("--write", type=Path, help="replace what was measured in this page")
    parser.add_argument("--operators", action="store_true", help="the node tests alone; with --write the matrix stays")
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if args.operators:
        _show(_coverage(), args.write, OPERATORS)
        return
    matrix: Matrix = {}
    axes: dict[str, str] = {}
    for name in args.only or MODELS:
        what, make = MODELS[name]
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            if make is not None:
                source = make(work)
            elif args.mobilenet is not None:
                source = ingest(str(args.mobilenet), Store(work / "store"))
            else:
                continue
            axes[what] = _axes(source)
            matrix[what] = dict(_row(source, work))
        gc.collect()
        print(
            f"{what}: " + "; ".join(f"{a}->{b} {c}{c.gap and ': ' + c.gap}" for (a, b), c in matrix[what].items()), flush=True
        )
    _show([START, "", *_matrix(matrix, axes), "", *_coverage()], args.write, START)


def _show(lines: list[str], page: Path | None, place: str) -> None:
    """Print the lines, or put them into the page instead of all from `place` on."""
    text = "\n".join(lines) + "\n"
    if page is None:
        print(text)
        return
    old = page.read_text()
    page.write_text(old[: old.index(place)] + text)


def _row(source: Artifact, work: Path) -> Iterator[tuple[tuple[str, str], Cell]]:
    for to in FIRST:
        cell, made = _cell(source, to, work)
        yield ("pytorch", to), cell
        if made is not None:
            for onward in ONWARD.get(to, ()):
                yield (to, onward), _cell(made, onward, work)[0]


def _cell(source: Artifact, to: Format, work: Path) -> tuple[Cell, Artifact | None]:
    """Convert `source`, and prove the result against `source` on its own engine."""
    if source.format == to and source.layout == "pt2":
        return Cell(None, None), None
    out = Path(tempfile.mkdtemp(dir=work))
    try:
        start = time.monotonic()
        produced = convert(source, to, out)
        seconds = time.monotonic() - start
        made = replace(
            source, digest=f"sha256:{out.name}", path=out, format=produced.format, layout=produced.layout,
            engine=produced.engine, signature=produced.signature,
        )  # fmt: skip
        proof = certify(source, made, seeds=SEEDS)
    except MaasdamError as error:
        return Cell(None, None, " ".join(str(error).split())), None
    finally:
        gc.collect()
    return Cell(max(o.max_rel_diff for o in proof.outputs), seconds), made


def _axes(source: Artifact) -> str:
    if source.signature is None:
        return "batch, sequence and past"
    return "; ".join(
        f"{s.name} [{', '.join('open' if d is None else str(d) for d in s.shape)}]" for s in source.signature.inputs[:1]
    )


def _matrix(matrix: Matrix, axes: dict[str, str]) -> list[str]:
    head = ["model", *(f"{NAMES[a]} → {NAMES[b]}" for a, b in COLUMNS), "axes kept open"]
    versions = ", ".join(f"{name} {installed_version(name)}" for name in ("torch", "onnx", "tensorflow-cpu", "openvino"))
    lines = [f"On {processor_name()}, {versions}. Tolerance: {Tolerance().relative:.0e} of the largest value.", ""]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    gaps: dict[str, list[str]] = defaultdict(list)
    for what, row in matrix.items():
        cells = []
        for column in COLUMNS:
            cell = row.get(column, Cell(None, None))
            if cell.gap:
                gaps[_plain(cell.gap)].append(f"{what} {NAMES[column[0]]} → {NAMES[column[1]]}")
            cells.append(str(cell))
        lines.append(f"| {what} | {' | '.join(cells)} | {axes[what]} |")
    if gaps:
        lines += ["", "Gaps:", "", *(f"- {', '.join(where)}: {why}" for why, where in gaps.items())]
    return lines


def _plain(why: str) -> str:
    """Without folders of this machine."""
    return re.sub(r"/[\w./-]*/", "", why)[:300]


def _coverage() -> list[str]:
    """Cases passed / all, by operator."""
    said: dict[str, dict[str, list[Verdict]]] = defaultdict(lambda: {f: [] for f in FRAMEWORKS})
    for framework in FRAMEWORKS:
        for verdict in verdicts(framework):
            said[verdict.operator][framework].append(verdict)
    lines = [
        OPERATORS,
        "",
        "Node tests of `onnx.backend.test`, passed / all; the rest is refused, none is computed wrongly:",
        "",
    ]
    for framework in FRAMEWORKS:
        found = [v for cases in said.values() for v in cases[framework]]
        whole = sum(all(v.said == "passed" for v in cases[framework]) for cases in said.values())
        some = sum(any(v.said == "passed" for v in cases[framework]) for cases in said.values())
        passed, wrong = (sum(v.said == kind for v in found) for kind in ("passed", "differs"))
        lines.append(
            f"- ONNX → {NAMES[framework]}: {passed} / {len(found)} cases, {wrong} computed wrongly; {whole} of {len(said)} "
            f"operators in every case, {some} in at least one."
        )
    lines += ["", "| operator | → PyTorch | → TensorFlow |", "|---|---|---|"]
    for operator, cases in sorted(said.items()):
        counts = [f"{sum(v.said == 'passed' for v in cases[f])} / {len(cases[f])}" for f in FRAMEWORKS]
        lines.append(f"| {operator} | {counts[0]} | {counts[1]} |")
    return lines


def _network(work: Path) -> Artifact:
    import torch

    torch.manual_seed(0)
    layers = torch.nn
    module = layers.Sequential(
        layers.Conv2d(3, 16, 3, padding=1), layers.BatchNorm2d(16), layers.ReLU(), layers.MaxPool2d(2),
        layers.Conv2d(16, 32, 3, padding=1), layers.ReLU(), layers.AdaptiveAvgPool2d(1), layers.Flatten(),
        layers.Linear(32, 10),
    ).eval()  # fmt: skip
    with torch.no_grad():
        module[8].weight.normal_()
    program = torch.export.export(module, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, work / "model.pt2")
    return ingest(str(work / "model.pt2"), Store(work / "store"))


def _transformer(kind: str, config: str, **sizes: Any) -> Callable[[Path], Artifact]:
    def make(work: Path) -> Artifact:
        import torch
        import transformers

        transformers.logging.disable_progress_bar()
        torch.manual_seed(0)
        model = getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):  # statistics of a network that has seen something
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 1.5)
        model.save_pretrained(work / "model")
        if "Image" in kind:
            side = '{"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}}'
            (work / "model" / "preprocessor_config.json").write_text(side)
        return ingest(str(work / "model"), Store(work / "store"))

    return make


def _tiny(name: str) -> Callable[[Path], Artifact]:
    def make(work: Path) -> Artifact:
        from tests.convert import tiny

        found: Artifact = getattr(tiny, name)(work / "model")
        return found

    return make


def _language(kind: str, **sizes: Any) -> Callable[[Path], Artifact]:
    def make(work: Path) -> Artifact:
        from tests.convert import tiny

        return tiny.language_model(work / "model", kind, initializer_range=0.06, **sizes)

    return make


def _whisper(part: Part) -> Callable[[Path], Artifact]:
    """As large as the smallest one that is published."""

    def make(work: Path) -> Artifact:
        import torch
        import transformers

        torch.manual_seed(0)
        sizes: dict[str, Any] = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in WHISPER.items()}
        config = transformers.WhisperConfig(d_model=384, init_std=0.06, **sizes)
        transformers.WhisperForConditionalGeneration(config).eval().save_pretrained(work / "model")
        whole = Artifact(
            "sha256:whisper", work / "model", "pytorch", "huggingface", SPEECH_RECOGNITION, "transformers", None, 1
        )
        return take_part(whole, part)

    return make


IMAGES = {"num_labels": 1000}
WHISPER = {"layers": 4, "attention_heads": 6, "ffn_dim": 1536}
SMALL: dict[str, Any] = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
BERT: dict[str, Any] = SMALL | {"initializer_range": 0.06}
MODELS: dict[str, tuple[str, Callable[[Path], Artifact] | None]] = {
    "cnn": ("a small CNN (.pt2)", _network),
    "resnet": ("ResNet-50", _transformer("ResNetForImageClassification", "ResNetConfig", **IMAGES)),
    "mobilenet": ("MobileNetV2, real weights", None),
    "vit": ("ViT-S/16", _transformer("ViTForImageClassification", "ViTConfig", **IMAGES, **SMALL)),
    "bert": ("BERT encoder, 12 x 384", _transformer("BertModel", "BertConfig", **BERT)),
    "bert-tokens": (
        "BERT, token classification",
        _transformer("BertForTokenClassification", "BertConfig", num_labels=9, **BERT),
    ),
    "bert-sequence": ("BERT, sequence classification", _transformer("BertForSequenceClassification", "BertConfig", **BERT)),
    "wav2vec2": (
        "wav2vec2-CTC, 12 x 384",
        _transformer("Wav2Vec2ForCTC", "Wav2Vec2Config", vocab_size=32, initializer_range=0.06, **SMALL),
    ),
    "w2v-bert": ("Wav2Vec2-BERT-CTC, tiny", _tiny("speech_recogniser")),
    "gpt2": ("GPT-2 with KV cache, 12 x 384", _language("gpt2", n_embd=384, n_layer=12, n_head=6)),
    "llama": (
        "Llama with KV cache, 12 x 384, grouped queries",
        _language(
            "llama", hidden_size=384, num_hidden_layers=12, num_attention_heads=6, num_key_value_heads=2, intermediate_size=1024
        ),
    ),
    "whisper-encoder": ("Whisper encoder, tiny's size", _whisper("encoder")),
    "whisper-decoder": ("Whisper decoder with KV cache, tiny's size", _whisper("decoder")),
}


if __name__ == "__main__":
    main()
