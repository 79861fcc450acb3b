"""Measure the build of a model that hears and writes by itself (Whisper): words, and how likely the source's own words are.

Knows transcripts, sequence engines and log-likelihoods. Refuses to choose limits, and to know how an engine decodes.

    source on its own engine (transformers) --its words--> word error rate, and their likelihood by the others --> parity
    --data's words--> word error rate of candidate, reference and source --limits--> Report

The reference is the source at float32 on CTranslate2. It may be the candidate's own files, so it proves nothing of them: parity
is against the source on its own engine, and a candidate that is worse than that by more than the recipe allows fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from maasdam.core import (
    OF_ITS_ENGINE,
    SPEECH_RECOGNITION,
    Artifact,
    AudioPayload,
    Example,
    Score,
    SequenceEngine,
    Transcript,
)
from maasdam.engines.generating import transcript_of
from maasdam.errors import EngineFailure, VerificationFailed
from maasdam.pipeline.bootstrap import confidence
from maasdam.pipeline.columns import Runner, memory, not_proven_elsewhere, report_of, speed_of, timed
from maasdam.pipeline.conditions import Conditions
from maasdam.pipeline.examples import Inputs, PreparedExamples, Preparer
from maasdam.pipeline.fidelity import of_tokens
from maasdam.pipeline.parity import Parity
from maasdam.pipeline.recipe import Limits
from maasdam.pipeline.report import Report, drop_of, finished
from maasdam.pipeline.verify_text import open_all

if TYPE_CHECKING:
    from maasdam.core import type_array

Written = tuple[Transcript, tuple[int, ...]]
"""What an engine writes, and the tokens of its first half minute."""
RATE = 16_000
TIMED = 8
"""Recordings that are timed."""
MADE_UP_SECONDS = 3.0
MADE_UP = 4
SOURCE_SECONDS = 120.0
"""How long the source's own engine may take over the recordings; it is asked for as many as fit."""
HALF_MINUTE = 30.0
MOST_TOKENS = 200
"""Tokens of one recording whose likelihood is compared: a decoder holds 448 with what comes before them."""
SAYS = {
    "latency_of": "the transcript of one recording, greedy",
    "throughput_of": "seconds of sound a second, one recording after the other",
    "energy_of": "one second of sound",
    "parity_of": "log-likelihoods of the words that the source writes on its own engine; agreement: equal transcripts",
}


@dataclass(slots=True)
class _Hearing:
    """What the subjects made of the recordings, in order; the source perhaps only of the first."""

    transcripts: dict[str, list[Transcript]] = field(default_factory=lambda: {"candidate": [], "reference": [], "source": []})
    parity: Parity = field(default_factory=Parity)
    notes: list[str] = field(default_factory=list)
    by_source: list[type_array] = field(default_factory=list)
    """Log-likelihoods of the source's tokens, a recording each."""
    by_candidate: list[type_array] = field(default_factory=list)
    """What the candidate gives the same tokens."""


