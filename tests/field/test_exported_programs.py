"""Programs of torch.export as its documentation has them made: marked axes, shifts, divisions of sizes."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.core import Artifact
from maasdam.engines import open_engine
from maasdam.errors import UnsafeModel
from maasdam.sources import inspect

torch = pytest.importorskip("torch")


class Halved(torch.nn.Module):
    """Shifts of integers, as quantised modules unpack weights, and divisions of integers and of a size."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("packed", torch.arange(64, dtype=torch.uint8).reshape(8, 8))

    def forward(self, x: Any) -> Any:
        weights = (self.packed >> 4).float() - (self.packed & 15).float()
        return x @ weights + (x.long() // 3) * (x.shape[0] // 2)


def exported(path: Path, x: Any, axes: Any) -> Path:
    torch.export.save(torch.export.export(Halved().eval(), (x,), dynamic_shapes=axes), path)
    return path


def marked() -> Any:
    x = torch.randn(6, 8)
    torch._dynamo.mark_dynamic(x, 0, min=2, max=50)
    return x


@pytest.mark.parametrize("how", ["named", "DYNAMIC", "AUTO", "marked", "parameter"])
def test_every_way_to_open_an_axis_is_taken_and_served(how: str, tmp_path: Path) -> None:
    dim = torch.export.Dim
    axes = {"named": dim("n", min=2, max=64), "DYNAMIC": dim.DYNAMIC, "AUTO": dim.AUTO, "parameter": dim.DYNAMIC}
    x = marked() if how == "marked" else torch.randn(6, 8)
    x = torch.nn.Parameter(x) if how == "parameter" else x
    path = exported(tmp_path / "model.pt2", x, None if how == "marked" else ({0: axes[how]},))
    found = inspect(str(path)).signature
    assert found is not None and found.inputs[0].shape == (None, 8)
    engine = open_engine(Artifact("sha256:x", tmp_path, "pytorch", "pt2", None, "pytorch", found, 1))
    given = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32) * 10
    (answer,) = engine.run({"x": given}).values()
    engine.close()
    with torch.no_grad():
        np.testing.assert_allclose(answer, Halved()(torch.from_numpy(given)).numpy(), rtol=1e-4)


def replaced(source: Path, target: Path, member: str, data: bytes) -> Path:
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w") as after:
        for entry in before.infolist():
            after.writestr(entry.filename, data if entry.filename.endswith(member) else before.read(entry))
    return target


class Calls:
    """What a pickle may hold: a call of whatever it names."""

    def __reduce__(self) -> Any:
        return (torch._tensor._rebuild_from_type_v2, (print, torch.Tensor, ("loaded",), {}))


def test_what_is_called_under_a_mark_is_refused_and_never_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = exported(tmp_path / "model.pt2", torch.randn(6, 8), ({0: torch.export.Dim.DYNAMIC},))
    stored = io.BytesIO()
    torch.save(Calls(), stored)
    bad = replaced(path, tmp_path / "bad.pt2", "sample_inputs/model.pt", stored.getvalue())
    with pytest.raises(UnsafeModel, match="print"):
        inspect(str(bad))
    folder = tmp_path / "bad"
    folder.mkdir()
    bad.rename(folder / "model.pt2")
    found = inspect(str(path)).signature
    open_engine(Artifact("sha256:x", folder, "pytorch", "pt2", None, "pytorch", found, 1)).close()
    assert "loaded" not in capsys.readouterr().out, "example inputs are not unpickled"
    assert pickle.PROTO  # the payload is a real pickle


def test_what_else_has_two_underscores_is_no_operator() -> None:
    from maasdam.sources.calls import is_operator

    assert is_operator("torch.ops.aten.__rshift__.Scalar") and is_operator("torch.ops.aten.__ilshift__.Tensor")
    for name in ("torch.ops.aten.__class__.x", "torch.ops.aten.add.__globals__", "torch.ops.aten.__rshift__.__class__"):
        assert not is_operator(name)
