"""What a form asks of a recording. Knows OpenAI's fields and what of them no model can; never sound."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maasdam.api.fields import check_known
from maasdam.core import AudioPayload, Pauses, check_within, language_code
from maasdam.errors import InvalidField

FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
STREAMED = ("json", "text")
"""Formats that may come as events, which are the same of both."""
GRANULARITIES = ("segment", "word")
VAD = "chunking_strategy"
LONGEST = 1024
"""Characters of an object in a field."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A recording, and how what is said in it is to be written."""

    payload: AudioPayload
    format: str
    times: Collection[str]
    is_streamed: bool = False


def asked(
    data: bytes,
    *,
    response_format: str,
    prompt: str | None,
    temperature: float,
    language: str | None = None,
    stream: bool = False,
    granularities: Sequence[str] = (),
    include: Sequence[str] = (),
    chunking: Mapping[str, str | None] | None = None,
    translates: bool = False,
) -> Asked:
    """The fields of a form, together. Raises InvalidField for what they can't ask, each alone or beside another."""
    _check_format(response_format, stream)
    _check_times(response_format, granularities)
    _check_include(response_format, include)
    payload = AudioPayload(
        data,
        language=_language(language),
        timestamps="word" in granularities,
        translates=translates,
        prompt=prompt or "",
        temperature=temperature,
        logprobs=bool(include),
        pauses=_pauses(chunking or {}),
    )
    return Asked(payload, response_format, frozenset(granularities), stream)


def _check_format(kind: str, stream: bool) -> None:
    name = "response_format"
    if kind == "diarized_json":
        raise InvalidField(
            f"'{name}' is {kind}, and no model here tells speakers apart; send one of {', '.join(FORMATS)}", name
        )
    if kind not in FORMATS:
        raise InvalidField(f"'{name}' is {kind!r:.40}; send one of {', '.join(FORMATS)}", name)
    if stream and kind not in STREAMED:
        raise InvalidField(f"'{name}' is {kind}, which does not come as a stream; send json, or leave 'stream' out", name)


def _check_times(kind: str, granularities: Sequence[str]) -> None:
    name = "timestamp_granularities"
    for granularity in granularities:
        if granularity not in GRANULARITIES:
            raise InvalidField(f"'{name}' holds {granularity!r:.40}; send segment or word", name)
    if granularities and kind != "verbose_json":
        raise InvalidField(f"'{name}' goes with response_format verbose_json, not {kind}", name)


def _check_include(kind: str, include: Sequence[str]) -> None:
    for one in include:
        if one != "logprobs":
            raise InvalidField(f"'include' holds {one!r:.40}; send logprobs", "include")
    if include and kind != "json":
        raise InvalidField(f"'include' goes with response_format json, not {kind}", "include")


def _language(said: str | None) -> str | None:
    if not said:
        return None
    code = language_code(said)
    if code is None:
        raise InvalidField(
            f"'language' is {said!r:.40}, which names no language; send its ISO 639-1 code, such as en", "language"
        )
    return code


RANGES: dict[str, tuple[type, float, float]] = {
    "threshold": (float, 0, 1),
    "prefix_padding_ms": (int, 0, 60_000),
    "silence_duration_ms": (int, 1, 60_000),
}
"""What `server_vad` may be told."""
OURS = {"threshold": "threshold", "prefix_padding_ms": "before", "silence_duration_ms": "silence"}


def _pauses(given: Mapping[str, str | None]) -> Pauses:
    """The field as a word or as JSON, or its members in fields of their own, as OpenAI's client sends them."""
    whole = given.get(VAD)
    members: dict[str, Any] = {name[len(VAD) + 1 : -1]: value for name, value in given.items() if name != VAD and value}
    if whole and members:
        raise InvalidField(f"'{VAD}' is there twice, whole and in parts; send it once", VAD)
    if whole and whole != "auto":
        members = _object(whole)
    elif not members:
        return Pauses()
    check_known(members, ("type", *RANGES), where=VAD)
    if members.get("type") != "server_vad":
        raise InvalidField(f"'{VAD}.type' is {members.get('type')!r:.40}; send server_vad", f"{VAD}.type")
    told = {name: _number(members[name]) for name in RANGES if members.get(name) is not None}
    for name, value in told.items():
        check_within(f"{VAD}.{name}", value, *RANGES[name])
    ours = {OURS[name]: value if name == "threshold" else value / 1000 for name, value in told.items()}
    return Pauses(cuts_short=True, **ours)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if len(text) <= LONGEST else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidField(f"'{VAD}' is {text!r:.40}; send auto, or an object of type server_vad", VAD)
    return found


def _number(value: Any) -> Any:
    """Of a form's text the number that it spells."""
    if not isinstance(value, str) or len(value) > LONGEST:
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
