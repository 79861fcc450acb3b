"""A running copy's promises."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from typing import Any

import numpy as np
import pytest
from tests.fakes import FakeEngine, FakeProcessor, FakeSequenceEngine, FakeTextStream
from tests.waiting import until

from maasdam.core import (
    ANONYMOUS,
    AudioPayload,
    Batching,
    Checked,
    Chunk,
    ImagePayload,
    Payload,
    Request,
    Sampling,
    TensorPayload,
    Tensors,
    TextPayload,
    TextPiece,
    Tokens,
    Tried,
    WithoutNan,
)
from maasdam.errors import EngineFailure, InvalidInput, InvalidPayload, InvalidTensor, Overloaded
from maasdam.serving import replica as serving
from maasdam.serving.replica import SequenceReplica, TensorReplica
from maasdam.telemetry.meter import CpuMeter


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as it:
        yield it


def tensor_replica(
    pool: ThreadPoolExecutor, engine: FakeEngine | None = None, task: str = "image-classification"
) -> TensorReplica:
    return TensorReplica(engine or FakeEngine(), FakeProcessor(task), pool=pool, meter=CpuMeter(), queue_size=10)


def text_replica(pool: ThreadPoolExecutor, engine: FakeSequenceEngine, queue_size: int = 10) -> SequenceReplica:
    processor = FakeProcessor("text-generation")
    return SequenceReplica(engine, processor, pool=pool, queue_size=queue_size, max_tokens=8, text_stream=processor.stream)


def request(payload: Payload) -> Request:
    return Request("r1", "m", (payload,), ANONYMOUS)


async def every(chunks: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in chunks]


async def test_bad_payload_fails_only_its_sender(pool: ThreadPoolExecutor) -> None:
    replica = tensor_replica(pool)
    payloads = [ImagePayload(b"AB"), ImagePayload(b"bad"), ImagePayload(b"CD")]
    answers = await asyncio.gather(*(every(replica.answer(request(p))) for p in payloads), return_exceptions=True)
    assert isinstance(answers[1], InvalidPayload)
    for answer, best in ((answers[0], 2 * ord("B")), (answers[2], 2 * ord("D"))):
        assert not isinstance(answer, BaseException)
        assert answer[0].is_last and answer[0].value.labels[0].score == best
    assert replica.in_flight == 0
    await asyncio.to_thread(replica.close)


@pytest.mark.parametrize(
    "tensors",
    [
        {"x": np.array([[np.nan, 1]], np.float32)},
        {"x": np.ones((1, 3), np.float32)},
        {"x": np.ones((1, 2), np.float64)},
        {"z": np.ones((1, 2), np.float32)},
        {"x": np.ones((1, 2), np.float32), "z": np.ones((1, 2), np.float32)},
        {"x": np.ones((0, 2), np.float32)},
    ],
)
async def test_tensors_that_do_not_fit_never_reach_the_engine(pool: ThreadPoolExecutor, tensors: dict[str, Any]) -> None:
    engine = FakeEngine()
    replica = tensor_replica(pool, engine)
    with pytest.raises(InvalidTensor):
        await every(replica.answer(request(TensorPayload(tensors))))
    assert engine.batches == []
    await asyncio.to_thread(replica.close)


async def test_tensors_are_held_to_be_what_others_were_only_where_all_that_counts_is_the_same(pool: ThreadPoolExecutor) -> None:
    replica = tensor_replica(pool)
    fits = WithoutNan(x=np.ones((1, 2), np.float32))
    assert await every(replica.answer(request(TensorPayload(fits))))
    unfit = (
        WithoutNan(x=np.ones((1, 3), np.float32)),
        WithoutNan(x=np.ones((1, 2), np.float64)),
        WithoutNan(y=np.ones((1, 2), np.float32)),
        {"x": np.array([[np.nan, 1]], np.float32)},
    )
    for _ in range(2):
        for tensors in unfit:
            with pytest.raises(InvalidTensor):
                await every(replica.answer(request(TensorPayload(tensors))))
        assert await every(replica.answer(request(TensorPayload(fits))))
    await asyncio.to_thread(replica.close)


async def test_a_payload_of_another_task_is_told_where_to_go(pool: ThreadPoolExecutor) -> None:
    replica = tensor_replica(pool)
    with pytest.raises(InvalidInput, match="/v1/images/classifications"):
        await every(replica.answer(request(AudioPayload(b"AB"))))
    with pytest.raises(InvalidInput, match="/v1/chat/completions"):
        await every(text_replica(pool, FakeSequenceEngine()).answer(request(TensorPayload({}))))
    await asyncio.to_thread(replica.close)


async def test_text_comes_in_pieces_and_only_the_last_is_last(pool: ThreadPoolExecutor) -> None:
    payload = TextPayload(prompt="hello", sampling=Sampling(max_tokens=3))
    chunks = await every(text_replica(pool, FakeSequenceEngine()).answer(request(payload)))
    pieces = [chunk.value for chunk in chunks]
    assert all(isinstance(piece, TextPiece) for piece in pieces)
    assert "".join(piece.text for piece in pieces) == "abc"
    assert [chunk.is_last for chunk in chunks] == [False, False, True]
    assert chunks[-1].units.prompt_tokens == 5 and chunks[-1].units.completion_tokens == 3
    assert chunks[-1].cost is not None and chunks[-1].cost.cpu_seconds == pytest.approx(0.003)


@pytest.mark.parametrize(("seconds", "tokens_before"), [(0.03, 2), (0.25, 1)])
async def test_a_decoder_that_takes_long_leaves_the_event_loop(
    pool: ThreadPoolExecutor, seconds: float, tokens_before: int
) -> None:
    """A tokenizer's decoder comes with the model, and may be slow, by malice or by mistake."""
    where: list[int] = []

    class Slow(FakeTextStream):
        def feed(self, token_ids: Sequence[int]) -> str:
            where.append(threading.get_ident())
            began = time.thread_time()
            while time.thread_time() - began < seconds:
                pass
            return super().feed(token_ids)

    processor = FakeProcessor("text-generation")
    replica = SequenceReplica(
        FakeSequenceEngine(), processor, pool=pool, queue_size=10, text_stream=lambda stop, after: Slow(stop)
    )
    payload = TextPayload(prompt="x", sampling=Sampling(max_tokens=4))
    chunks = await every(replica.answer(request(payload)))
    assert "".join(chunk.value.text for chunk in chunks) == "abcd"
    assert set(where[:tokens_before]) == {threading.get_ident()} and threading.get_ident() not in where[tokens_before:]


