"""Hugging Face folders on PyTorch: transformers' own class, safetensors only, no code from strangers."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.core import Artifact, Signature, TensorEngine, TensorSpec
from maasdam.engines import open_engine
from maasdam.errors import EngineFailure, InvalidModel, Unsupported

IMAGE = Signature((TensorSpec("pixel_values", "float32", (None, 3, 16, 16)),), (TensorSpec("logits", "float32", (None, 4)),))
SPEECH = Signature(
    (TensorSpec("input_values", "float32", (None, None)), TensorSpec("attention_mask", "int64", (None, None))),
    (TensorSpec("logits", "float32", (None, None, 8)),),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    path = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=4,
    )
    ViTForImageClassification(config).save_pretrained(path)
    return path


def artifact(path: Path, signature: Signature | None = IMAGE) -> Artifact:
    return Artifact("sha256:v", path, "pytorch", "huggingface", None, "pytorch", signature, 1)


def copied(folder: Path, to: Path) -> Path:
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def opened(path: Path, signature: Signature | None = IMAGE) -> TensorEngine:
    engine = open_engine(artifact(path, signature), threads=1)
    assert isinstance(engine, TensorEngine)
    return engine


def test_a_folder_answers_as_transformers_does(folder: Path) -> None:
    import torch
    from transformers import ViTForImageClassification

    pixels = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)
    with torch.inference_mode():
        want = ViTForImageClassification.from_pretrained(folder).eval()(torch.from_numpy(pixels)).logits.numpy()
    engine = opened(folder)
    got = engine.run({"pixel_values": pixels})
    assert list(got) == ["logits"]
    np.testing.assert_allclose(got["logits"], want, atol=1e-6)
    np.testing.assert_allclose(engine.run({"pixel_values": pixels[:1]})["logits"], want[:1], atol=1e-5)
    engine.close()


def test_speech_of_any_length_with_a_mask(tmp_path: Path) -> None:
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        feat_extract_norm="layer",
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2ForCTC(config).save_pretrained(tmp_path)
    engine = opened(tmp_path, SPEECH)
    for samples in (400, 1234):
        inputs = {"input_values": np.zeros((1, samples), np.float32), "attention_mask": np.ones((1, samples), np.int64)}
        assert engine.run(inputs)["logits"].shape[2] == 8
    with pytest.raises(EngineFailure):
        engine.run({"input_values": np.zeros((1, 3), np.float32), "attention_mask": np.ones((1, 3), np.int64)})
    engine.close()


@pytest.mark.parametrize(
    ("architectures", "kind"),
    [
        (["NoSuchModel"], Unsupported),
        (["Trainer"], Unsupported),
        (["os.system"], InvalidModel),
        ([], InvalidModel),
        ("ViTForImageClassification", InvalidModel),
        (["BertForSequenceClassification"], InvalidModel),
    ],
)
def test_an_architecture_that_is_none_is_refused(
    folder: Path, tmp_path: Path, architectures: Any, kind: type[Exception]
) -> None:
    copied(folder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": architectures}))
    with pytest.raises(kind):
        opened(tmp_path)


def test_code_in_the_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    copied(folder, tmp_path)
    canary = tmp_path / "canary"
    (tmp_path / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_evil.Evil", "AutoModelForImageClassification": "modeling_evil.Evil"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened(tmp_path).close()
    assert not canary.exists()


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    copied(folder, tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InvalidModel):
        opened(tmp_path)


def test_weights_of_another_size_than_config_json_says_are_refused_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    copied(folder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 100_000}))
    with pytest.raises(InvalidModel, match=r"not of the sizes that its config\.json says; give"):
        opened(tmp_path)


def test_missing_weights_are_an_invalid_model_not_random_ones(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    copied(folder, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidModel, match=r"classifier\.weight"):
        opened(tmp_path)


def test_without_a_signature_there_are_no_tensors_to_run(folder: Path) -> None:
    with pytest.raises(InvalidModel, match="signature"):
        opened(folder, None)


def test_a_payload_in_a_pt2_does_not_run(tmp_path: Path) -> None:
    import pickle
    import zipfile

    import torch

    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> Any:
            return (exec, (f"open({str(canary)!r}, 'w').close()",))

    class Double(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2

    torch.export.save(torch.export.export(Double(), (torch.zeros(2, 2),)), tmp_path / "clean.pt2")
    with zipfile.ZipFile(tmp_path / "clean.pt2") as clean, zipfile.ZipFile(tmp_path / "model.pt2", "w") as evil:
        replaced = False
        for item in clean.infolist():
            body = clean.read(item)
            if item.filename.endswith("sample_inputs/model.pt"):
                body, replaced = pickle.dumps(Payload()), True
            evil.writestr(item.filename, body)
    assert replaced
    (tmp_path / "clean.pt2").unlink()
    signature = Signature((TensorSpec("x", "float32", (2, 2)),), (TensorSpec("mul", "float32", (2, 2)),))
    made = Artifact("sha256:p", tmp_path, "pytorch", "pt2", None, "pytorch", signature, 1)
    with contextlib.suppress(InvalidModel):
        open_engine(made, threads=1).close()
    assert not canary.exists()


AFTERWARDS = """
import sys
from maasdam.tasks.torchless import without_torch
assert without_torch()
import transformers
old = transformers.PreTrainedTokenizerFast
assert not transformers.utils.is_torch_available()
from maasdam.engines.transformers_library import transformers_with_torch
new = transformers_with_torch()
assert new.utils.is_torch_available() and new is not transformers
assert issubclass(new.ViTForImageClassification, new.PreTrainedModel)
assert transformers_with_torch().ViTForImageClassification is new.ViTForImageClassification
"""


def test_a_process_that_did_without_torch_gets_it_when_an_engine_needs_it() -> None:
    done = subprocess.run([sys.executable, "-c", AFTERWARDS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
