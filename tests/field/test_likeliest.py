"""The likeliest tokens in each place, by a second compiled model: the same as transformers finds, whatever chose and whatever
runs beside; and what a deployment that has none says."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tests.engines import tiny_language_model
from tests.engines.tiny_language_model import CONTEXT, VOCABULARY

from maasdam.core import Artifact, Sampling, Scored, SequenceRequest, Tokens
from maasdam.engines import genai_likeliest, open_engine
from maasdam.engines.genai_engine import GenaiEngine
from maasdam.engines.genai_likeliest import merged
from maasdam.errors import InvalidField, InvalidInput

MOST = 5
TOLERANCE = 1e-4
GREEDY = Sampling(max_tokens=24, temperature=0.0, ignore_eos=True, logprobs=MOST)
HOT = replace(GREEDY, temperature=1.5, seed=7)
PROMPTS = [np.random.default_rng(i).integers(4, VOCABULARY, (1, length)) for i, length in enumerate((9, 66, 1, 100, 64))]
WAYS: dict[str, Sampling] = {
    "greedy": GREEDY,
    "punished": replace(GREEDY, frequency_penalty=1.5, repetition_penalty=1.3),
    "drawn": HOT,
    "ended": replace(HOT, ignore_eos=False, stop_token_ids=tuple(range(100, 160)), min_tokens=2),
    "echoed": replace(HOT, echo=True, logprobs=3, max_tokens=3),
    "only read": replace(GREEDY, echo=True, max_tokens=0),
    "read without more": replace(GREEDY, echo=True, logprobs=0, max_tokens=9),
    "as lm-eval asks": replace(GREEDY, echo=True, logprobs=1, max_tokens=1),
    "to the end": replace(GREEDY, max_tokens=None, logprobs=2),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_language_model.huggingface(tmp_path_factory.mktemp("huggingface"))


@pytest.fixture(scope="module")
def artifact(source: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_language_model.genai(source, tmp_path_factory.mktemp("genai"))


@pytest.fixture(scope="module")
def engine(artifact: Artifact) -> Iterator[GenaiEngine]:
    opened = open_engine(artifact, threads=1, settings={"logprobs": MOST})
    assert isinstance(opened, GenaiEngine)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def model(source: Artifact) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(source.path).eval()


def logarithms(model: Any, ids: list[int]) -> Any:
    """transformers' log-probabilities [T, V] of what follows each of the tokens, in float32."""
    import torch

    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0], -1).numpy()


def ask(prompt: Any, sampling: Sampling) -> SequenceRequest:
    return SequenceRequest("test", {"input_ids": np.asarray(prompt, dtype=np.int64)}, sampling)


async def all_of(tokens: AsyncIterator[Tokens]) -> Tokens:
    """Everything that came, as one."""
    pieces = [piece async for piece in tokens]
    assert sum(bool(piece.prompt_scores) for piece in pieces) <= 1
    assert all(len(piece.scores) in (0, len(piece.token_ids)) for piece in pieces)
    return Tokens(
        tuple(i for piece in pieces for i in piece.token_ids),
        finish_reason=pieces[-1].finish_reason,
        scores=tuple(score for piece in pieces for score in piece.scores),
        prompt_scores=tuple(score for piece in pieces for score in piece.prompt_scores),
        end=pieces[-1].end,
    )


def check(scores: tuple[Scored, ...], rows: Any, count: int) -> None:
    """Each token's own figure and the likeliest in its place are those of the rows [len(scores), V]."""
    for score, row in zip(scores, rows, strict=True):
        assert score.logprob == pytest.approx(row[score.token_id], abs=TOLERANCE)
        assert [token for token, _ in score.likeliest] == np.argsort(-row, kind="stable")[:count].tolist()
        np.testing.assert_allclose([value for _, value in score.likeliest], -np.sort(-row)[:count], atol=TOLERANCE)
        own = dict(score.likeliest).get(score.token_id)
        assert own in (None, score.logprob)  # one token has one figure


