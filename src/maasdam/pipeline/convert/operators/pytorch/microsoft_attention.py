"""Attention as ONNX Runtime's optimisers write it: com.microsoft Attention, MultiHeadAttention and QAttention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from maasdam.errors import Unsupported
from maasdam.pipeline.convert.operators.pytorch.quantized import dequantize
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
