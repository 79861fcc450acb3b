"""JSON schemas as forms: every text of the form is JSON on one line that fits the schema; not every such JSON is of the form.

Knows the keywords of JSON Schema. Refuses by name those that a grammar can't keep to, and those nobody knows.

Properties come in the order they are declared in, others only where the schema names `additionalProperties` or no property;
", " and ": " stand between things; strings hold no raw control character; numbers have no exponent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from itertools import combinations
from typing import Any
from urllib.parse import unquote

from maasdam.grammars import numbers, regexes
from maasdam.grammars.formats import FORMATS
from maasdam.grammars.merging import ANNOTATIONS, Schema, merged, same, types_of
from maasdam.grammars.nodes import (
    EMPTY,
    EVERY,
    MOST_REPEATED,
    ROOT,
    Chain,
    Chars,
    Either,
    Form,
    Named,
    Node,
    Ranges,
    Repeated,
    Word,
    either,
    refused,
    row,
    without,
)

LONGEST = 128 * 1024
"""Characters of a schema."""
DEEPEST = 64
"""Schemas within schemas."""
MOST_RULES = 4_000
KEPT = 256
"""Validators, which are made once."""
FREE_DEPTH = 12
"""Of values that no schema describes."""
MOST_VALUES = 2_000
"""That an `enum` lists, or a `multipleOf` between two bounds has."""
SCHEMAS = ("https://json-schema.org/draft/2020-12/schema", "https://json-schema.org/draft/2019-09/schema",
           "http://json-schema.org/draft-07/schema", "http://json-schema.org/draft-06/schema")  # fmt: skip

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_RAW: Ranges = without(EVERY, ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x9F)))
"""Characters that stand in a string as they are."""
_TYPES: Mapping[str, frozenset[str]] = {
    "object": frozenset(
        {
            "properties",
            "required",
            "additionalProperties",
            "patternProperties",
            "propertyNames",
            "minProperties",
            "maxProperties",
        }
        | {"unevaluatedProperties"}
    ),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems", "uniqueItems", "unevaluatedItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
"""Every type, and the keywords that are about it."""
_GENERAL = frozenset({"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"})
_KNOWN = _GENERAL | ANNOTATIONS | frozenset().union(*_TYPES.values())
_SIFTING = frozenset({"not", "if", "then", "else", "contains", "dependentRequired"})
"""What only a list of values can be held to: those that don't fit are left out."""
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


def parsed(text: str) -> Form:
    """A schema as a form. Raises InvalidField, which names the keyword and its place."""
    if len(text) > LONGEST:
        raise refused(f"a schema of {len(text):,} characters is too long; at most {LONGEST:,}")
    return _Writer(json.loads(text)).form()


def any_object() -> Form:
    """Any JSON object."""
    writer = _Writer(True)
    writer.rules[ROOT] = writer.free_object(FREE_DEPTH)
    return Form(writer.rules)


def valid(schema: Schema, value: Any) -> bool:
    """Whether a value fits, as the JSON-schema library has it. Raises ValueError where the library can't read the schema."""
    return bool(validator(schema).is_valid(value))


def validator(schema: Schema) -> Any:
    """The library's own. Patterns take time that grows with the text alone. Raises ValueError."""
    import jsonschema_rs

    return jsonschema_rs.validator_for(
        schema, validate_formats=False, pattern_options=jsonschema_rs.RegexOptions(), offline=True
    )


@lru_cache(maxsize=KEPT)
def validator_of(text: str) -> Any:
    """The same of a schema as JSON."""
    return validator(json.loads(text))


def spelled(c: str) -> str:
    """A character as it stands in a JSON string."""
    return _ESCAPES.get(c, c)


def literal(value: Any) -> Word:
    """A value as this file writes JSON."""
    return Word(json.dumps(value, ensure_ascii=False, allow_nan=False))


