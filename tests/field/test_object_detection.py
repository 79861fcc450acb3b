"""Boxes: from a Hugging Face folder, or an ONNX file with its declared head, to answers over HTTP."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tests.served import Process, add, open_home, serving

from maasdam.cli import main
from maasdam.core import Box, Boxes, Example, ImagePayload, Signature, TensorSpec
from maasdam.errors import EngineFailure, InvalidInput, InvalidModel
from maasdam.operations.report_page import report_page
from maasdam.sources import ingest
from maasdam.tasks import load_examples, open_processor, score, task_of
from maasdam.tasks.box_scoring import PRECISION
from maasdam.tasks.detection_heads import Queries
from maasdam.tasks.pictures import decode_image, upright_size

TASK = "object-detection"
PATH = "/v1/images/detections"
COLOURS = ["red", "green", "blue"]
LABELS = dict(enumerate(COLOURS))
DECLARED = {
    "layout": "4+C,N", "boxes": "cxcywh", "units": "pixels", "resize": "letterbox", "channels": "RGB", "scale": 1 / 255,
    "labels": COLOURS, "threshold": 0.5, "overlap": 0.5,
}  # fmt: skip


def picture(width: int = 128, height: int = 64, kind: str = "PNG", **saved: Any) -> bytes:
    """Black, with a red square at 16, 16 to 32, 32 and a blue one at 96, 32 to 112, 48."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[16:32, 16:32, 0] = 255
    pixels[32:48, 96:112, 2] = 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **saved)
    return out.getvalue()


def colours(path: Path, layout: str = "4+C,N", boxes: str = "cxcywh", units: str = "pixels", grid: bool = False) -> None:
    """A detector that says of each of 8 x 8 cells how red, green and blue it is; its layout is one of YOLO's kin's."""
    down, across = np.meshgrid(np.arange(8), np.arange(8), indexing="ij")
    corner = np.stack([across.ravel(), down.ravel()], 1).astype(np.float32) * 8
    rows = (
        np.concatenate([corner, corner + 8], 1) if boxes == "xyxy" else np.concatenate([corner + 4, np.full((64, 2), 8.0)], 1)
    )
    rows = np.tile(np.float32([0.5, 0.5, 0, 0]), (64, 1)) if grid else rows / (64 if units == "shares" else 1)
    places = numpy_helper.from_array(rows[None].astype(np.float32), "places")
    ones = numpy_helper.from_array(np.ones((1, 64, 1), np.float32), "ones")
    sizes = numpy_helper.from_array(np.array([1, 3, 64]), "sizes")
    nodes = [
        helper.make_node("AveragePool", ["images"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Reshape", ["cells", "sizes"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["scores"], perm=[0, 2, 1]),
        helper.make_node("ReduceMax", ["scores"], ["best"], axes=[2], keepdims=1),
        helper.make_node("ArgMax", ["scores"], ["which"], axis=2, keepdims=1),
        helper.make_node("Cast", ["which"], ["class"], to=TensorProto.FLOAT),
    ]
    parts = {"N,6": ["places", "best", "class"], "N,5+C": ["places", "ones", "scores"]}.get(layout, ["places", "scores"])
    is_turned = layout == "4+C,N"
    nodes.append(helper.make_node("Concat", parts, ["rows" if is_turned else "out"], axis=2))
    if is_turned:
        nodes.append(helper.make_node("Transpose", ["rows"], ["out"], perm=[0, 2, 1]))
    width = {"N,6": 6, "N,5+C": 8}.get(layout, 7)
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 7, 64] if is_turned else [1, 64, width])
    graph = helper.make_graph(nodes, "colours", [images], [out], [places, ones, sizes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=10), path / "model.onnx")


