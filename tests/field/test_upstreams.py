"""A model that another server runs: the same answers and rows as one's own, and whatever that server does, a sentence.

The upstream is this very service once, and once a server that lies (`liar`).
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.field.liar import KEY, Liar
from tests.served import Process, add_starters, open_home, serving
from tests.waiting import wait_until

from maasdam.core import AudioPayload
from maasdam.errors import DeadlineExceeded, InvalidInput, MaasdamError, Unsupported, UpstreamFailure, UpstreamGone
from maasdam.operations.carry import export
from maasdam.operations.upstreams import registered
from maasdam.operations.workspace import Workspace
from maasdam.serving.upstreams.place import checked_key_env, checked_url
from maasdam.serving.upstreams.words import heard


@dataclass
class Rig:
    workspace: Workspace
    service: Process
    client: httpx.Client
    liar: Liar

    def row(self, reply: httpx.Response) -> Any:
        """The request's row in the ledger, once it is there."""
        path = f"/admin/requests/{reply.headers['x-request-id']}"
        wait_until(lambda: self.client.get(path).json().get("ledger") is not None, 10)
        return self.client.get(path).json()["ledger"]

    def ask(self, prompt: str, **more: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"model": "liar", "prompt": prompt} | more)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, starters: Path) -> Iterator[Rig]:
    home, liar = tmp_path_factory.mktemp("home"), Liar()
    workspace = open_home(home)
    add_starters(workspace, starters, {"text": "near", "speech": "hears", "images": "sees"})
    workspace.catalog.undeploy("sees")
    secret = workspace.keys.create("all", ["infer", "deploy", "admin"])[1]
    patch = pytest.MonkeyPatch()
    patch.setenv("LIARS_KEY", KEY)
    patch.setenv("OUR_OWN_KEY", secret)
    patch.setenv("MAASDAM_REQUEST_TIMEOUT_SECONDS", "2")
    with serving(home, secret, "--grpc-port", "0") as service:
        workspace.catalog.deploy(registered(workspace, "far", service.url, "OUR_OWN_KEY", "near"))
        workspace.catalog.deploy(registered(workspace, "far-ears", f"{service.url}/v1", "OUR_OWN_KEY", "hears"))
        workspace.catalog.deploy(registered(workspace, "liar", liar.url, "LIARS_KEY"))
        workspace.catalog.deploy(registered(workspace, "lies-of-vectors", liar.url, "LIARS_KEY", "other", "feature-extraction"))
        with service.client() as client:
            wait_until(lambda: len(client.get("/v1/models").json()["data"]) == 6, 10)
            for name in ("far", "far-ears", "liar", "lies-of-vectors"):
                wait_until(lambda name=name: client.get(f"/v2/models/{name}/ready").status_code == 200, 10)
            yield Rig(workspace, service, client, liar)
    patch.undo()


def events_of(client: httpx.Client, path: str, body: dict[str, Any]) -> list[Any]:
    body = body | {"stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", path, json=body) as reply:
        assert reply.status_code == 200, reply.read()
        lines = [line[6:] for line in reply.iter_lines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


ASKED = {"prompt": "ROMEO:", "max_tokens": 12, "temperature": 0}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"logprobs": 2},
        {"logprobs": 0, "echo": True},
        {"n": 2, "seed": 4, "temperature": 1},
        {"best_of": 3, "n": 2, "seed": 1, "temperature": 1},
        {"stop": ["man"]},
        {"prompt": ["a", "b"]},
        {"prompt": [5, 6, 7]},
        {"max_tokens": 0, "echo": True},
        {"min_p": 0.2, "top_k": 3, "seed": 1, "temperature": 1.5, "repetition_penalty": 1.2, "presence_penalty": 0.5},
    ],
)
def test_an_upstream_answers_and_is_billed_as_the_model_itself(rig: Rig, more: dict[str, Any]) -> None:
    far, near = (rig.client.post("/v1/completions", json=ASKED | more | {"model": name}) for name in ("far", "near"))
    assert far.status_code == near.status_code == 200, far.text
    assert far.json()["choices"] == near.json()["choices"]
    assert far.json()["model"] == "far"
    tokens = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [far.json()["usage"][k] for k in tokens] == [near.json()["usage"][k] for k in tokens]


