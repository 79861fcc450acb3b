"""Prove a conversion, once: what was found is kept by the digests of both sides.

Knows the proof's key and where it is kept. Refuses to know how the conversion was made, and what to do without it.

    source, converted --certify on random inputs--> certificate, kept
                      --where that proves nothing: on real inputs too--> certificate or refusal, kept
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import Artifact, Progress, silent
from maasdam.engines import installed_version
from maasdam.engines.processor import processor_name
from maasdam.errors import EngineFailure, InvalidTensor, Unsupported, VerificationFailed
from maasdam.pipeline.examples import Inputs, real_inputs
from maasdam.pipeline.sameness import content_digest

if TYPE_CHECKING:
    from maasdam.artifacts.store import Store

VERSION = 3
"""Raised when the same two sides would be proven otherwise: what was found before no longer counts."""
BROKE = (EngineFailure, InvalidTensor)
"""An engine broke on a batch: that names no difference, and may be another thing tomorrow."""
LIBRARIES = ("torch", "transformers", "onnxruntime", "openvino", "openvino_genai", "tensorflow_cpu", "ctranslate2")


def prove(
    source: Artifact, made: Artifact, store: Store, data: Path | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """The certificate that `made` computes what `source` computes on its own engine, as JSON.

    Random inputs come first, as in `maasdam convert`; `data` (examples; their labels are never read) is asked only where
    those prove nothing. Raises VerificationFailed with the difference or with why nothing could be compared (what an engine
    broke on is not kept: it may have been short of memory); InvalidModel and MissingExtra where an engine can't be opened.
    """
    found = _verdict(source, made, store, None, progress)
    if "refused" in found and data is not None:
        found = _verdict(source, made, store, data, progress)
    if "refused" in found:
        raise VerificationFailed(found["refused"])
    return dict(found["certificate"])


def _verdict(source: Artifact, made: Artifact, store: Store, data: Path | None, progress: Progress) -> dict[str, Any]:
    """{"certificate"} or {"refused"}, from the cache where it is known."""
    key = _key(source, made, data)
    with store.lock(key):
        known = store.cached(key)
        if known is not None:
            return known[1]
        found = _tried(source, made, [] if data is None else real_inputs(source, data, progress), progress)
        if not found.pop("may_pass", False):
            store.remember(key, made, found)
        return found


def _tried(source: Artifact, made: Artifact, inputs: Sequence[Inputs], progress: Progress) -> dict[str, Any]:
    from maasdam.convert.proof.certificate import certify

    try:
        return {"certificate": certify(source, made, inputs=inputs, progress=progress).to_json()}
    except (VerificationFailed, Unsupported, *BROKE) as error:
        may_pass = isinstance(error, BROKE) or isinstance(error.__cause__, BROKE)
        return {"refused": str(error), "may_pass": may_pass}


def _key(source: Artifact, made: Artifact, data: Path | None) -> str:
    facts = {
        "proof": VERSION,
        "source": [source.digest, source.engine],
        "made": made.digest,
        "data": None if data is None else content_digest(data),
        "libraries": {name: installed_version(name) for name in LIBRARIES},
        "processor": processor_name(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
