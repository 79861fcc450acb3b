"""The networks inside a model that generates, each as tensors in and tensors out: a decoder with its cache, an encoder.

Knows how transformers keeps keys and values, and what one exported graph can't say of them. Refuses to export anything.

    language model   decoder   input_ids, attention_mask, [position_ids], past_key_values.N.key|value
                               -> logits, present.N.key|value
    Whisper          encoder   input_features -> last_hidden_state, present.N.encoder.key|value
                     decoder   input_ids, past_key_values.N.decoder.key|value, past_key_values.N.encoder.key|value
                               -> logits, present.N.decoder.key|value

Names are the field's own. `past` may be empty; `attention_mask` is as long as the past and the new tokens together. What
Whisper's decoder looks up in the sound is computed once, by the encoder.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from maasdam.convert.modules import Attention, called, is_whisper, load_transformers, name_module, need_signature
from maasdam.core import PAST, TEXT_GENERATION, Artifact, Signature, TensorSpec
from maasdam.engines.pytorch_engine import PyTorchEngine
from maasdam.errors import InvalidInput, Unsupported

if TYPE_CHECKING:
    import torch

Part = Literal["encoder", "decoder"]
SCALED_BY_LENGTH = ("dynamic", "longrope")
"""Kinds of positions that depend on how long a prompt is."""
FEW = 3
"""Tokens the model is shown to see what its cache looks like."""


def parts_of(source: Artifact) -> tuple[Part, ...]:
    """The networks inside a Hugging Face model; () for one that is a single batch of tensors in and out."""
    if source.layout != "huggingface":
        return ()
    if source.task == TEXT_GENERATION:
        return ("decoder",)
    return ("encoder", "decoder") if is_whisper(source) else ()


def take_part(source: Artifact, part: Part) -> Artifact:
    """The artifact as one of its networks: with that network's signature.

    Raises InvalidInput where the model has no such part, Unsupported where one graph can't hold it.
    """
    if part not in (parts := parts_of(source)):
        has = " and ".join(parts) or "none: it is one network"
        raise InvalidInput(f"{called(source)} has no part '{part}'; its parts are: {has}")
    model = load_transformers(source, "eager")
    if source.task == TEXT_GENERATION:
        return replace(source, signature=_language_signature(model))
    signature = _whisper_encoder_signature(model) if part == "encoder" else _whisper_decoder_signature(model)
    return replace(source, signature=signature, task=None)  # neither half recognises speech alone


def default_part(source: Artifact) -> Artifact:
    """A language model as its decoder, the only network it has; every other artifact as it is."""
    return take_part(source, "decoder") if source.signature is None and parts_of(source) == ("decoder",) else source


def named_network(source: Artifact, attention: Attention) -> torch.nn.Module:
    """The artifact's model, or the part of it that its signature tells, as `name_module` gives it."""
    model = load_transformers(source, attention)
    signature = need_signature(source)
    if parts_of(source) == ("encoder", "decoder"):
        is_decoder = any(s.name.startswith(PAST) for s in signature.inputs)
        return name_module(_whisper_decoder(model) if is_decoder else _whisper_encoder(model), signature, by_position=True)
    if source.task == TEXT_GENERATION:
        return name_module(_flat(model, signature), signature, by_position=True)
    return name_module(model, signature)


def reference(source: Artifact) -> PyTorchEngine:
    """A part of a transformers model on its own framework, at float32."""
    module = named_network(source, "eager")
    signature = need_signature(source)

    def function(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = module(*(tensors[s.name] for s in signature.inputs))
        return found

    return PyTorchEngine(function, signature, "cpu")


def refuse_inexpressible(config: Any) -> None:
    """Raise Unsupported for what one graph with a growing cache can't say."""
    from transformers import DynamicCache

    name = _architecture(config)
    text = config.get_text_config(decoder=True)
    if getattr(text, "is_encoder_decoder", False):
        raise Unsupported(f"{name} is an encoder-decoder for text; of language models only decoders convert")
    for layer in DynamicCache(config=text).layers:
        if type(layer).__name__ not in ("DynamicLayer", "DynamicSlidingWindowLayer"):
            raise Unsupported(f"{name} has layers that keep a {type(layer).__name__}, not keys and values; it does not convert")


def context_of(config: Any) -> int | None:
    """Tokens up to which one graph says the same as the model; None where its config tells no number.

    Positions that are scaled by the prompt's length (dynamic, longrope) are as they are without that up to the length that
    the model was trained on first. Beyond it they would depend on whatever prompts stand beside.
    """
    text = config.get_text_config(decoder=True)
    context: int | None = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    by_layer = list(rope.values()) if rope and all(isinstance(v, dict) for v in rope.values()) else [rope]
    first = [one.get("original_max_position_embeddings") for one in by_layer if one.get("rope_type") in SCALED_BY_LENGTH]
    return min([n for n in (context, *first) if n is not None], default=None)


@contextmanager
def still_positions(model: torch.nn.Module) -> Iterator[None]:
    """Within it no position is scaled by the prompt's length, as none is up to `context_of`: a tracer would freeze one."""
    scaling: list[Any] = [one for one in model.modules() if getattr(one, "rope_type", None) in SCALED_BY_LENGTH]
    kinds = [one.rope_type for one in scaling]
    try:
        for one in scaling:
            one.rope_type = "default"
        yield
    finally:
        for one, kind in zip(scaling, kinds, strict=True):
            one.rope_type = kind


def windows_of(config: Any) -> tuple[int | None, ...]:
    """How many of the last tokens, its own with them, a token of each layer attends to; None: to all that the context holds."""
    from transformers import DynamicCache

    text = config.get_text_config(decoder=True)
    context = getattr(text, "max_position_embeddings", None)
    found = [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=text).layers]
    return tuple(window if window and (context is None or window < context) else None for window in found)


