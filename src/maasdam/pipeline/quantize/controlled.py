"""Static int8 held to a drop of the metric: NNCF gives layers back to float until the drop fits.

Knows labelled training data. Refuses to look at the evaluation data: what is chosen on it could not be judged on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.artifacts.produced import PassFacts, Produced
from maasdam.core import Answer, Artifact, Example
from maasdam.engines.openvino_library import openvino
from maasdam.errors import InvalidInput, Unsupported
from maasdam.pipeline.examples import Inputs, Part, Preparer, calibration_inputs, describe, evaluation_examples
from maasdam.pipeline.passes import PassContext
from maasdam.pipeline.quantize import openvino_saturation, saturation
from maasdam.pipeline.quantize.openvino_models import (
    as_float32,
    check_is_float,
    is_transformer,
    open_nncf,
    quiet,
    recurrent,
    save,
    single,
    with_halves_at_its_ends,
)
from maasdam.pipeline.quantize.shared import Counted, copy_all_but
from maasdam.tasks import TASKS, score, task_of

if TYPE_CHECKING:
    import openvino as ov


def static_int8(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Quantise until the metric on --train falls by at most settings["max_drop"].

    Raises InvalidInput where labels are missing, Unsupported for tasks without a metric of single examples.
    """
    if context.train is None:
        raise InvalidInput("max_drop needs labelled data that is not evaluated on: name it with --train")
    if task_of(source.task).metric.score is None:
        able = " and ".join(task.name for task in TASKS.values() if task.metric.score is not None)
        raise Unsupported(f"max_drop is for {able}; this model's task is {source.task or 'not known'}")
    nncf = open_nncf()
    import openvino as ov

    metric = _Metric(source, context, settings["samples"])
    path = context.calibrate or context.train
    part: Part = "all" if context.data or not context.calibrate else "rest"  # the others are kept to judge by
    inputs = calibration_inputs(source, path, settings["samples"], part=part)
    model = ov.Core().read_model(source.path / "model.xml")
    check_is_float(model)
    metric.was_half = as_float32(model)
    inputs = [single(tensors, metric.was_half) for tensors in inputs]
    attends = is_transformer(model)
    with quiet():
        quantized = nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(Counted(inputs, context), lambda tensors: tensors),
            nncf.Dataset(metric.examples, lambda example: example),
            metric,
            max_drop=settings["max_drop"],
            subset_size=len(inputs),
            preset=nncf.QuantizationPreset.MIXED,  # decision 0015
            model_type=nncf.ModelType.TRANSFORMER if attends else None,
            ignored_scope=recurrent(nncf, model),
        )
    quantized, narrowed = _narrowed(quantized, model, inputs, metric, settings["max_drop"], context)
    copy_all_but(source.path, out, {"model.xml", "model.bin"})
    save(with_halves_at_its_ends(quantized, metric.was_half), out / "model.xml")
    facts = _facts(metric, path, inputs, settings, context, narrowed)
    return Produced("openvino", "ir", "openvino", source.signature, dict(source.settings), facts)


def _narrowed(
    quantized: ov.Model, plain: ov.Model, inputs: list[Inputs], metric: _Metric, max_drop: float, context: PassContext
) -> tuple[ov.Model, dict[str, Any]]:
    """The network that is right on other processors too, where the metric still holds; else as it was, which holds it here."""
    some = Counted(inputs[: saturation.EXAMPLES], context, saturation.STEP)
    narrower = quantized.clone()
    count, channels = openvino_saturation.narrow(narrower, plain, some)
    if not count:
        return quantized, saturation.says(count, channels)
    compiled = openvino().Core().compile_model(narrower, "CPU")
    score, _ = metric(compiled, metric.examples)
    if metric.seen[0] - score <= max_drop:
        return narrower, saturation.says(count, channels)
    metric.seen.pop()
    return quantized, saturation.says(0, channels)


def _facts(
    metric: _Metric,
    path: Path,
    inputs: list[Inputs],
    settings: Mapping[str, Any],
    context: PassContext,
    narrowed: dict[str, Any],
) -> PassFacts:
    flag = "--train" if context.calibrate is None else "--calibrate"
    control = {
        "max_drop": settings["max_drop"],
        "examples": len(metric.examples),
        "float": metric.seen[0],
        "quantized": metric.seen[-1],
        "trials": len(metric.seen),
        "says": "scores on --train, higher is better (1 - WER for speech)",
    }
    calibration = {
        "samples": len(inputs),
        "data": describe(path),
        "is_sample_of_evaluation_data": False,
        "says": f"{len(inputs)} unlabelled examples of {flag}, held to max_drop on {len(metric.examples)} of --train",
    }
    method = "NNCF accuracy-controlled post-training quantisation"
    return PassFacts({"method": method, "control": control, **narrowed}, calibration)


class _Metric:
    """The task's metric as NNCF asks for it: a compiled model and examples to one number, higher is better."""

    def __init__(self, source: Artifact, context: PassContext, limit: int) -> None:
        assert context.train is not None
        self.examples = evaluation_examples(source, context.train, limit)
        unlabelled = next((e for e in self.examples if e.truth is None), None)
        if unlabelled is not None:
            raise InvalidInput(f"example '{unlabelled.name}' of --train has no label; max_drop is held on labelled examples")
        self.seen: list[float] = []
        self.was_half: frozenset[str] = frozenset()
        """Inputs of half precision, which the network in hand takes in single."""
        self._task = str(source.task)
        self._prepare = Preparer(source)
        self._outputs = [s.name for s in source.signature.outputs] if source.signature else []
        self._progress = context.progress

    def __call__(self, model: Any, examples: Iterable[Example]) -> tuple[float, list[float]]:
        """(the metric, the same of each example alone). NNCF passes a compiled model and what its data set held."""
        processor = self._prepare.processor
        assert processor is not None  # the task was checked
        answers: list[Answer] = []
        chosen = list(examples)
        for number, example in enumerate(chosen):
            self._progress("hold the metric", number, len(chosen))
            outputs = [
                {name: model(tensors)[name] for name in self._outputs}
                for tensors in (single(t, self.was_half) for t in self._prepare(example.name, example.payload))
            ]
            answers.append(processor.finish(outputs, example.payload))
        each = [self._higher(score(self._task, [a], [e]).value) for a, e in zip(answers, chosen, strict=True)]
        whole = self._higher(score(self._task, answers, chosen).value)
        if len(chosen) == len(self.examples):
            self.seen.append(whole)
        return whole, each

    def _higher(self, value: float) -> float:
        return 1 - value if task_of(self._task).metric.is_lower_better else value
