"""Sound as microphones and telephones send it: 16-bit samples, or G.711's eight bits of them. Knows numbers; no files' kinds
but the plainest, WAV of one channel.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maasdam.core import type_array

MU_BIAS = 132
"""G.711, table 2a: what is added before the logarithm, in 16 bits."""


def from_mu_law(data: bytes) -> bytes:
    """G.711 mu-law, a byte a sample -> samples of 16 bits, little-endian."""
    return _decoded(data, "mu")


def from_a_law(data: bytes) -> bytes:
    """G.711 A-law, a byte a sample -> samples of 16 bits, little-endian."""
    return _decoded(data, "a")


def _decoded(data: bytes, law: str) -> bytes:
    import numpy as np

    return _table(law)[np.frombuffer(data, np.uint8)].tobytes()


@cache
def _table(law: str) -> type_array:
    """What each of the 256 codes means, int16 [256]."""
    import numpy as np

    codes = np.arange(256)
    if law == "mu":
        bits = ~codes & 0xFF
        size = (((bits & 15) << 3) + MU_BIAS << (bits >> 4 & 7)) - MU_BIAS
        is_negative = bits & 0x80 != 0
    else:
        bits = codes ^ 0x55
        exponent = bits >> 4 & 7
        step = ((bits & 15) << 4) + 8
        size = np.where(exponent == 0, step, (step + 256) << np.maximum(exponent - 1, 0))
        is_negative = bits & 0x80 == 0
    return np.where(is_negative, -size, size).astype("<i2")


def recording(samples: bytes, rate: int) -> bytes:
    """A WAV file of 16-bit samples of one channel, little-endian, at `rate` Hz."""
    form = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
    head = b"RIFF" + struct.pack("<I", 36 + len(samples)) + b"WAVEfmt " + struct.pack("<I", len(form)) + form
    return b"".join((head, b"data", struct.pack("<I", len(samples)), samples))


def quietest(samples: type_array, rate: int, start: int, stop: int) -> int:
    """Where between two places of int16 [S] to cut with the least harm: the midst of the quietest tenth of a second."""
    import numpy as np

    part = samples[start:stop].astype(np.float32)
    size = max(1, rate // 10)
    sums = np.concatenate([[0.0], np.cumsum(part.astype(np.float64) ** 2)])
    if len(part) <= size:
        return (start + stop) // 2
    return start + int(np.argmin(sums[size:] - sums[:-size])) + size // 2
