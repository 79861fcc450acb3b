"""One response's JSON, whole and as events. Knows the Responses API's objects and their order; never how a text is made.

created, in_progress, item added, part added, delta, delta, ..., text done, part done, item done, completed, [DONE]
                                                                    \\- failed: whatever was written stays incomplete
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

import orjson

from maasdam.api.errors import Refusal
from maasdam.api.logprobs import shown_in_response
from maasdam.api.measured import measured
from maasdam.api.response_items import Item, new_id
from maasdam.core import Chunk, Entry, Mark, TextPiece

DONE = b"data: [DONE]\n\n"


class ResponseWriter:
    """Writes one response."""

    def __init__(self, response_id: str, echo: Mapping[str, Any], has_logprobs: bool) -> None:
        """`echo`: what the response says of its request."""
        self.id = response_id
        self._echo = echo
        self._has_logprobs = has_logprobs
        self._created = int(time.time())
        self._message = new_id("message")
        self._text: list[str] = []
        self._marks: list[Mark] = []
        self._number = 0
        self._place: Item = {"item_id": self._message, "output_index": 0, "content_index": 0}
        self.has_begun = False
        """Whether an event was written: what goes wrong now is told in another."""
        self.last: dict[str, Any] | None = None
        """The response as the last event has it."""

    def unfinished(self, status: str, error: Refusal | None = None) -> dict[str, Any]:
        """The response before its answer is whole: queued, in progress or failed."""
        output = [self._item("incomplete")] if self.has_begun and status == "failed" else []
        return self._response(status, output, None) | {"error": None if error is None else _error(error)}

    def whole(self, chunk: Chunk, entry: Entry) -> dict[str, Any]:
        """The response to an answer in one piece."""
        piece = cast(TextPiece, chunk.value)
        self._take(piece)
        return self._ended(piece.finish_reason == "length", entry)

    def event(self, chunk: Chunk, entry: Entry) -> bytes:
        """The events of the next piece; with the last one, those that end the response."""
        piece = cast(TextPiece, chunk.value)
        events = b"" if self.has_begun else self._begin()
        self._take(piece)
        if piece.text or not chunk.is_last:
            shown = shown_in_response(piece.marks) if self._has_logprobs else []
            events += self._event("response.output_text.delta", self._place | {"delta": piece.text, "logprobs": shown})
        if not chunk.is_last:
            return events
        self.last = self._ended(piece.finish_reason == "length", entry)
        item = self.last["output"][0]
        part = item["content"][0]
        return b"".join(
            (
                events,
                self._event("response.output_text.done", self._place | {"text": part["text"], "logprobs": part["logprobs"]}),
                self._event("response.content_part.done", self._place | {"part": part}),
                self._event("response.output_item.done", {"output_index": 0, "item": item}),
                self._event(f"response.{self.last['status']}", {"response": self.last}),
                DONE,
            )
        )

    def failed(self, error: Refusal) -> bytes:
        """The event where an answer that has begun breaks off."""
        self.last = self.unfinished("failed", error)
        return self._event("response.failed", {"response": self.last}) + DONE

    def _begin(self) -> bytes:
        response = {"response": self.unfinished("in_progress")}
        self.has_begun = True
        item = self._item("in_progress") | {"content": []}
        return b"".join(
            (
                self._event("response.created", response),
                self._event("response.in_progress", response),
                self._event("response.output_item.added", {"output_index": 0, "item": item}),
                self._event("response.content_part.added", self._place | {"part": _part("", [])}),
            )
        )

    def _take(self, piece: TextPiece) -> None:
        self._text.append(piece.text)
        if self._has_logprobs:
            self._marks += piece.marks

    def _event(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        data = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"

    def _ended(self, is_cut: bool, entry: Entry) -> dict[str, Any]:
        status = "incomplete" if is_cut else "completed"
        response = self._response(status, [self._item(status)], entry)
        response["incomplete_details"] = {"reason": "max_output_tokens"} if is_cut else None
        response["completed_at"] = None if is_cut else int(time.time())
        return response

    def _item(self, status: str) -> Item:
        shown = shown_in_response(self._marks) if self._has_logprobs else []
        message = {"id": self._message, "type": "message", "status": status, "role": "assistant"}
        return message | {"content": [_part("".join(self._text), shown)]}

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
            "usage": None if entry is None else _usage(entry),
        }


def _part(text: str, logprobs: list[Any]) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _usage(entry: Entry) -> dict[str, Any]:
    """Tokens, and what they cost."""
    prompt, completion = entry.prompt_tokens or 0, entry.completion_tokens or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + completion,
        "maasdam": measured(entry),
    }


def _error(refused: Refusal) -> dict[str, str]:
    """In the words that the Responses API has for it."""
    code = "rate_limit_exceeded" if refused.status == 429 else "invalid_prompt" if refused.status < 500 else "server_error"
    return {"code": code, "message": refused.message}
