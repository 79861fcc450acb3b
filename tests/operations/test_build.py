"""A build from source to catalog: what it gives, what it refuses before any work, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.pipeline.networks import write_colours, write_photographs
from tests.waiting import wait_until

from maasdam.core import silent
from maasdam.errors import InvalidInput, InvalidModel, MaasdamError, Unsupported, VerificationFailed
from maasdam.operations.build import BuildSpec, build, document
from maasdam.operations.workspace import Workspace
from maasdam.settings import Settings


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(Settings(home=tmp_path / "home", threads=1)) as opened:
        yield opened


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_colours(tmp_path / "model") / "model.onnx"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photographs", 12)


def _build(workspace: Workspace, model: Path, **how: Any) -> Any:
    how.setdefault("processor", model.parent)
    progress = how.pop("progress", silent)
    spec = BuildSpec(**{"name": "colours", "source": str(model), "task": "image-classification", **how})
    return build(workspace, spec, progress=progress)


def test_a_build_is_registered_with_its_report_and_can_be_promoted(
    workspace: Workspace, model: Path, photographs: Path
) -> None:
    version = _build(workspace, model, data=photographs)
    shown = json.loads(json.dumps(document(version)))
    assert {"name", "version", "digest", "format", "engine", "task", "passes", "report"} <= shown.keys()
    assert (shown["name"], shown["version"]) == ("colours", 1)
    assert shown["passes"] and {"use", "seconds", "cached", "digest"} <= shown["passes"][0].keys()
    assert shown["report"]["passed"] and shown["report"]["accuracy"]["candidate"] == 1.0
    assert workspace.catalog.promote("colours:1").aliases == ("prod",)
    assert workspace.store.get(version.digest).engine == version.engine


def test_the_same_build_again_is_a_new_version_from_the_cache(workspace: Workspace, model: Path, photographs: Path) -> None:
    first = _build(workspace, model, data=photographs)
    second = _build(workspace, model, data=photographs)
    assert (second.version, second.digest) == (2, first.digest) and all(p["cached"] for p in second.passes)


def test_to_the_source_s_format_serves_it_as_it_is(workspace: Workspace, model: Path, photographs: Path) -> None:
    version = _build(workspace, model, data=photographs, to="onnx")
    assert (version.format, version.engine) == ("onnx", "onnxruntime")
    kept = workspace.store.get(version.digest)
    assert (kept.path / "model.onnx").read_bytes() == model.read_bytes()


def test_a_source_that_names_no_task_has_the_one_its_recipe_is_for(
    workspace: Workspace, model: Path, photographs: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "pictures.toml"
    recipe.write_text("task = 'image-classification'\n[[pass]]\nuse = 'optimize'\n")
    version = _build(workspace, model, data=photographs, recipe=str(recipe), task=None)
    assert version.task == "image-classification" and version.report["accuracy"]["candidate"] == 1.0


def test_a_failed_report_is_registered_and_not_promotable(
    workspace: Workspace, model: Path, photographs: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "strict.toml"
    recipe.write_text("[limits]\nmin_ratio = 1000\n[[pass]]\nuse = 'optimize'\n")
    version = _build(workspace, model, data=photographs, recipe=str(recipe))
    assert version.passed is False and version.report is not None
    assert "size ratio is" in version.report["failures"][0]
    with pytest.raises(VerificationFailed, match="size ratio"):
        workspace.catalog.promote("colours:1")


def test_int8_says_what_it_was_calibrated_on_and_which_precisions_run(
    workspace: Workspace, model: Path, photographs: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "int8.toml"
    passes = ["use = 'quantize'\nscheme = 'static-int8'", "use = 'optimize'\nengine = 'onnxruntime'"]
    recipe.write_text("".join(f"[[pass]]\n{lines}\n" for lines in passes))
    report = _build(workspace, model, data=photographs, recipe=str(recipe)).report
    assert "sample of the evaluation data" in report["calibration"]["says"]
    assert report["precisions"] and report["optimization"]


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"recipe": "int9"}, InvalidInput, "no recipe 'int9'"),
        ({"recipe": "int8"}, InvalidInput, "calibrates: name a folder with --calibrate"),
        ({"recipe": "pruned"}, InvalidInput, "name labelled data with --train"),
        ({"recipe": "int8", "to": "tensorflow"}, InvalidInput, "--calibrate"),
        ({"to": "coreml"}, InvalidInput, "--to is 'coreml'; it takes: pytorch, onnx"),
        ({"device": "tpu"}, InvalidInput, "--device is 'tpu'"),
        ({"name": "Bad Name"}, InvalidInput, "can't name a model"),
        ({"data": Path("/nowhere/at/all")}, InvalidInput, "--data: nothing is at /nowhere/at/all"),
        ({"train": Path("/nowhere")}, InvalidInput, "--train: nothing is at"),
    ],
)
def test_what_can_not_be_is_refused_before_any_work(
    workspace: Workspace, model: Path, how: dict[str, Any], error: type[MaasdamError], says: str
) -> None:
    with pytest.raises(error, match=says):
        _build(workspace, model, **how)
    assert workspace.catalog.versions() == []


def test_a_gpu_that_is_not_here_is_said(workspace: Workspace, model: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has a GPU")
    with pytest.raises(Unsupported, match="--device cuda: neither ONNX Runtime nor torch sees a CUDA device"):
        _build(workspace, model, device="cuda")


@pytest.mark.parametrize("spoil", ["empty", "another kind", "unknown label", "broken picture", "label file names nothing"])
def test_bad_data_is_refused_before_any_pass(
    workspace: Workspace, model: Path, photographs: Path, tmp_path: Path, spoil: str
) -> None:
    metadata = photographs / "metadata.csv"
    if spoil == "empty":
        photographs = tmp_path / "empty"
        photographs.mkdir()
    elif spoil == "another kind":
        photographs = tmp_path / "x.npz"
        np.savez(photographs, x=np.zeros(3))
    elif spoil == "unknown label":
        metadata.write_text(metadata.read_text().replace("blue", "violet"))
    elif spoil == "broken picture":
        (photographs / "003.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    else:
        (photographs / "003.png").unlink()
    with pytest.raises(InvalidInput) as caught:
        _build(workspace, model, data=photographs)
    assert len(str(caught.value)) > 20
    assert workspace.catalog.versions() == [] and len(workspace.store.digests()) == 1  # the source, and nothing made of it


def test_what_is_trained_on_may_not_be_evaluated_on(workspace: Workspace, model: Path, photographs: Path) -> None:
    with pytest.raises(InvalidInput, match="12 of the examples of --train are in --data too"):
        _build(workspace, model, data=photographs, train=photographs)


def test_a_file_that_is_no_model_leaves_nothing_behind(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("a poem")
    with pytest.raises(InvalidModel):
        build(workspace, BuildSpec("poem", str(tmp_path / "model.onnx")))
    assert workspace.catalog.versions() == [] and workspace.store.digests() == []
    state = workspace.catalog.builds()[0]
    assert (state.name, state.state) == ("poem", "failed") and state.error


def test_a_build_tells_how_far_it_is(workspace: Workspace, model: Path, photographs: Path) -> None:
    stages: list[str] = []
    _build(workspace, model, data=photographs, progress=lambda stage, done=0, total=None: stages.append(stage))
    assert {"read the source", "read the data", "latency", "score"} <= set(stages)
    state = workspace.catalog.builds()[0]
    assert state.state == "done" and state.finished_at is not None and state.stage


def test_a_build_killed_in_the_middle_leaves_a_sound_store_and_resumes(
    tmp_path: Path, model: Path, photographs: Path, repository: Path
) -> None:
    home = tmp_path / "killed"
    words = ["build", str(model), "--name", "colours", "--task", "image-classification", "--processor", str(model.parent)]
    words += ["--recipe", "int8", "--data", str(photographs), "--json"]
    env = os.environ | {"MAASDAM_HOME": str(home), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "maasdam", *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=repository
    )
    wait_until(lambda: len(list(home.glob("artifacts/cache/*.json"))) >= 2, 120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Workspace.open(Settings(home=home)) as workspace:
        assert workspace.catalog.versions() == []
        assert list((workspace.store.root / "tmp").iterdir()) == []
        for digest in workspace.store.digests():
            workspace.store.check(digest)
    again = subprocess.run([sys.executable, "-m", "maasdam", *words], env=env, capture_output=True, text=True, cwd=repository)
    built = json.loads(again.stdout)
    assert built["version"] == 1
    assert built["passes"][0]["cached"]
