"""What a deployment may ask of its engine beyond what the artifact's settings say. Knows words and ranges; never engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maasdam.core import Sampling, check_within
from maasdam.errors import InvalidInput, Unsupported

SHARINGS = ("key", "shared")
"""`prefix_cache`: whose prompts are computed once where they begin alike, those of one key or anybody's."""
MOST_AHEAD = 16
"""`prompt_lookup`: tokens that may be guessed beyond the next."""
OPTIONS = ("prefix_cache", "prompt_lookup", "logprobs")
"""`logprobs`: how many of the likeliest tokens are told in each place of a text. The engine transformers tells them anyway."""


def check(options: Mapping[str, Any], engine: str, able: tuple[str, ...]) -> None:
    """Raise Unsupported for what the engine, which is `able` to some of OPTIONS, has not, and InvalidInput for what is none of
    the values of an option. What is no option is left alone."""
    for name in OPTIONS:
        if name in options and name not in able:
            raise Unsupported(f"engine {engine} has no {name}; deploy the model without it")
    sharing, ahead = options.get("prefix_cache", "key"), options.get("prompt_lookup", 1)
    if sharing not in SHARINGS:
        raise InvalidInput(f"prefix_cache is {sharing!r:.50}; it takes one of: {', '.join(SHARINGS)}")
    check_within("prompt_lookup", ahead, int, 1, MOST_AHEAD)
    check_within("logprobs", options.get("logprobs", 1), int, 1, Sampling.RANGES["logprobs"][2])
    if "prefix_cache" in options and "prompt_lookup" in options:
        raise InvalidInput("prefix_cache and prompt_lookup can't be had together; leave one out")
