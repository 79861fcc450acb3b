"""The pass "distill": a smaller student learns from the model as its teacher.

Knows transformers' configs and the mixing of two losses. Refuses to hide the baseline: the same student, from the same
start and for as long, trained on the labels alone, stands in the facts beside it, both scored on samples held back.

    loss = alpha * task's own loss + (1 - alpha) * T^2 * KL(teacher / T || student / T)
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.artifacts.produced import PassFacts, Produced
from maasdam.convert.directions.companions import copy_companions
from maasdam.core import IMAGE_CLASSIFICATION, TEXT_GENERATION, Artifact, Classification, Signature
from maasdam.errors import InvalidInput, Unsupported
from maasdam.pipeline.passes import Pass, PassContext, Setting
from maasdam.pipeline.prune import open_to_cut
from maasdam.pipeline.prune.layers import parameters_of
from maasdam.pipeline.training import (
    BatchLoss,
    Loss,
    Plan,
    Sample,
    accuracy_of,
    blank_of,
    distilling_loss,
    forward,
    labels_loss,
    loss_of,
    mean_loss,
    train,
    training_samples,
)
from maasdam.tasks import task_of
from maasdam.tasks.files import labels_of
from maasdam.tasks.pixels import channel_axis

if TYPE_CHECKING:
    import torch

LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "encoder_layers")
LAYER_LISTS = ("depths",)
WIDTHS = ("hidden_size", "intermediate_size", "n_embd", "encoder_ffn_dim")
HEADS = ("num_attention_heads", "num_key_value_heads", "n_head")
WIDTH_LISTS = ("hidden_sizes", "embedding_size")
"""What transformers' configs call them."""
LAYER_NAME = re.compile(r"\b(layers?|h|blocks)\.(\d+)\.")


