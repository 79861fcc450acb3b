"""Tools, forced and left to the model, and reasoning set apart, through a real service: models of random weights whose chat
templates have the formats, and the words of those as control tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import openai
import pytest
from tests.engines import tiny_language_model
from tests.field.open_responses import check_response, events_of
from tests.served import Process, add, open_home, serving

HERMES = (
    "{{ bos_token }}{% if tools %}{{ '<user>' }}{% for t in tools %}{{ t | tojson }}{% endfor %}"
    '{{ \'call: <tool_call>\\n{"name": …, "arguments": …}\\n</tool_call>\' + eos_token }}{% endif %}'
    "{% for m in messages %}{{ '<user>' + m['role'] + ':' + m['content'] }}{% for c in m.tool_calls or [] %}"
    "{{ '<tool_call>' + (c.function.arguments | tojson) }}{% endfor %}{{ eos_token }}{% endfor %}{{ '<assistant>' }}"
)
TEMPLATES = {
    "hermes": HERMES,
    "mistral": HERMES.replace("<tool_call>\\n{", "[TOOL_CALLS][{").replace("<tool_call>", "[TOOL_CALLS]"),
    "llama": HERMES.replace('<tool_call>\\n{"name": …, "arguments": …}', '<|python_tag|>{"name": …, "parameters": …}').replace(
        "<tool_call>", ""
    ),
    "deepseek": HERMES.replace("<tool_call>", "<\uff5ctool▁calls▁begin\uff5c>"),
    "thinking": HERMES.replace(
        "{{ '<assistant>' }}",
        "{% if reasoning_effort is defined %}{{ 'the cat ' + reasoning_effort }}{% endif %}"
        "{{ '<assistant>' }}{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}"
        "{% else %}{{ '<think>\n' }}{% endif %}",
    ),
    "may-think": HERMES + "{# <think> </think> #}",
    "plain": None,
    "looping": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ tools }}",
}
CONTROL = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<think>", "</think>")
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}


def tool(name: str, parameters: Any = PARAMETERS, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters} | more}


TOOLS = [tool("weather", description="tells it"), tool("stop_all", None)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    home = tmp_path_factory.mktemp("home")
    source = tiny_language_model.huggingface(tmp_path_factory.mktemp("huggingface"), context=2048, control=CONTROL)
    made = tiny_language_model.genai(source, tmp_path_factory.mktemp("genai"))
    workspace = open_home(home)

    for name, template in TEMPLATES.items():
        add(workspace, name, made, template)
    add(workspace, "torch", source, HERMES)
    _, key = workspace.keys.create("test", ["infer", "admin"])
    workspace.close()
    with serving(home, key) as running:
        yield running


@pytest.fixture
def client(served: Process) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


@pytest.fixture(scope="module")
def gpt(served: Process) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)


def chat(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "the cat"}]
    return {"model": "hermes", "messages": messages, "max_tokens": 150, "temperature": 1.0, "seed": 3} | fields


def whole(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    reply = client.post("/v1/chat/completions", json=chat(**fields))
    assert reply.status_code == 200, reply.text
    choice: dict[str, Any] = reply.json()["choices"][0]
    return choice


def accumulated(gpt: openai.OpenAI, **fields: Any) -> tuple[dict[int, dict[str, str]], str, str, str | None, Any]:
    """Calls by index, text, reasoning, why it ended and usage, from a stream's deltas."""
    calls: dict[int, dict[str, str]] = {}
    text = reasoning = ""
    reason = usage = None
    body: dict[str, Any] = chat(**fields)
    extra = {name: body.pop(name) for name in ("chat_template_kwargs",) if name in body}
    stream = gpt.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}, extra_body=extra)
    for event in stream:
        usage = event.usage or usage
        for choice in event.choices:
            text += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or []:
                kept = calls.setdefault(call.index, {"id": "", "name": "", "arguments": ""})
                kept["id"] += call.id or ""
                assert call.function is not None
                kept["name"] += call.function.name or ""
                kept["arguments"] += call.function.arguments or ""
    return calls, text, reasoning, reason, usage


