"""The fastest is kept, unless it drifted or does not run; the table says all of it. Engines here are fakes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.core import Artifact, Signature, TensorSpec
from maasdam.errors import Unsupported
from maasdam.pipeline.optimize import PASS, choose
from maasdam.pipeline.passes import PassContext, Produced
from maasdam.pipeline.recipe import Use
from maasdam.pipeline.run_recipe import Build, Data
from tests.pipeline.networks import convolutional, write_tensors

SIGNATURE = Signature((TensorSpec("x", "float32", (None, 4)),), (TensorSpec("y", "float32", (None, 4)),))
SETTINGS = PASS.check({"threads": "all"}, "test")


class Fake:
    """Takes `delay` seconds and adds `drift` to what it is given."""

    signature = SIGNATURE

    def __init__(self, delay: float, drift: float) -> None:
        self.delay, self.drift, self.is_closed = delay, drift, False

    def run(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        time.sleep(self.delay)
        return {"y": batch["x"] + np.float32(self.drift) * np.array([1, -1, 1, -1], np.float32)}

    def close(self) -> None:
        self.is_closed = True


class Engines:
    """Opens a fake by the artifact's engine; one with no fake is not supported."""

    def __init__(self, **fakes: tuple[float, float]) -> None:
        self._fakes = fakes
        self.opened: list[Fake] = []

    def __call__(self, artifact: Artifact, **how: Any) -> Fake:
        if artifact.engine not in self._fakes:
            raise Unsupported(f"no {artifact.engine} here")
        self.opened.append(Fake(*self._fakes[artifact.engine]))
        return self.opened[-1]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _artifact(store: Store, engine: str, parents: tuple[str, ...] = ()) -> Artifact:
    with store.workspace() as folder:
        (folder / "out").mkdir()
        (folder / "out" / "model").write_text(engine)
        kind: Any = "openvino" if engine == "openvino" else "onnx"
        layout: Any = "ir" if engine == "openvino" else "onnx"
        return store.add(
            folder / "out", format=kind, layout=layout, task=None, engine=engine, signature=SIGNATURE, parents=parents
        )


def _context(store: Store, tmp_path: Path) -> PassContext:
    return PassContext(store, tmp_path, tmp_path)


def test_the_faster_engine_is_kept_and_all_are_closed(store: Store, tmp_path: Path) -> None:
    rivals = [_artifact(store, "openvino"), _artifact(store, "onnxruntime")]
    engines = Engines(openvino=(0.004, 0.0), onnxruntime=(0.001, 0.0))
    best, table = choose(rivals, SETTINGS, _context(store, tmp_path), engines)
    assert best.artifact.engine == "onnxruntime"
    assert [c.artifact.engine for c in table] == ["openvino", "onnxruntime"] and all(c.p50 for c in table)
    assert all(e.is_closed for e in engines.opened)


def test_a_faster_engine_that_drifted_is_left_out_with_the_reason(store: Store, tmp_path: Path) -> None:
    original = _artifact(store, "onnxruntime")
    close, far = _artifact(store, "openvino", (original.digest,)), _artifact(store, "onnxruntime far", (original.digest,))
    engines = Engines(onnxruntime=(0.0, 0.0), openvino=(0.004, 0.01), **{"onnxruntime far": (0.0, 3.0)})
    best, table = choose([close, far], SETTINGS, _context(store, tmp_path), engines)
    assert best.artifact.engine == "openvino"
    assert table[1].why_not is not None and table[1].why_not.startswith("drifts: cosine")


def test_an_engine_that_does_not_run_is_left_out_with_the_reason(store: Store, tmp_path: Path) -> None:
    rivals = [_artifact(store, "openvino"), _artifact(store, "onnxruntime")]
    best, table = choose(rivals, SETTINGS, _context(store, tmp_path), Engines(onnxruntime=(0.0, 0.0)))
    assert best.artifact.engine == "onnxruntime"
    assert table[0].to_json(False)["left_out"] == "does not run: no openvino here"


def test_no_engine_at_all_is_an_error_that_says_why(store: Store, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no engine here runs it: does not run: no openvino here"):
        choose([_artifact(store, "openvino")], SETTINGS, _context(store, tmp_path), Engines())


def test_a_real_network_is_measured_on_both_engines(store: Store, tmp_path: Path) -> None:
    source = convolutional(store)
    building = Build(store, Data(data=write_tensors(tmp_path / "x.npz")))
    rival = building.convert(source, "openvino")
    made = building.apply(Use("optimize", PASS.check({"precision": "auto", "threads": "all"}, "t")), rival, (source,))
    table = building.steps[-1].facts["table"]
    assert {(r["engine"], r["precision"]) for r in table} == {("openvino", "f32"), ("openvino", "bf16"), ("onnxruntime", None)}
    chosen = next(r for r in table if r["chosen"])
    assert made.engine == chosen["engine"] and chosen["p50_ms"] == min(r["p50_ms"] for r in table if not r["left_out"])


def test_settings_that_are_the_default_make_no_new_artifact(store: Store) -> None:
    source = convolutional(store)
    made = Build(store).apply(Use("optimize", SETTINGS), source)
    assert made.digest == source.digest


def test_what_has_no_signature_passes_through(store: Store, tmp_path: Path) -> None:
    with store.workspace() as folder:
        (folder / "out" / "nested").mkdir(parents=True)
        (folder / "out" / "nested" / "model").write_text("m")
        source = store.add(
            folder / "out", format="openvino", layout="genai", task=None, engine="openvino-genai", signature=None
        )
    (tmp_path / "out").mkdir()
    made = PASS.run(source, tmp_path / "out", SETTINGS, _context(store, tmp_path))
    assert made == Produced("openvino", "genai", "openvino-genai", None, {}, made.facts)
    assert (tmp_path / "out" / "nested" / "model").read_text() == "m"