def test_an_upstreams_stream_says_the_same_and_ends_with_its_usage(rig: Rig) -> None:
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0, "logprobs": True}
    far, near = (events_of(rig.client, "/v1/chat/completions", chat | {"model": name}) for name in ("far", "near"))
    assert far[-1] == near[-1] == "[DONE]" and len(far) > 6

    def said(events: list[Any]) -> tuple[str, list[Any], str]:
        choices = [one["choices"][0] for one in events[:-2]]
        marks = [mark for one in choices if one["logprobs"] for mark in one["logprobs"]["content"]]
        return "".join(one["delta"]["content"] for one in choices), marks, choices[-1]["finish_reason"]

    assert said(far) == said(near)
    assert far[-2]["usage"]["completion_tokens"] == near[-2]["usage"]["completion_tokens"] == 8


def test_an_upstream_hears(rig: Rig, starters: Path) -> None:
    sound = next((starters / "speech" / "samples").glob("*.wav")).read_bytes()

    def asked(name: str, kind: str) -> httpx.Response:
        form = {"model": name, "response_format": kind}
        return rig.client.post("/v1/audio/transcriptions", data=form, files={"file": ("a.wav", sound)})

    far, near = asked("far-ears", "json").json(), asked("hears", "json").json()
    assert far["text"] == near["text"] and far["usage"]["seconds"] == near["usage"]["seconds"] > 0
    assert asked("far-ears", "srt").text == asked("hears", "srt").text != ""


def test_what_the_model_refuses_is_refused_with_its_field_and_what_it_can_is_told(rig: Rig) -> None:
    long = rig.client.post("/v1/completions", json={"model": "far", "prompt": "x " * 3000})
    assert long.status_code == 400 and long.json()["error"]["code"] == "context_length_exceeded"
    told = {one["id"]: one for one in rig.client.get("/v1/models").json()["data"]}
    assert told["far"]["max_model_len"] == told["near"]["max_model_len"] == 512
    same = ("structured_output", "top_logprobs")
    assert [told["far"]["capabilities"][k] for k in same] == [told["near"]["capabilities"][k] for k in same]
    ids = rig.client.post("/v1/completions", json=ASKED | {"model": "far", "return_token_ids": True})
    assert ids.status_code == 400 and ids.json()["error"]["param"] == "return_token_ids"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    asked = {"model": "far", "messages": [{"role": "user", "content": "a"}], "tools": tools}
    called = rig.client.post("/v1/chat/completions", json=asked)
    assert called.status_code == 400 and called.json()["error"]["param"] == "tools" and "template" in called.text
    wrong_door = rig.client.post(
        "/v1/chat/completions", json={"model": "far-ears", "messages": [{"role": "user", "content": "a"}]}
    )
    assert wrong_door.status_code == 400 and "/v1/audio/transcriptions" in wrong_door.text


