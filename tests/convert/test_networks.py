"""Decoders with their cache, and Whisper's two halves, in every format: the numbers of transformers, every axis open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.convert import convert
from maasdam.convert.modules import load_transformers
from maasdam.convert.networks import Part, take_part
from maasdam.convert.proof.certificate import certify
from maasdam.convert.proof.language_parity import reference_logits
from maasdam.core import Artifact, Format
from maasdam.engines import open_engine
from maasdam.errors import InvalidInput, Unsupported, VerificationFailed
from maasdam.sources import ingest
from tests.convert import tiny
from tests.convert.test_directions import converted

CHAIN: tuple[Format, ...] = ("onnx", "tensorflow", "pytorch", "openvino")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_a_decoder_goes_from_format_to_format_with_its_cache(kind: str, tmp_path: Path) -> None:
    source = tiny.language_model(tmp_path / "source", kind)
    onnx = converted(source, "onnx", tmp_path / "onnx")
    assert onnx.signature is not None
    assert [s.name for s in onnx.signature.inputs][-2:] == ["past_key_values.1.key", "past_key_values.1.value"]
    assert all(s.shape[0] is None and s.shape[2] is None for s in onnx.signature.inputs if s.name.startswith("past"))
    assert [s.name for s in onnx.signature.outputs][:2] == ["logits", "present.0.key"]
    proof = certify(source, onnx, seeds=(0,))
    lengths = {case["shapes"]["past_key_values.0.key"][2] for case in proof.cases}
    assert 0 in lengths and len(lengths) == 3, "an empty cache, a cache before one token and one before several"
    tensorflow = converted(onnx, "tensorflow", tmp_path / "tensorflow")
    certify(onnx, tensorflow, seeds=(0,))
    for to in ("onnx", "pytorch", "openvino"):
        certify(tensorflow, converted(tensorflow, to, tmp_path / f"from-tensorflow-{to}"), seeds=(0,))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_half_of_whisper_goes_from_format_to_format(part: Part, tmp_path: Path) -> None:
    source = take_part(tiny.whisper(tmp_path / "source"), part)
    for to in CHAIN:
        candidate = converted(source, to, tmp_path / to)
        assert certify(source, candidate, seeds=(0,)).outputs[0].cosine > 0.999999


def test_text_grows_token_by_token_over_the_cache_as_in_transformers(tmp_path: Path) -> None:
    source = tiny.language_model(tmp_path / "source")
    candidate = converted(source, "onnx", tmp_path / "onnx")
    assert candidate.signature is not None
    engine = open_engine(candidate)
    ids = np.random.default_rng(3).integers(0, tiny.VOCABULARY, (2, 9))
    caches = {s.name: np.zeros((2, s.shape[1] or 0, 0, s.shape[3] or 0), np.float32) for s in candidate.signature.inputs[3:]}
    found = []
    for start, end in ((0, 4), (4, 5), (5, 9)):
        positions = np.broadcast_to(np.arange(start, end), (2, end - start))
        given = {"input_ids": ids[:, start:end], "attention_mask": np.ones((2, end), np.int64), "position_ids": positions}
        answer = engine.run({**given, **caches})
        caches = {name: answer[name.replace("past_key_values", "present")] for name in caches}
        found.append(answer["logits"])
    wanted = reference_logits(load_transformers(source, "eager"), ids, None)
    assert np.abs(np.concatenate(found, axis=1) - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_the_halves_of_whisper_transcribe_as_the_whole(tmp_path: Path) -> None:
    import torch

    whole = tiny.whisper(tmp_path / "source")
    engines = {}
    for part in ("encoder", "decoder"):
        half = converted(take_part(whole, part), "onnx", tmp_path / part)
        engines[part] = open_engine(half)
    features = np.random.default_rng(0).standard_normal((2, 80, 3000)).astype(np.float32)
    heard = engines["encoder"].run({"input_features": features})
    ids = np.random.default_rng(1).integers(0, 300, (2, 5))
    caches = {f"past_key_values.{n.removeprefix('present.')}": v for n, v in heard.items() if n.startswith("present")}
    caches |= {n.replace("encoder", "decoder"): v[:, :, :0] for n, v in caches.items()}
    found = []
    for step in range(5):
        answer = engines["decoder"].run({"input_ids": ids[:, step : step + 1], **caches})
        caches |= {f"past_key_values.{n.removeprefix('present.')}": v for n, v in answer.items() if n.startswith("present")}
        found.append(answer["logits"])
    model = load_transformers(whole, "eager")
    with torch.inference_mode():
        wanted = model(torch.from_numpy(features), decoder_input_ids=torch.from_numpy(ids)).logits.numpy()
    assert np.abs(np.concatenate(found, axis=1) - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_one_changed_weight_of_a_decoder_is_seen(tmp_path: Path) -> None:
    source = tiny.language_model(tmp_path / "source")
    candidate = converted(source, "onnx", tmp_path / "onnx")
    tiny.change_a_weight(source.path)
    with pytest.raises(VerificationFailed, match="differs by"):
        certify(source, candidate, seeds=(0,))


def test_a_window_is_kept_by_a_bare_decoder_too(tmp_path: Path) -> None:
    source = tiny.language_model(tmp_path / "mistral", "mistral")  # looks back 8 tokens, and is tried with more
    certify(source, converted(source, "onnx", tmp_path / "onnx"), seeds=(0,))


def test_what_one_graph_cannot_say_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    whisper = tiny.whisper(tmp_path / "whisper")
    with pytest.raises(Unsupported, match="--part encoder or --part decoder"):
        convert(whisper, "onnx", tmp_path / "out")
    with pytest.raises(InvalidInput, match="its parts are: decoder"):
        take_part(tiny.language_model(tmp_path / "llama"), "encoder")
    with pytest.raises(InvalidInput, match="it is one network"):
        take_part(tiny.image_classifier(tmp_path / "image"), "decoder")
    assert not list((tmp_path / "out").iterdir())


def test_a_decoder_read_from_its_folder_is_tensors_and_converts_on(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    made = converted(tiny.language_model(tmp_path / "source"), "onnx", tmp_path / "onnx")
    onnx = ingest(str(made.path), store)
    assert onnx.task is None and onnx.signature is not None
    with pytest.raises(Unsupported, match="takes its cache as tensors"):
        ingest(str(made.path), store, task="text-generation")
    tensorflow = ingest(str(converted(onnx, "tensorflow", tmp_path / "tensorflow").path), store)
    assert tensorflow.signature is not None
    assert "past_key_values_0_key" in {s.name for s in tensorflow.signature.inputs}, "TensorFlow has no names with dots"
    certify(tensorflow, converted(tensorflow, "pytorch", tmp_path / "pytorch"), seeds=(0,))


def test_a_network_is_an_artifact_without_the_task_of_the_whole(tmp_path: Path) -> None:
    half: Artifact = take_part(tiny.whisper(tmp_path / "source"), "encoder")
    assert half.task is None and half.signature is not None
    assert half.signature.inputs[0].shape == (None, 80, 3000)


def test_a_decoder_that_counts_distances_from_its_mask_converts(tmp_path: Path) -> None:
    source = tiny.language_model(tmp_path / "source", "bloom")
    proof = certify(source, converted(source, "onnx", tmp_path / "onnx"), seeds=(0,))
    assert 0 in {case["shapes"]["past_key_values.0.key"][2] for case in proof.cases}
