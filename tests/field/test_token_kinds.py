"""Pairs of texts: where a model tells kinds of tokens apart, every conversion of it is given them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maasdam.convert.asking import with_signatures
from maasdam.core import Artifact, Signature
from maasdam.engines import open_engine
from maasdam.operations.convert import convert_model
from maasdam.sources.huggingface import text_inputs

TABLE = "bert.embeddings.token_type_embeddings.weight"
"""BERT's name of it."""


@pytest.mark.parametrize(
    ("shapes", "kinds"),
    [
        ({TABLE: (2, 16)}, ((None, None), (0, 1))),
        ({"embeddings.token_type_embeddings.weight": (4, 16)}, ((None, None), (0, 3))),
        ({"transformer.layer.0.rel_attn.seg_embed": (2, 2, 8)}, ((None, None), (0, 1))),  # XLNet
        ({f"x.token_type_embeddings_{i}.weight": (n, 16) for i, n in enumerate((3, 9, 2))}, ((None, None, 3), (0, 1))),  # TAPAS
        ({TABLE: (1, 16)}, None),  # RoBERTa has a table of one row
        ({"distilbert.embeddings.word_embeddings.weight": (60, 16)}, None),
    ],
)
def test_the_weights_say_whether_kinds_of_tokens_are_taken(shapes: dict[str, tuple[int, ...]], kinds: object) -> None:
    found = text_inputs(shapes)
    assert [s.name for s in found[:2]] == ["input_ids", "attention_mask"]
    rest = [(s.name, s.shape, s.value_range) for s in found[2:]]
    assert rest == ([("token_type_ids", *kinds)] if isinstance(kinds, tuple) else [])


def _bert(folder: Path, head: str) -> Path:
    import torch
    import transformers as t

    torch.manual_seed(0)
    config = t.BertConfig(
        vocab_size=57, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, initializer_range=1.0,
        max_position_embeddings=64,
    )  # fmt: skip
    getattr(t, head)(config).eval().save_pretrained(folder)
    return folder


def test_a_pair_of_texts_is_answered_as_by_its_own_library(tmp_path: Path) -> None:
    import torch
    import transformers as t

    source = _bert(tmp_path / "source", "BertForSequenceClassification")
    document = convert_model(str(source), "onnx", tmp_path / "out")
    signature = Signature.from_json(document["signature"])
    engine = open_engine(Artifact("sha256:x", tmp_path / "out", "onnx", "onnx", None, "onnxruntime", signature, 1))
    ids = np.random.default_rng(0).integers(5, 57, (2, 9))
    kinds = np.repeat([[0] * 5 + [1] * 4], 2, axis=0)
    pair = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": kinds}
    model = t.BertForSequenceClassification.from_pretrained(source).eval()
    with torch.no_grad():
        right, single = (
            model(**{n: torch.from_numpy(a) for n, a in batch.items()}).logits.numpy()
            for batch in (pair, pair | {"token_type_ids": np.zeros_like(kinds)})
        )
    found = engine.run(pair)["logits"]
    engine.close()
    np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-3)
    assert np.abs(right - single).max() > 0.5, "the kinds matter to this model"


def test_a_model_that_is_asked_what_it_takes_is_asked_for_kinds_too(tmp_path: Path) -> None:
    folder = _bert(tmp_path, "BertForQuestionAnswering")
    (found,) = with_signatures(Artifact("sha256:x", folder, "pytorch", "huggingface", None, "transformers", None, 1))
    assert found.signature is not None
    assert [s.name for s in found.signature.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
