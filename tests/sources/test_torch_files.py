"""Files that torch really writes, and what torch really does with hostile ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from maasdam.artifacts.store import Store
from maasdam.core import Signature, TensorSpec
from maasdam.errors import UnsafeModel
from maasdam.sources import ingest, inspect

WRITE = """
import sys, torch
from pathlib import Path
from torch import nn
out = Path(sys.argv[1])

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.register_buffer("scale", torch.ones(2), persistent=False)
    def forward(self, image, mask=None):
        y = self.head(self.norm(self.conv(image)).mean((2, 3))) * self.scale.sum()
        return {"logits": y, "best": y.argmax(-1)}

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)
    def forward(self, input_ids, attention_mask):
        torch._check(input_ids.shape[1] % 2 == 0)
        x = self.table(input_ids) * attention_mask.unsqueeze(-1).float()
        return torch.cat([x, x], 1)[:, : input_ids.shape[1] // 2 + 1]

batch = torch.export.Dim("batch")
net = torch.export.export(Net().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes={"image": {0: batch}})
torch.export.save(net, out / "net.pt2")
auto = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
ids = torch.ones(2, 6, dtype=torch.long)
words = torch.export.export(Words().eval(), (), {"input_ids": ids, "attention_mask": ids},
                            dynamic_shapes={"input_ids": auto, "attention_mask": auto})
torch.export.save(words, out / "words.pt2")
torch.jit.save(torch.jit.trace(nn.Linear(4, 5), torch.ones(1, 4)), out / "script.pt")
torch.save(Net().state_dict(), out / "state.pt")
"""

LOAD = """
import logging, sys
logging.disable(logging.CRITICAL)
import torch
for path in sys.argv[1:]:
    try:
        print(torch.export.load(path).module()(torch.tensor([[-1.0, 2.0, 3.0, 4.0]] * 2)).tolist())
    except Exception as error:
        print("null")
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.pt2, words.pt2, script.pt and state.pt; torch runs in a process of its own, which also frees its memory."""
    pytest.importorskip("torch", reason="torch is not installed")
    folder = tmp_path_factory.mktemp("written")
    subprocess.run([sys.executable, "-c", WRITE, str(folder)], check=True, capture_output=True, timeout=280)
    return folder


def test_a_pt2_says_names_shapes_dtypes_and_parameters(written: Path, store: Store) -> None:
    found = inspect(str(written / "net.pt2"))
    assert found.signature == Signature(
        (TensorSpec("image", "float32", (None, 3, 8, 8)),),
        (TensorSpec("logits", "float32", (None, 5)), TensorSpec("best", "int64", (None,))),
    )
    assert found.parameters == 3 * 4 * 9 + 4 + 4 * 4 + 1 + 4 * 5 + 5
    artifact = ingest(str(written / "net.pt2"), store)
    assert (artifact.engine, [p.name for p in artifact.path.glob("*.pt2")]) == ("pytorch", ["model.pt2"])


def test_a_pt2_with_guards_and_computed_sizes_passes(written: Path) -> None:
    found = inspect(str(written / "words.pt2"))
    assert found.signature is not None
    assert [(s.name, s.dtype, s.shape) for s in found.signature.inputs] == [
        ("input_ids", "int64", (None, None)),
        ("attention_mask", "int64", (None, None)),
    ]
    assert found.signature.outputs[0].shape == (None, None, 4)


def test_torchscript_is_taken_with_trust_only(written: Path, store: Store) -> None:
    with pytest.raises(UnsafeModel, match="--trust"):
        ingest(str(written / "script.pt"), store)
    assert ingest(str(written / "script.pt"), store, trust=True).layout == "torchscript"


def test_a_state_dict_is_refused_as_a_pickle_even_when_harmless(written: Path) -> None:
    with pytest.raises(UnsafeModel, match="safetensors"):
        inspect(str(written / "state.pt"), trust=True)


def test_the_gallery_attacks_torch_for_real(written: Path, tmp_path: Path) -> None:
    """Were the gallery's files harmless, refusing them would prove nothing. And the harmless one must load."""
    from tests import hostile

    attacks = (hostile.pt2_with_payload, hostile.pt2_with_expression, hostile.pt2_with_guard)
    paths, canaries = [], []
    for builder in (lambda folder, canary: hostile.pt2(folder), *attacks):
        folder = tmp_path / str(len(paths))
        folder.mkdir()
        canaries.append(folder / "canary")
        paths.append(str(builder(folder, canaries[-1])))
    done = subprocess.run([sys.executable, "-c", LOAD, *paths], capture_output=True, text=True, timeout=200, check=True)
    assert json.loads(done.stdout.splitlines()[0]) == [[0.0, 2.0, 3.0, 4.0]] * 2
    assert [canary.exists() for canary in canaries] == [False, True, True, True], "attacks that torch stopped need a successor"
