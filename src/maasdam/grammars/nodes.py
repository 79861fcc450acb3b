"""What a form is made of, and how it is written for an engine. Knows characters, rules and how large they grow.

Refuses to know JSON, schemas and regular expressions: those are translated to this.

    Chars | Word | Chain | Either | Repeated | Named | Until   by rule names -> `Form` -> checked -> EBNF (engine), Lark (check)
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from maasdam.errors import InvalidField

LARGEST = 20_000
"""Parts of a form with all repetitions written out. What compiles in half a second at the most has no more."""
MOST_NESTED = 5_000
"""Repetitions within repetitions, multiplied: where one ends is open, and each token has to ask them all."""
MOST_REPEATED = 100_000
"""Of one character in a row; the engine counts those without writing them out."""
LONGEST_WRITTEN = 512 * 1024
"""Characters of a form."""
ROOT = "root"
LAST = 0x10FFFF
Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Code points, first and last of each stretch, in order."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of these."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Word:
    """This text."""

    text: str


@dataclass(frozen=True, slots=True)
class Chain:
    """One after another."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of these; of none: nothing can be written."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeated:
    """At least `least` times, at most `most`; None is without end."""

    part: Node
    least: int = 0
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """What the rule of this name says."""

    name: str


@dataclass(frozen=True, slots=True)
class Until:
    """Any text to the first place of `word`, whose first character stands in it once, and the word; then what `then` says.

    A rule of its own. Without `then` the word must come; with it the text may end without.
    """

    word: str
    then: Named | None = None


Node: TypeAlias = Chars | Word | Chain | Either | Repeated | Named | Until
EMPTY = Word("")


def row(*parts: Node) -> Node:
    """One after another, without those that are empty."""
    kept = tuple(part for part in parts if part != EMPTY)
    return kept[0] if len(kept) == 1 else Chain(kept) if kept else EMPTY


def either(options: Iterable[Node]) -> Node:
    """One of these, each once."""
    kept = tuple(dict.fromkeys(options))
    return kept[0] if len(kept) == 1 else Either(kept)


def union(*many: Ranges) -> Ranges:
    """All characters of all; half characters (surrogates) are none."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(stretch for ranges in many for stretch in ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = out[-1][0], max(high, out[-1][1])
        else:
            out.append((low, high))
    return tuple(out)


def without(ranges: Ranges, gone: Ranges) -> Ranges:
    """Those of `ranges` that are not in `gone`."""
    out: list[tuple[int, int]] = []
    for low, high in ranges:
        for a, b in union(gone):
            if b < low or a > high:
                continue
            if a > low:
                out.append((low, a - 1))
            low = b + 1
        if low <= high:
            out.append((low, high))
    return union(tuple(out))


_UTF8 = (0, 0x80, 0x800, 0x1000, 0xD000, 0xE000, 0x10000, 0x40000, 0x100000, LAST + 1)
"""Where the first byte, or what may follow it, changes."""
EVERY: Ranges = ((0, 0xD7FF), (0xE000, LAST))


def refused(message: str) -> InvalidField:
    """A form that can't be kept to; whoever knows the caller's field names it."""
    return InvalidField(message, None, "unsupported_parameter")


@dataclass(frozen=True, slots=True)
class Form:
    """Rules by name, of which `root` is the whole answer."""

    rules: Mapping[str, Node]

    def checked(self) -> Form:
        """Itself. Raises InvalidField: a rule that isn't there, one that never ends, or more than an engine should take."""
        for name, node in self.rules.items():
            for part in _parts(node):
                if isinstance(part, Named) and part.name not in self.rules:
                    raise refused(f"rule '{name}' names '{part.name}', which is no rule")
                if isinstance(part, Repeated) and max(part.least, part.most or 0) > MOST_REPEATED:
                    raise refused(f"a repetition of {max(part.least, part.most or 0)} is too long; at most {MOST_REPEATED}")
        ending: set[str] = set()
        while new := {name for name, node in self.rules.items() if name not in ending and _ends(node, ending)}:
            ending |= new
        if ROOT not in ending:
            raise refused("nothing can be written in this form: a rule or a '$ref' goes on for ever, or no value is allowed")
        for name, node in self.rules.items():
            if (times := _nested(node)) > MOST_NESTED:
                raise refused(f"repetitions within repetitions in '{name}' come to {times:,}; at most {MOST_NESTED:,}")
        size = sum(map(_size, self.rules.values()))
        if size > LARGEST:
            raise refused(f"the form is too large: {size:,} parts with its repetitions written out, at most {LARGEST:,}")
        kept = {name: _pruned(node, ending) for name, node in self.rules.items() if name in ending}
        reached, new_names = {ROOT}, [ROOT]
        while new_names:
            for part in _parts(kept[new_names.pop()]):
                if isinstance(part, Named) and part.name not in reached:
                    reached.add(part.name)
                    new_names.append(part.name)
        return Form({name: node for name, node in kept.items() if name in reached})

    def changed(self, change: Callable[[Node], Node]) -> Form:
        """With each rule changed."""
        return Form({name: change(node) for name, node in self.rules.items()})

    def ebnf(self) -> str:
        """As OpenVINO GenAI reads it. Raises InvalidField where it is too long."""
        lines = [f"{name} ::= {_ebnf(node)}" for name, node in self.rules.items()]
        return _bounded("\n".join(lines) + "\n")

    def lark(self) -> str:
        """As llguidance reads it: the same rules in another's words."""
        rules: dict[str, Node] = {}
        for name, node in self.rules.items():
            rules[name] = _spelled_out(node, f"{name}_text", rules) if isinstance(node, Until) else node
        lines = [f"start: {_lark_name(ROOT)}", *(f"{_lark_name(name)}: {_lark(node)}" for name, node in rules.items())]
        return _bounded("\n".join(lines) + "\n")


