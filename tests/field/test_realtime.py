"""Speech that is written down while it is spoken, over a websocket, by OpenAI's own client and by hand."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import csv
import json
from collections.abc import AsyncIterator, Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import openai
import psutil
import pytest
import soundfile
import soxr
import uvicorn
import websockets
from tests.served import Process, add, add_mlp, open_home, serving
from tests.waiting import until, wait_until
from uvicorn.server import ServerState

from maasdam.accounts.keys import Keys
from maasdam.api.sockets import SOCKET_OPTIONS, Socket
from maasdam.operations.workspace import Workspace
from maasdam.sources import ingest
from maasdam.tasks.pcm import from_a_law, from_mu_law, recording
from maasdam.tasks.turns import Loudness, TurnFinder, TurnSettings

TRANSCRIPTION = "conversation.item.input_audio_transcription"
MODEL = {"model": "speech"}


@pytest.fixture(scope="module")
def served(starters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    home = tmp_path_factory.mktemp("home")
    workspace = open_home(home)
    add_speech(workspace, starters)
    add_mlp(workspace)
    _, key = workspace.keys.create("test", ["infer", "admin"])
    workspace.close()
    with serving(home, key, "--workers", "2") as running:
        yield running


def add_speech(workspace: Workspace, starters: Path) -> None:
    add(workspace, "speech", ingest(str(starters / "speech" / "model"), workspace.store, task="automatic-speech-recognition"))


def spoken(starters: Path, number: int) -> tuple[bytes, str]:
    """A recording that ships with the project as 16-bit samples at 24 kHz, and what is said in it."""
    folder = starters / "speech" / "samples"
    with (folder / "metadata.csv").open() as file:
        row = list(csv.DictReader(file))[number]
    wave, rate = soundfile.read(folder / row["file_name"], dtype="float32")
    return pcm(soxr.resample(wave, rate, 24_000)), row["transcription"]


def pcm(wave: Any) -> bytes:
    return bytes((np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes())


def silence(seconds: float) -> bytes:
    return bytes(2 * round(24_000 * seconds))


def append(data: bytes) -> dict[str, Any]:
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()}


def update(**heard: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "transcription", "audio": {"input": heard}}}


class Talk:
    """A session by hand."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket

    async def say(self, *events: Any) -> None:
        for event in events:
            await self.socket.send(event if isinstance(event, str | bytes) else json.dumps(event))

    async def speak(self, sound: bytes) -> None:
        """Pieces of half a second, with as long between them as a hearing takes."""
        for piece in frames(sound, 500):
            await self.say(append(piece))
            await asyncio.sleep(0.2)

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """The events up to the next of this kind; an error that is not waited for fails the test."""
        seen: list[dict[str, Any]] = []
        async with asyncio.timeout(30):
            while not seen or seen[-1]["type"] != kind:
                seen.append(json.loads(await self.socket.recv()))
                assert kind == "error" or seen[-1]["type"] != "error", seen[-1]
        return seen


@contextlib.asynccontextmanager
async def talk(served: Process, query: str = "?intent=transcription&model=speech", **options: Any) -> AsyncIterator[Talk]:
    options.setdefault("additional_headers", served.headers)
    async with websockets.connect(f"{served.url.replace('http', 'ws')}/v1/realtime{query}", **options) as socket:
        it = Talk(socket)
        await it.until("session.created")
        yield it


def row_of(served: Process, item: str) -> dict[str, Any]:
    with served.client() as client:
        answer = client.get(f"/admin/requests/{item.removeprefix('item_')}")
        return dict(answer.json()["ledger"]) if answer.status_code == 200 and answer.json()["ledger"] else {}


def frames(data: bytes, milliseconds: int = 20) -> list[bytes]:
    size = 48 * milliseconds
    return [data[i : i + size] for i in range(0, len(data), size)]