class _Writer:
    """Translates one schema."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.rules: dict[str, Node] = {}
        self._refs: dict[str, str] = {}

    def form(self) -> Form:
        """The whole."""
        if isinstance(self.schema, dict) and self.schema.get("$schema") is not None:
            named = self.schema["$schema"]
            if not isinstance(named, str) or named.rstrip("#") not in SCHEMAS:
                raise refused(f"'$schema' is {named!r:.80}; those read are: {', '.join(SCHEMAS)}")
        self.rules[ROOT] = self.node(self.schema, "#", 0)
        return Form(self.rules)

    def rule(self, node: Node, what: str = "part") -> Named:
        """A rule of its own for what stands in several places."""
        if len(self.rules) >= MOST_RULES:
            raise refused(f"the schema takes more than {MOST_RULES:,} rules")
        name = f"{what}_{len(self.rules)}"
        self.rules[name] = node
        return Named(name)

    def _shared(self, name: str, make: Callable[[], Node]) -> Named:
        if name not in self.rules:
            self.rules[name] = make()
        return Named(name)

    # values that no schema describes

    def letter(self) -> Named:
        """One character of a string that is counted; of one that is not, LETTER itself costs half as much a token."""
        return self._shared("letter", lambda: LETTER)

    def text(self) -> Named:
        """Any string."""
        return self._shared("string", lambda: row(Word('"'), Repeated(LETTER), Word('"')))

    def free(self, depth: int) -> Node:
        """Any value, no deeper than this."""
        number = self._shared("number", lambda: numbers.NUMBER)
        plain: list[Node] = [self.text(), number, *map(literal, (True, False, None))]
        if depth == 0:
            return self._shared("value_0", lambda: either(plain))
        return self._shared(f"value_{depth}", lambda: either([*plain, self.free_object(depth), self._free_array(depth)]))

    def free_object(self, depth: int) -> Node:
        """Any object."""
        pair = row(self.text(), Word(": "), self.free(depth - 1))
        return self._shared(f"object_{depth}", lambda: _listed("{", pair, 0, None, "}"))

    def _free_array(self, depth: int) -> Node:
        return self._shared(f"array_{depth}", lambda: _listed("[", self.free(depth - 1), 0, None, "]"))

    # schemas

    def node(self, schema: Schema, at: str, depth: int) -> Node:
        """What fits it."""
        if depth > DEEPEST:
            raise refused(f"schemas are nested deeper than {DEEPEST} at {at}")
        if schema is True or schema == {}:
            return self.free(FREE_DEPTH)
        if schema is False:
            raise refused(f"the schema at {at} is false, which allows no value")
        if not isinstance(schema, dict):
            raise refused(f"the schema at {at} is {schema!r:.40}; a schema is an object, true or false")
        self._check(schema, at)
        if "$ref" in schema:
            others = [key for key in schema if key not in ANNOTATIONS and key != "$ref"]
            if others:
                raise refused(f"'{others[0]}' at {at} is not supported beside '$ref'")
            return self._referred(schema["$ref"], at, depth)
        if "enum" in schema or "const" in schema:
            return self._listed_values(schema, at)
        for keyword in ("allOf", "anyOf", "oneOf"):
            if keyword in schema:
                return self._combined(keyword, schema, at, depth)
        return either(self._typed(schema, kind, at, depth) for kind in self._types(schema, at))

    def _check(self, schema: dict[str, Any], at: str) -> None:
        is_listed = "enum" in schema or "const" in schema
        for key, value in schema.items():
            if key not in _KNOWN and not key.startswith("x-") and not (is_listed and key in _SIFTING):
                raise refused(f"'{key}' at {at} is not supported: no answer can be held to it; leave it out")
            if key in _COUNTS and (
                not isinstance(value, int | float) or isinstance(value, bool) or value != int(value) or value < 0
            ):
                raise refused(f"'{key}' at {at} is {value!r:.40}; it takes a whole number, 0 at least")
            if key in _COUNTS and value > MOST_REPEATED:
                raise refused(f"'{key}' at {at} is {int(value):,}; at most {MOST_REPEATED:,}")
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
            if key in schema and (not isinstance(schema[key], int | float) or isinstance(schema[key], bool)):
                raise refused(f"'{key}' at {at} is {schema[key]!r:.40}; it takes a number")
        for key in ("properties", "patternProperties", "$defs", "definitions"):
            if not isinstance(schema.get(key, {}), dict):
                raise refused(f"'{key}' at {at} takes an object of schemas")
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise refused(f"'required' at {at} takes a list of names")
        if not is_listed and schema.get("uniqueItems") and schema.get("maxItems", 2) > 1:
            raise refused(f"'uniqueItems' at {at} is not supported: no answer can be held to it; leave it out")
        for key, others in (("unevaluatedProperties", ("allOf", "anyOf", "oneOf", "$ref", "additionalProperties")),
                            ("unevaluatedItems", ("allOf", "anyOf", "oneOf", "$ref", "items"))):  # fmt: skip
            if key in schema and any(other in schema for other in others):
                raise refused(f"'{key}' at {at} is not supported beside {', '.join(o for o in others if o in schema)}")

    def _types(self, schema: dict[str, Any], at: str) -> list[str]:
        named = schema.get("type")
        if named is None:  # those that the keywords are about: other values would fit too
            about = [kind for kind, keys in _TYPES.items() if keys & schema.keys() and kind != "integer"]
            return about or [kind for kind in _TYPES if kind != "integer"]
        types = [named] if isinstance(named, str) else named
        if not isinstance(types, list) or not types or any(kind not in _TYPES for kind in types):
            raise refused(f"'type' at {at} is {named!r:.60}; the types are: {', '.join(_TYPES)}")
        return [kind for kind in types if not (kind == "integer" and "number" in types)]

    def _referred(self, ref: Any, at: str, depth: int) -> Node:
        if not isinstance(ref, str) or not ref.startswith("#") or (ref != "#" and not ref.startswith("#/")):
            raise refused(f"'$ref' at {at} is {ref!r:.80}; only places in this schema are followed, such as '#/$defs/name'")
        name = self._refs.get(ref)
        if name is None:
            name = self._refs[ref] = self.rule(Either(()), "ref").name
            self.rules[name] = self.node(self._found(ref, at), ref, depth + 1)
        return Named(name)

    def _found(self, ref: str, at: str) -> Schema:
        place: Any = self.schema
        for word in ref[1:].split("/")[1:]:
            key = unquote(word).replace("~1", "/").replace("~0", "~")
            if isinstance(place, list) and key.isascii() and key.isdigit() and len(key) < 6 and int(key) < len(place):
                place = place[int(key)]
            elif isinstance(place, dict) and key in place:
                place = place[key]
            else:
                raise refused(f"'$ref' at {at} is {ref!r:.80}, which is no place in this schema")
        return place

    def resolved(self, schema: dict[str, Any], at: str) -> Schema:
        """What a `$ref` stands for, as often as need be."""
        found: Schema = schema
        for _ in range(DEEPEST):
            if not isinstance(found, dict) or "$ref" not in found:
                return found
            self._check(found, at)
            others = [key for key in found if key not in ANNOTATIONS and key != "$ref"]
            if others:
                raise refused(f"'{others[0]}' at {at} is not supported beside '$ref'")
            ref = found["$ref"]
            if not isinstance(ref, str) or (ref != "#" and not ref.startswith("#/")):
                raise refused(f"'$ref' at {at} is {ref!r:.80}; only places in this schema are followed, such as '#/$defs/name'")
            found = self._found(ref, at)
        raise refused(f"'$ref' at {at} refers to itself")

    def _combined(self, keyword: str, schema: dict[str, Any], at: str, depth: int) -> Node:
        options = schema[keyword]
        if not isinstance(options, list) or not options:
            raise refused(f"'{keyword}' at {at} takes a list of schemas")
        rest: Schema = {key: value for key, value in schema.items() if key != keyword and key not in ANNOTATIONS}
        places = [f"{at}/{keyword}/{i}" for i in range(len(options))]
        if keyword == "allOf":
            for option, place in zip(options, places, strict=True):
                self._check_one(option, place)
                rest = merged(rest, option, place, self.resolved)
            return self.node(rest, at, depth + 1)
        if keyword == "oneOf" and len(options) > 1:
            resolved = [self.resolved(o, p) if isinstance(o, dict) else o for o, p in zip(options, places, strict=True)]
            for a, b in combinations(range(len(options)), 2):
                if not self._are_apart(resolved[a], resolved[b], at):
                    raise refused(
                        f"'oneOf' at {at} is not supported: its options {a} and {b} may both fit a value; let them differ in "
                        "type or in a required constant, or use anyOf"
                    )
        nodes = []
        for option, place in zip(options, places, strict=True):
            if option is False:
                continue
            self._check_one(option, place)
            nodes.append(self.node(merged(rest, option, place, self.resolved) if rest else option, place, depth + 1))
        return either(nodes)

    def _check_one(self, option: Schema, at: str) -> None:
        if isinstance(option, dict):
            self._check(option, at)

    def _are_apart(self, a: Schema, b: Schema, at: str) -> bool:
        """Whether surely no value fits both."""
        if a is False or b is False:
            return True
        if not isinstance(a, dict) or not isinstance(b, dict):
            return False
        mine, others = _values(a), _values(b)
        if mine is not None and others is not None:
            return not any(same(x, y) for x in mine for y in others)
        kinds, other_kinds = types_of(a), types_of(b)
        if kinds and other_kinds and not kinds & other_kinds:
            return True
        if mine is not None and other_kinds:
            return all(_type_name(value) not in other_kinds for value in mine)
        if others is not None and kinds:
            return all(_type_name(value) not in kinds for value in others)
        if kinds != {"object"} or other_kinds != {"object"}:
            return False
        mine_properties, other_properties = a.get("properties") or {}, b.get("properties") or {}
        for name in mine_properties.keys() & other_properties.keys() & set(a.get("required", ())) & set(b.get("required", ())):
            x, y = (
                self.resolved(each, at) if isinstance(each, dict) else each
                for each in (mine_properties[name], other_properties[name])
            )
            if isinstance(x, dict) and isinstance(y, dict) and self._are_apart(x, y, at):
                return True
        return False

    def _listed_values(self, schema: dict[str, Any], at: str) -> Node:
        values = _values(schema)
        if values is None or len(values) > MOST_VALUES:
            raise refused(f"'enum' at {at} takes a list of up to {MOST_VALUES:,} values")
        plain = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
        if plain.keys() - {"enum", "const"}:
            around = {key: self.schema[key] for key in ("$schema", "$defs", "definitions") if key in self.schema}
            for key in ("anyOf", "oneOf", "allOf"):
                for i, option in enumerate(plain.get(key, ())):
                    self._check_one(option, f"{at}/{key}/{i}")
            try:
                fits = validator(around | plain)
                values = [value for value in values if fits.is_valid(value)]
            except ValueError as error:
                raise refused(f"the schema at {at} is not valid: {' '.join(str(error).split())[:200]}") from error
        if not values:
            raise refused(
                f"'{'const' if 'const' in schema else 'enum'}' at {at} leaves no value that the rest of its schema allows"
            )
        return either(literal(value) for value in values)

    def _typed(self, schema: dict[str, Any], kind: str, at: str, depth: int) -> Node:
        if kind == "object":
            return _Object(self, schema, at, depth).node()
        if kind == "array":
            return self._array(schema, at, depth)
        if kind == "string":
            inner = self.string(schema, at)
            return self.text() if inner is None else row(Word('"'), inner, Word('"'))
        if kind in ("number", "integer"):
            return _number(schema, kind, at)
        return literal(None) if kind == "null" else either((literal(True), literal(False)))

    def string(self, schema: dict[str, Any], at: str) -> Node | None:
        """What stands between the quotes; None for anything."""
        low, high = int(schema.get("minLength", 0)), schema.get("maxLength")
        if high is not None and high < low:
            raise refused(f"'maxLength' at {at} is less than 'minLength'")
        pattern, form = schema.get("pattern"), schema.get("format")
        if pattern is not None and form is not None:
            raise refused(f"'format' at {at} is not supported beside 'pattern'")
        if form is not None:
            if form not in FORMATS:
                raise refused(f"'format' at {at} is {form!r:.40}; those kept to are: {', '.join(FORMATS)}")
            pattern = FORMATS[form]
        keyword = "format" if form is not None else "pattern"
        if pattern is None:
            if not low and high is None:
                return None
            return (
                Repeated(self.letter(), low, int(high))
                if high is not None
                else row(Repeated(self.letter(), low, low), Repeated(LETTER))
            )
        if not isinstance(pattern, str):
            raise refused(f"'pattern' at {at} takes a string")
        try:
            expression = regexes.parsed(pattern)
        except Exception as error:
            raise refused(f"'pattern' at {at}: {error}") from error
        if low or high is not None:
            expression = _of_length(expression, low, None if high is None else int(high), keyword, at)
        return in_string(expression.found_in(Repeated(Chars(EVERY))))

    def _array(self, schema: dict[str, Any], at: str, depth: int) -> Node:
        first = schema.get("prefixItems", [])
        if not isinstance(first, list) or isinstance(schema.get("items"), list):
            raise refused(
                f"'{'items' if isinstance(first, list) else 'prefixItems'}' at {at}: first items are 'prefixItems': [...]"
            )
        low, high = int(schema.get("minItems", 0)), schema.get("maxItems")
        most = None if high is None else int(high)
        if most is not None and most < low:
            raise refused(f"'maxItems' at {at} is less than 'minItems'")
        more = schema.get("items", schema.get("unevaluatedItems", not first or low > len(first)))
        heads = [
            self.rule(self.node(s, f"{at}/prefixItems/{i}", depth + 1)) for i, s in enumerate(first) if most is None or i < most
        ]
        tail: Node = Either(())
        if more is not False and (most is None or most > len(heads)):
            item = self.rule(self.node(more, f"{at}/items", depth + 1))
            tail = _some(item, max(0, low - len(heads)), None if most is None else most - len(heads), is_first=not heads)
        elif low <= len(heads):
            tail = EMPTY
        for i in range(len(heads) - 1, -1, -1):
            here = row(Word(", ") if i else EMPTY, heads[i], tail)
            tail = self.rule(either((here, EMPTY)) if low <= i else here)
        return row(Word("["), tail, Word("]"))


class _Object:
    """Translates one schema of an object."""

    def __init__(self, writer: _Writer, schema: dict[str, Any], at: str, depth: int) -> None:
        self._writer, self._schema, self._at, self._depth = writer, schema, at, depth
        self._required = list(dict.fromkeys(schema.get("required", ())))
        properties: dict[str, Schema] = schema.get("properties", {})
        self._more: Schema = schema.get("additionalProperties", schema.get("unevaluatedProperties"))
        self._patterns: dict[str, Schema] = schema.get("patternProperties", {})
        self._least = int(schema.get("minProperties", 0))
        self._most = None if schema.get("maxProperties") is None else int(schema["maxProperties"])
        if len(self._patterns) > 1:
            raise refused(f"'patternProperties' at {at} with several patterns is not supported")
        self._declared = {name: s for name, s in properties.items() if s is not False}
        for name in self._required:
            if name not in properties:
                if self._more is False or self._patterns:
                    raise refused(f"'required' at {at} names {name!r:.60}, which is no property here")
                self._declared[name] = True if self._more is None else self._more
            elif name not in self._declared:
                raise refused(f"the property {name!r:.60} at {at} is required, and its schema is false")
        self._check_names()
        self._pairs = [
            (name, row(_key(name), writer.rule(writer.node(s, f"{at}/properties/{name}", depth + 1))))
            for name, s in self._declared.items()
        ]
        self._extra = self._free_pair()
        self._top = max(self._least, self._most or 0, 1)
        self._tails: dict[tuple[int, int], Node | None] = {}

    def node(self) -> Node:
        """The whole object."""
        for i in range(len(self._pairs), -1, -1):  # from the end, not by recursion: there may be many
            for count in range(min(i, self._top) + 1):
                made = self._made(i, count)
                plain = made is None or made == EMPTY or i == 0
                self._tails[i, count] = made if plain else self._writer.rule(made or EMPTY)
        inside = self._tails[0, 0]
        if inside is None:
            why = "minProperties" if self._least > len(self._declared) else "maxProperties"
            raise refused(f"'{why}' at {self._at} is not supported here: it leaves no object")
        return row(Word("{"), inside, Word("}"))

    def _check_names(self) -> None:
        """Names that patterns and `propertyNames` speak of too."""
        names, at = self._schema.get("propertyNames", True), self._at
        if names is not True and not (
            isinstance(names, dict) and names.keys() <= {"type", "pattern", "minLength", "maxLength", "enum"} | ANNOTATIONS
        ):
            raise refused(f"'propertyNames' at {at} is supported with pattern, minLength, maxLength and enum alone")
        if names is not True and self._patterns:
            raise refused(f"'propertyNames' at {at} is not supported beside 'patternProperties'")
        try:
            for name in self._declared:
                if not valid(names, name):
                    raise refused(f"'propertyNames' at {at} does not allow the property {name!r:.60}")
                if any(valid({"type": "string", "pattern": pattern}, name) for pattern in self._patterns):
                    raise refused(f"'patternProperties' at {at} fits the property {name!r:.60} too, which is not supported")
        except ValueError as error:
            raise refused(f"the names at {at} are not valid: {' '.join(str(error).split())[:200]}") from error

    def _free_pair(self) -> Node | None:
        """A pair that is not declared; None where there is none."""
        names = self._schema.get("propertyNames", True)
        writer, at, depth = self._writer, self._at, self._depth + 1
        if self._patterns:
            ((pattern, schema),) = self._patterns.items()
            inner = writer.string({"pattern": pattern}, f"{at}/patternProperties")
            assert inner is not None
            return row(Word('"'), inner, Word('": '), writer.rule(writer.node(schema, f"{at}/patternProperties", depth)))
        more = self._more
        if more is None and self._declared and self._least <= len(self._declared):
            more = False
        if more is False:
            return None
        value = writer.rule(writer.node(True if more is None else more, f"{at}/additionalProperties", depth))
        if names is not True:
            if self._declared:
                raise refused(f"'propertyNames' at {at} is not supported beside properties where there may be more of them")
            return row(writer.rule(writer.node({"type": "string"} | names, f"{at}/propertyNames", depth)), Word(": "), value)
        key = other_than(list(self._declared)) if self._declared else Repeated(LETTER)
        return row(Word('"'), key, Word('": '), value)

    def _made(self, i: int, count: int) -> Node | None:
        """What comes from the i-th pair on, with `count` written (no more are told apart than matter); None: nothing can."""
        if i == len(self._pairs):
            return self._extras(count)
        name, pair = self._pairs[i]
        options = []
        if self._most is None or count < self._most:
            after = self._tails[i + 1, min(count + 1, self._top)]
            if after is not None:
                options.append(row(Word(", ") if count else EMPTY, pair, after))
        if name not in self._required:
            after = self._tails[i + 1, count]
            if after is not None:
                options.append(after)
        return either(options) if options else None

    def _extras(self, count: int) -> Node | None:
        low = max(0, self._least - count)
        high = None if self._most is None else self._most - count
        if self._extra is None:
            return EMPTY if low == 0 else None
        if low > 1:
            raise refused(f"'minProperties' at {self._at} is not supported where names are free: one could come twice")
        return _some(self._extra, low, high, is_first=count == 0)


def _some(item: Node, low: int, high: int | None, is_first: bool) -> Node:
    """So many, with ", " before each but the first."""
    more = row(Word(", "), item)
    if high == 0:
        return EMPTY
    if not is_first:
        return Repeated(more, low, high)
    some = row(item, Repeated(more, max(0, low - 1), None if high is None else high - 1))
    return either((some, EMPTY)) if low == 0 else some


def _listed(begin: str, item: Node, low: int, high: int | None, end: str) -> Node:
    return row(Word(begin), _some(item, low, high, is_first=True), Word(end))


def _values(schema: dict[str, Any]) -> list[Any] | None:
    """The values that `enum` and `const` leave; None where it has neither."""
    if "const" in schema:
        const = schema["const"]
        listed = schema.get("enum", [const])
        return [const] if isinstance(listed, list) and any(same(const, value) for value in listed) else []
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _type_name(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "null" if value is None else "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    return {float: "number", str: "string", list: "array"}.get(type(value), "object")


def _key(name: str) -> Word:
    return Word(f"{json.dumps(name, ensure_ascii=False)}: ")


def other_than(names: Iterable[str]) -> Node:
    """What stands between the quotes of every name but these."""
    rest = [name for name in names]
    firsts = {name[0] for name in rest if name}
    others = chars(without(EVERY, tuple((ord(c), ord(c)) for c in firsts)))
    options: list[Node] = [row(others, Repeated(LETTER))]
    if "" not in rest:
        options.append(EMPTY)
    for c in sorted(firsts):
        behind = other_than([name[1:] for name in rest if name[:1] == c])
        options.append(row(chars(((ord(c), ord(c)),)), behind))
    return either(options)


def chars(ranges: Ranges) -> Node:
    """Characters as they stand in a JSON string; those that can't are left out."""
    raw = without(ranges, without(EVERY, _RAW))
    escaped = [Word(spelled(c)) for c in _ESCAPES if any(low <= ord(c) <= high for low, high in ranges)]
    return either([*([Chars(raw)] if raw else ()), *escaped])


