"""What a certificate sees: each pair differs only where random inputs do not reach, and each right pair is certified."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from maasdam.convert.proof.certificate import certify
from maasdam.convert.signatures import of_onnx
from maasdam.core import Artifact
from maasdam.errors import Unsupported, VerificationFailed

node = helper.make_node
RANDOM = np.random.default_rng(0)
W = RANDOM.normal(size=(8, 8)).astype(np.float32)
ROWS = RANDOM.normal(size=(257, 4)).astype(np.float32)


def value(name: str, shape: list[Any], dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def constant(name: str, array: Any) -> Any:
    return numpy_helper.from_array(np.asarray(array), name)


def graph(nodes: list[Any], inputs: list[Any], outputs: list[Any], *weights: Any) -> onnx.ModelProto:
    body = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def artifact(model: onnx.ModelProto, folder: Path) -> Artifact:
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    signature = of_onnx(model)
    if any(n.op_type == "IsNaN" for n in model.graph.node):
        signature = replace(signature, inputs=tuple(replace(s, takes_nan=True) for s in signature.inputs))
    return Artifact(f"sha256:{folder.name}", folder, "onnx", "onnx", None, "onnxruntime", signature, 1)


def certified(right: onnx.ModelProto, other: onnx.ModelProto, folder: Path, **given: Any) -> dict[str, Any]:
    return certify(artifact(right, folder / "a"), artifact(other, folder / "b"), **given).to_json()


def rows(
    nodes: list[Any], *weights: Any, names: str = "y", batch: Any = "N", dtype: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """x [N, 8] to outputs of the same shape."""
    return graph(nodes, [value("x", [batch, 8])], [value(n, [batch, 8], dtype) for n in names], *weights)


def branches(limit: float, *, is_whole: bool = True, operator: str = "Greater") -> onnx.ModelProto:
    """x @ w where the mean of x is over `limit`, else -x; or always -x."""
    if not is_whole:
        return rows([node("Neg", ["x"], ["y"])], batch=2)
    then = helper.make_graph([node("MatMul", ["x", "w"], ["t"])], "then", [], [value("t", [2, 8])])
    other = helper.make_graph([node("Neg", ["x"], ["e"])], "else", [], [value("e", [2, 8])])
    nodes = [
        node("ReduceMean", ["x"], ["m"], keepdims=1),
        node(operator, ["m", "limit"], ["c"]),
        node("If", ["c"], ["y"], name="way", then_branch=then, else_branch=other),
    ]
    return rows(nodes, constant("w", W), constant("limit", np.float32(limit)), batch=2)


def nested(is_whole: bool) -> onnx.ModelProto:
    """Three turns of a loop, in each an If whose branch holds another."""
    inner = [
        helper.make_graph([node("Mul", ["v", "two"], ["p"])], "p", [], [value("p", [2, 8])]),
        helper.make_graph([node("Exp" if is_whole else "Identity", ["v"], ["q"])], "q", [], [value("q", [2, 8])]),
    ]
    then = helper.make_graph(
        [
            node("Less", ["m", "far"], ["d"]),
            node("If", ["d"], ["t"], name="inner", then_branch=inner[0], else_branch=inner[1]),
        ],
        "then", [], [value("t", [2, 8])],
    )  # fmt: skip
    other = helper.make_graph([node("Neg", ["v"], ["e"])], "else", [], [value("e", [2, 8])])
    body = helper.make_graph(
        [
            node("ReduceMean", ["v"], ["m"], keepdims=0),
            node("Greater", ["m", "zero"], ["c"]),
            node("If", ["c"], ["after"], name="outer", then_branch=then, else_branch=other),
            node("Identity", ["on"], ["still"]),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("on", [], TensorProto.BOOL), value("v", [2, 8])],
        [value("still", [], TensorProto.BOOL), value("after", [2, 8])],
    )
    weights = [constant(n, np.float32(v)) for n, v in (("two", 2), ("far", 60), ("zero", 0))]
    weights += [constant("turns", np.int64(3)), constant("true", np.array(True))]
    return rows([node("Loop", ["turns", "true", "x"], ["y"], body=body)], *weights, batch=2)


def last_of_equals() -> onnx.ModelProto:
    """As `best`, but of equal numbers the last one comes first."""
    nodes = [
        node("Slice", ["x", "end", "begin", "axis", "back"], ["r"]),
        node("TopK", ["r", "k"], ["v", "j"], axis=1),
        node("Sub", ["seven", "j"], ["i"]),
    ]
    weights = [
        constant(n, np.array([v])) for n, v in (("end", 7), ("begin", -9), ("axis", 1), ("back", -1), ("seven", 7), ("k", 3))
    ]
    return graph(nodes, [value("x", ["N", 8])], best().graph.output, *weights)


def best() -> onnx.ModelProto:
    outputs = [value("v", ["N", 3]), value("i", ["N", 3], TensorProto.INT64)]
    return graph([node("TopK", ["x", "k"], ["v", "i"], axis=1)], [value("x", ["N", 8])], outputs, constant("k", np.array([3])))


def embedded(change: int | None = None, kind: int = TensorProto.INT32) -> onnx.ModelProto:
    table = ROWS.copy()
    if change is not None:
        table[change] *= 1.01
    nodes = [node("Gather", ["table", "ids"], ["y"], axis=0)]
    return graph(nodes, [value("ids", ["N", 12], kind)], [value("y", ["N", 12, 4])], constant("table", table))


def tiny(sign: float) -> onnx.ModelProto:
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Mul", ["m", "k"], ["y"])]
    return rows(nodes, constant("w", np.concatenate([W[:, :6], sign * W[:, 6:]], 1)), constant("k", np.float32(1e-7)))


def beside(score: float) -> onnx.ModelProto:
    """Four boxes of hundreds and four scores of hundredths, in one output."""
    scale = np.array([300, 300, 300, 300, *(score * 0.01 for _ in range(4))], np.float32)
    return rows([node("MatMul", ["x", "w"], ["m"]), node("Mul", ["m", "k"], ["y"])], constant("w", W), constant("k", scale))


def normal(epsilon: float) -> onnx.ModelProto:
    weights = constant("s", np.ones(8, np.float32)), constant("b", np.zeros(8, np.float32))
    return rows([node("LayerNormalization", ["x", "s", "b"], ["y"], epsilon=epsilon)], *weights)


def chances(is_safe: bool) -> onnx.ModelProto:
    if is_safe:
        return rows([node("Softmax", ["x"], ["y"], axis=-1)])
    nodes = [node("Exp", ["x"], ["e"]), node("ReduceSum", ["e", "a"], ["s"]), node("Div", ["e", "s"], ["y"])]
    return rows(nodes, constant("a", np.array([1])))


def along(is_cut: bool) -> onnx.ModelProto:
    """A running sum over an open length, of the first 100 at most where it is cut."""
    nodes = [node("CumSum", ["x", "one"], ["s"])]
    if is_cut:
        nodes = [
            node("Shape", ["x"], ["n"], start=1, end=2),
            node("Equal", ["n", "single"], ["alone"]),
            node("Where", ["alone", "two", "factor"], ["f"]),
            node("CumSum", ["x", "one"], ["s0"]),
            node("Mul", ["s0", "f"], ["s"]),
        ]
    weights = [constant("one", np.int64(1)), constant("single", np.array([1])), constant("two", np.float32(2))]
    shape = ["N", "T"]
    return graph(nodes, [value("x", shape)], [value("s", shape)], *weights, constant("factor", np.float32(1)))


def whole(operator: str, dividend: int = 3, **options: int) -> onnx.ModelProto:
    kind = TensorProto.INT64
    nodes = [node(operator, ["x", "k"], ["y"], **options)]
    return graph(nodes, [value("x", ["N", 8], kind)], [value("y", ["N", 8], kind)], constant("k", np.int64(dividend)))


def filled(fill: float) -> onnx.ModelProto:
    nodes = [node("IsNaN", ["x"], ["q"]), node("Where", ["q", "f", "x"], ["z"]), node("MatMul", ["z", "w"], ["y"])]
    return rows(nodes, constant("f", np.float32(fill)), constant("w", W))


def half_up() -> onnx.ModelProto:
    return rows([node("Add", ["x", "h"], ["z"]), node("Floor", ["z"], ["y"])], constant("h", np.float32(0.5)))


def clipped(high: float) -> onnx.ModelProto:
    return rows([node("Clip", ["x", "l", "h"], ["y"])], constant("l", np.float32(-1)), constant("h", np.float32(high)))


def over(operator: str) -> onnx.ModelProto:
    return rows([node(operator, ["x", "k"], ["y"])], constant("k", np.float32(0.3)), dtype=TensorProto.BOOL)


WRONG = {
    "one branch of two, seldom taken": (branches(40.0), branches(40.0, is_whole=False)),
    "one branch of two, often taken": (branches(0.02), branches(0.02, is_whole=False)),
    "a branch in a branch in a loop": (nested(True), nested(False)),
    "which of equal numbers comes first": (best(), last_of_equals()),
    "the last row of an embedding": (embedded(), embedded(256)),
    "an output of 1e-7": (tiny(1), tiny(-1)),
    "small scores beside large boxes": (beside(1), beside(-1)),
    "an epsilon, for small inputs": (normal(1e-5), normal(1e-6)),
    "overflow, for large inputs": (chances(True), chances(False)),
    "a sequence of one": (along(False), along(True)),
    "the remainder of negative integers": (whole("Mod"), whole("Mod", fmod=1)),
    "a missing value": (filled(0.5), filled(0.0)),
    "halves are rounded to even": (rows([node("Round", ["x"], ["y"])]), half_up()),
    "a clip's bound": (clipped(6), clipped(7)),
    "a comparison at its boundary": (over("Greater"), over("GreaterOrEqual")),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_difference_that_random_inputs_do_not_show_is_found(name: str, tmp_path: Path) -> None:
    right, wrong = WRONG[name]
    with pytest.raises(VerificationFailed):
        certified(right, wrong, tmp_path)


@pytest.mark.parametrize("name", WRONG)
def test_the_same_network_is_certified(name: str, tmp_path: Path) -> None:
    certified(WRONG[name][0], WRONG[name][0], tmp_path)


def test_a_condition_that_no_input_makes_true_is_listed(tmp_path: Path) -> None:
    never = branches(-np.inf, operator="Less")
    found = certified(never, never, tmp_path)["conditions"]
    assert found == {"count": 1, "are_watched": True, "never_taken": [{"condition": "way", "never": ["true"]}]}


def test_fixed_shapes_are_asked_twelve_times_and_an_embedding_for_its_own_rows(tmp_path: Path) -> None:
    fixed = rows([node("MatMul", ["x", "w"], ["y"])], constant("w", W), batch=1)
    assert sum(certified(fixed, fixed, tmp_path)["tried"].values()) >= 12
    (tmp_path / "ids").mkdir()
    found = certified(embedded(), embedded(), tmp_path / "ids")
    assert found["integers"] == {"ids": 257}


def test_an_open_length_is_asked_from_the_shortest_that_runs(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["y"])]
    kernel = constant("w", RANDOM.normal(size=(2, 1, 5)).astype(np.float32))
    model = graph(nodes, [value("x", ["N", 1, "T"])], [value("y", ["N", 2, "U"])], kernel)
    found = certified(model, model, tmp_path)
    assert found["lengths"] == {"shortest": 5, "refused_by_the_candidate": []}
    assert {5, 6, 7, 8} <= {case["shapes"]["x"][2] for case in found["cases"]}


def test_steep_functions_are_judged_by_what_one_step_of_their_input_moves(tmp_path: Path) -> None:
    """sin(1e5 x) by two ways that are both right: the product is rounded before the sine, or not."""
    thousand, hundred = constant("a", np.float32(1000.1)), constant("b", np.float32(100.3))
    first = rows([node("Mul", ["x", "a"], ["p"]), node("Mul", ["p", "b"], ["q"]), node("Sin", ["q"], ["y"])], thousand, hundred)
    other = rows([node("Mul", ["x", "b"], ["p"]), node("Mul", ["p", "a"], ["q"]), node("Sin", ["q"], ["y"])], thousand, hundred)
    (output,) = certified(first, other, tmp_path)["outputs"]
    assert output["groups"]["1"]["steep"] > 0
    (tmp_path / "wrong").mkdir()
    wrong = rows([node("Mul", ["x", "a"], ["p"]), node("Mul", ["p", "b"], ["q"]), node("Cos", ["q"], ["y"])], thousand, hundred)
    with pytest.raises(VerificationFailed):
        certified(first, wrong, tmp_path / "wrong")


def centred(far: float | None) -> onnx.ModelProto:
    """Each item less its mean, by its spread: of one number everywhere nothing is left but how it was rounded on the way."""
    there = constant("p", np.linspace(1, far or 1, 8, dtype=np.float32))
    nodes = [node("Add", ["x", "p"], ["s"]), node("Sub", ["s", "p"], ["t"])] if far else [node("Identity", ["x"], ["t"])]
    scale, bias = constant("g", np.ones(8, np.float32)), constant("b", np.zeros(8, np.float32))
    return rows([*nodes, node("LayerNormalization", ["t", "g", "b"], ["y"], epsilon=1e-10)], there, scale, bias)


def test_of_one_number_everywhere_a_norm_leaves_rounding_that_is_written_down(tmp_path: Path) -> None:
    found = certified(centred(None), centred(40.0), tmp_path)
    assert {"inputs": "ties one number an item", "agrees": False} in found["beyond"]


def test_a_source_that_varies_little_asks_for_data(tmp_path: Path) -> None:
    still = rows([node("Mul", ["x", "k"], ["z"]), node("Add", ["z", "one"], ["y"])], constant("k", np.float32(1e-9)),
                 constant("one", np.float32(1)))  # fmt: skip
    with pytest.raises(VerificationFailed, match=r"varies by .* only, so agreement proves nothing: give inputs .* --data"):
        certified(still, still, tmp_path)


@pytest.mark.parametrize("shape", [[], [1], [1, 1], [1, 1, 1]])
def test_pytorch_holds_both_branches_whatever_the_conditions_shape(shape: list[int], tmp_path: Path) -> None:
    import torch

    from maasdam.convert.directions import onnx_to_pytorch

    model = branches(0.02)
    condition = model.graph.node[-1]
    condition.input[0] = "shaped"
    model.graph.node.insert(2, node("Reshape", ["c", "shape"], ["shaped"]))
    model.graph.initializer.append(constant("shape", np.array(shape, np.int64)))
    onnx_to_pytorch.write(artifact(model, tmp_path / "a"), tmp_path)
    program = torch.export.load(tmp_path / "model.pt2").module()
    for mean in (1.0, -1.0):
        x = np.full((2, 8), mean, np.float32)
        (found,) = program(torch.from_numpy(x)).values()
        np.testing.assert_allclose(found.detach().numpy(), x @ W if mean > 0 else -x, rtol=1e-5, atol=1e-5)


def test_pytorch_refuses_a_loop_that_runs_as_long_as_its_data_say(tmp_path: Path) -> None:
    from maasdam.convert.directions import onnx_to_pytorch

    body = helper.make_graph(
        [node("Mul", ["v", "two"], ["after"]), node("Identity", ["on"], ["still"])],
        "body",
        [value("i", [], TensorProto.INT64), value("on", [1, 1], TensorProto.BOOL), value("v", [2, 8])],
        [value("still", [1, 1], TensorProto.BOOL), value("after", [2, 8])],
        [constant("two", np.float32(2))],
    )
    nodes = [
        node("ReduceMean", ["x"], ["m"], keepdims=1),
        node("Greater", ["m", "zero"], ["c"]),
        node("Loop", ["turns", "c", "x"], ["y"], body=body),
    ]
    model = rows(nodes, constant("zero", np.float32(0)), constant("turns", np.int64(3)), batch=2)
    with pytest.raises(Unsupported, match="for as long as its data say"):
        onnx_to_pytorch.write(artifact(model, tmp_path / "a"), tmp_path)


def test_openvino_orders_equal_numbers_as_the_source_does(tmp_path: Path) -> None:
    import openvino as ov

    from maasdam.convert.directions import to_openvino

    (tmp_path / "out").mkdir()
    to_openvino.write(artifact(best(), tmp_path / "a"), tmp_path / "out")
    compiled = ov.Core().compile_model(tmp_path / "out" / "model.xml", "CPU")
    found = compiled(np.array([[1, 3, 3, 0, 3, 2, 2, 1]], np.float32))
    assert found["i"].tolist() == [[1, 2, 4]]


def test_an_openvino_file_opened_with_nothing_said_answers_as_it_was_proven(tmp_path: Path) -> None:
    """A product with a bias, which OpenVINO rounds to bf16 by itself on processors that have it."""
    import openvino as ov

    from maasdam.operations.convert import convert_model

    layers = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Add", ["m", "b"], ["a"]),
        node("Relu", ["a"], ["r"]),
        node("MatMul", ["r", "w"], ["y"]),
    ]
    model = rows(layers, constant("w", W), constant("b", W[0]))
    artifact(model, tmp_path / "a")
    document = convert_model(str(tmp_path / "a" / "model.onnx"), "openvino", tmp_path / "out")
    assert document["certificate"]["settings"]["engine_defaults_agree"] is True
    assert document["certificate"]["settings"]["named"]["INFERENCE_PRECISION_HINT"] == "f32"
    x = RANDOM.normal(size=(5, 8)).astype(np.float32)
    found = ov.Core().compile_model(tmp_path / "out" / "model.xml")(x)[0]
    np.testing.assert_allclose(found, np.maximum(x @ W + W[0], 0) @ W, rtol=1e-4, atol=1e-4)
