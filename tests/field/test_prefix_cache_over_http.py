"""Deployments that compute prompts once, and that guess ahead, over HTTP: what is shared, with whom, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.engines import tiny_language_model
from tests.engines.tiny_language_model import VOCABULARY
from tests.served import Process, open_home, serving

PROMPT = [5 + (7 * i) % 300 for i in range(100)]
COLD: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
HOT: dict[str, Any] = {**COLD, "temperature": 1.4, "seed": 5}
DEPLOYED: dict[str, dict[str, Any]] = {
    "plain": {},
    "keyed": {"prefix_cache": "key"},
    "open": {"prefix_cache": "shared"},
    "guessing": {"prompt_lookup": 4},
}


@pytest.fixture(scope="module")
def keys() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, str]) -> Iterator[Process]:
    from maasdam.sources import ingest

    source = tiny_language_model.huggingface(tmp_path_factory.mktemp("huggingface")).path
    home = tmp_path_factory.mktemp("home")
    with open_home(home) as workspace:
        huggingface = ingest(str(source), workspace.store, task="text-generation")
        with workspace.store.workspace() as folder:
            files = folder / "files"
            files.mkdir()
            made = tiny_language_model.genai(huggingface, files)
            kind: dict[str, Any] = {"format": made.format, "layout": made.layout, "task": made.task, "engine": made.engine}
            artifact = workspace.store.add(files, settings={}, signature=None, **kind)
        report = {"passed": True, "failures": []}
        for name, options in DEPLOYED.items():
            workspace.catalog.register(name, artifact, source="made by tests", recipe="none", report=report, passes=[])
            workspace.catalog.deploy(name, options=options)
        workspace.catalog.register("other", huggingface, source="made by tests", recipe="none", report=report, passes=[])
        for who in ("one", "two"):
            keys[who] = workspace.keys.create(who, ["infer", "deploy", "admin"])[1]
    with serving(home, keys["one"]) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Process) -> Iterator[httpx.Client]:
    with served.client() as it:
        yield it


def asked(client: httpx.Client, key: str | None = None, **body: Any) -> tuple[list[list[int]], Any]:
    """Token ids of each choice, and what of the prompt was computed before; None where that is not said."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}
    answer = client.post("/v1/completions", json={"prompt": PROMPT, **body}, headers=headers)
    assert answer.status_code == 200, answer.text
    if not body.get("stream"):
        events = [answer.json()]
    else:
        events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line and line != "data: [DONE]"]
    ids: dict[int, list[int]] = {}
    for event in events:
        for choice in event["choices"]:
            ids.setdefault(choice["index"], []).extend(choice["token_ids"])
    usage = next(event["usage"] for event in events if event.get("usage"))
    assert usage["prompt_tokens"] == len(body.get("prompt", PROMPT))
    return [ids[i] for i in sorted(ids)], usage.get("prompt_tokens_details", {}).get("cached_tokens")


def test_a_key_s_prompt_is_computed_once_and_no_other_key_gains(client: httpx.Client, keys: dict[str, str]) -> None:
    expected, said = asked(client, model="plain", **COLD)
    assert said is None  # nothing is shared there
    told = [asked(client, keys[who], model="keyed", **COLD) for who in ("one", "one", "two", "one", "two")]
    assert [said for _, said in told] == [0, 96, 0, 96, 96]
    assert all(ids == expected for ids, _ in told)
    open_to_all = [asked(client, keys[who], model="open", **COLD) for who in ("one", "two")]
    assert [said for _, said in open_to_all] == [0, 96] and all(ids == expected for ids, _ in open_to_all)


@pytest.mark.parametrize("stream", [False, True])
def test_n_answers_over_one_computed_prompt_are_each_what_they_are_alone(client: httpx.Client, stream: bool) -> None:
    prompt = [9 + stream, *PROMPT[:90]]
    expected, _ = asked(client, model="plain", prompt=prompt, n=5, **HOT)
    given, said = asked(client, model="keyed", prompt=prompt, n=5, stream=stream, **HOT)
    assert given == expected and len({tuple(ids) for ids in given}) > 1
    assert said == 0  # the first computed it, and the others are not billed for it
    again, said = asked(client, model="keyed", prompt=prompt, stream=stream, **HOT)
    assert again == expected[:1] and said == 64


