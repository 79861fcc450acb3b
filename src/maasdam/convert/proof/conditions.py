"""Which way every If of a graph went: the graph is opened once more, with its conditions among its outputs.

Knows ONNX graphs and ONNX Runtime. Of other layouts it says only how many conditions they hold. Refuses to know candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from maasdam.convert.onnx_files import nodes_of, operator_set, read_onnx
from maasdam.core import Artifact, Tensors

VERSION = 13
"""Of the operator set from which what is added to a graph means the same; older graphs are not watched."""
AXES_ARE_INPUTS = 18
_WENT = "maasdam_condition"
Added = tuple[list[Any], list[Any], list[str]]
"""Nodes before one, nodes behind it, and the names of pairs that they make."""


@dataclass(slots=True)
class Watch:
    """The conditions of one graph, and which ways they went so far."""

    names: tuple[str, ...]
    """Of the If nodes, in the order of the graph: an inner one after the one around it."""
    session: Any = None
    went: dict[int, set[bool]] = field(default_factory=dict)

    def look(self, batch: Tensors) -> bool:
        """Run it on a batch that the source takes. Does one go a way that none went before?"""
        if self.session is None or not self.names:
            return False
        try:
            found = self.session.run([f"{_WENT}_{i}" for i in range(len(self.names))], dict(batch))
        except Exception:  # what the source answers and this copy does not is no news of its conditions
            return False
        is_new = False
        for i, (is_true, is_false) in enumerate(found):
            ways = self.went.setdefault(i, set())
            before = len(ways)
            ways |= ({True} if is_true else set()) | ({False} if is_false else set())
            is_new = is_new or len(ways) > before
        return is_new

    def missing(self) -> list[dict[str, Any]]:
        """Conditions with a branch that was never taken."""
        out = []
        for i, name in enumerate(self.names):
            if untaken := sorted({True, False} - self.went.get(i, set()), reverse=True):
                out.append({"condition": name, "never": [str(way).lower() for way in untaken]})
        return out

    def to_json(self) -> dict[str, Any] | None:
        """Nothing where the source has no conditions."""
        if not self.names:
            return None
        return {"count": len(self.names), "are_watched": self.session is not None, "never_taken": self.missing()}


def watch(source: Artifact) -> Watch:
    """A watch of the source's conditions. Where they can't be watched, all of them count as never taken."""
    if source.layout == "pt2":
        return Watch(tuple(_of_program(source)))
    if source.layout == "savedmodel":
        return Watch(tuple(_of_savedmodel(source.path)))
    if source.layout != "onnx":
        return Watch(())
    path = source.path / "model.onnx"
    model = read_onnx(path)
    if not any(node.op_type == "If" and not node.domain for node in nodes_of(model.graph)):
        return Watch(())
    names: list[str] = []
    version = operator_set(model)
    found = _Watching(names, version).outputs(model.graph)
    if version < VERSION:
        return Watch(tuple(names))
    for i, name in enumerate(found):
        model.graph.node.append(helper.make_node("Identity", [name], [f"{_WENT}_{i}"]))
        model.graph.output.append(helper.make_tensor_value_info(f"{_WENT}_{i}", TensorProto.INT32, [2]))
    return Watch(tuple(names), opened(model, path))


def opened(model: onnx.ModelProto, path: Path) -> Any:
    """A session, or None where the graph with its conditions does not open."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # a graph that says its types wrongly, or a name that is there twice
        return None


