"""Prompts that begin alike are computed once: what is found, by whom, and that no answer is another for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from maasdam.core import DEPENDENT, Artifact, Sampling, SequenceRequest
from maasdam.engines import check_options, genai_company, genai_engine, open_engine
from maasdam.engines.genai_company import greedily, written
from maasdam.engines.genai_prefix import BLOCK, Prefixes, alike
from maasdam.engines.genai_salts import MODEL, Salts, salted_model
from maasdam.engines.genai_steps import Steps
from maasdam.errors import InvalidField, InvalidInput, InvalidModel, Unsupported
from tests.engines.test_company import Watched, artifact, prompts, short_steps, steps_of
from tests.engines.test_company import artifact as artifact
from tests.engines.test_company import short_steps as short_steps
from tests.engines.test_text_generation import all_of, ask
from tests.engines.tiny_language_model import VOCABULARY

KEYED = {"prefix_cache": "key"}


def sharing(artifact: Artifact, *, blocks: int | None = None, rounds: bool = True) -> Steps:
    make, _, all_blocks = genai_engine._pipeline(artifact.path, {"threads": 2, "dynamic_quantization": rounds})
    blocks = blocks or all_blocks
    kind = Watched if rounds else Steps
    salts = Salts(VOCABULARY)
    return kind(make(salts), blocks, is_accompanied=rounds, prefixes=Prefixes(salts, blocks))


def many(count: int = 15) -> list[Any]:
    """Prompts, many of which begin alike, in the middle of a block or at its end."""
    random = np.random.default_rng(3)
    heads = prompts(64, 75, 96, 40)
    out = []
    for _ in range(count):
        head = heads[int(random.integers(4))][:, : int(random.integers(30, 97))]
        out.append(np.concatenate([head, random.integers(4, VOCABULARY, (1, int(random.integers(1, 20))))], 1))
    return [*out, *out[:3], *prompts(1, 2, 33, 34, 35, 66)]


@pytest.mark.usefixtures("short_steps")
@pytest.mark.parametrize("rounds", [True, False])
def test_an_answer_is_the_same_whatever_was_computed_before(artifact: Artifact, rounds: bool) -> None:
    asked = many()
    make, _, blocks = genai_engine._pipeline(artifact.path, {"threads": 2, "dynamic_quantization": rounds})
    plain = Steps(make(), blocks, is_accompanied=rounds)
    expected = [written(plain, [prompt], tokens=5)[0] for prompt in asked]
    steps = sharing(artifact, rounds=rounds)
    for size, joining in ((1, 0), (24, 0), (8, 3)):
        groups = [asked[i : i + size] for i in range(0, len(asked), size)]
        answers = [a for group in groups for a in written(steps, group, tokens=5, joining=joining, owner="me")]
        assert [[i for i, _ in a] for a in answers] == [[i for i, _ in a] for a in expected]
        if rounds:
            assert answers == expected, (size, joining)  # bit for bit


def computed(steps: Steps, prompt: Any, owner: str | None) -> int:
    """Rows of a prompt that are computed."""
    answer = steps.add_request(prompt, greedily(1), owner)
    total = 0
    while steps.has_non_finished_requests():
        steps.step()
        total += answer.computed
    return total


def test_what_is_found_is_what_the_same_owner_computed_and_leaves_two_tokens(artifact: Artifact) -> None:
    steps = sharing(artifact)
    (prompt,) = prompts(100)
    assert computed(steps, prompt, "one") == 100
    assert computed(steps, prompt, "one") == 4
    assert computed(steps, prompt, "other") == 100
    assert computed(steps, prompt, None) == computed(steps, prompt, None) == 100
    assert [computed(steps, prompt[:, :n], "one") for n in (97, 98, 66, 65, 33)] == [33, 2, 2, 33, 33]
    changed = prompt.copy()
    changed[0, 40] += 1
    assert computed(steps, changed, "one") == 68


@pytest.mark.usefixtures("short_steps")
def test_the_pipeline_finds_as_much_by_itself(artifact: Artifact) -> None:
    """It is told nothing: what it has in use after a first step of 16 rows shows what it found, each part of a prompt that it
    ends in one step that it found the parts before."""
    steps = sharing(artifact, blocks=100)
    (prompt,) = prompts(120)
    used = []
    for owner in ("one", "one", "other", None):
        steps.add_request(prompt, greedily(1), owner)
        steps.step()
        used.append(round(steps._pipeline.get_metrics().cache_usage))  # percent, which are blocks
        while steps.has_non_finished_requests():
            steps.step()
    assert used == [1, 3, 1, 1]  # a companion's block, and those found; a part's own are given back


def test_answers_to_one_prompt_wait_for_the_first_and_compute_it_once(artifact: Artifact) -> None:
    steps = sharing(artifact)
    (prompt,) = prompts(110)
    answers = [steps.add_request(prompt, greedily(4), "me") for _ in range(6)]
    alone = steps.add_request(prompt, greedily(4), None)
    while steps.has_non_finished_requests():
        steps.step()
    assert [answer.found for answer in answers] == [0, 96, 96, 96, 96, 96]
    assert alone.found == 0
    texts = [genai_company._all_of(answer) for answer in (*answers, alone)]
    assert all(text == texts[0] for text in texts) and len(texts[0]) == 4


@pytest.mark.usefixtures("short_steps")
def test_what_the_cache_has_written_over_is_computed_again_and_is_the_same(artifact: Artifact) -> None:
    asked = [np.concatenate([head, tail], 1) for head in prompts(70, 71, 72, 73, 74) for tail in prompts(9, 10, 11)]
    plain = steps_of(artifact)
    expected = [written(plain, [prompt], tokens=5)[0] for prompt in asked]
    small = sharing(artifact, blocks=24)
    for size in (1, 15, 4):
        assert [a for i in range(0, 15, size) for a in written(small, asked[i : i + size], tokens=5, owner="me")] == expected
    assert len(cast(Any, small._prefixes)._known) <= 2 * 24


def test_nothing_is_counted_on_that_may_have_been_written_over() -> None:
    """The bound, against a cache that writes over what was used least recently, block by block."""
    random = np.random.default_rng(0)
    blocks = 40
    prefixes = Prefixes(Salts(1000), blocks)
    heads = [random.integers(0, 1000, (1, 32 * int(n))) for n in random.integers(1, 9, 12)]
    held: dict[bytes, int] = {}  # what the cache holds, and when it was used last
    clock, found = 0, 0
    for _ in range(400):
        prompt = np.concatenate([heads[int(random.integers(12))], random.integers(0, 1000, (1, 5))], 1)
        begun = prefixes.find(prompt, "me", 0)
        chain = [begun.sent[0, : at + BLOCK].tobytes() for at in range(0, prompt.shape[1], BLOCK)]
        assert all(chain[at] in held for at in range(begun.found // BLOCK))  # what is counted on is there
        assert not any(chain[at] in held for at in range(begun.found // BLOCK, len(chain)))  # and nothing else is
        found += begun.found
        prefixes.take(begun)
        for each in chain:
            clock += 1
            if each not in held and len(held) == blocks:
                del held[min(held, key=lambda one: held[one])]
            held[each] = clock
        prefixes.keep(prompt, "me", begun)
    assert found > 10_000


def test_salts_are_each_used_once_and_taken_off(artifact: Artifact, tmp_path: Path) -> None:
    salts = Salts(VOCABULARY)
    assert salts.span == 512
    seen = set()
    for at in (0, 0, 32, 33):
        ids = np.arange(40)
        salts.add(ids, at)
        assert (ids % salts.span == np.arange(40)).all() and ids.max() < 1 << 31 and (ids[:at] < salts.span).all()
        seen.add(ids.tobytes())
    one = np.array([7])
    salts.add(one, 0)
    assert len(seen) == 4 and one[0] % 512 == 7 and one[0] > 512
    import openvino as ov

    salted_model(artifact.path, tmp_path, salts)
    model = ov.Core().read_model(tmp_path / MODEL)
    ids = model.input("input_ids").get_target_inputs()
    assert {node.get_node().get_type_name() for node in ids} == {"Clamp", "BitwiseAnd"}
    assert (tmp_path / "openvino_model.bin").resolve() == (artifact.path / "openvino_model.bin").resolve()


@pytest.mark.parametrize(("one", "other", "tokens"), [(66, 66, 64), (65, 66, 32), (33, 200, 0), (34, 32, 32), (1, 1, 0)])
def test_prompts_are_alike_by_whole_blocks(one: int, other: int, tokens: int) -> None:
    ids = np.arange(200)[None]
    assert alike(ids[:, :one], ids[:, :other]) == tokens
    changed = ids.copy()
    changed[0, 40] = -1
    assert alike(ids[:, :one], changed[:, :other]) == min(tokens, 32)


@pytest.fixture(scope="module")
def engine(artifact: Artifact) -> Iterator[Any]:
    opened = open_engine(artifact, threads=1, settings=KEYED)
    yield opened
    opened.close()


def owned(prompt: Any, owner: str, sampling: Sampling | None = None) -> SequenceRequest:
    return replace(ask(prompt, *([sampling] if sampling else [])), owner=owner)


async def pieces_of(engine: Any, request: SequenceRequest) -> list[Any]:
    return [piece async for piece in engine.submit(request)]


async def test_it_is_told_how_much_was_found_by_key(engine: Any) -> None:
    (prompt,) = prompts(101)
    told = [(await pieces_of(engine, owned(prompt, owner)))[-1].cached_tokens for owner in ("a", "a", "b", "a", "b")]
    assert told == [0, 96, 0, 96, 96]


async def test_answers_drawn_punished_and_scored_are_the_same_as_without(engine: Any, artifact: Artifact) -> None:
    plain = cast(Any, open_engine(artifact, threads=1))
    (prompt,) = prompts(90)
    hot = Sampling(
        max_tokens=12, temperature=1.5, seed=3, top_p=0.9, presence_penalty=0.7, frequency_penalty=0.2, ignore_eos=True
    )
    scored = Sampling(max_tokens=4, temperature=0.0, echo=True, logprobs=0, ignore_eos=True)
    for sampling in (hot, scored, replace(hot, seed=4), scored):
        expected, *given = [
            [
                (p.token_ids, p.scores, p.prompt_scores, p.finish_reason)
                for p in await pieces_of(one, owned(prompt, "k", sampling))
            ]
            for one in (plain, engine, engine)
        ]
        assert given == [expected, expected]
    plain.close()


async def test_one_that_leaves_while_others_wait_for_its_prompt(engine: Any) -> None:
    (prompt,) = prompts(103)
    stop = engine.start(owned(prompt, "leaves"), lambda told: None)
    others = [asyncio.ensure_future(all_of(engine.submit(owned(prompt, "leaves")))) for _ in range(3)]
    stop()
    answers = [await other for other in others]
    assert answers[0][0] == answers[1][0] == answers[2][0] and len(answers[0][0]) > 0


async def test_a_penalty_for_repetition_is_refused_by_name_and_neighbours_go_on(engine: Any) -> None:
    (prompt,) = prompts(60)
    beside = asyncio.ensure_future(all_of(engine.submit(owned(prompt, "a"))))
    for value in (1.1, 0.5):
        with pytest.raises(InvalidField, match="'repetition_penalty' is"):
            await pieces_of(engine, owned(prompt, "a", Sampling(max_tokens=3, repetition_penalty=value)))
    assert (await beside)[0]
    assert await pieces_of(engine, owned(prompt, "a", Sampling(max_tokens=3, repetition_penalty=1.0)))


async def test_without_a_cache_the_answers_of_one_request_alone_share_its_prompt(artifact: Artifact) -> None:
    plain = cast(Any, open_engine(artifact, threads=1))
    (prompt,) = prompts(110)
    added = plain._pipeline.add_request
    begun: list[Any] = []
    plain._pipeline.add_request = lambda *args: (begun.append(added(*args)), begun[-1])[1]
    asked = [replace(owned(prompt, "a"), id=name) for name in ("one", "one", "one", "other")]
    told = await asyncio.gather(*(pieces_of(plain, request) for request in asked))
    assert [answer.found for answer in begun] == [0, 96, 96, 0]
    assert all(pieces[-1].cached_tokens is None for pieces in told)  # nobody's cache: it is not told
    assert len({tuple(i for piece in pieces for i in piece.token_ids) for pieces in told}) == 1
    plain.close()


async def test_a_penalty_for_repetition_is_kept_to_without_a_cache_and_neighbours_go_on(artifact: Artifact) -> None:
    """The pipeline is made anew for the first, once nothing is inside."""
    plain = cast(Any, open_engine(artifact, threads=1))
    (prompt,) = prompts(60)
    punished = Sampling(max_tokens=8, temperature=0.0, repetition_penalty=1.8, ignore_eos=True)
    expected = await all_of(plain.submit(owned(prompt, "a")))
    assert plain._pipeline.is_salted
    beside = asyncio.ensure_future(all_of(plain.submit(owned(prompt, "a"))))
    await asyncio.sleep(0.05)
    told, after = await asyncio.gather(
        pieces_of(plain, owned(prompt, "a", punished)), pieces_of(plain, owned(prompt, "b", replace(punished, logprobs=0)))
    )
    assert not plain._pipeline.is_salted
    ids = [i for piece in told for i in piece.token_ids]
    assert len(ids) == 8 and len(set(ids)) == 8 and ids == [i for piece in after for i in piece.token_ids]
    assert await beside == expected == await all_of(plain.submit(owned(prompt, "a")))
    plain.close()


@pytest.mark.parametrize(
    ("file", "text", "error", "said"),
    [
        ("generation_config.json", '{"repetition_penalty": 1.2, "eos_token_id": 1}', InvalidModel, "repetition_penalty 1.2"),
        ("config.json", '{"num_hidden_layers": 2}', InvalidModel, "vocab_size"),
    ],
)
def test_a_model_that_can_t_share_is_refused(
    artifact: Artifact,
    tmp_path: Path,
    file: str,
    text: str,
    error: type,
    said: str,
) -> None:
    for one in artifact.path.iterdir():
        (tmp_path / one.name).symlink_to(one)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / file).unlink()
    (tmp_path / file).write_text(text if file != "config.json" else config.replace('"vocab_size"', '"vocab"'))
    with pytest.raises(error, match=said):
        open_engine(replace(artifact, path=tmp_path), threads=1, settings=KEYED)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"prefix_cache": value}, "prefix_cache is") for value in ("yes", "", "KEY", True, 3, None, ["key"])]
    + [({"prompt_lookup": value}, "'prompt_lookup' is") for value in (0, -1, 17, 1.5, "4", True, None)]
    + [({"prefix_cache": "key", "prompt_lookup": 4}, "can't be had together")],
)
def test_other_options_are_refused(artifact: Artifact, options: dict[str, Any], said: str) -> None:
    with pytest.raises((InvalidInput, InvalidField), match=said):
        open_engine(artifact, threads=1, settings=options)


@pytest.mark.parametrize("engine", ["transformers", "onnxruntime", "ctranslate2", "none of ours"])
@pytest.mark.parametrize("options", [{"prefix_cache": "key"}, {"prompt_lookup": 4}])
def test_an_engine_that_has_no_such_option_says_so(engine: str, options: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match=f"engine {engine} has no {next(iter(options))}"):
        check_options(engine, options)
    check_options(engine, {})


def test_where_what_was_computed_before_shows_activations_are_exact(
    artifact: Artifact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(genai_company, "is_same_from_cache", lambda *args: False)
    opened = cast(Any, open_engine(artifact, threads=1, settings=KEYED))
    assert opened.batching.verdict == DEPENDENT and not opened._pipeline._is_accompanied
    opened.close()
