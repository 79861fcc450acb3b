"""Two schemas as one that asks for both: `allOf`, and what stands beside `anyOf`. Refuses what can't be joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maasdam.grammars.nodes import refused

Schema = Any
"""True, False or a JSON object."""
ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly", "$schema"}
    | {"$defs", "definitions", "discriminator"}
)
"""What says nothing about which values are valid."""
_ALL: dict[str, Callable[[Any, Any], Any]] = {
    "minimum": max,
    "exclusiveMinimum": max,
    "minLength": max,
    "minItems": max,
    "minProperties": max,
    "maximum": min,
    "exclusiveMaximum": min,
    "maxLength": min,
    "maxItems": min,
    "maxProperties": min,
    "required": lambda a, b: [*a, *(name for name in b if name not in a)],
    "enum": lambda a, b: [value for value in a if any(same(value, other) for other in b)],
}
"""Keywords of which both are kept to by one."""


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal: 1 is 1.0, and neither is true."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    return bool(a == b)


def types_of(schema: dict[str, Any]) -> frozenset[str]:
    """The types that it names, `number` with what it contains; all where it names none."""
    named = schema.get("type")
    types = frozenset([named] if isinstance(named, str) else named or ())
    return types | {"integer"} if "number" in types else types


def merged(a: Schema, b: Schema, at: str, resolve: Callable[[dict[str, Any], str], Schema]) -> Schema:
    """A schema that a value fits if it fits both. `resolve` gives what a `$ref` stands for. Raises InvalidField."""
    if a is False or b is False:
        return False
    if a is True or b is True:
        return b if a is True else a
    a, b = resolve(a, at), resolve(b, at)
    if not isinstance(a, dict) or not isinstance(b, dict):
        return merged(a, b, at, resolve)
    for one, other in ((a, b), (b, a)):
        if "prefixItems" in one and "items" in other and not same(one["prefixItems"], other.get("prefixItems")):
            raise refused(f"'prefixItems' at {at} can't be joined with 'items'")
    out = {key: value for key, value in a.items() if key not in ("properties", "additionalProperties")}
    for key, value in b.items():
        if key in ("properties", "additionalProperties"):
            continue
        if key not in out or key in ANNOTATIONS:
            out[key] = value
        elif key == "type":
            both = types_of(a) & types_of(b)
            out[key] = sorted(both - {"integer"} if "number" in both else both)
        elif key in _ALL:
            out[key] = _ALL[key](out[key], value)
        elif key == "items":
            out[key] = merged(out[key], value, f"{at}/items", resolve)
        elif not same(out[key], value):
            raise refused(
                f"'{key}' at {at} can't be joined with the '{key}' that stands beside it in 'allOf', 'anyOf' or 'oneOf'"
            )
    return out | _properties(a, b, at, resolve)


def _properties(
    a: dict[str, Any], b: dict[str, Any], at: str, resolve: Callable[[dict[str, Any], str], Schema]
) -> dict[str, Any]:
    """Each one's properties, where the other doesn't name them, are that one's additional ones."""
    out: dict[str, Any] = {}
    mine, others = a.get("properties") or {}, b.get("properties") or {}
    for one, other in ((a, b), (b, a)):
        if "additionalProperties" in one and "patternProperties" in (*one, *other):
            raise refused(f"'patternProperties' at {at} can't be joined with 'additionalProperties'")
        if "unevaluatedProperties" in one:
            raise refused(f"'unevaluatedProperties' at {at} is not supported beside 'allOf', 'anyOf' or 'oneOf'")
    if mine or others:
        out["properties"] = {
            name: merged(
                mine[name] if name in mine else a.get("additionalProperties", True),
                others[name] if name in others else b.get("additionalProperties", True),
                f"{at}/properties/{name}",
                resolve,
            )
            for name in {**mine, **others}
        }
    if "additionalProperties" in a or "additionalProperties" in b:
        more = (a.get("additionalProperties", True), b.get("additionalProperties", True))
        out["additionalProperties"] = merged(*more, f"{at}/additionalProperties", resolve)
    return out
