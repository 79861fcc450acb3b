"""A verdict is right both ways: what lost an output, a slice or an answer fails, what kept them passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.core import Artifact, Signature, TensorSpec
from maasdam.errors import VerificationFailed
from maasdam.pipeline.attempts import Attempts
from maasdam.pipeline.conditions import Conditions
from maasdam.pipeline.examples import evaluation_examples
from maasdam.pipeline.fidelity import Fidelity
from maasdam.pipeline.own_engine import on_its_own_engine
from maasdam.pipeline.parity import Parity
from maasdam.pipeline.part import Part
from maasdam.pipeline.proven import prove
from maasdam.pipeline.recipe import Limits, find_recipe
from maasdam.pipeline.report import Report
from maasdam.pipeline.run_recipe import Build, Data
from maasdam.pipeline.verify import verify

QUICK = Conditions(threads=1, measure_seconds=0.0, measures_memory=False)
Node = tuple[str, list[str], list[str], dict[str, Any]]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _onnx(
    store: Store,
    nodes: list[Node],
    inputs: dict[str, tuple[Any, ...]],
    outputs: dict[str, tuple[Any, ...]],
    weights: dict[str, Any],
) -> Artifact:
    """An ONNX model of float32 inputs and outputs, in the store."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node(op, i, o, **attributes) for op, i, o, attributes in nodes],
        "case",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()],
    )

    def specs(shapes: dict[str, tuple[Any, ...]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(n, "float32", tuple(d if isinstance(d, int) else None for d in s)) for n, s in shapes.items())

    with store.workspace() as folder:
        (folder / "out").mkdir()
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(model, folder / "out" / "model.onnx")
        signature = Signature(specs(inputs), specs(outputs))
        return store.add(folder / "out", format="onnx", layout="onnx", task=None, engine="onnxruntime", signature=signature)


def boxes_and_scores(store: Store, scores: float = 1.0) -> Artifact:
    """[n, 8] -> [n, 6]: four boxes up to some hundreds, and two scores within [0, 1], times `scores`."""
    nodes: list[Node] = [
        ("MatMul", ["x", "places"], ["boxes"], {}),
        ("MatMul", ["x", "heads"], ["logits"], {}),
        ("Sigmoid", ["logits"], ["likely"], {}),
        ("Mul", ["likely", "share"], ["scores"], {}),
        ("Concat", ["boxes", "scores"], ["y"], {"axis": 1}),
    ]
    weights = {
        "places": np.random.default_rng(1).normal(0, 100, (8, 4)).astype(np.float32),
        "heads": np.random.default_rng(2).normal(size=(8, 2)).astype(np.float32),
        "share": np.full(2, scores, np.float32),
    }
    return _onnx(store, nodes, {"x": ("n", 8)}, {"y": ("n", 6)}, weights)


def one_number(store: Store, slope: float) -> Artifact:
    """[n, 4] -> [n, 1]: 50 and a little of what it is told."""
    weights = {"w": np.full((4, 1), slope, np.float32), "b": np.float32([50])}
    return _onnx(store, [("Gemm", ["x", "w", "b"], ["y"], {})], {"x": ("n", 4)}, {"y": ("n", 1)}, weights)


def in_doubles(store: Store) -> Artifact:
    """A convolution of float64, which ONNX Runtime has no kernel for."""
    nodes: list[Node] = [
        ("Cast", ["x"], ["a"], {"to": 11}),
        ("Conv", ["a", "w"], ["b"], {}),
        ("Cast", ["b"], ["y"], {"to": 1}),
    ]
    weights = {"w": np.random.default_rng(1).normal(size=(2, 3, 3, 3))}
    return _onnx(store, nodes, {"x": ("n", 3, 8, 8)}, {"y": ("n", 2, 6, 6)}, weights)


def _report(candidate: Artifact, source: Artifact, data: Path | None = None, references: tuple[Artifact, ...] = ()) -> Report:
    examples = [] if data is None else evaluation_examples(source, data)
    return verify(candidate, references, source, examples, find_recipe("int8-dynamic", None).limits, QUICK)


def _data(path: Path, *shape: int) -> Path:
    np.savez(path, x=np.random.default_rng(3).normal(size=shape).astype(np.float32))
    return path


# What an output tells


def _judged(
    one: Callable[[int], Any], other: Callable[[int], Any], count: int = 12, name: str = "y"
) -> tuple[Fidelity, list[Part]]:
    fidelity = Fidelity()
    for i in range(count):
        fidelity.add([{name: np.asarray(one(i))}], [{name: np.asarray(other(i))}])
    return fidelity, [p for p in fidelity.parts() if p.value is not None and p.value < p.asked(0.8)]


def _noisy(values: Any, share: float, seed: int = 9) -> Any:
    values = np.asarray(values)
    return values + np.random.default_rng(seed).normal(size=values.shape) * share


def test_dead_scores_are_seen_beside_boxes_that_are_right(random: np.random.Generator) -> None:
    boxes, scores = random.uniform(0, 640, (12, 1, 4, 50)), random.uniform(0, 1, (12, 1, 8, 50)) ** 8
    whole = np.concatenate([boxes, scores], 2)
    dead = np.concatenate([boxes + 1, 0 * scores], 2)
    fidelity, wrong = _judged(lambda i: whole[i], lambda i: dead[i])
    assert fidelity.to_json()["parts"][0]["became_constant"] and fidelity.lost == float("inf")
    assert "output 'y', slices 4-11 of axis 1" in {p.where for p in wrong}
    assert not any("slices 0-3" in p.where for p in wrong)


def test_scores_that_are_wrong_but_move_are_named_as_a_group(random: np.random.Generator) -> None:
    boxes, scores = random.uniform(0, 640, (12, 1, 50, 4)), random.uniform(0, 1, (12, 1, 50, 8)) ** 8
    whole = np.concatenate([boxes, scores], 3)
    mixed = np.concatenate([boxes, scores[::-1]], 3)
    _, wrong = _judged(lambda i: whole[i], lambda i: mixed[i])
    assert "output 'y', slices 4-11 of axis 2" in {p.where for p in wrong}


def test_a_good_detector_of_classes_that_never_come_is_not_failed(random: np.random.Generator) -> None:
    """Sixty classes of eighty never rise above a thousandth: 8 bits round them away, and nothing is lost."""
    boxes, scores = random.uniform(0, 640, (12, 1, 4, 50)), random.uniform(0, 1, (12, 1, 80, 50)) ** 8
    scores[:, :, 20:] *= 1e-3
    whole = np.concatenate([boxes, scores], 2)
    steps = np.concatenate([np.round(boxes), np.round(scores * 255) / 255], 2)
    fidelity, wrong = _judged(lambda i: whole[i], lambda i: steps[i])
    assert wrong == [] and fidelity.to_json()["fidelity"] > 0.99


def test_rows_of_a_heatmap_are_no_things_of_different_kinds(random: np.random.Generator) -> None:
    """The peak is kept; rows far from it hold next to nothing and follow the noise."""
    at = np.linspace(-3, 3, 40)
    peaks = [np.exp(-((at[:, None] - x) ** 2 + (at[None] - y) ** 2) * 4)[None, None] for x, y in random.normal(size=(12, 2))]
    _, wrong = _judged(lambda i: peaks[i], lambda i: np.clip(_noisy(peaks[i], 0.01, i), 0, 1))
    assert wrong == []
    _, moved = _judged(lambda i: peaks[i], lambda i: np.roll(peaks[i], 15, axis=3))
    assert moved[0].where == "output 'y'"


def test_one_number_is_judged_by_how_it_varies(random: np.random.Generator) -> None:
    values = 50 + random.normal(size=(12, 1, 1))
    parity = Parity()
    for i in range(12):
        parity.add(str(i), [{"y": values[i]}], [{"y": np.full((1, 1), 50.0)}], None)
    assert parity.cosine == pytest.approx(1.0)  # which is why the cosine says nothing here
    fidelity, wrong = _judged(lambda i: values[i], lambda i: np.full((1, 1), 50.0))
    assert wrong[0].is_constant and wrong[0].where == "output 'y'" and fidelity.lost == float("inf")
    assert _judged(lambda i: values[i], lambda i: _noisy(values[i], 0.1, i))[1] == []


def test_one_slice_that_fails_is_not_hidden_behind_many_outputs_that_hold(random: np.random.Generator) -> None:
    fidelity = Fidelity()
    likely = random.uniform(0, 1, (12, 1, 20, 30)) ** 8 * np.linspace(1, 0.05, 20)[None, None, :, None]
    states = random.normal(size=(12, 1, 4))
    for i in range(12):
        one = {f"state{n}": states[i] for n in range(30)} | {"y": likely[i]}
        other = dict(one) | {"y": np.concatenate([likely[i, :, :5], likely[-i, :, 5:6], likely[i, :, 6:]], 1)}
        fidelity.add([one], [other])
    assert fidelity.to_json()["parts"][0]["slices"] == [5] or fidelity.to_json()["parts"][1]["slices"] == [5]


def test_numbers_of_unlike_ranges_beside_each_other_are_each_judged(random: np.random.Generator) -> None:
    values = random.normal(size=(12, 1, 3)) * [1000, 30, 1]
    other = values.copy()
    other[:, :, 2] = other[::-1, :, 2]
    assert {p.where for p in _judged(lambda i: values[i], lambda i: other[i])[1]} == {"output 'y', slice 2 of axis 1"}


def test_rankings_are_judged_by_the_top_and_ties_are_no_disagreement(random: np.random.Generator) -> None:
    logits = random.normal(size=(40, 1, 10)) * 3
    likely = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    rest = likely.copy()
    rest[:4] = np.roll(rest[:4], 1, axis=-1)
    fidelity, wrong = _judged(lambda i: likely[i], lambda i: rest[i], 40)
    assert fidelity.agreement == 0.9 and wrong == []
    rest[4] = np.roll(rest[4], 1, axis=-1)
    assert [p.measure for p in _judged(lambda i: likely[i], lambda i: rest[i], 40)[1]] == ["agreement"]
    even = np.float32([[0.4001, 0.3999, 0.2]]), np.float32([[0.3999, 0.4001, 0.2]])
    assert _judged(lambda i: even[0] if i else even[0][:, ::-1], lambda i: even[1] if i else even[1][:, ::-1])[0].agreement == 1


def test_class_numbers_are_compared_one_by_one_and_a_top_five_by_its_first(random: np.random.Generator) -> None:
    maps = random.integers(0, 3, (12, 1, 9, 9))
    assert _judged(lambda i: maps[i], lambda i: maps[i] * (i % 2))[1][0].measure == "agreement"
    tops = np.stack([random.permutation(100)[:5] for _ in range(12)])[:, None]
    later = tops[:, :, [0, 2, 1, 4, 3]]
    for kind in (np.int64, np.float32):  # some graphs give class numbers as floats
        assert _judged(lambda i, k=kind: tops[i].astype(k), lambda i, k=kind: later[i].astype(k))[1] == []
        assert _judged(lambda i, k=kind: tops[i].astype(k), lambda i, k=kind: later[i, :, ::-1].astype(k))[1] != []


def test_lists_whose_length_the_data_decide_are_compared_row_by_row(random: np.random.Generator) -> None:
    rows = [random.uniform(0, 100, (2 + i % 4, 6)) for i in range(12)]
    signature = Signature((), (TensorSpec("y", "float32", (None, 6)),))
    one_less = [r[1:] if i == 3 else _noisy(r, 0.5, i) for i, r in enumerate(rows)]
    fidelity, wrong = _judged(lambda i: rows[i], lambda i: one_less[i])
    assert wrong == [] and fidelity.agreement is not None and 0.9 < fidelity.agreement < 1
    assert _judged(lambda i: rows[i], lambda i: rows[i][: i % 2])[1][0].measure == "agreement"
    parity = Parity(signature=signature)
    parity.add("a", [{"y": rows[3]}], [{"y": one_less[3]}], None)
    assert parity.problems == []
    parity.add("b", [{"y": rows[3]}], [{"y": rows[3][:, :5]}], None)  # the signature fixes that axis
    assert "numbers where the reference's has" in parity.problems[0]


def test_answers_as_long_as_their_inputs_are_judged_together(random: np.random.Generator) -> None:
    texts = [random.normal(size=(1, 3 + i, 4)) for i in range(12)]
    assert _judged(lambda i: texts[i], lambda i: _noisy(texts[i], 0.1, i))[1] == []
    assert _judged(lambda i: texts[i], lambda i: texts[i][:, ::-1])[1] != []


def test_a_batch_axis_that_is_not_the_first_changes_nothing(random: np.random.Generator) -> None:
    values = random.normal(size=(12, 5, 1, 3)) * [1000, 30, 1]
    other = values.copy()
    other[..., 2] = 0
    assert _judged(lambda i: values[i], lambda i: other[i])[0].lost == float("inf")


def test_what_does_not_vary_is_left_out_and_counted(random: np.random.Generator) -> None:
    values = np.concatenate([np.full((12, 1, 2), 7.0), random.normal(size=(12, 1, 4))], 2)
    found = _judged(lambda i: values[i], lambda i: values[i] + [0.1, 0, 0, 0, 0, 0])[0].to_json()
    assert found["without_spread"] == 1 and found["fidelity"] > 0.99
    still = _judged(lambda i: np.full((1, 2), 7.0), lambda i: np.full((1, 2), 7.1))[0].to_json()
    assert still["parts"][0]["measure"] == "closeness" and still["parts"][0]["value"] == pytest.approx(1 - 0.1 / 7)


def test_what_was_still_and_turns_into_noise_fails(random: np.random.Generator) -> None:
    """Scores that are zero in every example, random in the candidate: beside boxes, and as an output of their own."""
    boxes, noise = random.uniform(0, 640, (12, 1, 4, 50)), random.uniform(0, 1, (12, 1, 8, 50))
    whole, wild = np.concatenate([boxes, 0 * noise], 2), np.concatenate([boxes + 1e-4, noise], 2)
    fidelity, wrong = _judged(lambda i: whole[i], lambda i: wild[i])
    assert "output 'y', slices 4-11 of axis 1" in {p.where for p in wrong} and (fidelity.lost or 0) > 0.1
    steps = np.concatenate([np.round(boxes), 0.004 * np.round(noise)], 2)
    assert _judged(lambda i: whole[i], lambda i: steps[i])[1] == []
    for still in (np.zeros((1, 8)), np.full((1, 8), 0.5), np.zeros((1, 8), np.int64)):
        fidelity = Fidelity()
        for i in range(12):
            wild_too = (random.uniform(0, 9, (1, 8))).astype(still.dtype)
            fidelity.add([{"boxes": boxes[i], "scores": still}], [{"boxes": boxes[i], "scores": wild_too}])
        assert [p.output for p in fidelity.parts() if p.value is not None and p.value < p.asked(0.8)] == ["scores"]
        alone, wrong = _judged(lambda i, s=still: s, lambda i, s=still: s + 5)
        assert wrong and alone.to_json()["parts"][0]["value"] == 0 and (alone.lost or 0) > 0.1
    assert _judged(lambda i: np.zeros((1, 8)), lambda i: np.full((1, 8), 1e-7))[0].lost == 0


def test_one_example_varies_over_its_places_alone(random: np.random.Generator) -> None:
    rows = np.repeat(random.normal(size=(1, 5, 1)), 40, 2)  # no row varies, the whole does
    assert _judged(lambda i: rows, lambda i: rows, 1)[1] == []
    assert _judged(lambda i: rows, lambda i: rows[:, ::-1], 1)[1] != []


def test_an_output_of_another_rank_is_judged_or_a_problem(random: np.random.Generator) -> None:
    values = random.normal(size=(12, 8))
    assert _judged(lambda i: values[i], lambda i: values[i][None])[0].lost == 0
    assert _judged(lambda i: values[i], lambda i: values[-1 - i][None])[1] != []
    parity = Parity()
    parity.add("a", [{"y": values[0]}], [{"y": values[0][None]}], None)
    assert parity.problems == []
    parity.add("b", [{"y": values[0]}], [{"y": values[0].reshape(2, 4)}], None)
    assert parity.problems == ["the output 'y' for 'b' has shape [2, 4] where the reference's has [8]"]


def test_long_lists_are_compared_by_some_of_their_rows(random: np.random.Generator) -> None:
    rows = [random.uniform(0, 1e6, (2000 + i, 6)) for i in range(3)]
    fidelity, wrong = _judged(lambda i: rows[i], lambda i: random.permutation(rows[i])[1:], 3)
    assert wrong == [] and fidelity.agreement == pytest.approx(1, abs=0.01)
    assert fidelity.parts() is fidelity.parts()  # paid once
    half = _judged(lambda i: rows[i], lambda i: rows[i][::2], 3)[0].agreement
    assert half == pytest.approx(2 / 3, abs=0.05)
    alike = np.ones((500, 2))
    assert _judged(lambda i: alike, lambda i: alike[:1], 3)[0].agreement == pytest.approx(2 / 501, abs=0.01)


def test_large_outputs_are_summed_over_their_positions(random: np.random.Generator) -> None:
    values = random.normal(size=(3, 1, 300, 4000)).astype(np.float32)
    fidelity, wrong = _judged(lambda i: values[i], lambda i: _noisy(values[i], 0.01, i), 3)
    assert wrong == [] and fidelity._outputs["y"].sums is not None and fidelity._outputs["y"].sums.total.shape == (1, 1, 4000)
    assert fidelity.parts()[0].value == pytest.approx(1 - 1e-4, abs=1e-5)
    assert fidelity._outputs["y"].kept == []
    assert _judged(lambda i: values[i], lambda i: values[-1 - i], 3)[1] != []
    assert _judged(lambda i: np.float64(i), lambda i: np.float64(i))[0].lost == 0


def test_outputs_near_zero_are_judged_as_others_are(random: np.random.Generator) -> None:
    values = random.normal(size=(12, 1, 4)) * 1e-7
    assert _judged(lambda i: values[i], lambda i: values[::-1][i])[1] != []
    assert _judged(lambda i: values[i], lambda i: values[i] * 1.05)[1] == []


def test_a_masked_logit_is_no_difference_and_a_lost_number_is() -> None:
    row = np.float32([[1, -np.inf, 2]])
    parity = Parity()
    parity.add("a", [{"y": row}], [{"y": row}], None)
    assert parity.problems == [] and parity.cosine == 1
    fidelity, _ = _judged(lambda i: row * [[i, 1, 1]], lambda i: np.full((1, 3), np.nan))
    assert fidelity.lost == float("inf")
    missing = np.float32([[1, np.nan, 2]])
    parity.add("b", [{"y": missing}], [{"y": missing}], None)
    assert parity.problems == [] and parity.cosines == [1, 1]
    parity.add("c", [{"y": missing}], [{"y": missing[:, ::-1] * np.nan}], None)
    parity.add("d", [{"y": missing * np.nan}], [{"y": missing * np.nan}], None)
    assert "candidate's output for 'c' holds NaN" in parity.problems[0] and "no number" in parity.problems[1]
    kept = _judged(lambda i: missing * (i + 1), lambda i: missing * (i + 1))[0]
    assert kept.lost == 0 and kept.to_json()["fidelity"] == 1
    assert _judged(lambda i: missing * (i + 1), lambda i: missing * (12 - i))[1] != []


def test_class_numbers_have_no_angle() -> None:
    """58 for 2 in the last place of a top five is no distance of 56; a wrong first place is a wrong answer."""
    parity = Parity()
    parity.add("a", [{"y": np.float32([[3, 9, 7, 1, 58]])}], [{"y": np.float32([[3, 9, 7, 1, 2]])}], None)
    parity.add("b", [{"y": np.float32([[58, 9, 7, 1, 3]])}], [{"y": np.float32([[2, 9, 7, 1, 3]])}], None)
    assert parity.cosines == [1.0, 0.0]


# Verdicts


@pytest.mark.parametrize("has_data", [True, False])
def test_scores_that_died_fail_whatever_the_cosine_says(store: Store, tmp_path: Path, has_data: bool) -> None:
    data = _data(tmp_path / "x.npz", 12, 8) if has_data else None
    report = _report(boxes_and_scores(store, 0.0), boxes_and_scores(store), data).to_json()
    assert report["parity"]["cosine"] > 0.999 and not report["passed"]
    assert any("output 'y', slice 5 of axis 1 varied by" in f and "became a constant" in f for f in report["failures"])


def test_a_constant_answer_fails_and_one_that_follows_passes(store: Store, tmp_path: Path) -> None:
    data = _data(tmp_path / "x.npz", 12, 4)
    dead = _report(one_number(store, 0.0), one_number(store, 0.1), data)
    assert dead.parity["cosine"] == pytest.approx(1.0, abs=1e-4)
    assert any(f.startswith("output 'y' varied by") for f in dead.failures)
    flat = _report(one_number(store, 0.04), one_number(store, 0.1), data)
    assert [f for f in flat.failures if "fidelity of output 'y' is 0.6" in f]
    assert _report(one_number(store, 0.09), one_number(store, 0.1), data).passed


def test_the_source_on_its_own_engine_is_what_everything_is_held_to(store: Store, tmp_path: Path) -> None:
    """A reference that is wrong is none, however well the candidate agrees with it."""
    source, wrong = one_number(store, 0.1), one_number(store, -0.1)
    data = _data(tmp_path / "x.npz", 12, 4)
    report = _report(wrong, source, data, references=(wrong,)).to_json()
    assert not report["passed"] and report["reference"]["digest"] == source.digest
    assert any("is none: output 'y' loses" in n for n in report["notes"])
    right = _report(source, source, data, references=(wrong,)).to_json()
    assert right["passed"] and right["source"]["accuracy"] == 1.0 and right["accuracy"]["reference"] == 1.0
    assert right["parity"]["against"] == "the source on onnxruntime"


# Proven, or not there


def not_on_openvino(source: Artifact, made: Artifact, *rest: Any) -> dict[str, Any]:
    """A proof that finds OpenVINO wrong, as it was of ties, of int8 and of branches."""
    if made.engine == "openvino":
        raise VerificationFailed("the conversion is not faithful: output 'y' differs by 30 where 0.006 is allowed")
    return prove(source, made, *rest)


def test_a_conversion_that_is_refused_is_neither_candidate_nor_reference(store: Store, tmp_path: Path) -> None:
    source = one_number(store, 1.0)
    building = Build(store, Data(data=_data(tmp_path / "x.npz", 12, 4)), threads=1, prove=not_on_openvino)
    made = building.run(find_recipe("fp32", None), source, None)
    assert made.engine == "onnxruntime" and [r.engine for r in building.references(source)] == ["onnxruntime"]
    assert any("not on openvino: the conversion is not faithful" in n for n in building.notes)
    with pytest.raises(VerificationFailed, match="not faithful"):
        building.run(find_recipe("fp32", None), source, "openvino")


def test_what_one_format_can_not_have_is_quantised_for_the_next(store: Store, tmp_path: Path) -> None:
    wide = _onnx(
        store,
        [("MatMul", ["x", "w"], ["y"], {})],
        {"x": ("n", 256)},
        {"y": ("n", 64)},
        {"w": np.random.default_rng(0).normal(size=(256, 64)).astype(np.float32)},
    )
    building = Build(store, threads=1, prove=not_on_openvino)
    assert building.run(find_recipe("int8-weights", None), wide, None).engine == "onnxruntime"
    assert any("quantize: not for openvino: the conversion is not faithful" in n for n in building.notes)


def test_a_proof_is_paid_once_and_stands_in_the_step(store: Store) -> None:
    source = one_number(store, 1.0)
    building = Build(store, threads=1)
    made = building.convert(source, "openvino")
    certificate = building.steps[-1].facts["certificate"]
    assert certificate["passed"] and certificate["candidate"]["digest"] == made.digest
    told: list[str] = []
    again = prove(source, made, store, progress=lambda stage, done=0, total=None: told.append(stage))
    assert again == certificate and told == []


def test_a_refusal_is_paid_once_too(store: Store) -> None:
    source, other = one_number(store, 1.0), one_number(store, -1.0)
    with pytest.raises(VerificationFailed, match="not faithful"):
        prove(source, other, store)
    told: list[str] = []
    with pytest.raises(VerificationFailed, match="not faithful"):
        prove(source, other, store, progress=lambda stage, done=0, total=None: told.append(stage))
    assert told == []


def test_real_inputs_prove_what_random_ones_can_not(store: Store, tmp_path: Path) -> None:
    """Nothing random is above 1000, so the random answers are all zero."""
    nodes: list[Node] = [("Sub", ["x", "far"], ["a"], {}), ("Relu", ["a"], ["y"], {})]
    source = _onnx(store, nodes, {"x": ("n", 4)}, {"y": ("n", 4)}, {"far": np.float32([1000])})
    same = replace(source, settings={"threads": 1})
    with pytest.raises(VerificationFailed):
        prove(source, same, store)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).uniform(1000, 2000, (6, 4)).astype(np.float32))
    assert prove(source, same, store, tmp_path / "x.npz")["passed"]


def test_a_model_that_its_engine_can_not_open_is_run_by_the_other(store: Store) -> None:
    source = in_doubles(store)
    moved, why = on_its_own_engine(source, store, "cpu", Attempts())
    assert moved.engine == "openvino" and moved.digest != source.digest and moved.parents == (source.digest,)
    assert why is not None and "onnxruntime can't open the model, so openvino runs it" in why
    fine = one_number(store, 1.0)
    assert on_its_own_engine(fine, store, "cpu", Attempts()) == (fine, None)
    building = Build(store, threads=1)
    made = building.run(find_recipe("fp32", None), moved, None)
    assert made.engine == "openvino"
    assert verify(made, building.references(moved), moved, [], Limits(), QUICK).passed
