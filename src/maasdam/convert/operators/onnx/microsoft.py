"""Operators of ONNX Runtime's own domain that its optimisers write: fused activations, products, normalisations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maasdam.convert.operators.arrays import Arrays, Tensor
from maasdam.convert.operators.onnx.elementwise import swish
from maasdam.convert.operators.onnx.layers import conv, gemm, layer_normalization, rms_normalization
from maasdam.convert.operators.onnx.rearrange import gather, split
from maasdam.convert.operators.table import operator
from maasdam.errors import Unsupported


@operator("com.microsoft.BiasGelu", weights=(1,))
def bias_gelu(xp: Arrays, x: Tensor, bias: Tensor) -> Tensor:
    """com.microsoft BiasGelu: Gelu of x + bias."""
    return xp.gelu(x + bias, "none")


@operator("com.microsoft.FastGelu", weights=(1,))
def fast_gelu(xp: Arrays, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """com.microsoft FastGelu: by tanh."""
    return xp.gelu(x if bias is None else x + bias, "tanh")


@operator("com.microsoft.QuickGelu")
def quick_gelu(xp: Arrays, x: Tensor, alpha: float = 1.702) -> Tensor:
    """com.microsoft QuickGelu: x * sigmoid(alpha * x)."""
    return swish(xp, x, alpha)


@operator("com.microsoft.BiasSplitGelu")
def bias_split_gelu(xp: Arrays, x: Tensor, bias: Tensor) -> Tensor:
    """com.microsoft BiasSplitGelu: the left half times the Gelu of the right half."""
    left, right = split(xp, x + bias, axis=-1, num_outputs=2)
    return left * xp.gelu(right, "none")


@operator("com.microsoft.BiasAdd")
def bias_add(xp: Arrays, x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """com.microsoft BiasAdd: of two tensors and a bias."""
    return x + bias + skip


@operator("com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul", weights=(0, 1))
def fused_matmul(
    xp: Arrays,
    a: Tensor,
    b: Tensor,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """com.microsoft FusedMatMul: a product of transposed matrices, scaled; a vector is not transposed."""
    out = xp.matmul(_turned(xp, a, transA, transBatchA), _turned(xp, b, transB, transBatchB))
    return out if alpha == 1 else xp.cast(out * alpha, a.dtype)


def _turned(xp: Arrays, x: Tensor, last: int, batch: int) -> Tensor:
    order = list(range(xp.rank(x)))
    if batch:  # the first axis goes behind the other batch axes
        order.insert(-1, order.pop(0))
    if last and len(order) > 1:
        order[-2:] = order[:-3:-1]
    return x if order == sorted(order) else xp.transpose(x, order)


def activation(xp: Arrays, name: str, parameters: list[float]) -> Callable[[Tensor], Tensor]:
    """What ONNX Runtime fuses into a product or a convolution. Raises Unsupported for others."""
    known: dict[str, Callable[[Tensor], Tensor]] = {
        "LeakyRelu": lambda x: xp.leaky_relu(x, *(parameters[:1] or [0.01])),
        "Clip": lambda x: xp.clip(x, parameters[0], parameters[1]),
        "HardSigmoid": lambda x: xp.clip(parameters[0] * x + parameters[1], 0, 1),
        "Relu": xp.relu,
        "Sigmoid": xp.math.sigmoid,
        "Tanh": xp.math.tanh,
        "": lambda x: x,
    }
    if name not in known:
        raise Unsupported(f"a fused activation {name}")
    return known[name]


@operator("com.microsoft.FusedConv", weights=(1, 2))
def fused_conv(
    xp: Arrays,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    activation_params: list[float] | None = None,
    **attributes: Any,
) -> Tensor:
    """com.microsoft FusedConv: a convolution, what is added to it, an activation."""
    name = attributes.pop("activation", "")
    out = conv(xp, x, weight, bias, **attributes)
    return activation(xp, name, activation_params or [])(out if added is None else out + added)


@operator("com.microsoft.FusedGemm", weights=(0, 1, 2))
def fused_gemm(
    xp: Arrays,
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
    return activation(xp, name, given)(gemm(xp, a, b, c, **attributes))


@operator("SimplifiedLayerNormalization", weights=(1,))
def simplified_layer_normalization(
    xp: Arrays, x: Tensor, scale: Tensor, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1, outputs: int = 1
) -> Any:
    """ONNX Runtime's SimplifiedLayerNormalization, in the default domain: RMSNormalization before that had a name."""
    out, wide, rank = rms_normalization(xp, x, scale, axis, epsilon), xp.cast(x, xp.float32), xp.rank(x)
    return (out, xp.math.rsqrt(xp.mean(wide * wide, list(range(axis % rank, rank)), True) + epsilon))[:outputs]


