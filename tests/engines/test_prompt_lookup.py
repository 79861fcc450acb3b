"""What follows is guessed from what stands before: fewer steps, and the same answers whatever is asked of such a pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from maasdam.core import Artifact, Sampling
from maasdam.engines import genai_engine, open_engine
from maasdam.engines.genai_company import _all_of, greedily
from maasdam.engines.genai_engine import ALIKE_TOKENS
from maasdam.engines.genai_steps import Answer, Steps
from tests.engines.test_company import artifact as artifact
from tests.engines.test_company import prompts
from tests.engines.test_text_generation import ask
from tests.engines.tiny_language_model import CONTEXT, VOCABULARY

AHEAD = 4
LOOKUP = {"prompt_lookup": AHEAD}
TAKE_OUT = Answer.take_out


def repeating(length: int, width: int = 5) -> Any:
    """What begins again and again invites guesses."""
    return np.tile(np.random.default_rng(width).integers(4, VOCABULARY, width), length)[None, :length]


ASKED = [repeating(60), repeating(33, 3), *prompts(20, 1, 47), repeating(90, 7)]


@pytest.fixture(scope="module")
def plain(artifact: Artifact) -> Iterator[Any]:
    engine = open_engine(artifact, threads=1, settings={"dynamic_quantization": False})
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def engine(artifact: Artifact) -> Iterator[Any]:
    opened = open_engine(artifact, threads=1, settings=LOOKUP)
    yield opened
    opened.close()


async def told(engine: Any, prompt: Any, sampling: Sampling) -> tuple[Any, ...]:
    pieces = [piece async for piece in engine.submit(ask(prompt, sampling))]
    ids = [i for piece in pieces for i in piece.token_ids]
    scores = [s.logprob for piece in pieces for s in (*piece.prompt_scores, *piece.scores) if s.logprob is not None]
    return ids, pieces[-1].finish_reason, scores


SAMPLINGS = {
    "greedy": Sampling(max_tokens=30, temperature=0.0, ignore_eos=True),
    "drawn": Sampling(max_tokens=30, temperature=1.3, seed=5, ignore_eos=True),
    "cut": Sampling(max_tokens=30, temperature=0.8, seed=5, top_p=0.9, top_k=40, min_p=0.02),
    "punished": Sampling(max_tokens=30, temperature=0.0, repetition_penalty=1.2, presence_penalty=0.4, frequency_penalty=0.3),
    "scored": Sampling(max_tokens=20, temperature=0.0, logprobs=0, ignore_eos=True),
    "echoed": Sampling(max_tokens=5, temperature=0.0, logprobs=0, echo=True, ignore_eos=True),
    "least": Sampling(max_tokens=20, temperature=0.0, min_tokens=10),
    "one": Sampling(max_tokens=1, temperature=0.0),
    "none": Sampling(max_tokens=0, temperature=0.0, logprobs=0, echo=True),
    "whole": Sampling(temperature=0.0, ignore_eos=True),
}


@pytest.mark.parametrize("what", SAMPLINGS)
async def test_each_answer_is_the_one_without_guesses(engine: Any, plain: Any, what: str) -> None:
    sampling = SAMPLINGS[what]
    expected = [await told(plain, prompt, sampling) for prompt in ASKED]
    alone = [await told(engine, prompt, sampling) for prompt in ASKED]
    together = await asyncio.gather(*(told(engine, prompt, sampling) for prompt in ASKED))
    for given in (alone, together):
        assert [answer[:2] for answer in given] == [answer[:2] for answer in expected]
        for (_, _, scores), (_, _, right) in zip(given, expected, strict=True):
            assert scores == pytest.approx(right, abs=1e-4)


def steps_of(artifact: Artifact, blocks: int | None = None) -> Steps:
    settings = {"threads": 2, "dynamic_quantization": False, **LOOKUP}
    make, _, all_blocks = genai_engine._pipeline(artifact.path, settings)
    return Steps(make(), blocks or all_blocks, is_accompanied=False, ahead=AHEAD)


def looked_up(tokens: int) -> Any:
    config = greedily(tokens)
    config.num_assistant_tokens, config.max_ngram_size = AHEAD, ALIKE_TOKENS
    return config


def test_it_takes_fewer_steps(artifact: Artifact) -> None:
    steps, count = steps_of(artifact), 0
    config = looked_up(40)
    config.frequency_penalty = -2.0  # this model is random: what repeats must be wished
    answer = steps.add_request(repeating(60), config)
    while steps.has_non_finished_requests():
        steps.step()
        count += 1
    assert len(_all_of(answer)) == 40 and count < 30


def test_what_a_full_cache_puts_out_begins_again_and_is_the_same(artifact: Artifact) -> None:
    """The pipeline itself breaks where its cache is full: it must never be."""
    steps, small = steps_of(artifact), steps_of(artifact, 20)
    put_out: list[Any] = []
    texts = []
    for one in (steps, small):
        answers = [one.add_request(prompt, looked_up(90)) for prompt in prompts(3, 20, 17, 33, 9, 30)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Answer, "take_out", lambda answer: (put_out.append(answer), TAKE_OUT(answer)))
            while one.has_non_finished_requests():
                one.step()
        assert all(answer.refused is None for answer in answers)
        texts.append([[i for i, _ in _all_of(answer)] for answer in answers])
    assert put_out and texts[0] == texts[1] and all(len(text) == 90 for text in texts[0])


def test_many_at_once_and_one_that_leaves(artifact: Artifact) -> None:
    steps = steps_of(artifact)
    expected = [i for i, _ in _all_of(_run(steps, [ASKED[1]])[0])]
    answers = [steps.add_request(ASKED[1], looked_up(20)) for _ in range(40)]
    for _ in range(6):
        steps.step()
    answers[3].cancel()
    while steps.has_non_finished_requests():
        steps.step()
    assert all([i for i, _ in _all_of(answer)] == expected for i, answer in enumerate(answers) if i != 3)


def _run(steps: Steps, asked: list[Any]) -> list[Any]:
    answers = [steps.add_request(prompt, looked_up(20)) for prompt in asked]
    while steps.has_non_finished_requests():
        steps.step()
    return answers


async def test_forms_are_kept_to(engine: Any, plain: Any) -> None:
    from maasdam.core import Constraint

    for constraint in (Constraint("regex", "(ab ){6,9}end", "guided_regex"), Constraint("choice", '["abab abab", "x"]', "c")):
        texts = []
        for one in (plain, engine):
            admitted = await asyncio.wrap_future(one.admit(constraint))
            sampling = Sampling(max_tokens=60, temperature=0.0, constraint=constraint)
            request = replace(ask(ASKED[0], sampling), admitted=admitted)
            pieces = [piece async for piece in one.submit(request)]
            texts.append([i for piece in pieces for i in piece.token_ids])
            assert pieces[-1].finish_reason == "stop"
        assert texts[0] == texts[1]


async def test_it_is_paid_once(engine: Any) -> None:
    sampling = replace(SAMPLINGS["greedy"], max_tokens=20)
    pieces = [piece async for piece in engine.submit(ask(ASKED[0], sampling))]
    assert cast(Any, pieces[-1].cost).cpu_seconds > 0 and sum(len(piece.token_ids) for piece in pieces) == 20


def test_its_activations_are_exact(engine: Any, artifact: Artifact) -> None:
    assert not engine._pipeline._is_accompanied and engine.context_length == CONTEXT
