"""Calls of tools as a form: what stands around them in a model's format, and their arguments by each tool's schema.

Knows formats and schemas; never templates and HTTP. Where no call must be made any text may come first, or alone: what begins
a call is then followed by one that is right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from maasdam.core import Calling, Constraint
from maasdam.errors import InvalidField
from maasdam.grammars import schemas
from maasdam.grammars.call_formats import FORMATS, CallFormat
from maasdam.grammars.call_reader import CallRead, CallReader
from maasdam.grammars.nodes import (
    EVERY,
    ROOT,
    Chain,
    Chars,
    Either,
    Form,
    Named,
    Node,
    Repeated,
    Until,
    Word,
    either,
    refused,
    row,
    without,
)

NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""What a tool without parameters takes."""
SPACES = tuple((code, code) for code in range(0x3001) if chr(code).isspace())
"""Which don't count where an answer begins."""


def schema_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a tool's arguments fit."""
    given = tool["function"].get("parameters")
    return {"type": "object", **given} if given else NOTHING


def calls_wanted(
    form: CallFormat,
    tools: Sequence[Mapping[str, Any]],
    calling: Calling,
    field: str,
    beside: Constraint | None = None,
) -> Constraint | None:
    """The constraint for calls that must be made, or that must be right where they are; None where no tool asks for that.

    `beside`: the form of an answer that makes none. Raises InvalidField where such answers can't be told from calls.
    """
    if beside is not None and not calling.least:
        if form.opens or beside.kind not in ("object", "schema"):
            raise InvalidField(
                f"'{beside.field}' can't be kept to beside 'tools' called in the format {form.name}; send one of them",
                beside.field,
                "unsupported_parameter",
            )
        field = beside.field
    chosen = [tool["function"] for tool in tools if calling.only in (None, tool["function"]["name"])]
    if not calling.least and beside is None and not any(one.get("strict") for one in chosen):
        return None
    listed = [
        {"name": one["name"], "schema": schema_of({"function": one}) if calling.least or one.get("strict") else None}
        for one in chosen
    ]
    most = 1 if form.is_single and calling.least else calling.most
    wanted = {"format": form.name, "least": calling.least, "most": most, "tools": listed}
    if beside is not None and not calling.least:
        wanted["beside"] = [beside.kind, beside.text]
    return Constraint("calls", json.dumps(wanted, ensure_ascii=False), field)


def beside_of(text: str, field: str = "") -> Constraint | None:
    """What an answer without calls is held to."""
    found = json.loads(text).get("beside")
    return None if found is None else Constraint(found[0], found[1], field)


def parsed(text: str, beside: Form | None) -> Form:
    """As a form, or that of an answer without calls. Raises InvalidField, which names the tool."""
    wanted = json.loads(text)
    form = FORMATS[wanted["format"]]
    rules: dict[str, Node] = {}
    options: list[Node] = []
    for i, tool in enumerate(wanted["tools"]):
        try:
            schema = tool["schema"]
            given = schemas.any_object() if schema is None else schemas.parsed(json.dumps(schema, ensure_ascii=False))
            arguments = given.checked()
        except InvalidField as error:
            raise refused(f"tool '{tool['name']}': {error}") from error
        prefix = f"tool_{i}_"
        rules |= {prefix + name: _renamed(node, prefix.__add__) for name, node in arguments.rules.items()}
        options.append(row(Word(tool["name"] + form.written.middle), Named(prefix + ROOT)))
    write = _calls if wanted["least"] or beside is not None else _after_text
    root = write(form, either(options), wanted["most"], rules)
    if beside is not None:
        rules |= {f"said_{name}": _renamed(node, "said_".__add__) for name, node in beside.rules.items()}
        root = either((root, Named(f"said_{ROOT}")))
    return Form(_shared({ROOT: root} | rules))


def forced(text: str) -> str | None:
    """The same where a call must be made; None where it must be already."""
    wanted = json.loads(text)
    return None if wanted["least"] else json.dumps(wanted | {"least": 1, "beside": None}, ensure_ascii=False)


