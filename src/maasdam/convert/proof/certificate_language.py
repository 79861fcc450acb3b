"""Proof that an OpenVINO language model is its source: logits within tolerance, greedy tokens equal.

Logits are compared over random and real token ids, whole and step by step with the cache at work; tokens are generated
by both engines as they serve. Where the source itself is undecided between two tokens (nearer than the tolerance), either
is right, and the comparison of that text ends there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from maasdam.convert.modules import load_transformers
from maasdam.convert.proof.differences import Certificate, Proof, Scope
from maasdam.convert.proof.language_parity import (
    BEYOND,
    StatefulScorer,
    beyond_window,
    padded_cases,
    reference_logits,
    vocabulary_and_context,
)
from maasdam.core import Artifact, Progress, SequenceEngine
from maasdam.engines import open_engine
from maasdam.engines.generating import greedy
from maasdam.errors import VerificationFailed

if TYPE_CHECKING:
    from maasdam.core import type_array

NEW_TOKENS = 64
PROMPT_LENGTHS = (1, 17, 64)
REAL_TEXTS = 8
"""Real inputs that are generated from; all of them are scored."""

SETTINGS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "enable_prefix_caching": False,
}
"""What the engine is told by default, in its own words. What OpenVINO GenAI chooses with nothing said is not compared."""


def certify_language(source: Artifact, candidate: Artifact, scope: Scope) -> Certificate:
    """As `certify`, for layout genai. Real inputs hold "input_ids" [1, T]."""
    model = load_transformers(source, "sdpa")
    vocabulary, longest = vocabulary_and_context(model)
    real = [tensors["input_ids"][:, : longest - NEW_TOKENS] for tensors in scope.inputs]
    proof = Proof(scope.tolerance, ["logits"])
    scorer = StatefulScorer(candidate.path / "openvino_model.xml")
    random = ((seed, *case) for seed in scope.seeds for case in padded_cases(vocabulary, longest, seed))
    cases = [*random, *((None, ids, None) for ids in real)]
    for seed, ids, mask in scope.counted(cases, len(cases)):
        _add_logits(proof, seed, model, scorer, ids, mask)
    long = [(seed, *case) for seed in scope.seeds for case in beyond_window(model, seed)]
    for seed, ids, steps in long:
        reference, found = reference_logits(model, ids, None, BEYOND), scorer.logits(ids, steps, last=BEYOND)
        proof.add(seed, {"input_ids": ids}, {"logits": reference}, {"logits": found})
    facts = {"settings": {"named": SETTINGS, "engine_defaults_agree": None}}
    proof_so_far = proof.certificate(source, candidate, scope.seeds, facts)
    prompts = _prompts(vocabulary, longest, scope.seeds) + [ids[0].tolist() for ids in real[:REAL_TEXTS]]
    prompts += [ids[0, : longest - 1].tolist() for _, ids, _ in long]
    tokens = _compare_tokens(source, candidate, prompts, model, proof_so_far.outputs[0].limit, longest, scope.progress)
    return replace(proof_so_far, tokens=tokens)


def _add_logits(
    proof: Proof, seed: int | None, model: Any, scorer: StatefulScorer, ids: type_array, mask: type_array | None
) -> None:
    reference = reference_logits(model, ids, mask)
    length = ids.shape[1]
    ways = {(length,), (length - 2, 1, 1)} if length > 2 else {(length,)}
    for steps in sorted(ways):
        found = scorer.logits(ids, steps, mask)
        if mask is not None:  # what a padded position gives is nobody's answer
            found = found * mask[:, :, None]
            reference = reference * mask[:, :, None]
        proof.add(seed, {"input_ids": ids}, {"logits": reference}, {"logits": found})


def _prompts(vocabulary: int, longest: int, seeds: Sequence[int]) -> list[list[int]]:
    lengths = [n for n in PROMPT_LENGTHS if n + NEW_TOKENS <= longest] or [max(1, longest - NEW_TOKENS)]
    return [np.random.default_rng([s, n]).integers(0, vocabulary, n).tolist() for s in seeds for n in lengths]


def _compare_tokens(
    source: Artifact, candidate: Artifact, prompts: Sequence[list[int]], model: Any, limit: float, longest: int, tell: Progress
) -> dict[str, Any]:
    room = [min(NEW_TOKENS, longest - len(prompt)) for prompt in prompts]

    def generated(artifact: Artifact, who: str, **settings: Any) -> list[list[int]]:
        """Greedy tokens of the engine that serves this artifact, for all prompts at once."""
        with closing(cast(SequenceEngine, open_engine(artifact, settings=settings))) as engine:
            return [list(ids) for ids in greedy(engine, prompts, room, lambda *far: tell(f"generate with the {who}", *far))]

    wanted = generated(source, "source")
    found = generated(candidate, "candidate", precision="f32", kv_precision="f32")
    agreed = compared = ties = 0
    for number, (prompt, right, got) in enumerate(zip(prompts, wanted, found, strict=True)):
        same = next((i for i, (a, b) in enumerate(zip(right, got, strict=False)) if a != b), min(len(right), len(got)))
        agreed += same
        compared += same
        if same == len(right) == len(got):
            continue
        gap = _margin(model, prompt, right[:same])
        if gap > limit:
            raise VerificationFailed(
                f"the conversion is not faithful: of prompt {number} ({len(prompt)} tokens) greedy token {same + 1} differs, "
                f"though the source prefers its own by {gap:.3g} where {limit:.3g} would be a tie"
            )
        ties += 1
    return {"prompts": len(prompts), "compared": compared, "agreed": agreed, "ties": ties, "max_tokens": NEW_TOKENS}


def _margin(model: Any, prompt: list[int], generated: list[int]) -> float:
    """By how much the source prefers its next token over the second best."""
    logits = np.sort(reference_logits(model, np.array([prompt + generated]), None)[0, -1])
    return float(logits[-1] - logits[-2])
