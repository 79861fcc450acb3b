"""Text generation: prompts and chats to token ids with the model's own tokenizer and chat template, ids back to text.

Knows tokenizers. Refuses to know engines, sampling and HTTP.

A plain prompt is the model's own text: control tokens in it are control tokens, as for whoever renders a chat themselves.
In a chat only the template writes them; what messages say is text, whatever it looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import (
    CONTEXT_KEYS,
    TEXT_GENERATION,
    Answer,
    Echo,
    Payload,
    Sampling,
    Spelled,
    SpellPayload,
    Tensors,
    TextPayload,
    TextPiece,
    TextStream,
    Units,
)
from maasdam.errors import ContextExceeded, InvalidModel, InvalidPayload
from maasdam.tasks.detokenizer import BROKEN, Detokenizer
from maasdam.tasks.examples import texts
from maasdam.tasks.files import opened, read_json
from maasdam.tasks.marks import Marking, Spelling
from maasdam.tasks.scoring import PERPLEXITY
from maasdam.tasks.spelling import named, spelled, tokenized
from maasdam.tasks.task import Bytes, Task

if TYPE_CHECKING:
    from maasdam.core import type_array
    from maasdam.tasks.chat import Chat

ROLES = ("system", "developer", "user", "assistant", "tool")
CONTEXT = 8
"""Tokens of a prompt that a decoder may have to see."""


class TextProcessor:
    """The tokenizer of one model. Thread-safe: tokenizers lock themselves."""

    task = TEXT_GENERATION

    def __init__(self, folder: Path) -> None:
        self.tokenizer = opened("tokenizer", folder, lambda: open_tokenizer(folder))
        config = read_json(folder / "config.json")
        config = config.get("text_config") or config
        self.context_length: int | None = next((config[k] for k in CONTEXT_KEYS if isinstance(config.get(k), int)), None)
        self._decode = _decoder(self.tokenizer)
        self._vocabulary = max(len(self.tokenizer), config.get("vocab_size") or 0)
        self._longest = max((len(token) for token in self.tokenizer.get_vocab()), default=1)
        self._hidden = _hidden(self.tokenizer)
        self._chat = _chat(self.tokenizer) if self.tokenizer.chat_template else None
        dialect = None if self._chat is None else self._chat.dialect
        self.calls = None if dialect is None or dialect.calls is None else dialect.calls.name
        self.reasons = dialect is not None and dialect.around is not None
        self._spelling = Spelling(self.tokenizer, self._hidden)

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """One prompt -> [{"input_ids": [1, T] int64}]. Raises InvalidPayload (no chat template, …).

        Whether its tokens fit the context is the engine's to say; what can't fit is refused before it is tokenized.
        """
        import numpy as np

        assert isinstance(payload, TextPayload)
        ids = self.encode(payload)
        if not ids:
            raise InvalidPayload("the prompt is empty, and this model has no token to begin with; send at least one character")
        return [{"input_ids": np.array([ids], dtype=np.int64)}]

    def encode(self, payload: TextPayload) -> list[int]:
        """Token ids of a prompt, a chat or ids themselves. Raises InvalidPayload."""
        given = [x is not None for x in (payload.prompt, payload.messages, payload.token_ids)]
        if sum(given) != 1:
            raise InvalidPayload("send exactly one of a prompt, messages and token ids")
        if payload.token_ids is not None:
            return self._checked_ids(payload.token_ids)
        if payload.messages is not None:
            return self._chat_ids(payload)
        assert payload.prompt is not None
        self._check_length(payload.prompt)
        prompt = payload.prompt
        ids: list[int] = list(tokenized(lambda: self.tokenizer(prompt)["input_ids"]))
        if not ids and self.tokenizer.bos_token_id is not None:
            return [int(self.tokenizer.bos_token_id)]
        return ids

    def spell(self, payload: SpellPayload) -> Spelled:
        """Tokens of a prompt or a chat, or the text of tokens. Raises InvalidPayload."""
        if payload.messages is not None:
            return named(self.tokenizer, tuple(self._chat_ids(TextPayload(messages=payload.messages))), payload)
        return spelled(self.tokenizer, self._vocabulary, payload)

    def _chat_ids(self, payload: TextPayload) -> list[int]:
        """A chat as the model was trained on, open for the answer. Raises InvalidPayload."""
        plain = [_message(i, m) for i, m in enumerate(payload.messages or ())]
        if not plain:
            raise InvalidPayload("messages is empty; send at least one message")
        if self._chat is None:
            raise InvalidPayload("this model has no chat template: it continues text; use /v1/completions")
        text, marked = self._chat.marked(plain, payload)
        self._check_length(text)
        control = self._chat.control
        return list(tokenized(lambda: control.ids(text, marked)))

    def dialect(self, payload: TextPayload) -> str | None:
        """See `TalkingProcessor`."""
        found = None if self._chat is None else self._chat.format_for(payload)
        return None if found is None else found.name

    def thinking(self, prompt: Sequence[int]) -> tuple[str, str, bool] | None:
        """See `TalkingProcessor`: by how the prompt ends."""
        around = None if self._chat is None else self._chat.dialect.around
        if around is None:
            return None
        decode = partial(self.tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        end = str(decode([int(i) for i in prompt[-2 * CONTEXT :]])).rstrip()
        return None if end.endswith(around[1]) else (*around, end.endswith(around[0]))

    def _check_length(self, text: str) -> None:
        """Raise ContextExceeded where no tokenizer needs to count: no token is longer than the longest."""
        if self.context_length is not None and len(text) > self.context_length * self._longest:
            raise ContextExceeded(f"at least {len(text) // self._longest}", self.context_length)

    def stream(
        self,
        stop: tuple[str, ...] = (),
        after: Sequence[int] = (),
        *,
        least: int = 0,
        marks_from: int | None = None,
        shows: Collection[str] | None = (),
    ) -> TextStream:
        """Token ids to text as they come. `after` are the prompt's: a first token's space depends on them. No stop string ends
        the first `least` tokens. `marks_from`: mark the tokens of a text with so many characters before it.
        `shows`: control tokens that are text too, None for all.
        """
        context = self._context([int(i) for i in after[-2 * CONTEXT :]])
        stream = Detokenizer(self._text, stop, context=context, hidden=self._hidden, least=least, shows=shows)
        return stream if marks_from is None else Marking(stream, self._spelling, marks_from)

    def echo(self, payload: Payload, ids: Sequence[int]) -> Echo:
        """A prompt as it was sent, or the text of its tokens, and where in it they are."""
        assert isinstance(payload, TextPayload)
        marking = Marking(Detokenizer(self._text, hidden=self._hidden), self._spelling)
        own = marking.feed([int(i) for i in ids]) + marking.finish()
        text = own if payload.prompt is None else payload.prompt
        marks = tuple(marking.fed)
        if text != own:  # the tokenizer makes another text of it first: lower case, say
            marks = tuple(mark._replace(at=at) for mark, at in zip(marks, self._offsets(text, len(ids)), strict=True))
        return Echo(text, marks, self._spelling.bytes_of)

    def _offsets(self, text: str, count: int) -> list[int]:
        """Where each of `count` tokens begins in the text that they were made of, as far as the tokenizer knows."""
        found: list[int] = []
        if self.tokenizer.is_fast:
            for begin, end in self.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]:
                found.append(begin if end > begin or not found else found[-1])
        return (found + [found[-1] if found else 0] * count)[:count]

    def _text(self, ids: list[int]) -> str:
        """Without control tokens, and without making the text prettier than the tokens say."""
        return str(self._decode(ids))

    def _context(self, prompt: list[int]) -> list[int]:
        """The last tokens of a prompt that a first token is decoded after: few, and whole characters."""
        last = next((at for at in range(len(prompt) - 1, -1, -1) if prompt[at] in self._hidden), -1)
        tail = prompt[last + 1 :]
        if not tail:  # after a control token a tokenizer may begin anew, and swallow a space that it made up itself
            return self._anchor if last > 0 else []
        for count in range(1, min(len(tail), CONTEXT) + 1):
            text = self._text(tail[-count:])
            if text and BROKEN not in text:
                return tail[-count:]
        return tail[-CONTEXT:]

    @cached_property
    def _anchor(self) -> list[int]:
        """A token to decode after where a control token is the last of the prompt; [] where the text begins anew there."""
        special = next((text for text in self._hidden.values() if text), "")
        try:
            begun = self.tokenizer(f"{special}x", add_special_tokens=False)["input_ids"]
            again = str(self.tokenizer.decode(begun, skip_special_tokens=False, clean_up_tokenization_spaces=False))
            anchor = [int(i) for i in self.tokenizer("x", add_special_tokens=False)["input_ids"][-1:]]
        except Exception:  # a tokenizer that can't read "x" has no spaces either
            return []
        return anchor if again == f"{special}x" and self._text(anchor) == "x" else []

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


def _chat(tokenizer: Any) -> Chat:
    from maasdam.tasks.chat import Chat

    return Chat(tokenizer)


def _hidden(tokenizer: Any) -> dict[int, str]:
    """Control tokens, which have no text in an answer."""
    special = {int(i): token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return special | {int(i): str(text) for i, text in named if i is not None}


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer that the files describe. Raises InvalidModel, and what transformers raises."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if len(tokenizer) < 1:
        raise InvalidModel("the model's tokenizer has no tokens")
    return tokenizer


def _decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    """How ids become text; past the Python around the tokenizers library, which takes four fifths of a token's time."""
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    if isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(kind, name) is getattr(PreTrainedTokenizerFast, name) for name in ("decode", "_decode")
    ):
        return partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=True)
    return partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _message(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with plain text as content; parts of text are joined. Raises InvalidPayload."""
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InvalidPayload(f"message {index} has role {role!r}; roles are: {', '.join(ROLES)}")
    text = "" if content is None and message.get("tool_calls") else joined(content)
    if text is None:
        raise InvalidPayload(f"message {index} has content that is not text; this model takes text only")
    return {**message, "content": text}


def joined(content: Any) -> str | None:
    """A message's content as one text, whether it came whole or in parts; None where it holds anything else."""
    if isinstance(content, list | tuple):
        texts = [
            part["text"] for part in content if isinstance(part, Mapping) and part.get("type") == "text" and "text" in part
        ]
        return "".join(texts) if len(texts) == len(content) and all(isinstance(text, str) for text in texts) else None
    return content if isinstance(content, str) else None


TASK = Task(
    name=TEXT_GENERATION,
    payloads=(TextPayload,),
    answer=TextPiece,
    takes="prompts",
    doors=("/v1/chat/completions", "/v1/completions", "/v1/responses"),
    open=lambda folder, signature, settings: TextProcessor(folder),
    warm_up=lambda signature: TextPayload(prompt="a", sampling=Sampling(max_tokens=2, temperature=0.0)),
    read_examples=lambda path, labels, signature: texts(path),
    metric=PERPLEXITY,
    same=lambda one, other: one.token_ids == other.token_ids,
    shown=lambda answer: answer.text,
    lines=lambda answer: [answer.text],
    to_json=lambda a: {"text": a.text, "token_ids": list(a.token_ids), "finish_reason": a.finish_reason},
    oip=Bytes("text_input", (("text_output", "BYTES"),), lambda answer: (answer.text.encode(),)),
    loss="tokens",
)
