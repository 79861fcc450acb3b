"""mosec (https://github.com/mosecorg/mosec): one worker, batches as they come."""

import json

import numpy as np
from model import IS_SMALL, MOST_ROWS, Model, row
from mosec import Server, Worker


class Inference(Worker):
    """One row a request."""

    def __init__(self):
        self.model = Model()

    def deserialize(self, data):
        """Bytes to a row."""
        return row(data)

    def forward(self, data):
        """A batch."""
        return list(self.model(np.stack(data)))

    def serialize(self, data):
        """A row to bytes."""
        return json.dumps({"output": data.tolist()}).encode() if IS_SMALL else data.tobytes()


if __name__ == "__main__":
    server = Server()
    server.append_worker(Inference, num=1, max_batch_size=MOST_ROWS, max_wait_time=1, timeout=120)
    server.run()