def in_string(node: Node) -> Node:
    """The same texts, as they stand in a JSON string."""
    if isinstance(node, Chars):
        return chars(node.ranges)
    if isinstance(node, Word):
        return row(*(chars(((ord(c), ord(c)),)) for c in node.text))
    if isinstance(node, Chain):
        return row(*(in_string(part) for part in node.parts))
    if isinstance(node, Either):
        return either(in_string(option) for option in node.options)
    return Repeated(in_string(node.part), node.least, node.most) if isinstance(node, Repeated) else node


def _of_length(expression: regexes.Expression, low: int, high: int | None, keyword: str, at: str) -> regexes.Expression:
    """An expression whose texts are that long: one that is always, or one character repeated. Raises InvalidField."""
    options = []
    for node, begins, ends in expression.options:
        least, most = regexes.lengths(node)
        fits = least >= low and (high is None or (most is not None and most <= high))
        if isinstance(node, Repeated) and isinstance(node.part, Chars) and begins and ends:
            top = node.most if high is None else high if node.most is None else min(node.most, high)
            if top is not None and top < max(node.least, low):
                continue
            node = Repeated(node.part, max(node.least, low), top)
        elif not fits or (high is not None and not (begins and ends)):
            which = "maxLength" if high is not None else "minLength"
            raise refused(f"'{which}' at {at} is not supported beside this '{keyword}'; write the length into the pattern")
        options.append((node, begins, ends))
    return regexes.Expression(tuple(options))


