"""Tensors at the edges of what a protocol can say: two first axes, scalars, states, empty axes, missing values, 64 bits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from maasdam.api import oip_tensors as wire
from maasdam.api.json_body import JsonLimits
from maasdam.artifacts.store import Store
from maasdam.convert.signatures import describe
from maasdam.core import ANONYMOUS, Artifact, Request, Signature, TensorEngine, TensorPayload, TensorSpec
from maasdam.engines import open_engine
from maasdam.errors import InvalidInput, InvalidTensor
from maasdam.serving.replica import TensorReplica
from maasdam.sources import ingest
from maasdam.tasks import load_examples
from maasdam.telemetry.meter import CpuMeter

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def save(folder: Path, nodes: list[Any], inputs: dict[str, tuple[int, list[Any]]], output: list[Any], **constants: Any) -> Path:
    """A model that gives "y"; its file."""
    takes = [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in inputs.items()]
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", takes, [helper.make_tensor_value_info("y", FLOAT, output)], kept)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    path = folder / "source.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def graph_layer(folder: Path) -> Path:
    """Each edge adds the features of the node it leaves to the node it enters: nodes [n, 2], edges [e, 2] -> [n, 2]."""
    nodes = [
        helper.make_node("Gather", ["edges", "zero"], ["from"], axis=1),
        helper.make_node("Gather", ["edges", "one"], ["to"], axis=1),
        helper.make_node("Gather", ["nodes", "from"], ["messages"], axis=0),
        helper.make_node("Mul", ["nodes", "nil"], ["nothing"]),
        helper.make_node("Unsqueeze", ["to", "axis"], ["places"]),
        helper.make_node("ScatterND", ["nothing", "places", "messages"], ["y"], reduction="add"),
    ]
    takes = {"nodes": (FLOAT, ["n", 2]), "edges": (INT64, ["e", 2])}
    constants = {"zero": np.array(0), "one": np.array(1), "axis": np.array([1]), "nil": np.float32(0)}
    return save(folder, nodes, takes, ["n", 2], **constants)


def scaled(folder: Path) -> Path:
    """x [n, 2] times a scalar, plus a state [1, 2]."""
    nodes = [helper.make_node("Mul", ["x", "gain"], ["scaled"]), helper.make_node("Add", ["scaled", "state"], ["y"])]
    return save(folder, nodes, {"x": (FLOAT, ["n", 2]), "gain": (FLOAT, []), "state": (FLOAT, [1, 2])}, ["n", 2])


def filled(folder: Path) -> Path:
    """A missing value (NaN) is taken for 7; "plain" is taken as it is."""
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["moved"]),
        helper.make_node("IsNaN", ["moved"], ["is_missing"]),
        helper.make_node("Where", ["is_missing", "seven", "x"], ["whole"]),
        helper.make_node("Add", ["whole", "plain"], ["y"]),
    ]
    takes = {"x": (FLOAT, ["n", 2]), "plain": (FLOAT, ["n", 2])}
    return save(folder, nodes, takes, ["n", 2], mean=np.float32(1), seven=np.float32(7))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def opened(artifact: Artifact, engine: str = "onnxruntime") -> TensorEngine:
    from dataclasses import replace

    it = open_engine(replace(artifact, engine=engine), threads=1)
    assert isinstance(it, TensorEngine)
    return it


def answer(engine: TensorEngine, tensors: dict[str, Any]) -> tuple[Any, int]:
    """What a replica answers, and the items it is metered as."""

    async def ask() -> Any:
        with ThreadPoolExecutor(1) as pool:
            replica = TensorReplica(engine, None, pool=pool, meter=CpuMeter(), queue_size=4)
            try:
                return [c async for c in replica.answer(Request("r", "m", (TensorPayload(tensors),), ANONYMOUS))]
            finally:
                await asyncio.to_thread(replica.close)

    (chunk,) = asyncio.run(ask())
    return chunk.value, chunk.units.items


NODES = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
EDGES = np.array([[0, 1], [1, 2], [0, 2], [2, 0], [1, 0]])


@pytest.mark.parametrize("edges", [EDGES, EDGES[:3], EDGES[:1], EDGES[:0]], ids=["5", "3", "1", "none"])
def test_nodes_and_edges_are_of_two_numbers(store: Store, tmp_path: Path, edges: Any) -> None:
    artifact = ingest(str(graph_layer(tmp_path)), store)
    right = np.zeros_like(NODES)
    for start, end in edges:
        right[end] += NODES[start]
    value, items = answer(opened(artifact), {"nodes": NODES, "edges": edges})
    assert value["y"].tolist() == right.tolist()
    assert items == (3 if len(edges) == 3 else 1)


def test_the_axes_of_a_batch_are_still_one(store: Store, tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    artifact = ingest(str(save(tmp_path, nodes, {"a": (FLOAT, ["n", 2]), "b": (FLOAT, ["n", 2])}, ["n", 2])), store)
    with pytest.raises(InvalidTensor, match="input 'b' has batch 2, the others 3"):
        answer(opened(artifact), {"a": NODES, "b": NODES[:2]})


def test_first_axes_that_the_model_can_not_have_together_are_the_callers_mistake(store: Store, tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    artifact = ingest(str(save(tmp_path, nodes, {"a": (FLOAT, ["n", 2]), "b": (FLOAT, ["m", 2])}, ["n", 2])), store)
    engine = opened(artifact)
    with pytest.raises(InvalidTensor, match=r"these sizes together: a \[3, 2\], b \[2, 2\]"):
        engine.run({"a": NODES, "b": NODES[:2]})
    assert engine.run({"a": NODES, "b": NODES})["y"].tolist() == (2 * NODES).tolist()


def test_what_first_axes_count_is_kept_through_a_conversion(store: Store, tmp_path: Path) -> None:
    source = ingest(str(graph_layer(tmp_path)), store).signature
    assert source is not None and [s.rows_of for s in source.inputs] == ["n", "e"]
    assert Signature.from_json(json.loads(json.dumps(source.to_json()))) == source
    bare = Signature(tuple(TensorSpec(s.name, s.dtype, s.shape) for s in source.inputs), source.outputs)
    assert describe(bare, source) == source


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_scalar_stays_one_beside_a_batch(store: Store, tmp_path: Path, engine: str) -> None:
    artifact = ingest(str(scaled(tmp_path)), store)
    sent = {"x": NODES, "gain": np.array(2, np.float32), "state": np.array([[1, 1]], np.float32)}
    value, items = answer(opened(artifact, engine), sent)
    assert value["y"].tolist() == (NODES * 2 + 1).tolist() and items == 1


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_scalar_comes_to_the_model_as_a_scalar(store: Store, tmp_path: Path, engine: str) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Size", ["shape"], ["axes"]),
        helper.make_node("Cast", ["axes"], ["y"], to=FLOAT),
    ]
    artifact = ingest(str(save(tmp_path, nodes, {"x": (FLOAT, [])}, [])), store)
    found = opened(artifact, engine).run({"x": np.array(5, np.float32)})["y"]
    assert found.shape == () and float(found) == 0, "a scalar has no axes"


def test_torch_gets_a_scalar_too(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")

    class Axes(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.full((1,), float(x.dim())) + 0 * x

    program = torch.jit.trace(Axes(), torch.tensor(1.0), check_trace=False)
    program.save(str(tmp_path / "model.pt"))
    signature = Signature((TensorSpec("x", "float32", ()),), (TensorSpec("y", "float32", (1,)),))
    artifact = Artifact("sha256:x", tmp_path, "pytorch", "torchscript", None, "pytorch", signature, 1)
    assert opened(artifact, "pytorch").run({"x": np.array(5, np.float32)})["y"].tolist() == [0]


def test_an_empty_axis_is_taken_where_the_model_takes_it(store: Store, tmp_path: Path) -> None:
    nodes = [helper.make_node("Concat", ["cache", "x"], ["y"], axis=1)]
    takes = {"x": (FLOAT, ["n", "length"]), "cache": (FLOAT, ["n", "past"])}
    engine = opened(ingest(str(save(tmp_path, nodes, takes, ["n", "all"])), store))
    found = engine.run({"x": np.ones((2, 3), np.float32), "cache": np.zeros((2, 0), np.float32)})["y"]
    assert found.tolist() == [[1, 1, 1]] * 2
    with pytest.raises(InvalidTensor, match="'x' is empty"):
        engine.run({"x": np.ones((0, 3), np.float32), "cache": np.zeros((0, 2), np.float32)})


def test_an_empty_axis_that_the_model_can_not_take_is_the_callers_mistake(store: Store, tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["x", "zero"], ["y"], axis=1)]
    engine = opened(ingest(str(save(tmp_path, nodes, {"x": (FLOAT, ["n", "length"])}, ["n"], zero=np.array(0))), store))
    with pytest.raises(InvalidTensor, match=r"can't take input 'x' empty: \[2, 0\]"):
        engine.run({"x": np.ones((2, 0), np.float32)})


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_nan_is_a_missing_value_only_to_an_input_that_looks_for_it(store: Store, tmp_path: Path, engine: str) -> None:
    artifact = ingest(str(filled(tmp_path)), store)
    assert artifact.signature is not None and [s.takes_nan for s in artifact.signature.inputs] == [True, False]
    it = opened(artifact, engine)
    x, plain = np.array([[np.nan, 2]], np.float32), np.array([[1, 1]], np.float32)
    assert it.run({"x": x, "plain": plain})["y"].tolist() == [[8, 3]]
    with pytest.raises(InvalidTensor, match="'plain' holds NaN"):
        it.run({"x": plain, "plain": x})


def test_trees_take_missing_values(store: Store, tmp_path: Path) -> None:
    tree = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_values=[1.0, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        nodes_missing_value_tracks_true=[1, 0, 0],
        target_treeids=[0, 0],
        target_nodeids=[1, 2],
        target_ids=[0, 0],
        target_weights=[10.0, 20.0],
    )
    engine = opened(ingest(str(save(tmp_path, [tree], {"x": (FLOAT, ["n", 1])}, ["n", 1])), store))
    assert engine.run({"x": np.array([[np.nan], [0], [2]], np.float32)})["y"].tolist() == [[10], [10], [20]]


ENDS = [
    ("UINT64", [0, 2**63, 2**64 - 1]),
    ("UINT64", [2**64 - 1, 1]),
    ("UINT64", [[1, 2**63], [2**64 - 1, 0]]),
    ("INT64", [-(2**63), 2**63 - 1, 0]),
    ("INT64", [2**53 + 1, -(2**53) - 1]),
    ("UINT32", [0, 2**32 - 1]),
    ("INT8", [-128, 127]),
]


def read(datatype: str, data: Any) -> Any:
    size = np.array(data, object).size
    tensor = {"name": "x", "shape": [size], "datatype": datatype, "data": data}
    return wire.read(wire.decode(json.dumps({"inputs": [tensor]}).encode(), JsonLimits(64, 200_000)), memoryview(b""))["x"]


@pytest.mark.parametrize(("datatype", "data"), ENDS)
def test_integers_come_and_go_unchanged_in_json(datatype: str, data: Any) -> None:
    import orjson

    found = read(datatype, data)
    assert found.dtype.name == datatype.lower()
    assert found.tolist() == np.array(data, object).ravel().tolist()
    assert json.loads(orjson.dumps(wire.to_json(found), option=orjson.OPT_SERIALIZE_NUMPY)) == found.tolist()


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("UINT64", [2**64, 1]),
        ("UINT64", [2**64 - 1, -1]),
        ("UINT64", [2**64 - 1, 0.5]),
        ("INT64", [2**63, 1]),
        ("UINT64", [-1]),
    ],
)
def test_integers_beyond_their_type_are_refused(datatype: str, data: Any) -> None:
    with pytest.raises(InvalidTensor):
        read(datatype, data)


def examples(folder: Path, signature: Signature | None, **arrays: Any) -> list[dict[str, Any]]:
    np.savez(folder / "data.npz", **arrays)
    found: Iterator[Any] = (e.payload for e in load_examples("tensors", folder / "data.npz", signature=signature))
    return [dict(payload.tensors) for payload in found]


SCALED = Signature(
    (TensorSpec("x", "float32", (None, 2)), TensorSpec("gain", "float32", ()), TensorSpec("state", "float32", (1, 2))),
    (TensorSpec("y", "float32", (None, 2)),),
)


@pytest.mark.parametrize(
    ("gain", "state"),
    [
        (np.float32(2), np.ones((1, 2), np.float32)),
        (np.arange(3, dtype=np.float32), np.ones((3, 1, 2), np.float32)),
        (np.float32(2), np.ones((3, 2), np.float32)),
    ],
    ids=["shared", "one each", "rows"],
)
def test_data_may_hold_a_scalar_and_a_state_beside_a_batch(tmp_path: Path, gain: Any, state: Any) -> None:
    found = examples(tmp_path, SCALED, x=NODES, gain=gain, state=state)
    assert len(found) == 3
    for i, one in enumerate(found):
        SCALED.check(one)
        assert one["x"].tolist() == [NODES[i].tolist()]
        assert float(one["gain"]) == (2 if gain.ndim == 0 else i)


def test_data_of_a_graph_is_one_example_a_file(store: Store, tmp_path: Path) -> None:
    signature = ingest(str(graph_layer(tmp_path)), store).signature
    (one,) = examples(tmp_path, signature, nodes=NODES, edges=EDGES)
    assert one["nodes"].shape == (3, 2) and one["edges"].shape == (5, 2)
    two = examples(tmp_path, signature, nodes=np.stack([NODES] * 2), edges=np.stack([EDGES] * 2))
    assert [e["edges"].shape for e in two] == [(5, 2)] * 2


def test_data_whose_rows_are_of_two_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="first axes"):
        examples(tmp_path, SCALED, x=NODES, gain=np.ones(2, np.float32), state=np.ones((1, 2), np.float32))
    with pytest.raises(InvalidInput, match="first axes"):
        examples(tmp_path, None, x=NODES, z=NODES[:2])