def check_call(name: str, arguments: str) -> None:
    given = json.loads(arguments)
    if name == "weather":
        assert jsonschema_rs.is_valid(PARAMETERS, given), given
    else:
        assert (name, given) == ("stop_all", {})


@pytest.mark.parametrize("model", ["hermes", "mistral", "llama", "deepseek", "plain", "may-think"])
def test_a_call_that_must_be_made_always_validates(gpt: openai.OpenAI, client: httpx.Client, model: str) -> None:
    free = whole(client, model=model, max_tokens=8)
    assert free["message"].get("tool_calls") is None and free["message"]["content"]
    made = 0
    for seed in range(4):
        most = 600 if model == "may-think" else 150
        choice = whole(client, model=model, tools=TOOLS, tool_choice="required", seed=seed, max_tokens=most)
        message = choice["message"]
        assert not message["content"]
        for call in message.get("tool_calls", []):
            made += 1
            assert call["type"] == "function" and call["id"]
            check_call(call["function"]["name"], call["function"]["arguments"])
        assert choice["finish_reason"] == "length" or message["tool_calls"]
    assert made, "every answer was cut"
    named: Any = {"type": "function", "function": {"name": "weather"}}
    for seed in range(20):
        calls, text, _, reason, _ = accumulated(
            gpt, model=model, tools=TOOLS, tool_choice=named, seed=seed, max_tokens=2 * most
        )
        if reason == "tool_calls":
            break
        assert reason == "length"
    assert (len(calls), text, reason) == (1, "", "tool_calls")
    assert calls[0]["name"] == "weather" and (len(calls[0]["id"]) == 9) == (model == "mistral")
    check_call("weather", calls[0]["arguments"])


def test_streams_say_what_whole_answers_do(gpt: openai.OpenAI, client: httpx.Client) -> None:
    for seed in range(3):
        fields = {"tools": TOOLS, "tool_choice": "required", "seed": seed}
        message = whole(client, **fields)["message"]
        calls, _, _, reason, usage = accumulated(gpt, **fields)
        told = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
        assert [(call["name"], call["arguments"]) for _, call in sorted(calls.items())] == told
        assert list(calls) == list(range(len(told))) and len({call["id"] for call in calls.values()}) == len(told)
        assert usage.completion_tokens > 0 and reason in ("tool_calls", "length")


def test_without_parallel_calls_there_is_one(client: httpx.Client) -> None:
    counts = set()
    for seed in range(8):
        fields = {
            "model": "mistral",
            "tools": [tool("stop_all", None)],
            "tool_choice": "required",
            "seed": seed,
            "temperature": 2.0,
            "max_tokens": 250,
        }
        counts.add(len(whole(client, **fields)["message"].get("tool_calls", [])))
        assert len(whole(client, **fields, parallel_tool_calls=False)["message"]["tool_calls"]) == 1
    assert max(counts) > 1, "no answer made several calls"


def test_what_is_cut_is_no_call(client: httpx.Client) -> None:
    choice = whole(client, tools=TOOLS, tool_choice="required", max_tokens=6)
    assert choice["finish_reason"] == "length"
    assert not choice["message"].get("tool_calls") and not choice["message"]["content"]


def test_tools_left_to_the_model_and_none(client: httpx.Client) -> None:
    choice = whole(client, tools=TOOLS, max_tokens=20)
    assert choice["message"]["content"] and not choice["message"].get("tool_calls")
    assert whole(client, tools=TOOLS, tool_choice="none", max_tokens=20) == whole(client, max_tokens=20)
    strict = [tool("weather", PARAMETERS, strict=True)]
    for seed in range(4):
        choice = whole(client, tools=strict, seed=seed, max_tokens=60)
        for call in choice["message"].get("tool_calls") or []:
            check_call(call["function"]["name"], call["function"]["arguments"])
    assert whole(client, model="torch", tools=strict, max_tokens=10)["message"]["content"]


