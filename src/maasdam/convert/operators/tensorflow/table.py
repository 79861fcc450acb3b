"""Where the TensorFlow operators are listed, and the element types both sides know."""

from __future__ import annotations

import tensorflow as tf

from maasdam.convert.operators.table import Table
from maasdam.errors import Unsupported

operator = Table("TensorFlow")

DTYPES: dict[int, tf.DType] = {
    1: tf.float32, 2: tf.uint8, 3: tf.int8, 4: tf.uint16, 5: tf.int16, 6: tf.int32, 7: tf.int64,
    9: tf.bool, 10: tf.float16, 11: tf.float64, 12: tf.uint32, 13: tf.uint64, 14: tf.complex64,
    15: tf.complex128, 16: tf.bfloat16,
}  # fmt: skip
"""ONNX's numbers for element types (TensorProto.DataType)."""


def dtype(number: int) -> tf.DType:
    """The element type of an ONNX number. Raises Unsupported for strings and the 8-bit and narrower floats."""
    if number not in DTYPES:
        raise Unsupported(f"TensorFlow tensors here have no ONNX element type number {number}")
    return DTYPES[number]


def known(*kinds: tf.DType) -> None:
    """Raise Unsupported for element types TensorFlow has but hardly computes on: 8-bit and narrower floats, 4-bit integers."""
    for kind in kinds:
        if kind not in DTYPES.values():
            raise Unsupported(f"TensorFlow does not compute {kind.name} as ONNX does")