def _bounded(text: str) -> str:
    if len(text) > LONGEST_WRITTEN:
        raise refused(f"the form is too long: {len(text):,} characters as a grammar, at most {LONGEST_WRITTEN:,}")
    return text


def _inner(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Chain):
        return node.parts
    if isinstance(node, Until):
        return () if node.then is None else (node.then,)
    if isinstance(node, Either):
        return node.options
    return (node.part,) if isinstance(node, Repeated) else ()


def _parts(node: Node) -> Iterator[Node]:
    yield node
    for part in _inner(node):
        yield from _parts(part)


def _ends(node: Node, ending: set[str]) -> bool:
    """Whether a text of it can be written to its end."""
    if isinstance(node, Named):
        return node.name in ending
    if isinstance(node, Chars):
        return bool(node.ranges)
    if isinstance(node, Either):
        return any(_ends(option, ending) for option in node.options)
    if isinstance(node, Repeated):
        return node.least == 0 or _ends(node.part, ending)
    return all(_ends(part, ending) for part in _inner(node))


def _pruned(node: Node, ending: set[str]) -> Node:
    """Without what leads nowhere: an engine would go there and find no token."""
    if isinstance(node, Either):
        return either(_pruned(option, ending) for option in node.options if _ends(option, ending))
    if isinstance(node, Chain):
        return row(*(_pruned(part, ending) for part in node.parts))
    if isinstance(node, Repeated):
        return Repeated(_pruned(node.part, ending), node.least, node.most) if _ends(node.part, ending) else EMPTY
    return node


def _size(node: Node) -> int:
    """Parts, with repetitions written out; of one character repeated only a tenth, which the engine counts."""
    if isinstance(node, Repeated):
        times = max(node.least, node.most or 0, 1)
        return times // 10 + 1 if isinstance(node.part, Chars) else times * _size(node.part)
    if isinstance(node, Word):
        return 1 + len(node.text) // 8
    return 1 + sum(_size(part) for part in _inner(node))


def _nested(node: Node, is_inner: bool = False) -> int:
    """How often the innermost repetition may come, of two or more within each other; 1 where there are none."""
    deepest = max((_nested(part, is_inner or isinstance(node, Repeated)) for part in _inner(node)), default=1)
    if not isinstance(node, Repeated):
        return deepest
    times = max(node.least, node.most or 0, 1)
    return times * deepest if is_inner or deepest > 1 else 1


def _spelled_out(until: Until, name: str, rules: dict[str, Node]) -> Node:
    """The same in other nodes, with rules called `name` and a number: so many characters of the word have come."""
    word = until.word
    first = (ord(word[0]), ord(word[0]))
    plain = Repeated(Chars(without(EVERY, (first,))))
    for at in range(len(word) - 1, 0, -1):
        c = (ord(word[at]), ord(word[at]))
        other = row(Chars(without(EVERY, tuple(sorted((first, c))))), plain)
        on = (row(Word(word[at]), Named(f"{name}_{at + 1}")),) if at < len(word) - 1 else ()
        rules[f"{name}_{at}"] = either((EMPTY, other, *on))
    before = row(plain, Repeated(row(Word(word[0]), Named(f"{name}_1"))))
    return row(before, Word(word)) if until.then is None else row(before, either((EMPTY, row(Word(word), until.then))))


