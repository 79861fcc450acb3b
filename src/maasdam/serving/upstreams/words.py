"""Payloads and answers in OpenAI's JSON. Knows its shapes, and checks that an answer is one to what was asked; never sends any.

Raises UpstreamFailure for an answer that does not hold together, or breaks what was asked as far as that can be seen: then
nobody is told that it is one.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maasdam.core import (
    AudioPayload,
    Chunk,
    Constraint,
    Mark,
    ReadPayload,
    Sampling,
    TextPayload,
    TextPiece,
    ToolCall,
    Transcript,
    Units,
    Vector,
)
from maasdam.errors import UpstreamFailure
from maasdam.serving.upstreams.calls import asked_calls, shown

BYTES_A_TOKEN = 4
"""Where a server does not say how many tokens a text has, or what can't be: one for so many bytes of UTF-8, rounded up."""
MOST_TOKENS = 1 << 31
MOST_OF_TEMPLATE = 4096
"""Tokens that a template may add to what was sent."""
REASONS = ("stop", "length", "content_filter")
_BIASED = ("top_k", "min_p", "repetition_penalty", "temperature", "top_p", "seed")
_NEUTRAL = ("frequency_penalty", "presence_penalty", "min_tokens", "ignore_eos")


class Said(NamedTuple):
    """What one JSON object of an answer says."""

    text: str
    finish_reason: str | None
    marks: tuple[Mark, ...]
    usage: tuple[int | None, int | None]
    """Tokens of the prompt and of the answer, where it says what can be."""
    reasoning: str = ""
    calls: tuple[Any, ...] = ()
    """Of tools, or pieces of them: see `SaidCalls`."""


def is_chat(payload: TextPayload) -> bool:
    """Whether it is a conversation."""
    return payload.messages is not None


def asked_text(payload: TextPayload, model: str, max_tokens: int, streams: bool) -> dict[str, Any]:
    """The body of a request for one answer."""
    sampling = payload.sampling
    body: dict[str, Any] = {"model": model, "max_tokens": max_tokens}
    if payload.messages is not None:
        body["messages"] = [shown(message) for message in payload.messages]
        body |= asked_calls(payload)
        variables = dict(payload.template)
        if "reasoning_effort" in variables:
            body["reasoning_effort"] = variables.pop("reasoning_effort")
        if variables:
            body["chat_template_kwargs"] = variables
    else:
        body["prompt"] = payload.prompt if payload.token_ids is None else list(payload.token_ids)
    body |= {name: value for name in _BIASED if (value := getattr(sampling, name)) is not None}
    body |= {name: value for name in _NEUTRAL if (value := getattr(sampling, name))}
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.stop_token_ids:
        body["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.echo:
        body["echo"] = True
    if sampling.logprobs is not None:
        is_counted = payload.messages is None
        body["logprobs"] = sampling.logprobs if is_counted else True
        if sampling.logprobs and not is_counted:
            body["top_logprobs"] = sampling.logprobs
    if sampling.constraint is not None:
        body |= _form(sampling.constraint)
    return body | ({"stream": True, "stream_options": {"include_usage": True}} if streams else {})


def for_llama(body: dict[str, Any], sampling: Sampling) -> dict[str, Any]:
    """A body in llama.cpp's own words: what it calls otherwise, and what is not neutral where it is left out."""
    body = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0} | body
    if sampling.repetition_penalty is not None:
        body |= {"repeat_penalty": body.pop("repetition_penalty"), "repeat_last_n": -1}
    if sampling.logprobs is not None:
        body |= {"logprobs": max(sampling.logprobs, 1) if "prompt" in body else True}
    return body


