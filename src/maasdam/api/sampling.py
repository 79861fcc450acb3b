"""Sampling parameters from a client's fields, checked. Knows ranges and OpenAI's names; never tokens or engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maasdam.core import Sampling
from maasdam.errors import InvalidField

NAMES = (
    *("max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed", "stop"),
    *("frequency_penalty", "presence_penalty", "ignore_eos"),
)
"""What `sampling_from` reads."""
MOST_STOPS = 4
MOST_STOP_CHARACTERS = 200


def sampling_from(fields: Mapping[str, Any], least_tokens: int = 1) -> Sampling:
    """Sampling from OpenAI's field names plus top_k and ignore_eos. Raises InvalidField. Absent and null are unset.

    `least_tokens` is 0 for /v1/completions alone, as OpenAI has it: only the prompt is read.
    """
    limits = [fields.get(name) for name in ("max_completion_tokens", "max_tokens") if fields.get(name) is not None]
    max_tokens = None
    if limits:
        name = "max_completion_tokens" if fields.get("max_completion_tokens") is not None else "max_tokens"
        max_tokens = _whole(name, limits[0], least_tokens, 1 << 31)
    return Sampling(
        max_tokens=max_tokens,
        temperature=_number(fields, "temperature", 0.0, 2.0),
        top_p=_number(fields, "top_p", 0.0, 1.0),
        top_k=None if fields.get("top_k") is None else _whole("top_k", fields["top_k"], -1, 1 << 31),
        seed=None if fields.get("seed") is None else _whole("seed", fields["seed"], -(1 << 63), (1 << 63) - 1),
        stop=_stop(fields.get("stop")),
        frequency_penalty=_number(fields, "frequency_penalty", -2.0, 2.0) or 0.0,
        presence_penalty=_number(fields, "presence_penalty", -2.0, 2.0) or 0.0,
        ignore_eos=_truth(fields, "ignore_eos"),
    )


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidField(f"'{name}' is {_shown(value)}; send a whole number from {low} to {high}", name)
    return value


def _number(fields: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidField(f"'{name}' is {_shown(value)}; send a number from {low:g} to {high:g}", name)
    return float(value)


def _truth(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidField(f"'{name}' is {_shown(value)}; send true or false", name)
    return bool(value)


def _stop(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(stop, str) for stop in stops):
        raise InvalidField(f"'stop' must be a string or up to {MOST_STOPS} strings", "stop")
    if any(not stop or len(stop) > MOST_STOP_CHARACTERS for stop in stops):
        raise InvalidField(f"each stop string must have 1 to {MOST_STOP_CHARACTERS} characters", "stop")
    return tuple(stops)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 50 else text[:47] + "..."
