"""Bytes to a picture, safely. Knows image files and what can be wrong with them; never models.

The size is read from the header and checked before a pixel is decoded. Colour profiles (ICC) are not applied: transformers does
not either, and models learned from pixels as Pillow gives them.
"""

from __future__ import annotations

import io
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from maasdam.errors import InvalidPayload
from maasdam.tasks.picture_files import FORMATS, Stored, kind_of, misread, stored

if TYPE_CHECKING:
    from PIL.Image import Image

BACKGROUND = (255, 255, 255)
"""What shines through: white, as the page that a cut-out picture is shown on. The colours below full transparency are
whatever a program left there, most often black, and no viewer shows them; dropping alpha would classify those."""
ORIENTATION = 0x0112
"""The number of that tag in EXIF."""
HEADED = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Formats whose header has the size as it is stored; others may be turned by Pillow."""
ANY_SIZE = 1 << 40
SIDEWAYS = (5, 6, 7, 8)
"""Its values that swap width and height."""
MAX_ASPECT = 64
"""Longest side to shortest: resizing a line one pixel wide to a model's height would make a picture of gigabytes."""


def decode_image(data: bytes, max_pixels: int, mode: str = "RGB") -> Image:
    """The first frame, upright, in `mode` ("RGB" or "L"); 16 bits are scaled to 8, what is transparent lies on white.

    Raises InvalidPayload: empty, none of FORMATS, more than `max_pixels`, a strip, truncated or broken.
    """
    from PIL import Image

    if not data:
        raise InvalidPayload("the image is empty (0 bytes); send the bytes of a file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow's limits, above ours
        raise InvalidPayload(f"the image has more pixels than the {max_pixels:,} allowed; send a smaller one") from error
    except Exception as error:  # Pillow raises what its decoders do: OSError, SyntaxError, struct.error, ValueError, …
        has = f"these {len(data):,} bytes are no image in {', '.join(FORMATS)}: it is {kind_of(data)}"
        raise InvalidPayload(f"{has}; send one of those") from error
    width, height = image.size
    if width * height > max_pixels:
        raise InvalidPayload(
            f"the image has {width} x {height} = {width * height:,} pixels and at most {max_pixels:,} are taken; "
            "send a smaller one"
        )
    if min(width, height) < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidPayload(f"the image is {width} x {height}: a strip; send one at most {MAX_ASPECT} times as long as wide")
    if (what := misread(image)) is not None:
        raise InvalidPayload(f"the image is a TIFF with {what}, which is not read; send one of unsigned 8 or 16 bits, or a PNG")
    try:
        image.seek(0)
        held = stored(image)
        image.load()
        return _in_mode(_upright(image), mode, held)
    except InvalidPayload:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise InvalidPayload(f"the {image.format} image is truncated or broken ({why}); send the whole file") from error


def _upright(image: Image) -> Image:
    """Turned as its EXIF says; as it is where that is broken, which every viewer shows all the same."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # what Pillow's reading of TIFF tags raises: SyntaxError, TypeError, struct.error, …
        return image


def upright_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a picture that `decode_image` took, turned as that turns it. Most are not decoded again."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.format not in HEADED:
            return decode_image(data, ANY_SIZE).size
        width, height = image.size
        with suppress(Exception):  # see `_upright`
            if image.getexif().get(ORIENTATION, 1) in SIDEWAYS:
                return height, width
        return width, height


def _in_mode(image: Image, mode: str, held: Stored) -> Image:
    if image.mode == mode and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        return _eight_bits(image, held).convert(mode)
    if image.mode == "F":
        raise InvalidPayload("the image has floating-point pixels, of no known range; send 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert(mode)
    key = image.info.get("transparency")
    if held.is_cut_to_8 and key is not None:
        image.info["transparency"] = tuple(part >> 8 for part in key) if isinstance(key, tuple) else key >> 8
    return _on_background(image).convert(mode)


def _on_background(image: Image) -> Image:
    """RGB, with BACKGROUND where the picture is transparent, mixed where it is half so."""
    from PIL import Image as images

    picture = image.convert("RGBA")
    page = images.new("RGB", picture.size, BACKGROUND)
    page.paste(picture, mask=picture)
    return page


def _eight_bits(image: Image, held: Stored) -> Image:
    """12- and 16-bit gray to 8; Pillow's own conversion clips at 255 instead."""
    import numpy as np
    from PIL import Image as images

    pixels: Any = np.asarray(image)
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        raise InvalidPayload("the image has 32-bit pixels; send 8 or 16 bits")
    gray = (pixels.astype(np.uint32) * 255 // ((1 << held.bits) - 1)).astype(np.uint8)
    if held.counts_from_white:
        gray = 255 - gray
    key = image.info.get("transparency")
    if isinstance(key, int):
        gray[pixels == key] = 255
    return images.fromarray(gray)
