"""Real recordings of spoken digits (FSDD): loading, splitting, stringing together, scoring.

Knows the split that keeps the test recordings out of training; never models.

The number that ends a file name is the recording's index:
0-4 are not in the shared data, 5-9 are the test part (never trained on, never used to
choose a checkpoint), 10-12 are watched while training, 13 and above train.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr

RATE = 16_000
Part = Literal["train", "development", "test"]


@dataclass(frozen=True)
class Recording:
    """One spoken word: float32 mono at 16 kHz in [-1, 1]."""

    word: str
    speaker: str
    index: int
    samples: np.ndarray


def part_of(index: int) -> Part:
    """Which part of the split a recording's index belongs to."""
    return "test" if index <= 9 else "development" if index <= 12 else "train"


def load(folder: Path, part: Part) -> list[Recording]:
    """The recordings of one part, upsampled from 8 to 16 kHz."""
    found = []
    with (folder / "metadata.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            index = int(Path(row["file_name"]).stem.split("_")[-1])
            if part_of(index) == part:
                samples, rate = soundfile.read(folder / row["file_name"], dtype="float32")
                wide = soxr.resample(samples, rate, RATE).astype(np.float32)
                found.append(Recording(row["transcription"], row["speaker"], index, wide))
    return found


def strings(
    recordings: Sequence[Recording], count: int, seed: int, shortest: int = 2, longest: int = 6
) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """Random strings of digits by one speaker each, with pauses of 0.05-0.4 s, a fifth nearly none."""
    random_ = random.Random(seed)
    speakers = sorted({r.speaker for r in recordings})
    by_speaker = {s: [r for r in recordings if r.speaker == s] for s in speakers}
    made = []
    for _ in range(count):
        mine = by_speaker[random_.choice(speakers)]
        chosen = random_.choices(mine, k=random_.randint(shortest, longest))
        pieces: list[np.ndarray] = []
        for position, recording in enumerate(chosen):
            if position:
                pause = random_.uniform(0.0, 0.02) if random_.random() < 0.2 else random_.uniform(0.05, 0.4)
                pieces.append(np.zeros(int(pause * RATE), np.float32))
            pieces.append(recording.samples)
        made.append((tuple(r.word for r in chosen), np.concatenate(pieces)))
    return made


def word_errors(truth: Sequence[str], heard: Sequence[str]) -> int:
    """Substitutions, insertions and deletions between two word sequences (Levenshtein distance)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(truth, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def word_error_rate(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> float:
    """Word errors over all pairs of (truth, heard), divided by the number of true words."""
    return sum(word_errors(t, h) for t, h in pairs) / sum(len(t) for t, _ in pairs)
