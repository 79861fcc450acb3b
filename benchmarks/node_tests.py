"""Run ONNX's own node tests (`onnx.backend.test`) through our operator tables.

A case is "passed" (every output of the right type and shape and within the case's tolerance), "refused" (an error, which a
user sees as `Unsupported` before anything is written) or "differs" (numbers that are wrong). Cases are compared at the
precision of their type where their own tolerance asks for more: many of half precision have that of float32.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from maasdam.convert.operators import interpreter, narrow
from maasdam.convert.operators.graph import of_model
from maasdam.convert.operators.nodes import Graph
from maasdam.convert.operators.onnx import OPERATORS

Arrays = Sequence[Any]
"""numpy arrays, lists of them, None."""
Run = Callable[[Graph, Arrays], list[Any]]
FRAMEWORKS = ("pytorch", "tensorflow")
STEPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}
"""The distance from one to the next number. Sums of terms that cancel are not nearer to zero than a step of the largest."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one case. `why` is empty where it passed."""

    name: str
    operator: str
    said: Literal["passed", "refused", "differs"]
    why: str = ""


def verdicts(framework: str) -> Iterator[Verdict]:
    """One verdict for each node test of the standard operators. `framework` is one of FRAMEWORKS."""
    from onnx.backend.test.case.node import collect_testcases

    named, run = {"pytorch": _pytorch, "tensorflow": _tensorflow}[framework]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [case for case in collect_testcases(None) if case.model is not None]
        tested = {case.name: case.model.graph.node[-1].op_type for case in cases}
        for case in cases:
            if any(node.domain not in ("", "ai.onnx") for node in case.model.graph.node):
                continue  # machine learning before networks, training
            whole = case.name.partition("_expanded")[0]  # a case with the operator replaced by its definition
            yield _judge(case, tested.get(whole, tested[case.name]), named, run)


def _judge(case: Any, operator: str, framework: str, run: Run) -> Verdict:
    try:
        graph = of_model(case.model, framework)
        pairs = [([_array(x) for x in ins], [_array(x) for x in outs]) for ins, outs in case.data_sets]
        found = [_narrowed(graph, run(graph, [_held(x) for x in ins])) for ins, _ in pairs]
    except Exception as error:  # frameworks raise their own kinds
        return Verdict(case.name, operator, "refused", f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])
    for got, (_, wanted) in zip(found, pairs, strict=True):
        for a, b in zip(got, wanted, strict=True):
            if why := _differences(a, b, case.rtol, case.atol):
                return Verdict(case.name, operator, "differs", why)
    return Verdict(case.name, operator, "passed")


def _held(value: Any) -> Any:
    """An input as tables take it."""
    if value is None or isinstance(value, list):
        return value
    return narrow.held(value)


def _narrowed(graph: Graph, found: list[Any]) -> list[Any]:
    """Outputs of types that tables hold in wider ones, as the case writes them; as they are where that would change them."""
    import onnx

    out = []
    for name, array in zip(graph.outputs, found, strict=True):
        if number := graph.narrow.get(name):
            small = array.astype(onnx.helper.tensor_dtype_to_np_dtype(number))
            is_same = np.array_equal(small.astype(array.dtype), array, equal_nan=array.dtype.kind == "f")
            array = small if is_same else array
        out.append(array)
    return out


def _array(value: Any) -> Any:
    """A tensor as numpy's; a sequence as a list, an optional value that is not there as None."""
    import onnx

    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if value is None or isinstance(value, list):
        return value if value is None else [_array(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    raise TypeError(f"{type(value).__name__} is no value of a model")


def _differences(found: Any, wanted: Any, relative: float, absolute: float) -> str:
    """Of a tensor, or of each in a sequence."""
    if not isinstance(wanted, list):
        return _difference(found, wanted, relative, absolute)
    if not isinstance(found, list) or len(found) != len(wanted):
        return f"not a sequence of {len(wanted)}"
    return next((why for a, b in zip(found, wanted, strict=True) if (why := _differences(a, b, relative, absolute))), "")


def _difference(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], relative: float, absolute: float) -> str:
    """What is wrong; empty where nothing is."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"{found.dtype} {found.shape}, not {wanted.dtype} {wanted.shape}"
    if wanted.dtype.kind in "OUS":
        return "" if (found == wanted).all() else "other strings"
    step = STEPS.get(wanted.dtype.name, 0.0)
    kind = np.complex128 if wanted.dtype.kind == "c" else np.float64
    a, b = found.astype(kind), wanted.astype(kind)
    largest = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
    if np.allclose(a, b, rtol=max(relative, 2 * step), atol=max(absolute, 2 * step * largest), equal_nan=True):
        return ""
    return f"off by {float(np.nanmax(np.abs(a - b))):.3g} where the largest value is {largest:.3g}"


def _each(function: Callable[[Any], Any], values: Any) -> list[Any]:
    """Of tensors, of those in sequences, of None."""
    return [v if v is None else _each(function, v) if isinstance(v, list) else function(v) for v in values]


def _pytorch() -> tuple[str, Run]:
    import ml_dtypes
    import torch

    from maasdam.convert.directions.onnx_to_pytorch import of_graph
    from maasdam.convert.operators.pytorch import ARRAYS

    def numbers(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
        return tensor.float().numpy().astype(ml_dtypes.bfloat16) if tensor.dtype == torch.bfloat16 else tensor.numpy()

    def run(graph: Graph, inputs: Arrays) -> list[Any]:
        with torch.no_grad():
            found = of_graph(graph)(*_each(ARRAYS.tensor, inputs))
        return _each(numbers, found)

    return ARRAYS.name, run


def _tensorflow() -> tuple[str, Run]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    from maasdam.convert.operators.tensorflow import ARRAYS

    def run(graph: Graph, inputs: Arrays) -> list[Any]:
        """Traced, as in a SavedModel. What must be known while tracing (axes, shapes) is a constant of the graph."""
        given = dict(zip(graph.inputs, inputs, strict=True))
        stated = _stated(graph)
        live = [name for name in graph.inputs if name not in stated and given[name] is not None]
        absent = {name: None for name in graph.inputs if given[name] is None}

        def traced(*tensors: Any) -> list[Any]:
            fixed = graph.constants | {name: given[name] for name in graph.inputs if name in stated}
            values: dict[str, Any] = {n: interpreter.small_or_tensor(a, ARRAYS) for n, a in fixed.items()} | absent
            return interpreter.run(graph, ARRAYS, values | dict(zip(live, tensors, strict=True)))

        specs = _each(lambda v: tf.TensorSpec(v.shape, v.dtype), [given[name] for name in live])
        function = tf.function(traced, autograph=False, input_signature=specs)
        return _each(lambda t: t.numpy(), function(*_each(tf.constant, [given[name] for name in live])))

    return ARRAYS.name, run


def _stated(graph: Graph) -> set[str]:
    """Names that operators read as shapes and axes."""
    found = set()
    for node in graph.nodes:
        operator = OPERATORS.find(node.operator, graph.version)
        if operator is not None:
            found |= {name for i, name in enumerate(node.inputs) if operator.parameter(i) in operator.shapes}
    return found
