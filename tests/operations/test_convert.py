"""A conversion's folder appears whole, with its certificate, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.engines.networks import CNN, artifact

from maasdam.errors import Conflict, InvalidInput, InvalidModel, Unsupported, VerificationFailed
from maasdam.operations.convert import convert_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a small model.onnx."""
    folder = tmp_path / "source"
    folder.mkdir()
    artifact(folder, CNN, "onnx", "onnxruntime")
    return folder


def left(folder: Path) -> set[str]:
    """What lies in a folder, hidden or not."""
    return {f.name for f in folder.iterdir()}


def test_the_folder_holds_the_model_and_its_certificate(source: Path, tmp_path: Path) -> None:
    document = convert_model(str(source), "openvino", tmp_path / "out")
    assert left(tmp_path / "out") == {"model.xml", "model.bin", "certificate.json"}
    assert left(tmp_path) == {"source", "out"}, "nothing else stays behind"
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert certificate == document["certificate"]
    assert certificate["candidate"]["digest"] == document["digest"]
    for name, digest in certificate["candidate"]["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest


def test_real_inputs_are_compared_too(source: Path, tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "data").mkdir()
    for i in range(2):
        np.savez(tmp_path / "data" / f"{i}.npz", image=np.random.default_rng(i).normal(size=(1, 3, 8, 8)).astype(np.float32))
    document = convert_model(str(source), "openvino", tmp_path / "out", data=tmp_path / "data")
    assert document["certificate"]["real_inputs"] == 2


def test_what_is_not_faithful_writes_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter is made to spoil one weight; the certificate must see it."""
    from maasdam.convert.directions import to_openvino

    def spoiled(artifact: Any, out: Path) -> Any:
        import onnx
        from onnx import numpy_helper

        model = onnx.load(artifact.path / "model.onnx")
        head = next(w for w in model.graph.initializer if w.name == "head")
        changed = numpy_helper.to_array(head).copy()
        changed[0, 0] += 0.1
        head.CopyFrom(numpy_helper.from_array(changed, "head"))
        onnx.save(model, tmp_path / "spoiled.onnx")
        return to_openvino._convert(tmp_path / "spoiled.onnx", artifact.signature, out)

    monkeypatch.setattr(to_openvino, "write", spoiled)
    with pytest.raises(VerificationFailed, match="output 'logits' differs by"):
        convert_model(str(source), "openvino", tmp_path / "out")
    assert left(tmp_path) == {"source", "spoiled.onnx"}


def test_a_folder_in_use_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(Conflict, match="holds files"):
        convert_model(str(source), "openvino", tmp_path / "out")
    assert left(tmp_path / "out") == {"mine.txt"}


def test_a_file_is_no_folder_to_make_one_in(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep")
    with pytest.raises(InvalidInput, match="file is no folder; name another"):
        convert_model(str(source), "openvino", tmp_path / "file" / "out")


def test_an_empty_folder_is_filled(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    convert_model(str(source), "openvino", tmp_path / "out")
    assert "certificate.json" in left(tmp_path / "out")


@pytest.mark.parametrize(
    ("to", "where", "error"),
    [("caffe", "out", InvalidInput), ("openvino", "no/such/out", InvalidInput), ("onnx", "out", Unsupported)],
)
def test_what_can_not_be_done_is_said_and_writes_nothing(
    to: str, where: str, error: type[Exception], source: Path, tmp_path: Path
) -> None:
    with pytest.raises(error):
        convert_model(str(source), to, tmp_path / where)
    assert left(tmp_path) == {"source"}


def test_a_broken_model_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("this is no model")
    with pytest.raises(InvalidModel):
        convert_model(str(tmp_path / "model.onnx"), "openvino", tmp_path / "out")
    assert left(tmp_path) == {"model.onnx"}


def test_a_killed_conversion_leaves_no_folder_and_the_next_one_sweeps(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from maasdam.operations.convert import convert_model\n"
        "def tell(stage, done=0, total=None):\n"
        "    if stage.startswith('compare'):\n"
        "        print('comparing', flush=True)\n"
        "        time.sleep(60)\n"
        "convert_model(sys.argv[1], 'openvino', Path(sys.argv[2]), progress=tell)\n"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "comparing"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    assert [name for name in left(tmp_path) if name.startswith(".out.partial-")]
    convert_model(str(source), "openvino", tmp_path / "out")
    assert left(tmp_path) == {"source", "out"}


def test_the_command_says_what_it_proved(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from maasdam.cli import main

    with pytest.raises(SystemExit) as done:
        main(["convert", str(source), "--to", "openvino", "-o", str(tmp_path / "out"), "--json"])
    assert done.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "openvino"
    assert document["certificate"]["passed"] is True


def test_the_command_fails_with_one_sentence(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from maasdam.cli import main

    with pytest.raises(SystemExit) as done:
        main(["convert", str(source), "--to", "onnx", "-o", str(tmp_path / "out")])
    assert done.value.code == 1
    printed = capsys.readouterr()
    assert "the model is onnx (onnx) already" in printed.err
    assert "Traceback" not in printed.err
    assert not (tmp_path / "out").exists()
