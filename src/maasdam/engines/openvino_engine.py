"""OpenVINO. Knows compiled models and infer requests; never tasks, batching or HTTP."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from maasdam.core import Artifact, Signature, Tensors, TensorSpec
from maasdam.engines.openvino_library import openvino
from maasdam.engines.tensors import LARGE_BYTES, chosen, closed, computing, loading_with, positions
from maasdam.errors import Unsupported

if TYPE_CHECKING:
    from maasdam.core import type_array

NAME = "openvino"
PRECISIONS = ("f32", "bf16", "f16", "auto")
HINTS = ("latency", "throughput")
FILES = {"ir": "model.xml", "onnx": "model.onnx", "savedmodel": ""}
SMALL_BYTES = 16 * 2**20
"""Models up to this size are compiled for one row too, see `_for_one_row`; the weights are in memory twice then."""
JOINED = 256
"""Matrix products up to so wide are joined by OpenVINO, see `_joins_rounded_products`."""


def open(artifact: Artifact, device: str, settings: Mapping[str, Any]) -> OpenVinoEngine:
    """Open an IR, an ONNX file or a SavedModel (without TensorFlow).

    Settings: "threads"; "precision" of the computation: "f32" (default), "bf16", "f16", or "auto" (OpenVINO's choice);
    "streams" (default 1): how many batches compute side by side, each on threads/streams; "hint": what OpenVINO tunes for,
    "latency" (default) or "throughput"; "dynamic_quantization" (default False), see `dynamic_quantization`.
    """
    with loading_with(NAME, artifact):
        ov = openvino()

        core = ov.Core()
        where = "GPU" if device == "gpu" else "CPU"
        if where not in {d.partition(".")[0] for d in core.available_devices}:
            raise Unsupported(f"OpenVINO sees no {where} here; it sees: {', '.join(core.available_devices)}")
        file = str(artifact.path / FILES[artifact.layout]).rstrip("/")
        model = core.read_model(file)
        options = properties(settings, where)
        if where == "CPU" and _joins_rounded_products(model):
            options["SNIPPETS_MODE"] = "DISABLE"
        compiled = core.compile_model(model, where, options)
        signature = artifact.signature or signature_of(compiled)
        is_small = where == "CPU" and artifact.size_bytes <= SMALL_BYTES
        row = _for_one_row(core, model, options) if is_small else None
        return OpenVinoEngine(
            compiled, signature, row, partial(_compiled, core, file, where, options), settings.get("streams", 1) == 1
        )


def _compiled(core: Any, file: str, where: str, options: Mapping[str, Any]) -> Any:
    return core.compile_model(core.read_model(file), where, options)


def _for_one_row(core: Any, model: Any, options: Mapping[str, Any]) -> Any:
    """`model`, which is changed, compiled for one row alone; None where more than its first axes is open, or nothing is.

    With an open axis OpenVINO works out every operator's sizes at every run (decision 0029).
    """
    shapes = {i: list(port.partial_shape) for i, port in enumerate(model.inputs) if port.partial_shape.rank.is_static}
    if not model.is_dynamic() or len(shapes) < len(model.inputs):
        return None
    for shape in shapes.values():
        shape[:1] = [1 if d.is_dynamic and d.min_length <= 1 else d for d in shape[:1]]
    try:
        model.reshape(shapes)
        return None if model.is_dynamic() else core.compile_model(model, "CPU", options)
    except RuntimeError:  # one row is none of its sizes
        return None


def _joins_rounded_products(model: Any) -> bool:
    """Does a rounding stand between two small matrix products, with nothing on its way but elementwise operators?

    Where the rows are known and at most 8, OpenVINO 2026.4 makes one operator of the two, and without a bias between them its
    sums of int8 are read as float32: 6e8 for 0.6, from one thread on where there are as many rows.
    """
    for node in model.get_ordered_ops():
        users = node.output(0).get_target_inputs() if node.get_type_name() == "FakeQuantize" else ()
        before = node.input_value(0).get_node() if any(_is_small_product(u.get_node()) for u in users) else None
        while before and _rank(before) == 2 and before.get_type_name() != "MatMul" and before.get_input_size():
            before = before.input_value(0).get_node()
        if before and _is_small_product(before):
            return True
    return False


def _rank(node: Any) -> int:
    rank = node.get_output_partial_shape(0).rank
    return rank.get_length() if rank.is_static else -1


def _is_small_product(node: Any) -> bool:
    weights = node.get_input_partial_shape(1) if node.get_type_name() == "MatMul" else None
    return weights is not None and _rank(node) == 2 and weights.is_static and max(weights.to_shape()) <= JOINED


def properties(settings: Mapping[str, Any], where: str = "CPU") -> dict[str, Any]:
    """OpenVINO's own words for our settings."""
    precision = chosen(settings, "precision", "f32", PRECISIONS)
    out: dict[str, Any] = {"PERFORMANCE_HINT": chosen(settings, "hint", "latency", HINTS).upper()}
    if precision != "auto":
        out["INFERENCE_PRECISION_HINT"] = precision
    if where == "CPU":
        out["INFERENCE_NUM_THREADS"] = settings["threads"]
        out["NUM_STREAMS"] = int(settings.get("streams", 1))
        out["ENABLE_CPU_PINNING"] = False  # several engines share the cores of one process
        out |= dynamic_quantization(settings)
    return out


def dynamic_quantization(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Whether products with int8 or int4 *weights* round the activations to int8 too, on the CPU.

    OpenVINO does so by default, up to twice as fast for batches and long prompts; but then an answer depends on what else
    is in the batch (2 of 24 greedy texts changed). So here it is off unless the setting says otherwise; in text generation
    company is kept out of an answer (decision 0039).
    """
    return {} if settings.get("dynamic_quantization", False) else {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


def signature_of(compiled: Any) -> Signature:
    """Names, dtypes and shapes of the compiled model; where a port has several names, the first in the alphabet."""

    def spec(port: Any, fallback: str) -> TensorSpec:
        names = sorted(port.get_names())
        dtype = "object" if port.element_type.get_type_name() == "string" else port.element_type.to_dtype().name
        shape = tuple(d.get_length() if d.is_static else None for d in port.partial_shape)
        return TensorSpec(names[0] if names else fallback, dtype, shape)

    return Signature(
        tuple(spec(p, f"input_{i}") for i, p in enumerate(compiled.inputs)),
        tuple(spec(p, f"output_{i}") for i, p in enumerate(compiled.outputs)),
    )


class OpenVinoEngine:
    """One compiled model, or two, and as many infer requests as threads ever ran at once."""

    def __init__(
        self,
        compiled: Any,
        signature: Signature,
        row: Any = None,
        again: Callable[[], Any] | None = None,
        is_one_stream: bool = True,
    ) -> None:
        """`row`: the same model compiled for one row; `again` compiles the model anew.

        Where sizes are open a run that breaks half-way leaves operators with the sizes of its batch, and what comes next is
        broken too or, of a size that came before, answered with rows of the broken batch (OpenVINO 2026.4). So after such a
        run there is a model compiled anew, and nobody computes between the two.
        """
        self.signature = signature
        is_open = any(port.partial_shape.is_dynamic for port in compiled.inputs)
        self._again = again if is_open else None
        self._alone: AbstractContextManager[Any] = threading.Lock() if self._again and is_one_stream else nullcontext()
        self._compiled: Any = compiled
        self._row, self._row_shapes = row, {i: tuple(p.shape) for i, p in enumerate(row.inputs)} if row else {}
        inputs = positions([s.name for s in signature.inputs], [p.get_names() for p in compiled.inputs], "inputs")
        outputs = positions([s.name for s in signature.outputs], [p.get_names() for p in compiled.outputs], "outputs")
        self._inputs = list(zip((s.name for s in signature.inputs), inputs, strict=True))
        self._outputs = list(zip((s.name for s in signature.outputs), outputs, strict=True))
        self._lock = threading.Lock()
        self._idle: tuple[list[Any], list[Any]] = [], []

    def run(self, batch: Tensors) -> dict[str, type_array]:
        """Outputs in the signature's order, in memory of their own. Raises InvalidTensor, EngineFailure."""
        import numpy as np

        row = self._row
        with computing(NAME, self._compiled, self.signature, batch) as compiled:
            inputs = {i: np.asarray(batch[name], order="C") for name, i in self._inputs}
            if row is not None and self._row_shapes == {i: array.shape for i, array in inputs.items()}:
                return self._answered(row, self._idle[True], inputs)
            while True:
                with self._alone:
                    compiled = self._compiled or compiled
                    try:
                        outputs = self._answered(compiled, self._idle[False], inputs)
                    except RuntimeError:
                        self._anew(compiled)
                        raise
                if self._again is None or self._compiled in (compiled, None):
                    return outputs  # else it was at work, in another stream, when one broke

    def _anew(self, broken: Any) -> None:
        with self._lock:
            if self._again is not None and self._compiled is broken:
                self._idle = [], self._idle[True]
                self._compiled = self._again()

    def _answered(self, compiled: Any, idle: list[Any], inputs: Mapping[int, type_array]) -> dict[str, type_array]:
        with self._lock:
            request = idle.pop() if idle else None
        request = request or compiled.create_infer_request()
        request.infer(inputs, share_inputs=True, share_outputs=True)  # else each output is copied twice
        outputs = {name: _copy(request.get_output_tensor(i)) for name, i in self._outputs}
        if sum(array.nbytes for array in outputs.values()) > LARGE_BYTES:
            del request  # it would keep room for such an answer; this way the next answer frees it
            with suppress(RuntimeError):  # another thread's request is in flight: the next large answer frees it
                compiled.release_memory()
            request = compiled.create_infer_request()
        with self._lock:
            idle.append(request)  # one that broke is dropped
        return outputs

    def precisions(self) -> dict[str, int]:
        """Operators by the precision they run in, from the compiled model: {"i8": 53, "f32": 12}."""
        compiled = self._compiled
        if compiled is None:
            raise closed(NAME)
        return runtime_precisions(compiled.get_runtime_model())

    def close(self) -> None:
        """Free the compiled model; a batch in flight in another thread still ends well."""
        self._compiled = self._row = None
        self._idle = [], []


_COMPUTES = (
    *("Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNN", "LSTM", "GRU"),
    *("ScaledDotProduct", "PagedAttention"),
)


def runtime_precisions(model: Any) -> dict[str, int]:
    """Of a compiled model's graph: how many operators that compute (convolutions, matrix products) run in which precision."""
    counts: Counter[str] = Counter()
    for node in model.get_ordered_ops():
        info = node.get_rt_info()
        kind, precision = (_text(info, key) for key in ("layerType", "runtimePrecision"))
        if kind and precision and kind.startswith(_COMPUTES):
            counts[precision.lower().replace("u8", "i8")] += 1  # 8 bits, signed or not
    return dict(counts)


def _text(info: Any, key: str) -> str:
    if key not in info:
        return ""
    value = info[key]
    return str(getattr(value, "astype", lambda _: value)(str))


def _copy(tensor: Any) -> type_array:
    if tensor.element_type.get_type_name() == "string":
        import numpy as np

        return np.array(tensor.str_data, dtype=object)
    array: type_array = tensor.data.copy()
    return array
