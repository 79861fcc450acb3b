"""The pass "optimize": open every way to run a network here, time them against each other, keep the best.

Knows how to compare. Refuses to know labels, and which ways there are: that is `ways`. Its table is in the facts of the pass.

    rivals --ways--> candidates --take turns on real inputs--> table --best that did not drift--> settings
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from typing import Any

from maasdam.artifacts.produced import PassFacts, Produced
from maasdam.artifacts.store import MANIFEST
from maasdam.core import Artifact, Format, TensorEngine, Tensors
from maasdam.errors import EngineFailure, LimitExceeded, MaasdamError, Unsupported
from maasdam.pipeline.examples import Inputs, calibration_inputs, made_up_inputs
from maasdam.pipeline.fidelity import Fidelity
from maasdam.pipeline.measure import Timing, take_turns
from maasdam.pipeline.parity import cosine, flat
from maasdam.pipeline.passes import OPTIMIZED_FORMATS, Pass, PassContext, Setting
from maasdam.pipeline.report import MIN_FIDELITY
from maasdam.pipeline.subjects import stacked
from maasdam.pipeline.ways import Candidate, ways

INPUTS = 16
"""Real inputs the candidates are timed on."""
SHARE = 0.8
"""Of the time that a build's latency is measured for."""
"""How long all candidates together are timed, beyond the first rounds."""
ROUNDS = (12, 200)
CLEARLY_FASTER = 0.95
"""A way that differs only in settings must take less than this share of the plain way's time to be preferred."""
DRIFT_FREE = 0.001
"""What a candidate may always lose of the spread of any output (`Fidelity.lost`); beyond it a candidate may lose three times as
much as the closest one."""
DRIFT_ROUNDED = 0.1
"""The same where it is rounded to 8 bits, or was asked for in halves."""
SAME = 1e-4
"""1 - cosine that fused operators may be from the same operators apart."""
SAME_LOST = 1e-3
"""What they may lose of the spread of any output."""


