"""What a task is: one record, from which every room reads what it would else decide by a task's name.

Knows the shape of the record. Refuses to know any task: each stands in the module of its processor, and all in `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from maasdam.core import Example, Payload, Processor, Score, Signature
from maasdam.settings import Settings


@dataclass(frozen=True, slots=True)
class Metric:
    """How answers are scored, and which way is good."""

    name: str = ""
    kind: str | None = None
    """What Hugging Face calls it."""
    title: str = ""
    is_lower_better: bool = False
    is_relative: bool = False
    """A drop is told as a share of the reference's."""
    most: float | None = None
    """Where it ends."""
    score: Callable[[Sequence[Any], Sequence[Example]], Score] | None = None
    """Over answers to examples; None where it is not taken from answers (text: from logits)."""
    beside: Callable[[Sequence[Any], Sequence[Any], Sequence[Example]], Score | None] | None = None
    """Over answers and the source's to the same examples, where nobody else says what is right. None: they are too few."""

    @property
    def better(self) -> str:
        """Which way is good, in words."""
        return "lower is better" if self.is_lower_better else "higher is better"


@dataclass(frozen=True, slots=True)
class Bytes:
    """How the Open Inference Protocol carries a task in BYTES, one element a payload, beside raw tensors."""

    input: str
    outputs: tuple[tuple[str, str], ...]
    """Each output's name and the protocol's datatype, one element a payload."""
    values: Callable[[Any], tuple[Any, ...]]
    """An answer -> its element of each output."""


RawExample = tuple[str, Payload | Path | Callable[[], Payload], Any]
"""One example as it is found: its name, its payload, the file that holds it or what reads it, and what is right."""


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of problem, as Hugging Face names it."""

    name: str
    payloads: tuple[type, ...]
    """What its processor takes."""
    answer: type
    """What it gives."""
    takes: str
    """What a caller gives, in words."""
    doors: tuple[str, ...]
    """Paths that callers POST it to, which write its answers."""
    open: Callable[[Path, Signature | None, Settings], Processor]
    """The processor of a model's folder, fitted to its engine's signature; see `open_processor`."""
    warm_up: Callable[[Signature | None], Payload | None]
    """Something plain of the right kind; None where nothing can be made up."""
    read_examples: Callable[[Path, Mapping[int, str] | None, Signature | None], list[RawExample]]
    """The examples of a folder or file, by the model's labels and signature. Raises InvalidInput."""
    metric: Metric
    same: Callable[[Any, Any], bool | None]
    """Whether two answers are the same to whoever asks; None where that is no question of yes or no."""
    shown: Callable[[Any], Any]
    """An answer in one word or sentence, as a report's samples hold it; None where there is none."""
    lines: Callable[[Any], list[str]]
    """An answer as a terminal shows it."""
    to_json: Callable[[Any], dict[str, Any]]
    """An answer as a JSON object."""
    suffixes: tuple[str, ...] = ()
    """Endings of the files it takes, one example each; () where examples are something else."""
    of_file: Callable[[bytes, int | None], Payload] | None = None
    """(a file's bytes, how many labels are wanted) -> a payload; None where no file is one. No number: as many as is usual."""
    of_row: Callable[[Mapping[str, Any], int], Payload] | None = None
    """(a row of texts by their names, how many labels are wanted) -> a payload; None where texts are none, or prompts.

    Raises InvalidInput."""
    field: str = ""
    """What JSON calls a file in base64, where a door of its own takes it so."""
    data: Callable[[Any], list[dict[str, Any]]] | None = None
    """What of an answer that door writes under `data`."""
    asks: tuple[str, ...] = ("top_k",)
    """What may be asked of it there."""
    drawn: Callable[[Any, Any], bytes] | None = None
    """(payload, answer) -> the picture, a JPEG, with what was found in it."""
    oip: Bytes | None = None
    loss: Literal["classes", "ctc", "tokens"] | None = None
    """What it is trained by (`maasdam.pipeline.training`); None where there is no training."""

    @property
    def door(self) -> str:
        """Where to send it, in words."""
        return f"POST {' or '.join(self.doors)}"

    def payload(self, data: bytes, top_k: int | None = None) -> Payload:
        """A file's bytes as a payload that wants `top_k` labels, where there are labels; None is as many as is usual."""
        assert self.of_file is not None
        return self.of_file(data, top_k)
