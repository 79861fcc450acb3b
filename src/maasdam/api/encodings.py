"""Bodies that travel compressed: gzip and deflate, in and out. Knows headers and bytes; never what a body means.

What comes is unpacked up to a limit and no further, however little of it came. What goes out is packed for a caller that names
one coding and no other, as Triton's clients do who want it: those that list several (browsers, most libraries) say what they
could read, and numbers hardly get smaller.
"""

from __future__ import annotations

import zlib

from maasdam.errors import WrongContentType

GZIP, ZLIB, RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
FORMATS = {b"gzip": GZIP, b"x-gzip": GZIP, b"deflate": ZLIB}
LEVEL = 1
"""The fastest: floating-point numbers give little to find."""


def coding_of(content_encoding: bytes | None) -> bytes | None:
    """The coding of a body; None where it is as it is. Raises WrongContentType for one that is not read here."""
    coding = (content_encoding or b"identity").strip().lower()
    if coding == b"identity":
        return None
    if coding not in FORMATS:
        shown = coding[:40].decode("latin-1")
        raise WrongContentType(f"Content-Encoding '{shown}' is not read here; send gzip, deflate, or a body as it is")
    return coding


def unpacked(data: bytes, coding: bytes, most: int) -> bytes | None:
    """The body that was packed; None where it has more than `most` bytes. Raises WrongContentType where it is not that."""
    try:
        try:
            return _inflated(data, FORMATS[coding], most)
        except zlib.error:
            if coding != b"deflate":
                raise
            return _inflated(data, RAW, most)  # some take "deflate" at its word
    except zlib.error as error:
        why = f"the body is no {coding.decode()}: {error}; send it whole, or without Content-Encoding"
        raise WrongContentType(why) from None


def _inflated(data: bytes, form: int, most: int) -> bytes | None:
    reader = zlib.decompressobj(form)
    whole = reader.decompress(data, most + 1)
    if len(whole) > most:
        return None
    if not reader.eof:
        raise zlib.error("it is cut off")
    if reader.unused_data:
        raise zlib.error("more follows its end")
    return whole


def wished(accept_encoding: bytes | None) -> bytes | None:
    """The coding that a caller wants its answer packed in."""
    return accept_encoding if accept_encoding in (b"gzip", b"deflate") else None


def packed(data: bytes, coding: bytes) -> bytes:
    """The body, packed."""
    packer = zlib.compressobj(LEVEL, wbits=FORMATS[coding])
    return packer.compress(data) + packer.flush()
