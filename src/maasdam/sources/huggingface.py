"""Hugging Face folders: config.json beside safetensors.

Knows how transformers lays models out and what its image, speech and text models take and give. Refuses to import
torch or transformers' models, and to touch weights that are pickles.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from maasdam.core import (
    AUDIO_CLASSIFICATION,
    FEATURES,
    FILL_MASK,
    IMAGE_CLASSIFICATION,
    IMAGE_FEATURES,
    OBJECT_DETECTION,
    QUESTION_ANSWERING,
    SPEECH_RECOGNITION,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TEXT_RANKING,
    TOKEN_CLASSIFICATION,
    ZERO_SHOT_IMAGES,
    Axis,
    Signature,
    TensorSpec,
)
from maasdam.errors import InvalidModel, Unsupported
from maasdam.sources.bounds import MAX_CONFIG_BYTES, Place, commonest, read_json_object
from maasdam.sources.finding import Reading
from maasdam.sources.hfconfig import LAYER_COUNTS, SEES_AND_WRITES, Description, counts_in
from maasdam.sources.safetensors import read_header

MAX_SHARDS = 2000
SHARED_LAYERS = 512
"""As many layers may have their weights in common (ALBERT)."""
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_KINDS_OF_TOKENS = re.compile(r"(^|\.)(token_type_embeddings(_\d+)?\.weight|seg_embed)$")
"""Weights with a row for each kind of token: of embeddings (BERT and its kin), of attention (XLNet, Funnel)."""
_WORDS = re.compile(r"(^|\.)embeddings\.(word|tok)_embeddings\.weight$")
"""Of the encoders of texts: BERT and its kin, ModernBERT."""
_NUMBERED_KINDS = re.compile(r"(^|\.)token_type_embeddings_\d+\.weight$")
"""A table for each of several columns of kinds (TAPAS)."""
_ONE_A_TEXT = (TEXT_CLASSIFICATION, TEXT_RANKING)
_TEXT_TASKS = (*_ONE_A_TEXT, TOKEN_CLASSIFICATION, FILL_MASK)


def read(place: Place, description: Description) -> Reading:
    """Read the folder. Raises InvalidModel when config or weights are broken or don't belong together."""
    if "config.json" not in description.files:
        raise InvalidModel(
            f"{place.path} has weights but no config.json, so nothing says what they are; add the model's config.json"
        )
    if place.file("adapter_config.json"):
        raise Unsupported(f"{place.path} is an adapter (PEFT), not a whole model; merge it into its model and save that")
    files = _weights(place)
    elements: Counter[str] = Counter()
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files.values():
        if path.name.endswith(".json"):
            continue
        header = read_header(path)
        elements += header.elements
        shapes |= header.shapes
    if not shapes:
        raise InvalidModel(f"{place.path} holds no weights: its safetensors are empty; save the model again")
    if INDEX in files:
        _check_index(files[INDEX], shapes)
    _check_layers(description, len(shapes), place)
    return Reading(
        format="pytorch",
        layout="huggingface",
        files=files,
        signature=_signature(description, shapes),
        task=description.task,
        architecture=description.architecture,
        parameters=sum(elements.values()),
        precision=commonest(elements),
        labels=_labels(description, shapes),
        notes=tuple(_notes(description, len(files))),
    )


def _weights(place: Place) -> dict[str, Path]:
    """The safetensors files by name: one, or shards with their index."""
    if (whole := place.file(WEIGHTS)) is not None:
        return {WEIGHTS: whole}
    index = place.need(INDEX, "and no model.safetensors either; save the model with save_pretrained")
    mapping = read_json_object(index, MAX_CONFIG_BYTES).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise InvalidModel(f"{index} has no weight_map; save the model again")
    names = {str(name) for name in mapping.values()}
    if len(names) > MAX_SHARDS:
        raise InvalidModel(f"{index} names {len(names):,} shards; at most {MAX_SHARDS:,} are taken")
    files = {INDEX: index}
    for name in sorted(names):
        if "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise InvalidModel(
                f"{index} names the shard '{name}', which is no safetensors file beside it; save the model again"
            )
        files[name] = place.need(name, "the index names this shard; the download is incomplete: fetch it again")
    return files


