"""Operators of com.microsoft, which ONNX Runtime's optimisers and quantisers write, against ONNX Runtime itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.convert.operators import interpreter
from maasdam.convert.operators.graph import of_model
from maasdam.convert.proof.certificate import certify
from maasdam.core import Format
from maasdam.engines.onnxruntime_engine import EXACT
from maasdam.errors import Unsupported
from maasdam.sources import ingest
from tests.convert.test_directions import converted

RANDOM = np.random.default_rng(7)


def real(*shape: int, scale: float = 1.0) -> Any:
    return (RANDOM.standard_normal(shape) * scale).astype(np.float32)


def bytes_(*shape: int, signed: bool = False) -> Any:
    return RANDOM.integers(-128, 128, shape).astype(np.int8) if signed else RANDOM.integers(0, 256, shape).astype(np.uint8)


@dataclass(frozen=True)
class Case:
    """Nodes (domain.operator, inputs, outputs, attributes) over open inputs; `how` draws an input where it is not normal."""

    name: str
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]]
    inputs: dict[str, tuple[str, tuple[int | str, ...]]]
    weights: dict[str, Any]
    within: float = 2e-5
    """What real numbers may differ by, as a part of the largest."""
    step: int = 0
    """How many steps a quantised output may be off: a half is rounded by the last bit of a product."""
    compared: int = 9
    """How many outputs have a meaning throughout: a cache has none behind an item's end."""

    def model(self) -> Any:
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        kinds = {"float": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "int64": TensorProto.INT64,
                 "bool": TensorProto.BOOL}  # fmt: skip
        made = [
            helper.make_node(name.rpartition(".")[2], ins, outs, domain="com.microsoft" if "." in name else "", **attributes)
            for name, ins, outs, attributes in self.nodes
        ]
        given = [helper.make_tensor_value_info(n, kinds[kind.split()[0]], shape) for n, (kind, shape) in self.inputs.items()]
        read = {name for _, ins, _, _ in self.nodes for name in ins}
        asked = [name for _, _, outs, _ in self.nodes for name in outs if name and name not in read]
        stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in self.weights.items()]
        graph = helper.make_graph(made, "g", given, [onnx.ValueInfoProto(name=name) for name in asked], stored)
        sets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=sets, ir_version=10)

    def feeds(self, seed: int) -> dict[str, Any]:
        random = np.random.default_rng(seed)
        sizes = {"N": 1 + seed, "S": 3 + 2 * seed, "P": 2 + seed}
        sizes |= {"T": sizes["P"] + sizes["S"], "P + 1": sizes["P"] + 1}
        return {
            name: _drawn(random, kind, [sizes.get(str(s), s) for s in shape]) for name, (kind, shape) in self.inputs.items()
        }


def _drawn(random: Any, kind: str, shape: list[Any]) -> Any:
    """`kind`: a type, and a limit where it is a whole number: "int64 9" counts from 0 to 8, "int32 mask" pads on the right."""
    name, _, limit = kind.partition(" ")
    if limit == "mask":
        lengths = random.integers(1, shape[1] + 1, (shape[0], 1))
        return (np.arange(shape[1]) < lengths).astype(name)
    if limit == "ones":
        return np.ones(shape, name)
    if name == "float":
        return random.standard_normal(shape).astype(np.float32)
    if name == "bool":
        return random.random(shape) < 0.5
    return random.integers(0, int(limit or 256), shape).astype(name)


M = "com.microsoft."
X = {"x": ("float", ("N", "S", 8))}
IMAGE = {"x": ("uint8", ("N", 3, 6, 6))}
STEP, ZERO = np.float32(0.05), np.uint8(120)
OUT, AT = np.float32(0.07), np.uint8(100)
QUANTISED = {"s": STEP, "z": ZERO, "t": OUT, "o": AT}
EIGHT = {"x": ("uint8", ("N", 8)), "y": ("uint8", ("N", 8))}


