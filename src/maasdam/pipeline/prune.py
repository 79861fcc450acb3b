"""The pass "prune": cut out what matters least, and optionally train the rest again.

Knows torch-pruning and magnitudes. Refuses to claim speed: verify measures it.

    structured: whole channels (convolutional networks) or hidden units of feed-forward layers (transformers); smaller
        and faster. Saved in Hugging Face layout where its config can say the new widths, else as a .pt2 program.
    magnitude: the smallest weights become zero. Same layout and size; only a compressed file shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import Artifact, Signature
from maasdam.errors import InvalidInput, Unsupported, missing_extra
from maasdam.pipeline.convert.companions import copy_companions
from maasdam.pipeline.passes import Pass, PassContext, Produced, Reads, Setting
from maasdam.pipeline.training import Plan, loss_of, train, training_samples

if TYPE_CHECKING:
    import torch

ROUND_TO = (8, 4, 2)
"""Widths stay multiples of the first of these that cuts the narrowest layer no further than twice the ratio."""
EXPANDS = 1.5
"""A linear layer that widens its input so much is a feed-forward layer's first half."""


def run(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Prune a Hugging Face model. Raises Unsupported for other layouts: their modules can't be cut."""
    if source.layout != "huggingface":
        raise Unsupported(f"pruning takes a model in Hugging Face layout; this one is {source.format} ({source.layout})")
    from maasdam.engines.transformers_library import open_module

    model = open_module(source.path)
    before = parameters_of(model)
    keep_zeros: Callable[[], None] = lambda: None  # noqa: E731  # replaced below where there are zeros to keep
    if settings["method"] == "structured":
        context.progress("prune channels")
        prune_structured(model, source, settings["ratio"])
        facts: dict[str, Any] = {"method": "structured"}
    else:
        context.progress("prune weights")
        keep_zeros, zeros = prune_magnitude(model, settings["ratio"])
        facts = {
            "method": "magnitude",
            "zeros": zeros,
            "says": "weights that are zero take as much room and time as others: only a compressed file shrinks",
        }
    if settings["finetune_epochs"]:
        facts["finetune"] = _finetune(model, source, settings, context, keep_zeros)
    after = parameters_of(model)
    facts |= {"parameters": {"before": before, "after": after}}
    return _save(model, source, out, facts, is_reshaped=after != before)


def prune_structured(model: torch.nn.Module, source: Artifact, ratio: float) -> None:
    """Cut `ratio` of the channels (or feed-forward units) of every layer but the last, by group magnitude."""
    try:
        import torch_pruning as tp
    except ImportError as error:
        raise missing_extra("torch-pruning", "build") from error
    import torch

    kept = _layers_to_keep(model)
    example = _example(source)
    model.requires_grad_(True)
    pruner = tp.pruner.BasePruner(
        model,
        {name: torch.from_numpy(array) for name, array in example.items()},
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=kept,
        round_to=_round_to(model, kept, ratio),
        forward_fn=lambda m, inputs: forward_logits(m, inputs),
    )
    before = parameters_of(model)
    pruner.step()
    if parameters_of(model) == before:
        raise Unsupported(
            f"nothing could be pruned at ratio {ratio:g}: no layer is wide enough to lose a channel; use a larger ratio"
        )


def _round_to(model: torch.nn.Module, kept: list[torch.nn.Module], ratio: float) -> int:
    """Vector units like round widths, but the pruner rounds down: a narrow layer would lose far more than was asked."""
    widths = [int(layer.weight.shape[0]) for layer in _layers(model) if all(layer is not k for k in kept)]
    return next((size for size in ROUND_TO if size <= ratio * min(widths, default=0)), 1)


def forward_logits(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the pruner traces."""
    logits: torch.Tensor = model(**inputs).logits
    return logits


def prune_magnitude(model: torch.nn.Module, ratio: float) -> tuple[Callable[[], None], int]:
    """Set the smallest `ratio` of all weights of linear and convolutional layers, the last excepted, to zero.

    Returns what sets them to zero again after a training step, and how many they are.
    """
    import torch

    last = _head(model)
    weights = [layer.weight for layer in _layers(model) if layer is not last]
    if not weights:
        raise Unsupported("the model has no layer to prune but its last, which is left whole")
    sizes = torch.cat([w.detach().abs().flatten() for w in weights])
    count = int(ratio * sizes.numel())
    threshold = sizes.kthvalue(max(1, count)).values
    masks = [w.detach().abs() > threshold for w in weights]

    def zero() -> None:
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight.mul_(mask)

    zero()
    return zero, int(sum((~m).sum() for m in masks))


def parameters_of(model: torch.nn.Module) -> int:
    """How many parameters a model has."""
    return sum(p.numel() for p in model.parameters())


def _finetune(
    model: torch.nn.Module, source: Artifact, settings: Mapping[str, Any], context: PassContext, keep_zeros: Callable[[], None]
) -> dict[str, Any]:
    if context.train is None:
        raise InvalidInput("finetune_epochs needs labelled data: name it with --train")
    samples, _ = training_samples(source, context.train)
    loss = loss_of(source.task, int(getattr(model.config, "pad_token_id", None) or 0))
    plan = Plan(settings["finetune_epochs"], settings["batch"], settings["rate"])
    model.requires_grad_(True)
    train(
        model,
        samples,
        lambda logits, group: loss(logits, [s.truth for s in group]),
        plan,
        checkpoint=context.checkpoints / "finetune.pt",
        progress=context.progress,
        stage="fine-tune",
        after_step=keep_zeros,
    )
    return {"epochs": plan.epochs, "samples": len(samples)}


def _save(model: torch.nn.Module, source: Artifact, out: Path, facts: dict[str, Any], is_reshaped: bool) -> Produced:
    """In Hugging Face layout where the config can say it, else as an exported program without sample inputs."""
    model.eval()
    if not is_reshaped or _config_says_widths(model):
        model.save_pretrained(out, safe_serialization=True)  # type: ignore[operator]  # a PreTrainedModel; transformers is untyped here
        copy_companions(source.path, out)
        return Produced("pytorch", "huggingface", source.engine, source.signature, dict(source.settings), facts)
    if source.signature is None:
        raise Unsupported("the config of this language model has no words for the pruned widths; use method = 'magnitude'")
    signature = _save_program(model, source, source.signature, out / "model.pt2")
    copy_companions(source.path, out)
    facts["layout"] = "pt2: the config has no words for these widths"
    return Produced("pytorch", "pt2", "pytorch", signature, dict(source.settings), facts)


def _config_says_widths(model: torch.nn.Module) -> bool:
    """Set intermediate_size to what all feed-forward layers have now; whether a model built from the config fits."""
    import torch

    config: Any = model.config
    if not hasattr(config, "intermediate_size"):
        return False
    widths = {m.out_features for m in model.modules() if isinstance(m, torch.nn.Linear) and _was_expanding(m, model)}
    if len(widths) != 1:
        return False
    was, config.intermediate_size = config.intermediate_size, widths.pop()
    with torch.device("meta"):
        fresh: Any = type(model)(config)
    shapes = {name: tensor.shape for name, tensor in fresh.state_dict().items()}
    if shapes == {name: tensor.shape for name, tensor in model.state_dict().items()}:
        return True
    config.intermediate_size = was
    return False


def _was_expanding(layer: torch.nn.Linear, model: torch.nn.Module) -> bool:
    """Whether it is a feed-forward layer's first half: marked when it was chosen for pruning."""
    return getattr(layer, "is_feed_forward", False) and layer is not _head(model)


def _layers_to_keep(model: torch.nn.Module) -> list[torch.nn.Module]:
    """What must not lose outputs: the last layer; in transformers everything but the first halves of feed-forward layers."""
    import torch

    head = _head(model)
    if not any("attention" in type(m).__name__.lower() for m in model.modules()):
        return [head]
    kept: list[torch.nn.Module] = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    for layer in _layers(model):
        if isinstance(layer, torch.nn.Linear) and layer is not head and layer.out_features >= EXPANDS * layer.in_features:
            layer.is_feed_forward = True  # type: ignore[assignment]  # a mark of ours
        else:
            kept.append(layer)
    return kept


def _head(model: torch.nn.Module) -> torch.nn.Module:
    """The layer that gives the logits: the last linear or convolutional one."""
    layers = _layers(model)
    if not layers:
        raise Unsupported("the model has no linear or convolutional layer to prune")
    last: torch.nn.Module = layers[-1]
    return last


def _layers(model: torch.nn.Module) -> list[Any]:
    import torch

    return [m for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d)]


def _example(source: Artifact) -> dict[str, Any]:
    import numpy as np

    from maasdam.pipeline.examples import made_up_inputs

    if source.signature is None:
        return {"input_ids": np.arange(1, 9, dtype=np.int64)[None]}
    return made_up_inputs(source, 1)[0]


def _save_program(model: torch.nn.Module, source: Artifact, signature: Signature, path: Path) -> Signature:
    """Export the cut module as the converter exports whole ones: names and dynamic axes of the signature kept."""
    import inspect

    import torch

    from maasdam.pipeline.convert import programs
    from maasdam.pipeline.convert.probes import EXPORT_SIZES, probe

    inputs, outputs = [s.name for s in signature.inputs], [s.name for s in signature.outputs]

    class Named(torch.nn.Module):
        """Positional tensors in, a dict of tensors out."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
            answer = self.model(**dict(zip(inputs, tensors, strict=True)))
            return {name: answer[name] for name in outputs}

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    # torch.export names the program's inputs after the parameters of forward
    parameters = [inspect.Parameter(name, kind) for name in ("self", *inputs)]
    Named.forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    arrays = probe(signature, EXPORT_SIZES, seed=0, folder=source.path)
    examples = tuple(torch.from_numpy(arrays[name]) for name in inputs)
    model.requires_grad_(False)
    program = programs._export(Named().eval(), examples, programs._dynamic_axes(signature))
    programs.save_pt2(program, str(path))
    return signature


def _reads(settings: Mapping[str, Any]) -> tuple[Reads, ...]:
    return ("train",) if settings["finetune_epochs"] else ()


PASS = Pass(
    use="prune",
    version=1,
    settings={
        "method": Setting(str, "structured", choices=("structured", "magnitude"), says="cut channels, or single weights"),
        "ratio": Setting(float, 0.3, low=0.01, high=0.95, says="share that is cut"),
        "finetune_epochs": Setting(int, 0, low=0, high=1000, says="epochs over --train afterwards"),
        "rate": Setting(float, 2e-4, low=1e-7, high=1, says="learning rate of the fine-tuning"),
        "batch": Setting(int, 16, low=1, high=1024, says="samples in one training step"),
    },
    run=run,
    libraries=("torch", "torch-pruning", "transformers"),
    reads=_reads,
)
