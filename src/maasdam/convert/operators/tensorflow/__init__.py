"""What TensorFlow has of its own for ONNX operators: functions that tf.function traces with axes it does not know."""

from maasdam.convert.operators.tensorflow.arrays import ARRAYS

__all__ = ["ARRAYS"]
