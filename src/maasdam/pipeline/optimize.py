"""The pass "optimize": open every way to run a network here, time them against each other, keep the fastest.

Knows engines, threads and precisions. Refuses to know labels. Its table is in the facts of the pass.

    rivals x threads x precisions --take turns on real inputs--> table --fastest that did not drift--> settings
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maasdam.core import Artifact, TensorEngine
from maasdam.errors import MaasdamError, NotFound, Unsupported
from maasdam.pipeline.examples import Inputs, calibration_inputs, made_up_inputs
from maasdam.pipeline.measure import take_turns
from maasdam.pipeline.parity import cosine, flat
from maasdam.pipeline.passes import Pass, PassContext, Produced, Setting

INPUTS = 16
"""Real inputs the candidates are timed on."""
SECONDS = 8.0
"""How long all candidates together are timed, beyond the first twenty rounds."""
CLEARLY_FASTER = 0.95
"""A way that differs only in settings must take less than this share of the plain way's time to be preferred."""
PLAIN_PRECISION = "f32"
"""What engines compute in when nothing is said: said, it would make another artifact of the same files."""
DRIFT_FREE = 0.01
"""1 - cosine that is always allowed; beyond it a candidate may drift three times as far as the closest one."""


@dataclass(slots=True)
class Candidate:
    """One way to run the network."""

    artifact: Artifact
    threads: int
    precision: str | None
    engine: TensorEngine | None = None
    p50: float | None = None
    cosine: float | None = None
    why_not: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The engine settings that make it so; what is the default is left out."""
        settings = dict(self.artifact.settings)
        if self.threads:
            settings["threads"] = self.threads
        if self.precision not in (None, PLAIN_PRECISION) or "precision" in settings:
            settings["precision"] = self.precision
        return settings

    def to_json(self, is_chosen: bool) -> dict[str, Any]:
        """One row of the table."""
        return {
            "engine": self.artifact.engine,
            "threads": self.threads or len(os.sched_getaffinity(0)),
            "precision": self.precision,
            "p50_ms": None if self.p50 is None else self.p50 * 1000,
            "cosine": self.cosine,
            "chosen": is_chosen,
            "left_out": self.why_not,
        }


def run(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Copy the fastest of the source and its rivals into `out`. Raises Unsupported where none of them runs."""
    rivals = (source, *context.rivals)
    if source.signature is None:
        best = Candidate(source, 0, source.settings.get("precision"))
        facts: dict[str, Any] = {"table": [], "says": f"one way to run it: {source.engine}"}
    else:
        from maasdam.engines import open_engine

        best, candidates = choose(rivals, settings, context, open_engine)
        facts = {"table": [c.to_json(c is best) for c in candidates], "what": "median of one run on one example"}
    for path in sorted(best.artifact.path.iterdir()):
        if path.name == "artifact.json":
            continue
        if path.is_dir():
            shutil.copytree(path, out / path.name)
        else:
            shutil.copyfile(path, out / path.name)
    chosen = best.artifact
    return Produced(chosen.format, chosen.layout, chosen.engine, chosen.signature, best.settings, facts)


def choose(
    rivals: Sequence[Artifact], settings: Mapping[str, Any], context: PassContext, open_engine: Callable[..., Any]
) -> tuple[Candidate, list[Candidate]]:
    """The best candidate and all of them. Raises Unsupported where none runs."""
    candidates = [c for rival in rivals for c in _ways(rival, settings, context.threads)]
    try:
        inputs = {rival.digest: _inputs(rival, context) for rival in rivals}
        for candidate in candidates:
            _open(candidate, inputs[candidate.artifact.digest], context, open_engine)
        running = [c for c in candidates if c.engine is not None]
        if not running:
            raise Unsupported("no engine here runs it: " + "; ".join(str(c.why_not) for c in candidates))
        _check_drift(running, rivals[0], inputs, context, open_engine)
        running = [c for c in running if c.why_not is None]
        _time(running, inputs, context)
        return _fastest(running), candidates
    finally:
        for candidate in candidates:
            if candidate.engine is not None:
                candidate.engine.close()


