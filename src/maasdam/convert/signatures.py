"""What a produced file says it takes and gives. Knows ONNX protos, OpenVINO models and exported programs.

Refuses to convert anything. Facts no file carries (layout, value range) come from the source's signature, by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from maasdam.core import PAST, Signature, Tensors, TensorSpec, distinct
from maasdam.engines.tensors import identifier, parameter_names
from maasdam.errors import InvalidModel, Unsupported, VerificationFailed

if TYPE_CHECKING:
    import onnx
    import openvino as ov
    from torch.export import ExportedProgram


def of_onnx(model: onnx.ModelProto) -> Signature:
    """The signature of an ONNX model: graph inputs that are no initializers, and outputs."""
    weights = {w.name for w in model.graph.initializer}
    return Signature(
        tuple(_onnx_spec(v) for v in model.graph.input if v.name not in weights),
        tuple(_onnx_spec(v) for v in model.graph.output),
    )


def _onnx_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    if not tensor.elem_type:
        raise InvalidModel(f"ONNX value '{value.name}' is no tensor; only tensors can be served")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return TensorSpec(value.name, dtype, shape)


def of_openvino(model: ov.Model) -> Signature:
    """The signature of an OpenVINO model; raises InvalidModel for a tensor without a name."""
    return Signature(tuple(_openvino_spec(p) for p in model.inputs), tuple(_openvino_spec(p) for p in model.outputs))


def _openvino_spec(port: Any) -> TensorSpec:
    if not port.get_names():
        raise InvalidModel(f"an OpenVINO tensor of {port.get_node().get_friendly_name()} has no name")
    shape = tuple(d.get_length() if d.is_static else None for d in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), port.get_element_type().to_dtype().name, shape)


def of_program(program: ExportedProgram) -> Signature:
    """The signature of an exported program: user inputs and outputs in order; outputs of a dict keep their keys."""
    import torch

    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}

    def spec(name: str, node: Any) -> TensorSpec:
        value = values[node]
        dtype = str(value.dtype).removeprefix("torch.")
        return TensorSpec(name, dtype, tuple(d if isinstance(d, int) else None for d in value.shape))

    nodes = [n for n in program.graph_signature.user_inputs if isinstance(n, str) and isinstance(values.get(n), torch.Tensor)]
    ends = [n for n in program.graph_signature.user_outputs if isinstance(n, str)]
    names = output_names(program)
    return Signature(tuple(spec(n, n) for n in nodes), tuple(spec(n, e) for n, e in zip(names, ends, strict=True)))


def output_names(program: ExportedProgram) -> list[str]:
    """The outputs' names: the keys where the program returns a flat dict, else the graph's own."""
    tree = program.call_spec.out_spec
    ends = [n for n in program.graph_signature.user_outputs if isinstance(n, str)]
    keys = getattr(tree, "context", None) if tree is not None and tree.type is dict else None
    is_named = isinstance(keys, list) and len(keys) == len(ends) and all(isinstance(k, str) for k in keys)
    return distinct(keys if is_named and keys else ends, map(str, program.graph_signature.user_inputs))


def describe(produced: Signature, source: Signature | None) -> Signature:
    """`produced` with the layout, value range and what else no file carries that the source's tensors of the same names have.

    A name that the format can't hold, and that became another, is the source's again.
    """
    if source is None:
        return produced
    outputs = {identifier(s.name): s for s in source.outputs} | {s.name: s for s in source.outputs}
    names = parameter_names([s.name for s in source.inputs])
    inputs = dict(zip(names, source.inputs, strict=True))
    inputs |= {identifier(s.name): s for s in source.inputs} | {s.name: s for s in source.inputs}

    def complete(spec: TensorSpec, known: Mapping[str, TensorSpec]) -> TensorSpec:
        same = known.get(spec.name)
        if same is None or len(same.shape) != len(spec.shape):
            return spec
        return replace(same, dtype=spec.dtype, shape=spec.shape)

    return Signature(tuple(complete(s, inputs) for s in produced.inputs), tuple(complete(s, outputs) for s in produced.outputs))


def match(wanted: Sequence[TensorSpec], found: Sequence[TensorSpec], what: str) -> dict[str, str]:
    """Found name -> wanted name: by name where the names agree, else in order.

    Raises Unsupported when the numbers or the ranks of inputs differ: the converter then lost or added a tensor.
    """
    if len(wanted) != len(found):
        listed = ", ".join(s.name for s in found) or "none"
        raise Unsupported(f"the conversion gives {len(found)} {what} ({listed}) where the source has {len(wanted)}")
    by_name = {identifier(s.name): s for s in wanted} | {s.name: s for s in wanted}
    pairs = {f.name: by_name.get(f.name, w) for w, f in zip(wanted, found, strict=True)}
    if len({w.name for w in pairs.values()}) != len(wanted):
        pairs = {f.name: w for w, f in zip(wanted, found, strict=True)}
    for spec in found:
        if what == "inputs" and len(spec.shape) != len(pairs[spec.name].shape):
            raise Unsupported(
                f"{what[:-1]} '{spec.name}' has {len(spec.shape)} axes after conversion and "
                f"{len(pairs[spec.name].shape)} in the source"
            )
    return {found_name: spec.name for found_name, spec in pairs.items()}


Fixed = dict[tuple[str, int], int]
"""(output, axis) -> the size that the conversion gives it, where the source called it open."""


def check_kept(source: Signature, produced: Signature) -> Fixed:
    """Raise VerificationFailed unless names, dtypes of inputs and dynamic axes of the inputs are all kept.

    Returns the axes of outputs that are fixed now: exporters call axes open that the network itself fixes. How many axes an
    output has is what the source answers with: files are wrong about it, and the answers are compared.
    """
    fixed: Fixed = {}
    for what, wanted, found in (("input", source.inputs, produced.inputs), ("output", source.outputs, produced.outputs)):
        have = {s.name: s for s in found}
        if set(have) != {s.name for s in wanted}:
            raise VerificationFailed(
                f"the {what}s were {_names(wanted)} and are now {_names(found)}; the conversion lost names"
            )
        for spec in wanted:
            now = have[spec.name]
            if what == "input" and now.dtype != spec.dtype:
                raise VerificationFailed(f"input '{spec.name}' was {spec.dtype} and is now {now.dtype}")
            if len(now.shape) != len(spec.shape):
                if what == "output":
                    continue
                raise VerificationFailed(f"{what} '{spec.name}' had {len(spec.shape)} axes and has {len(now.shape)} now")
            lost = {i: b for i, (a, b) in enumerate(zip(spec.shape, now.shape, strict=True)) if a is None and b is not None}
            if what == "input" and lost:
                raise _lost_axis(what, spec.name, *next(iter(lost.items())))
            fixed |= {(spec.name, axis): size for axis, size in lost.items()}
    return fixed


def check_fixed(fixed: Fixed, answer: Tensors) -> None:
    """Raise VerificationFailed where the source answers with another size than the conversion fixed."""
    for (name, axis), size in fixed.items():
        if answer[name].shape[axis] != size:
            raise _lost_axis("output", name, axis, size)


def _lost_axis(what: str, name: str, axis: int, size: int) -> VerificationFailed:
    return VerificationFailed(f"{what} '{name}' lost its dynamic axis {axis}: it is fixed at {size}")


def _names(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f"'{s.name}'" for s in specs) or "none"


def axis_name(tensor: str, axis: int) -> str:
    """What a dynamic axis is called in exported files: one batch, one sequence, one past, shared by all tensors."""
    if tensor.startswith(PAST) and axis == 2:
        return "past"
    return {0: "batch", 1: "sequence"}.get(axis, f"axis{axis}")


def name_onnx(model: onnx.ModelProto, wanted: Signature) -> None:
    """Give the graph's inputs, outputs and dynamic axes the names of `wanted`, in place."""
    from maasdam.convert.onnx_files import graphs_of

    found = of_onnx(model)
    names = match(wanted.inputs, found.inputs, "inputs") | match(wanted.outputs, found.outputs, "outputs")
    taken = {n for node in model.graph.node for n in (*node.input, *node.output)} | {w.name for w in model.graph.initializer}
    moves = {old: new for old, new in names.items() if old != new}
    clashes = {n: f"{n}_inner" for n in set(moves.values()) & taken - set(moves)}
    for graph in graphs_of(model.graph):
        _rename_values(graph, clashes | moves)
    symbols = _symbols(model.graph)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"[A-Za-z_]\w*", lambda m: symbols.get(m.group(), m.group()), dim.dim_param)


