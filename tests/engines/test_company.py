"""With rounded activations too an answer is the same in any company, bit for bit; the row beside a lone one is nobody's."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from maasdam.core import DEPENDENT, INDEPENDENT, OF_ITS_ENGINE, UNKNOWN, Artifact, Batching, Sampling, Tokens
from maasdam.engines import genai_company, genai_engine, genai_steps, open_engine
from maasdam.engines.batching_kept import OWN, Findings
from maasdam.engines.genai_company import company, greedily, written
from maasdam.engines.genai_prefix import BLOCK, Prefixes
from maasdam.engines.genai_salts import Salts
from maasdam.engines.genai_steps import Answer, Steps
from maasdam.serving.loading import Loader
from maasdam.settings import Settings
from maasdam.telemetry.meter import CpuMeter
from tests.engines import tiny_language_model
from tests.engines.test_text_generation import GREEDY, all_of, ask
from tests.engines.tiny_language_model import CONTEXT, VOCABULARY

ROUNDED = {"threads": 2, "dynamic_quantization": True}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Weights in int8."""
    import nncf
    import openvino as ov

    source = tiny_language_model.huggingface(tmp_path_factory.mktemp("huggingface"))
    made = tiny_language_model.genai(source, tmp_path_factory.mktemp("genai"))
    folder = tmp_path_factory.mktemp("int8") / "model"
    shutil.copytree(made.path, folder)
    model = ov.Core().read_model(made.path / "openvino_model.xml")
    ov.save_model(nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM), folder / "openvino_model.xml")
    return replace(made, path=folder)


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 16 tokens: prompts of the tiny model's context are cut. A part that computed what came before it anew would not
    be over with its step."""
    monkeypatch.setattr(genai_steps, "STEP_TOKENS", 16)
    monkeypatch.setattr(genai_steps, "MOST_ANSWERS", 8)
    monkeypatch.setattr(genai_engine, "STEP_TOKENS", 16)
    monkeypatch.setattr(genai_engine, "PIPELINE_TOKENS", 42)


class Watched(Steps):
    """Steps none of which computes one row, nor a prompt's part of one token: elsewhere than here that may show in no bit."""

    def step(self) -> None:
        before = {answer: answer.left for answer in (*self._inside, *self._waiting)}
        super().step()
        assert self.rows != 1, before
        assert all(str(a.handle.get_status()).endswith("FINISHED") for a in self._inside if a.is_part)
        for answer, left in before.items():
            assert left == 0 or answer.left == 0 or answer.left == left or (left - answer.left > 1 and answer.left > 1)
            assert not (left == 1 < answer.prompt.shape[1])


class Otherwise(Steps):
    """Steps that compute a lone row in another way."""

    def step(self) -> None:
        super().step()
        for answer in self._inside:
            if self.rows == 1 and answer._pieces:
                ids, scores = answer._pieces.pop()
                answer._pieces.append(genai_steps.Given(ids, [score - 1e-6 for score in scores]))


def steps_of(artifact: Artifact, *, blocks: int | None = None, kind: type[Steps] = Watched, is_salted: bool = False) -> Steps:
    make, _, all_blocks = genai_engine._pipeline(artifact.path, ROUNDED)
    salts, blocks = Salts(VOCABULARY), blocks or all_blocks
    prefixes = Prefixes(salts, blocks) if is_salted else None
    return kind(make(salts if is_salted else None), blocks, is_accompanied=kind is Watched, prefixes=prefixes)


def prompts(*lengths: int) -> list[Any]:
    return [np.random.default_rng(length).integers(4, VOCABULARY, (1, length)) for length in lengths]


@pytest.mark.usefixtures("short_steps")
@pytest.mark.parametrize("is_salted", [False, True])
def test_every_length_gets_the_same_bits_alone_among_others_and_joining(artifact: Artifact, is_salted: bool) -> None:
    asked = prompts(*range(1, 41), 47, 48, 49, 50)
    steps = steps_of(artifact, is_salted=is_salted)
    alone = [written(steps, [prompt], tokens=6)[0] for prompt in asked]
    assert all(len(answer) == 6 for answer in alone)
    for size, joining in ((2, 1), (4, 2), (11, 5), (44, 0)):
        answers = [a for i in range(0, 44, size) for a in written(steps, asked[i : i + size], tokens=6, joining=joining)]
        assert answers == alone, (size, joining)


