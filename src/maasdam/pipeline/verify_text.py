"""Measure a language model's build: perplexity, greedy tokens, latency of a short answer, tokens per second.

Knows sequence engines and log-probabilities. Refuses to choose limits.

The reference is the uncompressed source at float32 on OpenVINO GenAI: no engine here generates from a plain ONNX graph.
Texts are cut into pieces of `PIECE_CHARACTERS`; every token of a piece but its first is predicted from those before it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.core import OF_ITS_ENGINE, Artifact, SequenceEngine, TextPayload, TryingEngine
from maasdam.engines.generating import greedy
from maasdam.errors import InvalidInput, MaasdamError, VerificationFailed
from maasdam.pipeline.bootstrap import confidence
from maasdam.pipeline.columns import Runner, memory, not_proven_elsewhere, report_of, speed_of, timed
from maasdam.pipeline.conditions import Conditions
from maasdam.pipeline.examples import Inputs, PreparedExamples, Preparer
from maasdam.pipeline.fidelity import of_tokens
from maasdam.pipeline.parity import Parity
from maasdam.pipeline.recipe import Limits
from maasdam.pipeline.report import Report, finished

if TYPE_CHECKING:
    from maasdam.core import type_array

PIECE_CHARACTERS = 2000
PIECES = 100
"""Pieces scored, evenly spaced over longer data."""
PROMPTS = 16
PROMPT_TOKENS = 32
NEW_TOKENS = 32
STREAMS = 8
SOURCE_SECONDS = 60.0
TEXTS_ENOUGH = 10
"""Intervals are over texts, since the pieces of one text are alike; over pieces where there are fewer texts than this."""
SAYS = {
    "latency_of": f"{NEW_TOKENS} greedy tokens after a prompt of up to {PROMPT_TOKENS}, one stream",
    "throughput_of": f"generated tokens, {STREAMS} streams at once",
    "energy_of": "one generated token",
    "parity_of": "log-probabilities of the data's tokens; agreement: share of greedily generated tokens that are equal",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text: its name, its tokens, its bytes as UTF-8 (0 where the tokens are made up), and what it is cut from."""

    name: str
    ids: tuple[int, ...]
    bytes: int
    text: str = ""


@dataclass(slots=True)
class Scores:
    """Log-probabilities of one subject over the pieces."""

    pieces: Sequence[Piece]
    values: list[np.ndarray[Any, np.dtype[np.float64]]] = field(default_factory=list)

    @property
    def perplexity(self) -> float | None:
        """exp of the mean negative log-likelihood of a token; None where it is no number."""
        count = sum(len(v) for v in self.values)
        total = -sum(float(v.sum()) for v in self.values)
        return math.exp(total / count) if count and math.isfinite(total) and total / count < 700 else None

    @property
    def bits_per_byte(self) -> float | None:
        """Bits to say the text with this model, over its bytes."""
        total = -sum(float(v.sum()) for v in self.values)
        size = sum(p.bytes for p in self.pieces[: len(self.values)])
        return total / math.log(2) / size if size and math.isfinite(total) else None


def verify_text(
    candidate: Artifact,
    references: Sequence[Artifact],
    source: Artifact,
    examples: PreparedExamples,
    limits: Limits,
    how: Conditions,
) -> Report:
    """Measure a language model. Raises VerificationFailed where the candidate or the reference can't be run."""
    threads = int(candidate.settings.get("threads") or how.threads_used)
    notes: list[str] = []
    if not references:
        notes.append(not_proven_elsewhere(source))
    artifacts = {"candidate": candidate, "reference": (*references, source)[0], "source": source}
    with open_all(artifacts, how, threads, notes) as engines:
        context = min(e.context_length for e in engines.values())
        pieces = text_pieces(candidate, examples, context) if len(examples) else made_up_pieces(candidate, context)
        company = engines["candidate"].batching if isinstance(engines["candidate"], TryingEngine) else OF_ITS_ENGINE
        prompts = [p.ids[:PROMPT_TOKENS] for p in pieces[:PROMPTS]]
        written = _generate_all(engines, prompts, how)
        many = [prompts[i % len(prompts)] for i in range(STREAMS)]
        runs: dict[str, Runner[SequenceEngine]] = {
            "alone": lambda e: lambda number: greedy(e, [prompts[number % len(prompts)]], NEW_TOKENS),
            "together": lambda e: lambda number: greedy(e, many, NEW_TOKENS),
        }
        times = timed(engines, runs["alone"], "latency", how.measure_seconds, (10, 100), how)
        speed = speed_of(engines, times, runs["together"], (3, 30), lambda e: STREAMS * NEW_TOKENS, how)
        rounding = {name: e.rounds for name, e in engines.items() if isinstance(e, TryingEngine)}
    scores = {}
    for name in engines:
        own = {"threads": threads} | ({"dynamic_quantization": rounding[name]} if name in rounding else {})  # as it is served
        scores[name] = _score(artifacts[name], pieces, own, how, notes, is_needed=name != "source")
    parity = _parity(pieces, scores, written)
    is_wanted = limits.min_fidelity is not None  # else the metric decides, or cosine on made-up tokens
    fidelity = of_tokens(_truth(scores), scores["candidate"].values).to_json() if is_wanted else {}
    inputs: list[Inputs] = [{"input_ids": np.asarray([ids], np.int64)} for ids in prompts[:5]]
    known = memory(((artifacts[name], inputs) for name in engines), threads, how, notes)
    columns = {}
    for name, score in scores.items():
        bits = score.bits_per_byte
        perplexity, extra = (None, {}) if bits is None else (score.perplexity, {"bits_per_byte": bits})
        columns[name] = speed.column(name, artifacts[name], known, perplexity, len(score.values), extra)
    has_metric = len(examples) > 0
    report = report_of(
        columns,
        "perplexity" if has_metric else None,
        limits,
        how,
        threads,
        notes,
        SAYS,
        batching=company,
        parity=parity.to_json() | fidelity,
        examples=len(pieces) if has_metric else 0,
        unit="tokens/s",
        confidence=_confidence(scores) if has_metric else None,
        why_no_accuracy=None if has_metric else "no --data was given: the verdict rests on parity alone, on random tokens",
        precisions=weight_precisions(candidate),
        samples=_samples(pieces, prompts, written) if has_metric else (),
    )
    return finished(report, parity.problems)


