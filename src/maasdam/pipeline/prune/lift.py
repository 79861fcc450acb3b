"""An exported program as a module whose layers can be cut, trained and exported again.

Knows the ATen operators that layers become and how arguments are told apart. Refuses to know which layers matter.

    program: call_function aten.conv2d(x, weight, bias, …)  --lift-->  call_module nn.Conv2d, at the weight's old name

Weights are the program's own parameters (a matrix product of ONNX or TensorFlow has its weights the other way round, so its
layer has a copy). What has no layer of its own (additions, attention, views) stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from maasdam.core import Signature
from maasdam.errors import Unsupported

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

Arguments = Mapping[str, Any]
"""An operator's arguments by name, defaults filled in: weights as parameters and buffers, what is computed as graph nodes."""
WEIGHTS = {"weight", "bias", "running_mean", "running_var"}

MASKING = 2
"""Operators between a softmax and the matrix product that reads it: what exporters write for a mask, or a dropout."""


def lift(program: ExportedProgram, signature: Signature) -> torch.nn.Module:
    """`forward(<input names>) -> {"<output name>": tensor}` with real layers inside. Raises Unsupported where there is none.

    The weights are shared with `program`: cutting the module leaves the program unusable.
    """
    import torch

    exported: Any = program.module(check_guards=False)
    products = [node for node in exported.graph.nodes if _is_product(node, exported)]
    for node in products:
        _replace_product(exported, node)
    layers = {node: layer for node in exported.graph.nodes if (layer := _layer(node, exported)) is not None}
    if not layers and not products:
        raise Unsupported("the program holds no layer whose weights are parameters, so nothing in it can be cut")
    for node, layer in layers.items():
        _replace(exported, node, layer)
    for node in exported.graph.nodes:
        _free_width(node)
    for node in [n for n in exported.graph.nodes if n.op == "get_attr" and not n.users]:
        exported.graph.erase_node(node)  # a weight whose layer holds it under another name
    exported.graph.eliminate_dead_code()
    # a fresh module: the exported one refuses to change between training and evaluation
    body = torch.fx.GraphModule(exported, exported.graph)
    return _named(body, program, signature).eval()


