"""Text generation: prompts and chats to token ids with the model's own tokenizer and chat template, ids back to text.

Knows tokenizers. Refuses to know engines, sampling and HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import TEXT_GENERATION, Answer, Payload, Tensors, TextPayload, TextPiece, Units
from maasdam.errors import ContextExceeded, InvalidModel, InvalidPayload
from maasdam.tasks.files import opened, read_json
from maasdam.tasks.text_stream import TextStream

if TYPE_CHECKING:
    from maasdam.core import type_array

ROLES = ("system", "developer", "user", "assistant", "tool")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")


class TextProcessor:
    """The tokenizer of one model. Thread-safe: tokenizers lock themselves."""

    task = TEXT_GENERATION

    def __init__(self, folder: Path) -> None:
        self.tokenizer = opened("tokenizer", folder, lambda: _open_tokenizer(folder))
        config = read_json(folder / "config.json")
        config = config.get("text_config") or config
        self.context_length: int | None = next((config[k] for k in _CONTEXT_KEYS if isinstance(config.get(k), int)), None)
        self._vocabulary = max(len(self.tokenizer), config.get("vocab_size") or 0)
        self._longest = max((len(token) for token in self.tokenizer.get_vocab()), default=1)

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """One prompt -> [{"input_ids": [1, T] int64}]. Raises InvalidPayload (beyond the context, no chat template, …)."""
        import numpy as np

        assert isinstance(payload, TextPayload)
        ids = self.encode(payload)
        if not ids:
            raise InvalidPayload("the prompt is empty, and this model has no token to begin with; send at least one character")
        if self.context_length is not None and len(ids) >= self.context_length:
            raise ContextExceeded(len(ids), self.context_length)
        return [{"input_ids": np.array([ids], dtype=np.int64)}]

    def encode(self, payload: TextPayload) -> list[int]:
        """Token ids of a prompt, a chat or ids themselves. Raises InvalidPayload."""
        given = [x is not None for x in (payload.prompt, payload.messages, payload.token_ids)]
        if sum(given) != 1:
            raise InvalidPayload("send exactly one of a prompt, messages and token ids")
        if payload.token_ids is not None:
            return self._checked_ids(payload.token_ids)
        text = payload.prompt if payload.prompt is not None else self.render(payload.messages or ())
        if self.context_length is not None and len(text) > self.context_length * self._longest:
            # no token is longer than the longest: not worth the time to count them
            raise ContextExceeded(f"at least {len(text) // self._longest}", self.context_length)
        try:
            # a chat template writes the special tokens itself
            ids: list[int] = self.tokenizer(text, add_special_tokens=payload.messages is None)["input_ids"]
        except Exception as error:  # lone surrogates, which JSON can carry and UTF-8 can't
            raise InvalidPayload("the prompt is not valid Unicode text; send UTF-8") from error
        if not ids and self.tokenizer.bos_token_id is not None:
            return [int(self.tokenizer.bos_token_id)]
        return ids

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A chat as the text the model was trained on, open for the answer. Raises InvalidPayload."""
        plain = [_message(i, m) for i, m in enumerate(messages)]
        if not plain:
            raise InvalidPayload("messages is empty; send at least one message")
        if not self.tokenizer.chat_template:
            raise InvalidPayload("this model has no chat template: it continues text; use /v1/completions")
        try:
            return str(self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # templates refuse what they don't take, in Jinja's words or their own
            why = " ".join(str(error).split())[:200]
            raise InvalidPayload(f"this model's chat template refuses these messages: {why}") from error

    def stream(self, stop: tuple[str, ...] = ()) -> TextStream:
        """Token ids to text as they come."""
        return TextStream(lambda ids: str(self.tokenizer.decode(ids, skip_special_tokens=True)), stop)

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids to text, without special tokens."""
        stream = self.stream()
        return stream.feed(ids) + stream.finish()

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """[{"token_ids": [1, N]}] -> the whole text."""
        ids = tuple(int(i) for i in outputs[0]["token_ids"].reshape(-1))
        return TextPiece(self.decode(ids), ids, "stop")

    def units(self, payload: Payload, prepared: Sequence[Tensors]) -> Units:
        """Tokens of the prompt."""
        return Units(prompt_tokens=int(prepared[0]["input_ids"].shape[1]))

    def _checked_ids(self, ids: Sequence[int]) -> list[int]:
        for i in ids:
            if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < self._vocabulary:
                raise InvalidPayload(f"token {i!r} is not in this model's vocabulary; ids are 0 to {self._vocabulary - 1}")
        return list(ids)


def _open_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if len(tokenizer) < 1:
        raise InvalidModel("the model's tokenizer has no tokens")
    return tokenizer


def _message(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with plain text as content; parts of text are joined. Raises InvalidPayload."""
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InvalidPayload(f"message {index} has role {role!r}; roles are: {', '.join(ROLES)}")
    if isinstance(content, list | tuple):
        parts = []
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise InvalidPayload(f"message {index} holds a part that is not text; this model takes text only")
            parts.append(part["text"])
        content = "".join(parts)
    if not isinstance(content, str):
        raise InvalidPayload(f"message {index} has content of type {type(content).__name__}; send a string")
    return {**message, "content": content}
