"""Evaluation data as Hugging Face lays it out, and what is wrong with some of it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.core import AudioPayload, ImagePayload, TensorPayload, TextPayload
from maasdam.errors import InvalidInput, Unsupported
from maasdam.tasks import load_examples

IMAGES, SPEECH, TEXT = "image-classification", "automatic-speech-recognition", "text-generation"
LABELS = {0: "background", 1: "great white shark, man-eater", 2: "Cat", 3: "crane", 4: "crane"}


def files(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def metadata(folder: Path, *lines: str) -> Path:
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_rows_give_names_payloads_and_label_ids(tmp_path: Path) -> None:
    files(tmp_path, "a.jpg", "b.png")
    metadata(tmp_path, "file_name,label_id,label", 'a.jpg,1,"great white shark, man-eater"', "b.png,2,Cat")
    found = load_examples(IMAGES, tmp_path, labels=LABELS)
    assert [(e.name, e.truth) for e in found] == [("a.jpg", 1), ("b.png", 2)]
    assert found[0].payload == ImagePayload(b"a.jpg")


def test_a_label_by_name_alone_is_found_quoted_or_in_other_case(tmp_path: Path) -> None:
    files(tmp_path, "a.jpg", "b.png", "c.png", "d.png")
    metadata(tmp_path, "file_name,label", 'a.jpg,"great white shark, man-eater"', "b.png, CAT", "c.png,4", "d.png,")
    assert [e.truth for e in load_examples(IMAGES, tmp_path, labels=LABELS)] == [1, 2, 4, None]


def test_without_the_models_labels_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    files(tmp_path, "a.jpg")
    metadata(tmp_path, "file_name,label_id", "a.jpg,917")
    assert load_examples(IMAGES, tmp_path)[0].truth == 917


def test_a_byte_order_mark_and_json_lines_are_read(tmp_path: Path) -> None:
    files(tmp_path, "a.jpg")
    (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbffile_name,label_id\r\na.jpg,2\r\n")
    assert load_examples(IMAGES, tmp_path, labels=LABELS)[0].truth == 2
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.jpg", "label": "Cat"}) + "\n\n")
    assert load_examples(IMAGES, tmp_path, labels=LABELS)[0].truth == 2


def test_class_folders_are_labels(tmp_path: Path) -> None:
    files(tmp_path, "Cat/1.jpg", "Cat/2.jpg", "background/3.PNG", "background/readme.txt")
    assert [(e.name, e.truth) for e in load_examples(IMAGES, tmp_path, labels=LABELS)] == [
        ("Cat/1.jpg", 2),
        ("Cat/2.jpg", 2),
        ("background/3.PNG", 0),
    ]


def test_a_plain_folder_has_no_labels(tmp_path: Path) -> None:
    files(tmp_path, "1.jpg", "2.webp")
    assert [e.truth for e in load_examples(IMAGES, tmp_path, labels=LABELS)] == [None, None]


def test_transcriptions_are_truths(tmp_path: Path) -> None:
    files(tmp_path, "a.wav", "b.flac")
    metadata(tmp_path, "file_name,transcription,speaker", 'a.wav,"three, one four",x', "b.flac,two,y")
    found = load_examples(SPEECH, tmp_path)
    assert [e.truth for e in found] == ["three, one four", "two"]
    assert isinstance(found[1].payload, AudioPayload)
    (tmp_path / "metadata.csv").unlink()
    assert [e.truth for e in load_examples(SPEECH, tmp_path)] == [None, None]


def test_texts_come_from_txt_and_jsonl_empty_ones_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be\n")
    (tmp_path / "b.jsonl").write_text('{"text": "or not"}\n\n{"text": " "}\n{"text": "to be"}\n')
    found = load_examples(TEXT, tmp_path)
    assert [(e.name, e.payload) for e in found] == [
        ("a.txt", TextPayload(prompt="to be\n")),
        ("b.jsonl:1", TextPayload(prompt="or not")),
        ("b.jsonl:4", TextPayload(prompt="to be")),
    ]
    assert load_examples(TEXT, tmp_path / "a.txt")[0].name == "a.txt"


def test_rows_of_arrays_are_examples_of_batch_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.arange(6.0).reshape(3, 2), b=np.arange(3))
    found = load_examples("tensors", tmp_path / "x.npz")
    assert len(found) == 3
    assert isinstance(found[2].payload, TensorPayload)
    np.testing.assert_array_equal(found[2].payload.tensors["a"], [[4.0, 5.0]])
    assert found[2].payload.tensors["b"].shape == (1,)
    assert len(load_examples("tensors", tmp_path)) == 3


def test_a_limit_takes_a_sample_by_seed_in_order(tmp_path: Path) -> None:
    files(tmp_path, *(f"{i:02}.jpg" for i in range(30)))
    some = [e.name for e in load_examples(IMAGES, tmp_path, limit=7)]
    assert len(some) == 7 and some == sorted(some)
    assert some == [e.name for e in load_examples(IMAGES, tmp_path, limit=7)]
    assert some != [e.name for e in load_examples(IMAGES, tmp_path, limit=7, seed=1)]
    assert len(load_examples(IMAGES, tmp_path, limit=99)) == 30


BAD: dict[str, tuple[str, tuple[str, ...], str]] = {
    "no such label": (IMAGES, ("file_name,label", "a.jpg,unicorn"), "'unicorn'"),
    "a name of two labels": (IMAGES, ("file_name,label", "a.jpg,crane"), "label_id"),
    "id too high": (IMAGES, ("file_name,label_id", "a.jpg,5"), "0 to 4"),
    "id no number": (IMAGES, ("file_name,label_id", "a.jpg,two"), "'two'"),
    "numbered for another model": (IMAGES, ("file_name,label_id,label", "a.jpg,1,Cat"), "another model"),
    "missing file": (IMAGES, ("file_name,label_id", "z.jpg,1"), "row 1 names 'z.jpg', which is not there"),
    "outside": (IMAGES, ("file_name,label_id", "../a.jpg,1"), "outside the folder"),
    "absolute": (IMAGES, ("file_name,label_id", "/etc/passwd,1"), "outside the folder"),
    "another kind": (SPEECH, ("file_name,transcription", "a.jpg,hello"), ".wav"),
    "no file_name": (IMAGES, ("name,label_id", "a.jpg,1"), "file_name"),
    "no rows": (IMAGES, ("file_name,label_id",), "no examples"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_wrong_data_is_refused_in_a_sentence(tmp_path: Path, bad: tuple[str, tuple[str, ...], str]) -> None:
    task, lines, says = bad
    folder = metadata(files(tmp_path / "data", "a.jpg"), *lines)
    files(tmp_path, "a.jpg")
    with pytest.raises(InvalidInput, match=says):
        load_examples(task, folder, labels=LABELS)


def test_empty_missing_and_unknown(tmp_path: Path) -> None:
    for task in (IMAGES, SPEECH, TEXT, "tensors"):
        with pytest.raises(InvalidInput, match="no examples"):
            load_examples(task, tmp_path)
        with pytest.raises(InvalidInput, match="no data at"):
            load_examples(task, tmp_path / "nowhere")
    with pytest.raises(Unsupported, match="no task"):
        load_examples("image-segmentation", tmp_path)
    with pytest.raises(InvalidInput, match="limit"):
        load_examples(IMAGES, files(tmp_path, "a.jpg"), limit=0)
    for task in (IMAGES, SPEECH):
        with pytest.raises(InvalidInput, match="folder"):
            load_examples(task, tmp_path / "a.jpg")


@pytest.mark.parametrize("line", ["not json", '["a list"]', '{"words": "none"}', '{"text": 7}'])
def test_lines_that_are_no_texts_are_refused_by_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(InvalidInput, match="line 2"):
        load_examples(TEXT, tmp_path)


def test_files_that_are_not_what_they_are_called(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(InvalidInput, match="UTF-8"):
        load_examples(TEXT, tmp_path)
    (tmp_path / "x.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(InvalidInput, match="npz"):
        load_examples("tensors", tmp_path / "x.npz")
    canary: Any = np.array([object()], dtype=object)
    np.savez(tmp_path / "p.npz", a=canary)
    with pytest.raises(InvalidInput, match="npz"):
        load_examples("tensors", tmp_path / "p.npz")
    np.savez(tmp_path / "u.npz", a=np.zeros(3), b=np.zeros(4))
    with pytest.raises(InvalidInput, match="same number"):
        load_examples("tensors", tmp_path / "u.npz")


def test_the_photographs_are_labelled_as_the_model_says(shared_data: Path) -> None:
    from maasdam.tasks.files import labels_of

    found = load_examples(IMAGES, shared_data / "imagenet-sample", labels=labels_of(shared_data / "mobilenet-v2-1001"))
    assert len(found) == len({e.truth for e in found}) == 500


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"file_name": "a.png", "label_id": 1e999}', "takes a whole number"),
        ('{"file_name": "a.png", "label_id": 1.7}', "takes a whole number"),
        ('{"file_name": "a.png", "label_id": true}', "takes a whole number"),
        ('{"file_name": "a\\u0000.png", "label": "x"}', "can't name a file"),
        ('{"file_name": "' + "a" * 5000 + '.png", "label": "x"}', "can't name a file"),
        ('{"file_name": "loop.png", "label": "x"}', "can't name a file"),
        ("[" * 100_000, "line 1 is not JSON"),
    ],
    ids=["infinity", "a fraction", "true", "a null byte", "a name too long", "a link to itself", "a hundred thousand levels"],
)
def test_hostile_rows_are_refused_by_number(tmp_path: Path, row: str, says: str) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "metadata.jsonl").write_text(row)
    with pytest.raises(InvalidInput, match=says) as refused:
        load_examples("image-classification", tmp_path, labels={0: "x", 1: "y"})
    assert "1 " in str(refused.value) and len(str(refused.value)) < 600


def test_half_a_character_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "\\ud800 broken"}\n')
    with pytest.raises(InvalidInput, match="line 2 holds half of a character"):
        load_examples("text-generation", tmp_path)


def _npz(path: Path, header: str, data: bytes) -> Path:
    """An .npz of one array whose header says what it likes."""
    text = header.encode().ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("shape", "data", "says"),
    [
        ("(4398046511104, 4)", 64, "is no .npz of named arrays"),
        ("(75000000, 4)", 300_000_000, "refused as a zip bomb"),
        ("(2000000, 1)", 2_000_000, "holds over 1,000,000 examples"),
    ],
    ids=["a header that lies", "zeros packed a thousand times", "more rows than anyone evaluates"],
)
def test_arrays_that_would_fill_the_memory_are_refused(tmp_path: Path, shape: str, data: int, says: str) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}"
    with pytest.raises(InvalidInput, match=says):
        load_examples("tensors", _npz(tmp_path / "x.npz", header, bytes(data)))


def test_a_damaged_archive_of_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((100, 4), np.float32))
    whole = (tmp_path / "x.npz").read_bytes()
    for damaged in (whole[:900], whole[:900] + b"\1" + whole[901:]):
        (tmp_path / "x.npz").write_bytes(damaged)
        with pytest.raises(InvalidInput, match=r"is no \.npz of named arrays"):
            load_examples("tensors", tmp_path / "x.npz")
