"""Engine settings beside threads: what they change, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.core import Artifact, Signature, TensorSpec
from maasdam.engines import open_engine
from maasdam.errors import InvalidInput, Unsupported
from tests.pipeline.networks import convolutional

IMAGES = {"image": np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)}


@pytest.fixture
def network(tmp_path: Path) -> Artifact:
    return convolutional(Store(tmp_path / "store"), channels=8)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Artifact]:
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(module, (torch.randn(2, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "model.pt2")
    signature = Signature((TensorSpec("input", "float32", (None, 4)),), (TensorSpec("linear_1", "float32", (None, 3)),))
    yield Artifact("sha256:0", tmp_path, "pytorch", "pt2", None, "pytorch", signature, 1)


def _run(artifact: Artifact, inputs: Any, **settings: Any) -> Any:
    engine: Any = open_engine(artifact, threads=1, settings=settings)
    try:
        return next(iter(engine.run(inputs).values()))
    finally:
        engine.close()


@pytest.mark.parametrize("graph", ["extended", "basic"])
def test_onnxruntime_gives_the_same_however_far_it_rewrites_the_graph(network: Artifact, graph: str) -> None:
    assert np.allclose(_run(network, IMAGES), _run(network, IMAGES, graph=graph), atol=1e-5)


@pytest.mark.parametrize("settings", [{"hint": "throughput"}, {"hint": "throughput", "streams": 2}])
def test_openvino_gives_the_same_whatever_it_tunes_for(network: Artifact, settings: dict[str, Any]) -> None:
    from dataclasses import replace

    other = replace(network, engine="openvino")
    assert np.allclose(_run(other, IMAGES), _run(other, IMAGES, **settings), atol=1e-5)


def test_torch_compile_gives_the_same(program: Artifact) -> None:
    inputs = {"input": np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)}
    plain = _run(program, inputs)
    assert plain.std() > 0 and np.allclose(plain, _run(program, inputs, compile=True), atol=1e-5)


def test_half_precision_is_answered_in_the_dtype_that_was_promised(program: Artifact) -> None:
    inputs = {"input": np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)}
    plain, half = _run(program, inputs), _run(program, inputs, precision="bf16")
    assert half.dtype == np.float32 and 0 < np.abs(plain - half).max() < 0.05


@pytest.mark.parametrize(
    ("engine", "settings", "says"),
    [
        ("onnxruntime", {"graph": "most"}, "'graph' is 'most'; it takes one of: all, extended, basic"),
        ("openvino", {"hint": "speed"}, "'hint' is 'speed'; it takes one of: latency, throughput"),
    ],
)
def test_an_unknown_word_is_refused(network: Artifact, engine: str, settings: dict[str, Any], says: str) -> None:
    from dataclasses import replace

    with pytest.raises(InvalidInput, match=says):
        open_engine(replace(network, engine=engine), settings=settings)


def test_an_unknown_precision_of_torch_is_refused(program: Artifact) -> None:
    with pytest.raises(InvalidInput, match="'precision' is 'f8'; it takes one of: f32, f16, bf16"):
        open_engine(program, settings={"precision": "f8"})


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_that_is_not_here_is_said_by_name(network: Artifact, provider: str) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has a GPU")
    with pytest.raises(Unsupported, match=r"has no \w+ExecutionProvider; install onnxruntime-gpu"):
        open_engine(network, device="cuda", settings={"provider": provider})


def test_an_artifact_made_for_a_gpu_is_opened_on_it(network: Artifact) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has a GPU")
    with pytest.raises(Unsupported, match="CUDAExecutionProvider"):
        open_engine(network, settings={"device": "cuda"})
