"""Calibration and training data that are no good: one clear sentence, and nothing is registered."""

from __future__ import annotations

import csv
import io
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.pipeline.networks import convolutional, write_colours, write_photographs

from maasdam.errors import CallerError, InvalidInput
from maasdam.operations.build import BuildSpec, build
from maasdam.operations.workspace import Workspace
from maasdam.settings import Settings

INT8 = "[[pass]]\nuse = 'quantize'\nscheme = 'static-int8'\n"
CONTROLLED = INT8 + "max_drop = 0.01\n"


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(Settings(home=tmp_path / "home", threads=1)) as opened:
        yield opened


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_colours(tmp_path / "model") / "model.onnx"


def _refused(workspace: Workspace, model: Path, tmp_path: Path, recipe: str, **how: Any) -> str:
    """What a build says that is refused and leaves no version behind."""
    written = tmp_path / "recipe.toml"
    written.write_text(recipe)
    with pytest.raises(CallerError) as caught:
        build(workspace, BuildSpec("colours", str(model), recipe=str(written), **how))
    assert workspace.catalog.versions() == []
    assert workspace.catalog.builds()[0].state == "failed"
    assert list((workspace.store.root / "tmp").iterdir()) == []
    for digest in workspace.store.digests():  # what was converted on the way is sound
        workspace.store.check(digest)
    return str(caught.value)


def _picture_build(model: Path, to: str) -> dict[str, Any]:
    return {"task": "image-classification", "processor": model.parent, "to": to}


def _recording(path: Path) -> None:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(3200))
    path.write_bytes(out.getvalue())


@pytest.mark.parametrize("to", ["onnx", "openvino"])
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("empty", "holds no file for task 'image-classification'"),
        ("recordings", "holds no file for task 'image-classification'; it takes: avif, bmp, gif, jpeg"),
        ("one file", "no folder of examples at"),
        ("not a picture", "example '003.png': "),
        ("cut short", "example '003.png': "),
    ],
)
def test_calibration_pictures_that_are_none(
    workspace: Workspace, model: Path, tmp_path: Path, to: str, spoil: str, says: str
) -> None:
    calibrate = tmp_path / "calibrate"
    if spoil in ("empty", "recordings"):
        calibrate.mkdir()
        if spoil == "recordings":
            _recording(calibrate / "a.wav")
    else:
        write_photographs(calibrate, 6)
    broken = calibrate / "003.png"
    if spoil == "one file":
        calibrate = calibrate / "001.png"
    elif spoil == "not a picture":
        broken.write_text("a poem")
    elif spoil == "cut short":
        broken.write_bytes(broken.read_bytes()[:200])
    said = _refused(workspace, model, tmp_path, INT8, calibrate=calibrate, **_picture_build(model, to))
    assert says in said, said


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("NaN", "example 'x.npz:1': input 'image' holds NaN"),
        ("infinity", "example 'x.npz:1': input 'image' holds NaN or infinity; calibrate on finite numbers"),
        ("another name", "no input 'picture'; this model takes: image"),
        ("another shape", "input 'image' has shape [1, 3, 8, 8]; send [-1, 3, 16, 16]"),
        ("another kind", "input 'image' is int64; send float32"),
        ("no arrays", "holds no arrays; save them with numpy.savez"),
        ("not an archive", "is no .npz of named arrays"),
    ],
)
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_calibration_tensors_that_do_not_fit(workspace: Workspace, tmp_path: Path, to: str, spoil: str, says: str) -> None:
    model = convolutional(workspace.store).path / "model.onnx"
    image = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
    if spoil in ("NaN", "infinity"):
        image[1, 0, 0, 0] = np.nan if spoil == "NaN" else np.inf
    arrays: dict[str, Any] = {"picture" if spoil == "another name" else "image": image}
    if spoil == "another shape":
        arrays["image"] = image[:, :, :8, :8]
    elif spoil == "another kind":
        arrays["image"] = image.astype(np.int64)
    elif spoil == "no arrays":
        arrays = {}
    np.savez(tmp_path / "x.npz", **arrays)
    if spoil == "not an archive":
        (tmp_path / "x.npz").write_text("a poem")
    said = _refused(workspace, model, tmp_path, INT8, calibrate=tmp_path / "x.npz", to=to)
    assert says in said or (spoil == "no arrays" and "example" in said), said


def _relabel(folder: Path, change: dict[str, str]) -> None:
    path = folder / "metadata.csv"
    with path.open(newline="") as file:
        rows = [row | {"label": change.get(row["label"], row["label"])} for row in csv.DictReader(file)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "label"])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"blue": "violet"}, "violet"), ({"blue": ""}, "has no label; max_drop is held on labelled examples")],
    ids=["a label the model has not", "no label"],
)
def test_mislabelled_data_for_accuracy_control(
    workspace: Workspace, model: Path, tmp_path: Path, change: dict[str, str], says: str
) -> None:
    train = write_photographs(tmp_path / "train", 6)
    _relabel(train, change)
    said = _refused(workspace, model, tmp_path, CONTROLLED, train=train, **_picture_build(model, "openvino"))
    assert says in said, said


def test_accuracy_control_without_training_data_is_refused_before_any_work(
    workspace: Workspace, model: Path, tmp_path: Path
) -> None:
    data = write_photographs(tmp_path / "data", 6)
    said = _refused(workspace, model, tmp_path, CONTROLLED, data=data, **_picture_build(model, "openvino"))
    assert "trains in quantize: name labelled data with --train" in said
    assert len(workspace.store.digests()) <= 1


def test_labels_of_calibration_data_are_never_read(workspace: Workspace, model: Path, tmp_path: Path) -> None:
    """Wrong labels make no difference: the same artifact comes out, byte for byte."""
    from maasdam.pipeline.passes import find_pass
    from maasdam.pipeline.recipe import Use
    from maasdam.pipeline.run_recipe import Build, Data
    from maasdam.sources import ingest

    source = ingest(str(model), workspace.store, task="image-classification", processor=model.parent)
    right = write_photographs(tmp_path / "right", 6)
    wrong = write_photographs(tmp_path / "wrong", 6)
    _relabel(wrong, {"red": "nonsense", "green": "red"})
    use = Use("quantize", find_pass("quantize", "t").check({"scheme": "static-int8", "format": "onnx"}, "t"))
    made = [Build(workspace.store, Data(calibrate=folder)).apply(use, source) for folder in (right, wrong)]
    assert made[0].digest == made[1].digest


def test_the_error_is_the_caller_s(workspace: Workspace, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--calibrate: nothing is at"):
        build(workspace, BuildSpec("colours", str(model), calibrate=tmp_path / "nowhere", **_picture_build(model, "onnx")))
    assert workspace.catalog.versions() == []