async def test_openais_client_speaks_in_real_time_and_reads_along(served: Process, starters: Path) -> None:
    """Frames of 20 ms, each when it is due: words come while they are spoken, turns end by themselves, and are billed once."""
    sound, said = spoken(starters, 0)
    client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key)
    events: list[Any] = []
    async with client, client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        assert (await connection.recv()).type == "session.created"
        heard: Any = {"transcription": MODEL, "turn_detection": {"type": "server_vad", "silence_duration_ms": 400}}
        await connection.session.update(session={"type": "transcription", "audio": {"input": heard}})
        told: Any = await connection.recv()
        assert told.type == "session.updated" and told.session.audio.input.turn_detection.silence_duration_ms == 400
        loop = asyncio.get_running_loop()

        async def speak() -> None:
            begun = loop.time()
            for i, frame in enumerate(frames(silence(0.3) + sound + silence(0.7))):
                await asyncio.sleep(max(0.0, begun + 0.02 * i - loop.time()))
                await connection.input_audio_buffer.append(audio=base64.b64encode(frame).decode())

        speaking = asyncio.create_task(speak())
        async with asyncio.timeout(30):
            async for event in connection:
                events.append((speaking.done(), event))
                if event.type == f"{TRANSCRIPTION}.completed":
                    break
        await speaking
    kinds = [event.type for _, event in events]
    assert [kind for kind in kinds if not kind.startswith(TRANSCRIPTION)] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
    ]
    assert kinds.index(f"{TRANSCRIPTION}.delta") < kinds.index("input_audio_buffer.speech_stopped"), "words while one speaks"
    done: Any = events[-1][1]
    deltas = "".join(event.delta for _, event in events if event.type == f"{TRANSCRIPTION}.delta")
    assert deltas == done.transcript == said
    assert len({event.item_id for _, event in events if hasattr(event, "item_id")}) == 1
    seconds = len(sound) / 48_000
    assert 0.6 * seconds < done.usage.seconds < seconds + 1.1
    row = row_of(served, done.item_id)
    assert (row["status"], row["endpoint"], row["audio_seconds"]) == (200, "/v1/realtime", done.usage.seconds)
    assert row["compute_seconds"] > 0


@pytest.mark.parametrize("kind", ["audio/pcm", "audio/pcmu", "audio/pcma"])
async def test_each_format_says_what_the_file_says(served: Process, starters: Path, kind: str) -> None:
    """Without turns, committed by hand: what /v1/audio/transcriptions writes of the same sound."""
    sound, said = spoken(starters, 0)
    law = {"audio/pcmu": ("ULAW", from_mu_law), "audio/pcma": ("ALAW", from_a_law)}.get(kind)
    if law is not None:
        import io

        wave = soxr.resample(np.frombuffer(sound, "<i2").astype(np.float32) / 32768, 24_000, 8_000)
        out = io.BytesIO()
        soundfile.write(out, wave, 8_000, subtype=law[0], format="RAW")
        sound = out.getvalue()
        theirs, _ = soundfile.read(io.BytesIO(sound), dtype="int16", format="RAW", subtype=law[0], channels=1, samplerate=8_000)
        assert law[1](sound) == theirs.astype("<i2").tobytes(), "as libsndfile reads it"
    async with talk(served) as it:
        await it.say(update(format={"type": kind}, turn_detection=None))
        await it.until("session.updated")
        await it.say(*(append(piece) for piece in frames(sound, 500)), {"type": "input_audio_buffer.commit"})
        done = (await it.until(f"{TRANSCRIPTION}.completed"))[-1]
        assert done["transcript"] == said
        assert done["usage"]["seconds"] == pytest.approx(len(sound) / (8_000 if law else 48_000), abs=1e-3)


async def test_older_clients_are_answered_in_older_words(served: Process, starters: Path) -> None:
    sound, said = spoken(starters, 1)
    headers = {"OpenAI-Beta": "realtime=v1", **served.headers}
    async with talk(served, "?intent=transcription", additional_headers=headers) as it:
        session = {"input_audio_format": "pcm16", "input_audio_transcription": MODEL, "turn_detection": None}
        await it.say({"type": "transcription_session.update", "session": session})
        told = (await it.until("transcription_session.updated"))[-1]["session"]
        assert told["turn_detection"] is None and told["input_audio_transcription"]["model"] == "speech"
        await it.say(append(sound), {"type": "input_audio_buffer.commit"})
        events = await it.until(f"{TRANSCRIPTION}.completed")
        assert "conversation.item.created" in [event["type"] for event in events] and events[-1]["transcript"] == said


