"""Every tensor engine does the same with the same network: one set of cases for all of them."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.core import Signature, TensorEngine, TensorSpec
from maasdam.engines import ENGINES, engines_for, open_engine
from maasdam.errors import EngineFailure, InvalidModel, InvalidTensor, Unsupported
from tests.engines.networks import CNN, MLP, NETWORKS, PAIR, WORDS, Network, artifact

WAYS = [
    ("onnxruntime", "onnx"),
    ("openvino", "onnx"),
    ("openvino", "ir"),
    ("openvino", "savedmodel"),
    ("pytorch", "pt2"),
    ("pytorch", "torchscript"),
    ("tensorflow", "savedmodel"),
    ("tensorflow", "keras"),
]
NEEDS = {"pt2": "torch", "torchscript": "torch", "savedmodel": "tensorflow", "keras": "keras", "onnx": "onnx", "ir": "openvino"}


class Engines:
    """Opens each network once for each engine and layout."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[tuple[str, str, str], TensorEngine] = {}

    def __call__(self, way: tuple[str, str], network: Network) -> TensorEngine:
        engine, layout = way
        for library in (*ENGINES[engine].libraries, NEEDS[layout]):
            if importlib.util.find_spec(library) is None:
                pytest.skip(f"{library} is not installed")
        key = (engine, layout, network.name)
        if key not in self._open:
            folder = self._root / "-".join(key)
            folder.mkdir()
            opened = open_engine(artifact(folder, network, layout, engine), threads=1)
            assert isinstance(opened, TensorEngine)
            self._open[key] = opened
        return self._open[key]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    made = Engines(tmp_path_factory.mktemp("engines"))
    yield made
    for engine in made._open.values():
        engine.close()


every_way = pytest.mark.parametrize("way", WAYS, ids=["-".join(w) for w in WAYS])
every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())


def assert_same(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert list(got) == list(want)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5)


@every_way
@every_network
def test_it_answers_as_the_network_does_in_numpy(engines: Engines, way: tuple[str, str], network: Network) -> None:
    engine = engines(way, network)
    got = engine.run(network.inputs)
    assert_same(got, network.expected(network.inputs))


@every_way
@every_network
def test_names_order_and_dtypes_are_the_signatures(engines: Engines, way: tuple[str, str], network: Network) -> None:
    got = engines(way, network).run(network.inputs)
    assert [(name, array.dtype.name) for name, array in got.items()] == [(s.name, s.dtype) for s in network.signature.outputs]


@every_way
@every_network
def test_a_batch_of_one_is_a_row_of_a_batch_of_three(engines: Engines, way: tuple[str, str], network: Network) -> None:
    engine = engines(way, network)
    whole = engine.run(network.inputs)
    for row in range(3):
        alone = engine.run({name: array[row : row + 1] for name, array in network.inputs.items()})
        assert_same(alone, {name: array[row : row + 1] for name, array in whole.items()})


@every_way
def test_sequences_of_any_length_run(engines: Engines, way: tuple[str, str]) -> None:
    for batch, length in ((1, 1), (2, 5), (4, 19)):
        inputs = {"ids": np.arange(batch * length).reshape(batch, length) % 11}
        assert_same(engines(way, WORDS).run(inputs), WORDS.expected(inputs))


@every_way
def test_inputs_may_come_in_any_order_and_memory_layout(engines: Engines, way: tuple[str, str]) -> None:
    inputs = {"left": PAIR.inputs["left"][::-1], "right": np.asfortranarray(PAIR.inputs["right"])}
    assert_same(engines(way, PAIR).run(inputs), PAIR.expected(inputs))


@every_way
def test_read_only_inputs_run_and_stay_as_they_are(engines: Engines, way: tuple[str, str]) -> None:
    features = MLP.inputs["features"].copy()
    features.setflags(write=False)
    engines(way, MLP).run({"features": features})
    np.testing.assert_array_equal(features, MLP.inputs["features"])


@every_way
def test_outputs_are_not_overwritten_by_the_next_batch(engines: Engines, way: tuple[str, str]) -> None:
    engine = engines(way, MLP)
    first = engine.run(MLP.inputs)
    kept = first["scores"].copy()
    engine.run({"features": -MLP.inputs["features"]})
    np.testing.assert_array_equal(first["scores"], kept)


@every_way
def test_four_threads_get_their_own_answers(engines: Engines, way: tuple[str, str]) -> None:
    engine = engines(way, CNN)
    batches = [{"image": CNN.inputs["image"] * (1 + i) * 0.1} for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(engine.run, batches))
    for batch, answer in zip(batches, answers, strict=True):
        assert_same(answer, CNN.expected(batch))


