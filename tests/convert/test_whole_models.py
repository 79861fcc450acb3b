"""Small whole models of operators whose counts depend on data, or whose types no framework has: converted, saved, run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.core import Format, TensorEngine
from maasdam.engines import open_engine
from maasdam.errors import Unsupported
from maasdam.sources import ingest
from tests.convert.test_directions import converted

WAYS: tuple[Format, ...] = ("pytorch", "tensorflow")
Node = tuple[str, list[str], list[str], dict[str, Any]]


def model(
    nodes: list[Node], given: dict[str, list[Any]], asked: dict[str, list[Any]], version: int = 20, **weights: Any
) -> Any:
    """float32 inputs; an output is of what its name begins with: "i" integers, else floats."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    made = [helper.make_node(name, ins, outs, **attributes) for name, ins, outs, attributes in nodes]
    ins = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in given.items()]
    kinds = {name: TensorProto.INT64 if name.startswith("i") else TensorProto.FLOAT for name in asked}
    outs = [helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in asked.items()]
    stored = [w if isinstance(w, onnx.TensorProto) else numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()]
    graph = helper.make_graph(made, "g", ins, outs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=10)


def _weight(*shape: int) -> Any:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def detector() -> Any:
    """Boxes and scores from an image, the boxes that are left after suppression, and what a layer says of each region."""
    nodes: list[Node] = [
        ("Conv", ["x", "w"], ["f"], {"pads": [1, 1, 1, 1]}),
        ("Reshape", ["f", "flat"], ["g"], {}),
        ("Transpose", ["g"], ["t"], {"perm": [0, 2, 1]}),
        ("Split", ["t", "parts"], ["corners", "sizes", "s"], {"axis": 2}),
        ("Mul", ["corners", "three"], ["begin"], {}),
        ("Exp", ["sizes"], ["span"], {}),
        ("Add", ["begin", "span"], ["end"], {}),
        ("Concat", ["begin", "end"], ["boxes"], {"axis": 2}),
        ("Transpose", ["s"], ["scores"], {"perm": [0, 2, 1]}),
        ("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["i_kept"], {}),
        ("Gather", ["i_kept", "zero"], ["item"], {"axis": 1}),
        ("Gather", ["i_kept", "places"], ["pairs"], {"axis": 1}),
        ("GatherND", ["boxes", "pairs"], ["regions"], {}),
        ("RoiAlign", ["x", "regions", "item"], ["r"], {"output_height": 2, "output_width": 2, "sampling_ratio": 2}),
        ("Flatten", ["r"], ["q"], {}),
        ("MatMul", ["q", "head"], ["y"], {}),
    ]
    return model(
        nodes, {"x": ["N", 3, 6, 6]}, {"i_kept": ["K", 3], "y": ["K", 5]},
        w=_weight(6, 3, 3, 3), flat=np.array([0, 6, -1]), parts=np.array([2, 2, 2]), three=np.float32(3), most=np.array([4]),
        overlap=np.array([0.3], np.float32), least=np.array([0.5], np.float32), zero=np.array(0), places=np.array([0, 2]),
        head=_weight(12, 5),
    )  # fmt: skip


def deformable() -> Any:
    nodes: list[Node] = [
        ("Conv", ["x", "o"], ["offset"], {"pads": [1, 1, 1, 1]}),
        ("Conv", ["x", "m"], ["mask"], {"pads": [1, 1, 1, 1]}),
        ("DeformConv", ["x", "w", "offset", "", "mask"], ["y"], {"pads": [1, 1, 1, 1], "offset_group": 1}),
    ]
    weights = {"o": _weight(18, 3, 3, 3), "m": _weight(9, 3, 3, 3), "w": _weight(4, 3, 3, 3)}
    return model(nodes, {"x": ["N", 3, 6, 6]}, {"y": ["N", 4, 6, 6]}, 22, **weights)


def sampled(mode: str, padding: str, corners: int) -> Any:
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    nodes: list[Node] = [("GridSample", ["x", "grid"], ["y"], attributes)]
    return model(nodes, {"x": ["N", 3, 6, 6], "grid": ["N", 4, 5, 2]}, {"y": ["N", 3, 4, 5]})


def folded() -> Any:
    nodes: list[Node] = [("Col2Im", ["x", "image", "block"], ["y"], {"pads": [0, 1, 0, 1, 0, 0]})]
    return model(nodes, {"x": ["N", 8, 32]}, {"y": ["N", 2, 3, 4, 3]}, image=np.array([3, 4, 3]), block=np.array([1, 2, 2]))


def sequences() -> Any:
    nodes: list[Node] = [
        ("SplitToSequence", ["x", "two"], ["s"], {"axis": 1}),
        ("SequenceAt", ["s", "last"], ["a"], {}),
        ("SequenceAt", ["s", "zero"], ["b"], {}),
        ("Sub", ["a", "b"], ["c"], {}),
        ("SequenceInsert", ["s", "c"], ["t"], {}),
        ("ConcatFromSequence", ["t"], ["y"], {"axis": 1}),
    ]
    places = {"two": np.array(2), "last": np.array(-1), "zero": np.array(0)}
    return model(nodes, {"x": ["N", 6, 4]}, {"y": ["N", 8, 4]}, **places)


def of_four_bits() -> Any:
    """Weights of four bits, a scale for each block of two rows; then a result rounded to four bits and turned."""
    from onnx import TensorProto, helper

    nodes: list[Node] = [
        ("DequantizeLinear", ["w", "s", "z"], ["d"], {"axis": 0, "block_size": 2}),
        ("MatMul", ["x", "d"], ["m"], {}),
        ("QuantizeLinear", ["m", "q", "p"], ["i"], {}),
        ("Transpose", ["i"], ["t"], {"perm": [1, 0]}),
        ("DequantizeLinear", ["t", "q", "p"], ["y"], {}),
    ]
    whole = {
        "w": helper.make_tensor("w", TensorProto.INT4, [4, 3], np.arange(-6, 6)),
        "z": helper.make_tensor("z", TensorProto.INT4, [2, 3], [0, 1, -1, 2, 0, 0]),
        "p": helper.make_tensor("p", TensorProto.INT4, [], [1]),
    }
    return model(nodes, {"x": ["N", 4]}, {"y": [3, "N"]}, 21, s=np.abs(_weight(2, 3)), q=np.float32(0.5), **whole)


def of_float8() -> Any:
    """Weights of eight-bit floats, and a result rounded to them and back."""
    import ml_dtypes

    nodes: list[Node] = [
        ("DequantizeLinear", ["w", "s"], ["d"], {"axis": 1}),
        ("MatMul", ["x", "d"], ["m"], {}),
        ("QuantizeLinear", ["m", "q", "p"], ["e"], {}),
        ("DequantizeLinear", ["e", "q"], ["y"], {}),
    ]
    kind = ml_dtypes.float8_e4m3fn
    weights = {"w": _weight(4, 3).astype(kind), "s": np.abs(_weight(3)), "q": np.float32(0.01), "p": np.zeros([], kind)}
    return model(nodes, {"x": ["N", 4]}, {"y": ["N", 3]}, 21, **weights)


MODELS: dict[str, Callable[[], Any]] = {
    "detector": detector, "deformable": deformable, "folded": folded, "sequences": sequences, "of four bits": of_four_bits,
    "of float8": of_float8, "sampled": lambda: sampled("linear", "zeros", 0),
    "sampled by cubes": lambda: sampled("cubic", "border", 1),
    "mirrored": lambda: sampled("linear", "reflection", 0), "nearest": lambda: sampled("nearest", "reflection", 1),
}  # fmt: skip


@pytest.mark.parametrize("to", WAYS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_a_model_is_saved_and_computes_what_it_did(name: str, to: Format, tmp_path: Path) -> None:
    """On its new engine, over several seeds and batches."""
    import onnx

    made = MODELS[name]()
    (tmp_path / "m").mkdir()
    onnx.save(made, tmp_path / "m" / "model.onnx")
    source = ingest(str(tmp_path / "m" / "model.onnx"), Store(tmp_path / "store"))
    before, after = (cast(TensorEngine, open_engine(a)) for a in (source, converted(source, to, tmp_path / "out")))
    counts = set()
    for seed, batch in enumerate((2, 3, 2, 5)):
        random = np.random.default_rng(seed)
        feeds = {
            s.name: random.standard_normal([batch if size is None else size for size in s.shape]).astype(np.float32)
            for s in before.signature.inputs
        }
        wanted, found = before.run(feeds), after.run(feeds)
        for output in wanted:
            assert found[output].shape == wanted[output].shape and found[output].dtype == wanted[output].dtype
            np.testing.assert_allclose(found[output], wanted[output], rtol=1e-4, atol=1e-4)
        counts.add(next(iter(wanted.values())).shape)
    assert len(counts) > 1
    before.close()
    after.close()


def test_a_narrow_type_at_the_door_or_in_an_operator_that_computes_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    from maasdam.convert.operators.graph import read

    made = of_four_bits()
    made.graph.node.append(helper.make_node("Pad", ["t", "pads"], ["u"]))
    onnx.save(made, tmp_path / "a.onnx")
    with pytest.raises(Unsupported, match=r"no counterpart here for the model's Pad of int4$"):
        read(tmp_path / "a.onnx", "PyTorch")
    made = of_four_bits()
    made.graph.output.append(helper.make_tensor_value_info("t", TensorProto.INT4, [3, "N"]))
    onnx.save(made, tmp_path / "b.onnx")
    with pytest.raises(Unsupported, match=r"no tensors of the type of the model's 't' \(int4\)"):
        read(tmp_path / "b.onnx", "PyTorch")
