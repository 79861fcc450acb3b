"""The pass "prune": cut out what matters least, and optionally train the rest again.

Knows what can be pruned and in which order things happen. Refuses to claim speed: verify measures it.

    structured: channels of convolutional networks; attention heads and hidden units of transformers; smaller and faster.
        Saved in Hugging Face layout where its config can say the new widths, else as a .pt2 program.
    magnitude: weights become zero, anywhere or N of every M. Same layout and size; only a compressed file shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.artifacts.produced import Produced
from maasdam.core import Artifact
from maasdam.errors import InvalidInput, Unsupported
from maasdam.pipeline.passes import Pass, PassContext, Setting
from maasdam.pipeline.prune.layers import feed_forwards
from maasdam.pipeline.prune.magnitude import ANY, prune_magnitude
from maasdam.pipeline.prune.save import save
from maasdam.pipeline.prune.shrank import compared, counted, weighed
from maasdam.pipeline.prune.structured import TARGETS, prune_structured
from maasdam.pipeline.training import Plan, Sample, blank_of, distilling_loss, labels_loss, loss_of, train, training_samples

if TYPE_CHECKING:
    import torch

EXAMPLE_TOKENS = 8
"""Length of the made-up text that a language model is traced and counted with."""


def run(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Prune a Hugging Face model or an exported program. Raises Unsupported for other layouts: their layers can't be cut."""
    model = open_to_cut(source)
    example = example_of(source)
    before = counted(model, example)
    facts: dict[str, Any] = {"method": settings["method"]}
    feed = feed_forwards(model)
    again: Callable[[], None] = lambda: None  # noqa: E731  # replaced below where there are zeros to keep
    if settings["method"] == "structured":
        context.progress("prune structures")
        facts |= prune_structured(model, example, settings["ratio"], settings["targets"], source.path, settings["round_to"])
    else:
        context.progress("prune weights")
        zeros = prune_magnitude(model, settings["ratio"], settings["pattern"])
        again = zeros.again
        facts |= {
            "pattern": settings["pattern"],
            "zeros": zeros.count,
            "layers_left_whole": zeros.layers_left_whole,
            "says": "weights that are zero take as much room and time as others: only a compressed file shrinks",
        }
    if settings["finetune_epochs"]:
        facts["recovery"] = _recover(model, source, settings, context, again)
    after = counted(model, example)
    made = save(model, source, out, facts, {layer.out_features for layer in feed})
    context.progress("weigh the files")
    facts["shrank"] = compared(before | weighed(source.path), after | weighed(out))
    return made


def open_to_cut(source: Artifact) -> torch.nn.Module:
    """The model as a module of real layers, called by input names. Raises Unsupported for layouts that have none."""
    if source.layout == "huggingface":
        from maasdam.engines.transformers_library import open_module

        module: torch.nn.Module = open_module(source.path)
        return module
    if source.layout == "pt2":
        from maasdam.convert.modules import need_signature
        from maasdam.convert.programs import load_pt2
        from maasdam.pipeline.prune.lift import lift

        return lift(load_pt2(source), need_signature(source))
    raise Unsupported(
        f"pruning takes a PyTorch model in Hugging Face layout or as .pt2; this one is {source.format} ({source.layout})"
    )


def example_of(source: Artifact) -> dict[str, torch.Tensor]:
    """One made-up input of batch 1, by name."""
    import torch

    from maasdam.pipeline.examples import made_up_inputs

    if source.signature is None:
        return {"input_ids": torch.arange(1, EXAMPLE_TOKENS + 1)[None]}
    return {name: torch.from_numpy(array) for name, array in made_up_inputs(source, 1)[0].items()}


def _recover(
    model: torch.nn.Module, source: Artifact, settings: Mapping[str, Any], context: PassContext, again: Callable[[], None]
) -> dict[str, Any]:
    """Train on --train what is left, on the labels alone or with the unpruned model as the teacher too."""
    if context.train is None:
        raise InvalidInput("finetune_epochs needs labelled data: name it with --train")
    samples, _ = training_samples(source, context.train)
    own = loss_of(source.task, blank_of(source))
    loss: Callable[[torch.Tensor, list[Sample]], torch.Tensor] = labels_loss(own)
    if settings["recover"] == "distill":
        teacher = open_to_cut(source).requires_grad_(False)
        loss = distilling_loss(teacher, own, settings["temperature"], settings["alpha"])
    plan = Plan(settings["finetune_epochs"], settings["batch"], settings["rate"])
    model.requires_grad_(True)
    train(
        model,
        samples,
        loss,
        plan,
        checkpoint=context.checkpoints / "recover.pt",
        progress=context.progress,
        stage="fine-tune" if settings["recover"] == "finetune" else "distil from the unpruned model",
        after_step=again,
    )
    return {"by": settings["recover"], "epochs": plan.epochs, "samples": len(samples)}


PASS = Pass(
    use="prune",
    version=3,
    settings={
        "method": Setting(str, "structured", choices=("structured", "magnitude"), says="cut structures, or single weights"),
        "ratio": Setting(float, 0.3, low=0.01, high=0.95, says="share that is cut"),
        "targets": Setting(
            str, "auto", choices=TARGETS, says="what is cut (structured); auto: channels, or ffn where it attends"
        ),
        "round_to": Setting(
            int,
            0,
            low=0,
            high=64,
            says="widths stay multiples of it (structured): 16 fits vector units best; 0: 8, less if narrow",
        ),
        "pattern": Setting(str, ANY, says="'any', or 'N:M': of every M weights N stay, ratio unused (magnitude)"),
        "finetune_epochs": Setting(int, 0, low=0, high=1000, says="epochs over --train afterwards"),
        "recover": Setting(
            str, "finetune", choices=("finetune", "distill"), says="train on labels, or from the unpruned model as well"
        ),
        "temperature": Setting(float, 2.0, low=0.1, high=100, says="how soft the unpruned model's answers are (distill)"),
        "alpha": Setting(float, 0.5, low=0, high=1, says="weight of the labels against the unpruned model (distill)"),
        "rate": Setting(float, 2e-4, low=1e-7, high=1, says="learning rate of the recovery"),
        "batch": Setting(int, 16, low=1, high=1024, says="samples in one training step"),
    },
    run=run,
    libraries=("torch", "torch-pruning", "transformers"),
    reads=lambda settings: ("train",) if settings["finetune_epochs"] else (),
    hears=False,
    wants=lambda source, settings: "pytorch",
)
