"""Whether a whole answer is what was asked for, by other means than the engine's. Knows validators; never engines.

JSON by a JSON-schema library on what the caller sent, expressions and grammars by llguidance's matcher.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from maasdam.core import Constraint
from maasdam.grammars import call_forms
from maasdam.grammars.forms import form_of
from maasdam.grammars.reasoning import answer_behind
from maasdam.grammars.schemas import validator_of

KEPT = 256
"""Matchers, which are made once."""
MOST_WAYS = 300
"""To read what came so far, at each of its bytes: what has more is not checked, as that takes a time that grows with its cube,
and holds Python's lock. The engine has kept to it by other means."""


def check(constraint: Constraint, text: str) -> str | None:
    """None where it is; else what is wrong with it, in words for the log."""
    if constraint.thinking is not None:
        answer = answer_behind(constraint.thinking, text)
        return "it ends within its reasoning" if answer is None else check(replace(constraint, thinking=None), answer)
    if constraint.kind == "calls":
        beside = call_forms.beside_of(constraint.text)
        is_said = beside is not None and check(beside, text) is None
        return None if is_said else call_forms.wrong_with(constraint.text, text)
    if constraint.kind == "choice":
        return None if text in json.loads(constraint.text) else "it is none of the choices"
    if constraint.kind in ("regex", "grammar"):
        matched = _matched(constraint, text)
        return None if matched is None or matched.is_whole else f"it fits for {matched.bytes} of its {len(text.encode())} bytes"
    try:
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        return f"it is no JSON: {error}"
    if constraint.kind == "object":
        return None if isinstance(value, dict) else "it is no JSON object"
    wrong = next(iter(validator_of(constraint.text).iter_errors(value)), None)
    return None if wrong is None else f"it does not fit the schema: {' '.join(wrong.message.split())[:200]}"


def is_begun(constraint: Constraint, text: str) -> bool:
    """Whether it can be the beginning of such an answer."""
    matched = _matched(constraint, text)
    return matched is None or matched.bytes == len(text.encode())


def may_be_begun(constraint: Constraint, text: str) -> bool:
    """The same of an answer that another's engine wrote: of JSON with its own white space and order of names, no more is known
    than that it begins a value, or an object where one is asked for.
    """
    if constraint.kind not in ("object", "schema"):
        return constraint.kind == "calls" or is_begun(constraint, text)
    schema = json.loads(constraint.text) if constraint.kind == "schema" else {"type": "object"}
    is_object = isinstance(schema, dict) and schema.get("type") == "object"
    matcher, data = _json_matcher(is_object).deep_copy(), list(text.strip().encode())
    return not data or matcher.try_consume_tokens(data) == len(data)


def readied(constraint: Constraint) -> None:
    """Make what will check the answers. Raises ValueError where the library can't."""
    if constraint.kind == "schema":
        validator_of(constraint.text)
    elif constraint.kind == "calls":
        beside = call_forms.beside_of(constraint.text)
        if beside is not None:
            readied(beside)
        for tool in json.loads(constraint.text)["tools"]:
            tool["schema"] is None or validator_of(json.dumps(tool["schema"]))
    elif constraint.kind in ("regex", "grammar"):
        _matcher(constraint)


class _Matched(NamedTuple):
    bytes: int
    """So many fit."""
    is_whole: bool
    """They are all, and a whole answer."""


def _matched(constraint: Constraint, text: str) -> _Matched | None:
    """None where the matcher gives up: see MOST_WAYS."""
    matcher = _matcher(constraint).deep_copy()
    data = list(text.encode())
    count = matcher.try_consume_tokens(data) if data else 0
    return None if matcher.is_error() else _Matched(count, count == len(data) and bool(matcher.is_accepting()))


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


@lru_cache(maxsize=2)
def _json_matcher(is_object: bool) -> Any:
    from llguidance import LLMatcher, LLTokenizer

    schema = json.dumps({"type": "object"} if is_object else {})
    return LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_json_schema(schema), log_level=0)


@lru_cache(maxsize=KEPT)
def _matcher(constraint: Constraint) -> Any:
    """Raises ValueError where llguidance can't read what it is made from."""
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    grammar = LLMatcher.grammar_from_lark(form_of(constraint).lark())
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=LLParserLimits(max_items_in_row=MOST_WAYS))
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    return matcher
