"""Quantise ONNX models with ONNX Runtime's own tools. Knows operator types and external data; never labels."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnx import version_converter
from onnxruntime import quantization as ort

from maasdam.artifacts.produced import PassFacts, Produced
from maasdam.convert.onnx_files import external_files, operator_set, read_onnx, write_onnx
from maasdam.core import Artifact
from maasdam.errors import Unsupported
from maasdam.pipeline.examples import Inputs
from maasdam.pipeline.passes import PassContext
from maasdam.pipeline.quantize import onnx_prepared, onnx_saturation, saturation
from maasdam.pipeline.quantize.shared import Counted, calibration, copy_all_but

log = logging.getLogger("maasdam.pipeline")

PER_BLOCK = 32
"""Weights that share a scale at 8 bits."""
SMALLEST_BLOCK = 16
TENSORRT = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,  # TensorRT adds biases as floats
    "DedicatedQDQPair": True,  # each consumer has a pair of its own, so that TensorRT can fuse the pair into it
}
"""What TensorRT asks of a graph that says its own ranges: zero points of zero, biases left alone."""
TENSORRT_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "AveragePool", "GlobalAveragePool", "MaxPool")
"""Those it has int8 kernels for; around the others the activations stay float.

Their inputs are quantised and their outputs are not: a pair between a convolution and its Relu would keep TensorRT from fusing
the two."""
PRODUCTS = ["Conv", "Gemm", "MatMul"]
PRODUCTS_ALONE: dict[str, Any] = {
    "op_types_to_quantize": PRODUCTS,
    "extra_options": {"OpTypesToExcludeOutputQuantization": PRODUCTS},
}
"""For networks that attend: what goes into products with weights is rounded, and nothing else (decision 0017).

