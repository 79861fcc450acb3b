"""What a service and its engine hosts say to each other: typed messages in msgpack. Knows nouns; never sockets or engines.

The bytes of a message's tensors are its memory: the tail of its packet, from `base` on, or what is passed beside that, the
descriptor `memory`. Whoever reads trusts nothing: what does not fit its type, or promises more bytes than there are, raises
Garbled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import numpy as np
from msgspec import Meta, Struct

from maasdam import errors
from maasdam.core import (
    Answer,
    AudioPayload,
    Boxes,
    Checked,
    Chunk,
    Classification,
    Cost,
    CustomAnswer,
    CustomPayload,
    Facts,
    ImagePayload,
    Mark,
    Payload,
    ReadPayload,
    Relevance,
    Spans,
    Spelled,
    SpellPayload,
    TensorPayload,
    Tensors,
    TextPayload,
    TextPiece,
    ToolCall,
    Transcript,
    Units,
    Vector,
)
from maasdam.errors import EngineFailure, MaasdamError, remade, words
from maasdam.serving.executions import Executions

TAIL_BYTES = 64 * 1024
"""Of all tensors of one message: so much is copied sooner than memory is made and passed."""
ALIGNED = 64
"""Where a tensor begins in memory, bytes."""
LONGEST_TEXT = 4096
"""What is kept of an error's message."""
BFLOAT16 = "bfloat16"
_NUMPY = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = {name: np.dtype(name) for name in (*_NUMPY, "float16", "float32", "float64", "complex64", "complex128")}

Buffer: TypeAlias = bytes | bytearray | memoryview
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_EMPTY = memoryview(b"")
Count: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 53)]
Amount: TypeAlias = Annotated[float, Meta(ge=0, lt=1e12)]
Text: TypeAlias = Annotated[str, Meta(max_length=LONGEST_TEXT)]


class Garbled(Exception):
    """What came is not what it should be: the other side is broken, or lies."""


