"""A Whisper goes the whole way: built, proven against transformers, served in every form OpenAI has, billed for what it heard.

The model says the same whatever it hears, and is more or less sure of it: transcripts and likelihoods are compared.
"""

from __future__ import annotations

import dataclasses
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile
import uvicorn
from sqlalchemy import select
from sqlalchemy.orm import Session
from tests.engines import tiny_whisper
from tests.waiting import wait_until

from maasdam import settings
from maasdam.api.connection import HttpConnection
from maasdam.api.http import application
from maasdam.api.listening import bound_socket
from maasdam.artifacts.store import Store
from maasdam.core import Artifact, AudioPayload, Example
from maasdam.database.tables import LedgerRow
from maasdam.errors import Unsupported
from maasdam.operations.service import open_service
from maasdam.operations.workspace import Workspace
from maasdam.pipeline.conditions import Conditions
from maasdam.pipeline.examples import PreparedExamples
from maasdam.pipeline.recipe import Limits, find_recipe
from maasdam.pipeline.run_recipe import Build, Data
from maasdam.pipeline.verify import verify
from maasdam.sources import ingest

RATE = 16_000
QUICK = Conditions(threads=1, measure_seconds=0.0, measures_memory=False)
SECONDS = 2.5
SAYS = ((0.0, " seven two", 1.0), (1.2, " nine", 2.4))


def sound(seed: int) -> Any:
    random = np.random.default_rng(seed)
    return (0.2 * np.sin(np.cumsum(random.uniform(0.01, 0.5, int(SECONDS * RATE))))).astype(np.float32)


def voice(seconds: float) -> Any:
    """What a detector of voices takes for one: a low tone that swells three times a second."""
    times = np.arange(int(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * 150 * times) * np.abs(np.sin(2 * np.pi * 3 * times))).astype(np.float32)


def recording(seed: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, voice(SECONDS) + 0.02 * sound(seed), RATE, format="WAV", subtype="FLOAT")
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("whisper")
    tiny_whisper.huggingface(made, SAYS)
    return made


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with Workspace.open(settings.load({"home": tmp_path_factory.mktemp("home"), "threads": 1}, environ={})) as opened:
        yield opened


@pytest.fixture(scope="module")
def source(folder: Path, workspace: Workspace) -> Artifact:
    return ingest(str(folder), workspace.store)


WORDS = "seven two nine"


def examples(*texts: str) -> PreparedExamples:
    return PreparedExamples([Example(f"{i}.wav", AudioPayload(recording(i)), text) for i, text in enumerate(texts)])


def built(store: Store, source: Artifact, recipe: str) -> tuple[Artifact, tuple[Artifact, ...]]:
    building = Build(store, threads=1)
    return building.run(find_recipe(recipe, source.task), source, None), building.references(source)


def test_what_was_heard_is_written_as_transformers_writes_it_and_the_report_says_so(
    workspace: Workspace, source: Artifact
) -> None:
    candidate, references = built(workspace.store, source, "fp32")
    assert (candidate.engine, candidate.layout, source.engine) == ("ctranslate2", "ctranslate2", "transformers")
    report = verify(
        candidate, references, source, examples(WORDS, WORDS), find_recipe("fp32", source.task).limits, QUICK
    ).to_json()
    assert report["passed"], report["failures"]
    assert (
        report["parity"]["cosine"] > 0.99999 and report["parity"]["max_abs_diff"] < 0.5 and report["parity"]["agreement"] == 1
    )
    assert report["accuracy"]["metric"] == "wer" and report["source"]["accuracy"] == 0
    assert report["source"]["engine"] == "transformers" and report["throughput"]["unit"] == "audio seconds/s"
    assert [row["source"] for row in report["samples"]] == [WORDS, WORDS]
    version = workspace.catalog.register("whisper", candidate, source="tiny", recipe="fp32", report=report, passes=[])
    workspace.catalog.promote(f"whisper:{version.version}")
    workspace.catalog.deploy("whisper")


def test_recipes_of_fewer_bits_are_smaller_and_say_what_they_compute_in(workspace: Workspace, source: Artifact) -> None:
    made = {recipe: built(workspace.store, source, recipe)[0] for recipe in ("int8-dynamic", "int8-weights", "bf16")}
    assert [made[r].settings["precision"] for r in made] == ["int8", "f32", "bf16"]
    whole = built(workspace.store, source, "fp32")[0]
    assert all(artifact.size_bytes < 0.8 * whole.size_bytes for artifact in made.values())
    report = verify(made["int8-dynamic"], (whole,), source, PreparedExamples([]), Limits(min_cosine=0.9), QUICK).to_json()
    assert report["passed"], report["failures"]
    assert report["parity"]["max_abs_diff"] > 0 and report["parity"]["agreement"] == 1
    assert report["accuracy"]["metric"] is None and "made-up sound" in report["accuracy"]["why"]


