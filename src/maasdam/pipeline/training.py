"""Train a transformers model on labelled examples: what fine-tuning after pruning and distillation share.

Knows losses by task, batches of equal shapes and resumable checkpoints. Refuses to know files of models and limits.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.core import Artifact, Example, Progress, TextPayload
from maasdam.errors import InvalidInput, Unsupported
from maasdam.pipeline.examples import Inputs, Preparer, evaluation_examples
from maasdam.tasks import score, task_of
from maasdam.tasks.classes import SUM_TOLERANCE
from maasdam.tasks.files import read_json

if TYPE_CHECKING:
    import torch

HELD_BACK = 10
"""One in so many examples of --train is not trained on, to compare students on."""
WINDOW = 128
"""Tokens of text in one training sample."""
GRADIENT_NORM = 1.0
LEAST_CHANCE = 1e-12
"""What a probability of 0 counts as, so that it has a logarithm."""
KEPT_STEPS = 200
"""How often within a long epoch the state is kept."""

Loss = Callable[["torch.Tensor", "list[Any]"], "torch.Tensor"]
"""(logits of a batch, the truths of its samples) -> a number."""
BatchLoss = Callable[["torch.Tensor", "list[Sample]"], "torch.Tensor"]
"""(logits of a batch, its samples) -> a number."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One training sample: inputs of batch 1, and what is right."""

    inputs: Inputs
    truth: Any
    """None where nobody labelled it: only a teacher can say what is right then."""
    example: Example | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast to train."""

    epochs: int
    batch: int = 16
    rate: float = 1e-3
    seed: int = 0


def training_samples(source: Artifact, path: Path, *, needs_labels: bool = True) -> tuple[list[Sample], list[Sample]]:
    """(samples to train on, samples held back). Raises InvalidInput where labels are missing, Unsupported for other tasks.

    Without `needs_labels` some samples, or all, may have no truth.
    """
    loss = task_of(source.task).loss
    if loss is None:
        raise Unsupported(f"there is no training for task '{source.task}'")
    examples = evaluation_examples(source, path)
    samples = _windows(source, examples) if loss == "tokens" else _prepared(source, examples, needs_labels)
    random.Random(0).shuffle(samples)
    held = max(1, len(samples) // HELD_BACK)
    if len(samples) < 2:
        raise InvalidInput(f"{path} has {len(samples)} training samples; at least 2 are needed")
    return samples[held:], samples[:held]


def blank_of(source: Artifact) -> int:
    """CTC's blank token, which transformers keeps as the padding token."""
    return int(read_json(source.path / "config.json").get("pad_token_id") or 0)


def loss_of(task: str | None, blank: int) -> Loss:
    """The task's own loss on logits. `blank` is CTC's blank token."""
    import torch
    from torch.nn import functional as f

    def classes(logits: torch.Tensor, truths: list[Any]) -> torch.Tensor:
        return f.cross_entropy(logits, torch.tensor(truths))

    def ctc(logits: torch.Tensor, truths: list[Any]) -> torch.Tensor:
        steps = torch.full((len(truths),), logits.shape[1])
        lengths = torch.tensor([len(t) for t in truths])
        targets = torch.tensor([token for t in truths for token in t])
        scores = logits.float().log_softmax(-1).transpose(0, 1)
        return f.ctc_loss(scores, targets, steps, lengths, blank=blank, zero_infinity=True)

    def next_token(logits: torch.Tensor, truths: list[Any]) -> torch.Tensor:
        tokens = torch.tensor(truths)
        return f.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    return {"classes": classes, "ctc": ctc, "tokens": next_token}[str(task_of(task).loss)]


def labels_loss(own: Loss) -> BatchLoss:
    """The task's own loss of a batch."""
    return lambda logits, group: own(logits, [s.truth for s in group])


def distilling_loss(teacher: torch.nn.Module, own: Loss, temperature: float, alpha: float) -> BatchLoss:
    """alpha * own loss of the labelled samples + (1 - alpha) * T^2 * KL(teacher / T || student / T) of all samples.

    A batch without a label learns from the teacher alone. Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531.
    """
    import torch
    from torch.nn import functional as f

    def loss(logits: torch.Tensor, group: list[Sample]) -> torch.Tensor:
        with torch.no_grad():
            wanted = forward(teacher, group)
        soft = temperature**2 * f.kl_div(
            (logits / temperature).log_softmax(-1).flatten(0, -2),
            (wanted / temperature).log_softmax(-1).flatten(0, -2),
            log_target=True,
            reduction="batchmean",
        )
        labelled = [i for i, sample in enumerate(group) if sample.truth is not None]
        if alpha == 0 or not labelled:
            return soft
        return alpha * own(logits[labelled], [group[i].truth for i in labelled]) + (1 - alpha) * soft

    return loss


