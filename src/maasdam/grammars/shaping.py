"""The same form in the shapes that its engine keeps to, and keeps to quickly. Knows xgrammar, in OpenVINO GenAI 2026.4.1.

Its automaton joins states that are reached by the same character, also where one of them is an end that others share: of
`"x" | "ab" | "abc"` inside a rule it makes `x`, `ab` and then any number of `c`. Where no two alternatives begin alike it
joins nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from maasdam.grammars.nodes import EMPTY, Chain, Chars, Either, Form, Named, Node, Ranges, Repeated, Word, either, row, union

PORTION = 32
LONG = 2 * PORTION
"""A repetition of so many is counted in portions. The library asks every token at every count: at 60,000 tokens of vocabulary
100 characters took 1.7 s to compile, in portions 0.5; and from 128 on half a second for each token that is written."""


def factored(node: Node) -> Node:
    """The same texts, with no two alternatives that begin with the same part."""
    if isinstance(node, Chain):
        return row(*map(factored, node.parts))
    if isinstance(node, Repeated):
        return Repeated(factored(node.part), node.least, node.most)
    return _branched([_items(factored(option)) for option in _options(node)]) if isinstance(node, Either) else node


def _options(node: Either) -> Iterable[Node]:
    for option in node.options:
        if isinstance(option, Either):
            yield from _options(option)
        else:
            yield option


def _items(node: Node) -> list[Node]:
    """Its parts in order, words by their characters, as they are compared."""
    if isinstance(node, Word):
        return [Word(c) for c in node.text]
    if isinstance(node, Chain):
        return [item for part in node.parts for item in _items(part)]
    if isinstance(node, Chars) and len(node.ranges) == 1 and node.ranges[0][0] == node.ranges[0][1]:
        return [Word(chr(node.ranges[0][0]))]
    if isinstance(node, Repeated) and node.least and isinstance(node.part, Chars | Word):
        return [*_items(node.part), Repeated(node.part, node.least - 1, None if node.most is None else node.most - 1)]
    return [node]


def _branched(options: list[list[Node]]) -> Node:
    groups: dict[Node | None, list[list[Node]]] = {}
    for option in options:
        groups.setdefault(option[0] if option else None, []).append(option)
    made = [EMPTY if head is None else _begun_alike(group) for head, group in groups.items()]
    single = [node for node in made if _one(node)]
    if len(single) < 2:
        return either(made)
    # one set of characters in place of an alternative for each: a token costs half as much
    return either((Chars(union(*map(_one, single))), *(node for node in made if not _one(node))))


def _one(node: Node) -> Ranges:
    """The characters of which it is one; () where it is more."""
    if isinstance(node, Word):
        return ((ord(node.text), ord(node.text)),) if len(node.text) == 1 else ()
    return node.ranges if isinstance(node, Chars) else ()


def _begun_alike(group: list[list[Node]]) -> Node:
    if len(group) == 1:
        return _joined(group[0])
    shortest, same = min(map(len, group)), 1
    while same < shortest and all(option[same] == group[0][same] for option in group):
        same += 1
    rest = _branched([option[same:] for option in group])
    return _joined([*group[0][:same], *((rest.parts) if isinstance(rest, Chain) else (rest,))])


def _joined(items: list[Node]) -> Node:
    """Characters as words again, a character and its repetition as one."""
    out: list[Node] = []
    for item in items:
        if isinstance(item, Repeated) and out and out[-1] == item.part and isinstance(item.part, Chars):
            out[-1] = Repeated(item.part, item.least + 1, None if item.most is None else item.most + 1)
        elif isinstance(item, Word) and out and isinstance(out[-1], Word):
            out[-1] = Word(out[-1].text + item.text)
        elif item != Repeated(Word(""), 0, 0) and not (isinstance(item, Repeated) and item.most == 0):
            out.append(item)
    return row(*out)


def counted(form: Form) -> Form:
    """With long repetitions in portions: the same counts."""
    rules: dict[str, Node] = {}
    names = (name for n in itertools.count() if (name := f"portion_{n}") not in form.rules)  # a caller's may be called so

    def portions(part: Node) -> Node:
        name = next(names)
        rules[name] = Repeated(part, PORTION, PORTION)
        return Named(name)

    def changed(node: Node) -> Node:
        if isinstance(node, Chain):
            return row(*map(changed, node.parts))
        if isinstance(node, Either):
            return either(map(changed, node.options))
        if not isinstance(node, Repeated):
            return node
        if node.most == 0:
            return EMPTY
        part, least, most = changed(node.part), node.least, node.most
        if max(least, most or 0) < LONG:
            return Repeated(part, least, most)
        many, rest = divmod(least, PORTION)
        portion = portions(part)
        if most is None:
            return row(changed(Repeated(portion, many, many)), Repeated(part, rest, None))
        more = max(0, most - least - PORTION + 1) // PORTION
        open_end = min(LONG - 1, most - least - more * PORTION)
        last = (Repeated(part, low, high) for low, high in ((rest, rest), (0, open_end)) if high)
        return row(changed(Repeated(portion, many, many + more)), *last)

    made = {name: changed(node) for name, node in form.rules.items()}
    return Form(made | rules)
