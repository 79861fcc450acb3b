"""Int8 sums that processors without VNNI would cut off: the arithmetic, and that both formats' weights are narrowed by it.

The processor's instruction is imitated in NumPy, so that it is tested on every processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.core import Artifact
from maasdam.pipeline.passes import find_pass
from maasdam.pipeline.quantize import onnx_saturation
from maasdam.pipeline.quantize.saturation import LARGEST_SUM, any_level, narrowing, peaks_of, usual
from maasdam.pipeline.recipe import Use
from maasdam.pipeline.run_recipe import Build, Data

Node = tuple[str, list[str], str, dict[str, Any]]
"""An operator, its inputs, its output, its attributes."""


def _largest_pair(levels: Any, weights: Any) -> float:
    """The largest |a0 w0 + a1 w1| of neighbouring channels: levels (channels, positions), weights (outputs, channels, taps)."""
    most = 0.0
    for k in range(0, weights.shape[1] - 1, 2):
        for tap in range(weights.shape[2]):
            sums = np.outer(weights[:, k, tap], levels[k]) + np.outer(weights[:, k + 1, tap], levels[k + 1])
            most = max(most, float(np.abs(sums).max()))
    return most


@pytest.mark.parametrize(("channels", "taps", "high"), [(6, 1, 255), (8, 9, 255), (16, 1, 140), (3, 9, 255)])
def test_no_pair_of_products_exceeds_16_bits_after_narrowing(channels: int, taps: int, high: int) -> None:
    random = np.random.default_rng(channels * taps + high)
    levels = random.integers(0, high + 1, (channels, 500)).astype(np.float32)
    weights = random.integers(-127, 128, (1, 12, channels, taps)).astype(np.float32)
    factors = narrowing(weights, peaks_of(levels[None], 1, 0.0, 255.0))
    assert factors.shape == (1, 12) and (factors >= 1).all()
    assert _largest_pair(levels, weights[0]) > LARGEST_SUM, "nothing was at stake"
    assert _largest_pair(levels, weights[0] / factors[0][:, None, None]) <= LARGEST_SUM + 1


def test_a_channel_is_narrowed_no_more_than_its_own_pairs_ask_for() -> None:
    levels = np.full((4, 10), 255.0, np.float32)
    levels[1] = 0.0
    weights = np.array([[[[127], [127], [0], [0]], [[0], [0], [127], [127]], [[0], [0], [-127], [-127]]]], np.float32)
    assert narrowing(weights, peaks_of(levels[None], 1, 0.0, 255.0)).tolist() == [
        [1.0, pytest.approx(255 * 254 / LARGEST_SUM), pytest.approx(255 * 254 / LARGEST_SUM)]
    ]


def test_neighbours_that_are_never_bright_together_are_not_narrowed() -> None:
    levels = np.zeros((2, 10), np.float32)
    levels[0, 0] = levels[1, 1] = 255
    weights = np.full((1, 1, 2, 1), 127, np.float32)
    assert narrowing(weights, peaks_of(levels[None], 1, 0.0, 255.0)).item() == 1.0


def test_groups_see_their_own_channels_and_depthwise_layers_are_left_alone() -> None:
    levels = np.concatenate([np.zeros((2, 5)), np.full((2, 5), 255.0)]).astype(np.float32)
    peaks = peaks_of(levels[None], 1, 0.0, 255.0)
    factors = narrowing(np.full((2, 1, 2, 1), 127, np.float32), peaks)
    assert factors[0, 0] == 1.0 and factors[1, 0] == pytest.approx(255 * 254 / LARGEST_SUM)
    assert (narrowing(np.full((4, 1, 1, 9), 127, np.float32), peaks) == 1).all()
    two = narrowing(np.full((4, 2, 1, 9), 127, np.float32), peaks)
    assert (two[:2] == 1).all() and (two[2:] > 1.9).all(), "two outputs of one input are no depthwise layer: taps are added"


def test_the_peaks_are_those_of_the_usual_example_in_levels_of_the_range() -> None:
    dark, bright = (peaks_of(np.full((1, 2, 8, 8), value, np.float32), 1, -1.0, 1.0) for value in (-1.0, 3.0))
    assert dark.each.tolist() == [0, 0] and bright.each.tolist() == [255, 255] and bright.pairs.tolist() == [510]
    assert usual([dark, bright]).pairs.tolist() == [255]
    assert dark.padded(200.0).each.tolist() == [200, 200] and dark.padded(200.0).pairs.tolist() == [400]
    few = [peaks_of(np.full((1, 2), value, np.float32), 1, -1.0, 1.0) for value in (-1.0, 3.0)]
    assert usual(few).pairs.tolist() == [510], "with one position an example, its highest level is any level"


def test_a_range_may_be_by_channel() -> None:
    low, high = np.array([-1.0, 0.0]).reshape(1, 2, 1, 1), np.array([1.0, 2.0]).reshape(1, 2, 1, 1)
    peaks = peaks_of(np.full((1, 2, 3, 3), 1.0, np.float32), 1, low, high)
    assert peaks.each.tolist() == [255, 127.5]


def _bright(store: Store, folder: Path) -> tuple[Artifact, Path]:
    """A network whose every activation is bright and whose weights are large, and inputs for it."""
    nodes = [
        ("Conv", ["x", "w1", "b1"], "a", {}),
        ("Relu", ["a"], "r", {}),
        ("Conv", ["r", "w2"], "c", {"group": 2, "pads": [1, 1, 1, 1]}),
        ("Relu", ["c"], "d", {}),
        ("GlobalAveragePool", ["d"], "p", {}),
        ("Flatten", ["p"], "f", {}),
        ("MatMul", ["f", "w3"], "y", {}),
    ]
    random = np.random.default_rng(3)
    stored = {
        "w1": random.uniform(0.5, 1, (8, 4, 1, 1)),
        "b1": random.normal(size=8),
        "w2": random.uniform(-1, 1, (8, 4, 3, 3)),
        "w3": random.uniform(0.5, 1, (8, 5)),
    }
    return _network(store, folder, nodes, stored, random.uniform(0.9, 1, (16, 4, 6, 6)))


def _network(
    store: Store,
    folder: Path,
    nodes: list[tuple[str, list[str], str, dict[str, Any]]],
    stored: dict[str, Any],
    x: Any,
    *also: str,
) -> tuple[Artifact, Path]:
    """An ONNX network from x to y (and `also`), and a file of inputs."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from maasdam.sources import ingest

    graph = helper.make_graph(
        [helper.make_node(kind, ins, [out], **attributes) for kind, ins, out, attributes in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *x.shape[1:]])],
        [onnx.ValueInfoProto(name=name) for name in ("y", *also)],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder.mkdir()
    onnx.save(onnx.shape_inference.infer_shapes(model), folder / "model.onnx")
    np.savez(folder / "x.npz", x=x.astype(np.float32))
    return ingest(str(folder / "model.onnx"), store), folder / "x.npz"


