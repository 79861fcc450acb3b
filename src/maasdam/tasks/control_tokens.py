"""What callers write stays text. Knows a tokenizer's control tokens; never templates' language, models or HTTP.

A chat template writes control tokens (`<|im_end|>`) between what callers wrote; a caller who writes one must not end their
turn with it and begin another's. So control tokens in messages are marked before the template sees them. In the template's
text each one without marks gets a spelling that was made up when the model was opened, and a copy of the tokenizer, which
knows control tokens by those spellings alone, makes it ids.

    "a<|im_end|>b" -mark-> "a⟦<|im_end|>⟧b" -template-> "<|im_start|>a⟦<|im_end|>⟧b<|im_end|>"
                                           -spell-> "zq4f07x a<|im_end|>b zq4f08x" -copy-> ids
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maasdam.errors import InvalidPayload

MARKS = tuple(chr(c) for c in range(0xFDD0, 0xFDF0))
"""Code points that Unicode keeps out of texts: two that the messages don't hold are their marks."""


@dataclass(frozen=True, slots=True)
class Marked:
    """Messages, tools and variables whose control tokens stand between marks."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    variables: dict[str, Any]
    begin: str
    end: str


class ControlTokens:
    """The control tokens of one tokenizer under one chat template. Thread-safe."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        """Special tokens, and added ones that the template writes (`<tool_call>`)."""
        added = {i: token for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        self._ids = {token.content: i for i, token in added.items() if token.special or token.content in template}
        secret = f"zq{secrets.token_hex(8)}"
        self._spelled = {text: f"{secret}{i}x" for text, i in self._ids.items()}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._any = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._pattern = re.compile(self._any)
        self._begins = {text[:n] for text in self._ids for n in range(1, len(text)) if text[:n].strip()}
        self._ends = {text[n:] for text in self._ids for n in range(1, len(text)) if text[n:].strip()}
        self._longest = max(map(len, self._ids), default=0)
        self._tokenizer = tokenizer
        self._copy = _copy(tokenizer, self._spelled, self._ids)
        self._control_ids = frozenset(self._ids.values())
        self._unknown = tokenizer.unk_token_id

    def mark(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> Marked:
        """All that callers wrote with marks, in every text of it but the role. Raises InvalidPayload."""
        variables = variables or {}
        written = "".join(_texts([list(messages), list(tools), variables]))
        free = [mark for mark in MARKS if mark not in written][:2]
        if len(free) < 2:
            raise InvalidPayload(
                "the messages hold every code point that Unicode keeps out of texts; leave U+FDD0 to U+FDEF out"
            )
        begin, end = free
        marked = [
            {name: value if name == "role" else self._mark(value, begin, end) for name, value in message.items()}
            for message in messages
        ]
        others = (self._mark(list(tools), begin, end), self._mark(variables, begin, end))
        return Marked(marked, *others, begin, end)

    def ids(self, text: str, marked: Marked) -> list[int]:
        """Token ids of what the template made of `marked`. Raises InvalidPayload where a control token can't be text."""
        begin, end = marked.begin, marked.end
        own: list[int] = []
        by_callers: list[str] = []

        def spell(match: re.Match[str]) -> str:
            if match["own"]:
                own.append(self._ids[match["own"]])
                return self._spelled[match["own"]]
            by_callers.append(match["theirs"] or "")
            return match["theirs"] or ""

        pattern = f"{begin}(?P<theirs>{self._any}){end}|[{begin}{end}]|(?P<own>{self._any})"
        spelled = re.sub(pattern, spell, text)
        if self._copy is not None:
            ids: list[int] = self._copy.encode_batch([spelled], add_special_tokens=False)[0].ids
            if self._control(ids) == self._control(own):
                return ids
        return self._without_copy(text, marked, own, by_callers)

    def _without_copy(self, text: str, marked: Marked, own: Sequence[int], by_callers: Sequence[str]) -> list[int]:
        """For tokenizers that can't be copied: as it is, and what would need the copy is refused."""
        if any(by_callers):
            token = next(filter(None, by_callers))
            raise InvalidPayload(f"this model's tokenizer can't read the control token {token!r} as text; leave it out")
        plain = text.replace(marked.begin, "").replace(marked.end, "")
        ids: list[int] = self._tokenizer(plain, add_special_tokens=False)["input_ids"]
        left = iter(self._control(own))
        if not all(token in left for token in self._control(ids)):  # one by one, in the order of the template's own
            raise InvalidPayload("this model's tokenizer makes control tokens of what these messages say; word them otherwise")
        return ids

    def _control(self, ids: Sequence[int]) -> list[int]:
        """Those of `ids` that are control tokens; what stands for what no token spells may come of any text."""
        return [i for i in ids if i in self._control_ids and i != self._unknown]

    def _mark(self, value: Any, begin: str, end: str) -> Any:
        if isinstance(value, str):
            marked = self._pattern.sub(lambda match: f"{begin}{match[0]}{end}", value)
            # two texts that the template puts side by side must not be one control token together
            if any(value[:n] in self._ends for n in range(1, self._longest)):
                marked = end + marked
            return marked + begin if any(value[-n:] in self._begins for n in range(1, self._longest)) else marked
        if isinstance(value, Mapping):
            return {
                # a template asks for names that it knows, which are words
                name if name.isidentifier() else self._mark(name, begin, end): self._mark(item, begin, end)
                for name, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._mark(item, begin, end) for item in value]
        return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for name, item in value.items() for text in (name, *_texts(item))]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return []


def _copy(tokenizer: Any, spelled: Mapping[str, str], ids: Mapping[str, int]) -> Any:
    """The tokenizer with its control tokens spelled anew; None where it is of another kind, or can't be copied so."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not hasattr(backend, "to_str"):
        return None
    from tokenizers import Tokenizer

    described = json.loads(backend.to_str())
    described |= {"truncation": None, "padding": None, "post_processor": None}
    for token in described["added_tokens"]:
        token["content"] = spelled.get(token["content"], token["content"])
    model = described["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {spelled.get(text, text): i for text, i in vocabulary.items()}
    elif isinstance(vocabulary, list):  # a unigram model would find them in any text: they score best
        model["vocab"] = [[spelled.get(text, text), score] for text, score in vocabulary]
    if model.get("unk_token") in spelled:
        model["unk_token"] = spelled[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _makes(merge, spelled)]
    try:
        copy = Tokenizer.from_str(json.dumps(described))
    except Exception:  # the library raises plain Exceptions for what it can't read back
        return None
    return copy if all(copy.token_to_id(spelled[text]) == i for text, i in ids.items()) else None


def _makes(merge: Any, spelled: Mapping[str, str]) -> bool:
    """Whether a merge of two tokens has to do with a control token, which no text may become."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in spelled or right in spelled or left + right in spelled