Sums, softmax and norms of attention have outliers that 8 bits don't hold, and are no faster rounded. Convolutional networks
are, where nothing between two convolutions goes back to float.
"""
PER_CHANNEL_SET = 13
"""The first ONNX operator set whose DequantizeLinear has an axis."""
CARRIES = ("Cast", "Dropout", "Identity", "Where", "Mul", "Transpose", "Reshape")
"""What may lie between a softmax and the product it weighs."""


def static_int8(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """QDQ: activations U8, weights S8 per channel. Raises InvalidInput for calibration inputs that are no good."""
    inputs, examples = calibration(source, settings, context)
    attends = _attends(source)
    choices: dict[str, Any] = {"activation_type": ort.QuantType.QUInt8} | (PRODUCTS_ALONE if attends else {})
    plain = _with_ranges(source, out, inputs, context, **choices)
    some = Counted(inputs[: saturation.EXAMPLES], context, saturation.STEP)
    quantized = onnx.load(out / "model.onnx")
    narrowed = onnx_saturation.narrow(quantized, onnx.load(plain), some)
    if attends:
        _keep_the_rest_float(quantized)
    _without_zeros(quantized)
    onnx.save(quantized, out / "model.onnx")
    where = "into products with weights" if attends else "of every operator"
    facts = saturation.says(narrowed.count, narrowed.channels)
    facts |= {"method": f"ONNX Runtime static QDQ, activations {where} U8, weights S8 per channel"}
    own = {**source.settings, "fast_sums": narrowed.is_whole}
    return Produced("onnx", "onnx", "onnxruntime", source.signature, own, PassFacts(facts, examples))


def tensorrt_int8(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """QDQ as TensorRT takes it: activations and weights S8, every zero point 0, weights per channel, biases in float.

    TensorRT 10 and newer take weights stored as int8. Here ONNX Runtime computes the same graph in float, roundings and all,
    so that what is compared does not depend on this processor. Raises InvalidInput for calibration inputs that are no good.
    """
    inputs, examples = calibration(source, settings, context)
    _with_ranges(
        source,
        out,
        inputs,
        context,
        activation_type=ort.QuantType.QInt8,
        op_types_to_quantize=list(TENSORRT_OPERATORS),
        extra_options=TENSORRT | {"OpTypesToExcludeOutputQuantization": list(TENSORRT_OPERATORS)},
    )
    facts = {"method": "ONNX Runtime static QDQ for TensorRT, activations and weights S8, symmetric, weights per channel"}
    return Produced(
        "onnx", "onnx", "onnxruntime", source.signature, {**source.settings, "int8": True}, PassFacts(facts, examples)
    )


def _with_ranges(source: Artifact, out: Path, inputs: list[Inputs], context: PassContext, **choices: Any) -> Path:
    """Write a QDQ graph with ranges from calibration inputs; where the float graph lies that it was made of.

    What lies behind the last products stays float, and so does what they give: boxes and scores in one tensor have one scale.
    """
    clean = _preprocessed(source, context.work)
    seen = Counted(inputs, context)

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime's class has no types
        def __init__(self) -> None:
            self._left = iter(seen)

        def get_next(self) -> Inputs | None:
            return next(self._left, None)

    copy_all_but(source.path, out, {"model.onnx"} | external_files(source.path / "model.onnx"))
    behind, last = onnx_prepared.head(read_onnx(clean).graph)
    with _hushed():
        ort.quantize_static(
            clean,
            out / "model.onnx",
            Reader(),
            quant_format=ort.QuantFormat.QDQ,
            per_channel=True,
            weight_type=ort.QuantType.QInt8,
            nodes_to_exclude=behind,
            **choices,
        )
    quantized = onnx.load(out / "model.onnx")
    onnx_prepared.exact_heads(quantized, behind, last)
    onnx.save(quantized, out / "model.onnx")
    return clean


def _keep_the_rest_float(model: Any) -> None:
    """Give the exact activations to all but products with stored weights.

    The tool gives every consumer the rounded ones: the sums of a residual path and attention's own products too.
    """
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    restored = [n for n in graph.node if n.op_type == "DequantizeLinear"]
    rounded = {name for name, node in made_by.items() if node.op_type == "QuantizeLinear"}
    exact = {n.output[0]: made_by[n.input[0]].input[0] for n in restored if n.input[0] in rounded}
    stored = {n.output[0] for n in restored if n.input[0] not in made_by}
    for node in graph.node:
        if node.op_type not in PRODUCTS or node.input[1] not in stored:
            node.input[:] = [exact.get(name, name) for name in node.input]
    onnx_prepared.without_idle_roundings(graph)


def _without_zeros(model: Any) -> None:
    """Leave out the zero points of int32 biases, which are 0 where none is given: as many numbers as there are biases."""
    constants = {t.name: t for t in model.graph.initializer}
    left = set()
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[0] not in constants:
            continue
        if constants[node.input[0]].data_type == onnx.TensorProto.INT32:
            left.add(node.input[2])
            del node.input[2]
    onnx_prepared.without_unused(model.graph, left)


@contextmanager
def _hushed() -> Iterator[None]:
    """ONNX Runtime warns through the root logger of every layer norm it leaves per tensor, and gives it a handler for good."""
    root, nobody = logging.getLogger(), logging.NullHandler()
    before = root.level
    root.addHandler(nobody)
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
        root.removeHandler(nobody)


def dynamic_int8(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Weights of matrix products and embeddings to int8 now, activations while running."""
    copy_all_but(source.path, out, {"model.onnx"} | external_files(source.path / "model.onnx"))
    large = bool(external_files(source.path / "model.onnx"))
    float_graph = onnx_prepared.prepared(onnx.load(source.path / "model.onnx"))
    clean = context.work / "clean.onnx"
    onnx.save(float_graph, clean, save_as_external_data=large, location="clean.onnx.data")
    with _hushed():
        ort.quantize_dynamic(
            clean,
            out / "model.onnx",
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            weight_type=ort.QuantType.QInt8,
        )
    quantized = onnx.load(out / "model.onnx")
    narrowed = onnx_saturation.narrow_unseen(quantized, onnx.load(clean))
    facts = saturation.says(narrowed.count, narrowed.channels)
    onnx.save(quantized, out / "model.onnx")
    facts |= {"method": "ONNX Runtime dynamic int8: matrix products and embeddings; convolutions stay float"}
    own = {**source.settings, "fast_sums": narrowed.is_whole}
    return Produced("onnx", "onnx", "onnxruntime", source.signature, own, PassFacts(facts))


