"""Engines that generate text: the same tokens alone, in a batch and by transformers; and what happens when things go wrong."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from maasdam.core import Artifact, Sampling, SequenceEngine, SequenceRequest, Tokens
from maasdam.engines import open_engine
from maasdam.engines.genai_engine import BLOCK, cache_tokens
from maasdam.engines.genai_steps import blocks_set_aside
from maasdam.errors import CallerError, DeadlineExceeded, EngineFailure, InvalidInput, InvalidPayload
from tests.engines import tiny_language_model
from tests.engines.tiny_language_model import CONTEXT, VOCABULARY

GREEDY = Sampling(max_tokens=24, temperature=0.0, ignore_eos=True)
PROMPTS = [np.random.default_rng(i).integers(4, VOCABULARY, (1, length)) for i, length in enumerate((3, 40, 1, 17, 60, 33))]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    source = tiny_language_model.huggingface(tmp_path_factory.mktemp("huggingface"))
    return {"transformers": source, "openvino-genai": tiny_language_model.genai(source, tmp_path_factory.mktemp("genai"))}


@pytest.fixture(scope="module", params=["openvino-genai", "transformers"])
def engine(request: pytest.FixtureRequest, artifacts: dict[str, Artifact]) -> Iterator[SequenceEngine]:
    opened = open_engine(artifacts[request.param], threads=1)
    assert isinstance(opened, SequenceEngine)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def reference(artifacts: dict[str, Artifact]) -> list[list[int]]:
    """What transformers' own generate says, greedily."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(artifacts["transformers"].path).eval()

    def continued(prompt: Any) -> list[int]:
        out = model.generate(torch.tensor(prompt), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
        return cast(list[int], out[0, prompt.shape[1] :].tolist())

    return [continued(p) for p in PROMPTS]


def ask(prompt: Any, sampling: Sampling = GREEDY, deadline: float | None = None) -> SequenceRequest:
    return SequenceRequest("test", {"input_ids": np.asarray(prompt, dtype=np.int64)}, sampling, deadline)


async def all_of(tokens: AsyncIterator[Tokens]) -> tuple[list[int], str | None]:
    ids: list[int] = []
    reason = None
    async for piece in tokens:
        ids += piece.token_ids
        reason = piece.finish_reason
    return ids, reason


async def test_greedy_tokens_equal_transformers(engine: SequenceEngine, reference: list[list[int]]) -> None:
    for prompt, want in zip(PROMPTS, reference, strict=True):
        assert await all_of(engine.submit(ask(prompt))) == (want, "length")


async def test_in_a_batch_each_gets_what_it_gets_alone(engine: SequenceEngine, reference: list[list[int]]) -> None:
    answers = await asyncio.gather(*(all_of(engine.submit(ask(p))) for p in PROMPTS * 3))
    assert [ids for ids, _ in answers] == reference * 3


async def test_a_request_joins_while_others_run(engine: SequenceEngine, reference: list[list[int]]) -> None:
    first = engine.submit(ask(PROMPTS[0]))
    begun = [await anext(first) for _ in range(3)]
    late = await all_of(engine.submit(ask(PROMPTS[1])))
    rest = await all_of(first)
    assert late[0] == reference[1]
    assert [i for t in begun for i in t.token_ids] + rest[0] == reference[0]


async def test_tokens_come_one_by_one(engine: SequenceEngine) -> None:
    pieces = [tokens async for tokens in engine.submit(ask(PROMPTS[0]))]
    assert [len(p.token_ids) for p in pieces] == [1] * 24
    assert [p.finish_reason for p in pieces] == [None] * 23 + ["length"]


async def test_compute_seconds_grow_and_are_less_than_the_time_it_took(engine: SequenceEngine) -> None:
    began = time.process_time()
    seconds = [tokens.cost and tokens.cost.cpu_seconds async for tokens in engine.submit(ask(PROMPTS[4]))]
    spent = time.process_time() - began
    assert all(s is not None for s in seconds)
    assert sorted(cast(list[float], seconds)) == seconds
    assert 0 < cast(float, seconds[-1]) <= spent


async def test_the_end_token_ends_it_and_is_not_handed_out(engine: SequenceEngine, reference: list[list[int]]) -> None:
    ends = engine._defaults
    at = next(i for i, token in enumerate(reference[1]) if token not in reference[1][:i] and i > 2)
    engine._defaults = replace(ends, eos=frozenset({reference[1][at]}))
    try:
        got = await all_of(engine.submit(ask(PROMPTS[1], replace(GREEDY, ignore_eos=False))))
        ignored = await all_of(engine.submit(ask(PROMPTS[1])))
    finally:
        engine._defaults = ends
    assert got == (reference[1][:at], "stop")
    assert ignored == (reference[1], "length")


async def test_the_same_seed_gives_the_same_text_also_in_a_batch(engine: SequenceEngine) -> None:
    hot = Sampling(max_tokens=12, temperature=1.5, seed=7, ignore_eos=True)
    alone = await all_of(engine.submit(ask(PROMPTS[0], hot)))
    several = [(PROMPTS[0], hot), (PROMPTS[1], replace(hot, seed=8)), (PROMPTS[0], hot), (PROMPTS[3], replace(hot, seed=None))]
    batch = await asyncio.gather(*(all_of(engine.submit(ask(p, s))) for p, s in several))
    other = await all_of(engine.submit(ask(PROMPTS[0], replace(hot, seed=8))))
    assert batch[0] == batch[2] == alone
    assert other != alone


async def test_without_a_seed_two_texts_differ(engine: SequenceEngine) -> None:
    hot = Sampling(max_tokens=20, temperature=2.0, ignore_eos=True)
    assert await all_of(engine.submit(ask(PROMPTS[0], hot))) != await all_of(engine.submit(ask(PROMPTS[0], hot)))


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 0.0}, {"temperature": 1e-7}])
async def test_the_narrowest_sampling_is_greedy(
    engine: SequenceEngine, reference: list[list[int]], narrow: dict[str, Any]
) -> None:
    sampling = replace(GREEDY, **({"temperature": 1.0, "seed": 3} | narrow))
    assert (await all_of(engine.submit(ask(PROMPTS[3], sampling))))[0] == reference[3]