@operator("com.microsoft.SkipLayerNormalization", weights=(2, 3, 4))
def skip_layer_normalization(
    xp: Arrays,
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
        return (layer_normalization(xp, total, gamma, beta, -1, epsilon),)
    return (*layer_normalization(xp, total, gamma, beta, -1, epsilon, outputs=3), total)[:outputs]


@operator("com.microsoft.SkipSimplifiedLayerNormalization", weights=(2, 3))
def skip_simplified_layer_normalization(
    xp: Arrays, x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None, epsilon: float = 1e-12, outputs: int = 1
) -> tuple[Tensor, ...]:
    """com.microsoft SkipSimplifiedLayerNormalization: by the mean of squares, of a sum, which is its fourth output."""
    total = x + skip if bias is None else x + skip + bias
    out, inverse = simplified_layer_normalization(xp, total, gamma, -1, epsilon, outputs=2)
    return (out, xp.mean(xp.cast(total, xp.float32), [-1], True), inverse, total)[:outputs]


@operator("com.microsoft.EmbedLayerNormalization", weights=(2, 3, 4, 5, 6))
def embed_layer_normalization(
    xp: Arrays,
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
    spots = places if places is not None else xp.arange(xp.dims(ids)[1])[None]
    total = gather(xp, words, ids) + gather(xp, positions, spots)
    if kinds is not None and segments is not None:
        total = total + gather(xp, kinds, segments)
    counted = xp.full(xp.dims(ids)[:1], 0, xp.int32) if mask is None else xp.sum(xp.cast(mask == 1, xp.int32), [1], False)
    return layer_normalization(xp, total, gamma, beta, -1, epsilon), counted, total


@operator("com.microsoft.RotaryEmbedding")
def rotary_embedding(
    xp: Arrays,
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
    is_flat, sizes, half = xp.rank(x) == 3, xp.dims(x), xp.dims(cosines)[1]
    width = sizes[-1] // num_heads if num_heads else 2 * half
    heads = xp.transpose(xp.reshape(x, [*sizes[:2], sizes[2] // width, width]), [0, 2, 1, 3]) if is_flat else x
    if xp.rank(places) == 1:
        places = xp.reshape(xp.cast(places, xp.int64), [1, 1]) + xp.arange(sizes[-2])
    turn, part = angles(xp, cosines, sines, places), rotary_embedding_dim or 2 * half
    turned = rotated(xp, heads, *turn, part, bool(interleaved))
    return xp.reshape(xp.transpose(turned, [0, 2, 1, 3]), sizes) if is_flat else turned


def angles(xp: Arrays, cosines: Tensor, sines: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The rows [B, 1, S, size / 2] of both tables for places [B, S]."""
    return gather(xp, cosines, places)[:, None], gather(xp, sines, places)[:, None]


def rotated(xp: Arrays, heads: Tensor, cosine: Tensor, sine: Tensor, width: int, is_interleaved: bool) -> Tensor:
    """The first `width` numbers of each head, in pairs, turned by an angle; the rest as it is."""
    part, rest = heads[..., :width], heads[..., width:]
    if is_interleaved:
        a, b = part[..., 0::2], part[..., 1::2]
        turned = xp.reshape(xp.stack([a * cosine - b * sine, b * cosine + a * sine], -1), xp.dims(part))
    else:
        a, b = split(xp, part, axis=-1, num_outputs=2)
        turned = xp.concat(a * cosine - b * sine, b * cosine + a * sine, axis=-1)
    return xp.concat(turned, rest, axis=-1)
