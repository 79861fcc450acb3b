"""How many answers a request asks for, and which of them it gets. Knows OpenAI's `n` and `best_of`; never how they are made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from maasdam.core import Chunk, TextPayload, TextPiece, check_within
from maasdam.errors import InvalidField

MOST_ANSWERS = 128
"""Of one request, to all its prompts."""


@dataclass(frozen=True, slots=True)
class Choices:
    """To each prompt `made` are written, and the `kept` best given."""

    kept: int = 1
    made: int = 1

    def payloads(self, prompts: Sequence[TextPayload]) -> list[TextPayload]:
        """One for each answer, those to one prompt side by side: the first is what is asked for alone."""
        out = []
        for prompt in prompts:
            sampling = prompt.sampling
            if self.made > self.kept and sampling.logprobs is None:
                sampling = replace(sampling, logprobs=0, logprobs_field="best_of")
            for number in range(self.made):
                seed = sampling.seed if sampling.seed is None else derived(sampling.seed, number)
                out.append(replace(prompt, sampling=replace(sampling, seed=seed), is_another=number > 0))
        return out

    def best(self, chunks: Sequence[Chunk], echoes: bool) -> list[Chunk]:
        """Those of the likeliest tokens, by the mean of their logarithms, the best first; all where as many are kept.

        `echoes`: the prompt's tokens stand before theirs.
        """
        if self.made == self.kept:
            return list(chunks)
        out: list[Chunk] = []
        for at in range(0, len(chunks), self.made):
            some = chunks[at : at + self.made]
            prompt = some[0].units.prompt_tokens or 0
            out += sorted(some, key=partial(_mean, skip=prompt if echoes else 0), reverse=True)[: self.kept]
        return out


def choices_from(n: Any, best_of: Any, prompts: int, streams: bool) -> Choices:
    """From a client's fields. Raises InvalidField."""
    for name, value in (("n", n), ("best_of", best_of)):
        if value is not None:
            check_within(name, value, int, 1, MOST_ANSWERS)
    kept = 1 if n is None else int(n)
    made = kept if best_of is None else int(best_of)
    name = "n" if best_of is None else "best_of"
    if made < kept:
        raise InvalidField(f"'best_of' is {made}, fewer than the {kept} that 'n' asks for", "best_of")
    if made > kept and streams:
        raise InvalidField("'best_of' is known at the end only; send stream: false, or best_of as n", "best_of")
    if made * prompts > MOST_ANSWERS:
        raise InvalidField(f"'{name}' asks for {made} answers to {prompts} prompts; at most {MOST_ANSWERS} in all", name)
    return Choices(kept, made)


def derived(seed: int, number: int) -> int:
    """The seed of one of several answers: the caller's own for the first, which is as it is alone."""
    if number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")


def _mean(chunk: Chunk, skip: int) -> float:
    logprobs = [mark.logprob or 0.0 for mark in cast(TextPiece, chunk.value).marks[skip:]]
    return sum(logprobs) / len(logprobs) if logprobs else 0.0