class _Watching:
    """Adds to a graph what says which way its Ifs went: for each a pair of numbers, was it true and was it false."""

    def __init__(self, names: list[str], version: int) -> None:
        self._names = names
        self._version = version
        self._count = 0

    def outputs(self, graph: onnx.GraphProto) -> list[str]:
        """Names of the pairs, in `graph`, of its own conditions and of those inside."""
        found: list[str] = []
        nodes = list(graph.node)
        added: list[onnx.NodeProto] = []
        for node in nodes:
            added_before, added_after, pairs = self._of_node(node)
            added += [*added_before, node, *added_after]
            found += pairs
        del graph.node[:]
        graph.node.extend(added)
        return found

    def _new(self, what: str) -> str:
        self._count += 1
        return f"{_WENT}_{what}_{self._count}"

    def _of_node(self, node: onnx.NodeProto) -> Added:
        kinds = {"If": self._of_if, "Loop": self._of_body, "Scan": self._of_body}
        return kinds[node.op_type](node) if node.op_type in kinds and node.domain in ("", "ai.onnx") else ([], [], [])

    def _of_if(self, node: onnx.NodeProto) -> Added:
        self._names.append(node.name or node.output[0])
        flat, no, both, pair, line = (self._new(w) for w in ("flat", "not", "both", "pair", "line"))
        before = [
            _constant(line, [1]),
            helper.make_node("Reshape", [node.input[0], line], [flat]),
            helper.make_node("Not", [flat], [no]),
            helper.make_node("Concat", [flat, no], [both], axis=0),
            helper.make_node("Cast", [both], [pair], to=TensorProto.INT32),
        ]
        pairs = [pair]
        branches = {a.name: a.g for a in node.attribute if a.name in ("then_branch", "else_branch")}
        for name in ("then_branch", "else_branch"):
            inner = self.outputs(branches[name])
            for each in inner:  # the other branch gives a pair of zeros in its place
                out = self._new("inner")
                node.output.append(out)
                pairs.append(out)
                for branch, graph in branches.items():
                    given = self._new("out")
                    same, zeros = helper.make_node("Identity", [each], [given]), _constant(given, [0, 0], is_narrow=True)
                    graph.node.append(same if branch == name else zeros)
                    graph.output.append(helper.make_tensor_value_info(given, TensorProto.INT32, [2]))
        return before, [], pairs

    def _of_body(self, node: onnx.NodeProto) -> Added:
        body = next(a.g for a in node.attribute if a.name == "body")
        after: list[Any] = []
        pairs: list[str] = []
        for each in self.outputs(body):  # what every turn gives, stacked: was it so in any of them?
            given, stacked, nothing, whole, any_turn = (self._new(w) for w in ("out", "stacked", "nothing", "whole", "any"))
            body.node.append(helper.make_node("Identity", [each], [given]))
            body.output.append(helper.make_tensor_value_info(given, TensorProto.INT32, [2]))
            node.output.append(stacked)
            after += [
                _constant(nothing, [[0, 0]], is_narrow=True),
                helper.make_node("Concat", [stacked, nothing], [whole], axis=0),
                *_largest_of_rows(whole, any_turn, self._version),
            ]
            pairs.append(any_turn)
        if node.op_type == "Scan":
            for attribute in node.attribute:  # one entry for each output that is stacked
                if attribute.name in ("scan_output_axes", "scan_output_directions"):
                    attribute.ints.extend([0] * len(pairs))
        return [], after, pairs


def _largest_of_rows(rows: str, out: str, version: int) -> list[onnx.NodeProto]:
    if version < AXES_ARE_INPUTS:
        return [helper.make_node("ReduceMax", [rows], [out], axes=[0], keepdims=0)]
    return [_constant(f"{out}_axes", [0]), helper.make_node("ReduceMax", [rows, f"{out}_axes"], [out], keepdims=0)]


def _constant(name: str, value: Any, is_narrow: bool = False) -> onnx.NodeProto:
    array = np.array(value, np.int32 if is_narrow else np.int64)
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))


def _of_program(source: Artifact) -> Iterable[str]:
    """The torch.cond calls of an exported program."""
    from maasdam.convert.programs import load_pt2

    module = load_pt2(source).graph_module
    for part in module.modules():
        graph = getattr(part, "graph", None)
        for node in graph.nodes if graph is not None else ():
            if node.op == "call_function" and str(node.target) == "cond":
                yield str(node.name)


def _of_savedmodel(path: Path) -> Iterable[str]:
    """The If calls of a SavedModel's functions, read without TensorFlow's graphs being built."""
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((path / "saved_model.pb").read_bytes())
    for meta in proto.meta_graphs:
        for function in meta.graph_def.library.function:
            for node in function.node_def:
                if node.op in ("If", "StatelessIf", "Case", "StatelessCase"):
                    yield node.name
