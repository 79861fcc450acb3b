"""Make synthetic spoken digits with the espeak-ng and flite command-line synthesisers.

Knows voices and which of them are held out; never models or training. Three jobs:

* `training_pool` is the synthetic half of the training data (`train.py` calls it);
* `unheard` makes strings in voices that training never hears, to measure generalisation;
* run as a program, it writes the shipped `samples/` and `calibrate/` folders:

      python speak.py            # both folders, next to this file, always the same bytes
                                 # for the same synthesiser versions

Needs `espeak-ng` (1.51 was used) and `flite` (2.2) on the PATH.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 16_000
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

ESPEAK_VOICES = (
    "en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029", "en-us-nyc",
)  # fmt: skip
FLITE_VOICES = ("kal", "kal16", "awb", "slt")

# Never trained on: a whole accent, nine voice variants, and one flite voice.
HELD_OUT_ESPEAK_VOICES = ("en-gb-x-gbcwmd",)
HELD_OUT_VARIANTS = ("m3", "m7", "f4", "klatt2", "Annie", "Andy", "steph", "max", "edward")
HELD_OUT_FLITE_VOICES = ("rms",)
# Never trained on either, and kept for choosing checkpoints.
DEVELOPMENT_VARIANTS = ("m5", "f2", "david", "Alicia")


@dataclass(frozen=True)
class Voice:
    """One synthetic speaker: a program, a voice and its settings."""

    program: str
    """`espeak-ng` or `flite`."""
    name: str
    """As the program calls it, such as `en-us+m3` or `slt`."""
    speed: float
    """espeak-ng: words a minute (175 is its default). flite: duration stretch (1 is its default)."""
    pitch: float
    """espeak-ng: 0-99 (50 is its default). flite: mean fundamental frequency in Hz, 0 for its default."""
    gap: int = 0
    """espeak-ng: pause between words, in units of 10 ms. flite has none."""


@dataclass(frozen=True)
class Utterance:
    """What was said, by whom, and the sound: float32 mono at 16 kHz in [-1, 1]."""

    words: tuple[str, ...]
    voice: Voice
    samples: np.ndarray


def speak(text: str, voice: Voice) -> np.ndarray:
    """Synthesise `text`; float32 mono at 16 kHz."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        if voice.program == "espeak-ng":
            command = [
                "espeak-ng", "-v", voice.name, "-s", str(round(voice.speed)),
                "-p", str(round(voice.pitch)), "-g", str(voice.gap), "-w", file.name, text,
            ]  # fmt: skip
        else:
            command = ["flite", "-voice", voice.name, "--setf", f"duration_stretch={voice.speed:.3f}"]
            if voice.pitch:
                command += ["--setf", f"int_f0_target_mean={voice.pitch:.1f}"]
            command += ["-t", text, "-o", file.name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        samples, rate = soundfile.read(file.name, dtype="float32")
    return samples if rate == RATE else soxr.resample(samples, rate, RATE).astype(np.float32)


def espeak_variants() -> list[str]:
    """Every voice variant that this espeak-ng has, by name."""
    listing = subprocess.run(["espeak-ng", "--voices=variant"], check=True, capture_output=True, text=True).stdout
    return sorted(set(re.findall(r"!v/(\S+)", listing)) - {"Mr"})  # "Mr serious": a name with a space


def random_string(random_: random.Random, shortest: int, longest: int) -> tuple[str, ...]:
    """Digits drawn evenly, as words."""
    return tuple(random_.choices(DIGITS, k=random_.randint(shortest, longest)))


def joined(words: tuple[str, ...], random_: random.Random) -> str:
    """The text to speak: words run together, or set apart by commas or full stops."""
    return random_.choice([" ", " ", " ", ", ", ". "]).join(words)


def trimmed(samples: np.ndarray, below_peak_db: float = 45.0) -> np.ndarray:
    """`samples` without the silence that synthesisers put before and after a word."""
    loud = np.flatnonzero(np.abs(samples) > np.abs(samples).max() * 10 ** (-below_peak_db / 20))
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples


def _training_voice(random_: random.Random, variants: list[str]) -> Voice:
    if random_.random() < 0.12:
        name = random_.choice(FLITE_VOICES)
        usual = {"slt": 170.0, "awb": 130.0}.get(name, 105.0)
        pitch = 0.0 if random_.random() < 0.3 else usual * random_.uniform(0.75, 1.4)
        return Voice("flite", name, random_.uniform(0.75, 1.4), pitch)
    name = random_.choice(ESPEAK_VOICES)
    if random_.random() < 0.92:
        name += "+" + random_.choice(variants)
    return Voice("espeak-ng", name, random_.uniform(100, 240), random_.uniform(5, 95), random_.choice([0, 0, 0, 2, 8]))


def training_pool(seed: int, speakers: int, strings: int) -> tuple[list[list[Utterance]], list[Utterance]]:
    """Synthetic training speech in voices that are not held out.

    Returns `speakers` lists of ten separate words (in the order of `DIGITS`), each list
    in one voice, and `strings` whole strings of 1-6 digits, each in some voice.
    """
    random_ = random.Random(seed)
    kept_back = set(HELD_OUT_VARIANTS) | set(DEVELOPMENT_VARIANTS)
    variants = [v for v in espeak_variants() if v not in kept_back]
    alone = []
    for _ in range(speakers):
        voice = _training_voice(random_, variants)
        alone.append([Utterance((word,), voice, trimmed(speak(word, voice))) for word in DIGITS])
    together = []
    for _ in range(strings):
        voice, words = _training_voice(random_, variants), random_string(random_, 1, 6)
        together.append(Utterance(words, voice, speak(joined(words, random_), voice)))
    return alone, together


def development(seed: int, count: int) -> list[Utterance]:
    """Speech of 1-6 digits in the voices kept for choosing checkpoints."""
    random_ = random.Random(seed)
    found = []
    for _ in range(count):
        name = f"{random_.choice(ESPEAK_VOICES)}+{random_.choice(DEVELOPMENT_VARIANTS)}"
        voice = Voice("espeak-ng", name, random_.uniform(120, 210), random_.uniform(25, 75))
        words = random_string(random_, 1, 6)
        found.append(Utterance(words, voice, speak(joined(words, random_), voice)))
    return found


def unheard(seed: int, count: int, alone_share: float = 0.35) -> list[Utterance]:
    """Speech in voices that training never hears: `alone_share` single digits, else strings of 2-6."""
    random_ = random.Random(seed)
    found = []
    for _ in range(count):
        draw = random_.random()
        if draw < 0.25:
            name = random_.choice(HELD_OUT_FLITE_VOICES)
            voice = Voice("flite", name, random_.uniform(0.85, 1.25), 0.0)
        else:
            variant = random_.choice(HELD_OUT_VARIANTS)
            accent = random_.choice(HELD_OUT_ESPEAK_VOICES if draw < 0.5 else ESPEAK_VOICES)
            voice = Voice("espeak-ng", f"{accent}+{variant}", random_.uniform(120, 200), random_.uniform(30, 70))
        words = random_string(random_, 1, 1) if random_.random() < alone_share else random_string(random_, 2, 6)
        found.append(Utterance(words, voice, speak(joined(words, random_), voice)))
    return found


def write_folder(folder: Path, utterances: list[Utterance]) -> None:
    """Write 16-bit WAV files and a `metadata.csv` (`file_name,transcription,synthesiser,voice`)."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.wav"):
        stale.unlink()
    with (folder / "metadata.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["file_name", "transcription", "synthesiser", "voice"])
        for number, utterance in enumerate(utterances):
            name = f"{number:03d}.wav"
            soundfile.write(folder / name, utterance.samples, RATE, subtype="PCM_16")
            rows.writerow([name, " ".join(utterance.words), utterance.voice.program, utterance.voice.name])


def main() -> None:
    """Write the shipped folders."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where samples/ and calibrate/ go")
    out: Path = parser.parse_args().out
    write_folder(out / "samples", unheard(seed=5_2024, count=60))
    write_folder(out / "calibrate", development(seed=6_2024, count=24))


if __name__ == "__main__":
    main()
