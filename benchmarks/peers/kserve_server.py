"""KServe's Python server (https://github.com/kserve/kserve)."""

import sys

PORT = int(sys.argv.pop(1))  # before kserve reads the rest

from kserve import InferOutput, InferResponse, Model, ModelServer  # noqa: E402  behind the word that is taken away
from model import IS_SMALL, NAME  # noqa: E402  as above
from model import Model as Rows  # noqa: E402  as above


class Inference(Model):
    """One row a request."""

    def __init__(self):
        super().__init__(NAME)
        self.ready = False

    def load(self):
        """Open the model."""
        self.rows = Rows()
        self.ready = True

    def predict(self, payload, headers=None):
        """OIP to OIP."""
        given = self.rows(payload.inputs[0].as_numpy().astype("float32", copy=False))
        output = InferOutput("output", list(given.shape), "FP32")
        output.set_data_from_numpy(given, binary_data=not IS_SMALL)
        return InferResponse(payload.id or "1", NAME, [output])


model = Inference()
model.load()
ModelServer(http_port=PORT, grpc_port=PORT + 1, workers=1, access_log_format=None).start([model])
