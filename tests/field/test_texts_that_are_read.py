"""Ranking, classes, moderation, entities, masks, answers and tokens of texts, with what transformers says of the same."""

from __future__ import annotations

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
from maasdam.core import Relevance, Span, Spans, SpellPayload
from maasdam.errors import InvalidInput, InvalidModel
from maasdam.serving.replica import check_kind
from maasdam.sources import examine, ingest
from maasdam.tasks import load_examples, open_processor, score, task_of

QUERY = "who runs the house ?"
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ranker": ("Bert", "ForSequenceClassification", {"num_labels": 1}),
    "moods": ("DistilBert", "ForSequenceClassification", {"id2label": {0: "sad", 1: "glad", 2: "even"}}),
    "guard": ("Roberta", "ForSequenceClassification", {"id2label": {0: "OK", 1: "H", 2: "S3"}}),
    "names": ("MPNet", "ForTokenClassification", {"id2label": {0: "I-LOC", 1: "O", 2: "B-PER", 3: "I-PER"}}),
    "masks": ("ModernBert", "ForMaskedLM", {}),
    "answers": ("DebertaV2", "ForQuestionAnswering", {}),
    "vectors": ("Bert", "Model", {}),
}


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """One model of each task, each of another architecture."""
    made = {}
    for name, (kind, head, config) in MODELS.items():
        folder = tmp_path_factory.mktemp(name)
        made[name] = folder, make(folder, kind, head, **config)
    sentences(made["vectors"][0], ("Pooling", {"pooling_mode": "mean"}, {}), ("Normalize", {}, {}))
    return made


