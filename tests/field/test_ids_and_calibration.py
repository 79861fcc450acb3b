"""Integers number the rows of a table, and data that ranges are taken from are data to judge by."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from maasdam.artifacts.store import Store
from maasdam.convert.proof.certificate import certify
from maasdam.core import Artifact, TensorPayload, silent
from maasdam.engines import open_engine
from maasdam.errors import VerificationFailed
from maasdam.operations.build import _examples
from maasdam.operations.convert import convert_model
from maasdam.pipeline.examples import calibration_inputs, made_up_inputs
from maasdam.pipeline.run_recipe import Data
from maasdam.sources import ingest

ROWS = 131


def words(folder: Path, changed: int | None = None, *, epsilon: float = 1e-6, masked: float | None = None) -> Path:
    """Bytes, each with a row of a table, normed along the text. All the same they leave a variance that is rounding alone.

    `masked` is added to one column of sixteen.
    """
    rows = np.random.default_rng(3).standard_normal((ROWS, 16)).astype(np.float32)
    if changed is not None:
        rows[changed] += 0.1
    nodes = [
        helper.make_node("Gather", ["rows", "bytes"], ["e"]),
        helper.make_node("ReduceMean", ["e"], ["mean"], axes=[1]),
        helper.make_node("Mul", ["e", "e"], ["squares"]),
        helper.make_node("ReduceMean", ["squares"], ["second"], axes=[1]),
        helper.make_node("Mul", ["mean", "mean"], ["first"]),
        helper.make_node("Sub", ["second", "first"], ["variance"]),
        helper.make_node("Add", ["variance", "little"], ["more"]),
        helper.make_node("Sqrt", ["more"], ["deviation"]),
        helper.make_node("Sub", ["e", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "deviation"], ["normed"]),
        helper.make_node("Add", ["normed", "mask"], ["y"]),
    ]
    mask = np.zeros(16, np.float32)
    mask[3] = masked or 0
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("bytes", TensorProto.INT32, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64, 16])],
        [
            numpy_helper.from_array(rows, "rows"),
            numpy_helper.from_array(np.float32(epsilon), "little"),
            numpy_helper.from_array(mask, "mask"),
        ],
    )
    folder.mkdir(exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("to", ["pytorch", "openvino"])
def test_ids_without_a_vocabulary_convert(tmp_path: Path, to: str) -> None:
    certificate = convert_model(str(words(tmp_path / "a")), to, tmp_path / "out")["certificate"]
    assert certificate["passed"] and certificate["integers"] == {"bytes": ROWS}
    assert {"integers 0", "integers the largest"} <= {each["inputs"] for each in certificate["beyond"]}


def test_one_wrong_row_of_a_table_is_seen(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    right, wrong = (ingest(str(words(tmp_path / n, c)), store) for n, c in (("a", None), ("b", ROWS - 1)))
    assert certify(right, right).to_json()["passed"]
    with pytest.raises(VerificationFailed, match="output 'y' differs"):
        certify(right, wrong)


def test_a_column_that_is_masked_hides_nothing(tmp_path: Path) -> None:
    """An infinity that stays where it is makes no answer undecided: not its own, and not those beside it."""
    store = Store(tmp_path / "store")
    masked, another, seven = (
        ingest(str(words(tmp_path / name, changed, masked=value)), store)
        for name, changed, value in (("a", None, -np.inf), ("b", ROWS - 1, -np.inf), ("c", None, 7.0))
    )
    assert certify(masked, masked).to_json()["passed"]
    for wrong in (another, seven):
        with pytest.raises(VerificationFailed, match="output 'y'"):
            certify(masked, wrong)


def test_a_lost_epsilon_is_seen(tmp_path: Path) -> None:
    """Only where a text has one byte throughout: the source's own rounding decides there, but not that there is a number."""
    store = Store(tmp_path / "store")
    right, lost = (ingest(str(words(tmp_path / n, epsilon=e)), store) for n, e in (("a", 1e-5), ("b", 0.0)))
    with pytest.raises(VerificationFailed, match="output 'y'"):
        certify(right, lost)


def test_made_up_ids_are_of_the_whole_table(tmp_path: Path) -> None:
    made = np.stack([batch["bytes"] for batch in made_up_inputs(ingest(str(words(tmp_path / "a")), Store(tmp_path / "s")))])
    assert made.max() > ROWS * 0.9 and len(np.unique(made)) > ROWS // 2


def test_made_up_pictures_have_sides_that_the_network_takes(tmp_path: Path) -> None:
    """A reader of lines folds the height away, and takes one height though its file says that it is open."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["h"], kernel_shape=[32, 1], strides=[32, 1]),
            helper.make_node("Squeeze", ["h", "two"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "high", "wide"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, "wide"])],
        [numpy_helper.from_array(np.ones((4, 3, 32, 1), np.float32), "w"), numpy_helper.from_array(np.int64([2]), "two")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    source = ingest(str(path), Store(tmp_path / "s"))
    engine: Any = open_engine(source)
    assert all(engine.run(batch)["y"].size for batch in made_up_inputs(source))
    engine.close()


def rows(folder: Path, count: int) -> Path:
    folder.mkdir()
    for row in range(count):
        np.savez(folder / f"{row:02}.npz", bytes=np.full((1, 64), row, np.int32))
    return folder


def told(examples: Any) -> set[int]:
    return {int(e.payload.tensors["bytes"][0, 0]) for e in examples if isinstance(e.payload, TensorPayload)}


def test_without_data_what_nothing_was_calibrated_on_is_judged_by(tmp_path: Path) -> None:
    source: Artifact = ingest(str(words(tmp_path / "a")), Store(tmp_path / "store"))
    many, few = rows(tmp_path / "many", 24), rows(tmp_path / "few", 5)
    examples, said = _examples(source, Data(None, many), silent)
    held = told(examples.examples)
    seen = {int(batch["bytes"][0, 0]) for batch in calibration_inputs(source, many, 200, part="rest")}
    assert len(held) == 6 and held | seen == set(range(24)) and not held & seen
    assert said is not None and "6 examples of --calibrate, which nothing was calibrated on" in said
    examples, said = _examples(source, Data(None, few), silent)
    assert told(examples.examples) == set(range(5)) and said is not None and "they are few" in said
    examples, said = _examples(source, Data(few, many), silent)
    assert told(examples.examples) == set(range(5)) and said is None


def test_what_is_trained_on_judges_nothing(tmp_path: Path) -> None:
    source: Artifact = ingest(str(words(tmp_path / "a")), Store(tmp_path / "store"))
    many = rows(tmp_path / "many", 24)
    held = told(_examples(source, Data(None, many), silent)[0].examples)
    train = tmp_path / "train"
    train.mkdir()
    for row in list(held)[:4]:
        shutil.copy(many / f"{row:02}.npz", train)
    examples, said = _examples(source, Data(None, many, train), silent)
    assert told(examples.examples) == set(list(held)[4:])
    assert said is not None and "4 of them are in --train and were left out" in said
