"""Quantise PyTorch models without another library: int8 weights in modules of plain operators that torch.export keeps.

Knows linear and embedding layers. Refuses static int8: torch itself no longer has it (torchao does).

    dynamic-int8   y = (round(x / sx) @ W8ᵀ) * sx * sw + b   each row of x has its own scale, the product is int8 x int8
    weights-int8   y = x @ (W8 * sw)ᵀ + b                    float arithmetic: smaller, not faster
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.artifacts.produced import PassFacts, Produced
from maasdam.convert.directions.companions import copy_companions
from maasdam.core import Artifact
from maasdam.errors import Unsupported
from maasdam.pipeline.passes import PassContext

if TYPE_CHECKING:
    import torch

LEVELS = 127
"""int8 is used from -127 to 127, so that zero stays zero."""
SMALLEST_SCALE = 1e-12


def weights(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Write `source` with int8 weights as a .pt2 program, or with 16-bit weights in its own layout. Raises Unsupported."""
    scheme = settings["scheme"]
    if scheme in ("bf16", "fp16"):
        return _sixteen_bits(source, out, scheme)
    from maasdam.convert.modules import name_module, need_signature
    from maasdam.convert.programs import export_module, save_pt2
    from maasdam.pipeline.prune import open_to_cut

    signature = need_signature(source)
    model = open_to_cut(source).eval().requires_grad_(False)
    counts = quantize_layers(model, scheme == "dynamic-int8")
    program = export_module(name_module(model, signature), signature, source.path)
    save_pt2(program, str(out / "model.pt2"))
    copy_companions(source.path, out)
    how = "activations while running" if scheme == "dynamic-int8" else "computed in float32"
    facts = {
        "method": f"{counts['linear']} linear layers and {counts['embedding']} embeddings to int8, one scale per output; {how}",
        "layers": counts,
        "says": "convolutions stay float32",
    }
    return Produced("pytorch", "pt2", "pytorch", source.signature, dict(source.settings), PassFacts(facts))


def quantize_layers(model: torch.nn.Module, is_dynamic: bool) -> dict[str, int]:
    """Replace every linear and embedding layer of `model` by one with int8 weights; how many of each.

    Raises Unsupported where there is none.
    """
    import torch

    makers: dict[type, tuple[str, Callable[[Any], torch.nn.Module]]] = {
        torch.nn.Linear: ("linear", _dynamic_linear if is_dynamic else _float_linear),
        torch.nn.Embedding: ("embedding", _embedding),
    }
    counts = {"linear": 0, "embedding": 0}
    made: dict[int, torch.nn.Module] = {}
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if type(layer) not in makers:
            continue
        kind, make = makers[type(layer)]
        if id(layer) not in made:
            made[id(layer)] = make(layer)
            counts[kind] += 1
        model.set_submodule(name, made[id(layer)])
    if not any(counts.values()):
        raise Unsupported(
            "the network has no linear or embedding layer, and PyTorch has int8 here for nothing else; use --to onnx"
        )
    return counts


def _sixteen_bits(source: Artifact, out: Path, scheme: str) -> Produced:
    import torch

    if source.layout != "huggingface":
        raise Unsupported(
            f"16-bit weights are kept in Hugging Face layout only; this model is {source.layout}; use --to openvino"
        )
    from maasdam.engines.transformers_library import open_module

    model: Any = open_module(source.path)
    model.to(torch.bfloat16 if scheme == "bf16" else torch.float16)
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise Unsupported("a weight is too large for float16; use scheme = 'bf16'")
    model.save_pretrained(out, safe_serialization=True)
    copy_companions(source.path, out)
    facts = {"method": f"weights kept in {'bfloat16' if scheme == 'bf16' else 'float16'}, computed in float32"}
    return Produced("pytorch", "huggingface", source.engine, source.signature, dict(source.settings), PassFacts(facts))


def _rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 weights, float32 scales of the rows): symmetric, the largest of each row becomes 127."""
    import torch

    scales = weight.detach().float().abs().amax(1).clamp_min(SMALLEST_SCALE) / LEVELS
    return torch.round(weight.detach().float() / scales[:, None]).to(torch.int8), scales


def _held(forward: Callable[[Any, torch.Tensor], torch.Tensor], **tensors: torch.Tensor | None) -> torch.nn.Module:
    """A module of these buffers with this forward."""
    import torch

    class Quantized(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, tensor in tensors.items():
                self.register_buffer(name, tensor)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return forward(self, x)

    return Quantized().eval()


def _dynamic_linear(layer: torch.nn.Linear) -> torch.nn.Module:
    import torch

    weight, scales = _rows(layer.weight)

    def forward(own: Any, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        largest = rows.abs().amax(1, keepdim=True).clamp_min(SMALLEST_SCALE) / LEVELS
        product = torch._int_mm(torch.round(rows / largest).to(torch.int8), own.weight.t())
        y = product.to(torch.float32) * largest * own.scales
        y = y if own.bias is None else y + own.bias
        answer: torch.Tensor = y.reshape(*x.shape[:-1], own.weight.shape[0])
        return answer

    return _held(forward, weight=weight, scales=scales, bias=layer.bias)


def _float_linear(layer: torch.nn.Linear) -> torch.nn.Module:
    import torch

    weight, scales = _rows(layer.weight)

    def forward(own: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, own.weight.to(torch.float32) * own.scales[:, None], own.bias)

    return _held(forward, weight=weight, scales=scales, bias=layer.bias)


def _embedding(layer: torch.nn.Embedding) -> torch.nn.Module:
    import torch

    weight, scales = _rows(layer.weight)

    def forward(own: Any, ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = own.weight[ids].to(torch.float32) * own.scales[ids].unsqueeze(-1)
        return rows

    return _held(forward, weight=weight, scales=scales)
