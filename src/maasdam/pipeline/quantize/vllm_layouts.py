"""Quantise language models into the layouts that vLLM loads: Hugging Face folders of the compressed-tensors format.

Knows which layers are quantised, how a scheme is written and what vLLM's kernels take. Refuses what is no language model.
What is written is proved with transformers, on the processor; vLLM itself has not been run on it.

    fp8    float-quantized   E4M3 weights, a scale per output; activations to E4M3 while running, a scale per token
    gptq   pack-quantized    int4 weights, symmetric in groups, eight to an int32; activations as they are
    awq    pack-quantized    int4 weights, asymmetric in groups, zero points packed too; activations as they are
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.artifacts.produced import PassFacts, Produced
from maasdam.convert.directions.companions import copy_companions
from maasdam.core import TEXT_GENERATION, Artifact
from maasdam.errors import InvalidInput, Unsupported
from maasdam.pipeline.passes import PassContext
from maasdam.pipeline.quantize.shared import calibration_texts

if TYPE_CHECKING:
    import torch

GROUPS = (32, 64, 128)
"""Group sizes that vLLM's int4 kernels take."""
PACKED = 8
"""Int4 values to an int32; zero points are packed along the outputs."""
FP8_LARGEST = 448.0
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_TOKEN_FP8 = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
_CHANNEL_FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}


