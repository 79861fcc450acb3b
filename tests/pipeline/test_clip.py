"""Clipping: a few large weights that do nothing no longer cost the others their precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.core import Artifact
from maasdam.engines import open_engine
from maasdam.errors import Unsupported
from maasdam.pipeline.clip import clip_by_error, clip_by_percentile, rounded
from maasdam.pipeline.parity import cosine, flat
from maasdam.pipeline.passes import find_pass
from maasdam.pipeline.recipe import Use
from maasdam.pipeline.run_recipe import Build, Data
from maasdam.sources import ingest
from tests.pipeline.networks import SIDE, convolutional, write_resnet, write_tensors


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tensors(tmp_path_factory.mktemp("data") / "x.npz")


def _apply(
    store: Store, source: Artifact, use: str, data: Path | None = None, **settings: Any
) -> tuple[Artifact, dict[str, Any]]:
    building = Build(store, Data(calibrate=data))
    made = building.apply(Use(use, find_pass(use, "test").check(settings, "test")), source)
    return made, dict(building.steps[-1].facts)


def _outputs(artifact: Artifact, tensors: Path) -> Any:
    engine: Any = open_engine(artifact, threads=1)
    try:
        return flat([engine.run(dict(np.load(tensors)))])
    finally:
        engine.close()


def _with_dead_channel(store: Store) -> Artifact:
    """A network whose first feature is always zero, and whose second layer reads it with enormous weights."""
    import onnx
    from onnx import numpy_helper

    source = convolutional(store)
    model = onnx.load(source.path / "model.onnx")
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor).copy()
        if tensor.name == "first":
            weights[0] = 0
        elif tensor.name == "second":
            weights[:, 0] = 20 * np.abs(weights).max()
        tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    with store.workspace() as folder:
        (folder / "out").mkdir()
        onnx.save(model, folder / "out" / "model.onnx")
        return store.add(
            folder / "out", format="onnx", layout="onnx", task=None, engine="onnxruntime", signature=source.signature
        )


@pytest.mark.parametrize("bits", [8, 4])
def test_the_range_of_least_error_is_never_worse_than_the_whole_range(bits: int) -> None:
    random = np.random.default_rng(0)
    weights = random.standard_t(3, (32, 400)).astype(np.float32)
    clipped = clip_by_error(bits)(weights)
    errors = [np.square(weights - rounded(w, bits)).sum(1) for w in (weights, clipped)]
    assert (errors[1] <= errors[0] * 1.0001).all()
    assert bits == 8 or errors[1].sum() < 0.8 * errors[0].sum()


def test_a_percentile_clips_each_output_by_itself() -> None:
    weights = np.stack([np.arange(1, 101), 10 * np.arange(1, 101)]).astype(np.float32)
    clipped = clip_by_percentile(90)(weights)
    assert np.allclose(np.abs(clipped).max(1), [90.1, 901.0], rtol=1e-4)
    assert np.array_equal(clipped[:, :90], weights[:, :90])


def test_int8_after_clipping_is_closer_where_large_weights_do_nothing(store: Store, tensors: Path) -> None:
    source = _with_dead_channel(store)
    clipped, facts = _apply(store, source, "clip", method="percentile", percentile=98.0)
    assert clipped.signature == source.signature and 0 < facts["clipped"] < 0.1 * facts["weights"]
    wanted = _outputs(source, tensors)
    assert cosine(wanted, _outputs(clipped, tensors)) > 0.99
    how = {"data": tensors, "scheme": "static-int8", "format": "onnx"}
    plain, _ = _apply(store, source, "quantize", **how)
    better, _ = _apply(store, clipped, "quantize", **how)
    errors = [1 - cosine(wanted, _outputs(made, tensors)) for made in (plain, better)]
    assert errors[1] < 0.5 * errors[0], errors


@pytest.mark.parametrize("layout", ["huggingface", "pt2"])
def test_pytorch_keeps_its_layout_and_the_facts_say_what_it_brings(store: Store, tmp_path: Path, layout: str) -> None:
    source = ingest(str(write_resnet(tmp_path / "resnet")), store)
    if layout == "pt2":
        source, _ = _apply(store, source, "convert", to="pytorch")
    made, facts = _apply(store, source, "clip", bits=4)
    assert (made.layout, made.signature) == (layout, source.signature)
    error = facts["quantization_error"]
    assert error["bits"] == 4 and 0 < error["with"] < error["without"]
    engines: list[Any] = [open_engine(a, threads=1) for a in (source, made)]
    pixels = np.random.default_rng(0).random((2, 3, SIDE, SIDE), dtype=np.float32)
    wanted, got = (e.run({"pixel_values": pixels})["logits"] for e in engines)
    for engine in engines:
        engine.close()
    assert not np.array_equal(wanted, got) and cosine(wanted.ravel(), got.ravel()) > 0.8


def test_openvino_is_refused_with_the_way_out(store: Store) -> None:
    made, _ = _apply(store, convolutional(store), "convert", to="openvino")
    with pytest.raises(Unsupported, match="this one is openvino: clip it before"):
        _apply(store, made, "clip")
