"""ONNX Runtime. Knows sessions and providers; never tasks, batching or HTTP."""

from __future__ import annotations

import functools
import logging
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import Artifact, Signature, Tensors, TensorSpec
from maasdam.engines.tensors import LARGE_BYTES, chosen, computing, loading_with, must_have
from maasdam.errors import Unsupported

if TYPE_CHECKING:
    from maasdam.core import type_array

NAME = "onnxruntime"
_log = logging.getLogger(__name__)

GRAPHS = {"all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "basic": "ORT_ENABLE_BASIC"}
UNFUSED = "session.disable_quant_qdq"
"""Rounding and products stay apart, in float. So a graph for TensorRT is computed on a processor: its signed activations have
int8 kernels here that cut sums off where there is no VNNI, which says nothing of a GPU."""
EXACT = "session.x64quantprecision"
"""Without VNNI too, int8 products are added in 32 bits. Else sums above 32767 are cut off there."""
SHARED = "replace the existing tensor"
"""What onnxruntime 1.32 says where EXACT meets int8 products that share weights or zero points, which it does not expect."""
PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}

DTYPES = {f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)} | {
    **{"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"},
    **{"tensor(bool)": "bool", "tensor(string)": "object"},
}


def open(artifact: Artifact, device: str, settings: Mapping[str, Any]) -> OnnxRuntimeEngine:
    """Open `model.onnx`.

    Settings: "threads" (intra-op); "graph": how far the graph is rewritten when it is opened, "all" (default), "extended" (no
    layouts of this processor) or "basic"; "fast_sums" (default False): int8 products may be added in 16 bits where the
    processor has no VNNI, about a third faster: quantisation sets it where it has narrowed the weights until their sums fit.
    On device cuda: "provider", "cuda" (default) or "tensorrt", and "precision" "f16" for TensorRT; "int8" (a graph quantised
    for TensorRT) makes TensorRT the default, with its int8 kernels; on a processor such a graph is computed in float.
    """
    with loading_with(NAME, artifact):
        providers = _providers(device, settings)
        for_tensorrt = device != "cuda" and bool(settings.get("int8", False))
        path = artifact.path / "model.onnx"
        session = _opened(path, settings, providers, _ways(settings, for_tensorrt))
        reopen = functools.partial(_opened, path, settings, providers, _ways(settings, for_tensorrt), keeps_memory=False)
        wanted = providers[0][0]
        if wanted not in session.get_providers():  # it goes on with the next one where its own libraries don't load
            raise Unsupported(f"{wanted} does not start here: its CUDA libraries are missing or do not fit onnxruntime")
        own = signature_of(session)
        signature = artifact.signature or own
        must_have([s.name for s in own.inputs], signature, "inputs")
        must_have([s.name for s in own.outputs], signature, "outputs")
        return OnnxRuntimeEngine(session, signature, path, for_tensorrt, reopen)


def _ways(settings: Mapping[str, Any], for_tensorrt: bool) -> tuple[tuple[str, ...], ...]:
    """Switches to open a graph with, the first that it opens with."""
    if for_tensorrt:
        return ((UNFUSED,),)
    return ((),) if settings.get("fast_sums", False) else ((EXACT,), (EXACT, UNFUSED), ())


def _opened(
    path: Path,
    settings: Mapping[str, Any],
    providers: list[tuple[str, dict[str, str]]],
    ways: tuple[tuple[str, ...], ...],
    keeps_memory: bool = True,
) -> Any:
    import onnxruntime as ort

    graph = chosen(settings, "graph", "all", GRAPHS)
    for number, switches in enumerate(ways, 1):
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings["threads"]
        options.inter_op_num_threads = 1
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, GRAPHS[graph])
        options.log_severity_level = 4  # what breaks is raised, with the same words
        options.enable_cpu_mem_arena = keeps_memory
        for pool in ("intra_op", "inter_op"):  # spinning burns the CPU of every other model of the service
            options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
        for switch in switches:
            options.add_session_config_entry(switch, "1")
        try:
            session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:
            if SHARED not in str(error) or number == len(ways):
                raise
        else:
            if number == 3:
                _log.warning("sums of int8 products in %s may be cut off: this processor has no VNNI", path.parent.name)
            return session
    raise AssertionError("the last way opens or raises")