def _ebnf(node: Node) -> str:
    if isinstance(node, Until):
        word = "".join(_in_text(ord(c)) for c in node.word)
        ends = f'stop_eos=false, stop_str=("{word}")' if node.then is None else "stop_eos=true, stop_str=()"
        tag = "" if node.then is None else f'("{word}", {node.then.name}), '
        return f"TagDispatch({tag}{ends}, loop_after_dispatch=false)"
    if not isinstance(node, Word):
        return _in_words(node, _ebnf, _class, str)
    pieces = [""]
    for before, c in zip(("x", *node.text), node.text, strict=False):
        if _is_misread(ord(before)) and c in string.hexdigits:
            pieces.append("")
        pieces[-1] += _in_text(ord(c))
    words = " ".join(f'"{piece}"' for piece in pieces)
    return words if len(pieces) == 1 else f"({words})"


def _is_misread(code: int) -> bool:
    """Whether it stands as \\xe9 in the library's own words, of which it then reads as many digits as there are: of é and a it
    makes U+0E9A. What may not follow it so stands in a word of its own, and in a set before it.
    """
    return code < 0x20 or 0x7F <= code <= 0xFF


def _lark(node: Node) -> str:
    """Character by character: of longer words there the longest is taken, also where a shorter one would lead on."""
    if isinstance(node, Word):
        return "(" + " ".join(f'"{_in_lark(ord(c))}"' for c in node.text) + ")" if node.text else '""'
    return _in_words(node, _lark, _lark_class, _lark_name)


def _lark_class(ranges: Ranges) -> str:
    return "/[" + "".join(_stretch(low, high, _in_rust) for low, high in ranges) + "]/"


def _in_words(
    node: Chars | Chain | Either | Repeated | Named | Until,
    write: Callable[[Node], str],
    chars: Callable[[Ranges], str],
    name: Callable[[str], str],
) -> str:
    assert not isinstance(node, Until)
    if isinstance(node, Named):
        return name(node.name)
    if isinstance(node, Chars):
        return chars(node.ranges)
    if isinstance(node, Chain):
        return "(" + " ".join(map(write, node.parts)) + ")" if node.parts else '""'
    if isinstance(node, Either):
        return "(" + " | ".join(map(write, node.options)) + ")"
    times = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((node.least, node.most))
    if times is None:
        times = f"{{{node.least},{'' if node.most is None else node.most}}}"
    return f"({write(node.part)}){times}"


def _class(ranges: Ranges) -> str:
    """Between brackets, cut where UTF-8 begins with another kind of byte. Of a stretch across such a place the engine's library
    (xgrammar in OpenVINO GenAI 2026.4.1) writes bytes that are no text, or leads where no token goes on, and the process dies.
    """
    pieces = [(max(low, a), min(high, b - 1)) for low, high in ranges for a, b in pairwise(_UTF8) if low < b and high >= a]
    pieces.sort(key=lambda stretch: chr(stretch[0]) not in string.hexdigits)
    return "[" + "".join(_stretch(low, high, _in_class) for low, high in pieces) + "]"


def _stretch(low: int, high: int, write: Callable[[int], str]) -> str:
    return write(low) if low == high else f"{write(low)}-{write(high)}"


def _in_class(code: int) -> str:
    """A character between brackets. Not as \\x41: the engine reads as many digits as there are."""
    if chr(code).isascii() and chr(code).isalnum():
        return chr(code)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _in_text(code: int) -> str:
    return chr(code) if code >= 0xA0 or (0x20 <= code < 0x7F and chr(code) not in '"\\') else _in_class(code)


def _in_lark(code: int) -> str:
    return chr(code) if code >= 0xA0 or (0x20 <= code < 0x7F and chr(code) not in '"\\') else f"\\u{code:04x}"


def _in_rust(code: int) -> str:
    return f"\\u{{{code:x}}}" if not (chr(code).isascii() and chr(code).isalnum()) else chr(code)


def _lark_name(name: str) -> str:
    """Rules begin with a small letter there, and have letters, digits and lines below."""
    return "r_" + "".join(c if c.isascii() and (c.islower() or c.isdigit()) else f"_{ord(c):x}_" for c in name)