async def test_they_are_those_of_transformers_whatever_chose_and_whoever_is_beside(engine: GenaiEngine, model: Any) -> None:
    asked = [(prompt, sampling) for sampling in WAYS.values() for prompt in PROMPTS]
    random = np.random.default_rng(0)
    order = random.permutation(len(asked))
    alone = [await all_of(engine.submit(ask(*asked[i]))) for i in order[:12]]
    plain = [ask(random.integers(4, VOCABULARY, (1, 30)), replace(GREEDY, logprobs=None)) for _ in range(4)]
    beside = [engine.submit(one) for one in plain]
    answers = await asyncio.gather(*(all_of(engine.submit(ask(*asked[i]))) for i in order), *(all_of(one) for one in beside))
    assert [answer.token_ids for answer in answers[:12]] == [answer.token_ids for answer in alone]
    for (prompt, sampling), answer in zip([asked[i] for i in order], answers, strict=False):
        own = prompt[0].tolist()
        rows = logarithms(model, [*own, *answer.token_ids])
        if sampling.echo:
            assert answer.prompt_scores[0] == Scored(own[0], None) and len(answer.prompt_scores) == len(own)
            check(answer.prompt_scores[1:], rows[: len(own) - 1], sampling.logprobs or 0)
        else:
            assert not answer.prompt_scores
        check(answer.scores, rows[len(own) - 1 : -1], sampling.logprobs or 0)
        if answer.end is not None:
            check((answer.end,), rows[-1:], sampling.logprobs or 0)
        assert (answer.end is None) == (answer.finish_reason == "length")
        room = CONTEXT - len(own)
        assert answer.finish_reason == "stop" or len(answer.token_ids) == min(room, sampling.max_tokens or room) * bool(
            sampling.max_tokens != 0
        )


async def test_they_come_as_the_answer_is_written(engine: GenaiEngine) -> None:
    pieces = [len(piece.token_ids) async for piece in engine.submit(ask(PROMPTS[0], replace(HOT, max_tokens=40)))]
    assert sum(pieces) == 40 and max(pieces) <= genai_likeliest.ANSWER_PART + 1 and len(pieces) >= 5


async def test_who_hears_no_more_is_read_no_more(engine: GenaiEngine) -> None:
    second = engine.second
    assert second is not None
    streams = [engine.submit(ask(PROMPTS[3], replace(HOT, echo=True))) for _ in range(genai_likeliest.AT_ONCE + 3)]
    await asyncio.gather(*(anext(stream) for stream in streams[:2]))
    for stream in streams[:2]:
        await stream.aclose()
    await all_of(engine.submit(ask(PROMPTS[0], GREEDY)))
    assert not second._readings


