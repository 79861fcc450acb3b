"""Every kind of picture file: right or refused in a sentence, over HTTP too, with a neighbour that is answered."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.field.test_transparency import png16, saved
from tests.served import Process, add_starters, open_home, serving

from maasdam.errors import InvalidPayload
from maasdam.tasks.pictures import decode_image

PATH = "/v1/images/classifications"
UP = Image.fromarray(
    np.kron(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 0]]], np.uint8), np.ones((8, 16, 1), np.uint8))
)
"""32 x 16: red, green; blue, black."""
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def tiff(body: bytes, width: int, height: int, bits: int, order: str = "<", **tags: Any) -> bytes:
    """One strip, uncompressed. `tags`: photometric, samples (a pixel), planar, kind (339)."""
    count = tags.get("samples", 1)
    entries = {256: [width], 257: [height], 258: [bits] * count, 259: [1], 262: [tags.get("photometric", 1)], 277: [count]}
    entries |= {278: [height], 284: [tags.get("planar", 1)], 339: [tags.get("kind", 1)] * count}
    strips = count if tags.get("planar") == 2 else 1
    begin = 8 + 2 + 12 * (len(entries) + 2) + 4
    later = b""

    def entry(number: int, code: str, values: list[int]) -> bytes:
        nonlocal later
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(packed) > 4:
            packed, later = struct.pack(f"{order}I", begin + len(later)), later + packed
        return struct.pack(f"{order}HHI", number, 3 if code == "H" else 4, len(values)) + packed.ljust(4, b"\0")

    size = len(body) // strips
    room = sum(2 * len(v) if len(v) > 2 else 0 for v in entries.values()) + (8 * strips if strips > 1 else 0)
    entries_ = [(number, "H", values) for number, values in entries.items()]
    entries_ += [(273, "I", [begin + room + i * size for i in range(strips)]), (279, "I", [size] * strips)]
    head = b"".join(entry(*one) for one in sorted(entries_))
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IH", 8, len(entries_)) + head + bytes(4) + later + body


RAMP = np.linspace(0, 255, 64).astype(np.uint16).reshape(4, 16) * 257


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_picture_is_turned_as_it_says(kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    how = TURNS[turn]
    sharp = {"quality": 100, "subsampling": "4:4:4"}
    options = {"lossless": True} if kind == "WEBP" else sharp if kind in ("JPEG", "AVIF") else {}
    image = decode_image(saved(UP if how is None else UP.transpose(how), kind, exif=exif, **options), 10_000)
    assert image.size == UP.size and np.abs(np.asarray(image, int) - np.asarray(UP, int)).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_broken_exif_turns_nothing(kind: str) -> None:
    data = saved(UP, kind, exif=b"Exif\0\0" + b"\xff" * 30)
    assert decode_image(data, 10_000).size == UP.size


@pytest.mark.parametrize("order", ["<", ">"])
def test_gray_of_sixteen_bits_in_both_orders(order: str) -> None:
    data = tiff(RAMP.astype(f"{order}u2").tobytes(), 16, 4, 16, order)
    np.testing.assert_array_equal(np.asarray(decode_image(data, 1000, "L")), RAMP // 257)


def test_gray_that_counts_from_white_is_turned_round() -> None:
    for bits, samples in ((8, RAMP // 257), (16, RAMP)):
        most = (1 << bits) - 1
        data = tiff((most - samples).astype(f"<u{bits // 8}").tobytes(), 16, 4, bits, photometric=0)
        np.testing.assert_array_equal(np.asarray(decode_image(data, 1000, "L")), RAMP // 257)


def test_twelve_bits_are_scaled() -> None:
    a, b = (RAMP.reshape(-1, 2) >> 4).T
    packed = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()
    got = np.asarray(decode_image(tiff(packed, 16, 4, 12), 1000, "L"), int)
    assert np.abs(got - RAMP // 257).max() <= 1


CMYK = np.concatenate([255 - np.asarray(UP), np.zeros((16, 32, 1), np.uint8)], 2)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_four_inks_are_colours(kind: str) -> None:  # Pillow writes JPEG as Adobe does: inverted, and says so
    image = decode_image(
        saved(Image.frombytes("CMYK", (32, 16), CMYK.tobytes()), kind, **({"quality": 100} if kind == "JPEG" else {})), 1000
    )
    assert np.abs(np.asarray(image, int) - np.asarray(UP, int)).mean() < 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_of_frames_and_pages_the_first_is_seen(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    red, green, blue = decode_image(saved(frames[0], kind, save_all=True, append_images=frames[1:]), 1000).getpixel((8, 8))  # type: ignore[misc]  # of RGB
    assert red > 250 and max(green, blue) < 5


def test_a_profile_is_not_applied() -> None:
    """As transformers, which takes what Pillow gives."""
    from PIL import ImageCms

    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (wide, b"no profile"):
        np.testing.assert_array_equal(np.asarray(decode_image(saved(UP, icc_profile=profile), 1000)), np.asarray(UP))


def test_interlaced_and_progressive() -> None:
    np.testing.assert_array_equal(np.asarray(decode_image(saved(UP, "GIF", interlace=1), 1000)), np.asarray(UP))
    plain, progressive = (decode_image(saved(UP, "JPEG", progressive=how), 1000) for how in (False, True))
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(progressive))


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_file_that_is_cut_is_never_half_a_picture(kind: str) -> None:
    data = saved(noise(), kind)
    whole = np.asarray(decode_image(data, 1000))
    for cut in range(1, len(data), len(data) // 16):
        try:
            seen = np.asarray(decode_image(data[:cut], 1000))
        except InvalidPayload:
            continue
        np.testing.assert_array_equal(seen, whole)


def chunked(width: int, height: int, body: bytes, colour: int = 2) -> bytes:
    """A PNG that says it is so large."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def boxed(brand: bytes) -> bytes:
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + brand + b"mif1" + bytes(200)


