"""A PyTorch artifact as an exported program: the hub from which every PyTorch direction starts.

Knows torch.export, dynamic axes and which attention exports. Refuses to know ONNX and OpenVINO.

    huggingface --named_module--> torch.export --\\
    pt2 --torch.export.load---------------------- ExportedProgram -> ONNX | OpenVINO | pt2
    torchscript --TS2EPConverter-----------------/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from maasdam.convert.modules import (
    Attention,
    called,
    has_fused_attention,
    name_module,
    need_signature,
    raising,
)
from maasdam.convert.networks import named_network
from maasdam.convert.probes import EXPORT_SIZES, accepted, has_cache
from maasdam.convert.signatures import axis_name
from maasdam.core import Artifact, Signature, TensorSpec
from maasdam.engines.pytorch_engine import load_program
from maasdam.engines.tensors import parameter_names
from maasdam.errors import InvalidModel, MaasdamError, Unsupported, from_extra

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

Out = TypeVar("Out")
FEWEST = 2
"""A least size up to this is torch's own, and no wish of the model's."""
REFINEMENTS = 3
"""How often torch.export may correct the ranges of the dynamic axes."""
LEAST = (1, 4, 16, None)
"""The shortest sequence that is asked for. Layers that halve or cut it put conditions on shorter ones, and torch.export does
not always say which; None lets it find a range by itself."""

_ASK_FOR_LONGER = ("Constraints violated", "Expected derived min value")
"""What torch.export says of axes whose shortest lengths it can't allow."""


def with_program(source: Artifact, use: Callable[[ExportedProgram], Out]) -> Out:
    """`use` of the exported program; where an attention implementation does not export, the next one is tried.

    Fused attention (sdpa) runs faster where it exports; plain attention (eager) exports everywhere.
    Raises Unsupported with the exporter's reason when none does.
    """
    with from_extra("pytorch", "torch"):
        import torch  # noqa: F401  # asked for, to say which extra is missing
    if source.layout == "pt2":
        return _explained(source, lambda: use(load_pt2(source)))
    if source.layout == "torchscript":
        return _explained(source, lambda: use(_from_torchscript(source)))
    attentions: list[Attention] = ["sdpa", "eager"] if has_fused_attention(source) else ["eager"]
    for attention in attentions[:-1]:
        try:
            return use(export(source, attention))
        except MaasdamError:
            raise
        except Exception:  # whatever the exporter stumbles on, the plain attention gets its try
            continue
    return _explained(source, lambda: use(export(source, attentions[-1])))


def _explained(source: Artifact, work: Callable[[], Out]) -> Out:
    try:
        return work()
    except MaasdamError:
        raise
    except Exception as error:  # exporters raise anything; the reason matters, not its type
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        rules = [line for line in lines if "No conversion rule" in line] or [line for line in lines[::-1] if "Error" in line]
        reason = (rules or lines or [type(error).__name__])[0].removeprefix("-- ")
        raise Unsupported(f"PyTorch can't export {called(source)}: {reason[:400]}") from error


def export(source: Artifact, attention: Attention) -> ExportedProgram:
    """A Hugging Face artifact through torch.export, every dynamic axis of its signature dynamic in the program."""
    return export_module(named_network(source, attention), need_signature(source), source.path)


def export_module(module: torch.nn.Module, signature: Signature, folder: Path | None = None) -> ExportedProgram:
    """A module that takes the signature's inputs in order, exported with the signature's dynamic axes.

    `folder` may hold a config.json that tells the vocabulary's size.
    """
    import torch

    examples = _examples(module, signature, folder)
    for least in LEAST:
        try:
            program = _export(module, examples, _dynamic_axes(signature, least))
        except (torch._dynamo.exc.UserError, AssertionError) as error:
            if least is LEAST[-1] or not any(words in str(error) for words in _ASK_FOR_LONGER):
                raise
        else:
            break
    _derive_ranges(program)
    return program