@pytest.mark.parametrize("size", [320, 7777, 10**6])
def test_turns_without_a_detector_stand_out_from_the_room(starters: Path, size: int) -> None:
    """A room that hums at -40 dB, quiet at first: the hum is no speech, and how the sound is cut in pieces changes nothing."""
    room = np.random.default_rng(0).normal(0, 0.01, 24_000 * 8)
    room[:24_000] *= 0.01
    speech = np.frombuffer(spoken(starters, 0)[0], "<i2") / 32768
    room[24_000 * 4 : 24_000 * 4 + len(speech)] += speech
    finder = TurnFinder(24_000, TurnSettings(), Loudness(24_000))
    turns = [turn for piece in range(0, len(room), size) for turn in finder.hear(pcm(room[piece : piece + size]))]
    turns = [turn for turn in turns if turn.place > 24_000 * 3.5]
    assert [turn.begins for turn in turns] == [True, False]
    assert abs(turns[0].place - 24_000 * 4) < 24_000 * 0.4
    assert 0 < turns[1].place - 24_000 * 4 - len(speech) < 24_000 * 0.8


async def test_two_turns_in_one_piece_are_two_items_in_order(served: Process, starters: Path) -> None:
    (one, said), (other, also) = spoken(starters, 0), spoken(starters, 9)
    async with talk(served) as it:
        await it.say(append(silence(0.5) + one + silence(1) + other + silence(1)))
        first, second = [(await it.until(f"{TRANSCRIPTION}.completed"))[-1] for _ in range(2)]
        assert (first["transcript"], second["transcript"]) == (said, also)
        assert first["item_id"] != second["item_id"]


async def test_long_speech_is_cut_where_it_is_quiet_and_billed_once(served: Process, starters: Path) -> None:
    """Longer than is heard at once: nothing is lost at the cuts, and work grows with the length."""
    sound = b"".join(spoken(starters, number)[0] + silence(0.4) for number in range(14))
    assert len(sound) / 48_000 > 30
    with served.client() as client:
        files = {"file": recording(sound, 24_000)}
        whole = client.post("/v1/audio/transcriptions", files=files, data=MODEL).json()["text"].split()
    async with talk(served) as it:
        await it.say(update(turn_detection=None))
        await it.until("session.updated")
        for piece in frames(sound, 2000):
            await it.say(append(piece))
        await it.say({"type": "input_audio_buffer.commit"})
        events = await it.until(f"{TRANSCRIPTION}.completed")
    words = events[-1]["transcript"].split()
    assert SequenceMatcher(None, words, whole).ratio() > 0.95
    deltas = "".join(event.get("delta", "") for event in events)
    assert deltas.split() == words
    assert events[-1]["usage"]["seconds"] == pytest.approx(len(sound) / 48_000, abs=1e-3)


async def test_a_line_that_drops_in_midst_of_speech_is_billed_as_heard(served: Process, starters: Path) -> None:
    sound = spoken(starters, 11)[0]
    async with talk(served) as it:
        await it.speak(silence(0.2) + sound)
        item = (await it.until(f"{TRANSCRIPTION}.delta"))[-1]["item_id"]
        it.socket.transport.abort()
    wait_until(lambda: bool(row_of(served, item)), 10)
    row = row_of(served, item)
    assert (row["status"], row["error_code"]) == (499, "client_closed")
    assert 0.5 <= row["audio_seconds"] <= len(sound) / 48_000 + 0.3


@pytest.mark.parametrize("how", ["authorization", "api-key", "subprotocol"])
async def test_each_way_to_show_a_key(served: Process, how: str) -> None:
    protocols = ["realtime", f"openai-insecure-api-key.{served.key}"] if how == "subprotocol" else None
    headers = {"authorization": served.headers, "api-key": {"api-key": served.key}, "subprotocol": {}}[how]
    async with talk(served, additional_headers=headers, subprotocols=protocols) as it:
        assert it.socket.subprotocol == ("realtime" if protocols else None)


@pytest.mark.parametrize(
    ("query", "headers", "status", "says"),
    [
        ("?model=speech", {}, 401, "no API key"),
        ("?model=speech", {"Authorization": "Bearer mdm_0_x"}, 401, "unknown"),
        ("?model=nothing", None, 404, "nothing"),
        ("?model=mlp", None, 400, "raw tensors"),
        ("?intent=chat", None, 400, "transcription"),
        ("?voice=alloy", None, 400, "voice"),
    ],
)
async def test_who_may_not_come_in_is_told_why(
    served: Process, query: str, headers: dict[str, str] | None, status: int, says: str
) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with talk(served, query, additional_headers=served.headers if headers is None else headers):
            pass
    response = refused.value.response
    assert response.status_code == status and response.body is not None
    assert says in json.loads(response.body)["error"]["message"] and response.headers["x-request-id"]


