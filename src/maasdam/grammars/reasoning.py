"""Reasoning told from an answer as it comes, and as a form. Knows the words that stand around it; never who writes them."""

from __future__ import annotations

from maasdam.grammars.call_reader import _overlap
from maasdam.grammars.nodes import ROOT, Form, Named, Repeated, Until, Word, either, row

AROUND = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))
"""What models write around it."""
Thinking = tuple[str, str, bool]
"""What stands around it, and whether the prompt has begun it."""


def around_of(source: str) -> tuple[str, str] | None:
    """What a chat template has around reasoning; None where it knows none."""
    return next((words for words in AROUND if words[1] in source), None)


class ReasoningReader:
    """Sets it apart. Lines that are empty at its borders are left out."""

    def __init__(self, thinking: Thinking) -> None:
        self._begin, self._end, self.has_begun = thinking
        self.is_inside = self.has_begun
        self.is_over = False
        """Whether what comes now is the answer."""
        self._buffer = ""
        self._is_new = True

    @property
    def around(self) -> tuple[str, str]:
        """What stands around it."""
        return self._begin, self._end

    def feed(self, text: str) -> tuple[str, str]:
        """The reasoning and the answer in what is certain now."""
        self._buffer += text
        return self._read(is_last=False)

    def finish(self) -> tuple[str, str]:
        """What was held back."""
        return self._read(is_last=True)

    def _read(self, is_last: bool) -> tuple[str, str]:
        if not self.is_inside and not self.is_over:
            begun = self._buffer.lstrip()
            if begun.startswith(self._begin):
                self.is_inside = self.has_begun = True
                self._buffer = begun[len(self._begin) :]
            elif self._begin.startswith(begun) and not is_last:
                return "", ""
            else:
                self.is_over, self._is_new = True, False
        reasoning = ""
        if self.is_inside:
            reasoning = self._inside(is_last)
            if self.is_inside:
                return reasoning, ""
        out, self._buffer = self._buffer, ""
        if self._is_new:
            out = out.lstrip("\n")
            self._is_new = not out
        return reasoning, out

    def _inside(self, is_last: bool) -> str:
        if self._is_new:
            self._buffer = self._buffer.lstrip("\n")
        at = self._buffer.find(self._end)
        if at >= 0:
            out, self._buffer = self._buffer[:at].rstrip("\n"), self._buffer[at + len(self._end) :]
            self.is_inside, self.is_over, self._is_new = False, True, True
            return out
        out = self._buffer if is_last else self._buffer[: len(self._buffer) - _overlap(self._buffer, self._end)].rstrip("\n")
        self._buffer = self._buffer[len(out) :]
        self._is_new = self._is_new and not out
        return out


def answer_behind(thinking: Thinking, text: str) -> str | None:
    """The answer in a whole text; None where that ends within its reasoning."""
    reader = ReasoningReader(thinking)
    _, first = reader.feed(text)
    _, last = reader.finish()
    return None if reader.is_inside else first + last


def behind(thinking: Thinking, form: Form) -> Form:
    """A form that reasoning of any length may stand before, or must, where the prompt has begun it."""
    begin, end, is_open = thinking
    rules = dict(form.rules)
    name = "thought"
    while any(rule.startswith(name) for rule in rules):  # a caller's may be called so
        name += "_"
    rules[name] = Until(end)
    before = row(Named(name), Repeated(Word("\n"), 0, 2))
    root = rules[ROOT]
    whole = row(before, root) if is_open else either((row(Word(begin), before, root), root))
    return Form(rules | {ROOT: whole})
