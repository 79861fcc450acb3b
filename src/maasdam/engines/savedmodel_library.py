"""SavedModels as TensorFlow reads them today. Knows what Keras 2 left in them; never signatures or batches.

A SavedModel of a fitted Keras 2 model holds its optimiser with a slot for each weight. TensorFlow makes slots through the
optimiser's own class, which came with Keras 2: without it loading breaks, though serving needs no optimiser.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GRAPH = "saved_model.pb"


@contextmanager
def readable(folder: Path) -> Iterator[Path]:
    """`folder`, or one that holds the same model without the slots of optimisers, for as long as it is being loaded."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / GRAPH).read_bytes())
    nodes = [node for meta in saved.meta_graphs for node in meta.object_graph_def.nodes]
    if not any(node.slot_variables for node in nodes):
        yield folder
        return
    for node in nodes:
        del node.slot_variables[:]
    with tempfile.TemporaryDirectory() as made:
        bare = Path(made)
        for each in folder.iterdir():
            if each.name not in (GRAPH, "fingerprint.pb"):  # the fingerprint is of the other bytes
                (bare / each.name).symlink_to(each.resolve())
        (bare / GRAPH).write_bytes(saved.SerializeToString())
        yield bare
