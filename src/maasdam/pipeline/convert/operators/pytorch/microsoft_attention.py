"""Attention as ONNX Runtime's optimisers write it: Attention, MultiHeadAttention, QAttention, GroupQueryAttention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from maasdam.errors import Unsupported
from maasdam.pipeline.convert.operators.pytorch.microsoft import rotated
from maasdam.pipeline.convert.operators.pytorch.quantized import dequantize
from maasdam.pipeline.convert.operators.pytorch.rearrange import gather
from maasdam.pipeline.convert.operators.pytorch.table import operator


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
    widths = qkv_hidden_sizes or [weights.shape[1] // 3] * 3
    found = torch.matmul(x, weights)
    query, key, value = torch.split(found if bias is None else found + bias, widths, -1)
    key, value = heads(key, num_heads), heads(value, num_heads)
    if past is not None:
        key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
    bias_ = masked(mask, attention_bias, x.shape[0], key.shape[2], mask_filter_value)
    out = attend(heads(query, num_heads), key, value, bias_, scale, bool(unidirectional))
    return (out,) if outputs == 1 else (out, torch.stack([key, value]))


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
        if query.dim() != 5 or bias is not None:
            raise Unsupported("MultiHeadAttention of keys packed otherwise than with the queries")
        query, key, value = (part.flatten(2) for part in query.unbind(3))
    width = query.shape[-1]
    if bias is not None:
        query = query + bias[:width]
        key = key if key.dim() == 4 else key + bias[width : 2 * width]
        value = value if value.dim() == 4 else value + bias[2 * width :]
    key = key if key.dim() == 4 else heads(key, num_heads)
    value = value if value.dim() == 4 else heads(value, num_heads)
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    bias_ = masked(mask, attention_bias, query.shape[0], key.shape[2], mask_filter_value)
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
    return x.reshape(x.shape[0], x.shape[1], count, x.shape[2] // count).transpose(1, 2)


def masked(mask: Tensor | None, bias: Tensor | None, batch: Any, total: Any, hidden: float) -> Tensor | None:
    """What is added to scores [batch, heads, sequence, total]: `hidden` where a mask says so.

    A mask holds ones and zeros of two or three axes, or of one axis where each item ends (and, behind that, where it begins).
    """
    if mask is None:
        return bias
    if mask.dim() > 3:
        raise Unsupported("com.microsoft Attention with a mask of four axes")
    if mask.dim() == 1:
        places = torch.arange(total).reshape(1, -1)
        is_seen = places < mask[:batch].reshape(-1, 1)
        if mask.shape[0] != batch:
            is_seen = is_seen & (places >= mask[batch:].reshape(-1, 1))
        is_seen = is_seen[:, None, None]
    else:
        is_seen = mask[:, None, None] != 0 if mask.dim() == 2 else mask[:, None] != 0
    kind = torch.float32 if bias is None else bias.dtype
    added = torch.where(is_seen, torch.zeros((), dtype=kind), torch.full((), hidden, dtype=kind))
    return added if bias is None else added + bias


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, is_causal: bool) -> Tensor:
    """[batch, heads, sequence, size] each, to [batch, sequence, heads * size]. The last query sees every key."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * (scale or 1 / math.sqrt(query.shape[-1]))
    scores = scores if bias is None else scores + bias.to(scores.dtype)
    if is_causal:
        length, total = query.shape[2], key.shape[2]
        is_past = torch.arange(total).reshape(1, -1) <= torch.arange(length).reshape(-1, 1) + (total - length)
        scores = torch.where(is_past, scores, torch.finfo(scores.dtype).min)
    out = torch.matmul(torch.softmax(scores, -1), value).transpose(1, 2)
    return out.reshape(out.shape[0], out.shape[1], -1)


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
        size = query.shape[-1] // (num_heads + 2 * kv_num_heads)
        query, key, value = torch.split(query, [num_heads * size, kv_num_heads * size, kv_num_heads * size], -1)
    query, key, value = heads(query, num_heads), heads(key, kv_num_heads), heads(value, kv_num_heads)
    length, past = query.shape[2], past_key.shape[2]
    begin = torch.clamp(ends.to(torch.int64).reshape(-1, 1) + 1 - length, min=0)
    spots = begin + torch.arange(length)
    if do_rotary and cosines is not None and sines is not None:
        at = spots if places is None else places
        angles = [gather(table, at).unsqueeze(1) for table in (cosines, sines)]
        width = 2 * cosines.shape[1]
        query, key = (rotated(x, angles[0], angles[1], width, bool(rotary_interleaved)) for x in (query, key))
    total = torch.sym_max(past, total_length[0] if isinstance(total_length, list) else total_length)
    kept = torch.arange(total).reshape(1, -1)
    source = torch.where(kept < begin, kept, torch.clamp(kept - begin + past, max=past + length - 1))
    spread = source[:, None, :, None].expand(-1, kv_num_heads, -1, key.shape[3])
    key = torch.cat([past_key, key], 2).gather(2, spread)
    value = torch.cat([past_value, value], 2).gather(2, spread)
    each = num_heads // kv_num_heads
    scores = torch.matmul(query, key.repeat_interleave(each, 1).transpose(-1, -2)) * (scale or 1 / math.sqrt(query.shape[-1]))
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    is_seen = kept[:, None] <= spots[:, :, None]
    if local_window_size > 0:
        is_seen = is_seen & (kept[:, None] > spots[:, :, None] - local_window_size)
    scores = torch.where(is_seen[:, None], scores, torch.finfo(scores.dtype).min)
    out = torch.matmul(torch.softmax(scores, -1), value.repeat_interleave(each, 1)).transpose(1, 2)
    return out.reshape(out.shape[0], out.shape[1], -1), key, value