def _fused() -> list[Case]:
    eight = {"gamma": real(8), "beta": real(8), "bias": real(8)}
    tables = {"words": real(20, 8), "places": real(30, 8), "kinds": real(2, 8), **eight}
    ids = {"ids": ("int32 20", ("N", "S")), "kind": ("int32 2", ("N", "S")), "mask": ("int32 mask", ("N", "S"))}
    two = {"x": ("float", ("N", "S", 8)), "y": ("float", ("N", "S", 8))}
    turned = {"cos": np.cos(real(32, 4)), "sin": np.sin(real(32, 4))}
    return [
        Case("Gelu", [(M + "Gelu", ["x"], ["y"], {})], X, {}),
        Case("BiasGelu", [(M + "BiasGelu", ["x", "b"], ["y"], {})], X, {"b": real(8)}),
        Case("FastGelu", [(M + "FastGelu", ["x", "b"], ["y"], {})], X, {"b": real(8)}),
        Case("QuickGelu", [(M + "QuickGelu", ["x"], ["y"], {"alpha": 1.3})], X, {}),
        Case("FusedMatMul", [(M + "FusedMatMul", ["x", "y"], ["z"], {"transB": 1, "alpha": 0.3})], two, {}),
        Case("FusedMatMul of a turned weight", [(M + "FusedMatMul", ["x", "w"], ["z"], {"transB": 1})], X, {"w": real(5, 8)}),
        Case("FusedMatMul of turned batches",
             [(M + "FusedMatMul", ["x", "y"], ["z"], {"transBatchA": 1, "transBatchB": 1, "transA": 1})],
             {"x": ("float", (4, "N", 2, 5)), "y": ("float", (4, "N", 2, 6))}, {}),
        Case("FusedGemm", [(M + "FusedGemm", ["x", "w", "b"], ["y"], {"activation": "LeakyRelu", "activation_alpha": 0.2})],
             {"x": ("float", ("N", 8))}, {"w": real(8, 5), "b": real(5)}),
        Case("FusedConv", [(M + "FusedConv", ["x", "w", "b"], ["y"],
                            {"activation": "HardSigmoid", "activation_params": [0.2, 0.5], "pads": [1, 1, 1, 1]})],
             {"x": ("float", ("N", 3, 6, 6))}, {"w": real(4, 3, 3, 3), "b": real(4)}),
        Case("FusedConv with a residual", [(M + "FusedConv", ["x", "w", "b", "x"], ["y"],
                                            {"activation": "Relu", "pads": [1, 1, 1, 1]})],
             {"x": ("float", ("N", 3, 6, 6))}, {"w": real(3, 3, 3, 3), "b": real(3)}),
        Case("SimplifiedLayerNormalization", [("SimplifiedLayerNormalization", ["x", "gamma"], ["y"], {"epsilon": 1e-6})], X,
             eight),
        Case("SkipLayerNormalization",
             [(M + "SkipLayerNormalization", ["x", "y", "gamma", "beta", "bias"], ["z", "", "", "sum"], {"epsilon": 1e-5})],
             two, eight),
        Case("SkipLayerNormalization of one row for all",
             [(M + "SkipLayerNormalization", ["x", "row", "gamma", "beta"], ["z"], {"epsilon": 1e-5})],
             {**X, "row": ("float", (1, "S", 8))}, eight),
        Case("SkipSimplifiedLayerNormalization",
             [(M + "SkipSimplifiedLayerNormalization", ["x", "y", "gamma"], ["z", "", "", "sum"], {"epsilon": 1e-5})], two,
             eight),
        Case("EmbedLayerNormalization",
             [(M + "EmbedLayerNormalization", ["ids", "kind", "words", "places", "kinds", "gamma", "beta", "mask"],
               ["y", "count", "sum"], {"epsilon": 1e-5})], ids, tables),
        Case("EmbedLayerNormalization without segments",
             [(M + "EmbedLayerNormalization", ["ids", "", "words", "places", "", "gamma", "beta"], ["y", "count"], {})],
             {"ids": ids["ids"]}, tables),
        Case("RotaryEmbedding", [(M + "RotaryEmbedding", ["x", "at", "cos", "sin"], ["y"], {})],
             {"x": ("float", ("N", "S", 16)), "at": ("int64 32", ("N", "S"))}, turned),
        Case("RotaryEmbedding in pairs", [(M + "RotaryEmbedding", ["x", "at", "cos", "sin"], ["y"], {"interleaved": 1})],
             {"x": ("float", ("N", 2, "S", 8)), "at": ("int64 20", (1,))}, turned),
    ]  # fmt: skip