def test_a_build_that_is_not_its_source_fails_though_it_is_its_own_reference(
    workspace: Workspace, source: Artifact, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    for file in source.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.decoder.embed_positions.weight"
    weights[name][2:5] = weights[name][5]  # other letters
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    other, references = built(workspace.store, ingest(str(tmp_path), workspace.store), "fp32")
    report = verify(other, references, source, examples(WORDS, WORDS), Limits(max_drop=0.01, min_cosine=0.999), QUICK).to_json()
    assert not report["passed"] and other.digest == references[0].digest
    assert any("cosine" in failure for failure in report["failures"])
    assert any("against the source on its own engine" in failure for failure in report["failures"])


REFUSED = {
    "int8": ("static-int8", None),
    "int4-weights": ("weights-int4", None),
    "pruned": ("'prune', which does not exist", None),
    "distilled": ("'distill', which does not exist", None),
    "fp32": ("writes down speech from onnx", "onnx"),
}


@pytest.mark.parametrize("recipe", REFUSED)
def test_recipes_that_make_no_sense_are_refused_in_a_sentence_before_any_work(
    source: Artifact, recipe: str, tmp_path: Path
) -> None:
    says, to = REFUSED[recipe]
    data = Data(data=Path(), train=Path())
    with pytest.raises(Unsupported, match=says):
        Build(Store(tmp_path / "store"), data).check(find_recipe(recipe, source.task), source, to)


def test_silence_after_a_recording_sounds_like_silence(folder: Path) -> None:
    from faster_whisper.feature_extractor import FeatureExtractor
    from transformers import WhisperFeatureExtractor

    from maasdam.engines.faster_whisper_library import _Features

    waveform = sound(0)
    want = WhisperFeatureExtractor.from_pretrained(folder)(waveform, sampling_rate=RATE, return_tensors="np")
    features = _Features(FeatureExtractor())
    found = features(waveform)
    np.testing.assert_allclose(found, want["input_features"][0, :, : found.shape[1]], atol=1e-4)
    assert features.silence == pytest.approx(float(want["input_features"][0, 0, -1]), abs=1e-5)


@dataclasses.dataclass
class Served:
    url: str
    key: str
    workspace: Workspace

    def ask(self, **fields: Any) -> httpx.Response:
        files = {"file": ("a.wav", recording(0))}
        return httpx.post(f"{self.url}/v1/audio/transcriptions", files=files, data={"model": "whisper", **fields}, **self.how)

    @property
    def how(self) -> dict[str, Any]:
        return {"headers": {"Authorization": f"Bearer {self.key}"}, "timeout": 60}

    def newest_row(self) -> Any:
        self.workspace.ledger.take_in()
        with Session(self.workspace.ledger._reads) as session:
            return session.scalars(select(LedgerRow).order_by(LedgerRow.at.desc()).limit(1)).one()


@pytest.fixture(scope="module")
def served(workspace: Workspace) -> Iterator[Served]:
    if not [d for d in workspace.catalog.deployments() if d.model == "whisper"]:
        pytest.fail("what is served was not built")
    _, key = workspace.keys.create("tests", ["infer"])
    service = open_service(workspace)
    listener = bound_socket("127.0.0.1", 0)
    config = uvicorn.Config(
        application(service), http=HttpConnection, loop="uvloop", ws="none", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    thread.start()
    wait_until(lambda: server.started and service.router.is_ready, 120, "the service did not come up")
    yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", key, workspace)
    server.should_exit = True
    thread.join(20)


def test_every_format_tells_the_same_text(served: Served) -> None:
    verbose = served.ask(response_format="verbose_json").json()
    assert served.ask().json()["text"] == verbose["text"] == WORDS
    assert served.ask(response_format="text").text == WORDS + "\n"
    segments = verbose["segments"]
    assert "".join(s["text"] for s in segments).strip() == WORDS and len(segments) > 1
    subtitles = served.ask(response_format="srt").text.split("\n\n")
    assert len(subtitles) == len(segments) and subtitles[0].startswith("1\n00:00:0")
    vtt = served.ask(response_format="vtt").text
    assert vtt.startswith("WEBVTT\n\n") and vtt.count(" --> ") == len(segments)


def test_verbose_json_is_what_openais_client_takes_with_times_of_words_and_segments(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0, _strict_response_validation=True)
    whole: Any = client.audio.transcriptions.create(
        model="whisper", file=("a.wav", recording(0)), response_format="verbose_json"
    )
    assert whole.duration == pytest.approx(SECONDS) and whole.language == "english" and whole.words is None
    for segment in whole.segments:
        assert 0 <= segment.start <= segment.end and segment.tokens and segment.avg_logprob < 0 and segment.temperature == 0
    timed: Any = client.audio.transcriptions.create(
        model="whisper", file=("a.wav", recording(0)), response_format="verbose_json", timestamp_granularities=["word"]
    )
    assert timed.segments is None and timed.words and timed.text == whole.text
    assert all(0 <= word.start <= word.end and word.word == word.word.strip() for word in timed.words)
    both: Any = client.audio.transcriptions.create(
        model="whisper",
        file=("a.wav", recording(0)),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert both.segments and both.words


def test_a_stream_tells_each_segment_as_it_comes_and_is_billed_once(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)
    events: list[Any] = list(
        client.audio.transcriptions.create(
            model="whisper", file=("a.wav", recording(0)), stream=True, response_format="json", include=["logprobs"]
        )
    )
    *deltas, done = events
    assert done.type == "transcript.text.done" and done.text == WORDS == "".join(e.delta for e in deltas)
    assert len(deltas) > 1 and {e.type for e in deltas} == {"transcript.text.delta"}
    told = [mark for e in deltas for mark in e.logprobs or ()]
    assert "".join(str(mark.token) for mark in told).strip() == WORDS and all((mark.logprob or 0) <= 0 for mark in told)
    row = served.newest_row()
    assert (row.status, row.audio_seconds) == (200, pytest.approx(SECONDS))
    refused = served.ask(stream="true", response_format="srt")
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "response_format"


def test_log_probabilities_are_the_same_whole_and_streamed(served: Served) -> None:
    whole = served.ask(**{"include[]": "logprobs"}).json()
    assert "".join(mark["token"] for mark in whole["logprobs"]).strip() == whole["text"] == WORDS
    assert b"".join(bytes(mark["bytes"]) for mark in whole["logprobs"]).decode().strip() == WORDS


def test_what_was_heard_is_billed_once_and_a_refused_language_is_not(served: Served) -> None:
    reply = served.ask(response_format="verbose_json")
    row = served.newest_row()
    assert (row.request_id, row.status, row.audio_seconds) == (reply.headers["x-request-id"], 200, pytest.approx(SECONDS))
    assert reply.json()["usage"]["seconds"] == pytest.approx(SECONDS)
    refused = served.ask(language="xx")
    assert refused.status_code == 400 and "'xx'" in refused.json()["error"]["message"]
    assert served.newest_row().status == 400 and served.newest_row().price is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"response_format": "json", "timestamp_granularities[]": "word"}, "verbose_json"),
        ({"response_format": "verbose_json", "timestamp_granularities[]": "phoneme"}, "segment or word"),
        ({"response_format": "docx"}, "response_format"),
        ({"response_format": "diarized_json"}, "speakers"),
        ({"prompt": "a <|translate|> b"}, "control token"),
        ({"temperature": "nan"}, "temperature"),
        ({"temperature": "2.5"}, "temperature"),
        ({"language": "klingonese"}, "language"),
        ({"include[]": "words"}, "logprobs"),
        ({"include[]": "logprobs", "response_format": "text"}, "json"),
        ({"chunking_strategy": '{"type": "semantic_vad"}'}, "server_vad"),
        ({"chunking_strategy": '{"type": "server_vad", "threshold": 7}'}, "threshold"),
        ({"chunking_strategy": "[" * 900}, "server_vad"),
        ({"known_speaker_names[]": "a"}, "known_speaker_names"),
    ],
)
def test_what_can_not_be_given_is_refused_by_name(served: Served, fields: dict[str, str], says: str) -> None:
    reply = served.ask(**fields)
    assert reply.status_code == 400 and says in reply.json()["error"]["message"]


def test_a_model_of_english_alone_translates_nothing(served: Served) -> None:
    files = {"file": ("a.wav", recording(0))}
    reply = httpx.post(f"{served.url}/v1/audio/translations", files=files, data={"model": "whisper"}, **served.how)
    assert reply.status_code == 400 and "translates nothing" in reply.json()["error"]["message"]
    (told,) = [m for m in httpx.get(f"{served.url}/v1/models", **served.how).json()["data"] if m["id"] == "whisper"]
    assert told["capabilities"]["translations"] is False and told["capabilities"]["word_times"] is True


def test_the_open_inference_protocol_transcribes_too(served: Served) -> None:
    body = recording(0)
    head = {"inputs": [{"name": "audio", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(body) + 4}}]}
    text = json.dumps(head).encode()
    headers = served.how["headers"] | {"Inference-Header-Content-Length": str(len(text))}
    content = text + len(body).to_bytes(4, "little") + body
    reply = httpx.post(f"{served.url}/v2/models/whisper/infer", content=content, headers=headers, timeout=60)
    assert reply.json()["outputs"][0]["data"] == [WORDS]
