"""Triton's Python backend (https://github.com/triton-inference-server/python_backend), dynamic batches."""

import os
import sys

sys.path[:0] = [os.environ["PEERS_FOLDER"], os.environ["TRITON_PACKAGES"]]

import numpy as np  # noqa: E402  behind the folders that are added
import triton_python_backend_utils as backend  # noqa: E402  as above
from model import Model  # noqa: E402  as above


class TritonPythonModel:
    """One row a request."""

    def initialize(self, args):
        """Open the model."""
        self.model = Model()

    def execute(self, requests):
        """A batch."""
        rows = [backend.get_input_tensor_by_name(request, "input").as_numpy() for request in requests]
        given = self.model(np.concatenate(rows) if len(rows) > 1 else rows[0])
        answers, start = [], 0
        for one in rows:
            end = start + len(one)
            answers.append(backend.InferenceResponse([backend.Tensor("output", given[start:end])]))
            start = end
        return answers