def _examples(module: Callable[..., Any], signature: Signature, folder: Path | None) -> tuple[torch.Tensor, ...]:
    """Random inputs that the module takes."""
    import torch

    def run(batch: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        tensors = tuple(torch.from_numpy(batch[s.name]) for s in signature.inputs)
        with torch.no_grad():
            module(*tensors)
        return tensors

    return accepted(run, signature, EXPORT_SIZES, seed=0, folder=folder)[1]


def _export(module: torch.nn.Module, examples: tuple[Any, ...], axes: Any) -> ExportedProgram:
    import torch
    from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes

    for _ in range(REFINEMENTS):
        try:
            with torch.no_grad():
                return torch.export.export(module, examples, dynamic_shapes=axes, strict=False)
        except torch._dynamo.exc.UserError as error:
            # a model with a shortest length (convolutions) says it: take the range it suggests
            message = str(error).partition("\n\nThe error above")[0]
            if "Suggested fixes" not in message:
                raise
            axes = refine_dynamic_shapes_from_suggested_fixes(message, axes)
    with torch.no_grad():
        return torch.export.export(module, examples, dynamic_shapes=axes, strict=False)


def _dynamic_axes(signature: Signature, least: int | None) -> dict[str, dict[int, Any]]:
    """Axes by input name: one Dim for the batch and one for the sequence, shared by all inputs, or those the file names.

    Height and width get ranges of torch's own finding: strides put conditions on them that a plain Dim can't meet. Where it
    fixes one, the certificate sees a lost axis.
    """
    from torch.export import Dim

    dims: dict[str, Any] = {}

    is_cached = has_cache(signature)
    images = {s.name for s in signature.inputs if len(s.shape) == 4 and not is_cached}
    batches = {s.axes[0].name for s in signature.inputs if s.axes and s.axes[0] is not None}

    def dim(spec: TensorSpec, axis: int) -> Any:
        name = axis_name(spec.name, axis)
        if is_cached and spec.name == "attention_mask" and axis == 1:
            return Dim.DYNAMIC  # the past and the sequence together
        stated = spec.axes[axis] if spec.axes else None
        if stated is not None and (least is not None or stated.name in batches):
            shortest = stated.least if stated.least > FEWEST or stated.name in batches else max(stated.least, least or 1)
            return dims.setdefault(f"of {stated.name}", Dim(f"{stated.name}_", min=shortest, max=stated.most))
        if (axis == 1 and (spec.name in images or least is None)) or (axis > 1 and name != "past"):
            return Dim.AUTO  # the height, where channels are last
        return dims.setdefault(name, Dim(name, min={"past": 0, "batch": 1}.get(name, least or 1)))

    called = parameter_names([s.name for s in signature.inputs])
    return {
        name: {i: dim(s, i) for i, size in enumerate(s.shape) if size is None}
        for name, s in zip(called, signature.inputs, strict=True)
    }


def _derive_ranges(program: ExportedProgram) -> None:
    """An axis that is a sum of others gets the range they have now; torch worked it out before it knew of our least sizes."""
    from torch.utils._sympy.value_ranges import bound_sympy

    ranges = program.range_constraints
    for expression in [e for e in ranges if not e.is_symbol]:
        ranges[expression] = bound_sympy(expression, ranges)


def load_pt2(source: Artifact) -> ExportedProgram:
    """The program in model.pt2. Sample inputs and constants are read as plain tensors only. Raises InvalidModel."""
    with raising(InvalidModel, "torch.export can't load the .pt2 program"):
        return load_program(source.path / "model.pt2")


def save_pt2(program: ExportedProgram, path: str) -> None:
    """Write the program without its sample inputs: loading it then unpickles nothing. Raises Unsupported."""
    import torch

    # an empty dict is what loading a program without any gives; the public setter takes only inputs that fit
    program._example_inputs = {}  # type: ignore[assignment]  # torch says None or a pair; empty is what its writer takes
    with raising(Unsupported, "torch.export made a program of the model, and can't write it"):
        torch.export.save(program, path)


def _from_torchscript(source: Artifact) -> ExportedProgram:
    """TorchScript through torch's own converter, which opens every axis, then exported again as the signature says."""
    import torch
    from torch._export.converter import TS2EPConverter

    signature = need_signature(source)
    script = torch.jit.load(source.path / "model.pt", map_location="cpu").eval()
    examples = _examples(script, signature, source.path)
    with torch.no_grad():
        program = TS2EPConverter(script, examples, {}).convert()
    return export_module(name_module(program.module(), signature, by_position=True), signature, source.path)