def _form(constraint: Constraint) -> dict[str, Any]:
    """In the words that it was asked for in: servers differ in which they know."""
    kind, text = constraint.kind, constraint.text
    if constraint.field.startswith("guided_"):
        return {constraint.field: json.loads(text) if kind in ("schema", "choice") else text}
    if kind == "object":
        return {"response_format": {"type": "json_object"}}
    if kind == "schema":
        schema = {"name": "answer", "schema": json.loads(text), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {"structured_outputs": {kind: json.loads(text) if kind == "choice" else text}}


def said_whole(answer: Any, payload: TextPayload, listed: Sequence[str], model: str, max_tokens: int) -> Said:
    """A whole answer."""
    said = _said(answer, payload, listed, model, max_tokens, "message")
    if said is None or said.finish_reason is None:
        raise UpstreamFailure("the upstream's answer has no choice that is ended")
    return said


def said_next(event: Any, payload: TextPayload, listed: Sequence[str], model: str, max_tokens: int) -> Said | None:
    """An event of a stream; None where it says nothing of the answer: what it took may stand in `usage_of`."""
    return _said(event, payload, listed, model, max_tokens, "delta")


def _said(answer: Any, payload: TextPayload, listed: Sequence[str], model: str, max_tokens: int, part: str) -> Said | None:
    if not isinstance(answer, dict) or not isinstance(choices := answer.get("choices"), list):
        raise UpstreamFailure("the upstream's answer holds no choices")
    named = answer.get("model")
    if named != model and named in listed:
        raise UpstreamFailure("the upstream answered with another of its models")
    if not choices and part == "delta":
        return None
    choice = choices[0] if len(choices) == 1 else None
    if not isinstance(choice, dict) or choice.get("index", 0) != 0:
        raise UpstreamFailure(f"the upstream gave {len(choices)} choices, or one of another number, where one was asked for")
    inner = choice.get(part) if is_chat(payload) else choice
    if not isinstance(inner, dict):
        raise UpstreamFailure(f"the upstream's choice has no {part}")
    text = inner.get("content" if is_chat(payload) else "text")
    calls = inner.get("tool_calls") or ()
    is_called = inner.get("function_call") or (calls and not (payload.tools and isinstance(calls, list)))
    if (text is not None and not isinstance(text, str)) or is_called:
        raise UpstreamFailure("the upstream answered with something else than a text")
    reason = choice.get("finish_reason")
    if reason is not None and reason not in (*REASONS, *(("tool_calls",) if payload.tools else ())):
        raise UpstreamFailure("the upstream ended its answer for a reason that was not asked for")
    marks = () if payload.sampling.logprobs is None else _marks(choice.get("logprobs"), payload.sampling.logprobs)
    thought = inner.get("reasoning_content", inner.get("reasoning"))
    if len(marks) > max_tokens and not payload.sampling.echo:
        raise UpstreamFailure(f"the upstream told of more tokens than the {max_tokens} that were asked for")
    return Said(text or "", reason, marks, usage_of(answer), thought if isinstance(thought, str) else "", tuple(calls))


def usage_of(answer: Any) -> tuple[int | None, int | None]:
    """Tokens of prompt and answer; None what it does not say, or what can't be."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    found = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    return _count(found[0]), _count(found[1])


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_TOKENS else None


def tokens_in(text: str) -> int:
    """How many are counted for a text of which nobody says it."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN)


def prompt_tokens_in(payload: TextPayload) -> int:
    """The same of a prompt: what was sent as tokens is that many."""
    if payload.token_ids is not None:
        return len(payload.token_ids)
    told = json.dumps(payload.tools, ensure_ascii=False) if payload.tools else ""
    said = "".join(str(message.get(key) or "") for message in payload.messages or () for key in ("content", "tool_calls"))
    return max(1, tokens_in(payload.prompt or said + told))


def prompt_bytes(payload: TextPayload) -> int:
    """Of what was sent; of tokens their number. It has no more tokens, but for what a template adds."""
    sent = payload.token_ids or payload.prompt or "".join(map(str, (*(payload.messages or ()), *payload.tools)))
    return len(sent.encode("utf-8", "replace") if isinstance(sent, str) else sent)


def units_of(payload: TextPayload, usage: tuple[int | None, int | None], text: str, pieces: int, max_tokens: int) -> Units:
    """What an answer is metered as: what the server says, where that can be; else what is counted here.

    `pieces`: those of a stream, each of which is a token at least; 0 where it came whole.
    """
    prompt, completion = usage
    if not prompt or prompt > prompt_bytes(payload) + MOST_OF_TEMPLATE:  # none is empty, for a model
        prompt = prompt_tokens_in(payload)
    if completion is None or completion > max_tokens or ((text or pieces) and not completion):
        completion = min(pieces or tokens_in(text), max_tokens)
    return Units(1, 0 if payload.is_another else prompt, completion)


def _marks(told: Any, likeliest: int) -> tuple[Mark, ...]:
    """Of either shape: that of chats, or that of completions."""
    if told is None:
        return ()
    if not isinstance(told, dict):
        raise _no_logprobs()
    if isinstance(told.get("content"), list):
        return tuple(_mark_of_chat(one, likeliest) for one in told["content"])
    tokens, values, tops, places = (told.get(k) for k in ("tokens", "token_logprobs", "top_logprobs", "text_offset"))
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        if told.get("content", 0) is None:
            return ()
        raise _no_logprobs()
    marks, at = [], 0
    for i, (token, value) in enumerate(zip(tokens, values, strict=True)):
        top = tops[i] if isinstance(tops, list) and len(tops) == len(tokens) else None
        place = places[i] if isinstance(places, list) and len(places) == len(tokens) else at
        if not isinstance(token, str) or not isinstance(place, int):
            raise _no_logprobs()
        others = top.items() if isinstance(top, dict) else ()
        best = sorted(
            ((name.encode("utf-8", "replace"), _logprob(number)) for name, number in others), key=lambda one: -one[1]
        )[: likeliest + 1]
        is_first = i == 0 and value is None
        marks.append(Mark(token.encode("utf-8", "replace"), place, None if is_first else _logprob(value), tuple(best)))
        at += len(token)
    return tuple(marks)


def _mark_of_chat(one: Any, likeliest: int) -> Mark:
    if not isinstance(one, dict):
        raise _no_logprobs()
    tops = one.get("top_logprobs") or ()
    if not isinstance(tops, list | tuple) or (likeliest and not tops):
        raise _no_logprobs()
    best = tuple((_spelled(top), _logprob(top.get("logprob"))) for top in tops[:likeliest] if isinstance(top, dict))
    return Mark(_spelled(one), 0, _logprob(one.get("logprob")), best)


def _spelled(one: Mapping[str, Any]) -> bytes:
    data, token = one.get("bytes"), one.get("token")
    if isinstance(data, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in data):
        return bytes(data)
    if not isinstance(token, str):
        raise _no_logprobs()
    return token.encode("utf-8", "replace")


def _logprob(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value > 1e-3:
        raise _no_logprobs()
    return float(min(value, 0.0))


def _no_logprobs() -> UpstreamFailure:
    return UpstreamFailure("the upstream left out log-probabilities that were asked for, or wrote what are none")


def check_echo(payload: TextPayload, text: str) -> str:
    """The text behind its prompt, where that is echoed."""
    if not payload.sampling.echo or payload.prompt is None:
        return text
    if not text.startswith(payload.prompt):
        raise UpstreamFailure("the upstream left out the prompt that was to be echoed")
    return text[len(payload.prompt) :]


class Stops:
    """Watches that no stop string is in an answer."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._kept = max((len(stop) for stop in stops), default=1) - 1
        self._tail = ""

    def see(self, text: str) -> None:
        """The answer's next."""
        if self._stops:
            text = self._tail + text
            if any(stop in text for stop in self._stops):
                raise UpstreamFailure("the upstream wrote a stop string, and did not stop")
            self._tail = text[-self._kept :] if self._kept else ""


def asked_vectors(payloads: Sequence[ReadPayload], model: str) -> dict[str, Any]:
    """The body of a request for the vectors of all the texts, which were asked for alike."""
    first = payloads[0]
    texts = [one.text if isinstance(one.text, str) else list(one.text) for one in payloads]
    body: dict[str, Any] = {"model": model, "input": texts, "encoding_format": "float"}
    if first.dimensions is not None:
        body["dimensions"] = first.dimensions
    if first.cuts:
        body["truncate_prompt_tokens"] = -1
    return body if first.role is None else body | {"prompt_name": first.role}


def vectors(answer: Any, payloads: Sequence[ReadPayload]) -> list[Chunk]:
    """A vector of each text, in their order; all of one length, of finite numbers. What they took is on the first."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or len(data) != len(payloads):
        raise UpstreamFailure(f"the upstream gave no {len(payloads)} vectors, as many as texts")
    rows: dict[int, list[float]] = {}
    for i, one in enumerate(data):
        row, at = (one.get("embedding"), one.get("index", i)) if isinstance(one, dict) else (None, None)
        if not isinstance(row, list) or not row or not isinstance(at, int) or not set(map(type, row)) <= {int, float}:
            raise UpstreamFailure("the upstream gave what is no vector of numbers")
        rows[at] = row
    lengths = {len(row) for row in rows.values()}
    asked = payloads[0].dimensions
    if rows.keys() != set(range(len(payloads))) or len(lengths) != 1 or asked not in (None, *lengths):
        raise UpstreamFailure("the upstream's vectors are not one for each text, of one length, as long as was asked for")
    values = np.array([rows[i] for i in range(len(payloads))], np.float64).astype(np.float32)
    if not np.isfinite(values).all():
        raise UpstreamFailure("the upstream's vectors hold what is no number")
    told = answer.get("usage")
    own = told.get("maasdam") if isinstance(told, dict) else None  # another Maasdam says what was cut off
    cut = own.get("truncated") if isinstance(own, dict) else None
    cuts = [_count(cut.get(str(i))) or 0 if isinstance(cut, dict) else 0 for i in range(len(payloads))]
    tokens = usage_of(answer)[0]
    most = sum(MOST_OF_TEMPLATE + len(one.text.encode() if isinstance(one.text, str) else one.text) for one in payloads)
    if not tokens or tokens > most:
        tokens = sum(max(1, tokens_in(one.text)) if isinstance(one.text, str) else len(one.text) for one in payloads)
    units = [Units(1, tokens), *(Units(1, 0) for _ in payloads[1:])]
    return [Chunk(Vector(row, n), used, True) for row, n, used in zip(values, cuts, units, strict=True)]


def asked_audio(payload: AudioPayload, model: str) -> dict[str, list[str]]:
    """The form's fields beside the file."""
    fields = {"model": [model], "response_format": ["verbose_json"]}
    fields["timestamp_granularities[]"] = ["segment", "word"] if payload.timestamps else ["segment"]
    asked = {"language": payload.language, "prompt": payload.prompt, "temperature": payload.temperature}
    return fields | {name: [str(value)] for name, value in asked.items() if value}


def heard(answer: Any, payload: AudioPayload) -> tuple[Transcript, Units]:
    """A transcript, with the seconds it is metered by: what it says, else where its last segment ends."""
    text = answer.get("text") if isinstance(answer, dict) else None
    if not isinstance(text, str):
        raise UpstreamFailure("the upstream's transcript has no text")
    segments, words = (
        [_timed(one, name) for one in _listed(answer.get(several))]
        for several, name in (("segments", "text"), ("words", "word"))
    )
    if payload.timestamps and text.strip() and not words:
        raise UpstreamFailure("the upstream left out the times of words that were asked for")
    segments.sort(key=lambda one: float(one["start"]))
    starts = [one["start"] for one in segments]
    for word in words if segments else ():
        segments[max(bisect_right(starts, word["start"]) - 1, 0)].setdefault("words", []).append(word)
    language, usage = answer.get("language"), answer.get("usage")
    known = (answer.get("duration"), usage.get("seconds") if isinstance(usage, dict) else None)
    seconds = next(
        # no codec has less than a byte for a second
        (s for value in known if (s := _seconds(value)) is not None and s <= len(payload.data)),
        max((s["end"] for s in segments), default=None),
    )
    return Transcript(text, tuple(segments), language if isinstance(language, str) else None), Units(audio_seconds=seconds)


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list | None):
        raise UpstreamFailure("the upstream's transcript has parts that are no list")
    return value or []


def _timed(one: Any, name: str) -> dict[str, Any]:
    start, end, text = (one.get(key) if isinstance(one, dict) else None for key in ("start", "end", name))
    start, end = _seconds(start), _seconds(end)
    if start is None or end is None or end < start or not isinstance(text, str):
        raise UpstreamFailure("the upstream's transcript has times that can't be")
    return {"start": start, "end": end, name: text}


def _seconds(value: Any) -> float | None:
    if isinstance(value, str):  # as OpenAI's first versions have it
        try:
            value = float(value)
        except ValueError:
            return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and 0 <= value < 1e7 else None


def joined(parts: Sequence[Said]) -> Said:
    """What they say together, ended as the last."""
    text, reasoning = "".join(part.text for part in parts), "".join(part.reasoning for part in parts)
    return parts[-1]._replace(text=text, reasoning=reasoning, marks=tuple(mark for part in parts for mark in part.marks))


def piece(said: Said, calls: tuple[ToolCall, ...] = ()) -> TextPiece:
    """As replicas give it."""
    return TextPiece(said.text, (), said.finish_reason, said.marks, said.reasoning, calls=calls)