async def test_a_revoked_key_ends_the_session_within_a_second_or_so(served: Process) -> None:
    workspace = open_home(served.log.parent)
    keys: Keys = workspace.keys
    made, secret = keys.create("leaves", ["infer"])
    async with talk(served, additional_headers={"Authorization": f"Bearer {secret}"}) as it:
        keys.revoke(made.id)
        error = (await it.until("error"))[-1]["error"]
        assert "revoked" in error["message"] and error["type"] == "authentication_error"
        with pytest.raises(websockets.ConnectionClosed):
            await asyncio.wait_for(it.socket.recv(), 10)
        assert it.socket.close_code == 1008
    workspace.close()


SESSION = "session.audio.input"
WRONG: list[tuple[Any, str]] = [
    ("{", "JSON"),
    ("", "JSON"),
    ("[1, 2]", "object"),
    ("null", "object"),
    ('"text"', "object"),
    ("NaN", "JSON"),
    ("[" * 5000, "deep"),
    (b"\x00\x01binary", "binary"),
    ({}, "type"),
    ({"type": 7}, "type"),
    ({"type": "nothing.known"}, "nothing.known"),
    ({"type": "response.create"}, "response.create"),
    ({"type": "conversation.item.create", "item": {}}, "conversation.item.create"),
    ({"type": "input_audio_buffer.append"}, "audio"),
    ({"type": "input_audio_buffer.append", "audio": 7}, "audio"),
    ({"type": "input_audio_buffer.append", "audio": "no base64!"}, "base64"),
    ({"type": "input_audio_buffer.append", "audio": "\u00e9\u00e9\u00e9\u00e9"}, "base64"),
    ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "3 bytes"),
    ({"type": "input_audio_buffer.append", "audio": "", "more": 1}, "more"),
    ({"type": "input_audio_buffer.commit"}, "too small"),
    ({"type": "session.update"}, "session"),
    ({"type": "session.update", "session": []}, "session"),
    ({"type": "session.update", "session": {"type": "realtime"}}, "session.type"),
    ({"type": "session.update", "session": {"instructions": "sing"}}, "instructions"),
    ({"type": "session.update", "session": {"include": ["item.input_audio_transcription.logprobs"]}}, "include"),
    ({"type": "session.update", "session": {"audio": {"output": {}}}}, "output"),
    (update(format={"type": "audio/mp3"}), f"{SESSION}.format.type"),
    (update(format={"type": "audio/pcm", "rate": 16_000}), f"{SESSION}.format.rate"),
    (update(noise_reduction={"type": "near_field"}), "noise_reduction"),
    (update(transcription={"model": "nothing"}), "nothing"),
    (update(transcription={"model": "mlp"}), "raw tensors"),
    (update(transcription={"model": ["speech"]}), "transcription.model"),
    (update(transcription={"model": "speech", "prompt": "digits"}), "prompt"),
    (update(transcription={"language": 5}), "language"),
    (update(turn_detection={"type": "semantic_vad"}), f"{SESSION}.turn_detection.type"),
    (update(turn_detection={"type": "server_vad", "threshold": 2}), "threshold"),
    (update(turn_detection={"type": "server_vad", "threshold": True}), "threshold"),
    (update(turn_detection={"type": "server_vad", "silence_duration_ms": -1}), "silence_duration_ms"),
    (update(turn_detection={"type": "server_vad", "silence_duration_ms": 1e300}), "silence_duration_ms"),
    (update(turn_detection={"type": "server_vad", "prefix_padding_ms": 1.5}), "prefix_padding_ms"),
    (update(turn_detection={"type": "server_vad", "create_response": True}), "create_response"),
    (update(turn_detection="server_vad"), "turn_detection"),
]


async def test_what_is_wrong_is_named_and_the_session_goes_on(served: Process, starters: Path) -> None:
    async with talk(served) as it:
        for number, (event, says) in enumerate(WRONG):
            if isinstance(event, dict):
                event = event | {"event_id": f"mine_{number}"}
            await it.say(event)
            error = (await it.until("error"))[-1]["error"]
            assert says in error["message"], (event, error)
            assert error["type"] == "invalid_request_error" and set(error) == {"message", "type", "param", "code", "event_id"}
            if isinstance(event, dict):
                assert error["event_id"] == f"mine_{number}"
        sound, said = spoken(starters, 1)
        await it.say(append(silence(0.3) + sound + silence(1)))
        assert (await it.until(f"{TRANSCRIPTION}.completed"))[-1]["transcript"] == said


async def test_no_model_no_sound(served: Process) -> None:
    async with talk(served, "") as it:
        await it.say(append(silence(0.1)))
        assert "model" in (await it.until("error"))[-1]["error"]["message"]


