"""One response's JSON, whole and as events. Knows the Responses API's objects and their order; never how a text is made.

created, in_progress, item added, part added, delta, delta, ..., text done, part done, item done, completed, [DONE]
                                                                    \\- failed: whatever was written stays incomplete
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from maasdam.api.errors import Refusal
from maasdam.api.logprobs import shown_in_response
from maasdam.api.measured import measured
from maasdam.api.response_items import Item, new_id
from maasdam.core import Chunk, Entry, Mark, TextPiece, ToolCall

DONE = b"data: [DONE]\n\n"
_WORDS = {"message": "output_text", "reasoning": "reasoning_text"}
"""What events call the text of an item."""


@dataclass(slots=True)
class _Open:
    """The item that is being written: a message or reasoning."""

    kind: str
    id: str
    text: list[str] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


class ResponseWriter:
    """Writes one response."""

    def __init__(self, response_id: str, echo: Mapping[str, Any], has_logprobs: bool) -> None:
        """`echo`: what the response says of its request."""
        self.id = response_id
        self._echo = echo
        self._has_logprobs = has_logprobs
        self._created = int(time.time())
        self._output: list[Item] = []
        """Items that are whole."""
        self._open: _Open | None = None
        self._thought = self._cached = 0
        self._number = 0
        self.has_begun = False
        """Whether an event was written: what goes wrong now is told in another."""
        self.last: dict[str, Any] | None = None
        """The response as the last event has it."""

    def unfinished(self, status: str, error: Refusal | None = None) -> dict[str, Any]:
        """The response before its answer is whole: queued, in progress or failed."""
        left = [] if self._open is None else [self._item(self._open, "incomplete")]
        return self._response(status, [*self._output, *left], None) | {"error": None if error is None else _error(error)}

    def whole(self, chunk: Chunk, entry: Entry) -> dict[str, Any]:
        """The response to an answer in one piece."""
        self.event(chunk, entry)
        assert self.last is not None
        return self.last

    def event(self, chunk: Chunk, entry: Entry) -> bytes:
        """The events of the next piece; with the last one, those that end the response."""
        piece = cast(TextPiece, chunk.value)
        events = [] if self.has_begun else self._begin()
        self._thought += piece.reasoning_tokens or 0
        self._cached += chunk.units.cached_tokens or 0
        if piece.reasoning:
            events += self._delta("reasoning", piece.reasoning, ())
        if piece.text or not (piece.reasoning or piece.calls or chunk.is_last):
            events += self._delta("message", piece.text, piece.marks)
        for call in piece.calls:
            events += [*self._close("completed"), *self._call(call)]
        if not chunk.is_last:
            return b"".join(events)
        if not self._output and self._open is None:  # an answer that is empty is one
            events += self._opened("message")
        is_cut = piece.finish_reason == "length"
        status = "incomplete" if is_cut else "completed"
        events += self._close(status)
        self.last = self._response(status, self._output, entry)
        self.last["incomplete_details"] = {"reason": "max_output_tokens"} if is_cut else None
        self.last["completed_at"] = None if is_cut else int(time.time())
        return b"".join((*events, self._event(f"response.{status}", {"response": self.last}), DONE))

    def failed(self, error: Refusal) -> bytes:
        """The event where an answer that has begun breaks off."""
        self.last = self.unfinished("failed", error)
        return self._event("response.failed", {"response": self.last}) + DONE

    def _begin(self) -> list[bytes]:
        response = {"response": self.unfinished("in_progress")}
        self.has_begun = True
        return [self._event("response.created", response), self._event("response.in_progress", response)]

    def _delta(self, kind: str, text: str, marks: Sequence[Mark]) -> list[bytes]:
        """More of an item of this kind, which follows what was open."""
        events = self._opened(kind) if self._open is None or self._open.kind != kind else []
        assert self._open is not None
        self._open.text.append(text)
        fields = self._place | {"delta": text}
        if kind == "message":
            self._open.marks += marks if self._has_logprobs else ()
            fields["logprobs"] = shown_in_response(marks) if self._has_logprobs else []
        return [*events, self._event(f"response.{_WORDS[kind]}.delta", fields)]

    def _opened(self, kind: str) -> list[bytes]:
        events = self._close("completed")
        self._open = _Open(kind, new_id(kind))
        item = self._item(self._open, "in_progress")
        (part,) = item["content"]
        return [
            *events,
            self._event("response.output_item.added", {"output_index": len(self._output), "item": item | {"content": []}}),
            self._event("response.content_part.added", self._place | {"part": part}),
        ]

    def _close(self, status: str) -> list[bytes]:
        if self._open is None:
            return []
        kind, item = self._open.kind, self._item(self._open, status)
        (part,) = item["content"]
        text = {"text": part["text"]} | ({"logprobs": part["logprobs"]} if kind == "message" else {})
        events = [
            self._event(f"response.{_WORDS[kind]}.done", self._place | text),
            self._event("response.content_part.done", self._place | {"part": part}),
            self._event("response.output_item.done", {"output_index": len(self._output), "item": item}),
        ]
        self._output.append(item)
        self._open = None
        return events

    def _call(self, call: ToolCall) -> list[bytes]:
        """A call, which comes whole."""
        said = {"call_id": call.id, "name": call.name, "arguments": call.arguments, "status": "completed"}
        item = {"id": new_id("function_call"), "type": "function_call", **said}
        place = {"item_id": item["id"], "output_index": len(self._output)}
        added = item | {"arguments": "", "status": "in_progress"}
        self._output.append(item)
        index = {"output_index": place["output_index"]}
        return [
            self._event("response.output_item.added", index | {"item": added}),
            self._event("response.function_call_arguments.delta", place | {"delta": call.arguments}),
            self._event("response.function_call_arguments.done", place | {"name": call.name, "arguments": call.arguments}),
            self._event("response.output_item.done", index | {"item": item}),
        ]

    @property
    def _place(self) -> Item:
        assert self._open is not None
        return {"item_id": self._open.id, "output_index": len(self._output), "content_index": 0}

    def _event(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        data = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"

    def _item(self, one: _Open, status: str) -> Item:
        text, item = "".join(one.text), {"id": one.id, "type": one.kind, "status": status}
        if one.kind == "reasoning":
            return item | {"summary": [], "content": [{"type": "reasoning_text", "text": text}]}
        logprobs = shown_in_response(one.marks) if self._has_logprobs else []
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
        return item | {"role": "assistant", "content": [part]}

    def _response(self, status: str, output: list[Item], entry: Entry | None) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": output,
            **self._echo,
            "usage": None if entry is None else _usage(entry, self._thought, self._cached),
        }


def _usage(entry: Entry, thought: int, cached: int) -> dict[str, Any]:
    """Tokens, and what they cost."""
    prompt, completion = entry.prompt_tokens or 0, entry.completion_tokens or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": prompt + completion,
        "maasdam": measured(entry),
    }


def _error(refused: Refusal) -> dict[str, str]:
    """In the words that the Responses API has for it."""
    code = "rate_limit_exceeded" if refused.status == 429 else "invalid_prompt" if refused.status < 500 else "server_error"
    return {"code": code, "message": refused.message}