def run(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Train a student on --train and save it in Hugging Face layout. Raises Unsupported, InvalidInput."""
    if source.layout not in ("huggingface", "pt2"):
        raise Unsupported(
            f"distillation takes a PyTorch model, Hugging Face layout or .pt2; this one is {source.format} ({source.layout})"
        )
    if source.layout == "pt2" and source.task == TEXT_GENERATION:
        raise Unsupported("a language model is distilled from its Hugging Face folder; this is a program of its decoder")
    if source.layout == "pt2" and not settings["student"]:
        raise Unsupported(
            "a program has no config to make a smaller one from: name the student's folder with 'student', or cut the model "
            "itself with 'prune' and recover = 'distill'"
        )
    if context.train is None:
        raise InvalidInput("distillation trains: name data with --train, labelled, or with alpha = 0 unlabelled")
    teacher = open_to_cut(source).requires_grad_(False)
    samples, held = training_samples(source, context.train, needs_labels=False)
    labelled = [s for s in samples if s.truth is not None]
    if settings["alpha"] > 0 and not labelled:
        name = samples[0].example.name if samples[0].example else "?"
        raise InvalidInput(f"example '{name}' of --train has no label, nor has any; label some, or set alpha = 0")
    given, how = _student(teacher, settings)
    student, signature = _fitted(given, source)
    _check_fit(teacher, student, samples[0])
    alone = copy.deepcopy(student)
    own = loss_of(source.task, blank_of(source))
    plan = Plan(settings["epochs"], settings["batch"], settings["rate"])
    facts: dict[str, Any] = {"how": how, "samples": len(samples), "labelled": len(labelled), "held_back": len(held)}
    score = _Scores(teacher, held, own, source)
    facts["scores"] = {"teacher": score(teacher)}

    def learn(name: str, stage: str, model: torch.nn.Module, on: list[Sample], loss: BatchLoss, plan: Plan) -> None:
        train(model, on, loss, plan, checkpoint=context.checkpoints / f"{name}.pt", progress=context.progress, stage=stage)
        facts["scores"][name] = score(model)

    mixed = distilling_loss(teacher, own, settings["temperature"], settings["alpha"])
    learn("student", "distil", student, samples, mixed, plan)
    if labelled:
        as_long = replace(plan, epochs=max(1, round(plan.epochs * len(samples) / len(labelled))))
        learn("alone", "train the student alone", alone, labelled, labels_loss(own), as_long)
    else:
        facts["alone"] = "the same student could not be trained alone: nothing in --train has a label"
    facts["parameters"] = {"before": parameters_of(teacher), "after": parameters_of(student)}
    facts["says"] = (
        "scores on samples of --train held back; 'alone' is the same student, from the same start and for as many steps, "
        "trained on the labels without the teacher; 'divergence' is from the teacher's answers"
    )
    _take_labels(given, source)
    given.save_pretrained(out, safe_serialization=True)
    copy_companions(source.path, out)
    return Produced("pytorch", "huggingface", "pytorch", signature, dict(source.settings), PassFacts(facts))


def _student(teacher: Any, settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The student that the settings ask for, and how it came about."""
    if not settings["student"]:
        return make_student(teacher, settings["layers"], settings["width"], settings["start"])
    from maasdam.engines.transformers_library import architecture_of, open_module, transformers_with_torch

    folder = Path(settings["student"]).expanduser()
    if not (folder / "config.json").is_file():
        raise InvalidInput(f"'student' is '{settings['student']}', which is no Hugging Face folder: it has no config.json")
    if any(folder.glob("*.safetensors")):
        return open_module(folder), {"given": folder.name, "start": "its own weights"}
    import torch

    transformers = transformers_with_torch()
    kind = getattr(transformers, architecture_of(folder), None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise Unsupported(f"transformers has no model '{architecture_of(folder)}'; code from the folder is not run")
    torch.manual_seed(0)
    made: Any = kind
    try:
        student = made(made.config_class.from_pretrained(str(folder), local_files_only=True)).float()
    except (ValueError, RuntimeError, OSError) as error:
        raise Unsupported(f"{architecture_of(folder)} can't be built from the config in '{folder.name}': {error}") from error
    taken = _take_weights(student, teacher) if settings["start"] == "teacher" else 0
    return student, {"config_of": folder.name, "start": settings["start"], "weights_taken_from_teacher": taken}


def _fitted(student: Any, source: Artifact) -> tuple[torch.nn.Module, Signature | None]:
    """(the student, called as its teacher is, what the student itself takes and gives).

    A network from another framework names its input and its output its own way, and may have the channels of pictures last.
    """
    import torch

    if source.layout == "huggingface" or source.signature is None:
        return student, source.signature
    given = [s for s in source.signature.outputs if s.name == "logits"] or list(source.signature.outputs)
    outputs = tuple(replace(s, name="logits") for s in given[:1])
    if len(source.signature.inputs) != 1:
        return student, Signature(source.signature.inputs, outputs)
    spec = source.signature.inputs[0]
    theirs, mine = spec.name, str(student.main_input_name)
    is_last = source.task == IMAGE_CLASSIFICATION and channel_axis(spec)[0]
    order = (0, 3, 1, 2) if is_last else tuple(range(len(spec.shape)))
    layout = "NCHW" if is_last else spec.layout
    taken = replace(spec, name=mine, shape=tuple(spec.shape[axis] for axis in order), layout=layout)

    class Fitted(torch.nn.Module):
        """Hands the teacher's input on under the student's name, in the student's order of axes."""

        def __init__(self) -> None:
            super().__init__()
            self.student = student

        def forward(self, **tensors: torch.Tensor) -> Any:
            return self.student(**{mine: tensors[theirs].permute(order)})

    return Fitted(), Signature((taken,), outputs)


def _take_labels(student: Any, source: Artifact) -> None:
    """Name the student's classes as its teacher's, where it counts as many: its own config may never have known them."""
    labels = labels_of(source.path)
    if labels and task_of(source.task).answer is Classification and len(labels) == student.config.num_labels:
        student.config.id2label = labels
        student.config.label2id = {name: number for number, name in labels.items()}


def _check_fit(teacher: torch.nn.Module, student: torch.nn.Module, sample: Sample) -> None:
    """Raise Unsupported unless both answer one sample with logits of one shape."""
    import torch

    with torch.no_grad():
        wanted = forward(teacher, [sample]).shape
        try:
            got = forward(student.eval(), [sample]).shape
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise Unsupported(f"the student does not take what the model takes: {error}") from error
    if got != wanted:
        raise Unsupported(f"the student answers with {list(got)} numbers where the model does with {list(wanted)}")


def make_student(teacher: Any, layers: float, width: float, start: str) -> tuple[Any, dict[str, Any]]:
    """A model of the teacher's class with its config shrunk, and what was changed in it. Raises Unsupported."""
    import torch

    config = copy.deepcopy(teacher.config)
    changed = _fewer_layers(config, layers) if layers < 1 else {}
    if layers < 1 and not changed:
        width = width * layers  # convolutional configs count no layers: the student gets narrower instead
    if width < 1:
        changed |= _narrower(config, width)
    if not changed:
        raise Unsupported(f"the config of {type(teacher).__name__} names neither layers nor widths that could be reduced")
    torch.manual_seed(0)
    try:
        student = type(teacher)(config)
    except (ValueError, RuntimeError) as error:
        raise Unsupported(f"{type(teacher).__name__} can't be built with {changed}: {error}") from error
    student = student.float()
    taken = _take_weights(student, teacher) if start == "teacher" else 0
    return student, {"config": changed, "start": start, "weights_taken_from_teacher": taken}


def _fewer_layers(config: Any, ratio: float) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key in (*LAYER_COUNTS, *LAYER_LISTS):
        now = getattr(config, key, None)
        if isinstance(now, int) and now > 1:
            changed[key] = [now, max(1, round(now * ratio))]
        elif isinstance(now, list) and any(count > 1 for count in now):
            changed[key] = [now, [max(1, round(count * ratio)) for count in now]]
        if key in changed:
            setattr(config, key, changed[key][1])
    if isinstance(getattr(config, "layer_types", None), list) and "num_hidden_layers" in changed:
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    return changed


def _narrower(config: Any, ratio: float) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    heads = next((getattr(config, key) for key in HEADS if isinstance(getattr(config, key, None), int)), 1)
    fewer = max(1, round(heads * ratio))
    for key in (*WIDTHS, *WIDTH_LISTS, "depth_multiplier", *HEADS):
        now = getattr(config, key, None)
        if key in HEADS and isinstance(now, int) and now > 1:
            changed[key] = [now, max(1, now * fewer // heads)]
        elif isinstance(now, list):
            changed[key] = [now, [max(8, round(w * ratio / 8) * 8) for w in now]]
        elif isinstance(now, float):
            changed[key] = [now, now * ratio]
        elif isinstance(now, int) and key not in HEADS:
            changed[key] = [now, now * fewer // heads if heads > 1 else max(8, round(now * ratio / 8) * 8)]
        if key in changed:
            setattr(config, key, changed[key][1])
    return changed


def _take_weights(student: Any, teacher: Any) -> int:
    """Copy every tensor of the same name and shape, the student's layers from evenly spaced ones of the teacher's; how many."""
    mine, theirs = student.state_dict(), teacher.state_dict()
    few, many = _depth(mine), _depth(theirs)

    def origin(name: str) -> str:
        def spaced(found: re.Match[str]) -> str:
            place = int(found[2])
            return f"{found[1]}.{round(place * (many - 1) / (few - 1)) if few > 1 else 0}."

        return LAYER_NAME.sub(spaced, name, count=1) if few != many else name

    taken = {n: theirs[origin(n)] for n, t in mine.items() if origin(n) in theirs and theirs[origin(n)].shape == t.shape}
    student.load_state_dict(taken, strict=False)
    return len(taken)


def _depth(state: Mapping[str, Any]) -> int:
    return max((int(m[2]) + 1 for name in state if (m := LAYER_NAME.search(name))), default=0)


@dataclass(frozen=True, slots=True)
class _Scores:
    """How good a model is on the samples held back."""

    teacher: torch.nn.Module
    held: Sequence[Sample]
    own: Loss
    source: Artifact

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        """{"divergence"}, and {"loss", metric} where samples have labels."""
        apart = distilling_loss(self.teacher, self.own, 1.0, 0.0)
        scores = {"divergence": mean_loss(model, self.held, apart)}
        labelled = [s for s in self.held if s.truth is not None]
        if not labelled:
            return scores
        scores["loss"] = mean_loss(model, labelled, labels_loss(self.own))
        found = accuracy_of(model, labelled, self.source)
        return scores | ({found[0]: found[1]} if found else {})


PASS = Pass(
    use="distill",
    version=4,
    settings={
        "layers": Setting(float, 0.5, low=0.05, high=1, says="share of the layers the student keeps"),
        "width": Setting(float, 1.0, low=0.05, high=1, says="share of the widths the student keeps"),
        "student": Setting(str, "", says="a Hugging Face folder: the student, or its config alone; empty: layers and width"),
        "start": Setting(str, "teacher", choices=("teacher", "random"), says="where the student's weights start"),
        "temperature": Setting(float, 2.0, low=0.1, high=100, says="how soft the teacher's answers are"),
        "alpha": Setting(float, 0.5, low=0, high=1, says="weight of the labels against the teacher"),
        "epochs": Setting(int, 3, low=1, high=1000, says="epochs over --train"),
        "rate": Setting(float, 1e-3, low=1e-7, high=1, says="learning rate"),
        "batch": Setting(int, 16, low=1, high=1024, says="samples in one training step"),
    },
    run=run,
    libraries=("torch", "transformers"),
    reads=lambda settings: ("train",),
    hears=False,
    wants=lambda source, settings: "pytorch",
    files=lambda settings: (Path(settings["student"]).expanduser(),) if settings["student"] else (),
)
