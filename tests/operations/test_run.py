"""One-shot inference in this process, and the command that asks for it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.engines import tiny_language_model
from tests.engines.networks import CNN, MLP, artifact

from maasdam.cli import main
from maasdam.cli.run import print_piece
from maasdam.core import Artifact, ImagePayload, Sampling, Signature, TensorPayload, TensorSpec, TextPayload, TextPiece
from maasdam.errors import InvalidInput, InvalidPayload, NotFound, Unsupported
from maasdam.operations.run import opened, to_json
from maasdam.operations.run_inputs import How, inputs_of
from maasdam.operations.workspace import Workspace
from maasdam.settings import Settings

IMAGES = "image-classification"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with three models: tensors, images, text."""
    home = tmp_path_factory.mktemp("home")
    with Workspace.open(Settings(home=home)) as workspace:

        def add(name: str, made: Artifact, task: str | None, signature: Signature | None) -> None:
            stored = workspace.store.add(
                made.path, format=made.format, layout=made.layout, task=task, engine=made.engine, signature=signature
            )
            workspace.catalog.register(name, stored, source="a test", recipe="fp32", report={"passed": True}, passes=[])

        mlp, cnn, llama = (tmp_path_factory.mktemp(n) for n in ("mlp", "cnn", "llama"))
        add("mlp", artifact(mlp, MLP, "onnx", "onnxruntime"), None, MLP.signature)
        made = artifact(cnn, CNN, "onnx", "onnxruntime")
        (cnn / "config.json").write_text(json.dumps({"id2label": {str(i): f"label {i}" for i in range(5)}}))
        processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
        (cnn / "preprocessor_config.json").write_text(json.dumps(processor))
        add("cnn", made, IMAGES, CNN.signature)
        add("llama", tiny_language_model.huggingface(llama), "text-generation", None)
    return home


@pytest.fixture
def workspace(home: Path) -> Any:
    with Workspace.open(Settings(home=home)) as opened_:
        yield opened_


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 10), "teal").save(out, "PNG")
    return out.getvalue()


def test_tensors_go_through(workspace: Workspace) -> None:
    with opened(workspace, "mlp:1") as model:
        found = model.answer(TensorPayload(MLP.inputs))
    assert isinstance(found, dict)
    np.testing.assert_allclose(found["scores"], MLP.expected(MLP.inputs)["scores"], rtol=1e-4)


def test_a_picture_gets_its_labels(workspace: Workspace) -> None:
    with opened(workspace, "cnn") as model:
        shown = to_json(model.answer(ImagePayload(picture(), top_k=2)))
        with pytest.raises(InvalidPayload):
            model.answer(ImagePayload(b"nothing of the kind"))
        with pytest.raises(Unsupported, match="image-classification"):
            model.answer(TextPayload(prompt="hello"))
    assert [set(x) for x in shown["labels"]] == [{"label", "label_id", "score"}] * 2
    assert shown["labels"][0]["label"] == f"label {shown['labels'][0]['label_id']}"


def test_text_is_told_piece_by_piece_and_is_the_same_each_time(workspace: Workspace) -> None:
    payload = TextPayload(prompt="the cat", sampling=Sampling(max_tokens=12, temperature=0.0, ignore_eos=True))
    pieces: list[str] = []
    with opened(workspace, "llama") as model:
        found = model.answer(payload, pieces.append)
        assert model.answer(payload) == found
        with pytest.raises(Unsupported, match="no raw tensors"):
            model.answer(TensorPayload(MLP.inputs))
    assert isinstance(found, TextPiece)
    assert (len(found.token_ids), found.finish_reason) == (12, "length")
    assert "".join(pieces) == found.text


def test_a_stop_string_ends_the_text_before_it(workspace: Workspace) -> None:
    sampling = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)
    with opened(workspace, "llama") as model:
        whole = model.answer(TextPayload(prompt="the cat", sampling=sampling))
        assert isinstance(whole, TextPiece)
        stop = whole.text[3:6]
        sampling = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True, stop=(stop,))
        cut = model.answer(TextPayload(prompt="the cat", sampling=sampling))
    assert isinstance(cut, TextPiece)
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")


def test_what_the_command_line_is_given_becomes_a_payload(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    np.savez(tmp_path / "x.npz", a=np.zeros(2))

    def payload_of(task: str | None, given: str, **how: Any) -> Any:
        (found,) = inputs_of(task, [given], How(**how))
        return found.payload()

    assert payload_of(IMAGES, str(tmp_path / "a.png"), top_k=3) == ImagePayload(picture(), 3)
    assert isinstance(payload_of(IMAGES, str(tmp_path / "x.npz")), TensorPayload)
    assert payload_of("text-generation", "hello") == TextPayload(prompt="hello")
    chat = payload_of("text-generation", "hello", chats=True)
    assert isinstance(chat, TextPayload) and chat.messages == ({"role": "user", "content": "hello"},)
    with pytest.raises(NotFound, match="takes image files"):
        payload_of(IMAGES, "nowhere.png")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:100])
    np.save(tmp_path / "one.npy", np.zeros(2))
    for file in ("a.png", "cut.npz", "one.npy"):
        with pytest.raises(InvalidInput, match=r"is no \.npz of named arrays"):
            payload_of(None, str(tmp_path / file))


