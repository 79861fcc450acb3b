"""Walk a Llama-like decoder layer by layer with calibration tokens, each layer seeing what quantised layers before it give.

Knows the names of Llama's linear layers and how transformers calls a layer. Refuses to know bits and grids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maasdam.core import Progress
from maasdam.errors import Unsupported

if TYPE_CHECKING:
    import torch

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
"""What the walk was proved on."""
SHARING = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""Linear layers of one decoder layer by the first of those that read the same input."""


@dataclass(slots=True)
class Seen:
    """What an input looked like over all calibration tokens."""

    gram: torch.Tensor
    """Mean of xᵀx, float32 [in, in]."""
    size: torch.Tensor
    """Mean of |x|, float32 [in]."""
    tokens: int = 0

    def add(self, x: torch.Tensor) -> None:
        """Take x, [..., in], into the means."""
        rows = x.detach().float().reshape(-1, x.shape[-1])
        total = self.tokens + len(rows)
        self.gram += (rows.T @ rows / len(rows) - self.gram) * (len(rows) / total)
        self.size += (rows.abs().mean(0) - self.size) * (len(rows) / total)
        self.tokens = total


@dataclass(frozen=True, slots=True)
class Stage:
    """One decoder layer, ready to be quantised in place."""

    name: str
    module: Any
    seen: dict[str, Seen]
    """What each linear layer reads, by the keys of `SHARING`."""

    def linear(self, name: str) -> Any:
        """The linear layer of this name within the decoder layer."""
        return self.module.get_submodule(name)


def need_llama_like(model: Any) -> None:
    """Raise Unsupported, naming the architecture, where the linear layers aren't those of `SHARING`."""
    import torch

    kind = type(model).__name__
    if kind not in ARCHITECTURES:
        raise Unsupported(
            f"{kind} is not known to gptq and awq here, which take {', '.join(ARCHITECTURES)}; use fp8 or weights-int4"
        )
    for number, layer in enumerate(model.model.layers):
        for name in (n for names in SHARING.values() for n in names):
            if type(layer.get_submodule(name)) is not torch.nn.Linear:
                raise Unsupported(f"{kind}: model.layers.{number}.{name} is no plain linear layer; use fp8 or weights-int4")


def walk(model: Any, texts: Sequence[Sequence[int]], progress: Progress) -> Iterator[Stage]:
    """Each decoder layer with what its linear layers read. The caller quantises it before asking for the next one.

    `texts` are token ids within the context. The layer is run once more after it was changed, so that errors made early are
    seen, and made up for, later.
    """
    import torch

    layers = model.model.layers
    with torch.no_grad():
        states, rest = _first_inputs(model, texts)
        for number, layer in enumerate(layers):
            progress("quantise layers", number, len(layers))
            seen = _watch(layer, states, rest[number])
            yield Stage(f"model.layers.{number}", layer, seen)
            states = [_run(layer, x, k) for x, k in zip(states, rest[number], strict=True)]
        progress("quantise layers", len(layers), len(layers))


def _first_inputs(model: Any, texts: Sequence[Sequence[int]]) -> tuple[list[torch.Tensor], list[list[dict[str, Any]]]]:
    """The first layer's hidden states [1, T, width] by text, and every layer's other arguments by text.

    Masks differ between layers where some attend within a window, hence each layer's own.
    """
    import torch

    states: list[torch.Tensor] = []
    rest: list[list[dict[str, Any]]] = [[] for _ in model.model.layers]

    def catch(number: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            others = dict(kwargs)
            hidden = args[0] if args else others.pop("hidden_states")
            if number == 0:
                states.append(hidden)
            rest[number].append(others)

        return hook

    handles = [m.register_forward_pre_hook(catch(i), with_kwargs=True) for i, m in enumerate(model.model.layers)]
    try:
        for ids in texts:
            model.model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return states, rest


def _watch(layer: Any, states: Sequence[torch.Tensor], rest: Sequence[dict[str, Any]]) -> dict[str, Seen]:
    import torch

    seen: dict[str, Seen] = {}
    handles = []
    for name in SHARING:
        linear = layer.get_submodule(name)
        seen[name] = Seen(torch.zeros(linear.in_features, linear.in_features), torch.zeros(linear.in_features))
        handles.append(linear.register_forward_pre_hook(lambda module, args, own=seen[name]: own.add(args[0])))
    try:
        for x, others in zip(states, rest, strict=True):
            _run(layer, x, others)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _run(layer: Any, x: torch.Tensor, others: dict[str, Any]) -> torch.Tensor:
    answer = layer(x, **others)
    hidden: torch.Tensor = answer[0] if isinstance(answer, tuple) else answer
    return hidden
