"""Pictures in, labels out: the model's own processor, whatever the picture and the axes."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maasdam.core import Classification, ImagePayload, Signature, TensorSpec
from maasdam.errors import EngineFailure, InvalidModel, InvalidPayload, Unsupported
from maasdam.settings import Settings
from maasdam.tasks import open_processor
from maasdam.tasks.pictures import decode_image

TASK = "image-classification"
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 8, "width": 8},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
LABELS = {"0": "cat", "1": "dog, hound", "10": "eel"}


def model(folder: Path, processor: dict[str, Any] | None = PROCESSOR, labels: Any = LABELS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"id2label": labels, "model_type": "vit"}))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def signature(*shape: int | None, name: str = "pixel_values", outputs: tuple[TensorSpec, ...] = ()) -> Signature:
    return Signature((TensorSpec(name, "float32", shape),), outputs or (TensorSpec("logits", "float32", (None, 11)),))


NCHW, NHWC = (None, 3, 8, 8), (None, 8, 8, 3)


def png(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def gradient(size: tuple[int, int] = (20, 10)) -> Image.Image:
    columns = np.linspace(0, 255, size[0]).astype(np.uint8)
    rows = np.linspace(0, 255, size[1]).astype(np.uint8)
    red, green = np.meshgrid(columns, rows)
    return Image.fromarray(np.stack([red, green, np.full_like(red, 100)], -1))


def test_nchw_nhwc_and_dynamic_axes_get_the_same_picture(tmp_path: Path) -> None:
    payload = ImagePayload(png(gradient()))
    first = open_processor(TASK, model(tmp_path), signature(*NCHW)).prepare(payload)[0]["pixel_values"]
    last = open_processor(TASK, tmp_path, signature(*NHWC, name="x")).prepare(payload)[0]["x"]
    free = open_processor(TASK, tmp_path, signature(None, None, None, None)).prepare(payload)[0]["pixel_values"]
    assert first.shape == (1, 3, 8, 8) and first.dtype == np.float32 and first.flags.c_contiguous
    np.testing.assert_array_equal(first, last.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(first, free)
    assert last.flags.c_contiguous
    assert first.min() >= -1 and first.max() <= 1


def test_pixels_are_what_transformers_makes_of_them(tmp_path: Path) -> None:
    from transformers import ViTImageProcessorPil

    image = gradient((33, 17))
    want = ViTImageProcessorPil.from_pretrained(model(tmp_path))(images=image, return_tensors="np")["pixel_values"]
    got = open_processor(TASK, tmp_path, signature(*NCHW)).prepare(ImagePayload(png(image)))[0]["pixel_values"]
    np.testing.assert_array_equal(got, want)


def test_a_gray_model_gets_gray(tmp_path: Path) -> None:
    processor = PROCESSOR | {"image_mean": [0.5], "image_std": [0.5], "do_convert_rgb": False}
    made = open_processor(TASK, model(tmp_path, processor), signature(None, 1, 8, 8))
    assert made.prepare(ImagePayload(png(gradient())))[0]["pixel_values"].shape == (1, 1, 8, 8)


def answer(processor: Any, *scores: float, top_k: int = 5) -> Classification:
    found = processor.finish([{"logits": np.array([scores], np.float32)}], ImagePayload(b"", top_k))
    assert isinstance(found, Classification)
    return found


def test_scores_become_labels_best_first(tmp_path: Path) -> None:
    processor = open_processor(TASK, model(tmp_path), signature(*NCHW))
    scores = [0.0] * 10 + [3.0]
    scores[1] = 1.0
    found = answer(processor, *scores, top_k=3).labels
    assert [(x.label_id, x.label) for x in found] == [(10, "eel"), (1, "dog, hound"), (0, "cat")]
    powers = np.exp(scores)
    assert found[0].score == pytest.approx(powers[10] / powers.sum())
    assert answer(processor, 0.0, 0.0, 5.0).labels[0].label == "2"  # a label without a name is called by its id
    assert len(answer(processor, 1.0, 2.0, top_k=100).labels) == 2


def test_probabilities_are_taken_as_they_are(tmp_path: Path) -> None:
    processor = open_processor(TASK, model(tmp_path), signature(*NCHW))
    assert answer(processor, 0.25, 0.75).labels[0].score == 0.75
    assert answer(processor, 0.25, 0.85).labels[0].score != 0.85  # they don't sum to 1


def test_scores_that_are_not_finite_are_the_engines_failure(tmp_path: Path) -> None:
    processor = open_processor(TASK, model(tmp_path), signature(*NCHW))
    with pytest.raises(EngineFailure, match="not finite"):
        answer(processor, float("nan"), 1.0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_read(kind: str) -> None:
    image = decode_image(png(gradient(), kind), 10_000)
    assert image.mode == "RGB" and image.size == (20, 10)
    assert abs(np.asarray(image, int) - np.asarray(gradient(), int)).mean() < 12


def test_every_mode_becomes_rgb() -> None:
    plain = gradient()
    pictures = {
        "palette": plain.convert("P"),
        "palette with transparency": plain.quantize(16),
        "alpha": plain.convert("RGBA"),
        "gray": plain.convert("L"),
        "gray alpha": plain.convert("LA"),
        "one bit": plain.convert("1"),
    }
    for name, image in pictures.items():
        options = {"transparency": 0} if "transparency" in name else {}
        assert decode_image(png(image, **options), 10_000).mode == "RGB", name
    cmyk = decode_image(png(plain.convert("CMYK"), "JPEG"), 10_000)
    assert abs(np.asarray(cmyk, int) - np.asarray(plain, int)).mean() < 25


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    wide = Image.fromarray(np.linspace(0, 65535, 200).astype(np.uint16).reshape(10, 20))
    gray = np.asarray(decode_image(png(wide, kind), 10_000))[..., 0].reshape(-1)
    np.testing.assert_allclose(gray, np.linspace(0, 255, 200), atol=1)


def test_a_picture_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # taken on its side
    turned = decode_image(png(gradient((20, 10)), "JPEG", exif=exif.tobytes()), 10_000)
    assert turned.size == (10, 20)


def test_of_several_frames_the_first_counts() -> None:
    frames = [Image.new("RGB", (9, 9), c) for c in ("red", "blue")]
    data = png(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data, 1000).getpixel((4, 4)) == (255, 0, 0)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header says so many pixels, in a few bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


BAD = {
    "nothing": (b"", "empty"),
    "text": (b"this is no image", "no image"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'><rect width='9' height='9'/></svg>", "no image"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
    "truncated JPEG": (png(gradient((200, 200)), "JPEG")[:900], "truncated or broken"),
    "truncated PNG": (png(gradient((200, 200)))[:-60], "truncated or broken"),
    "head of a PNG": (png(gradient())[:20], "no image|truncated"),
    "40 megapixels": (bomb(8000, 5000), "40,000,000 pixels"),
    "4 gigapixels": (bomb(65_000, 65_000), "pixels"),
    "a strip": (bomb(1, 30_000_000), "strip"),
    "floats": (png(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "floating-point"),
    "32 bits": (png(Image.fromarray(np.full((9, 9), 2**30, np.int32)), "TIFF"), "32-bit"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_picture_is_refused_in_a_sentence_fast_and_small(tmp_path: Path, bad: tuple[bytes, str]) -> None:
    data, says = bad
    processor = open_processor(TASK, model(tmp_path), signature(*NCHW))
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(InvalidPayload, match=says) as caught:
        processor.prepare(ImagePayload(data))
    assert time.perf_counter() - began < 1
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert "send" in str(caught.value)


def test_the_limit_on_pixels_is_a_setting(tmp_path: Path) -> None:
    data = ImagePayload(png(gradient((20, 10))))
    model(tmp_path)
    open_processor(TASK, tmp_path, signature(*NCHW), Settings(max_image_pixels=200)).prepare(data)
    with pytest.raises(InvalidPayload, match="at most 199"):
        open_processor(TASK, tmp_path, signature(*NCHW), Settings(max_image_pixels=199)).prepare(data)


def test_a_model_without_processor_files_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="--processor"):
        open_processor(TASK, model(tmp_path, None), signature(*NCHW))


@pytest.mark.parametrize(
    "processor",
    [{"image_processor_type": "NoSuchThing"}, {"image_processor_type": 7}, {"auto_map": {"AutoImageProcessor": "x.Y"}}],
)
def test_a_processor_nobody_knows_is_an_invalid_model(tmp_path: Path, processor: dict[str, Any]) -> None:
    folder = model(tmp_path, processor)
    (folder / "config.json").write_text(json.dumps({"id2label": LABELS}))
    with pytest.raises(InvalidModel, match="--processor"):
        open_processor(TASK, folder, signature(*NCHW))


def test_signatures_that_take_no_picture_are_refused(tmp_path: Path) -> None:
    model(tmp_path)
    for wrong in (
        None,
        Signature((TensorSpec("ids", "int64", (None, None)),), ()),
        signature(None, 7, 8, 8),
        Signature((TensorSpec("x", "uint8", (None, 3, 8, 8)),), (TensorSpec("y", "float32", (None, 2)),)),
        signature(*NCHW, outputs=(TensorSpec("a", "float32", (None, 2)), TensorSpec("b", "float32", (None, 2)))),
    ):
        with pytest.raises(InvalidModel):
            open_processor(TASK, tmp_path, wrong)


def test_a_processor_of_another_size_than_the_model_says_so(tmp_path: Path) -> None:
    processor = open_processor(TASK, model(tmp_path), signature(None, 3, 9, 9))
    with pytest.raises(InvalidPayload, match=r"\[\?, 3, 9, 9\].*\[1, 3, 8, 8\]"):
        processor.prepare(ImagePayload(png(gradient())))


@pytest.mark.parametrize("labels", [["cat", "dog"], {"zero": "cat"}])
def test_labels_that_are_no_table_are_an_invalid_model(tmp_path: Path, labels: Any) -> None:
    with pytest.raises(InvalidModel, match="id2label"):
        open_processor(TASK, model(tmp_path, PROCESSOR, labels), signature(*NCHW))


def test_no_such_task_names_the_tasks(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="image-classification, text-generation"):
        open_processor("image-segmentation", tmp_path, None)


ALONE = """
import sys, time
from maasdam.tasks.torchless import without_torch
assert without_torch()
from pathlib import Path
from maasdam.core import *
from maasdam.tasks import open_processor
signature = Signature((TensorSpec("x", "float32", (None, 3, 8, 8)),), (TensorSpec("logits", "float32", (None, 11)),))
began = time.process_time()
processor = open_processor("image-classification", Path(sys.argv[1]), signature)
processor.prepare(ImagePayload(Path(sys.argv[2]).read_bytes()))
print(time.process_time() - began)
assert not {"torch", "tensorflow", "torchvision"} & sys.modules.keys()
"""


def test_a_processor_imports_neither_torch_nor_tensorflow(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(gradient()))
    words = [sys.executable, "-c", ALONE, str(model(tmp_path / "model")), str(tmp_path / "a.png")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert float(done.stdout) < 3  # CPU seconds; the libraries' import


@pytest.mark.parametrize("size", [{"height": 60_000, "width": 60_000}, {"shortest_edge": 10**9}, 10**9, {"height": 1e12}])
def test_a_processor_that_would_blow_pictures_up_is_refused(tmp_path: Path, size: Any) -> None:
    with pytest.raises(InvalidModel, match="at most 4,096 pixels are taken"):
        open_processor("image-classification", model(tmp_path, PROCESSOR | {"size": size}), signature(None, 3, None, None))
