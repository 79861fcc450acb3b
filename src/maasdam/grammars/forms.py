"""The form that a constraint asks for, whatever it is written in. Knows which reader reads what."""

from __future__ import annotations

import json
from dataclasses import replace

from maasdam.core import Constraint
from maasdam.grammars import call_forms, ebnf, reasoning, regexes, schemas
from maasdam.grammars.nodes import ROOT, Form, Word, either
from maasdam.grammars.shaping import counted, factored


def form_of(constraint: Constraint) -> Form:
    """The form that a constraint asks for, checked. Raises InvalidField: what it can't keep to, and where that stands."""
    form = _parsed(constraint.kind, constraint.text)
    if constraint.thinking is not None:
        form = reasoning.behind(constraint.thinking, form)
    return counted(form.checked().changed(factored))


def parts_of(constraint: Constraint) -> list[Constraint]:
    """What is to be tried: first what any text may stand before, by itself; itself last."""
    bare = replace(constraint, thinking=None)
    call = call_forms.forced(constraint.text) if constraint.kind == "calls" else None
    beside = call_forms.beside_of(constraint.text, constraint.field) if constraint.kind == "calls" else None
    first = [*([replace(bare, text=call)] if call is not None else []), *([] if beside is None else [beside])]
    return list(dict.fromkeys([*first, bare, constraint]))


def _parsed(kind: str, text: str) -> Form:
    if kind == "object":
        return schemas.any_object()
    if kind == "schema":
        return schemas.parsed(text)
    if kind == "regex":
        return Form({ROOT: regexes.parsed(text).whole()})
    if kind == "calls":
        beside = call_forms.beside_of(text)
        return call_forms.parsed(text, None if beside is None else _parsed(beside.kind, beside.text))
    if kind == "choice":
        return Form({ROOT: either(Word(choice) for choice in json.loads(text))})
    return ebnf.parsed(text)