def _attention() -> list[Case]:
    own = {"w": real(8, 24, scale=0.5), "b": real(24)}
    past = {"past": ("float", (2, "N", 2, "P", 4))}
    many = {"q": ("float", ("N", "S", 8)), "k": ("float", ("N", "P", 8)), "v": ("float", ("N", "P", 8))}
    cached = {name: (kind, (n, "S", w)) for name, (kind, (n, _, w)) in many.items()} | {
        "pk": ("float", ("N", 2, "P", 4)), "pv": ("float", ("N", 2, "P", 4)),
    }  # fmt: skip
    sizes = {"num_heads": 2}
    quantised = {"w": bytes_(8, 24), "b": real(24), "s": STEP, "ws": np.float32(0.01), "z": ZERO, "wz": np.uint8(128)}
    return [
        Case("Attention", [(M + "Attention", ["x", "w", "b"], ["y"], sizes)], X, own),
        Case("Attention with a mask", [(M + "Attention", ["x", "w", "b", "m"], ["y"], sizes)],
             {**X, "m": ("int32 mask", ("N", "S"))}, own),
        Case("Attention with lengths", [(M + "Attention", ["x", "w", "b", "m"], ["y"], sizes)],
             {**X, "m": ("int32 4", ("N",))}, own),
        Case("Attention with a mask for each query", [(M + "Attention", ["x", "w", "b", "m"], ["y"], sizes)],
             {**X, "m": ("int32 2", ("N", "S", "S"))}, own),
        Case("Attention with a past", [(M + "Attention", ["x", "w", "b", "", "past"], ["y", "present"],
                                        {**sizes, "unidirectional": 1})], {**X, **past}, own),
        Case("Attention with a bias", [(M + "Attention", ["x", "w", "b", "m", "", "add"], ["y"], {**sizes, "scale": 0.3})],
             {**X, "m": ("int32 mask", ("N", "S")), "add": ("float", (1, 2, "S", "S"))}, own),
        Case("Attention with narrower keys", [(M + "Attention", ["x", "w", "b"], ["y"],
                                               {**sizes, "qkv_hidden_sizes": [4, 4, 16]})], X, own),
        Case("MultiHeadAttention", [(M + "MultiHeadAttention", ["q", "k", "v", "b", "m"], ["y"], sizes)],
             {**many, "m": ("int32 mask", ("N", "P"))}, {"b": real(24)}),
        Case("MultiHeadAttention with a past",
             [(M + "MultiHeadAttention", ["q", "k", "v", "", "", "add", "pk", "pv"], ["y", "key", "value"], sizes)],
             {**cached, "add": ("float", (1, 2, "S", "T"))}, {}),
        Case("MultiHeadAttention of keys looked up whole", [(M + "MultiHeadAttention", ["q", "k", "v"], ["y"], sizes)],
             {"q": many["q"], "k": ("float", ("N", 2, "P", 4)), "v": ("float", ("N", 2, "P", 4))}, {}),
        Case("QAttention", [(M + "QAttention", ["x", "w", "b", "s", "ws", "m", "z", "wz"], ["y"], sizes)],
             {"x": ("uint8", ("N", "S", 8)), "m": ("int32 mask", ("N", "S"))}, quantised),
    ]  # fmt: skip


