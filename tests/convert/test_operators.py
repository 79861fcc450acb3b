"""The operator tables: ONNX's own node tests, what they lack is said at once, and a graph becomes a module that learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.node_tests import FRAMEWORKS, verdicts

from maasdam.artifacts.store import Store
from maasdam.convert import convert
from maasdam.convert.directions.onnx_to_pytorch import load
from maasdam.convert.operators import shapes
from maasdam.convert.operators.graph import read
from maasdam.convert.operators.onnx import OPERATORS
from maasdam.convert.operators.weights import learned_names
from maasdam.convert.proof.certificate import certify
from maasdam.core import Artifact, Format, Signature, TensorSpec
from maasdam.errors import InvalidModel, Unsupported, VerificationFailed
from maasdam.sources import ingest
from tests.convert import tiny
from tests.convert.test_directions import converted
from tests.convert.test_microsoft_operators import Case, in_pytorch, in_tensorflow
from tests.engines.networks import CNN, artifact

WAYS: tuple[Format, ...] = ("pytorch", "tensorflow")


def gaps(framework: str) -> dict[str, str]:
    """Pattern -> reason."""
    lines = (Path(__file__).parent / "gaps.txt").read_text().splitlines()
    rows = [[part.strip() for part in line.split("|")] for line in lines if line and not line.startswith("#")]
    return {pattern: reason for of, pattern, reason in rows if of in ("*", framework)}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.filterwarnings("ignore")
def test_the_standards_node_tests_pass_or_are_listed(framework: str) -> None:
    pytest.importorskip({"pytorch": "torch"}.get(framework, framework))
    known, met, unlisted, wrong, passed = gaps(framework), set(), [], [], 0
    for verdict in verdicts(framework):
        passed += verdict.said == "passed"
        if verdict.said == "differs":
            wrong.append(verdict)
        elif verdict.said == "refused":
            patterns = {pattern for pattern in known if fnmatch(verdict.name, pattern)}
            met |= patterns
            unlisted += [] if patterns else [verdict]
    assert not wrong, "a wrong number is never a gap"
    assert not unlisted
    assert not known.keys() - met, "lines of gaps.txt that no case needs any more"
    assert passed > 1400


def graph(nodes: list[tuple[str, list[str], list[str]]], **weights: Any) -> Any:
    """A model of these nodes over x [N, 4]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = [helper.make_node(*node) for node in nodes]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    return onnx.helper.make_model(
        helper.make_graph(made, "g", [x], [y], stored), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )


def source_of(folder: Path, model: Any) -> Artifact:
    import onnx

    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    return Artifact("sha256:x", folder, "onnx", "onnx", None, "onnxruntime", CNN.signature, 1)


