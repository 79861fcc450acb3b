"""What an inference request of the Open Inference Protocol means, however it was written: in JSON, in bytes, in protobuf.

Knows names, datatypes, parameters and payloads. Refuses to know a wire: `oip_json` and `oip_proto` read and write one each.

    wire -> codec -> OipCall -> Request -> operations.infer -> chunks -> OipReply -> codec -> wire
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.api import json_body
from maasdam.api.fields import check_known, check_neutral
from maasdam.api.oip_tensors import TO_NUMPY, Wanted
from maasdam.api.sampling import MOST_PROMPTS, NAMES, sampling_from
from maasdam.core import Caller, Chunk, Entry, Facts, Payload, Request, TensorPayload, TextPayload
from maasdam.errors import InvalidField, InvalidInput, InvalidTensor, ModelNotFound, Unsupported
from maasdam.tasks import TASKS, carried_by

if TYPE_CHECKING:
    from maasdam.core import type_array

REQUEST_PARAMETERS = ("timeout",)
STATELESS = ("sequence_id", "sequence_start", "sequence_end")
NEUTRAL: Mapping[str, tuple[Any, ...]] = {"priority": (0,)}
OF_TEXT = ("stream", "exclude_input_in_output")
"""Parameters of a text beside those that `sampling_from` reads."""
NEUTRAL_OF_TEXT: Mapping[str, tuple[Any, ...]] = {"best_of": (0, 1), "exclude_input_in_output": (True,)}
ASIDE = frozenset({*OF_TEXT, "sampling_parameters"})
"""Inputs that Triton's clients of vLLM send beside a text: each is a parameter, the last one an object of them in JSON."""
SHARED_MEMORY = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
"""Said to be of another place where they are used; without a region they mean nothing."""
CARRIED = {task.oip.input: task for task in reversed(TASKS.values()) if task.oip is not None}
"""Tasks by the BYTES input that carries them. Those that share one take the same payload."""
MOST_CLASSES = 100_000
"""Of one output, that are written as text."""
MOST_DEPTH, MOST_ASIDE_BYTES = 8, 64 * 1024
"""Of sampling parameters in JSON."""