async def test_penalties_change_what_repeats(engine: SequenceEngine) -> None:
    prompt = PROMPTS[5]
    plain, _ = await all_of(engine.submit(ask(prompt, replace(GREEDY, max_tokens=60))))
    assert len(set(plain)) < len(plain)
    punished, _ = await all_of(
        engine.submit(ask(prompt, replace(GREEDY, max_tokens=60, presence_penalty=2.0, frequency_penalty=2.0)))
    )
    assert len(set(punished)) > len(set(plain))


async def test_max_tokens_stay_within_the_context(engine: SequenceEngine) -> None:
    assert engine.context_length == CONTEXT
    ids, reason = await all_of(engine.submit(ask(PROMPTS[4], replace(GREEDY, max_tokens=10_000))))
    assert (len(ids), reason) == (CONTEXT - 60, "length")


BAD: dict[str, tuple[Any, Sampling, type[Exception]]] = {
    "empty": (np.zeros((1, 0)), GREEDY, InvalidPayload),
    "two rows": (np.ones((2, 3)), GREEDY, InvalidPayload),
    "outside the vocabulary": ([[VOCABULARY]], GREEDY, InvalidPayload),
    "negative": ([[-1]], GREEDY, InvalidPayload),
    "beyond the context": (np.ones((1, CONTEXT)), GREEDY, InvalidPayload),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
async def test_a_bad_request_fails_alone(engine: SequenceEngine, reference: list[list[int]], bad: Any) -> None:
    prompt, sampling, kind = bad
    neighbour = engine.submit(ask(PROMPTS[0]))
    begun = list((await anext(neighbour)).token_ids)
    with pytest.raises(kind) as caught:
        await all_of(engine.submit(ask(prompt, sampling)))
    assert isinstance(caught.value, CallerError)
    assert begun + (await all_of(neighbour))[0] == reference[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", 2.5),
        ("temperature", float("nan")),
        ("temperature", True),
        ("top_p", 1.5),
        ("top_k", -7),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("presence_penalty", 3.0),
        ("seed", 1 << 63),
        ("ignore_eos", 1),
        ("stop", ("",)),
        ("stop", ("a", "b", "c", "d", "e")),
    ],
)
def test_sampling_out_of_range_can_not_be_made(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=field) as caught:
        replace(GREEDY, **{field: value})
    assert isinstance(caught.value, CallerError) and caught.value.param == field