def _grouped() -> list[Case]:
    """Behind a past, whose length each item's end says; and with none."""
    own = {"cos": np.cos(real(64, 8)), "sin": np.sin(real(64, 8))}
    cached = {"pk": ("float", ("N", 1, "P", 16)), "pv": ("float", ("N", 1, "P", 16)), "mask": ("int32 ones", ("N", "T"))}
    none = cached | {"pk": ("float", ("N", 1, 0, 16)), "pv": ("float", ("N", 1, 0, 16)), "mask": ("int32 ones", ("N", "S"))}
    three = {"q": ("float", ("N", "S", 32)), "k": ("float", ("N", "S", 16)), "v": ("float", ("N", "S", 16))}
    lengths: list[Any] = [
        ("ReduceSum", ["mask", "axis"], ["counted"], {"keepdims": 0}),
        ("Sub", ["counted", "one"], ["ends"], {}),
        ("Shape", ["mask"], ["shape"], {}),
        ("Gather", ["shape", "one64"], ["long"], {"axis": 0}),
        ("Cast", ["long"], ["total"], {"to": 6}),
    ]
    numbers = {"axis": np.array([1]), "one": np.int32(1), "one64": np.array(1)}

    def case(name: str, inputs: Any, first: list[str], compared: int = 3, **attributes: Any) -> Case:
        ins = [*first, "pk", "pv", "ends", "total", "cos", "sin"]
        outs, sizes = ["y", "key", "value"], {"num_heads": 2, "kv_num_heads": 1}
        node = (M + "GroupQueryAttention", ins, outs, {**sizes, **attributes})
        return Case(f"GroupQueryAttention {name}", [*lengths, node], inputs, own | numbers, compared=compared)

    def only(inputs: Any, **sizes: Any) -> Any:
        """ONNX Runtime takes several tokens behind a past of one item only, and one token of several items."""
        return {name: (kind, tuple(sizes.get(s, s) for s in shape)) for name, (kind, shape) in inputs.items()}

    apart, packed = ["q", "k", "v"], ["x", "", ""]
    token = only(three | cached, S=1, T="P + 1")
    return [
        case("behind a past", only(three | cached, N=1), apart, do_rotary=1),
        case("of one token", token, apart, do_rotary=1),
        case("of one token behind pasts of their own", token | {"mask": ("int32 mask", ("N", "P + 1"))}, apart, 1),
        case("of a prompt", three | none, apart, do_rotary=1, rotary_interleaved=1),
        case("packed, without turning", only({"x": ("float", ("N", "S", 64))} | cached, N=1), packed),
        case("in a window", only(three | cached, N=1), apart, local_window_size=3),
        case("with a cap", three | none, apart, softcap=5.0, scale=0.7),
    ]


