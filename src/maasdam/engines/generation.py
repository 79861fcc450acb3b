"""How the next token is chosen, the same for every engine that generates text.

Knows sampling parameters and a model's own defaults (`generation_config.json`, `config.json`). Refuses to know engines.

A parameter the caller leaves out is the model's own default, else neutral: temperature 1, top_p 1, no top_k. A model
whose file says `do_sample: false` is greedy unless the caller names a temperature.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import CONTEXT_KEYS, Sampling, Scored, SequenceRequest, Tokens
from maasdam.engines.mailbox import Job
from maasdam.errors import ContextExceeded, InvalidField, InvalidPayload

if TYPE_CHECKING:
    from maasdam.core import type_array

GREEDY_BELOW = 1e-5
"""A temperature this low is greedy: dividing by it would only overflow."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the model's own files say."""

    context_length: int
    vocabulary: int | None
    eos: frozenset[int]
    is_greedy: bool
    temperature: float
    top_p: float
    top_k: int | None
    repetition_penalty: float
    min_p: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """Every parameter, resolved. temperature 0 is greedy; `top_k` None is all."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int | None
    seed: int
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    eos: frozenset[int]
    """What ends it: the model's own end tokens, unless the caller ignores them, and the caller's."""
    min_p: float
    min_tokens: int
    """Before so many no token of `eos` is chosen."""
    logprobs: int | None
    """Whether each token's is told, and of how many of the likeliest beside."""
    scores_prompt: bool
    """Whether the prompt's are told too."""

    @property
    def is_greedy(self) -> bool:
        """Whether always the likeliest token is taken."""
        return self.temperature == 0.0


def read_defaults(folder: Path) -> Defaults:
    """From config.json and generation_config.json; missing facts are neutral, a missing context is 2048."""
    config, own = read_config(folder), _read(folder / "generation_config.json")
    context = next((config[k] for k in CONTEXT_KEYS if isinstance(config.get(k), int)), 2048)
    eos = own.get("eos_token_id", config.get("eos_token_id"))
    ids = eos if isinstance(eos, list) else [eos]
    vocabulary = config.get("vocab_size")
    top_k = own.get("top_k")
    return Defaults(
        context_length=context,
        vocabulary=vocabulary if isinstance(vocabulary, int) else None,
        eos=frozenset(i for i in ids if isinstance(i, int)),
        is_greedy=own.get("do_sample") is False,
        temperature=float(own.get("temperature") or 1.0),
        top_p=float(own.get("top_p") or 1.0),
        top_k=top_k if isinstance(top_k, int) and top_k > 0 else None,
        repetition_penalty=float(own.get("repetition_penalty") or 1.0),
        min_p=float(own.get("min_p") or 0.0),
    )


def begin(job: Job, defaults: Defaults) -> tuple[type_array, Choice] | None:
    """A job's prompt and its sampling, resolved; None where no token is asked for, which is answered here.

    Raises InvalidPayload, ContextExceeded.
    """
    prompt = prompt_of(job.request, defaults)
    choice = choose(job.request.sampling, defaults, prompt.shape[1])
    if choice.max_tokens or choice.scores_prompt:
        return prompt, choice
    job.give(Tokens((), finish_reason="length"))
    return None