def wrong_with(text: str, answer: str) -> str | None:
    """What is wrong with a whole answer, in words; None: nothing."""
    wanted = json.loads(text)
    tools = {tool["name"]: tool["schema"] for tool in wanted["tools"]}
    reader = CallReader(FORMATS[wanted["format"]], tools)
    before, calls = reader.feed(answer)
    after, more = reader.finish()
    calls += more
    must = wanted["least"] or wanted.get("beside") is not None
    if len(calls) < bool(must) or (must and (before + after).strip()):
        return f"it makes {len(calls)} calls, and says {(before + after)[:80]!r} beside"
    if wanted["most"] is not None and len(calls) > wanted["most"]:
        return f"it makes {len(calls)} calls where {wanted['most']} may be made"
    return next((why for call in calls if (why := wrong_call(call, tools[call.name])) is not None), None)


def checked_by(tools: Sequence[Mapping[str, Any]], calling: Calling) -> dict[str, Any]:
    """By names the tools that may be called, with the schema that their calls are checked by; None: by none."""
    functions = [tool["function"] for tool in tools if calling.only in (None, tool["function"]["name"])]
    return {f["name"]: schema_of({"function": f}) if calling.least or f.get("strict") else None for f in functions}


def wrong_call(call: CallRead, schema: Any) -> str | None:
    """What is wrong with a call's arguments; None: nothing, or nothing was asked for."""
    if schema is None:
        return None
    wrong = next(iter(schemas.validator_of(json.dumps(schema)).iter_errors(call.arguments)), None)
    return wrong and f"the arguments of '{call.name}' don't fit its parameters: {' '.join(wrong.message.split())[:200]}"


def _calls(form: CallFormat, call: Node, most: int | None, rules: dict[str, Node], trigger: str = "") -> Node:
    """Calls, behind what begins the first of them."""
    w = form.written
    rules["call"] = row(Word(w.head), call, Word(w.tail))
    more = Repeated(row(Word(w.between), Named("call")), 0, None if most is None else most - 1)
    begin = (w.begin + w.head).removeprefix(trigger)
    return row(Word(begin), call, Word(w.tail), *(() if most == 1 else (more,)), Word(w.end))


def _after_text(form: CallFormat, call: Node, most: int | None, rules: dict[str, Node]) -> Node:
    """Text, then calls or none; where calls have no word before them an answer is either."""
    trigger = form.triggers[0] if form.triggers else ""
    begins = (form.written.begin + form.written.head).startswith(trigger)
    if trigger:
        rules["calls"] = _calls(form, call, most, rules, trigger if begins else "")
        rules["text"] = Until(trigger, Named("calls"))
    if not form.opens:
        return Named("text")
    taken = tuple((ord(c), ord(c)) for c in form.opens)
    first = Chars(without(EVERY, (*SPACES, *taken, *(((ord(trigger[0]), ord(trigger[0])),) if trigger else ()))))
    rest = Named("text") if trigger else Repeated(Chars(EVERY))
    return either((row(first, rest), _calls(form, call, most, rules)))


def _shared(rules: Mapping[str, Node]) -> dict[str, Node]:
    """The same with rules that say the same once: what strings are takes an engine longest."""
    kept = dict(rules)
    while True:
        names: dict[Node, str] = {}
        others = {name: first for name, node in kept.items() if (first := names.setdefault(node, name)) != name}
        if not others:
            return kept
        kept = {name: _renamed(node, partial(_named_once, others)) for name, node in kept.items() if name not in others}


def _named_once(others: Mapping[str, str], name: str) -> str:
    return others.get(name, name)


def _renamed(node: Node, change: Callable[[str], str]) -> Node:
    if isinstance(node, Named):
        return Named(change(node.name))
    if isinstance(node, Until):
        return node if node.then is None else Until(node.word, Named(change(node.then.name)))
    if isinstance(node, Chain):
        return Chain(tuple(_renamed(part, change) for part in node.parts))
    if isinstance(node, Either):
        return Either(tuple(_renamed(option, change) for option in node.options))
    return Repeated(_renamed(node.part, change), node.least, node.most) if isinstance(node, Repeated) else node
