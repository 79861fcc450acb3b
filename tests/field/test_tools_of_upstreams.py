"""Tools of a model that another server runs: the same calls as one's own, and none that was not asked for.

The upstream is this very service once, and once a server that lies (`liar`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from tests.engines import tiny_language_model
from tests.field.liar import KEY, Liar
from tests.field.test_tools_over_http import (
    CONTROL,
    FUNCTIONS,
    PARAMETERS,
    TEMPLATES,
    TOOLS,
    accumulated,
    answered,
    chat,
    check_call,
    tool,
    whole,
)
from tests.served import Process, add, open_home, serving
from tests.waiting import wait_until

from maasdam.operations.upstreams import registered

FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": PARAMETERS}}
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def liar() -> Liar:
    return Liar()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, liar: Liar) -> Iterator[Process]:
    home = tmp_path_factory.mktemp("home")
    source = tiny_language_model.huggingface(tmp_path_factory.mktemp("huggingface"), context=2048, control=CONTROL)
    made = tiny_language_model.genai(source, tmp_path_factory.mktemp("genai"))
    workspace = open_home(home)
    for name in ("hermes", "mistral", "thinking", "plain"):
        add(workspace, name, made, TEMPLATES[name])
    key = workspace.keys.create("test", ["infer", "admin"])[1]
    patch = pytest.MonkeyPatch()
    patch.setenv("OUR_OWN_KEY", key)
    patch.setenv("LIARS_KEY", KEY)
    with serving(home, key) as running:
        for name in ("hermes", "mistral", "thinking", "plain"):
            workspace.catalog.deploy(registered(workspace, f"far-{name}", running.url, "OUR_OWN_KEY", name))
        workspace.catalog.deploy(registered(workspace, "liar", liar.url, "LIARS_KEY"))
        with running.client() as client:
            for name in ("far-hermes", "far-mistral", "far-thinking", "far-plain", "liar"):
                wait_until(lambda name=name: client.get(f"/v2/models/{name}/ready").status_code == 200, 10)
        yield running
    workspace.close()
    patch.undo()


@pytest.fixture
def client(served: Process) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


@pytest.fixture(scope="module")
def gpt(served: Process) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)


def made_by(choice: dict[str, Any]) -> tuple[list[tuple[str, str]], Any, Any, str]:
    """Its calls, what it says beside, what it reasoned, and why it ended."""
    message = choice["message"]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or []]
    return calls, message["content"] or None, message.get("reasoning_content"), choice["finish_reason"]


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("hermes", {"tools": TOOLS, "tool_choice": "required"}),
        ("hermes", {"tools": TOOLS, "tool_choice": NAMED, "max_tokens": 400}),
        ("hermes", {"tools": TOOLS, "tool_choice": "none", "max_tokens": 20}),
        ("hermes", {"tools": TOOLS, "tool_choice": "required", "max_tokens": 6}),
        ("hermes", {"tools": [tool("weather", PARAMETERS, strict=True)], "temperature": 2.0}),
        ("hermes", {"tools": TOOLS, "response_format": FORM, "temperature": 2.0, "max_tokens": 200}),
        ("mistral", {"tools": TOOLS, "tool_choice": "required", "temperature": 2.0, "max_tokens": 250}),
        ("mistral", {"tools": TOOLS, "tool_choice": "required", "temperature": 2.0, "parallel_tool_calls": False}),
        ("thinking", {"tools": TOOLS, "tool_choice": "required", "max_tokens": 500}),
        ("plain", {"tools": TOOLS, "tool_choice": "required"}),
    ],
)
def test_an_upstream_calls_as_the_model_itself(
    gpt: openai.OpenAI, client: httpx.Client, model: str, fields: dict[str, Any]
) -> None:
    called = 0
    for seed in range(2):
        near = made_by(whole(client, **fields | {"model": model, "seed": seed}))
        assert made_by(whole(client, **fields | {"model": f"far-{model}", "seed": seed})) == near
        calls, text, reasoning, reason, usage = accumulated(gpt, **fields, model=f"far-{model}", seed=seed)
        told = [(call["name"], call["arguments"]) for _, call in sorted(calls.items())]
        assert (told, text or None, reasoning or None, reason) == near and usage.completion_tokens > 0
        assert list(calls) == list(range(len(told))) and len({call["id"] for call in calls.values()}) == len(told)
        called += len(told)
        for call in told if "required" in fields.values() else ():
            check_call(*call)
    assert called or fields.get("tool_choice") in (None, "none") or fields.get("max_tokens") == 6, "no answer called"


def test_a_conversation_with_calls_goes_on_as_it_is(client: httpx.Client) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ub", "unit": "C"}'}}
    asked: list[Any] = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    asked.append({"role": "tool", "tool_call_id": "call_1", "content": "sunny"})
    fields = {"messages": asked, "tools": TOOLS, "max_tokens": 4, "temperature": 0}
    near, far = (client.post("/v1/chat/completions", json=chat(**fields, model=m)).json() for m in ("hermes", "far-hermes"))
    assert near["choices"] == far["choices"] and near["usage"]["prompt_tokens"] == far["usage"]["prompt_tokens"]


def test_responses_and_models_tell_the_same(client: httpx.Client) -> None:
    for fields in ({"tool_choice": "required"}, {"tool_choice": {"type": "function", "name": "weather"}}):
        asked = fields | {"tools": FUNCTIONS, "seed": 1}
        near, far = (answered(client, **asked, model=model)["output"] for model in ("hermes", "far-hermes"))
        names = ("type", "name", "arguments", "content")
        assert [[item.get(k) for k in names] for item in near] == [[item.get(k) for k in names] for item in far]
    told = {one["id"]: one["capabilities"] for one in client.get("/v1/models").json()["data"]}
    for name in ("hermes", "mistral", "thinking", "plain"):
        assert told[name] == told[f"far-{name}"]
    assert told["liar"]["tools"] is None  # it does not say
    refused = client.post("/v1/chat/completions", json=chat(model="far-plain", tools=TOOLS)).json()["error"]
    assert refused["param"] == "tools" and "shows no tools" in refused["message"]


def lied(client: httpx.Client, fault: str, stream: bool = False, **fields: Any) -> httpx.Response:
    messages = [{"role": "user", "content": fault}]
    return client.post("/v1/chat/completions", json={"model": "liar", "messages": messages, "stream": stream, **fields})


def test_what_is_passed_on(client: httpx.Client, liar: Liar) -> None:
    made = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    turns = [{"role": "user", "content": "call"}, {"role": "assistant", "tool_calls": [made]}]
    turns.append({"role": "tool", "tool_call_id": "call_1", "content": "sunny"})
    reply = client.post("/v1/chat/completions", json={"model": "liar", "messages": turns, "tools": TOOLS}).json()
    (call,) = reply["choices"][0]["message"]["tool_calls"]
    assert (call["id"], call["function"]["name"], reply["choices"][0]["finish_reason"]) == ("call_7", "weather", "tool_calls")
    turns[1] = {"role": "assistant", "content": None, "tool_calls": [made]}
    told = [{"type": "function", "function": {k: v for k, v in one["function"].items() if v is not None}} for one in TOOLS]
    assert liar.asked[-1][2] == {"model": "liar", "max_tokens": 512, "messages": turns, "tools": told}
    for choice, more in {
        "required": {"tool_choice": "required"},
        "weather": {"tool_choice": NAMED, "parallel_tool_calls": False},
    }.items():
        lied(client, "call", tools=TOOLS, tool_choice=NAMED if choice == "weather" else choice)
        assert {k: v for k, v in liar.asked[-1][2].items() if k in ("tool_choice", "parallel_tool_calls")} == more
    lied(client, "call", tools=TOOLS, parallel_tool_calls=False)
    assert liar.asked[-1][2]["parallel_tool_calls"] is False and "tool_choice" not in liar.asked[-1][2]
    lied(client, "plain", tools=TOOLS, tool_choice="none")
    assert not {"tools", "tool_choice"} & liar.asked[-1][2].keys()


MUST = {"tool_choice": "required"}
STRICT = {"tools": [tool("weather", PARAMETERS, strict=True)]}
LIES: dict[str, tuple[str, dict[str, Any]]] = {
    "no_calls": ("no call where one must be", {}),
    "no_calls:stop": ("no call where one must be", MUST),
    "unknown_tool": ("none of the tools", {}),
    "unknown_tool:length": ("none of the tools", {}),
    "not_the_named": ("none of the tools", {"tool_choice": NAMED}),
    "no_json_call": ("no JSON", {}),
    "a_list_call": ("no JSON object", {}),
    "not_a_number": ("no JSON", {}),
    "beyond_numbers": ("no JSON", {}),
    "deep_call": ("no JSON", {}),
    "wrong_arguments": ("don't fit", MUST),
    "wrong_arguments:stop": ("don't fit", STRICT),
    "object_arguments": ("no text", {}),
    "another_kind": ("no function", {}),
    "no_function": ("no function", {}),
    "calls_that_are_none": ("no function", {}),
    "two_calls": ("2 calls where 1", {"parallel_tool_calls": False}),
    "same_ids": ("2 calls where 1", {"tool_choice": NAMED}),
    "many_calls": ("more than 128", {}),
    "call": ("something else than a text", {"tool_choice": "none"}),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", LIES)
def test_calls_that_were_not_asked_for_get_a_sentence_and_cost_nothing(client: httpx.Client, fault: str, stream: bool) -> None:
    says, fields = LIES[fault]
    reply = lied(client, fault, **{"tools": TOOLS} | fields, stream=stream)
    assert reply.status_code == 502 and says in reply.json()["error"]["message"], reply.text
    path = f"/admin/requests/{reply.headers['x-request-id']}"
    wait_until(lambda: client.get(path).json().get("ledger") is not None, 10)
    row = client.get(path).json()["ledger"]
    assert row["status"] == 502 and not row["completion_tokens"] and not row["price"]


def test_one_that_must_call_and_talks_is_refused_before_it_is_heard(client: httpx.Client) -> None:
    for fault, stream in (("says_no_call", False), ("says_no_call_in_pieces", True)):
        reply = lied(client, fault, tools=TOOLS, tool_choice="required", stream=stream)
        assert reply.status_code == 502 and "no call where one must be" in reply.text
    for fault, says in (("odd_index", "no number"), ("breaks_off_calling", "broke off")):
        reply = lied(client, fault, tools=TOOLS, stream=True)
        assert reply.status_code == 502 and says in reply.text


@pytest.mark.parametrize(
    ("fault", "ids", "called"),
    [
        ("turns_round", ["call_7", None], ["weather", "stop_all"]),
        ("no_index", ["a", "b"], ["weather", "stop_all"]),
        ("two_calls", [None, "call_7"], ["weather", "weather"]),
        ("same_ids", ["call_7", None], ["weather", "weather"]),
        ("no_arguments", ["call_7"], ["stop_all"]),
        ("call:stop", ["call_7"], ["weather"]),
    ],
)
def test_calls_are_put_together_and_have_ids(gpt: openai.OpenAI, fault: str, ids: list[str | None], called: list[str]) -> None:
    fields: dict[str, Any] = {"model": "liar", "messages": [{"role": "user", "content": fault}], "tools": TOOLS}
    calls, text, _, reason, _ = accumulated(gpt, **fields, tool_choice="required")
    assert (text, reason, [call["name"] for call in calls.values()]) == ("", "tool_calls", called)
    for call, known in zip(calls.values(), ids, strict=True):
        check_call(call["name"], call["arguments"])
        assert call["id"] == known if known else call["id"].startswith("call_") and len(call["id"]) > 20
    assert len({call["id"] for call in calls.values()}) == len(calls)


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_cut_is_no_call(client: httpx.Client, gpt: openai.OpenAI, stream: bool) -> None:
    fields: dict[str, Any] = {
        "tools": TOOLS,
        "tool_choice": "required",
        "messages": [{"role": "user", "content": "no_json_call:length"}],
    }
    if stream:
        assert accumulated(gpt, **fields, model="liar")[:4] == ({}, "", "", "length")
    else:
        assert made_by(whole(client, **fields, model="liar")) == ([], None, None, "length")


def test_a_call_cut_beside_a_form_is_no_broken_form(client: httpx.Client) -> None:
    asked = {"response_format": {"type": "json_object"}}
    reply = lied(client, "cut_call", **asked, tools=TOOLS)
    assert reply.status_code == 200 and reply.json()["choices"][0]["finish_reason"] == "length", reply.text
    assert lied(client, "cut_call", **asked).status_code == lied(client, "cut_talk", **asked, tools=TOOLS).status_code == 502


@pytest.mark.parametrize(
    "parameters", [{"properties": {"a": {"type": "nonsense"}}}, {"properties": {"a": {"$ref": "http://x/y"}}}]
)
def test_parameters_that_nothing_can_be_checked_by_are_refused(client: httpx.Client, parameters: Any) -> None:
    for stream in (False, True):
        reply = lied(client, "call", tools=[tool("weather", parameters)], tool_choice="required", stream=stream)
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "tools", reply.text