def _providers(device: str, settings: Mapping[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's execution providers with their options, the one asked for first. Raises Unsupported, InvalidInput."""
    import onnxruntime as ort

    if device != "cuda":
        return [("CPUExecutionProvider", {})]
    quantized = bool(settings.get("int8", False))
    wanted = chosen(settings, "provider", "tensorrt" if quantized else "cuda", PROVIDERS)
    if PROVIDERS[wanted] not in ort.get_available_providers():
        raise Unsupported(f"this onnxruntime has no {PROVIDERS[wanted]}; install onnxruntime-gpu, or use --device cpu")
    switches = {"trt_fp16_enable": settings.get("precision") == "f16", "trt_int8_enable": quantized}
    tensorrt = (PROVIDERS["tensorrt"], {name: "1" if is_on else "0" for name, is_on in switches.items()})
    return [*[tensorrt] * (wanted == "tensorrt"), (PROVIDERS["cuda"], {}), ("CPUExecutionProvider", {})]


def signature_of(session: Any) -> Signature:
    """The session's own names, dtypes and shapes; named dimensions are dynamic."""

    def spec(value: Any) -> TensorSpec:
        if value.type not in DTYPES:
            raise Unsupported(f"tensor '{value.name}' is {value.type}; only plain tensors are served")
        return TensorSpec(value.name, DTYPES[value.type], tuple(d if isinstance(d, int) else None for d in value.shape))

    return Signature(tuple(map(spec, session.get_inputs())), tuple(map(spec, session.get_outputs())))


class OnnxRuntimeEngine:
    """One session; ONNX Runtime lets several threads run it at once."""

    def __init__(
        self,
        session: Any,
        signature: Signature,
        path: Path,
        is_unfused: bool = False,
        reopen: Callable[[], Any] | None = None,
    ) -> None:
        """`reopen` gives another session, which keeps no memory for later: for models whose answers may be of any size."""
        self.signature = signature
        given = {size for value in session.get_inputs() for size in value.shape if isinstance(size, str)}
        taken = {size for value in session.get_outputs() for size in value.shape if not isinstance(size, int)}
        self._reopen = reopen if taken - given else None
        self._reopening = threading.Lock()
        self._session: Any = session
        self._outputs = [s.name for s in signature.outputs]
        self._path, self._is_unfused = path, is_unfused

    def run(self, batch: Tensors) -> dict[str, type_array]:
        """Outputs in the signature's order. Raises InvalidTensor, EngineFailure."""
        with computing(NAME, self._session, self.signature, batch) as session:
            outputs = dict(zip(self._outputs, session.run(self._outputs, dict(batch)), strict=True))
        if self._reopen is not None and sum(array.nbytes for array in outputs.values()) > LARGE_BYTES:
            self._keep_no_memory()
        return outputs

    def _keep_no_memory(self) -> None:
        """A session never gives back what it once took: after an answer whose size no shape told, use one that does."""
        with self._reopening:
            reopen, self._reopen = self._reopen, None
            if reopen is not None and self._session is not None:
                self._session = reopen()

    def precisions(self) -> dict[str, int]:
        """Convolutions and matrix products by precision, in the graph as ONNX Runtime optimised it: {"i8": 53, "f32": 1}."""
        import onnx
        import onnxruntime as ort

        with tempfile.TemporaryDirectory() as folder:
            options = ort.SessionOptions()
            options.log_severity_level = 4  # it warns that the file is for this machine only: it is read and dropped
            options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
            if self._is_unfused:
                options.add_session_config_entry(UNFUSED, "1")
            ort.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])
            model = onnx.load(options.optimized_model_filepath, load_external_data=False)
        return dict(Counter(p for p in map(_precision, model.graph.node) if p))

    def close(self) -> None:
        """Free the session; a batch in flight in another thread still ends well."""
        self._session = None


_INTEGER = {
    *("QLinearConv", "QLinearMatMul", "QGemm", "QAttention", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger"),
    *("DynamicQuantizeMatMul", "DynamicQuantizeLSTM"),
}
_FLOAT = {
    *("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "LSTM", "GRU"),
    *("Attention", "MultiHeadAttention"),
}


def _precision(node: Any) -> str | None:
    if node.op_type in _INTEGER:
        return "i8"
    if node.op_type == "MatMulNBits":
        bits = next((a.i for a in node.attribute if a.name == "bits"), 4)
        return f"i{bits} weights"
    return "f32" if node.op_type in _FLOAT else None
