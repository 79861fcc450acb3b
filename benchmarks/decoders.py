"""Kinds of decoders on OpenVINO GenAI against transformers: greedy tokens at float32, perplexity with int8 and int4 weights.

    python -m benchmarks.decoders [--only NAME ...] [--write docs/breadth.md]

The models are tiny and random (`tests/convert/tiny.py`), of two layers; prompts are of 1, 17 and 64 tokens, and one is longer
than each window. Perplexity is that of texts which the model wrote itself (4 x 120 tokens, drawn at temperature 1): its own is
the least there can be, so what rounding adds is seen. Windows and scaled positions are as in the table's names.
"""

from __future__ import annotations

import argparse
import gc
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tests.convert import tiny

from benchmarks.breadth import sentence
from maasdam.artifacts.store import Store
from maasdam.convert import convert
from maasdam.convert.proof.certificate import certify
from maasdam.core import Artifact
from maasdam.engines.scoring import log_likelihoods
from maasdam.errors import MaasdamError, VerificationFailed
from maasdam.pipeline import quantize
from maasdam.pipeline.passes import PassContext

BEGIN, END = "<!-- measured: python -m benchmarks.decoders --write docs/breadth.md -->", "<!-- end of decoders -->"
HEAD = (
    "| decoder | greedy tokens equal | largest difference of logits | perplexity f32 | int8 | int4 |\n|---|---|---|---|---|---|"
)
TEXTS, TOKENS = 4, 120
SCHEMES = ("weights-int8", "weights-int4")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only kinds whose name holds one of these")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page too")
    asked = parser.parse_args()
    lines = [HEAD]
    for kind in tiny.DECODERS:
        if asked.only is None or any(part in kind for part in asked.only):
            lines.append(_row(kind))
            print(lines[-1], flush=True)
            gc.collect()
    if asked.write is not None:
        page = asked.write.read_text()
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        asked.write.write_text("\n".join((f"{before}{BEGIN}", "", *lines, "", f"{END}{after}")))


def _row(kind: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = tiny.language_model(work / "model", kind)
        (work / "f32").mkdir()
        try:
            made = convert(source, "openvino", work / "f32")
            plain = replace(source, path=work / "f32", format="openvino", layout="genai", engine=made.engine)
            proof = certify(source, plain, seeds=(0, 1))
        except VerificationFailed as error:
            return f"| {kind} | **differ**: {sentence(error)} | | | | |"
        except MaasdamError as error:
            return f"| {kind} | refused: {sentence(error)} | | | | |"
        tokens, logits = proof.tokens or {}, proof.outputs[0]
        texts = list(_written(source))
        own, *others = (
            _perplexity(artifact, texts) for artifact in (plain, *(_rounded(plain, name, work) for name in SCHEMES))
        )
        shown = " | ".join(f"{other:.2f} ({other / own - 1:+.1%})" for other in others)
        same = f"{tokens['agreed']} of {tokens['compared']}, {tokens['prompts']} prompts"
        return f"| {kind} | {same} | {logits.max_abs_diff / logits.scale:.0e} of the largest | {own:.2f} | {shown} |"


def _rounded(plain: Artifact, scheme: str, work: Path) -> Artifact:
    """With the weights of a recipe of this scheme, computed as it is served."""
    (work / scheme).mkdir()
    settings = {name: one.default for name, one in quantize.PASS.settings.items()} | {"scheme": scheme}
    made = quantize.run(plain, work / scheme, settings, PassContext(Store(work / "store"), work, work))
    return replace(plain, path=work / scheme, settings=made.settings)


def _written(source: Artifact) -> Iterator[list[int]]:
    """Texts that the model itself finds likely."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source.path).eval()
    for seed in range(TEXTS):
        random, ids = np.random.default_rng(seed), [1]
        with torch.inference_mode():
            while len(ids) < TOKENS:
                chances = torch.softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].double(), 0).numpy()
                ids.append(int(random.choice(len(chances), p=chances / chances.sum())))
        yield ids


def _perplexity(artifact: Artifact, texts: list[list[int]]) -> float:
    found = np.concatenate(log_likelihoods(artifact.path, texts, settings=artifact.settings))
    return math.exp(-float(found.mean()))


if __name__ == "__main__":
    main()
