"""The fastest is kept, unless it drifted or does not run; the table says all of it. Engines here are fakes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.artifacts.produced import Produced
from maasdam.artifacts.store import Store
from maasdam.core import Artifact, Signature, TensorSpec
from maasdam.engines import open_engine
from maasdam.errors import Unsupported
from maasdam.pipeline.fuse import fuse
from maasdam.pipeline.optimize import PASS, _check_drift, _inputs, choose
from maasdam.pipeline.passes import PassContext
from maasdam.pipeline.recipe import Recipe, Use
from maasdam.pipeline.run_recipe import Build, Data
from maasdam.pipeline.ways import Candidate, ways
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


class Changed:
    """An engine whose outputs are changed on their way out."""

    def __init__(self, engine: Any, change: Any) -> None:
        self.signature, self._engine, self._change = engine.signature, engine, change

    def run(self, batch: Mapping[str, Any]) -> Any:
        return self._change(self._engine.run(batch))

    def close(self) -> None:
        self._engine.close()


def normalised(store: Store, has_residual: bool = True) -> Artifact:
    """One block of a transformer: a matrix product, added to its input, normalised. ONNX, [batch, sequence, 8]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)
    stored = {"w": random.normal(size=(8, 8)), "scale": random.normal(size=8), "bias": random.normal(size=8)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "x"], ["b"]),
        helper.make_node("LayerNormalization", ["b" if has_residual else "a", "scale", "bias"], ["y"], epsilon=1e-5),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "sequence", 8]) for n in "xy")
    weights = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in stored.items()]
    graph = helper.make_graph(nodes if has_residual else [nodes[0], nodes[2]], "block", [x], [y], weights)
    signature = Signature((TensorSpec("x", "float32", (None, None, 8)),), (TensorSpec("y", "float32", (None, None, 8)),))
    with store.workspace() as folder:
        out = folder / "out"
        out.mkdir()
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), out / "model.onnx")
        (out / "config.json").write_text('{"model_type": "bert"}')
        return store.add(out, format="onnx", layout="onnx", task=None, engine="onnxruntime", signature=signature)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fewest rounds: these tests are not about speed."""
    monkeypatch.setattr("maasdam.pipeline.optimize.SHARE", 0.0)


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
    assert [c.artifact.engine for c in table] == ["openvino", "onnxruntime", "onnxruntime"] and all(c.p50 for c in table)
    assert best.is_plain and table[2].options == {"graph": "extended"}
    assert all(e.is_closed for e in engines.opened)


def test_a_faster_engine_that_drifted_is_left_out_with_the_reason(store: Store, tmp_path: Path) -> None:
    original = _artifact(store, "onnxruntime")
    close, far = _artifact(store, "openvino", (original.digest,)), _artifact(store, "onnxruntime far", (original.digest,))
    engines = Engines(onnxruntime=(0.0, 0.0), openvino=(0.004, 0.01), **{"onnxruntime far": (0.0, 3.0)})
    context = replace(_context(store, tmp_path), original=original)
    best, table = choose([close, far], SETTINGS, context, engines)
    assert best.artifact.engine == "openvino"
    assert table[1].why_not is not None and table[1].why_not.startswith("drifts: it loses")


def test_a_fused_graph_that_is_another_network_is_nobody_s_measure(store: Store, tmp_path: Path) -> None:
    """It may lie nearer to the original than all that are the network they were made of."""
    original = _artifact(store, "onnxruntime")
    made = _artifact(store, "openvino", (original.digest,))
    context = replace(_context(store, tmp_path), original=original)
    inputs = {made.digest: _inputs(made, context)}
    plain = Candidate(made, 0, "f32", engine=Fake(0.0, 0.1))
    fused = Candidate(made, 0, "f32", fused={"Gelu": 1}, engine=Fake(0.0, 0.0))
    _check_drift([plain, fused], SETTINGS, inputs, context, Engines(onnxruntime=(0.0, 0.0)))
    assert fused.why_not is not None and fused.why_not.startswith("fused into another network") and plain.why_not is None
    alone = Candidate(made, 0, "f32", fused={"Gelu": 1}, engine=Fake(0.0, 0.0))
    _check_drift([alone], SETTINGS, inputs, context, Engines(onnxruntime=(0.0, 0.0)))
    assert alone.why_not is not None and "does not run" in alone.why_not


def test_a_faster_engine_that_verify_would_fail_is_left_out_where_another_would_pass(store: Store, tmp_path: Path) -> None:
    original = _artifact(store, "onnxruntime")
    close, far = _artifact(store, "openvino", (original.digest,)), _artifact(store, "onnxruntime far", (original.digest,))
    engines = Engines(onnxruntime=(0.0, 0.0), openvino=(0.004, 0.35), **{"onnxruntime far": (0.0, 0.55)})
    context = replace(_context(store, tmp_path), original=original, is_quantized=True)
    best, table = choose([close, far], SETTINGS, context, engines)
    assert best.artifact.engine == "openvino" and table[0].lost is not None and table[1].lost is not None
    assert table[0].lost < 0.2 < table[1].lost < 3 * table[0].lost


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
    plain = [r["p50_ms"] for r in table if not r["left_out"] and not r["options"]]
    assert made.engine == chosen["engine"] and (chosen["options"] or chosen["p50_ms"] == min(plain))


def test_for_throughput_streams_are_measured_and_the_table_says_items_a_second(store: Store, tmp_path: Path) -> None:
    source = convolutional(store)
    building = Build(store, Data(data=write_tensors(tmp_path / "x.npz")), threads=2)
    made = building.run(Recipe("t", None, (Use("optimize", PASS.check({"goal": "throughput"}, "t")),)), source, None)
    table = building.steps[-1].facts["table"]
    assert all(r["items_per_second"] > 0 for r in table if not r["left_out"])
    assert {"streams": 2, "hint": "throughput"} in [r["options"] for r in table]
    assert {r["threads"] for r in table} >= {1}
    chosen = next(r for r in table if r["chosen"])
    assert made.settings.get("streams", 1) == chosen["options"].get("streams", 1)
    assert chosen["items_per_second"] >= 0.9 * max(r["items_per_second"] for r in table if not r["left_out"])


def test_a_transformer_s_operators_are_fused_and_the_file_gives_the_same(store: Store, tmp_path: Path) -> None:
    source = normalised(store)
    made = fuse(source, tmp_path / "fused")
    assert made is not None and made.artifact is not None and made.operators["SkipLayerNormalization"] == 1
    x = {"x": np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)}
    engines: list[Any] = [open_engine(a, threads=1) for a in (source, made.artifact)]
    plain, fused = (engine.run(x)["y"] for engine in engines)
    assert plain.std() > 0.1 and np.abs(plain - fused).max() < 1e-5
    assert (tmp_path / "fused" / "config.json").is_file()
    _, table = choose([source], PASS.check({}, "t"), _context(store, tmp_path), open_engine)
    row = next(c.to_json(False) for c in table if c.fused)
    assert row["left_out"] is None and row["cosine"] > 0.9999 and row["p50_ms"] > 0


def test_a_graph_with_nothing_to_fuse_or_of_no_transformer_is_said_or_passed_over(store: Store, tmp_path: Path) -> None:
    assert fuse(convolutional(store), tmp_path / "a") is None
    found = fuse(normalised(store, has_residual=False), tmp_path / "b")
    assert found is not None and found.artifact is None and "found none of its patterns" in str(found.why_not)


def test_a_fused_graph_that_is_another_network_is_left_out(store: Store, tmp_path: Path) -> None:
    source = normalised(store)

    def tampered(artifact: Artifact, **how: Any) -> Any:
        engine: Any = open_engine(artifact, **how)
        if artifact.path.name != "fused":
            return engine
        return Changed(engine, lambda out: {"y": out["y"] * np.float32(-1)})

    _, table = choose([source], PASS.check({}, "t"), _context(store, tmp_path), tampered)
    row = next(c for c in table if c.fused)
    assert row.why_not is not None and "fused into another network" in row.why_not


def test_cuda_ways_are_tried_and_each_says_what_is_missing(store: Store, tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has a GPU")
    context = PassContext(store, tmp_path, tmp_path, device="cuda")
    with pytest.raises(Unsupported, match=r"no CUDAExecutionProvider.*no TensorrtExecutionProvider"):
        choose([normalised(store)], PASS.check({"precision": "auto"}, "t"), context, open_engine)


def test_on_cuda_torch_is_tried_as_it_is_and_compiled_in_both_precisions(store: Store, tmp_path: Path) -> None:
    program = replace(normalised(store), engine="pytorch", format="pytorch", layout="pt2")
    found = ways([program], PASS.check({"precision": "auto"}, "t"), "cuda", 1, tmp_path)
    assert [(c.precision, c.options.get("compile", False)) for c in found] == [
        ("f32", False),
        ("f32", True),
        ("f16", False),
        ("f16", True),
    ]
    assert all(c.settings["device"] == "cuda" for c in found)


def test_settings_that_are_the_default_make_no_new_artifact(store: Store) -> None:
    source = convolutional(store)
    made = Build(store).apply(Use("optimize", SETTINGS), source)
    assert made.digest == source.digest or made.settings == {"graph": "extended"}


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
