"""TensorFlow SavedModel or .keras -> ONNX through tf2onnx: names of serving_default and the dynamic batch kept."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from maasdam.convert.directions.keras_to_savedmodel import export_keras
from maasdam.convert.directions.pytorch_to_onnx import OPERATOR_SET
from maasdam.convert.modules import first_line
from maasdam.convert.onnx_files import nodes_of
from maasdam.convert.signatures import describe, name_onnx, of_onnx
from maasdam.core import Artifact, Signature
from maasdam.engines.savedmodel_library import readable
from maasdam.errors import InvalidModel, MaasdamError, Unsupported, from_extra

SIGNATURE = "serving_default"


def write(source: Artifact, out: Path) -> Signature:
    """Write `out`/model.onnx and return its signature. Raises Unsupported naming what tf2onnx can't convert."""
    with from_extra("tensorflow", "tensorflow"):
        import tensorflow  # noqa: F401  # asked for, to say which extra is missing
    with from_extra("tensorflow", "tf2onnx"):
        import tf2onnx  # noqa: F401  # asked for, to say which extra is missing
    if source.layout == "savedmodel":
        with readable(source.path) as bare:
            return _convert(bare, source.signature, out / "model.onnx")
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        # tf2onnx writes half of a bfloat16 graph as float16, and ONNX Runtime has no products of bfloat16 on processors
        export_keras(source.path / "model.keras", Path(folder), source.signature, widens_bfloat16=True)
        return _convert(Path(folder), source.signature, out / "model.onnx")


def _convert(saved_model: Path, wanted: Signature | None, path: Path) -> Signature:
    with _quiet():
        try:
            model = _run_tf2onnx(saved_model)
        except MaasdamError:
            raise
        except Exception as error:  # tf2onnx and TensorFlow raise anything
            raise Unsupported(f"tf2onnx can't convert the model: {str(error)[:400]}") from error
    if unknown := sorted({n.op_type for n in nodes_of(model.graph) if not onnx.defs.has(n.op_type, domain=n.domain)}):
        # what tf2onnx left as TensorFlow's own: it only logs it
        raise Unsupported(f"no ONNX operator for TensorFlow's {', '.join(unknown)}, which the model uses")
    if wanted is not None:
        name_onnx(model, wanted)
    onnx.save(model, path)
    return describe(of_onnx(model), wanted)


def _run_tf2onnx(saved_model: Path) -> Any:
    import tensorflow as tf
    from tf2onnx import tf_loader
    from tf2onnx.optimizer import optimize_graph
    from tf2onnx.tfonnx import process_tf_graph

    try:
        frozen, inputs, outputs, tables, names = tf_loader.from_saved_model(
            str(saved_model),
            None,
            None,
            tag=["serve"],
            signatures=[SIGNATURE],
            return_initialized_tables=True,
            return_tensors_to_rename=True,
        )
    except (OSError, AssertionError) as error:
        raise InvalidModel(f"TensorFlow can't read the model's '{SIGNATURE}': {first_line(error)}") from error
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(frozen, name="")
        onnx_graph = process_tf_graph(
            graph,
            opset=OPERATOR_SET,
            input_names=inputs,
            output_names=outputs,
            tensors_to_rename=names,
            initialized_tables=tables,
            custom_op_handlers={
                "Erfc": (_erfc, []),
                "SparseSoftmaxCrossEntropyWithLogits": (_cross_entropy, []),
                "SoftmaxCrossEntropyWithLogits": (_cross_entropy, []),
            },
        )
    _spread_scalars(onnx_graph)
    return optimize_graph(onnx_graph, catch_errors=False).make_model(SIGNATURE)


def _spread_scalars(graph: Any) -> None:
    """A number added to a tensor as a tensor of one element: tf2onnx's optimiser breaks on the other behind a convolution."""
    from tf2onnx import utils

    for node in graph.get_nodes():
        if node.type != "Add" or not node.inputs[1].is_const() or not graph.get_shape(node.input[0]):
            continue
        value = node.inputs[1].get_tensor_value(as_list=False)
        if value.shape == ():
            spread = graph.make_const(utils.make_name("spread"), value.reshape(1))
            graph.replace_input(node, node.input[1], spread.output[0], 1)


def _erfc(graph: Any, node: Any, name: str, args: Any) -> None:
    """TensorFlow's Erfc (Keras's exact GELU), which tf2onnx doesn't know: 1 - Erf(x)."""
    from tf2onnx import utils

    shape, dtype, outputs = graph.get_shape(node.output[0]), graph.get_dtype(node.output[0]), list(node.output)
    value = node.input[0]
    graph.remove_node(node.name)
    erf = graph.make_node("Erf", [value], shapes=[shape], dtypes=[dtype])
    one = graph.make_const(utils.make_name("one"), np.array(1, utils.map_onnx_to_numpy_type(dtype)))
    graph.make_node("Sub", [one.output[0], erf.output[0]], outputs=outputs, name=name, shapes=[shape], dtypes=[dtype])


def _cross_entropy(graph: Any, node: Any, name: str, args: Any) -> None:
    """TensorFlow's losses over logits. tf2onnx takes the logarithm of a softmax, which is infinite from logits of 100 on."""
    from tf2onnx import utils

    shape, dtype, outputs = graph.get_shape(node.output[0]), graph.get_dtype(node.output[0]), list(node.output)
    is_sparse, (logits, labels) = node.type.startswith("Sparse"), node.input
    graph.remove_node(node.name)
    last = graph.make_const(utils.make_name("last"), np.array([-1], np.int64)).output[0]
    logarithm = graph.make_node("LogSoftmax", [logits], attr={"axis": -1}, dtypes=[dtype]).output[0]
    if is_sparse:
        places = graph.make_node("Unsqueeze", [labels, last]).output[0]
        chosen = graph.make_node("GatherElements", [logarithm, places], attr={"axis": -1}, dtypes=[dtype]).output[0]
        total = graph.make_node("Squeeze", [chosen, last], dtypes=[dtype]).output[0]
    else:
        chosen = graph.make_node("Mul", [logarithm, labels], dtypes=[dtype]).output[0]
        total = graph.make_node("ReduceSum", [chosen, last], attr={"keepdims": 0}, dtypes=[dtype]).output[0]
    graph.make_node("Neg", [total], outputs=outputs[:1], name=name, shapes=[shape], dtypes=[dtype])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence tf2onnx's log and what TensorFlow prints."""
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
