"""Passes combine in one recipe, and each intermediate is cached. Real passes on tiny real models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.core import Artifact
from maasdam.engines import open_engine
from maasdam.pipeline.recipe import parse_recipe
from maasdam.pipeline.run_recipe import Build, Data
from maasdam.sources import ingest
from tests.pipeline.networks import SIDE, write_photographs, write_resnet, write_vit

pytest.importorskip("torch")

ALL_THREE = """
task = "image-classification"
[[pass]]
use = "prune"
ratio = 0.3
targets = "ffn"
[[pass]]
use = "distill"
layers = 0.5
epochs = 1
batch = 8
[[pass]]
use = "quantize"
scheme = "static-int8"
samples = 6
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("data")
    return Data(
        calibrate=write_photographs(folder / "calibrate", 6, seed=1, labelled=False),
        train=write_photographs(folder / "train", 20, seed=2),
    )


def _logits(artifact: Artifact) -> Any:
    engine: Any = open_engine(artifact, threads=1)
    try:
        return engine.run({"pixel_values": np.random.default_rng(0).random((2, 3, SIDE, SIDE), dtype=np.float32)})["logits"]
    finally:
        engine.close()


def test_prune_distil_quantise_and_a_second_run_takes_all_of_it_from_the_cache(
    store: Store, data: Data, tmp_path: Path
) -> None:
    source = ingest(str(write_vit(tmp_path / "vit")), store)
    recipe = parse_recipe(ALL_THREE, "all", "all")
    first, second = Build(store, data), Build(store, data)
    made = first.run(recipe, source, "onnx")
    assert [step.use for step in first.steps] == ["prune", "distill", "convert", "quantize"]
    assert not any(step.is_cached for step in first.steps)
    assert second.run(recipe, source, "onnx").digest == made.digest
    assert all(step.is_cached for step in second.steps)
    assert [step.facts for step in second.steps] == [step.facts for step in first.steps]
    assert _logits(made).shape == (2, 3)
    prune, distill, _, quantize = (step.facts for step in first.steps)
    assert prune["shrank"]["parameters"]["after"] == distill["parameters"]["before"]
    assert distill["how"]["config"]["num_hidden_layers"] == [2, 1] and quantize["calibration"]["samples"] == 6
    digests = [source.digest, *(step.digest for step in first.steps)]
    assert [store.get(d).parents[0] for d in digests[1:]] == digests[:-1]

    changed = Build(store, data)
    changed.run(parse_recipe(ALL_THREE.replace("samples = 6", "samples = 5"), "all", "all"), source, "onnx")
    assert [step.is_cached for step in changed.steps] == [True, True, True, False]


def test_a_pruned_network_recovers_from_its_unpruned_self_and_is_clipped_and_quantised(
    store: Store, data: Data, tmp_path: Path
) -> None:
    source = ingest(str(write_resnet(tmp_path / "resnet")), store)
    text = "[[pass]]\nuse='prune'\nratio=0.4\nfinetune_epochs=1\nrecover='distill'\nbatch=8\n[[pass]]\nuse='clip'\n"
    text += "[[pass]]\nuse='quantize'\nscheme='static-int8'\nformat='openvino'\nsamples=6\n"
    building = Build(store, data)
    made = building.run(parse_recipe(text, "r", "r"), source, None)
    assert [step.use for step in building.steps] == ["prune", "clip", "convert", "quantize"]
    assert made.format == "openvino" and _logits(made).shape == (2, 3)


def test_a_program_teaches_a_given_student(store: Store, data: Data, tmp_path: Path) -> None:
    source = ingest(str(write_resnet(tmp_path / "resnet")), store)
    student = write_vit(tmp_path / "student")
    text = "[[pass]]\nuse='convert'\nto='pytorch'\n"
    text += f"[[pass]]\nuse='distill'\nstudent='{student}'\nepochs=1\nbatch=8\n"
    building = Build(store, data)
    made = building.run(parse_recipe(text, "r", "r"), source, None)
    assert building.steps[-1].facts["how"]["given"] == "student"
    assert made.layout == "huggingface" and _logits(made).shape == (2, 3)