@pytest.fixture(scope="module")
def served(modules: dict[str, Any], starters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """All of them as they are, and a text that is continued beside them."""
    home = tmp_path_factory.mktemp("home")
    workspace = open_home(home)
    report = {"passed": True, "failures": []}
    for name, (folder, _) in modules.items():
        artifact = ingest(str(folder), workspace.store)
        workspace.catalog.register(name, artifact, source="made by tests", recipe="none", report=report, passes=[])
        workspace.catalog.promote(name)
        workspace.catalog.deploy(name)
    add_starters(workspace, starters)
    _, key = workspace.keys.create("test", ["infer"])
    workspace.close()
    with serving(home, key) as running:
        yield running


@pytest.fixture
def client(served: Process) -> Iterator[httpx.Client]:
    with served.client() as made:
        yield made


def ask(client: httpx.Client, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def logits(module: Any, texts: list[str], pairs: list[str] | None = None) -> Any:
    return padded(module, texts, **({} if pairs is None else {"text_pair": pairs}))[0].logits


# --- ranking


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_a_cross_encoder_ranks_documents_as_transformers_scores_the_pairs(
    path: str, client: httpx.Client, modules: Any
) -> None:
    wanted = logits(modules["ranker"][1], [QUERY] * len(TEXTS), TEXTS)[:, 0].sigmoid().numpy()
    told = ask(client, path, model="ranker", query=QUERY, documents=TEXTS)
    assert [one["index"] for one in told["results"]] == np.argsort(-wanted, kind="stable").tolist()
    got = np.array([one["relevance_score"] for one in sorted(told["results"], key=lambda one: one["index"])])
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert set(told) == {"id", "model", "results", "meta", "usage"} and "document" not in told["results"][0]
    assert told["meta"]["api_version"]["version"] == path[2:3].replace("e", "1") and "warnings" not in told["meta"]
    asked = [len(tokenizer()(QUERY, text)["input_ids"]) for text in TEXTS]
    assert told["usage"]["total_tokens"] == sum(asked)


def test_documents_come_as_cohere_and_jina_send_them(client: httpx.Client) -> None:
    plain = ask(client, "/v1/rerank", model="ranker", query=QUERY, documents=TEXTS)["results"]
    objects = {"documents": [{"text": text} for text in TEXTS], "top_n": 3, "return_documents": True, "max_chunks_per_doc": 1}
    told = ask(client, "/v1/rerank", model="ranker", query=QUERY, **objects)["results"]
    assert [one["index"] for one in told] == [one["index"] for one in plain[:3]]
    assert [one["document"] for one in told] == [{"text": TEXTS[one["index"]]} for one in plain[:3]]


def test_a_long_document_is_cut_and_said_and_a_long_query_refused(client: httpx.Client, modules: Any) -> None:
    long = " ".join(TEXTS)
    told = ask(client, "/v1/rerank", model="ranker", query=QUERY, documents=[TEXTS[0], long])
    assert told["meta"]["warnings"] == ["longer than the model reads, and cut: documents 1"]
    wanted = logits(modules["ranker"][1], [QUERY] * 2, [TEXTS[0], long])[:, 0].sigmoid().numpy()
    np.testing.assert_allclose(sorted(one["relevance_score"] for one in told["results"]), sorted(wanted), atol=1e-5)
    refused = client.post("/v1/rerank", json={"model": "ranker", "query": long, "documents": [long]})
    assert refused.status_code == 400 and "query is too long" in refused.json()["error"]["message"]


def test_an_embedding_model_ranks_by_cosine(client: httpx.Client) -> None:
    rows = ask(client, "/v1/embeddings", model="vectors", input=[QUERY, *TEXTS])["data"]
    query, *texts = (np.array(row["embedding"]) for row in rows)
    told = ask(client, "/v2/rerank", model="vectors", query=QUERY, documents=TEXTS)["results"]
    got = {one["index"]: one["relevance_score"] for one in told}
    np.testing.assert_allclose([got[i] for i in range(len(TEXTS))], [text @ query for text in texts], atol=1e-5)
    assert [one["relevance_score"] for one in told] == sorted(got.values(), reverse=True)


# --- classes and moderation


def test_texts_are_classified_as_transformers_does(client: httpx.Client, modules: Any) -> None:
    wanted = logits(modules["moods"][1], TEXTS).softmax(-1).numpy()
    told = ask(client, "/v1/texts/classifications", model="moods", input=TEXTS, top_k=3)
    assert told["usage"]["prompt_tokens"] == sum(len(tokenizer()(text)["input_ids"]) for text in TEXTS)
    for labels, row in zip(told["data"], wanted, strict=True):
        assert {one["label"] for one in labels} == {"sad", "glad", "even"}
        assert [one["score"] for one in labels] == sorted((one["score"] for one in labels), reverse=True)
        np.testing.assert_allclose([one["score"] for one in sorted(labels, key=lambda one: one["label_id"])], row, atol=1e-5)
    (best,) = ask(client, "/v1/texts/classifications", model="moods", input=TEXTS[0], top_k=1)["data"]
    assert best["label_id"] == int(wanted[0].argmax())


def test_the_openai_client_moderates_and_what_a_model_does_not_tell_is_said(served: Process, modules: Any) -> None:
    wanted = logits(modules["guard"][1], TEXTS).softmax(-1).numpy()
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key)
    told = client.moderations.create(model="guard", input=TEXTS)
    for result, row in zip(told.results, wanted, strict=True):
        scores = result.category_scores.to_dict()
        np.testing.assert_allclose([scores["hate"], scores["sexual/minors"]], row[1:], atol=1e-5)
        assert scores["violence"] == 0 and len(scores) == 13
        assert result.flagged == bool((row[1:] > 0.5).any()) and result.categories.hate == bool(row[1] > 0.5)
        own: Any = result.to_dict()["maasdam"]
        assert (
            "violence" in own["not_classified"]
            and "hate" not in own["not_classified"]
            and set(own["labels"]) == {"OK", "H", "S3"}
        )
        assert result.category_applied_input_types.to_dict()["violence"] == []
    assert {bool((row[1:] > 0.5).any()) for row in wanted} == {True, False}, "the texts show both"
    parts = client.moderations.create(model="guard", input=[{"type": "text", "text": TEXTS[0]}])
    assert parts.results[0].category_scores.hate == told.results[0].category_scores.hate
    with pytest.raises(openai.BadRequestError, match=r"classes \(sad, glad, even\) stand for none"):
        client.moderations.create(model="moods", input="a")
    with pytest.raises(openai.BadRequestError, match="text-generation, not text-classification"):
        client.moderations.create(model="text", input="a")


# --- entities, masks, answers


def test_entities_are_the_stretches_that_transformers_finds(client: httpx.Client, modules: Any) -> None:
    import transformers

    texts = ["the dogs sat in london", *TEXTS[:4]]
    find = transformers.TokenClassificationPipeline(
        model=modules["names"][1], tokenizer=tokenizer(), aggregation_strategy="first"
    )
    found = ask(client, "/v1/texts/entities", model="names", input=texts)["data"]
    for text, got in zip(texts, found, strict=True):
        wanted = find(text)
        assert [(s["start"], s["end"], s["label"]) for s in got] == [
            (w["start"], w["end"], w["entity_group"]) for w in wanted
        ], text
        np.testing.assert_allclose([s["score"] for s in got], [w["score"] for w in wanted], atol=1e-4)
        assert all(text[s["start"] : s["end"]] == s["text"] for s in got)
    assert any(found)


def test_masks_are_filled_as_transformers_does(client: httpx.Client, modules: Any) -> None:
    texts = ["the [MASK] sat on the mat", "[MASK] is a big [MASK]"]
    out, _ = padded(modules["masks"][1], texts)
    found = ask(client, "/v1/texts/masks", model="masks", input=texts, top_k=3)["data"]
    chances = out.logits.softmax(-1)
    for at, (row, place) in enumerate([(0, 2), (1, 1), (1, 5)]):
        best = chances[row, place].topk(3)
        got = (found[0] + found[1])[3 * at : 3 * at + 3]
        assert [one["token_id"] for one in got] == best.indices.tolist()
        assert [one["text"] for one in got] == [tokenizer().decode([i]).strip() for i in best.indices]
        np.testing.assert_allclose([one["score"] for one in got], best.values, atol=1e-5)
        assert texts[row][got[0]["start"] : got[0]["end"]] == "[MASK]"


def test_answers_are_the_best_stretches_of_the_context(client: httpx.Client, modules: Any) -> None:
    context = "a red cat sat in the big house . paris is a city"
    out, _ = padded(modules["answers"][1], [QUERY], text_pair=[context])
    of = tokenizer()(QUERY, context).sequence_ids()
    hides = np.where([i == 1 for i in of], 0.0, -1e4)
    starts, ends = (np.exp(x[0].numpy() + hides - x[0].numpy().max()) for x in (out.start_logits, out.end_logits))
    starts, ends = starts / starts.sum(), ends / ends.sum()
    table = np.triu(np.outer(starts, ends))
    start, end = np.unravel_index(table.argmax(), table.shape)
    offsets = tokenizer()(QUERY, context, return_offsets_mapping=True)["offset_mapping"]
    best, *_ = ask(client, "/v1/texts/answers", model="answers", question=QUERY, context=context, top_k=2)["data"]
    assert (best["start"], best["end"]) == (offsets[start][0], offsets[end][1])
    assert best["text"] == context[best["start"] : best["end"]] and best["score"] == pytest.approx(table.max(), abs=1e-5)
    long = ask(client, "/v1/texts/answers", model="answers", question=QUERY, context=f"{context} . " * 5)["data"]
    assert len(long) == 1 and 0 < long[0]["score"] <= 1  # read in windows


# --- tokens


def test_tokens_are_counted_as_vllm_does(client: httpx.Client, starters: Path) -> None:
    import transformers

    told = ask(client, "/tokenize", model="vectors", prompt="the dogs sat", return_token_strs=True)
    assert told == {
        "count": 6,
        "max_model_len": LONGEST,
        "tokens": tokenizer()("the dogs sat")["input_ids"],
        "token_strs": ["[CLS]", "the", "dog", "##s", "sat", "[SEP]"],
    }
    bare = ask(client, "/tokenize", model="vectors", prompt="the dogs sat", add_special_tokens=False)
    assert bare["tokens"] == told["tokens"][1:-1] and bare["token_strs"] is None
    assert ask(client, "/detokenize", model="vectors", tokens=told["tokens"])["prompt"] == "[CLS] the dogs sat [SEP]"
    own = transformers.AutoTokenizer.from_pretrained(starters / "text" / "model")
    prompt = "What is done, is done. é"
    told = ask(client, "/tokenize", model="text", prompt=prompt)
    assert told["tokens"] == own(prompt)["input_ids"] and told["count"] == len(told["tokens"]) and told["max_model_len"] > 0
    assert ask(client, "/detokenize", model="text", tokens=told["tokens"])["prompt"] == own.decode(told["tokens"])
    assert ask(client, "/detokenize", model="text", tokens=[])["prompt"] == ""
    usage = ask(client, "/v1/completions", model="text", prompt=prompt, max_tokens=1)["usage"]
    assert usage["prompt_tokens"] == told["count"]


def test_a_chat_is_tokenized_as_it_is_answered(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    answer = client.post("/v1/chat/completions", json={"model": "text", "messages": messages, "max_tokens": 1})
    told = client.post("/tokenize", json={"model": "text", "messages": messages})
    assert told.status_code == answer.status_code
    if told.status_code == 200:
        assert told.json()["count"] == answer.json()["usage"]["prompt_tokens"]
    refused = client.post("/tokenize", json={"model": "vectors", "messages": messages})
    assert refused.status_code == 400 and "no chat" in refused.json()["error"]["message"]


def test_tokens_of_a_model_that_another_server_runs_are_not_told() -> None:
    with pytest.raises(InvalidInput, match="its tokenizer is on the server that runs it"):
        check_kind("text-generation", SpellPayload(text="a"))


# --- bad input, keys, rows


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"model": "ranker", "query": "", "documents": ["a"]}, "query"),
        ("/v1/rerank", {"model": "ranker", "query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"model": "ranker", "query": "a", "documents": ["a"] * 1001}, "documents"),
        ("/v1/rerank", {"model": "ranker", "query": "a", "documents": [{"image": "x"}]}, "documents[0].image"),
        ("/v1/rerank", {"model": "ranker", "query": "a", "documents": ["a", None]}, "documents[1]"),
        ("/v1/rerank", {"model": "ranker", "query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"model": "ranker", "query": "a", "documents": ["a"], "rank_fields": ["title"]}, "rank_fields"),
        ("/v1/rerank", {"model": "ranker", "query": "a", "documents": ["a"], "max_tokens_per_doc": 3}, "max_tokens_per_doc"),
        ("/v2/rerank", {"model": "ranker", "query": "a", "documents": ["a"], "relevant_spans": {"n": 1}}, "relevant_spans"),
        ("/rerank", {"model": "moods", "query": "a", "documents": ["a"]}, None),
        ("/rerank", {"model": "text", "query": "a", "documents": ["a"]}, None),
        ("/v1/embeddings", {"model": "ranker", "input": "a"}, None),
        ("/v1/moderations", {"model": "guard", "input": [{"type": "image_url", "image_url": {"url": "x"}}]}, "input[0].type"),
        ("/v1/moderations", {"model": "guard", "input": []}, "input"),
        ("/v1/moderations", {"model": "guard", "input": [["a"]]}, "input[0]"),
        ("/v1/moderations", {"model": "guard", "input": "a " * 100_000}, None),
        ("/v1/texts/classifications", {"model": "moods", "input": "a", "top_k": 0}, "top_k"),
        ("/v1/texts/classifications", {"model": "moods", "input": ["a", 3]}, "input[1]"),
        ("/v1/texts/classifications", {"model": "moods", "input": "a", "labels": 2}, "labels"),
        ("/v1/texts/classifications", {"model": "names", "input": "a"}, None),
        ("/v1/texts/entities", {"model": "names", "input": None}, "input"),
        ("/v1/texts/masks", {"model": "masks", "input": "no mask"}, None),
        ("/v1/texts/answers", {"model": "answers", "question": "a " * 40, "context": "a"}, None),
        ("/v1/texts/answers", {"model": "answers", "question": "a", "context": "a " * 3000}, None),
        ("/v1/texts/answers", {"model": "answers", "question": "a", "context": ""}, "context"),
        ("/tokenize", {"model": "vectors"}, "prompt"),
        ("/tokenize", {"model": "vectors", "prompt": "a", "messages": []}, "messages"),
        ("/tokenize", {"model": "text", "messages": [{"role": "user", "content": "a"}], "add_generation_prompt": False},
         "add_generation_prompt"),
        ("/tokenize", {"model": "images", "prompt": "a"}, None),
        ("/tokenize", {"model": "vectors", "prompt": "a", "prompts": 1}, "prompts"),
        ("/detokenize", {"model": "vectors", "tokens": [4000]}, None),
        ("/detokenize", {"model": "vectors", "tokens": [1 << 80]}, "tokens[0]"),
        ("/detokenize", {"model": "vectors", "tokens": "a"}, "tokens"),
        ("/detokenize", {"model": "text", "tokens": [-1]}, "tokens[0]"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused(path: str, body: dict[str, Any], param: str | None, client: httpx.Client) -> None:
    refused = client.post(path, json=body)
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    if path.startswith("/v1/texts"):
        assert len(error["message"]) > 15
    assert error["param"] == param and error["type"] == "invalid_request_error", error


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank", "/tokenize", "/detokenize", "/v1/moderations"])
def test_a_key_and_its_scope_are_needed(path: str, served: Process) -> None:
    workspace = open_home(served.log.parent)
    _, other = workspace.keys.create(f"deploys {path}", ["deploy"])
    workspace.close()
    assert httpx.post(served.url + path, json={"model": "ranker"}).status_code == 401
    refused = httpx.post(served.url + path, json={"model": "ranker"}, headers={"Authorization": f"Bearer {other}"})
    assert refused.status_code == 403 and refused.json()["error"]["type"] == "permission_error"
    missing = httpx.post(served.url + path, json={"model": "nobody", **_least(path)}, headers=served.headers)
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


def _least(path: str) -> dict[str, Any]:
    if path.endswith("rerank"):
        return {"query": "a", "documents": ["a"]}
    return {"/tokenize": {"prompt": "a"}, "/detokenize": {"tokens": [2]}}.get(path, {"input": "a"})


def test_each_request_is_one_row_with_the_tokens_that_were_read(served: Process, client: httpx.Client) -> None:
    ranked = client.post("/v2/rerank", json={"model": "ranker", "query": QUERY, "documents": TEXTS})
    counted = client.post("/tokenize", json={"model": "ranker", "prompt": QUERY})
    capable = {one["id"]: one["capabilities"] for one in client.get("/v1/models").json()["data"]}
    workspace = open_home(served.log.parent)
    row = workspace.ledger.row(ranked.headers["x-request-id"])
    other = workspace.ledger.row(counted.headers["x-request-id"])
    workspace.close()
    assert row is not None and other is not None
    assert (row["endpoint"], row["items"], row["prompt_tokens"]) == ("/v2/rerank", 10, ranked.json()["usage"]["total_tokens"])
    assert (other["endpoint"], other["items"], other["prompt_tokens"]) == ("/tokenize", 1, None)
    able = {
        name: [word for word, can in told.items() if can is True and word != "structured_output"]
        for name, told in capable.items()
    }
    assert able["ranker"] == ["rerank"] and able["vectors"] == ["embeddings", "rerank"] and able["guard"] == ["moderations"]
    assert able["text"] == [] and able["names"] == []
    document = client.get("/openapi.json").json()
    for path in ("/v1/embeddings", "/v2/rerank", "/rerank", "/v1/moderations", "/v1/texts/answers", "/tokenize", "/detokenize"):
        codes = document["paths"][path]["post"]["responses"]
        assert {"200", "400", "401", "403", "404", "429", "500", "503", "504"} <= set(codes), path
        assert codes["400"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Error-openai"}


# --- folders, data, metrics


def test_one_class_is_a_score_and_several_are_classes(modules: Any, tmp_path: Path) -> None:
    tasks = {name: examine(str(folder)).inspection.task for name, (folder, _) in modules.items()}
    assert tasks == {
        "ranker": "text-ranking", "moods": "text-classification", "guard": "text-classification",
        "names": "token-classification", "masks": "fill-mask", "answers": "question-answering", "vectors": "feature-extraction",
    }  # fmt: skip
    store = Store(tmp_path)
    one = ingest(str(modules["ranker"][0]), store, task="text-classification")  # a score of one text
    assert one.task == "text-classification"
    many = ingest(str(modules["moods"][0]), store, task="text-ranking")
    with pytest.raises(InvalidModel, match="it tells classes apart"):
        open_processor("text-ranking", many.path, many.signature)


def test_tags_in_any_way_to_write_them_are_stretches(tmp_path: Path) -> None:
    names = {0: "O", 1: "B-LOC", 2: "I-LOC", 3: "PER"}
    rows = [
        {"tokens": ["big", "london", "city", "paris"], "ner_tags": [0, 1, 2, 1]},
        {"tokens": ["who", "sat"], "ner_tags": [3, 3]},
        {"tokens": ["the", "cat"], "ner_tags": ["O", "S-PER"]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    examples = load_examples("token-classification", tmp_path, labels=names)
    assert [example.truth for example in examples] == [((4, 15, "LOC"), (16, 21, "LOC")), ((0, 7, "PER"),), ((4, 7, "PER"),)]
    right = [Spans(tuple(Span("", *place, 1.0, label) for *place, label in example.truth)) for example in examples]
    assert score("token-classification", right, examples).value == 1.0
    half = [Spans(right[0].spans[:1]), Spans(()), right[2]]
    assert score("token-classification", half, examples).value == pytest.approx(2 * 2 / (2 + 4))
    (tmp_path / "a.jsonl").write_text('{"tokens": ["a"], "ner_tags": [0, 0]}')
    with pytest.raises(InvalidInput, match="one for each"):
        load_examples("token-classification", tmp_path, labels=names)


def test_answers_are_scored_as_squad_has_it(tmp_path: Path) -> None:
    row = {"question": "who ?", "context": "the red cat sat", "answers": {"text": ["the red cat", "cat"]}}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    examples = load_examples("question-answering", tmp_path)

    def of(text: str) -> Any:
        return score("question-answering", [Spans((Span(text, 0, 0, 1.0),))], examples)

    assert of("Red cat!").value == 1.0 and of("Red cat!").extra == {"exact": 1.0}
    assert of("cat sat").value == pytest.approx(2 / 3) and of("dog").value == 0.0


def test_masks_are_scored_by_the_likeliest_word(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "the [MASK]", "answer": "cat"}')
    examples = load_examples("fill-mask", tmp_path)
    found = Spans((Span("dog", 4, 10, 0.6), Span("cat", 4, 10, 0.3)))
    told = score("fill-mask", [found], examples)
    assert (told.metric, told.value, told.extra) == ("top1", 0.0, {"top5": 1.0})


def test_the_metric_of_ranking_is_the_order_within_each_query(tmp_path: Path) -> None:
    rows = [{"query": "a", "documents": ["x", "y", "z"]}, {"query": "b", "document": "x"}, {"query": "b", "document": "y"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    examples = load_examples("text-ranking", tmp_path)
    assert [e.payload.beside for e in examples] == ["x", "y", "z", "x", "y"]  # type: ignore[union-attr]  # all are read
    truths = [Relevance(s) for s in (0.9, 0.5, 0.1, 0.2, 0.2)]
    beside = task_of("text-ranking").metric.beside
    assert beside is not None

    def of(*scores: float) -> Any:
        return beside([Relevance(s) for s in scores], truths, examples)

    assert of(0.3, 0.2, 0.1, 0.9, 0.1).value == 1.0  # what the source has equal is in no order
    assert of(0.3, 0.1, 0.2, 0.5, 0.5).value == pytest.approx(2 / 3) and of(0.1, 0.2, 0.3, 0.5, 0.5).value == 0.0
    assert beside(truths[3:], truths[3:], examples[3:]) is None


def test_labelled_rows_are_read_and_pairs_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,text_pair\nfine,glad,\nbad,0,indeed\n")
    first, second = load_examples("text-classification", tmp_path, labels={0: "sad", 1: "glad"})
    assert (first.truth, second.truth, second.payload.beside) == (1, 0, "indeed")  # type: ignore[union-attr]  # all are read
    unlabelled = load_examples("text-classification", tmp_path)
    assert [e.truth for e in unlabelled] == [None, None]
    with pytest.raises(InvalidInput, match="label 'glad'"):
        load_examples("text-classification", tmp_path, labels={0: "x", 1: "y"})


def test_the_command_line_reads_texts_rows_and_objects(
    served: Process, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any
) -> None:
    from maasdam.cli import main

    monkeypatch.setenv("MAASDAM_HOME", str(served.log.parent))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"query": QUERY, "document": TEXTS[0]}) + "\n")
    with pytest.raises(SystemExit) as done:
        main(["run", "ranker", str(tmp_path / "rows.jsonl"), json.dumps({"query": QUERY, "document": TEXTS[1]}), "--json"])
    assert done.value.code == 0
    answers = json.loads(capfd.readouterr().out)["answers"]
    with served.client() as client:
        told = ask(client, "/v1/rerank", model="ranker", query=QUERY, documents=TEXTS[:2])["results"]
    wanted = [one["relevance_score"] for one in sorted(told, key=lambda one: one["index"])]
    assert [answer["relevance_score"] for answer in answers] == pytest.approx(wanted, abs=1e-5)


# --- verification

ROWS: dict[str, list[dict[str, Any]]] = {
    "ranker": [{"query": QUERY, "documents": TEXTS[:4]}, {"query": TEXTS[0], "documents": TEXTS[4:8]}],
    "moods": [{"text": text, "label": ("sad", "glad", "even")[i % 3]} for i, text in enumerate(TEXTS)],
    "names": [{"tokens": text.split(), "ner_tags": [i % 3 for i, _ in enumerate(text.split())]} for text in TEXTS],
    "masks": [{"text": text.replace("the", "[MASK]", 1), "answer": "the"} for text in TEXTS if "the" in text],
    "answers": [{"question": QUERY, "context": text, "answers": {"text": [text.split()[0]]}} for text in TEXTS],
    "vectors": [{"text": text} for text in TEXTS],
}
METRICS = {"ranker": "order", "moods": "top1", "names": "f1", "masks": "top1", "answers": "f1", "vectors": "neighbours"}


@pytest.mark.parametrize("name", ROWS)
def test_each_task_is_verified_by_its_own_metric(name: str, modules: Any, tmp_path: Path) -> None:
    """The masks through a conversion of ModernBERT, whose padding says nothing; the others against themselves."""
    from maasdam.convert import convert
    from maasdam.convert.directions.companions import copy_companions
    from maasdam.convert.proof.certificate import certify
    from maasdam.pipeline.conditions import Conditions
    from maasdam.pipeline.examples import evaluation_examples
    from maasdam.pipeline.recipe import Limits
    from maasdam.pipeline.verify import verify

    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in ROWS[name]))
    store = Store(tmp_path / "store")
    source = candidate = ingest(str(modules[name][0]), store)
    if name == "masks":
        out = tmp_path / "onnx"
        out.mkdir()
        made = convert(source, "onnx", out)
        copy_companions(source.path, out)
        facts = {"signature": made.signature, "settings": {"threads": 1}}
        candidate = store.add(out, format="onnx", layout="onnx", task=source.task, engine="onnxruntime", **facts)  # type: ignore[arg-type]  # facts of two types
        certify(source, candidate, seeds=(0, 1))
    quick = Conditions(threads=1, measure_seconds=0.0, measures_memory=False)
    report = verify(candidate, [source], source, evaluation_examples(source, data), Limits(max_drop=0.0), quick)
    assert (report.metric, report.failures) == (METRICS[name], ()) and report.candidate.accuracy == report.reference.accuracy
    if name in ("ranker", "vectors"):
        assert report.candidate.accuracy == 1.0
    assert report.parity["max_abs_diff"] < 1e-4 and report.samples[0]["candidate"] == report.samples[0]["reference"]
