"""Classes of sound: from a Hugging Face folder to answers over HTTP, with the numbers that transformers has."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tests.served import Process, add_starters, open_home, serving

from maasdam.cli import main
from maasdam.core import AudioPayload, Classification, Signature, TensorSpec
from maasdam.errors import InvalidInput, InvalidModel
from maasdam.tasks import load_examples, open_processor, task_of
from maasdam.tasks.hearing import WINDOW_SECONDS
from maasdam.tasks.spectrograms import Spectrograms

TASK = "audio-classification"
SYNTHESISERS = {0: "espeak-ng", 1: "flite"}
PATH = "/v1/audio/classifications"


def samples(starters: Path) -> list[tuple[Path, str]]:
    """Recordings that ship with the project, and which program speaks in each."""
    folder = starters / "speech" / "samples"
    with (folder / "metadata.csv").open() as file:
        return [(folder / row["file_name"], row["synthesiser"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def model(starters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Audio Spectrogram Transformer that was taught, on two recordings in three, which program speaks."""
    import torch
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ast")
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=96)
    config = transformers.ASTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_length=96, num_mel_bins=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, id2label=SYNTHESISERS,
    )  # fmt: skip
    module: Any = transformers.ASTForAudioClassification(config)
    taught = [pair for i, pair in enumerate(samples(starters)) if i % 3]
    waves = [soundfile.read(path, dtype="float32")[0] for path, _ in taught]
    features = extractor(waves, sampling_rate=16000, return_tensors="pt")["input_values"]
    truths = torch.tensor([name == "flite" for _, name in taught]).long()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(features).logits, truths).backward()
        optimizer.step()
    module.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(starters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recordings it was not taught on, as a folder of examples."""
    folder = tmp_path_factory.mktemp("data")
    with (folder / "metadata.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file_name", "label"))
        for path, name in samples(starters)[::3]:
            shutil.copy(path, folder)
            rows.writerow((path.name, name))
    return folder


def run(words: list[str]) -> Any:
    """The exit code of a command in this process."""
    with pytest.raises(SystemExit) as done:
        main(words)
    return done.value.code


@pytest.fixture(scope="module")
def served(model: Path, data: Path, starters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The model built, verified and served beside one that writes down speech."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAASDAM_HOME", str(home))
        words = ["build", str(model), "--name", "voices", "--recipe", "fp32", "--to", "onnx", "--data", str(data)]
        assert run([*words, "--json"]) == 0
    workspace = open_home(home)
    add_starters(workspace, starters)
    workspace.catalog.deploy("voices")
    _, key = workspace.keys.create("test", ["infer"])
    workspace.close()
    with serving(home, key) as running:
        yield running


def test_it_is_verified_by_its_metric_and_answers_as_transformers_does(served: Process, model: Path, data: Path) -> None:
    import transformers

    workspace = open_home(served.log.parent)
    version = workspace.catalog.resolve("voices")
    workspace.close()
    assert (version.task, version.engine) == (TASK, "onnxruntime") and version.report is not None
    accuracy = version.report["accuracy"]
    assert accuracy["metric"] == "top1" and accuracy["examples"] == 20
    assert accuracy["candidate"] == accuracy["reference"] >= 0.9
    module: Any = transformers.ASTForAudioClassification.from_pretrained(model)
    extractor = transformers.ASTFeatureExtractor.from_pretrained(model)
    heard = set()
    with served.client() as client:
        for path in sorted(data.glob("*.wav")):
            wave, _ = soundfile.read(path, dtype="float32")
            wanted = module(**extractor(wave, sampling_rate=16000, return_tensors="pt")).logits[0].softmax(-1).tolist()
            answer = client.post(PATH, files={"file": path.read_bytes()}, data={"model": "voices"}).json()
            got = answer["data"]
            assert got[0]["score"] >= got[1]["score"] and answer["usage"]["seconds"] == pytest.approx(len(wave) / 16000)
            assert {x["label"]: x["label_id"] for x in got} == {name: i for i, name in SYNTHESISERS.items()}
            np.testing.assert_allclose([x["score"] for x in sorted(got, key=lambda x: x["label_id"])], wanted, atol=1e-4)
            heard.add(got[0]["label"])
    assert heard == set(SYNTHESISERS.values())


def test_each_protocol_gives_the_same_answer(served: Process, data: Path) -> None:
    path = min(data.glob("*.wav"))
    sound = base64.b64encode(path.read_bytes()).decode()
    with served.client() as client:
        (form,) = client.post(PATH, files={"file": path.read_bytes()}, data={"model": "voices", "top_k": 1}).json()["data"]
        inline = {"model": "voices", "audio": f"data:audio/wav;base64,{sound}", "top_k": 1}
        assert client.post(PATH, json=inline).json()["data"] == [form]
        told = client.get("/v2/models/voices").json()
        assert told["parameters"]["also_takes"] == "BYTES audio -> label, score"
        asked = {"name": "audio", "datatype": "BYTES", "shape": [2], "data": [sound, sound]}
        label, score = client.post("/v2/models/voices/infer", json={"inputs": [asked]}).json()["outputs"]
        assert (label["name"], label["data"]) == ("label", [form["label"]] * 2)
        assert (score["datatype"], score["data"]) == ("FP32", pytest.approx([form["score"]] * 2))
        wanted = [{"name": "score"}]
        (only,) = client.post("/v2/models/voices/infer", json={"inputs": [asked], "outputs": wanted}).json()["outputs"]
        assert only == score
        extractor = Spectrograms(json.loads(_settings(served)))
        features = extractor(soundfile.read(path, dtype="float32")[0], sampling_rate=16000, return_tensors="np")["input_values"]
        raw = {"name": "input_values", "datatype": "FP32", "shape": list(features.shape), "data": features.ravel().tolist()}
        (logits,) = client.post("/v2/models/voices/infer", json={"inputs": [raw]}).json()["outputs"]
        chances = np.exp(logits["data"]) / np.exp(logits["data"]).sum()
        assert chances.max() == pytest.approx(form["score"], abs=1e-5)


def _settings(served: Process) -> str:
    workspace = open_home(served.log.parent)
    folder = workspace.store.get(workspace.catalog.resolve("voices").digest).path
    workspace.close()
    return (folder / "preprocessor_config.json").read_text()


def test_two_tasks_take_recordings_and_each_door_serves_its_own(served: Process, data: Path) -> None:
    sound = {"file": min(data.glob("*.wav")).read_bytes()}
    with served.client() as client:
        refused = client.post("/v1/audio/transcriptions", files=sound, data={"model": "voices"})
        assert refused.status_code == 400
        assert refused.json()["error"]["message"] == (
            "this model does audio-classification, not automatic-speech-recognition; use POST /v1/audio/classifications"
        )
        refused = client.post(PATH, files=sound, data={"model": "speech"})
        assert refused.status_code == 400 and refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["detail"].endswith("use POST /v1/audio/transcriptions")
        asked = {"name": "audio", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(sound["file"]).decode()]}
        assert "transcript" in client.post("/v2/models/speech/infer", json={"inputs": [asked]}).text
        broken = client.post(PATH, files={"file": b"no sound"}, data={"model": "voices"})
        assert broken.status_code == 400 and "no recording" in broken.json()["error"]["message"]
        assert client.post(PATH, json={"model": "voices", "image": "QUI="}).json()["error"]["param"] == "image"


def test_run_shows_labels(
    served: Process, data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAASDAM_HOME", str(served.log.parent))
    assert run(["run", "voices", str(min(data.glob("*.wav"))), "--top-k", "1", "--json"]) == 0
    (answer,) = json.loads(capfd.readouterr().out)["answers"]
    assert [x["label"] for x in answer["labels"]] in (["espeak-ng"], ["flite"])


@pytest.mark.parametrize("settings", [{"num_mel_bins": 32, "max_length": 96}, {"do_normalize": False, "max_length": 40}, {}])
@pytest.mark.filterwarnings("ignore:At least one mel filter")  # transformers says it of its own settings
def test_spectrograms_without_torch_are_those_of_transformers(settings: dict[str, Any]) -> None:
    import transformers

    theirs, ours = transformers.ASTFeatureExtractor(**settings), Spectrograms(settings)
    for length in (1600, 16123):
        wave = np.random.default_rng(length).normal(scale=0.1, size=length).astype(np.float32)
        wanted = theirs(wave, sampling_rate=16000, return_tensors="np")["input_values"]
        got = ours(wave, sampling_rate=16000, return_tensors="np")["input_values"]
        assert got.dtype == wanted.dtype and np.array_equal(got, wanted)


def processor(folder: Path, shape: tuple[int | None, ...] = (None, None), **config: Any) -> Any:
    """Of a model that hears samples of 8 kHz and knows three classes."""
    kind = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 8000, "do_normalize": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(kind))
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "a", "1": "b", "2": "c"}} | config))
    inputs = (TensorSpec("input_values", "float32", shape),)
    return open_processor(TASK, folder, Signature(inputs, (TensorSpec("logits", "float32", (None, 3)),)))


def seconds_of(seconds: float) -> AudioPayload:
    out = io.BytesIO()
    soundfile.write(out, np.full(int(8000 * seconds), 0.25), 8000, format="WAV")
    return AudioPayload(out.getvalue(), top_k=2)


def test_a_long_recording_is_heard_in_windows_and_their_mean_is_the_answer(tmp_path: Path) -> None:
    made = processor(tmp_path)
    payload = seconds_of(2 * WINDOW_SECONDS)
    windows = made.prepare(payload)
    assert [w["input_values"].shape for w in windows][:2] == [(1, 240000), (1, 240000)] and len(windows) == 3
    rows = [{"logits": np.log([row])} for row in ([0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.2, 0.4, 0.4])]
    labels = made.finish(rows, payload).labels
    assert [(x.label, pytest.approx(x.score)) for x in labels] == [("a", 0.4), ("b", 0.4)]
    assert made.units(payload, windows).audio_seconds == 2 * WINDOW_SECONDS


def test_a_model_of_one_length_is_given_the_whole_recording(tmp_path: Path) -> None:
    (window,) = processor(tmp_path, (None, 480000)).prepare(seconds_of(2 * WINDOW_SECONDS))
    assert window["input_values"].shape == (1, 480000)


def test_labels_that_do_not_exclude_each_other_have_chances_of_their_own(tmp_path: Path) -> None:
    made = processor(tmp_path, problem_type="multi_label_classification")
    found = made.finish([{"logits": np.array([[0.0, 3.0, -3.0]])}], seconds_of(1))
    assert isinstance(found, Classification)
    assert [(x.label, pytest.approx(x.score)) for x in found.labels] == [("b", 0.9525741268), ("a", 0.5)]


def test_a_folder_without_an_extractor_is_no_audio_classifier(tmp_path: Path) -> None:
    signature = Signature((TensorSpec("x", "float32", (None, None)),), (TensorSpec("logits", "float32", (None, 3)),))
    with pytest.raises(InvalidModel, match="--processor"):
        open_processor(TASK, tmp_path, signature)
    with pytest.raises(InvalidModel, match="signature"):
        open_processor(TASK, tmp_path, None)


def test_examples_are_labelled_as_images_are(data: Path, tmp_path: Path) -> None:
    found = load_examples(TASK, data, labels=SYNTHESISERS)
    assert len(found) == 20 and {e.truth for e in found} == {0, 1} and isinstance(found[0].payload, AudioPayload)
    with pytest.raises(InvalidInput, match="label 'flite'"):
        load_examples(TASK, data, labels={0: "cat", 1: "dog"})
    for i, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        shutil.copy(min(data.glob("*.wav")), tmp_path / name / f"{i}.wav")
    assert [e.truth for e in load_examples(TASK, tmp_path, labels={0: "dog", 1: "cat"})] == [1, 0]
    assert task_of(TASK).payload(b"sound", 3) == AudioPayload(b"sound", top_k=3)
