"""An answer's text told apart as it comes: reasoning, text, calls of tools. Knows pieces of text; never engines.

What is not certain yet is held back with its tokens: a piece says something, or is the last.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from maasdam import grammars
from maasdam.core import Mark, TextPayload, TextPiece, ToolCall
from maasdam.errors import EngineFailure

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


class AnswerReader:
    """Of one answer."""

    def __init__(self, payload: TextPayload, dialect: str | None, thinking: grammars.Thinking | None) -> None:
        """`dialect`: the format of its calls, where there are tools; `thinking`: see `TalkingProcessor`."""
        self._reasons = None if thinking is None else grammars.ReasoningReader(thinking)
        tools = {tool["function"]["name"]: tool for tool in payload.tools if payload.calling.only in (None, _name(tool))}
        self._must = payload.calling.least > 0
        self._schemas = grammars.checked_by(payload.tools, payload.calling)
        self._calls: grammars.CallReader | None = None
        self._is_short = dialect in ("mistral", "mistral_args")
        if dialect is not None:
            known: Mapping[str, Any] = {name: grammars.schema_of(tool) for name, tool in tools.items()}
            form = grammars.FORMATS[dialect]
            self._calls = grammars.CallReader(form, known, 1 if form.is_single else payload.calling.most)
        self._made = 0
        self._ids: list[int] = []
        self._marks: list[Mark] = []
        self._thought = 0
        """Tokens of reasoning, or of what may become some, that are not told yet."""

    @property
    def shows(self) -> list[str]:
        """Control tokens that are words here."""
        words = [] if self._reasons is None else list(self._reasons.around)
        form = None if self._calls is None else self._calls.form
        return words + ([] if form is None else [*form.triggers, *form.closers, *form.words])

    def read(self, piece: TextPiece) -> TextPiece | None:
        """What it says now; None: nothing yet. Raises EngineFailure: a call that is not what was asked for."""
        is_last = piece.finish_reason is not None
        self._ids += piece.token_ids
        self._marks += piece.marks
        reasoning, text = "", piece.text
        if self._reasons is not None:
            if not self._reasons.is_over:
                self._thought += len(piece.token_ids)
            reasoning, text = self._reasons.feed(text)
            if is_last:
                more, rest = self._reasons.finish()
                reasoning, text = reasoning + more, text + rest
            if self._reasons.is_over and not self._reasons.has_begun:
                self._thought = 0
        calls: list[grammars.CallRead] = []
        if self._calls is not None:
            text, calls = self._calls.feed(text)
            if is_last:
                rest, more_calls = self._calls.finish()
                text, calls = text + rest, calls + more_calls
            if self._must:
                text = ""  # of a call that is cut
        if not (text or reasoning or calls or is_last):
            return None
        told = [self._told(call) for call in calls]
        reason = "tool_calls" if self._made and piece.finish_reason == "stop" else piece.finish_reason
        thought = None if self._reasons is None else self._thought
        out = TextPiece(text, tuple(self._ids), reason, tuple(self._marks), reasoning, thought, tuple(told))
        self._ids, self._marks, self._thought = [], [], 0
        return out

    def _told(self, call: grammars.CallRead) -> ToolCall:
        why = grammars.wrong_call(call, self._schemas[call.name])
        if why is not None:
            raise EngineFailure(f"the engine wrote what 'tools' does not allow: {why}")
        number, self._made = self._made, self._made + 1
        name = "".join(secrets.choice(LETTERS) for _ in range(9)) if self._is_short else f"call_{secrets.token_hex(12)}"
        return ToolCall(number, name, call.name, _written(call.arguments))


def _name(tool: Mapping[str, Any]) -> str:
    name: str = tool["function"]["name"]
    return name


def _written(arguments: Mapping[str, Any]) -> str:
    text = json.dumps(arguments, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, which JSON can spell and UTF-8 can't
        return json.dumps(arguments)
    return text