def test_an_answer_beside_tools_has_its_form(client: httpx.Client) -> None:
    said = called = 0
    for seed in range(8):
        fields = {"tools": TOOLS, "guided_json": PARAMETERS, "seed": seed, "temperature": 2.0}
        choice = whole(client, **fields, max_tokens=200)
        calls = choice["message"].get("tool_calls") or []
        for call in calls:
            called += 1
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
        if choice["finish_reason"] == "stop":
            said += 1
            assert not calls and jsonschema_rs.is_valid(PARAMETERS, json.loads(choice["message"]["content"]))
    assert said and called, (said, called)
    forced = whole(client, tools=TOOLS[:1], tool_choice="required", guided_json=PARAMETERS, parallel_tool_calls=False)
    check_call("weather", forced["message"]["tool_calls"][0]["function"]["arguments"])


def test_a_conversation_with_calls_is_shown_to_the_model(client: httpx.Client) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ub", "unit": "C"}'}}
    asked: list[Any] = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    asked.append({"role": "tool", "tool_call_id": "call_1", "content": "sunny"})
    counts = []
    for messages in (asked[:1], asked[:2], asked):
        body = chat(messages=messages, tools=TOOLS, max_tokens=4)
        counts.append(client.post("/v1/chat/completions", json=body).raise_for_status().json()["usage"]["prompt_tokens"])
    assert counts[0] < counts[1] < counts[2]
    for model in ("plain", "mistral", "llama"):
        messages_of = {"model": model, "messages": asked, "max_tokens": 4}
        assert client.post("/v1/chat/completions", json=chat(**messages_of)).status_code == 200


