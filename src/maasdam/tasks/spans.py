"""What tasks share that find stretches of a text. Knows stretches and outputs; no task."""

from __future__ import annotations

from functools import partial
from typing import Any

from maasdam.core import ReadPayload, Signature, Span, Spans
from maasdam.errors import InvalidModel
from maasdam.tasks.task import Task


def one_output(signature: Signature, axes: int, says: str) -> str:
    """The output of so many axes. Raises InvalidModel where there is none, or more than one and none called logits."""
    found = [spec.name for spec in signature.outputs if len(spec.shape) == axes and spec.dtype.startswith("float")]
    if "logits" in found:
        return "logits"
    if len(found) != 1:
        has = ", ".join(f"{spec.name} {spec.sizes}" for spec in signature.outputs)
        raise InvalidModel(f"{says}; this model gives {has}")
    return found[0]


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The same stretch without the spaces around it, which some tokenizers (SentencePiece's) count to the word behind."""
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    return start, start + len(inside.strip())


def shown(span: Span) -> dict[str, Any]:
    """A stretch as a JSON object; what it has not is left out."""
    facts = {"label": span.label, "token_id": span.number}
    found = {"text": span.text, "start": span.start, "end": span.end, "score": span.score}
    return found | {name: fact for name, fact in facts.items() if fact is not None}


def _lines(answer: Spans) -> list[str]:
    each = (f"{s.text}{f' {s.label}' if s.label else ''} ({s.score:.3f})" for s in answer.spans)
    return [", ".join(each) or "nothing was found"]


finding = partial(
    Task,
    payloads=(ReadPayload,),
    answer=Spans,
    shown=lambda answer: ", ".join(f"{s.text}{f' {s.label}' if s.label else ''}" for s in answer.spans),
    lines=_lines,
    to_json=lambda answer: {"spans": [shown(span) for span in answer.spans]},
)
"""A task of finding stretches, without what is its own."""
