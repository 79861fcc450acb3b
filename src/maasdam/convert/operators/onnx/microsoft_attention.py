"""Attention as ONNX Runtime's optimisers write it: Attention, MultiHeadAttention, QAttention, GroupQueryAttention."""

from __future__ import annotations

import math
from typing import Any

from maasdam.convert.operators.arrays import Arrays, Tensor
from maasdam.convert.operators.onnx.microsoft import angles, rotated
from maasdam.convert.operators.onnx.quantized import dequantize
from maasdam.convert.operators.onnx.rearrange import split
from maasdam.convert.operators.onnx.reduce import softmax
from maasdam.convert.operators.table import operator
from maasdam.errors import Unsupported


@operator("com.microsoft.Attention", weights=(1, 2))
def attention(
    xp: Arrays,
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
    found = xp.matmul(x, weights)
    widths = qkv_hidden_sizes or [xp.dims(weights)[1] // 3] * 3
    query, key, value = split(xp, found if bias is None else found + bias, widths, axis=-1)
    query, key, value = heads(xp, query, num_heads), heads(xp, key, num_heads), heads(xp, value, num_heads)
    if past is not None:
        key, value = xp.concat(past[0], key, axis=2), xp.concat(past[1], value, axis=2)
    added = masked(xp, mask, attention_bias, xp.dims(x)[0], xp.dims(key)[2], mask_filter_value)
    out = attend(xp, query, key, value, scale, added, causal(xp, query, key) if unidirectional else None)
    return (out,) if outputs == 1 else (out, xp.stack([key, value], 0))


@operator("com.microsoft.QAttention")
def quantized_attention(
    xp: Arrays,
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
    real, own = dequantize(xp, x, x_scale, x_zero), dequantize(xp, weights, weight_scale, weight_zero, axis=1)
    return attention(xp, real, own, bias, mask, past, outputs=outputs, **attributes)


@operator("com.microsoft.MultiHeadAttention", weights=(3,))
def multi_head_attention(
    xp: Arrays,
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
    others = {"cache_indirection": cache_indirection is not None, "its scores as output": outputs > 3}
    refuse("MultiHeadAttention", past_length, others)
    if key is None or value is None:
        if xp.rank(query) != 5 or bias is not None:
            raise Unsupported("MultiHeadAttention of keys packed otherwise than with the queries")
        n, length, count, _, size = xp.dims(query)
        query, key, value = (xp.reshape(query[:, :, :, i], [n, length, count * size]) for i in range(3))
    width = xp.dims(query)[-1]
    if bias is not None:
        query = query + bias[:width]
        key = key if xp.rank(key) == 4 else key + bias[width : 2 * width]
        value = value if xp.rank(value) == 4 else value + bias[2 * width :]
    query = heads(xp, query, num_heads)
    key, value = (x if xp.rank(x) == 4 else heads(xp, x, num_heads) for x in (key, value))
    if past_key is not None and past_value is not None:
        key, value = xp.concat(past_key, key, axis=2), xp.concat(past_value, value, axis=2)
    added = masked(xp, mask, attention_bias, xp.dims(query)[0], xp.dims(key)[2], mask_filter_value)
    return attend(xp, query, key, value, scale, added, causal(xp, query, key) if unidirectional else None), key, value


def refuse(kind: str, past_length: Tensor | None, others: dict[str, Any], *known: str) -> None:
    """Raise Unsupported for what shares buffers between runs, or turns positions inside the operator."""
    given = [name for name, value in others.items() if name not in known and not (value is None or value == 0)]
    if past_length is not None:
        given.append("a shared past")
    if given:
        raise Unsupported(f"com.microsoft {kind} with {', '.join(given)}")


def heads(xp: Arrays, x: Tensor, count: int) -> Tensor:
    """[batch, sequence, heads * size] to [batch, heads, sequence, size]."""
    n, length, width = xp.dims(x)
    return xp.transpose(xp.reshape(x, [n, length, count, width // count]), [0, 2, 1, 3])


def masked(xp: Arrays, mask: Tensor | None, bias: Tensor | None, batch: Any, total: Any, hidden: float) -> Tensor | None:
    """What is added to scores [batch, heads, sequence, total]: `hidden` where a mask says so.

    A mask holds ones and zeros of two or three axes, or of one axis where each item ends (and, behind that, where it begins).
    """
    if mask is None:
        return bias
    if xp.rank(mask) > 3:
        raise Unsupported("com.microsoft Attention with a mask of four axes")
    if xp.rank(mask) == 1:
        places = xp.arange(total)[None]
        ends, begins = xp.spans(xp.cast(mask, xp.int64), batch)
        is_seen = places < ends[:, None]
        is_seen = is_seen if begins is None else is_seen & (places >= begins[:, None])
        is_seen = is_seen[:, None, None]
    else:
        is_seen = mask[:, None, None] != 0 if xp.rank(mask) == 2 else mask[:, None] != 0
    kind = xp.float32 if bias is None else bias.dtype
    added = xp.where(is_seen, xp.full([], 0, kind), xp.full([], hidden, kind))
    return added if bias is None else added + bias


def causal(xp: Arrays, query: Tensor, key: Tensor) -> Tensor:
    """Which keys each query sees, [sequence, total]: the last query every one."""
    length, total = xp.dims(query)[2], xp.dims(key)[2]
    return xp.arange(total)[None] <= xp.arange(length)[:, None] + xp.number(total - length)


def attend(
    xp: Arrays,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    added: Tensor | None,
    is_seen: Tensor | None,
    softcap: float = 0.0,
) -> Tensor:
    """[batch, heads, sequence, size] each, to [batch, sequence, heads * size]."""
    n, count, length, size = xp.dims(query)
    scores = xp.scores(query, key) * (scale or 1 / math.sqrt(size))
    scores = softcap * xp.math.tanh(scores / softcap) if softcap else scores
    scores = scores if added is None else scores + xp.cast(added, scores.dtype)
    scores = scores if is_seen is None else xp.where(is_seen, scores, xp.limits(scores.dtype)[0])
    out = xp.transpose(xp.matmul(softmax(xp, scores, -1), value), [0, 2, 1, 3])
    return xp.reshape(out, [n, length, count * xp.dims(value)[3]])


@operator("com.microsoft.GroupQueryAttention", shapes=("total_length",))
def group_query_attention(
    xp: Arrays,
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
        size = xp.dims(query)[-1] // (num_heads + 2 * kv_num_heads)
        query, key, value = split(xp, query, [num_heads * size, kv_num_heads * size, kv_num_heads * size], axis=-1)
    query, key, value = heads(xp, query, num_heads), heads(xp, key, kv_num_heads), heads(xp, value, kv_num_heads)
    length = xp.dims(query)[2]
    begin = xp.clip(xp.reshape(xp.cast(ends, xp.int64), [-1, 1]) + 1 - xp.number(length), 0, None)
    spots = begin + xp.arange(length)
    if do_rotary and cosines is not None and sines is not None:
        turn, width = angles(xp, cosines, sines, spots if places is None else places), 2 * xp.dims(cosines)[1]
        query, key = (rotated(xp, x, *turn, width, bool(rotary_interleaved)) for x in (query, key))
    past = xp.dims(past_key)[2]
    total = xp.larger(past, total_length[0] if isinstance(total_length, list) else total_length)
    kept = xp.arange(total)[None]
    behind = xp.clip(kept - begin + xp.number(past), None, xp.number(past + length - 1))
    source = xp.where(kept < begin, kept, behind)  # of each place in the cache: the item's past, from its end on what is new
    key, value = (xp.at_places(xp.concat(*pair, axis=2), source) for pair in ((past_key, key), (past_value, value)))
    is_seen = kept[:, None] <= spots[:, :, None]
    if local_window_size > 0:
        is_seen = is_seen & (kept[:, None] > spots[:, :, None] - local_window_size)
    each = num_heads // kv_num_heads
    own = xp.repeat(key, each, 1), xp.repeat(value, each, 1)
    return attend(xp, query, *own, scale, None, is_seen[:, None], softcap), key, value
