"""Callers' own grammars, in EBNF as xgrammar and llama.cpp write it. Knows its syntax; refuses what the engine would die of.

root ::= "SELECT " name (", " name){0,3}
name ::= [a-z]+        # a comment
"""

from __future__ import annotations

import re

from maasdam.grammars.nodes import (
    EVERY,
    MOST_REPEATED,
    ROOT,
    Chars,
    Form,
    Named,
    Node,
    Ranges,
    Repeated,
    Word,
    either,
    refused,
    row,
    union,
    without,
)
from maasdam.grammars.regexes import DEEPEST

LONGEST = 64 * 1024
"""Characters of a grammar."""
MOST_RULES = 1_000
_TOKEN = re.compile(
    r"(?P<space>[ \t\r\n]+|\#[^\n]*)|(?P<rule>[A-Za-z_][A-Za-z0-9_.-]*)[ \t]*::=|(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)"
    r'|(?P<text>"(?:[^"\\\n]|\\.)*")|(?P<set>\[(?:[^\]\\\n]|\\.)+\])|(?P<counts>\{ *[0-9]{1,8} *(?:, *(?:[0-9]{1,8})? *)?\})'
    r"|(?P<sign>[()|*+?])"
)
_CHARACTER = re.compile(r"\\x([0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\(.)|([^\\])", re.S)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "f": "\f", "v": "\v", "b": "\b", "a": "\a", "e": "\x1b"}
_LITERAL = frozenset("\\\"'[]^-/?{}()|.*+$ ")


def parsed(text: str) -> Form:
    """A grammar whose `root` is the answer. Raises InvalidField, which says what is wrong and in which line."""
    if len(text) > LONGEST:
        raise refused(f"a grammar of {len(text):,} characters is too long; at most {LONGEST:,}")
    reader = _Reader(text)
    rules: dict[str, Node] = {}
    while reader.kind == "rule":
        name = reader.value
        if name in rules:
            raise reader.wrong(f"rule '{name}' is there twice")
        if len(rules) >= MOST_RULES:
            raise reader.wrong(f"there are more than {MOST_RULES:,} rules")
        reader.go_on()
        rules[name] = reader.alternatives(0)
    if reader.kind:
        raise reader.wrong(f"'{reader.value}' stands where a rule begins (name ::= …)")
    if ROOT not in rules:
        raise refused("no rule 'root': it says what the whole answer is (root ::= …); grammars in Lark are not read")
    return Form(rules)


class _Reader:
    """Reads one grammar, token by token."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self.kind: str | None = None
        self.value = ""
        self.go_on()

    def wrong(self, what: str) -> Exception:
        """The refusal of what stands here."""
        return refused(f"{what} (line {self._text.count(chr(10), 0, self._at) + 1} of the grammar)")

    def go_on(self) -> None:
        """To the next token."""
        while self._at < len(self._text):
            found = _TOKEN.match(self._text, self._at)
            if found is None:
                raise self.wrong(f"{self._text[self._at : self._at + 12]!r} is no part of a grammar")
            self._at = found.end()
            if found.lastgroup != "space":
                self.kind, self.value = found.lastgroup, found[found.lastgroup or 0]
                return
        self.kind, self.value = None, ""

    def alternatives(self, depth: int) -> Node:
        """Up to what can't go on: a bracket, the next rule, the end."""
        if depth > DEEPEST:
            raise self.wrong(f"groups are nested deeper than {DEEPEST}")
        options = [self._sequence(depth)]
        while self.kind == "sign" and self.value == "|":
            self.go_on()
            options.append(self._sequence(depth))
        return either(options)

    def _sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self.kind in ("name", "text", "set") or (self.kind == "sign" and self.value == "("):
            parts.append(self._repeated(self._atom(depth)))
        if not parts:
            raise self.wrong('an alternative is empty; the empty text is written ""')
        return row(*parts)

    def _atom(self, depth: int) -> Node:
        kind, value = self.kind, self.value
        self.go_on()
        if kind == "name":
            return Named(value)
        if kind == "text":
            return Word("".join(chr(code) for code in self._codes(value[1:-1])))
        if kind == "set":
            return Chars(self._set(value[1:-1]))
        node = self.alternatives(depth + 1)
        if self.kind != "sign" or self.value != ")":
            raise self.wrong("a group is not closed")
        self.go_on()
        return node

    def _repeated(self, part: Node) -> Node:
        if self.kind == "counts":
            low, comma, high = self.value.strip("{} ").partition(",")
            least = int(low)
            most = (int(high) if high.strip() else None) if comma else least
            if (most is not None and most < least) or max(least, most or 0) > MOST_REPEATED:
                raise self.wrong(f"the repetition {self.value} is none: at least, then at most, up to {MOST_REPEATED}")
        elif self.kind == "sign" and self.value in "*+?":
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[self.value]
        else:
            return part
        self.go_on()
        if self.kind == "counts" or (self.kind == "sign" and self.value in "*+?"):
            raise self.wrong("a repetition of a repetition is not supported; put the inner one in a group")
        return Repeated(part, least, most)

    def _codes(self, text: str) -> list[int]:
        codes = []
        for two, four, eight, escape, plain in _CHARACTER.findall(text):
            if escape and escape not in _ESCAPES and escape not in _LITERAL:
                raise self.wrong(f"'\\{escape}' is no character")
            code = int(two or four or eight, 16) if two or four or eight else ord(plain or _ESCAPES.get(escape, escape))
            if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
                raise self.wrong(f"{code:#x} is no character")
            codes.append(code)
        return codes

    def _set(self, text: str) -> Ranges:
        is_negated = text.startswith("^")
        found = _CHARACTER.findall(text[is_negated:])
        codes = self._codes(text[is_negated:])
        ranges: list[tuple[int, int]] = []
        i = 0
        while i < len(codes):
            if i + 2 < len(codes) and found[i + 1][4] == "-":
                if codes[i + 2] < codes[i]:
                    raise self.wrong("a range in a set goes backwards")
                ranges.append((codes[i], codes[i + 2]))
                i += 3
            else:
                ranges.append((codes[i], codes[i]))
                i += 1
        if not ranges:
            raise self.wrong("an empty set allows no character")
        wanted = union(tuple(ranges))
        return without(EVERY, wanted) if is_negated else without(EVERY, without(EVERY, wanted))