async def test_a_stop_string_ends_the_generation_in_the_engine_too(pool: ThreadPoolExecutor) -> None:
    engine = FakeSequenceEngine()
    payload = TextPayload(prompt="x", sampling=Sampling(max_tokens=20, stop=("c",)))
    chunks = await every(text_replica(pool, engine).answer(request(payload)))
    assert "".join(chunk.value.text for chunk in chunks) == "ab"
    assert chunks[-1].value.finish_reason == "stop"
    await until(lambda: engine.cancelled == ["r1"])


async def test_a_prompt_beyond_the_context_is_refused_and_a_long_answer_is_fitted(pool: ThreadPoolExecutor) -> None:
    replica = text_replica(pool, FakeSequenceEngine())
    with pytest.raises(InvalidPayload, match="context is 64"):
        await every(replica.answer(request(TextPayload(prompt="x" * 64))))
    chunks = await every(replica.answer(request(TextPayload(prompt="x" * 60, sampling=Sampling(max_tokens=100)))))
    assert len(chunks) == 4 and chunks[-1].value.finish_reason == "length"


async def test_closing_the_answer_cancels_the_generation(pool: ThreadPoolExecutor) -> None:
    engine = FakeSequenceEngine(delay=0.001)
    replica = text_replica(pool, engine)
    async with aclosing(replica.answer(request(TextPayload(prompt="x")))) as chunks:
        await anext(chunks)
        assert engine.cancelled == []
    await until(lambda: engine.cancelled == ["r1"] and replica.in_flight == 0)


async def test_an_engine_that_breaks_or_stops_mid_way_is_an_engine_failure(pool: ThreadPoolExecutor) -> None:
    class Silent(FakeSequenceEngine):
        async def submit(self, request: Any) -> AsyncIterator[Any]:
            return
            yield

    with pytest.raises(EngineFailure):
        await every(text_replica(pool, Silent()).answer(request(TextPayload(prompt="x"))))
    with pytest.raises(RuntimeError):
        await every(text_replica(pool, FakeSequenceEngine(fails_after=2)).answer(request(TextPayload(prompt="x"))))


async def test_an_answer_that_can_not_be_read_ends_with_an_error(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: Any, piece: Any) -> None:
        raise TypeError("unforeseen")

    class Posting(FakeSequenceEngine):
        """As engines with a thread do: an error of who hears is nothing to it."""

        def start(self, request: Any, hear: Any) -> Any:
            def post() -> None:
                with suppress(TypeError):
                    hear(Tokens((1,), finish_reason="stop"))

            asyncio.get_running_loop().call_soon(post)
            return lambda: None

    replica, prepared = text_replica(pool, Posting()), serving._prompt
    monkeypatch.setattr("maasdam.serving.replica.AnswerReader.read", read)
    thinks = ("<think>", "</think>", False)
    monkeypatch.setattr("maasdam.serving.replica._prompt", lambda *given: (*prepared(*given)[:3], thinks))
    monkeypatch.setattr(replica, "_text_stream", lambda *given, **more: FakeProcessor("text-generation").stream(*given))
    with pytest.raises(TypeError, match="unforeseen"):
        async with asyncio.timeout(5):
            await every(replica.answer(request(TextPayload(prompt="x"))))
    assert replica.in_flight == 0


async def test_a_full_sequence_replica_answers_at_once(pool: ThreadPoolExecutor) -> None:
    engine = FakeSequenceEngine(delay=0.01)
    replica = text_replica(pool, engine, queue_size=1)
    first = asyncio.create_task(every(replica.answer(request(TextPayload(prompt="x")))))
    await until(lambda: engine.given)
    with pytest.raises(Overloaded):
        await every(replica.answer(request(TextPayload(prompt="x"))))
    assert len(await first) == 8


async def test_a_requests_values_are_looked_through_once(pool: ThreadPoolExecutor) -> None:
    """The engine checks whatever comes to it from elsewhere; what the replica has checked it takes as it is."""
    seen: list[bool] = []

    class Checks(FakeEngine):
        def run(self, batch: Tensors) -> dict[str, Any]:
            seen.append(isinstance(batch, Checked))
            self.signature.check(batch)
            return super().run(batch)

    finding = Batching("independent", "tried", (Tried(16, {"x": (2,)}),))
    replica = TensorReplica(Checks(), None, pool=pool, meter=CpuMeter(), queue_size=10, batching=finding)
    rows = [TensorPayload({"x": np.full((1, 2), i, np.float32)}) for i in range(6)]
    await asyncio.gather(*(every(replica.answer(request(row))) for row in rows))
    assert seen and all(seen)
    with pytest.raises(InvalidTensor):
        Checks().run({"x": np.full((1, 2), np.nan, np.float32)})
    await asyncio.to_thread(replica.close)