def text_pieces(artifact: Artifact, examples: PreparedExamples, context: int) -> list[Piece]:
    """The data in pieces that fit the context, `PIECES` at most. Raises InvalidInput where there is no text."""
    processor: Any = Preparer(artifact).processor
    tokenize = processor.tokenizer  # the processor's own `encode` refuses what is longer than the context
    cut = [
        (f"{e.name}#{number}" if number else e.name, text, e.name)
        for e in examples.examples
        for number, text in enumerate(_cut(_text(e.name, e.payload)))
    ]
    pieces: list[Piece] = []
    step = max(1, len(cut) // PIECES)
    for name, text, whole in cut[::step][:PIECES]:
        ids = [int(i) for i in tokenize(text, verbose=False)["input_ids"]]
        for start in range(0, max(1, len(ids) - 1), context - 1):
            window = ids[start : start + context]
            if len(window) > 1:
                share = round(len(text.encode()) * (len(window) - (start > 0)) / len(ids))
                pieces.append(Piece(name if not start else f"{name}+{start}", tuple(window), share, whole))
    if not pieces:
        raise InvalidInput("the data holds no text of two tokens or more; perplexity needs text")
    return pieces


def made_up_pieces(artifact: Artifact, context: int) -> list[Piece]:
    """Random tokens, seeds 0-7."""
    from maasdam.engines.generation import read_defaults

    vocabulary = read_defaults(artifact.path).vocabulary or 2
    length = min(64, context)
    draws = [np.random.default_rng(seed).integers(0, vocabulary, length) for seed in range(8)]
    return [Piece(f"random tokens, seed {seed}", tuple(int(i) for i in ids), 0) for seed, ids in enumerate(draws)]


def weight_precisions(artifact: Artifact) -> dict[str, int]:
    """How many weight tensors are kept in which type, from the model's file; {} for other layouts."""
    path = artifact.path / "openvino_model.xml"
    if not path.is_file():
        return {}
    import openvino as ov

    found: dict[str, int] = {}
    for node in ov.Core().read_model(path).get_ordered_ops():
        if node.get_type_name() == "Constant" and math.prod(node.get_output_shape(0)) >= 1024:
            kind = f"weights {node.get_output_element_type(0).get_type_name()}"
            found[kind] = found.get(kind, 0) + 1
    return found


@contextmanager
def open_all(
    artifacts: Mapping[str, Artifact], how: Conditions, threads: int, notes: list[str]
) -> Iterator[dict[str, SequenceEngine]]:
    """The engines by name; one artifact under two names is opened once. Raises VerificationFailed; the source may fail."""
    from maasdam.engines import open_engine

    opened: dict[str, Any] = {}
    engines: dict[str, SequenceEngine] = {}
    with ExitStack() as stack:
        for name, artifact in artifacts.items():
            how.progress(f"open the {name}")
            try:
                if artifact.digest not in opened:
                    engine: Any = open_engine(artifact, device=how.device, threads=threads)
                    opened[artifact.digest] = stack.enter_context(closing(engine))
                engines[name] = opened[artifact.digest]
            except MaasdamError as error:
                if name != "source":
                    raise VerificationFailed(f"the {name} does not run on {artifact.engine}: {error}") from error
                notes.append(f"source was not measured: {error}")
        yield engines


def _generate_all(
    engines: Mapping[str, SequenceEngine], prompts: Sequence[Sequence[int]], how: Conditions
) -> dict[str, list[tuple[int, ...]]]:
    """Greedy answers of the candidate and the reference."""
    written = {}
    for name in ("reference", "candidate"):
        how.progress(f"generate with the {name}")
        room = min(NEW_TOKENS, engines[name].context_length - max(len(p) for p in prompts))
        written[name] = greedy(engines[name], prompts, room)
    return written


def _score(
    artifact: Artifact,
    pieces: Sequence[Piece],
    own: Mapping[str, Any],
    how: Conditions,
    notes: list[str],
    *,
    is_needed: bool,
) -> Scores:
    """Log-probabilities of all pieces; where they are not needed, on a slow engine, of as many as time allows."""
    from maasdam.engines.scoring import log_likelihoods

    settings = {**artifact.settings, **own}
    if is_needed or artifact.layout == "genai":
        return Scores(pieces, log_likelihoods(artifact.path, [p.ids for p in pieces], settings=settings, progress=how.progress))
    began = time.monotonic()
    first = log_likelihoods(artifact.path, [pieces[0].ids], settings=settings)
    each = max(1e-3, time.monotonic() - began)
    count = max(1, min(len(pieces), int(SOURCE_SECONDS / each)))
    if count < len(pieces):
        notes.append(f"the source on its own engine was scored on the first {count} pieces of text")
    rest = [p.ids for p in pieces[1:count]]
    return Scores(pieces[:count], first + (log_likelihoods(artifact.path, rest, settings=settings) if rest else []))


def _parity(pieces: Sequence[Piece], scores: Mapping[str, Scores], written: Mapping[str, Sequence[tuple[int, ...]]]) -> Parity:
    parity = Parity()
    for piece, wanted, got in zip(pieces, _truth(scores), scores["candidate"].values, strict=True):
        parity.add(piece.name, [{"log_likelihoods": wanted}], [{"log_likelihoods": got}], None)
    for wanted_ids, got_ids in zip(written["reference"], written["candidate"], strict=True):
        parity.agreements += [a == b for a, b in zip(wanted_ids, got_ids, strict=False)]
        parity.agreements += [False] * abs(len(wanted_ids) - len(got_ids))
    return parity


def _truth(scores: Mapping[str, Scores]) -> list[type_array]:
    """The source's own log-likelihoods, a piece each; where the source had no time, those of the reference, which is proven."""
    own = scores["source"].values if "source" in scores else []
    return [*own, *scores["reference"].values[len(own) :]]


def _confidence(scores: Mapping[str, Scores]) -> dict[str, Any] | None:
    """Intervals of the perplexity, over texts or over pieces of text."""
    pieces = scores["reference"].pieces
    is_over_texts = len({p.text for p in pieces}) >= TEXTS_ENOUGH
    sums: dict[str, list[tuple[float, float]]] = {}
    for name in ("reference", "candidate"):
        found: dict[str, tuple[float, float]] = {}
        for number, (piece, values) in enumerate(zip(pieces, scores[name].values, strict=True)):
            unit = piece.text if is_over_texts else str(number)
            above, below = found.get(unit, (0.0, 0.0))
            found[unit] = (above - float(values.sum()), below + len(values))
        sums[name] = list(found.values())
    over = "texts" if is_over_texts else "pieces of text"
    return confidence("perplexity", sums["reference"], sums["candidate"], over, _perplexity)


def _perplexity(nats_per_token: float) -> float:
    """exp; infinite where that has no number."""
    return math.exp(nats_per_token) if nats_per_token < 700 else math.inf


def _samples(
    pieces: Sequence[Piece], prompts: Sequence[Sequence[int]], written: Mapping[str, Sequence[tuple[int, ...]]]
) -> tuple[dict[str, Any], ...]:
    rows = zip(pieces, prompts, written["reference"], written["candidate"], strict=False)
    return tuple(
        {"name": piece.name, "truth": None, "prompt_token_ids": list(prompt), "reference": list(one), "candidate": list(other)}
        for piece, prompt, one, other in rows
    )


def _text(name: str, payload: Any) -> str:
    if not isinstance(payload, TextPayload) or payload.prompt is None:
        raise InvalidInput(f"example '{name}' is no text; a language model is evaluated on .txt or .jsonl with 'text'")
    return payload.prompt


def _cut(text: str) -> list[str]:
    """Stretches of at most PIECE_CHARACTERS, cut at line ends or spaces where there are any."""
    pieces = []
    while len(text) > PIECE_CHARACTERS:
        end = max(text.rfind("\n", 0, PIECE_CHARACTERS), text.rfind(" ", 0, PIECE_CHARACTERS)) + 1 or PIECE_CHARACTERS
        pieces.append(text[:end])
        text = text[end:]
    return [p for p in [*pieces, text] if p.strip()]