def _refuse_as_tensors(config: Any) -> None:
    """Raise Unsupported for what a graph whose answers are tensors doesn't say."""
    name, text = _architecture(config), config.get_text_config(decoder=True)
    window = next((window for window in windows_of(config) if window), None)
    if window is not None:
        raise Unsupported(f"{name} attends within a window of {window} tokens; that converts to OpenVINO alone")
    if context_of(config) != getattr(text, "max_position_embeddings", None):
        raise Unsupported(f"{name} scales its positions by the prompt's length; that converts to OpenVINO alone")


def _architecture(config: Any) -> str:
    return str((getattr(config, "architectures", None) or [config.model_type])[0])


def decoder(model: Any) -> torch.nn.Module:
    """A causal language model as forward(input_ids, attention_mask, position_ids, past) -> (logits, key 0, value 0, key 1, …).

    `past` holds a pair (keys, values), each [batch, heads, past, width], for every layer.
    """
    import torch

    takes_positions = takes_position_ids(model)
    is_slanted = _counts_positions_from_mask(model.config)
    windows = windows_of(model.config)
    kinds = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()

    def masks(new: Any, whole: Any, seen: torch.Tensor) -> Any:
        """One, or one for each kind of layer where they differ."""
        if len(set(windows)) == 1:
            return _causal(new, whole, seen, windows[0])
        return {kind: _causal(new, whole, seen, window) for kind, window in zip(kinds, windows, strict=True)}

    class Decoder(torch.nn.Module):
        """Explicit cache in and out, and an explicit 4-D mask: nothing a tracer would freeze."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            position_ids: torch.Tensor | None,
            past: list[tuple[torch.Tensor, torch.Tensor]],
        ) -> tuple[torch.Tensor, ...]:
            mask = attention_mask if is_slanted else masks(input_ids.shape[1], attention_mask.shape[1], attention_mask)
            positions = {"position_ids": position_ids} if takes_positions else {}
            answer = self.model(
                input_ids=input_ids, attention_mask=mask, past_key_values=_cache(past), use_cache=True, **positions
            )
            return (answer.logits, *_tensors(answer.past_key_values))

    return Decoder().eval()


def _counts_positions_from_mask(config: Any) -> bool:
    """Does attention lean on how far tokens are apart (alibi), counted from a mask [batch, length] that it has to be given?"""
    return config.model_type in ("bloom", "mpt") or bool(getattr(config, "alibi", False))


def takes_position_ids(model: Any) -> bool:
    """Does the model's forward take positions? Others count them, or have none."""
    return "position_ids" in inspect.signature(model.forward).parameters


def _flat(model: Any, signature: Signature) -> torch.nn.Module:
    """`decoder` as positional tensors in the signature's order."""
    import torch

    inner, plain = decoder(model), sum(not s.name.startswith(PAST) for s in signature.inputs)

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = inner

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            ids, mask, *positions = tensors[:plain]
            past = tensors[plain:]
            found: tuple[torch.Tensor, ...] = self.decoder(ids, mask, positions[0] if positions else None, _pairs(past))
            return found

    return Flat().eval()