def _rename_values(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for weight in graph.initializer:
        weight.name = names.get(weight.name, weight.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _symbols(graph: onnx.GraphProto) -> dict[str, str]:
    """Exporter's symbol ("s43") -> our name, for the plain symbols of the inputs."""
    out: dict[str, str] = {}
    for value in graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if re.fullmatch(r"\w+", dim.dim_param) and axis_name(value.name, axis) not in out.values():
                out.setdefault(dim.dim_param, axis_name(value.name, axis))
    return out


def name_openvino(model: ov.Model, wanted: Signature) -> None:
    """Give the model's tensors and ports the names of `wanted`, and the inputs its fixed axes, in place."""
    import openvino as ov

    _part_outputs(model, {s.name for s in wanted.outputs})
    for what, ports, specs in (("inputs", model.inputs, wanted.inputs), ("outputs", model.outputs, wanted.outputs)):
        found = [_loose_spec(port, i, {s.name for s in specs}) for i, port in enumerate(ports)]
        names = match(specs, found, what)
        by_name = {s.name: s for s in specs}
        for port, spec in zip(ports, found, strict=True):
            name = names[spec.name]
            port.get_tensor().set_names({name})
            if what == "inputs":
                port.get_node().set_friendly_name(name)
                port.get_node().set_partial_shape(ov.PartialShape([-1 if d is None else d for d in by_name[name].shape]))
    model.validate_nodes_and_infer_types()


def _part_outputs(model: ov.Model, wanted: set[str]) -> None:
    """Outputs that are an input as it came, or one tensor under two names, become tensors of their own, each with its name."""
    from openvino import opset8

    taken: set[Any] = {(port.get_node().get_friendly_name(), port.get_index()) for port in model.inputs}
    for result in model.get_results():
        source = result.input_value(0)
        key = (source.get_node().get_friendly_name(), source.get_index())
        if key in taken:
            names = source.get_names() & wanted
            own = opset8.convert(source, source.get_element_type().to_string())
            copy = opset8.reshape(own, opset8.shape_of(own), special_zero=False)
            copy.output(0).get_tensor().set_names(names)
            result.input(0).replace_source_output(copy.output(0))
        taken.add(key)
    model.validate_nodes_and_infer_types()


def _loose_spec(port: Any, position: int, wanted: set[str]) -> TensorSpec:
    names = sorted(port.get_names() & wanted) or sorted(port.get_names())
    shape = tuple(d.get_length() if d.is_static else None for d in port.get_partial_shape())
    return TensorSpec(names[0] if names else f"#{position}", port.get_element_type().to_dtype().name, shape)