def _named(body: GraphModule, program: ExportedProgram, signature: Signature) -> torch.nn.Module:
    import torch
    from torch.utils import _pytree as pytree

    ports = [str(name) for name in program.graph_signature.user_inputs]
    names = [s.name for s in signature.inputs]
    order = ports if set(ports) == set(names) else names
    outputs = [s.name for s in signature.outputs]
    attends = any(map(_is_attention, body.graph.nodes))
    spec = program.call_spec.in_spec
    assert spec is not None  # a program always knows how it is called

    class Lifted(torch.nn.Module):
        """Called by name, as transformers' models are; `return_dict` is taken because those take it."""

        def __init__(self) -> None:
            super().__init__()
            self.body = body
            self.attends = attends

        def forward(self, return_dict: bool = True, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
            args, kwargs = pytree.tree_unflatten([tensors[name] for name in order], spec)
            answer = self.body(*args, **kwargs)
            if isinstance(answer, dict) and set(outputs) <= answer.keys():
                return {name: answer[name] for name in outputs}
            return dict(zip(outputs, pytree.tree_leaves(answer), strict=False))

    return Lifted()


def _is_attention(node: Node) -> bool:
    """The fused operator, or a softmax that a matrix product reads, be it through a mask."""
    target = str(node.target)
    if target.startswith("aten.scaled_dot_product_attention"):
        return True
    return target.startswith("aten.softmax") and _feeds_a_product(node, MASKING)


def _feeds_a_product(node: Node, hops: int) -> bool:
    return any(
        str(user.target).startswith(("aten.matmul", "aten.bmm")) or (hops > 0 and _feeds_a_product(user, hops - 1))
        for user in node.users
    )


def _layer(node: Node, module: torch.nn.Module) -> torch.nn.Module | None:
    make = _MAKERS.get(str(node.target)) if node.op == "call_function" else None
    if make is None:
        return None
    operator: Any = node.target
    arguments = {
        a.name: node.args[i] if i < len(node.args) else node.kwargs.get(a.name, a.default_value)
        for i, a in enumerate(operator._schema.arguments)
    }
    for name in WEIGHTS & arguments.keys():
        tensor = _named_by(arguments[name], module)
        if tensor is None and arguments[name] is not None:
            return None  # it is computed
        arguments[name] = tensor
    return make(arguments) if _is_parameter(arguments["weight"]) else None


def _is_parameter(value: Any) -> bool:
    import torch

    return isinstance(value, torch.nn.Parameter)


def _conv(arguments: Arguments) -> torch.nn.Module:
    """aten.conv1d, aten.conv2d"""
    import torch

    weight, bias = arguments["weight"], arguments["bias"]
    kinds: dict[int, Any] = {3: torch.nn.Conv1d, 4: torch.nn.Conv2d}
    groups = arguments["groups"]
    layer = kinds[weight.dim()](
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=tuple(arguments["stride"]),
        padding=arguments["padding"] if isinstance(arguments["padding"], str) else tuple(arguments["padding"]),
        dilation=tuple(arguments["dilation"]),
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    return _with(layer, weight=weight, bias=bias)


def _linear(arguments: Arguments) -> torch.nn.Module:
    """aten.linear"""
    import torch

    weight, bias = arguments["weight"], arguments["bias"]
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return _with(layer, weight=weight, bias=bias)


def _batch_norm(arguments: Arguments) -> torch.nn.Module | None:
    """aten.batch_norm with fixed statistics"""
    import torch

    weight, bias = arguments["weight"], arguments["bias"]
    mean, variance = arguments["running_mean"], arguments["running_var"]
    if arguments["training"] or bias is None or mean is None or variance is None:
        return None
    kinds: dict[int, Any] = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}
    rank = arguments["input"].meta["val"].dim()
    if rank not in kinds:
        return None
    layer = kinds[rank](len(weight), eps=arguments["eps"], momentum=arguments["momentum"], device="meta")
    layer.num_batches_tracked = torch.zeros((), dtype=torch.int64)
    layer.running_mean, layer.running_var = mean, variance
    return _with(layer, weight=weight, bias=bias)


def _layer_norm(arguments: Arguments) -> torch.nn.Module:
    """aten.layer_norm"""
    import torch

    weight, bias = arguments["weight"], arguments["bias"]
    shape = list(arguments["normalized_shape"])
    layer = torch.nn.LayerNorm(shape, eps=arguments["eps"], bias=bias is not None, device="meta")
    return _with(layer, weight=weight, bias=bias)


def _embedding(arguments: Arguments) -> torch.nn.Module:
    """aten.embedding"""
    import torch

    weight = arguments["weight"]
    rows, width = weight.shape
    padding = arguments["padding_idx"]
    layer = torch.nn.Embedding(rows, width, padding_idx=padding if padding >= 0 else None, device="meta")
    return _with(layer, weight=weight)


_MAKERS: dict[str, Callable[[Arguments], torch.nn.Module | None]] = {
    "aten.conv1d.default": _conv,
    "aten.conv2d.default": _conv,
    "aten.conv2d.padding": _conv,
    "aten.linear.default": _linear,
    "aten.batch_norm.default": _batch_norm,
    "aten.layer_norm.default": _layer_norm,
    "aten.embedding.default": _embedding,
}
_INPUT = {"aten.embedding.default": "indices"}
"""What the tensor that goes through is called, where it is not "input"."""


def _with(layer: torch.nn.Module, **tensors: Any) -> torch.nn.Module:
    for name, tensor in tensors.items():
        setattr(layer, name, tensor)
    return layer


def _replace(module: Any, node: Node, layer: torch.nn.Module) -> None:
    """Call the layer where the operator was called."""
    target: Any = node.target
    names = [a.name for a in target._schema.arguments]
    weight: Any = node.args[names.index("weight")]
    through = node.args[names.index(_INPUT.get(str(target), "input"))]
    path = _place(module, str(weight.target).rpartition(".")[0] or "layer", layer)
    with module.graph.inserting_before(node):
        call = module.graph.call_module(path, (through,))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)


