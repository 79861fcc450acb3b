"""Answers held to a form: each option changes what is written, so that it validates; what can't be is refused by name."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from tests.engines import tiny_language_model
from tests.field.hostile_forms import HOSTILE

from maasdam.core import (
    ANONYMOUS,
    Constraint,
    HoldingEngine,
    Request,
    Sampling,
    SequenceEngine,
    TextPayload,
    TextPiece,
)
from maasdam.engines import open_engine
from maasdam.errors import EngineFailure, InvalidField
from maasdam.grammars import check, form_of, is_begun, numbers
from maasdam.grammars.nodes import ROOT, Form
from maasdam.serving.replica import SequenceReplica
from maasdam.tasks.text import TextProcessor

SEEDS = range(4)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "height": {"type": "number", "minimum": 0.5, "maximum": 2.5},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        "next": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "height", "tags"],
    "additionalProperties": False,
}


def schema(value: Any) -> Constraint:
    return Constraint("schema", json.dumps(value), "guided_json")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_language_model.huggingface(tmp_path_factory.mktemp("huggingface"))


@pytest.fixture(scope="module")
def engine(source: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SequenceEngine]:
    opened = open_engine(tiny_language_model.genai(source, tmp_path_factory.mktemp("genai")), threads=1)
    assert isinstance(opened, SequenceEngine)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def replica(engine: SequenceEngine, source: Any) -> Iterator[SequenceReplica]:
    processor = TextProcessor(source.path)
    with ThreadPoolExecutor(1) as pool:
        yield SequenceReplica(engine, processor, pool=pool, queue_size=64, text_stream=processor.stream)


async def written(replica: SequenceReplica, constraint: Constraint | None, **how: Any) -> tuple[str, str | None]:
    sampling = Sampling(constraint=constraint, **({"max_tokens": 110, "temperature": 1.0} | how))
    request = Request("test", "tiny", (TextPayload(prompt="the cat", sampling=sampling),), ANONYMOUS)
    text, reason = "", None
    async for chunk in replica.answer(request):
        assert isinstance(chunk.value, TextPiece)
        text, reason = text + chunk.value.text, chunk.value.finish_reason
    return text, reason


FORMS = [
    Constraint("object", "", "response_format"),
    schema(PERSON),
    schema({"type": "object", "properties": {'naïve "q" \\ 日本': {"type": "boolean"}}, "required": ['naïve "q" \\ 日本']}),
    Constraint("regex", r"[a-f]{3}-\d{2}(?:x|yz)?", "guided_regex"),
    Constraint("choice", json.dumps(["left", "right", 'up "and" away\n']), "guided_choice"),
    Constraint("grammar", 'root ::= "(" root ")" | [0-9]{1,2} # nested\n', "guided_grammar"),
]


@pytest.mark.parametrize("constraint", FORMS, ids=[f.kind for f in FORMS])
async def test_a_form_is_kept_to_beside_requests_without_one(replica: SequenceReplica, constraint: Constraint) -> None:
    free = [await written(replica, None, seed=seed, max_tokens=24) for seed in SEEDS]
    assert all(check(constraint, text) is not None for text, _ in free), "the model writes in this form by itself"
    held = asyncio.gather(*(written(replica, constraint, seed=seed) for seed in SEEDS))
    beside = asyncio.gather(*(written(replica, None, seed=seed, max_tokens=24) for seed in SEEDS))
    answers = await held
    assert await beside == free
    whole = [text for text, reason in answers if reason == "stop"]
    assert whole or constraint.kind == "object", answers
    assert [check(constraint, text) for text in whole] == [None] * len(whole)
    assert "stop" in {(await written(replica, constraint, temperature=0.0))[1]} or constraint.kind in (
        "object",
        "grammar",
        "schema",
    )


async def test_one_cut_by_its_length_says_so_and_is_a_beginning(replica: SequenceReplica) -> None:
    constraint = Constraint("regex", "[a-f]{40}", "guided_regex")
    text, reason = await written(replica, constraint, max_tokens=5)
    assert reason == "length" and text and is_begun(constraint, text) and check(constraint, text) is not None


async def test_a_stop_string_ends_an_expression_where_the_caller_wants(replica: SequenceReplica) -> None:
    constraint = Constraint("regex", "[ab]{8}\\n", "guided_regex")
    text, reason = await written(replica, constraint, stop=("\n",))
    assert reason == "stop" and re.fullmatch("[ab]{8}", text)


async def test_what_the_engine_wrote_wrong_is_an_error(replica: SequenceReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    from maasdam.serving import replica as room

    monkeypatch.setattr(room.grammars, "check", lambda constraint, text: "it is no JSON")
    with pytest.raises(EngineFailure, match="'guided_choice' does not allow: it is no JSON"):
        await written(replica, Constraint("choice", '["x"]', "guided_choice"))


async def test_an_engine_that_holds_no_forms_says_so(source: Any) -> None:
    opened = open_engine(source, threads=1)
    assert isinstance(opened, SequenceEngine)
    processor = TextProcessor(source.path)
    with ThreadPoolExecutor(1) as pool:
        replica = SequenceReplica(opened, processor, pool=pool, queue_size=4, text_stream=processor.stream)
        with pytest.raises(InvalidField, match="'guided_regex'"):
            await written(replica, Constraint("regex", "a", "guided_regex"))
    opened.close()


REFUSED = {
    # what the engine ignores, gets wrong or dies of -> a word of the refusal
    "not": {"type": "integer", "not": {"const": 2}},
    "if": {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}},
    "oneOf": {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 9}]},
    "uniqueItems": {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True},
    "contains": {"type": "array", "contains": {"const": 3}},
    "multipleOf": {"type": "number", "multipleOf": 0.25},
    "propertyNames": {"type": "object", "propertyNames": {"not": {"const": "a"}}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "maximum": {"$defs": {"t": {"type": "integer"}}, "$ref": "#/$defs/t", "maximum": 5},
    "$anchor": {"$defs": {"t": {"$anchor": "x", "type": "boolean"}}, "$ref": "#/$defs/t"},
    "$ref": {"$ref": "https://example.invalid/s.json"},
    "$dynamicRef": {"$dynamicRef": "#x"},
    "maxLength": {"type": "string", "pattern": "b+", "maxLength": 12},
    "lookahead": {"type": "string", "pattern": "^(?=a)[ab]{2}$"},
    "references to groups": {"type": "string", "pattern": "^(a|b)\\1$"},
    "Unicode properties": {"type": "string", "pattern": "^\\p{L}{3}$"},
    "format": {"type": "string", "format": "iri-reference"},
    "false": False,
    "type": {"type": "strng"},
    "minLenght": {"type": "string", "minLenght": 3},
    "nothing can be written": {"$ref": "#"},
    "too large": {"type": "array", "minItems": 30_000, "items": {"enum": ["ab", "b"]}},
    "nested deeper": json.loads('{"type": "array", "items": ' * 70 + "{}" + "}" * 70),
    "no place in this schema": {"$ref": "#/$defs/gone"},
    "$schema": {"$schema": "http://example.invalid/draft", "type": "string"},
    "no value": {"enum": [1, 2], "type": "string"},
    "minimum": {"type": "integer", "minimum": "3"},
    "required": {"type": "object", "properties": {"a": {}}, "required": ["b"], "additionalProperties": False},
    "minProperties": {"type": "object", "minProperties": 3},
    "patternProperties": {"type": "object", "patternProperties": {"^a": {}, "^b": {}}},
    "unevaluatedProperties": {"anyOf": [{"type": "object"}], "unevaluatedProperties": False},
    "leave no integer": {"type": "integer", "minimum": 3, "maximum": 2},
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_no_answer_can_be_held_to_is_refused_by_its_name(word: str) -> None:
    with pytest.raises(InvalidField, match=re.escape(word)):
        form_of(schema(REFUSED[word]))


KEPT: list[Any] = [
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": "string", "pattern": "^[a-f]*$", "maxLength": 4},
    {"type": "string", "pattern": "^\\d{2}[^\\w]\\W$"},
    *({"type": "string", "format": form} for form in ("date-time", "date", "time", "uuid", "ipv4", "ipv6", "duration")),
    {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 5},
    {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 100},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1e-3},
    {"enum": ["a", 1, None, True, {"x": [1]}], "not": {"const": 1}},
    {"const": {"k": 'v"\\\n'}},
    {"type": ["integer", "null"]},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False, "minItems": 1},
    {"type": "array", "prefixItems": [{"type": "boolean"}], "items": {"type": "null"}, "minItems": 2, "maxItems": 3},
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}}, "minProperties": 1, "maxProperties": 1},
    {"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": {"type": "null"}, "maxProperties": 3},
    {"type": "object", "patternProperties": {"^x[0-9]$": {"type": "boolean"}}, "minProperties": 1, "maxProperties": 2},
    {"type": "object", "propertyNames": {"pattern": "^[ab]{2}$"}, "additionalProperties": {"type": "null"}, "maxProperties": 2},
    {"oneOf": [{"type": "boolean"}, {"type": "null"}]},
    {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": kind}, kind: {"type": "boolean"}}, "required": ["kind", kind]}
            for kind in ("cat", "dog")
        ]
    },
    {"allOf": [{"type": "integer", "minimum": 3, "maximum": 30}, {"maximum": 5}]},
    {
        "allOf": [
            {"properties": {"a": {"type": "boolean"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "null"}}},
        ]
    },
    {
        "type": "object",
        "required": ["a"],
        "anyOf": [{"properties": {"a": {"type": "null"}}}, {"properties": {"a": {"const": 1}}}],
    },
    {
        "$defs": {
            "n": {
                "type": "object",
                "properties": {"v": {"type": "boolean"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]}},
                "required": ["v", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/n",
    },
    {"enum": ["a" * n + "日本日本" for n in range(16, 24)]},  # a sample of the trial ends within a character
]


@pytest.mark.parametrize("wanted", KEPT, ids=lambda wanted: json.dumps(wanted)[:60])
async def test_what_is_not_refused_is_kept_to(replica: SequenceReplica, wanted: Any) -> None:
    constraint = schema(wanted)
    answers = await asyncio.gather(*(written(replica, constraint, seed=seed, temperature=2.0) for seed in range(6)))
    whole = [text for text, reason in answers if reason == "stop"]
    assert whole and [check(constraint, text) for text in whole] == [None] * len(whole), answers


MISREAD = [
    # what OpenVINO GenAI makes something else of when it is given it as it stands
    "(x|ab|abc)\\.",  # xcc.
    "(\\d|[1-9]\\d|[1-9]\\d\\d)\\.",  # any number of digits
    "(x|éa)\\d",  # U+0E9A
    "[\\x01-\\x03a-f]{3}\\.",  # other control characters
    "[\\u00a0-\\ud7ff]{3}\\.",  # bytes that are no text, or the end of the process
    "[^x]{4}x",
    "a{60,66}b",  # a repetition of 64 and more is written in portions
    "(?:ba|(?:b|ab|b))[b-d](?:ééa|\\d)",
]


@pytest.mark.parametrize("expression", MISREAD)
async def test_what_the_engine_misreads_is_written_so_that_it_does_not(replica: SequenceReplica, expression: str) -> None:
    constraint = Constraint("regex", expression, "guided_regex")
    answers = await asyncio.gather(*(written(replica, constraint, seed=seed, temperature=2.0) for seed in range(12)))
    whole = [text for text, reason in answers if reason == "stop"]
    assert whole and [check(constraint, text) for text in whole] == [None] * len(whole), answers


def matches(form: Form, text: str) -> bool:
    from llguidance import LLMatcher, LLTokenizer

    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(form.lark()), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return bool(matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting())


def test_numbers_between_bounds_are_those_and_no_others() -> None:
    rnd = random.Random(5)
    for _ in range(40):
        low, high = sorted(Decimal(rnd.randint(-3000, 3000)).scaleb(-rnd.randint(0, 3)) for _ in "ab")
        if low == high:
            continue
        above, below = rnd.random() < 0.4, rnd.random() < 0.4
        form = Form({ROOT: numbers.between(low, high, above=above, below=below)}).checked()
        whole = Form({ROOT: numbers.integers(int(low) - 3, int(high) + 3)}).checked()
        for step in ("0", "1", "-1", "0.5", "0.001", "-0.001", "-10"):
            for bound in (low, high):
                value = bound + Decimal(step)
                fits = (value > low or (value == low and not above)) and (value < high or (value == high and not below))
                assert matches(form, f"{value:f}") == ((fits and f"{value:f}"[:2] != "-0") or (fits and value != 0)), (
                    low,
                    high,
                    value,
                )
                number = int(value) + rnd.randint(-4, 4)
                assert matches(whole, str(number)) == (int(low) - 3 <= number <= int(high) + 3)


async def test_hostile_forms_harm_nobody(replica: SequenceReplica, engine: SequenceEngine) -> None:
    """Each is refused or kept to, in bounded time; what is written beside them loses nothing."""
    assert isinstance(engine, HoldingEngine)
    prompts = [await written(replica, None, seed=seed, max_tokens=100) for seed in range(7)]
    neighbours = [asyncio.create_task(written(replica, None, seed=seed, max_tokens=100)) for seed in range(7)]

    async def one(constraint: Constraint) -> str:
        for _ in range(200):
            try:
                return (await written(replica, constraint, max_tokens=8, seed=1))[1] or ""
            except InvalidField as error:
                assert error.param == constraint.field and constraint.field in str(error)
                return "refused"
            except Exception as error:
                if type(error).__name__ != "Overloaded":
                    raise
                await asyncio.sleep(0.05)
        return "never"

    assert len(HOSTILE) >= 40
    verdicts = [await one(constraint) for constraint in HOSTILE]
    assert set(verdicts) <= {"refused", "stop", "length"}, verdicts
    assert verdicts.count("refused") >= 30, list(zip(HOSTILE, verdicts, strict=True))
    assert [await task for task in neighbours] == prompts
    assert [await one(constraint) for constraint in HOSTILE] == verdicts, "what was known is said again"


def test_a_rule_of_the_callers_keeps_its_name() -> None:
    constraint = Constraint("grammar", 'root ::= portion_0 [x]{100}\nportion_0 ::= "yes"', "guided_grammar")
    assert check(constraint, "yes" + "x" * 100) is None
    assert check(constraint, "x" * 132) is not None


def test_a_right_answer_is_not_wrong_because_it_can_be_read_in_many_ways() -> None:
    for text, answer in (('root ::= [a-z] root | "."', "a" * 2500 + "."), ('root ::= "a" | root root', "a" * 1600)):
        assert check(Constraint("grammar", text, "guided_grammar"), answer) is None
    assert check(Constraint("grammar", 'root ::= [a-z] root | "."', "guided_grammar"), "ab!") is not None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "exclusiveMinimum": 117, "exclusiveMaximum": 65},
        {"type": "number", "minimum": 100000, "maximum": 24},
        {"type": "number", "exclusiveMaximum": 1e14},
        {"type": "string", "minLength": 4, "maxLength": 3},
        {"allOf": [{"type": "array", "prefixItems": [{"type": "string"}]}, {"items": {"type": "integer"}}]},
    ],
)
def test_what_contradicts_itself_is_refused_by_name_and_place(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidField, match=r"#|bound"):
        form_of(Constraint("schema", json.dumps(schema), "guided_json"))


def test_a_form_whose_asker_has_gone_is_not_tried(engine: SequenceEngine) -> None:
    assert isinstance(engine, HoldingEngine)
    before, gone, after = (engine.admit(schema({"const": f"{name} of this test"})) for name in ("before", "gone", "after"))
    assert gone.cancel()
    assert before.result().grammar and after.result().grammar
    again = engine.admit(schema({"const": "gone of this test"}))
    assert not again.done(), "or it was tried while nobody waited"
    assert again.result().grammar