def _number(schema: dict[str, Any], kind: str, at: str) -> Node:
    try:
        bounds = {key: Decimal(repr(schema[key])) for key in _TYPES["number"] if key in schema}
    except InvalidOperation as error:
        raise refused(f"a bound at {at} is no number") from error
    low = max((bounds[key] for key in ("minimum", "exclusiveMinimum") if key in bounds), default=None)
    high = min((bounds[key] for key in ("maximum", "exclusiveMaximum") if key in bounds), default=None)
    above, below = (
        low is not None and bounds.get("exclusiveMinimum") == low,
        high is not None and bounds.get("exclusiveMaximum") == high,
    )
    for bound in (low, high):
        if bound is not None and (not bound.is_finite() or abs(bound.adjusted()) > numbers.LONGEST):
            which = "minimum" if bound == low else "maximum"
            raise refused(f"'{which}' at {at} has too many digits; at most {numbers.LONGEST}")
    step = bounds.get("multipleOf")
    least, most = _whole(low, above, 1), _whole(high, below, -1)
    if step is not None:
        return _multiples(step, least, most, at)
    node = numbers.integers(least, most) if kind == "integer" else numbers.between(low, high, above=above, below=below)
    if node == Either(()):
        raise refused(f"'minimum' and 'maximum' at {at} leave no {kind}")
    return node


def _whole(bound: Decimal | None, is_exclusive: bool, side: int) -> int | None:
    """The whole number that is the bound: the least (`side` 1) or the most (-1)."""
    if bound is None:
        return None
    floor = int(bound // 1) if bound >= 0 or bound == int(bound) else int(bound) - 1
    if bound == floor:
        return floor + side if is_exclusive else floor
    return floor + 1 if side == 1 else floor


def _multiples(step: Decimal, low: int | None, high: int | None, at: str) -> Node:
    """Whole multiples; of others a validator's own rounding decides."""
    if step <= 0 or step != int(step):
        raise refused(f"'multipleOf' at {at} is supported for whole numbers alone, 1 at least")
    by = int(step)
    if by == 1:
        return numbers.integers(low, high)
    if low is None or high is None or (high - low) // by > MOST_VALUES:
        raise refused(
            f"'multipleOf' at {at} is supported with minimum and maximum, and up to {MOST_VALUES:,} values between them"
        )
    values = range(-(-low // by) * by, high + 1, by)
    if not values:
        raise refused(f"'multipleOf' at {at}: no multiple of {by} is between minimum and maximum")
    return either(Word(str(value)) for value in values)


LETTER = chars(EVERY)
"""One character of a JSON string."""
