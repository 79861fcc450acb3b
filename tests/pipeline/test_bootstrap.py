"""Intervals hold the value, shrink with more examples, are the same each time, and know that both columns saw the same."""

from __future__ import annotations

import math

import numpy as np
import pytest

from maasdam.pipeline.bootstrap import confidence


def _right(count: int, right: int) -> list[tuple[float, float]]:
    return [(float(i < right), 1.0) for i in range(count)]


def test_ninety_of_a_hundred_is_the_binomial_interval() -> None:
    found = confidence("top1", _right(100, 95), _right(100, 90), "examples")
    assert found is not None
    low, high = found["candidate"]
    spread = 1.96 * math.sqrt(0.9 * 0.1 / 100)
    assert low == pytest.approx(0.9 - spread, abs=0.015) and high == pytest.approx(0.9 + spread, abs=0.015)
    assert (found["units"], found["over"], found["level"]) == (100, "examples", 0.95)


def test_the_drop_is_paired_and_so_narrower_than_two_columns_drawn_apart() -> None:
    found = confidence("top1", _right(1000, 700), _right(1000, 690), "examples")
    assert found is not None
    low, high = found["drop"]
    assert 0 < low < 0.01 < high < 0.02  # drawn apart it would reach from about -0.03 to 0.05


def test_the_same_answers_have_a_drop_of_exactly_nothing() -> None:
    found = confidence("top1", _right(50, 40), _right(50, 40), "examples")
    assert found is not None and found["drop"] == [0.0, 0.0] and found["candidate"][0] < 0.8 < found["candidate"][1]


def test_it_is_seeded_and_narrows_with_more_examples() -> None:
    few, many = (confidence("top1", _right(n, n // 2), _right(n, n // 2), "examples") for n in (40, 4000))
    again = confidence("top1", _right(40, 20), _right(40, 20), "examples")
    assert few is not None and many is not None and few == again
    assert np.ptp(many["candidate"]) < np.ptp(few["candidate"]) / 5


def test_long_recordings_weigh_more_in_a_word_error_rate() -> None:
    reference = [(0.0, 1.0)] * 9 + [(0.0, 90.0)]
    found = confidence("wer", reference, [(1.0, 1.0)] * 9 + [(0.0, 90.0)], "examples")
    assert found is not None
    assert found["drop"][0] < 9 / 99 < found["drop"][1] and found["drop"][1] > 0.9  # the long one may not be drawn at all


def test_a_resample_without_a_word_is_left_out() -> None:
    found = confidence("wer", [(0.0, 0.0), (1.0, 2.0)], [(1.0, 0.0), (1.0, 2.0)], "examples")
    assert found is not None and found["reference"] == [0.5, 0.5]


def test_perplexity_is_the_exponent_of_the_ratio() -> None:
    texts = [(2.0 * n, float(n)) for n in range(5, 25)]
    found = confidence("perplexity", texts, [(a * 1.1, b) for a, b in texts], "texts", math.exp)
    assert found is not None
    assert found["reference"] == pytest.approx([math.exp(2.0)] * 2) and found["drop"] == pytest.approx([math.exp(0.2) - 1] * 2)


def test_one_example_or_infinity_has_no_interval() -> None:
    assert confidence("top1", _right(1, 1), _right(1, 1), "examples") is None
    found = confidence("perplexity", [(1.0, 1.0)] * 3, [(math.inf, 1.0)] * 3, "texts", lambda r: r)
    assert found is not None and found["candidate"] is None and found["reference"] == [1.0, 1.0]
