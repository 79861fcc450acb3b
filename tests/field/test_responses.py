"""/v1/responses through a real service of two workers: the Open Responses checks, kept conversations, what is refused."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import openai
import pytest
from tests.engines import tiny_language_model
from tests.field.open_responses import check_response, events_of
from tests.served import Process, add, open_home, serving, start
from tests.waiting import wait_until

from maasdam.accounts.responses import Responses
from maasdam.core import ANONYMOUS, Artifact
from maasdam.errors import Overloaded
from maasdam.operations import responses

RED_HEART = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
ENDS = list(range(100, 320))
"""Tokens that end an answer of `ends`: most do, so that it is soon complete."""


def _changed(source: Artifact, folder: Path, file: str, **fields: Any) -> Artifact:
    """The same model with other words in one of its files."""
    shutil.copytree(source.path, folder)
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))
    return Artifact(source.digest, folder, source.format, source.layout, source.task, source.engine, None, 1)


Made = dict[str, Artifact]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Models: one that is random, one whose answers end soon, one that writes for minutes."""
    source = tiny_language_model.huggingface(tmp_path_factory.mktemp("huggingface"))
    return {
        "plain": source,
        "ends": _changed(source, tmp_path_factory.mktemp("ends") / "x", "generation_config.json", eos_token_id=ENDS),
        "long": _changed(source, tmp_path_factory.mktemp("long") / "x", "config.json", max_position_embeddings=1 << 20),
    }


def _home(home: Path, made: Made) -> tuple[Path, str, str]:
    """A home with these models, and two keys."""
    with open_home(home) as workspace:
        for name, artifact in made.items():
            add(workspace, name, artifact)
        keys = [workspace.keys.create(name, scopes)[1] for name, scopes in (("one", ["infer", "admin"]), ("two", ["infer"]))]
    return home, keys[0], keys[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, made: Made) -> tuple[Path, str, str]:
    return _home(tmp_path_factory.mktemp("home"), made)


@pytest.fixture(scope="module")
def served(home: tuple[Path, str, str]) -> Iterator[Process]:
    with serving(home[0], home[1], "--workers", "2") as running:
        yield running


@pytest.fixture
def client(served: Process) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


@pytest.fixture
def gpt(served: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0) as gpt:
        yield gpt


def asked(client: httpx.Client, **fields: Any) -> Any:
    """A response that is one."""
    body = {"model": "ends", "temperature": 0, "min_tokens": 3} | fields
    response = client.post("/v1/responses", json=body).raise_for_status().json()
    check_response(response)
    return response


def said(response: Any) -> str:
    (item,) = response["output"]
    return str(item["content"][0]["text"])


def user(content: Any) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": content}


OPEN_RESPONSES: dict[str, list[dict[str, Any]]] = {
    "basic": [user("Say hello in exactly 3 words.")],
    "system prompt": [{"type": "message", "role": "system", "content": "Speak as a pirate."}, user("Say hello.")],
    "multi-turn": [
        user("My name is Alice."),
        {"type": "message", "role": "assistant", "content": "Hello Alice!"},
        user("What is my name?"),
    ],
}


@pytest.mark.parametrize("name", OPEN_RESPONSES)
def test_open_responses(client: httpx.Client, name: str) -> None:
    response = asked(client, input=OPEN_RESPONSES[name], max_output_tokens=None)
    assert (response["status"], response["error"], response["incomplete_details"]) == ("completed", None, None)
    assert [item["type"] for item in response["output"]] == ["message"] and said(response)
    assert response["usage"]["output_tokens"] > 0
    messages = [{"role": one["role"], "content": one["content"]} for one in OPEN_RESPONSES[name]]
    chat = {"model": "ends", "messages": messages, "temperature": 0, "min_tokens": 3}
    same = client.post("/v1/chat/completions", json=chat).json()
    assert same["choices"][0]["message"]["content"] == said(response), "a second path to the model"
    assert same["usage"]["prompt_tokens"] == response["usage"]["input_tokens"]


@pytest.mark.parametrize("name", OPEN_RESPONSES)
def test_open_responses_streamed(client: httpx.Client, name: str) -> None:
    body = {"model": "ends", "temperature": 0, "min_tokens": 3, "input": OPEN_RESPONSES[name], "stream": True}
    with client.stream("POST", "/v1/responses", json=body) as reply:
        events = events_of(reply.iter_lines())
    response = events[-1]["response"]
    assert response["status"] == "completed"
    assert said(response) == said(asked(client, input=OPEN_RESPONSES[name]))
    assert client.get(f"/v1/responses/{response['id']}").json() == response, "kept before its end was given out"


