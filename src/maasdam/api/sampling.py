"""Sampling parameters from a client's fields. Knows OpenAI's names; their ranges are `Sampling`'s own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maasdam.core import Sampling, check_within
from maasdam.errors import InvalidField

SAME = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("min_tokens", "ignore_eos"),
)
"""Fields that are called as `Sampling` calls them."""
NAMES = ("max_tokens", "max_completion_tokens", "stop", "stop_token_ids", *SAME)
"""What `sampling_from` reads."""
MOST_PROMPTS = 64
"""Of one request."""


def sampling_from(fields: Mapping[str, Any], least_tokens: int = 1) -> Sampling:
    """Sampling from OpenAI's field names, and vLLM's of what OpenAI lacks. Raises InvalidField. Absent and null are unset.

    `least_tokens` is 0 for /v1/completions alone, as OpenAI has it: only the prompt is read.
    """
    given = {name: fields[name] for name in SAME if fields.get(name) is not None}
    for name in ("max_tokens", "max_completion_tokens"):
        if fields.get(name) is not None:
            kind, _, most = Sampling.RANGES["max_tokens"]
            check_within(name, fields[name], kind, least_tokens, most)
            given["max_tokens"] = fields[name]
    ids = fields.get("stop_token_ids")
    if ids is not None:
        given["stop_token_ids"] = tuple(ids) if isinstance(ids, list) else (None,)  # which is refused as no token
    if fields.get("logit_bias") is not None:
        given["logit_bias"] = _biases(fields["logit_bias"])
    stop = fields.get("stop")
    if stop is not None and not isinstance(stop, str | list):
        raise InvalidField(f"'stop' must be a string or up to {Sampling.MOST_STOPS} strings", "stop")
    return Sampling(**given, stop=() if stop is None else (stop,) if isinstance(stop, str) else tuple(stop))


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    """OpenAI's object: token ids as keys. Ranges are `Sampling`'s own."""
    if not isinstance(value, dict) or not all(key.isascii() and key.isdigit() and len(key) < 11 for key in value):
        raise InvalidField("'logit_bias' must be an object of token ids (\"15043\": -100)", "logit_bias")
    return tuple((int(key), bias) for key, bias in value.items())
