"""Examples as tensors: for calibration without labels, and checks that data sets don't overlap.

Knows folders and how many bytes may be kept. Refuses to know labels of calibration data: it reads the files alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np

from maasdam.core import (
    Artifact,
    AudioPayload,
    Example,
    ImagePayload,
    Payload,
    Progress,
    ReadPayload,
    Signature,
    TensorEngine,
    TensorPayload,
    Tensors,
    TextPayload,
    silent,
)
from maasdam.errors import EngineFailure, InvalidInput
from maasdam.tasks import load_examples, open_processor, some, task_of
from maasdam.tasks.files import labels_of

if TYPE_CHECKING:
    from maasdam.core import type_array

KEPT_BYTES = 1 << 30
"""How many bytes of prepared tensors are held at once."""

HELD_OUT = 4
"""Without --data the verdict rests on every fourth example of --calibrate, and ranges on the others."""
LEAST_TO_SPLIT = 16
MOST_HELD_OUT = 64
Part = Literal["all", "held out", "rest"]
MAX_REAL_INPUTS = 32
"""How many examples a conversion is proven on, beside random inputs."""
MAX_TEXT_CHARACTERS = 1000

Inputs = dict[str, "type_array"]
T = TypeVar("T")


def evaluation_examples(artifact: Artifact, path: Path, limit: int | None = None) -> list[Example]:
    """The labelled examples of --data for this model. Raises InvalidInput: empty, another kind, labels the model has not."""
    if not path.exists():
        raise InvalidInput(f"no data at {path}; --data takes a folder or file of examples")
    return load_examples(artifact.task, path, labels=labels_of(artifact.path), limit=limit, signature=artifact.signature)


def held_out_examples(artifact: Artifact, path: Path, train: Sequence[Example] = ()) -> tuple[list[Example], str]:
    """Unlabelled examples of --calibrate to judge by where there is no --data, and what the report says of them.

    Those that are trained on are left out.
    """
    every = unlabelled_payloads(artifact.task, path, MOST_HELD_OUT, signature=artifact.signature, part="held out")
    rest = unlabelled_payloads(artifact.task, path, 1, signature=artifact.signature, part="rest")
    is_apart = rest[0][0] not in {name for name, _ in every}
    says = f"no --data was given: judged on {len(every)} examples of --calibrate, "
    says += "which nothing was calibrated on" if is_apart else "the same that ranges are taken from: they are few"
    known = {payload_digest(e.payload) for e in train}
    examples = [Example(name, payload) for name, payload in every if payload_digest(payload) not in known]
    if len(examples) < len(every):
        says += f"; {len(every) - len(examples)} of them are in --train and were left out"
    return examples, says


def unlabelled_payloads(
    task: str | None, path: Path, limit: int, seed: int = 0, signature: Signature | None = None, part: Part = "all"
) -> list[tuple[str, Payload]]:
    """Up to `limit` payloads with their names, chosen by `seed`, in a stable order. Labels are never read.

    `signature` tells which raw tensors have no batch. Of few payloads there are no parts: each is all of them.

    Raises InvalidInput where the folder holds nothing of the task's kind.
    """
    record = task_of(task)
    if not record.suffixes:
        found = [(e.name, e.payload) for e in load_examples(task, path, signature=signature)]
        return some(_part_of(found, part), limit, seed)
    if not path.is_dir():
        raise InvalidInput(f"no folder of examples at {path}")
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in record.suffixes and p.is_file())
    if not files:
        kinds = ", ".join(sorted(s[1:] for s in record.suffixes))
        raise InvalidInput(f"{path} holds no file for task '{task}'; it takes: {kinds}")
    return [(str(f.relative_to(path)), record.payload(f.read_bytes())) for f in some(_part_of(files, part), limit, seed)]


def _part_of(found: list[T], part: Part) -> list[T]:
    if part == "all" or len(found) < LEAST_TO_SPLIT:
        return found
    return [one for i, one in enumerate(found) if (i % HELD_OUT == HELD_OUT - 1) == (part == "held out")]


def calibration_inputs(
    source: Artifact, path: Path, limit: int, seed: int = 0, *, gives_ranges: bool = True, part: Part = "all"
) -> list[Inputs]:
    """Up to `limit` prepared inputs (batch 1) for the tensor engine of `source`, `KEPT_BYTES` at most.

    Raises InvalidInput naming the file where one can't be prepared or, where ranges are taken from them, holds NaN or infinity,
    which would ruin every one.
    """
    inputs: list[Inputs] = []
    held = 0
    prepare = Preparer(source)
    for name, payload in unlabelled_payloads(source.task, path, limit, seed, source.signature, part):
        for tensors in prepare(name, payload):
            endless = next((n for n, a in tensors.items() if a.dtype.kind == "f" and not np.isfinite(a).all()), None)
            if endless is not None and gives_ranges:
                raise InvalidInput(f"example '{name}': input '{endless}' holds NaN or infinity; calibrate on finite numbers")
            inputs.append(tensors)
            held += sum(a.nbytes for a in tensors.values())
        if held > KEPT_BYTES:
            break
    return inputs


def real_inputs(source: Artifact, path: Path, progress: Progress = silent) -> list[Inputs]:
    """Prepared inputs of up to MAX_REAL_INPUTS examples, for the source's engine, chosen without looking at labels."""
    prepare = Preparer(source)
    inputs: list[Inputs] = []
    payloads = unlabelled_payloads(source.task, path, MAX_REAL_INPUTS, signature=source.signature)
    for number, (name, payload) in enumerate(payloads):
        progress("read the data", number, len(payloads))
        if isinstance(payload, TextPayload) and payload.prompt is not None:
            payload = replace(payload, prompt=payload.prompt[:MAX_TEXT_CHARACTERS])
        inputs += prepare(name, payload)
    return inputs


