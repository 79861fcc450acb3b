"""A language model on OpenVINO GenAI gives transformers' logits and transformers' greedy tokens, or is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from maasdam.convert import convert
from maasdam.convert.proof.certificate import certify
from maasdam.core import TEXT_GENERATION, Artifact
from maasdam.errors import Unsupported, VerificationFailed
from tests.convert import tiny


def to_genai(source: Artifact, out: Path) -> Artifact:
    """The converted model as an artifact."""
    out.mkdir()
    made = convert(source, "openvino", out)
    assert (made.layout, made.engine, made.signature) == ("genai", "openvino-genai", None)
    return Artifact("sha256:genai", out, "openvino", "genai", TEXT_GENERATION, made.engine, None, 1)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_greedy_tokens_equal_transformers(kind: str, tmp_path: Path) -> None:
    source = tiny.language_model(tmp_path / "source", kind)
    candidate = to_genai(source, tmp_path / "out")
    proof = certify(source, candidate, seeds=(0,))
    assert proof.tokens is not None
    assert proof.tokens["agreed"] == proof.tokens["compared"] == 3 * 64
    assert proof.tokens["ties"] == 0


def test_the_folder_has_all_that_serving_needs(tmp_path: Path) -> None:
    source = tiny.language_model(tmp_path / "source")
    (source.path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    to_genai(source, tmp_path / "out")
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert names >= {
        "openvino_model.xml",
        "openvino_model.bin",
        "openvino_tokenizer.xml",
        "openvino_detokenizer.xml",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    assert "model.safetensors" not in names


def test_one_changed_weight_fails(tmp_path: Path) -> None:
    source = tiny.language_model(tmp_path / "source")
    candidate = to_genai(source, tmp_path / "out")
    tiny.change_a_weight(source.path)
    with pytest.raises(VerificationFailed, match="output 'logits' differs by"):
        certify(source, candidate, seeds=(0,))


def test_windowed_attention_is_refused(tmp_path: Path) -> None:
    source = tiny.language_model(tmp_path / "source", "mistral")
    (tmp_path / "out").mkdir()
    with pytest.raises(Unsupported, match="window of 8 tokens"):
        convert(source, "openvino", tmp_path / "out")


def test_positions_that_depend_on_the_length_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    source = tiny.language_model(tmp_path / "source", rope_parameters=rope)
    (tmp_path / "out").mkdir()
    with pytest.raises(Unsupported, match="'dynamic'"):
        convert(source, "openvino", tmp_path / "out")


def test_an_architecture_without_fused_attention_is_refused(tmp_path: Path) -> None:
    source = tiny.language_model(tmp_path / "source", "bloom")
    (tmp_path / "out").mkdir()
    with pytest.raises(Unsupported, match="fused attention"):
        convert(source, "openvino", tmp_path / "out")


def test_an_architecture_whose_logits_differ_is_refused(tmp_path: Path) -> None:
    from maasdam.convert.modules import load_transformers
    from maasdam.convert.proof.language_parity import check_parity

    source = tiny.language_model(tmp_path / "source")
    candidate = to_genai(source, tmp_path / "out")
    tiny.change_a_weight(source.path)
    with pytest.raises(Unsupported, match="does not convert faithfully"):
        check_parity(load_transformers(source, "sdpa"), candidate.path / "openvino_model.xml")


def test_whisper_becomes_a_ctranslate2_folder_with_the_same_logits(tmp_path: Path) -> None:
    source = tiny.whisper(tmp_path / "source")
    (tmp_path / "out").mkdir()
    made = convert(source, "pytorch", tmp_path / "out")
    assert (made.format, made.layout, made.engine) == ("pytorch", "ctranslate2", "ctranslate2")
    candidate = Artifact("sha256:w", tmp_path / "out", "pytorch", "ctranslate2", source.task, made.engine, None, 1)
    proof = certify(source, candidate, seeds=(0,))
    assert {o.name for o in proof.outputs} == {"encoder", "logits"}
    tiny.change_a_weight(source.path)
    with pytest.raises(VerificationFailed):
        certify(replace(source), candidate, seeds=(0,))
