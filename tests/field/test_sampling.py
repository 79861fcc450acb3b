"""Each way to choose tokens shows in what real engines choose, alone and beside others; and how likely each token was."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tests.engines import tiny_language_model
from tests.engines.tiny_language_model import CONTEXT, VOCABULARY

from maasdam.core import Artifact, Sampling, Scored, SequenceEngine, SequenceRequest, Tokens
from maasdam.engines import open_engine
from maasdam.errors import InvalidField

GREEDY = Sampling(max_tokens=24, temperature=0.0, ignore_eos=True)
HOT = replace(GREEDY, temperature=1.5, seed=7)
PROMPTS = [np.random.default_rng(i).integers(4, VOCABULARY, (1, length)) for i, length in enumerate((9, 40, 1, 70))]
TOLERANCE = 1e-4


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
def model(artifacts: dict[str, Artifact]) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(artifacts["transformers"].path).eval()


def logarithms(model: Any, ids: list[int]) -> Any:
    """transformers' log-probabilities [T, V] of what follows each of the tokens."""
    import torch

    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1).numpy()


def ask(prompt: Any, sampling: Sampling) -> SequenceRequest:
    return SequenceRequest("test", {"input_ids": np.asarray(prompt, dtype=np.int64)}, sampling)


async def all_of(tokens: AsyncIterator[Tokens]) -> Tokens:
    """Everything that came, as one."""
    pieces = [piece async for piece in tokens]
    assert sum(bool(piece.prompt_scores) for piece in pieces) <= 1
    return Tokens(
        tuple(i for piece in pieces for i in piece.token_ids),
        finish_reason=pieces[-1].finish_reason,
        scores=tuple(score for piece in pieces for score in piece.scores),
        prompt_scores=tuple(score for piece in pieces for score in piece.prompt_scores),
        end=pieces[-1].end,
    )


async def written(engine: SequenceEngine, prompt: Any, sampling: Sampling) -> tuple[int, ...]:
    return (await all_of(engine.submit(ask(prompt, sampling)))).token_ids


WAYS: dict[str, Sampling] = {
    "greedy": GREEDY,
    "penalties": replace(GREEDY, frequency_penalty=1.5, presence_penalty=1.0, repetition_penalty=1.3),
    "rewards": replace(GREEDY, frequency_penalty=-1.5, presence_penalty=-1.0, repetition_penalty=0.8),
    "seed": HOT,
    "narrow": replace(HOT, top_p=0.8, top_k=40, min_p=0.05, repetition_penalty=1.2),
    "at least": replace(HOT, ignore_eos=False, stop_token_ids=tuple(range(100, 200)), min_tokens=20),
}


@pytest.mark.parametrize("way", WAYS)
async def test_the_same_answer_alone_and_beside_random_neighbours(engine: SequenceEngine, way: str) -> None:
    alone = [await written(engine, prompt, WAYS[way]) for prompt in PROMPTS]
    assert len(set(alone)) == len(PROMPTS)
    random = np.random.default_rng(len(way))
    for _ in range(2):
        neighbours = [
            (
                random.integers(4, VOCABULARY, (1, int(random.integers(1, 60)))),
                replace(random.choice([*WAYS.values()]), seed=None),
            )
            for _ in range(5)
        ]
        asked = [*neighbours[:2], *((prompt, WAYS[way]) for prompt in PROMPTS), *neighbours[2:]]
        answers = await asyncio.gather(*(written(engine, prompt, cast(Sampling, sampling)) for prompt, sampling in asked))
        assert answers[2 : 2 + len(PROMPTS)] == alone


async def test_nothing_below_min_p_is_drawn(engine: SequenceEngine, model: Any) -> None:
    wide = [await written(engine, PROMPTS[0], replace(HOT, seed=seed)) for seed in range(4)]
    narrow = [await written(engine, PROMPTS[0], replace(HOT, seed=seed, min_p=0.4)) for seed in range(4)]
    assert wide != narrow and len(set(narrow)) > 1

    def least(answers: list[tuple[int, ...]]) -> float:
        """The least share of the likeliest that any token had, at their temperature."""
        shares = []
        for answer in answers:
            ids = [*PROMPTS[0][0].tolist(), *answer]
            rows = logarithms(model, ids)[len(PROMPTS[0][0]) - 1 : -1] / 1.5
            shares.append(min(float(row[i] - row.max()) for row, i in zip(rows, answer, strict=True)))
        return float(np.exp(min(shares)))

    assert least(narrow) >= 0.4 - 1e-4 > least(wide)
    assert await written(engine, PROMPTS[0], replace(HOT, min_p=1.0)) == await written(engine, PROMPTS[0], GREEDY)


