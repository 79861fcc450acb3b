"""Where the files don't say what a model takes and gives, it is asked, and what it says converts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.convert.asking import with_signatures
from maasdam.core import Artifact, Format
from maasdam.errors import Unsupported
from maasdam.operations.convert import convert_model
from tests.convert import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Manually populate:UserWarning"),
]


def script(folder: Path, module: Any, *examples: Any) -> Artifact:
    """Traced over `examples`, or scripted where there are none."""
    import torch

    torch.manual_seed(0)
    found = torch.jit.trace(module.eval(), examples) if examples else torch.jit.script(module.eval())
    torch.jit.save(found, folder / "model.pt")
    return Artifact("sha256:x", folder, "pytorch", "torchscript", None, "pytorch", None, 1)


def network() -> Any:
    import torch

    layers = torch.nn
    return layers.Sequential(
        layers.Conv2d(3, 4, 3), layers.ReLU(), layers.AdaptiveAvgPool2d(1), layers.Flatten(), layers.Linear(4, 5)
    )


def shapes(source: Artifact) -> dict[str, Any]:
    assert source.signature is not None
    return {s.name: (s.dtype, s.shape) for s in (*source.signature.inputs, *source.signature.outputs)}


def test_a_scripted_network_of_images_tells_its_channels_and_leaves_the_sides_open(tmp_path: Path) -> None:
    first, second = with_signatures(script(tmp_path, network()))
    assert shapes(first) == {"input": ("float32", (None, 3, None, None)), "output": ("float32", (None, 5))}
    assert shapes(second) == {"input": ("float32", (None, 3, 224, 224)), "output": ("float32", (None, 5))}


def test_a_script_over_token_ids_and_one_over_a_flat_image_are_found_out(tmp_path: Path) -> None:
    import torch

    words = torch.nn.Sequential(torch.nn.Embedding(20, 4), torch.nn.Linear(4, 3))
    (found,) = with_signatures(script(tmp_path, words))
    assert shapes(found) == {"input": ("int64", (None, None)), "output": ("float32", (None, None, 3))}
    flat = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(2 * 26 * 26, 4))
    (found,) = with_signatures(script(tmp_path, flat, torch.zeros(1, 1, 28, 28)))
    assert shapes(found)["input"] == ("float32", (None, 1, 28, 28))


def test_a_script_that_takes_nothing_likely_asks_for_an_example_and_takes_it(tmp_path: Path) -> None:
    import torch

    class Odd(torch.nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return (left.reshape(-1, 2, 3) @ right.reshape(-1, 3, 1)).flatten(1)

    source = script(tmp_path, Odd())
    with pytest.raises(Unsupported, match=r"takes left, right and tells no shapes.*--data"):
        with_signatures(source)
    given = {"left": np.ones((1, 6), np.float32), "right": np.ones((1, 3), np.float32)}
    first = with_signatures(source, [given])[0]
    assert shapes(first) == {"left": ("float32", (None, 6)), "right": ("float32", (None, 3)), "output": ("float32", (None, 2))}


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_torchscript_converts_from_its_file_alone(to: Format, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    script(tmp_path / "source", network())
    document = convert_model(str(tmp_path / "source" / "model.pt"), to, tmp_path / "out", trust=True)
    assert document["signature"]["inputs"][0]["name"] == "input"
    assert document["signature"]["inputs"][0]["shape"][0] in (None, -1)


def test_a_transformers_model_of_a_task_without_a_signature_converts(tmp_path: Path) -> None:
    import torch
    import transformers as t

    torch.manual_seed(0)
    config = t.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, initializer_range=0.3,
        max_position_embeddings=40,
    )  # fmt: skip
    t.BertForQuestionAnswering(config).eval().save_pretrained(tmp_path / "source")
    document = convert_model(str(tmp_path / "source"), "onnx", tmp_path / "out")
    assert [s["name"] for s in document["signature"]["inputs"]] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [s["name"] for s in document["signature"]["outputs"]] == ["start_logits", "end_logits"]


def test_a_model_that_says_what_it_takes_is_not_asked(tmp_path: Path) -> None:
    for source in (tiny.image_classifier(tmp_path / "image"), tiny.language_model(tmp_path / "language")):
        assert with_signatures(source) == (source,)


def test_an_encoder_decoder_for_text_is_refused_by_name(tmp_path: Path) -> None:
    import transformers as t

    config = t.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    t.T5ForConditionalGeneration(config).eval().save_pretrained(tmp_path)
    source = Artifact("sha256:x", tmp_path, "pytorch", "huggingface", None, "transformers", None, 1)
    with pytest.raises(Unsupported, match="T5ForConditionalGeneration is an encoder-decoder"):
        with_signatures(source)
