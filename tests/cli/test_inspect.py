"""`maasdam inspect` in a process of its own, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests import hostile


def _inspect(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "maasdam", "inspect", *arguments], capture_output=True, text=True, timeout=120)


def test_it_shows_a_table_of_what_the_model_is(tmp_path: Path) -> None:
    hostile.huggingface(tmp_path)
    done = _inspect(str(tmp_path))
    assert done.returncode == 0, done.stderr
    for words in ("image-classification", "ResNetForImageClassification", "pixel_values: float32", "none found"):
        assert words in done.stdout


def test_json_is_one_document_on_stdout(tmp_path: Path) -> None:
    hostile.huggingface(tmp_path)
    done = _inspect(str(tmp_path), "--json")
    document = json.loads(done.stdout)
    assert (document["format"], document["layout"], document["labels"]) == ("pytorch", "huggingface", 2)
    assert document["signature"]["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [None, 2]}]


def test_a_refused_model_is_still_described_and_exits_1(tmp_path: Path) -> None:
    hostile.savedmodel(tmp_path, ("ReadFile", "WriteFile"))
    done = _inspect(str(tmp_path), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["risks"][0]["severity"] == "blocked"
    assert "ReadFile, WriteFile" in done.stderr
    assert "Traceback" not in done.stderr
    assert _inspect(str(tmp_path), "--trust").returncode == 0


def test_a_pickle_gets_one_sentence_and_never_runs(tmp_path: Path) -> None:
    path = hostile.raw_pickle(tmp_path, tmp_path / "canary")
    done = _inspect(str(path), "--trust")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "safetensors" in done.stderr
    assert not (tmp_path / "canary").exists()


def test_the_processor_folder_is_described_with_the_model(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(hostile.onnx_model())
    folder = tmp_path / "processor"
    folder.mkdir()
    hostile.huggingface(folder)
    done = _inspect(str(tmp_path / "net.onnx"), "--processor", str(folder), "--json")
    assert json.loads(done.stdout)["task"] == "image-classification"
