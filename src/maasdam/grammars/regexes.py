"""Regular expressions as forms. Knows the syntax that JSON Schema, Python and Rust have in common; refuses the rest by name.

Where those disagree (whether `\\w` has an é), only what all of them take is written.
"""

from __future__ import annotations

from dataclasses import dataclass

from maasdam.grammars.nodes import (
    EMPTY,
    EVERY,
    LAST,
    MOST_REPEATED,
    Chain,
    Chars,
    Either,
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

LONGEST = 8_000
"""Characters of an expression."""
DEEPEST = 40
"""Groups within groups."""
_ASCII: Ranges = ((0, 0x7F),)
_BEYOND: Ranges = ((0x80, 0xD7FF), (0xE000, LAST))
_DIGITS: Ranges = ((0x30, 0x39),)
_LETTERS: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACES: Ranges = ((0x09, 0x0D), (0x20, 0x20))
_MORE_SPACES: Ranges = tuple(
    (code, code)
    for code in (
        *range(0x1C, 0x20),
        0x85,
        0xA0,
        0x1680,
        0x180E,
        *range(0x2000, 0x200B),
        0x2028,
        0x2029,
        0x202F,
        0x205F,
        0x3000,
        0xFEFF,
    )
)
_ANY: Ranges = without(EVERY, ((0x0A, 0x0A), (0x0D, 0x0D), (0x85, 0x85), (0x2028, 0x2029)))
_SETS: dict[str, tuple[Ranges, Ranges]] = {
    # what all dialects agree is in the set, and what any of them puts there
    "d": (_DIGITS, union(_DIGITS, _BEYOND)),
    "w": (_LETTERS, union(_LETTERS, _BEYOND)),
    "s": (_SPACES, union(_SPACES, _MORE_SPACES)),
    "D": (without(_ASCII, _DIGITS), without(EVERY, _DIGITS)),
    "W": (without(_ASCII, _LETTERS), without(EVERY, _LETTERS)),
    "S": (without(EVERY, union(_SPACES, _MORE_SPACES)), without(EVERY, _SPACES)),
}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
_LITERAL = frozenset("\\^$.|?*+()[]{}/-\"'`~!@#%&=:;,<>_ ")
"""Of what is no letter or digit: characters that may stand behind a backslash and mean themselves."""


@dataclass(frozen=True, slots=True)
class Expression:
    """What an expression means: alternatives, each with whether it begins and ends where the text does."""

    options: tuple[tuple[Node, bool, bool], ...]

    def whole(self) -> Node:
        """The texts that are a match from end to end."""
        return either(node for node, _, _ in self.options)

    def found_in(self, around: Node) -> Node:
        """The texts in which there is a match, what is around it made of `around`, a repetition."""
        return either(row(EMPTY if begins else around, node, EMPTY if ends else around) for node, begins, ends in self.options)


def parsed(text: str) -> Expression:
    """An expression. Raises InvalidField, which names what it has and where."""
    if len(text) > LONGEST:
        raise refused(f"an expression of {len(text):,} characters is too long; at most {LONGEST:,}")
    reader = _Reader(text)
    options = reader.alternatives(0)
    if reader.at < len(text):
        raise reader.wrong("')' closes nothing")
    return Expression(tuple(options))


def lengths(node: Node) -> tuple[int, int | None]:
    """The fewest and the most characters of its texts; of forms that name no rule."""
    if isinstance(node, Chars):
        return 1, 1
    if isinstance(node, Word):
        return len(node.text), len(node.text)
    if isinstance(node, Repeated):
        low, high = lengths(node.part)
        return low * node.least, 0 if node.most == 0 else None if node.most is None or high is None else high * node.most
    assert isinstance(node, Chain | Either)
    parts = [lengths(part) for part in (node.parts if isinstance(node, Chain) else node.options)]
    highs = [high for _, high in parts]
    if isinstance(node, Chain):
        return sum(low for low, _ in parts), None if None in highs else sum(high or 0 for high in highs)
    return min((low for low, _ in parts), default=0), None if None in highs else max((high or 0 for high in highs), default=0)


class _Reader:
    """Reads one expression from left to right."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def wrong(self, what: str) -> Exception:
        """The refusal of what stands here."""
        return refused(f"{what} (character {min(self.at, len(self.text)) + 1} of the expression)")

    def _next(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""

    def _take(self, expected: str) -> bool:
        if self.text.startswith(expected, self.at):
            self.at += len(expected)
            return True
        return False

    def alternatives(self, depth: int) -> list[tuple[Node, bool, bool]]:
        """Up to the end or a closing bracket. Anchors stand outside of groups alone, around a whole alternative."""
        if depth > DEEPEST:
            raise self.wrong(f"groups are nested deeper than {DEEPEST}")
        options = [self._sequence(depth)]
        while self._take("|"):
            options.append(self._sequence(depth))
        return options

    def _sequence(self, depth: int) -> tuple[Node, bool, bool]:
        parts: list[Node] = []
        begins = ends = False
        while self._next() not in ("", "|", ")"):
            if self._take("^") or self._take("\\A"):
                if parts or depth or ends:
                    raise self.wrong("'^' is supported at the beginning alone, outside of groups")
                begins = True
            elif self._take("$") or self._take("\\Z") or self._take("\\z"):
                if depth or self._next() not in ("", "|"):
                    raise self.wrong("'$' is supported at the end alone, outside of groups")
                ends = True
            else:
                parts.append(self._repeated(self._atom(depth)))
        return row(*parts), begins, ends

    def _repeated(self, part: Node) -> Node:
        many = False
        while True:
            least, most = 1, None
            if self._take("*"):
                least = 0
            elif self._take("?"):
                least, most = 0, 1
            elif not self._take("+"):
                counts = self._counts()
                if counts is None:
                    return part
                least, most = counts
            if many:
                raise self.wrong("a repetition of a repetition is not supported; put the inner one in a group")
            many = True
            part = Repeated(part, least, most)
            if self._next() in ("?", "+"):
                if self._next() == "+":
                    raise self.wrong("possessive repetitions ('++') are not supported")
                self.at += 1  # lazy: the same texts

    def _counts(self) -> tuple[int, int | None] | None:
        if self._next() != "{":
            return None
        end = self.text.find("}", self.at)
        low, comma, high = self.text[self.at + 1 : max(end, self.at)].partition(",")
        if end < 0 or not _is_count(low) or not (high == "" or _is_count(high)):
            raise self.wrong("'{' begins no repetition such as {2,5}; a bracket that means itself is '\\{'")
        least = int(low)
        most = (int(high) if high else None) if comma else least
        if most is not None and most < least:
            raise self.wrong(f"the repetition {{{least},{most}}} has more at least than at most")
        if max(least, most or 0) > MOST_REPEATED:
            raise self.wrong(f"a repetition of {max(least, most or 0)} is too long; at most {MOST_REPEATED}")
        self.at = end + 1
        return least, most

    def _atom(self, depth: int) -> Node:
        c = self._next()
        if c == "(":
            return self._group(depth)
        self.at += 1
        if c == "[":
            return Chars(self._set())
        if c == ".":
            return Chars(_ANY)
        if c == "\\":
            sure, _ = self._escaped()
            return Chars(sure)
        if c in "*+?{":
            self.at -= 1
            raise self.wrong(f"'{c}' repeats nothing")
        return Chars(((ord(c), ord(c)),))

    def _group(self, depth: int) -> Node:
        self.at += 1
        if self._take("?") and not self._take(":"):
            if self._next() == "P" or (self._next() == "<" and self.text[self.at + 1 : self.at + 2] not in ("=", "!")):
                end = self.text.find(">", self.at)
                if end < 0 or not self.text[self.at : end].strip("P<").isidentifier():
                    raise self.wrong("only groups with names, '(?P<name>…)', are supported of those that begin with '(?P'")
                self.at = end + 1
            else:
                names = {"=": "lookahead", "!": "lookahead", "<": "lookbehind", ">": "atomic groups", "#": "comments"}
                raise self.wrong(f"{names.get(self._next(), 'flags')} ('(?{self._next()}') not supported in expressions")
        options = self.alternatives(depth + 1)
        if not self._take(")"):
            raise self.wrong("a group is not closed")
        return either(node for node, _, _ in options)

    def _set(self) -> Ranges:
        is_negated = self._take("^")
        sure: Ranges = ()
        any_of: Ranges = ()
        is_first = True
        while not self._take("]") or (is_first and self._closes_nothing()):
            is_first = False
            if self._next() == "":
                raise self.wrong("a set '[' is not closed")
            low, low_any = self._member()
            if self._next() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                high, _ = self._member()
                if len(low) != 1 or low[0][0] != low[0][1] or len(high) != 1 or high[0][0] != high[0][1]:
                    raise self.wrong("a range in a set goes from one character to another")
                if high[0][0] < low[0][0]:
                    raise self.wrong("a range in a set goes backwards")
                low = low_any = without(EVERY, without(EVERY, ((low[0][0], high[0][0]),)))
            sure, any_of = union(sure, low), union(any_of, low_any)
        return without(EVERY, any_of) if is_negated else sure

    def _closes_nothing(self) -> bool:
        raise self.wrong("an empty set '[]' allows no character; a bracket that means itself is '\\]'")

    def _member(self) -> tuple[Ranges, Ranges]:
        c = self._next()
        if self.text[self.at : self.at + 2] in ("[:", "[=", "[.", "&&", "--", "~~", "||"):
            raise self.wrong(f"'{self.text[self.at : self.at + 2]}' in a set is not supported")
        self.at += 1
        if c == "[":
            self.at -= 1
            raise self.wrong("'[' in a set is written '\\['")
        if c == "\\":
            return self._escaped(in_set=True)
        return ((ord(c), ord(c)),), ((ord(c), ord(c)),)

    def _escaped(self, in_set: bool = False) -> tuple[Ranges, Ranges]:
        """What stands behind a backslash: surely in it, and possibly."""
        c = self._next()
        self.at += 1
        if c in _SETS and c:
            return _SETS[c]
        digits = {"x": 2, "u": 4, "U": 8}.get(c)
        if c in _CONTROLS or (c == "b" and in_set):
            if c == "0" and self._next().isdigit():
                raise self.wrong("octal characters are not supported; write \\x00")
            code = ord(_CONTROLS.get(c, "\b"))
        elif digits:
            written = self.text[self.at : self.at + digits]
            if len(written) < digits or not all(d in "0123456789abcdefABCDEF" for d in written):
                raise self.wrong(f"'\\{c}' takes {digits} hexadecimal digits")
            self.at += digits
            code = int(written, 16)
            if code > LAST or 0xD800 <= code <= 0xDFFF:
                raise self.wrong(f"'\\{c}{written}' is no character")
        elif c in _LITERAL and c:
            code = ord(c)
        else:
            self.at -= 1
            names = {"b": "word boundaries", "B": "word boundaries", "p": "Unicode properties", "P": "Unicode properties"}
            what = names.get(c, "references to groups" if c.isdigit() or c == "k" else "this")
            raise self.wrong(f"'\\{c}': {what} not supported in expressions")
        return ((code, code),), ((code, code),)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 15
