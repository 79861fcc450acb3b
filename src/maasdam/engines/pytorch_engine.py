"""PyTorch, for what was made in it and is served as it is. Knows modules and programs; never tasks, batching or HTTP.

Files come from strangers: weights are read from safetensors only, code from the repository of a model is never run, and
`torch.export` programs and TorchScript are loaded without unpickling.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import Artifact, Signature, Tensors, TensorSpec, distinct
from maasdam.engines.tensors import chosen, computing, loading_with, must_have, positions
from maasdam.engines.transformers_library import open_module
from maasdam.errors import InvalidModel, Unsupported

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from maasdam.core import type_array

NAME = "pytorch"
_environment = threading.Lock()

Function = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Torch tensors by name to torch tensors by name."""
Wrap = Callable[[Any], Any]
"""What is done to a module before it is called: nothing, or torch.compile."""
HALVES = {"f32": None, "f16": "float16", "bf16": "bfloat16"}
"""torch's names of the types that products are computed in; None is float32."""


def open(artifact: Artifact, device: str, settings: Mapping[str, Any]) -> PyTorchEngine:
    """Open a Hugging Face folder, a `.pt2` program or a TorchScript file.

    Settings: "threads", which holds for the process; "compile" (default False): torch.compile, which takes a minute at the
    first batch and a compiler; "precision": "f32" (default), or "f16" and "bf16" by autocast, weights staying float32.
    """
    with loading_with(NAME, artifact, "pytorch"):
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise Unsupported("this torch sees no CUDA device; use --device cpu")
        torch.set_num_threads(settings["threads"])
        makers = {"huggingface": _huggingface, "pt2": _exported, "torchscript": _scripted}
        if settings.get("compile", False) and artifact.layout == "torchscript":
            raise Unsupported("TorchScript is compiled already; torch.compile takes a Hugging Face folder or a .pt2 program")
        wrap: Wrap = torch.compile if settings.get("compile", False) else lambda module: module
        function, signature = makers[artifact.layout](artifact, device, wrap)
        return PyTorchEngine(function, signature, device, HALVES[chosen(settings, "precision", "f32", HALVES)])