@pytest.mark.parametrize(
    ("fault", "status", "says", "more"),
    [
        ("no_json", 502, "no JSON", {}),
        ("half_json", 502, "no JSON", {}),
        ("half_a_character", 502, "no JSON", {}),
        ("deep", 502, "no JSON", {}),
        ("a_list", 502, "no choices", {}),
        ("no_choices", 502, "no choices", {}),
        ("two_choices", 502, "one was asked for", {}),
        ("second_choice", 502, "one was asked for", {}),
        ("no_end", 502, "ended", {}),
        ("odd_end", 502, "not asked for", {}),
        ("number_for_text", 502, "something else than a text", {}),
        ("another_model", 502, "another of its models", {}),
        ("writes_on", 502, "stop string", {"stop": "STOP"}),
        ("plain", 502, "log-probabilities", {"logprobs": 1}),
        ("plain", 502, "echoed", {"echo": True}),
        ("plain", 502, "'guided_regex' does not allow", {"guided_regex": "[0-9]+"}),
        ("plain", 502, "does not allow", {"response_format": {"type": "json_object"}}),
        ("cut", 502, "'guided_choice' does not allow", {"guided_choice": ["one", "three"]}),
        ("cut", 502, "'guided_regex' does not allow", {"guided_regex": "[0-9]+"}),
        ("cut", 502, "does not allow", {"response_format": {"type": "json_object"}}),
        ("error_in_200", 502, "no choices", {}),
        ("redirect", 502, "not followed", {}),
        ("packed", 502, "packed", {}),
        ("refuses_key", 502, "key", {}),
        ("refuses_ours", 502, "'model'", {}),
        ("too_large", 413, "too large", {}),
        ("limited", 429, "slow down", {}),
        ("busy", 503, "later", {}),
        ("breaks", 502, "500", {}),
        ("no_http", 502, "broke off", {}),
        ("huge_header", 502, "broke off", {}),
        ("closes", 502, "broke off", {}),
        ("said_too_long", 502, "bytes", {}),
        ("endless", 502, "bytes", {}),
        ("silent", 504, "less busy", {}),
        ("no_sse", 502, "asked for a stream", {"stream": True}),
        ("key_for_a_kind", 502, "(key)", {"stream": True}),
        ("short_lines", 502, "more bytes", {"stream": True}),
        ("many_marks", 502, "more tokens than the 4", {"logprobs": 0, "max_tokens": 4}),
        ("bad_sse", 502, "no JSON", {"stream": True}),
        ("sse_list", 502, "no choices", {"stream": True}),
        ("long_line", 502, "more bytes", {"stream": True}),
        ("idle_events", 502, "without saying anything", {"stream": True}),
        ("comments", 504, "less busy", {"stream": True}),
        ("refuses_key", 502, "key", {"stream": True}),
        ("limited", 429, "slow down", {"stream": True}),
    ],
)
def test_whatever_an_upstream_does_gets_a_sentence_and_costs_nothing(
    rig: Rig, fault: str, status: int, says: str, more: dict[str, Any]
) -> None:
    reply = rig.ask(fault, **more)
    assert reply.status_code == status, reply.text
    message = reply.json()["error"]["message"]
    assert says in message and KEY not in reply.text and str(rig.liar.port) not in reply.text
    row = rig.row(reply)
    assert row["status"] == status and not row["completion_tokens"] and not row["price"]


def test_an_answer_that_was_cut_is_one_if_it_may_go_on_to_be_what_was_asked_for(rig: Rig) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array"}, "b": {"type": "integer"}}, "required": ["a"]}
    for fault, more in (
        ("cut_json", {"guided_json": schema}),
        ("cut_json", {"response_format": {"type": "json_object"}}),
        ("cut", {"guided_choice": ["one", "one two three"]}),
        ("cut", {"guided_regex": "[a-z ]{20}"}),
    ):
        reply = rig.ask(fault, **more)
        assert reply.status_code == 200 and reply.json()["choices"][0]["finish_reason"] == "length", reply.text


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("breaks_off", "broke off"),
        ("sse_error", "out of memory"),
        ("more_than_asked", "beyond the 4 tokens"),
        ("stop_in_pieces", "did not stop"),
        ("waits", "for too long"),
    ],
)
def test_a_stream_that_goes_wrong_ends_with_an_error_and_is_billed_for_what_came(rig: Rig, fault: str, says: str) -> None:
    body = {"model": "liar", "prompt": fault, "stream": True, "max_tokens": 4, "stop": "STOP"}
    with rig.client.stream("POST", "/v1/completions", json=body) as reply:
        events = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
    assert says in events[-1]["error"]["message"] and KEY not in str(events)
    text = "".join(one["choices"][0]["text"] for one in events[:-1])
    assert text and "STOP" not in text and "two" not in text.partition("ST")[2]
    row = rig.row(reply)
    assert row["status"] in (502, 504) and row["completion_tokens"] == len(events) - 1