def test_chat_says_it_too(client: httpx.Client) -> None:
    body = {"model": "keyed", "messages": [{"role": "user", "content": "the cat sat on the mat and " * 5}], **HOT}
    usages = [client.post("/v1/chat/completions", json=body).json()["usage"] for _ in range(2)]
    first, second = (usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    assert first == 0 and second == (usages[0]["prompt_tokens"] - 2) // 32 * 32 > 0
    response = client.post("/v1/responses", json={"model": "keyed", "input": body["messages"], "max_output_tokens": 4})
    assert response.json()["usage"]["input_tokens_details"]["cached_tokens"] == second


def test_guesses_change_no_answer(client: httpx.Client) -> None:
    for sampling in (COLD, HOT, {**HOT, "n": 3}, {**COLD, "logprobs": 0, "echo": True}, {**COLD, "guided_regex": "(ab )+c"}):
        body = {"prompt": PROMPT[:40], **sampling, "ignore_eos": "guided_regex" not in sampling}
        expected, given = (
            client.post("/v1/completions", json={"model": model, **body}).json() for model in ("plain", "guessing")
        )
        assert [(c["token_ids"], c["text"], c["finish_reason"]) for c in given["choices"]] == [
            (c["token_ids"], c["text"], c["finish_reason"]) for c in expected["choices"]
        ]


def test_what_a_deployment_was_asked_for_is_told(client: httpx.Client) -> None:
    told = {model["id"]: model["capabilities"] for model in client.get("/v1/models").json()["data"]}
    rows = {row["model"]: row["options"] for row in client.get("/admin/deployments").json()["deployments"]}
    for name, options in DEPLOYED.items():
        assert told[name].items() >= options.items() and (rows[name] or {}) == options
    assert "prefix_cache" not in told["plain"]


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"repetition_penalty": 1.1}, "repetition_penalty"),
    ({"repetition_penalty": 0.01}, "repetition_penalty"),
    ({"repetition_penalty": 1.1, "n": 64}, "repetition_penalty"),
    ({"n": 129}, "n"),
    ({"prompt": [VOCABULARY]}, "not in this model's vocabulary"),
    ({"prompt": [VOCABULARY + 512]}, "not in this model's vocabulary"),  # what a salt would make of a token
    ({"prompt": [(1 << 31) - 1]}, "not in this model's vocabulary"),
    ({"prompt": [1 << 40]}, "token of no model's vocabulary"),
    ({"prompt": [-5]}, "token of no model's vocabulary"),
    ({"prompt": [7] * 200}, "tokens"),
    ({"prompt_cache_key": 5, "prompt": []}, "prompt"),
]


@pytest.mark.parametrize(("body", "said"), HOSTILE)
def test_hostile_requests_are_refused_and_neighbours_unharmed(client: httpx.Client, body: dict[str, Any], said: str) -> None:
    answer = client.post("/v1/completions", json={"model": "keyed", "prompt": PROMPT, **COLD, **body})
    assert answer.status_code == 400 and said in answer.json()["error"]["message"], answer.text
    assert asked(client, model="keyed", **COLD)[0] == asked(client, model="plain", **COLD)[0]


@pytest.mark.parametrize(
    ("name", "body", "status", "said"),
    [
        ("keyed", {"prefix_cache": "everybody"}, 400, "prefix_cache"),
        ("keyed", {"prefix_cache": True}, 400, "prefix_cache"),
        ("keyed", {"prefix_cache": "key", "prompt_lookup": 4}, 400, "together"),
        ("keyed", {"prompt_lookup": 0}, 400, "prompt_lookup"),
        ("keyed", {"prompt_lookup": 1 << 40}, 400, "prompt_lookup"),
        ("other", {"prefix_cache": "key"}, 400, "engine transformers has no prefix_cache"),
        ("other", {"prompt_lookup": 4}, 400, "engine transformers has no prompt_lookup"),
    ],
)
def test_hostile_deployments_are_refused(client: httpx.Client, name: str, body: dict[str, Any], status: int, said: str) -> None:
    before = client.get("/admin/deployments").json()["deployments"]
    answer = client.put(f"/admin/deployments/{name}", json=body)
    assert answer.status_code == status and said in answer.text, answer.text
    after = client.get("/admin/deployments").json()["deployments"]
    assert [(row["model"], row["options"]) for row in after] == [(row["model"], row["options"]) for row in before]