def _huggingface(artifact: Artifact, device: str, wrap: Wrap) -> tuple[Function, Signature]:
    if artifact.signature is None:
        raise InvalidModel(
            "a Hugging Face model is opened by this engine with a signature; this one has none: it generates text"
        )
    signature = artifact.signature
    module = wrap(open_module(artifact.path).to(device))

    def function(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        out = module(**tensors, return_dict=True)
        must_have(out.keys(), signature, "outputs")
        return {s.name: out[s.name] for s in signature.outputs}

    return function, signature


def _exported(artifact: Artifact, device: str, wrap: Wrap) -> tuple[Function, Signature]:
    from torch.utils import _pytree as pytree

    program = load_program(artifact.path / "model.pt2")
    user_inputs = [str(name) for name in program.graph_signature.user_inputs]
    user_outputs = [str(name) for name in program.graph_signature.user_outputs]
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    own = Signature(tuple(_spec(n, values[n]) for n in user_inputs), tuple(_spec(n, values[n]) for n in user_outputs))
    signature = artifact.signature or own
    order = positions([s.name for s in signature.inputs], [{n} for n in user_inputs], "inputs")
    where = _output_positions(signature, user_inputs, user_outputs, program.call_spec.out_spec)
    in_spec = program.call_spec.in_spec
    module = wrap(program.module().to(device))
    names = [
        next(s.name for s, i in zip(signature.inputs, order, strict=True) if i == port) for port in range(len(user_inputs))
    ]

    def function(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        args, kwargs = pytree.tree_unflatten([tensors[n] for n in names], in_spec)
        leaves = pytree.tree_leaves(module(*args, **kwargs))
        return {s.name: leaves[i] for s, i in zip(signature.outputs, where, strict=True)}

    return function, signature


def _output_positions(signature: Signature, inputs: list[str], graph_names: list[str], out_spec: Any) -> list[int]:
    """Where the signature's outputs are in the flat answer: by the keys it comes in, by graph names, or in order."""
    keys = [str(k) for k in (getattr(out_spec, "context", None) or []) if isinstance(k, str)]
    known = keys if len(keys) == len(graph_names) else graph_names
    ports = [{a, b} for a, b in zip(graph_names, known, strict=True)]
    for port, name in zip(ports, distinct(known, inputs), strict=True):
        port.add(name)
    return positions([s.name for s in signature.outputs], ports, "outputs")


def _scripted(artifact: Artifact, device: str, wrap: Wrap) -> tuple[Function, Signature]:
    import torch

    if artifact.signature is None:
        raise InvalidModel("TorchScript tells neither names nor shapes of its inputs; build it with a signature")
    signature = artifact.signature
    load: Any = torch.jit.load
    module = load(str(artifact.path / "model.pt"), map_location=device).eval()

    def function(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        out = module(*(tensors[s.name] for s in signature.inputs))
        if isinstance(out, Mapping):
            must_have(out.keys(), signature, "outputs")
            return out
        outputs = list(out) if isinstance(out, tuple | list) else [out]
        if len(outputs) < len(signature.outputs):
            raise InvalidModel(f"the TorchScript gives {len(outputs)} outputs; the signature says {len(signature.outputs)}")
        return {s.name: tensor for s, tensor in zip(signature.outputs, outputs, strict=False)}

    return function, signature


def load_program(path: Path) -> ExportedProgram:
    """The program of a `.pt2` archive. One thread at a time.

    Nothing is unpickled but tensors, whatever torch's own callers ask for; of the example inputs, which serve nobody here,
    not even those. Raises what torch raises for a damaged archive.
    """
    import torch
    from torch.export.pt2_archive import PT2ArchiveReader
    from torch.export.pt2_archive.constants import SAMPLE_INPUTS_DIR

    read_bytes = PT2ArchiveReader.read_bytes

    def without_examples(reader: PT2ArchiveReader, name: str) -> bytes:
        return b"" if name.startswith(SAMPLE_INPUTS_DIR) else read_bytes(reader, name)

    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    with _environment:
        before = os.environ.get(key)
        os.environ[key] = "1"
        try:
            PT2ArchiveReader.read_bytes = without_examples  # type: ignore[method-assign,assignment]  # put back below
            return torch.export.load(path)
        finally:
            PT2ArchiveReader.read_bytes = read_bytes  # type: ignore[method-assign]  # as it was
            if before is None:
                del os.environ[key]
            else:
                os.environ[key] = before


def _spec(name: str, value: Any) -> TensorSpec:
    shape = tuple(int(d) if isinstance(d, int) else None for d in value.shape)
    return TensorSpec(name, str(value.dtype).removeprefix("torch."), shape)


def _as(tensor: Any, dtype: str) -> Any:
    """Half-precision answers in the dtype that was promised; all others as they are."""
    return tensor.float() if dtype == "float32" and tensor.is_floating_point() else tensor


class PyTorchEngine:
    """One module in inference mode; torch lets several threads call it at once."""

    def __init__(self, function: Function, signature: Signature, device: str, half: str | None = None) -> None:
        self.signature = signature
        self._function: Function | None = function
        self._device = device
        self._half = half

    def run(self, batch: Tensors) -> dict[str, type_array]:
        """Outputs in the signature's order. Raises InvalidTensor, EngineFailure."""
        import numpy as np
        import torch

        half = torch.autocast(self._device, dtype=getattr(torch, self._half)) if self._half else nullcontext()
        with computing(NAME, self._function, self.signature, batch) as function, torch.inference_mode(), half:
            # torch takes no negative strides; and it copies, since it would write to arrays that are read-only
            tensors = {n: torch.tensor(np.asarray(array, order="C"), device=self._device) for n, array in batch.items()}
            outputs = function(tensors)
            return {s.name: _as(outputs[s.name], s.dtype).cpu().numpy() for s in self.signature.outputs}

    def precisions(self) -> dict[str, int]:
        """Not known of a torch module."""
        return {}

    def close(self) -> None:
        """Free the module; a batch in flight in another thread still ends well."""
        self._function = None