def test_reasoning_is_apart(gpt: openai.OpenAI, client: httpx.Client) -> None:
    ended = 0
    for seed in range(3):
        body = chat(model="thinking", seed=seed, max_tokens=600)
        reply = client.post("/v1/chat/completions", json=body).raise_for_status().json()
        message, details = reply["choices"][0]["message"], reply["usage"]["completion_tokens_details"]
        _, text, reasoning, _, usage = accumulated(gpt, **body)
        assert (text, reasoning) == (message["content"] or "", message.get("reasoning_content", ""))
        assert message.get("reasoning") == message.get("reasoning_content")
        assert "</think>" not in reasoning
        assert 0 < details["reasoning_tokens"] <= reply["usage"]["completion_tokens"]
        assert usage.completion_tokens_details.reasoning_tokens == details["reasoning_tokens"]
        ended += bool(text) and details["reasoning_tokens"] < reply["usage"]["completion_tokens"]
    assert ended, "no answer left its reasoning"
    cut = whole(client, model="thinking", max_tokens=4)["message"]
    assert cut["content"] is None and cut["reasoning_content"]
    assert whole(client, model="thinking", messages=[{"role": "user", "content": "a"}, cut], max_tokens=4)["message"]
    efforts: list[dict[str, Any]] = [{}, {"reasoning_effort": "none"}, {"reasoning_effort": "high"}]
    bodies = [chat(model="thinking", max_tokens=4, **effort) for effort in efforts]
    used = [client.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"] for body in bodies]
    assert used[0] == used[1] < used[2]  # the template shows it
    closed = chat(model="thinking", chat_template_kwargs={"enable_thinking": False}, max_tokens=20)
    message = client.post("/v1/chat/completions", json=closed).json()["choices"][0]["message"]
    assert message["content"] and "reasoning_content" not in message


def test_a_form_begins_behind_the_reasoning(client: httpx.Client) -> None:
    ended = 0
    for seed in range(6):
        choice = whole(client, model="thinking", guided_regex="[ab]{3}", seed=seed, max_tokens=500)
        if choice["finish_reason"] == "stop":
            ended += 1
            assert set(choice["message"]["content"]) <= {"a", "b"} and len(choice["message"]["content"]) == 3
        choice = whole(client, model="thinking", tools=TOOLS, tool_choice="required", seed=seed, max_tokens=500)
        for call in choice["message"].get("tool_calls", []):
            ended += 1
            assert choice["message"]["reasoning_content"]
            check_call(call["function"]["name"], call["function"]["arguments"])
    assert ended, "no answer left its reasoning"


FUNCTIONS = [{"type": "function", **one["function"]} for one in TOOLS]


def answered(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    """A response, which is one, and whose stream says the same."""
    asked = {"model": "hermes", "input": "the cat", "max_output_tokens": 300, "temperature": 1.0, "seed": 3} | fields
    reply = client.post("/v1/responses", json=asked)
    assert reply.status_code == 200, reply.text
    response: dict[str, Any] = reply.json()
    check_response(response)
    with client.stream("POST", "/v1/responses", json=asked | {"stream": True}) as streamed:
        final = events_of(streamed.iter_lines())[-1]["response"]
    same = [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in final["output"]]
    assert same == [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in response["output"]]
    assert final["usage"]["output_tokens_details"] == response["usage"]["output_tokens_details"]
    return response


def test_a_response_calls_and_its_call_is_answered(gpt: openai.OpenAI, client: httpx.Client) -> None:
    """The Open Responses check of tools, whole and streamed, and the turn after it."""
    made = None
    for seed in range(20):
        response = answered(client, tools=FUNCTIONS, tool_choice={"type": "function", "name": "weather"}, seed=seed)
        if response["status"] == "completed":
            (made,) = response["output"]
            break
        assert response["output"][0]["type"] == "message" and not response["output"][0]["content"][0]["text"]
    assert made is not None and (made["type"], made["name"], made["status"]) == ("function_call", "weather", "completed")
    check_call("weather", made["arguments"])
    assert response["tools"][1] == {
        "type": "function",
        "name": "stop_all",
        "description": None,
        "parameters": None,
        "strict": None,
    }
    output = {"type": "function_call_output", "call_id": made["call_id"], "output": "sunny"}
    chained: Any = {"model": "hermes", "tools": FUNCTIONS, "max_output_tokens": 4, "temperature": 0}
    after = gpt.responses.create(**chained, previous_response_id=response["id"], input=[output])
    by_hand = gpt.responses.create(**chained, input=[{"role": "user", "content": "the cat"}, made, output])
    message = {"role": "assistant", "content": None, "tool_calls": [
        {"id": made["call_id"], "type": "function", "function": {"name": "weather", "arguments": made["arguments"]}}
    ]}  # fmt: skip
    turns = [{"role": "user", "content": "the cat"}, message, {"role": "tool", "tool_call_id": "c", "content": "sunny"}]
    same = client.post("/v1/chat/completions", json=chat(messages=turns, tools=TOOLS, max_tokens=4, temperature=0)).json()
    assert after.usage is not None and by_hand.usage is not None
    assert after.usage.input_tokens == by_hand.usage.input_tokens == same["usage"]["prompt_tokens"]
    assert after.output_text == by_hand.output_text == same["choices"][0]["message"]["content"]
    listed = client.get(f"/v1/responses/{after.id}/input_items").json()["data"]
    assert [(item["type"], item["output"]) for item in listed] == [("function_call_output", "sunny")]


def test_a_response_may_call_several_times_or_one_of_those_allowed(client: httpx.Client) -> None:
    fields = {"model": "mistral", "tools": FUNCTIONS, "tool_choice": "required", "temperature": 2.0}
    counts = {len(answered(client, **fields, seed=seed)["output"]) for seed in range(6)}
    assert max(counts) > 1, "no answer made several calls"
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "stop_all"}]}
    for one in answered(client, **fields | {"tool_choice": allowed})["output"]:
        assert one["type"] == "message" or (one["name"], json.loads(one["arguments"])) == ("stop_all", {})
    (one,) = answered(client, **fields, parallel_tool_calls=False)["output"]
    assert one["type"] in ("function_call", "message")


