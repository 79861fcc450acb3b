"""A caller's own labels for pictures, and vectors of pictures and texts: the numbers that transformers has, over HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.field.test_transparency import saved
from tests.field.two_towers import LONGEST, SEES, make
from tests.served import Process, add_starters, open_home, serving

from maasdam.artifacts.store import Store
from maasdam.cli import main
from maasdam.core import Classification, ImagePayload
from maasdam.engines import open_engine
from maasdam.errors import InvalidField, Unsupported
from maasdam.sources.examine import examine
from maasdam.sources.ingest import ingest
from maasdam.tasks import load_examples, open_processor
from maasdam.tasks.zero_shot import TEMPLATE, Kept

PATH, VECTORS = "/v1/images/classifications", "/v1/embeddings"
LABELS = ["cat", "red dog", "the big blue car"]
PICTURES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)) for i in range(3)]
FILES = [saved(picture) for picture in PICTURES]


def wanted(folder: Path, picture: Image.Image, **how: Any) -> dict[str, float]:
    import transformers

    pipe: Any = transformers.pipeline("zero-shot-image-classification", model=str(folder), device="cpu")
    return {x["label"]: x["score"] for x in pipe(picture, candidate_labels=LABELS, **how)}


def opened(folder: Path, store: Path) -> tuple[Any, Any]:
    artifact = ingest(str(folder), Store(store))
    return open_processor(str(artifact.task), artifact.path, artifact.signature), open_engine(artifact, threads=1)


def asked(processor: Any, engine: Any, payload: Any) -> Any:
    return processor.finish([engine.run(row) for row in processor.prepare(payload)], payload)


@pytest.mark.parametrize("kind", LONGEST)
def test_scores_are_those_of_transformers_and_labels_are_read_once(kind: str, tmp_path: Path) -> None:
    make(tmp_path / "model", kind)
    processor, engine = opened(tmp_path / "model", tmp_path / "store")
    payload = ImagePayload(FILES[0], labels=tuple(LABELS))
    rows = []
    for _ in range(2):
        rows.append(processor.prepare(payload)[0]["input_ids"].shape[1])
        found = asked(processor, engine, payload)
        assert isinstance(found, Classification)
        expected = wanted(tmp_path / "model", PICTURES[0])
        assert {x.label: pytest.approx(x.score, abs=1e-6) for x in found.labels} == expected
        assert [LABELS[x.label_id] for x in found.labels] == [x.label for x in found.labels] == list(expected)
    assert rows == [3, 1]
    (one,) = asked(processor, engine, ImagePayload(FILES[0], labels=("cat",))).labels
    assert kind == "Siglip" or one.score == 1


def test_of_kept_vectors_those_in_use_are_not_dropped() -> None:
    row = np.zeros((1, 100), np.float32)
    kept = Kept(1100)
    for name in "abc":
        kept.put((name,), row)
    assert [kept.get((name,)) is not None for name in "abc"] == [True, True, False]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clip")
    make(made)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("data")
    for label in ("cat", "red_dog"):
        (made / label).mkdir()
        for i in range(3):
            (made / label / f"{i}.png").write_bytes(FILES[i])
    return made


@pytest.fixture(scope="module")
def served(folder: Path, data: Path, starters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as done:
        patch.setenv("MAASDAM_HOME", str(home))
        patch.setenv("MAASDAM_MEASURE_SECONDS", "1")
        main(["build", str(folder), "--name", "clip", "--recipe", "fp32", "--to", "onnx", "--data", str(data), "--json"])
    assert done.value.code == 0
    workspace = open_home(home)
    add_starters(workspace, starters, {"images": "digits"})
    workspace.catalog.deploy("clip")
    _, key = workspace.keys.create("test", ["infer"])
    workspace.close()
    with serving(home, key) as running:
        yield running


def test_it_is_built_by_its_metric(served: Process) -> None:
    workspace = open_home(served.log.parent)
    version = workspace.catalog.resolve("clip")
    workspace.close()
    assert version.task == "zero-shot-image-classification" and version.report is not None
    accuracy = version.report["accuracy"]
    assert (accuracy["metric"], accuracy["examples"], accuracy["candidate"]) == ("top1", 6, accuracy["reference"])


def scores(answer: httpx.Response) -> dict[str, float]:
    assert answer.status_code == 200, answer.text
    return {x["label"]: x["score"] for x in answer.json()["data"]}


def test_labels_come_with_the_request_in_forms_and_in_json(served: Process, folder: Path) -> None:
    with served.client() as client:
        for file, picture in zip(FILES, PICTURES, strict=True):
            expected = {name: pytest.approx(score, abs=1e-5) for name, score in wanted(folder, picture).items()}
            assert scores(client.post(PATH, files={"file": file}, data={"model": "clip", "labels": LABELS})) == expected
            body = {"model": "clip", "image": base64.b64encode(file).decode(), "labels": LABELS}
            assert scores(client.post(PATH, json=body)) == expected
            other = wanted(folder, picture, hypothesis_template="the {} !")
            got = scores(client.post(PATH, json=body | {"hypothesis_template": "the {} !"}))
            assert got == {name: pytest.approx(score, abs=1e-5) for name, score in other.items()} and got != expected
            assert list(scores(client.post(PATH, json=body | {"top_k": 1}))) == [
                max(other := wanted(folder, picture), key=other.get)
            ]  # type: ignore[arg-type]  # of floats


def test_pictures_and_texts_have_vectors_that_can_be_compared(served: Process, folder: Path) -> None:
    import torch
    import transformers

    inline = [{"image": f"data:image/png;base64,{base64.b64encode(file).decode()}"} for file in FILES]
    with served.client() as client:
        answer = client.post(VECTORS, json={"model": "clip", "input": [*inline, "red dog", {"text": "cat"}]}).json()
        single = client.post(VECTORS, json={"model": "clip", "input": inline[0]}).json()
    got = np.array([x["embedding"] for x in answer["data"]])
    np.testing.assert_allclose(single["data"][0]["embedding"], got[0], atol=1e-6)
    module: Any = transformers.CLIPModel.from_pretrained(folder)
    pixels = transformers.CLIPImageProcessorPil.from_pretrained(folder)(PICTURES, return_tensors="pt")["pixel_values"]
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(["red dog", "cat"], return_tensors="pt", padding=True)
    with torch.no_grad():
        seen = module.get_image_features(pixels).pooler_output
        read = module.get_text_features(**tokens).pooler_output
    expected = torch.cat([seen, read])
    np.testing.assert_allclose(got, expected / expected.norm(dim=-1, keepdim=True), atol=1e-5)
    assert answer["usage"]["prompt_tokens"] == 4 + 3


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({}, "labels"),
    "none": ({"labels": []}, "labels"),
    "a text": ({"labels": "cat, dog"}, "labels"),
    "an object": ({"labels": {"cat": 1}}, "labels"),
    "numbers": ({"labels": [1, 2]}, "labels[0]"),
    "an empty one": ({"labels": ["cat", " "]}, "labels[1]"),
    "one twice": ({"labels": ["cat", "dog", "cat"]}, "labels[2]"),
    "nested": ({"labels": [["cat"]]}, "labels[0]"),
    "too many": ({"labels": [str(i) for i in range(1001)]}, "labels"),
    "too long to read": ({"labels": ["cat", "dog " * 40]}, "labels[1]"),
    "too long to say": ({"labels": ["x" * 1001]}, "labels[0]"),
    "no place in the template": ({"labels": ["cat"], "hypothesis_template": "a photo"}, "hypothesis_template"),
    "two places": ({"labels": ["cat"], "hypothesis_template": "{} {}"}, "hypothesis_template"),
    "a template that is none": ({"labels": ["cat"], "hypothesis_template": 5}, "hypothesis_template"),
    "the pipeline's name": ({"candidate_labels": ["cat"]}, "candidate_labels"),
    "no picture": ({"labels": ["cat"], "image": "QUJD"}, ""),
    "an address": ({"labels": ["cat"], "image": "https://example.com/a.png"}, "image"),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_cannot_be_answered_is_refused_by_name(served: Process, wrong: str) -> None:
    more, param = REFUSED[wrong]
    with served.client() as client:
        answer = client.post(PATH, json={"model": "clip", "image": base64.b64encode(FILES[0]).decode()} | more)
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"].get("param") or "") == param and len(answer.json()["error"]["message"]) > 20


EMBEDS: dict[str, tuple[Any, str | None]] = {
    "both": ({"image": "QUJD", "text": "a"}, "input"),
    "neither": ([{}], "input[0]"),
    "another field": ([{"picture": "QUJD"}], "input[0].picture"),
    "no base64": ([{"image": "!"}], "input[0].image"),
    "no picture": (["a", {"image": "QUJD"}], None),
    "null": ({"image": None}, "input.image"),
    "a file": ({"image": "file:///etc/passwd"}, "input.image"),
    "an address": ({"image": "http://169.254.169.254/latest"}, "input.image"),
    "too long": ({"text": "a " * 40}, None),
}


@pytest.mark.parametrize("wrong", EMBEDS)
def test_inputs_that_have_no_vector_are_refused_by_name(served: Process, wrong: str) -> None:
    given, param = EMBEDS[wrong]
    with served.client() as client:
        answer = client.post(VECTORS, json={"model": "clip", "input": given})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


def test_fields_that_mean_nothing_are_refused(served: Process) -> None:
    picture = {"image": base64.b64encode(FILES[0]).decode()}
    with served.client() as client:
        for name, value in (("dimensions", 4), ("prompt_name", "query")):
            for given in (picture, "a cat"):
                refused = client.post(VECTORS, json={"model": "clip", "input": given, name: value})
                assert refused.status_code == 400 and refused.json()["error"]["param"] == name
        digits = {"model": "digits", "image": picture["image"]}
        refused = client.post(PATH, json=digits | {"labels": ["cat"]})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "labels"
        assert client.post(PATH, json=digits).status_code == 200
        refused = client.post(VECTORS, json={"model": "digits", "input": picture})
        assert "use POST /v1/images/classifications" in refused.json()["error"]["message"]


def test_data_brings_the_labels_that_are_asked_about(folder: Path, data: Path) -> None:
    examples = load_examples("zero-shot-image-classification", data)
    assert {(e.payload.labels, e.truth) for e in examples} == {(("cat", "red dog"), 0), (("cat", "red dog"), 1)}  # type: ignore[union-attr]  # pictures
    (data / "cat").rename(data / "red_dog" / "more")
    assert {e.truth for e in load_examples("zero-shot-image-classification", data)} == {None}
    assert TEMPLATE.count("{}") == 1


@pytest.mark.parametrize("name", ["Llava", "Qwen2VL", "SmolVLM", "Idefics3"])
def test_chat_with_pictures_is_refused_by_name(name: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    config = {"architectures": [f"{name}ForConditionalGeneration"], "model_type": name.lower(), "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a": np.zeros((4, 4), np.float32)}, tmp_path / "model.safetensors")
    (note,) = (note for note in examine(str(tmp_path)).inspection.notes if name in note)
    assert "sees pictures and writes text" in note
    with pytest.raises(Unsupported, match=f"{name}ForConditionalGeneration, which sees pictures and writes text"):
        ingest(str(tmp_path), Store(tmp_path / "store"))


@pytest.mark.parametrize("kind", ["ViTModel", "Dinov2Model", "CLIPVisionModelWithProjection", "SiglipVisionModel"])
def test_pictures_have_vectors_of_what_sees_alone(kind: str, tmp_path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    prefix = {"CLIPVisionModelWithProjection": "CLIPVision", "SiglipVisionModel": "SiglipVision"}.get(kind, kind[:-5])
    sizes = {"hidden_size": 16, "intermediate_size": 24, **SEES}
    module = getattr(transformers, kind)(getattr(transformers, f"{prefix}Config")(**sizes)).eval()
    module.save_pretrained(tmp_path / "model")
    own = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
    own.save_pretrained(tmp_path / "model")
    processor, engine = opened(tmp_path / "model", tmp_path / "store")
    assert processor.task == "image-feature-extraction"
    with torch.no_grad():
        answer = module(own(PICTURES, return_tensors="pt")["pixel_values"])
    name = {"ViTModel": "last_hidden_state", "CLIPVisionModelWithProjection": "image_embeds"}.get(kind, "pooler_output")
    expected = answer[name][:, 0] if name == "last_hidden_state" else answer[name]
    got = [asked(processor, engine, ImagePayload(file)).values for file in FILES]
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)
    with pytest.raises(InvalidField, match="labels"):
        processor.prepare(ImagePayload(FILES[0], labels=("cat",)))
