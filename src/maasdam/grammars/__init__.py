"""Forms that answers are held to: JSON schemas, regular expressions, choices and callers' own grammars.

Knows what is asked for and how it is written for an engine as one grammar; refuses, with its name and place, what no grammar
can keep to. Refuses to know engines and HTTP. What callers wrote is read in a limited process: see `engines.gate`.

    Constraint -> form_of -> Form -> .ebnf() for the engine
                         \\- check(constraint, answer) once it is whole
"""

from __future__ import annotations

import json

from maasdam.core import Constraint
from maasdam.grammars import ebnf, regexes, schemas
from maasdam.grammars.answers import check, is_begun, readied
from maasdam.grammars.nodes import ROOT, Form, Word, either
from maasdam.grammars.shaping import counted, factored

__all__ = ["check", "form_of", "is_begun", "readied"]


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