def test_a_response_sets_reasoning_apart(client: httpx.Client) -> None:
    kinds = set()
    for seed in range(4):
        response = answered(client, model="thinking", seed=seed, max_output_tokens=600)
        kinds |= {item["type"] for item in response["output"]}
        thought = response["output"][0]
        assert thought["type"] == "reasoning" and thought["content"][0]["text"]
        assert 0 < response["usage"]["output_tokens_details"]["reasoning_tokens"] <= response["usage"]["output_tokens"]
    assert "reasoning" in kinds
    again = [{"role": "user", "content": "the cat"}, *response["output"], {"role": "user", "content": "and?"}]
    assert client.post("/v1/responses", json={"model": "thinking", "input": again, "max_output_tokens": 4}).status_code == 200
    closed = answered(client, model="thinking", chat_template_kwargs={"enable_thinking": False}, max_output_tokens=20)
    assert [item["type"] for item in closed["output"]] == ["message"]
    asked = {"model": "thinking", "input": "a", "reasoning": {"effort": "none"}}
    refused = client.post("/v1/responses", json=asked).json()["error"]
    assert refused["param"] == "reasoning.effort" and "chat_template_kwargs" in refused["message"]


def test_models_say_what_they_can(client: httpx.Client) -> None:
    told = {one["id"]: one["capabilities"] for one in client.get("/v1/models").json()["data"]}
    assert {name: one["tools"] for name, one in told.items()} == {
        "hermes": "hermes",
        "mistral": "mistral",
        "llama": "llama3_json",
        "deepseek": "deepseek_v31",
        "thinking": "hermes",
        "may-think": "hermes",
        "plain": None,
        "looping": None,
        "torch": "hermes",
    }
    assert {name for name, one in told.items() if one["reasoning"]} == {"thinking", "may-think"}


DEEP: Any = {}
for _ in range(90):
    DEEP = {"type": "object", "properties": {"a": DEEP}}