def run(home: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setenv("MAASDAM_HOME", str(home))
    with pytest.raises(SystemExit) as ended:
        main(["run", *words])
    return int(ended.value.code or 0)


def test_the_command_answers_each_input(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(picture())
    assert run(home, monkeypatch, "cnn", str(file), str(file), "--json", "--top-k", "1") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["model"], document["version"], document["task"]) == ("cnn", 1, IMAGES)
    assert [a["input"] for a in document["answers"]] == [str(file)] * 2
    assert document["answers"][0]["labels"] == document["answers"][1]["labels"]
    assert run(home, monkeypatch, "cnn", str(file)) == 0
    assert capsys.readouterr().out.startswith(f"{file}: label ")
    assert run(home, monkeypatch, "llama", "the cat", "--max-tokens", "5", "--temperature", "0") == 0
    assert capsys.readouterr().out.strip()


def test_a_folder_into_a_file_of_a_line_each(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(picture())
    (tmp_path / "in" / "c.png").write_bytes(b"no picture")
    command = ("cnn", str(tmp_path / "in"), "--out", str(tmp_path / "out.jsonl"))
    assert run(home, monkeypatch, *command) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out.jsonl'}: 3 answered, 1 are errors, which their lines say\n"
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [Path(row["input"]).name for row in rows] == ["a.png", "b.png", "c.png"]
    assert rows[0]["labels"] == rows[1]["labels"] and "labels" not in rows[2] and "no image" in rows[2]["error"]
    assert run(home, monkeypatch, *command, "--json") == 0
    assert json.loads(capsys.readouterr().out) | {"out": ""} == {"out": "", "had": 3, "answered": 0, "errors": 0}


def test_texts_of_a_batch_are_those_of_one_alone(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--max-tokens", "5", "--temperature", "0")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": f"the {word}"}) + "\n" for word in ("cat", "dog", "mat")))
    out = tmp_path / "out.csv"
    assert run(home, monkeypatch, "llama", str(tmp_path / "in.jsonl"), "--out", str(out), *words) == 0
    capsys.readouterr()
    assert run(home, monkeypatch, "llama", "the cat", "the dog", "the mat", "--json", *words) == 0
    alone = [answer["text"] for answer in json.loads(capsys.readouterr().out)["answers"]]
    with out.open(newline="") as file:
        assert [row["shown"] for row in csv.DictReader(file)] == alone


def test_a_conversation_knows_what_was_said(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--chat", "--max-tokens", "4", "--temperature", "0")
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\nthe cat\n/new\nthe cat\n" + "zq " * 500 + "\n"))
    assert run(home, monkeypatch, "llama", *words) == 0
    shown = capsys.readouterr()
    first, second, third = shown.out.splitlines()
    assert first == third != second and "context" in shown.err


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_models_words_do_nothing_to_a_terminal(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    class Out(io.StringIO):
        def isatty(self) -> bool:
            return is_terminal

    out, text = Out(), "a\tb\n\x1b[2Jé\r\u202ex👩\u200d🔬"
    monkeypatch.setattr("sys.stdout", out)
    print_piece(text)
    assert out.getvalue() == ("a\tb\n\ufffd[2Jé\ufffd\ufffdx👩\u200d🔬" if is_terminal else text)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nobody", "x"), "no model 'nobody'"),
        (("cnn", "nowhere.png"), "nowhere.png"),
        (("cnn", __file__), "no image"),
        (("llama", "zq " * 500), "context"),
    ],
)
def test_what_cant_be_answered_is_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert run(home, monkeypatch, *words) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and says in shown.err and "Traceback" not in shown.err
    assert len(shown.err.strip().splitlines()) == 1


def test_an_output_of_every_kind_is_json() -> None:
    tensors = {"a": np.array([[1.5]], np.float32), "b": np.array([2])}
    assert json.loads(json.dumps(to_json(tensors))) == {"outputs": {"a": [[1.5]], "b": [2]}}
    assert to_json(TextPiece("x", (1,), "stop")) == {"text": "x", "token_ids": [1], "finish_reason": "stop"}


def test_a_signature_says_what_a_file_of_tensors_must_hold(workspace: Workspace) -> None:
    from maasdam.errors import InvalidTensor

    assert TensorSpec("features", "float32", (None, 6)) in MLP.signature.inputs
    with opened(workspace, "mlp") as model, pytest.raises(InvalidTensor, match="features"):
        model.answer(TensorPayload({"other": np.zeros((1, 6), np.float32)}))
