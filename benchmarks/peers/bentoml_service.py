"""BentoML (https://github.com/bentoml/BentoML): one worker, adaptive batches."""

import bentoml
import numpy as np
from model import MOST_ROWS, Model


@bentoml.service(
    workers=1,
    traffic={"timeout": 60, "max_concurrency": 512},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Inference:
    """One row a request."""

    def __init__(self):
        self.model = Model()

    @bentoml.api(batchable=True, max_batch_size=MOST_ROWS, max_latency_ms=60000)
    def predict(self, input: np.ndarray) -> np.ndarray:
        """A batch."""
        return self.model(np.asarray(input, dtype=np.float32))
