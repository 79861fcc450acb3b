"""Quantisation on a small convolutional network: smaller, close, in the precision it says; stdout stays clean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.core import TEXT_GENERATION, Artifact
from maasdam.engines import open_engine
from maasdam.errors import InvalidInput, Unsupported
from maasdam.pipeline.parity import cosine, flat
from maasdam.pipeline.passes import find_pass
from maasdam.pipeline.quantize import formats_of
from maasdam.pipeline.recipe import Use
from maasdam.pipeline.run_recipe import Build, Data
from tests.pipeline.networks import convolutional, write_tensors


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def source(store: Store) -> Artifact:
    return convolutional(store)


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tensors(tmp_path_factory.mktemp("data") / "x.npz")


def _quantized(store: Store, source: Artifact, tensors: Path, scheme: str, **settings: Any) -> tuple[Artifact, dict[str, Any]]:
    building = Build(store, Data(calibrate=tensors))
    use = Use("quantize", find_pass("quantize", "test").check({"scheme": scheme, **settings}, "test"))
    return building.apply(use, source), dict(building.steps[-1].facts)


def _outputs(artifact: Artifact, tensors: Path) -> Any:
    engine: Any = open_engine(artifact, threads=1)
    try:
        return flat([engine.run(dict(np.load(tensors)))]), engine.precisions()
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("scheme", "format", "smaller", "closeness", "precision"),
    [
        ("static-int8", "openvino", 2.5, 0.99, ("i8", "u8")),
        ("static-int8", "onnx", 3.0, 0.99, ("i8", "u8")),
        ("dynamic-int8", "onnx", 0.9, 0.99, ()),
        ("weights-int8", "openvino", 2.5, 0.999, ()),
        ("bf16", "openvino", 1.7, 0.999, ()),
        ("fp16", "openvino", 1.7, 0.9999, ("f32",)),
    ],
)
def test_each_scheme_keeps_what_it_promises(
    store: Store,
    source: Artifact,
    tensors: Path,
    scheme: str,
    format: str,
    smaller: float,
    closeness: float,
    precision: tuple[str, ...],
    capfd: pytest.CaptureFixture[str],
) -> None:
    made, _ = _quantized(store, source, tensors, scheme, format=format)
    assert capfd.readouterr().out == ""
    assert made.format == format and made.signature == source.signature
    assert source.size_bytes / made.size_bytes >= smaller
    wanted, _ = _outputs(source, tensors)
    got, precisions = _outputs(made, tensors)
    assert cosine(wanted, got) >= closeness and not np.array_equal(wanted, got)
    if precision:
        assert any(precisions.get(p, 0) > 0 for p in precision), precisions


def test_bf16_is_computed_in_bf16(store: Store, source: Artifact, tensors: Path) -> None:
    made, _ = _quantized(store, source, tensors, "bf16")
    assert made.settings == {"precision": "bf16"}


def test_the_facts_say_what_it_was_calibrated_on(store: Store, source: Artifact, tensors: Path) -> None:
    _, facts = _quantized(store, source, tensors, "static-int8", format="onnx")
    assert facts["calibration"]["says"] == "12 unlabelled examples of --calibrate"
    building = Build(store, Data(data=tensors))
    use = Use("quantize", find_pass("quantize", "t").check({"scheme": "static-int8", "format": "onnx", "samples": 5}, "t"))
    building.apply(use, source)
    says = building.steps[-1].facts["calibration"]["says"]
    assert "sample of the evaluation data" in says and "5 examples" in says and "--calibrate was not given" in says


def test_calibration_data_that_does_not_fit_is_refused_and_nothing_kept(store: Store, source: Artifact, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", picture=np.zeros((2, 3), np.float32))
    before = store.digests()
    with pytest.raises(InvalidInput, match="no input 'picture'"):
        _quantized(store, source, tmp_path / "other.npz", "static-int8", format="onnx")
    assert store.digests() == before


def test_text_generation_has_no_static_int8() -> None:
    with pytest.raises(Unsupported, match="use weights-int8 or weights-int4"):
        formats_of("static-int8", TEXT_GENERATION)