def _whisper_encoder(model: Any) -> torch.nn.Module:
    import torch

    class Encoder(torch.nn.Module):
        """The sound, and the keys and values that every layer of the decoder looks up in it."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_features: torch.Tensor) -> tuple[torch.Tensor, ...]:
            hidden = self.model.model.encoder(input_features).last_hidden_state
            found = [hidden]
            for layer in self.model.model.decoder.layers:
                attention = layer.encoder_attn
                for project in (attention.k_proj, attention.v_proj):
                    heads = project(hidden).view(*hidden.shape[:2], attention.num_heads, attention.head_dim)
                    found.append(heads.transpose(1, 2).contiguous())
            return tuple(found)

    return Encoder().eval()


def _whisper_decoder(model: Any) -> torch.nn.Module:
    import torch
    from transformers import EncoderDecoderCache

    class Decoder(torch.nn.Module):
        """New tokens over the cache of the old ones and what the encoder gave."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
            half = len(past) // 2
            cache = EncoderDecoderCache(_cache(_pairs(past[:half])), _cache(_pairs(past[half:])))
            cache.is_updated = dict.fromkeys(range(half // 2), True)  # what the encoder gave is not computed again
            before, new = past[0].shape[2], input_ids.shape[1]
            answer = self.model.model.decoder(
                input_ids=input_ids,
                attention_mask=_causal(new, before + new, None),
                encoder_hidden_states=past[0].new_zeros(1, 1, model.config.d_model),  # asks for the lookup; never read
                past_key_values=cache,
                position_ids=(torch.arange(new) + before)[None],
                use_cache=True,
            )
            present = answer.past_key_values.self_attention_cache
            return (self.model.proj_out(answer.last_hidden_state), *_tensors(present))

    return Decoder().eval()


def _causal(new: Any, whole: Any, seen: torch.Tensor | None, window: int | None = None) -> torch.Tensor:
    """[batch or 1, 1, new, whole]: 0 where a token may look, else the lowest number. `seen` [batch, whole] hides padding."""
    import torch

    queries = torch.arange(new)[:, None] + (whole - new)
    keys = torch.arange(whole)[None, :]
    may = (keys <= queries)[None, None]
    if seen is not None:
        if window is not None:
            return _windowed(queries[None, None], keys[None, None], seen, window)
        may = may & seen[:, None, None, :].to(torch.bool)
    return torch.where(may, 0.0, torch.finfo(torch.float32).min)


def _windowed(queries: torch.Tensor, keys: torch.Tensor, seen: torch.Tensor, window: int) -> torch.Tensor:
    """The same within a window, in the very operators that OpenVINO knows one by, and in their order.

    See `StateManagementPattern` (gptoss_gemma3) in OpenVINO; `language_to_genai` checks that every window was found.
    """
    import torch

    any_key = seen.new_ones((), dtype=torch.bool)
    may = any_key & (keys > queries + (-window))
    may = any_key & (may & (keys <= queries))
    may = (may & seen[:, None, None, :].to(torch.bool)).expand(seen.shape[0], 1, queries.shape[2], keys.shape[3])
    return torch.where(may, 0.0, torch.finfo(torch.float32).min)[:, :, :, : keys.shape[3]]


def _cache(past: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for keys, values in past:
        layer = DynamicLayer()  # filled by hand: DynamicCache(data) breaks the trace
        layer.dtype, layer.device = keys.dtype, keys.device
        layer.keys, layer.values = keys, values
        layer.is_initialized = True
        cache.layers.append(layer)
    return cache


def _tensors(cache: Any) -> list[torch.Tensor]:
    return [t for layer in cache.layers for t in (layer.keys, layer.values)]


def _pairs(tensors: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def _language_signature(model: Any) -> Signature:
    import torch

    refuse_inexpressible(model.config)
    _refuse_as_tensors(model.config)
    with torch.no_grad():
        answer = model(input_ids=torch.ones(1, FEW, dtype=torch.int64), use_cache=True)
    caches = _tensors(answer.past_key_values)
    open_ids = [TensorSpec(name, "int64", (None, None)) for name in ("input_ids", "attention_mask")]
    if takes_position_ids(model):
        open_ids.append(TensorSpec("position_ids", "int64", (None, None)))
    names = [f"{i // 2}.{('key', 'value')[i % 2]}" for i in range(len(caches))]
    return Signature(
        (*open_ids, *(_spec(f"{PAST}.{n}", t, 2) for n, t in zip(names, caches, strict=True))),
        (
            TensorSpec("logits", "float32", (None, None, answer.logits.shape[-1])),
            *(_spec(f"present.{n}", t, 2) for n, t in zip(names, caches, strict=True)),
        ),
    )


def _whisper_encoder_signature(model: Any) -> Signature:
    frames = model.model.encoder.embed_positions.num_embeddings * 2
    features = TensorSpec("input_features", "float32", (None, model.config.num_mel_bins, frames))
    outputs = [TensorSpec("last_hidden_state", "float32", (None, frames // 2, model.config.d_model))]
    return Signature((features,), (*outputs, *_whisper_caches(model, "present", "encoder", frames // 2)))


def _whisper_decoder_signature(model: Any) -> Signature:
    positions = model.model.encoder.embed_positions.num_embeddings
    return Signature(
        (
            TensorSpec("input_ids", "int64", (None, None)),
            *_whisper_caches(model, PAST, "decoder", None),
            *_whisper_caches(model, PAST, "encoder", positions),
        ),
        (
            TensorSpec("logits", "float32", (None, None, model.proj_out.out_features)),
            *_whisper_caches(model, "present", "decoder", None),
        ),
    )


def _whisper_caches(model: Any, prefix: str, side: str, length: int | None) -> list[TensorSpec]:
    found = []
    for i, layer in enumerate(model.model.decoder.layers):
        attention = layer.self_attn if side == "decoder" else layer.encoder_attn
        shape = (None, attention.num_heads, length, attention.head_dim)
        found += [TensorSpec(f"{prefix}.{i}.{side}.{kind}", "float32", shape) for kind in ("key", "value")]
    return found


def _spec(name: str, tensor: torch.Tensor, open_axis: int) -> TensorSpec:
    return TensorSpec(name, "float32", tuple(None if i in (0, open_axis) else s for i, s in enumerate(tensor.shape)))