class Memory(Protocol):
    """Of a message, to be read from."""

    def array(self, at: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """A tensor at an offset in bytes. Raises Garbled, ValueError."""
        ...

    def bytes(self, at: int, size: int) -> bytes:
        """So many bytes. Raises Garbled."""
        ...


class Array(Struct, array_like=True):
    """One tensor."""

    name: str
    dtype: str
    shape: tuple[Count, ...]
    at: Count = 0
    """Where its bytes begin in the message's memory."""
    items: list[Any] | None = None
    """Of dtype object: bytes and texts."""


class ArrayList(Struct, array_like=True, tag="t"):
    """Tensors; as a payload, whether they fit the signature already."""

    arrays: list[Array]
    is_checked: bool = False


class Image(Struct, array_like=True, tag="i"):
    """A payload; its data is in the message's memory."""

    at: int
    size: int
    top_k: int | None
    labels: tuple[str, ...] | None = None
    template: str | None = None
    threshold: float | None = None


class Audio(Struct, array_like=True, tag="a"):
    """Likewise."""

    at: int
    size: int
    rest: AudioPayload
    """Without its data."""


class Prompt(Struct, array_like=True, tag="p"):
    """A payload."""

    payload: TextPayload


class Passage(Struct, array_like=True, tag="r"):
    """A payload."""

    payload: ReadPayload


class TokenQuestion(Struct, array_like=True, tag="q"):
    """A payload."""

    payload: SpellPayload


class TokenNames(Struct, array_like=True, tag="n"):
    """An answer."""

    value: Spelled


class Numbers(Struct, array_like=True, tag="v"):
    """An answer; its numbers are in the message's memory."""

    values: Array
    cut: Count


class Graded(Struct, array_like=True, tag="s"):
    """An answer."""

    value: Relevance


class Stretches(Struct, array_like=True, tag="f"):
    """An answer."""

    value: Spans


class OwnInput(Struct, array_like=True, tag="o"):
    """A payload; its data is in the message's memory."""

    at: int
    size: int
    is_file: bool


class OwnAnswer(Struct, array_like=True, tag="j"):
    """An answer."""

    value: CustomAnswer


class Labels(Struct, array_like=True, tag="l"):
    """An answer."""

    value: Classification


class BoxesFound(Struct, array_like=True, tag="b"):
    """An answer."""

    value: Boxes


class HeardSpeech(Struct, array_like=True, tag="h"):
    """An answer."""

    value: Transcript


class Written(Struct, array_like=True, tag="w"):
    """An answer, or a piece of one."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    marks: tuple[Mark, ...] = ()
    reasoning: str = ""
    reasoning_tokens: Count | None = None
    calls: tuple[ToolCall, ...] = ()


class Taken(Struct, array_like=True):
    """A cost."""

    cpu_seconds: Amount
    joules: Amount | None
    method: Text


class AnswerPart(Struct, array_like=True):
    """A chunk."""

    value: ArrayList | Labels | BoxesFound | HeardSpeech | Written | Numbers | Graded | Stretches | TokenNames | OwnAnswer
    items: Count
    prompt_tokens: Count | None
    completion_tokens: Count | None
    audio_seconds: Amount | None
    is_last: bool
    cost: Taken | None
    cached_tokens: Count | None = None


class Wrong(Struct, array_like=True):
    """An error, by the name of its class."""

    name: str
    message: Text
    param: str | None = None
    code: str | None = None


PayloadSaid: TypeAlias = ArrayList | Image | Audio | Prompt | Passage | TokenQuestion | OwnInput


class Ask(Struct, array_like=True, tag="ask"):
    """A request. `seconds` are left until its deadline; `in_pieces`: each is told as it comes."""

    number: int
    id: str
    seconds: float | None
    in_pieces: bool
    payloads: list[PayloadSaid]
    memory: int = -1
    base: int = 0
    owner: str = ""
    """The id of the caller's key; "" where the service asks for none."""


class Stop(Struct, array_like=True, tag="stop"):
    """Nobody waits for an answer any more."""

    number: int


class Spilled(Struct, array_like=True, tag="spilled"):
    """A message too long for a packet: it is in passed memory."""

    memory: int


class Ready(Struct, array_like=True, tag="ready"):
    """The host has loaded its model."""

    facts: Facts
    counts: bool
    """Whether it tells of executions."""
    seconds: dict[Text, Amount] = {}
    """What loading took, by phase."""


class Unable(Struct, array_like=True, tag="unable"):
    """It could not."""

    why: Wrong


class WholeAnswer(Struct, array_like=True, tag="whole"):
    """An answer, one part a payload."""

    number: int
    parts: list[AnswerPart]
    memory: int = -1
    base: int = 0


class AnswerPiece(Struct, array_like=True, tag="piece"):
    """A piece of an answer."""

    number: int
    part: AnswerPart
    memory: int = -1
    base: int = 0


class Failed(Struct, array_like=True, tag="failed"):
    """There is no answer."""

    number: int
    why: Wrong


class HasRun(Struct, array_like=True, tag="ran"):
    """How many wait now, and what the engine has run since this was told last."""

    waiting: Count
    items: Count
    rows: Count
    batches: Count
    seconds: Amount
    waited: Amount
    last: Amount
    by_rows: dict[Count, tuple[Count, Amount]]

    def executions(self) -> Executions:
        """The same as executions."""
        return Executions(self.items, self.rows, self.batches, self.seconds, self.waited, self.last, dict(self.by_rows))


class Holds(Struct, array_like=True, tag="holds"):
    """What the host's process holds, as measured."""

    memory_bytes: Count


class Goodbye(Struct, array_like=True, tag="bye"):
    """The host leaves; what was asked before this is read is answered still."""

    reason: Text


ToHost = Ask | Stop | Spilled
FromHost = Ready | Unable | WholeAnswer | AnswerPiece | Failed | HasRun | Holds | Goodbye | Spilled
Given = tuple[list[Array], list[Buffer], int]
"""Tensors as they travel: what is said of them, their bytes, and where those end."""


def given(tensors: Tensors, before: Sequence[Buffer] = (), at: int = 0) -> Given:
    """`before`: what is in the memory already, up to the offset `at`. Raises EngineFailure for what can't travel."""
    out: list[Array] = []
    body = list(before)
    for name, array in tensors.items():
        kind, shape, data = _bytes_of(name, array)
        if data is None:
            out.append(Array(name, kind, shape, items=array.ravel().tolist()))
            continue
        gap = -at % ALIGNED
        if gap:
            body.append(bytes(gap))
        body.append(data)
        out.append(Array(name, kind, shape, at + gap))
        at += gap + data.nbytes
    return out, body, at


def _bytes_of(name: str, array: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...], memoryview | None]:
    """The dtype's name, the shape and the bytes of a tensor; None for objects. Raises EngineFailure for what can't travel."""
    shape = array.shape
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    kind = _NAMES.get(array.dtype)
    if kind is None:
        kind = array.dtype.name
        if kind == "object":
            return kind, shape, None
        if kind != BFLOAT16:
            raise EngineFailure(f"tensor '{name}' is of dtype {kind}, which can't be passed to another process")
        array = array.view(np.uint16)
    return kind, shape, array.data if array.size else _EMPTY


def tensors_of(arrays: Sequence[Array], memory: Memory) -> dict[str, np.ndarray[Any, Any]]:
    """The inverse of `given`. Raises Garbled."""
    out: dict[str, np.ndarray[Any, Any]] = {}
    for array in arrays:
        out[array.name] = _tensor(array, memory)
    if len(out) != len(arrays):
        raise Garbled("two tensors have one name")
    return out


def _tensor(array: Array, memory: Memory) -> np.ndarray[Any, Any]:
    if array.dtype == "object":
        items = array.items or []
        if len(items) != math.prod(array.shape) or not all(isinstance(item, bytes | str) for item in items):
            raise Garbled(f"tensor '{array.name:.50}' does not hold what its shape says")
        made = np.empty(len(items), object)
        made[:] = items
        return made.reshape(array.shape)
    is_bfloat = array.dtype == BFLOAT16
    dtype = DTYPES["uint16"] if is_bfloat else DTYPES.get(array.dtype)
    if dtype is None:
        raise Garbled(f"tensor '{array.name:.50}' is of no dtype that there is")
    try:
        made = memory.array(array.at, array.shape, dtype)
    except ValueError as error:
        raise Garbled(f"tensor '{array.name:.50}' does not hold what its shape says: {error}") from error
    if is_bfloat:
        import ml_dtypes

        return made.view(ml_dtypes.bfloat16)
    return made