def weights(source: Artifact, out: Path, settings: Mapping[str, Any], context: PassContext) -> Produced:
    """Weights of matrix products to 4 or 8 bits in blocks (MatMulNBits), or float32 to float16. Raises Unsupported."""
    scheme = settings["scheme"]
    model = onnx.load(source.path / "model.onnx")
    onnx_prepared.check_is_float(model)
    if scheme == "fp16":
        model, facts = _half(model), {"method": "weights and arithmetic in float16, inputs and outputs in float32"}
    else:
        onnx_prepared.gemms_as_products(model)
        bits, block = (8, PER_BLOCK) if scheme == "weights-int8" else (4, settings["group_size"])
        model, count = _in_blocks(model, bits, block)
        facts = {"method": f"{count} matrix products in {bits} bits (MatMulNBits), symmetric in blocks of {block}"}
    copy_all_but(source.path, out, {"model.onnx"} | external_files(source.path / "model.onnx"))
    write_onnx(model, out / "model.onnx")
    return Produced("onnx", "onnx", "onnxruntime", source.signature, dict(source.settings), PassFacts(facts))


def _in_blocks(model: Any, bits: int, block: int) -> tuple[Any, int]:
    """The model with its constant matrix products in blocks, and how many there are."""
    if block < SMALLEST_BLOCK or block & (block - 1):
        raise Unsupported(f"ONNX Runtime takes groups of 16, 32, 64, … weights, not {block}; set group_size to one of them")
    with _hushed():  # from its import on: it gives the root logger a handler and tells of every node
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(model, bits=bits, block_size=block, is_symmetric=True)
        quantizer.process()
    made = quantizer.model.model
    count = sum(node.op_type == "MatMulNBits" for node in made.graph.node)
    if not count:
        raise Unsupported("the network has no matrix product with constant weights, so there is nothing to compress this way")
    return made, count


def _half(model: Any) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that fall to the smallest number float16 has
        return convert_float_to_float16(model, keep_io_types=True)


def _preprocessed(source: Artifact, work: Path) -> Path:
    """The network as the tools take it, with shapes inferred and batch norms folded where that can be. Raises Unsupported."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path, large = work / "clean.onnx", bool(external_files(source.path / "model.onnx"))
    file = _raised(source.path / "model.onnx", work)
    onnx_prepared.check_is_float(read_onnx(file))
    if not large:
        try:
            quant_pre_process(file, path, skip_symbolic_shape=True)
            file = path
        except Exception:  # it is an optimisation, and it raises anything at all on graphs it doesn't know
            log.debug("the graph is quantised as it is: it could not be made simpler first", exc_info=True)
    model = onnx_prepared.prepared(onnx.load(file))
    onnx.save(model, path, save_as_external_data=large, location="clean.onnx.data")
    return path


def _raised(file: Path, work: Path) -> Path:
    """The same graph in the first operator set whose weights have a scale per channel. Raises Unsupported."""
    found = operator_set(read_onnx(file))
    if found >= PER_CHANNEL_SET:
        return file
    try:
        raised = version_converter.convert_version(onnx.load(file), PER_CHANNEL_SET)
    except Exception as error:  # the converter raises its own, without a common class
        raise Unsupported(
            f"scales per channel need ONNX operator set {PER_CHANNEL_SET}, the graph's is {found} and can't be raised: {error}"
        ) from error
    onnx.save(raised, work / "raised.onnx")
    return work / "raised.onnx"


def _attends(source: Artifact) -> bool:
    """Whether it has attention: a softmax whose answer goes into a matrix product, or a fused operator."""
    graph = read_onnx(source.path / "model.onnx").graph
    weighed = {node.output[0] for node in graph.node if node.op_type == "Softmax"}
    for node in graph.node:  # they stand in the order they are computed in
        if node.op_type in ("Attention", "MultiHeadAttention") or (node.op_type == "MatMul" and weighed & set(node.input)):
            return True
        if node.op_type in CARRIES and weighed & set(node.input):
            weighed |= set(node.output)
    return False