def test_open_responses_image_input_is_refused_by_name(client: httpx.Client) -> None:
    parts = [{"type": "input_text", "text": "What do you see?"}, {"type": "input_image", "image_url": RED_HEART}]
    reply = client.post("/v1/responses", json={"model": "ends", "input": [user(parts)]})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "input[0].content[1].type") and "input_image" in error["message"]


def test_the_public_client_reads_it_whole_and_streamed(gpt: openai.OpenAI) -> None:
    fields: Any = {"model": "ends", "input": "the cat", "instructions": "be brief", "extra_body": {"min_tokens": 3}}
    whole = gpt.responses.create(temperature=0, **fields)
    assert whole.status == "completed" and whole.output_text and whole.instructions == "be brief"
    with gpt.responses.stream(temperature=0, **fields) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == whole.output_text
    assert final.usage is not None and whole.usage is not None and final.usage.input_tokens == whole.usage.input_tokens


def test_it_says_what_it_was_asked_and_how_it_was_sampled(client: httpx.Client) -> None:
    fields = {
        "max_output_tokens": 3,
        "top_p": 0.5,
        "presence_penalty": 0.25,
        "metadata": {"team": "a"},
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "max_tool_calls": 3,
        "parallel_tool_calls": False,
        "instructions": "be brief",
    }
    response = asked(client, model="plain", input="the cat", **fields)
    assert {name: response[name] for name in fields} == fields
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["output"][0]["status"] == "incomplete" and response["completed_at"] is None
    assert response["usage"]["output_tokens"] == 3
    assert response["temperature"] == 0
    default = client.post("/v1/responses", json={"model": "plain", "input": "a", "max_output_tokens": 1}).json()
    assert (default["temperature"], default["top_p"]) == (1.0, 1.0)


def test_what_is_asked_for_changes_the_answer(client: httpx.Client) -> None:
    base = {"model": "plain", "input": "the cat", "max_output_tokens": 12}
    plain = said(asked(client, **base))
    assert said(asked(client, **base, instructions="sat on the mat")) != plain
    assert said(asked(client, **base, frequency_penalty=2)) != plain
    warm = [said(asked(client, **base | {"temperature": 1.5, "seed": seed})) for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]


def test_log_probabilities_are_those_of_a_chat(client: httpx.Client) -> None:
    fields = {"model": "plain", "temperature": 0}
    told = asked(
        client, **fields, input="the cat", max_output_tokens=4, include=["message.output_text.logprobs"], top_logprobs=2
    )
    chat = fields | {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 4, "logprobs": True, "top_logprobs": 2}
    same = client.post("/v1/chat/completions", json=chat).json()["choices"][0]["logprobs"]["content"]
    shown = told["output"][0]["content"][0]["logprobs"]
    assert len(shown) == 4 and [one["logprob"] for one in shown] == [one["logprob"] for one in same]
    assert [len(one["top_logprobs"]) for one in shown] == [2] * 4
    body = fields | {"input": "the cat", "max_output_tokens": 4, "top_logprobs": 2, "stream": True}
    with client.stream("POST", "/v1/responses", json=body) as reply:
        events = events_of(reply.iter_lines())
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [one for event in deltas for one in event["logprobs"]] == shown
    assert asked(client, **fields, input="the cat", max_output_tokens=4)["output"][0]["content"][0]["logprobs"] == []


def test_a_conversation_is_continued_by_its_key_alone(
    served: Process, home: tuple[Path, str, str], client: httpx.Client
) -> None:
    first = asked(client, model="plain", input="the cat", max_output_tokens=6, instructions="be brief")
    again = {"model": "plain", "input": "and the dog", "max_output_tokens": 6, "previous_response_id": first["id"]}
    second = asked(client, **again)
    by_hand = [user("the cat"), *first["output"], user("and the dog")]
    same = asked(client, model="plain", input=by_hand, max_output_tokens=6, store=False)
    assert (said(second), second["usage"]["input_tokens"]) == (said(same), same["usage"]["input_tokens"])
    alone = asked(client, model="plain", input="and the dog", max_output_tokens=6)
    assert alone["usage"]["input_tokens"] < second["usage"]["input_tokens"]
    assert second["previous_response_id"] == first["id"] and second["instructions"] is None
    with httpx.Client(base_url=served.url, headers={"Authorization": f"Bearer {home[2]}"}) as other:
        paths = ("", "/input_items", "/cancel")
        for method, path in (("GET", paths[0]), ("DELETE", paths[0]), ("GET", paths[1]), ("POST", paths[2])):
            reply = other.request(method, f"/v1/responses/{first['id']}{path}")
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found"), (method, path)
        assert other.post("/v1/responses", json=again).status_code == 404
    assert client.get(f"/v1/responses/{same['id']}").status_code == 404, "store: false"
    deleted = client.delete(f"/v1/responses/{first['id']}").json()
    assert deleted == {"id": first["id"], "object": "response", "deleted": True}
    assert client.get(f"/v1/responses/{first['id']}").status_code == 404
    assert client.get(f"/v1/responses/{second['id']}").status_code == 200
    lost = client.post("/v1/responses", json=again | {"previous_response_id": second["id"]})
    assert lost.status_code == 404 and "no longer kept" in lost.json()["error"]["message"]