def _check_index(index: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    missing = [name for name in read_json_object(index)["weight_map"] if name not in shapes]
    if missing:
        raise InvalidModel(f"{index} names {len(missing)} tensors that no shard holds ('{missing[0]}'); fetch the model again")


def _check_layers(description: Description, tensors: int, place: Place) -> None:
    """Raise InvalidModel for more layers than there are weights: transformers builds them all before it looks for those."""
    for key, value in counts_in(description.config, LAYER_COUNTS):
        if value > max(tensors, SHARED_LAYERS):
            raise InvalidModel(
                f"{place.path}/config.json has {key} {value:,}, and the weights are {tensors:,} tensors; "
                "give the config.json that belongs to them"
            )


def _labels(description: Description, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    if description.task not in (IMAGE_CLASSIFICATION, AUDIO_CLASSIFICATION, *_TEXT_TASKS[:3]):
        return None
    if description.labels:
        return description.labels
    ends = ("weight", "1.weight", "out_proj.weight", "dense.weight")
    heads = (*(f"classifier.{end}" for end in ends), "score.weight")
    return next((shapes[name][0] for name in heads if name in shapes), None)


def _signature(description: Description, shapes: Mapping[str, tuple[int, ...]]) -> Signature | None:
    """What the model takes and gives as a tensor engine; None for models that generate, or where config doesn't say."""
    if description.task == IMAGE_CLASSIFICATION:
        scores = TensorSpec("logits", "float32", (None, _labels(description, shapes)))
        return Signature((_pixels(description),), (scores,))
    if description.task == ZERO_SHOT_IMAGES:
        return _towers_signature(description, shapes)
    if description.task == IMAGE_FEATURES:
        return _seeing_signature(description, shapes)
    if description.task == OBJECT_DETECTION:
        queries = _count(description.config.get("num_queries", description.config.get("num_detection_tokens")))
        found = (("logits", None), ("pred_boxes", 4))
        outputs = tuple(TensorSpec(name, "float32", (None, queries, size)) for name, size in found)
        return Signature((_pixels(description),), outputs)
    if description.task == AUDIO_CLASSIFICATION:
        scores = TensorSpec("logits", "float32", (None, _labels(description, shapes)))
        return Signature(_sound_inputs(description), (scores,))
    if description.task == SPEECH_RECOGNITION and str(description.architecture).endswith("ForCTC"):
        return _speech_signature(description, shapes)
    if description.task in _TEXT_TASKS:
        labels = description.config.get("vocab_size") if description.task == FILL_MASK else _labels(description, shapes)
        per_token = description.task not in _ONE_A_TEXT
        return Signature(
            text_inputs(shapes),
            (TensorSpec("logits", "float32", (None, None, labels) if per_token else (None, labels)),),
        )
    if description.task == QUESTION_ANSWERING:
        ends = (TensorSpec(f"{end}_logits", "float32", (None, None)) for end in ("start", "end"))
        return Signature(text_inputs(shapes), tuple(ends))
    is_base = description.task is None and str(description.architecture).endswith("Model")
    if is_base or description.task == FEATURES:
        return _encoder_signature(description, shapes)
    return None


def _encoder_signature(description: Description, shapes: Mapping[str, tuple[int, ...]]) -> Signature | None:
    """A text encoder without a head, as BertModel: states per token, and one per text where it has a pooler."""
    config = description.config
    hidden = _count(config.get("hidden_size", config.get("dim")))
    if (
        not any(_WORDS.search(name) for name in shapes)
        or hidden is None
        or config.get("is_decoder")
        or config.get("is_encoder_decoder")
    ):
        return None
    outputs = [TensorSpec("last_hidden_state", "float32", (None, None, hidden))]
    if description.task != FEATURES and any(name.startswith("pooler.") for name in shapes):
        outputs.append(TensorSpec("pooler_output", "float32", (None, hidden)))
    return Signature(text_inputs(shapes), tuple(outputs))


def text_inputs(shapes: Mapping[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    """What a text encoder takes: words, their mask and, where its weights tell kinds of tokens apart, those kinds.

    transformers takes the first kind for all tokens where it is given none, and then answers a pair of texts as if it were
    one. Models that know a single kind (RoBERTa) are not asked for it.
    """
    words = tuple(TensorSpec(name, "int64", (None, None), layout="NT") for name in ("input_ids", "attention_mask"))
    tables = [s[0] for name, s in shapes.items() if _KINDS_OF_TOKENS.search(name)]
    kinds = min(tables, default=1)
    if kinds < 2:
        return words
    columns = sum(_NUMBERED_KINDS.search(name) is not None for name in shapes)
    shape, layout = ((None, None, columns), None) if columns else ((None, None), "NT")
    return (*words, TensorSpec("token_type_ids", "int64", shape, layout, value_range=(0, kinds - 1)))


def _pixels(description: Description) -> TensorSpec:
    channels = _seeing(description).get("num_channels", 3)
    if description.task == OBJECT_DETECTION:  # what it was trained on, where it takes any size
        description = replace(description, config={k: v for k, v in description.config.items() if k != "image_size"})
    height, width = image_size(description)
    return TensorSpec("pixel_values", "float32", (None, _count(channels), height, width), layout="NCHW")


def _seeing(description: Description) -> Mapping[str, Any]:
    """The configuration of the part that sees."""
    inner = description.config.get("vision_config")
    return inner if isinstance(inner, dict) else description.config


def _towers_signature(description: Description, shapes: Mapping[str, tuple[int, ...]]) -> Signature | None:
    """One picture and several texts a row (`engines/two_towers.py`). SigLIP reads texts of the one length it was trained on."""
    positions = shapes.get("text_model.embeddings.position_embedding.weight")
    joint = next((shapes[n] for n in ("text_projection.weight", "text_model.head.weight") if n in shapes), None)
    if positions is None or joint is None:
        return None
    longest = positions[0]
    is_fixed = description.architecture == "SiglipModel"
    tokens = (None, None, longest if is_fixed else None)
    axes = () if is_fixed else (None, Axis("labels"), Axis("tokens", 1, longest))
    outputs = {"image_embeds": (None, joint[0]), "text_embeds": (None, None, joint[0])}
    texts = TensorSpec("input_ids", "int64", tokens, axes=axes)
    return Signature((_pixels(description), texts), tuple(TensorSpec(n, "float32", s) for n, s in outputs.items()))


def _seeing_signature(description: Description, shapes: Mapping[str, tuple[int, ...]]) -> Signature:
    """Of what sees alone: the vector that it was trained for, else states of its tokens (a ViT's pooler is seldom trained)."""
    hidden = _count(_seeing(description).get("hidden_size"))
    projection = shapes.get("visual_projection.weight")
    name, shape = "last_hidden_state", (None, None, hidden)
    if projection is not None:
        name, shape = "image_embeds", (None, projection[0])  # type: ignore[assignment]  # one axis less
    elif description.architecture not in ("ViTModel", "DeiTModel"):
        name, shape = "pooler_output", (None, hidden)  # type: ignore[assignment]  # one axis less
    return Signature((_pixels(description),), (TensorSpec(name, "float32", shape),))


def image_size(description: Description) -> tuple[int | None, int | None]:
    """(height, width) in pixels of the images the model sees: as cropped, else as resized, else config's image_size."""
    pre = description.preprocessor
    candidates: list[Any] = []
    if pre.get("do_center_crop", "crop_size" in pre):
        candidates.append(pre.get("crop_size"))
    if pre.get("do_resize", True):
        candidates.append(pre.get("size"))
    candidates.append(_seeing(description).get("image_size"))
    for value in candidates:
        if isinstance(value, dict):
            if "height" in value and "width" in value:
                return _count(value["height"]), _count(value["width"])
            # {"shortest_edge": …} alone does not say the other edge
        elif isinstance(value, list) and len(value) == 2:
            return _count(value[0]), _count(value[1])
        elif _count(value):
            return _count(value), _count(value)
    return None, None


def _speech_signature(description: Description, shapes: Mapping[str, tuple[int, ...]]) -> Signature:
    vocabulary = description.config.get("vocab_size") or next(
        (s[0] for n, s in shapes.items() if n in ("lm_head.weight", "ctc_head.weight")), None
    )
    logits = TensorSpec("logits", "float32", (None, None, _count(vocabulary)), layout="NTV")
    return Signature(_sound_inputs(description), (logits,))


def _sound_inputs(description: Description) -> tuple[TensorSpec, ...]:
    """Samples, or features: of any length, or of the one length that the model was made for."""
    config, pre = description.config, description.preprocessor
    kind = str(pre.get("feature_extractor_type", ""))
    if kind == "WhisperFeatureExtractor":
        frames = 2 * (_count(config.get("max_source_positions")) or 1500)
        return (TensorSpec("input_features", "float32", (None, _count(config.get("num_mel_bins", 80)), frames)),)
    if kind == "ASTFeatureExtractor":
        shape = (None, _count(config.get("max_length", 1024)), _count(config.get("num_mel_bins", 128)))
        return (TensorSpec("input_values", "float32", shape, layout="NTF"),)
    mask = TensorSpec("attention_mask", "int64", (None, None), layout="NT")
    takes_waves = kind == "Wav2Vec2FeatureExtractor" or "conv_kernel" in config
    if takes_waves:
        waves = TensorSpec("input_values", "float32", (None, None), layout="NT")
        return (waves, mask) if pre.get("return_attention_mask") else (waves,)
    features = config.get("feature_projection_input_dim")
    if features is None:
        features = _count(pre.get("num_mel_bins", pre.get("feature_size", 80)))
        features = features * pre.get("stride", 1) if features else None
    return (TensorSpec("input_features", "float32", (None, None, _count(features)), layout="NTF"), mask)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _notes(description: Description, files: int) -> list[str]:
    notes = []
    if files > 1:
        notes.append(f"weights in {files - 1} shards")
    method = description.config.get("quantization_config")
    if isinstance(method, dict):
        notes.append(
            f"already quantised ({method.get('quant_method', 'method not named')}): its engine needs that method's library"
        )
    if (
        description.task == TEXT_GENERATION
        and "tokenizer.json" not in description.files
        and "tokenizer.model" not in description.files
    ):
        notes.append("no tokenizer beside it: only token ids can be sent")
    if description.architecture is None:
        notes.append("config.json names no architecture: say the task with --task")
    elif description.task == SEES_AND_WRITES:
        notes.append(f"'{description.architecture}' sees pictures and writes text, which no engine here does")
    elif description.task is None:
        notes.append(f"'{description.architecture}' belongs to no task known here")
    return notes
