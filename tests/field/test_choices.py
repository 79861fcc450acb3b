"""Several answers, log-probabilities and echoes over HTTP, from real engines, as clients ask for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.engines import tiny_language_model
from tests.engines.tiny_language_model import VOCABULARY
from tests.field import sentencepiece_model
from tests.served import Process, open_home, serving

from maasdam.tasks.text import TextProcessor

TOLERANCE = 1e-3
TEXT = "the café sat là-bas 🐈 on the naïve log"
"""Of many bytes that are no token together: a cat is four of this tokenizer's."""
MODELS = ("tiny", "plain")
"""One model: by OpenVINO GenAI, which a service runs in a host, and by transformers, in the service's own process."""
TOLD = 5
"""Of the likeliest tokens, by "told": tiny, deployed with what tells them."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_model.huggingface(tmp_path_factory.mktemp("huggingface")).path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Iterator[Process]:
    from maasdam.core import Artifact
    from maasdam.operations.release import deploy
    from maasdam.sources import ingest

    home = tmp_path_factory.mktemp("home")
    with open_home(home) as workspace:
        plain = ingest(str(source), workspace.store, task="text-generation")
        chain = ingest(
            str(sentencepiece_model.huggingface(tmp_path_factory.mktemp("chain")).path), workspace.store, task="text-generation"
        )
        with workspace.store.workspace() as folder:
            files = folder / "files"
            files.mkdir()
            made: Artifact = tiny_language_model.genai(plain, files)
            kind = {"format": made.format, "layout": made.layout, "task": made.task, "engine": made.engine, "signature": None}
            tiny = workspace.store.add(files, settings={}, **kind)  # type: ignore[arg-type]  # each is what it is called
        for name, artifact in {"tiny": tiny, "plain": plain, "chain": chain, "told": tiny}.items():
            report = {"passed": True, "failures": []}
            workspace.catalog.register(name, artifact, source="made by tests", recipe="none", report=report, passes=[])
            deploy(workspace, name, 1, {}, False, options={"logprobs": TOLD} if name == "told" else {})
        _, key = workspace.keys.create("tests", ["infer", "deploy", "admin"])
    with serving(home, key) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Process) -> Iterator[httpx.Client]:
    with served.client() as it:
        yield it


@pytest.fixture(scope="module")
def processor(source: Path) -> TextProcessor:
    return TextProcessor(source)


@pytest.fixture(scope="module")
def module(source: Path) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(source).eval()


def logarithms(module: Any, ids: list[int]) -> Any:
    import torch

    with torch.inference_mode():
        return torch.log_softmax(module(torch.tensor([ids])).logits[0].double(), -1).numpy()


def asked(client: httpx.Client, door: str = "completions", **body: Any) -> dict[str, Any]:
    """The answer to a body; of a stream, all its events made one answer."""
    path = "/v1/chat/completions" if door == "chat" else "/v1/completions"
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    if not body.get("stream"):
        return dict(answer.json())
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    events = [json.loads(line) for line in lines]
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for choice in event["choices"]:
            own = choices.setdefault(choice["index"], {"index": choice["index"], "text": "", "logprobs": None, "roles": 0})
            assert "finish_reason" not in own or own["finish_reason"] is None
            delta = choice.get("delta", {})
            own["text"] += choice.get("text", "") + delta.get("content", "")
            own["roles"] += "role" in delta
            own["finish_reason"] = choice["finish_reason"]
            for name, values in (choice["logprobs"] or {}).items():
                if values is not None:
                    own["logprobs"] = own["logprobs"] or {}
                    own["logprobs"][name] = own["logprobs"].get(name, []) + values
    usage = next((event["usage"] for event in events if event.get("usage")), None)
    return {"choices": [choices[i] for i in sorted(choices)], "usage": usage}


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in answer["choices"]]


HOT: dict[str, Any] = {"max_tokens": 8, "temperature": 1.5, "seed": 5, "ignore_eos": True}
COLD: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
WITH_USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("door", ["chat", "completions"])
def test_n_answers_are_different_and_each_time_the_same(client: httpx.Client, model: str, door: str) -> None:
    said = {"messages": [{"role": "user", "content": "the cat"}]} if door == "chat" else {"prompt": "the cat"}
    body = {"model": model, **said, **HOT}
    one, four = asked(client, door, **body), asked(client, door, **body, n=4)
    assert [choice["index"] for choice in four["choices"]] == [0, 1, 2, 3]
    assert texts(four)[0] == texts(one)[0] and len(set(texts(four))) == 4
    usage = four["usage"]
    assert usage["prompt_tokens"] == one["usage"]["prompt_tokens"] and usage["completion_tokens"] == 32
    assert usage["total_tokens"] == usage["prompt_tokens"] + 32
    streamed = asked(client, door, **body, n=4, **WITH_USAGE)
    assert texts(streamed) == texts(four) and asked(client, door, **body, n=4)["choices"] == four["choices"]
    assert {name: streamed["usage"][name] for name in ("prompt_tokens", "completion_tokens")} == {
        name: usage[name] for name in ("prompt_tokens", "completion_tokens")
    }
    assert [choice["roles"] for choice in streamed["choices"]] == [int(door == "chat")] * 4
    assert {choice["finish_reason"] for choice in streamed["choices"]} == {"length"}
    unseeded = asked(client, door, **body | {"seed": None}, n=3)
    assert len(set(texts(unseeded))) == 3


def test_the_ledger_has_a_prompt_once_and_all_that_was_written(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", json={"model": "tiny", "prompt": ["the cat", "a dog sat"], "n": 3, **HOT})
    row = client.get(f"/admin/requests/{answer.headers['x-request-id']}").json()["ledger"]
    usage = answer.json()["usage"]
    assert (row["prompt_tokens"], row["completion_tokens"]) == (usage["prompt_tokens"], 48)
    apart = [asked(client, model="tiny", prompt=prompt, **HOT)["usage"]["prompt_tokens"] for prompt in ("the cat", "a dog sat")]
    assert usage["prompt_tokens"] == sum(apart)


@pytest.mark.parametrize("model", MODELS)
def test_several_prompts_are_streamed(client: httpx.Client, model: str) -> None:
    body = {"model": model, "prompt": ["the cat", "a dog", "the log"], "n": 2, **HOT}
    whole = asked(client, **body)
    assert texts(asked(client, **body, stream=True)) == texts(whole) and len(whole["choices"]) == 6
    assert texts(whole)[2] == texts(asked(client, **body | {"prompt": "a dog", "n": 1}))[0]


@pytest.mark.parametrize("model", MODELS)
def test_the_best_of_several_are_the_likeliest(client: httpx.Client, model: str) -> None:
    chosen = []
    for seed in (5, 6):
        body = {"model": model, "prompt": "the cat", **HOT, "seed": seed, "logprobs": 0, "echo": True}
        five = asked(client, **body, n=5)
        prompt = five["usage"]["prompt_tokens"]
        means = {choice["text"]: np.mean(choice["logprobs"]["token_logprobs"][prompt:]) for choice in five["choices"]}
        two = asked(client, **body, n=2, best_of=5)
        assert texts(two) == sorted(means, key=lambda text: -means[text])[:2]
        assert two["usage"]["completion_tokens"] == 40 and [choice["index"] for choice in two["choices"]] == [0, 1]
        plain = asked(client, **body | {"logprobs": None, "echo": None}, best_of=5)
        assert [f"the cat{text}" for text in texts(plain)] == texts(two)[:1] and plain["choices"][0]["logprobs"] is None
        chosen.append(texts(two) == texts(five)[:2])
    assert not all(chosen)


def check_completion(choice: dict[str, Any], ids: list[int], rows: Any, processor: TextProcessor) -> None:
    """A choice's four lists: of all its tokens, in the order of the text, the model's own figures."""
    shown = choice["logprobs"]
    assert len(shown["tokens"]) == len(ids)
    assert [bytes_of(name) for name in shown["tokens"]] == [processor._spelling.bytes_of(i) for i in ids]
    for value, i, row in zip(shown["token_logprobs"][-len(rows) :], ids[-len(rows) :], rows, strict=True):
        assert value == pytest.approx(row[i], abs=TOLERANCE)
    data = b"".join(processor._spelling.bytes_of(i) for i in ids if i not in processor._hidden)
    if choice["text"] == data.decode(errors="replace") and "\ufffd" not in choice["text"]:
        assert shown["text_offset"] == offsets(ids, processor)


def offsets(ids: list[int], processor: TextProcessor) -> list[int]:
    """Where each token's character begins, found by counting the bytes that begin one."""
    out, data = [], b""
    for i in ids:
        own = b"" if i in processor._hidden else processor._spelling.bytes_of(i)
        begun = sum(byte & 0xC0 != 0x80 for byte in data)
        out.append(begun - bool(own and own[0] & 0xC0 == 0x80))
        data += own
    return out


