"""What a user sees who builds from a file that is broken or hostile: one sentence, and nothing kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests import hostile
from tests.service import maasdam

BAD: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "a pickle": (hostile.raw_pickle, "pickle"),
    "a .pt2 with a payload": (hostile.pt2_with_payload, "run code"),
    "a text named .onnx": (hostile.text_named_onnx, "ONNX"),
    "a truncated model": (hostile.truncated_onnx, "ONNX"),
    "a SavedModel that reads files": (hostile.savedmodel_with_files, "ReadFile"),
    "a folder with lying weights": (hostile.safetensors_lying_length, "safetensors"),
}


@pytest.mark.parametrize("what", BAD)
def test_build_refuses_it_in_a_sentence_and_keeps_nothing(what: str, tmp_path: Path) -> None:
    make, named = BAD[what]
    canary, folder, home = tmp_path / "canary", tmp_path / "source", tmp_path / "home"
    folder.mkdir()
    source = make(folder, canary)
    said = maasdam(home, "build", source, "--name", "bad", expect=1)
    assert said.startswith("error: ") or "\nerror: " in said
    assert named.lower() in said.lower()
    assert not canary.exists()
    assert maasdam(home, "models", "list") == {"models": []}
    assert not list((home / "artifacts" / "sha256").rglob("artifact.json"))


def test_an_unknown_task_is_refused_with_those_there_are(tmp_path: Path, starters: Path) -> None:
    words = ["build", starters / "images" / "model", "--name", "bad", "--task", "mind-reading"]
    said = maasdam(tmp_path, *words, expect=1)
    assert "mind-reading" in said and "image-classification" in said
    assert maasdam(tmp_path, "models", "list") == {"models": []}