def _built(store: Store, source: Artifact, data: Path, scheme: str, to: str) -> tuple[Artifact, Any]:
    building = Build(store, Data(calibrate=data))
    use = Use("quantize", find_pass("quantize", "test").check({"scheme": scheme, "format": to}, "test"))
    made = building.apply(use, building.convert(source, to))
    return made, building.steps[-1].facts["saturation"]


def test_an_onnx_graph_is_narrowed_and_stays_the_same_network(tmp_path: Path) -> None:
    import onnx
    import onnxruntime as ort
    from onnx.numpy_helper import to_array

    store = Store(tmp_path / "store")
    source, data = _bright(store, tmp_path / "model")
    made, said = _built(store, source, data, "static-int8", "onnx")
    assert said["channels"] == 8 + 8 + 5 and 8 + 5 <= said["narrowed"] <= 21
    model = onnx.load(made.path / "model.onnx")
    constants = {t.name: to_array(t) for t in model.graph.initializer}
    products, layers = onnx_saturation._layers(model)
    assert products == 3 and made.settings["fast_sums"] is True
    assert [layer.groups for layer in layers] == [1, 2, 1] and layers[0].bias is not None
    first = constants[layers[0].weights].reshape(8, 4).astype(int)
    assert 120 < (first[:, 0::2] + first[:, 1::2]).max() < 140, "two bright neighbours under weights this large are cut off"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    x = np.load(data)["x"]
    wanted, exact, fused = (
        ort.InferenceSession(str(path / "model.onnx"), how, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for path, how in ((source.path, ort.SessionOptions()), (made.path, options), (made.path, ort.SessionOptions()))
    )
    spread = np.abs(wanted).max()
    assert np.abs(exact - wanted).max() < 0.03 * spread
    assert np.abs(fused - exact).max() < 0.01 * spread, "int8 kernels of this processor compute another network"


def test_an_openvino_network_is_narrowed_and_stays_the_same_network(tmp_path: Path) -> None:
    from maasdam.engines import open_engine

    store = Store(tmp_path / "store")
    source, data = _bright(store, tmp_path / "model")
    made, said = _built(store, source, data, "static-int8", "openvino")
    assert said["channels"] == 8 + 8 + 5 and 8 + 5 <= said["narrowed"] <= 21
    x = np.load(data)["x"]
    answers = []
    for artifact in (source, made):
        engine: Any = open_engine(artifact, threads=1)
        answers.append(engine.run({"x": x})["y"])
        engine.close()
    assert np.abs(answers[0] - answers[1]).max() < 0.03 * np.abs(answers[0]).max()


def test_what_is_quantised_while_running_is_narrowed_for_any_level(tmp_path: Path) -> None:
    import onnx
    from onnx.numpy_helper import to_array

    store = Store(tmp_path / "store")
    source, data = _bright(store, tmp_path / "model")
    made, said = _built(store, source, data, "dynamic-int8", "onnx")
    assert said == said | {"channels": 5, "narrowed": 5}
    graph = onnx.load(made.path / "model.onnx").graph  # whose tensors have names of the pass's making
    last = next(node for node in reversed(graph.node) if node.op_type == "MatMulInteger")
    weights = next(to_array(t) for t in graph.initializer if t.name == last.input[1])
    pairs = weights[0::2].astype(int) + weights[1::2]
    assert pairs.max() in (128, 129) and (narrowing(np.full((1, 1, 2, 1), 127, np.float32), any_level(2)) > 1.9).all()


def test_an_int8_graph_that_others_made_is_computed_without_cutting_off(tmp_path: Path) -> None:
    """The tool's own graph, not narrowed, in our engine: what float arithmetic makes of the same integers."""
    import onnxruntime as ort
    from onnxruntime import quantization

    from maasdam.engines import open_engine
    from maasdam.sources import ingest

    store = Store(tmp_path / "store")
    source, data = _bright(store, tmp_path / "model")
    x = np.load(data)["x"]

    class Reader(quantization.CalibrationDataReader):
        left = iter([{"x": x}])

        def get_next(self) -> Any:
            return next(self.left, None)

    theirs = tmp_path / "theirs.onnx"
    quantization.quantize_static(
        source.path / "model.onnx", theirs, Reader(), per_channel=True, weight_type=quantization.QuantType.QInt8
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = ort.InferenceSession(str(theirs), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    engine: Any = open_engine(ingest(str(theirs), store), threads=1)
    got = engine.run({"x": x})["y"]
    engine.close()
    assert np.abs(got - wanted).max() < 0.01 * np.abs(wanted).max()


ONE = "one position an example"
LONE = (ONE, "openvino")
"""There NNCF's own ranges cut what is above their mean, which says nothing of sums."""
RANDOM = np.random.default_rng(5)
SQUARE = RANDOM.uniform(0.5, 1, (8, 8))
PICTURE = RANDOM.uniform(0.9, 1, (16, 8, 6, 6))
ROWS = RANDOM.uniform(0.9, 1, (16, 8))
KERNEL = RANDOM.uniform(0.5, 1, (8, 8, 3, 3))
FLAT: list[Node] = [("GlobalAveragePool", ["c"], "p", {}), ("Flatten", ["p"], "y", {})]
SHAPES: dict[str, tuple[Any, dict[str, Any], Any, tuple[str, ...]]] = {
    "weights that two layers share": (
        [("Gemm", ["x", "w", "b1"], "a", {}), ("Gemm", ["a", "w", "b2"], "y", {})],
        {"w": SQUARE, "b1": RANDOM.normal(size=8), "b2": RANDOM.uniform(20, 30, 8)},
        ROWS,
        (),
    ),
    ONE: (
        [("MatMul", ["x", "w"], "a", {}), ("Relu", ["a"], "r", {}), ("MatMul", ["r", "v"], "y", {})],
        {"w": RANDOM.uniform(-1, 1, (8, 8)), "v": RANDOM.uniform(-1, 1, (8, 8))},
        RANDOM.uniform(0, 1, (16, 8)),
        (),
    ),
    "a maximum between": (
        [("Relu", ["x"], "r", {}), ("MaxPool", ["r"], "m", {"kernel_shape": [2, 2]}), ("Conv", ["m", "w"], "c", {}), *FLAT],
        {"w": KERNEL},
        PICTURE,
        (),
    ),
    "joined channels": (
        [("Relu", ["x"], "r", {}), ("Sigmoid", ["x"], "s", {}), ("Concat", ["r", "s"], "m", {"axis": 1}),
         ("Conv", ["m", "w"], "c", {}), *FLAT],
        {"w": RANDOM.uniform(0.5, 1, (8, 16, 3, 3))},
        PICTURE,
        (),
    ),
    "dark pictures in a bright frame": (
        [("Conv", ["x", "w"], "c", {"pads": [1, 1, 1, 1]}), *FLAT], {"w": KERNEL}, -PICTURE, (),
    ),
    "two outputs of each input": (
        [("Conv", ["x", "w"], "c", {"group": 8}), *FLAT], {"w": RANDOM.uniform(0.5, 1, (16, 1, 3, 3))}, PICTURE, (),
    ),
    "grey pictures": (
        [("Conv", ["x", "w"], "c", {}), *FLAT], {"w": RANDOM.uniform(0.5, 1, (4, 1, 3, 3))}, PICTURE[:, :1], (),
    ),
    "coloured pictures": (
        [("Conv", ["x", "w"], "c", {}), *FLAT], {"w": RANDOM.uniform(0.5, 1, (4, 3, 3, 3))}, PICTURE[:, :3], (),
    ),
    "a hidden state that is an output": (
        [("MatMul", ["x", "w"], "h", {}), ("Relu", ["h"], "r", {}), ("MatMul", ["r", "v"], "y", {})],
        {"w": SQUARE, "v": SQUARE.T},
        ROWS,
        ("r",),
    ),
    "a tensor for a convolution and a product": (
        [("Relu", ["x"], "r", {}), ("Conv", ["r", "w"], "c", {}), ("MatMul", ["r", "v"], "y", {}), ("Neg", ["c"], "z", {})],
        {"w": KERNEL, "v": RANDOM.uniform(0.5, 1, (6, 4))},
        PICTURE,
        ("z",),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "to"), [(name, "onnx") for name in SHAPES] + [(name, "openvino") for name in SHAPES if name != ONE]
)
def test_int8_is_the_same_network(name: str, to: str, tmp_path: Path) -> None:
    """Through the engine that serves it; without VNNI these were cut off, or crashed, before they were looked at."""
    from maasdam.engines import open_engine

    nodes, stored, x, also = SHAPES[name]
    store = Store(tmp_path / "store")
    source, data = _network(store, tmp_path / "model", nodes, stored, x, *also)
    made, _ = _built(store, source, data, "static-int8", to)
    answers = []
    for artifact in (source, made):
        engine: Any = open_engine(artifact, threads=1)
        answers.append(engine.run({"x": x.astype(np.float32)}))
        engine.close()
    for output, wanted in answers[0].items():
        assert np.abs(answers[1][output] - wanted).max() < 0.05 * np.abs(wanted).max(), output


def test_what_a_branch_reads_stays_in_the_file(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from maasdam.pipeline.quantize.onnx_models import _without_zeros

    inner = helper.make_graph(
        [helper.make_node("Identity", ["kept"], ["z"])],
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])],
    )
    stored = {
        "kept": np.ones(1, np.float32),
        "on": np.array(True),
        "b": np.ones(2, np.int32),
        "zero": np.zeros(2, np.int32),
        "scale": np.ones(2, np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["b", "scale", "zero"], ["y"], axis=0),
            helper.make_node("If", ["on"], ["z"], then_branch=inner, else_branch=inner),
        ],
        "outer",
        [],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]),
        ],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    _without_zeros(model)
    onnx.checker.check_model(model)
    assert {t.name for t in model.graph.initializer} == {"kept", "on", "b", "scale"}


