"""Which kinds of picture files there are, by their first bytes, and which of them are read. Knows files; no pixels.

Pillow opens some TIFFs and gives other pixels than they hold: signed samples, 16 bits in a plane a colour, 16-bit gray that
counts from white. The first two are refused by what they are; the last is told (`Stored`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Those that are read, as Pillow calls them."""
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF-", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"8BPS", "a Photoshop file"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"qoif", "a QOI"),
    (b"P5", "a PNM"),
    (b"P6", "a PNM"),
    (b"DDS ", "a DDS"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"II\x1a\0\0\0HEAPCCDR", "a camera's raw file"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"\x1a\x45\xdf\xa3", "a video (Matroska)"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
)
_BRANDS = {
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"heim": "HEIC",
    b"heis": "HEIC",
    b"hevc": "HEIC",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
}
_READ = ((b"\x89PNG", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF8", "GIF"), (b"BM", "BMP"), (b"II", "TIFF"), (b"MM", "TIFF"))
_SAMPLE_FORMAT, _PLANES, _PHOTOMETRIC, _BITS = 339, 284, 262, 258


def kind_of(data: bytes) -> str:
    """What a file is that no decoder took, as a sentence goes on: "HEIC", "a PDF", "no picture"."""
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return _BRANDS.get(brand, "an AVIF that is broken" if brand in (b"avif", b"avis") else "a video (MP4)")
    if data[:4] == b"RIFF":
        return "a WEBP that is broken" if data[8:12] == b"WEBP" else "a RIFF file"
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        return "an SVG"
    if head.startswith((b"<!doctype html", b"<html")):
        return "a page of HTML"
    other = next((name for magic, name in _OTHERS if data.startswith(magic)), None)
    if other is not None:
        return other
    name = next((name for magic, name in _READ if data.startswith(magic)), None)
    return "no picture" if name is None else f"a {name} that is broken, or of a kind that is not read"


def misread(image: Image) -> str | None:
    """What a TIFF is of which Pillow would give other pixels than it holds; None: it is read."""
    tags = _tags(image)
    if tags.get(_SAMPLE_FORMAT) and 2 in tags[_SAMPLE_FORMAT]:
        return f"signed {max(tags.get(_BITS, (8,)))}-bit samples"
    if tags.get(_PLANES) == 2 and any(bits > 8 for bits in tags.get(_BITS, ())):
        return "16 bits a sample in a plane for each colour"
    return None


class Stored(NamedTuple):
    """How a file holds the samples of a picture, which the picture no longer says once it is turned."""

    is_cut_to_8: bool
    """Pillow took the upper 8 of 16 bits, and left the transparent colour as it was."""
    bits: int
    """Of a sample of a gray picture of more than 8: 12 of some TIFFs."""
    counts_from_white: bool
    """The larger the darker, which Pillow takes for lighter where there are more than 8 bits."""


def stored(image: Image) -> Stored:
    """Of a picture that is opened, and neither decoded nor turned."""
    tags = _tags(image)
    is_cut = image.mode != "I;16" and any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    return Stored(is_cut, max(tags.get(_BITS, (16,))), tags.get(_PHOTOMETRIC) == 0)


def _tags(image: Image) -> dict[int, Any]:
    return getattr(image, "tag_v2", None) or {}
