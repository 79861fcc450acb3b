"""The nouns every room speaks.

Knows names, shapes and values. Refuses to know frameworks, files, HTTP or money, and imports no other room
but `errors`.

    payload --Processor.prepare--> Tensors --Engine--> Tensors --Processor.finish--> answer
                                      \\--SequenceEngine--> Tokens, Tokens, … --/
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache, reduce
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from maasdam.errors import InvalidField, InvalidTensor

if TYPE_CHECKING:
    import numpy as np

    type_array = np.ndarray[Any, np.dtype[Any]]

Tensors = Mapping[str, "type_array"]
"""Named arrays. The first axis of every array is the batch, save where the signature says otherwise."""

Format = Literal["pytorch", "onnx", "tensorflow", "openvino", "gguf", "upstream"]
FORMATS: tuple[Format, ...] = ("pytorch", "onnx", "tensorflow", "openvino")
"""Those that are converted to. GGUF is served as it is; "upstream" is no format of files: another server has them."""

Layout = Literal[
    "huggingface",  # config.json + model.safetensors, transformers builds the module        (pytorch)
    "pt2",  # model.pt2, torch.export                                                         (pytorch)
    "torchscript",  # model.pt                                                                (pytorch)
    "onnx",  # model.onnx [+ external data]                                                   (onnx)
    "savedmodel",  # saved_model.pb + variables/                                              (tensorflow)
    "keras",  # model.keras                                                                   (tensorflow)
    "ir",  # model.xml + model.bin                                                            (openvino)
    "genai",  # openvino_model.xml/.bin, openvino_(de)tokenizer.xml: OpenVINO GenAI           (openvino)
    "ctranslate2",  # model.bin + vocabulary: CTranslate2 (Whisper)                           (pytorch)
    "gguf",  # model.gguf, with tokenizer and chat template in it: llama.cpp                  (gguf)
    "upstream",  # upstream.json: where a server is that runs it                              (upstream)
]
"""How the files of an artifact lie in its folder. Each layout belongs to one format."""

IMAGE_CLASSIFICATION = "image-classification"
AUDIO_CLASSIFICATION = "audio-classification"
TEXT_GENERATION = "text-generation"
SPEECH_RECOGNITION = "automatic-speech-recognition"
FEATURES = "feature-extraction"
TEXT_CLASSIFICATION = "text-classification"
TEXT_RANKING = "text-ranking"
TOKEN_CLASSIFICATION = "token-classification"
FILL_MASK = "fill-mask"
QUESTION_ANSWERING = "question-answering"

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
"""What config.json may call the most tokens of a text, the first there is."""
PAST = "past_key_values"
"""How inputs that hold a key-value cache begin (past_key_values.0.key), as Hugging Face has it. An empty cache is a cache."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What the file calls an open axis, and the sizes it takes. Axes of one name are of one size."""

    name: str
    least: int = 1
    most: int | None = None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named tensor: `dtype` is numpy's name ("float32", "int64", "object" for bytes); None in `shape` is dynamic.

    `layout` names the axes where it is known ("NCHW", "NHWC", "NT"); `value_range` is what the model was made for.
    `rows_of` says what the first axis counts where the inputs' open first axes are different things ("nodes", "edges");
    `takes_nan`: the model reads NaN as a missing value.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    layout: str | None = None
    value_range: tuple[float, float] | None = None
    rows_of: str | None = None
    takes_nan: bool = False
    axes: tuple[Axis | None, ...] = ()
    """One for each axis, where the file says more of them than that the first is the batch; () where it doesn't."""

    @property
    def sizes(self) -> str:
        """The shape in words; "?" is any size."""
        return "[" + ", ".join("?" if size is None else str(size) for size in self.shape) + "]"

    def to_json(self) -> dict[str, Any]:
        """A JSON object; absent facts are left out."""
        out: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        axes = [None if a is None else [a.name, a.least, a.most] for a in self.axes]
        facts: dict[str, Any] = {"layout": self.layout, "value_range": list(self.value_range or ()), "rows_of": self.rows_of}
        facts |= {"takes_nan": self.takes_nan, "axes": axes}
        return out | {name: fact for name, fact in facts.items() if fact}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TensorSpec:
        """The inverse of `to_json`."""
        low_high = data.get("value_range")
        return TensorSpec(
            data["name"],
            data["dtype"],
            tuple(data["shape"]),
            data.get("layout"),
            (float(low_high[0]), float(low_high[1])) if low_high else None,
            data.get("rows_of"),
            bool(data.get("takes_nan", False)),
            axes=tuple(None if a is None else Axis(*a) for a in data.get("axes", ())),
        )