WHOLE = {kind: saved(noise(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")}
HOSTILE = {
    "nothing": (b"", "empty"),
    "one byte": (b"\xff", "no picture"),
    "zeroes": (bytes(5000), "no picture"),
    "text": (b"this is a picture of a cat", "no picture"),
    "JSON": (b'{"image": "abc"}', "no picture"),
    "HTML": (b"<!DOCTYPE html><html><img src=x></html>", "a page of HTML"),
    "SVG": (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
    "SVG that asks for a file": (b"<svg><image href='file:///etc/passwd'/></svg>", "an SVG"),
    "PDF": (b"%PDF-1.7\n" + bytes(99), "a PDF"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
    "HEIC": (boxed(b"heic"), "HEIC"),
    "a video": (boxed(b"isom"), "a video"),
    "an empty AVIF": (boxed(b"avif"), "an AVIF that is broken"),
    "JPEG XL": (b"\xff\x0a" + bytes(99), "JPEG XL"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "JPEG 2000"),
    "Photoshop": (b"8BPS\0\1" + bytes(99), "Photoshop"),
    "an icon": (b"\0\0\1\0\1\0" + bytes(99), "an icon"),
    "a ZIP": (b"PK\3\4" + bytes(99), "a ZIP"),
    "a WAV": (b"RIFF" + struct.pack("<I", 100) + b"WAVEfmt " + bytes(99), "a RIFF file"),
    "half a JPEG": (WHOLE["JPEG"][:500], "broken"),
    "half a PNG": (WHOLE["PNG"][:600], "broken"),
    "half a WebP": (WHOLE["WEBP"][:300], "broken"),
    "half a GIF": (WHOLE["GIF"][:900], "broken"),
    "half a BMP": (WHOLE["BMP"][:900], "broken"),
    "half a TIFF": (WHOLE["TIFF"][:900], "broken"),
    "half an AVIF": (WHOLE["AVIF"][: len(WHOLE["AVIF"]) // 2], "broken"),
    "a JPEG of which the middle is another": (WHOLE["JPEG"][:400] + bytes(300) + WHOLE["JPEG"][:200], "broken"),
    "a PNG whose data is none": (chunked(24, 24, b"nothing"), "broken"),
    "a PNG of 4 gigapixels": (chunked(65_000, 65_000, zlib.compress(bytes(9))), "pixels"),
    "a PNG of 40 megapixels, packed": (chunked(8000, 5000, zlib.compress(bytes(5000 * 24001))), "40,000,000 pixels"),
    "a strip": (chunked(1, 30_000_000, zlib.compress(bytes(9))), "strip"),
    "a GIF of 4 gigapixels": (b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(99), "pixels|broken"),
    "a BMP of negative size": (b"BM" + struct.pack("<IIIIiiHHIIIIII", 99, 0, 54, 40, -9, 9, 1, 24, *[0] * 6), "pixels"),
    "a TIFF that is its own next page": (b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "broken"),
    "a TIFF of floats": (saved(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF"), "floating-point"),
    "a TIFF of 32 bits": (saved(Image.fromarray(np.full((9, 9), 2**30, np.int32)), "TIFF"), "signed 32-bit"),
    "a TIFF of signed samples": (tiff(bytes(64), 8, 8, 8, kind=2), "signed 8-bit samples"),
    "a TIFF of planes of 16 bits": (tiff(bytes(384), 8, 8, 16, samples=3, planar=2, photometric=2), "a plane for each colour"),
}  # fmt: skip


@pytest.fixture(scope="module")
def served(starters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    home = tmp_path_factory.mktemp("home")
    workspace = open_home(home)
    add_starters(workspace, starters, {"images": "digits"})
    _, key = workspace.keys.create("test", ["infer"])
    workspace.close()
    with serving(home, key) as running:
        yield running


def test_hostile_files_are_refused_in_a_sentence_and_the_neighbour_is_answered(served: Process, starters: Path) -> None:
    good = {"file": (starters / "images/samples/000.png").read_bytes()}
    with served.client() as client:
        wanted = client.post(PATH, files=good, data={"model": "digits"}).json()["data"]
        for name, (data, says) in HOSTILE.items():
            refused = client.post(PATH, files={"file": data}, data={"model": "digits"})
            assert refused.status_code == 400, (name, refused.text)
            told = refused.json()["error"]["message"]
            assert any(part in told for part in says.split("|")) and "send" in told, (name, told)
            inline = client.post(PATH, json={"model": "digits", "image": base64.b64encode(data).decode()})
            assert inline.status_code == 400, (name, inline.text)
        assert client.post(PATH, files=good, data={"model": "digits"}).json()["data"] == wanted


def test_one_picture_in_every_format_has_one_answer(served: Process, starters: Path) -> None:
    data = (starters / "images/samples/001.png").read_bytes()
    image = Image.open(io.BytesIO(data))
    gray = np.asarray(image.convert("L"))
    same = {
        "PNG": data,
        "WEBP": saved(image.convert("RGB"), "WEBP", lossless=True),
        "BMP": saved(image.convert("RGB"), "BMP"),
        "TIFF, big-endian, 16 bits": tiff((gray.astype(int) * 257).astype(">u2").tobytes(), *image.size, 16, ">"),
        "PNG of 16 bits": png16((gray.astype(int) * 257)[..., None], 0),
        "opaque": saved(image.convert("RGBA")),
        "cut out": saved(Image.merge("LA", (image.convert("L"), Image.new("L", image.size, 255)))),
    }
    with served.client() as client:
        answers = {n: client.post(PATH, files={"file": d}, data={"model": "digits"}).json()["data"] for n, d in same.items()}
        near = client.post(
            PATH, files={"file": saved(image.convert("RGB"), "AVIF", quality=95)}, data={"model": "digits"}
        ).json()
    assert all(answer == answers["PNG"] for answer in answers.values()), answers
    assert near["data"][0]["label"] == answers["PNG"][0]["label"]
