"""What benchmarks of speed share: ways to run a network, timed in turns, and their table.

In each round every contender runs once, after a run that is not counted, and medians over the rounds are compared. Beside them
stand the processor's milliseconds, which what else the machine does changes less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from maasdam.core import Artifact
from maasdam.engines import open_engine
from maasdam.pipeline.examples import Inputs
from maasdam.pipeline.measure import take_turns
from maasdam.pipeline.passes import find_pass
from maasdam.pipeline.recipe import Use
from maasdam.pipeline.run_recipe import Build, installed_version

THREADS = 2


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to run a network: `run(round)` is what is timed."""

    what: str
    artifact: Artifact
    run: Callable[[int], object]
    target: str = ""
    note: str = ""
    cpu: list[float] = field(default_factory=list)
    """Processor seconds of every run."""

    def timed(self, round: int) -> object:
        """`run`, with the processor's time noted."""
        began = time.process_time()
        answer = self.run(round)
        self.cpu.append(time.process_time() - began)
        return answer


Way = tuple[str, Artifact, Mapping[str, Any], str, str]
"""(what it is, the artifact, engine settings, the target, a note)"""


@contextmanager
def opened(ways: list[Way]) -> Iterator[list[Any]]:
    """Every contender's engine, on two threads."""
    engines: list[Any] = []
    try:
        for _, artifact, settings, _, _ in ways:
            engines.append(open_engine(replace(artifact, settings={**artifact.settings, **settings}), threads=THREADS))
        yield engines
    finally:
        for engine in engines:
            engine.close()


def compare(title: str, ways: list[Way], inputs: Inputs, rounds: int, alone: Sequence[Contender] = ()) -> None:
    """Time `ways` against each other, and `alone` beside them."""
    with opened(ways) as engines:
        contenders = [
            Contender(what, artifact, _running(engine, inputs), target, note)
            for (what, artifact, _, target, note), engine in zip(ways, engines, strict=True)
        ]
        contenders += alone
        timings = take_turns({c.what: c.timed for c in contenders}, seconds=0, rounds=(rounds, rounds))
    print_table(title, contenders, [timings[c.what].seconds for c in contenders])


def without_us(what: str, ir: Artifact, calibration: list[Inputs], like: Inputs, threads: int, folder: Path) -> Contender:
    """What NNCF and OpenVINO give by themselves: their defaults, sizes fixed as in `like`, nothing checked, nothing copied.

    `ir` is the float network, `folder` is where the quantised one is written.
    """
    import nncf
    import openvino as ov

    from maasdam.pipeline.quantize.openvino_models import is_transformer, quiet, save

    core = ov.Core()
    model = core.read_model(ir.path / "model.xml")
    kind = nncf.ModelType.TRANSFORMER if is_transformer(model) else None
    seen = nncf.Dataset(calibration, lambda tensors: tensors)
    with quiet():
        model = nncf.quantize(model, seen, subset_size=len(calibration), model_type=kind)
    folder.mkdir(exist_ok=True)
    save(model, folder / "model.xml")
    model.reshape({name: array.shape for name, array in like.items()})
    request = core.compile_model(
        model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    ).create_infer_request()
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Contender(
        what, replace(ir, size_bytes=size), lambda number: request.infer(like, share_inputs=True, share_outputs=True)
    )


def _running(engine: Any, inputs: dict[str, Any]) -> Callable[[int], object]:
    return lambda number: engine.run(inputs)


def print_table(title: str, contenders: list[Contender], seconds: list[tuple[float, ...]]) -> None:
    """The first contender is what the others are compared with: medians over the rounds, each one's best, processor time."""
    print(f"### {title}\n")
    print("| | median ms | times faster | by best rounds | by processor time | target | MB | times smaller | |")
    print("|---|---|---|---|---|---|---|---|---|")
    base, least, whole = float(np.median(seconds[0])), min(seconds[0]), contenders[0].artifact.size_bytes
    work = float(np.median(contenders[0].cpu))
    for contender, took in zip(contenders, seconds, strict=True):
        size, median = contender.artifact.size_bytes, float(np.median(took))
        faster = (f"{base / median:.2f}", f"{least / min(took):.2f}", f"{work / float(np.median(contender.cpu)):.2f}")
        cells = (contender.what, f"{median * 1000:.2f}", *faster, contender.target, f"{size / 1e6:.1f}", f"{whole / size:.2f}")
        print("| " + " | ".join([*cells, contender.note]) + " |")
    print(flush=True)


def apply(build: Build, source: Artifact, use: str, **settings: Any) -> Artifact:
    return build.apply(Use(use, find_pass(use, "benchmark").check(settings, "benchmark")), source)


def versions() -> str:
    return ", ".join(f"{name} {installed_version(name)}" for name in ("onnxruntime", "openvino", "nncf", "torch"))
