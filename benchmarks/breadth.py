"""Conversion over many kinds of models: model x direction, as `maasdam convert` does it, proven or refused.

    python -m benchmarks.breadth [--family onnx …] [--only NAME …] [--to onnx …] [--direct] [--keep FILE] [--write PAGE]

The models are tiny and random (benchmarks/breadth_models.py); what counts is what they are made of. From each, every direction
is taken, and on from the ONNX file and the SavedModel that were made. A cell holds the largest difference of any output as a
share of its largest value, over three seeds and several sizes, and the seconds it took, proof included. What is refused is
listed below the table with the sentence that refused it; what broke without a sentence for the user is a crash, and a fault.
The whole takes hours: with --keep, rows are kept in a file as they are finished, and a run that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.breadth_models import FAMILIES, Maker
from maasdam.convert.proof.precision import HALF, ROUNDED, WHOLE
from maasdam.core import Format
from maasdam.engines.processor import processor_name
from maasdam.errors import MaasdamError
from maasdam.operations.convert import convert_model
from maasdam.pipeline.run_recipe import installed_version

START = "<!-- measured: python -m benchmarks.breadth --write docs/breadth.md -->"
NAMES: dict[str, str] = {"pytorch": "PyTorch", "onnx": "ONNX", "tensorflow": "TensorFlow", "openvino": "OpenVINO"}
TARGETS: tuple[Format, ...] = ("onnx", "tensorflow", "pytorch", "openvino")
ONWARD: dict[Format, tuple[Format, ...]] = {
    "onnx": ("pytorch", "tensorflow", "openvino"),
    "tensorflow": ("pytorch", "onnx", "openvino"),
}
MADE: dict[Format, str] = {"onnx": "model.onnx", "tensorflow": ""}
COLUMNS: list[tuple[str, str]] = [("source", to) for to in TARGETS] + [(a, b) for a, ways in ONWARD.items() for b in ways]


@dataclass(frozen=True, slots=True)
class Cell:
    """One conversion: its difference and seconds, or why there is none."""

    difference: float | None
    seconds: float
    gap: str = ""
    is_crash: bool = False

    def __str__(self) -> str:
        if self.difference is None:
            return ("**crash**" if self.is_crash else "refused") if self.gap else ""
        return f"{self.difference:.0e}, {self.seconds:.0f} s" if self.difference else f"0, {self.seconds:.0f} s"


Matrix = dict[str, dict[tuple[str, str], Cell]]


def main() -> None:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=sorted(FAMILIES), help="only these kinds of models")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only models whose name holds one of these")
    parser.add_argument("--to", nargs="+", choices=TARGETS, default=TARGETS, help="only to these formats")
    parser.add_argument("--direct", action="store_true", help="leave out the ways on from what was made")
    parser.add_argument("--keep", type=Path, help="rows that were measured; those in it are not measured again")
    parser.add_argument("--write", type=Path, help="replace what was measured in this page")
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    matrix = _kept(args.keep)
    wanted = [(name, make) for family in args.family or FAMILIES for name, make in FAMILIES[family].items()]
    for name, make in wanted:
        if name in matrix or (args.only and not any(part.lower() in name.lower() for part in args.only)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            matrix[name] = dict(_row(make, Path(folder), args.to, args.direct))
        for (a, b), cell in matrix[name].items():
            print(f"{name}: {a} -> {b}: {cell}{cell.gap and ': ' + cell.gap}", flush=True)
        _keep(args.keep, matrix)
        gc.collect()
    order = [name for rows in FAMILIES.values() for name in rows]
    text = "\n".join(_page(dict(sorted(matrix.items(), key=lambda row: order.index(row[0])))))
    if args.write is None:
        print(text)
        return
    page = args.write.read_text() if args.write.exists() else ""
    before = page[: page.index(START)] if START in page else page
    args.write.write_text(before + START + "\n\n" + text + "\n")


def _kept(path: Path | None) -> Matrix:
    """What earlier runs measured; nothing where there was none."""
    if path is None or not path.exists():
        return {}
    rows = json.loads(path.read_text())
    return {name: {(a, b): Cell(**cell) for a, b, cell in cells} for name, cells in rows.items()}


def _keep(path: Path | None, matrix: Matrix) -> None:
    if path is not None:
        rows = {name: [(a, b, asdict(cell)) for (a, b), cell in row.items()] for name, row in matrix.items()}
        path.write_text(json.dumps(rows, indent=1))


def _row(make: Maker, work: Path, targets: Sequence[Format], is_direct: bool) -> Iterator[tuple[tuple[str, str], Cell]]:
    (work / "source").mkdir()
    source = make(work / "source")
    for to in targets:
        if _is_already(source, to):
            continue
        cell = _cell(source, to, work / to)
        yield ("source", to), cell
        if cell.gap or is_direct:
            continue
        for onward in ONWARD.get(to, ()):
            yield (to, onward), _cell(work / to / MADE[to], onward, work / f"{to}-{onward}")


def _is_already(source: Path, to: Format) -> bool:
    """A source of the format it should become: .keras is TensorFlow, but has a SavedModel before it."""
    kinds = {".onnx": "onnx", ".pt2": "pytorch"}
    kind = "tensorflow" if (source / "saved_model.pb").exists() else kinds.get(source.suffix)
    return kind == to


def _cell(source: Path, to: Format, out: Path) -> Cell:
    start = time.monotonic()
    try:
        document = convert_model(str(source), to, out, trust=True)
    except MaasdamError as error:
        return Cell(None, time.monotonic() - start, sentence(error))
    except Exception as error:  # a fault of ours: the user would see a traceback
        traceback.print_exc(file=sys.stderr)
        return Cell(None, time.monotonic() - start, f"{type(error).__name__}: {sentence(error)}", is_crash=True)
    finally:
        gc.collect()
    outputs = json.loads((out / "certificate.json").read_text())["outputs"]
    return Cell(max(o["max_rel_diff"] for o in outputs), document["seconds"])


def sentence(error: Exception) -> str:
    """The first sentence, without folders of this machine."""
    text = re.sub(r"/[\w./-]*/", "", " ".join(str(error).split()))
    return re.split(r"(?<=[.!?]) (?=[A-Z])", text)[0][:300]


def _page(matrix: Matrix) -> list[str]:
    versions = ", ".join(
        f"{name} {installed_version(name)}" for name in ("torch", "transformers", "onnx", "tensorflow-cpu", "openvino")
    )
    cells = [cell for row in matrix.values() for cell in row.values()]
    proven = sum(cell.difference is not None for cell in cells)
    lines = [
        f"On {processor_name()}, {versions}. Tolerance: {WHOLE.relative:.0e} of the largest value, {HALF.relative:.0e} for "
        f"sources that compute in halves and {ROUNDED.relative:.0e} for those that round to 8 bits. "
        f"{proven} of {len(cells)} conversions of {len(matrix)} models are proven.",
        "",
        "| model | " + " | ".join(f"{NAMES.get(a, 'source')} → {NAMES[b]}" for a, b in COLUMNS) + " |",
        "|" + "---|" * (len(COLUMNS) + 1),
    ]
    gaps: dict[str, list[str]] = defaultdict(list)
    for name, row in matrix.items():
        lines.append(f"| {name} | " + " | ".join(str(row.get(column, "")) for column in COLUMNS) + " |")
        for (a, b), cell in row.items():
            if cell.gap:
                gaps[cell.gap].append(f"{name} {NAMES.get(a, 'source')} → {NAMES[b]}")
    if gaps:
        lines += ["", "Refused:", "", *(f"- {', '.join(where)}: {why}" for why, where in gaps.items())]
    return lines


if __name__ == "__main__":
    main()
