"""The fields that ask for a form, through a real service of two workers, whose text engine is in a host of its own."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import psutil
import pydantic
import pytest
from tests.engines import tiny_language_model
from tests.served import Process, add, open_home, serving
from tests.waiting import wait_until

from maasdam.core import Constraint
from maasdam.grammars import check

TEMPERATURE = 1.0
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "count": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["name", "count"],
    "additionalProperties": False,
}
GRAMMAR = 'root ::= "(" [a-c]{1,4} ")"'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    home = tmp_path_factory.mktemp("home")
    source = tiny_language_model.huggingface(tmp_path_factory.mktemp("huggingface"))
    made = tiny_language_model.genai(source, tmp_path_factory.mktemp("genai"))
    workspace = open_home(home)

    add(workspace, "tiny", made)
    add(workspace, "plain", source)
    _, key = workspace.keys.create("test", ["infer", "admin"])
    workspace.close()
    with serving(home, key, "--workers", "2") as running:
        yield running


@pytest.fixture
def client(served: Process) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


def chat(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "the cat"}]
    return {"model": "tiny", "messages": messages, "max_tokens": 80, "temperature": TEMPERATURE, "seed": 3} | fields


def json_schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema} | more}


WAYS: dict[str, tuple[dict[str, Any], Constraint]] = {
    "json_object": ({"response_format": {"type": "json_object"}}, Constraint("object", "", "")),
    "json_schema": ({"response_format": json_schema(SCHEMA, strict=True)}, Constraint("schema", json.dumps(SCHEMA), "")),
    "guided_json": ({"guided_json": SCHEMA}, Constraint("schema", json.dumps(SCHEMA), "")),
    "guided_json as text": ({"guided_json": json.dumps(SCHEMA)}, Constraint("schema", json.dumps(SCHEMA), "")),
    "guided_regex": ({"guided_regex": "[ab]{3}\\d"}, Constraint("regex", "[ab]{3}\\d", "")),
    "guided_choice": ({"guided_choice": ["yes", "no"]}, Constraint("choice", '["yes", "no"]', "")),
    "guided_grammar": ({"guided_grammar": GRAMMAR}, Constraint("grammar", GRAMMAR, "")),
    "structured json": ({"structured_outputs": {"json": SCHEMA}}, Constraint("schema", json.dumps(SCHEMA), "")),
    "structured regex": ({"structured_outputs": {"regex": "x{2,4}"}}, Constraint("regex", "x{2,4}", "")),
    "structured choice": ({"structured_outputs": {"choice": ["a", "b"]}}, Constraint("choice", '["a", "b"]', "")),
    "structured grammar": ({"structured_outputs": {"grammar": GRAMMAR}}, Constraint("grammar", GRAMMAR, "")),
    "structured object": ({"structured_outputs": {"json_object": True}}, Constraint("object", "", "")),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_field_changes_the_answer_so_that_it_validates(client: httpx.Client, way: str) -> None:
    fields, constraint = WAYS[way]
    free = client.post("/v1/chat/completions", json=chat()).json()["choices"][0]
    assert check(constraint, free["message"]["content"]) is not None
    whole = 0
    for seed in range(4):
        answer = client.post("/v1/chat/completions", json=chat(**fields, seed=seed)).raise_for_status().json()["choices"][0]
        if answer["finish_reason"] == "stop":
            whole += 1
            assert check(constraint, answer["message"]["content"]) is None, answer
    assert whole, "every answer was cut"
    body = {"model": "tiny", "prompt": ["the cat", "a dog"], "max_tokens": 60, "temperature": 1.0, "seed": 1} | fields
    for one in client.post("/v1/completions", json=body).raise_for_status().json()["choices"]:
        assert one["finish_reason"] == "length" or check(constraint, one["text"]) is None, one


def test_a_stream_is_held_to_it_too(served: Process, client: httpx.Client) -> None:
    gpt = openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key)
    wanted: Any = json_schema(SCHEMA, strict=True)
    messages: Any = [{"role": "user", "content": "the cat"}]
    text, reason = "", None
    for event in gpt.chat.completions.create(
        model="tiny", messages=messages, max_tokens=80, seed=3, temperature=1.0, response_format=wanted, stream=True
    ):
        text += event.choices[0].delta.content or ""
        reason = event.choices[0].finish_reason
    whole = client.post("/v1/chat/completions", json=chat(response_format=wanted)).json()["choices"][0]
    assert (text, reason) == (whole["message"]["content"], whole["finish_reason"])
    assert reason == "stop" and SCHEMA["required"] == list(json.loads(text))


def test_a_response_is_held_to_it_too(served: Process, client: httpx.Client) -> None:
    class Named(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=4)
        count: int = pydantic.Field(ge=1, le=9)

    gpt = openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key)
    parsed = gpt.responses.parse(model="tiny", input="the cat", text_format=Named, temperature=1.0, extra_body={"seed": 3})
    assert parsed.status == "completed" and isinstance(parsed.output_parsed, Named), parsed.output_text
    assert gpt.responses.retrieve(parsed.id).output_text == parsed.output_text
    form = {"type": "json_schema", "name": "n", "schema": {"enum": ["x", "y"]}}
    body = {"model": "tiny", "input": "the cat", "temperature": 1.0, "seed": 3}
    held = client.post("/v1/responses", json=body | {"text": {"format": form}}).json()
    assert json.loads(held["output"][0]["content"][0]["text"]) in ("x", "y")
    assert held["text"]["format"] == form | {"strict": True, "description": None}
    free = client.post("/v1/responses", json=body | {"text": {"format": {"type": "text"}}}).json()
    assert free["output"][0]["content"][0]["text"] not in ('"x"', '"y"')
    refused = client.post("/v1/responses", json=body | {"text": {"format": form | {"schema": {"not": {}}}}}).json()["error"]
    assert refused["param"] == "text.format.schema" and "'not'" in refused["message"]
    cut = client.post("/v1/responses", json=body | {"text": {"format": form}, "stop": ["x"]}).json()["error"]
    assert cut["param"] == "stop" and "text.format.schema" in cut["message"]


def test_free_requests_beside_are_as_they_are_alone(client: httpx.Client) -> None:
    alone = [client.post("/v1/chat/completions", json=chat(seed=seed)).json()["choices"] for seed in range(3)]
    beside: list[Any] = [None] * 3

    def ask(seed: int) -> None:
        beside[seed] = httpx.post(
            client.base_url.join("/v1/chat/completions"), json=chat(seed=seed), headers=client.headers, timeout=60
        ).json()["choices"]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for fields, _ in WAYS.values():
        client.post("/v1/chat/completions", json=chat(**fields)).raise_for_status()
    for thread in threads:
        thread.join()
    assert beside == alone


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    # the fields -> the param, and a word of the sentence
    "two at once": ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "'guided_regex' and 'guided_choice'"),
    "two at once, one of OpenAI's": (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "structured_outputs",
        "'response_format' and 'structured_outputs'",
    ),
    "no type": ({"response_format": {}}, "response_format.type", "json_schema"),
    "an unknown type": ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    "no name": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "response_format.json_schema.name",
        "name",
    ),
    "a field too many": (
        {"response_format": json_schema({}, extra=1)},
        "response_format.json_schema.extra",
        "unknown field",
    ),
    "strict is no boolean": (
        {"response_format": json_schema({}, strict="yes")},
        "response_format.json_schema.strict",
        "true or false",
    ),
    "a schema that is none": ({"guided_json": [1]}, "guided_json", "no JSON schema"),
    "a keyword": ({"guided_json": {"type": "integer", "not": {"const": 1}}}, "guided_json", "'not' at #"),
    "a keyword within": (
        {"response_format": json_schema({"properties": {"a": {"type": "array", "uniqueItems": True}}})},
        "response_format.json_schema.schema",
        "'uniqueItems' at #/properties/a",
    ),
    "a bad expression": ({"guided_regex": "[a-"}, "guided_regex", "not closed"),
    "a bad grammar": ({"guided_grammar": "root ::= "}, "guided_grammar", "line 1"),
    "an expression that explodes": ({"guided_regex": "([a-z]{1,1000}){1,1000}"}, "guided_regex", "1,000,000"),
    "no choices": ({"guided_choice": []}, "guided_choice", "1 to 1,000 strings"),
    "a choice that is no text": ({"guided_choice": [1]}, "guided_choice", "strings"),
    "nothing structured": ({"structured_outputs": {}}, "structured_outputs", "nothing"),
    "two structured": ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "regex and choice"),
    "another backend": (
        {"guided_decoding_backend": "outlines", "guided_regex": "a"},
        "guided_decoding_backend",
        "not supported",
    ),
    "a stop in JSON": ({"guided_json": SCHEMA, "stop": ["}"]}, "stop", "ends by itself"),
    "no end": ({"guided_json": SCHEMA, "ignore_eos": True}, "ignore_eos", "ends"),
    "no end before": ({"guided_json": SCHEMA, "min_tokens": 3}, "min_tokens", "ends"),
    "another end": ({"guided_json": SCHEMA, "stop_token_ids": [7]}, "stop_token_ids", "ends"),
    "a model that can't": ({"model": "plain", "guided_regex": "a"}, "guided_regex", "models that can: tiny"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_kept_to_is_refused_by_name(client: httpx.Client, case: str) -> None:
    fields, param, word = BAD[case]
    for path, body in (
        ("/v1/chat/completions", chat(**fields)),
        ("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 4} | fields),
        ("/v1/chat/completions", chat(**fields, stream=True)),
    ):
        reply = client.post(path, json=body)
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, param), error
        assert word in error["message"], error


def test_each_of_several_answers_is_held_to_it_with_the_prompt_before_it_and_log_probabilities(client: httpx.Client) -> None:
    body = {"model": "tiny", "prompt": "the cat", "max_tokens": 60, "temperature": 1.0, "seed": 1, "guided_regex": "[ab]{3}\\d"}
    more = {"n": 3, "echo": True, "logprobs": 0}
    choices = client.post("/v1/completions", json=body | more).raise_for_status().json()["choices"]
    assert len(choices) == 3 and all(re.fullmatch(r"the cat[ab]{3}\d", one["text"]) for one in choices), choices
    assert all(one["finish_reason"] == "stop" and one["logprobs"]["token_logprobs"][1:] for one in choices)
    refused = client.post("/v1/completions", json=body | {"logprobs": 1, "temperature": 0})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "logprobs"
    assert "deploy the model with: maasdam deploy NAME --logprobs 1" in refused.json()["error"]["message"]


def test_what_asks_for_nothing_is_taken(client: httpx.Client) -> None:
    fields = {"response_format": {"type": "text"}, "guided_json": None, "structured_outputs": None, "guided_regex": None}
    assert (
        client.post("/v1/chat/completions", json=chat(**fields)).json()["choices"]
        == (client.post("/v1/chat/completions", json=chat()).json()["choices"])
    )


def test_models_say_what_they_can(client: httpx.Client) -> None:
    told = {one["id"]: one for one in client.get("/v1/models").json()["data"]}
    others = {"tools": None} | dict.fromkeys(("reasoning", "embeddings", "rerank", "moderations", "transcriptions"), False)
    assert told["tiny"]["capabilities"] == {"structured_output": True, "top_logprobs": 0} | others
    assert told["plain"]["capabilities"] == {"structured_output": False, "top_logprobs": 20} | others
    assert told["tiny"]["max_model_len"] == told["plain"]["max_model_len"] == tiny_language_model.CONTEXT


def test_a_refusal_costs_nothing(client: httpx.Client) -> None:
    before = client.get("/admin/usage?by=key&since=1h").json()
    assert client.post("/v1/chat/completions", json=chat(guided_regex="(?=a)")).status_code == 400
    after = client.get("/admin/usage?by=key&since=1h").json()
    assert json.dumps(before).count("completion_tokens") == json.dumps(after).count("completion_tokens")


def test_a_host_that_is_killed_leaves_no_process_behind(served: Process, client: httpx.Client) -> None:
    assert client.post("/v1/chat/completions", json=chat(guided_regex="[ab]{2}c")).status_code == 200
    below = psutil.Process(served.process.pid).children(recursive=True)
    everyone = {one.pid for one in below}
    assert len(everyone) > 4
    served.process.send_signal(signal.SIGKILL)
    served.process.wait()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in everyone), 20)