@pytest.mark.parametrize("to", WAYS)
def test_every_operator_that_is_missing_is_named_before_any_work(to: Format, tmp_path: Path) -> None:
    drawn = ("Multinomial", ["a"], ["b"])
    nodes = [("Relu", ["x"], ["a"]), drawn, ("StringNormalizer", ["b"], ["c"]), ("Multinomial", ["c"], ["y"])]
    source = source_of(tmp_path / "s", graph(nodes))
    (tmp_path / "out").mkdir()
    with pytest.raises(Unsupported, match=r"no counterpart here for the model's Multinomial, StringNormalizer$"):
        convert(source, to, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_an_attribute_a_table_does_not_know_is_missing_too(tmp_path: Path) -> None:
    model = graph([("Relu", ["x"], ["y"])])
    attribute = model.graph.node[0].attribute.add()
    attribute.name, attribute.i, attribute.type = "steep", 1, 2
    with pytest.raises(Unsupported, match="Relu with steep"):
        load(source_of(tmp_path, model).path / "model.onnx")


@pytest.mark.parametrize("kept", [b"", b"not a model", b"\x08\x0a" * 40])
def test_what_is_no_model_is_refused(kept: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(kept)
    with pytest.raises((InvalidModel, Unsupported)):
        load(tmp_path / "model.onnx")


@pytest.mark.parametrize("to", WAYS)
def test_one_changed_weight_fails_the_certificate(to: Format, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    (tmp_path / "source").mkdir()
    source = artifact(tmp_path / "source", CNN, "onnx", "onnxruntime")
    candidate = converted(source, to, tmp_path / "out")
    certify(source, candidate, seeds=(0,))
    model = onnx.load(source.path / "model.onnx")
    head = next(w for w in model.graph.initializer if w.name == "head")
    array = numpy_helper.to_array(head).copy()
    array[2, 3] += 0.05
    head.CopyFrom(numpy_helper.from_array(array, "head"))
    onnx.save(model, source.path / "model.onnx")
    with pytest.raises(VerificationFailed, match=r"output 'logits' differs by 0\.\d+ where .* is allowed"):
        certify(source, candidate)


@pytest.mark.filterwarnings("ignore")
def test_a_graph_becomes_a_module_that_is_fine_tuned_pruned_and_exported_again(tmp_path: Path) -> None:
    import torch
    from torch.nn.utils import prune

    (tmp_path / "source").mkdir()
    source = artifact(tmp_path / "source", CNN, "onnx", "onnxruntime")
    module = load(source.path / "model.onnx")
    parameters = dict(module.named_parameters())
    assert parameters.keys() == {"conv", "head"}, "under the names they have in the file"
    random = torch.Generator().manual_seed(0)
    images, labels = torch.randn(32, 3, 8, 8, generator=random), torch.arange(32) % 5

    def loss() -> torch.Tensor:
        return torch.nn.functional.cross_entropy(module(images)[0], labels)

    before = loss().item()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.7 * before
    prune.l1_unstructured(module, "head", amount=0.5)
    prune.remove(module, "head")
    assert (module.head == 0).float().mean().item() == pytest.approx(0.5)
    program = torch.export.export(module, (images,), dynamic_shapes=(({0: torch.export.Dim("batch")},),))
    torch.export.save(program, tmp_path / "tuned.pt2")
    tuned = ingest(str(tmp_path / "tuned.pt2"), Store(tmp_path / "store"))
    certify(tuned, converted(tuned, "onnx", tmp_path / "again"), seeds=(0,))


@pytest.mark.filterwarnings("ignore")
def test_a_savedmodel_serves_by_name_and_learns(tmp_path: Path) -> None:
    import tensorflow as tf

    (tmp_path / "source").mkdir()
    source = artifact(tmp_path / "source", CNN, "onnx", "onnxruntime")
    converted(source, "tensorflow", tmp_path / "out")
    module = tf.saved_model.load(str(tmp_path / "out"))
    serve = module.signatures["serving_default"]
    found = serve(image=tf.constant(CNN.inputs["image"]))
    np.testing.assert_allclose(found["logits"], CNN.expected(CNN.inputs)["logits"], rtol=1e-4, atol=1e-5)
    assert {tuple(v.shape) for v in serve.trainable_variables} == {(4, 3, 3, 3), (4, 5)}


@pytest.mark.parametrize(
    "make", [tiny.residual_classifier, lambda folder: tiny.image_classifier(folder, "vit")], ids=["resnet", "vit"]
)
@pytest.mark.filterwarnings("ignore")
def test_a_transformers_model_goes_to_onnx_and_comes_back_with_its_parameters(
    make: Callable[[Path], Artifact], tmp_path: Path
) -> None:
    source = make(tmp_path / "source")
    there = converted(source, "onnx", tmp_path / "onnx")
    there = replace(there, digest="sha256:there")
    for to in WAYS:
        certify(source, converted(there, to, tmp_path / to), seeds=(0,))
    read_ = read(there.path / "model.onnx", "PyTorch")
    left = [a.shape for n, a in read_.constants.items() if a.dtype.kind == "f" and a.size > 1 and n not in learned_names(read_)]
    assert not left, "position embeddings and class tokens are weights too"


def test_a_mask_is_no_weight(tmp_path: Path) -> None:
    hidden = np.array([[0, -3e38, 0, -np.inf]], np.float32)
    learned = np.ones((1, 4), np.float32)
    model = graph([("Add", ["x", "mask"], ["a"]), ("Add", ["a", "positions"], ["y"])], mask=hidden, positions=learned)
    assert learned_names(read(source_of(tmp_path, model).path / "model.onnx", "PyTorch")) == {"positions"}


class Symbol:
    """A size that is known only when the model runs, as torch.export writes it."""

    def __init__(self, expression: str) -> None:
        self.expression = expression

    def __str__(self) -> str:
        return self.expression


def test_the_larger_of_an_axis_and_one_is_the_axis_and_of_a_computed_number_nobody_knows() -> None:
    axis, one = shapes.of_dims([Symbol("s3")]), np.array([1])
    assert shapes.compute("Max", [axis, one], {})[0] is axis[0]
    assert shapes.compute("Max", [axis, axis], {})[0] is axis[0]
    both = shapes.of_dims([Symbol("s3 + 2*s4")])
    assert shapes.compute("Max", [both, one], {})[0] is both[0]
    assert shapes.compute("Max", [np.array([2, 5]), np.array([3, 4])], {}).tolist() == [3, 5]
    unknown = [("s3", np.array([7])), ("s3 - 5", np.array([0])), ("u0", one), ("s3", shapes.of_dims([Symbol("s4")]))]
    for expression, other in unknown:
        with pytest.raises(shapes.NotHere):
            shapes.compute("Max", [shapes.of_dims([Symbol(expression)]), other], {})


@pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size:UserWarning")
@pytest.mark.filterwarnings("ignore:You are using the legacy:DeprecationWarning")
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_recurrent_network_keeps_its_open_lengths(kind: str, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)

    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = getattr(torch.nn, kind)(8, 12, num_layers=2, batch_first=True, bidirectional=True)
            self.head = torch.nn.Linear(24, 5)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            tags: torch.Tensor = self.head(self.layers(features)[0])
            return tags

    (tmp_path / "onnx").mkdir()
    axes = {"features": {0: "batch", 1: "sequence"}, "tags": {0: "batch", 1: "sequence"}}
    torch.onnx.export(
        Tagger().eval(), (torch.randn(2, 7, 8),), str(tmp_path / "onnx" / "model.onnx"), dynamo=False,
        input_names=["features"], output_names=["tags"], dynamic_axes=axes,
    )  # fmt: skip
    source = ingest(str(tmp_path / "onnx" / "model.onnx"), Store(tmp_path / "store"))
    for to in WAYS:
        proof = certify(source, converted(source, to, tmp_path / to), seeds=(0,))
        assert len({tuple(case["shapes"]["features"]) for case in proof.cases}) >= 3  # more as time allows


def network_of(folder: Path, nodes: list[Any], x: list[Any], y: list[Any], **weights: Any) -> Artifact:
    """An artifact of these nodes from x to y, floats whose open axes are named."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x), ("y", y))]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    folder.mkdir()
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "model.onnx")
    shapes_of = [tuple(None if isinstance(size, str) else size for size in shape) for shape in (x, y)]
    signature = Signature((TensorSpec("x", "float32", shapes_of[0]),), (TensorSpec("y", "float32", shapes_of[1]),))
    return Artifact("sha256:x", folder, "onnx", "onnx", None, "onnxruntime", signature, 1)


RECURRENT: list[tuple[str, int, dict[str, Any]]] = [
    ("LSTM", 4, {}),
    ("GRU", 3, {"linear_before_reset": 1}),
    ("GRU", 3, {}),
    ("RNN", 1, {}),
]


@pytest.mark.parametrize(("kind", "gates", "options"), RECURRENT)
def test_a_recurrent_layer_goes_to_pytorch_with_its_sequence_open(
    kind: str, gates: int, options: dict[str, Any], tmp_path: Path
) -> None:
    from onnx import helper

    random = np.random.default_rng(0)
    sizes = {"w": (2, gates * 3, 4), "r": (2, gates * 3, 3), "b": (2, gates * 6)}
    weights = {name: random.normal(0, 0.5, shape).astype(np.float32) for name, shape in sizes.items()}
    nodes = [helper.make_node(kind, ["x", "w", "r", "b"], ["y"], hidden_size=3, direction="bidirectional", **options)]
    source = network_of(tmp_path / "source", nodes, ["time", "batch", 4], ["time", 2, "batch", 3], **weights)
    candidate = converted(source, "pytorch", tmp_path / "out")
    assert candidate.signature is not None
    assert candidate.signature.inputs[0].shape == (None, None, 4)
    lengths = {case["shapes"]["x"][0] for case in certify(source, candidate, seeds=(0,)).cases}
    assert len(lengths) >= 3  # and as many more as time allows


@pytest.mark.parametrize("into", [in_pytorch, in_tensorflow])
@pytest.mark.parametrize(("kind", "gates", "options"), RECURRENT)
def test_a_recurrent_layer_stops_where_each_item_ends(kind: str, gates: int, options: dict[str, Any], into: Any) -> None:
    import onnxruntime

    random = np.random.default_rng(1)
    sizes = {"w": (2, gates * 3, 4), "r": (2, gates * 3, 3), "b": (2, gates * 6)}
    weights: dict[str, Any] = {name: random.normal(0, 0.5, shape).astype(np.float32) for name, shape in sizes.items()}
    weights["lengths"] = np.array([1, 3, 2], np.int32)
    node = (kind, ["x", "w", "r", "b", "lengths"], ["y", "h"], {"hidden_size": 3, "direction": "bidirectional", **options})
    case = Case(kind, [node], {"x": ("float", ("S", 3, 4))}, weights)
    session = onnxruntime.InferenceSession(case.model().SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = case.feeds(0)
    for found, wanted in zip(into(case.model())(feeds), session.run(None, feeds), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("to", WAYS)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_an_image_whose_sides_are_open_is_resized(to: Format, mode: str, tmp_path: Path) -> None:
    from onnx import helper

    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode=mode)]
    shape: list[Any] = ["batch", 2, "height", "width"]
    source = network_of(tmp_path / "source", nodes, shape, ["batch", 2, "h", "w"], scales=np.array([1, 1, 2, 2], np.float32))
    candidate = converted(source, to, tmp_path / "out")
    assert candidate.signature is not None
    assert candidate.signature.inputs[0].shape == (None, 2, None, None)
    certify(source, candidate, seeds=(0,))


def test_every_value_that_a_loop_carries_stays_a_tensor() -> None:
    loop = OPERATORS.find("Loop", 21)
    assert loop is not None
    assert [loop.parameter(i) for i in range(6)] == ["trips", "condition", *["carried"] * 4]


def test_a_remainder_of_sizes_is_a_size() -> None:
    found = shapes.compute("Mod", [np.array([7]), np.array([4])], {})
    assert found.tolist() == [3]
    with pytest.raises(shapes.NotHere):
        shapes.compute("Mod", [np.array([-7]), np.array([4])], {})