def write(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Write `source`, a Hugging Face language model, in the scheme's layout.

    Raises Unsupported (another kind of model, an architecture the scheme does not know), InvalidInput (a group size that
    does not fit, no calibration texts), MissingExtra.
    """
    from maasdam.engines.compressed_weights import open_compressed_tensors
    from maasdam.engines.transformers_library import open_module

    scheme = settings["scheme"]
    _check_source(source, scheme)
    model: Any = open_module(source.path).requires_grad_(False)
    library = open_compressed_tensors()
    head, layers = linear_layers(model, scheme)
    kept = _kept_type(source.path)
    grids, facts = (
        (_fp8(model, layers, kept), PassFacts()) if scheme == "fp8" else _int4(model, layers, kept, source, settings, context)
    )
    layout = "float-quantized" if scheme == "fp8" else "pack-quantized"
    compressor = library.compress(model, _scheme_of(scheme, settings), layout, head, grids)
    _keep_in(model, kept)
    model.save_pretrained(out, safe_serialization=True)
    library.write_config(compressor, out)
    copy_companions(source.path, out)
    name = str(kept).removeprefix("torch.")
    words = {
        "method": f"{len(layers)} linear layers, {_METHODS[scheme].format(group=settings['group_size'])}; the rest in {name}",
        "layout": f"compressed-tensors, {layout}",
        "says": "checked with transformers; vLLM itself was not run on it",
    }
    facts = replace(facts, others={**facts.others, **words})
    return Produced("pytorch", "huggingface", source.engine, source.signature, dict(source.settings), facts)


_METHODS = {
    "fp8": "E4M3 weights with a scale per output, activations to E4M3 per token while running",
    "gptq": "GPTQ int4 weights, symmetric in groups of {group}",
    "awq": "AWQ int4 weights, asymmetric in groups of {group}",
}


def linear_layers(model: Any, scheme: str) -> tuple[list[str], list[str]]:
    """Names of (the heads that stay as they are, the linear layers that are quantised).

    Raises Unsupported where there is nothing to quantise, or vLLM would look for the weights of experts elsewhere.
    """
    import torch

    config = model.config.get_text_config()
    if any((getattr(config, name, None) or 0) > 1 for name in _EXPERTS):
        raise Unsupported(f"{type(model).__name__} is a mixture of experts; scheme '{scheme}' is for dense models; use bf16")
    output = model.get_output_embeddings()
    linear = [(name, m) for name, m in model.named_modules() if type(m) is torch.nn.Linear]
    head = [name for name, m in linear if m is output]
    layers = [name for name, m in linear if m is not output]
    if not layers:
        raise Unsupported(
            f"{type(model).__name__} has no linear layer but its head; scheme '{scheme}' quantises those; use bf16"
        )
    return head, layers


def _check_source(source: Artifact, scheme: str) -> None:
    from maasdam.engines.transformers_library import quantization_of

    if source.task != TEXT_GENERATION or source.layout != "huggingface":
        raise Unsupported(f"scheme '{scheme}' is for language models in Hugging Face layout; this is {source.layout}")
    method = quantization_of(source.path)
    if method is not None:
        raise Unsupported(f"the model is quantised already ({method}); give scheme '{scheme}' the model it was made from")


def _int4(
    model: Any, layers: list[str], kept: torch.dtype, source: Artifact, settings: Mapping[str, Any], context: PassContext
) -> tuple[dict[str, dict[str, torch.Tensor]], PassFacts]:
    """Round the model's layers in place by gptq or awq; what the library needs to know of their grids, and facts."""
    from maasdam.pipeline.quantize import awq, gptq
    from maasdam.pipeline.quantize.layerwise import need_llama_like

    scheme, group = settings["scheme"], settings["group_size"]
    need_llama_like(model)
    _check_widths({name: model.get_submodule(name).weight.shape for name in layers}, scheme, group)
    texts, examples = calibration_texts(source, settings, context)
    make = gptq.quantize if scheme == "gptq" else awq.quantize
    grids, found = make(model, texts, group, kept, context.progress)
    missed = sorted(set(layers) - set(grids))
    if missed:
        raise Unsupported(f"{type(model).__name__} has linear layers that scheme '{scheme}' does not know ('{missed[0]}')")
    tensors = {name: {"weight_scale": grid.scales} for name, grid in grids.items()}
    if scheme == "awq":
        for name, grid in grids.items():
            tensors[name]["weight_zero_point"] = grid.zeros
    return tensors, PassFacts(found, examples)


def _check_widths(shapes: Mapping[str, tuple[int, ...]], scheme: str, group: int) -> None:
    """Raise InvalidInput where the groups don't fit the layers, Unsupported where no group size does."""
    if group not in GROUPS:
        raise InvalidInput(
            f"scheme '{scheme}' takes group_size {', '.join(map(str, GROUPS))}, as vLLM's kernels do; not {group}"
        )
    for name, (rows, columns) in shapes.items():
        if columns % group == 0 and rows % PACKED == 0:
            continue
        if rows % PACKED:
            raise Unsupported(f"{name} has {rows} outputs, which int4 can't be packed in eights of; use fp8 or weights-int4")
        fits = [g for g in GROUPS if all(s[1] % g == 0 for s in shapes.values())]
        if not fits:
            raise Unsupported(f"{name} has {columns} inputs, which no group size vLLM takes divides; use fp8 or weights-int4")
        raise InvalidInput(f"{name} has {columns} inputs, which groups of {group} don't divide; set group_size = {max(fits)}")


def _fp8(model: Any, layers: list[str], kept: torch.dtype) -> dict[str, dict[str, torch.Tensor]]:
    """A scale per output, so that the largest weight of each becomes the largest E4M3 number."""
    import torch

    found = {}
    for name in layers:
        scale = (model.get_submodule(name).weight.abs().amax(1, keepdim=True) / FP8_LARGEST).to(kept).float()
        found[name] = {"weight_scale": torch.where(scale == 0, torch.ones_like(scale), scale)}
    return found


def _scheme_of(scheme: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The scheme in the library's words."""
    if scheme == "fp8":
        return {"weights": _CHANNEL_FP8, "input_activations": _TOKEN_FP8}
    group = {"strategy": "group", "group_size": settings["group_size"]}
    return {"weights": {"num_bits": 4, "type": "int", "symmetric": scheme == "gptq", "dynamic": False, **group}}


def _kept_type(folder: Path) -> torch.dtype:
    """What scales, norms and embeddings are stored in: 16 bits, as vLLM computes; float16 only where the model is that."""
    import torch

    config = json.loads((folder / "config.json").read_text())
    named = config.get("dtype") or config.get("torch_dtype")
    return torch.float16 if named == "float16" else torch.bfloat16


def _keep_in(model: Any, kept: torch.dtype) -> None:
    """Every float32 tensor to `kept`; what is quantised has other types."""
    import torch

    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype == torch.float32:
            tensor.data = tensor.data.to(kept)
    model.config.dtype = kept
