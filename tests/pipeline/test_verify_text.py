"""A language model's report: perplexity, bits per byte, greedy tokens as the build generates them; fails on changed weights."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.core import DEPENDENT, Artifact, Batching, Example, TextPayload
from maasdam.engines import open_engine
from maasdam.engines.generating import greedy
from maasdam.engines.scoring import log_likelihoods
from maasdam.errors import InvalidInput
from maasdam.pipeline.conditions import Conditions
from maasdam.pipeline.examples import PreparedExamples
from maasdam.pipeline.recipe import Limits, find_recipe
from maasdam.pipeline.run_recipe import Build
from maasdam.pipeline.verify import verify
from maasdam.pipeline.verify_text import PIECE_CHARACTERS, Piece, Scores, text_pieces
from maasdam.sources import ingest
from tests.engines.tiny_language_model import CONTEXT, huggingface

QUICK = Conditions(threads=1, measure_seconds=0.0, measures_memory=False)
TEXT = "the cat sat on the mat and the dog sat on the log, as they say; " * 12
EXAMPLES = [Example("a.txt", TextPayload(prompt=TEXT)), Example("b.txt", TextPayload(prompt="là-bas, naïve café"))]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def source(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("llama")
    huggingface(folder)
    return ingest(str(folder), store)


@pytest.fixture(scope="module")
def reference(store: Store, source: Artifact) -> Artifact:
    (found,) = Build(store).references(source)
    return found


@pytest.fixture(scope="module")
def int8(store: Store, source: Artifact, reference: Artifact) -> Artifact:
    return Build(store).run(find_recipe("int8", source.task), source, None)


def test_float32_on_another_engine_holds_what_the_recipe_fp32_asks(source: Artifact, reference: Artifact) -> None:
    limits = find_recipe("fp32", source.task).limits
    report: dict[str, Any] = verify(reference, (reference,), source, EXAMPLES, limits, QUICK).to_json()
    assert report["passed"], report["failures"]
    assert report["parity"]["fidelity"] > 0.999


def test_the_report_of_int8_weights_is_true(source: Artifact, reference: Artifact, int8: Artifact) -> None:
    report: dict[str, Any] = verify(int8, (reference,), source, EXAMPLES, Limits(max_drop=0.5), QUICK).to_json()
    assert report["passed"], report["failures"]
    accuracy = report["accuracy"]
    assert accuracy["metric"] == "perplexity" and accuracy["candidate"] != accuracy["reference"]
    assert accuracy["drop"] == pytest.approx(accuracy["candidate"] / accuracy["reference"] - 1)
    assert report["source"]["accuracy"] == pytest.approx(accuracy["reference"], rel=1e-3)  # converted without loss
    assert accuracy["beside"]["reference"]["bits_per_byte"] > 0
    assert accuracy["confidence"]["over"] == "pieces of text"  # two texts are too few to draw from
    for name in ("reference", "candidate", "drop"):
        low, high = accuracy["confidence"][name]
        assert low <= accuracy[name] <= high
    assert report["throughput"]["unit"] == "tokens/s"
    assert report["precisions"]["weights u8"] > 0
    engine: Any = open_engine(int8, threads=1)
    try:
        for sample in report["samples"]:
            assert list(greedy(engine, [sample["prompt_token_ids"]], len(sample["candidate"]))[0]) == sample["candidate"]
    finally:
        engine.close()


def test_what_is_served_exact_is_judged_exact(
    source: Artifact, reference: Artifact, int8: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where answers depend on company with rounded activations they are served without; so is their perplexity."""
    from maasdam.engines import genai_engine

    monkeypatch.setattr(genai_engine, "company", lambda *_: Batching(DEPENDENT, "found"))
    report: dict[str, Any] = verify(int8, (reference,), source, EXAMPLES[1:], Limits(max_drop=0.5), QUICK).to_json()
    (piece,) = text_pieces(int8, PreparedExamples(EXAMPLES[1:]), CONTEXT)
    found = {
        rounds: Scores([piece], log_likelihoods(int8.path, [piece.ids], settings={"dynamic_quantization": rounds})).perplexity
        for rounds in (True, False)
    }
    assert report["accuracy"]["candidate"] == pytest.approx(found[False], rel=1e-6)
    assert found[True] != pytest.approx(found[False], rel=1e-4)
    assert report["batching_how"] == "found; activations are left exact"


def test_every_token_of_a_long_text_but_the_first_of_each_piece_is_scored(reference: Artifact) -> None:
    pieces = text_pieces(reference, PreparedExamples(EXAMPLES), CONTEXT)
    long = [p for p in pieces if p.name.startswith("a.txt")]
    assert len(long) > 1 and all(len(p.ids) <= CONTEXT for p in pieces)
    assert sum(p.bytes for p in long) == pytest.approx(len(TEXT.encode()), abs=3)
    for before, after in itertools.pairwise(long):
        assert before.ids[-1] == after.ids[0]


def test_perplexity_is_that_of_the_log_likelihoods(source: Artifact) -> None:
    ids = (5, 6, 7, 8)
    values = log_likelihoods(source.path, [ids])
    scores = Scores([Piece("x", ids, 6)], values)
    assert scores.perplexity == pytest.approx(math.exp(-values[0].mean()))
    assert scores.bits_per_byte == pytest.approx(-values[0].sum() / math.log(2) / 6)


def test_a_perplexity_that_is_no_number_is_none() -> None:
    assert Scores([Piece("x", (1, 2), 2)], [np.array([-np.inf])]).perplexity is None
    assert Scores([Piece("x", (1, 2), 2)], [np.array([np.nan])]).perplexity is None


def test_changed_weights_fail(store: Store, source: Artifact, reference: Artifact, tmp_path: Path) -> None:
    other = tmp_path / "other"
    huggingface(other)
    from safetensors.numpy import load_file, save_file

    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"][::-1].copy()
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    changed = Build(store).convert(ingest(str(other), store), "openvino")
    report = verify(changed, (reference,), source, EXAMPLES, find_recipe("fp32", source.task).limits, QUICK)
    assert any(failure.startswith("cosine is") for failure in report.failures)


def test_without_data_random_tokens_decide_and_the_report_says_so(source: Artifact, reference: Artifact) -> None:
    report = verify(reference, (reference,), source, [], Limits(), QUICK)
    assert report.passed and report.metric is None
    assert any("rests on parity alone, on random tokens" in n for n in report.notes)
    assert report.parity["cosine"] == pytest.approx(1.0)


def test_data_that_is_no_text_is_refused(source: Artifact, reference: Artifact) -> None:
    with pytest.raises(InvalidInput, match="no text of two tokens"):
        verify(reference, (reference,), source, [Example("e", TextPayload(prompt="\n"))], Limits(), QUICK)


def test_long_text_is_cut_at_spaces(reference: Artifact) -> None:
    words = "word " * 1000
    pieces = text_pieces(reference, PreparedExamples([Example("w", TextPayload(prompt=words))]), 10_000)
    assert len(pieces) == math.ceil(len(words) / PIECE_CHARACTERS)
