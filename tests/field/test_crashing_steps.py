"""A step that ends the process it runs in fails alone: the build goes on with what is left, and its report says what died."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.field import limited_work as work

from maasdam.children import ChildLimits
from maasdam.core import silent
from maasdam.errors import Crashed, LimitExceeded
from maasdam.operations.build import BuildSpec
from maasdam.pipeline.attempts import in_steps
from maasdam.settings import Settings

PLENTY = ChildLimits(120, None, 3_000_000_000)
INT8 = '[limits]\nmax_drop = 0.05\n[[pass]]\nuse = "quantize"\nscheme = "static-int8"\n[[pass]]\nuse = "optimize"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crashes")
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "v"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(rng.standard_normal(s).astype("f"), n) for n, s in (("w", (16, 32)), ("v", (32, 4)))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    (folder / "recipe.toml").write_text(INT8)
    (folder / "data").mkdir()
    for row in range(24):
        np.savez(folder / "data" / f"{row}.npz", x=rng.standard_normal((1, 16)).astype("f"))
    return folder


def _made(folder: Path, home: Path, what: str, *, to: Any = None) -> Any:
    model, recipe = str(folder / "model.onnx"), str(folder / "recipe.toml")
    spec = BuildSpec("it", model, None, recipe, to, folder / "data")
    settings = Settings(home=home, threads=1)
    return in_steps(work.builds, what, home / "artifacts", settings, spec, limits=PLENTY, progress=silent)


def test_a_quantiser_that_crashes_leaves_the_other_its_build(folder: Path, tmp_path: Path) -> None:
    made = _made(folder, tmp_path, "quantiser")
    assert made.candidate.format == "openvino"
    assert [step["use"] for step in made.passes].count("quantize") == 1
    assert any("quantize: not for onnx" in note and "SIGSEGV" in note for note in made.report["notes"])
    with pytest.raises(Crashed, match="SIGSEGV"):
        _made(folder, tmp_path, "quantiser", to="onnx")


def test_a_quantiser_that_takes_all_memory_leaves_the_other_its_build(folder: Path, tmp_path: Path) -> None:
    made = _made(folder, tmp_path, "memory")
    assert made.candidate.format == "openvino" and any("not for onnx: it needs more memory" in n for n in made.report["notes"])
    with pytest.raises(LimitExceeded, match="step_memory_bytes"):
        _made(folder, tmp_path, "memory", to="onnx")


def test_an_engine_that_the_system_ends_is_not_chosen(folder: Path, tmp_path: Path) -> None:
    made = _made(folder, tmp_path, "engine")
    assert made.candidate.engine == "onnxruntime"
    ways = {row["engine"]: row["left_out"] for row in made.report["optimization"] if row["left_out"]}
    assert "SIGKILL" in ways["openvino"] and "does not run" in ways["openvino"]
