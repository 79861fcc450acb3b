"""ONNX -> PyTorch: the graph as a module with real parameters, then an exported program (.pt2).

Knows modules, parameters and names. The operators are in `operators/`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.convert.modules import first_line, name_module, need_signature
from maasdam.convert.operators import interpreter
from maasdam.convert.operators.graph import read
from maasdam.convert.operators.nodes import Graph
from maasdam.convert.operators.weights import learned_names
from maasdam.core import Artifact, Signature
from maasdam.engines.pytorch_engine import load_program
from maasdam.errors import MaasdamError, Unsupported, from_extra

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


def write(source: Artifact, out: Path) -> Signature:
    """Write `out`/model.pt2 and return its signature. Raises Unsupported listing operators PyTorch has no counterpart for."""
    with from_extra("pytorch", "torch"):
        import torch  # noqa: F401  # asked for, to say which extra is missing
    from maasdam.convert.programs import export_module, save_pt2
    from maasdam.convert.signatures import describe, of_program

    signature = need_signature(source)
    graph = read(source.path / "model.onnx", "PyTorch")

    def export(counts: bool) -> ExportedProgram:
        return export_module(name_module(of_graph(graph, counts), signature, by_position=True), signature, source.path)

    program, failure = None, None
    for counts in (False, True) if any(node.operator == "Mod" for node in graph.walk()) else (False,):
        if program is None or _has_conditions(program, signature):
            try:
                program = export(counts)
            except MaasdamError:
                raise
            except Exception as error:  # torch.export raises anything
                failure = failure or error
    if program is None:
        assert failure is not None
        raise Unsupported(f"torch.export can't trace the ONNX graph: {first_line(failure)}") from failure
    save_pt2(program, str(out / "model.pt2"))
    try:
        program = load_program(out / "model.pt2")
    except RuntimeError as error:  # what torch.export itself wrote
        raise Unsupported(f"PyTorch can't read back the program it wrote of the ONNX graph: {first_line(error)}") from error
    return describe(of_program(program), signature)


def _has_conditions(program: ExportedProgram, signature: Signature) -> bool:
    """Are there open axes that may have some sizes only, or one?"""
    inputs = program.graph.find_nodes(op="placeholder")[-len(signature.inputs) :]  # parameters come first
    sizes = [size for node in inputs for size in node.meta["val"].shape]
    specs = [size for spec in signature.inputs for size in spec.shape]
    return any(t is None and (isinstance(s, int) or not s.node.expr.is_symbol) for s, t in zip(sizes, specs, strict=True))


def load(path: Path) -> torch.nn.Module:
    """The ONNX file as a module: positional tensors in, a tuple of tensors out, its weights `nn.Parameter`s.

    Parameters keep the names they have in the file, as far as PyTorch allows. Raises InvalidModel, Unsupported.
    """
    return of_graph(read(path, "PyTorch"))


def of_graph(graph: Graph, counts: bool = False) -> torch.nn.Module:
    """As `load`, of a graph that was read for PyTorch. `counts`: quotients and rests of sizes are counted by the run.

    torch.export else derives from them which sizes an axis may have, and finds only those like its example's.
    """
    import torch

    from maasdam.convert.operators.pytorch import ARRAYS

    xp = replace(ARRAYS, counted=_counted) if counts else ARRAYS
    learned = learned_names(graph)

    counted = {name for node in graph.walk() if node.operator == "Range" for name in node.inputs}

    class OnnxGraph(torch.nn.Module):
        """An ONNX graph; `forward` walks its nodes."""

        def __init__(self) -> None:
            super().__init__()
            self.fixed: dict[str, Any] = {}
            self.places: dict[str, str] = {}
            for name, array in graph.constants.items():
                # torch.export can't save tensors without elements, nor count with numbers that are buffers
                if not array.size or name in counted:
                    self.fixed[name] = array
                    continue
                value = interpreter.small_or_tensor(array, xp)
                if not isinstance(value, torch.Tensor):
                    self.fixed[name] = value
                    continue
                self.places[name] = _put(self, name, value, name in learned)

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            values: dict[str, Any] = dict(self.fixed)
            for name, place in self.places.items():
                owner, _, leaf = place.rpartition(".")
                values[name] = getattr(self.get_submodule(owner), leaf)
            values.update(zip(graph.inputs, inputs, strict=True))
            return tuple(interpreter.run(graph, xp, values))

    return OnnxGraph().eval()


def _put(root: torch.nn.Module, name: str, value: torch.Tensor, is_learned: bool) -> str:
    """Store a tensor under its dotted name in nested modules; returns where."""
    import torch

    parts = [re.sub(r"\W", "_", part) or "_" for part in name.strip("/.").replace("/", ".").replace("::", ".").split(".")]
    owner = root
    for part in parts[:-1]:
        child = owner._modules.get(part)
        if child is None:
            child = torch.nn.Module()
            _add(owner, part, child)
        owner = child
    leaf = parts[-1]
    while hasattr(owner, leaf):
        leaf += "_"
    if is_learned and value.is_floating_point():
        owner.register_parameter(leaf, torch.nn.Parameter(value))
    else:
        owner.register_buffer(leaf, value)
    return ".".join([*parts[:-1], leaf])


def _add(owner: torch.nn.Module, part: str, child: torch.nn.Module) -> None:
    if hasattr(owner, part):
        raise Unsupported(f"two weights of the model are called '{part}', one of them inside the other")
    owner.add_module(part, child)


def _counted(size: Any) -> Any:
    import torch

    found = torch.scalar_tensor(size, dtype=torch.int64).item()
    torch._check(found >= 0)
    return found
