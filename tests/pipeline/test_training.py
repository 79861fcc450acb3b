"""Distillation for the three tasks: really smaller, resumable, and beside the same student trained alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.core import Artifact, silent
from maasdam.engines import open_engine
from maasdam.errors import InvalidInput, Unsupported
from maasdam.pipeline.distill import make_student
from maasdam.pipeline.passes import find_pass
from maasdam.pipeline.recipe import Use
from maasdam.pipeline.run_recipe import Build, Data
from maasdam.pipeline.training import (
    Plan,
    Sample,
    batches,
    distilling_loss,
    forward,
    labels_loss,
    logits_of,
    loss_of,
    mean_loss,
    train,
    training_samples,
)
from maasdam.sources import ingest
from tests.engines import tiny_language_model
from tests.pipeline.networks import COLOURS, SIDE, write_photographs, write_resnet
from tests.tasks.test_speech import WORDS, encoded, tone, word_model

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
    assert facts["scores"]["student"].keys() == {"divergence", "loss", "top1"}
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


FILL = """
import resource, sys
from pathlib import Path
import torch
from maasdam.pipeline.training import _keep
model = torch.nn.Linear(200, 200)
_keep(Path(sys.argv[1]), {"model": torch.nn.Linear(2, 2)}, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    _keep(Path(sys.argv[1]), {"model": model}, 2)
except OSError as error:
    print(error.strerror)
"""


def test_a_disk_too_full_for_a_checkpoint_is_an_error_and_leaves_the_last_one(tmp_path: Path) -> None:
    """torch's own writer ends the process there."""
    state = tmp_path / "state.pt"
    done = subprocess.run([sys.executable, "-c", FILL, str(state)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "File too large\n"), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    assert torch.load(state, weights_only=True)["step"] == 1


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
    with pytest.raises(InvalidInput, match=r"example '.*' of --train has no label, nor has any; label some, or set alpha = 0"):
        _apply(store, replace(source), "distill", folder)


@pytest.fixture(scope="module")
def speech(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An untrained recogniser of three words, two layers deep."""
    from transformers import Wav2Vec2BertConfig, Wav2Vec2BertForCTC

    folder = tmp_path_factory.mktemp("speech")
    word_model(folder)
    torch.manual_seed(0)
    config = Wav2Vec2BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        output_hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        feature_projection_input_dim=160,
        conv_depthwise_kernel_size=7,
        pad_token_id=0,
        apply_spec_augment=False,
    )
    Wav2Vec2BertForCTC(config).save_pretrained(folder)
    return ingest(str(folder), store)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six tones, each of which is said to be a word."""
    folder = tmp_path_factory.mktemp("recordings")
    said = ["one", "two", "three"] * 2
    for number in range(len(said)):
        (folder / f"{number}.wav").write_bytes(encoded(tone(0.5, hertz=300.0 * (1 + number % 3))))
    rows = "\n".join(f"{n}.wav,{word}" for n, word in enumerate(said))
    (folder / "metadata.csv").write_text(f"file_name,transcription\n{rows}\n")
    return folder


def test_a_speech_student_learns_from_its_teacher(store: Store, speech: Artifact, recordings: Path) -> None:
    made, facts = _apply(store, speech, "distill", recordings, epochs=1, batch=2)
    assert facts["how"]["config"]["num_hidden_layers"] == [2, 1]
    assert facts["scores"].keys() == {"teacher", "student", "alone"}
    assert facts["scores"]["alone"].keys() == {"divergence", "loss", "wer"}
    assert facts["scores"]["teacher"]["divergence"] == pytest.approx(0.0, abs=1e-6)
    assert made.size_bytes < speech.size_bytes


def test_a_text_student_of_half_the_width_stands_beside_itself_alone(store: Store, tmp_path: Path) -> None:
    tiny_language_model.huggingface(tmp_path / "llama")
    source = ingest(str(tmp_path / "llama"), store, task="text-generation")
    (tmp_path / "train.txt").write_text("the cat sat on the mat and the dog sat on the log\n" * 40)
    made, facts = _apply(store, source, "distill", tmp_path / "train.txt", layers=1.0, width=0.5, epochs=1, batch=2)
    assert facts["how"]["config"]["hidden_size"] == [32, 16]
    assert facts["parameters"]["after"] < 0.6 * facts["parameters"]["before"]
    assert facts["scores"]["student"].keys() == facts["scores"]["alone"].keys() == {"divergence", "loss"}
    assert made.layout == "huggingface" and (made.path / "tokenizer.json").is_file()


def test_without_labels_the_student_learns_from_the_teacher_alone(store: Store, source: Artifact, tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "u", 20, labelled=False)
    _, facts = _apply(store, source, "distill", folder, epochs=4, batch=4, alpha=0.0, start="random")
    assert facts["labelled"] == 0 and "nothing in --train has a label" in facts["alone"]
    assert facts["scores"].keys() == {"teacher", "student"}
    again, started = make_student_scores(source, folder)
    assert facts["scores"]["student"]["divergence"] < started
    assert again == facts["how"]["config"]


def make_student_scores(source: Artifact, folder: Path) -> tuple[Any, float]:
    """The config of the untrained student of half the layers, and how far it is from its teacher on the samples held back."""
    from maasdam.engines.transformers_library import open_module

    teacher = open_module(source.path).requires_grad_(False)
    student, how = make_student(teacher, 0.5, 1.0, "random")
    _, held = training_samples(source, folder, needs_labels=False)
    return how["config"], mean_loss(student, held, distilling_loss(teacher, loss_of(source.task, 0), 1.0, 0.0))


def test_a_few_labels_are_mixed_with_many_pictures_that_have_none(store: Store, source: Artifact, tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "some", 20)
    lines = (folder / "metadata.csv").read_text().splitlines()
    kept = [line if number < 12 else f"{line.partition(',')[0]}," for number, line in enumerate(lines)]
    (folder / "metadata.csv").write_text("\n".join(kept) + "\n")
    _, facts = _apply(store, source, "distill", folder, epochs=1, batch=4)
    assert 0 < facts["labelled"] < facts["samples"] == 18
    assert facts["scores"].keys() == {"teacher", "student", "alone"}


def test_the_student_may_be_given_or_be_a_config(store: Store, source: Artifact, photographs: Path, tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    config.architectures = ["ResNetForImageClassification"]
    config.save_pretrained(tmp_path / "config")
    made, facts = _apply(store, source, "distill", photographs, student=str(tmp_path / "config"), epochs=1)
    assert facts["how"]["config_of"] == "config" and _logits(made).shape == (2, 3)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "given")
    made, facts = _apply(store, source, "distill", photographs, student=str(tmp_path / "given"), epochs=1)
    assert facts["how"] == {"given": "given", "start": "its own weights"} and made.size_bytes < source.size_bytes


def _labelled(folder: Path) -> Path:
    """What the processor of pictures needs beside a network of any framework."""
    labels = {str(number): name for number, name in enumerate(COLOURS)}
    (folder / "config.json").write_text(json.dumps({"id2label": labels}))
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}, "do_normalize": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def _keras_classifier(folder: Path) -> Path:
    """Probabilities of the colours, pictures with their channels last."""
    import keras

    keras.utils.set_random_seed(0)
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = keras.layers.Conv2D(8, 3, activation="relu")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(image, keras.layers.Dense(3, activation="softmax", name="chances")(x)).save(folder / "model.keras")
    return _labelled(folder)


@pytest.mark.parametrize("framework", ["onnx", "tensorflow"])
def test_a_network_of_another_framework_teaches_a_student_of_transformers(
    store: Store, source: Artifact, photographs: Path, tmp_path: Path, framework: str
) -> None:
    """Its input may have another name and order of axes, and its answers may be probabilities."""
    from transformers import ResNetConfig

    if framework == "onnx":
        teacher = Build(store).convert(source, "onnx")
    else:
        teacher = ingest(str(_keras_classifier(tmp_path)), store, task="image-classification")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    config.architectures = ["ResNetForImageClassification"]
    config.save_pretrained(tmp_path / "config")
    student = str(tmp_path / "config")
    made, facts = _apply(store, teacher, "distill", photographs, student=student, epochs=12, batch=4, alpha=0.0, rate=1e-2)
    untrained = _untrained_divergence(store, teacher, photographs, student)
    assert facts["scores"]["teacher"] == {**facts["scores"]["teacher"], "divergence": pytest.approx(0.0, abs=1e-6)}
    assert facts["scores"].keys() == {"teacher", "student", "alone"} and "top1" in facts["scores"]["student"]
    assert facts["scores"]["student"]["divergence"] < 0.5 * untrained
    assert made.format == "pytorch" and made.layout == "huggingface" and _logits(made).shape == (2, 3)
    assert json.loads((made.path / "config.json").read_text())["id2label"]["0"] == next(iter(COLOURS))


def _untrained_divergence(store: Store, teacher: Artifact, photographs: Path, student: str) -> float:
    """How far from its teacher the student is after one step at next to no learning rate."""
    settings = {"student": student, "epochs": 1, "batch": 1024, "rate": 1e-7}
    _, facts = _apply(store, teacher, "distill", photographs, **settings)
    return float(facts["scores"]["student"]["divergence"])


def test_programs_without_a_student_are_pointed_to_what_can_be_done(store: Store, source: Artifact, photographs: Path) -> None:
    teacher = Build(store).convert(source, "onnx")
    with pytest.raises(Unsupported, match="name the student's folder with 'student', or cut the model itself with 'prune'"):
        _apply(store, teacher, "distill", photographs, epochs=1)


def test_probabilities_train_as_their_logarithms() -> None:
    chances = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    assert torch.allclose(logits_of({"scores": chances}).softmax(-1), chances, atol=1e-6)
    scores = torch.tensor([[0.2, -0.3, 1.1]])
    assert torch.equal(logits_of({"scores": scores}), scores)
    with pytest.raises(Unsupported, match="one called 'logits'; the model answers a, b"):
        logits_of({"a": scores, "b": scores})


def test_another_student_in_the_same_folder_is_another_result(
    store: Store, source: Artifact, photographs: Path, tmp_path: Path
) -> None:
    from transformers import ResNetConfig

    digests = []
    for width in (8, 16):
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, width], depths=[1, 1], layer_type="basic", num_labels=3)
        config.architectures = ["ResNetForImageClassification"]
        config.save_pretrained(tmp_path / "config")
        digests.append(_apply(store, source, "distill", photographs, student=str(tmp_path / "config"), epochs=1)[0].digest)
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("classes", "says"),
    [(5, r"the student answers with \[1, 5\] numbers where the model does with \[1, 3\]"), (None, "no Hugging Face folder")],
)
def test_a_student_that_does_not_fit_is_refused(
    store: Store, source: Artifact, photographs: Path, tmp_path: Path, classes: int | None, says: str
) -> None:
    from transformers import ResNetConfig

    if classes is not None:
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=classes)
        config.architectures = ["ResNetForImageClassification"]
        config.save_pretrained(tmp_path / "config")
    with pytest.raises((InvalidInput, Unsupported), match=says):
        _apply(store, source, "distill", photographs, student=str(tmp_path / "config"), epochs=1)


def test_a_kill_within_a_long_epoch_loses_no_more_than_the_steps_since_the_last_state(
    source: Artifact, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maasdam.engines.transformers_library import open_module
    from maasdam.pipeline import training

    monkeypatch.setattr(training, "KEPT_STEPS", 2)
    samples, _ = training_samples(source, photographs)
    loss = labels_loss(loss_of(source.task, 0))
    steps: list[int] = []

    def run(checkpoint: Path, killed_at: int | None) -> Any:
        model = open_module(source.path)

        def tell(stage: str, done: int = 0, total: int | None = None) -> None:
            steps.append(done)
            if done == killed_at:
                raise KeyboardInterrupt

        train(model, samples, loss, Plan(1, batch=4), checkpoint=checkpoint, progress=tell, stage="t")
        return model

    whole = run(tmp_path / "whole.pt", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.pt", 5)
    steps.clear()
    resumed = run(tmp_path / "killed.pt", None)
    assert steps[0] == 4
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
