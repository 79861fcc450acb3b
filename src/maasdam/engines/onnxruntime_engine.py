"""ONNX Runtime. Knows sessions and providers; never tasks, batching or HTTP."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import Artifact, Signature, Tensors, TensorSpec
from maasdam.engines.tensors import breaking_as, closed, loading_with, must_have
from maasdam.errors import Unsupported

if TYPE_CHECKING:
    from maasdam.core import type_array

NAME = "onnxruntime"

DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}


def open(artifact: Artifact, device: str, settings: Mapping[str, Any]) -> OnnxRuntimeEngine:
    """Open `model.onnx`. Settings: "threads" (intra-op), "spin" (default False: spinning burns CPU under load)."""
    with loading_with(NAME, artifact):
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = settings["threads"]
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        spins = "1" if settings.get("spin", False) else "0"
        options.add_session_config_entry("session.intra_op.allow_spinning", spins)
        options.add_session_config_entry("session.inter_op.allow_spinning", spins)
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        if provider not in ort.get_available_providers():
            raise Unsupported(f"this onnxruntime has no {provider}; install onnxruntime-gpu, or use --device cpu")
        path = artifact.path / "model.onnx"
        session = ort.InferenceSession(str(path), options, providers=[provider])
        own = signature_of(session)
        signature = artifact.signature or own
        must_have([s.name for s in own.inputs], signature, "inputs")
        must_have([s.name for s in own.outputs], signature, "outputs")
        return OnnxRuntimeEngine(session, signature, path)


def signature_of(session: Any) -> Signature:
    """The session's own names, dtypes and shapes; named dimensions are dynamic."""

    def spec(value: Any) -> TensorSpec:
        if value.type not in DTYPES:
            raise Unsupported(f"tensor '{value.name}' is {value.type}; only plain tensors are served")
        return TensorSpec(value.name, DTYPES[value.type], tuple(d if isinstance(d, int) else None for d in value.shape))

    return Signature(tuple(map(spec, session.get_inputs())), tuple(map(spec, session.get_outputs())))


class OnnxRuntimeEngine:
    """One session; ONNX Runtime lets several threads run it at once."""

    def __init__(self, session: Any, signature: Signature, path: Path) -> None:
        self.signature = signature
        self._session: Any = session
        self._outputs = [s.name for s in signature.outputs]
        self._path = path

    def run(self, batch: Tensors) -> dict[str, type_array]:
        """Outputs in the signature's order. Raises InvalidTensor, EngineFailure."""
        session = self._session
        if session is None:
            raise closed(NAME)
        self.signature.check(batch)
        with breaking_as(NAME):
            return dict(zip(self._outputs, session.run(self._outputs, dict(batch)), strict=True))

    def precisions(self) -> dict[str, int]:
        """Convolutions and matrix products by precision, in the graph as ONNX Runtime optimised it: {"i8": 53, "f32": 1}."""
        import onnx
        import onnxruntime as ort

        with tempfile.TemporaryDirectory() as folder:
            options = ort.SessionOptions()
            options.log_severity_level = 4  # it warns that the file is for this machine only: it is read and dropped
            options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
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
