"""LitServe (https://github.com/Lightning-AI/LitServe): one worker, batches as they come."""

import base64
import sys

import litserve
import numpy as np
from model import IS_SMALL, MOST_ROWS, SHAPE, Model


class Inference(litserve.LitAPI):
    """One row a request."""

    def setup(self, device):
        """Open the model."""
        self.model = Model()

    def decode_request(self, request):
        """JSON to a row."""
        if IS_SMALL:
            return np.asarray(request["input"], np.float32)
        return np.frombuffer(base64.b64decode(request["b64"]), np.float32).reshape(SHAPE)

    def batch(self, inputs):
        """Rows together."""
        return np.stack(inputs)

    def predict(self, x):
        """A batch, or one row."""
        return self.model(x if x.ndim > len(SHAPE) else x[None])

    def unbatch(self, output):
        """Rows apart."""
        return list(output)

    def encode_response(self, output):
        """A row to JSON."""
        return {"output": output.tolist()}


if __name__ == "__main__":
    api = Inference(max_batch_size=MOST_ROWS, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True, timeout=120)
    port = int(sys.argv[1])
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False, access_log=False)