def detector(folder: Path, colours_as: dict[str, Any] | None = None, **declared: Any) -> Any:
    """Answers of the model of `colours` in ONNX's own words: a picture's bytes -> Boxes."""
    import onnxruntime

    layout = declared.get("layout", "4+C,N")
    colours(folder, layout, **(colours_as or {}))
    said = {key: value for key, value in (DECLARED | declared).items() if value is not None}
    (folder / "detection.json").write_text(json.dumps(said))
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    image = TensorSpec("images", "float32", (1, 3, 64, 64))
    out = TensorSpec("out", "float32", tuple(session.get_outputs()[0].shape))
    processor = open_processor(TASK, folder, Signature((image,), (out,)))

    def answer(data: bytes, **asked: Any) -> Any:
        payload = ImagePayload(data, **asked)
        (inputs,) = processor.prepare(payload)
        return processor.finish([{"out": session.run(None, dict(inputs))[0]}], payload)

    return answer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DETR of no use, whose weights are wide enough that it answers pictures differently."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("detr")
    kinds: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    config = transformers.DetrConfig(
        backbone_config=transformers.ResNetConfig(**kinds, out_features=["stage2"]), d_model=16, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        num_queries=6, id2label=LABELS, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
    )  # fmt: skip
    module: Any = transformers.DetrForObjectDetection(config)
    chosen = torch.Generator().manual_seed(1)
    for weight in module.parameters():
        if weight.ndim >= 2:
            weight.data = torch.randn(weight.shape, generator=chosen) * (2 / weight[0].numel()) ** 0.5
    module.save_pretrained(folder)
    transformers.DetrImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes, with boxes in the convention of Hugging Face's folders."""
    folder, rows = tmp_path_factory.mktemp("data"), []
    for i, (width, height) in enumerate([(128, 64), (120, 100), (128, 128)]):
        (folder / f"{i}.png").write_bytes(picture(width, height))
        objects = {"bbox": [[16, 16, 16, 16], [96, 32, 16, 16]], "categories": ["red", 2]}
        rows.append({"file_name": f"{i}.png", "objects": objects})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def run(words: list[str]) -> Any:
    """The exit code of a command in this process."""
    with pytest.raises(SystemExit) as done:
        main(words)
    return done.value.code