async def test_repetition_is_punished_as_transformers_does(engine: SequenceEngine, model: Any) -> None:
    import torch

    for penalty in (1.4, 0.7):
        kwargs = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        want = model.generate(torch.tensor(PROMPTS[1]), repetition_penalty=penalty, **kwargs)[0, PROMPTS[1].shape[1] :].tolist()
        got = await written(engine, PROMPTS[1], replace(GREEDY, repetition_penalty=penalty))
        assert list(got) == want != list(await written(engine, PROMPTS[1], GREEDY))


async def test_stop_tokens_end_it_also_where_the_models_own_are_ignored(engine: SequenceEngine) -> None:
    whole = await written(engine, PROMPTS[0], GREEDY)
    at = next(i for i, token in enumerate(whole) if i > 3 and token not in whole[:i])
    stopping = replace(GREEDY, stop_token_ids=(whole[at], 3))
    got = await all_of(engine.submit(ask(PROMPTS[0], stopping)))
    assert (got.token_ids, got.finish_reason) == (whole[:at], "stop")
    own = cast(Any, engine)._defaults
    cast(Any, engine)._defaults = replace(own, eos=frozenset({whole[2]}))
    try:
        assert await written(engine, PROMPTS[0], stopping) == whole[:at]
        assert await written(engine, PROMPTS[0], replace(stopping, ignore_eos=False)) == whole[:2]
    finally:
        cast(Any, engine)._defaults = own
    assert await written(engine, PROMPTS[0], replace(GREEDY, stop_token_ids=(3,))) == whole or 3 in whole
    with pytest.raises(InvalidField, match="vocabulary of 320") as caught:
        await written(engine, PROMPTS[0], replace(GREEDY, stop_token_ids=(VOCABULARY,)))
    assert caught.value.param == "stop_token_ids"


