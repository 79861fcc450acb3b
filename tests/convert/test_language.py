"""A language model on OpenVINO GenAI gives transformers' logits and transformers' greedy tokens, or is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from maasdam.convert import convert
from maasdam.convert.networks import take_part
from maasdam.convert.proof.certificate import certify
from maasdam.core import TEXT_GENERATION, Artifact
from maasdam.engines.generation import read_defaults
from maasdam.errors import Unsupported, VerificationFailed
from tests.convert import tiny


def to_genai(source: Artifact, out: Path) -> Artifact:
    """The converted model as an artifact."""
    out.mkdir()
    made = convert(source, "openvino", out)
    assert (made.layout, made.engine, made.signature) == ("genai", "openvino-genai", None)
    return Artifact("sha256:genai", out, "openvino", "genai", TEXT_GENERATION, made.engine, None, 1)


REFUSED = {
    "gemma2": "Gemma2ForCausalLM has no fused attention",
    "qwen2_moe": "Qwen2MoeForCausalLM does not convert",
    "qwen3_moe": "Qwen3MoeForCausalLM does not convert",
    "bloom": "BloomForCausalLM has no fused attention",
}
"""Kinds of decoders, and the sentence that refuses them by name."""


@pytest.mark.parametrize("kind", [kind for kind in tiny.DECODERS if kind not in (*REFUSED, "mistral")])
def test_greedy_tokens_equal_transformers(kind: str, tmp_path: Path) -> None:
    """Windows are shorter than some of the prompts, so that who looks beyond them is found."""
    source = tiny.language_model(tmp_path / "source", kind)
    candidate = to_genai(source, tmp_path / "out")
    proof = certify(source, candidate, seeds=(0,))
    assert proof.tokens is not None
    prompts = 4 if "window" in kind or kind == "gemma3" else 3
    assert proof.tokens["agreed"] == proof.tokens["compared"] == prompts * 64
    assert proof.tokens["ties"] == 0


@pytest.mark.parametrize("kind", REFUSED)
def test_what_can_not_be_the_same_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    source = tiny.language_model(tmp_path / "source", kind)
    (tmp_path / "out").mkdir()
    with pytest.raises(Unsupported, match=f"{REFUSED[kind]}.*--to pytorch"):
        convert(source, "openvino", tmp_path / "out")


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


def test_a_window_that_the_engine_would_not_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask says the same in other operators: the graph is right, and GenAI would look at everything."""
    import torch

    from maasdam.convert import networks

    def otherwise(queries: torch.Tensor, keys: torch.Tensor, seen: torch.Tensor, window: int) -> torch.Tensor:
        may = (keys <= queries) & (queries - keys < window) & seen[:, None, None, :].to(torch.bool)
        return torch.where(may, 0.0, torch.finfo(torch.float32).min)

    source = tiny.language_model(tmp_path / "source", "gemma3")
    monkeypatch.setattr(networks, "_windowed", otherwise)
    (tmp_path / "out").mkdir()
    with pytest.raises(Unsupported, match=r"within windows \[8, None\], its layers in OpenVINO GenAI within \[None, None\]"):
        convert(source, "openvino", tmp_path / "out")


def test_a_graph_that_looks_beyond_its_window_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a window of 40 tokens no text of the usual lengths would show it."""
    from maasdam.convert import networks

    source = tiny.language_model(tmp_path / "source", "mistral, window", sliding_window=40)
    plain = networks._causal
    monkeypatch.setattr(networks, "_causal", lambda new, whole, seen, window=None: plain(new, whole, seen))
    (tmp_path / "out").mkdir()
    with pytest.raises(Unsupported, match="its logits differ"):
        convert(source, "openvino", tmp_path / "out")


def test_positions_that_depend_on_the_length_hold_for_as_many_tokens_as_they_do_not(tmp_path: Path) -> None:
    source = tiny.language_model(tmp_path / "source", "phi3, longrope")
    candidate = to_genai(source, tmp_path / "out")
    assert read_defaults(source.path).context_length == 256
    assert read_defaults(candidate.path).context_length == 128
    dynamic = tiny.language_model(tmp_path / "dynamic", "llama, dynamic positions")
    assert read_defaults(to_genai(dynamic, tmp_path / "other").path).context_length == 256


def test_a_graph_of_tensors_has_no_windows(tmp_path: Path) -> None:
    for kind, why in (("mistral, window", "window of 8 tokens"), ("phi3, longrope", "scales its positions")):
        source = tiny.language_model(tmp_path / kind, kind)
        with pytest.raises(Unsupported, match=why):
            take_part(source, "decoder")


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