@pytest.mark.usefixtures("short_steps")
@pytest.mark.parametrize("is_salted", [False, True])
def test_when_others_end_or_leave_the_one_that_stays_is_the_same(artifact: Artifact, is_salted: bool) -> None:
    steps = steps_of(artifact, is_salted=is_salted)
    mine, *others = prompts(21, 5, 35, 18)
    alone = written(steps, [mine], tokens=40)[0]
    for leaving in (0, 1, 5, 9):
        answers = [
            steps.add_request(mine, greedily(40)),
            *(steps.add_request(p, greedily(3 + n)) for n, p in enumerate(others)),
        ]
        for number in range(100):
            if number == leaving:
                answers[2].cancel()
                answers.append(steps.add_request(others[1], greedily(4)))
            if not steps.has_non_finished_requests():
                break
            steps.step()
        assert genai_company._all_of(answers[0]) == alone


@pytest.mark.parametrize("is_salted", [False, True])
def test_what_a_full_cache_puts_out_begins_again_and_gives_nothing_twice(artifact: Artifact, is_salted: bool) -> None:
    asked = prompts(3, 20, 17, 33, 9, 30)
    steps, small = (steps_of(artifact, blocks=blocks, is_salted=is_salted) for blocks in (None, 20))
    alone = [written(steps, [prompt], tokens=90)[0] for prompt in asked]
    put_out: list[Answer] = []
    take_out = Answer.take_out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Answer, "take_out", lambda answer: (put_out.append(answer), take_out(answer)))
        assert written(small, asked, tokens=90) == alone
        assert put_out
        drawn = greedily(90)
        drawn.do_sample, drawn.temperature, drawn.rng_seed, drawn.presence_penalty = True, 1.5, 7, 0.5
        for prompt in asked[:5]:
            small.add_request(prompt, greedily(90))
        answers = [one.add_request(asked[5], drawn) for one in (steps, small)]
        for one in (steps, small):
            while one.has_non_finished_requests():
                one.step()
        assert answers[1] in put_out
    assert genai_company._all_of(answers[0]) == genai_company._all_of(answers[1])


def test_what_never_fits_is_refused_alone(artifact: Artifact) -> None:
    steps = steps_of(artifact, blocks=7)
    wide, fits = (steps.add_request(p, greedily(4)) for p in prompts(127, 9))
    while steps.has_non_finished_requests():
        steps.step()
    assert "can't hold this request" in str(wide.refused)
    assert len(genai_company._all_of(fits)) == 4


def test_the_companion_goes_with_whom_it_accompanied(artifact: Artifact) -> None:
    steps = steps_of(artifact)
    answer = steps.add_request(prompts(9)[0], greedily(90))
    for _ in range(50):
        steps.step()
    assert (answer.rows, steps.rows) == (1, 2)
    assert steps._companions[0].length <= genai_steps.OLD + 1  # the cache holds little of it
    answer.cancel()
    assert not steps.has_non_finished_requests()
    assert not steps._companions and not steps._pipeline.has_non_finished_requests()  # nothing keeps an idle engine busy
    pair = [steps.add_request(p, greedily(8)) for p in prompts(9, 4)]
    steps.step()
    steps.step()
    assert ([a.rows for a in pair], steps.rows) == ([1, 1], 2)  # two need no third
    while steps.has_non_finished_requests():
        steps.step()
    assert not steps._companions and not steps._pipeline.has_non_finished_requests()


def test_beside_others_a_prompt_is_computed_in_short_parts(artifact: Artifact) -> None:
    """No step is much longer than one without it, whatever joins."""
    steps = steps_of(artifact, is_salted=True)
    writing = [steps.add_request(p, greedily(60)) for p in prompts(9, 4, 12)]
    steps.step()
    joining = [steps.add_request(p, greedily(4)) for p in prompts(100, 30, 40)]
    rows = []
    while joining[-1].left:
        steps.step()
        rows.append(steps.rows)
    assert max(rows) <= 3 + 2 + BLOCK + 1 and len(rows) >= 6
    assert all(len(genai_company._all_of(answer)) == len(rows) + 1 for answer in writing)  # one token from each step
    for answer in (*writing, *joining):
        answer.cancel()
    assert not steps.has_non_finished_requests()


@pytest.mark.parametrize("room", [3, 8, 22, 33, 64, 127])
def test_parts_are_short_and_can_be_found_again(room: int) -> None:
    for length in range(2, 300):
        at = 0
        while at < length:
            part = genai_steps._part(at, length - at, room)
            end = at + part
            assert 2 <= part <= max(room, 66) and (end == length or length - end > 1), (length, at)
            assert end == length or at == 0 or (end - 1) // BLOCK > (at - 1) // BLOCK, (length, at)
            at = end
    assert [genai_steps._part(at, 64 - at, 22) for at in (0, 22, 43)] == [22, 21, 21]