@pytest.mark.parametrize(
    ("fault", "tokens"),
    [
        ("plain", (3, 2)), ("no_usage", (2, 3)), ("false_usage", (3, 3)), ("usage_of_text", (4, 3)), ("thought", (2, 4)),
        ("usage_of_millions", (5, 2)),
    ],
)  # fmt: skip
def test_what_no_upstream_says_rightly_is_counted_by_bytes(rig: Rig, fault: str, tokens: tuple[int, int]) -> None:
    usage = rig.ask(fault, max_tokens=100).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == tokens


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        ("vectors", 200, [[0.5, -1.0], [2.0, 3.0]]),
        ("turned_round", 200, [[2.0], [1.0]]),
        ("vectors_of_millions", 200, [[0.5], [2.0]]),
        ("one_vector", 502, "as many as texts"),
        ("two_lengths", 502, "of one length"),
        ("same_index", 502, "one for each text"),
        ("words_for_numbers", 502, "no vector"),
        ("beyond_float32", 502, "no number"),
        ("plain", 502, "as many as texts"),
        ("limited", 429, "slow down"),
        ("closes", 502, "broke off"),
    ],
)
def test_vectors_of_an_upstream(rig: Rig, fault: str, status: int, says: Any) -> None:
    reply = rig.client.post("/v1/embeddings", json={"model": "lies-of-vectors", "input": [fault, "four bytes each"]})
    assert reply.status_code == status, reply.text
    if status == 200:
        assert [one["embedding"] for one in reply.json()["data"]] == says
        assert reply.json()["usage"]["prompt_tokens"] == {"vectors": 9, "turned_round": 3 + 4}.get(fault, 5 + 4)
        assert rig.liar.asked[-1][2] == {"model": "other", "input": [fault, "four bytes each"], "encoding_format": "float"}
    else:
        assert says in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fault", "says", "more"),
    [("thinks", "beyond the 4 tokens", {}), ("echoes_a_stop", "did not stop", {"echo": True, "stop": "STOP"})],
)
def test_what_a_stream_may_hide_is_bounded_too(rig: Rig, fault: str, says: str, more: dict[str, Any]) -> None:
    body = {"model": "liar", "prompt": fault, "stream": True, "max_tokens": 4} | more
    with rig.client.stream("POST", "/v1/completions", json=body) as reply:
        assert says in list(reply.iter_lines())[-2], fault


def test_what_comes_behind_an_answer_is_nobody_elses(rig: Rig) -> None:
    assert rig.ask("two_answers").json()["choices"][0]["text"] == "another's"
    assert rig.ask("plain").json()["choices"][0]["text"] == "one two"


def test_a_transcript_that_lies_of_its_length_or_its_parts() -> None:
    payload = AudioPayload(b"RIFF" + bytes(60))
    told = {"text": "x", "duration": 9e6, "segments": [{"start": 0, "end": 2, "text": "x"}]}
    assert heard(told, payload)[1].audio_seconds == 2
    with pytest.raises(UpstreamFailure, match="no list"):
        heard({"text": "x", "segments": 5}, payload)


def test_vectors_of_another_length_than_asked_for_are_refused(rig: Rig) -> None:
    asked = {"model": "lies-of-vectors", "input": ["vectors", "b"], "dimensions": 3}
    assert rig.client.post("/v1/embeddings", json=asked).status_code == 502


def test_what_is_passed_on(rig: Rig) -> None:
    refused = rig.ask("refuses_field", top_k=3)
    assert (
        refused.status_code == 400
        and refused.json()["error"]["param"] == "top_k"
        and refused.json()["error"]["code"] == "bad_k"
    )
    assert "top_k is wrong, says (key)" in refused.text
    assert "seed is no number" in rig.ask("refuses_detail").json()["error"]["message"]
    assert rig.ask("too_long").json()["error"]["message"].startswith("This model's maximum context length is 4")
    assert rig.ask("limited").headers["retry-after"] == "17" and rig.ask("busy").headers["retry-after"] == "23"
    reply = rig.ask("plain", stop=["q"], top_k=7, seed=3, temperature=0.5)
    start, headers, body = rig.liar.asked[-1]
    assert headers["authorization"] == f"Bearer {KEY}" and headers["x-request-id"] == reply.headers["x-request-id"]
    assert start.startswith("POST /v1/completions ")
    assert body == {
        "model": "liar", "prompt": "plain", "max_tokens": 512, "stop": ["q"], "top_k": 7, "seed": 3, "temperature": 0.5,
    }  # fmt: skip
    ended = events_of(rig.client, "/v1/completions", {"model": "liar", "prompt": "ends_without_done"})
    assert [one["choices"][0]["text"] for one in ended[:-2]] == ["one", " two", ""]


def test_who_goes_away_ends_the_upstreams_work_too(rig: Rig) -> None:
    gone = rig.liar.gone
    with rig.client.stream("POST", "/v1/completions", json={"model": "liar", "prompt": "waits", "stream": True}) as reply:
        next(reply.iter_lines())
    wait_until(lambda: rig.liar.gone > gone, 2)