class Preparer:
    """Payloads of one artifact's task to its engine's tensors; raw tensors pass through."""

    def __init__(self, artifact: Artifact) -> None:
        self._signature = artifact.signature
        self.processor = open_processor(artifact.task, artifact.path, artifact.signature) if artifact.task else None

    def __call__(self, name: str, payload: Payload) -> list[Inputs]:
        """1 payload -> N inputs of batch 1, checked against the signature. Raises InvalidInput naming `name`."""
        try:
            if isinstance(payload, TensorPayload):
                prepared = [dict(payload.tensors)]
            elif self.processor is None:
                raise InvalidInput("the model names no task; name one with --task, or give tensors (.npz)")
            else:
                prepared = [dict(p) for p in self.processor.prepare(payload)]
            if self._signature is not None:
                for tensors in prepared:
                    self._signature.check(tensors)
        except InvalidInput as error:
            raise type(error)(f"example '{name}': {error}") from error
        return prepared

    def takes(self, inputs: Sequence[Inputs]) -> bool:
        """Whether inputs prepared for another artifact fit this one's signature."""
        if self._signature is None:
            return True
        try:
            for tensors in inputs:
                self._signature.check(tensors)
        except InvalidInput:
            return False
        return True


class PreparedExamples:
    """Examples with their tensors, prepared once for all engines that take the same, within `KEPT_BYTES`.

    What does not fit is prepared anew each time it is asked for.
    """

    def __init__(self, examples: Sequence[Example], kept_bytes: int = KEPT_BYTES) -> None:
        self.examples = tuple(examples)
        self._left = kept_bytes
        self._kept: dict[int, list[Inputs]] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def of(self, index: int, prepare: Preparer) -> list[Inputs]:
        """Example `index` as inputs for the artifact of `prepare`. Raises InvalidInput naming the example."""
        kept = self._kept.get(index)
        if kept is not None and prepare.takes(kept):
            return kept
        example = self.examples[index]
        inputs = prepare(example.name, example.payload)
        size = sum(array.nbytes for tensors in inputs for array in tensors.values())
        if kept is None and size <= self._left:
            self._kept[index] = inputs
            self._left -= size
        return inputs

    def prepare_all(self, prepare: Preparer, progress: Progress) -> None:
        """Prepare every example, so that one that can't be read is found before any work."""
        for index in range(len(self.examples)):
            progress("read the data", index, len(self.examples))
            self.of(index, prepare)
        progress("read the data", len(self.examples), len(self.examples))


def made_up_inputs(artifact: Artifact, count: int = 8) -> list[Inputs]:
    """Random inputs of batch 1, seeds 0 to count - 1, for where no data is given. Raises Unsupported for strings."""
    from maasdam.convert.probes import Sizes, has_unknown_lengths, probe, taken
    from maasdam.convert.proof.edges import has_unknown_rows, in_rows
    from maasdam.engines import open_engine

    signature, sizes = artifact.signature, Sizes(1)
    assert signature is not None
    has_sides = any(len(s.shape) == 4 and None in s.shape[1:] for s in signature.inputs)  # which not every network takes
    if has_sides or has_unknown_lengths(signature) or has_unknown_rows(signature, artifact.path):
        with closing(cast(TensorEngine, open_engine(artifact))) as engine, suppress(EngineFailure, InvalidInput):

            def run(batch: Tensors) -> Tensors:
                answer = engine.run(batch)
                if not all(array.size for array in answer.values()):  # the usual length may be too short
                    raise EngineFailure("an answer without elements")
                return answer

            ranged = in_rows(run, signature, artifact.path, sizes)  # where it fails, whoever runs it says why
            sizes = taken(run, ranged, sizes, seed=0, folder=artifact.path)[0]
            signature = ranged
    return [probe(signature, sizes, seed=seed, folder=artifact.path) for seed in range(count)]


def check_disjoint(train: Sequence[Example], data: Sequence[Example]) -> None:
    """Raise InvalidInput where an example of --train has the content of one of --data."""
    known = {payload_digest(e.payload): e.name for e in data}
    shared = [(e.name, known[d]) for e in train if (d := payload_digest(e.payload)) in known]
    if shared:
        first, same = shared[0]
        raise InvalidInput(
            f"{len(shared)} of the examples of --train are in --data too (first: '{first}' is '{same}'); "
            "what is trained on can't be evaluated on: take them out of one"
        )


def payload_digest(payload: Payload) -> str:
    """sha256 of what a payload says, whatever its file is called."""
    total = hashlib.sha256()
    for piece in _pieces(payload):
        total.update(piece)
    return total.hexdigest()


def describe(path: Path | None) -> str | None:
    """A data set's name for reports: its last folder, never where it lies on this machine."""
    return None if path is None else path.name


def _pieces(payload: Payload) -> Iterator[bytes]:
    if isinstance(payload, ImagePayload | AudioPayload):
        yield payload.data
    elif isinstance(payload, TextPayload):
        text: Any = payload.prompt if payload.prompt is not None else payload.messages or payload.token_ids
        yield repr(text if isinstance(text, str) else [dict(m) if isinstance(m, Mapping) else m for m in text]).encode()
    elif isinstance(payload, ReadPayload):
        yield repr((payload.text, payload.beside)).encode()
    elif isinstance(payload, TensorPayload):
        for name in sorted(payload.tensors):
            array = payload.tensors[name]
            yield f"{name} {array.dtype} {array.shape}".encode()
            yield array.tobytes()
