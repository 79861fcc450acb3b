"""GGUF files: what their headers may say, and what llama.cpp makes of them, beside transformers with the same weights."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from tests.field import gguf_files as files
from tests.served import open_home, serving
from tests.waiting import wait_until

from maasdam.errors import InvalidInput, InvalidModel, MaasdamError, Unsupported
from maasdam.operations.build import BuildSpec, build
from maasdam.sources import inspect


def test_a_header_says_what_the_model_is_and_no_weight_is_read(tmp_path: Path) -> None:
    files.write(tmp_path / "a.gguf", "Q8_0", files.TEMPLATE)
    found = inspect(str(tmp_path / "a.gguf"))
    assert (found.format, found.task, found.architecture, found.precision) == ("gguf", "text-generation", "llama", "Q8_0")
    assert found.parameters == sum(one.size for one in files.weights().values())
    assert found.size_bytes == (tmp_path / "a.gguf").stat().st_size
    assert "context 256" in found.notes[0] and f"template of {len(files.TEMPLATE)}" in found.notes[0]


def _tensor(name: str = "a", axes: tuple[int, ...] = (32,), kind: int = 0, at: int = 0) -> bytes:
    return files.text(name) + struct.pack(f"<I{len(axes)}Q", len(axes), *axes) + struct.pack("<IQ", kind, at)


FACTS = files.described()
WHOLE = files.joined(FACTS, 1, _tensor(), bytes(128))
LIES: dict[str, tuple[bytes, type[MaasdamError], str]] = {
    "cut off": (WHOLE[:90], InvalidModel, "behind its end"),
    "weights cut off": (WHOLE[:-1], InvalidModel, "behind its end"),
    "magic alone": (b"GGUF", InvalidModel, "behind its end"),
    "version 1": (files.joined(FACTS, 1, _tensor(), bytes(128), 1), Unsupported, "version 1"),
    "no tensors": (files.joined(FACTS, 0, b"", bytes(128)), InvalidModel, "0 tensors"),
    "2^63 tensors": (files.joined(FACTS, 1 << 63, b"", b""), InvalidModel, "tensors"),
    "2^60 facts": (b"GGUF" + struct.pack("<IQQ", 3, 1, 1 << 60), InvalidModel, "facts"),
    "a key of 2^62 bytes": (b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1 << 62), InvalidModel, "bytes"),
    "an array of 2^40": (
        files.joined([files.text("x") + struct.pack("<IIQ", 9, 4, 1 << 40)], 1, b"", b""), InvalidModel, "an array",
    ),
    "arrays of arrays": (
        files.joined([files.text("x") + struct.pack("<IIQ", 9, 9, 1)], 1, b"", b""), InvalidModel, "an array",
    ),
    "an array longer than the file": (
        files.joined([files.text("x") + struct.pack("<IIQ", 9, 4, 1 << 20)], 1, b"", b""), InvalidModel, "behind its end",
    ),
    "arrays of more texts than are looked at": (
        files.joined([files.array("x", 8, ["a"]), files.text("y") + struct.pack("<IIQ", 9, 8, 4_000_000)], 1, b"", b""),
        InvalidModel, "4,000,000 texts",
    ),
    "a fact of type 99": (files.joined([files.text("x") + struct.pack("<I", 99)], 1, b"", b""), InvalidModel, "type 99"),
    "a fact twice": (files.joined([*FACTS, FACTS[0]], 1, _tensor(), bytes(128)), InvalidModel, "twice"),
    "a tensor twice": (files.joined(FACTS, 2, _tensor() + _tensor(at=128), bytes(256)), InvalidModel, "twice"),
    "weights in each other": (files.joined(FACTS, 2, _tensor() + _tensor("b", at=64), bytes(256)), InvalidModel, "each other"),
    "weights far behind": (files.joined(FACTS, 1, _tensor(at=1 << 50), bytes(128)), InvalidModel, "behind its end"),
    "2^62 numbers": (files.joined(FACTS, 1, _tensor(axes=(1 << 31, 1 << 31)), bytes(128)), InvalidModel, "sizes"),
    "no numbers": (files.joined(FACTS, 1, _tensor(axes=(0,)), bytes(128)), InvalidModel, "sizes"),
    "half a block": (files.joined(FACTS, 1, _tensor(axes=(33,), kind=8), bytes(128)), InvalidModel, "Q8_0"),
    "nine axes": (files.joined(FACTS, 1, _tensor(axes=(2,) * 9), bytes(4096)), InvalidModel, "9 axes"),
    "an unknown type": (files.joined(FACTS, 1, _tensor(kind=77), bytes(128)), InvalidModel, "type 77"),
    "no architecture": (files.joined(FACTS[1:], 1, _tensor(), bytes(128)), InvalidModel, "architecture"),
    "no vocabulary": (
        files.joined([one for one in FACTS if b"ggml.tokens" not in one], 1, _tensor(), bytes(128)), Unsupported, "vocabulary",
    ),
    "alignment 0": (
        files.joined([*FACTS, files.fact("general.alignment", 4, 0)], 1, _tensor(), bytes(128)), InvalidModel, "alignment",
    ),
    "one part of three": (
        files.joined([*FACTS, files.fact("split.count", 4, 3)], 1, _tensor(), bytes(128)), Unsupported, "one part of 3",
    ),
    "an adapter": (
        files.joined([*FACTS, files.fact("general.type", 8, "adapter")], 1, _tensor(), bytes(128)), Unsupported, "adapter",
    ),
    "pictures": (
        files.joined([files.fact("general.architecture", 8, "clip")], 1, _tensor(), bytes(128)), Unsupported, "no text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_with_a_sentence(tmp_path: Path, lie: str) -> None:
    data, kind, says = LIES[lie]
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(kind, match=says):
        inspect(str(tmp_path / "a.gguf"))


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """What the files' weights are."""
    return {}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, kept: dict[str, Any]) -> Iterator[httpx.Client]:
    pytest.importorskip("xllamacpp", reason="the extra gguf is not installed")
    home = tmp_path_factory.mktemp("home")
    workspace = open_home(home)
    for kind in files.KINDS:
        path, name = home / f"{kind}.gguf", kind.lower()
        kept[name] = files.write(path, kind, files.TEMPLATE if kind == "F32" else None)
        version = build(workspace, BuildSpec(name, str(path)))
        assert version.passed and version.engine == "llama.cpp"
        workspace.catalog.deploy(name)
    secret = workspace.keys.create("all", ["infer", "deploy", "admin"])[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAASDAM_HOST_STALL_SECONDS", "15")
        with serving(home, secret, "--grpc-port", "0") as service, service.client() as asking:
            yield asking


def _ask(client: httpx.Client, name: str, **more: Any) -> Any:
    body = {"model": name, "prompt": "hello", "max_tokens": 12, "temperature": 0} | more
    return client.post("/v1/completions", json=body)


def _bytes(answer: Any) -> list[int]:
    """The bytes of its tokens, each of which is one."""
    found: list[int] = []
    for token in answer["choices"][0]["logprobs"]["tokens"]:
        is_spelled = token.startswith("bytes:")
        found += bytes.fromhex(token[6:].replace("\\x", "")) if is_spelled else token.encode()
    return found


@pytest.mark.parametrize("name", ["f32", "f16", "q8_0"])
def test_greedy_tokens_are_those_of_transformers_with_the_same_weights(
    client: httpx.Client, kept: dict[str, Any], name: str
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=files.WORDS, hidden_size=files.WIDTH, intermediate_size=files.INNER, num_hidden_layers=files.LAYERS,
        num_attention_heads=files.HEADS, num_key_value_heads=files.HEADS, max_position_embeddings=256, rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict({key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in kept[name].items()})
    ids = torch.tensor([list(b"hello")])
    with torch.no_grad():
        for _ in range(12):
            logits = model(ids).logits[0, -1]
            logits[256:] = -torch.inf
            ids = torch.cat([ids, logits.argmax().reshape(1, 1)], 1)
    answer = _ask(client, name, logprobs=0, logit_bias={"256": -100, "257": -100})
    assert answer.status_code == 200, answer.text
    assert _bytes(answer.json()) == ids[0, 5:].tolist()
    assert answer.json()["usage"]["prompt_tokens"] == 5 and answer.json()["usage"]["completion_tokens"] == 12


def test_a_bias_forces_a_token_and_forbids_one(client: httpx.Client) -> None:
    free = _bytes(_ask(client, "f32", logprobs=0).json())
    forced = _bytes(_ask(client, "f32", logprobs=0, logit_bias={str(ord("A")): 100}).json())
    assert forced == [ord("A")] * 12 and free != forced
    without = _bytes(_ask(client, "f32", logprobs=0, logit_bias={str(free[0]): -100}).json())
    assert free[0] not in without


@pytest.mark.parametrize(
    "bias",
    [
        {"x": 1},
        {"1": 101},
        {"1": "a"},
        {"1": True},
        {"-1": 1},
        [1],
        "a",
        {"99999999999": 1},
        {str(files.WORDS): 1},
        dict.fromkeys(map(str, range(1025)), 1),
    ],
)
def test_biases_that_are_none_are_refused_by_name(client: httpx.Client, bias: Any) -> None:
    refused = _ask(client, "f32", logit_bias=bias)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "logit_bias"


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"echo": True}, "echo"), ({"min_tokens": 3}, "min_tokens"), ({"stop_token_ids": [3]}, "stop_token_ids"),
        ({"guided_regex": "a+"}, "guided_regex"), ({"return_token_ids": True}, "return_token_ids"),
        ({"response_format": {"type": "json_object"}}, "response_format"), ({"max_tokens": 0}, "max_tokens"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_ignore_is_refused_by_name(client: httpx.Client, more: dict[str, Any], field: str) -> None:
    refused = _ask(client, "f32", **more)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == field


def test_chat_takes_the_files_own_template_and_none_is_made_up(client: httpx.Client) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 0, "logprobs": True}
    told = client.post("/v1/chat/completions", json=chat | {"model": "f32"}).json()
    written = _ask(client, "f32", prompt="[user] hi [assistant]", max_tokens=6).json()
    assert told["choices"][0]["message"]["content"] == written["choices"][0]["text"]
    assert told["usage"]["prompt_tokens"] == written["usage"]["prompt_tokens"]
    without = client.post("/v1/chat/completions", json=chat | {"model": "q8_0"})
    assert without.status_code == 400 and "no chat template" in without.text


