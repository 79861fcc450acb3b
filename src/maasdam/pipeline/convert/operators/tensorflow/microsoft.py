"""Operators of ONNX Runtime's own domain that its optimisers write: fused activations, products, normalisations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.errors import Unsupported
from maasdam.pipeline.convert.operators.tensorflow.layers import conv, gemm, layer_normalization, matmul, rms_normalization
from maasdam.pipeline.convert.operators.tensorflow.rearrange import gather
from maasdam.pipeline.convert.operators.tensorflow.sizes import dims, rank, reshaped, scalar
from maasdam.pipeline.convert.operators.tensorflow.table import operator


@operator("com.microsoft.Gelu")
def gelu(x: Tensor) -> Tensor:
    """com.microsoft Gelu: by erf."""
    return tf.nn.gelu(x, approximate=False)


@operator("com.microsoft.BiasGelu")
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """com.microsoft BiasGelu: Gelu of x + bias."""
    return tf.nn.gelu(x + bias, approximate=False)


@operator("com.microsoft.FastGelu")
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """com.microsoft FastGelu: by tanh."""
    return tf.nn.gelu(x if bias is None else x + bias, approximate=True)


@operator("com.microsoft.QuickGelu")
def quick_gelu(x: Tensor, alpha: float = 1.702) -> Tensor:
    """com.microsoft QuickGelu: x * sigmoid(alpha * x)."""
    return x * tf.sigmoid(alpha * x)


@operator("com.microsoft.BiasSplitGelu")
def bias_split_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """com.microsoft BiasSplitGelu: the left half times the Gelu of the right half."""
    left, right = tf.split(x + bias, 2, -1)
    return left * tf.nn.gelu(right, approximate=False)


@operator("com.microsoft.BiasAdd")
def bias_add(x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """com.microsoft BiasAdd: of two tensors and a bias."""
    return x + bias + skip


@operator("com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul")
def fused_matmul(
    a: Tensor, b: Tensor, alpha: float = 1.0, transA: int = 0, transB: int = 0, transBatchA: int = 0, transBatchB: int = 0
) -> Tensor:
    """com.microsoft FusedMatMul: a product of transposed matrices, scaled; a vector is not transposed."""
    out = matmul(_turned(a, transA, transBatchA), _turned(b, transB, transBatchB))
    return out if alpha == 1 else out * tf.cast(alpha, a.dtype)


def _turned(x: Tensor, last: int, batch: int) -> Tensor:
    if batch:  # the first axis goes behind the other batch axes
        x = tf.transpose(x, [*range(1, rank(x) - 1), 0, rank(x) - 1])
    return tf.linalg.matrix_transpose(x) if last and rank(x) > 1 else x


def activation(name: str, parameters: list[float]) -> Callable[[Tensor], Tensor]:
    """What ONNX Runtime fuses into a product or a convolution. Raises Unsupported for others."""
    if name == "LeakyRelu":
        return lambda x: tf.nn.leaky_relu(x, parameters[0] if parameters else 0.01)
    if name == "Clip":
        return lambda x: tf.clip_by_value(x, parameters[0], parameters[1])
    if name == "HardSigmoid":
        return lambda x: tf.clip_by_value(parameters[0] * x + parameters[1], 0, 1)
    simple: dict[str, Callable[[Tensor], Tensor]] = {
        "Relu": tf.nn.relu,
        "Sigmoid": tf.sigmoid,
        "Tanh": tf.tanh,
        "": lambda x: x,
    }
    if name not in simple:
        raise Unsupported(f"a fused activation {name}")
    return simple[name]


@operator("com.microsoft.FusedConv")
def fused_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    activation_params: list[float] | None = None,
    **attributes: Any,
) -> Tensor:
    """com.microsoft FusedConv: a convolution, what is added to it, an activation."""
    name = attributes.pop("activation", "")
    out = conv(x, weight, bias, **attributes)
    return activation(name, activation_params or [])(out if added is None else out + added)


@operator("com.microsoft.FusedGemm")
def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    **attributes: Any,
) -> Tensor:
    """com.microsoft FusedGemm: a Gemm and an activation."""
    name = attributes.pop("activation", "")
    given = [v for v in (activation_alpha, activation_beta) if v is not None]
    return activation(name, given)(gemm(a, b, c, **attributes))


@operator("SimplifiedLayerNormalization")
def simplified_layer_normalization(
    x: Tensor, scale: Tensor, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1, outputs: int = 1
) -> Any:
    """ONNX Runtime's SimplifiedLayerNormalization, in the default domain: RMSNormalization before that had a name."""
    out = rms_normalization(x, scale, axis, epsilon)
    axes = list(range(axis % rank(x), rank(x)))
    return (out, tf.math.rsqrt(tf.reduce_mean(tf.square(tf.cast(x, tf.float32)), axes, True) + epsilon))[:outputs]


