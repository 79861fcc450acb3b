"""How far outputs are apart."""

from __future__ import annotations

import numpy as np
import pytest

from maasdam.pipeline.parity import Parity, cosine


def test_equal_outputs_are_equal() -> None:
    parity = Parity()
    one = [{"y": np.array([[1.0, -2.0]], np.float32)}]
    parity.add("a", one, one, True)
    assert parity.to_json() == {"max_abs_diff": 0.0, "cosine": 1.0, "agreement": 1.0, "examples": 1}
    assert parity.problems == []


def test_nothing_compared_is_none_not_zero() -> None:
    assert Parity().to_json() == {"max_abs_diff": None, "cosine": None, "agreement": None, "examples": 0}


@pytest.mark.parametrize(
    ("got", "says"),
    [
        ([[np.nan, 1.0]], "holds NaN"),
        ([[np.inf, 1.0]], "infinity"),
        ([[1.0, 2.0, 3.0]], "has 3 numbers where the reference's has 2"),
    ],
)
def test_worthless_outputs_are_problems(got: list[list[float]], says: str) -> None:
    parity = Parity()
    parity.add("photo", [{"y": np.array([[1.0, 2.0]])}], [{"y": np.array(got)}], False)
    assert says in parity.problems[0] and "photo" in parity.problems[0]
    assert parity.cosine is None and parity.agreement == 0.0


def test_the_largest_difference_and_the_mean_cosine_are_kept() -> None:
    parity = Parity()
    parity.add("a", [{"y": np.array([1.0, 0.0])}], [{"y": np.array([0.0, 1.0])}], False)
    parity.add("b", [{"y": np.array([1.0, 0.0])}], [{"y": np.array([1.5, 0.0])}], True)
    assert parity.max_abs_diff == 1.0 and parity.cosine == 0.5 and parity.agreement == 0.5


def test_cosine_of_zero_vectors() -> None:
    zero, one = np.zeros(2), np.ones(2)
    assert cosine(zero, zero) == 1.0 and cosine(zero, one) == 0.0
