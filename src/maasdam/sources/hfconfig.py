"""What a Hugging Face config.json and its neighbours say: task, architecture, labels, processor files, own code.

Knows the names Hugging Face gives files and architectures. Refuses to know weights, and to import transformers
save for its list of model types, when a repository brings code of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maasdam.core import (
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
)
from maasdam.errors import InvalidModel
from maasdam.sources.bounds import MAX_CONFIG_BYTES, MAX_PROCESSOR_FILE_BYTES, Place, parse_json, read_bounded, read_json_object
from maasdam.sources.finding import Risk
from maasdam.tasks.custom_code import CODE
from maasdam.tasks.files import DECLARED, LIKENESS
from maasdam.tasks.sentences import KINDS, MODULES, flat, modules_of

PROCESSOR_FILES = frozenset({
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "image_processor_config.json",
    "video_preprocessor_config.json", "feature_extractor_config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "vocabulary.json", "vocabulary.txt", "merges.txt", "normalizer.json", "chat_template.jinja",
    "chat_template.json", "labels.txt", CODE, DECLARED, MODULES, "sentence_bert_config.json",
    "config_sentence_transformers.json", LIKENESS,
})  # fmt: skip
"""Files that describe the processor, flat beside the model. None is code that is run, but for CODE, which asks first."""

LAYER_COUNTS = frozenset(
    {
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers",
        "num_encoder_layers", "num_encoder_blocks", "num_stages", "depths", "depth", "num_feat_extract_layers",
    }
)  # fmt: skip
"""Settings of transformers' configurations that count layers, each of which has weights."""
MOST_LABELS = 1_000_000
MOST_LAYERS = 10_000
"""transformers makes a list entry or a name of each as soon as it reads a configuration, whoever asked for what."""

SEES_AND_WRITES = "image-text-to-text"
"""Chat with pictures, which no engine here does."""
_TASK_BY_SUFFIX: tuple[tuple[str, str], ...] = (
    ("ForImageClassification", IMAGE_CLASSIFICATION),
    ("ForImageClassificationWithTeacher", IMAGE_CLASSIFICATION),
    ("ForCausalLM", TEXT_GENERATION),
    ("LMHeadModel", TEXT_GENERATION),
    ("ForCTC", SPEECH_RECOGNITION),
    ("ForSpeechSeq2Seq", SPEECH_RECOGNITION),
    ("ForSequenceClassification", TEXT_CLASSIFICATION),
    ("ForTokenClassification", TOKEN_CLASSIFICATION),
    ("ForQuestionAnswering", QUESTION_ANSWERING),
    ("ForMaskedLM", FILL_MASK),
    ("ForMultipleChoice", "multiple-choice"),
    ("ForObjectDetection", OBJECT_DETECTION),
    ("ForSemanticSegmentation", "image-segmentation"),
    ("ForUniversalSegmentation", "image-segmentation"),
    ("ForDepthEstimation", "depth-estimation"),
    ("ForAudioClassification", "audio-classification"),
    ("ForImageTextToText", SEES_AND_WRITES),
    ("ForVideoClassification", "video-classification"),
)
_TASK_BY_NAME = {
    "WhisperForConditionalGeneration": SPEECH_RECOGNITION,
    "MoonshineForConditionalGeneration": SPEECH_RECOGNITION,
    "Speech2TextForConditionalGeneration": SPEECH_RECOGNITION,
    "SpeechEncoderDecoderModel": SPEECH_RECOGNITION,
    "T5ForConditionalGeneration": "text2text-generation",
    "BartForConditionalGeneration": "text2text-generation",
    "MarianMTModel": "translation",
    "CLIPModel": ZERO_SHOT_IMAGES,
    "SiglipModel": ZERO_SHOT_IMAGES,
    **dict.fromkeys(
        (
            "ViTModel",
            "DeiTModel",
            "Dinov2Model",
            "Dinov2WithRegistersModel",
            "DINOv3ViTModel",
            "CLIPVisionModel",
            "CLIPVisionModelWithProjection",
            "SiglipVisionModel",
        ),
        IMAGE_FEATURES,
    ),
}


_OF_SOUND = ("conv_kernel", "feature_projection_input_dim", "num_mel_bins")
"""What config.json has of models that take sound, whatever their class is called."""


@dataclass(frozen=True, slots=True)
class Description:
    """The processor files of a folder, and what its config.json says."""

    files: Mapping[str, Path] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    risks: tuple[Risk, ...] = ()
    modules: tuple[str, ...] = ()
    """Kinds of what modules.json of a sentence-transformers folder puts together, such as "Pooling"."""

    @property
    def architecture(self) -> str | None:
        """The first of config.json's `architectures`."""
        names = self.config.get("architectures")
        return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None

    @property
    def task(self) -> str | None:
        """Hugging Face's name of the architecture's task; feature-extraction of a sentence-transformers folder that pools."""
        if "Pooling" in self.modules and KINDS.issuperset(self.modules):
            return FEATURES
        if self.architecture is None and DECLARED in self.files:
            return OBJECT_DETECTION
        task = task_of(self.architecture)
        if task == TEXT_CLASSIFICATION and any(key in self.config for key in _OF_SOUND):
            return "audio-classification"  # Wav2Vec2ForSequenceClassification and its kin
        if task is None and "vision_config" in self.config and str(self.architecture).endswith("ForConditionalGeneration"):
            return SEES_AND_WRITES  # LLaVA, Qwen2-VL, SmolVLM and their kin
        if task == TEXT_CLASSIFICATION and self.labels == 1:
            return TEXT_RANKING  # one class tells nothing apart: it is the score of a cross-encoder
        return task

    @property
    def labels(self) -> int | None:
        """How many classes it tells apart; None where nothing says it."""
        names = self.config.get("id2label")
        if isinstance(names, dict) and names:
            return len(names)
        count = self.config.get("num_labels")
        return count if isinstance(count, int) and count > 0 else None


