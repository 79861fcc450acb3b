"""Proof that a CTranslate2 Whisper is its source: the encoder's output and every logit of a greedy decoding.

The candidate decodes on its own; transformers then scores the same tokens, so the two are compared step by step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.convert.modules import load_transformers
from maasdam.convert.proof.differences import Certificate, Proof, Scope
from maasdam.core import Artifact, Tensors
from maasdam.errors import VerificationFailed, from_extra

if TYPE_CHECKING:
    from maasdam.core import type_array

FRAMES = 3000
"""Whisper hears half a minute at a time: 3000 frames of 10 ms."""
RATE = 16000
MAX_TOKENS = 64
PROMPT = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
"""Of these, the ones the vocabulary has. Without the last one CTranslate2 masks logits by its rules for timestamps."""


def certify_whisper(source: Artifact, candidate: Artifact, scope: Scope) -> Certificate:
    """As `certify`, for layout ctranslate2. Real inputs hold "waveform" [1, S] at 16 kHz."""
    with from_extra("speech", "ctranslate2"):
        import ctranslate2
    model = load_transformers(source, "sdpa")
    engine = ctranslate2.models.Whisper(str(candidate.path), device="cpu", compute_type="float32")
    prompt = _prompt(source.path)
    proof = Proof(scope.tolerance, ["encoder", "logits"])
    shape = 2, model.config.num_mel_bins, FRAMES
    random = ((seed, np.random.default_rng(seed).standard_normal(shape).astype(np.float32)) for seed in scope.seeds)
    cases = [*random, *_real_features(source.path, scope.inputs)]
    decoded = sum(_add(proof, seed, model, engine, each, prompt) for seed, each in scope.counted(cases, len(cases)))
    if not decoded:
        raise VerificationFailed("the model decoded no token from any input; that proves nothing")
    tokens = {"prompts": len(cases), "compared": decoded, "max_tokens": MAX_TOKENS}
    facts = {"settings": {"named": {"compute_type": "float32"}, "engine_defaults_agree": None}}
    return replace(proof.certificate(source, candidate, scope.seeds, facts), tokens=tokens)


def _real_features(folder: Path, inputs: Iterable[Tensors]) -> Iterator[tuple[int | None, type_array]]:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
    for tensors in inputs:
        yield None, extractor(tensors["waveform"][0], sampling_rate=RATE, return_tensors="np")["input_features"]


def _prompt(folder: Path) -> list[int]:
    data = json.loads((folder / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in data.get("added_tokens", [])}
    return [ids[token] for token in PROMPT if token in ids]


def _add(proof: Proof, seed: int | None, model: Any, engine: Any, features: type_array, prompt: list[int]) -> int:
    """Compare one batch; returns how many tokens were decoded."""
    import ctranslate2
    import torch

    stored = ctranslate2.StorageView.from_array(np.ascontiguousarray(features))
    encoded = np.array(engine.encode(stored))
    answers = engine.generate(
        stored,
        [prompt] * len(features),
        beam_size=1,
        max_length=MAX_TOKENS,
        suppress_blank=False,
        suppress_tokens=[],
        return_logits_vocab=True,
    )
    count = min(len(answer.sequences_ids[0]) for answer in answers)
    tokens = torch.tensor([prompt + answer.sequences_ids[0][:count] for answer in answers])
    with torch.inference_mode():
        hidden = model.model.encoder(torch.from_numpy(features)).last_hidden_state
        logits = model(encoder_outputs=(hidden,), decoder_input_ids=tokens).logits[:, len(prompt) - 1 :].numpy()
    found = np.array([[np.array(step).reshape(-1) for step in answer.logits[0][:count]] for answer in answers])
    wanted = logits[:, : found.shape[1]] if found.size else logits[:, :0]
    if not found.size:
        found = wanted
    shapes = {"input_features": features}
    proof.add(seed, shapes, {"encoder": hidden.numpy(), "logits": wanted}, {"encoder": encoded, "logits": found})
    return count * len(features)
