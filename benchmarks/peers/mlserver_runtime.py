"""MLServer (https://github.com/SeldonIO/MLServer): its own batching, in the server's process."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from model import Model


class Inference(MLModel):
    """One row a request."""

    async def load(self):
        """Open the model."""
        self.rows = Model()
        return True

    async def predict(self, payload):
        """OIP to OIP."""
        given = self.rows(self.decode(payload.inputs[0], default_codec=NumpyCodec).astype("float32", copy=False))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("output", given)])
