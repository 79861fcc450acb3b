"""An ONNX file as converters without all of ONNX read it: functions of its own written out, Squeeze with its axes, If flat.

Knows ONNX's inliner and shape inference. Refuses to change what the graph computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import inliner

from maasdam.convert.onnx_files import operator_set, read_onnx
from maasdam.core import Artifact


@contextmanager
def plain(path: Path, folder: Path) -> Iterator[Path]:
    """`path`, or where it needs to be plainer a copy beside a link to its weights, for as long as it is being read.

    `folder` is where the copy may lie.
    """
    model = read_onnx(path)
    made = _written_out(model)
    if made is None:
        yield path
        return
    folder.mkdir()
    for each in path.parent.iterdir():  # external data lie beside the file, under names that it holds
        if each != path:
            (folder / each.name).symlink_to(each.resolve())
    onnx.save(made, folder / path.name)
    yield folder / path.name


def drops_ones(source: Artifact) -> bool:
    """Does the source leave out whatever axis is one long in a batch, by a Squeeze that names none?"""
    if source.layout != "onnx":
        return False
    model = read_onnx(source.path / "model.onnx")
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return any(node.op_type == "Squeeze" and _has_no_axes(node) for node in nodes)


def _written_out(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The plainer model; None where it is plain already."""
    made = inliner.inline_local_functions(model) if model.functions else model
    bare = [node for node in made.graph.node if node.op_type == "Squeeze" and _has_no_axes(node)]
    if bare:
        _tell_axes(made, bare)
    flattened = _flat_conditions(made)
    return made if made.functions or bare or flattened or made is not model else None


def _flat_conditions(model: onnx.ModelProto) -> bool:
    """Conditions of the graph's Ifs as one element of one axis: ONNX has them of any rank. Whether there were any."""
    ifs = [(at, node) for at, node in enumerate(model.graph.node) if node.op_type == "If" and not node.domain]
    if not ifs:
        return False
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in inferred.value_info if v.type.tensor_type.HasField("shape")}
    deep = [(at, node) for at, node in ifs if ranks.get(node.input[0], 0) > 1]
    if not deep:
        return False
    one = "maasdam_one_element"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), one))
    for at, node in reversed(deep):
        flat = f"{node.input[0]}_flat_{at}"
        model.graph.node.insert(at, onnx.helper.make_node("Reshape", [node.input[0], one], [flat]))
        node.input[0] = flat
    return True


def _has_no_axes(node: onnx.NodeProto) -> bool:
    return not any(a.name == "axes" for a in node.attribute) and not (len(node.input) > 1 and node.input[1])


def _tell_axes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Squeeze the axes that are one long whatever the input; an open axis stays, even where a batch of one is sent."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    for value in twin.graph.output:  # what a file says of ranks behind a Squeeze may be wrong
        value.type.tensor_type.ClearField("shape")
    twins = {node.output[0]: node for node in twin.graph.node if node.output}
    version = operator_set(model)
    for node in nodes:  # in order: what lies behind one is known once its own axes are
        inferred = onnx.shape_inference.infer_shapes(twin).graph
        known = {v.name: v.type.tensor_type for v in (*inferred.value_info, *inferred.input)}
        tensor = known.get(node.input[0])
        if tensor is None or not tensor.HasField("shape"):
            continue
        axes = [i for i, dim in enumerate(tensor.shape.dim) if dim.dim_value == 1]
        for graph, each in ((model.graph, node), (twin.graph, twins[node.output[0]])):
            _squeeze(each, graph, axes, version)


def _squeeze(node: onnx.NodeProto, graph: onnx.GraphProto, axes: list[int], version: int) -> None:
    if not axes:
        node.op_type = "Identity"
    elif version < 13:
        node.attribute.append(onnx.helper.make_attribute("axes", axes))
    else:
        name, taken = f"{node.output[0]}_axes", node.input[0]
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(axes, np.int64), name))
        node.ClearField("input")
        node.input.extend([taken, name])
