"""The standards' own clients against `maasdam serve` as its own process, on the starter models as they are."""

from __future__ import annotations

import csv
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tritonclient.http as triton
from tests.served import Process, add_mlp, add_starters, open_home, serving
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, starters: Path) -> Iterator[Process]:
    home = tmp_path_factory.mktemp("served")
    workspace = open_home(home)
    add_mlp(workspace)
    add_starters(workspace, starters)
    _, key = workspace.keys.create("clients", ["infer", "deploy", "admin"])
    workspace.close()
    with serving(home, key) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Process) -> Iterator[triton.InferenceServerClient]:
    it = triton.InferenceServerClient(served.url.removeprefix("http://"), network_timeout=60)
    it.register_plugin(_Bearer(served.key))
    yield it
    it.close()


class _Bearer:
    """tritonclient's way to send a header with every request."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, request: Any) -> None:
        request.headers["Authorization"] = f"Bearer {self.key}"


@pytest.fixture(scope="module")
def gpt(served: Process) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)


def mlp(x: np.ndarray) -> np.ndarray:
    """What the perceptron of `served` computes, from its recipe."""
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=size).astype(np.float32) for size in ((8, 64), (64, 4)))
    return np.maximum(x @ first, 0) @ second


def sample(starters: Path, task: str, name: str) -> tuple[bytes, dict[str, str]]:
    folder = starters / task / "samples"
    with (folder / "metadata.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["file_name"] == name)
    return (folder / name).read_bytes(), row


class TestTriton:
    def test_health_and_metadata(self, client: triton.InferenceServerClient) -> None:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("mlp") and client.is_model_ready("mlp", "1") and not client.is_model_ready("ghost")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        metadata = client.get_model_metadata("mlp")
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}]
        assert metadata["versions"] == ["1"]

    @pytest.mark.parametrize("is_binary_in", [False, True])
    @pytest.mark.parametrize("is_binary_out", [False, True])
    def test_tensors_json_and_binary(
        self, client: triton.InferenceServerClient, is_binary_in: bool, is_binary_out: bool
    ) -> None:
        x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
        given = triton.InferInput("x", [5, 8], "FP32")
        given.set_data_from_numpy(x, binary_data=is_binary_in)
        asked = [triton.InferRequestedOutput("y", binary_data=is_binary_out)]
        result = client.infer("mlp", [given], outputs=asked, model_version="1", request_id="mine")
        assert np.allclose(result.as_numpy("y"), mlp(x), atol=1e-4)
        response = result.get_response()
        assert response["id"] == "mine" and response["model_name"] == "mlp" and response["model_version"] == "1"
        default = client.infer("mlp", [given])
        assert np.allclose(default.as_numpy("y"), mlp(x), atol=1e-4)

    def test_many_at_once_each_get_their_own(self, client: triton.InferenceServerClient, served: Process) -> None:
        from concurrent.futures import ThreadPoolExecutor

        def ask(i: int) -> bool:
            x = np.full((1 + i % 3, 8), i, np.float32)
            raw = x.tolist()
            body = {"inputs": [{"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": raw}]}
            with served.client() as it:
                answer = it.post("/v2/models/mlp/infer", json=body).json()
            return bool(np.allclose(np.array(answer["outputs"][0]["data"]).reshape(-1, 4), mlp(x), rtol=1e-4))

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(ask, range(100)))

    def test_raw_tensors_of_an_image_model(self, client: triton.InferenceServerClient) -> None:
        (spec,) = client.get_model_metadata("images")["inputs"]
        shape = [2, *spec["shape"][1:]]
        given = triton.InferInput(spec["name"], shape, "FP32")
        given.set_data_from_numpy(np.zeros(shape, np.float32))
        logits = client.infer("images", [given]).as_numpy("logits")
        assert logits.shape == (2, 10) and np.allclose(logits[0], logits[1], atol=1e-5)

    def test_text_in_text_out(self, client: triton.InferenceServerClient, gpt: openai.OpenAI) -> None:
        given = triton.InferInput("text_input", [2], "BYTES")
        given.set_data_from_numpy(np.array([b"To be", "Grüße".encode()], dtype=object))
        parameters = {"max_tokens": 5, "temperature": 0}
        texts = client.infer("text", [given], parameters=parameters).as_numpy("text_output")
        assert texts.shape == (2,)
        same = gpt.completions.create(model="text", prompt="To be", max_tokens=5, temperature=0)
        assert texts[0].decode() == same.choices[0].text

    @pytest.mark.parametrize("is_binary", [True, False])
    def test_audio_in_transcript_out(self, client: triton.InferenceServerClient, starters: Path, is_binary: bool) -> None:
        import base64

        sound, row = sample(starters, "speech", "000.wav")
        given = triton.InferInput("audio", [1], "BYTES")
        data = sound if is_binary else base64.b64encode(sound)
        given.set_data_from_numpy(np.array([data], dtype=object), binary_data=is_binary)
        (text,) = client.infer("speech", [given]).as_numpy("transcript")
        assert text.decode() == row["transcription"]

    @pytest.mark.parametrize("model", ["mlp", "ghost", "text"])
    def test_errors_are_the_protocols(self, client: triton.InferenceServerClient, model: str) -> None:
        given = triton.InferInput("x", [1, 3], "FP32")
        given.set_data_from_numpy(np.zeros((1, 3), np.float32))
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, [given])
        expected = {"mlp": "send [-1, 8]", "ghost": "deployed models: images, mlp", "text": "takes no raw tensors"}
        assert expected[model] in caught.value.message()
        assert caught.value.status() == ("404" if model == "ghost" else "400")

    def test_nan_is_refused(self, client: triton.InferenceServerClient) -> None:
        given = triton.InferInput("x", [1, 8], "FP32")
        given.set_data_from_numpy(np.full((1, 8), np.nan, np.float32))
        with pytest.raises(InferenceServerException, match="NaN"):
            client.infer("mlp", [given])

    def test_the_model_repository_loads_and_unloads(self, client: triton.InferenceServerClient) -> None:
        client.unload_model("mlp")
        assert not client.is_model_ready("mlp")
        unloaded = {row["name"]: (row["state"], row["reason"]) for row in client.get_model_repository_index()}
        assert unloaded["mlp"] == ("UNAVAILABLE", "not deployed") and unloaded["text"] == ("READY", "")
        client.load_model("mlp")
        assert client.is_model_ready("mlp")
        states = {row["name"]: row["state"] for row in client.get_model_repository_index()}
        assert states == {"images": "READY", "mlp": "READY", "speech": "READY", "text": "READY"}
        with pytest.raises(InferenceServerException, match="no model 'ghost'"):
            client.load_model("ghost")


class TestOpenAI:
    def test_models(self, gpt: openai.OpenAI) -> None:
        assert [model.id for model in gpt.models.list()] == ["images", "mlp", "speech", "text"]
        assert gpt.models.retrieve("text").owned_by == "maasdam"
        with pytest.raises(openai.NotFoundError) as caught:
            gpt.models.retrieve("ghost")
        assert caught.value.code == "model_not_found"

    def test_chat_whole_and_streamed_are_the_same(self, gpt: openai.OpenAI) -> None:
        ask: dict[str, Any] = {
            "model": "text",
            "messages": [{"role": "user", "content": "What news from Rome?"}],
            "max_tokens": 16,
            "seed": 7,
            "temperature": 0.8,
        }
        whole = gpt.chat.completions.create(**ask)
        assert whole.choices[0].message.role == "assistant" and whole.usage is not None
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        assert whole.usage.model_extra["maasdam"]["compute_seconds"] > 0
        events = list(gpt.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
        assert events[0].choices[0].delta.role == "assistant"
        text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
        assert text == whole.choices[0].message.content
        assert events[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        assert events[-1].usage is not None and events[-1].usage.total_tokens == whole.usage.total_tokens

    def test_completions_of_texts_and_token_ids(self, gpt: openai.OpenAI) -> None:
        ask: dict[str, Any] = {"model": "text", "max_tokens": 6, "temperature": 0, "extra_body": {"return_token_ids": True}}
        two = gpt.completions.create(prompt=["To be", "What"], **ask)
        alone = gpt.completions.create(prompt="What", **ask)
        assert [choice.index for choice in two.choices] == [0, 1] and two.choices[1].text == alone.choices[0].text
        ids = alone.choices[0].model_extra["token_ids"]
        assert len(ids) == alone.usage.completion_tokens
        more = gpt.completions.create(prompt=ids, **ask)
        assert more.usage.prompt_tokens == len(ids)
        events = list(gpt.completions.create(prompt="What", stream=True, **ask))
        assert "".join(event.choices[0].text for event in events) == alone.choices[0].text
        assert [i for event in events for i in event.choices[0].model_extra["token_ids"]] == ids

    def test_a_stop_string_is_left_out(self, gpt: openai.OpenAI) -> None:
        ask: dict[str, Any] = {"model": "text", "prompt": "To be", "max_tokens": 12, "temperature": 0}
        text = gpt.completions.create(**ask).choices[0].text
        stop = text[len(text) // 2 : len(text) // 2 + 2]
        stopped = gpt.completions.create(**ask, stop=stop)
        assert stopped.choices[0].text == text[: text.index(stop)] and stopped.choices[0].finish_reason == "stop"
        events = list(gpt.completions.create(**ask, stop=stop, stream=True))
        assert "".join(event.choices[0].text for event in events) == stopped.choices[0].text

    def test_a_prompt_beyond_the_context_is_a_bad_request(self, gpt: openai.OpenAI) -> None:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="context is") as refused:
                gpt.completions.create(model="text", prompt="word " * 5000, stream=stream)
            assert refused.value.code == "context_length_exceeded"
            with pytest.raises(openai.BadRequestError, match="context is"):
                gpt.chat.completions.create(model="text", messages=[{"role": "user", "content": "word " * 5000}], stream=stream)

    @pytest.mark.parametrize("prompt", ["", "\x00", "😀" * 5, "\u202e", "a" * 500])
    def test_odd_prompts_are_answered_or_refused(self, gpt: openai.OpenAI, prompt: str) -> None:
        try:
            gpt.completions.create(model="text", prompt=prompt, max_tokens=2)
        except openai.BadRequestError as refused:
            assert refused.body

    def test_token_ids_outside_the_vocabulary_are_refused(self, gpt: openai.OpenAI) -> None:
        for ids in ([10**9], [-1], [1 << 70]):
            with pytest.raises(openai.BadRequestError, match="vocabulary"):
                gpt.completions.create(model="text", prompt=ids, max_tokens=2)

    def test_transcriptions_in_every_form(self, gpt: openai.OpenAI, starters: Path) -> None:
        sound, row = sample(starters, "speech", "000.wav")
        whole = gpt.audio.transcriptions.create(model="speech", file=("a.wav", sound))
        assert whole.text == row["transcription"]
        plain = gpt.audio.transcriptions.create(model="speech", file=("a.wav", sound), response_format="text")
        assert plain == row["transcription"] + "\n"
        verbose = gpt.audio.transcriptions.create(model="speech", file=("a.wav", sound), response_format="verbose_json")
        assert verbose.text == whole.text and verbose.duration > 0.5
        times = gpt.audio.transcriptions.create(
            model="speech", file=("a.wav", sound), response_format="verbose_json", timestamp_granularities=["word", "segment"]
        )
        assert [word.word for word in times.words or ()] == whole.text.split()
        ends = [end for word in times.words or () for end in (word.start, word.end)]
        assert ends == sorted(ends) and 0 < ends[0] < ends[-1] < verbose.duration
        assert times.segments is not None and " ".join(segment.text for segment in times.segments) == whole.text
        subtitles = gpt.audio.transcriptions.create(model="speech", file=("a.wav", sound), response_format="srt")
        assert str(subtitles).startswith("1\n00:00:00,") and row["transcription"].split()[0] in str(subtitles)

    @pytest.mark.parametrize("kind", ["empty", "text", "header only", "lying length", "cut off", "png"])
    def test_recordings_that_are_none_are_refused(self, gpt: openai.OpenAI, starters: Path, kind: str) -> None:
        sound, _ = sample(starters, "speech", "000.wav")
        lying = bytearray(sound)
        lying[4:8] = struct.pack("<I", 0xFFFFFFF0)
        lying[40:44] = struct.pack("<I", 0xFFFFFFF0)
        data = {
            "empty": b"",
            "text": b"hello",
            "header only": sound[:44],
            "lying length": bytes(lying),
            "cut off": sound[:20],
            "png": sample(starters, "images", "000.png")[0],
        }[kind]
        try:
            gpt.audio.transcriptions.create(model="speech", file=("a.wav", data))
        except openai.BadRequestError as refused:
            assert refused.body
        else:
            assert kind == "lying length", "the sound that is there may be heard, and nothing else"

    @pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # openai says so of translations
    def test_what_no_model_does(self, gpt: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match=r"does text-generation, not .*feature-extraction; use POST /v1/chat"):
            gpt.embeddings.create(model="text", input="a")
        with pytest.raises(openai.BadRequestError, match="translates"):
            gpt.audio.translations.create(model="speech", file=("a.wav", b"RIFF"))
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=str(gpt.base_url), api_key="wrong", max_retries=0).models.list()


class TestImages:
    def test_form_and_json_say_the_same(self, served: Process, starters: Path) -> None:
        import base64

        image, row = sample(starters, "images", "000.png")
        text = base64.b64encode(image).decode()
        with served.client() as it:
            form = it.post("/v1/images/classifications", data={"model": "images", "top_k": "2"}, files={"file": image}).json()
            plain = it.post("/v1/images/classifications", json={"model": "images", "top_k": 2, "image": text}).json()
            url = f"data:image/png;base64,{text}"
            again = it.post("/v1/images/classifications", json={"model": "images", "top_k": 2, "image": url}).json()
        assert form["data"][0]["label"] == row["label"] and len(form["data"]) == 2
        for other in (plain, again):
            assert [label["label"] for label in other["data"]] == [label["label"] for label in form["data"]]
            assert other["data"][0]["score"] == pytest.approx(form["data"][0]["score"], abs=1e-5)

    @pytest.mark.parametrize("kind", ["empty", "text", "bomb", "cut off", "wav"])
    def test_images_that_are_none_are_refused(self, served: Process, starters: Path, kind: str) -> None:
        from PIL import Image

        image, _ = sample(starters, "images", "000.png")
        bomb = io.BytesIO()
        Image.new("1", (40_000, 1_000)).save(bomb, "PNG")
        data = {
            "empty": b"",
            "text": b"hello",
            "bomb": bomb.getvalue(),
            "cut off": image[: len(image) // 2],
            "wav": sample(starters, "speech", "000.wav")[0],
        }[kind]
        with served.client() as it:
            answer = it.post("/v1/images/classifications", data={"model": "images"}, files={"file": data})
        assert answer.status_code in (400, 413), answer.text
        assert answer.json()["detail"] and "Traceback" not in answer.text

    def test_answers_are_metered(self, served: Process, starters: Path) -> None:
        image, _ = sample(starters, "images", "000.png")
        with served.client() as it:
            answer = it.post("/v1/images/classifications", data={"model": "images"}, files={"file": image})
            cost = answer.json()["usage"]["maasdam"]
            assert cost["compute_seconds"] > 0 and cost["version"] == 1
            assert cost["joules"] is not None or "set MAASDAM_WATTS_PER_CORE" in cost["energy_method"]
            text = it.get("/metrics").text
            assert 'maasdam_requests_total{model="images",status="200",task="image-classification",version="1"}' in text
            usage = it.get("/admin/usage?by=key&since=1h").json()["usage"]
            assert usage[0]["name"].startswith("clients (") and usage[0]["requests"] > 0


def test_sigterm_lets_requests_in_flight_finish(tmp_path: Path, starters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAASDAM_SHUTDOWN_GRACE_SECONDS", "60")  # it is not about speed
    workspace = open_home(tmp_path)
    add_starters(workspace, starters)
    workspace.catalog.undeploy("images")
    workspace.catalog.undeploy("speech")
    _, key = workspace.keys.create("clients", ["infer"])
    workspace.close()
    with serving(tmp_path, key) as running, running.client() as it:
        body = {"model": "text", "prompt": "To be", "max_tokens": 60, "ignore_eos": True, "stream": True}
        with it.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            running.process.terminate()
            rest = list(lines)
        assert rest[-2] == "data: [DONE]"
        assert '"finish_reason":"length"' in "".join(rest)
        assert running.process.wait(20) == 0
        assert "Traceback" not in running.log.read_text()
        with pytest.raises(httpx.TransportError):
            it.get("/health")
