"""A Hugging Face artifact as a live module with named inputs and outputs.

Knows attention implementations and signatures; loading is the engines' (safetensors only, no code from the folder).
Refuses to export anything.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from maasdam.core import PAST, Artifact, Signature
from maasdam.engines.tensors import parameter_names
from maasdam.engines.transformers_library import MOONSHINE, architecture_of, open_module, transformers_with_torch
from maasdam.errors import InvalidModel, MaasdamError, from_extra
from maasdam.tasks.files import read_json

if TYPE_CHECKING:
    import torch

Attention = Literal["sdpa", "eager"]


def load_transformers(source: Artifact, attention: Attention) -> Any:
    """The transformers model at float32, frozen, in eval mode. Raises InvalidModel, Unsupported, MissingExtra."""
    with from_extra("pytorch", "torch"):
        transformers = transformers_with_torch()
    transformers.logging.disable_progress_bar()
    with raising(InvalidModel, f"transformers can't load {called(source)}"):
        model = open_module(source.path)
    model.set_attn_implementation(attention)
    _pool_all(model)
    _count_rows(model)
    return model.eval().requires_grad_(False)


WHOLE_IMAGE = 512
"""No feature map is as wide; a window as wide takes in all there is."""


def _pool_all(model: torch.nn.Module) -> None:
    """Windows larger than any feature map (EfficientNet's last pooling) as what they mean; OpenVINO takes no such window."""
    import torch

    for owner in model.modules():
        for name, child in owner.named_children():
            if isinstance(child, torch.nn.AvgPool2d | torch.nn.MaxPool2d) and child.ceil_mode:
                width = child.kernel_size if isinstance(child.kernel_size, int) else min(child.kernel_size)
                if width >= WHOLE_IMAGE:
                    is_mean = isinstance(child, torch.nn.AvgPool2d)
                    setattr(owner, name, torch.nn.AdaptiveAvgPool2d(1) if is_mean else torch.nn.AdaptiveMaxPool2d(1))


def _count_rows(model: torch.nn.Module) -> None:
    """In the files of its classes, `len` of a tensor as its shape has it: Python's makes a number of it, and a tracer would
    hold the batch to that for good (RT-DETR).
    """
    import torch

    def rows(of: Any) -> Any:
        return of.shape[0] if isinstance(of, torch.Tensor) else len(of)

    for name in {type(part).__module__ for part in model.modules()}:
        if name.startswith("transformers.models."):
            vars(sys.modules[name])["len"] = rows


def has_fused_attention(source: Artifact) -> bool:
    """Has transformers written this architecture for fused attention (sdpa)?"""
    model = getattr(transformers_with_torch(), architecture_of(source.path), None)
    return bool(getattr(model, "_supports_sdpa", False))


def is_whisper(source: Artifact) -> bool:
    """Does the Hugging Face folder hold a Whisper model that writes?"""
    config = read_json(source.path / "config.json")
    if config.get("model_type") != "whisper":
        return False
    return not str((config.get("architectures") or [""])[0]).endswith("ForAudioClassification")


def writes_as_it_is(source: Artifact) -> bool:
    """Does the Hugging Face folder hold a model that writes what it hears on transformers, and on nothing else?"""
    return source.layout == "huggingface" and architecture_of(source.path) == MOONSHINE


def name_module(model: torch.nn.Module, signature: Signature, *, by_position: bool = False) -> torch.nn.Module:
    """A model as `forward(<input names>) -> {"<output name>": tensor}`, the names being the signature's.

    Positional tensors in, a plain dict of tensors out: no type of transformers reaches the exported file. transformers'
    models are called by name; `by_position` calls others in the signature's order and names their outputs in order.
    """
    import torch

    inputs = [s.name for s in signature.inputs]
    outputs = [s.name for s in signature.outputs]

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
            _relate(dict(zip(inputs, tensors, strict=True)))
            if not by_position:
                answer = self.model(**dict(zip(inputs, tensors, strict=True)), return_dict=True)
                return {name: answer[name] for name in outputs}
            answer = self.model(*tensors)
            if isinstance(answer, dict):
                return {name: answer[name] for name in outputs}
            found = answer if isinstance(answer, tuple | list) else [answer]
            return dict(zip(outputs, found, strict=False))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    # torch.export names the graph's inputs after the parameters of forward
    forward: Any = Named.forward
    forward.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in ("self", *parameter_names(inputs))])
    named = Named()
    named.training = False  # not eval(): an exported program inside is in that mode already and refuses to be told
    return named


def _relate(tensors: dict[str, torch.Tensor]) -> None:
    """Tell torch.export that all caches hold one past, and that a mask covers the past and the new tokens.

    Else their lengths are symbols that know nothing of each other, and the first sum of two of them has to guess.
    """
    import torch

    past = [tensor.shape[2] for name, tensor in tensors.items() if name.startswith(PAST) and "encoder" not in name]
    for other in past[1:]:
        torch._check(other == past[0])
    if past and {"input_ids", "attention_mask"} <= tensors.keys():
        torch._check(tensors["attention_mask"].shape[1] == past[0] + tensors["input_ids"].shape[1])


def need_signature(source: Artifact) -> Signature:
    """The artifact's signature. Raises InvalidModel where it has none."""
    if source.signature is None:
        raise InvalidModel(f"nothing tells the input names and shapes of {called(source)}; they are needed to convert it")
    return source.signature


def called(source: Artifact) -> str:
    """What to call an artifact in a sentence: its architecture where it has one, never where it lies."""
    return architecture_of(source.path) if source.layout == "huggingface" else f"the {source.layout} model"


@contextmanager
def raising(kind: type[MaasdamError], says: str) -> Iterator[None]:
    """Around a library of others, which raises anything: that is raised as `kind`, by its first line; errors of ours stay."""
    try:
        yield
    except MaasdamError:
        raise
    except Exception as error:
        raise kind(f"{says}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error of somebody else's library says first, at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
