"""Vectors of texts: from sentence-transformers folders to /v1/embeddings, with the numbers that transformers has."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from tests.field.encoders import LONGEST, TEXTS, make, padded, sentences, tokenizer
from tests.served import Process, add_starters, open_home, serving

from maasdam.artifacts.store import Store
from maasdam.core import Example, ReadPayload, Vector
from maasdam.errors import InputTooLong, InvalidInput, InvalidModel, InvalidPayload, Unsupported
from maasdam.sources import examine, ingest
from maasdam.tasks import load_examples, open_processor, task_of

TASK = "feature-extraction"
PATH = "/v1/embeddings"
SIZE = 6
QUERY = "who is in "


def dense(width: int = 16) -> tuple[str, dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(0)
    weights = {"linear.weight": rng.normal(size=(SIZE, width)).astype("f4"), "linear.bias": rng.normal(size=SIZE).astype("f4")}
    config = {
        "in_features": width,
        "out_features": SIZE,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    return "Dense", config, weights


def pooling(**config: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    return "Pooling", {"word_embedding_dimension": 16, **config}, {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT, pooled by the mean, made shorter by a dense layer, normalised; with a prompt, and vectors that may be cut."""
    path = tmp_path_factory.mktemp("bert")
    make(path, "Bert", matryoshka_dimensions=[2, 4])
    flags = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    sentences(path, pooling(**flags), dense(), ("Normalize", {}, {}), prompts={"query": QUERY})
    return path


def wanted(folder: Path, texts: list[str]) -> Any:
    """The vectors, by transformers in one padded batch and by what the folder says."""
    import torch
    import transformers

    answer, mask = padded(transformers.BertModel.from_pretrained(folder), texts)
    mask = mask[..., None].float()
    _, _, weights = dense()
    means = (answer.last_hidden_state * mask).sum(1) / mask.sum(1)
    out = torch.tanh(means @ torch.tensor(weights["linear.weight"]).T + torch.tensor(weights["linear.bias"]))
    return torch.nn.functional.normalize(out).numpy()