def _is_product(node: Node, module: torch.nn.Module) -> bool:
    """Whether it multiplies what goes through by a matrix of weights [in, out], as ONNX and TensorFlow write linear layers."""
    if str(node.target) not in ("aten.matmul.default", "aten.mm.default"):
        return False
    through, weight = node.args[0], _named_by(node.args[1], module)
    return getattr(through, "op", None) != "get_attr" and _is_parameter(weight) and weight.dim() == 2


def _named_by(value: Any, module: torch.nn.Module) -> Any:
    """The parameter or buffer that a graph node names; None where it is computed, or is nothing."""
    if getattr(value, "op", None) != "get_attr":
        return None
    owner, _, name = str(value.target).rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _replace_product(module: Any, node: Node) -> None:
    """Call a linear layer where the matrix product was, and the addition of a bias if that is all that follows."""
    import torch

    named: Any = node.args[1]
    weight = _named_by(named, module)
    last, bias = node, None
    after = next(iter(node.users)) if len(node.users) == 1 else None
    if after is not None and str(after.target) == "aten.add.Tensor" and not after.kwargs:
        other = _named_by(after.args[1] if after.args[0] is node else after.args[0], module)
        if _is_parameter(other) and tuple(other.shape) == (weight.shape[1],):
            last, bias = after, other
    wide, narrow = weight.shape
    layer = torch.nn.Linear(wide, narrow, bias=bias is not None, device="meta")
    _with(layer, weight=torch.nn.Parameter(weight.detach().t().contiguous()))
    if bias is not None:
        _with(layer, bias=bias)
    wanted = re.sub(r"[._](weight|kernel)$", "", str(named.target))
    path = _place(module, wanted if wanted != str(named.target) else f"{wanted}_layer", layer)
    with module.graph.inserting_before(last):
        call = module.graph.call_module(path, (node.args[0],))
    call.meta = dict(last.meta)
    last.replace_all_uses_with(call)
    module.graph.erase_node(last)
    if last is not node:
        module.graph.erase_node(node)


def _place(module: Any, wanted: str, layer: torch.nn.Module) -> str:
    """Where the layer goes: the name its weights had, unless something else is there (a weight that two layers share)."""
    import torch

    path, number = wanted, 1
    while not _is_free(module, path, layer):
        path, number = f"{wanted}_{number}", number + 1
    holder = module
    for part in path.split(".")[:-1]:
        if not hasattr(holder, part):
            holder.add_module(part, torch.nn.Module())
        holder = getattr(holder, part)
    holder.add_module(path.split(".")[-1], layer)
    return path


def _is_free(module: Any, path: str, layer: torch.nn.Module) -> bool:
    """Whether nothing lies at `path` but the weights of this very layer."""
    import torch

    try:
        there = module.get_submodule(path)
    except AttributeError:
        return True
    if type(there) is not torch.nn.Module or any(True for _ in there.children()):
        return False
    own = {id(t) for t in (*layer.parameters(), *layer.buffers())}
    return all(id(t) in own or t.dim() == 0 for t in (*there.parameters(), *there.buffers()))


def _free_width(node: Node) -> None:
    """Let a view find out the width that pruning changes: the width of [batch, …, width], or the heads of [b, s, heads, d]."""
    import torch

    if str(node.target) not in ("aten.view.default", "aten.reshape.default") or not isinstance(node.args[1], list | tuple):
        return
    sizes: list[Any] = list(node.args[1])
    if sizes and sizes[0] == -1 and _keeps_rows(node):
        with node.graph.inserting_before(node):
            sizes[0] = node.graph.call_function(torch.ops.aten.sym_size.int, (node.args[0], 0))
    fixed = [i for i, size in enumerate(sizes) if isinstance(size, int)]
    if not fixed or any(sizes[i] == -1 for i in fixed):
        return
    chosen = fixed[-2] if len(sizes) == 4 and len(fixed) > 1 else fixed[-1]
    sizes[chosen] = -1
    node.args = (node.args[0], sizes)


def _keeps_rows(node: Node) -> bool:
    """Whether the first axis comes out of a view as it went in."""
    through: Any = node.args[0]
    before, after = through.meta["val"].shape, node.meta["val"].shape
    return len(before) > 0 and str(before[0]) == str(after[0])
