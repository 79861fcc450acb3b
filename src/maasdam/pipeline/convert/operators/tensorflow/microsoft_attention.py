"""Attention as ONNX Runtime's optimisers write it: Attention, MultiHeadAttention, QAttention, GroupQueryAttention."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from maasdam.errors import Unsupported
from maasdam.pipeline.convert.operators.tensorflow.layers import matmul
from maasdam.pipeline.convert.operators.tensorflow.microsoft import rotated
from maasdam.pipeline.convert.operators.tensorflow.quantized import dequantize
from maasdam.pipeline.convert.operators.tensorflow.rearrange import gather
from maasdam.pipeline.convert.operators.tensorflow.sizes import dims, rank, reshaped, scalar
from maasdam.pipeline.convert.operators.tensorflow.table import operator


@operator("com.microsoft.Attention")
def attention(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_length: Tensor | None = None,
    num_heads: int = 1,
    unidirectional: int = 0,
    qkv_hidden_sizes: list[int] | None = None,
    mask_filter_value: float = -10000.0,
    scale: float = 0.0,
    outputs: int = 1,
    **others: Any,
) -> tuple[Tensor, ...]:
    """com.microsoft Attention: queries, keys and values from one product; the past and present hold keys, then values."""
    refuse("Attention", past_length, others, "rotary_embedding_dim")
    widths = qkv_hidden_sizes or [dims(weights)[1] // 3] * 3
    found = matmul(x, weights)
    query, key, value = tf.split(found if bias is None else found + bias, widths, -1)
    key, value = heads(key, num_heads), heads(value, num_heads)
    if past is not None:
        key, value = tf.concat([past[0], key], 2), tf.concat([past[1], value], 2)
    bias_ = masked(mask, attention_bias, dims(x)[0], dims(key)[2], mask_filter_value)
    out = attend(heads(query, num_heads), key, value, bias_, scale, bool(unidirectional))
    return (out,) if outputs == 1 else (out, tf.stack([key, value]))


@operator("com.microsoft.QAttention")
def quantized_attention(
    x: Tensor,
    weights: Tensor,
    bias: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    mask: Tensor | None = None,
    x_zero: Tensor | None = None,
    weight_zero: Tensor | None = None,
    past: Tensor | None = None,
    outputs: int = 1,
    **attributes: Any,
) -> tuple[Tensor, ...]:
    """com.microsoft QAttention: Attention of quantised inputs and weights."""
    real, own = dequantize(x, x_scale, x_zero), dequantize(weights, weight_scale, weight_zero, axis=1)
    return attention(real, own, bias, mask, past, outputs=outputs, **attributes)


@operator("com.microsoft.MultiHeadAttention")
def multi_head_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_length: Tensor | None = None,
    cache_indirection: Tensor | None = None,
    num_heads: int = 1,
    unidirectional: int = 0,
    mask_filter_value: float = -10000.0,
    scale: float = 0.0,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """com.microsoft MultiHeadAttention: keys and values apart, packed, or looked up whole with four axes."""
    refuse("MultiHeadAttention", past_length, {"cache_indirection": cache_indirection, "its scores as output": outputs > 3})
    if key is None or value is None:
        if rank(query) != 5 or bias is not None:
            raise Unsupported("MultiHeadAttention of keys packed otherwise than with the queries")
        n, length, count, _, size = dims(query)
        query, key, value = (reshaped(part, [n, length, count * size]) for part in tf.unstack(query, axis=3))
    width = dims(query)[-1]
    if bias is not None:
        query = query + bias[:width]
        key = key if rank(key) == 4 else key + bias[width : 2 * width]
        value = value if rank(value) == 4 else value + bias[2 * width :]
    key = key if rank(key) == 4 else heads(key, num_heads)
    value = value if rank(value) == 4 else heads(value, num_heads)
    if past_key is not None and past_value is not None:
        key, value = tf.concat([past_key, key], 2), tf.concat([past_value, value], 2)
    bias_ = masked(mask, attention_bias, dims(query)[0], dims(key)[2], mask_filter_value)
    return attend(heads(query, num_heads), key, value, bias_, scale, bool(unidirectional)), key, value


def refuse(kind: str, past_length: Tensor | None, others: dict[str, Any], *known: str) -> None:
    """Raise Unsupported for what shares buffers between runs, or turns positions inside the operator."""
    given = [name for name, value in others.items() if name not in known and not (value is None or value == 0)]
    if past_length is not None:
        given.append("a shared past")
    if given:
        raise Unsupported(f"com.microsoft {kind} with {', '.join(given)}")


def heads(x: Tensor, count: int) -> Tensor:
    """[batch, sequence, heads * size] to [batch, heads, sequence, size]."""
    n, length, width = dims(x)
    return tf.transpose(reshaped(x, [n, length, count, width // count]), [0, 2, 1, 3])


def masked(mask: Tensor | None, bias: Tensor | None, batch: Any, total: Any, hidden: float) -> Tensor | None:
    """What is added to scores [batch, heads, sequence, total]: `hidden` where a mask says so.

    A mask holds ones and zeros of two or three axes, or of one axis where each item ends (and, behind that, where it begins).
    """
    if mask is None:
        return bias
    if rank(mask) > 3:
        raise Unsupported("com.microsoft Attention with a mask of four axes")
    if rank(mask) == 1:
        places, count = tf.range(scalar(total), dtype=tf.int64)[None], scalar(batch)
        mask = tf.cast(mask, tf.int64)
        begins = tf.concat([mask[count:], tf.zeros([count], tf.int64)], 0)[:count]
        is_seen = (places < mask[:count, None]) & (places >= begins[:, None])
        is_seen = is_seen[:, None, None]
    else:
        is_seen = tf.not_equal(mask[:, None, None] if rank(mask) == 2 else mask[:, None], 0)
    kind = tf.float32 if bias is None else bias.dtype
    added = tf.where(is_seen, tf.zeros([], kind), tf.constant(hidden, kind))
    return added if bias is None else added + bias


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, is_causal: bool) -> Tensor:
    """[batch, heads, sequence, size] each, to [batch, sequence, heads * size]. The last query sees every key."""
    n, count, length, size = dims(query)
    scores = tf.matmul(query, key, transpose_b=True) * tf.cast(scale or 1 / math.sqrt(size), query.dtype)
    scores = scores if bias is None else scores + tf.cast(bias, scores.dtype)
    if is_causal:
        total = scalar(dims(key)[2])
        places = tf.range(scalar(length), dtype=tf.int64)[:, None] + total - scalar(length)
        scores = tf.where(tf.range(total, dtype=tf.int64)[None] <= places, scores, scores.dtype.min)
    out = tf.transpose(tf.matmul(tf.nn.softmax(scores), value), [0, 2, 1, 3])
    return reshaped(out, [n, length, count * dims(value)[3]])


@operator("com.microsoft.GroupQueryAttention", shapes=("total_length",))
def group_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    ends: Tensor,
    total_length: Any,
    cosines: Tensor | None = None,
    sines: Tensor | None = None,
    places: Tensor | None = None,
    *rest: Tensor | None,
    num_heads: int = 1,
    kv_num_heads: int = 1,
    causal: int = 1,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    local_window_size: int = -1,
    scale: float = 0.0,
    softcap: float = 0.0,
    k_quant_type: str = "NONE",
    v_quant_type: str = "NONE",
    **others: Any,
) -> tuple[Tensor, ...]:
    """com.microsoft GroupQueryAttention: causal, with a cache. `ends` [B] is each item's last place, from which follow the
    places of its new tokens: there they are turned, and written behind the item's past."""
    known = ("kv_cache_bit_width", "qk_norm_epsilon", "q_norm_epsilon", "k_norm_epsilon")
    given = {
        "an input of its newer forms": any(v is not None for v in rest),
        "no past": past_key is None,
        "causal=0": not causal,
    }
    quantised = {k_quant_type, v_quant_type} != {"NONE"}
    refuse("GroupQueryAttention", None, {**others, **given, "a quantised cache": quantised}, *known)
    assert past_key is not None and past_value is not None
    if key is None or value is None:
        size = dims(query)[-1] // (num_heads + 2 * kv_num_heads)
        query, key, value = tf.split(query, [num_heads * size, kv_num_heads * size, kv_num_heads * size], -1)
    query, key, value = heads(query, num_heads), heads(key, kv_num_heads), heads(value, kv_num_heads)
    n, _, length, size = dims(query)
    past, count = scalar(dims(past_key)[2]), scalar(length)
    begin = tf.maximum(tf.reshape(tf.cast(ends, tf.int64), [-1, 1]) + 1 - count, 0)
    spots = begin + tf.range(count, dtype=tf.int64)
    if do_rotary and cosines is not None and sines is not None:
        at = spots if places is None else places
        angles = [tf.expand_dims(gather(table, at), 1) for table in (cosines, sines)]
        width = 2 * dims(cosines)[1]
        query, key = (rotated(x, angles[0], angles[1], width, bool(rotary_interleaved)) for x in (query, key))
    total = tf.maximum(past, scalar(total_length[0] if isinstance(total_length, list) else total_length))
    kept = tf.range(total, dtype=tf.int64)[None]
    source = tf.where(kept < begin, kept, tf.minimum(kept - begin + past, past + count - 1))
    key, value = (
        tf.transpose(tf.gather(tf.transpose(tf.concat(pair, 2), [0, 2, 1, 3]), source, batch_dims=1), [0, 2, 1, 3])
        for pair in ([past_key, key], [past_value, value])
    )
    each = num_heads // kv_num_heads
    scores = tf.matmul(query, tf.repeat(key, each, 1), transpose_b=True) * tf.cast(scale or 1 / math.sqrt(size), query.dtype)
    scores = softcap * tf.tanh(scores / softcap) if softcap else scores
    is_seen = kept[:, None] <= spots[:, :, None]
    if local_window_size > 0:
        is_seen = is_seen & (kept[:, None] > spots[:, :, None] - local_window_size)
    scores = tf.where(is_seen[:, None], scores, scores.dtype.min)
    out = tf.transpose(tf.matmul(tf.nn.softmax(scores), tf.repeat(value, each, 1)), [0, 2, 1, 3])
    return reshaped(out, [n, length, num_heads * size]), key, value
