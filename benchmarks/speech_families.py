"""Families of speech recognisers, every way: what is served against what transformers itself hears, on the same recordings.

    python -m benchmarks.speech_families --data DIR [--only NAME ...] [--write docs/breadth.md]

The models are tiny and random (`tests/field/recognisers.py`), made as their libraries save them; DIR holds real recordings.
Each model hears eight of them, four of them joined, and two of noise. Of a family whose frames spell, a cell is the largest
difference of its logits as a share of the largest logit, and how many transcripts are the same letter for letter. A family that
writes token by token is compared by what it writes. The source is transformers in float32, with the model's own extractor and
tokenizer; it and ours are given the same samples.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tests.field import recognisers

from benchmarks.breadth import sentence
from maasdam.artifacts.store import Store
from maasdam.convert import convert
from maasdam.convert.asking import with_signatures
from maasdam.core import Artifact, AudioPayload, Format, Sampling, SequenceRequest
from maasdam.engines import open_engine
from maasdam.errors import MaasdamError
from maasdam.settings import Settings
from maasdam.sources import ingest
from maasdam.tasks import open_processor
from maasdam.tasks.recordings import decode_audio

BEGIN = "<!-- measured: python -m benchmarks.speech_families --data DIR --write docs/breadth.md -->"
END = "<!-- end of speech families -->"
RATE = 16_000
SPELLED: tuple[Format, ...] = ("pytorch", "onnx", "openvino")
Heard = list[tuple[Any, str]]
"""Of each recording the logits [T, V], None where it writes, and the transcript."""


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of .wav")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only families whose name holds one of these")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the rows into this page; others of it stay")
    asked = parser.parse_args()
    sounds = list(_recordings(asked.data))
    rows = {}
    for name, make in (recognisers.CTC | recognisers.WRITERS).items():
        if asked.only is None or any(part.lower() in name.lower() for part in asked.only):
            rows[name] = f"| {name} | {' | '.join(_row(make, sounds, name in recognisers.WRITERS))} |"
            print(rows[name], flush=True)
            gc.collect()
    if asked.write is not None:
        _write(asked.write, rows)


def _write(page: Path, rows: dict[str, str]) -> None:
    before, _, rest = page.read_text().partition(BEGIN)
    table, _, after = rest.partition(END)
    kept = {m[1]: m[0] for m in re.finditer(r"^\| ([^|]+?) \| .*$", table, re.MULTILINE) if m[1] not in ("family", "---")}
    kept |= rows
    order = [*recognisers.CTC, *recognisers.WRITERS]
    lines = [f"| family | as it is | {' | '.join(SPELLED[1:])} |", "|---|---|---|---|", *(kept[n] for n in order if n in kept)]
    page.write_text("\n".join((f"{before}{BEGIN}", "", *lines, "", f"{END}{after}")))


def _recordings(folder: Path) -> Iterator[bytes]:
    files = sorted(folder.glob("*.wav"))
    chosen = [files[i] for i in np.random.default_rng(0).choice(len(files), 8, replace=False)]
    yield from (file.read_bytes() for file in chosen)
    heard = [decode_audio(file.read_bytes(), RATE, 60)[0] for file in chosen[:4]]
    random = np.random.default_rng()
    for samples in (np.concatenate(heard), *(random.normal(0, 0.1, random.integers(RATE // 2, 3 * RATE)) for _ in range(2))):
        out = io.BytesIO()
        soundfile.write(out, samples, RATE, format="WAV", subtype="FLOAT")
        yield out.getvalue()


def _row(make: recognisers.Maker, sounds: Sequence[bytes], writes: bool) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "model").mkdir()
        source = ingest(str(make(work / "model")), Store(work / "store"))
        right = [recognisers.by_transformers(work / "model", decode_audio(sound, RATE, 60)[0]) for sound in sounds]
        for to in SPELLED:
            try:
                made = _made(source, to, work)
                yield _cell(right, _written(made, sounds) if writes else _spelled(made, sounds), writes)
            except MaasdamError as error:
                yield f"refused: {sentence(error)}"


def _made(source: Artifact, to: Format, work: Path) -> Artifact:
    if to == "pytorch":
        return source
    (work / to).mkdir()
    made = convert(with_signatures(source)[0], to, work / to)
    return replace(source, path=work / to, format=to, layout=made.layout, engine=made.engine, signature=made.signature)


def _spelled(artifact: Artifact, sounds: Sequence[bytes]) -> Heard:
    processor = open_processor(str(artifact.task), artifact.path, artifact.signature, Settings())
    engine: Any = open_engine(artifact, threads=1)
    try:
        found: Heard = []
        for sound in sounds:
            payload = AudioPayload(sound)
            outputs = [engine.run(inputs) for inputs in processor.prepare(payload)]
            answer: Any = processor.finish(outputs, payload)
            found.append((outputs[0]["logits"][0], answer.text))
        return found
    finally:
        engine.close()


def _written(artifact: Artifact, sounds: Sequence[bytes]) -> Heard:
    processor = open_processor(str(artifact.task), artifact.path, None, Settings())
    engine: Any = open_engine(artifact, threads=1)

    async def write(sound: bytes) -> str:
        (inputs,) = processor.prepare(AudioPayload(sound))
        return "".join([tokens.text or "" async for tokens in engine.submit(SequenceRequest("1", inputs, Sampling()))])

    try:
        return [(None, asyncio.run(write(sound)).strip()) for sound in sounds]
    finally:
        engine.close()


def _cell(right: Heard, found: Heard, writes: bool) -> str:
    same = sum(one[1] == other[1] for one, other in zip(right, found, strict=True))
    says = f"{same} of {len(right)} transcripts"
    if writes:
        return says
    most = max(abs(one[0] - other[0]).max() / abs(one[0]).max() for one, other in zip(right, found, strict=True))
    return f"{most:.0e}, {says}"


if __name__ == "__main__":
    main()