def run(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Copy the fastest of the source and its rivals into `out`. Raises Unsupported where none of them runs."""
    rivals = (source, *context.rivals)
    if source.signature is None:
        best = Candidate(source, 0, source.settings.get("precision"))  # such an engine chooses for itself
        facts = PassFacts({"says": f"one way to run it: {source.engine}"})
    else:
        from maasdam.engines import open_engine

        best, candidates = choose(rivals, settings, context, open_engine)
        facts = PassFacts({"goal": settings["goal"]}, table=[c.to_json(c is best) for c in candidates], what=SAYS)
    chosen = best.artifact
    shutil.copytree(
        chosen.path, out, ignore=lambda at, names: {MANIFEST} if Path(at) == chosen.path else (), dirs_exist_ok=True
    )
    return Produced(chosen.format, chosen.layout, chosen.engine, chosen.signature, best.settings, facts)


SAYS = "p50_ms: median of one run on one example; items_per_second: batches of 8 (where the batch is dynamic), one per stream"


def choose(
    rivals: Sequence[Artifact], settings: Mapping[str, Any], context: PassContext, open_engine: Callable[..., Any]
) -> tuple[Candidate, list[Candidate]]:
    """The best candidate and all of them. Raises Unsupported where none runs."""
    candidates = ways(rivals, settings, context.device, context.threads, context.work)
    try:
        inputs: dict[str, list[Inputs]] = {}
        for rival in rivals:
            try:
                with context.attempts.step("inputs", rival.digest):
                    inputs[rival.digest] = _inputs(rival, context)
            except (EngineFailure, LimitExceeded) as error:
                for candidate in (c for c in candidates if c.artifact is rival):
                    candidate.why_not = f"does not run: {error}"
        for candidate in [c for c in candidates if c.why_not is None]:
            _open(candidate, inputs[candidate.artifact.digest], context, open_engine)
        running = [c for c in candidates if c.engine is not None]
        if not running:
            raise Unsupported("no engine here runs it: " + "; ".join(str(c.why_not) for c in candidates))
        _check_drift(running, settings, inputs, context, open_engine)
        running = [c for c in running if c.why_not is None]
        if not running:
            raise Unsupported("no way to run it is the network it was: " + "; ".join(str(c.why_not) for c in candidates))
        _time(running, inputs, context)
        if settings["goal"] == "throughput":
            _fill(running, inputs, context)
        return _best(running, settings["goal"]), candidates
    finally:
        for candidate in candidates:
            if candidate.engine is not None:
                candidate.engine.close()


def _inputs(artifact: Artifact, context: PassContext) -> list[Inputs]:
    path = context.data or context.calibrate
    if path is not None:
        return calibration_inputs(artifact, path, INPUTS, gives_ranges=False)
    original = context.original
    return made_up_inputs(artifact if original is None or original.signature is None else original, INPUTS)


def _open(candidate: Candidate, inputs: list[Inputs], context: PassContext, open_engine: Callable[..., Any]) -> None:
    """Open its engine and run it once; a candidate that can't is left out with the reason."""
    try:
        threads, settings = candidate.threads or context.threads, candidate.settings
        with _trial(candidate, context):
            engine = open_engine(candidate.artifact, device=context.device, threads=threads, settings=settings)
            candidate.engine = engine
            engine.run(inputs[0])
    except MaasdamError as error:
        candidate.why_not = f"does not run: {error}"
        if candidate.engine is not None:
            candidate.engine.close()
            candidate.engine = None


def _trial(candidate: Candidate, context: PassContext) -> AbstractContextManager[None]:
    return context.attempts.step("try", candidate.artifact.digest, repr((candidate.settings, sorted(candidate.fused))))


def _check_drift(
    running: list[Candidate],
    settings: Mapping[str, Any],
    inputs: Mapping[str, list[Inputs]],
    context: PassContext,
    open_engine: Callable[..., Any],
) -> None:
    """Leave out candidates that drift much further from the network as it was, on its own engine, than the closest one does."""
    _check_fused(running, inputs)
    wanted = _answers_of_the_original(context, open_engine)
    if wanted is None:
        return
    for candidate in [c for c in running if c.why_not is None]:
        try:
            with _trial(candidate, context):
                candidate.cosine, candidate.lost = _apart(candidate, inputs[candidate.artifact.digest], wanted)
        except (EngineFailure, LimitExceeded) as error:
            candidate.why_not = f"does not run: {error}"
    closest = min((c.lost for c in running if c.lost is not None and c.why_not is None), default=None)
    if closest is None:
        return
    free = DRIFT_ROUNDED if context.is_quantized or settings["precision"] != "f32" else DRIFT_FREE
    allowed = max(free, 3 * closest)
    if closest <= 1 - MIN_FIDELITY:  # there is one that verify would pass: what it would fail is not faster, but wrong
        allowed = min(allowed, 1 - MIN_FIDELITY)
    for candidate in running:
        if candidate.lost is not None and candidate.lost > allowed and candidate.why_not is None:
            lost = "all" if math.isinf(candidate.lost) else f"{candidate.lost:.3g}"
            candidate.why_not = f"drifts: it loses {lost} of what an output tells, the closest {closest:.3g}"


def _answers_of_the_original(context: PassContext, open_engine: Callable[..., Any]) -> list[Tensors] | None:
    """None where it can't be run here: then nothing can be said of drift, and verify will."""
    original = context.original
    if original is None or original.signature is None:
        return None
    with suppress(MaasdamError), closing(open_engine(original, device=context.device, threads=context.threads)) as engine:
        return [engine.run(tensors) for tensors in _inputs(original, context)]
    return None


def _check_fused(running: Sequence[Candidate], inputs: Mapping[str, list[Inputs]]) -> None:
    """Leave out fused graphs that are not the same network: they have the digest of the graph they were made of."""
    plain = {c.artifact.digest: c for c in reversed(running) if c.engine is not None and not c.fused}
    for candidate in (c for c in running if c.fused):
        own = inputs[candidate.artifact.digest]
        same = plain.get(candidate.artifact.digest)
        if same is None or same.engine is None:
            candidate.why_not = "nothing to compare the fused graph with: the plain one does not run"
            continue
        candidate.cosine, candidate.lost = _apart(candidate, own, [same.engine.run(tensors) for tensors in own])
        if not (candidate.cosine >= 1 - SAME and candidate.lost <= SAME_LOST):
            candidate.why_not = (
                f"fused into another network: cosine {candidate.cosine:.5f} with the graph as it was, "
                f"{candidate.lost:.3g} of what an output tells is lost"
            )


def _apart(candidate: Candidate, inputs: Sequence[Inputs], wanted: Sequence[Tensors]) -> tuple[float, float]:
    """(mean cosine, what the worst output lost): of its answers with those that are wanted."""
    assert candidate.engine is not None
    got = [candidate.engine.run(tensors) for tensors in inputs]
    fidelity = Fidelity()
    for one, other in zip(wanted, got, strict=True):
        fidelity.add([one], [other])
    pairs = [(flat([one]), flat([other])) for one, other in zip(wanted, got, strict=True)]
    values = [cosine(a, b) if a.shape == b.shape else 0.0 for a, b in pairs]
    return sum(values) / len(values), fidelity.lost or 0.0


def _time(running: list[Candidate], inputs: Mapping[str, list[Inputs]], context: PassContext) -> None:
    if len(running) == 1:
        return

    def runner(candidate: Candidate) -> Callable[[int], object]:
        own, engine = inputs[candidate.artifact.digest], candidate.engine
        assert engine is not None
        return lambda number: engine.run(own[number % len(own)])

    timings = _in_turns([runner(candidate) for candidate in running], "measure the candidates", context)
    for candidate, timing in zip(running, timings, strict=True):
        candidate.p50 = timing.p50


def _in_turns(runs: list[Callable[[int], object]], stage: str, context: PassContext) -> list[Timing]:
    timings = take_turns(
        {str(i): run for i, run in enumerate(runs)},
        seconds=SHARE * context.measure_seconds,
        rounds=ROUNDS,
        tell=lambda done, total: context.progress(stage, done, total),
    )
    return [timings[str(i)] for i in range(len(runs))]


def _fill(running: list[Candidate], inputs: Mapping[str, list[Inputs]], context: PassContext) -> None:
    """Items a second with as many batches at once as there are streams, as the service would run it."""
    most = max(c.streams for c in running)
    with ThreadPoolExecutor(most) as pool:

        def runner(engine: TensorEngine, batch: Inputs, streams: int) -> Callable[[int], object]:
            if streams == 1:
                return lambda number: engine.run(batch)
            return lambda number: list(pool.map(engine.run, [batch] * streams))

        runs, items = [], []
        for candidate in running:
            assert candidate.engine is not None
            batch = stacked(inputs[candidate.artifact.digest][0], candidate.engine)
            runs.append(runner(candidate.engine, batch, candidate.streams))
            items.append(len(next(iter(batch.values()))) * candidate.streams)
        timings = _in_turns(runs, "measure the candidates' throughput", context)
    for candidate, count, timing in zip(running, items, timings, strict=True):
        candidate.throughput = count / timing.p50


def _best(running: list[Candidate], goal: str) -> Candidate:
    """By median time or by throughput. What is not the plain way of its engine is taken only where it is clearly better:
    fewer threads serve fewer at once, a rewritten graph runs on one engine alone."""
    if len(running) == 1:
        return running[0]

    def cost(candidate: Candidate) -> float:
        seconds = 1 / candidate.throughput if goal == "throughput" and candidate.throughput else candidate.p50
        assert seconds is not None
        return seconds if candidate.is_plain else seconds / CLEARLY_FASTER

    return min(running, key=cost)


def _chooses(settings: Mapping[str, Any], to: Format | None, device: str) -> tuple[Format, ...]:
    """OpenVINO has no CUDA; torch never won on a processor."""
    if to is not None:
        return () if to == "tensorflow" or (to == "pytorch" and device == "cpu") else (to,)
    known: dict[str, tuple[Format, ...]] = {"openvino": ("openvino",), "onnxruntime": ("onnx",), "pytorch": ("pytorch",)}
    return known.get(settings["engine"], ("onnx", "pytorch") if device == "cuda" else OPTIMIZED_FORMATS)


PASS = Pass(
    use="optimize",
    version=5,
    settings={
        "engine": Setting(str, "auto", choices=("auto", "openvino", "onnxruntime", "pytorch"), says="auto: the faster"),
        "precision": Setting(
            str, "f32", choices=("f32", "bf16", "f16", "auto"), says="of what is not quantised, on OpenVINO, TensorRT and torch"
        ),
        "threads": Setting(str, "auto", choices=("auto", "all"), says="auto: all cores, half of them or one, by measurement"),
        "goal": Setting(str, "latency", choices=("latency", "throughput"), says="what the best is best at"),
    },
    run=run,
    libraries=("openvino", "onnxruntime", "torch"),
    measures=True,
    chooses=_chooses,
)