EXPLODES = {"type": "object", "properties": {"a": {"type": "string", "pattern": "([a-z]{1,1000}){1,1000}"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


def after(call: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": call}]}


BAD: dict[str, tuple[dict[str, Any], str | None, str]] = {
    # the fields -> the param, and a word of the sentence
    "no list": ({"tools": {}}, "tools", "list"),
    "too many": ({"tools": [tool(f"t{i}") for i in range(129)]}, "tools", "128"),
    "another kind": ({"tools": [{"type": "web_search"}]}, "tools[0]", "function"),
    "no name": ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "letters"),
    "a bad name": ({"tools": [tool('a", "x')]}, "tools[0].function.name", "letters"),
    "twice": ({"tools": [tool("a"), tool("a")]}, "tools", "twice"),
    "a field too many": ({"tools": [tool("a", returns={})]}, "tools[0].function.returns", "unknown"),
    "no schema": ({"tools": [tool("a", [1])]}, "tools[0].function.parameters", "schema"),
    "a schema of another type": ({"tools": [tool("a", {"type": "string"})]}, "tools[0].function.parameters", "object"),
    "a deep schema": ({"tools": [tool("a", DEEP)]}, None, "deeper"),
    "a long schema": ({"tools": [tool("a", {"description": "x" * 200_000})]}, "tools", "characters"),
    "a keyword": (
        {"tools": [tool("a", {"properties": {"b": {"type": "array", "uniqueItems": True}}})], "tool_choice": "required"},
        "tools",
        "tool 'a': 'uniqueItems'",
    ),
    "a keyword of a strict tool": ({"tools": [tool("a", {"not": {}}, strict=True)]}, "tools", "'not'"),
    "a pattern that explodes": ({"tools": [tool("a", EXPLODES)], "tool_choice": "required"}, "tools", "1,000,000"),
    "refers to itself": (
        {"tools": [tool("a", {"properties": {"b": {"$ref": "#/properties/b"}}, "required": ["b"]})], "tool_choice": "required"},
        "tools",
        "tool 'a'",
    ),
    "a choice without tools": ({"tool_choice": "required"}, "tool_choice", "no 'tools'"),
    "a choice of none there": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice",
        "none of the tools",
    ),
    "an unknown choice": ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "required"),
    "no end": ({"tools": TOOLS, "tool_choice": "required", "ignore_eos": True}, "ignore_eos", "ends"),
    "a stop": ({"tools": TOOLS, "tool_choice": "required", "stop": "}"}, "stop", "ends"),
    "an expression beside": ({"tools": TOOLS, "guided_regex": "a"}, "guided_regex", "beside 'tools'"),
    "a form beside calls like it": (
        {"model": "llama", "tools": TOOLS, "response_format": {"type": "json_object"}},
        "response_format",
        "beside 'tools'",
    ),
    "parallel is no boolean": ({"tools": TOOLS, "parallel_tool_calls": "no"}, "parallel_tool_calls", "true or false"),
    "functions": ({"functions": [{"name": "a"}]}, "functions", "send tools"),
    "a function call": ({"function_call": {"name": "a"}}, "function_call", "send tool_choice"),
    "a role of before": ({"messages": [{"role": "function", "name": "a", "content": "b"}]}, "messages[0].role", "send tool"),
    "no id": ({"messages": [{"role": "tool", "content": "b"}]}, "messages[0].tool_call_id", "id"),
    "calls of a user": (
        {"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]},
        "messages[0].tool_calls",
        "assistant",
    ),
    "arguments that are none": (
        after([CALL | {"function": {"name": "weather", "arguments": "[1]"}}]),
        "messages[1].tool_calls[0].function.arguments",
        "JSON object",
    ),
    "arguments without end": (
        after([CALL | {"function": {"name": "weather", "arguments": '{"a":' * 5000}}]),
        "messages[1].tool_calls[0].function.arguments",
        "JSON object",
    ),
    "deep arguments": (
        after([CALL | {"function": {"name": "weather", "arguments": '{"a":' * 500 + "1" + "}" * 500}}]),
        "messages[1].tool_calls[0].function.arguments",
        "deeper",
    ),
    "arguments that are no number": (
        after([CALL | {"function": {"name": "weather", "arguments": '{"a": NaN}'}}]),
        "messages[1].tool_calls[0].function.arguments",
        "JSON object",
    ),
    "arguments beyond all numbers": (
        after([CALL | {"function": {"name": "weather", "arguments": '{"a": [-1e999]}'}}]),
        "messages[1].tool_calls[0].function.arguments",
        "JSON object",
    ),
    "an effort that nobody reads": ({"model": "llama", "reasoning_effort": "high"}, "reasoning_effort", "no such variable"),
    "an effort of another name": ({"reasoning_effort": "enormous"}, "reasoning_effort", "send one of"),
    "an effort that is none": ({"reasoning_effort": {"a": []}}, "reasoning_effort", "send one of"),
    "two efforts": (
        {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
        "reasoning_effort",
        "different efforts",
    ),
    "variables that are none": ({"chat_template_kwargs": [1]}, "chat_template_kwargs", "object"),
    "a variable of the service": ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", "caller's"),
    "a token as variable": ({"chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs.bos_token", "caller's"),
    "a variable nobody reads": ({"chat_template_kwargs": {"depth": 1}}, "chat_template_kwargs.depth", "no such variable"),
    "large variables": ({"chat_template_kwargs": {"a": "x" * 20_000}}, "chat_template_kwargs", "characters"),
    "a template without tools": ({"model": "plain", "tools": TOOLS}, "tools", "shows no tools"),
    "an unknown format": ({"model": "looping", "tools": TOOLS}, "tools", "not known here"),
    "a template that loops": ({"model": "looping"}, None, "more steps"),
    "an engine that can't": ({"model": "torch", "tools": TOOLS, "tool_choice": "required"}, "tool_choice", "models that can"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_done_is_refused_by_name(client: httpx.Client, case: str) -> None:
    fields, param, word = BAD[case]
    for stream in (False, True):
        reply = client.post("/v1/chat/completions", json=chat(**fields, stream=stream))
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, param), error
        assert word in error["message"], error


def test_control_tokens_in_tools_stay_text(client: httpx.Client) -> None:
    def count(description: str) -> int:
        body = chat(tools=[tool("weather", description=description)], max_tokens=1)
        used: int = client.post("/v1/chat/completions", json=body).raise_for_status().json()["usage"]["prompt_tokens"]
        return used

    assert count("<eos>") > count("e") + 2