async def test_a_pipeline_adds_no_end_of_its_own_to_the_callers(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    """It does where a request names stop tokens but no end token, from the model's own files."""
    artifact = artifacts["openvino-genai"]
    engine = cast(SequenceEngine, open_engine(artifact, threads=1))
    whole = await written(engine, PROMPTS[0], GREEDY)
    engine.close()
    at = next(i for i, token in enumerate(whole) if i > 3 and token not in whole[:i])
    shutil.copytree(artifact.path, tmp_path, dirs_exist_ok=True)
    for name in ("config.json", "generation_config.json"):
        file = tmp_path / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": whole[2]}))
    engine = cast(SequenceEngine, open_engine(replace(artifact, path=tmp_path), threads=1))
    assert await written(engine, PROMPTS[0], replace(GREEDY, ignore_eos=False)) == whole[:2]
    assert await written(engine, PROMPTS[0], replace(GREEDY, stop_token_ids=(whole[at],))) == whole[:at]
    engine.close()


async def test_nothing_ends_it_before_min_tokens(engine: SequenceEngine) -> None:
    whole = await written(engine, PROMPTS[0], GREEDY)
    every = replace(GREEDY, stop_token_ids=(whole[3], whole[5]))
    assert await written(engine, PROMPTS[0], every) == whole[:3]
    longer = await written(engine, PROMPTS[0], replace(every, min_tokens=9))
    assert len(longer) >= 9 and longer[:3] == whole[:3] and not {whole[3], whole[5]} & set(longer)
    with pytest.raises(InvalidField, match="room for") as caught:
        await written(engine, PROMPTS[3], replace(GREEDY, max_tokens=200, min_tokens=CONTEXT - 69))
    assert caught.value.param == "min_tokens"


def check(scores: tuple[Scored, ...], ids: list[int], rows: Any) -> None:
    assert [score.token_id for score in scores] == ids
    wants = [row[i] for row, i in zip(rows, ids, strict=True)]
    np.testing.assert_allclose([cast(float, score.logprob) for score in scores], wants, atol=TOLERANCE)


@pytest.mark.parametrize("way", WAYS)
async def test_log_probabilities_are_the_models_own_whatever_chose(engine: SequenceEngine, model: Any, way: str) -> None:
    sampling = replace(WAYS[way], logprobs=0)
    asked = [ask(prompt, sampling) for prompt in PROMPTS]
    answers = await asyncio.gather(*(all_of(engine.submit(one)) for one in asked))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.token_ids == await written(engine, prompt, WAYS[way])
        own = prompt[0].tolist()
        rows = logarithms(model, [*own, *answer.token_ids])
        check(answer.scores, list(answer.token_ids), rows[len(own) - 1 : -1])
        assert (answer.end is None) == (answer.finish_reason == "length")
        if answer.end is not None:
            check((answer.end,), [answer.end.token_id], rows[-1:])


@pytest.mark.parametrize("most", [0, 5])
async def test_a_prompts_log_probabilities(engine: SequenceEngine, model: Any, most: int) -> None:
    sampling = replace(GREEDY, max_tokens=most, logprobs=0, echo=True)
    asked = [ask(prompt, sampling) for prompt in PROMPTS]
    beside = [ask(prompt, HOT) for prompt in PROMPTS]
    answers = await asyncio.gather(*(all_of(engine.submit(one)) for one in [*asked, *beside]))
    for prompt, answer in zip(PROMPTS, answers, strict=False):
        own = prompt[0].tolist()
        rows = logarithms(model, [*own, *answer.token_ids])
        assert answer.prompt_scores[0] == Scored(own[0], None)
        check(answer.prompt_scores[1:], own[1:], rows[: len(own) - 1])
        check(answer.scores, list(answer.token_ids), rows[len(own) - 1 : -1])
        assert (len(answer.token_ids), answer.finish_reason) == (most, "length")


async def test_a_prompt_is_scored_right_while_others_write_and_nobody_is_kept_out(engine: SequenceEngine, model: Any) -> None:
    """Beside an answer the pipeline reads a prompt's log-probabilities one row too early, and says nothing."""
    long = replace(GREEDY, max_tokens=50)
    alone = [await written(engine, prompt, long) for prompt in PROMPTS[:2]]
    first = engine.submit(ask(PROMPTS[0], long))
    begun = [await anext(first) for _ in range(5)]
    left = engine.submit(ask(PROMPTS[1], long))
    await anext(left)
    scoring = replace(GREEDY, max_tokens=3, logprobs=0, echo=True)
    scored = [asyncio.create_task(all_of(engine.submit(ask(prompt, scoring)))) for prompt in PROMPTS * 12]
    await asyncio.sleep(0)
    later = asyncio.create_task(written(engine, PROMPTS[1], long))
    gone = asyncio.create_task(all_of(engine.submit(ask(PROMPTS[3], scoring))))
    await asyncio.sleep(0)
    gone.cancel()
    await cast(Any, left).aclose()
    assert tuple(i for piece in begun for i in piece.token_ids) + (await all_of(first)).token_ids == alone[0]
    assert await later == alone[1]
    for prompt, answer in zip(PROMPTS * 12, await asyncio.gather(*scored), strict=True):
        own = prompt[0].tolist()
        rows = logarithms(model, [*own, *answer.token_ids])
        check(answer.prompt_scores[1:], own[1:], rows[: len(own) - 1])
        check(answer.scores, list(answer.token_ids), rows[len(own) - 1 : -1])


async def test_log_probabilities_where_more_is_asked_than_the_cache_holds(
    artifacts: dict[str, Artifact], model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline then computes some requests again, and says nothing twice."""
    from maasdam.engines import genai_engine

    monkeypatch.setattr(genai_engine, "CONTEXTS", 1)
    monkeypatch.setattr(genai_engine, "CACHE_BYTES", 1)
    engine = cast(SequenceEngine, open_engine(artifacts["openvino-genai"], threads=1))
    sampling = replace(GREEDY, max_tokens=40, logprobs=0, echo=True)
    answers = await asyncio.gather(*(all_of(engine.submit(ask(prompt, sampling))) for prompt in PROMPTS * 3))
    engine.close()
    for prompt, answer in zip(PROMPTS * 3, answers, strict=True):
        own = prompt[0].tolist()
        rows = logarithms(model, [*own, *answer.token_ids])
        check(answer.prompt_scores[1:], own[1:], rows[: len(own) - 1])
        check(answer.scores, list(answer.token_ids), rows[len(own) - 1 : -1])


async def test_with_rounded_activations_too_log_probabilities_are_the_same_in_any_company(
    artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    import nncf
    import openvino as ov

    artifact = artifacts["openvino-genai"]
    shutil.copytree(artifact.path, tmp_path, dirs_exist_ok=True)
    weights = ov.Core().read_model(artifact.path / "openvino_model.xml")
    ov.save_model(nncf.compress_weights(weights, mode=nncf.CompressWeightsMode.INT8_SYM), tmp_path / "openvino_model.xml")
    engine = cast(SequenceEngine, open_engine(replace(artifact, path=tmp_path), threads=1))
    ways = [replace(GREEDY, logprobs=0), replace(HOT, logprobs=0), replace(GREEDY, max_tokens=5, logprobs=0, echo=True)]
    asked = [ask(prompt, sampling) for prompt in PROMPTS for sampling in ways]
    alone = [await all_of(engine.submit(one)) for one in asked]
    beside = [ask(prompt, replace(HOT, seed=None)) for prompt in PROMPTS]
    answers = await asyncio.gather(*(all_of(engine.submit(one)) for one in [*beside, *asked, *beside]))
    engine.close()
    assert answers[len(beside) : -len(beside)] == alone


async def test_the_likeliest_beside_are_true_or_refused(engine: SequenceEngine, model: Any) -> None:
    three = replace(HOT, logprobs=3, echo=True)
    if type(engine).__name__ == "GenaiEngine":
        refused = [three, replace(HOT, logprobs=1), replace(GREEDY, logprobs=1, echo=True), replace(GREEDY, logprobs=2)]
        refused += [replace(GREEDY, logprobs=1, min_tokens=3), replace(GREEDY, logprobs=1, presence_penalty=0.1)]
        for sampling in refused:
            with pytest.raises(InvalidField, match="does not tell") as caught:
                await written(engine, PROMPTS[0], sampling)
            assert caught.value.param == "logprobs"
    else:
        answer = await all_of(engine.submit(ask(PROMPTS[0], three)))
        own = PROMPTS[0][0].tolist()
        rows = logarithms(model, [*own, *answer.token_ids])
        for score, row in zip([*answer.prompt_scores[1:], *answer.scores], rows[:-1], strict=True):
            assert [i for i, _ in score.likeliest] == np.argsort(-row)[:3].tolist()
            np.testing.assert_allclose([value for _, value in score.likeliest], -np.sort(-row)[:3], atol=TOLERANCE)
    answer = await all_of(engine.submit(ask(PROMPTS[0], replace(GREEDY, logprobs=1))))
    rows = logarithms(model, [*PROMPTS[0][0].tolist(), *answer.token_ids])[PROMPTS[0].shape[1] - 1 : -1]
    assert [score.likeliest[0][0] for score in answer.scores] == rows.argmax(1).tolist() == list(answer.token_ids)
    np.testing.assert_allclose([score.likeliest[0][1] for score in answer.scores], rows.max(1), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_p", 1.01),
        ("min_p", float("nan")),
        ("repetition_penalty", 0),
        ("repetition_penalty", True),
        ("min_tokens", -1),
        ("min_tokens", 25),
        ("min_tokens", 1.0),
        ("stop_token_ids", (-1,)),
        ("stop_token_ids", (1.5,)),
        ("stop_token_ids", (True,)),
        ("stop_token_ids", tuple(range(129))),
        ("logprobs", 21),
    ],
)
def test_what_is_out_of_range_can_not_be_made(field: str, value: Any) -> None:
    with pytest.raises(InvalidField, match=field) as caught:
        replace(GREEDY, **{field: value})
    assert caught.value.param == field


def test_a_models_own_min_p_holds_where_none_is_asked_for(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    from maasdam.engines.generation import choose, read_defaults

    (tmp_path / "config.json").write_text((artifacts["transformers"].path / "config.json").read_text())
    (tmp_path / "generation_config.json").write_text('{"min_p": 0.2, "repetition_penalty": 1.1}')
    defaults = read_defaults(tmp_path)
    assert (choose(Sampling(), defaults, 1).min_p, choose(Sampling(min_p=0.0), defaults, 1).min_p) == (0.2, 0.0)
    assert choose(Sampling(), defaults, 1).repetition_penalty == 1.1
    assert choose(Sampling(repetition_penalty=1.0), defaults, 1).repetition_penalty == 1.0
