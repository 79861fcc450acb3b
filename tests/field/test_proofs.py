"""A proof holds what it says: no shape of an answer and no broken engine gets around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.field.test_verdicts import one_number

from maasdam.artifacts.store import Store
from maasdam.convert.proof import certificate
from maasdam.convert.proof.differences import Proof, Tolerance
from maasdam.convert.proof.edges import rows_of
from maasdam.convert.proof.trials import trials
from maasdam.core import Signature, TensorEngine, TensorSpec
from maasdam.errors import EngineFailure, InvalidTensor, VerificationFailed
from maasdam.pipeline.proven import prove
from maasdam.pipeline.run_recipe import NOT_HAD

SIGNATURE = Signature((TensorSpec("x", "float32", (None, 4)),), (TensorSpec("y", "float32", (None, 4)),))


@pytest.mark.parametrize("found", [99.0, None])
@pytest.mark.parametrize("kind", [None, "constant 0"])
def test_an_axis_that_the_source_leaves_out_excuses_no_number(found: float | None, kind: str | None) -> None:
    """A Squeeze without axes answers [8] to a batch of one; the candidate keeps [1, 8]."""
    proof = Proof(Tolerance(), ["y"], drops_ones=True)
    for seed in range(3):
        wanted = np.random.default_rng(seed).normal(size=8).astype(np.float32)
        got = np.full((1, 8), found, np.float32) if found else wanted[None]
        answers = {"y": wanted}, {"y": got}
        batch = {"x": np.zeros((1, 8), np.float32)}
        proof.add(seed, batch, *answers, kind=kind, neighbours=lambda n, w=wanted: {"y": w + np.float32(1e-7)})
        proof.add(
            None, batch, *answers, kind="ties", neighbours=lambda n, w=wanted: {"y": w + 1000}, pairs=lambda n, a=answers: a
        )
    assert proof.agrees() is (found is None)


def test_a_decision_is_looked_for_beside_whatever_shape_the_source_gave_it() -> None:
    proof = Proof(Tolerance(), ["y"], drops_ones=True)
    wanted, got = np.int64([0, 1]), np.int64([[0, 0]])
    beside = np.int64([0, 0])
    proof.add(
        None, {}, {"y": wanted}, {"y": got}, kind="ties",
        neighbours=lambda _: {"y": beside}, pairs=lambda _: ({"y": beside}, {"y": beside[None]}),
    )  # fmt: skip
    assert not proof.agrees()  # both decide alike on either side of it: the candidate decides the tie otherwise


class _Breaking:
    """An engine that refuses every batch as one whose sizes don't go together."""

    signature = SIGNATURE

    def run(self, batch: Any) -> Any:
        raise InvalidTensor("this model can't take inputs of these sizes together")


def test_sizes_that_an_engine_refuses_are_a_refusal_and_no_end_of_everything(tmp_path: Path) -> None:
    engine: Any = _Breaking()
    with pytest.raises(VerificationFailed, match="breaks where the source answers"):
        certificate._answer(engine, {"x": np.zeros((2, 4), np.float32)})
    tried: list[int] = []

    class Once(_Breaking):
        def run(self, batch: Any) -> Any:
            tried.append(len(tried))
            if batch["x"].min() < 0:
                return super().run(batch)
            return {"y": batch["x"]}

    pixels: TensorEngine = Once()
    assert all(batch["x"].min() >= 0 for _, batch, _ in trials(pixels, (0, 1), None, Tolerance()))
    assert issubclass(InvalidTensor, NOT_HAD)


@pytest.mark.parametrize("kind", [EngineFailure, InvalidTensor])
def test_an_engine_that_broke_once_is_asked_again(tmp_path: Path, monkeypatch: Any, kind: type[Exception]) -> None:
    store = Store(tmp_path / "store")
    source, other = one_number(store, 1.0), one_number(store, 1.0)
    certify = certificate.certify

    def short_of_memory(*_: Any, **__: Any) -> Any:
        raise VerificationFailed("the converted model breaks where the source answers") from kind("out of memory")

    def gone(*_: Any, **__: Any) -> Any:
        raise kind("out of memory")

    for breaks in (short_of_memory, gone):
        monkeypatch.setattr(certificate, "certify", breaks)
        with pytest.raises(VerificationFailed):
            prove(source, other, store)
    monkeypatch.setattr(certificate, "certify", certify)
    assert prove(source, other, store)["passed"]


def _asked(answer: Any, is_late: Any = lambda: False) -> tuple[int | None, list[int]]:
    """(rows found, every number that was tried) of an integer input of two."""
    tried: list[int] = []

    def run(batch: Any) -> Any:
        tried.append(int(batch["n"][0]))
        return {"y": answer(tried[-1])}

    found = rows_of(run, {"n": np.int64([1, 1])}, Signature((TensorSpec("n", "int64", (2,)),), ()), is_late)
    return found["n"], tried


def test_an_integer_that_is_a_size_is_not_doubled_until_memory_ends() -> None:
    found, tried = _asked(lambda n: np.broadcast_to(np.float32(0), (n, n)))
    assert found is None and max(tried) == 2**13  # 256 MB, and no more
    constant = np.broadcast_to(np.float32(0), (2**25,))
    found, tried = _asked(lambda n: constant if n < 1000 else 1 / 0)
    assert found == 1000  # large, whatever the number is


def test_the_search_for_rows_ends_with_the_questions() -> None:
    calls = iter(range(100))
    found, tried = _asked(lambda n: np.zeros(1), lambda: next(calls) > 3)
    assert found == 17 and max(tried) == 16


def test_only_random_and_real_answers_are_kept_to_compare_with() -> None:
    proof = Proof(Tolerance(), ["y"])
    for length in range(1, 9):
        answers = {"y": np.ones((1, length), np.float32)}
        proof.add(None, answers, answers, answers, kind=f"length {length}")
    assert proof._first == {}
    for seed in range(2):
        answers = {"y": np.full((1, 4), seed, np.float32)}
        proof.add(seed, answers, answers, answers)
    assert [a.dtype.name for a in proof._first.values()] == ["float32"] and proof.lively() == 1
