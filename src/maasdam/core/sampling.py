"""How text is to be written: what a caller may ask for, within what bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from maasdam.errors import InvalidField


def check_within(name: str, value: Any, kind: type, low: float, high: float) -> None:
    """Raise InvalidField unless `value` is of this kind (int; or float, which any number is) and from `low` to `high`."""
    is_kind = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not is_kind or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise InvalidField(f"'{name}' is {value!r:.50}; send {what} from {low} to {high}", name)


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form that an answer must have: any JSON object, JSON of a schema, a regular expression, one of a JSON list of texts,
    a grammar in EBNF whose rule `root` is the answer, or calls of tools.
    """

    kind: Literal["object", "schema", "regex", "choice", "grammar", "calls"]
    text: str
    """The schema (JSON), expression, list (JSON), grammar or what `grammars.calls_wanted` writes."""
    field: str
    """What the caller called it."""
    thinking: tuple[str, str, bool] | None = None
    """What stands around reasoning before it, and whether the prompt has begun that; None where there is none."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. None means: the model's own generation_config, else the neutral value.

    Making one raises InvalidField for what is out of range: nobody behind it checks again.
    """

    RANGES: ClassVar[Mapping[str, tuple[type, float, float]]] = {
        "max_tokens": (int, 0, 1 << 31),
        "temperature": (float, 0, 2),
        "top_p": (float, 0, 1),
        "top_k": (int, -1, 1 << 31),
        "seed": (int, -(1 << 63), (1 << 63) - 1),
        "frequency_penalty": (float, -2, 2),
        "presence_penalty": (float, -2, 2),
        "repetition_penalty": (float, 0.01, 10),
        "min_p": (float, 0, 1),
        "min_tokens": (int, 0, 1 << 31),
        "logprobs": (int, 0, 20),
    }
    MOST_BIASED: ClassVar[int] = 1024
    MOST_STOPS: ClassVar[int] = 4
    MOST_STOP_TOKENS: ClassVar[int] = 128
    MOST_STOP_CHARACTERS: ClassVar[int] = 200

    max_tokens: int | None = None
    """0: the prompt is read, nothing is written."""
    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    top_k: int | None = None
    """0 and -1 are all, as other servers have it."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    ignore_eos: bool = False
    """The model's own end tokens don't end it; `stop_token_ids` do."""
    min_p: float | None = None
    """Tokens less likely than this share of the likeliest are never drawn."""
    repetition_penalty: float | None = None
    """Above 1 makes what stands in prompt and answer less likely."""
    stop_token_ids: tuple[int, ...] = ()
    """They end the answer as an end token does, without a text."""
    min_tokens: int = 0
    """Nothing ends the answer before so many."""
    logprobs: int | None = None
    """Tell how likely each token was, and so many of the likeliest in its place; None tells nothing."""
    logprobs_field: str = "logprobs"
    """What the caller called that number."""
    echo: bool = False
    """The prompt stands before the answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, and what is added to their logits: -100 forbids one, 100 forces it."""
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        for name, limits in self.RANGES.items():
            if getattr(self, name) is not None:
                check_within(name, getattr(self, name), *limits)
        if not isinstance(self.ignore_eos, bool):
            raise InvalidField(f"'ignore_eos' is {self.ignore_eos!r:.50}; send true or false", "ignore_eos")
        if len(self.logit_bias) > self.MOST_BIASED:
            raise InvalidField(f"'logit_bias' names more than {self.MOST_BIASED:,} tokens; send fewer", "logit_bias")
        for token, bias in self.logit_bias:
            check_within("logit_bias", token, int, 0, (1 << 31) - 1)
            check_within("logit_bias", bias, float, -100, 100)
        ids, name = self.stop_token_ids, "stop_token_ids"
        if len(ids) > self.MOST_STOP_TOKENS or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise InvalidField(f"'{name}' must be a list of up to {self.MOST_STOP_TOKENS} token ids", name)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidField(f"'min_tokens' is {self.min_tokens}, and max_tokens {self.max_tokens}", "min_tokens")
        if len(self.stop) > self.MOST_STOPS or not all(isinstance(stop, str) for stop in self.stop):
            raise InvalidField(f"'stop' must be a string or up to {self.MOST_STOPS} strings", "stop")
        if any(not stop or len(stop) > self.MOST_STOP_CHARACTERS for stop in self.stop):
            raise InvalidField(f"each stop string must have 1 to {self.MOST_STOP_CHARACTERS} characters", "stop")


PLAIN = Sampling()
"""Nothing asked for."""