def payload_given(payload: Payload, is_checked: bool, before: Sequence[Buffer], at: int) -> tuple[Any, list[Buffer], int]:
    """A payload as it travels, the memory with it, and where that ends."""
    if isinstance(payload, TensorPayload):
        arrays, body, at = given(payload.tensors, before, at)
        return ArrayList(arrays, is_checked), body, at
    if isinstance(payload, TextPayload):
        return Prompt(payload), list(before), at
    if isinstance(payload, ReadPayload):
        return Passage(payload), list(before), at
    if isinstance(payload, SpellPayload):
        return TokenQuestion(payload), list(before), at
    size = len(payload.data)
    if isinstance(payload, ImagePayload):
        said: Any = Image(at, size, payload.top_k, payload.labels, payload.template, payload.threshold)
    elif isinstance(payload, CustomPayload):
        said = OwnInput(at, size, payload.is_file)
    else:
        said = Audio(at, size, replace(payload, data=b""))
    return said, [*before, payload.data], at + size


def payload_of(said: PayloadSaid, memory: Memory) -> Payload:
    """The inverse. Raises Garbled."""
    if isinstance(said, ArrayList):
        tensors = tensors_of(said.arrays, memory)
        return TensorPayload(Checked(tensors) if said.is_checked else tensors)
    if isinstance(said, Prompt | Passage | TokenQuestion):
        return said.payload
    data = memory.bytes(said.at, said.size)
    if isinstance(said, Image):
        return ImagePayload(data, said.top_k, said.labels, said.template, said.threshold)
    if isinstance(said, OwnInput):
        return CustomPayload(data, said.is_file)
    return replace(said.rest, data=data)


def part_given(chunk: Chunk, before: Sequence[Buffer] = (), at: int = 0) -> tuple[AnswerPart, list[Buffer], int]:
    """A chunk as it travels, the memory with it, and where that ends."""
    value, body = chunk.value, list(before)
    said: ArrayList | Labels | BoxesFound | HeardSpeech | Written | Numbers | Graded | Stretches | TokenNames | OwnAnswer
    if isinstance(value, TextPiece):
        said = Written(*value)  # type: ignore[arg-type]  # its reason is one of these words
    elif isinstance(value, Classification):
        said = Labels(value)
    elif isinstance(value, Boxes):
        said = BoxesFound(value)
    elif isinstance(value, Transcript):
        said = HeardSpeech(value)
    elif isinstance(value, CustomAnswer):
        said = OwnAnswer(value)
    elif isinstance(value, Relevance):
        said = Graded(value)
    elif isinstance(value, Spelled):
        said = TokenNames(value)
    elif isinstance(value, Spans):
        said = Stretches(value)
    elif isinstance(value, Vector):
        (numbers,), body, at = given({"": value.values}, before, at)
        said = Numbers(numbers, value.cut)
    else:
        arrays, body, at = given(value, before, at)
        said = ArrayList(arrays)
    cost = chunk.cost
    taken = None if cost is None else Taken(*cost)
    return AnswerPart(said, *chunk.units[:4], chunk.is_last, taken, chunk.units.cached_tokens), body, at


def chunk_of(part: AnswerPart, memory: Memory) -> Chunk:
    """The inverse. Raises Garbled."""
    said = part.value
    value: Answer
    if isinstance(said, Written):
        value = TextPiece(*(getattr(said, name) for name in said.__struct_fields__))
    elif isinstance(said, ArrayList):
        value = tensors_of(said.arrays, memory)
    elif isinstance(said, Numbers):
        value = Vector(_tensor(said.values, memory), said.cut)
    else:
        value = said.value
    taken = part.cost
    units = Units(part.items, part.prompt_tokens, part.completion_tokens, part.audio_seconds, part.cached_tokens)
    cost = None if taken is None else Cost(taken.cpu_seconds, taken.joules, taken.method)
    return Chunk(value, units, part.is_last, cost)


def wrong(error: BaseException) -> Wrong:
    """An error as it travels."""
    own: Mapping[str, Any] = vars(error)
    if isinstance(error, MaasdamError):
        return Wrong(type(error).__name__, words(error)[:LONGEST_TEXT], own.get("param"), own.get("code"))
    return Wrong(EngineFailure.__name__, f"{type(error).__name__}: {words(error)}"[:LONGEST_TEXT])


def error_of(said: Wrong) -> MaasdamError:
    """The inverse; EngineFailure for a name that is no error's of ours."""
    kind = getattr(errors, said.name, None)
    if not isinstance(kind, type) or not issubclass(kind, MaasdamError):
        return EngineFailure(f"the engine failed: {said.message}")
    own = {"param": said.param, "code": said.code}
    return remade(kind, said.message, {name: value for name, value in own.items() if value is not None and value.isprintable()})