def choose(sampling: Sampling, defaults: Defaults, prompt: int) -> Choice:
    """Resolve `sampling` for a prompt of so many tokens. Raises ContextExceeded: here, and nowhere else, they are counted.

    Raises InvalidField for tokens that the model has not, and for a `min_tokens` that there is no room for.
    """
    room = defaults.context_length - prompt
    if room < 1:
        raise ContextExceeded(prompt, defaults.context_length)
    if sampling.min_tokens > room:
        raise InvalidField(f"'min_tokens' is {sampling.min_tokens}; after this prompt there is room for {room}", "min_tokens")
    unknown = next((i for i in sampling.stop_token_ids if defaults.vocabulary is not None and i >= defaults.vocabulary), None)
    if unknown is not None:
        raise InvalidField(
            f"'stop_token_ids' holds {unknown}, which is not in this model's vocabulary of {defaults.vocabulary}",
            "stop_token_ids",
        )
    temperature = 0.0 if defaults.is_greedy else defaults.temperature
    if sampling.temperature is not None:
        temperature = float(sampling.temperature)
    top_k = defaults.top_k if sampling.top_k is None else sampling.top_k
    return Choice(
        max_tokens=room if sampling.max_tokens is None else min(sampling.max_tokens, room),
        temperature=0.0 if temperature < GREEDY_BELOW else temperature,
        top_p=defaults.top_p if sampling.top_p is None else max(float(sampling.top_p), 1e-6),
        top_k=top_k if top_k is not None and top_k > 0 else None,
        seed=secrets.randbits(32) if sampling.seed is None else sampling.seed % 2**32,
        frequency_penalty=float(sampling.frequency_penalty),
        presence_penalty=float(sampling.presence_penalty),
        repetition_penalty=(
            defaults.repetition_penalty if sampling.repetition_penalty is None else float(sampling.repetition_penalty)
        ),
        eos=(frozenset() if sampling.ignore_eos else defaults.eos) | frozenset(sampling.stop_token_ids),
        min_p=defaults.min_p if sampling.min_p is None else float(sampling.min_p),
        min_tokens=sampling.min_tokens,
        logprobs=sampling.logprobs,
        scores_prompt=sampling.echo and sampling.logprobs is not None,
    )


def prompt_of(request: SequenceRequest, defaults: Defaults) -> type_array:
    """The request's `input_ids`, [1, T] int64, T at least 1, all in the vocabulary. Raises InvalidPayload."""
    ids = request.inputs["input_ids"]
    if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] < 1 or ids.dtype.kind != "i":
        raise InvalidPayload(f"input_ids is {ids.dtype.name} {list(ids.shape)}; send int64 [1, T] with at least one token")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (defaults.vocabulary is not None and high >= defaults.vocabulary):
        wrong = low if low < 0 else high
        raise InvalidPayload(f"token {wrong} is not in this model's vocabulary of {defaults.vocabulary}")
    return ids.astype("int64", copy=False)


def pick(logits: type_array, choice: Choice, prompt: type_array, generated: list[int], random: Any) -> int:
    """One token from the logits [V] of the last position. `random` is a numpy Generator; greedy doesn't draw from it.

    Order: repetition penalty (prompt and answer), presence and frequency penalties (answer), no end before `min_tokens`,
    temperature, top_k, top_p, min_p.
    """
    import numpy as np

    scores = logits.astype(np.float64)
    if choice.repetition_penalty != 1.0:
        seen = np.unique(np.concatenate([prompt.reshape(-1), np.asarray(generated, dtype=np.int64)]))
        there = scores[seen]
        scores[seen] = np.where(there > 0, there / choice.repetition_penalty, there * choice.repetition_penalty)
    if generated and (choice.frequency_penalty or choice.presence_penalty):
        tokens, counts = np.unique(np.asarray(generated), return_counts=True)
        scores[tokens] -= choice.frequency_penalty * counts + choice.presence_penalty
    if len(generated) < choice.min_tokens and choice.eos:
        scores[sorted(choice.eos)] = -np.inf
    if choice.is_greedy:
        return int(scores.argmax())
    order = np.argsort(-scores, kind="stable")[: choice.top_k]
    ranked = scores[order] / choice.temperature
    chances = np.exp(ranked - ranked[0])
    chances /= chances.sum()
    keep = int(np.searchsorted(np.cumsum(chances), choice.top_p, side="left")) + 1
    keep = min(keep, int((chances >= choice.min_p * chances[0]).sum()))  # which come in the order of their size
    chances = chances[:keep] / chances[:keep].sum()
    return int(order[int(np.searchsorted(np.cumsum(chances), random.random(), side="right").clip(0, len(chances) - 1))])


def scored(logits: type_array, token: int, count: int) -> Scored:
    """How likely a token is by the logits [V] of the position before it, and the `count` likeliest."""
    import numpy as np

    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    best = np.argsort(-scores, kind="stable")[:count] if count else ()
    return Scored(token, float(scores[token]), tuple((int(i), float(scores[i])) for i in best))


def read_config(folder: Path) -> Mapping[str, Any]:
    """config.json with what it says of the text model within; {} where it is none."""
    config = _read(folder / "config.json")
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
