"""The form that an answer is asked for, from a client's fields. Knows OpenAI's and vLLM's names; never what a form means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from maasdam.api.fields import check_known
from maasdam.core import Constraint, Sampling
from maasdam.errors import InvalidField

FIELDS = ("response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs")
"""One of these may ask for something."""
MOST_CHOICES = 1_000
LONGEST = 128 * 1024
"""Characters of what is asked for."""
LONGEST_NAME = 64
_KINDS = {"json": "schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}
_STRUCTURED = (*_KINDS, "json_object", "disable_fallback", "disable_any_whitespace", "disable_additional_properties")


def constraint_from(fields: Mapping[str, Any], sampling: Sampling) -> Constraint | None:
    """What one of the fields asks for; None: none does. Raises InvalidField, also where `sampling` asks for another end."""
    found = {name: asked for name in FIELDS if (asked := _asked(name, fields.get(name))) is not None}
    if len(found) > 1:
        names = " and ".join(f"'{name}'" for name in found)
        raise InvalidField(f"{names} ask for two forms of one answer; send one of them", list(found)[1])
    return _ended_by_itself(next(iter(found.values()), None), sampling)


def constraint_of(text_format: Any, sampling: Sampling) -> Constraint | None:
    """The same from `text.format` of a response, which has the fields of `json_schema` beside its type."""
    if text_format is None:
        return None
    if isinstance(text_format, dict) and text_format.get("type") == "json_schema":
        inner = {key: value for key, value in text_format.items() if key != "type"}
        return _ended_by_itself(_named_schema(inner, "text.format", "text.format"), sampling)
    return _ended_by_itself(_response_format(text_format, "text.format"), sampling)


def _ended_by_itself(constraint: Constraint | None, sampling: Sampling) -> Constraint | None:
    if constraint is None:
        return None
    for name in ("ignore_eos", "min_tokens", "stop_token_ids"):
        if getattr(sampling, name):
            raise InvalidField(f"'{name}' can't be kept to beside '{constraint.field}', which says where the answer ends", name)
    if constraint.kind in ("object", "schema") and any(not any(c in stop for c in "\n\r\t") for stop in sampling.stop):
        raise InvalidField(
            f"'stop' would cut the JSON that '{constraint.field}' asks for, which ends by itself; leave it out", "stop"
        )
    return constraint


def _asked(name: str, value: Any) -> Constraint | None:
    if value is None:
        return None
    if name == "response_format":
        return _response_format(value, name)
    if name == "structured_outputs":
        return _structured(value)
    return _constraint(_KINDS[name.removeprefix("guided_")], value, name)


def _response_format(value: Any, name: str) -> Constraint | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise InvalidField(f"'{name}' has no type that is known; send text, json_object or json_schema", f"{name}.type")
    check_known(value, ("type", "json_schema") if kind == "json_schema" else ("type",), where=name)
    if kind != "json_schema":
        return None if kind == "text" else Constraint("object", "", name)
    return _named_schema(value.get("json_schema"), name, f"{name}.json_schema")


def _named_schema(named: Any, name: str, where: str) -> Constraint:
    if not isinstance(named, dict):
        raise InvalidField(f"'{where}' must be an object with name and schema", where)
    check_known(named, ("name", "schema", "strict", "description"), where=where)
    title = named.get("name")
    if (
        not isinstance(title, str)
        or not 0 < len(title) <= LONGEST_NAME
        or not title.replace("-", "").replace("_", "").isalnum()
    ):
        raise InvalidField(f"'{where}.name' must be 1 to {LONGEST_NAME} letters, digits, - and _", f"{where}.name")
    for key, types in (("strict", bool), ("description", str)):
        if named.get(key) is not None and not isinstance(named[key], types):
            raise InvalidField(f"'{where}.{key}' must be {'true or false' if types is bool else 'a string'}", f"{where}.{key}")
    if named.get("schema") is None:
        return Constraint("object", "", name)
    return _constraint("schema", named["schema"], f"{where}.schema")


def _structured(value: Any) -> Constraint | None:
    name = "structured_outputs"
    if not isinstance(value, dict):
        raise InvalidField(f"'{name}' must be an object with one of: {', '.join((*_KINDS, 'json_object'))}", name)
    check_known(value, _STRUCTURED, where=name)
    for key in _STRUCTURED[len(_KINDS) :]:
        if value.get(key) is not None and not isinstance(value[key], bool):
            raise InvalidField(f"'{name}.{key}' must be true or false", f"{name}.{key}")
    asked = [key for key in _STRUCTURED[: len(_KINDS) + 1] if value.get(key) not in (None, False)]
    if len(asked) != 1:
        raise InvalidField(
            f"'{name}' asks for {' and '.join(asked) or 'nothing'}; send one of: {', '.join((*_KINDS, 'json_object'))}", name
        )
    (key,) = asked
    where = f"{name}.{key}"
    return Constraint("object", "", where) if key == "json_object" else _constraint(_KINDS[key], value[key], where)


def _constraint(kind: str, value: Any, where: str) -> Constraint:
    if kind == "schema":
        text = _schema_text(value, where)
    elif kind == "choice":
        if not isinstance(value, list) or not 0 < len(value) <= MOST_CHOICES or not all(isinstance(one, str) for one in value):
            raise InvalidField(f"'{where}' must be a list of 1 to {MOST_CHOICES:,} strings", where)
        text = json.dumps(value, ensure_ascii=False)
    elif not isinstance(value, str) or not value:
        raise InvalidField(f"'{where}' must be a string that is not empty", where)
    else:
        text = value
    if len(text) > LONGEST:
        raise InvalidField(f"'{where}' has {len(text):,} characters; at most {LONGEST:,}", where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidField(f"'{where}' is not valid Unicode text; send UTF-8", where) from error
    return Constraint(kind, text, where)  # type: ignore[arg-type]  # of _KINDS


def _schema_text(value: Any, where: str) -> str:
    """A schema as JSON, its keys in the order they came in: answers have it too."""
    try:
        if isinstance(value, str):  # as vLLM takes it
            if len(value) > LONGEST:
                return value
            value = json.loads(value)
        if not isinstance(value, dict | bool):
            raise ValueError
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise InvalidField(f"'{where}' is no JSON schema: send an object", where) from error