def test_the_trial_tells_a_processor_that_computes_lone_rows_otherwise(artifact: Artifact) -> None:
    assert company(steps_of(artifact), VOCABULARY, CONTEXT).verdict == INDEPENDENT
    found = company(steps_of(artifact, kind=Otherwise), VOCABULARY, CONTEXT)
    assert found.verdict == DEPENDENT and "differed from those alone" in found.how


def test_a_trial_that_takes_too_long_leaves_it_unknown(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai_company, "LIMIT_SECONDS", -1.0)
    assert company(steps_of(artifact), VOCABULARY, CONTEXT).verdict == UNKNOWN


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Batching]]:
    """What trials found; another verdict put here is found next."""
    found: list[Batching] = []

    def tried(*args: Any) -> Batching:
        found.append(found.pop() if found and found[-1].verdict == DEPENDENT else company(*args))
        return found[-1]

    monkeypatch.setattr(genai_engine, "company", tried)
    yield found


async def _bits(engine: Any, prompt: Any) -> list[int]:
    return (await all_of(engine.submit(ask(prompt))))[0]


def test_it_is_rounded_by_default_and_exact_where_told_or_found(
    artifact: Artifact, trials: list[Batching], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[Any] = []
    pipeline = genai_engine._pipeline
    monkeypatch.setattr(
        genai_engine, "_pipeline", lambda folder, how: (groups.append(how["dynamic_quantization"]), pipeline(folder, how))[1]
    )

    def opened(**settings: Any) -> Any:
        engine = cast(Any, open_engine(artifact, threads=1, settings=settings))
        engine.close()
        return engine.batching

    assert opened().verdict == INDEPENDENT and groups.pop() is True
    assert opened(dynamic_quantization=False) == OF_ITS_ENGINE and groups.pop() is False and len(trials) == 1
    known = Batching(DEPENDENT, "found before")
    with caplog.at_level(logging.WARNING, "maasdam.engines"):
        found = opened(batching=known)
        assert found == replace(known, how="found before; activations are left exact")
        assert opened(batching=found) == found and groups == [False, False] and len(trials) == 1
        trials.append(Batching(DEPENDENT, "found now"))
        assert opened().how == "found now; activations are left exact" and groups == [False, False, True, False]
    said = [r.getMessage().removesuffix("; activations are left exact") for r in caplog.records]
    assert said == ["model: found before", "model: found before", "model: found now"]


def test_what_was_found_is_kept_and_shown(artifact: Artifact, trials: list[Batching], tmp_path: Path) -> None:
    findings = Findings(tmp_path)
    loader = Loader(cast(Any, None), Settings(home=tmp_path, threads=1), findings, meter=CpuMeter())
    assert findings.told(artifact, threads=1) == OWN
    for _ in range(2):
        cast(Any, loader._opened(artifact, {})).close()
    assert len(trials) == 1
    assert findings.told(artifact, threads=1).facts()["batching"] == INDEPENDENT


async def test_only_its_own_rows_are_an_answer_s_cost(artifact: Artifact) -> None:
    engine = cast(Any, open_engine(artifact, threads=1))
    spent: list[float] = []
    stop = engine.meter.stop

    def stopped(span: Any) -> Any:
        cost = stop(span)
        spent.append(cost.cpu_seconds)
        return cost

    engine.meter.stop = stopped
    pieces: list[Tokens] = [t async for t in engine.submit(ask(prompts(9)[0], Sampling(max_tokens=20, temperature=0.0)))]
    engine.close()
    billed = cast(Any, pieces[-1].cost).cpu_seconds
    assert billed == pytest.approx(spent[0] * 9 / 10 + sum(spent[1 : len(pieces)]) / 2)


async def test_the_engine_s_answers_are_the_same_in_company(artifact: Artifact) -> None:
    engine = cast(Any, open_engine(artifact, threads=1))
    asked = prompts(3, 40, 1, 17, 60, 33, 9)
    alone = [await _bits(engine, prompt) for prompt in asked]
    assert list(await asyncio.gather(*(_bits(engine, prompt) for prompt in asked))) == alone
    assert all(len(answer) == GREEDY.max_tokens for answer in alone)
    engine.close()