async def test_no_token_is_written_where_none_is_asked_for(engine: SequenceEngine) -> None:
    assert await all_of(engine.submit(ask([[5]], replace(GREEDY, max_tokens=0)))) == ([], "length")
    with pytest.raises(InvalidPayload, match="context is 128"):
        await all_of(engine.submit(ask(np.ones((1, 200)), replace(GREEDY, max_tokens=0))))


async def test_beyond_the_context_says_both_numbers(engine: SequenceEngine) -> None:
    with pytest.raises(InvalidPayload, match=r"200 tokens.*context is 128"):
        await all_of(engine.submit(ask(np.ones((1, 200)))))


async def test_leaving_early_cancels(engine: SequenceEngine, reference: list[list[int]]) -> None:
    long = replace(GREEDY, max_tokens=100)
    leaving = [cast(Any, engine.submit(ask(PROMPTS[2], long))) for _ in range(12)]
    for tokens in leaving:
        await anext(tokens)
    for tokens in leaving:
        await tokens.aclose()
    began = time.perf_counter()
    assert (await all_of(engine.submit(ask(PROMPTS[0]))))[0] == reference[0]
    assert time.perf_counter() - began < 5
    pipeline = getattr(engine, "_pipeline", None)
    if pipeline is not None:
        assert not pipeline.has_non_finished_requests()