def train(
    model: torch.nn.Module,
    samples: Sequence[Sample],
    loss: BatchLoss,
    plan: Plan,
    *,
    checkpoint: Path,
    progress: Progress,
    stage: str,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train `model` in place with AdamW, a linear warm-up of a tenth and a linear fall to zero.

    After each epoch, and every `KEPT_STEPS` steps, the state is kept in `checkpoint`; training goes on from there when it
    was killed, on the same batches and with the same random numbers.
    """
    import torch

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=plan.rate)
    per_epoch = len(batches(samples, plan.batch, 0))
    total = max(1, plan.epochs * per_epoch)
    warm = max(1, total // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.0, (total - step) / max(1, total - warm)))
    )
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    step = _resume(checkpoint, parts)
    model.train()
    for epoch in range(step // per_epoch, plan.epochs):
        if step == epoch * per_epoch:
            torch.manual_seed(plan.seed * 1000 + epoch)
        for group in batches(samples, plan.batch, plan.seed * 1000 + epoch)[step - epoch * per_epoch :]:
            progress(stage, step, total)
            optimizer.zero_grad()
            value = loss(forward(model, group), group)
            if not torch.isfinite(value):
                raise InvalidInput(f"{stage} diverged: the loss is {value.item()}; use a smaller learning rate")
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            after_step()
            step += 1
            if step % per_epoch == 0 or step % KEPT_STEPS == 0:
                _keep(checkpoint, parts, step)
    model.eval()


def forward(model: torch.nn.Module, group: Sequence[Sample]) -> torch.Tensor:
    """The logits of samples whose inputs have equal shapes."""
    import torch

    names = group[0].inputs
    stacked = {name: torch.from_numpy(np.concatenate([s.inputs[name] for s in group])) for name in names}
    return logits_of(model(**stacked))


def logits_of(answer: Any) -> torch.Tensor:
    """The logits of what a model of transformers, or a lifted program, answers: the output of that name, else the only one.

    Probabilities, as Keras networks end with, come back as their logarithms, which softmax makes the same probabilities of.
    Raises Unsupported where several outputs could be meant.
    """
    if "logits" not in answer and len(answer) != 1:
        raise Unsupported(f"training needs one output, or one called 'logits'; the model answers {', '.join(answer)}")
    logits: torch.Tensor = answer["logits"] if "logits" in answer else next(iter(answer.values()))
    return logits.clamp(min=LEAST_CHANCE).log() if _are_probabilities(logits.detach()) else logits


def _are_probabilities(rows: torch.Tensor) -> bool:
    return bool((rows >= 0).all()) and bool(((rows.sum(-1) - 1).abs() < SUM_TOLERANCE).all())


def batches(samples: Sequence[Sample], size: int, seed: int) -> list[list[Sample]]:
    """Shuffled batches of up to `size` samples, all inputs in one of equal shapes, so that nothing is padded."""
    order = list(samples)
    random.Random(seed).shuffle(order)
    groups: dict[tuple[Any, ...], list[Sample]] = {}
    for sample in order:
        groups.setdefault(tuple((n, a.shape) for n, a in sample.inputs.items()), []).append(sample)
    found = [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
    random.Random(seed + 1).shuffle(found)
    return found


def mean_loss(model: torch.nn.Module, samples: Sequence[Sample], loss: BatchLoss) -> float:
    """A loss on samples, weighted by their number."""
    import torch

    total = 0.0
    model.eval()
    with torch.no_grad():
        for group in batches(samples, 16, 0):
            total += float(loss(forward(model, group), group)) * len(group)
    return total / len(samples)


def accuracy_of(model: torch.nn.Module, samples: Sequence[Sample], source: Artifact) -> tuple[str, float] | None:
    """(metric, value) on held-back samples through the task's own scoring; None for text, which has its loss."""
    import torch

    processor = Preparer(source).processor
    if processor is None or task_of(source.task).metric.score is None:
        return None
    names = {"logits"} | {spec.name for spec in (source.signature.outputs if source.signature else ())}
    answers, examples = [], []
    model.eval()
    with torch.no_grad():
        for sample in samples:
            if sample.example is not None:
                logits = forward(model, [sample]).numpy()
                answers.append(processor.finish([dict.fromkeys(names, logits)], sample.example.payload))
                examples.append(sample.example)
    found = score(str(source.task), answers, examples)
    return found.metric, found.value


def _prepared(source: Artifact, examples: Sequence[Example], needs_labels: bool) -> list[Sample]:
    prepare = Preparer(source)
    encode: Callable[[Any], Any] = _encoder(source) if task_of(source.task).loss == "ctc" else int
    samples = []
    for example in examples:
        if example.truth is None and needs_labels:
            raise InvalidInput(f"example '{example.name}' of --train has no label; training needs labels")
        inputs = prepare(example.name, example.payload)
        if len(inputs) == 1:  # a recording longer than one window has no label of its own for each
            truth = None if example.truth is None else encode(example.truth)
            samples.append(Sample(inputs[0], truth, example))
    return samples


def _encoder(source: Artifact) -> Callable[[Any], list[int]]:
    """Text to tokens, without those that mark its ends."""
    from maasdam.engines.transformers_library import transformers_with_torch

    tokenizer = transformers_with_torch().AutoTokenizer.from_pretrained(str(source.path), local_files_only=True)
    return lambda text: [int(i) for i in tokenizer(str(text), add_special_tokens=False).input_ids]


def _windows(source: Artifact, examples: Sequence[Example]) -> list[Sample]:
    encode = _encoder(source)
    samples = []
    for example in examples:
        assert isinstance(example.payload, TextPayload)
        ids = encode(example.payload.prompt or "")
        for start in range(0, max(1, len(ids) - 1), WINDOW):
            window = ids[start : start + WINDOW]
            if len(window) > 1:
                samples.append(Sample({"input_ids": np.asarray([window], np.int64)}, window))
    return samples


def _keep(checkpoint: Path, parts: dict[str, Any], step: int) -> None:
    """Write what training goes on from, by one rename: a kill leaves the last state or this one."""
    import torch

    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    state = {"step": step, "random": torch.get_rng_state()} | {name: part.state_dict() for name, part in parts.items()}
    new = checkpoint.with_suffix(".new")
    try:
        written = io.BytesIO()  # torch's own writer ends the process where the disk is full
        torch.save(state, written)
        new.write_bytes(written.getbuffer())
        new.replace(checkpoint)
    except BaseException:
        new.unlink(missing_ok=True)  # a full disk is not to stay full of half a checkpoint
        raise


def _resume(checkpoint: Path, parts: dict[str, Any]) -> int:
    """How many steps were done before; what they made is loaded."""
    import torch

    if not checkpoint.is_file():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"])
    return int(state["step"])