def distinct(outputs: Iterable[str], inputs: Iterable[str]) -> list[str]:
    """Names of outputs; what is an input's name or an earlier output's gets a number: an LSTM's are lstm, lstm_1, lstm_2.

    Formats where a name stands for one tensor could not hold a model else.
    """
    taken, out = set(inputs), []
    for name in outputs:
        number, candidate = 0, name
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.add(candidate)
        out.append(candidate)
    return out


class Checked(dict[str, "type_array"]):
    """Tensors that fit their signature: whoever is handed them need not look through them again."""


class WithoutNan(dict[str, "type_array"]):
    """Tensors in which there can be no NaN: what they were written in has no word for it."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a tensor engine takes and gives, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object of two lists."""
        return {"inputs": [s.to_json() for s in self.inputs], "outputs": [s.to_json() for s in self.outputs]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Signature:
        """The inverse of `to_json`."""
        return Signature(
            tuple(TensorSpec.from_json(s) for s in data["inputs"]),
            tuple(TensorSpec.from_json(s) for s in data["outputs"]),
        )

    def check(self, tensors: Tensors) -> None:
        """Raise InvalidTensor unless `tensors` has exactly these inputs, of these dtypes and shapes, with rows of one number.

        NaN is refused where the model does not say that it takes it. An axis may be of size 0, but not all the rows.
        """
        if isinstance(tensors, Checked):
            return
        names = [s.name for s in self.inputs]
        if len(tensors) != len(names) or not all(name in tensors for name in names):
            wanted = ", ".join(names)
            for name in tensors:
                if name not in names:
                    raise InvalidTensor(f"no input '{name}'; this model takes: {wanted}")
            missing = next(name for name in names if name not in tensors)
            raise InvalidTensor(f"input '{missing}' is missing; this model takes: {wanted}")
        has_nan = not isinstance(tensors, WithoutNan)
        rows: dict[str | None, int] = {}
        for spec in self.inputs:
            name, array = spec.name, tensors[spec.name]
            if _dtype_name(array.dtype) != spec.dtype:
                raise InvalidTensor(f"input '{name}' is {array.dtype.name}; send {spec.dtype}")
            if not _fits(spec.shape, array.shape):
                sizes = spec.sizes.replace("?", "-1")
                raise InvalidTensor(f"input '{name}' has shape {list(array.shape)}; send {sizes} (-1 is any size)")
            if has_nan and not spec.takes_nan and array.dtype.kind == "f" and bool((array != array).any()):
                raise InvalidTensor(f"input '{name}' holds NaN; send finite numbers")
            if spec.shape and spec.shape[0] is None and rows.setdefault(spec.rows_of, array.shape[0]) != array.shape[0]:
                others = rows[spec.rows_of]
                raise InvalidTensor(f"input '{name}' has batch {array.shape[0]}, the others {others}; send one batch size")
        if rows and not any(rows.values()):
            name = next(s.name for s in self.inputs if s.shape and s.shape[0] is None)
            raise InvalidTensor(f"input '{name}' is empty: shape {list(tensors[name].shape)}; send at least one element")


def _fits(wanted: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    if len(wanted) != len(shape):
        return False
    for want, got in zip(wanted, shape, strict=True):  # noqa: SIM110  a generator costs each small request a microsecond
        if want is not None and want != got:
            return False
    return True


@lru_cache(maxsize=64)
def _dtype_name(dtype: Any) -> str:
    """numpy works a name out anew each time, which took a tenth of a small request."""
    return str(dtype.name)


INDEPENDENT, DEPENDENT, UNKNOWN = "independent", "dependent", "unknown"


@dataclass(frozen=True, slots=True)
class Tried:
    """Sizes that callers were computed together at: up to `rows` rows, each of the `sizes` of every input's other axes."""

    rows: int
    sizes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Batching:
    """Whether a row's answer is the same whatever rows stand beside it: only then callers are computed together.

    `verdict` is "independent", "dependent" or "unknown"; `how` is one sentence on how that was found; `tried` is what an
    independent one was proven at.
    """

    verdict: str
    how: str
    tried: tuple[Tried, ...] = ()

    @property
    def is_independent(self) -> bool:
        """Whether rows of several callers may be one batch."""
        return self.verdict == INDEPENDENT

    def most_rows(self, tensors: Tensors) -> int:
        """Rows that a batch with these tensors in it may hold: 1 for sizes outside of what was tried."""
        if self.verdict != INDEPENDENT:
            return 1
        sizes = {name: array.shape[1:] for name, array in tensors.items()}
        if not any(_covers(sizes, one.sizes) for one in self.tried):
            return 1
        return max((one.rows for one in self.tried if _covers(one.sizes, sizes)), default=1)

    def facts(self) -> dict[str, str]:
        """As reports, `status` and `/admin/models` show it: the verdict, and how it was found."""
        return {"batching": self.verdict, "batching_how": self.how}

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        tried = [{"rows": one.rows, "sizes": {name: list(sizes) for name, sizes in one.sizes.items()}} for one in self.tried]
        return {"verdict": self.verdict, "how": self.how, "tried": tried}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Batching:
        """The inverse of `to_json`."""
        tried = [Tried(int(one["rows"]), {name: tuple(sizes) for name, sizes in one["sizes"].items()}) for one in data["tried"]]
        return Batching(str(data["verdict"]), str(data["how"]), tuple(tried))


OF_ITS_ENGINE = Batching(
    UNKNOWN, "nothing to try: its engine is given one request after another and puts them together by itself"
)
UNTRIED = Batching(UNKNOWN, "not tried on this machine: verification does, and the service when it loads the model")


def _covers(large: Mapping[str, tuple[int, ...]], small: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether each size of `large` is at least that of `small`, of the same tensors."""
    return large.keys() == small.keys() and all(
        len(large[name]) == len(sizes) and all(a >= b for a, b in zip(large[name], sizes, strict=True))
        for name, sizes in small.items()
    )


@dataclass(frozen=True, slots=True)
class Artifact:
    """Immutable files in one folder, with what is known of them.

    The folder is self-sufficient: model files and, flat beside them, the Hugging Face files that describe the
    processor (config.json with id2label, preprocessor_config.json, tokenizer files, chat template).
    """

    digest: str
    """"sha256:<hex>" over the names and bytes of the files and over every field below but `parents`."""
    path: Path
    format: Format
    layout: Layout
    task: str | None
    engine: str
    """The engine that runs it: onnxruntime, openvino, pytorch, tensorflow, openvino-genai, transformers, ctranslate2."""
    signature: Signature | None
    """None for sequence engines, which take no plain batch of tensors."""
    size_bytes: int
    """All files needed to serve."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Engine settings chosen at build time, e.g. {"precision": "f32", "threads": 2}."""
    parents: tuple[str, ...] = ()
    """Digests this one was made from, nearest first."""

    @property
    def writes_speech(self) -> bool:
        """Whether its engine hears and writes by itself (Whisper), instead of giving scores that are decoded (CTC)."""
        return self.task == SPEECH_RECOGNITION and self.signature is None


def check_within(name: str, value: Any, kind: type, low: float, high: float) -> None:
    """Raise InvalidField unless `value` is of this kind (int; or float, which any number is) and from `low` to `high`."""
    is_kind = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not is_kind or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise InvalidField(f"'{name}' is {value!r:.50}; send {what} from {low} to {high}", name)


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form that an answer must have: any JSON object, JSON of a schema, a regular expression, one of a JSON list of texts,
    a grammar in EBNF whose rule `root` is the answer, or calls of tools.
    """

    kind: Literal["object", "schema", "regex", "choice", "grammar", "calls"]
    text: str
    """The schema (JSON), expression, list (JSON), grammar or what `grammars.calls_wanted` writes."""
    field: str
    """What the caller called it."""
    thinking: tuple[str, str, bool] | None = None
    """What stands around reasoning before it, and whether the prompt has begun that; None where there is none."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. None means: the model's own generation_config, else the neutral value.

    Making one raises InvalidField for what is out of range: nobody behind it checks again.
    """

    RANGES: ClassVar[Mapping[str, tuple[type, float, float]]] = {
        "max_tokens": (int, 0, 1 << 31),
        "temperature": (float, 0, 2),
        "top_p": (float, 0, 1),
        "top_k": (int, -1, 1 << 31),
        "seed": (int, -(1 << 63), (1 << 63) - 1),
        "frequency_penalty": (float, -2, 2),
        "presence_penalty": (float, -2, 2),
        "repetition_penalty": (float, 0.01, 10),
        "min_p": (float, 0, 1),
        "min_tokens": (int, 0, 1 << 31),
        "logprobs": (int, 0, 20),
    }
    MOST_BIASED: ClassVar[int] = 1024
    MOST_STOPS: ClassVar[int] = 4
    MOST_STOP_TOKENS: ClassVar[int] = 128
    MOST_STOP_CHARACTERS: ClassVar[int] = 200

    max_tokens: int | None = None
    """0: the prompt is read, nothing is written."""
    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    top_k: int | None = None
    """0 and -1 are all, as other servers have it."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    ignore_eos: bool = False
    """The model's own end tokens don't end it; `stop_token_ids` do."""
    min_p: float | None = None
    """Tokens less likely than this share of the likeliest are never drawn."""
    repetition_penalty: float | None = None
    """Above 1 makes what stands in prompt and answer less likely."""
    stop_token_ids: tuple[int, ...] = ()
    """They end the answer as an end token does, without a text."""
    min_tokens: int = 0
    """Nothing ends the answer before so many."""
    logprobs: int | None = None
    """Tell how likely each token was, and so many of the likeliest in its place; None tells nothing."""
    logprobs_field: str = "logprobs"
    """What the caller called that number."""
    echo: bool = False
    """The prompt stands before the answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, and what is added to their logits: -100 forbids one, 100 forces it."""
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        for name, limits in self.RANGES.items():
            if getattr(self, name) is not None:
                check_within(name, getattr(self, name), *limits)
        if not isinstance(self.ignore_eos, bool):
            raise InvalidField(f"'ignore_eos' is {self.ignore_eos!r:.50}; send true or false", "ignore_eos")
        if len(self.logit_bias) > self.MOST_BIASED:
            raise InvalidField(f"'logit_bias' names more than {self.MOST_BIASED:,} tokens; send fewer", "logit_bias")
        for token, bias in self.logit_bias:
            check_within("logit_bias", token, int, 0, (1 << 31) - 1)
            check_within("logit_bias", bias, float, -100, 100)
        ids, name = self.stop_token_ids, "stop_token_ids"
        if len(ids) > self.MOST_STOP_TOKENS or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise InvalidField(f"'{name}' must be a list of up to {self.MOST_STOP_TOKENS} token ids", name)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidField(f"'min_tokens' is {self.min_tokens}, and max_tokens {self.max_tokens}", "min_tokens")
        if len(self.stop) > self.MOST_STOPS or not all(isinstance(stop, str) for stop in self.stop):
            raise InvalidField(f"'stop' must be a string or up to {self.MOST_STOPS} strings", "stop")
        if any(not stop or len(stop) > self.MOST_STOP_CHARACTERS for stop in self.stop):
            raise InvalidField(f"each stop string must have 1 to {self.MOST_STOP_CHARACTERS} characters", "stop")


@dataclass(slots=True)
class TensorPayload:
    """Raw tensors, as the Open Inference Protocol sends them."""

    tensors: Tensors


@dataclass(frozen=True, slots=True)
class ImagePayload:
    """One encoded image (PNG, JPEG, WebP, GIF, BMP, TIFF)."""

    data: bytes
    top_k: int = 5


@dataclass(frozen=True, slots=True)
class AudioPayload:
    """One encoded recording (WAV, AIFF, FLAC, OGG, MP3, MP4, WebM, AAC)."""

    data: bytes
    language: str | None = None
    timestamps: bool = False
    """Whether the times of single words are asked for; those of segments come anyway where the model gives any."""
    top_k: int = 5
    """Of a model that tells classes of sound apart."""


@dataclass(frozen=True, slots=True)
class Calling:
    """How tools may be called: at least and at most so many times; of no tool but `only`, where one is named."""

    least: int = 0
    most: int | None = None
    only: str | None = None


@dataclass(frozen=True, slots=True)
class TextPayload:
    """What to continue: exactly one of a plain prompt, chat messages ({"role", "content"}) or token ids."""

    prompt: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    token_ids: tuple[int, ...] | None = None
    sampling: Sampling = Sampling()
    is_another: bool = False
    """Another answer to the prompt of the payload before it, which is metered for it."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """That the answer to messages may call, as OpenAI has them: {"type": "function", "function": {"name", "parameters", …}}."""
    calling: Calling = Calling()
    template: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the model's chat template."""


@dataclass(frozen=True, slots=True)
class ReadPayload:
    """A text that is read, not continued: words or token ids, alone or with a second one (query and document)."""

    text: str | tuple[int, ...]
    beside: str | None = None
    role: str | None = None
    """Which of the model's own prompts stands before it ("query"); None is its default, "" none."""
    top_k: int = 5
    cuts: bool = False
    """What is beyond the model's length is cut off, and told; else it is refused."""
    dimensions: int | None = None
    """So many numbers of a vector, where the model was trained for its beginning to stand for it."""


@dataclass(frozen=True, slots=True)
class SpellPayload:
    """What a model's tokenizer is asked, and no engine: of a text or a chat its tokens, of token ids their text."""

    text: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    token_ids: tuple[int, ...] | None = None
    is_framed: bool = True
    """The control tokens that the model is used to see around a text are added."""
    shows: bool = False
    """What each token is called is told too."""


Payload = TensorPayload | ImagePayload | AudioPayload | TextPayload | ReadPayload | SpellPayload


@dataclass(frozen=True, slots=True)
class Label:
    """One class and its probability (0-1)."""

    label: str
    label_id: int
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The top classes, best first."""

    labels: tuple[Label, ...]


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said; `segments` hold {"start", "end", "text"} in seconds where the model gives times.

    Where the engine tells more of a segment it holds that too: "words" [{"word", "start", "end"}] where they were asked for,
    "tokens", "seek" (frames of 10 ms), "temperature", "avg_logprob", "compression_ratio", "no_speech_prob".
    """

    text: str
    segments: tuple[Mapping[str, Any], ...] = ()
    language: str | None = None
    """ISO 639-1 ("en"), as asked for or as heard; None where the model tells none."""


class Vector(NamedTuple):
    """What a text means, as numbers: of its own length, or 1 where the model says so."""

    values: type_array
    """[D] float32."""
    cut: int = 0
    """Tokens that were cut off its end."""


class Relevance(NamedTuple):
    """How well a document answers a query, 0 to 1."""

    score: float
    cut: int = 0
    """Tokens that were cut off the document."""


class Span(NamedTuple):
    """A stretch of a text that a model found, or what it would put there."""

    text: str
    start: int
    """Where in the text that was read it begins, characters."""
    end: int
    score: float
    """0 to 1."""
    label: str | None = None
    number: int | None = None
    """Of the token, where it is one that would be put there."""


class Spans(NamedTuple):
    """Stretches of a text, in the task's own order."""

    spans: tuple[Span, ...]
    cut: int = 0
    """Tokens that were cut off the text."""


class Spelled(NamedTuple):
    """A text as tokens."""

    token_ids: tuple[int, ...]
    text: str | None = None
    """Where ids were asked about."""
    names: tuple[str, ...] = ()


class Scored(NamedTuple):
    """How likely a model found a token, before temperature, penalties and masks: natural logarithms."""

    token_id: int
    logprob: float | None
    """None: nothing stands before it."""
    likeliest: tuple[tuple[int, float], ...] = ()
    """The likeliest in its place, best first, as many as asked for."""


class Mark(NamedTuple):
    """One token of a text, and how likely the model found it: a natural logarithm, None of a prompt's first."""

    data: bytes
    """What it says; of a control token its name."""
    at: int
    """Where in the text it begins, characters."""
    logprob: float | None
    likeliest: tuple[tuple[bytes, float], ...] = ()
    """What would have been likeliest in its place, best first, as far as asked for."""
    is_control: bool = False
    """A control token, which has no text."""
    is_end: bool = False
    """The token that ended the text, and is not part of it."""

    def scored(self, score: Scored, spelled: Callable[[int], bytes]) -> Mark:
        """The same with how likely its token was."""
        return self._replace(logprob=score.logprob, likeliest=tuple((spelled(i), value) for i, value in score.likeliest))


class ToolCall(NamedTuple):
    """A call that an answer makes, whole."""

    number: int
    """Among the calls of its answer, from 0."""
    id: str
    name: str
    arguments: str
    """A JSON object."""


class TextPiece(NamedTuple):
    """The next stretch of a generated text. `finish_reason` ("stop", "length", "tool_calls") is set on the last one."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    marks: tuple[Mark, ...] = ()
    """Of its tokens, and of the prompt's where that is echoed, where they were asked for."""
    reasoning: str = ""
    """What stands apart from the text, before it."""
    reasoning_tokens: int | None = None
    """Of its tokens those that reason, with the words around that; None from models that have no such words."""
    calls: tuple[ToolCall, ...] = ()
    """Of the tools that the payload names."""


Answer = Tensors | Classification | Transcript | TextPiece | Vector | Relevance | Spans | Spelled


class Units(NamedTuple):
    """What is metered of one request. Unmeasured is None, never 0."""

    items: int = 1
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    audio_seconds: float | None = None
    cached_tokens: int | None = None
    """Of the prompt's, those that were computed for another before; None where nothing is shared."""


class Cost(NamedTuple):
    """What a piece of work took. A tuple: one is made for each request of a batch, and must cost little itself."""

    cpu_seconds: float
    """Of the engine."""
    joules: float | None
    """None is unmeasured."""
    method: str
    """How joules were found, or why they were not."""

    def part(self, share: float) -> Cost:
        """A share of it, 0 to 1."""
        return Cost(self.cpu_seconds * share, None if self.joules is None else self.joules * share, self.method)

    def plus(self, other: Cost) -> Cost:
        """Both. Joules of which a part is unknown are unknown."""
        is_known = self.joules is not None and other.joules is not None
        joules = self.joules + other.joules if is_known else None  # type: ignore[operator]  # neither is None then
        return Cost(self.cpu_seconds + other.cpu_seconds, joules, self.method)


def total_cost(costs: Iterable[Cost | None]) -> Cost | None:
    """The sum of those that are known; None where none is."""
    known = [cost for cost in costs if cost is not None]
    return reduce(Cost.plus, known) if known else None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `key_id` is None only where authentication is switched off."""

    key_id: str | None
    name: str
    scopes: frozenset[str]


ANONYMOUS = Caller(None, "anonymous", frozenset({"infer", "deploy", "admin"}))
"""Who asks when the service runs with --no-auth on loopback, and who the command line is."""


@dataclass(slots=True)  # not frozen, as little that each request has is: to make a frozen one takes four times as long
class Request:
    """One inference in flight."""

    id: str
    model: str
    """NAME, NAME:VERSION or NAME@ALIAS as the caller wrote it."""
    payloads: tuple[Payload, ...]
    """One, or several of one kind that are answered side by side."""
    caller: Caller
    endpoint: str = ""
    """The door's route, as the ledger has it."""
    deadline: float | None = None
    """Monotonic seconds after which the answer is worthless; None is never. On a wire: the seconds that are left."""


class Chunk(NamedTuple):
    """A piece of an answer as it comes; an answer that does not stream is one chunk with `is_last`."""

    value: Answer
    units: Units
    is_last: bool
    cost: Cost | None = None
    """What it took so far; on the last chunk, in all."""
    number: int = 0
    """Which of the request's payloads it answers."""


@dataclass(slots=True)
class Entry:
    """What a request was and cost; None is unmeasured. It fills while the request is answered, and is left alone once recorded.

    `seconds` is wall time, `compute_seconds` CPU of the engine; `model` as the caller wrote it where there is no such model.
    """

    request_id: str
    at: datetime
    key_id: str | None
    caller: str
    model: str
    endpoint: str
    status: int
    seconds: float
    version: int | None = None
    task: str | None = None
    items: int = 1
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    audio_seconds: float | None = None
    compute_seconds: float | None = None
    joules: float | None = None
    energy_method: str | None = None
    grams_co2e: float | None = None
    price: float | None = None
    currency: str | None = None
    error_code: str | None = None
    """Why it was refused, where it was."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a replica once it is open."""

    signature: Signature | None = None
    """None for sequence engines."""
    context_length: int | None = None
    task: str | None = None
    batching: Batching | None = None
    """Whether callers may be computed together; None where the engine has a way of its own."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """What it calls its classes, by their ids."""
    calls: str | None = None
    """How the model's chat template has tools called, by the format's name; None where it knows no tools."""
    reasons: bool = False
    """Whether it sets reasoning apart from its answers."""
    trouble: str | None = None
    """Why it can answer nothing now, though it is up: another server runs it. None: nothing stands in the way."""
    abilities: Mapping[str, Any] = field(default_factory=dict)
    """What another server that runs it says that it can, in the words of /v1/models."""
    likeliest_bytes: int | None = None
    """What it takes to tell the likeliest tokens, measured; None where nothing is there for that alone."""


class Admitted(NamedTuple):
    """A constraint that an engine can keep to."""

    grammar: str
    """In the engine's own words."""
    memory_bytes: int
    """That the engine will hold of it."""


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """What a sequence engine is given: prepared inputs ("input_ids" [1, T] int64; or "waveform" [1, S] float32)."""

    id: str
    inputs: Tensors
    sampling: Sampling = Sampling()
    deadline: float | None = None
    owner: str = ""
    """Whose it is: the key's id, "" where the service asks for none."""
    admitted: Admitted | None = None
    """What holds the answer to the sampling's constraint, where it has one."""


class Tokens(NamedTuple):
    """What a sequence engine gives as it comes. `text` only from engines that decode by themselves (Whisper)."""

    token_ids: tuple[int, ...]
    text: str | None = None
    finish_reason: str | None = None
    segments: tuple[Mapping[str, Any], ...] = ()
    cost: Cost | None = None
    """What the request took so far."""
    language: str | None = None
    """What is spoken, where the engine found out or was told."""
    scores: tuple[Scored, ...] = ()
    """Of `token_ids`, where they were asked for."""
    prompt_scores: tuple[Scored, ...] = ()
    """Of the whole prompt, once, where it is echoed with them."""
    end: Scored | None = None
    """Of the token that ended it, which is not among `token_ids`."""
    cached_tokens: int | None = None
    """See `Units`."""


class Meter(Protocol):
    """Tells what work took. Thread-safe."""

    def exclude_this_thread(self) -> None:
        """Say that the calling thread's CPU time is not an engine's."""
        ...

    def start(self) -> int:
        """Open a span."""
        ...

    def stop(self, span: int) -> Cost:
        """Close it; what was spent meanwhile, shared with other spans that were open."""
        ...


@runtime_checkable
class TensorEngine(Protocol):
    """Runs one batch of tensors. Thread-safe: several threads may call `run` at once."""

    signature: Signature

    def run(self, batch: Tensors) -> dict[str, type_array]:
        """Outputs by name, first axis the batch. Raises EngineFailure (ours) when the engine breaks."""
        ...

    def precisions(self) -> dict[str, int]:
        """How many operators run at each precision ("f32", "i8"), as far as the engine tells."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


@runtime_checkable
class SequenceEngine(Protocol):
    """Continuous batching of its own: text generation, Whisper."""

    context_length: int
    meter: Meter
    """In whose spans it computes: its own at first, the process's where several engines work side by side."""

    def start(self, request: SequenceRequest, hear: Callable[[Tokens | BaseException], None]) -> Callable[[], object]:
        """Begin. `hear` is told of tokens as they come, in the event loop that asks: the last say why they are the last; or
        of what went wrong. Then it hears no more; nor once what this gives was called, which cancels the generation.
        """
        ...

    def submit(self, request: SequenceRequest) -> AsyncGenerator[Tokens]:
        """Yield tokens as they come; closing the iterator cancels the generation."""
        ...

    def close(self) -> None:
        """Stop its thread and free what it holds; requests in flight end with EngineFailure."""
        ...


@runtime_checkable
class TryingEngine(Protocol):
    """An engine that puts requests together by itself, and has tried whether an answer depends on what is beside it."""

    batching: Batching
    """What it found; OF_ITS_ENGINE where there was nothing to try."""
    rounds: bool
    """Whether it rounds activations, having found so."""


@runtime_checkable
class TellingEngine(Protocol):
    """A sequence engine that can be opened with what tells the likeliest tokens."""

    @property
    def likeliest_bytes(self) -> int | None:
        """What that takes, measured; None where it is not there."""
        ...


@runtime_checkable
class HoldingEngine(Protocol):
    """A sequence engine that can hold its answers to a form."""

    def admit(self, constraint: Constraint) -> Future[Admitted]:
        """What `SequenceRequest.admitted` takes, once it is known that the engine can keep to it. Its errors: InvalidField,
        which names the caller's field, EngineFailure. Raises Overloaded.
        """
        ...


Engine = TensorEngine | SequenceEngine


@dataclass(frozen=True, slots=True)
class Example:
    """One evaluation example: a payload and what is right (label id, transcription, or None for text and tensors)."""

    name: str
    payload: Payload
    truth: Any = None


@dataclass(frozen=True, slots=True)
class Score:
    """A metric over examples."""

    metric: str
    value: float
    examples: int
    extra: Mapping[str, float] = field(default_factory=dict)
    shares: tuple[tuple[float, float], ...] = ()
    """(above, below) of each example: `value` is the sum of the first over the sum of the second. () where it is not."""


class Processor(Protocol):
    """Translates payloads of one task to and from tensors, with the model's own files."""

    task: str

    def prepare(self, payload: Payload) -> list[dict[str, type_array]]:
        """1 payload -> N inputs, each with batch 1. Raises InvalidPayload when the caller's bytes are no good."""
        ...

    def finish(self, outputs: Sequence[Tensors], payload: Payload) -> Answer:
        """N outputs (batch 1 each) -> 1 answer."""
        ...

    def units(self, payload: Payload, prepared: Sequence[Tensors]) -> Units:
        """What this payload is metered as (for text: prompt tokens)."""
        ...


class TextStream(Protocol):
    """Token ids to text pieces that never split a character; ends at a stop string."""

    is_stopped: bool
    taken: int
    """Of the tokens last fed, how many belong to the answer."""

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that is now certain."""
        ...

    def finish(self) -> str:
        """What was held back."""
        ...


@runtime_checkable
class ReadingProcessor(Processor, Protocol):
    """Of a task that reads texts of a bounded length."""

    longest: int | None
    """Tokens; None is any."""


@runtime_checkable
class SpellingProcessor(Processor, Protocol):
    """Of a task whose models have a tokenizer."""

    def spell(self, payload: SpellPayload) -> Spelled:
        """Tokens of a text, or the text of tokens. Raises InvalidPayload."""
        ...


@runtime_checkable
class WritingProcessor(Processor, Protocol):
    """Of a task that writes text by tokens."""

    def stream(
        self,
        stop: tuple[str, ...] = (),
        after: Sequence[int] = (),
        *,
        least: int = 0,
        marks_from: int | None = None,
        shows: Collection[str] | None = (),
    ) -> TextStream:
        """The text of tokens as they come, up to the first stop string that ends behind the first `least` of them. `after` are
        the prompt's. Where so many characters as `marks_from` are before it, it is a `MarkedStream`. Control tokens of `shows`
        have a text, all where that is None.
        """
        ...


@runtime_checkable
class TalkingProcessor(WritingProcessor, Protocol):
    """Of a task that answers messages by a chat template."""

    calls: str | None
    reasons: bool
    """See `Facts`."""

    def dialect(self, payload: TextPayload) -> str | None:
        """The format in which the answer to it calls tools; None where it has none. Raises InvalidField where none can be."""
        ...

    def thinking(self, prompt: Sequence[int]) -> tuple[str, str, bool] | None:
        """What stands around reasoning in the answer to a prompt of these tokens, and whether the prompt has begun it; None:
        no reasoning comes.
        """
        ...


class MarkedStream(TextStream, Protocol):
    """A text stream that says where in the text each token is."""

    def marked(self, tokens: Tokens, text: str, is_last: bool) -> tuple[Mark, ...]:
        """The marks of what `text`, the tokens' last fed, makes certain."""
        ...


class Echo(NamedTuple):
    """A prompt as it stands before its answer, its tokens in it, and how any token is spelled."""

    text: str
    marks: tuple[Mark, ...]
    """Without log-probabilities."""
    spelled: Callable[[int], bytes]


@runtime_checkable
class EchoingProcessor(Processor, Protocol):
    """A processor that can put the prompt before its answer."""

    def echo(self, payload: Payload, ids: Sequence[int]) -> Echo:
        """Of a payload, and the tokens that it was prepared to."""
        ...


class Progress(Protocol):
    """How long work tells where it is."""

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None:
        """`stage` is a short phrase ("calibrate"); `done` of `total` steps; total None is unknown."""
        ...


def silent(stage: str, done: int = 0, total: int | None = None) -> None:
    """A Progress that says nothing."""


def with_words(value: Any) -> Any:
    """JSON has no number that is not finite: in lists of lists those become strings, in the words of Protocol Buffers' JSON."""
    if isinstance(value, list):
        return [with_words(item) for item in value]
    if isinstance(value, Real) and not isinstance(value, int) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if float(value) > 0 else "-Infinity"
    return value


NOT_IN_NAMES = ("config", "generate", "generate_stream", "infer", "load", "ready", "stats", "trace", "unload", "versions")
"""What may not stand behind the slash of a name such as acme/photos: the protocols' paths go on with these."""


LONGEST_KEPT = 256
"""Of names that are kept, characters: callers write what they like for one."""


def split_name(text: str) -> tuple[str, int | None, str | None]:
    """NAME, NAME:3 or NAME@prod -> (name, version, alias)."""
    return _split(text) if len(text) <= LONGEST_KEPT else _split.__wrapped__(text)


@lru_cache(maxsize=1024)
def _split(text: str) -> tuple[str, int | None, str | None]:
    name, _, alias = text.partition("@")
    if alias:
        return name, None, alias
    name, _, version = text.rpartition(":")
    if name and version.isascii() and version.isdigit() and len(version) < 10:  # what a database's integer holds
        return name, int(version), None
    return text, None, None