def test_input_items_come_in_pages(client: httpx.Client, gpt: openai.OpenAI) -> None:
    items = [user(f"number {i}") for i in range(5)]
    response = asked(client, input=items)
    path = f"/v1/responses/{response['id']}/input_items"
    page = client.get(path, params={"limit": 2, "order": "asc"}).json()
    assert [one["content"][0]["text"] for one in page["data"]] == ["number 0", "number 1"] and page["has_more"]
    assert (page["first_id"], page["last_id"]) == tuple(one["id"] for one in page["data"])
    page = client.get(path, params={"limit": 3, "order": "asc", "after": page["last_id"]}).json()
    assert [one["content"][0]["text"] for one in page["data"]] == ["number 2", "number 3", "number 4"] and not page["has_more"]
    listed = [item for item in gpt.responses.input_items.list(response["id"], limit=2)]
    assert [item.content[0].text for item in listed] == [f"number {i}" for i in (4, 3, 2, 1, 0)]  # type: ignore[union-attr]  # messages
    for params in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "msg_0"}, {"before": "msg_0"}):
        assert client.get(path, params=params).status_code == 400, params


def test_what_is_asked_in_the_background_is_there_later_and_costs_once(client: httpx.Client, gpt: openai.OpenAI) -> None:
    queued = asked(client, input="the cat", background=True)
    assert (queued["status"], queued["output"], queued["usage"]) == ("queued", [], None)
    wait_until(lambda: gpt.responses.retrieve(queued["id"]).status == "completed", 30)
    done = client.get(f"/v1/responses/{queued['id']}").json()
    check_response(done)
    assert said(done) == said(asked(client, input="the cat"))
    row = client.get(f"/admin/requests/{queued['id'].removeprefix('resp_')}").json()["ledger"]
    assert (row["status"], row["endpoint"], row["completion_tokens"]) == (200, "/v1/responses", done["usage"]["output_tokens"])
    failed = asked(client, model="plain", input="the cat " * 100, background=True)
    wait_until(lambda: gpt.responses.retrieve(failed["id"]).status == "failed", 30)
    error = client.get(f"/v1/responses/{failed['id']}").json()["error"]
    assert error["code"] == "invalid_prompt" and "context" in error["message"]


def test_it_is_cancelled_whichever_worker_is_asked(served: Process, client: httpx.Client) -> None:
    for _ in range(4):
        queued = asked(client, model="long", input="the cat", background=True, ignore_eos=True, max_output_tokens=1 << 18)
        cancelled = httpx.post(f"{served.url}/v1/responses/{queued['id']}/cancel", headers=served.headers).json()
        check_response(cancelled)
        assert cancelled["status"] == "cancelled"
        row = f"/admin/requests/{queued['id'].removeprefix('resp_')}"
        wait_until(lambda row=row: (client.get(row).json().get("ledger") or {}).get("status") == 499, 20)  # type: ignore[misc]  # bound
        assert client.get(f"/v1/responses/{queued['id']}").json()["status"] == "cancelled"
    done = asked(client, input="the cat")
    reply = client.post(f"/v1/responses/{done['id']}/cancel")
    assert reply.status_code == 400 and "background" in reply.json()["error"]["message"]


def test_a_stream_that_is_left_is_not_kept_and_stops(served: Process, client: httpx.Client) -> None:
    body = {"model": "long", "input": "the cat", "stream": True, "ignore_eos": True, "max_output_tokens": 1 << 18}
    with client.stream("POST", "/v1/responses", json=body) as reply:
        lines = reply.iter_lines()
        created = next(json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))
    row = f"/admin/requests/{created['response']['id'].removeprefix('resp_')}"
    wait_until(lambda: (client.get(row).json().get("ledger") or {}).get("status") == 499, 20)
    assert client.get(f"/v1/responses/{created['response']['id']}").status_code == 404


