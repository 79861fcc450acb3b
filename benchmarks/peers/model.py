"""What every peer runs: the same ONNX file, on ONNX Runtime with one thread. Imported by the peers' own programs."""

import json
import os

import numpy as np
import onnxruntime

NAME = os.environ["MODEL"]
SHAPE = tuple(json.loads(os.environ["MODEL_SHAPE"]))
"""Of one row."""
IS_SMALL = len(SHAPE) == 1
"""Small rows travel as JSON, large ones as bytes."""
MOST_ROWS = 64 if IS_SMALL else 8


class Model:
    """The file, opened."""

    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL_FILE"], options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        self.output = self.session.get_outputs()[0].name

    def __call__(self, rows):
        """Rows to rows."""
        return self.session.run([self.output], {self.input: rows})[0]


def row(body):
    """One row of a plain body: a JSON list, or its bytes."""
    if IS_SMALL:
        return np.asarray(json.loads(body)["input"], np.float32)
    return np.frombuffer(body, np.float32).reshape(SHAPE)