WRONG: dict[str, dict[str, Any]] = {
    "missing": {"right": PAIR.inputs["right"]},
    "unknown": {**PAIR.inputs, "middle": PAIR.inputs["left"]},
    "dtype": {**PAIR.inputs, "left": PAIR.inputs["left"].astype(np.float64)},
    "rank": {**PAIR.inputs, "left": PAIR.inputs["left"][0]},
    "width": {**PAIR.inputs, "left": np.zeros((3, 4), np.float32)},
    "batches differ": {**PAIR.inputs, "left": np.zeros((2, 3), np.float32)},
    "empty": {"right": np.zeros((0, 2), np.float32), "left": np.zeros((0, 3), np.float32)},
    "NaN": {**PAIR.inputs, "left": np.full((3, 3), np.nan, np.float32)},
}


@every_way
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_input_is_invalid_and_the_next_right_one_runs(
    engines: Engines, way: tuple[str, str], wrong: dict[str, Any]
) -> None:
    engine = engines(way, PAIR)
    with pytest.raises(InvalidTensor):
        engine.run(wrong)
    assert_same(engine.run(PAIR.inputs), PAIR.expected(PAIR.inputs))


@every_way
def test_an_index_outside_the_table_harms_nobody_else(engines: Engines, way: tuple[str, str]) -> None:
    engine = engines(way, WORDS)
    with contextlib.suppress(EngineFailure):  # most refuse; what must not happen is a crash, or another kind of error
        engine.run({"ids": np.array([[10_000_000]])})
    assert_same(engine.run(WORDS.inputs), WORDS.expected(WORDS.inputs))


@every_way
def test_precisions_are_counts(engines: Engines, way: tuple[str, str]) -> None:
    found = engines(way, MLP).precisions()
    assert all(count > 0 for count in found.values())
    if way[0] in ("openvino", "onnxruntime"):
        assert sum(found.values()) == found["f32"] == 2


@every_way
def test_a_closed_engine_says_so(engines: Engines, way: tuple[str, str], tmp_path: Path) -> None:
    engines(way, MLP)  # skips where a library is missing
    engine = open_engine(artifact(tmp_path, MLP, way[1], way[0]), threads=1)
    assert isinstance(engine, TensorEngine)
    engine.close()
    engine.close()
    with pytest.raises(EngineFailure, match="closed"):
        engine.run(MLP.inputs)


@every_way
def test_without_a_signature_the_files_own_is_taken(engines: Engines, way: tuple[str, str], tmp_path: Path) -> None:
    engines(way, PAIR)
    made = replace(artifact(tmp_path, PAIR, way[1], way[0]), signature=None)
    if way[1] == "torchscript":
        with pytest.raises(InvalidModel, match="signature"):
            open_engine(made, threads=1)
        return
    engine = open_engine(made, threads=1)
    assert isinstance(engine, TensorEngine)
    assert {s.name: s.shape for s in engine.signature.inputs} == {"right": (None, 2), "left": (None, 3)}
    got = engine.run(PAIR.inputs)
    assert sorted(array.shape for array in got.values()) == [(3, 2), (3, 5)]
    engine.close()


@every_way
def test_a_signature_of_other_names_is_refused(engines: Engines, way: tuple[str, str], tmp_path: Path) -> None:
    engines(way, PAIR)
    made = artifact(tmp_path, PAIR, way[1], way[0])
    narrow = Signature(PAIR.signature.inputs, (PAIR.signature.outputs[0], TensorSpec("other", "float32", (None, 2))))
    try:
        engine = open_engine(replace(made, signature=narrow), threads=1)
    except InvalidModel as error:
        assert "other" in str(error)
        return
    assert isinstance(engine, TensorEngine)  # TorchScript names its outputs only when it runs
    with pytest.raises(InvalidModel, match="other"):
        engine.run(PAIR.inputs)


@every_way
def test_a_file_of_another_kind_is_an_invalid_model(engines: Engines, way: tuple[str, str], tmp_path: Path) -> None:
    engines(way, MLP)
    made = artifact(tmp_path, MLP, way[1], way[0])
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.suffix in (".onnx", ".xml", ".pt2", ".pt", ".pb", ".keras"):
            file.write_bytes(b"this is no model at all\n" * 40)
    with pytest.raises(InvalidModel):
        open_engine(made, threads=1)


def test_engines_refuse_layouts_and_devices_they_do_not_have(tmp_path: Path) -> None:
    made = artifact(tmp_path, MLP, "onnx", "onnxruntime")
    with pytest.raises(Unsupported, match="onnxruntime, openvino"):
        open_engine(replace(made, engine="tensorflow"))
    with pytest.raises(Unsupported, match="no engine 'caffe'"):
        open_engine(replace(made, engine="caffe"))
    with pytest.raises(Unsupported, match="'tpu'"):
        open_engine(made, device="tpu")


def test_every_layout_has_an_engine_that_opens_it() -> None:
    from typing import get_args

    from maasdam.core import Layout

    elsewhere = {"gguf", "upstream"}  # a server runs these, here or there
    assert not any(engines_for(layout) for layout in elsewhere)
    for layout in set(get_args(Layout)) - elsewhere:
        names = engines_for(layout)
        assert names
        assert all(layout in ENGINES[name].layouts for name in names)