def bytes_of(name: str) -> bytes:
    return bytes.fromhex(name[6:].replace("\\x", "")) if name.startswith("bytes:") else name.encode()


@pytest.mark.parametrize("model", MODELS)
def test_a_completions_log_probabilities(client: httpx.Client, model: str, module: Any, processor: TextProcessor) -> None:
    prompt = processor.tokenizer(TEXT)["input_ids"]
    for how in (COLD, HOT | {"repetition_penalty": 1.3, "min_p": 0.01}):
        body = {"model": model, "prompt": TEXT, **how, "max_tokens": 20, "logprobs": 0, "return_token_ids": True}
        (choice,) = asked(client, **body)["choices"]
        ids = choice["token_ids"]
        rows = logarithms(module, [*prompt, *ids])[len(prompt) - 1 : -1]
        check_completion(choice, ids, rows, processor)
        assert choice["logprobs"]["top_logprobs"] == [
            {name: value}
            for name, value in zip(choice["logprobs"]["tokens"], choice["logprobs"]["token_logprobs"], strict=True)
        ]
        (streamed,) = asked(client, **body, stream=True)["choices"]
        assert streamed["logprobs"] == choice["logprobs"] and streamed["text"] == choice["text"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_echo_has_the_prompts_and_its_bytes_places(
    client: httpx.Client, model: str, module: Any, processor: TextProcessor, is_streamed: bool
) -> None:
    ids = processor.tokenizer(TEXT)["input_ids"]
    for prompt in (TEXT, ids):
        body = {"model": model, "prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 0, "stream": is_streamed}
        answer = asked(client, **body)
        (choice,) = answer["choices"]
        assert choice["text"] == TEXT and choice["finish_reason"] == "length"
        assert choice["logprobs"]["token_logprobs"][0] is None and choice["logprobs"]["top_logprobs"][0] is None
        check_completion(choice, ids, logarithms(module, ids)[:-1], processor)
        assert choice["logprobs"]["text_offset"] == offsets(ids, processor)
        assert any(name.startswith("bytes:\\x") for name in choice["logprobs"]["tokens"])
    plain = asked(client, model=model, prompt=TEXT, echo=True, **COLD)
    (own,) = texts(asked(client, model=model, prompt=TEXT, **COLD))
    assert texts(plain) == [TEXT + own] and plain["choices"][0]["logprobs"] is None
    assert plain["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("model", MODELS)
def test_a_chats_log_probabilities(client: httpx.Client, model: str, module: Any, processor: TextProcessor) -> None:
    from maasdam.core import TextPayload

    messages = [{"role": "user", "content": TEXT}]
    prompt = processor.encode(TextPayload(messages=tuple(messages)))
    body = {"model": model, "messages": messages, **HOT, "max_tokens": 20, "return_token_ids": True}
    answer = asked(client, "chat", **body, logprobs=True, top_logprobs=0)
    (choice,) = answer["choices"]
    content, ids = choice["logprobs"]["content"], choice["token_ids"]
    rows = logarithms(module, [*prompt, *ids])[len(prompt) - 1 : -1]
    assert [one["logprob"] for one in content] == pytest.approx(
        [row[i] for row, i in zip(rows, ids, strict=True)], abs=TOLERANCE
    )
    assert all(one["top_logprobs"] == [] for one in content) and choice["logprobs"]["refusal"] is None
    joined = b"".join(bytes(one["bytes"] or ()) for one in content)
    assert joined.decode(errors="replace") == choice["message"]["content"]
    (streamed,) = asked(client, "chat", **body, logprobs=True, stream=True)["choices"]
    assert streamed["logprobs"]["content"] == content
    assert asked(client, "chat", **body, logprobs=False)["choices"][0]["logprobs"] is None


def test_tokens_that_are_parts_of_characters_and_stops(client: httpx.Client) -> None:
    """The chain's answer is known: " big🐈! aé of<|end|> it  y" (see sentencepiece_model)."""
    body = {"model": "chain", "prompt": "look", "logprobs": 0, "temperature": 0, "max_tokens": 40}
    (choice,) = asked(client, **body)["choices"]
    shown = choice["logprobs"]
    cat = [f"bytes:\\x{byte:02x}" for byte in "🐈".encode()]
    accent = [f"bytes:\\x{byte:02x}" for byte in "é".encode()]
    assert shown["tokens"] == [" big", *cat, "!", " a", *accent, " of", "<|end|>", " it", "  ", "y", "</s>"]
    assert shown["text_offset"] == [0, 4, 4, 4, 4, 5, 6, 8, 8, 9, 12, 12, 15, 17, 18]
    assert choice["text"] == " big🐈! aé of it  y" and choice["finish_reason"] == "stop"
    chat = {"model": "chain", "messages": [{"role": "user", "content": "k"}], "logprobs": True, "temperature": 0}
    content = asked(client, "chat", **chat)["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"] or ()) for one in content).decode() == choice["text"]
    assert [one["token"] for one in content][1:3] == ["\\xf0", "\\x9f"] and content[-1]["token"] == "y"
    for stop, text, count in ((" of", " big🐈! aé", 9), ("🐈! a", " big", 1), ("é of it", " big🐈! a", 7)):
        for stream in (False, True):
            (cut,) = asked(client, **body, stop=[stop], stream=stream)["choices"]
            assert (cut["text"], len(cut["logprobs"]["tokens"])) == (text, count)
    assert texts(asked(client, **body, stop=["🐈"], min_tokens=6)) == [choice["text"]]
    (echoed,) = asked(client, **body | {"prompt": "LOOK ▁look"}, echo=True)["choices"]
    assert echoed["text"].startswith("LOOK ▁look") and echoed["logprobs"]["tokens"][0] == "<s>"


@pytest.mark.parametrize("model", [*MODELS, "told"])
def test_what_lm_eval_asks(client: httpx.Client, model: str, module: Any) -> None:
    """Contexts and continuations as token ids; the sum of the continuations' logarithms is the loglikelihood."""
    random = np.random.default_rng(3)
    prompts = [random.integers(4, VOCABULARY, size).tolist() for size in (5, 40, 23, 2)]
    for likeliest in [0] if model == "tiny" else [0, 1]:
        for most in (0, 1):
            body = {"prompt": prompts, "max_tokens": most, "logprobs": likeliest, "echo": True, "temperature": 0, "seed": 1234}
            answer = asked(client, model=model, **body)
            for choice, ids in zip(answer["choices"], prompts, strict=True):
                shown, rows = choice["logprobs"], logarithms(module, ids)
                at = len(ids) // 2
                got = sum(shown["token_logprobs"][at : len(shown["tokens"]) - most])
                want = sum(rows[i - 1][ids[i]] for i in range(at, len(ids)))
                assert len(shown["tokens"]) == len(ids) + most and got == pytest.approx(want, abs=TOLERANCE * len(ids))
                if likeliest:
                    pairs = zip(shown["token_logprobs"][at:], shown["top_logprobs"][at:], strict=True)
                    is_greedy = [own == max(top.values()) for own, top in pairs][: len(ids) - at]
                    assert is_greedy == [int(rows[i - 1].argmax()) == ids[i] for i in range(at, len(ids))]


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "n of none": ("chat", {"n": 0}, "n"),
    "n that is huge": ("chat", {"n": 10**9}, "n"),
    "n of true": ("completions", {"n": True}, "n"),
    "n beside prompts": ("completions", {"n": 50, "prompt": ["a"] * 3}, "n"),
    "best_of below n": ("completions", {"n": 3, "best_of": 2}, "best_of"),
    "best_of streamed": ("completions", {"best_of": 2, "stream": True}, "best_of"),
    "best_of in a chat": ("chat", {"best_of": 2}, "best_of"),
    "logprobs as a number": ("chat", {"logprobs": 1}, "logprobs"),
    "top_logprobs alone": ("chat", {"top_logprobs": 2}, "top_logprobs"),
    "the likeliest": ("chat", {"logprobs": True, "top_logprobs": 1}, "top_logprobs"),
    "the likeliest of a stream": ("chat", {"logprobs": True, "top_logprobs": 2, "stream": True}, "top_logprobs"),
    "too many of the likeliest": ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "the two likeliest": ("completions", {"logprobs": 2}, "logprobs"),
    "the likeliest of an echo": ("completions", {"logprobs": 1, "echo": True, "temperature": 0}, "logprobs"),
    "the likeliest of a draw": ("completions", {"logprobs": 1, "temperature": 1}, "logprobs"),
    "more of the likeliest than it is deployed for": (
        "chat",
        {"model": "told", "logprobs": True, "top_logprobs": 6},
        "top_logprobs",
    ),
    "more of them in a stream": ("completions", {"model": "told", "logprobs": 6, "stream": True}, "logprobs"),
    "more of them of an echo": ("completions", {"model": "told", "logprobs": 20, "echo": True, "max_tokens": 0}, "logprobs"),
    "the likeliest beyond all": ("completions", {"model": "told", "logprobs": 21}, "logprobs"),
    "the likeliest of less than none": ("completions", {"model": "told", "logprobs": -1}, "logprobs"),
    "half of the likeliest": ("completions", {"model": "told", "logprobs": 2.5}, "logprobs"),
    "logprobs as true": ("completions", {"logprobs": True}, "logprobs"),
    "echo as a number": ("completions", {"echo": 1}, "echo"),
    "echo in a chat": ("chat", {"echo": True}, "echo"),
    "stop ids that are none": ("completions", {"stop_token_ids": ["a"]}, "stop_token_ids"),
    "one stop id": ("completions", {"stop_token_ids": 3}, "stop_token_ids"),
    "a stop id beyond the vocabulary": ("completions", {"stop_token_ids": [VOCABULARY]}, "stop_token_ids"),
    "more at least than at most": ("completions", {"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    "more at least than there is room": ("completions", {"min_tokens": 4000}, "min_tokens"),
    "a penalty of nothing": ("chat", {"repetition_penalty": 0}, "repetition_penalty"),
    "min_p above 1": ("chat", {"min_p": 1.5}, "min_p"),
    "a user that is no name": ("chat", {"user": 5}, "user"),
}


@pytest.mark.parametrize(("door", "more", "param"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_kept_to_is_refused_by_name(client: httpx.Client, door: str, more: dict[str, Any], param: str) -> None:
    said: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]} if door == "chat" else {"prompt": "a"}
    path = "/v1/chat/completions" if door == "chat" else "/v1/completions"
    answer = client.post(path, json={"model": "tiny", **said, **more})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param and len(answer.json()["error"]["message"]) > 20


@pytest.mark.parametrize(
    ("prompt", "says"),
    [([1, VOCABULARY], f"{VOCABULARY}"), ([5] * 128, "128"), ([5] * 50_000, "50000"), ("a " * 60_000, "128")],
    ids=["beyond the vocabulary", "a token too long", "far too long", "a text that is far too long"],
)
def test_a_prompt_that_cant_be_read_is_refused_with_figures(client: httpx.Client, prompt: Any, says: str) -> None:
    for more in ({"logprobs": 2, "echo": True}, {"stream": True}, {"n": 3}):
        answer = client.post("/v1/completions", json={"model": "told", "prompt": prompt, **more})
        assert answer.status_code == 400 and says in answer.json()["error"]["message"].replace(",", ""), answer.text


def test_the_likeliest_token_of_a_greedy_answer(client: httpx.Client) -> None:
    for model in MODELS:
        (choice,) = asked(client, model=model, prompt=TEXT, **COLD, logprobs=1, user="someone")["choices"]
        shown = choice["logprobs"]
        assert shown["top_logprobs"] == [
            {name: value} for name, value in zip(shown["tokens"], shown["token_logprobs"], strict=True)
        ]
    chat = {"model": "plain", "messages": [{"role": "user", "content": "a"}], **HOT, "logprobs": True, "top_logprobs": 4}
    for one in asked(client, "chat", **chat)["choices"][0]["logprobs"]["content"]:
        values = [top["logprob"] for top in one["top_logprobs"]]
        assert len(values) == 4 and values == sorted(values, reverse=True) and one["logprob"] <= values[0]


def likeliest(row: Any, count: int) -> Any:
    return np.argsort(-row, kind="stable")[:count]


@pytest.mark.parametrize("streams", [False, True])
def test_a_deployment_tells_the_likeliest_whatever_chose_and_whoever_is_beside(
    client: httpx.Client, streams: bool, module: Any, processor: TextProcessor
) -> None:
    random = np.random.default_rng(4)
    prompts = [random.integers(4, VOCABULARY, size).tolist() for size in (5, 70, 2)]
    body = {"model": "told", "prompt": prompts, "n": 2, **HOT, "stream": streams, "return_token_ids": True}
    for most, echo in ((TOLD, False), (3, True)):
        answer = asked(client, **body | {"stream": False}, logprobs=most, echo=echo)
        told = asked(client, **body, logprobs=most, echo=echo)
        for number, choice in enumerate(answer["choices"]):
            prompt, shown = prompts[number // 2], choice["logprobs"]
            rows = logarithms(module, [*prompt, *choice["token_ids"]])
            places = rows[: len(prompt) - 1] if echo else rows[:0]
            places = [*places, *rows[len(prompt) - 1 :]][: len(shown["tokens"]) - echo]
            assert shown["top_logprobs"][: int(echo)] == [None] * echo
            told_of = zip(*(shown[name][echo:] for name in ("tokens", "token_logprobs", "top_logprobs")), places, strict=True)
            for name, own, tops, row in told_of:
                want = sorted(row[likeliest(row, most)], reverse=True)
                assert max(tops.values()) == pytest.approx(want[0], abs=TOLERANCE) and tops[name] >= own
                for value in tops.values():  # of tokens that are spelled alike the likelier
                    assert value == own or min(abs(value - other) for other in want) < TOLERANCE
            assert told["choices"][number]["text"] == choice["text"]
            for key in ("tokens", "text_offset"):
                assert told["choices"][number]["logprobs"][key] == shown[key]
            pairs = zip(told["choices"][number]["logprobs"]["top_logprobs"], shown["top_logprobs"], strict=True)
            assert all(a == b or a == pytest.approx(b, abs=TOLERANCE) for a, b in pairs)


def test_a_chats_likeliest_tokens_and_those_of_a_form(client: httpx.Client) -> None:
    said: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 4, **COLD}
    held = {"guided_choice": ["yes", "no"], "ignore_eos": False}
    for more in ({}, {"stream": True}, held):
        content = asked(client, "chat", model="told", **said | more)["choices"][0]["logprobs"]["content"]
        assert content
        for one in content:
            values = [top["logprob"] for top in one["top_logprobs"]]
            assert len(values) == 4 and values == sorted(values, reverse=True)
            assert more.get("guided_choice") or (one["token"], one["logprob"]) == (one["top_logprobs"][0]["token"], values[0])
    beside = asked(client, "chat", model="plain", **said)["choices"][0]["logprobs"]["content"]
    told = asked(client, "chat", model="told", **said)["choices"][0]["logprobs"]["content"]
    for one, other in zip(told, beside, strict=True):
        assert [top["token"] for top in one["top_logprobs"]] == [top["token"] for top in other["top_logprobs"]]


def test_what_each_model_tells_and_what_that_takes_is_shown(client: httpx.Client, served: Process) -> None:
    told = {model["id"]: model["capabilities"]["top_logprobs"] for model in client.get("/v1/models").json()["data"]}
    assert told == {"tiny": 0, "told": TOLD, "plain": 20, "chain": 20}
    rows = {row["model"]: row for row in client.get("/admin/deployments").json()["deployments"]}
    assert rows["told"]["options"] == {"logprobs": TOLD} and rows["tiny"]["options"] is None
    assert rows["told"]["serving"][0]["likeliest_bytes"] > 1_000_000 and rows["tiny"]["serving"][0]["likeliest_bytes"] is None


@pytest.mark.parametrize(
    ("name", "body", "status", "says"),
    [
        ("told", {"logprobs": 0}, 422, "greater than or equal to 1"),
        ("told", {"logprobs": 21}, 422, "less than or equal to 20"),
        ("nobody", {"logprobs": 5}, 404, "nobody"),
    ],
)
def test_a_deployment_that_cant_be_is_refused(
    client: httpx.Client, name: str, body: dict[str, Any], status: int, says: str
) -> None:
    answer = client.put(f"/admin/deployments/{name}", json=body)
    assert answer.status_code in (status, 400) and says in answer.text, answer.text


SOME = {"type": "array", "items": {"enum": ["a", "bc", 12]}, "minItems": 2, "maxItems": 4}
FORMS: dict[str, dict[str, Any]] = {
    "choice": {"guided_choice": ["yes", "no", "perhaps"]},
    "expression": {"guided_regex": "[a-c]{3}-[0-9]{2}"},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SOME}}},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_log_probabilities_of_what_is_held_to_a_form_are_the_models_own(
    client: httpx.Client, module: Any, processor: TextProcessor, form: dict[str, Any]
) -> None:
    prompt = processor.tokenizer("the cat")["input_ids"]
    body = {"model": "tiny", "prompt": "the cat", "seed": 3, "temperature": 1, "max_tokens": 60, **form}
    answer = asked(client, **body, n=4, logprobs=0, echo=True, return_token_ids=True)
    assert len({choice["text"] for choice in answer["choices"]}) > 1
    for choice in answer["choices"]:
        assert choice["text"].startswith("the cat") and choice["finish_reason"] == "stop"
        ids = choice["token_ids"]
        rows = logarithms(module, [*prompt, *ids])
        values = choice["logprobs"]["token_logprobs"]
        wants = [row[i] for row, i in zip(rows, [*prompt, *ids][1:], strict=False)]
        assert values[1 : len(prompt) + len(ids)] == pytest.approx(wants, abs=TOLERANCE)
    streamed = asked(client, **body, n=4, logprobs=0, echo=True, stream=True)
    assert [one["logprobs"] for one in streamed["choices"]] == [one["logprobs"] for one in answer["choices"]]
    best = asked(client, **body, best_of=4)
    assert f"the cat{texts(best)[0]}" in texts(answer)
    for more, param in (
        ({"min_tokens": 3}, "min_tokens"),
        ({"stop_token_ids": [5]}, "stop_token_ids"),
        ({"logprobs": 1, "temperature": 0}, "logprobs"),
    ):
        refused = client.post("/v1/completions", json=body | more)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == param, refused.text
