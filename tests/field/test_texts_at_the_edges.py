"""What texts do to those who read them at the edges: spaces, prompts, positions, and answers by the thousand. No service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.field.encoders import LONGEST, make, sentences, tokenizer

from maasdam.artifacts.store import Store
from maasdam.core import ReadPayload
from maasdam.errors import InvalidPayload
from maasdam.sources import ingest
from maasdam.tasks import open_processor
from maasdam.tasks.passages import MOST_TOKENS

SPACED = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁in", "▁paris", "▁sat", "▁"]


def spaced() -> Any:
    """A tokenizer as SentencePiece has it: a space is the beginning of the word behind it."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made: Any = Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(SPACED)], unk_id=1))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPACED, strict=False))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=LONGEST, **names)


def opened(folder: Path, task: str) -> Any:
    artifact = ingest(str(folder), Store(folder.parent / f"{folder.name}-store"), task=task)
    return open_processor(task, artifact.path, artifact.signature)


def test_a_text_of_many_spaces_is_read_whole(tmp_path: Path) -> None:
    """They are no tokens: it fits, and what stands behind them counts."""
    make(tmp_path, "Bert", "ForSequenceClassification", num_labels=1)
    reader = opened(tmp_path, "text-ranking").reader
    text = " " * 3000 + "paris"
    wanted = tokenizer()(text)["input_ids"]
    for cuts in (True, False):
        words = reader.words(text, cuts=cuts)
        assert (words.ids, words.cut) == (wanted, 0)
    pair = reader.words("who", text + " cat" * 3000, cuts=True)
    assert pair.ids == tokenizer()("who", text + " cat" * 30, truncation=True)["input_ids"] and pair.cut > 0


def test_spaces_around_a_text_are_not_embedded(tmp_path: Path) -> None:
    """sentence-transformers strips them, also between nothing and a prompt that ends in one."""
    make(tmp_path)
    spaced().save_pretrained(tmp_path)
    sentences(tmp_path, ("Pooling", {"pooling_mode": "mean", "include_prompt": False}, {}), prompts={"query": "in "})
    processor = opened(tmp_path, "feature-extraction")
    (row,) = processor.prepare(ReadPayload("  paris\n sat \n"))
    assert row["input_ids"].tolist() == [spaced()("paris\n sat")["input_ids"]]
    query = ReadPayload("paris", role="query")
    (row,) = processor.prepare(query)
    assert row["input_ids"].tolist() == [[2, 5, 6, 3]]
    states = np.eye(4, 16, dtype="f4")[None]
    assert processor.finish([{"last_hidden_state": states}], query).values[:4].tolist() == [0, 0, 0.5, 0.5]


def test_the_first_token_is_pooled_though_a_prompt_is_left_out(tmp_path: Path) -> None:
    make(tmp_path)
    sentences(tmp_path, ("Pooling", {"pooling_mode": "cls", "include_prompt": False}, {}), prompts={"query": "who is "})
    processor = opened(tmp_path, "feature-extraction")
    states = np.eye(5, 16, dtype="f4")[None]
    assert processor.finish([{"last_hidden_state": states}], ReadPayload("cat", role="query")).values[0] == 1


def test_stretches_begin_where_their_words_do(tmp_path: Path) -> None:
    text = "in  paris sat"
    for name, head, task in (
        ("n", "ForTokenClassification", "token-classification"),
        ("a", "ForQuestionAnswering", "question-answering"),
    ):
        make(tmp_path / name, "DebertaV2", head, id2label={0: "O", 1: "LOC"})
        spaced().save_pretrained(tmp_path / name)
        processor = opened(tmp_path / name, task)
        payload = ReadPayload(text) if task.startswith("token") else ReadPayload("in", text)
        (row,) = processor.prepare(payload)
        is_paris = row["input_ids"] == SPACED.index("▁paris")
        assert is_paris.sum() == 1
        scores = np.where(is_paris, 9.0, -9.0).astype("f4")
        outputs = {"logits": np.stack([-scores, scores], axis=-1), "start_logits": scores, "end_logits": scores}
        span = processor.finish([outputs], payload).spans[0]
        assert (span.text, span.start, span.end) == ("paris", 4, 9)


def test_a_long_context_costs_no_square_of_its_length(tmp_path: Path) -> None:
    """And its best stretches are those of the whole table."""
    import tracemalloc

    make(tmp_path, "Bert", "ForQuestionAnswering")
    processor = opened(tmp_path, "question-answering")
    processor.longest = None  # as of a model that reads texts of any length
    payload = ReadPayload("who", "cat " * 4000, top_k=3)
    (row,) = processor.prepare(payload)
    size = row["input_ids"].shape[1]
    rng = np.random.default_rng(0)
    outputs = {name: rng.normal(size=(1, size)).astype("f4") for name in ("start_logits", "end_logits")}
    tracemalloc.start()
    spans = processor.finish([outputs], payload).spans
    assert tracemalloc.get_traced_memory()[1] < 8 * size * size / 2
    tracemalloc.stop()
    starts, ends = (outputs[name][0, 3:-1].astype(float) for name in ("start_logits", "end_logits"))
    best = max(((starts[i] + ends[j]), i, j) for i in range(len(starts)) for j in range(i, min(i + MOST_TOKENS, len(ends))))
    assert (spans[0].start, spans[0].end) == (4 * best[1], 4 * best[2] + 3) and len(spans) == 3


def test_words_for_masks_are_bounded(tmp_path: Path) -> None:
    make(tmp_path, "Bert", "ForMaskedLM")
    processor = opened(tmp_path, "fill-mask")
    assert len(processor.prepare(ReadPayload("[MASK] " * 20, top_k=100))) == 1
    with pytest.raises(InvalidPayload, match="lower top_k"):
        processor.prepare(ReadPayload("[MASK] " * 20, top_k=101))


def test_positions_are_counted_from_where_the_model_has_them(tmp_path: Path) -> None:
    """RoBERTa's begin behind the id of its padding, as transformers makes them where nobody sends any."""
    from dataclasses import replace

    from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

    make(tmp_path, "Roberta", pad_token_id=1)
    artifact = ingest(str(tmp_path), Store(tmp_path.parent / f"{tmp_path.name}-store"), task="feature-extraction")
    assert artifact.signature is not None
    ids = artifact.signature.inputs[0]
    signature = replace(artifact.signature, inputs=(*artifact.signature.inputs, replace(ids, name="position_ids")))
    (row,) = open_processor("feature-extraction", artifact.path, signature).prepare(ReadPayload("a cat sat"))
    import torch

    made = RobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor(row["input_ids"]), 1)
    assert row["position_ids"].tolist() == made.tolist()
