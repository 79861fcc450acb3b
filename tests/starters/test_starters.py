"""The starter models that ship with the repository do what their cards say."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
STARTERS = ROOT / "starters"


@pytest.fixture(scope="module")
def evaluate() -> Iterator[ModuleType]:
    """`starters/evaluate.py`, imported the way Python runs it: with its own folder first on the path."""
    pytest.importorskip("torch", reason="the starters are measured with torch")
    ours = ("evaluate", "speech", "text")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in ours}
    sys.path.insert(0, str(STARTERS))
    try:
        yield importlib.import_module("evaluate")
    finally:
        sys.path.remove(str(STARTERS))
        for name in [name for name in sys.modules if name.split(".")[0] in ours]:
            del sys.modules[name]
        sys.modules.update(before)


@pytest.fixture(scope="module")
def shared_data() -> Path:
    """The data that the starters learned from, which is not part of the repository."""
    folder = Path(os.environ.get("MAASDAM_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("shared data is not here")
    return folder


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_samples_json_names_every_shipped_file_with_its_hash() -> None:
    sets = json.loads((STARTERS / "samples.json").read_text())
    found = {
        file.relative_to(STARTERS).as_posix(): digest(file)
        for folder in [*STARTERS.glob("*/samples"), *STARTERS.glob("*/calibrate")]
        for file in folder.iterdir()
    }
    assert {path: sha for each in sets.values() for path, sha in each["sha256"].items()} == found
    assert not any(facts["trained_on"] for name, facts in sets.items() if name.endswith("/samples"))


@pytest.mark.parametrize("starter", ["images", "speech"])
def test_no_evaluation_file_is_a_calibration_file(starter: str) -> None:
    evaluation, calibration = (
        {digest(file) for file in (STARTERS / starter / name).iterdir() if file.suffix in {".png", ".wav"}}
        for name in ("samples", "calibrate")
    )
    assert evaluation and calibration and not evaluation & calibration


@pytest.mark.parametrize("folder", ["images/samples", "images/calibrate", "speech/samples", "speech/calibrate"])
def test_metadata_describes_every_file_once(folder: str) -> None:
    with (STARTERS / folder / "metadata.csv").open(newline="") as file:
        named = [row["file_name"] for row in csv.DictReader(file)]
    assert sorted(named) == sorted(p.name for p in (STARTERS / folder).iterdir() if p.suffix in {".png", ".wav"})


def test_image_model_reads_held_out_digits(evaluate: ModuleType) -> None:
    scores = evaluate.images()
    assert scores["images"] == 360
    assert scores["top_1"] >= 0.97


def test_speech_model_hears_the_shipped_samples(evaluate: ModuleType) -> None:
    assert evaluate.speech(None, synthesise=False)["samples_wer"] <= 0.05


def test_speech_model_hears_recordings_it_was_not_trained_on(evaluate: ModuleType, shared_data: Path) -> None:
    held = evaluate.recordings.load(shared_data / "spoken-digits", "test")[::3]
    listener = evaluate.Listener(STARTERS / "speech" / "model")
    assert len(held) == 100
    heard = listener.transcripts([r.samples for r in held], together=1)
    wrong = sum(text != r.word for text, r in zip(heard, held, strict=True))
    assert wrong <= 5  # measured on all 300, padded in batches: 10 wrong (0.033)


def test_what_is_heard_does_not_depend_on_the_rest_of_the_batch(evaluate: ModuleType) -> None:
    import soundfile
    import torch

    listener, folder = evaluate.Listener(STARTERS / "speech" / "model"), STARTERS / "speech" / "samples"
    sounds = sorted((soundfile.read(f, dtype="float32")[0] for f in sorted(folder.glob("*.wav"))[:12]), key=len)

    def logits(batch: list[object]) -> tuple[torch.Tensor, list[int]]:
        inputs = listener.processor(batch, sampling_rate=16_000, return_tensors="pt", padding=True)
        with torch.inference_mode():
            return listener.model(**inputs).logits, inputs["attention_mask"].sum(1).tolist()

    together, lengths = logits(sounds)
    for row, (sound, length) in enumerate(zip(sounds, lengths, strict=True)):
        alone, (own,) = logits([sound])
        assert own == length
        torch.testing.assert_close(alone[0, :own], together[row, :own], atol=1e-3, rtol=0)
    assert listener.transcripts(sounds) == listener.transcripts(sounds, together=1)


def test_language_model_predicts_the_held_out_tenth(evaluate: ModuleType, shared_data: Path) -> None:
    test = evaluate.corpus.parts(shared_data / "text" / "tinyshakespeare.txt").test
    bits, _ = evaluate.bits_per_byte(test[:20_000])
    assert bits <= 2.7


def test_language_model_samples_are_not_copied(evaluate: ModuleType, shared_data: Path) -> None:
    lines = (STARTERS / "text" / "samples" / "text.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert evaluate.corpus.longest_copy(texts, (shared_data / "text" / "tinyshakespeare.txt").read_text()) < 12


def test_chat_template_alternates_turns_and_leaves_the_last_to_the_assistant() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(STARTERS / "text" / "model")
    turns = [{"role": "user", "content": "Ay?"}, {"role": "assistant", "content": "No."}, {"role": "user", "content": "So."}]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|begin|><|user|>Ay?<|end|><|assistant|>No.<|end|><|user|>So.<|end|><|assistant|>"
    )
    assert tokenizer.encode("Ay?")[0] == tokenizer.bos_token_id
