"""Where in a text its tokens are, and what bytes each says. Knows the alphabets of tokenizers; never models.

A token may be part of a character: its place is where that character begins, and its bytes are its own.

    "a🐈"    tokens  a  <0xF0> <0x9F> <0x90> <0x88>
             at      0  1      1      1      1
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from maasdam.core import BYTES_OF_LETTERS, Mark, Tokens
from maasdam.tasks.detokenizer import Detokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
SPACE = "▁"
"""What SentencePiece writes for one."""


class Spelling:
    """The bytes of each token of one tokenizer."""

    def __init__(self, tokenizer: Any, hidden: Mapping[int, str]) -> None:
        """`hidden` are control tokens, which are spelled by their names."""
        self._tokenizer = tokenizer
        self.hidden = hidden

    def bytes_of(self, token: int) -> bytes:
        """What a token says; b"" for one that the tokenizer has no text for."""
        named = self.hidden.get(token) or self._added.get(token)
        if named is not None:
            return named.encode()
        text = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(text, str):
            return text if isinstance(text, bytes) else b""
        if self._kind == "bytes" and all(c in BYTES_OF_LETTERS for c in text):
            return bytes(BYTES_OF_LETTERS[c] for c in text)
        spelled = _BYTE.fullmatch(text) if self._kind == "pieces" else None
        if spelled is not None:
            return bytes([int(spelled[1], 16)])
        if self._kind == "pieces":
            return text.replace(SPACE, " ").encode()
        return str(self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)).encode()

    @cached_property
    def _added(self) -> dict[int, str]:
        return {int(i): token.content for i, token in self._tokenizer.added_tokens_decoder.items()}

    @cached_property
    def _kind(self) -> str:
        """What tokens are written in: letters that stand for bytes, pieces with ▁ for a space, or else."""
        backend: Any = getattr(self._tokenizer, "backend_tokenizer", None)
        if hasattr(backend, "to_str"):
            decoder = json.dumps(json.loads(backend.to_str()).get("decoder"))
            if "ByteLevel" in decoder:
                return "bytes"
            return "pieces" if SPACE in decoder or "\\u2581" in decoder or "Metaspace" in decoder else "else"
        return "pieces" if hasattr(self._tokenizer, "sp_model") else "else"


class Marking:
    """A text stream that marks its tokens; see `core.MarkedStream`. A mark is given with the text that it is of."""

    def __init__(self, stream: Detokenizer, spelling: Spelling, begins: int = 0) -> None:
        """`begins`: characters before this text."""
        self._stream = stream
        self._spelling = spelling
        self.taken = 0
        self.is_stopped = False
        """See `Detokenizer`, as of `taken`."""
        self._length = self._passed = begins
        """Characters until now: those that are certain, and those that were given out."""
        self._fed: list[Mark] = []
        self._held: list[Mark] = []

    def feed(self, token_ids: Sequence[int]) -> str:
        """See `Detokenizer`."""
        self.taken, out = 0, ""
        self._fed = []
        for token in token_ids:
            data = self._spelling.bytes_of(token)
            before = b"".join(map(self._spelling.bytes_of, self._stream.pending))
            at = self._length + _begun(before, data)
            out += self._stream.feed([token])
            fresh = self._stream.fresh
            is_control = token in self._spelling.hidden
            if fresh and not (before or is_control or self._stream.pending):
                data = fresh.encode()  # a tokenizer may swallow the first space of a text
            self._length += len(fresh)
            if self._stream.taken:
                self.taken += 1
                self._fed.append(Mark(data, at, None, is_control=is_control))
            if self._stream.is_stopped:
                break
        self.is_stopped = self._stream.is_stopped
        return out

    def finish(self) -> str:
        """See `Detokenizer`."""
        out = self._stream.finish()
        self._length += len(self._stream.fresh)
        self.is_stopped = self._stream.is_stopped
        return out

    @property
    def fed(self) -> Sequence[Mark]:
        """The marks of the tokens last fed, without log-probabilities."""
        return self._fed

    def marked(self, tokens: Tokens, text: str, is_last: bool) -> tuple[Mark, ...]:
        """The marks of what `text`, the tokens' last fed, makes certain; what a stop string cut off has none."""
        spell = self._spelling.bytes_of
        for mark, scored in zip(self._fed, tokens.scores, strict=False):  # fewer where a stop string ends it
            self._held.append(mark.scored(scored, spell))
        self._passed += len(text)
        if is_last and not self.is_stopped:
            out, self._held = self._held, []
            if tokens.end is not None:
                end = Mark(spell(tokens.end.token_id), self._passed, None, is_control=True, is_end=True)
                out.append(end.scored(tokens.end, spell))
            return tuple(out)
        count = next((i for i, mark in enumerate(self._held) if mark.at >= self._passed), len(self._held))
        out, self._held = self._held[:count], self._held[count:]
        return tuple(out)


def _begun(before: bytes, data: bytes) -> int:
    """How many characters begin in bytes before what `data` is part of, or begins."""
    if not before:
        return 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    count = len(decoder.decode(before))
    goes_on = bool(data) and 0x80 <= data[0] < 0xC0
    return count + (bool(decoder.getstate()[0]) and not goes_on)