@operator("com.microsoft.SkipLayerNormalization")
def skip_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    epsilon: float = 1e-12,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """com.microsoft SkipLayerNormalization: of a sum, which is its fourth output."""
    total = x + skip if bias is None else x + skip + bias
    if outputs == 1:
        return (layer_normalization(total, gamma, beta, -1, epsilon),)
    return (*layer_normalization(total, gamma, beta, -1, epsilon, outputs=3), total)[:outputs]


@operator("com.microsoft.SkipSimplifiedLayerNormalization")
def skip_simplified_layer_normalization(
    x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None, epsilon: float = 1e-12, outputs: int = 1
) -> tuple[Tensor, ...]:
    """com.microsoft SkipSimplifiedLayerNormalization: by the mean of squares, of a sum, which is its fourth output."""
    total = x + skip if bias is None else x + skip + bias
    out, inverse = simplified_layer_normalization(total, gamma, -1, epsilon, outputs=2)
    return (out, tf.reduce_mean(tf.cast(total, tf.float32), -1, True), inverse, total)[:outputs]


@operator("com.microsoft.EmbedLayerNormalization")
def embed_layer_normalization(
    ids: Tensor,
    segments: Tensor | None,
    words: Tensor,
    positions: Tensor,
    kinds: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    places: Tensor | None = None,
    epsilon: float = 1e-12,
    mask_index_type: int = 0,
) -> tuple[Tensor, ...]:
    """com.microsoft EmbedLayerNormalization: words, positions and segments summed; how many ones each mask has; the sum."""
    spots = places if places is not None else tf.range(scalar(dims(ids)[1]), dtype=tf.int64)[None]
    total = gather(words, ids) + gather(positions, spots)
    if kinds is not None and segments is not None:
        total = total + gather(kinds, segments)
    counted = tf.zeros_like(ids[:, 0], tf.int32) if mask is None else tf.reduce_sum(tf.cast(tf.equal(mask, 1), tf.int32), 1)
    return layer_normalization(total, gamma, beta, -1, epsilon), counted, total


@operator("com.microsoft.RotaryEmbedding")
def rotary_embedding(
    x: Tensor,
    places: Tensor,
    cosines: Tensor,
    sines: Tensor,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """com.microsoft RotaryEmbedding: x [B, S, D] or [B, heads, S, D]; one place to begin at, or each token's own."""
    if is_packed_batching or scale != 1:
        raise Unsupported("RotaryEmbedding of packed batches or with a scale")
    is_flat, sizes = rank(x) == 3, dims(x)
    angles = dims(cosines)[1]
    width = 2 * angles if not num_heads else sizes[-1] // num_heads
    heads = tf.transpose(reshaped(x, [*sizes[:2], sizes[2] // width, width]), [0, 2, 1, 3]) if is_flat else x
    if rank(places) == 1:
        places = tf.cast(tf.reshape(places, [1, 1]), tf.int64) + tf.range(scalar(sizes[-2]), dtype=tf.int64)
    cosine, sine = tf.expand_dims(gather(cosines, places), 1), tf.expand_dims(gather(sines, places), 1)
    turned = rotated(heads, cosine, sine, rotary_embedding_dim or 2 * angles, bool(interleaved))
    return reshaped(tf.transpose(turned, [0, 2, 1, 3]), sizes) if is_flat else turned


def rotated(heads: Tensor, cosine: Tensor, sine: Tensor, width: int, is_interleaved: bool) -> Tensor:
    """The first `width` numbers of each head, in pairs, turned by an angle; the rest as it is."""
    part, rest = heads[..., :width], heads[..., width:]
    if is_interleaved:
        a, b = part[..., 0::2], part[..., 1::2]
        turned = reshaped(tf.stack([a * cosine - b * sine, b * cosine + a * sine], -1), dims(part))
    else:
        a, b = tf.split(part, 2, -1)
        turned = tf.concat([a * cosine - b * sine, b * cosine + a * sine], -1)
    return tf.concat([turned, rest], -1)
