"""Whether an answer is the same in any company on this processor. It is found by trying, with log-probabilities bit for bit.

Knows steps and what may differ in them. Refuses to know where a finding is kept.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from maasdam.core import DEPENDENT, INDEPENDENT, UNKNOWN, Batching
from maasdam.engines.genai_steps import STEP_TOKENS, Answer, Steps

if TYPE_CHECKING:
    from maasdam.core import type_array

TOKENS = 8
"""Of each answer."""
LENGTHS = (STEP_TOKENS + 1, 9, 1)
"""Of the prompts: one that is cut, where alone as elsewhere in company, a short one and the shortest."""
NEIGHBOURS = (5, 2, 40, 17)
LIMIT_SECONDS = 30.0
"""A model that takes longer is not rounded: whether it may be is not known."""


def company(steps: Steps, vocabulary: int, context: int) -> Batching:
    """Try a pipeline that nobody uses: each prompt alone, all among neighbours, and all joining what has begun."""
    import numpy as np

    random = np.random.default_rng(0)
    longest = max(context - TOKENS - 1, 1)
    prompts, others = ([random.integers(0, vocabulary, (1, min(n, longest))) for n in ns] for ns in (LENGTHS, NEIGHBOURS))
    until = time.monotonic() + LIMIT_SECONDS
    alone = [written(steps, [prompt], until=until)[0] for prompt in prompts]
    among = written(steps, [*others, *prompts[::-1], prompts[1]], until=until)
    joining = written(steps, [*others, *prompts], joining=len(prompts), until=until)
    if time.monotonic() > until:
        return Batching(UNKNOWN, f"answers were not compared: that takes longer than {LIMIT_SECONDS:.0f} s here")
    if [*alone[::-1], alone[1]] != among[len(others) :]:
        return Batching(DEPENDENT, "with rounded activations answers among others differed from those alone")
    if alone != joining[len(others) :]:
        return Batching(DEPENDENT, "with rounded activations answers that joined others differed from those alone")
    if not is_same_from_cache(steps, vocabulary, context):
        return Batching(DEPENDENT, "rounded, answers differed where their prompt had been computed before")
    return Batching(INDEPENDENT, "answers alone, among others and joining them were the same bit for bit, activations rounded")


def is_same_from_cache(steps: Steps, vocabulary: int, context: int) -> bool:
    """Whether an answer of a pipeline that nobody uses is the same bit for bit where the cache holds most of its prompt; True
    where it shares none."""
    import numpy as np

    if not steps.is_salted:
        return True
    prompt = np.random.default_rng(1).integers(0, vocabulary, (1, min(STEP_TOKENS + 9, max(context - TOKENS - 1, 1))))
    alone, first, again = (written(steps, [prompt], owner=owner)[0] for owner in (None, "trial", "trial"))
    return alone == first == again


Written = list[tuple[int, float]]


def written(
    steps: Steps,
    prompts: list[type_array],
    *,
    tokens: int = TOKENS,
    joining: int = 0,
    until: float = float("inf"),
    owner: str | None = None,
) -> list[Written]:
    """Greedy tokens after each prompt with their log-probabilities, all at once; the last `joining` prompts come three
    steps later. Ends early at `until`, of time.monotonic. `owner` is whose prompts they are."""
    answers = [steps.add_request(p, greedily(tokens), owner) for p in prompts[: len(prompts) - joining]]
    number = 0
    while (steps.has_non_finished_requests() or len(answers) < len(prompts)) and time.monotonic() < until:
        if number == 3:
            answers += [steps.add_request(p, greedily(tokens), owner) for p in prompts[len(answers) :]]
        steps.step()
        number += 1
    for answer in answers:
        answer.cancel()
    steps.has_non_finished_requests()
    return [_all_of(answer) for answer in answers]


def _all_of(answer: Answer) -> Written:
    out: Written = []
    while answer.can_read():
        piece = answer.read()[0]
        out += zip(piece.generated_ids, piece.generated_log_probs, strict=True)
    return out


def greedily(tokens: int) -> Any:
    """The pipeline's words for so many tokens, each the likeliest, with what they were given."""
    import openvino_genai as genai

    configuration = genai.GenerationConfig()
    configuration.apply_chat_template = False
    configuration.max_new_tokens = tokens
    configuration.ignore_eos = True
    configuration.logprobs = 1
    return configuration