MANY = [user("a")]
BAD: dict[str, tuple[dict[str, Any], str | None, str]] = {
    # fields -> the param, and a word of the sentence
    "no input": ({"input": None}, "input", "1 to 10,000 items"),
    "an empty list": ({"input": []}, "input", "1 to 10,000 items"),
    "a number": ({"input": 3}, "input", "1 to 10,000 items"),
    "an endless list": ({"input": MANY * 10_001}, "input", "1 to 10,000 items"),
    "an item that is none": ({"input": ["a"]}, "input[0]", "object"),
    "an item of another kind": ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type", "web_search_call"),
    "a kind that is a list": ({"input": [{"type": ["message"]}]}, "input[0].type", "which no model here reads"),
    "a reference": ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type", "item_reference"),
    "another role": ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "tool"),
    "a field too many": ({"input": [user("a") | {"weight": 1}]}, "input[0].weight", "unknown field"),
    "no content": ({"input": [{"role": "user"}]}, "input[0].content", "parts"),
    "a part that is none": ({"input": [user(["a"])]}, "input[0].content[0].type", "send:"),
    "a part whose text is a list": (
        {"input": [user([{"type": "input_text", "text": ["a"]}])]},
        "input[0].content[0].text",
        "text",
    ),
    "a file": ({"input": [user([{"type": "input_file", "file_id": "f"}])]}, "input[0].content[0].type", "input_file"),
    "an id with a slash": ({"input": [user("a") | {"id": "../x"}]}, "input[0].id", "letters"),
    "arguments that explode": (
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "[" * 50_000}]},
        "input[0].arguments",
        "JSON object",
    ),
    "somebody's secret thought": (
        {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}, user("a")]},
        "input[0].encrypted_content",
        "not this service's",
    ),
    "half a character": ({"input": "\ud83d"}, None, "JSON"),
    "a hosted tool": ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
    "a tool that is none": ({"tools": [3]}, "tools[0].type", "None"),
    "a conversation": ({"conversation": "conv_1"}, "conversation", "previous_response_id"),
    "a template": ({"prompt": {"id": "p"}}, "prompt", "not supported"),
    "truncation": ({"truncation": "auto"}, "truncation", "disabled"),
    "another tier": ({"service_tier": "priority"}, "service_tier", "default"),
    "effort": ({"reasoning": {"effort": "high"}}, "reasoning.effort", "not supported"),
    "a tool without a name": ({"tools": [{"type": "function"}]}, "tools[0].name", "letters"),
    "a tool that is no schema": (
        {"tools": [{"type": "function", "name": "f", "parameters": 3}]},
        "tools[0].parameters",
        "schema",
    ),
    "a tool with a weight": ({"tools": [{"type": "function", "name": "f", "weight": 3}]}, "tools[0].weight", "unknown field"),
    "a call of nothing": ({"tool_choice": "required"}, "tool_choice", "no 'tools'"),
    "a call of another": (
        {"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "function", "name": "g"}},
        "tool_choice",
        "'g'",
    ),
    "a hosted choice": ({"tool_choice": {"type": "web_search"}}, "tool_choice", "auto"),
    "tools that the model isn't shown": ({"tools": [{"type": "function", "name": "f"}]}, "tools", "chat template"),
    "a call without an id": (
        {"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]},
        "input[0].call_id",
        "1 to 512",
    ),
    "a call of a strange name": (
        {"input": [{"type": "function_call", "call_id": "c", "name": "f g", "arguments": "{}"}]},
        "input[0].name",
        "letters",
    ),
    "an output of no call": (
        {"input": [{"type": "function_call_output", "output": "x"}]},
        "input[0].call_id",
        "id of the call",
    ),
    "variables that are none": ({"chat_template_kwargs": [1]}, "chat_template_kwargs", "object"),
    "secret thoughts": ({"include": ["reasoning.encrypted_content"]}, "include", "encrypted_content"),
    "a field of reasoning": ({"reasoning": {"depth": 3}}, "reasoning.depth", "unknown field"),
    "verbosity": ({"text": {"verbosity": "low"}}, "text.verbosity", "not supported"),
    "an unknown form": ({"text": {"format": {"type": "xml"}}}, "text.format.type", "json_schema"),
    "a form without a name": ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name", "letters"),
    "a form that the model can't": ({"text": {"format": {"type": "json_object"}}}, "text.format", "no deployed model can"),
    "too much metadata": ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "at most 16"),
    "metadata that is no text": ({"metadata": {"a": 1}}, "metadata.a", "text"),
    "long metadata": ({"metadata": {"a": "x" * 513}}, "metadata.a", "512"),
    "a long user": ({"user": "x" * 513}, "user", "512"),
    "no tokens": ({"max_output_tokens": 0}, "max_output_tokens", "from 1"),
    "tokens in words": ({"max_output_tokens": "many"}, "max_output_tokens", "whole number"),
    "heat": ({"temperature": 3}, "temperature", "from 0 to 2"),
    "too many of the likeliest": ({"top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
    "a background that isn't kept": ({"background": True, "store": False}, "background", "store: true"),
    "a background that is streamed": ({"background": True, "stream": True}, "stream", "background"),
    "options of no stream": ({"stream": False, "stream_options": {}}, "stream_options", "stream: true"),
    "obfuscation": (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "not",
    ),
    "a misspelt field": ({"max_tokens": 3}, "max_tokens", "unknown field"),
    "a prompt beyond the context": ({"input": "the cat sat on the mat " * 50}, None, "context"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_honoured_is_refused_by_name(client: httpx.Client, case: str) -> None:
    fields, param, word = BAD[case]
    for more in ({}, {"stream": True}):
        body = json.dumps({"model": "plain", "input": "a"} | more | fields)
        reply = client.post("/v1/responses", content=body, headers={"content-type": "application/json"})
        assert reply.status_code == 400, reply.text[:300]
        error = reply.json()["error"]
        assert error["param"] == param and word in error["message"], error


@pytest.mark.parametrize(
    "response_id", ["resp_1", "x" * 5_000, "%00", "resp_" + "0" * 32, "resp_" + "0" * 31 + "%0a", "..%2f.."]
)
def test_an_id_that_is_none_is_not_found(client: httpx.Client, response_id: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        assert client.request(method, f"/v1/responses/{response_id}{path}").status_code == 404, (method, path)
    body = {"model": "plain", "input": "a", "previous_response_id": response_id}
    assert client.post("/v1/responses", json=body).status_code == 404


def test_a_model_that_is_not_there_is_told_first(client: httpx.Client) -> None:
    reply = client.post("/v1/responses", json={"model": "nope", "input": 3})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


def test_what_a_process_was_writing_when_it_died_has_failed(made: Made, tmp_path: Path) -> None:
    home, key, _ = _home(tmp_path, {name: made[name] for name in ("ends", "long")})
    fields = {"model": "long", "input": "the cat", "background": True, "ignore_eos": True, "max_output_tokens": 1 << 18}
    running = start(home, key)
    with running.client() as client:
        kept = asked(client, input="the cat")
        killed = asked(client, **fields)
        wait_until(lambda: client.get(f"/v1/responses/{killed['id']}").json()["status"] == "in_progress", 20)
    running.process.send_signal(signal.SIGKILL)
    running.process.wait()
    running = start(home, key)
    with running.client() as client:
        assert client.get(f"/v1/responses/{kept['id']}").json() == kept
        assert asked(client, input="and?", previous_response_id=kept["id"])["status"] == "completed"
        wait_until(lambda: client.get(f"/v1/responses/{killed['id']}").json()["status"] == "failed", 40)
        stopped = asked(client, **fields)
    running.stop()
    with open_home(home) as workspace:
        (owner,) = [one.id for one in workspace.keys.list() if one.name == "one"]
        for one in (killed, stopped):
            found = Responses(workspace.database, 1.0, 1 << 20).find(owner, one["id"]).body
            check_response(found)
            assert (found["status"], found["error"]["code"]) == ("failed", "server_error")


async def test_one_key_has_not_all_places_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kept:
        days = 1

        def add(self, owner: str, one: Any) -> None:
            assert owner

    monkeypatch.setattr(responses, "MOST_OF_ONE_KEY", 2)
    monkeypatch.setattr(responses, "MOST_BEHIND", 4)
    kept, ends = responses.KeptResponses(cast(Any, Kept()), tidies=False), asyncio.Event()

    async def work(done: Any) -> None:
        await ends.wait()

    async def write(key: str, number: int) -> None:
        one = cast(Any, SimpleNamespace(id=f"resp_{number}", body={}))
        await kept.write(replace(ANONYMOUS, key_id=key), one, work)

    told = await asyncio.gather(*(write("one", i) for i in range(3)), return_exceptions=True)
    assert [type(error) for error in told].count(Overloaded) == 1 and "this key" in str(next(filter(None, told)))
    await write("two", 10)
    await write("three", 11)
    with pytest.raises(Overloaded, match="4 answers are"):
        await write("four", 12)
    ends.set()
    await asyncio.gather(*(task for task, _ in list(kept._writing.values())))
    await write("one", 20)
    await asyncio.gather(*(task for task, _ in list(kept._writing.values())))