async def test_a_cancelled_task_cancels_its_generation(engine: SequenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = cast(Any, engine)._turns
    take, first, cancelled = turns._step, threading.Event(), threading.Event()

    def held(*args: Any) -> Any:
        """The second step waits for the cancellation, however fast the machine is."""
        if first.is_set():
            cancelled.wait(10)
        first.set()
        return take(*args)

    monkeypatch.setattr(turns, "_step", held)
    task = asyncio.create_task(all_of(engine.submit(ask(PROMPTS[2], replace(GREEDY, max_tokens=100)))))
    assert await asyncio.to_thread(first.wait, 10)
    task.cancel()
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len((await all_of(engine.submit(ask(PROMPTS[0]))))[0]) == 24


async def test_past_its_deadline_a_request_ends_and_others_go_on(engine: SequenceEngine, reference: list[list[int]]) -> None:
    neighbour = asyncio.create_task(all_of(engine.submit(ask(PROMPTS[0]))))
    with pytest.raises(DeadlineExceeded):
        await all_of(engine.submit(ask(PROMPTS[1], deadline=time.monotonic() - 1)))
    assert (await neighbour)[0] == reference[0]


@pytest.mark.parametrize("name", ["openvino-genai", "transformers"])
async def test_closing_ends_what_runs_with_a_failure(
    artifacts: dict[str, Artifact], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = cast(Any, open_engine(artifacts[name], threads=1))
    turns = engine._turns
    take, first = turns._step, threading.Event()

    def held(*args: Any) -> Any:
        """The second step only ends once the engine is being closed, however fast the machine is."""
        if first.is_set():
            with turns._wake:
                turns._wake.wait_for(lambda: turns._is_closing, 60)
        first.set()
        return take(*args)

    monkeypatch.setattr(turns, "_step", held)
    running = engine.submit(ask(PROMPTS[2], replace(GREEDY, max_tokens=120)))
    await anext(running)
    await asyncio.to_thread(engine.close)
    with pytest.raises(EngineFailure, match="closed"):
        while True:
            await anext(running)
    with pytest.raises(EngineFailure, match="closed"):
        await all_of(engine.submit(ask(PROMPTS[0])))


async def test_a_pipeline_that_breaks_in_a_step_is_made_anew(
    artifacts: dict[str, Artifact], reference: list[list[int]]
) -> None:
    engine = cast(Any, open_engine(artifacts["openvino-genai"], threads=1))

    class Broken:
        def __init__(self, real: Any) -> None:
            self.add_request, self.has_non_finished_requests = real.add_request, real.has_non_finished_requests

        def step(self) -> None:
            raise RuntimeError("out of memory, say")

    engine._pipeline = Broken(engine._pipeline)
    with pytest.raises(EngineFailure, match="out of memory, say"):
        await all_of(engine.submit(ask(PROMPTS[0])))
    assert (await all_of(engine.submit(ask(PROMPTS[0]))))[0] == reference[0]
    engine.close()


def test_the_cache_fits_the_model() -> None:
    gigabyte = 2**30
    small = cache_tokens(1000, 256, 8 * gigabyte)
    assert small * 1000 < 10e6  # a small model takes megabytes, not gigabytes
    assert small >= 16 * 256
    large = cache_tokens(262_144, 32_768, 64 * gigabyte)
    assert 32_768 < large <= 32_768 + blocks_set_aside(32_768) * BLOCK  # one whole context
    poor = cache_tokens(262_144, 32_768, 4 * gigabyte)
    assert poor * 262_144 <= 2 * gigabyte  # never more than half of what is free


async def test_more_than_the_cache_holds_still_gives_the_same_tokens(
    artifacts: dict[str, Artifact], reference: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from maasdam.engines import genai_engine

    monkeypatch.setattr(genai_engine, "CONTEXTS", 1)
    monkeypatch.setattr(genai_engine, "CACHE_BYTES", 1)
    engine = cast(SequenceEngine, open_engine(artifacts["openvino-genai"], threads=1))
    answers = await asyncio.gather(*(all_of(engine.submit(ask(p))) for p in PROMPTS * 2))
    engine.close()
    assert [ids for ids, _ in answers] == reference * 2


async def test_int8_weights_too_give_each_in_a_batch_what_it_gets_alone(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    import shutil

    import nncf
    import openvino as ov

    shutil.copytree(artifacts["openvino-genai"].path, tmp_path, dirs_exist_ok=True)
    model = ov.Core().read_model(artifacts["openvino-genai"].path / "openvino_model.xml")
    ov.save_model(nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM), tmp_path / "openvino_model.xml")
    engine = cast(SequenceEngine, open_engine(replace(artifacts["openvino-genai"], path=tmp_path), threads=1))
    prompts = [np.random.default_rng(i).integers(4, VOCABULARY, (1, 3 + 5 * i)) for i in range(16)]
    alone = [await all_of(engine.submit(ask(p))) for p in prompts]
    assert list(await asyncio.gather(*(all_of(engine.submit(ask(p))) for p in prompts))) == alone
    engine.close()


@pytest.mark.parametrize("setting", [{"precision": "f8"}, {"kv_precision": "f64"}, {"threads": 0.5}])
def test_settings_that_are_none_are_refused(artifacts: dict[str, Artifact], setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(setting))):
        open_engine(artifacts["openvino-genai"], settings=setting)


def test_log_likelihoods_are_the_same_by_both_engines_and_by_hand(artifacts: dict[str, Artifact]) -> None:
    import torch
    from transformers import LlamaForCausalLM

    from maasdam.engines.scoring import log_likelihoods

    sequences = [prompt[0].tolist() for prompt in PROMPTS if prompt.shape[1] > 1]
    by_openvino = log_likelihoods(artifacts["openvino-genai"].path, sequences, settings={"threads": 1})
    by_torch = log_likelihoods(artifacts["transformers"].path, sequences)
    model = LlamaForCausalLM.from_pretrained(artifacts["transformers"].path).eval()
    for ids, one, other in zip(sequences, by_openvino, by_torch, strict=True):
        with torch.inference_mode():
            logits = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        by_hand = [float(logits[i, token]) for i, token in enumerate(ids[1:])]
        np.testing.assert_allclose(other, by_hand, atol=1e-5)
        np.testing.assert_allclose(one, by_hand, atol=1e-3)
    with pytest.raises(InvalidInput, match="at least 2"):
        log_likelihoods(artifacts["transformers"].path, [[1]])


def test_reading_and_closing_leave_no_thread(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    import threading

    before = {t.name for t in threading.enumerate()}
    for artifact in artifacts.values():
        cast(SequenceEngine, open_engine(artifact, threads=1)).close()
    assert {t.name for t in threading.enumerate()} <= before