async def test_a_text_that_leaves_no_room_waits_for_the_others_and_is_read(
    engine: GenaiEngine, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(genai_likeliest, "KEPT_BYTES", 1)
    asked = [ask(prompt, replace(HOT, echo=True)) for prompt in PROMPTS]
    for prompt, answer in zip(PROMPTS, await asyncio.gather(*(all_of(engine.submit(one)) for one in asked)), strict=True):
        rows = logarithms(model, [*prompt[0].tolist(), *answer.token_ids])
        check((*answer.prompt_scores[1:], *answer.scores), rows[:-1], MOST)


async def test_one_that_cant_be_read_fails_alone(engine: GenaiEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    second = engine.second
    assert second is not None
    read = second.read
    broken = ask(PROMPTS[1], HOT)

    def breaks(reading: Any) -> None:
        if reading.most == PROMPTS[1].shape[1] + 24:
            raise RuntimeError("no memory")
        read(reading)

    monkeypatch.setattr(second, "read", breaks)
    failed, fine = await asyncio.gather(
        all_of(engine.submit(broken)), all_of(engine.submit(ask(PROMPTS[0], HOT))), return_exceptions=True
    )
    assert "no memory" in str(failed) and isinstance(fine, Tokens) and len(fine.scores) == 24
    assert not second._readings


async def test_with_rounded_activations_they_are_the_same_in_any_company(artifact: Artifact, tmp_path: Path) -> None:
    import nncf
    import openvino as ov

    shutil.copytree(artifact.path, tmp_path, dirs_exist_ok=True)
    weights = ov.Core().read_model(artifact.path / "openvino_model.xml")
    ov.save_model(nncf.compress_weights(weights, mode=nncf.CompressWeightsMode.INT8_SYM), tmp_path / "openvino_model.xml")
    engine = cast(GenaiEngine, open_engine(replace(artifact, path=tmp_path), threads=1, settings={"logprobs": MOST}))
    asked = [ask(prompt, WAYS[way]) for prompt in PROMPTS for way in ("greedy", "drawn", "echoed")]
    alone = [await all_of(engine.submit(one)) for one in asked]
    among = await asyncio.gather(*(all_of(engine.submit(one)) for one in asked))
    rounds = engine.rounds
    engine.close()
    assert rounds and among == alone
    for answer in alone[::3]:
        assert [score.likeliest[0] for score in answer.scores] == [(score.token_id, score.logprob) for score in answer.scores]


def test_the_engines_own_word_for_a_token_stands_in_the_list_too() -> None:
    tops = ((7, -0.5), (8, -0.6), (9, -2.0))
    assert merged(Scored(8, -0.4), tops, False).likeliest == ((8, -0.4), (7, -0.5), (9, -2.0))
    assert merged(Scored(8, -0.55), tops, True).likeliest == ((8, -0.55), (7, -0.55), (9, -2.0))
    assert merged(Scored(5, -3.0), tops, False).likeliest == tops
    assert merged(Scored(5, -1.0), tops, False).likeliest == ((7, -0.5), (8, -0.6), (5, -1.0))
    assert merged(Scored(5, -0.5), tops, True).likeliest == ((5, -0.5), (7, -0.5), (8, -0.6))


@pytest.mark.parametrize(("count", "field"), [(MOST + 1, "logprobs"), (20, "top_logprobs")])
async def test_more_than_it_is_deployed_for_is_refused_with_what_to_do(engine: GenaiEngine, count: int, field: str) -> None:
    with pytest.raises(InvalidField, match=f"to tell {MOST} .* --logprobs {count}") as caught:
        await all_of(engine.submit(ask(PROMPTS[0], replace(GREEDY, logprobs=count, logprobs_field=field))))
    assert caught.value.param == field


@pytest.mark.parametrize("count", [-1, 0, 21, 1.5, True, "5"])
def test_a_number_that_cant_be_asked_for_is_refused(artifact: Artifact, count: Any) -> None:
    with pytest.raises(InvalidInput, match="logprobs"):
        open_engine(artifact, threads=1, settings={"logprobs": count})


def test_its_memory_is_measured(engine: GenaiEngine) -> None:
    assert engine.second is not None and engine.second.memory_bytes > 1_000_000


@pytest.mark.parametrize("beside", [{"prefix_cache": "key"}, {"prompt_lookup": 4}], ids=lambda beside: next(iter(beside)))
async def test_they_are_the_same_where_prompts_are_kept_or_answers_guessed(
    artifact: Artifact, model: Any, beside: dict[str, Any]
) -> None:
    engine = open_engine(artifact, threads=1, settings={"logprobs": MOST, **beside})
    assert isinstance(engine, GenaiEngine)
    asked = [
        replace(ask(prompt, WAYS[way]), owner="me") for way in ("greedy", "drawn", "as lm-eval asks") for prompt in PROMPTS
    ]
    for _ in range(2):
        for request, answer in zip(asked, await asyncio.gather(*(all_of(engine.submit(one)) for one in asked)), strict=True):
            own, most = request.inputs["input_ids"][0].tolist(), request.sampling.logprobs or 0
            rows = logarithms(model, [*own, *answer.token_ids])
            check(answer.scores, rows[len(own) - 1 : -1], most)
            check(answer.prompt_scores[1:], rows[: len(own) - 1], most) if request.sampling.echo else None
    engine.close()
