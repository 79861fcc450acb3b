"""Whisper engines: text by segments, always the same, and what happens when things go wrong. The model babbles."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest

from maasdam.core import Artifact, Sampling, SequenceEngine, SequenceRequest, Tokens
from maasdam.engines import open_engine
from maasdam.errors import DeadlineExceeded, EngineFailure, InvalidField, InvalidInput
from tests.engines import tiny_whisper
from tests.waiting import until

NOISE = (0.1 * np.random.default_rng(0).normal(size=(1, 32_000))).astype(np.float32)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    source = tiny_whisper.huggingface(tmp_path_factory.mktemp("huggingface"))
    return {"transformers": source, "ctranslate2": tiny_whisper.ctranslate2(source, tmp_path_factory.mktemp("ct2"))}


@pytest.fixture(scope="module", params=["transformers", "ctranslate2"])
def engine(request: pytest.FixtureRequest, artifacts: dict[str, Artifact]) -> Iterator[SequenceEngine]:
    opened = open_engine(artifacts[request.param], threads=1)
    assert isinstance(opened, SequenceEngine)
    yield opened
    opened.close()


async def heard(engine: SequenceEngine, deadline: float | None = None, **inputs: Any) -> list[Tokens]:
    request = SequenceRequest("test", {"waveform": NOISE, **inputs}, deadline=deadline)
    return [tokens async for tokens in engine.submit(request)]


async def test_segments_come_and_the_last_one_ends_it(engine: SequenceEngine) -> None:
    found = await heard(engine)
    assert [t.finish_reason for t in found] == [None] * (len(found) - 1) + ["stop"]
    assert len(found) > 1 and all(t.text for t in found[:-1])
    for tokens in found[:-1]:
        (segment,) = tokens.segments
        assert segment["text"] == tokens.text and 0 <= segment["start"] <= segment["end"]
    assert found[-1].cost is not None and found[-1].cost.cpu_seconds > 0


async def test_the_same_recording_always_gives_the_same_text(engine: SequenceEngine) -> None:
    texts = [[t.text for t in found] for found in await asyncio.gather(*(heard(engine) for _ in range(3)))]
    assert texts[0] == texts[1] == texts[2]


async def test_a_prompt_goes_before_and_temperature_samples_by_chance(engine: SequenceEngine) -> None:
    def written(found: list[Tokens]) -> list[int]:
        return [i for tokens in found for i in tokens.token_ids]

    plain = written(await heard(engine))
    assert written(await heard(engine, prompt=np.array(["the cat sat"], dtype=object))) != plain
    request = SequenceRequest("test", {"waveform": NOISE}, Sampling(temperature=1.0))
    assert written([tokens async for tokens in engine.submit(request)]) != plain
    assert written(await heard(engine)) == plain


async def test_a_recording_longer_than_a_window_is_heard_to_the_end(engine: SequenceEngine) -> None:
    found = await heard(engine, waveform=np.tile(NOISE, 20))
    assert found[-2].segments[0]["start"] > 30


async def test_past_its_deadline_a_recording_ends_and_the_next_goes_on(engine: SequenceEngine) -> None:
    with pytest.raises(DeadlineExceeded):
        await heard(engine, deadline=time.monotonic() - 1)
    assert (await heard(engine))[-1].finish_reason == "stop"


async def test_word_times_where_the_engine_has_them(artifacts: dict[str, Artifact]) -> None:
    engine = cast(SequenceEngine, open_engine(artifacts["ctranslate2"], threads=1))
    found = await heard(engine, timestamps=np.array([True]))
    assert all("words" in t.segments[0] for t in found[:-1])
    with pytest.raises(InvalidField, match="'xx'"):
        await heard(engine, language=np.array(["xx"], dtype=object))
    engine.close()


async def test_leaving_early_cancels(engine: SequenceEngine) -> None:
    tokens = cast(Any, engine.submit(SequenceRequest("test", {"waveform": np.tile(NOISE, 20)})))
    await anext(tokens)
    await tokens.aclose()
    assert (await heard(engine))[-1].finish_reason == "stop"


@pytest.mark.parametrize("name", ["transformers", "ctranslate2"])
async def test_closing_ends_what_runs_with_a_failure(artifacts: dict[str, Artifact], name: str) -> None:
    engine = cast(SequenceEngine, open_engine(artifacts[name], threads=1))
    tasks = [asyncio.create_task(heard(engine)) for _ in range(3)]
    await until(lambda: len(cast(Any, engine)._turns._waiting) in (1, 2))  # the first, or the second, is being heard
    await asyncio.to_thread(engine.close)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(ends[-1], EngineFailure)
    with pytest.raises(EngineFailure, match="closed"):
        await heard(engine)


def test_a_precision_that_is_none_is_refused(artifacts: dict[str, Artifact]) -> None:
    with pytest.raises(InvalidInput, match="precision"):
        open_engine(artifacts["ctranslate2"], settings={"precision": "f8"})
