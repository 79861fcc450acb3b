"""Families of speech recognisers from Hugging Face folders: served, they hear what transformers hears.

Each model is compared over HTTP on recordings that ship with the project, as it is.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tests.field import recognisers
from tests.served import Process, add, open_home, serving

from maasdam.artifacts.store import Store
from maasdam.core import Artifact, AudioPayload
from maasdam.engines import open_engine
from maasdam.engines.moonshine_library import LEAST_SAMPLES, LONGEST_SECONDS, pieces
from maasdam.errors import InvalidModel, InvalidPayload, Unsupported
from maasdam.operations.workspace import Workspace
from maasdam.pipeline.conditions import Conditions
from maasdam.pipeline.recipe import find_recipe
from maasdam.pipeline.run_recipe import Build, Data
from maasdam.pipeline.verify import verify
from maasdam.settings import Settings
from maasdam.sources import ingest
from maasdam.tasks import open_processor
from maasdam.tasks.recordings import decode_audio

RATE = 16_000
PATH = "/v1/audio/transcriptions"
NAMES = ("WavLM, base", "data2vec-audio", "Parakeet", "Moonshine")
"""As they are: to convert one takes seconds, and `benchmarks.speech_families` converts each to every format."""
QUICK = Conditions(threads=1, measure_seconds=0.0, measures_memory=False)


@pytest.fixture(scope="module")
def sounds(starters: Path) -> list[bytes]:
    return [(starters / "speech" / "samples" / f"{n:03}.wav").read_bytes() for n in (1, 2, 30)]


def recording(samples: Any) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, RATE, format="WAV", subtype="FLOAT")
    return out.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp("model") for name in NAMES}
    for name, folder in made.items():
        (recognisers.CTC | recognisers.WRITERS)[name](folder)
    return made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with open_home(tmp_path_factory.mktemp("home")) as workspace:
        yield workspace


@pytest.fixture(scope="module")
def artifacts(folders: dict[str, Path], home: Workspace) -> dict[str, Artifact]:
    return {name: ingest(str(folder), home.store) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def served(artifacts: dict[str, Artifact], home: Workspace) -> Iterator[Process]:
    for name, artifact in artifacts.items():
        add(home, name.partition(",")[0].lower(), artifact)
    _, key = home.keys.create("test", ["infer"])
    with serving(home.settings.home, key) as running:
        yield running


def test_every_family_writes_what_transformers_writes(served: Process, folders: dict[str, Path], sounds: list[bytes]) -> None:
    with served.client() as client:
        for name, folder in folders.items():
            model = name.partition(",")[0].lower()
            written = [client.post(PATH, files={"file": s}, data={"model": model}).json()["text"] for s in sounds]
            waves = [decode_audio(sound, RATE, 60)[0] for sound in sounds]
            assert written == [recognisers.by_transformers(folder, wave)[1] for wave in waves], name
            assert len(set(written)) > 1, name


@pytest.mark.parametrize("name", [name for name in NAMES if name in recognisers.CTC])
def test_its_frames_are_those_of_transformers(
    name: str, artifacts: dict[str, Artifact], folders: dict[str, Path], sounds: list[bytes]
) -> None:
    artifact = artifacts[name]
    processor = open_processor(str(artifact.task), artifact.path, artifact.signature, Settings())
    engine: Any = open_engine(artifact, threads=1)
    try:
        for sound in (*sounds, recording(np.random.default_rng().normal(0, 0.1, 24_000))):
            found = engine.run(processor.prepare(AudioPayload(sound))[0])["logits"][0]
            right, _ = recognisers.by_transformers(folders[name], decode_audio(sound, RATE, 60)[0])
            assert found.shape == right.shape
            assert abs(found - right).max() < 3e-4 * abs(right).max()
    finally:
        engine.close()


def test_a_parakeet_tells_when_its_words_were_said(served: Process, sounds: list[bytes]) -> None:
    asked = {"model": "parakeet", "response_format": "verbose_json", "timestamp_granularities[]": "word"}
    with served.client() as client:
        told = client.post(PATH, files={"file": sounds[0]}, data=asked).json()
    assert " ".join(word["word"] for word in told["words"]) == told["text"]
    times = [t for word in told["words"] for t in (word["start"], word["end"])]
    assert times == sorted(times) and times[-1] <= told["duration"] + 0.08
    assert all(abs(t / 0.08 - round(t / 0.08)) < 0.02 for t in times)


@pytest.mark.parametrize(
    ("asked", "says"),
    [({"language": "en"}, "language"), ({"response_format": "verbose_json", "timestamp_granularities[]": "word"}, "word")],
)
def test_what_a_moonshine_does_not_know_is_refused_by_name(
    served: Process, sounds: list[bytes], asked: dict[str, str], says: str
) -> None:
    with served.client() as client:
        answer = client.post(PATH, files={"file": sounds[0]}, data={"model": "moonshine", **asked})
    assert answer.status_code == 400 and says in answer.json()["error"]["message"]


def test_a_moonshine_is_built_as_it_is_and_refused_by_name_elsewhere(artifacts: dict[str, Artifact], home: Workspace) -> None:
    source = artifacts["Moonshine"]
    build = Build(home.store, Data(), threads=1)
    built = build.run(find_recipe("fp32", source.task), source, None)
    report = verify(built, build.references(source), source, [], find_recipe("fp32", source.task).limits, QUICK)
    assert report.passed and report.parity["max_abs_diff"] == 0
    for to in ("onnx", "openvino"):
        with pytest.raises(Unsupported, match="MoonshineForConditionalGeneration"):
            build.check(find_recipe("fp32", source.task), source, to)
    with pytest.raises(Unsupported, match="MoonshineForConditionalGeneration"):
        build.check(find_recipe("int8-weights", source.task), source, None)


def test_a_long_recording_is_cut_where_it_is_quiet() -> None:
    seconds = 2 * LONGEST_SECONDS + 10
    wave = np.random.default_rng(0).normal(0, 0.1, seconds * RATE).astype(np.float32)
    for quiet in (27.3, 54.0):
        wave[int(quiet * RATE) : int((quiet + 0.3) * RATE)] = 0
    cuts = list(pieces(wave))
    assert cuts[0][0] == 0 and cuts[-1][1] == len(wave) and all(a[1] == b[0] for a, b in pairwise(cuts))
    assert [27.3 < cuts[0][1] / RATE < 27.6, 54.0 < cuts[1][1] / RATE < 54.3] == [True, True]
    for length in (LEAST_SAMPLES, LONGEST_SECONDS * RATE, LONGEST_SECONDS * RATE + 1):
        assert all(LEAST_SAMPLES <= stop - start <= LONGEST_SECONDS * RATE for start, stop in pieces(wave[:length]))


def test_absurd_settings_of_an_extractor_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["Parakeet"], folder)
    said = (folder / "preprocessor_config.json").read_text()
    signature = ingest(str(folder), Store(tmp_path / "store")).signature
    for absurd in ('"hop_length": 0', '"hop_length": -1', '"win_length": 100000000', '"n_fft": 1e12', '"feature_size": "many"'):
        key = absurd.partition(":")[0]
        line = next(line for line in said.splitlines() if key in line)
        (folder / "preprocessor_config.json").write_text(said.replace(line.strip().rstrip(","), absurd))
        with pytest.raises((InvalidModel, InvalidPayload)):
            processor = open_processor("automatic-speech-recognition", folder, signature, Settings())
            processor.prepare(AudioPayload(recording(np.zeros(RATE))))