async def test_floods_harm_nobody(served: Process, starters: Path) -> None:
    """Messages and frames that are too large, sound that nobody listens to, thousands of items, one who never reads."""
    workers = [psutil.Process(pid) for pid in served.workers]
    before = sum(worker.memory_info().rss for worker in workers)
    neighbour = spoken(starters, 1)
    with contextlib.suppress(AttributeError):  # of the client's own, whose connection is gone when it closes it
        async with talk(served) as it:
            with pytest.raises(websockets.ConnectionClosed):
                await it.say(append(bytes(10_000_000)))
                await it.until("nothing")
            assert it.socket.close_code == 1009
    async with talk(served) as it:
        with pytest.raises(websockets.ConnectionClosed):
            await it.socket.send([b""] + [b"x"] * 3000)
            await it.until("nothing")
        assert it.socket.close_code == 1008
    async with talk(served) as it:
        with pytest.raises(websockets.ConnectionClosed):
            for _ in range(400):
                await it.say("{")
            while True:
                await it.socket.recv()
        assert it.socket.close_code == 1008
    async with talk(served, max_queue=1) as deaf, talk(served) as it, talk(served) as quiet:
        await deaf.say(update(turn_detection=None))
        noise = pcm(np.random.default_rng(0).normal(0, 0.1, 2_400))

        async def flood() -> None:
            with contextlib.suppress(websockets.ConnectionClosed):
                while True:
                    await deaf.say(append(noise), {"type": "input_audio_buffer.commit"})

        flooding = asyncio.create_task(flood())
        for _ in range(20):
            await quiet.say(append(silence(30)))
        await it.say(append(silence(0.3) + neighbour[0] + silence(1)))
        assert (await it.until(f"{TRANSCRIPTION}.completed"))[-1]["transcript"] == neighbour[1]
        await quiet.say({"type": "input_audio_buffer.clear"})
        assert len(await quiet.until("input_audio_buffer.cleared")) == 1, "silence is no speech"
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
        deaf.socket.transport.abort()
    assert sum(worker.memory_info().rss for worker in workers) - before < 150_000_000
    with served.client() as client:
        assert client.get("/v2/health/ready").status_code == 200


async def test_who_sends_more_than_is_read_is_not_taken_for_gone() -> None:
    """Its answer to a ping stands behind what is not read yet."""
    ended: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.sleep(0.6)
        while (message := await receive())["type"] != "websocket.disconnect":
            pass
        ended.append(message["code"])

    options = SOCKET_OPTIONS | {"ws_ping_interval": 0.1, "ws_ping_timeout": 0.1}
    config = uvicorn.Config(app, port=0, lifespan="off", log_config=None, **options)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Socket(config, state, {}), "127.0.0.1", 0)
    address = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server:
        async with websockets.connect(address) as socket:
            await socket.send("one")
            await asyncio.sleep(0.4)
            await socket.send("two")
        await until(lambda: ended)
        assert ended == [1000]
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(
            b"GET / HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        )
        writer.write(b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
        await asyncio.wait_for(reader.read(), 10)  # who answers no ping is gone: the connection ends
        writer.close()


async def test_a_key_leaves_places_and_what_is_being_said_is_written_down_before_the_service_ends(
    starters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAASDAM_MAX_SESSIONS", "4")
    workspace = open_home(tmp_path)
    add_speech(workspace, starters)
    _, key = workspace.keys.create("test", ["infer"])
    _, other = workspace.keys.create("other", ["infer"])
    workspace.close()
    sound, said = spoken(starters, 11)
    with serving(tmp_path, key) as running:
        async with talk(running), talk(running), talk(running):
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with talk(running):
                    pass
            body = refused.value.response.body
            assert refused.value.response.status_code == 503 and body is not None and b"3 realtime sessions of this key" in body
            async with talk(running, additional_headers={"Authorization": f"Bearer {other}"}):
                pass
        async with talk(running) as it:
            await it.speak(silence(0.3) + sound)
            await it.until(f"{TRANSCRIPTION}.delta")
            running.process.terminate()
            assert (await it.until(f"{TRANSCRIPTION}.completed"))[-1]["transcript"] == said
            assert "stopping" in (await it.until("error"))[-1]["error"]["message"]
            with pytest.raises(websockets.ConnectionClosed):
                await asyncio.wait_for(it.socket.recv(), 10)
            assert it.socket.close_code == 1001
        assert running.process.wait(20) == 0
