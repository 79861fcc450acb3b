"""What is proven of a conversion, and when it counts: tolerances, differences gathered over cases, the certificate.

Knows numbers and what is no proof: an output that never varies, NaN, lost shapes. Refuses to know engines.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from maasdam.core import Artifact, Tensors
from maasdam.errors import VerificationFailed

if TYPE_CHECKING:
    from maasdam.core import type_array


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What may differ: `relative` x the largest value of the output in the reference + `absolute`.

    Faithful float32 conversions sum in another order and were measured at 1e-7 to 2e-5 of the largest value (MobileNetV2
    5e-6, wav2vec2 8e-6, HuBERT 2e-5, decoders 4e-6). A wrong operator, weight or layout is off by 1e-3 and more.
    """

    relative: float = 1e-4
    absolute: float = 1e-6
    spread: float = 10.0
    """An output must vary between inputs by this many limits, else agreeing with it proves nothing."""

    def limit(self, scale: float) -> float:
        """The largest difference allowed for an output whose largest value is `scale`."""
        return self.relative * scale + self.absolute


@dataclass(slots=True)
class OutputProof:
    """One output over all cases. `spread`: how far the reference moved between inputs; `scale`: its largest value."""

    name: str
    max_abs_diff: float = 0.0
    max_rel_diff: float = 0.0
    """Of the largest value in the same case."""
    cosine: float = 1.0
    """The lowest over the cases."""
    spread: float = 0.0
    scale: float = 0.0
    limit: float = 0.0
    is_exact: bool = False
    """Is it counted or decided (integers, booleans), so that nothing may differ?"""

    def add(self, reference: type_array, candidate: type_array) -> None:
        """Take in one case. Shapes are equal and the reference holds no NaN; an infinity has to be the same in both."""
        import numpy as np

        self.is_exact = reference.dtype.kind in "iub"
        wanted, found = reference.astype(np.float64), candidate.astype(np.float64)
        same = np.isinf(wanted) & (wanted == found)
        wanted, found = np.where(same, 0, wanted), np.where(same, 0, found)
        if not np.isfinite(wanted).all():
            self.max_abs_diff = self.max_rel_diff = math.inf
            return
        scale = float(np.abs(wanted).max())
        difference = float(np.abs(wanted - found).max()) if np.isfinite(found).all() else math.inf
        self.scale = max(self.scale, scale)
        self.max_abs_diff = max(self.max_abs_diff, difference)
        self.max_rel_diff = max(self.max_rel_diff, difference / scale if scale else difference)
        lengths = float(np.linalg.norm(wanted)) * float(np.linalg.norm(found))
        if math.isfinite(lengths) and lengths:
            self.cosine = min(self.cosine, float((wanted * found).sum()) / lengths)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was proven, bound to both digests."""

    source: str
    candidate: str
    source_engine: str
    candidate_engine: str
    tolerance: Tolerance
    seeds: tuple[int, ...]
    cases: tuple[Mapping[str, Any], ...]
    """Each compared batch: its seed (None for real inputs) and shapes."""
    real_inputs: int
    outputs: tuple[OutputProof, ...]
    tokens: Mapping[str, Any] | None = None
    """For models that generate: how many greedy tokens were compared and how many agreed."""
    files: Mapping[str, str] = field(default_factory=dict)
    """sha256 of each file of the candidate."""

    def to_json(self) -> dict[str, Any]:
        """One JSON object; `passed` is always true, since what fails has no certificate."""
        return {
            "passed": True,
            "source": {"digest": self.source, "engine": self.source_engine},
            "candidate": {"digest": self.candidate, "engine": self.candidate_engine, "files": dict(self.files)},
            "tolerance": asdict(self.tolerance),
            "seeds": list(self.seeds),
            "cases": [dict(case) for case in self.cases],
            "real_inputs": self.real_inputs,
            "outputs": [asdict(output) for output in self.outputs],
            "tokens": dict(self.tokens) if self.tokens is not None else None,
        }


class Proof:
    """Gathers cases, then judges."""

    def __init__(self, tolerance: Tolerance, names: Sequence[str], *, drops_ones: bool = False) -> None:
        """`drops_ones`: the source leaves out whatever axis is one long in a batch (ONNX's Squeeze without axes)."""
        self._tolerance = tolerance
        self._drops_ones = drops_ones
        self._outputs = {name: OutputProof(name) for name in names}
        self._first: dict[tuple[str, tuple[int, ...]], type_array] = {}
        self._cases: list[dict[str, Any]] = []

    def add(self, seed: int | None, batch: Tensors, reference: Tensors, candidate: Tensors) -> None:
        """Take in one batch. Raises VerificationFailed at once where the outputs can't be compared."""
        import numpy as np

        for name, output in self._outputs.items():
            wanted, found = reference[name], candidate[name]
            if self._drops_ones and [d for d in wanted.shape if d != 1] == [d for d in found.shape if d != 1]:
                wanted = wanted.reshape(found.shape)
            if wanted.shape != found.shape:
                raise VerificationFailed(
                    f"output '{name}' has shape {list(found.shape)} where the source gives {list(wanted.shape)}"
                )
            if wanted.dtype.kind not in "fiub" and wanted.dtype.name != "bfloat16":
                raise VerificationFailed(f"output '{name}' is {wanted.dtype}; only numbers and booleans can be compared")
            if np.isnan(wanted).any() or (wanted.size and not np.isfinite(wanted).any()):
                raise VerificationFailed(f"the source's own output '{name}' holds NaN or nothing finite; that proves nothing")
            if wanted.size:
                output.add(wanted, found)
                self._spread(output, wanted)
        self._cases.append({"seed": seed, "shapes": {name: list(array.shape) for name, array in batch.items()}})

    def _spread(self, output: OutputProof, wanted: type_array) -> None:
        """Between the items of a batch, and between batches of one shape."""
        import numpy as np

        values = np.where(np.isfinite(wanted), wanted, 0).astype(np.float64)
        if values.ndim and len(values) > 1:
            output.spread = max(output.spread, float(np.ptp(values, axis=0).max()))
        first = self._first.setdefault((output.name, values.shape), values)
        output.spread = max(output.spread, float(np.abs(first - values).max()))

    def lively(self) -> int:
        """How many outputs vary enough for agreement to prove something."""
        return sum(self._varies(output) for output in self._outputs.values())

    def _varies(self, output: OutputProof) -> bool:
        return output.spread > 0 and output.spread >= self._tolerance.spread * self._limit(output)

    def _limit(self, output: OutputProof) -> float:
        return 0.0 if output.is_exact else self._tolerance.limit(output.scale)

    def certificate(self, source: Artifact, candidate: Artifact, seeds: tuple[int, ...]) -> Certificate:
        """The certificate, or VerificationFailed naming every output that is over its limit or proves nothing."""
        wrong = []
        any_varies = self.lively() > 0
        for output in self._outputs.values():
            output.limit = self._limit(output)
            if not output.max_abs_diff <= output.limit:
                wrong.append(f"output '{output.name}' differs by {output.max_abs_diff:.3g} where {output.limit:.3g} is allowed")
            elif not self._varies(output) and not (output.is_exact and any_varies):  # a class is often the same for all
                wrong.append(
                    f"output '{output.name}' of the source varies by {output.spread:.3g} only, so agreement proves nothing"
                )
        if wrong or not self._cases:
            raise VerificationFailed("the conversion is not faithful: " + ("; ".join(wrong) or "nothing was compared"))
        return Certificate(
            source=source.digest,
            candidate=candidate.digest,
            source_engine=source.engine,
            candidate_engine=candidate.engine,
            tolerance=self._tolerance,
            seeds=seeds,
            cases=tuple(self._cases),
            real_inputs=sum(case["seed"] is None for case in self._cases),
            outputs=tuple(self._outputs.values()),
            files=_file_digests(candidate),
        )


def _file_digests(candidate: Artifact) -> dict[str, str]:
    """What the store's manifest says of the files; empty for an artifact that is in no store."""
    manifest = candidate.path / "artifact.json"
    if not manifest.is_file():
        return {}
    return {file["name"]: file["sha256"] for file in json.loads(manifest.read_text())["files"]}