@pytest.fixture(scope="module")
def served(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The DETR as it is, beside a detector of colours with its declared head, which was verified."""
    home, plain = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("colours")
    colours(plain)
    (plain / "detection.json").write_text(json.dumps(DECLARED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAASDAM_HOME", str(home))
        patch.setenv("MAASDAM_MEASURE_SECONDS", "0.1")
        words = ["build", str(plain), "--name", "colours", "--recipe", "fp32", "--to", "onnx", "--data", str(data), "--json"]
        assert run(words) == 0
    workspace = open_home(home)
    workspace.catalog.deploy("colours")
    add(workspace, "detr", ingest(str(model), workspace.store))
    _, key = workspace.keys.create("test", ["infer"])
    workspace.close()
    with serving(home, key) as running:
        yield running


def test_a_detr_answers_as_transformers_does(served: Process, model: Path, data: Path) -> None:
    import torch
    import transformers

    module: Any = transformers.DetrForObjectDetection.from_pretrained(model)
    processor: Any = transformers.DetrImageProcessorPil.from_pretrained(model)
    with served.client() as client:
        for path in sorted(data.glob("*.png")):
            image = Image.open(path).convert("RGB")
            with torch.no_grad():
                outputs = module(**processor(images=image, return_tensors="pt"))
            (wanted,) = processor.post_process_object_detection(outputs, 0.1, [image.size[::-1]])
            order = wanted["scores"].argsort(descending=True)
            asked = {"model": "detr", "threshold": "0.1"}
            got = client.post(PATH, files={"file": path.read_bytes()}, data=asked).json()["data"]
            assert len(got) == len(order) > 0
            np.testing.assert_allclose([b["score"] for b in got], wanted["scores"][order], atol=1e-5)
            np.testing.assert_allclose([[*b["box"].values()] for b in got], wanted["boxes"][order], atol=1e-2)
            assert [(b["label"], b["label_id"]) for b in got] == [(LABELS[int(i)], int(i)) for i in wanted["labels"][order]]


def test_it_is_verified_by_average_precision_and_the_report_shows_what_was_found(served: Process) -> None:
    workspace = open_home(served.log.parent)
    found = workspace.catalog.resolve("colours")
    page = report_page(workspace, "colours")
    workspace.close()
    assert found.task == TASK and found.report is not None
    accuracy = found.report["accuracy"]
    assert accuracy["metric"] == "map" and accuracy["beside"]["candidate"]["classes"] == 2
    assert accuracy["candidate"] == accuracy["reference"] > 0.6
    sample = found.report["samples"][0]
    assert sample["truth"] == "red; blue" and sample["candidate"].startswith("red (1.000) at 16, 16 to 32, 32")
    drawn = Image.open(io.BytesIO(base64.b64decode(sample["drawn"]["candidate"]))).convert("RGB")
    assert drawn.size == (128, 64) and drawn.getpixel((24, 24)) != (0, 0, 0)
    assert page.count('<img alt="this version') == page.count('<img alt="reference') == 3


def test_each_door_and_the_terminal_say_the_same(
    served: Process, data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    inline = base64.b64encode(picture()).decode()
    with served.client() as client:
        answer = client.post(PATH, files={"file": picture()}, data={"model": "colours"}).json()
        red, blue = answer["data"]
        assert red == {
            "label": "red", "label_id": 0, "score": 1.0, "box": {"xmin": 16.0, "ymin": 16.0, "xmax": 32.0, "ymax": 32.0}
        }  # fmt: skip
        assert (blue["label"], answer["usage"]["images"]) == ("blue", 1)
        asked: dict[str, Any] = {"model": "colours", "image": inline, "top_k": 1}
        assert client.post(PATH, json=asked).json()["data"] == [red]
        assert client.post(PATH, json=asked | {"threshold": 1}).json()["data"] == []
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [inline]}
        (told,) = client.post("/v2/models/colours/infer", json={"inputs": [tensor]}).json()["outputs"]
        assert told["name"] == "detections" and json.loads(told["data"][0]) == answer["data"]
        other = client.post("/v1/images/classifications", json={"model": "colours", "image": inline})
        assert other.status_code == 400 and "use POST /v1/images/detections" in other.text
    monkeypatch.setenv("MAASDAM_HOME", str(served.log.parent))
    assert run(["run", "colours", str(data / "0.png"), "--here"]) == 0
    assert "red (1.000) at 16, 16 to 32, 32" in capfd.readouterr().out
    assert run(["run", "colours", str(data / "0.png"), "--top-k", "1", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["answers"][0]["boxes"] == [red]


@pytest.mark.parametrize(
    ("kind", "name", "most"),
    [
        ("detr", "Detr", {}),
        ("yolos", "Yolos", {}),
        ("conditional_detr", "ConditionalDetr", {"top_k": 100}),
        ("deformable_detr", "DeformableDetr", {"top_k": 100}),
        ("rt_detr", "RTDetr", {}),
    ],
)
def test_heads_score_as_transformers_does(kind: str, name: str, most: dict[str, int]) -> None:
    import torch
    import transformers

    rng = np.random.default_rng(3)
    logits = rng.normal(size=(1, 40, 7)).astype(np.float32) * 3
    boxes = rng.uniform(0.1, 0.6, size=(1, 40, 4)).astype(np.float32)
    theirs = getattr(transformers, f"{name}ImageProcessorPil")()
    outputs = SimpleNamespace(logits=torch.from_numpy(logits), pred_boxes=torch.from_numpy(boxes))
    (wanted,) = theirs.post_process_object_detection(outputs, threshold=0.5, target_sizes=[(300, 517)], **most)
    specs = (TensorSpec("logits", "float32", (None, 40, 7)), TensorSpec("pred_boxes", "float32", (None, 40, 4)))
    head = Queries({"model_type": kind}, Signature((), specs))
    found = head.found({"logits": logits, "pred_boxes": boxes}, 517, 300).above(head.threshold)
    order = wanted["scores"].argsort(descending=True, stable=True)
    assert len(found.scores) == len(order) > 5
    np.testing.assert_allclose(found.scores, wanted["scores"][order], rtol=1e-6)
    np.testing.assert_allclose(found.corners, wanted["boxes"][order], rtol=1e-5, atol=1e-4)
    assert found.classes.tolist() == wanted["labels"][order].tolist()
    with pytest.raises(InvalidModel, match="'owlvit' model"):
        Queries({"model_type": "owlvit"}, Signature((), specs))
    with pytest.raises(EngineFailure, match="not finite"):
        head.found({"logits": logits * np.nan, "pred_boxes": boxes}, 9, 9).above(0.5)


@pytest.mark.parametrize(
    ("built", "declared"),
    [
        ({}, {}),
        ({"boxes": "xyxy", "units": "shares"}, {"layout": "N,4+C", "boxes": "xyxy", "units": "shares"}),
        ({}, {"layout": "N,5+C"}),
        ({"grid": True}, {"layout": "N,5+C", "strides": [8], "resize": "letterbox-corner"}),
        ({"boxes": "xyxy"}, {"layout": "N,6", "boxes": "xyxy", "overlap": None, "resize": "stretch"}),
    ],
)
def test_declared_heads_find_the_same_boxes(built: dict[str, Any], declared: dict[str, Any], tmp_path: Path) -> None:
    found = detector(tmp_path, built, **declared)(picture(128, 128)).boxes
    assert sorted(box[0] for box in found) == ["blue", "red"]
    for box in found:
        wanted = (16, 16, 32, 32) if box.label == "red" else (96, 32, 112, 48)
        assert box[3:] == pytest.approx(wanted) and box.score == pytest.approx(1, abs=1e-3)


def test_a_picture_lies_in_the_model_as_declared(tmp_path: Path) -> None:
    wide = picture(128, 64)
    assert {b.label: b.ymin for b in detector(tmp_path)(wide).boxes} == pytest.approx({"red": 16, "blue": 32})
    assert detector(tmp_path, channels="BGR")(wide).boxes[0].label == "blue"
    assert not detector(tmp_path, scale=1 / 1024)(wide).boxes
    faint = detector(tmp_path, scale=1 / 1024)(wide, threshold=0.2).boxes
    assert {b.label for b in faint if b.score > 0.24} == {"red", "blue"}
    turned = picture(128, 64, "JPEG", exif=bytes(_sideways()), quality=98)
    assert {b.label: round(b.xmin) for b in detector(tmp_path)(turned).boxes} == {"red": 32, "blue": 16}


def _sideways() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter: x is 64 - y
    return exif.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_size_is_that_of_the_upright_picture(kind: str) -> None:
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        data = picture(128, 64, kind, exif=exif)
        assert upright_size(data) == decode_image(data, 1 << 20).size == ((64, 128) if turn > 4 else (128, 64))


def test_of_boxes_that_overlap_the_surest_stays(tmp_path: Path) -> None:
    colours(tmp_path)
    (tmp_path / "detection.json").write_text(json.dumps(DECLARED))
    image, out = TensorSpec("images", "float32", (1, 3, 64, 64)), TensorSpec("out", "float32", (1, 7, 64))
    processor = open_processor(TASK, tmp_path, Signature((image,), (out,)))
    rows = np.zeros((64, 7), np.float32)
    rows[0], rows[1] = [20, 20, 20, 20, 0.8, 0, 0], [21, 20, 20, 20, 0.9, 0, 0]  # one thing
    rows[2], rows[3] = [20, 20, 20, 20, 0, 0.7, 0], [50, 50, 20, 20, 0.6, 0, 0]  # another class, another place
    found: Any = processor.finish([{"out": rows.T[None]}], ImagePayload(picture(64, 64)))
    assert [(b.label, round(b.score, 2)) for b in found.boxes] == [("red", 0.9), ("green", 0.7), ("red", 0.6)]
    assert max(b.xmax for b in found.boxes) == 60


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"layout": None}, "does not say 'layout'"),
        ({"layout": "C+4,N"}, "layout is 'C.4,N'"),
        ({"labels": ["red", "green"]}, "2 labels is 6 numbers a box"),
        ({"labels": "red"}, "labels must be a list"),
        ({"anchors": []}, "'anchors', which is not known"),
        ({"overlap": None}, "say 'overlap'"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"size": [32, 32]}, "size is .32, 32."),
        ({"output": "boxes"}, "output is 'boxes'"),
        ({"std": [1, 0, 1]}, "std holds 0"),
        ({"strides": [0]}, "strides must be"),
    ],
)
def test_a_head_is_never_guessed(declared: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=says):
        detector(tmp_path, **declared)


def boxes_of(rng: np.random.Generator, count: int, low: float = 0.0) -> Boxes:
    """Random ones of three classes."""
    corners = rng.uniform(0, 60, size=(count, 2))
    sides = rng.uniform(10, 40, size=(count, 2))
    scores = np.round(rng.uniform(low, 1, size=count), 2)
    kinds = rng.integers(0, 3, size=count)
    rows = zip(kinds, scores, corners, corners + sides, strict=True)
    return Boxes(tuple(Box(COLOURS[k], int(k), float(s), *map(float, (*a, *b))) for k, s, a, b in rows))


def test_average_precision_is_that_of_coco() -> None:
    rng = np.random.default_rng(0)
    examples, answers = [], []
    for i in range(30):
        truth = boxes_of(rng, int(rng.integers(0, 6)), 1.0)
        shifts = [(b, rng.normal(size=2) * 3, float(rng.random())) for b in truth.boxes]
        moved = [b._replace(xmin=b.xmin + x, ymax=b.ymax + y, score=s) for b, (x, y), s in shifts]
        answers.append(Boxes((*moved, *boxes_of(rng, int(rng.integers(0, 4))).boxes)))
        examples.append(Example(str(i), ImagePayload(b""), truth))
    found = score(TASK, answers, examples)
    assert found.metric == "map"
    assert (found.value, found.extra["map50"], found.extra["map75"]) == pytest.approx(COCO, abs=1e-9)
    truths = [example.truth for example in examples]
    assert score(TASK, truths, examples).value == 1
    with pytest.raises(InvalidInput, match="none of the pictures"):
        score(TASK, [Boxes(())], [Example("", ImagePayload(b""), Boxes(()))])


COCO = (0.4324310637534259, 0.7180953960958901, 0.4383707166287849)
"""What pycocotools 2.0 says of the same boxes."""


def test_without_truths_the_source_says_what_is_right() -> None:
    beside = PRECISION.beside
    assert beside is not None
    one, other = Box("red", 0, 0.9, 0, 0, 10, 10), Box("red", 0, 0.1, 50, 50, 60, 60)
    example = [Example("a", ImagePayload(b""))]

    def agreed(ours: tuple[Box, ...], theirs: tuple[Box, ...]) -> float | None:
        found = beside([Boxes(ours)], [Boxes(theirs)], example)
        return None if found is None else found.value

    assert agreed((one, other), (other, one)) == 1
    assert agreed((one,), (one, other)) == pytest.approx(0.9)
    assert agreed((one._replace(label_id=1),), (one,)) == 0 == agreed((), (one,))
    assert agreed((one._replace(xmax=5),), (one,)) == pytest.approx(0.5)
    assert agreed((), ()) is None


def test_examples_are_what_metadata_says(data: Path, tmp_path: Path) -> None:
    found = load_examples(TASK, data, labels=LABELS)
    assert [box[1:] for box in found[0].truth.boxes] == [(0, 1.0, 16, 16, 32, 32), (2, 1.0, 96, 32, 112, 48)]
    (tmp_path / "a.png").write_bytes(picture())
    assert load_examples(TASK, tmp_path, labels=LABELS)[0].truth is None
    for objects, says in (
        ({"bbox": [[0, 0, 1, 1]], "categories": ["cat"]}, "label 'cat'"),
        ({"bbox": [[0, 0, 1, 1]], "categories": []}, "two lists of one length"),
        ({"bbox": [[0, 0, 0, 1]], "categories": [0]}, "with an area"),
        ({"bbox": [[0, 0, 1, 1]], "categories": [7]}, "label_id 7"),
    ):
        (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "objects": objects}))
        with pytest.raises(InvalidInput, match=says):
            load_examples(TASK, tmp_path, labels=LABELS)


def test_another_family_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "owlvit"}))
    specs = (TensorSpec("logits", "float32", (None, 4, 2)), TensorSpec("pred_boxes", "float32", (None, 4, 4)))
    with pytest.raises(InvalidModel, match="'owlvit'"):
        open_processor(TASK, tmp_path, Signature((), specs))
    assert task_of(TASK).doors == (PATH,)


def hostile() -> Iterator[tuple[str, dict[str, Any], int]]:
    """What it is, how it is sent, and the status that it must get."""
    whole, text = picture(), base64.b64encode(picture()).decode()
    zeros = io.BytesIO()
    Image.new("L", (12_000, 12_000)).save(zeros, "PNG")  # 144 million pixels in 20 kB

    def form(name: str, data: bytes, status: int = 400, **rest: str) -> tuple[str, dict[str, Any], int]:
        return name, {"files": {"file": data}, "data": {"model": "colours", **rest}}, status

    def body(name: str, status: int = 400, **rest: Any) -> tuple[str, dict[str, Any], int]:
        return name, {"json": {"model": "colours", "image": text} | rest}, status

    for cut in (1, 8, 33, 60, len(whole) // 2):
        yield form(f"cut to {cut} bytes", whole[:cut])
    yield form("empty", b"")
    yield form("zeros", bytes(4096))
    yield form("a bomb of pixels", zeros.getvalue())
    yield form("a strip", _plain(4000, 3))
    yield form("sound", b"RIFF\x24\0\0\0WAVEfmt " + bytes(40))
    yield form("a PDF", b"%PDF-1.7\n" + bytes(99))
    yield form("an SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    yield form("a PNG called JPEG inside", b"\xff\xd8\xff\xe0" + whole)
    yield form("a broken chunk", whole[:40] + bytes(8) + whole[48:])
    for value in ("nan", "inf", "-0.1", "1.5", "much", "1e999"):
        yield form(f"threshold {value}", whole, threshold=value)
    for value in ("0", "-1", "1.5", "1001", "9" * 50):
        yield form(f"top_k {value[:5]}", whole, top_k=value)
    yield form("an unknown field", whole, iou="0.5")
    yield form("no such model", whole, 404, model="nobody")
    for name, value in (("a number", 7), ("null", None), ("nested", [[[[text]]]]), ("an object", {"data": text})):
        yield body(f"image is {name}", image=value)
    for value in ("!!!", text[:-3], "data:image/png," + text, "http://127.0.0.1/a.png", "file:///etc/passwd"):
        yield body(f"image {value[:20]}", image=value)
    for threshold in (True, "0.5x", [0.5], {}, 2):
        yield body(f"threshold {threshold}", threshold=threshold)
    yield "no file", {"files": {"other": whole}, "data": {"model": "colours"}}, 400
    yield "text", {"content": b"hello", "headers": {"content-type": "text/plain"}}, 415
    yield "a list", {"json": [1, 2]}, 400


def _plain(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, "PNG")
    return out.getvalue()


def test_what_is_hostile_is_refused_with_a_sentence_and_hurts_nobody(served: Process) -> None:
    with served.client() as client:
        wanted = client.post(PATH, files={"file": picture()}, data={"model": "colours"}).json()["data"]
        seen = {}
        for name, sent, status in hostile():
            answer = client.post(PATH, **sent)
            said = answer.json()
            seen[name] = (answer.status_code, len(str(said.get("detail") or said["error"]["message"])) > 10)
            assert seen[name] == (status, True), (name, answer.text)
        assert len(seen) >= 30
        assert client.post(PATH, files={"file": picture()}, data={"model": "colours"}).json()["data"] == wanted
