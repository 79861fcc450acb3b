"""Calibration never sees labels, sets must not overlap, and what can't be read is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.core import (
    IMAGE_CLASSIFICATION,
    SPEECH_RECOGNITION,
    AudioPayload,
    Example,
    ImagePayload,
    TensorPayload,
    TextPayload,
)
from maasdam.errors import InvalidInput
from maasdam.pipeline.examples import (
    PreparedExamples,
    Preparer,
    calibration_inputs,
    check_disjoint,
    evaluation_examples,
    payload_digest,
    unlabelled_payloads,
)
from tests.pipeline.networks import colours, convolutional, png, write_photographs, write_tensors


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_calibration_takes_a_folder_without_labels_and_ignores_wrong_ones(store: Store, tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "plain", 6, labelled=False)
    (folder / "metadata.csv").write_text("file_name,label\nnothing.png,no such label\n")
    inputs = calibration_inputs(colours(store), folder, 4)
    assert [a.shape for tensors in inputs for a in tensors.values()] == [(1, 3, 16, 16)] * 4


def test_the_same_sample_is_drawn_each_time(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "p", 9)
    first = [name for name, _ in unlabelled_payloads(IMAGE_CLASSIFICATION, folder, 3)]
    assert first == [name for name, _ in unlabelled_payloads(IMAGE_CLASSIFICATION, folder, 3)] and first == sorted(first)


def test_data_of_another_kind_is_refused(store: Store, tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "p", 3)
    with pytest.raises(InvalidInput, match="no file for task 'automatic-speech-recognition'; it takes: aac"):
        unlabelled_payloads(SPEECH_RECOGNITION, folder, 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="no examples"):
        evaluation_examples(colours(store), tmp_path / "empty")


def test_a_broken_file_is_named(store: Store, tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "p", 3)
    (folder / "001.png").write_bytes(b"")
    artifact = colours(store)
    prepared = PreparedExamples(evaluation_examples(artifact, folder))
    with pytest.raises(InvalidInput, match=r"example '001.png'"):
        prepared.prepare_all(Preparer(artifact), lambda stage, done=0, total=None: None)


def test_calibration_data_with_nan_is_refused(store: Store, tmp_path: Path) -> None:
    np.savez(tmp_path / "nan.npz", image=np.full((2, 3, 16, 16), np.nan, np.float32))
    with pytest.raises(InvalidInput, match=r"example 'nan.npz:0'.*NaN"):
        calibration_inputs(convolutional(store), tmp_path / "nan.npz", 2)


def test_examples_are_decoded_once_for_all_engines_that_take_the_same(store: Store, tmp_path: Path) -> None:
    artifact = convolutional(store)
    prepared = PreparedExamples(evaluation_examples(artifact, write_tensors(tmp_path / "x.npz", 2)))
    assert prepared.of(0, Preparer(artifact)) is prepared.of(0, Preparer(artifact))
    nothing_kept = PreparedExamples(prepared.examples, kept_bytes=0)
    assert nothing_kept.of(0, Preparer(artifact)) is not nothing_kept.of(0, Preparer(artifact))


def test_training_data_found_in_the_evaluation_data_is_refused_whatever_its_name() -> None:
    data = [Example("a.png", ImagePayload(png("red")), 0), Example("b.png", ImagePayload(png("blue")), 2)]
    check_disjoint([Example("c.png", ImagePayload(png("green")), 1)], data)
    with pytest.raises(InvalidInput, match=r"1 of the examples .* \(first: 'renamed.png' is 'b.png'\)"):
        check_disjoint([Example("renamed.png", ImagePayload(png("blue")), 2)], data)


def test_payloads_are_told_apart_by_content() -> None:
    payloads = [
        ImagePayload(b"1"),
        AudioPayload(b"2"),
        TextPayload(prompt="x"),
        TextPayload(messages=({"role": "user", "content": "x"},)),
        TensorPayload({"x": np.zeros(2, np.float32)}),
        TensorPayload({"x": np.zeros(2, np.float64)}),
    ]
    assert len({payload_digest(p) for p in payloads}) == len(payloads)