def describe(place: Place) -> Description:
    """Read the processor files of a folder. Raises InvalidModel where one is broken or absurdly large."""
    files: dict[str, Path] = {}
    for name in place.names():
        if name in PROCESSOR_FILES and (path := place.file(name)) is not None:
            if path.stat().st_size > MAX_PROCESSOR_FILE_BYTES:
                raise InvalidModel(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_PROCESSOR_FILE_BYTES:,} are taken")
            files[name] = path
    modules: tuple[tuple[str, str], ...] = ()
    if MODULES in files:
        modules = modules_of(parse_json(read_bounded(files[MODULES], MAX_CONFIG_BYTES), str(files[MODULES])))
        files |= _of_modules(place, [under for _, under in modules if under])
    parsed = {name: read_json_object(path) for name, path in files.items() if name.endswith("config.json")}
    for name, values in parsed.items():
        _check_counts(values, files[name])
    config = parsed.get("config.json", {})
    preprocessor = dict(parsed.get("preprocessor_config.json", {}))
    inner = parsed.get("processor_config.json", {})
    for part in ("image_processor", "feature_extractor"):  # newer processors keep both in one file
        if isinstance(inner.get(part), dict):
            preprocessor |= inner[part]
    kinds = tuple(kind for kind, _ in modules)
    return Description(files, config, preprocessor, tuple(_own_code(parsed, config)), kinds)


def _of_modules(place: Place, folders: list[str]) -> dict[str, Path]:
    """The files of a sentence-transformers folder's modules, by what they are called in an artifact: there they lie flat."""
    files = {}
    for under in folders:
        for name, suffix in (("config.json", ".json"), ("model.safetensors", ".safetensors")):
            path = place.file(f"{under}/{name}") or place.file(flat(under, suffix))
            if path is not None:
                if path.stat().st_size > MAX_PROCESSOR_FILE_BYTES:
                    raise InvalidModel(
                        f"{path} has {path.stat().st_size:,} bytes; at most {MAX_PROCESSOR_FILE_BYTES:,} are taken"
                    )
                files[flat(under, suffix)] = path
    return files


def counts_in(config: Mapping[str, Any], keys: frozenset[str]) -> Iterator[tuple[str, int | float]]:
    """Every number that stands under one of `keys`, alone or in a list, in the configuration or one inside it."""
    waiting: list[tuple[str, Any]] = [("", dict(config))]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(str(name), inner) for name, inner in value.items()]
        elif isinstance(value, list) and key in keys:
            waiting += [(key, inner) for inner in value]
        elif key in keys and isinstance(value, int | float):
            yield key, value


def _check_counts(config: Mapping[str, Any], path: Path) -> None:
    """Raise InvalidModel for counts that would fill the memory when transformers reads them."""
    for keys, most in ((LAYER_COUNTS, MOST_LAYERS), (frozenset({"num_labels"}), MOST_LABELS)):
        for key, value in counts_in(config, keys):
            if value > most:
                raise InvalidModel(
                    f"{path} has {key} {value:,}; at most {most:,} are taken: give the config.json made with the model"
                )


def merge(own: Description, other: Description, keeps_config: bool) -> Description:
    """What `--processor` adds: its files win, since the user named them; `keeps_config` where config.json builds the model."""
    files = {**own.files, **other.files}
    config = other.config or own.config
    if keeps_config and "config.json" in own.files:
        files["config.json"] = own.files["config.json"]
        config = own.config
    return Description(
        files=files,
        config=config,
        preprocessor=other.preprocessor or own.preprocessor,
        modules=other.modules or own.modules,
        risks=own.risks + tuple(risk for risk in other.risks if risk not in own.risks),
    )


def task_of(architecture: str | None) -> str | None:
    """The task of a transformers class name, Hugging Face's name for it; None when unknown."""
    if architecture is None:
        return None
    if architecture in _TASK_BY_NAME:
        return _TASK_BY_NAME[architecture]
    return next((task for suffix, task in _TASK_BY_SUFFIX if architecture.endswith(suffix)), None)


def _own_code(parsed: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> Iterator[Risk]:
    """The risk of code that the repository brings; never run here, so only liftable where transformers has its own."""
    asking = sorted(name for name, values in parsed.items() if values.get("auto_map"))
    if not asking:
        return
    kind = config.get("model_type")
    if isinstance(kind, str) and _is_known(kind):
        yield Risk(
            "blocked",
            f"{', '.join(asking)} names Python code of the repository's own (auto_map). Maasdam never runs it; transformers "
            f"has an implementation of '{kind}' of its own, and --trust uses that one",
            liftable=True,
        )
    else:
        yield Risk(
            "blocked",
            f"{', '.join(asking)} names Python code of the repository's own (auto_map), without which there is no model. "
            "Maasdam never runs such code, with --trust neither; export the model to ONNX or .pt2 where you trust it",
        )


def _is_known(model_type: str) -> bool:
    # the list is there; the module's __all__ leaves it out
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]  # made when imported

    return model_type in CONFIG_MAPPING_NAMES