@dataclass(slots=True)
class OipCall:
    """One inference request, read."""

    model: str
    """NAME or NAME:VERSION."""
    id: str | None
    outputs: Sequence[Wanted]
    """Those asked for; none is all."""
    parameters: Mapping[str, Any]
    payloads: tuple[Payload, ...]
    """What the inputs are: tensors, or what one of BYTES carries."""
    shape: tuple[int, ...]
    """Of the BYTES input, where the payloads came from one."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """What the model that answers calls its classes: known once `check` was called."""

    @property
    def is_text(self) -> bool:
        """Whether it may be answered in pieces: one text, unless its sender wants it whole."""
        is_one = len(self.payloads) == 1 and isinstance(self.payloads[0], TextPayload)
        return is_one and self.parameters.get("stream") is not False

    @property
    def wants_classes(self) -> bool:
        """Whether `reply` has work to do that belongs in a thread."""
        return bool(self.outputs) and any(wanted.parameters.get("classification") for wanted in self.outputs)

    def request(self, request_id: str, caller: Caller, endpoint: str, seconds: float) -> Request:
        """What inference is asked, to be answered within so many seconds, or what the parameter `timeout` says."""
        limit = self.parameters.get("timeout")
        if limit is not None:
            if isinstance(limit, bool) or not isinstance(limit, int) or limit <= 0:
                raise InvalidInput(f"parameter 'timeout' is {limit!r}; send microseconds, a whole number above 0")
            seconds = min(seconds * 1e6, limit) / 1e6  # `limit` may be beyond any float
        return Request(request_id, self.model, self.payloads, caller, endpoint, time.monotonic() + seconds)

    def check(self, facts: Facts) -> None:
        """Refuse an output that does not exist before the model runs for nothing. Raises InvalidTensor."""
        if not self.outputs:
            return
        self.labels = facts.labels
        carried = carried_by(facts.task)
        if not isinstance(self.payloads[0], TensorPayload):
            have = [output for output, _ in carried.outputs] if carried else None
        else:
            have = [spec.name for spec in facts.signature.outputs] if facts.signature else None
        if have is None:
            return  # inference says that the model takes something else
        for wanted in self.outputs:
            if wanted.name not in have:
                raise InvalidTensor(f"no output '{wanted.name}'; this model gives: {', '.join(have)}")

    def reply(self, chunks: Sequence[Chunk], entry: Entry) -> OipReply:
        """The outputs asked for, of one chunk a payload, in the order they were asked for in."""
        outputs = self._outputs(chunks, entry.task)
        if self.outputs:
            outputs = {wanted.name: self._wanted(wanted, outputs[wanted.name]) for wanted in self.outputs}
        return OipReply(entry.model, str(entry.version), self.id, outputs)

    def _wanted(self, wanted: Wanted, array: type_array) -> type_array:
        most = wanted.parameters.get("classification")
        return classes(wanted.name, array, most, self.labels) if most else array

    def _outputs(self, chunks: Sequence[Chunk], task: str | None) -> Mapping[str, type_array]:
        carried = carried_by(task)
        if isinstance(self.payloads[0], TensorPayload) or carried is None:
            return chunks[0].value  # type: ignore[return-value]  # a TensorPayload is answered with tensors
        columns = zip(*(carried.values(chunk.value) for chunk in chunks), strict=True)
        return {
            name: np.array(column, TO_NUMPY.get(datatype, "object")).reshape(self.shape)
            for (name, datatype), column in zip(carried.outputs, columns, strict=True)
        }


@dataclass(slots=True)
class OipReply:
    """One answer, to be written."""

    model: str
    version: str
    id: str | None
    outputs: Mapping[str, type_array]

    @property
    def nbytes(self) -> int:
        """How large it is, about."""
        return sum([array.nbytes for array in self.outputs.values()])


def check_stateless(parameters: Mapping[str, Any]) -> None:
    """Raise Unsupported where a request says that it is one of a sequence."""
    for name in STATELESS:
        if parameters.get(name):
            raise Unsupported(f"parameter '{name}': this service keeps no state between requests")


def check_input_parameters(parameters: Mapping[str, Any], i: int, of_wire: tuple[str, ...] = ()) -> None:
    """Refuse what nobody reads of the parameters of input `i`. `of_wire`: those that the codec reads."""
    if parameters:
        check_known(parameters, (*of_wire, *SHARED_MEMORY), "parameter", f"inputs[{i}]")


def call_of(
    model: str,
    inputs: Mapping[str, type_array],
    outputs: Sequence[Wanted],
    parameters: Mapping[str, Any],
    call_id: str | None,
    *,
    of_wire: tuple[str, ...] = (),
    of_output: tuple[str, ...] = (),
    is_base64: bool = False,
    may_stream: bool = False,
) -> OipCall:
    """A request's meaning. Raises InvalidInput and Unsupported, naming what is wrong.

    `may_stream`: an answer may come in pieces; `of_wire` and `of_output` are parameters of the request and of its outputs that
    the codec reads by itself, true or false; `is_base64`: a file in a BYTES input is text.
    """
    if len(inputs) > 1 and "text_input" in inputs and inputs.keys() <= ASIDE | {"text_input"}:
        text = inputs["text_input"]
        if text.dtype == object:
            inputs, parameters = {"text_input": text}, {**parameters, **_aside(inputs)}
    name = next(iter(inputs))
    array = inputs[name]
    payloads: tuple[Payload, ...] = (TensorPayload(inputs),)
    shape: tuple[int, ...] = ()
    known: tuple[str, ...] = ()
    if len(inputs) == 1 and name in CARRIED and array.dtype == object:
        payloads, shape = _carried(name, array, parameters, is_base64), array.shape
        if isinstance(payloads[0], TextPayload):
            known = (*NAMES, *OF_TEXT, *NEUTRAL_OF_TEXT)
            _check_text(parameters, may_stream)
    if parameters:
        check_known(parameters, dict.fromkeys((*REQUEST_PARAMETERS, *of_wire, *known, *STATELESS, *NEUTRAL)), "parameter")
        check_neutral(parameters, NEUTRAL)
        _check_truths(parameters, of_wire)
    for i, wanted in enumerate(outputs):
        if wanted.parameters:
            _check_wanted(wanted.parameters, i, of_output)
    return OipCall(model, call_id, outputs, parameters, payloads, shape)


def name_of(model: str, version: str | None) -> str:
    """NAME or NAME:VERSION. Raises NotFound for a version that is no number."""
    if not version:
        return model
    if not (version.isascii() and version.isdigit() and len(version) < 10):
        raise ModelNotFound(f"model '{model}' has no version '{version[:50]}'; versions are numbers")
    return f"{model}:{version}"


def _check_wanted(parameters: Mapping[str, Any], i: int, of_output: tuple[str, ...]) -> None:
    check_known(parameters, (*of_output, "classification", *SHARED_MEMORY), "parameter", f"outputs[{i}]")
    _check_truths(parameters, of_output)
    most = parameters.get("classification")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
        raise InvalidField(f"parameter 'classification' is {most!r:.40}; send how many classes are wanted", "classification")
    if "shared_memory_region" in parameters:
        raise Unsupported("shared memory is not read here; ask for JSON or binary data")


def _check_truths(parameters: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if not isinstance(parameters.get(name, False), bool | None):
            raise InvalidField(f"parameter '{name}' is {parameters[name]!r:.40}; send true or false", name)


def classes(name: str, array: type_array, most: int, labels: Mapping[int, str]) -> type_array:
    """The `most` highest of each row's numbers as Triton's classification extension writes them: "NUMBER:INDEX[:LABEL]".

    `array` [rows, ...] -> BYTES [rows, most]; one of no or one axis -> [most]. Raises InvalidTensor for what is no number.
    """
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise InvalidTensor(f"output '{name}' is no number: it has no classes; ask for it without 'classification'")
    rows = array.reshape(array.shape[0] if array.ndim > 1 else 1, -1).astype(np.float64)
    if rows.shape[0] * min(most, rows.shape[1]) > MOST_CLASSES:
        raise InvalidTensor(f"output '{name}' has {rows.shape[0]} rows: at most {MOST_CLASSES} classes are written at once")
    best = np.argsort(-rows, axis=1, kind="stable")[:, :most]
    out = np.empty(best.shape, object)
    for place, index in np.ndenumerate(best):
        label = f":{labels[int(index)]}" if int(index) in labels else ""
        out[place] = f"{rows[place[0], index]:f}:{index}{label}".encode()
    return out if array.ndim > 1 else out[0]


def _aside(inputs: Mapping[str, type_array]) -> dict[str, Any]:
    """The inputs beside a text, as the parameters that they are."""
    found: dict[str, Any] = {}
    for name, array in inputs.items():
        if name == "text_input":
            continue
        if array.size != 1 or array.dtype.kind != ("O" if name == "sampling_parameters" else "b"):
            wants = "one object in JSON, as BYTES" if name == "sampling_parameters" else "one BOOL"
            raise InvalidTensor(f"input '{name}' beside a text is {wants}")
        if name != "sampling_parameters":
            found[name] = bool(array.ravel()[0])
            continue
        text: bytes = array.ravel()[0]
        if len(text) > MOST_ASIDE_BYTES:
            raise InvalidTensor(f"input '{name}' has {len(text)} bytes; send at most {MOST_ASIDE_BYTES}")
        try:
            json_body.check_json_depth(text, MOST_DEPTH)
            given = json_body.loads(text)
        except ValueError as error:
            raise InvalidTensor(f"input '{name}' is not valid JSON: {error}") from None
        if not isinstance(given, dict):
            raise InvalidTensor(f"input '{name}' is no object in JSON; send one of sampling parameters")
        found |= given
    return found


def _check_text(parameters: Mapping[str, Any], may_stream: bool) -> None:
    _check_truths(parameters, OF_TEXT)
    check_neutral(parameters, NEUTRAL_OF_TEXT)
    if parameters.get("stream") and not may_stream:
        raise Unsupported("parameter 'stream': one answer comes here; use .../generate_stream, or ModelStreamInfer over gRPC")


def _carried(name: str, array: type_array, parameters: Mapping[str, Any], is_base64: bool) -> tuple[Payload, ...]:
    if not 1 <= array.size <= MOST_PROMPTS:
        raise InvalidTensor(f"input '{name}' has {array.size} elements; send 1 to {MOST_PROMPTS}")
    elements: list[bytes] = list(array.ravel())
    if CARRIED[name].of_file is not None:
        if is_base64:
            elements = [_from_base64(element, name) for element in elements]
        return tuple(CARRIED[name].payload(element) for element in elements)
    sampling = sampling_from(parameters)
    try:
        texts = [element.decode() for element in elements]
    except UnicodeDecodeError:
        raise InvalidTensor(f"input '{name}' is not UTF-8; send text") from None
    return tuple(TextPayload(prompt=text, sampling=sampling) for text in texts)


def _from_base64(element: bytes, name: str) -> bytes:
    try:
        return json_body.from_base64(element)
    except ValueError:
        raise InvalidTensor(f"input '{name}' in JSON must be base64; or send it as binary data") from None