def _quantised() -> list[Case]:
    nbits = {"w": bytes_(6, 2, 8), "s": abs(real(12)), "z": bytes_(6), "b": real(6)}
    sizes = {"K": 24, "N": 6, "bits": 4, "block_size": 16}
    flat = {"x": ("float", ("N", "S", 24))}
    ints = {"w": bytes_(8, 5, signed=True), "ws": abs(real(5)), "wz": np.zeros(5, np.int8), "b": real(5)}
    gemm = {**QUANTISED, "w": bytes_(5, 8, signed=True), "ws": np.abs(real(5, scale=0.01)), "wz": np.zeros(5, np.int8),
            "c": RANDOM.integers(-500, 500, 5).astype(np.int32)}  # fmt: skip
    return [
        Case("MatMulNBits", [(M + "MatMulNBits", ["x", "w", "s"], ["y"], sizes)], flat, nbits),
        Case("MatMulNBits with zero points", [(M + "MatMulNBits", ["x", "w", "s", "z", "", "b"], ["y"], sizes)], flat, nbits),
        Case("MatMulNBits of bytes", [(M + "MatMulNBits", ["x", "w8", "s"], ["y"], {**sizes, "bits": 8})], flat,
             {"w8": bytes_(6, 2, 16), "s": nbits["s"]}),
        Case("GatherBlockQuantized", [(M + "GatherBlockQuantized", ["w", "i", "s", "z"], ["y"], {"block_size": 16, "bits": 4})],
             {"i": ("int64 6", ("N", "S"))}, {"w": bytes_(6, 24), "s": real(6, 3), "z": bytes_(6, 2)}),
        Case("MatMulIntegerToFloat", [(M + "MatMulIntegerToFloat", ["x", "w", "s", "ws", "z", "wz", "b"], ["y"], {})],
             {"x": ("uint8", ("N", 8))}, {**ints, "s": STEP, "z": ZERO}),
        Case("DynamicQuantizeMatMul", [(M + "DynamicQuantizeMatMul", ["x", "w", "ws", "wz", "b"], ["y"], {})], X, ints),
        *(Case(f"DynamicQuantizeLSTM, {direction}, {name}",
               [(M + "DynamicQuantizeLSTM", ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"], ["y", "h"],
                 {"hidden_size": 5, "direction": direction})], {"x": ("float", ("S", "N", 6))},
               {"w": bytes_(count, 6, 20, signed=is_signed), "r": bytes_(count, 5, 20, signed=is_signed), "b": real(count, 40),
                "ws": abs(real(*scales, scale=0.01)), "rs": abs(real(*scales, scale=0.01)),
                "wz": np.full(scales, zero, type(zero)), "rz": np.full(scales, zero, type(zero))},
               within=1e-2)  # ONNX Runtime quantises states of rows together or apart, as its threads share them
          for direction, count, name, is_signed, scales, zero in (
              ("forward", 1, "signed", True, (1,), np.int8(0)),
              ("bidirectional", 2, "by gates", False, (2, 20), np.uint8(128)))),
        Case("QGemm", [(M + "QGemm", ["x", "s", "z", "w", "ws", "wz", "c", "t", "o"], ["y"], {"transB": 1})],
             {"x": ("uint8", ("N", 8))}, gemm, step=1),
        Case("QGemm to floats", [(M + "QGemm", ["x", "s", "z", "w", "ws", "wz", "c"], ["y"], {"transB": 1})],
             {"x": ("uint8", ("N", 8))}, gemm),
        *(Case(name, [(M + name, ["x", "s", "z", "y", "s2", "z2", "t", "o"], ["c"], {})], EIGHT,
               {**QUANTISED, "s2": np.float32(0.03), "z2": np.uint8(90)}, step=1) for name in ("QLinearAdd", "QLinearMul")),
        Case("QLinearSigmoid", [(M + "QLinearSigmoid", ["x", "s", "z", "t", "o"], ["y"], {})], IMAGE,
             {**QUANTISED, "t": np.float32(0.005), "o": np.uint8(0)}, step=1),
        Case("QLinearLeakyRelu", [(M + "QLinearLeakyRelu", ["x", "s", "z", "t", "o"], ["y"], {"alpha": 0.1})], IMAGE, QUANTISED,
             step=1),
        Case("QLinearSoftmax", [(M + "QLinearSoftmax", ["x", "s", "z", "t", "o"], ["y"], {"axis": -1, "opset": 13})],
             {"x": ("uint8", ("N", 8))}, {**QUANTISED, "t": np.float32(1 / 256), "o": np.uint8(0)}, step=1),
        Case("QLinearConcat", [(M + "QLinearConcat", ["t", "o", "x", "s", "z", "y", "t", "o"], ["c"], {"axis": 1})], EIGHT,
             QUANTISED, step=1),
        Case("QLinearWhere", [(M + "QLinearWhere", ["if", "x", "s", "z", "y", "t", "o", "t", "o"], ["c"], {})],
             {**EIGHT, "if": ("bool", ("N", 8))}, QUANTISED, step=1),
        Case("QLinearAveragePool",
             [(M + "QLinearAveragePool", ["x", "s", "z", "t", "o"], ["y"], {"kernel_shape": [2, 2], "strides": [2, 2]})],
             IMAGE, QUANTISED, step=1),
        Case("QLinearGlobalAveragePool", [(M + "QLinearGlobalAveragePool", ["x", "s", "z", "t", "o"], ["y"], {})], IMAGE,
             QUANTISED, step=1),
        Case("QuantizeLinear to 16 bits", [(M + "QuantizeLinear", ["x", "t", "o"], ["q"], {}),
                                           (M + "DequantizeLinear", ["q", "t", "o"], ["y"], {})], X,
             {"t": np.float32(0.0001), "o": np.uint16(30000)}),
        Case("QEmbedLayerNormalization",
             [(M + "QEmbedLayerNormalization",
               ["ids", "kind", "words", "places", "kinds", "gamma", "beta", "", *["s"] * 5, *["z"] * 5], ["y", "count"], {})],
             {"ids": ("int32 20", ("N", "S")), "kind": ("int32 2", ("N", "S"))},
             {"words": bytes_(20, 8), "places": bytes_(30, 8), "kinds": bytes_(2, 8), "gamma": bytes_(8), "beta": bytes_(8),
              "s": STEP, "z": ZERO}),
    ]  # fmt: skip


CASES = [*_fused(), *_attention(), *_grouped(), *_quantised()]


def in_pytorch(model: Any) -> Any:
    import torch

    from maasdam.convert.directions.onnx_to_pytorch import of_graph

    module = of_graph(of_model(model, "PyTorch"))
    names = [v.name for v in model.graph.input]

    def run(feeds: dict[str, Any]) -> list[Any]:
        with torch.no_grad():
            return [t.numpy() for t in module(*[torch.from_numpy(feeds[name]) for name in names])]

    return run


