"""The form that a constraint asks for, whatever it is written in. Knows which reader reads what."""

from __future__ import annotations

import json

from maasdam.core import Constraint
from maasdam.grammars import ebnf, regexes, schemas
from maasdam.grammars.nodes import ROOT, Form, Word, either
from maasdam.grammars.shaping import counted, factored


def form_of(constraint: Constraint) -> Form:
    """The form that a constraint asks for, checked. Raises InvalidField: what it can't keep to, and where that stands."""
    return counted(_parsed(constraint.kind, constraint.text).checked().changed(factored))


def _parsed(kind: str, text: str) -> Form:
    if kind == "object":
        return schemas.any_object()
    if kind == "schema":
        return schemas.parsed(text)
    if kind == "regex":
        return Form({ROOT: regexes.parsed(text).whole()})
    if kind == "choice":
        return Form({ROOT: either(Word(choice) for choice in json.loads(text))})
    return ebnf.parsed(text)
