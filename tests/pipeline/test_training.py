"""Pruning and distillation of a small ResNet: really smaller, loadable, resumable, and compared with a baseline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.artifacts.sources import ingest
from maasdam.artifacts.store import Store
from maasdam.core import Artifact, silent
from maasdam.engines import open_engine
from maasdam.errors import InvalidInput
from maasdam.pipeline.distill import make_student
from maasdam.pipeline.passes import find_pass
from maasdam.pipeline.recipe import Use
from maasdam.pipeline.run_recipe import Build, Data
from maasdam.pipeline.training import Plan, Sample, batches, forward, loss_of, train, training_samples
from tests.pipeline.networks import SIDE, write_photographs, write_resnet

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def source(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return ingest(str(write_resnet(tmp_path_factory.mktemp("model"))), store)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("train"), 30)


def _apply(store: Store, source: Artifact, use: str, train_on: Path | None, **settings: Any) -> tuple[Artifact, dict[str, Any]]:
    building = Build(store, Data(train=train_on))
    made = building.apply(Use(use, find_pass(use, "test").check(settings, "test")), source)
    return made, dict(building.steps[-1].facts)


def _logits(artifact: Artifact) -> Any:
    engine: Any = open_engine(artifact, threads=1)
    pixels = np.random.default_rng(0).random((2, 3, SIDE, SIDE), dtype=np.float32)
    try:
        return engine.run({"pixel_values": pixels})["logits"]
    finally:
        engine.close()


def test_a_distilled_student_is_smaller_and_stands_beside_itself_trained_alone(
    store: Store, source: Artifact, photographs: Path
) -> None:
    made, facts = _apply(store, source, "distill", photographs, epochs=2, batch=8)
    assert made.layout == "huggingface" and made.size_bytes < source.size_bytes
    assert facts["how"]["config"]["depths"] == [[2, 2], [1, 1]]
    assert facts["scores"].keys() == {"teacher", "student", "alone"}
    assert facts["scores"]["student"].keys() == {"loss", "top1"}
    assert _logits(made).shape == (2, 3)


def test_a_student_of_a_config_without_layers_gets_narrower() -> None:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    teacher = MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=3, image_size=32))
    student, how = make_student(teacher, 0.5, 1.0, "teacher")
    assert how["config"]["depth_multiplier"] == [1.0, 0.5]
    assert sum(p.numel() for p in student.parameters()) < 0.5 * sum(p.numel() for p in teacher.parameters())


def test_a_student_takes_evenly_spaced_layers_of_its_teacher() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2
    )
    teacher = LlamaForCausalLM(config)
    student, _ = make_student(teacher, 0.5, 1.0, "teacher")
    mine, theirs = student.model.layers, teacher.model.layers
    assert len(mine) == 2
    for few, many in ((0, 0), (1, 3)):
        assert torch.equal(mine[few].mlp.up_proj.weight, theirs[many].mlp.up_proj.weight)


def test_training_goes_on_from_the_last_epoch_when_it_was_killed(source: Artifact, photographs: Path, tmp_path: Path) -> None:
    from maasdam.engines.transformers_library import open_module

    samples, _ = training_samples(source, photographs)
    loss = loss_of(source.task, 0)
    plan, ran = Plan(3, batch=8), list[int]()

    def run(checkpoint: Path, killed_after: int | None) -> Any:
        model = open_module(source.path)
        ran.clear()

        def count() -> None:
            ran.append(1)
            if killed_after is not None and len(ran) > killed_after:
                raise KeyboardInterrupt

        def labels(logits: Any, group: list[Sample]) -> Any:
            return loss(logits, [s.truth for s in group])

        train(model, samples, labels, plan, checkpoint=checkpoint, progress=silent, stage="t", after_step=count)
        return model

    whole = run(tmp_path / "whole.pt", None)
    steps = len(ran)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.pt", steps // 3 + 1)
    resumed = run(tmp_path / "killed.pt", None)
    assert len(ran) == steps - steps // 3
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_loss_that_is_no_number_stops_training(source: Artifact, photographs: Path, tmp_path: Path) -> None:
    from maasdam.engines.transformers_library import open_module

    samples, _ = training_samples(source, photographs)
    with pytest.raises(InvalidInput, match="fine-tune diverged"):
        train(
            open_module(source.path),
            samples,
            lambda logits, group: logits.sum() * float("nan"),
            Plan(1),
            checkpoint=tmp_path / "c.pt",
            progress=silent,
            stage="fine-tune",
        )


def test_samples_of_other_lengths_are_never_padded_together() -> None:
    samples = [Sample({"x": np.zeros((1, 3 + i % 2), np.float32)}, i) for i in range(7)]
    groups = batches(samples, 2, 0)
    assert sorted(s.truth for g in groups for s in g) == list(range(7))
    assert all(len({s.inputs["x"].shape for s in g}) == 1 and len(g) <= 2 for g in groups)


def test_ctc_and_text_losses_are_those_of_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    ).eval()
    ids = [3, 4, 5, 6]
    sample = Sample({"input_ids": np.array([ids])}, ids)
    own = loss_of("text-generation", 0)(forward(model, [sample]), [ids])
    assert torch.allclose(own, model(torch.tensor([ids]), labels=torch.tensor([ids])).loss, atol=1e-5)
    logits = torch.randn(1, 12, 6)
    ctc = loss_of("automatic-speech-recognition", 5)(logits, [[1, 2]])
    wanted = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), torch.tensor([[1, 2]]), torch.tensor([12]), torch.tensor([2]), blank=5
    )
    assert torch.allclose(ctc, wanted)


def test_unlabelled_training_data_is_refused(store: Store, source: Artifact, tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "u", 4, labelled=False)
    with pytest.raises(InvalidInput, match=r"'000.png' of --train has no label"):
        _apply(store, replace(source), "distill", folder)
