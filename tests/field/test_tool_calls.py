"""Calls and reasoning told from answers as they come, and formats told from templates: each by its own words."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from maasdam.core import Calling
from maasdam.grammars import FORMATS, CallReader, ReasoningReader, around_of, calls_wanted, check, format_of, is_begun

TOOLS: dict[str, Any] = {
    "get": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "all": {"type": "object"},
}
LISTED = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in TOOLS.items()]
BAR = "\uff5c"
DEEPSEEK = f"<{BAR}tool▁calls▁begin{BAR}><{BAR}tool▁call▁begin{BAR}>"
SEPARATOR, END = f"<{BAR}tool▁sep{BAR}>", f"<{BAR}tool▁call▁end{BAR}>"
AS = ("get", {"city": 'Å"}]b'})
SAID: dict[str, tuple[str, str, str, list[tuple[str, Any]]]] = {
    # what is said -> the format, the text, the calls
    "hermes": ("hermes", '<tool_call>\n{"name": "get", "arguments": {"city": "Å\\"}]b"}}\n</tool_call>', "", [AS]),
    "two": (
        "hermes",
        'Yes.\n<tool_call>{"name":"all","arguments":{}}</tool_call>\n<tool_call>{"arguments":"{}","name":"all"}</tool_call>',
        "Yes.",
        [("all", {}), ("all", {})],
    ),
    "no arguments": ("hermes", '<tool_call>{"name": "all"}</tool_call>', "", [("all", {})]),
    "no such tool": ("hermes", '<tool_call>{"name": "x"}</tool_call>', '<tool_call>{"name": "x"}</tool_call>', []),
    "not whole": ("hermes", 'a <tool_call>{"name": "all", "argu', 'a <tool_call>{"name": "all", "argu', []),
    "no JSON": ("hermes", "<tool_call>all()</tool_call> b", "<tool_call>all()</tool_call> b", []),
    "no number in JSON": (
        "hermes",
        '<tool_call>{"name": "all", "arguments": {"a": 1e999}}',
        '<tool_call>{"name": "all", "arguments": {"a": 1e999}}',
        [],
    ),
    "no number": (
        "hermes",
        '<tool_call>{"name": "all", "arguments": {"a": NaN}}',
        '<tool_call>{"name": "all", "arguments": {"a": NaN}}',
        [],
    ),
    "broken, then right": ("hermes", '<tool_call>{]<tool_call>{"name":"all"}', "<tool_call>{]", [("all", {})]),
    "text behind": ("hermes", '<tool_call>{"name": "all"}</tool_call> and so', "and so", [("all", {})]),
    "qwen3_coder": (
        "qwen3_coder",
        "<tool_call>\n<function=get>\n<parameter=city>\n12\n3\n</parameter>\n<parameter=days>\n4\n</parameter>\n</function>\n"
        "</tool_call>",
        "",
        [("get", {"city": "12\n3", "days": 4})],
    ),
    "qwen3_coder, no number": (
        "qwen3_coder",
        "<tool_call><function=all><parameter=a>1e999</parameter></function></tool_call>",
        "",
        [("all", {"a": "1e999"})],
    ),
    "llama": ("llama3_json", '{"name": "all", "parameters": {"a": [1, {}]}}', "", [("all", {"a": [1, {}]})]),
    "llama, tag": ("llama3_json", '<|python_tag|>{"name": "all", "parameters": {}}', "", [("all", {})]),
    "llama, JSON": ("llama3_json", '{"answer": 1}', '{"answer": 1}', []),
    "llama, text": ("llama3_json", 'It is {"name": "all"}', 'It is {"name": "all"}', []),
    "pythonic": (
        "pythonic",
        '[get(city="[(\\"", days=-3), all(a={\'b\': [True, None, 1.5]}, c=null)]',
        "",
        [("get", {"city": '[("', "days": -3}), ("all", {"a": {"b": [True, None, 1.5]}, "c": None})],
    ),
    "pythonic, code": ("pythonic", "[all(a=open('x').read())]", "[all(a=open('x').read())]", []),
    "pythonic, no JSON": ("pythonic", "[all(a={[1]})]", "[all(a={[1]})]", []),
    "pythonic, a list": ("pythonic", "[1, 2] are two", "[1, 2] are two", []),
    "mistral": ("mistral", '[TOOL_CALLS] [{"name": "all", "arguments": {}}]', "", [("all", {})]),
    "mistral, cut": ("mistral", '[TOOL_CALLS][{"name": "all"}, {"name": "get", "ar', ', {"name": "get", "ar', [("all", {})]),
    "mistral, new": (
        "mistral_args",
        "[TOOL_CALLS]all[ARGS]{}[TOOL_CALLS]get[CALL_ID]a1[ARGS]{}",
        "",
        [("all", {}), ("get", {})],
    ),
    "phi4": ("phi4", '<|tool_call|>[{"name": "all", "arguments": {}}]<|/tool_call|>', "", [("all", {})]),
    "phi4, functools": ("phi4", 'functools[{"name": "all", "arguments": {}}]', "", [("all", {})]),
    "granite": ("granite", '<|tool_call|>[{"name": "all", "arguments": {}}]', "", [("all", {})]),
    "granite 3.1": ("granite", '<tool_call>[{"name": "all", "arguments": {}}]', "", [("all", {})]),
    "deepseek": (
        "deepseek",
        f"Ja{DEEPSEEK}function{SEPARATOR}all\n```json\n{{}}\n```{END}<{BAR}tool▁calls▁end{BAR}>",
        "Ja",
        [("all", {})],
    ),
    "deepseek_v31": ("deepseek_v31", f"{DEEPSEEK}all{SEPARATOR}{{}}{END}<{BAR}tool▁calls▁end{BAR}>", "", [("all", {})]),
    "function_tag": ("function_tag", '<function=all>{"a": 1}</function>', "", [("all", {"a": 1})]),
    "json": ("json", '[{"name": "all", "arguments": {}}]', "", [("all", {})]),
}


@pytest.mark.parametrize("case", SAID)
def test_calls_are_the_same_however_the_text_comes(case: str) -> None:
    name, said, text, calls = SAID[case]
    for seed in range(8):
        chance, at = random.Random(seed), 0
        reader = CallReader(FORMATS[name], TOOLS)
        pieces, made = [], []
        while at < len(said):
            size = len(said) if seed == 0 else 1 if seed == 1 else chance.randint(1, 9)
            new, read = reader.feed(said[at : at + size])
            pieces.append(new)
            made += read
            at += size
        new, read = reader.finish()
        assert ("".join(pieces) + new, [(call.name, call.arguments) for call in made + read]) == (text, calls), seed


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_forced_is_read_and_checked(name: str) -> None:
    form = FORMATS[name]
    written = form.written

    def one(arguments: Any) -> str:
        return written.begin + written.head + "get" + written.middle + json.dumps(arguments) + written.tail + written.end

    must = calls_wanted(form, LISTED, Calling(least=1), "tools")
    strict = [{"type": "function", "function": tool["function"] | {"strict": True}} for tool in LISTED]
    may = calls_wanted(form, strict, Calling(), "tools")
    assert calls_wanted(form, LISTED, Calling(), "tools") is None and must is not None and may is not None
    right, wrong = one({"city": "a", "days": 2}), one({"city": 3})
    assert check(must, right) is None and is_begun(must, right)
    assert check(must, wrong) is not None and not is_begun(must, wrong)
    assert check(must, "no call") is not None and check(may, "no call") is None and is_begun(may, "no call < at")
    assert is_begun(may, right) and not is_begun(may, wrong) and check(may, wrong) is not None
    only = calls_wanted(form, LISTED, Calling(1, 1, "all"), "tools")
    assert only is not None and check(only, right) is not None


SOURCES = {
    "hermes": "return a json object within <tool_call></tool_call> XML tags",
    "qwen3_coder": "<tool_call>\\n<function=example>\\n<parameter=one>",
    "llama3_json": '<|start_header_id|> Respond in the format {"name": function name, "parameters": dictionary}',
    "pythonic": "<|start_header_id|> [func_name1(params_name1=params_value1)]",
    "mistral": "{{ '[TOOL_CALLS] [' }}",
    "mistral_args": "{{ '[TOOL_CALLS]' + name + '[ARGS]' }}",
    "phi4": "{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}",
    "granite": "<|start_of_role|> respond with <|tool_call|> followed by a JSON list",
    "deepseek": f"<{BAR}tool▁calls▁begin{BAR}> ```json",
    "deepseek_v31": f"<{BAR}tool▁calls▁begin{BAR}>",
    "function_tag": "<function=example>{}</function>",
    None: "<tool_call>name\n<arg_key>",
}


@pytest.mark.parametrize("name", SOURCES)
def test_formats_are_told_from_templates(name: str | None) -> None:
    found = format_of(SOURCES[name])
    assert (found and found.name) == name


@pytest.mark.parametrize(
    ("said", "is_open", "reasoning", "answer"),
    [
        ("<think>\nhm <\n</think>\n\nYes", False, "hm <", "Yes"),
        ("\nhm</think>Yes</think>", True, "hm", "Yes</think>"),
        ("hm</thin", True, "hm</thin", ""),
        (" Yes <think>no</think>", False, "", " Yes <think>no</think>"),
        ("<thin", False, "", "<thin"),
        ("<think></think>a", False, "", "a"),
    ],
)
def test_reasoning_is_the_same_however_the_text_comes(said: str, is_open: bool, reasoning: str, answer: str) -> None:
    for size in (1, 2, 3, 7, 100):
        reader = ReasoningReader(("<think>", "</think>", is_open))
        parts = [reader.feed(said[at : at + size]) for at in range(0, len(said), size)] + [reader.finish()]
        assert ("".join(a for a, _ in parts), "".join(b for _, b in parts)) == (reasoning, answer), size


def test_long_answers_are_read_in_a_time_that_grows_with_them() -> None:
    reader = CallReader(FORMATS["hermes"], TOOLS)
    reader.feed('<tool_call>{"name": "all", "arguments": {"a": "')
    for _ in range(20_000):
        assert reader.feed("{x}") == ("", [])
    calls = reader.feed('"}}</tool_call>')[1]
    assert len(calls[0].arguments["a"]) == 60_000
    assert around_of("[THINK] [/THINK]") == ("[THINK]", "[/THINK]") and around_of("x") is None


def test_what_only_begins_like_calls_is_looked_through_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0

    def end(self: Any, text: str) -> None:
        nonlocal looked
        looked += 1

    monkeypatch.setattr("maasdam.grammars.call_reader._Balance.end", end)
    reader = CallReader(FORMATS["hermes"], TOOLS)
    said = "<tool_call>{" * 2_000
    assert (reader.feed(said)[0] + reader.finish()[0], looked < 100) == (said, True)
