"""How likely OpenVINO GenAI's pipeline finds a prompt. Knows its `echo` and what that gets wrong; never jobs.

Of a prompt's tokens it tells the log-probabilities, but right only in steps where nothing else is: for each other row of a step
before it, the next token of an answer say, it reads one row too early (2026.4.1), and of what a full cache put out and computes
again it tells too much. So prompts are scored one by one, with nothing beside them: what they get depends on nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from maasdam.core import Scored
from maasdam.engines.openvino_library import openvino
from maasdam.errors import EngineFailure

if TYPE_CHECKING:
    from maasdam.core import type_array

SCORED_TOKENS = 2048
"""Of prompts that are scored before others are let in, unless one is longer."""


def scored_in_turn(prompts: Sequence[type_array]) -> int:
    """How many of the prompts [1, T], the first ones, are scored before others are let in."""
    room, count = SCORED_TOKENS, 0
    for prompt in prompts:
        room -= prompt.shape[1]
        if room < 0 and count:
            break
        count += 1
    return count


def prompt_scores(prompt: type_array, pipeline: Any, number: int, sent: type_array, ahead: int = 0) -> tuple[Scored, ...]:
    """Of a prompt [1, T] its tokens with their log-probabilities, the first without one. `number` is the request's, `sent` the
    prompt as the pipeline takes it, `ahead` what it may guess.

    There must be nothing else in the pipeline, but what was cancelled. Raises EngineFailure where it tells less, or more.
    """
    import openvino_genai as genai

    while pipeline.has_non_finished_requests():  # such: a step lets them go
        pipeline.step()
    config = genai.GenerationConfig()
    config.apply_chat_template = False
    config.max_new_tokens = 0
    config.echo = True
    config.logprobs = 1
    if ahead:
        config.num_assistant_tokens, config.max_ngram_size = ahead, 1
    handle = pipeline.add_request(number, openvino().Tensor(sent.copy()), config)
    ids: list[int] = []
    logprobs: list[float] = []
    while pipeline.has_non_finished_requests():
        pipeline.step()
    while handle.can_read():
        for output in handle.read().values():
            ids += output.generated_ids
            logprobs += output.generated_log_probs
    if ids != sent[0].tolist() or len(logprobs) != len(ids):
        raise EngineFailure(f"of a prompt of {prompt.shape[1]} tokens the pipeline scored {len(logprobs)}")
    rest = (Scored(token, value) for token, value in zip(prompt[0, 1:].tolist(), logprobs[1:], strict=True))
    return Scored(int(prompt[0, 0]), None), *rest  # for the first it gives a filler