def in_tensorflow(model: Any) -> Any:
    """Traced once, for any size."""
    import tensorflow as tf

    from maasdam.convert.operators.tensorflow import ARRAYS

    graph = of_model(model, ARRAYS.name)
    kinds = {1: tf.float32, 2: tf.uint8, 6: tf.int32, 7: tf.int64, 9: tf.bool}
    tensors = [(v.name, v.type.tensor_type) for v in model.graph.input]
    specs = [tf.TensorSpec([d.dim_value or None for d in t.shape.dim], kinds[t.elem_type]) for _, t in tensors]

    @tf.function(autograph=False, input_signature=specs)
    def traced(*given: Any) -> list[Any]:
        constants = {n: interpreter.small_or_tensor(a, ARRAYS) for n, a in graph.constants.items()}
        return interpreter.run(graph, ARRAYS, constants | dict(zip(graph.inputs, given, strict=True)))

    return lambda feeds: [t.numpy() for t in traced(*[tf.constant(feeds[name]) for name, _ in tensors])]


@pytest.mark.parametrize("into", [in_pytorch, in_tensorflow])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_operator_computes_what_onnx_runtime_computes(case: Case, into: Any) -> None:
    """Over several seeds, batches and lengths."""
    import onnxruntime

    model = case.model()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(EXACT, "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    run = into(model)
    for seed in (0, 1, 2):
        feeds = case.feeds(seed)
        pairs = list(zip(run(feeds), session.run(None, feeds), strict=True))
        for found, wanted in pairs[: case.compared]:
            assert found.shape == wanted.shape and found.dtype == wanted.dtype
            if wanted.dtype.kind in "iu":
                assert np.abs(found.astype(int) - wanted.astype(int)).max(initial=0) <= case.step
                assert case.step == 0 or np.mean(found != wanted) < 0.1
            else:
                np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=case.within * np.abs(wanted).max())


@pytest.mark.parametrize("framework", ["PyTorch", "TensorFlow"])
def test_an_operator_nobody_wrote_is_named_with_the_others(framework: str) -> None:
    unknown = [(M + "BeamSearch", ["x"], ["a"], {}), ("Multinomial", ["a"], ["b"], {}), (M + "Gelu", ["b"], ["y"], {})]
    with pytest.raises(Unsupported, match=r"for the model's Multinomial, com\.microsoft\.BeamSearch$"):
        of_model(Case("", unknown, X, {}).model(), framework)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", ["pytorch", "tensorflow"])
@pytest.mark.parametrize("how", ["optimised", "of four bits"])
def test_what_onnx_runtime_writes_is_converted(how: str, to: Format, tmp_path: Path) -> None:
    """A classifier saved by a session that fuses its layers, or by the quantiser of weights; proven by the certificate."""
    import onnx
    import onnxruntime

    half, root = np.float32(0.5), np.float32(2**0.5)
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = [
        ("Conv", ["x", "w", "b"], ["c"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["c"], ["r"], {}),
        ("Flatten", ["r"], ["f"], {}),
        ("MatMul", ["f", "up"], ["u"], {}),
        ("Add", ["u", "shift"], ["v"], {}),
        ("Div", ["v", "root"], ["d"], {}),
        ("Erf", ["d"], ["e"], {}),
        ("Add", ["e", "one"], ["o"], {}),
        ("Mul", ["v", "o"], ["m"], {}),
        ("Mul", ["m", "half"], ["g"], {}),
        ("MatMul", ["g", "down"], ["y"], {}),
    ]
    weights = {"w": real(4, 3, 3, 3), "b": real(4), "up": real(64, 32, scale=0.1), "shift": real(32), "down": real(32, 5)}
    weights |= {"root": root, "one": np.float32(1), "half": half}
    made = Case("", nodes, {"x": ("float", ("N", 3, 4, 4))}, weights).model()
    made.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 5]))
    (tmp_path / "m").mkdir()
    path = tmp_path / "m" / "model.onnx"
    if how == "optimised":
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    else:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantiser = MatMulNBitsQuantizer(made, block_size=16, is_symmetric=False)
        quantiser.process()
        onnx.save(quantiser.model.model, path)
    used = {node.op_type for node in onnx.load(path).graph.node if node.domain == "com.microsoft"}
    assert used == ({"FusedConv", "Gelu"} if how == "optimised" else {"MatMulNBits"})
    source = ingest(str(path), Store(tmp_path / "store"))
    certify(source, converted(source, to, tmp_path / "out"), seeds=(0, 1))