@pytest.fixture(scope="module")
def served(folder: Path, starters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The model in ONNX, and a text that is continued beside it."""
    from maasdam.convert import convert
    from maasdam.convert.directions.companions import copy_companions

    home = tmp_path_factory.mktemp("home")
    workspace = open_home(home)
    source = ingest(str(folder), workspace.store)
    assert (source.task, source.layout, source.engine) == (TASK, "huggingface", "pytorch")
    with workspace.store.workspace() as work:
        out = work / "files"
        out.mkdir()
        made = convert(source, "onnx", out)
        copy_companions(source.path, out)
        artifact = workspace.store.add(
            out,
            format="onnx",
            layout="onnx",
            task=TASK,
            engine="onnxruntime",
            signature=made.signature,
            settings={"threads": 1},
        )
    report = {"passed": True, "failures": []}
    workspace.catalog.register("vectors", artifact, source="made by tests", recipe="none", report=report, passes=[])
    workspace.catalog.deploy("vectors")
    add_starters(workspace, starters)
    _, key = workspace.keys.create("test", ["infer"])
    workspace.keys.create("other", ["deploy"])
    workspace.close()
    with serving(home, key) as running:
        yield running


def vectors(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return np.array([row["embedding"] for row in answer.json()["data"]])


def test_texts_of_mixed_lengths_are_what_transformers_makes_of_them(served: Process, folder: Path) -> None:
    texts = wanted(folder, TEXTS)
    with served.client() as client:
        answer = client.post(PATH, json={"model": "vectors", "input": TEXTS})
        together, told = vectors(answer), answer.json()
        assert set(told) == {"object", "data", "model", "usage"} and told["object"] == "list"
        assert [(row["object"], row["index"]) for row in told["data"]] == [("embedding", i) for i in range(len(TEXTS))]
        np.testing.assert_allclose(together, texts, atol=1e-4)
        alone = np.concatenate([vectors(client.post(PATH, json={"model": "vectors", "input": text})) for text in TEXTS])
        np.testing.assert_allclose(alone, together, atol=1e-6)  # neighbours change nothing beyond rounding
        assert told["usage"]["prompt_tokens"] == told["usage"]["total_tokens"] == sum(len(t.split()) + 2 for t in TEXTS) + 1


def test_the_openai_client_reads_both_encodings(served: Process, folder: Path) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key)
    as_base64 = client.embeddings.create(model="vectors", input=TEXTS[:2])  # the client's own default
    floats = client.embeddings.create(model="vectors", input=TEXTS[:2], encoding_format="float", user="me")
    np.testing.assert_allclose([x.embedding for x in as_base64.data], wanted(folder, TEXTS[:2]), atol=1e-4)
    np.testing.assert_array_equal(
        np.array([x.embedding for x in as_base64.data], "f4"), np.array([x.embedding for x in floats.data], "f4")
    )
    raw = httpx.post(
        f"{served.url}{PATH}", headers=served.headers, json={"model": "vectors", "input": "a dog", "encoding_format": "base64"}
    )
    data = base64.b64decode(raw.json()["data"][0]["embedding"])
    assert len(data) == 4 * SIZE
    with pytest.raises(openai.BadRequestError, match=r"does text-generation, not .*feature-extraction; use POST /v1/chat"):
        client.embeddings.create(model="text", input="a dog")
    models = {model.id: model.to_dict() for model in client.models.list()}
    assert models["vectors"]["max_model_len"] == LONGEST
    assert models["vectors"]["capabilities"]["embeddings"] is True and models["text"]["capabilities"]["embeddings"] is False


def test_token_ids_are_taken_as_they_are(served: Process) -> None:
    with served.client() as client:
        said = vectors(client.post(PATH, json={"model": "vectors", "input": "a dog"}))
        for given in ([2, 6, 8, 3], [[2, 6, 8, 3]]):
            np.testing.assert_array_equal(vectors(client.post(PATH, json={"model": "vectors", "input": given})), said)


def test_prompts_dimensions_and_cutting_have_their_effect(served: Process, folder: Path) -> None:
    def ask(**more: Any) -> Any:
        return client.post(PATH, json={"model": "vectors", "input": "the cat", **more})

    with served.client() as client:
        whole, query = vectors(ask()), vectors(ask(prompt_name="query"))
        np.testing.assert_allclose(query, wanted(folder, [f"{QUERY}the cat"]), atol=1e-4)
        assert np.abs(query - whole).max() > 0.01
        short = vectors(ask(dimensions=4))
        np.testing.assert_allclose(short, whole[:, :4] / np.linalg.norm(whole[:, :4]), atol=1e-6)
        np.testing.assert_array_equal(vectors(ask(dimensions=SIZE)), whole)
        long = " ".join(TEXTS)
        refused = ask(input=long)
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"
        cut = ask(input=["a dog", long], truncate_prompt_tokens=-1)
        np.testing.assert_allclose(vectors(cut), wanted(folder, ["a dog", long]), atol=1e-4)
        assert cut.json()["usage"]["maasdam"]["truncated"] == [1]
        assert "truncated" not in ask().json()["usage"]["maasdam"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [["a"]]}, "input[0]"),
        ({"input": {"texts": "a"}}, "input.texts"),
        ({"input": [True]}, "input[0]"),
        ({"input": [[]]}, "input[0]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [1 << 70]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [4000]}, None),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 3}, "dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 1e3}, "dimensions"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"input": "a", "truncate_prompt_tokens": True}, "truncate_prompt_tokens"),
        ({"input": "a", "prompt_name": "Query"}, "prompt_name"),
        ({"input": "a", "normalize": False}, "normalize"),
        ({"input": "a " * 500_000}, None),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(served: Process, body: dict[str, Any], param: str | None) -> None:
    with served.client() as client:
        refused = client.post(PATH, json={"model": "vectors", **body})
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["param"] == param and len(refused.json()["error"]["message"]) > 20


def test_half_characters_other_models_and_other_keys_are_refused(served: Process) -> None:
    with served.client() as client:
        raw = b'{"model": "vectors", "input": "\\ud800"}'
        assert client.post(PATH, content=raw, headers={"content-type": "application/json"}).status_code == 400
        assert client.post(PATH, json={"model": "nobody", "input": "a"}).json()["error"]["code"] == "model_not_found"
        refused = client.post(PATH, json={"model": "images", "input": "a"}).json()["error"]["message"]
        assert refused == (
            "this model does image-classification, not zero-shot-image-classification or image-feature-extraction or "
            "feature-extraction; use POST /v1/images/classifications"
        )
        assert client.post("/v1/completions", json={"model": "vectors", "prompt": "a"}).status_code == 400
        assert httpx.post(f"{served.url}{PATH}", json={"model": "vectors", "input": "a"}).status_code == 401


def test_a_request_of_many_texts_is_one_row_of_all_their_tokens_and_no_crowd(served: Process) -> None:
    texts = [f"the {'cat ' * (i % 9)}" for i in range(600)]  # more than wait in the queue
    with served.client() as client:
        answer = client.post(PATH, json={"model": "vectors", "input": texts})
        assert vectors(answer).shape == (600, SIZE)
    workspace = open_home(served.log.parent)
    row = workspace.ledger.row(answer.headers["x-request-id"])
    workspace.close()
    assert row is not None and (row["items"], row["endpoint"], row["status"]) == (600, PATH, 200)
    assert row["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"] == sum(i % 9 + 3 for i in range(600))


def test_its_tensors_are_served_too(served: Process, folder: Path) -> None:
    """Rows padded as the caller pads them, with a mask: states of tokens, and padding changes no other row."""
    import transformers

    module = transformers.BertModel.from_pretrained(folder)
    answer, mask = padded(module, TEXTS[:4])
    asked = tokenizer()(TEXTS[:4], return_tensors="np", padding=True)
    inputs = [
        {"name": name, "datatype": "INT64", "shape": list(asked[name].shape), "data": asked[name].ravel().tolist()}
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    with served.client() as client:
        (states,) = client.post("/v2/models/vectors/infer", json={"inputs": inputs}).json()["outputs"]
    got = np.array(states["data"]).reshape(states["shape"])
    keep = mask.numpy().astype(bool)
    np.testing.assert_allclose(got[keep], answer.last_hidden_state.numpy()[keep], atol=1e-4)


MODES = {
    "cls": lambda x, m: x[:, 0],
    "max": lambda x, m: x.masked_fill(m[..., None] == 0, float("-inf")).max(1).values,
    "mean": lambda x, m: (x * m[..., None]).sum(1) / m.sum(1, keepdim=True),
    "mean_sqrt_len_tokens": lambda x, m: (x * m[..., None]).sum(1) / m.sum(1, keepdim=True).sqrt(),
    "weightedmean": lambda x, m: (x * (w := m * (m.cumsum(1)))[..., None]).sum(1) / w.sum(1, keepdim=True),
    "lasttoken": lambda x, m: x[range(len(x)), m.sum(1).long() - 1],
}


@pytest.mark.parametrize("modes", [*([mode] for mode in MODES), ["max", "mean"]])
def test_every_way_of_pooling_is_that_of_sentence_transformers(modes: list[str], tmp_path: Path) -> None:
    import torch

    module = make(tmp_path, "DistilBert")
    sentences(tmp_path, pooling(pooling_mode=modes if len(modes) > 1 else modes[0]))
    answer, mask = padded(module, TEXTS)
    expected = torch.cat([MODES[mode](answer.last_hidden_state, mask.float()) for mode in modes], dim=-1).numpy()
    np.testing.assert_allclose(answered(tmp_path, TEXTS), expected, atol=1e-5)


def answered(folder: Path, texts: list[str], **how: Any) -> Any:
    """Vectors by the module in torch and our processor."""
    from maasdam.engines import open_engine

    store = Store(folder.parent / f"{folder.name}-store")
    artifact = ingest(str(folder), store, task=TASK)
    processor: Any = open_processor(TASK, artifact.path, artifact.signature)
    engine: Any = open_engine(artifact, threads=1)
    payloads = [ReadPayload(text, **how) for text in texts]
    return np.array([processor.finish([engine.run(row) for row in processor.prepare(p)], p).values for p in payloads])


def test_a_plain_encoder_is_pooled_by_the_mean_where_the_task_is_named(tmp_path: Path) -> None:
    module = make(tmp_path, "MPNet")
    answer, mask = padded(module, TEXTS)
    np.testing.assert_allclose(answered(tmp_path, TEXTS), MODES["mean"](answer.last_hidden_state, mask).numpy(), atol=1e-5)
    assert examine(str(tmp_path)).inspection.task is None


def test_a_head_that_the_folder_brings_is_left_out_and_a_prompt_is_not_pooled(tmp_path: Path) -> None:
    """all-mpnet-base-v2's config.json names MPNetForMaskedLM; instructor models leave their prompts out."""
    module = make(tmp_path, "Bert", "ForMaskedLM")
    sentences(tmp_path, pooling(include_prompt=False), prompts={"query": QUERY})
    answer, _ = padded(module.base_model, [f"{QUERY}the cat"])
    expected = answer.last_hidden_state[0, 1 + len(QUERY.split()) :].mean(0).numpy()
    np.testing.assert_allclose(answered(tmp_path, ["the cat"], role="query")[0], expected, atol=1e-5)


def opened(folder: Path, **config: Any) -> Any:
    sentences(folder, *config.pop("modules", [pooling()]))
    artifact = ingest(str(folder), Store(folder.parent / f"{folder.name}-store"), task=TASK)
    return open_processor(TASK, artifact.path, artifact.signature)


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        ([("Normalize", {}, {})], "no Pooling"),
        ([pooling(pooling_mode="median")], "'median'"),
        ([pooling(), ("Dense", {"in_features": 16, "out_features": 6}, {})], "no model.safetensors"),
        ([pooling(), ("Dense", {"in_features": 8, "out_features": 6}, dense()[2])], "sizes"),
        ([pooling(), ("Dense", {**dense()[1], "activation_function": "my.Own"}, dense()[2])], "'Own'"),
        ([pooling(), ("Dense", {**dense()[1], "module_input_name": "token_embeddings"}, dense()[2])], "token_embeddings"),
    ],
)
def test_a_folder_that_is_not_understood_is_refused_by_its_module(modules: Any, says: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises((Unsupported, InvalidModel), match=says):
        opened(tmp_path, modules=modules)


@pytest.mark.parametrize("path", ["../1_Pooling", "/etc", "a/b", ".."])
def test_a_module_lies_beside_the_model(path: str, tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([{"path": path, "type": "sentence_transformers.models.Pooling"}]))
    with pytest.raises(InvalidModel, match="plain name"):
        examine(str(tmp_path))


def test_long_texts_are_cut_as_transformers_cuts_them(tmp_path: Path) -> None:
    make(tmp_path)
    reader = opened(tmp_path).reader
    long, short = "cat dog river house " * 10, "who runs ?"
    for pair in ((long, None), (short, long), (long, short), (long, long), (short, short)):
        told = tokenizer()(*[one for one in pair if one], truncation=True)
        words = reader.words(*pair, cuts=True)
        assert (words.ids, words.kinds) == (told["input_ids"], told["token_type_ids"]), pair
        assert (words.cut > 0) == (long in pair)
    with pytest.raises(InputTooLong):
        reader.words(long)
    with pytest.raises(InvalidPayload):
        reader.ids([])


def test_the_metric_is_the_agreement_of_neighbours_with_the_source(tmp_path: Path) -> None:
    """Numbers that are all a little off, or turned as a whole, change no neighbour; two texts that change places do."""
    beside = task_of(TASK).metric.beside
    assert beside is not None
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, 8)).astype("f4")
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    examples = [Example(str(i), ReadPayload("a")) for i in range(12)]

    def score(other: Any) -> Any:
        return beside([Vector(row) for row in other], [Vector(row) for row in rows], examples)

    assert score(rows).value == score(rows @ turn).value == score(3 * rows).value == 1.0
    assert score(rows[::-1]).value < 0.7 and score(rows).extra["cosine"] == pytest.approx(1)
    assert beside([Vector(rows[0])] * 2, [Vector(rows[0])] * 2, examples[:2]) is None
    same = beside([Vector(rows[0])] * 5, [Vector(rows[0])] * 5, examples[:5])
    assert same is not None and same.value == 1.0  # of equals any is the nearest


def test_examples_are_lines_and_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"text": "three", "more": 1}\n')
    (tmp_path / "c.csv").write_text("text,label\nfour,x\n")
    found = load_examples(TASK, tmp_path)
    assert [example.payload.text for example in found] == ["one", "two", "three", "four"]  # type: ignore[union-attr]  # all read texts
    (tmp_path / "b.jsonl").write_text('{"sentence": "three"}\n')
    with pytest.raises(InvalidInput, match=r"b.jsonl line 1 has no 'text'"):
        load_examples(TASK, tmp_path)
