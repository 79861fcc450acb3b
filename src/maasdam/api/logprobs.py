"""Log-probabilities in OpenAI's two shapes, and the fields that ask for them. Knows JSON; never how any was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maasdam.core import Mark, Sampling, check_within
from maasdam.errors import InvalidField

LEAST = -9999.0
"""For what can't be: JSON has no infinity."""


def of_chat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What `logprobs` (true) and `top_logprobs` ask for, as fields of `Sampling`. Raises InvalidField."""
    asked, count = fields.get("logprobs"), fields.get("top_logprobs")
    if asked is not None and not isinstance(asked, bool):
        raise InvalidField(f"'logprobs' is {asked!r:.50}; send true or false", "logprobs")
    if count is not None:
        check_within("top_logprobs", count, *Sampling.RANGES["logprobs"])
    if not asked:
        if count:
            raise InvalidField("'top_logprobs' goes with logprobs: true", "top_logprobs")
        return {}
    return {"logprobs": count or 0, "logprobs_field": "top_logprobs" if count else "logprobs"}


def of_completion(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What `logprobs` (a number) and `echo` ask for, as fields of `Sampling`. Raises InvalidField."""
    count, echo = fields.get("logprobs"), fields.get("echo")
    if echo is not None and not isinstance(echo, bool):
        raise InvalidField(f"'echo' is {echo!r:.50}; send true or false", "echo")
    if count is None or count is False:  # which clients send for nothing
        return {"echo": bool(echo)}
    check_within("logprobs", count, *Sampling.RANGES["logprobs"])
    return {"echo": bool(echo), "logprobs": count}


def shown_in_chat(marks: Sequence[Mark]) -> dict[str, Any]:
    """The object `logprobs` of a chat's choice."""
    content = [
        _of_chat(mark.data, mark.logprob, mark.is_control)
        | {"top_logprobs": [_of_chat(data, value, False) for data, value in mark.likeliest]}
        for mark in marks
        if not mark.is_end
    ]
    return {"content": content, "refusal": None}


def shown_in_response(marks: Sequence[Mark]) -> list[dict[str, Any]]:
    """The list `logprobs` of a response's text, where `bytes` is always a list."""
    shown: list[dict[str, Any]] = shown_in_chat(marks)["content"]
    return [one | {"bytes": one["bytes"] or []} for one in shown]


def shown_of_speech(marks: Sequence[Mark], is_first: bool) -> list[dict[str, Any]]:
    """The list `logprobs` of a transcript, or of what is next of one, whose first token has no space before it."""
    shown = [{"token": _name(m.data, ""), "bytes": list(m.data), "logprob": _finite(m.logprob or 0.0)} for m in marks]
    if shown and is_first:
        data = marks[0].data.lstrip()
        shown[0] |= {"token": _name(data, ""), "bytes": list(data)}
    return shown


def shown_in_completion(marks: Sequence[Mark]) -> dict[str, Any]:
    """The object `logprobs` of a completion's choice: lists side by side, null where a text begins."""
    return {
        "tokens": [_name(mark.data, "bytes:") for mark in marks],
        "token_logprobs": [None if mark.logprob is None else _finite(mark.logprob) for mark in marks],
        "top_logprobs": [None if mark.logprob is None else _tops(mark, mark.logprob) for mark in marks],
        "text_offset": [mark.at for mark in marks],
    }


def _of_chat(data: bytes, logprob: float | None, is_control: bool) -> dict[str, Any]:
    """Bytes are those of the content: a control token has none there."""
    value = LEAST if logprob is None else _finite(logprob)
    return {"token": _name(data, ""), "logprob": value, "bytes": None if is_control else list(data)}


def _tops(mark: Mark, logprob: float) -> dict[str, float]:
    """The likeliest tokens and the text's own; of two that are spelled alike the likelier."""
    tops: dict[str, float] = {}
    for data, value in (*mark.likeliest, (mark.data, logprob)):
        name = _name(data, "bytes:")
        tops[name] = max(tops.get(name, LEAST), _finite(value))
    return tops


def _name(data: bytes, before: str) -> str:
    """A token as text; the bytes of one that is part of a character are spelled out, as OpenAI does."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return before + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)