@pytest.mark.parametrize("how", ["while running", "with ranges"])
def test_products_that_share_a_zero_point_are_opened(how: str, tmp_path: Path) -> None:
    """ONNX Runtime's exact mode does not open them where it rewrites weights."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from maasdam.engines import open_engine
    from maasdam.sources import ingest

    node = helper.make_node
    first, second = RANDOM.integers(-127, 127, (2, 8, 8)).astype(np.int8)
    ranges = {"zero": np.int8(0), "s": np.float32(0.01), "xs": np.float32(1 / 128), "xz": np.uint8(128)}
    stored = {"w1": first, "w2": second, **ranges}
    nodes, last = [], "x"
    for i in "12":
        if how == "while running":
            nodes += [
                node("DynamicQuantizeLinear", [last], ["q" + i, "s" + i, "z" + i]),
                node("MatMulInteger", ["q" + i, "w" + i, "z" + i, "zero"], ["i" + i]),
                node("Cast", ["i" + i], ["f" + i], to=1),
                node("Mul", ["s" + i, "s"], ["ss" + i]),
                node("Mul", ["f" + i, "ss" + i], ["o" + i]),
            ]
        else:
            nodes += [
                node("QuantizeLinear", [last, "xs", "xz"], ["q" + i]),
                node("DequantizeLinear", ["q" + i, "xs", "xz"], ["d" + i]),
                node("DequantizeLinear", ["w" + i, "s", "zero"], ["v" + i]),
                node("MatMul", ["d" + i, "v" + i], ["m" + i]),
                node("QuantizeLinear", ["m" + i, "xs", "xz"], ["mq" + i]),
                node("DequantizeLinear", ["mq" + i, "xs", "xz"], ["o" + i]),
            ]
        last = "o" + i
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("o2", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "model.onnx")
    engine: Any = open_engine(ingest(str(tmp_path / "model.onnx"), Store(tmp_path / "store")), threads=1)
    assert engine.run({"x": np.ones((2, 8), np.float32)})["o2"].shape == (2, 8)
    engine.close()


def test_graphs_of_old_operator_sets_are_raised_first(tmp_path: Path) -> None:
    import onnx

    from maasdam.engines import open_engine
    from maasdam.sources import ingest

    store = Store(tmp_path / "store")
    newer, data = _bright(store, tmp_path / "model")
    model = onnx.load(newer.path / "model.onnx")
    model.opset_import[0].version = 11
    model.ir_version = 6
    onnx.save(model, tmp_path / "old.onnx")
    made, _ = _built(store, ingest(str(tmp_path / "old.onnx"), store), data, "static-int8", "onnx")
    x = dict(np.load(data))
    answers = []
    for artifact in (newer, made):
        engine: Any = open_engine(artifact, threads=1)
        answers.append(engine.run(x)["y"])
        engine.close()
    assert np.abs(answers[0] - answers[1]).max() < 0.03 * np.abs(answers[0]).max()