def test_the_key_is_in_no_log_and_no_database(rig: Rig) -> None:
    rig.ask("refuses_key")
    rig.ask("error_in_200")
    for path in [rig.service.log, *rig.workspace.settings.home.rglob("*")]:
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    with sqlite3.connect(rig.workspace.settings.home / "maasdam.db") as database:
        assert "LIARS_KEY" not in "".join(database.iterdump())


def test_one_that_is_away_is_unready_until_it_is_back_and_takes_nobody_with_it(rig: Rig) -> None:
    other = Liar()
    other.models.append("goes")
    rig.workspace.catalog.deploy(registered(rig.workspace, "goes", other.url, "LIARS_KEY"))
    ready = "/v2/models/goes/ready"
    wait_until(lambda: rig.client.get(ready).status_code == 200, 10)
    other.stop()
    wait_until(lambda: not other._server.is_serving(), 5)
    replies = [rig.client.post("/v1/completions", json={"model": "goes", "prompt": "plain"}) for _ in range(3)]
    assert {reply.status_code for reply in replies} == {503} and "can't be reached" in replies[-1].text
    assert "retry-after" in replies[-1].headers
    assert rig.client.get(ready).status_code == 503
    rows = rig.client.get("/admin/deployments").json()["deployments"]
    state = next(row for row in rows if row["model"] == "goes")["serving"][0]
    assert state["state"] == "unreachable" and "can't be reached" in state["reason"]
    assert rig.client.get("/v2/health/ready").status_code == 200 and rig.ask("plain").status_code == 200
    rig.workspace.catalog.undeploy("goes")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/v1", "http://", "http://user:secret@host/v1", "http://host/v1?key=secret", "http://host:0/v1", "host:8000",
        "http://host:port/v1", "file:///etc/passwd", "http://h/v1 x", "http://h/\nx", "http://hôte/v1", "http://h/" + "a" * 600,
        "http://[v1.x]:1/", "http://xn--0/",
    ],
)  # fmt: skip
def test_addresses_that_are_none_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(InvalidInput, match="upstream's address") as refused:
        checked_url(url)
    assert "secret" not in str(refused.value)


def test_a_server_that_says_nothing_is_refused_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maasdam.serving.upstreams.client.LOOK_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DeadlineExceeded, match="in time"):
        registered(open_home(tmp_path), "x", f"http://127.0.0.1:{silent.getsockname()[1]}", None)


def test_an_address_is_kept_as_clients_have_it() -> None:
    assert checked_url("http://host:8000") == checked_url("http://host:8000/v1/") == "http://host:8000/v1"
    assert checked_url("https://10.0.0.7/team/openai") == "https://10.0.0.7/team/openai"


def test_what_can_be_no_upstream_is_refused_when_it_is_deployed(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="never the key itself") as refused:
        checked_key_env("sk-abc-123")
    assert "sk-abc" not in str(refused.value)
    for expected, (name, url, variable, model, task) in {
        "it has: 'liar', 'other'": ("x", rig.liar.url, "LIARS_KEY", None, None),
        "no upstream does 'image-classification'": ("x", rig.liar.url, "LIARS_KEY", "liar", "image-classification"),
        "NOBODYS_KEY is not set": ("x", rig.liar.url, "NOBODYS_KEY", "liar", None),
        "can't name a model": ("../x", rig.liar.url, None, "liar", None),
        "did not accept": ("x", rig.service.url, "LIARS_KEY", "near", None),
        "can't be reached": ("x", "http://127.0.0.1:1", None, None, None),
    }.items():
        with pytest.raises(MaasdamError, match=expected):
            registered(rig.workspace, name, url, variable, model, task)
    with pytest.raises(UpstreamGone):
        registered(rig.workspace, "x", "http://127.0.0.1:1", None)
    with pytest.raises(Unsupported, match="another server"):
        export(rig.workspace, "liar:1", tmp_path / "liar.tar")
    assert "x" not in {version.model for version in rig.workspace.catalog.versions()}
    assert registered(rig.workspace, "liar", rig.liar.url, "LIARS_KEY") == "liar:1"  # the same is no new version
    assert os.environ["LIARS_KEY"] == KEY