def _ways(artifact: Artifact, settings: Mapping[str, Any], threads: int) -> list[Candidate]:
    """Every thread count and precision this artifact may run with."""
    kept = artifact.settings.get("precision")
    asked = settings["precision"]
    precisions: tuple[str | None, ...] = (kept,)
    if artifact.engine == "openvino":
        precisions = ("f32", "bf16") if asked == "auto" else (kept or asked,)
    cores = threads or len(os.sched_getaffinity(0))
    counts = (0, 1) if settings["threads"] == "auto" and cores > 1 else (0,)
    return [Candidate(artifact, count, precision) for precision in precisions for count in counts]


def _inputs(artifact: Artifact, context: PassContext) -> list[Inputs]:
    path = context.data or context.calibrate
    if path is not None:
        return calibration_inputs(artifact, path, INPUTS)
    return made_up_inputs(artifact, INPUTS)


def _open(candidate: Candidate, inputs: list[Inputs], context: PassContext, open_engine: Callable[..., Any]) -> None:
    """Open its engine and run it once; a candidate that can't is left out with the reason."""
    try:
        engine = open_engine(
            candidate.artifact, device=context.device, threads=candidate.threads or context.threads, settings=candidate.settings
        )
        candidate.engine = engine
        engine.run(inputs[0])
    except MaasdamError as error:
        candidate.why_not = f"does not run: {error}"
        if candidate.engine is not None:
            candidate.engine.close()
            candidate.engine = None


def _check_drift(
    running: list[Candidate],
    source: Artifact,
    inputs: Mapping[str, list[Inputs]],
    context: PassContext,
    open_engine: Callable[..., Any],
) -> None:
    """Leave out candidates that drift much further from what they were made of than the closest one does."""
    try:
        original = context.store.get(source.parents[0])
    except (IndexError, NotFound):
        return
    if original.signature is None or original.engine not in ("openvino", "onnxruntime"):
        return
    engine = open_engine(original, device=context.device, threads=context.threads)
    try:
        wanted = [flat([engine.run(tensors)]) for tensors in inputs[source.digest]]
    finally:
        engine.close()
    for candidate in running:
        assert candidate.engine is not None
        got = [flat([candidate.engine.run(tensors)]) for tensors in inputs[candidate.artifact.digest]]
        pairs = zip(wanted, got, strict=True)
        values = [cosine(a, b) if a.shape == b.shape else 0.0 for a, b in pairs]
        candidate.cosine = sum(values) / len(values)
    closest = max(c.cosine for c in running if c.cosine is not None)
    allowed = 1 - max(DRIFT_FREE, 3 * (1 - closest))
    for candidate in running:
        if candidate.cosine is not None and candidate.cosine < allowed:
            candidate.why_not = f"drifts: cosine {candidate.cosine:.4f} where the closest has {closest:.4f}"


def _time(running: list[Candidate], inputs: Mapping[str, list[Inputs]], context: PassContext) -> None:
    if len(running) == 1:
        return

    def runner(candidate: Candidate) -> Callable[[int], object]:
        own, engine = inputs[candidate.artifact.digest], candidate.engine
        assert engine is not None
        return lambda number: engine.run(own[number % len(own)])

    timings = take_turns(
        {str(i): runner(c) for i, c in enumerate(running)},
        seconds=SECONDS,
        tell=lambda done, total: context.progress("measure the candidates", done, total),
    )
    for i, candidate in enumerate(running):
        candidate.p50 = timings[str(i)].p50


def _fastest(running: list[Candidate]) -> Candidate:
    """By median; fewer threads than there are only where that is clearly faster, since they serve fewer at once."""
    if running[0].p50 is None:
        return running[0]

    def cost(candidate: Candidate) -> float:
        assert candidate.p50 is not None
        return candidate.p50 / (CLEARLY_FASTER if candidate.threads else 1)

    return min(running, key=cost)


PASS = Pass(
    use="optimize",
    version=1,
    settings={
        "engine": Setting(str, "auto", choices=("auto", "openvino", "onnxruntime"), says="auto: the faster"),
        "precision": Setting(str, "f32", choices=("f32", "bf16", "auto"), says="of what is not quantised, on OpenVINO"),
        "threads": Setting(str, "auto", choices=("auto", "all"), says="auto: all cores or one, by measurement"),
    },
    run=run,
    libraries=("openvino", "onnxruntime"),
    measures=True,
)