def verify_speech(
    candidate: Artifact,
    references: Sequence[Artifact],
    source: Artifact,
    examples: PreparedExamples,
    limits: Limits,
    how: Conditions,
) -> Report:
    """Measure a Whisper; without --data its parity, on made-up sound. Raises VerificationFailed where one of them can't run."""
    threads = int(candidate.settings.get("threads") or how.threads_used)
    artifacts = {"candidate": candidate, "reference": (*references, source)[0], "source": source}
    hearing = _Hearing()
    if not references:
        hearing.notes.append(not_proven_elsewhere(source))
    with open_all(artifacts, how, threads, hearing.notes) as engines:
        if "source" not in engines:
            raise VerificationFailed("nothing to prove the build with: " + "; ".join(hearing.notes))
        inputs = _inputs(candidate, examples)
        _hear(engines, inputs, [e.name for e in examples.examples], hearing, how)
        chosen = list(inputs[:: max(1, len(inputs) // TIMED)])[:TIMED]
        every: Runner[SequenceEngine] = lambda e: lambda number: [transcribe(e, each) for each in chosen]  # noqa: E731 - a type
        alone: Runner[SequenceEngine] = lambda e: lambda number: transcribe(e, chosen[number % len(chosen)])  # noqa: E731  # a type
        times = timed(engines, alone, "latency", how.measure_seconds, (5, 100), how)
        seconds = sum(each["waveform"].shape[1] for each in chosen) / RATE
        speed = speed_of(engines, times, every, (1, 20), lambda e: seconds, how)
    known = memory(((artifacts[name], inputs[:5]) for name in engines), threads, how, hearing.notes)
    why_not, scores, against = _scores(hearing, examples.examples)
    columns = {}
    for name in engines:
        score = scores.get(name)
        extra = (dict(score.extra) if score else {}) | ({"wer_against_source": against[name]} if name in against else {})
        accuracy, count = (None, None) if score is None else (score.value, score.examples)
        columns[name] = speed.column(name, artifacts[name], known, accuracy, count, extra)
    has_metric = bool(scores)
    report = report_of(
        columns,
        "wer" if has_metric else None,
        limits,
        how,
        threads,
        hearing.notes,
        SAYS,
        batching=OF_ITS_ENGINE,
        parity=hearing.parity.to_json()
        | of_tokens(hearing.by_source, hearing.by_candidate).to_json()
        | {"against": f"the source on {source.engine}"},
        examples=len(examples) if has_metric else 0,
        unit="audio seconds/s",
        confidence=confidence("wer", scores["reference"].shares, scores["candidate"].shares, "examples") if scores else None,
        why_no_accuracy=why_not,
        samples=_samples(hearing, examples.examples),
    )
    worse = _worse_than_the_source(hearing, examples.examples, limits, against.get("candidate"))
    return finished(report, [*hearing.parity.problems, *worse])


def transcribe(engine: SequenceEngine, inputs: Inputs) -> Written:
    """The whole transcript of one prepared recording, and the tokens of its segments within the first half minute."""
    transcript, found = asyncio.run(transcript_of(engine, [inputs], "verify"))
    ids = [i for tokens in found for s in tokens.segments if s["end"] <= HALF_MINUTE for i in tokens.token_ids]
    return transcript, tuple(ids)


def _inputs(candidate: Artifact, examples: PreparedExamples) -> list[Inputs]:
    """One prepared recording an example; made-up sound, seeds 0 up, where there is none."""
    if len(examples):
        prepare = Preparer(candidate)
        return [examples.of(index, prepare)[0] for index in range(len(examples))]
    size = int(MADE_UP_SECONDS * RATE)
    draws = [np.random.default_rng(seed).normal(size=(1, size)) for seed in range(MADE_UP)]
    return [{"waveform": (0.1 * draw).astype(np.float32)} for draw in draws]


def _hear(
    engines: Mapping[str, SequenceEngine], inputs: Sequence[Inputs], names: Sequence[str], hearing: _Hearing, how: Conditions
) -> None:
    """Every recording through the candidate and the reference, and as many as time allows through the source."""
    source: Any = engines["source"]
    until = time.monotonic() + SOURCE_SECONDS
    for index, each in enumerate(inputs):
        how.progress("transcribe", index, len(inputs))
        name = names[index] if names else f"made-up sound {index}"
        seen: dict[int, Written] = {}
        for subject, engine in engines.items():
            if subject == "source" and time.monotonic() > until and id(engine) not in seen:
                continue
            if id(engine) not in seen:
                try:
                    seen[id(engine)] = transcribe(engine, each)
                except EngineFailure as error:
                    if subject != "candidate":
                        raise
                    hearing.parity.problems.append(f"the candidate broke on '{name}': {error}")
                    seen[id(engine)] = Transcript(""), ()
            hearing.transcripts[subject].append(seen[id(engine)][0])
        if id(source) in seen:
            _compare(name, engines, each, seen, hearing)
    how.progress("transcribe", len(inputs), len(inputs))
    count = len(hearing.transcripts["source"])
    if count < len(inputs):
        hearing.notes.append(f"the source on its own engine was asked for the first {count} recordings, which parity is over")


def _compare(name: str, engines: Mapping[str, Any], inputs: Inputs, seen: Mapping[int, Written], hearing: _Hearing) -> None:
    """How likely the candidate finds the words that the source wrote; where it wrote none there is nothing to find."""
    source, candidate = engines["source"], engines["candidate"]
    (wanted, ids), (got, _) = seen[id(source)], seen[id(candidate)]
    tokens = source.text_tokens(ids)[:MOST_TOKENS]
    if not tokens:
        hearing.parity.examples += 1
        hearing.parity.agreements.append(wanted.text == got.text)
        return
    one, other = (e.log_likelihoods(inputs, tokens, wanted.language) for e in (source, candidate))
    hearing.by_source.append(one)
    hearing.by_candidate.append(other)
    hearing.parity.add(name, [{"log_likelihoods": one}], [{"log_likelihoods": other}], wanted.text == got.text)


def _scores(hearing: _Hearing, examples: Sequence[Example]) -> tuple[str | None, dict[str, Score], dict[str, float]]:
    """(why there is no metric, word error rates against the data, word error rates against the source's words) by name."""
    from maasdam.tasks import score
    from maasdam.tasks.scoring import normalised

    against: dict[str, float] = {}
    words = hearing.transcripts["source"]
    words_as_truth = [Example(str(i), AudioPayload(b""), t.text) for i, t in enumerate(words)]
    if any(normalised(t.text) for t in words):
        for name in ("candidate", "reference"):
            against[name] = score(SPEECH_RECOGNITION, hearing.transcripts[name][: len(words)], words_as_truth).value
    if not examples:
        hearing.notes += _differ(hearing)
        return "no --data was given: the verdict rests on parity with the source alone, on made-up sound", {}, against
    if any(e.truth is None for e in examples):
        return "the data has no transcriptions: the verdict rests on parity with the source alone", {}, against
    scores = {
        name: score(SPEECH_RECOGNITION, found, examples[: len(found)]) for name, found in hearing.transcripts.items() if found
    }
    return None, scores, against


def _differ(hearing: _Hearing) -> list[str]:
    """What to note of transcripts of made-up sound that are not the source's."""
    pairs = list(zip(hearing.transcripts["source"], hearing.transcripts["candidate"], strict=False))
    others = sum(one.text != other.text for one, other in pairs)
    says = f"{others} of {len(pairs)} made-up sounds are written otherwise than by the source: give recordings with --data"
    return [says] if others else []


def _worse_than_the_source(hearing: _Hearing, examples: Sequence[Example], limits: Limits, against: float | None) -> list[str]:
    """The problem of a candidate that is worse than the source on its own engine, over the recordings that both heard.

    Where nothing says what is right, the source's words are: `against` is the word error rate against them.
    """
    from maasdam.tasks import score

    count = len(hearing.transcripts["source"])
    if limits.max_drop is None or not examples:
        return []  # on made-up sound there is nothing to write; likelihoods tell
    if any(e.truth is None for e in examples[:count]):
        drop, says = against, f"the word error rate against the source's own words is {against or 0:.4g}"
    else:
        right = examples[:count]
        rates = [score(SPEECH_RECOGNITION, hearing.transcripts[n][:count], right).value for n in ("source", "candidate")]
        drop = drop_of("wer", *rates)
        says = f"drop against the source on its own engine is {drop:.4g} (word error rate {rates[1]:.4g} after {rates[0]:.4g})"
    is_worse = drop is not None and drop > limits.max_drop + 1e-9
    return [f"{says}; the recipe allows {limits.max_drop:g} at most"] if is_worse else []


def _samples(hearing: _Hearing, examples: Sequence[Example]) -> tuple[dict[str, Any], ...]:
    """One row per example, for checks from outside."""
    source = [t.text for t in hearing.transcripts["source"]]
    rows = zip(examples, hearing.transcripts["reference"], hearing.transcripts["candidate"], strict=False)
    return tuple(
        {
            "name": example.name,
            "truth": example.truth,
            "reference": reference.text,
            "candidate": candidate.text,
            "source": source[index] if index < len(source) else None,
        }
        for index, (example, reference, candidate) in enumerate(rows)
    )