def test_what_is_left_out_is_neutral(client: httpx.Client) -> None:
    """llama.cpp's own defaults are others: 0.8, the 40 likeliest, 0.95, 0.05."""
    asked = {"seed": 5, "max_tokens": 24}
    mine = _ask(client, "f32", temperature=1, **asked).json()["choices"]
    assert mine == _ask(client, "f32", temperature=1, top_p=1, top_k=-1, min_p=0, **asked).json()["choices"]
    assert mine != _ask(client, "f32", temperature=1, top_k=2, **asked).json()["choices"]


def test_texts_that_are_written_at_once_leave_each_other_room(client: httpx.Client) -> None:
    """Its cache has 256 tokens for all: who used it up took the others' answers with it."""
    asked = {"prompt": "hello" * 10, "max_tokens": 150, "logit_bias": {"256": -100, "257": -100}}
    with ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda _: _ask(client, "f32", **asked), range(3)))
    assert {reply.status_code for reply in replies} == {200}, replies[0].text
    assert {reply.json()["usage"]["completion_tokens"] for reply in replies} == {150}
    assert len({reply.json()["choices"][0]["text"] for reply in replies}) == 1
    long = _ask(client, "f32", prompt="x" * 400)
    assert long.status_code == 400 and long.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_comes_back(client: httpx.Client, how: signal.Signals) -> None:
    wait_until(lambda: all(_ask(client, name).status_code == 200 for name in ("f32", "f16", "q8_0")), 60)
    before = [one for one in _children() if "llama_child" in " ".join(one.cmdline())]
    assert len(before) == 3
    for one in before:
        os.kill(one.pid, how)
    wait_until(lambda: not any(one.is_running() for one in before), 90)
    wait_until(lambda: _ask(client, "f32").status_code == 200, 60)


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_a_file_is_served_as_it_is(tmp_path: Path) -> None:
    files.write(tmp_path / "a.gguf")
    workspace = open_home(tmp_path / "home")
    with pytest.raises(InvalidInput, match="as it is"):
        build(workspace, BuildSpec("a", str(tmp_path / "a.gguf"), recipe="int8"))
