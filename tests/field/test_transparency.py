"""What shines through in a picture is white, in every format and mode; colours below it are never seen."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maasdam.tasks.pictures import decode_image

RED, BLACK, WHITE = (255, 0, 0), (0, 0, 0), (255, 255, 255)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def half() -> Image.Image:
    """The upper half red, the lower half black and wholly transparent."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (255, 0, 0, 255)
    return Image.fromarray(pixels)


def palette() -> Image.Image:
    """Colour 0 red, colour 1 black."""
    image = Image.fromarray(np.repeat(np.arange(2, dtype=np.uint8), 32).reshape(8, 8), "P")
    image.putpalette([*RED, *BLACK])
    return image


COLOURED = {
    "PNG": saved(half()),
    "WebP": saved(half(), "WEBP", lossless=True),
    "GIF": saved(half(), "GIF"),
    "TIFF": saved(half(), "TIFF"),
    "a palette with one transparent colour": saved(palette(), transparency=1),
    "a palette with a transparency for each colour": saved(palette(), transparency=b"\xff\x00"),
    "one colour named as transparent": saved(half().convert("RGB"), transparency=BLACK),
}


@pytest.mark.parametrize("data", COLOURED.values(), ids=COLOURED.keys())
def test_what_is_transparent_lies_on_white(data: bytes) -> None:
    image = decode_image(data, 1000)
    assert image.mode == "RGB" and (image.getpixel((2, 1)), image.getpixel((2, 6))) == (RED, WHITE)
    assert decode_image(data, 1000, "L").getpixel((2, 6)) == 255


def test_gray_with_alpha_and_a_gray_named_as_transparent() -> None:
    gray = half().convert("LA")
    named = Image.fromarray(np.repeat(np.array([200, 7], np.uint8), 32).reshape(8, 8))
    for data, seen in ((saved(gray), 76), (saved(named, transparency=7), 200)):
        assert [decode_image(data, 1000, "L").getpixel(at) for at in ((0, 0), (0, 7))] == [seen, 255]


def test_half_transparent_is_mixed() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[..., 3] = 128
    assert decode_image(saved(Image.fromarray(pixels)), 1000).getpixel((0, 0)) == (127, 127, 127)


def png16(pixels: Any, colour: int, key: tuple[int, ...] = ()) -> bytes:
    """A PNG of 16 bits a sample [H, W, C], which Pillow does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    named = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + named + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bits_keep_their_transparency() -> None:
    lower = np.zeros((4, 4, 1), int)
    lower[:2] = 1
    for data in (
        png16(np.concatenate([lower * 65535, lower * 0, lower * 0, lower * 65535], 2), 6),
        png16(np.concatenate([lower * 65535, lower * 0, lower * 0], 2), 2, (0, 0, 0)),
        png16(np.concatenate([lower * 65535, lower * 0, (1 - lower) * 300], 2), 2, (0, 0, 300)),
    ):
        image = decode_image(data, 1000)
        assert (image.getpixel((0, 0)), image.getpixel((0, 3))) == (RED, WHITE)
    for data in (png16(np.concatenate([lower * 30_000, lower * 65535], 2), 4), png16(lower * 30_000 + 5, 0, (5,))):
        image = decode_image(data, 1000, "L")
        assert image.getpixel((0, 0)) in (116, 117) and image.getpixel((0, 3)) == 255


def test_a_turned_palette_is_turned_with_its_transparency() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image = decode_image(saved(palette(), transparency=1, exif=exif.tobytes()), 1000)
    assert (image.getpixel((2, 1)), image.getpixel((2, 6))) == (WHITE, RED)


def test_a_picture_without_transparency_is_not_touched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4)).astype(np.uint8)
    pixels[..., 3] = 255
    np.testing.assert_array_equal(np.asarray(decode_image(saved(Image.fromarray(pixels)), 1000)), pixels[..., :3])
